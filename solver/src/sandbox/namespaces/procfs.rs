//! Mounting `/proc`, also in a container that hides parts of its own.
//!
//! The kernel lets nobody without power over the machine have a fresh `/proc` that shows more than
//! the one that is there. In a container with masked paths, which is nearly every one, a step then
//! gets the container's: its files tell of the step's process what they should (`/proc/self`), but
//! the list of processes is the container's.

use std::os::fd::OwnedFd;

use rustix::fs::CWD;
use rustix::mount::MountAttrFlags;

use super::file_system;
use super::message::Failure;

/// What lets a container have a fresh one.
const UNMASK: &str = "in a container, `--security-opt unmask=ALL` (podman) or \
                      `--security-opt systempaths=unconfined` (docker)";

/// Mounts a fresh `/proc` of the caller's pid namespace, or else the one that is there.
pub(super) fn mount(attributes: MountAttrFlags) -> Result<OwnedFd, Failure> {
    fresh(attributes).or_else(|failure| {
        file_system::clone_recursive(CWD, "/proc", attributes).map_err(|_| failure)
    })
}

/// Mounts a fresh `/proc` of the caller's pid namespace.
pub(super) fn fresh(attributes: MountAttrFlags) -> Result<OwnedFd, Failure> {
    file_system::create("proc", &[], attributes).map_err(|failure| match failure.errno {
        Some(libc::EPERM) => failure.with_hint(format!("parts of `/proc` are hidden: {UNMASK}")),
        _ => failure,
    })
}

/// What to tell when steps will not get a fresh one. The caller's pid and mount namespaces are its
/// own.
pub(super) fn obstacle() -> Option<String> {
    let failure = fresh(MountAttrFlags::empty()).err()?;
    let why = failure.errno.map(|errno| std::io::Error::from_raw_os_error(errno).to_string());
    let why = why.unwrap_or(failure.message);
    Some(format!(
        "there can be no fresh `/proc` ({why}): steps see this container's processes; {UNMASK}"
    ))
}
