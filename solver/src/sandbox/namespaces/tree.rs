//! The file tree that a step sees: its root, `/proc`, `/sys`, `/dev`, and the mounts it asked for.
//!
//! Runs in the step's own namespaces, before it is confined. First everything is mounted out of the
//! step's sight, while the host's paths still mean what the caller meant; then it is attached, place
//! by place, resolved inside the new root; then the host's tree is let go.
//! Nothing but the few devices of `/dev`, and those that a step was given by name, is mounted so
//! that device files can be opened: a step may make them (`mknod`), and they come out in the image,
//! but they lead nowhere.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rbuild_cache::layer::whiteout::Marks;
use rustix::fs::{AtFlags, CWD, FileType, FsWord, Mode, OFlags, PROC_SUPER_MAGIC, StatxFlags};
use rustix::io::Errno;
use rustix::mount::{MountAttrFlags, UnmountFlags};

use super::file_system::{self, Overlay, attach};
use super::memory_files::{MemoryFiles, give};
use super::message::{Failure, OrFail};
use super::mount_point::{self, Kind, Stub};
use super::system_files::SystemFiles;
use crate::sandbox::{ProcessSpec, RootFs, SandboxMount, SandboxMountSource};

pub(super) const NOSUID: MountAttrFlags = MountAttrFlags::MOUNT_ATTR_NOSUID;
pub(super) const NODEV: MountAttrFlags = MountAttrFlags::MOUNT_ATTR_NODEV;
pub(super) const NOEXEC: MountAttrFlags = MountAttrFlags::MOUNT_ATTR_NOEXEC;
pub(super) const READ_ONLY: MountAttrFlags = MountAttrFlags::MOUNT_ATTR_RDONLY;
pub(super) const INERT: MountAttrFlags = NOSUID.union(NODEV).union(NOEXEC);

/// Is told of every mount point that was made and shall not outlive the step.
pub(super) type OnStub<'a> = &'a mut dyn FnMut(Stub, OwnedFd) -> io::Result<()>;

/// Is given every socket that listens in place of one of the host's, with its mount's position.
pub(super) type OnSocket<'a> = &'a mut dyn FnMut(usize, OwnedFd) -> io::Result<()>;

/// Layers below all others.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lowest<'a> {
    /// Below the root: mount points that the image may lack.
    pub(super) stubs: Option<&'a Path>,
    /// Below trees that are mounted: nothing.
    pub(super) empty: Option<&'a Path>,
}

/// Mounts all that `process` sees besides `system` and makes it the root of this mount namespace.
pub(super) fn enter(
    process: &ProcessSpec,
    system: &SystemFiles,
    lowest: Lowest<'_>,
    on_stub: OnStub<'_>,
    on_socket: OnSocket<'_>,
) -> Result<(), Failure> {
    let memory = &system.memory;
    let hosts = memory.file("hosts", &process.hosts, 0o644, (0, 0))?;
    let resolv_conf = memory.file("resolv.conf", &process.resolv_conf, 0o644, (0, 0))?;
    let sources = process
        .mounts
        .iter()
        .enumerate()
        .map(|(index, mount)| source(index, mount, memory, lowest.empty, on_socket))
        .collect::<Result<Vec<_>, _>>()?;
    system.add_shared_memory(process.shm_size)?;

    let root = root(&process.root, lowest.stubs)?;
    let root = root.as_fd();
    memory.hold(root)?;
    let mut tree = Tree { root, on_stub };
    tree.attach_system("proc", system.proc.as_fd())?;
    tree.attach_system("sys", system.sys.as_fd())?;
    tree.attach_devices(system.dev.as_fd())?;
    tree.attach("/etc/resolv.conf", Kind::File, resolv_conf.as_fd())?;
    tree.attach("/etc/hosts", Kind::File, hosts.as_fd())?;
    for (mount, source) in process.mounts.iter().zip(&sources) {
        let kind = kind_of(source.as_fd()).or_fail(|| "cannot look at the source of a mount")?;
        tree.attach(&mount.target, kind, source.as_fd())?;
    }
    tree.ensure_working_directory(process)?;
    become_root(root).or_fail(|| "cannot make the layers the root file system")
}

/// Mounts the layers, attached nowhere.
fn root(root: &RootFs, stubs: Option<&Path>) -> Result<OwnedFd, Failure> {
    match root {
        RootFs::Overlay { lower, upper, work } => {
            let overlay = Overlay {
                lower: stubs.into_iter().chain(lower.iter().map(PathBuf::as_path)).collect(),
                upper: Some((upper, work)),
                user_xattrs: Marks::of_this_process() == Marks::User,
            };
            overlay.mount(NODEV)
        }
        RootFs::Folder(folder) => file_system::clone(CWD, &folder.to_string_lossy(), NODEV)
            .or_fail(|| format!("cannot mount `{}`", folder.display())),
    }
}

/// Mounts what `mount` shows, attached nowhere a step could see.
fn source(
    index: usize,
    mount: &SandboxMount,
    memory: &MemoryFiles,
    empty: Option<&Path>,
    on_socket: OnSocket<'_>,
) -> Result<OwnedFd, Failure> {
    let attributes = if mount.read_only { NODEV | READ_ONLY } else { NODEV };
    let what = || format!("cannot mount `{}`", mount.target);
    match &mount.source {
        SandboxMountSource::Bind { root, path } => {
            let root = file_system::open_path(root)?;
            let source = mount_point::resolve(root.as_fd(), path)
                .or_fail(|| format!("{}: `{path}` is not in its source", what()))?;
            clone_folder(source.as_fd(), attributes).or_fail(what)
        }
        SandboxMountSource::Overlay { lower, path, upper } => {
            let layers = lower.iter().map(PathBuf::as_path);
            let overlay = Overlay {
                lower: empty.into_iter().chain(layers).collect(),
                upper: upper.as_ref().map(|(upper, work)| (upper.as_path(), work.as_path())),
                user_xattrs: Marks::of_this_process() == Marks::User,
            };
            let merged = overlay.mount(attributes)?;
            if path.trim_matches('/').is_empty() {
                return Ok(merged);
            }
            // Older kernels clone only what is attached somewhere in this namespace.
            memory.hold(merged.as_fd())?;
            let source = mount_point::resolve(merged.as_fd(), path)
                .or_fail(|| format!("{}: `{path}` is not in its source", what()))?;
            file_system::clone(source, "", attributes).or_fail(what)
        }
        SandboxMountSource::Device { path } => {
            let device = file_system::open_path(path)?;
            let status = rustix::fs::fstat(&device).or_fail(what)?;
            match FileType::from_raw_mode(status.st_mode) {
                // No `nodev`, unlike everything else: to be opened is what it is there for.
                FileType::CharacterDevice | FileType::BlockDevice => {
                    file_system::clone(device, "", NOSUID | NOEXEC).or_fail(what)
                }
                _ => {
                    let reason = format!("{}: `{}` is no device file", what(), path.display());
                    Err(Failure::refusal(reason))
                }
            }
        }
        SandboxMountSource::Host { path, recursive, no_suid, no_exec } => {
            let mut attributes = attributes;
            attributes.set(NOSUID, *no_suid);
            attributes.set(NOEXEC, *no_exec);
            let place = file_system::open_path(path)?;
            if *recursive {
                file_system::clone_recursive(place.as_fd(), "", attributes).or_fail(what)
            } else {
                clone_folder(place.as_fd(), attributes).or_fail(what)
            }
        }
        SandboxMountSource::Tmpfs { size, mode } => {
            let size = size.map(|size| size.to_string());
            let mode = format!("{mode:o}");
            let mut options = vec![("mode", Some(mode.as_str()))];
            options.extend(size.as_deref().map(|size| ("size", Some(size))));
            file_system::create("tmpfs", &options, attributes | NOSUID)
        }
        SandboxMountSource::File { data, mode, uid, gid } => {
            memory.file(&index.to_string(), data, *mode, (*uid, *gid))
        }
        SandboxMountSource::Socket { mode, uid, gid, .. } => {
            let (listener, source) =
                memory.socket(&index.to_string(), *mode, (*uid, *gid)).or_fail(what)?;
            on_socket(index, listener).or_fail(what)?;
            Ok(source)
        }
    }
}

/// Clones a folder of the host. A user may not look below what root has mounted in it, so it then
/// comes with all of that.
fn clone_folder(folder: BorrowedFd<'_>, attributes: MountAttrFlags) -> io::Result<OwnedFd> {
    match file_system::clone(folder, "", attributes) {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
            file_system::clone_recursive(folder, "", attributes)
        }
        result => result,
    }
}

/// The root file system while it is put together.
struct Tree<'a> {
    root: BorrowedFd<'a>,
    on_stub: OnStub<'a>,
}

impl Tree<'_> {
    /// Attaches `mount` at `target`, which is made when it is missing.
    fn attach(&mut self, target: &str, kind: Kind, mount: BorrowedFd<'_>) -> Result<(), Failure> {
        let what = || format!("cannot mount `{target}`");
        let place = mount_point::ensure(self.root, target, kind, &mut *self.on_stub)
            .or_fail(|| format!("{}: its place cannot be made", what()))?;
        if is_on_proc(place.as_fd()).or_fail(what)? {
            return Err(Failure::refusal(format!("{}: it is inside of /proc", what())));
        }
        attach(mount, place.as_fd()).or_fail(what)
    }

    /// Attaches what belongs at `/proc` or `/sys`. A missing folder is made and stays in the
    /// image, as with BuildKit; a link is refused: what is hidden in them would not be where
    /// programs look.
    fn attach_system(&mut self, name: &str, mount: BorrowedFd<'_>) -> Result<(), Failure> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let open = || rustix::fs::openat(self.root, name, flags, Mode::empty());
        let place = open().or_else(|errno| match errno {
            Errno::NOENT => {
                rustix::fs::mkdirat(self.root, name, Mode::from_raw_mode(0o755))?;
                open()
            }
            errno => Err(errno),
        });
        match place {
            Err(Errno::LOOP | Errno::NOTDIR) => {
                Err(Failure::refusal(format!("`/{name}` of the image is not a directory")))
            }
            place => attach(mount, place.or_fail(|| format!("cannot open `/{name}`"))?.as_fd())
                .or_fail(|| format!("cannot mount `/{name}`")),
        }
    }

    /// Attaches `/dev`. A missing folder is made and stays in the image, as with BuildKit; where it
    /// is a link, it may lead anywhere inside: devices are known by what they are.
    fn attach_devices(&mut self, dev: BorrowedFd<'_>) -> Result<(), Failure> {
        let mut keep = |_, _| Ok(());
        let place = mount_point::ensure(self.root, "/dev", Kind::Directory, &mut keep)
            .or_fail(|| "cannot open `/dev`")?;
        attach(dev, place.as_fd()).or_fail(|| "cannot mount `/dev`")
    }

    /// Makes the working directory when it is missing: it then belongs to the step's user and
    /// stays, as with BuildKit (`executor/runcexecutor/executor.go`).
    fn ensure_working_directory(&mut self, process: &ProcessSpec) -> Result<(), Failure> {
        let owner = (process.user.uid, process.user.gid);
        let mut give = |stub: Stub, folder: OwnedFd| give(folder, stub.name(), owner);
        mount_point::ensure(self.root, &process.cwd, Kind::Directory, &mut give)
            .or_fail(|| format!("cannot make the working directory `{}`", process.cwd))?;
        Ok(())
    }
}

/// What is mounted upon such a file.
pub(super) fn kind_of(file: BorrowedFd<'_>) -> io::Result<Kind> {
    let status = rustix::fs::fstat(file)?;
    Ok(match FileType::from_raw_mode(status.st_mode) {
        FileType::Directory => Kind::Directory,
        _ => Kind::File,
    })
}

fn is_on_proc(place: BorrowedFd<'_>) -> io::Result<bool> {
    let magic: FsWord = rustix::fs::fstatfs(place)?.f_type;
    Ok(magic == PROC_SUPER_MAGIC)
}

/// Makes `root`, which is attached, the root of this mount namespace and lets all else go.
fn become_root(root: BorrowedFd<'_>) -> io::Result<()> {
    rustix::process::fchdir(root)?;
    // The old root ends up over the new one, at `.`; so neither needs a folder in the other.
    rustix::process::pivot_root(c".", c".")?;
    // What is on top goes first: the tmpfs over the old root, then the old root.
    rustix::mount::unmount(c".", UnmountFlags::DETACH)?;
    rustix::mount::unmount(c".", UnmountFlags::DETACH)?;
    rustix::process::chdir(c"/")?;
    // From the root, `..` leads to what lies over it: if that is anything, it is the host.
    let mount_of = |path: &CStr| -> io::Result<u64> {
        let status = rustix::fs::statx(CWD, path, AtFlags::empty(), StatxFlags::MNT_ID)?;
        Ok(status.stx_mnt_id)
    };
    if mount_of(c"/")? == mount_of(c"/..")? {
        Ok(())
    } else {
        Err(io::Error::other("the host's files are still there"))
    }
}
