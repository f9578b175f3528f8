//! Files that are on no disk, and mounts on their way: a tmpfs that no step sees whole.
//!
//! It lies over the host's root: paths still lead to the host's files, and it is let go with them.

use std::cell::Cell;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rbuild_cache::metadata;
use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use super::file_system::{self, attach, attach_at_new_folder};
use super::message::{Failure, OrFail};
use super::ownership::Ownership;
use super::tree::{INERT, READ_ONLY};

/// The tmpfs that they are in.
pub(super) struct MemoryFiles {
    files: OwnedFd,
    /// How many mounts are attached in it, or were.
    held: Cell<u32>,
}

impl MemoryFiles {
    /// Mounts it over the host's root.
    pub(super) fn mount() -> Result<Self, Failure> {
        // Secrets should not be swapped out either; kernels before 6.4 and users cannot ask so.
        let files = file_system::create("tmpfs", &[("noswap", None)], INERT)
            .or_else(|_| file_system::create("tmpfs", &[], INERT))?;
        let host = file_system::open_path(Path::new("/"))?;
        attach(files.as_fd(), host.as_fd()).or_fail(|| "cannot attach a mount")?;
        Ok(Self { files, held: Cell::new(0) })
    }

    /// Makes a socket that listens, and a mount of just that. The one of the host keeps its owner
    /// and stays where it is; rbuild passes on what comes in.
    pub(super) fn socket(
        &self,
        name: &str,
        mode: u32,
        (uid, gid): (u32, u32),
    ) -> io::Result<(OwnedFd, OwnedFd)> {
        let listener = rustix::net::socket_with(
            AddressFamily::UNIX,
            SocketType::STREAM,
            SocketFlags::CLOEXEC,
            None,
        )?;
        let address = format!("/proc/self/fd/{}/{name}", self.files.as_raw_fd());
        rustix::net::bind(&listener, &SocketAddrUnix::new(address)?)?;
        give(&self.files, name, (uid, gid))?;
        rustix::fs::chmodat(&self.files, name, Mode::from_raw_mode(mode), AtFlags::empty())?;
        rustix::net::listen(&listener, 16)?;
        Ok((listener, file_system::clone(&self.files, name, INERT)?))
    }

    /// Attaches `mount` at a folder of its own, so that it is part of this mount namespace.
    pub(super) fn hold(&self, mount: BorrowedFd<'_>) -> Result<(), Failure> {
        let name = format!("mount-{}", self.held.replace(self.held.get() + 1));
        attach_at_new_folder(self.files.as_fd(), &name, mount).or_fail(|| "cannot attach a mount")
    }

    /// Makes a file, and a read-only mount of just that.
    pub(super) fn file(
        &self,
        name: &str,
        data: &[u8],
        mode: u32,
        (uid, gid): (u32, u32),
    ) -> Result<OwnedFd, Failure> {
        let make = || -> io::Result<OwnedFd> {
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
            let file = rustix::fs::openat(&self.files, name, flags, Mode::from_raw_mode(0o600))?;
            let mut rest = data;
            while !rest.is_empty() {
                let written = rustix::io::retry_on_intr(|| rustix::io::write(&file, rest))?;
                rest = &rest[written..];
            }
            if (uid, gid) != (0, 0) {
                give(&self.files, name, (uid, gid))?;
            }
            rustix::fs::fchmod(&file, Mode::from_raw_mode(mode))?;
            file_system::clone(&self.files, name, INERT | READ_ONLY)
        };
        make().or_fail(|| "cannot make a file in memory")
    }
}

/// Gives the file `name` in `folder` to a user and a group.
pub(super) fn give(folder: impl AsFd, name: &str, (uid, gid): (u32, u32)) -> io::Result<()> {
    match metadata::set_owner_at(folder, name.as_ref(), uid, gid) {
        // Before Linux 6.6 nothing is remembered in memory; everybody is root there anyway.
        Err(error)
            if error.kind() == io::ErrorKind::Unsupported
                && Ownership::of_this_process() == Ownership::Remembered =>
        {
            Ok(())
        }
        result => result,
    }
}
