//! Places in a layer's folder: what a path in a tar leads to, which is never outside.

use std::ffi::OsStr;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::error::Failure;
use crate::layer::whiteout;

/// Where an entry goes.
pub(super) struct Place<'a> {
    pub(super) parent: &'a OwnedFd,
    pub(super) name: &'a OsStr,
    pub(super) components: &'a [&'a [u8]],
}

/// The path from the layer's root, as Go cleans it: `..` goes back, and stops at the root.
pub(super) fn components(path: &[u8]) -> Result<Vec<&[u8]>, Failure> {
    const LONGEST_PATH: usize = 4095;
    const LONGEST_NAME: usize = 255;
    if path.len() > LONGEST_PATH {
        return Err(Failure::Why("has a path of more than 4095 bytes"));
    }
    let mut components = Vec::new();
    for component in path.split(|byte| *byte == b'/') {
        match component {
            b"" | b"." => {}
            b".." => {
                components.pop();
            }
            name if name.len() > LONGEST_NAME => {
                return Err(Failure::Why("has a name of more than 255 bytes"));
            }
            name => components.push(name),
        }
    }
    Ok(components)
}

/// Files in which aufs kept its books; Docker leaves them out too (moby, pkg/archive/diff.go).
pub(super) fn is_of_aufs(components: &[&[u8]]) -> bool {
    let meta = |name: &&[u8]| name.starts_with(b".wh..wh.") && **name != *whiteout::OPAQUE;
    components.iter().any(meta)
}

pub(super) fn parent_fd(folder: &OwnedFd) -> BorrowedFd<'_> {
    std::os::fd::AsFd::as_fd(folder)
}

/// The folder `name` in `parent`; a link is not followed.
pub(super) fn open_folder(
    parent: impl std::os::fd::AsFd,
    name: &OsStr,
) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(parent, name, flags, Mode::empty())
}

/// The folder at `path`, for which `root` is the root: links and `..` stay inside.
pub(super) fn open_in_root(root: &OwnedFd, path: &[u8]) -> rustix::io::Result<OwnedFd> {
    open_with(root, path, OFlags::empty())
}

/// The same, but that a link at the end is not followed.
pub(super) fn open_in_root_unfollowed(root: &OwnedFd, path: &[u8]) -> rustix::io::Result<OwnedFd> {
    open_with(root, path, OFlags::NOFOLLOW)
}

fn open_with(root: &OwnedFd, path: &[u8], more: OFlags) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | more;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let path = if path.is_empty() { b"." } else { path };
    loop {
        // The kernel gives up with AGAIN when something was renamed on the way.
        match rustix::fs::openat2(root, OsStr::from_bytes(path), flags, Mode::empty(), resolve) {
            Err(Errno::AGAIN | Errno::INTR) => {}
            opened => return opened,
        }
    }
}
