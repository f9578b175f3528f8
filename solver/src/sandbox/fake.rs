//! A sandbox that runs nothing: for tests of what asks for commands to be run.

use std::sync::{Mutex, PoisonError};

use async_trait::async_trait;

use super::{ExitStatus, OutputSink, ProcessSpec, Sandbox, SandboxError};

/// What a command does in place of running.
type Answer = dyn Fn(&ProcessSpec, &OutputSink) -> ExitStatus + Send + Sync;

/// Remembers what it was asked to run, and answers with what a function says.
pub struct Fake {
    asked: Mutex<Vec<ProcessSpec>>,
    answer: Box<Answer>,
}

impl Fake {
    /// Makes a sandbox in which every command does what `answer` does: it can write to the
    /// folders of the process's root, and print.
    pub fn new(
        answer: impl Fn(&ProcessSpec, &OutputSink) -> ExitStatus + Send + Sync + 'static,
    ) -> Self {
        Self { asked: Mutex::default(), answer: Box::new(answer) }
    }

    /// Returns what it was asked to run so far, in order.
    pub fn asked(&self) -> Vec<ProcessSpec> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

#[async_trait]
impl Sandbox for Fake {
    async fn run(
        &self,
        process: ProcessSpec,
        output: OutputSink,
    ) -> Result<ExitStatus, SandboxError> {
        let status = (self.answer)(&process, &output);
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).push(process);
        Ok(status)
    }
}
