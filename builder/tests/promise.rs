//! What a promise of `docs/security.md` came to: one line with its figure, whatever becomes of the
//! test's own output; and what a run cost.

use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::figure::figure;
use crate::rbuild::{Outcome, Run};

/// Tells the figure of promise `number`: `P3 escapes 0 / 43`.
pub(crate) fn tell(number: u32, text: &str) {
    figure(&format!("P{number} {text}"));
}

/// What a run took.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Cost {
    /// The most memory that its first process held, in bytes.
    pub(crate) memory: u64,
    pub(crate) time: Duration,
}

impl Cost {
    /// The greater of each.
    pub(crate) fn max(self, other: Self) -> Self {
        Self { memory: self.memory.max(other.memory), time: self.time.max(other.time) }
    }
}

/// Runs `run` to its end, and measures it. What does not end is killed: nothing
/// may take a minute on a machine that has nothing else to do.
pub(crate) fn measured(mut run: Run) -> (Outcome, Cost) {
    let start = Instant::now();
    let mut child = run
        .command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let status = format!("/proc/{}/status", child.id());
    let (stdout, stderr) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
    let read = |mut stream: Box<dyn std::io::Read + Send>| {
        std::thread::spawn(move || {
            let mut bytes = Vec::new();
            stream.read_to_end(&mut bytes).unwrap();
            String::from_utf8_lossy(&bytes).into_owned()
        })
    };
    let (stdout, stderr) = (read(Box::new(stdout)), read(Box::new(stderr)));
    let mut memory = 0;
    let ended = loop {
        // The kernel keeps the peak: the last look tells of all before.
        let text = fs_err::read_to_string(&status).unwrap_or_default();
        let peak = text.lines().find_map(|line| {
            line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()
        });
        memory = memory.max(peak.unwrap_or(0) * 1024);
        if let Some(ended) = child.try_wait().unwrap() {
            break ended;
        }
        if start.elapsed() > Duration::from_mins(4) {
            child.kill().unwrap();
            panic!("it does not end");
        }
        std::thread::sleep(Duration::from_millis(2));
    };
    let (stdout, stderr) = (stdout.join().unwrap(), stderr.join().unwrap());
    let outcome = Outcome { status: ended, stdout, stderr };
    (outcome, Cost { memory, time: start.elapsed() })
}

/// A refusal: exit code 1 or 3, one message, no panic, and nothing left of it.
pub(crate) fn is_refusal(outcome: &Outcome) -> bool {
    matches!(outcome.status.code(), Some(1 | 3))
        && outcome.stderr.lines().filter(|line| line.starts_with("error: ")).count() == 1
        && !outcome.stderr.contains("panicked")
}
