//! The process that steps are cloned from.
//!
//! rbuild is threaded, and a threaded process must not fork and go on; so it starts itself anew,
//! once, as this server: single-threaded, small, in a session of its own so that no key pressed at
//! the terminal reaches the steps. Cloning it takes a fraction of the time of starting a program.
//! It ends, and all steps with it, when rbuild does: its socket is closed then.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::mount::MountPropagationFlags;
use rustix::thread::UnshareFlags;

use super::message::{self, Failure, OrFail, Report, RequestDescriptors};
use super::supervisor::supervise;
use super::syscalls::{self, Cloned};
use crate::sandbox::seccomp;

/// The first argument that makes rbuild a sandbox server.
pub(super) const ARGUMENT: &str = "__sandbox";

/// Becomes a sandbox server when this process was started as one; otherwise returns at once.
///
/// To be called first in `main`, before there is a second thread.
pub fn serve_when_asked() {
    if std::env::args_os().nth(1).is_some_and(|argument| argument == ARGUMENT) {
        std::process::exit(match serve() {
            Ok(()) => 0,
            Err(_) => 3,
        });
    }
}

/// Starts a supervisor for every request that comes in, until the socket is closed.
fn serve() -> io::Result<()> {
    // Only the socket, as standard input, and standard error were meant for us.
    syscalls::close_all_from(3)?;
    let socket = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3)?;
    rustix::process::chdir(c"/")?;
    rustix::process::setsid()?;
    syscalls::forget_children();
    let filter = prepare();
    while let Some(((), descriptors)) = message::receive::<()>(&socket)? {
        let descriptors = RequestDescriptors::try_from(descriptors)?;
        let started = filter.as_ref().map_err(Clone::clone).and_then(|filter| {
            let cloned = syscalls::clone_process(UnshareFlags::NEWPID)
                .or_fail(|| "cannot start a step")
                .map_err(hint_at_privileges)?;
            Ok((filter, cloned))
        });
        match started {
            Ok((filter, Cloned::Child)) => supervise_alone(socket, descriptors, filter),
            Ok((_, Cloned::Parent(_))) => {}
            Err(failure) => {
                // When nobody listens any more, nobody wants to know.
                let _ = message::send(descriptors.control.as_fd(), &Report::Failed(failure), &[]);
            }
        }
    }
    Ok(())
}

fn supervise_alone(
    socket: OwnedFd,
    descriptors: RequestDescriptors,
    filter: &[libc::sock_filter],
) -> ! {
    drop(socket);
    supervise(descriptors, filter);
    std::process::exit(0)
}

/// Does what need not be done for each step: a mount namespace into which the host's mounts come,
/// and from which none go back, and the filter of system calls.
fn prepare() -> Result<Vec<libc::sock_filter>, Failure> {
    syscalls::unshare(UnshareFlags::NEWNS)
        .or_fail(|| "cannot make a mount namespace")
        .map_err(hint_at_privileges)?;
    let propagation = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
    rustix::mount::mount_change(c"/", propagation).or_fail(|| "cannot separate the mounts")?;
    Ok(seccomp::default_filter())
}

fn hint_at_privileges(failure: Failure) -> Failure {
    if failure.errno == Some(libc::EPERM) {
        return failure.with_hint(
            "run rbuild as root; in a container, it needs the capability SYS_ADMIN \
             (`--cap-add SYS_ADMIN --security-opt seccomp=unconfined`)",
        );
    }
    failure
}
