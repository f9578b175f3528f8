//! The file tree that a step sees: its root, `/proc`, `/sys`, `/dev`, and the mounts it asked for.
//!
//! Runs in the step's own namespaces, before it is confined. First everything is mounted without
//! being attached anywhere, while the host's paths still mean what the caller meant; then it is
//! attached, place by place, resolved inside the new root; then the host's tree is let go.
//! Nothing but the few devices of `/dev`, and those that a step was given by name, is mounted so
//! that device files can be opened: a step may make them (`mknod`), and they come out in the image,
//! but they lead nowhere.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, FileType, FsWord, Mode, OFlags, PROC_SUPER_MAGIC, ResolveFlags, StatxFlags,
    makedev,
};
use rustix::io::Errno;
use rustix::mount::{MountAttrFlags, UnmountFlags};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use rbuild_cache::layer::whiteout::Marks;
use rbuild_cache::metadata;

use super::file_system::{self, Overlay, attach};
use super::message::{Failure, OrFail};
use super::mount_point::{self, Kind, Stub};
use super::ownership::Ownership;
use super::procfs;
use crate::graph::SecurityMode;
use crate::sandbox::proc_masks::{MASKED_PROC, MASKED_SYS, READ_ONLY_PROC};
use crate::sandbox::{ProcessSpec, RootFs, SandboxMount, SandboxMountSource};

const NOSUID: MountAttrFlags = MountAttrFlags::MOUNT_ATTR_NOSUID;
const NODEV: MountAttrFlags = MountAttrFlags::MOUNT_ATTR_NODEV;
const NOEXEC: MountAttrFlags = MountAttrFlags::MOUNT_ATTR_NOEXEC;
const READ_ONLY: MountAttrFlags = MountAttrFlags::MOUNT_ATTR_RDONLY;
const INERT: MountAttrFlags = NOSUID.union(NODEV).union(NOEXEC);

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

/// Mounts all that `process` sees and makes it the root of this mount namespace.
pub(super) fn enter(
    process: &ProcessSpec,
    lowest: Lowest<'_>,
    on_stub: OnStub<'_>,
    on_socket: OnSocket<'_>,
) -> Result<(), Failure> {
    let memory = MemoryFiles::mount()?;
    let hosts = memory.file("hosts", &process.hosts, 0o644, (0, 0))?;
    let resolv_conf = memory.file("resolv.conf", &process.resolv_conf, 0o644, (0, 0))?;
    let sources = process
        .mounts
        .iter()
        .enumerate()
        .map(|(index, mount)| source(index, mount, &memory, lowest.empty, on_socket))
        .collect::<Result<Vec<_>, _>>()?;
    let proc = procfs::mount(INERT)?;
    let sys = sysfs(process.security)?;

    let root = root(&process.root, lowest.stubs)?;
    let root = root.as_fd();
    memory.hold(root)?;
    let mut tree = Tree { root, on_stub };
    tree.attach_system("proc", proc.as_fd())?;
    tree.attach_system("sys", sys.as_fd())?;
    tree.attach_devices(process)?;
    if process.security == SecurityMode::Sandbox {
        hide(proc.as_fd(), MASKED_PROC)?;
        hide(sys.as_fd(), MASKED_SYS)?;
        protect(proc.as_fd(), READ_ONLY_PROC)?;
    }
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

/// Files that are on no disk, and mounts on their way: a tmpfs that no step sees whole. It lies
/// over the host's root: paths still lead to the host's files, and it is let go with them.
struct MemoryFiles(OwnedFd);

impl MemoryFiles {
    fn mount() -> Result<Self, Failure> {
        // Secrets should not be swapped out either; kernels before 6.4 and users cannot ask so.
        let files = file_system::create("tmpfs", &[("noswap", None)], INERT)
            .or_else(|_| file_system::create("tmpfs", &[], INERT))?;
        let host = file_system::open_path(Path::new("/"))?;
        attach(files.as_fd(), host.as_fd()).or_fail(|| "cannot attach a mount")?;
        Ok(Self(files))
    }

    /// Makes a socket that listens, and a mount of just that. The one of the host keeps its owner
    /// and stays where it is; rbuild passes on what comes in.
    fn socket(
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
        let address = format!("/proc/self/fd/{}/{name}", self.0.as_raw_fd());
        rustix::net::bind(&listener, &SocketAddrUnix::new(address)?)?;
        give(&self.0, name, (uid, gid))?;
        rustix::fs::chmodat(&self.0, name, Mode::from_raw_mode(mode), AtFlags::empty())?;
        rustix::net::listen(&listener, 16)?;
        Ok((listener, file_system::clone(&self.0, name, INERT)?))
    }

    /// Attaches `mount` at a folder of its own, so that it is part of this mount namespace.
    fn hold(&self, mount: BorrowedFd<'_>) -> Result<(), Failure> {
        let name = format!("mount-{}", mount.as_raw_fd());
        attach_at_new_folder(self.0.as_fd(), &name, mount).or_fail(|| "cannot attach a mount")
    }

    /// Makes a file, and a read-only mount of just that.
    fn file(
        &self,
        name: &str,
        data: &[u8],
        mode: u32,
        (uid, gid): (u32, u32),
    ) -> Result<OwnedFd, Failure> {
        let make = || -> io::Result<OwnedFd> {
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
            let file = rustix::fs::openat(&self.0, name, flags, Mode::from_raw_mode(0o600))?;
            let mut rest = data;
            while !rest.is_empty() {
                let written = rustix::io::retry_on_intr(|| rustix::io::write(&file, rest))?;
                rest = &rest[written..];
            }
            if (uid, gid) != (0, 0) {
                give(&self.0, name, (uid, gid))?;
            }
            rustix::fs::fchmod(&file, Mode::from_raw_mode(mode))?;
            file_system::clone(&self.0, name, INERT | READ_ONLY)
        };
        make().or_fail(|| "cannot make a file in memory")
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

    /// Makes `/dev`: the devices of every machine and nothing of this one.
    fn attach_devices(&mut self, process: &ProcessSpec) -> Result<(), Failure> {
        let options = [("mode", Some("755")), ("size", Some("65536k"))];
        let dev = file_system::create("tmpfs", &options, NOSUID | NODEV)?;
        let mut keep = |_, _| Ok(());
        let place = mount_point::ensure(self.root, "/dev", Kind::Directory, &mut keep)
            .or_fail(|| "cannot open `/dev`")?;
        attach(dev.as_fd(), place.as_fd()).or_fail(|| "cannot mount `/dev`")?;
        for device in DEVICES {
            device.attach(dev.as_fd())?;
        }
        if process.security == SecurityMode::Insecure {
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
        let shm_size = process.shm_size.to_string();
        let shm_options = [("mode", Some("1777")), ("size", Some(shm_size.as_str()))];
        let shm = file_system::create("tmpfs", &shm_options, INERT)?;
        for (name, mount) in [("pts", &pts), ("shm", &shm)] {
            attach_at_new_folder(dev.as_fd(), name, mount.as_fd())
                .or_fail(|| format!("cannot mount `/dev/{name}`"))?;
        }
        // Not every kernel has message queues.
        if let Ok(mqueue) = file_system::create("mqueue", &[], INERT) {
            attach_at_new_folder(dev.as_fd(), "mqueue", mqueue.as_fd())
                .or_fail(|| "cannot mount `/dev/mqueue`")?;
        }
        for (name, target) in DEVICE_LINKS {
            rustix::fs::symlinkat(*target, &dev, *name)
                .or_fail(|| format!("cannot make `/dev/{name}`"))?;
        }
        Ok(())
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

/// Gives the file `name` in `folder` to a user and a group.
fn give(folder: impl AsFd, name: &str, (uid, gid): (u32, u32)) -> io::Result<()> {
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

const DEVICE_LINKS: &[(&str, &str)] = &[
    ("core", "/proc/kcore"),
    ("fd", "/proc/self/fd"),
    ("ptmx", "pts/ptmx"),
    ("stderr", "/proc/self/fd/2"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
];

/// A device file of the host that a step gets.
struct Device {
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

    fn attach(&self, dev: BorrowedFd<'_>) -> Result<(), Failure> {
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
        let mount = file_system::clone(device, "", NOSUID | NOEXEC)?;
        Ok(attach(mount.as_fd(), place.as_fd())?)
    }

    fn open(&self) -> io::Result<OwnedFd> {
        let path = format!("/dev/{}", self.name);
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let device = rustix::fs::open(path, flags, Mode::empty())?;
        let status = rustix::fs::fstat(&device)?;
        let is_it = FileType::from_raw_mode(status.st_mode) == self.file_type
            && status.st_rdev == makedev(self.number.0, self.number.1);
        if is_it { Ok(device) } else { Err(Errno::NODEV.into()) }
    }
}

const NULL: Device = Device::standard("null", (1, 3));

const DEVICES: &[Device] = &[
    NULL,
    Device::standard("zero", (1, 5)),
    Device::standard("full", (1, 7)),
    Device::standard("random", (1, 8)),
    Device::standard("urandom", (1, 9)),
    Device::optional("tty", FileType::CharacterDevice, (5, 0)),
];

/// What BuildKit adds for `security.insecure` (`util/entitlements/security`), where the host has
/// it.
const INSECURE_DEVICES: &[Device] = &[
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

fn attach_at_new_folder(
    folder: BorrowedFd<'_>,
    name: &str,
    mount: BorrowedFd<'_>,
) -> rustix::io::Result<()> {
    rustix::fs::mkdirat(folder, name, Mode::from_raw_mode(0o755))?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    attach(mount, rustix::fs::openat(folder, name, flags, Mode::empty())?.as_fd())
}

/// Hides `names` of a file system: files behind `/dev/null`, folders behind an empty one.
///
/// What hides them is opened and checked first, and the file system is the very one that was just
/// mounted: no path of the image is used.
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

fn kind_of(file: BorrowedFd<'_>) -> io::Result<Kind> {
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
