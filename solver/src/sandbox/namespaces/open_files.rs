//! How many files rbuild may have open: more than shells let a program have by default, since a build
//! holds a descriptor for each connection, layer and file that it works on. Steps have the limits that
//! rbuild was started with, as Docker's have those of its daemon.

use std::process::Child;
use std::sync::OnceLock;

use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit, setrlimit};

/// As many as rbuild wants. Some programs that it starts walk through all that they may have.
const WANTED: u64 = 1 << 16;

/// The limits at the start, where they were raised.
static BEFORE: OnceLock<Rlimit> = OnceLock::new();

/// Lets this process have as many files open as it may. Where that fails it goes on as it is.
pub fn raise_open_files() {
    let before = getrlimit(Resource::Nofile);
    // None means that there is no limit.
    let wanted = before.maximum.map_or(WANTED, |most| most.min(WANTED));
    let is_lower = before.current.is_some_and(|current| current < wanted);
    let raised = Rlimit { current: Some(wanted), maximum: before.maximum };
    if is_lower && setrlimit(Resource::Nofile, raised).is_ok() {
        let _ = BEFORE.set(before);
    }
}

/// Gives `process`, and all that it starts, the limits from before.
pub(super) fn restore(process: &Child) -> std::io::Result<()> {
    let Some(before) = BEFORE.get() else { return Ok(()) };
    prlimit(Some(Pid::from_child(process)), Resource::Nofile, *before)?;
    Ok(())
}
