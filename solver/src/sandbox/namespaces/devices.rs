//! The host's device files that a step gets, each opened and checked before it is mounted.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{FileType, Mode, OFlags, makedev};
use rustix::io::Errno;
use rustix::mount::MountAttrFlags;

use super::file_system::{self, attach};
use super::message::{Failure, OrFail};
use super::mount_point;

/// A device file of the host that a step gets.
pub(super) struct Device {
    name: &'static str,
    file_type: FileType,
    number: (u32, u32),
    required: bool,
}

impl Device {
    const fn standard(name: &'static str, number: (u32, u32)) -> Self {
        Self { name, file_type: FileType::CharacterDevice, number, required: true }
    }

    const fn optional(name: &'static str, file_type: FileType, number: (u32, u32)) -> Self {
        Self { name, file_type, number, required: false }
    }

    /// Makes it in `dev`; one that the host need not have is passed over where it is missing.
    pub(super) fn attach(&self, dev: BorrowedFd<'_>) -> Result<(), Failure> {
        match self.try_attach(dev) {
            Err(_) if !self.required => Ok(()),
            result => result.or_fail(|| format!("cannot mount `/dev/{}`", self.name)),
        }
    }

    /// Mounts the host's device file over an empty file. It is opened first and then looked at, so
    /// that it is the device and nothing else that comes in.
    fn try_attach(&self, dev: BorrowedFd<'_>) -> io::Result<()> {
        let device = self.open()?;
        if let Some((folder, _)) = self.name.split_once('/') {
            match rustix::fs::mkdirat(dev, folder, Mode::from_raw_mode(0o755)) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(error) => return Err(error.into()),
            }
        }
        let mode = Mode::from_raw_mode(0o666);
        rustix::fs::mknodat(dev, self.name, FileType::RegularFile, mode, 0)?;
        let place = mount_point::resolve(dev, self.name)?;
        let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC;
        let mount = file_system::clone(device, "", attributes)?;
        Ok(attach(mount.as_fd(), place.as_fd())?)
    }

    /// Opens the host's, which is it and nothing else, without reading it.
    pub(super) fn open(&self) -> io::Result<OwnedFd> {
        let path = format!("/dev/{}", self.name);
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let device = rustix::fs::open(path, flags, Mode::empty())?;
        let status = rustix::fs::fstat(&device)?;
        let is_it = FileType::from_raw_mode(status.st_mode) == self.file_type
            && status.st_rdev == makedev(self.number.0, self.number.1);
        if is_it { Ok(device) } else { Err(Errno::NODEV.into()) }
    }
}

/// Swallows all, and hides what is behind it.
pub(super) const NULL: Device = Device::standard("null", (1, 3));

/// What every step has.
pub(super) const DEVICES: &[Device] = &[
    NULL,
    Device::standard("zero", (1, 5)),
    Device::standard("full", (1, 7)),
    Device::standard("random", (1, 8)),
    Device::standard("urandom", (1, 9)),
    Device::optional("tty", FileType::CharacterDevice, (5, 0)),
];

/// What BuildKit adds for `security.insecure` (`util/entitlements/security`), where the host has
/// it.
pub(super) const INSECURE_DEVICES: &[Device] = &[
    Device::optional("kmsg", FileType::CharacterDevice, (1, 11)),
    Device::optional("cuse", FileType::CharacterDevice, (10, 203)),
    Device::optional("fuse", FileType::CharacterDevice, (10, 229)),
    Device::optional("kvm", FileType::CharacterDevice, (10, 232)),
    Device::optional("net/tun", FileType::CharacterDevice, (10, 200)),
    Device::optional("loop-control", FileType::CharacterDevice, (10, 237)),
    Device::optional("loop0", FileType::BlockDevice, (7, 0)),
    Device::optional("loop1", FileType::BlockDevice, (7, 1)),
    Device::optional("loop2", FileType::BlockDevice, (7, 2)),
    Device::optional("loop3", FileType::BlockDevice, (7, 3)),
    Device::optional("loop4", FileType::BlockDevice, (7, 4)),
    Device::optional("loop5", FileType::BlockDevice, (7, 5)),
    Device::optional("loop6", FileType::BlockDevice, (7, 6)),
    Device::optional("loop7", FileType::BlockDevice, (7, 7)),
];
