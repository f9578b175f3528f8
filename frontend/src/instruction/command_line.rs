//! The command of RUN, CMD, ENTRYPOINT and HEALTHCHECK: a line for the shell, or a list of
//! arguments.

use crate::diagnostic::{Diagnostic, Diagnostics, both};
use crate::source::Text;
use crate::syntax::BareInstruction;
use crate::syntax::flag::Flags;
use crate::syntax::json;
use crate::syntax::line::Slice;

/// What to run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CommandLine {
    /// A line for the shell, which may be empty.
    Shell(Text),
    /// The JSON form: a program and its arguments, run without a shell; may be empty.
    Exec(Vec<Text>),
}

impl CommandLine {
    /// Reads CMD and ENTRYPOINT.
    pub(super) fn parse(bare: &BareInstruction) -> Result<Self, Diagnostics> {
        let flags = Flags::check(&bare.flags, &[]);
        both(flags, Self::read(bare.arguments())).map(|(_, line)| line)
    }

    /// The command that `arguments` are.
    pub(super) fn read(arguments: Slice<'_>) -> Result<Self, Diagnostic> {
        Ok(match json::strings(arguments)? {
            Some(strings) => Self::Exec(strings),
            None => Self::Shell(arguments.text()),
        })
    }

    /// Whether there is nothing to run.
    pub fn is_empty(&self) -> bool {
        match self {
            Self::Shell(line) => line.value.is_empty(),
            Self::Exec(arguments) => arguments.is_empty(),
        }
    }
}
