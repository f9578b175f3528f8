//! What every step sees besides its image and its mounts: `/proc`, `/sys` and `/dev`.
//!
//! They are put together before anything is known of the step that will see them, out of its
//! sight, and moved into its tree when that is there. What hides and protects parts of them is
//! opened and checked first, and put onto the very file systems that were just mounted: no path of
//! an image is used (CVE-2025-31133, -52565, -52881).

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::devices::{DEVICES, INSECURE_DEVICES, NULL};
use super::file_system::{self, attach, attach_at_new_folder};
use super::memory_files::MemoryFiles;
use super::message::{Failure, OrFail};
use super::mount_point::Kind;
use super::procfs;
use super::tree::{INERT, NODEV, NOEXEC, NOSUID, READ_ONLY, kind_of};
use crate::graph::SecurityMode;
use crate::sandbox::proc_masks::{MASKED_PROC, MASKED_SYS, READ_ONLY_PROC};

/// The file systems, each attached where no step sees it, and the place where they are.
pub(super) struct SystemFiles {
    pub(super) memory: MemoryFiles,
    pub(super) proc: OwnedFd,
    pub(super) sys: OwnedFd,
    pub(super) dev: OwnedFd,
}

impl SystemFiles {
    /// Mounts them in the caller's mount namespace, for its pid and network namespaces.
    pub(super) fn mount(security: SecurityMode) -> Result<Self, Failure> {
        let memory = MemoryFiles::mount()?;
        let proc = procfs::mount(INERT)?;
        let sys = sysfs(security)?;
        let dev = dev(security, &memory)?;
        memory.hold(proc.as_fd())?;
        memory.hold(sys.as_fd())?;
        if security == SecurityMode::Sandbox {
            hide(proc.as_fd(), MASKED_PROC)?;
            hide(sys.as_fd(), MASKED_SYS)?;
            protect(proc.as_fd(), READ_ONLY_PROC)?;
        }
        Ok(Self { memory, proc, sys, dev })
    }

    /// Adds `/dev/shm`, of so many bytes.
    pub(super) fn add_shared_memory(&self, size: u64) -> Result<(), Failure> {
        let size = size.to_string();
        let options = [("mode", Some("1777")), ("size", Some(size.as_str()))];
        let shm = file_system::create("tmpfs", &options, INERT)?;
        attach_in(self.dev.as_fd(), "shm", shm.as_fd())
    }
}

/// Mounts `/sys`. Where the network namespace is that of the host and the user is not its owner,
/// the kernel refuses a fresh one; the host's is shown instead, read-only.
fn sysfs(security: SecurityMode) -> Result<OwnedFd, Failure> {
    let attributes = match security {
        SecurityMode::Sandbox => INERT | READ_ONLY,
        SecurityMode::Insecure => INERT,
    };
    file_system::create("sysfs", &[], attributes).or_else(|failure| {
        file_system::clone_recursive(CWD, "/sys", INERT | READ_ONLY).map_err(|_| failure)
    })
}

/// Mounts `/dev`: the devices of every machine and nothing of this one.
fn dev(security: SecurityMode, memory: &MemoryFiles) -> Result<OwnedFd, Failure> {
    let options = [("mode", Some("755")), ("size", Some("65536k"))];
    let dev = file_system::create("tmpfs", &options, NOSUID | NODEV)?;
    memory.hold(dev.as_fd())?;
    for device in DEVICES {
        device.attach(dev.as_fd())?;
    }
    if security == SecurityMode::Insecure {
        for device in INSECURE_DEVICES {
            device.attach(dev.as_fd())?;
        }
    }
    let pts_options = [
        ("newinstance", None),
        ("ptmxmode", Some("0666")),
        ("mode", Some("0620")),
        ("gid", Some("5")),
    ];
    let pts = file_system::create("devpts", &pts_options, NOSUID | NOEXEC)
        .or_else(|_| file_system::create("devpts", &pts_options[..3], NOSUID | NOEXEC))?;
    attach_in(dev.as_fd(), "pts", pts.as_fd())?;
    // Not every kernel has message queues.
    if let Ok(mqueue) = file_system::create("mqueue", &[], INERT) {
        attach_in(dev.as_fd(), "mqueue", mqueue.as_fd())?;
    }
    for (name, target) in DEVICE_LINKS {
        rustix::fs::symlinkat(*target, &dev, *name)
            .or_fail(|| format!("cannot make `/dev/{name}`"))?;
    }
    Ok(dev)
}

fn attach_in(dev: BorrowedFd<'_>, name: &str, mount: BorrowedFd<'_>) -> Result<(), Failure> {
    attach_at_new_folder(dev, name, mount).or_fail(|| format!("cannot mount `/dev/{name}`"))
}

const DEVICE_LINKS: &[(&str, &str)] = &[
    ("core", "/proc/kcore"),
    ("fd", "/proc/self/fd"),
    ("ptmx", "pts/ptmx"),
    ("stderr", "/proc/self/fd/2"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
];

/// Hides `names` of a file system: files behind `/dev/null`, folders behind an empty one.
fn hide(file_system: BorrowedFd<'_>, names: &[&str]) -> Result<(), Failure> {
    let mut null = None;
    for name in names {
        let what = || format!("cannot hide `{name}` from the step");
        let Some(place) = find(file_system, name).or_fail(what)? else { continue };
        let mask = match kind_of(place.as_fd()).or_fail(what)? {
            Kind::Directory => file_system::create("tmpfs", &[], INERT | READ_ONLY)?,
            Kind::File => {
                let null = match &null {
                    Some(null) => null,
                    None => null.insert(NULL.open().or_fail(what)?),
                };
                file_system::clone(null, "", INERT.difference(NODEV)).or_fail(what)?
            }
        };
        attach(mask.as_fd(), place.as_fd()).or_fail(what)?;
    }
    Ok(())
}

/// Makes `names` of a file system read-only.
fn protect(file_system: BorrowedFd<'_>, names: &[&str]) -> Result<(), Failure> {
    for name in names {
        let what = || format!("cannot make `{name}` read-only");
        let Some(place) = find(file_system, name).or_fail(what)? else { continue };
        let mount = file_system::clone(&place, "", INERT | READ_ONLY).or_fail(what)?;
        attach(mount.as_fd(), place.as_fd()).or_fail(what)?;
    }
    Ok(())
}

fn find(file_system: BorrowedFd<'_>, name: &str) -> io::Result<Option<OwnedFd>> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let resolution = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    match rustix::fs::openat2(file_system, name, flags, Mode::empty(), resolution) {
        Ok(place) => Ok(Some(place)),
        // What a container has put something over is hidden or protected by it.
        Err(Errno::NOENT | Errno::XDEV) => Ok(None),
        Err(error) => Err(error.into()),
    }
}
