//! Which paths a step's processes ask for: written down while the kernel goes on as ever.
//!
//! The step has one more filter, that asks about each call with a path (`seccomp/watched.rs`). A
//! process beside the step's supervisor reads the path from the memory of who asks, writes it into a
//! file of rbuild's, and lets the call go on. That the memory can change meanwhile does not matter:
//! nothing is decided by it. A step can have one such filter only: where owners are remembered it has
//! one already, and who answers that writes down the paths too (`ownership.rs`).

use std::ffi::OsStr;
use std::io::{self, Write as _};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::message::{Failure, OrFail};
use super::ownership::listener::{Answer, Listener, Question};
use super::syscalls;
use crate::sandbox::seccomp::{CallTable, Watched};

/// What begins a line of the file for a path that was opened.
pub(crate) const OPENED: u8 = b'o';
/// And for one that was just looked at.
const LOOKED_AT: u8 = b'l';

/// What a watcher needs, got before its step starts.
#[derive(Debug)]
pub(super) struct Watcher {
    /// A `/proc` of the pid namespace in which questions come in.
    proc: OwnedFd,
    paths: Paths,
}

/// The file of paths, and which calls are written into it.
#[derive(Debug)]
pub(super) struct Paths {
    file: std::fs::File,
    calls: CallTable<Watched>,
}

impl Paths {
    /// Makes ready to write into `file`.
    pub(super) fn prepare(file: &Path) -> Result<Self, Failure> {
        let file = fs_err::OpenOptions::new().create(true).append(true).open(file);
        let file = file.or_fail(|| "cannot write down which paths a step asks for")?;
        Ok(Self { file: file.into_parts().0, calls: CallTable::watched() })
    }

    /// Writes down what `question` asks for. The working directory is a `/proc` of the pid namespace
    /// in which it came in.
    pub(super) fn note(&self, question: &Question) {
        let Some(call) = self.calls.get(question.architecture, question.number) else { return };
        let Some(path) = path(question, call) else { return };
        let mut line = vec![if call.opens { OPENED } else { LOOKED_AT }];
        line.extend(path.as_os_str().as_bytes());
        line.push(0);
        // A full disk costs what would have been known, not the step.
        let _ = (&self.file).write_all(&line);
    }
}

impl Watcher {
    /// Makes ready to write the paths into `file`. `proc` is of the pid namespace of the caller.
    pub(super) fn prepare(proc: OwnedFd, file: &Path) -> Result<Self, Failure> {
        Ok(Self { proc, paths: Paths::prepare(file)? })
    }

    /// Starts the process that hears what comes in at `listener`.
    pub(super) fn start(&self, listener: OwnedFd) -> io::Result<OwnedFd> {
        match syscalls::clone_process(rustix::thread::UnshareFlags::empty())? {
            syscalls::Cloned::Parent(watcher) => Ok(watcher),
            syscalls::Cloned::Child => {
                let ended = rustix::process::fchdir(self.proc.as_fd())
                    .map_err(io::Error::from)
                    .and_then(|()| self.hear_all(&Listener::new(listener)));
                std::process::exit(i32::from(ended.is_err()))
            }
        }
    }

    /// Hears until nobody is left to ask.
    fn hear_all(&self, listener: &Listener) -> io::Result<()> {
        loop {
            let Some(question) = listener.receive()? else { continue };
            self.paths.note(&question);
            listener.answer(&question, Ok(Answer::Continue))?;
        }
    }
}

/// The path that a call names, from the step's root; `None` for a descriptor alone.
fn path(question: &Question, call: Watched) -> Option<PathBuf> {
    let text = question.text(call.path).ok()?;
    if text.is_empty() {
        return None;
    }
    let path = Path::new(OsStr::from_bytes(text.to_bytes()));
    if path.is_absolute() {
        return Some(path.to_owned());
    }
    let folder = call.folder.map_or(libc::AT_FDCWD, |index| question.descriptor(index));
    let thread = question.thread;
    let link = if folder == libc::AT_FDCWD {
        format!("{thread}/cwd")
    } else {
        format!("{thread}/fd/{folder}")
    };
    Some(fs_err::read_link(link).ok()?.join(path))
}
