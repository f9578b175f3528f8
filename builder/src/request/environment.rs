//! The process's surroundings, read once: environment, clock, who and where we are.
//!
//! Everything else takes what it needs from here, so that a build depends on nothing it was not
//! given, and tests can give it other surroundings.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::IsTerminal;
use std::path::PathBuf;
use std::time::SystemTime;

/// What the process was started with.
#[derive(Clone, Debug)]
#[allow(clippy::struct_excessive_bools, reason = "each says something of its own")]
pub struct Environment {
    /// The environment variables.
    pub variables: BTreeMap<OsString, OsString>,
    /// The time at which rbuild began.
    pub now: SystemTime,
    /// Whether rbuild runs as root.
    pub root: bool,
    /// The number of processors it may use.
    pub processors: std::num::NonZeroUsize,
    /// Whether stdin is a terminal.
    pub stdin_is_terminal: bool,
    /// Whether stdout is a terminal.
    pub stdout_is_terminal: bool,
    /// Whether stderr is a terminal.
    pub stderr_is_terminal: bool,
}

impl Environment {
    /// The surroundings of this process.
    #[allow(clippy::disallowed_methods, reason = "this is the border at which they are read")]
    pub fn of_process() -> Self {
        Self {
            variables: std::env::vars_os().collect(),
            now: SystemTime::now(),
            root: rustix::process::geteuid().is_root(),
            processors: std::thread::available_parallelism().unwrap_or(std::num::NonZeroUsize::MIN),
            stdin_is_terminal: std::io::stdin().is_terminal(),
            stdout_is_terminal: std::io::stdout().is_terminal(),
            stderr_is_terminal: std::io::stderr().is_terminal(),
        }
    }

    /// The variable `name`, if it is set and is text.
    pub fn text(&self, name: &str) -> Option<&str> {
        self.variables.get(std::ffi::OsStr::new(name))?.to_str()
    }

    /// The variable `name`, if it is set to something.
    pub fn path(&self, name: &str) -> Option<PathBuf> {
        let value = self.variables.get(std::ffi::OsStr::new(name))?;
        (!value.is_empty()).then(|| PathBuf::from(value))
    }

    /// Whether stderr shows colours, and the user has not asked for none (no-color.org).
    pub fn shows_colors(&self) -> bool {
        self.stderr_is_terminal
            && self.text("NO_COLOR").is_none_or(str::is_empty)
            && self.text("TERM") != Some("dumb")
    }

    /// Surroundings with just these variables, at the epoch, without terminals: for tests.
    pub fn with_variables(variables: &[(&str, &str)]) -> Self {
        Self {
            variables: variables.iter().map(|(k, v)| (k.into(), v.into())).collect(),
            now: SystemTime::UNIX_EPOCH,
            root: false,
            processors: std::num::NonZeroUsize::MIN,
            stdin_is_terminal: false,
            stdout_is_terminal: false,
            stderr_is_terminal: false,
        }
    }
}
