//! Making mounts that are attached nowhere yet, and attaching them.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MoveMountFlags, OpenTreeFlags,
};

use super::message::{Failure, OrFail};
use super::syscalls;

/// An option of a file system: a name, and a value unless it is a flag.
pub(super) type MountOption<'a> = (&'a str, Option<&'a str>);

/// Makes a file system of kind `name`.
pub(super) fn create(
    name: &str,
    options: &[MountOption<'_>],
    attributes: MountAttrFlags,
) -> Result<OwnedFd, Failure> {
    let what = || format!("cannot mount a file system of type {name}");
    let context = rustix::mount::fsopen(name, FsOpenFlags::FSOPEN_CLOEXEC).or_fail(what)?;
    for (key, value) in options {
        set(context.as_fd(), key, *value).or_fail(|| format!("{}: option `{key}`", what()))?;
    }
    finish(context.as_fd(), attributes).or_fail(what)
}

/// The layers of an overlay mount.
pub(super) struct Overlay<'a> {
    /// Lowest first; at least one, and at least two without `upper`.
    pub(super) lower: Vec<&'a Path>,
    /// Upper and work folder.
    pub(super) upper: Option<(&'a Path, &'a Path)>,
    /// Marks are in `user.overlay.*` instead of `trusted.overlay.*`.
    pub(super) user_xattrs: bool,
}

impl Overlay<'_> {
    /// Mounts it, attached nowhere.
    ///
    /// `volatile`: what a step syncs need not reach the disk, since the result is synced as a
    /// whole when it is committed, and never seen when it is not. Renamed folders are copied and
    /// files copied up whole, so that `upper` is a layer of an image.
    pub(super) fn mount(&self, attributes: MountAttrFlags) -> Result<OwnedFd, Failure> {
        match self.mount_by_parameters(attributes) {
            // Before Linux 6.8 overlayfs does not know `lowerdir+`, and before 6.5 it says so only
            // when everything is put together.
            Err(Errno::INVAL) => self.mount_by_option_string(attributes),
            Err(errno) => Err(self.failure(errno.raw_os_error())),
            Ok(mount) => Ok(mount),
        }
    }

    fn mount_by_parameters(&self, attributes: MountAttrFlags) -> rustix::io::Result<OwnedFd> {
        let context = rustix::mount::fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
        for layer in self.lower.iter().rev() {
            set_path(context.as_fd(), "lowerdir+", layer)?;
        }
        if let Some((upper, work)) = self.upper {
            set_path(context.as_fd(), "upperdir", upper)?;
            set_path(context.as_fd(), "workdir", work)?;
        }
        for (key, value) in self.flags() {
            set(context.as_fd(), key, value)?;
        }
        finish(context.as_fd(), attributes)
    }

    fn mount_by_option_string(&self, attributes: MountAttrFlags) -> Result<OwnedFd, Failure> {
        // Names of descriptors are short and hold none of the characters that options end with.
        let mut held = Vec::new();
        let mut name = |path: &Path| -> Result<String, Failure> {
            let folder = open_path(path)?;
            let name = format!("/proc/self/fd/{}", folder.as_raw_fd());
            held.push(folder);
            Ok(name)
        };
        let lower: Vec<_> =
            self.lower.iter().rev().map(|path| name(path)).collect::<Result<_, _>>()?;
        let mut options = format!("lowerdir={}", lower.join(":"));
        let mut target = PathBuf::from(self.lower[0]);
        if let Some((upper, work)) = self.upper {
            let (upper_name, work_name) = (name(upper)?, name(work)?);
            options = format!("{options},upperdir={upper_name},workdir={work_name}");
            upper.clone_into(&mut target);
        }
        for (key, value) in self.flags() {
            options += &value.map_or(format!(",{key}"), |value| format!(",{key}={value}"));
        }
        if options.len() >= 4096 {
            return Err(Failure::refusal(format!(
                "this kernel cannot mount {} layers at once",
                self.lower.len()
            ))
            .with_hint(
                "Linux 6.8 and later can; or let the image be squashed by an earlier step",
            ));
        }
        let options = std::ffi::CString::new(options).expect("numbers hold no null byte");
        let flags = MountFlags::NODEV;
        rustix::mount::mount("overlay", &target, "overlay", flags, Some(options.as_c_str()))
            .map_err(|errno| self.failure(errno.raw_os_error()))?;
        clone(CWD, &target.to_string_lossy(), attributes)
            .or_fail(|| "cannot open the mounted layers")
    }

    fn flags(&self) -> impl Iterator<Item = MountOption<'static>> {
        // With `userxattr` folders are never redirected and files always copied whole, and asking
        // for it is an error.
        let copying: &[_] = if self.user_xattrs {
            &[("userxattr", None)]
        } else {
            &[("redirect_dir", Some("off")), ("metacopy", Some("off"))]
        };
        let writing = self.upper.is_some().then_some(("volatile", None));
        copying.iter().copied().chain([("index", Some("off"))]).chain(writing)
    }

    /// What to tell of this error of the kernel.
    pub(super) fn failure(&self, errno: i32) -> Failure {
        let what = format!("cannot mount {} layers with overlayfs", self.lower.len());
        let failure = Failure::new(what, io::Error::from_raw_os_error(errno));
        match Errno::from_raw_os_error(errno) {
            Errno::PERM => failure.with_hint(
                "mounting needs root, or a kernel that lets users mount overlayfs (Linux 5.11)",
            ),
            Errno::NODEV => failure.with_hint("the kernel lacks overlayfs (`modprobe overlay`)"),
            _ => failure,
        }
    }
}

/// Makes a second mount of what is at `path` below `at`, without what is mounted below that.
pub(super) fn clone(at: impl AsFd, path: &str, attributes: MountAttrFlags) -> io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH;
    let mount = rustix::mount::open_tree(at, path, flags)?;
    if !attributes.is_empty() {
        syscalls::set_mount_attributes(mount.as_fd(), attributes, false)?;
    }
    Ok(mount)
}

/// Makes a second mount of what is at `path` below `at`, with everything mounted below it.
pub(super) fn clone_recursive(
    at: impl AsFd,
    path: &str,
    attributes: MountAttrFlags,
) -> io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH
        | OpenTreeFlags::AT_RECURSIVE;
    let mount = rustix::mount::open_tree(at, path, flags)?;
    syscalls::set_mount_attributes(mount.as_fd(), attributes, true)?;
    Ok(mount)
}

/// Attaches `mount` at the place that `target` is.
pub(super) fn attach(mount: BorrowedFd<'_>, target: BorrowedFd<'_>) -> rustix::io::Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    rustix::mount::move_mount(mount, "", target, "", flags)
}

/// Makes a folder and attaches `mount` there.
pub(super) fn attach_at_new_folder(
    folder: BorrowedFd<'_>,
    name: &str,
    mount: BorrowedFd<'_>,
) -> rustix::io::Result<()> {
    rustix::fs::mkdirat(folder, name, Mode::from_raw_mode(0o755))?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    attach(mount, rustix::fs::openat(folder, name, flags, Mode::empty())?.as_fd())
}

/// Opens a folder or file of the host without reading it.
pub(super) fn open_path(path: &Path) -> Result<OwnedFd, Failure> {
    rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
        .or_fail(|| format!("cannot open `{}`", path.display()))
}

fn set(context: BorrowedFd<'_>, key: &str, value: Option<&str>) -> rustix::io::Result<()> {
    match value {
        Some(value) => rustix::mount::fsconfig_set_string(context, key, value),
        None => rustix::mount::fsconfig_set_flag(context, key),
    }
}

/// Sets a path; the kernel takes strings of less than 256 bytes, longer ones go by descriptor.
fn set_path(context: BorrowedFd<'_>, key: &str, path: &Path) -> rustix::io::Result<()> {
    if path.as_os_str().len() < 256 {
        return rustix::mount::fsconfig_set_string(context, key, path);
    }
    let folder = rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    let name = format!("/proc/self/fd/{}", folder.as_raw_fd());
    rustix::mount::fsconfig_set_string(context, key, name)
}

fn finish(context: BorrowedFd<'_>, attributes: MountAttrFlags) -> rustix::io::Result<OwnedFd> {
    rustix::mount::fsconfig_create(context)?;
    rustix::mount::fsmount(context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
}
