//! What a file is besides its bytes: type, mode, owner, times, extended attributes; the one place
//! that reads and writes them.
//!
//! Everything is asked of, and done to, a name in an open folder or an open file, never a joined
//! path, so that nobody can swap a folder for a link in between. What overlayfs's marks look like
//! is said in `layer/whiteout.rs`, what they mean for a tree in `view.rs`. Where this process has
//! but one id, owners are those that are remembered (`ownership.rs`).

use std::ffi::{CStr, CString, OsStr};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{AtFlags, Gid, Mode, Stat, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;

use crate::layer::whiteout::{self, Marks};
use crate::ownership::{self, Links, Owner, Ownership};

/// The longest list of names, or value, of extended attributes that Linux allows, in bytes.
const XATTR_MAX: usize = 64 * 1024;

/// A point in time, as files have them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp {
    /// Seconds since the epoch.
    pub seconds: i64,
    /// Nanoseconds, less than a second.
    pub nanoseconds: u32,
}

impl Timestamp {
    /// That many seconds since the epoch.
    pub const fn from_seconds(seconds: i64) -> Self {
        Self { seconds, nanoseconds: 0 }
    }
}

impl From<Timestamp> for Timespec {
    fn from(time: Timestamp) -> Self {
        Self { tv_sec: time.seconds, tv_nsec: time.nanoseconds.into() }
    }
}

/// What kind of file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FileType {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
    /// A character device.
    CharDevice,
    /// A block device.
    BlockDevice,
}

impl FileType {
    /// The type that `st_mode` tells.
    pub fn of_mode(mode: u32) -> Self {
        match rustix::fs::FileType::from_raw_mode(mode) {
            rustix::fs::FileType::Directory => Self::Directory,
            rustix::fs::FileType::Symlink => Self::Symlink,
            rustix::fs::FileType::Fifo => Self::Fifo,
            rustix::fs::FileType::Socket => Self::Socket,
            rustix::fs::FileType::CharacterDevice => Self::CharDevice,
            rustix::fs::FileType::BlockDevice => Self::BlockDevice,
            rustix::fs::FileType::RegularFile | rustix::fs::FileType::Unknown => Self::File,
        }
    }
}

/// What a file is besides its name, its bytes and its extended attributes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Metadata {
    /// What kind of file.
    pub file_type: FileType,
    /// Permissions, setuid, setgid and sticky bit: at most `0o7777`.
    pub mode: u32,
    /// The owner.
    pub uid: u32,
    /// The owner's group.
    pub gid: u32,
    /// Bytes of a regular file, or of a link's target.
    pub size: u64,
    /// When its bytes changed last.
    pub modified: Timestamp,
    /// When anything about it changed last; set by the kernel alone.
    pub changed: Timestamp,
    /// Which device it stands for, if it is one.
    pub device: u64,
    /// On which file system it is.
    pub file_system: u64,
    /// Which file of that file system it is.
    pub inode: u64,
    /// How many names it has.
    pub links: u64,
    /// The bytes that it takes on the disk.
    pub disk: u64,
}

impl Metadata {
    /// That of `name` in `folder`, links not followed; `None` when there is no such name.
    pub fn at(folder: impl AsFd, name: &OsStr) -> io::Result<Option<Self>> {
        let folder = folder.as_fd();
        match rustix::fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => {
                let path = || path_at(folder, name);
                let metadata = Self::from(&stat).or_whiteout(path)?;
                metadata.recalled(path, Links::Kept).map(Some)
            }
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// That of an open file.
    pub fn of(file: impl AsFd) -> io::Result<Self> {
        let file = file.as_fd();
        Self::from(&rustix::fs::fstat(file)?).recalled(|| path_of(file), Links::Followed)
    }

    /// As a whiteout, when it is a file that stands for one.
    fn or_whiteout(self, path: impl FnOnce() -> io::Result<CString>) -> io::Result<Self> {
        let can_be = self.is_file() && self.size == 0 && self.mode == 0;
        if !can_be {
            return Ok(self);
        }
        let stands = rustix::fs::lgetxattr(&*path()?, whiteout::SUBSTITUTE, &mut [0_u8; 1]).is_ok();
        let device = Self { file_type: FileType::CharDevice, device: 0, ..self };
        Ok(if stands { device } else { self })
    }

    /// With the owner that is remembered, where owners are.
    fn recalled(
        self,
        path: impl FnOnce() -> io::Result<CString>,
        links: Links,
    ) -> io::Result<Self> {
        if Ownership::of_this_process() == Ownership::Set || self.is_whiteout() {
            return Ok(self);
        }
        match ownership::recall(&*path()?, links, self.file_type) {
            Ok(Owner { uid, gid }) => Ok(Self { uid, gid, ..self }),
            // It went meanwhile, or is none of ours.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(self),
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(self),
            Err(error) => Err(error),
        }
    }

    /// Whether it is a directory.
    pub fn is_directory(&self) -> bool {
        self.file_type == FileType::Directory
    }

    /// Whether it is a regular file.
    pub fn is_file(&self) -> bool {
        self.file_type == FileType::File
    }

    /// Whether it is a symbolic link.
    pub fn is_symlink(&self) -> bool {
        self.file_type == FileType::Symlink
    }

    /// Whether overlayfs takes it as the sign that what is below was deleted.
    pub fn is_whiteout(&self) -> bool {
        self.file_type == FileType::CharDevice && self.device == 0
    }

    /// Whether `self` and `other` are one file, unchanged since.
    pub fn is_same_version(&self, other: &Self) -> bool {
        self.file_system == other.file_system
            && self.inode == other.inode
            && self.size == other.size
            && self.modified == other.modified
            && self.changed == other.changed
    }
}

impl From<&Stat> for Metadata {
    #[allow(
        clippy::allow_attributes,
        clippy::useless_conversion,
        clippy::cast_sign_loss,
        clippy::cast_possible_truncation,
        clippy::unnecessary_cast,
        reason = "the fields' types differ between processors; sizes and nanoseconds are not negative"
    )]
    fn from(stat: &Stat) -> Self {
        Self {
            file_type: FileType::of_mode(stat.st_mode),
            mode: stat.st_mode & 0o7777,
            uid: stat.st_uid,
            gid: stat.st_gid,
            size: stat.st_size as u64,
            modified: Timestamp {
                seconds: stat.st_mtime as i64,
                nanoseconds: stat.st_mtime_nsec as u32,
            },
            changed: Timestamp {
                seconds: stat.st_ctime as i64,
                nanoseconds: stat.st_ctime_nsec as u32,
            },
            device: stat.st_rdev as u64,
            file_system: stat.st_dev as u64,
            inode: stat.st_ino as u64,
            links: stat.st_nlink as u64,
            // The kernel counts in units of 512 bytes, whatever the file system's blocks are.
            disk: stat.st_blocks as u64 * 512,
        }
    }
}

/// Extended attributes, sorted by name.
pub type Xattrs = Vec<(CString, Vec<u8>)>;

/// The extended attributes of `name` in `folder`, links not followed, but for those that are not
/// the file's own: overlayfs's marks and the labels of the machine's security module.
pub fn xattrs_at(folder: impl AsFd, name: &OsStr) -> io::Result<Xattrs> {
    let path = path_at(folder.as_fd(), name)?;
    let mut xattrs = Vec::new();
    for name in xattr_names(&path)? {
        if !is_own(name.to_bytes()) {
            continue;
        }
        if let Some(value) = xattr(&path, &name)?
            && !ownership::is_note(name.to_bytes(), &value)
        {
            xattrs.push((name, value));
        }
    }
    xattrs.sort();
    Ok(xattrs)
}

/// Whether what is made in `folder` gets an access list from it (acl(5), "default ACL").
pub fn hands_on_access(folder: &Path) -> bool {
    let asked = rustix::fs::lgetxattr(folder, "system.posix_acl_default", &mut [0_u8; 0]);
    // Who cannot ask takes care.
    !matches!(asked, Err(Errno::NODATA | Errno::OPNOTSUPP))
}

/// Sets extended attributes of `name` in `folder`, links not followed.
///
/// Attributes that the file system or the caller's rights do not allow are left out, as BuildKit
/// does (solver/llbsolver/file/backend.go, `xattrErrorHandler`): which they are depends on the
/// machine, and a build should not fail for it.
pub fn set_xattrs_at(folder: impl AsFd, name: &OsStr, xattrs: &Xattrs) -> io::Result<()> {
    if xattrs.is_empty() {
        return Ok(());
    }
    let path = path_at(folder.as_fd(), name)?;
    for (name, value) in xattrs {
        // A layer of somebody else may claim owners so.
        if ownership::is_note(name.to_bytes(), value) {
            continue;
        }
        match rustix::fs::lsetxattr(&*path, &**name, value, XattrFlags::empty()) {
            Ok(()) | Err(Errno::OPNOTSUPP | Errno::PERM | Errno::ACCESS | Errno::INVAL) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// The name of `name` in `folder` for system calls that know no folders: by way of the descriptor,
/// so that it means that folder wherever it is by now.
fn path_at(folder: BorrowedFd<'_>, name: &OsStr) -> io::Result<CString> {
    let mut path = format!("/proc/self/fd/{}/", folder.as_raw_fd()).into_bytes();
    path.extend(if name.is_empty() { b"." } else { name.as_bytes() });
    CString::new(path).map_err(io::Error::other)
}

/// The same for an open file.
fn path_of(file: BorrowedFd<'_>) -> io::Result<CString> {
    CString::new(format!("/proc/self/fd/{}", file.as_raw_fd())).map_err(io::Error::other)
}

fn xattr_names(path: &CStr) -> io::Result<Vec<CString>> {
    let mut names = vec![0_u8; XATTR_MAX];
    match rustix::fs::llistxattr(path, &mut names) {
        Ok(length) => names.truncate(length),
        Err(Errno::OPNOTSUPP) => return Ok(Vec::new()),
        Err(error) => return Err(error.into()),
    }
    let names = names.split(|byte| *byte == 0).filter(|name| !name.is_empty());
    Ok(names.map(|name| CString::new(name).expect("it was split at its zero bytes")).collect())
}

fn xattr(path: &CStr, name: &CStr) -> io::Result<Option<Vec<u8>>> {
    let mut value = vec![0_u8; XATTR_MAX];
    match rustix::fs::lgetxattr(path, name, &mut value) {
        Ok(length) => {
            value.truncate(length);
            Ok(Some(value))
        }
        Err(Errno::NODATA | Errno::OPNOTSUPP | Errno::PERM | Errno::ACCESS) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Whether an extended attribute is the file's own: not a mark of overlayfs, nor a label of the
/// machine's security module, nor what is remembered of a file.
pub(crate) fn is_own(name: &[u8]) -> bool {
    !whiteout::is_mark(name) && !ownership::is_note_name(name) && name != b"security.selinux"
}

/// Whether the folder `name` in `folder` hides what layers below have in it.
///
/// The first look is at the names of all attributes at once: folders without any, which is nearly
/// all of them, cost one system call.
pub fn is_opaque(folder: impl AsFd, name: &OsStr) -> io::Result<bool> {
    let path = path_at(folder.as_fd(), name)?;
    match rustix::fs::llistxattr_query(&*path) {
        Ok(0) | Err(Errno::OPNOTSUPP) => return Ok(false),
        Ok(_) => {}
        Err(error) => return Err(error.into()),
    }
    let mut value = [0_u8; 2];
    match rustix::fs::lgetxattr(&*path, Marks::of_this_process().opaque(), &mut value) {
        Ok(length) => Ok(value[..length] == *b"y"),
        Err(Errno::NODATA | Errno::OPNOTSUPP | Errno::RANGE) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Makes an open folder hide what layers below have in it.
pub fn mark_opaque(folder: impl AsFd) -> io::Result<()> {
    let mark = Marks::of_this_process().opaque();
    Ok(rustix::fs::fsetxattr(folder, mark, b"y", XattrFlags::empty())?)
}

/// Sets owner, then mode (in that order: a new owner takes setuid and setgid away) of an open file
/// or folder.
pub fn set_owner_and_mode(file: impl AsFd, uid: u32, gid: u32, mode: u32) -> io::Result<()> {
    let file = file.as_fd();
    match Ownership::of_this_process() {
        Ownership::Set => {
            rustix::fs::fchown(file, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?;
        }
        Ownership::Remembered => {
            let file_type = FileType::of_mode(rustix::fs::fstat(file)?.st_mode);
            let owner = Owner { uid, gid };
            ownership::remember(&*path_of(file)?, Links::Followed, file_type, owner)?;
        }
    }
    rustix::fs::fchmod(file, Mode::from_raw_mode(mode & 0o7777))?;
    Ok(())
}

/// Sets the owner of `name` in `folder`, links not followed.
pub fn set_owner_at(folder: impl AsFd, name: &OsStr, uid: u32, gid: u32) -> io::Result<()> {
    let folder = folder.as_fd();
    if Ownership::of_this_process() == Ownership::Remembered {
        let stat = rustix::fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW)?;
        let file_type = FileType::of_mode(stat.st_mode);
        let path = path_at(folder, name)?;
        return ownership::remember(&*path, Links::Kept, file_type, Owner { uid, gid });
    }
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    Ok(rustix::fs::chownat(folder, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?)
}

/// Sets the mode of `name` in `folder`, which must not be a link that somebody else can make.
pub fn set_mode_at(folder: impl AsFd, name: &OsStr, mode: u32) -> io::Result<()> {
    let mode = Mode::from_raw_mode(mode & 0o7777);
    Ok(rustix::fs::chmodat(folder, name, mode, AtFlags::empty())?)
}

/// Sets the time of the last change of an open file or folder's bytes to now, by the kernel's clock.
pub fn touch(file: impl AsFd) -> io::Result<()> {
    let now = Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_NOW };
    let times = Timestamps { last_access: now, last_modification: now };
    Ok(rustix::fs::futimens(file, &times)?)
}

/// Sets the time of the last change of an open file or folder's bytes.
pub fn set_modified(file: impl AsFd, time: Timestamp) -> io::Result<()> {
    Ok(rustix::fs::futimens(file, &timestamps(time))?)
}

/// Sets the time of the last change of `name` in `folder`, links not followed.
pub fn set_modified_at(folder: impl AsFd, name: &OsStr, time: Timestamp) -> io::Result<()> {
    let times = timestamps(time);
    Ok(rustix::fs::utimensat(folder, name, &times, AtFlags::SYMLINK_NOFOLLOW)?)
}

fn timestamps(time: Timestamp) -> Timestamps {
    Timestamps { last_access: time.into(), last_modification: time.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_of_overlayfs_and_the_machine_are_not_the_files_own() {
        let check =
            |name: &CStr, expected| assert_eq!(is_own(name.to_bytes()), expected, "{name:?}");
        check(c"user.note", true);
        check(c"security.capability", true);
        check(c"user.overlay.opaque", false);
        check(c"trusted.overlay.whiteout", false);
        check(c"security.selinux", false);
        check(c"user.rbuild.owner", false);
    }

    #[test]
    fn a_folder_is_opaque_once_marked() {
        let parent = tempfile::tempdir().unwrap();
        fs_err::create_dir(parent.path().join("d")).unwrap();
        let parent = fs_err::File::open(parent.path()).unwrap();
        let open = rustix::fs::OFlags::DIRECTORY;
        let folder = rustix::fs::openat(&parent, "d", open, Mode::empty()).unwrap();
        assert!(!is_opaque(&parent, "d".as_ref()).unwrap());
        mark_opaque(&folder).unwrap();
        assert!(is_opaque(&parent, "d".as_ref()).unwrap());
        assert_eq!(xattrs_at(&parent, "d".as_ref()).unwrap(), []);
    }

    #[test]
    fn times_keep_their_nanoseconds_also_before_the_epoch() {
        let parent = tempfile::tempdir().unwrap();
        let parent = fs_err::File::open(parent.path()).unwrap();
        let time = Timestamp { seconds: -5, nanoseconds: 123_456_789 };
        rustix::fs::symlinkat("nowhere", &parent, "l").unwrap();
        set_modified_at(&parent, "l".as_ref(), time).unwrap();
        let metadata = Metadata::at(&parent, "l".as_ref()).unwrap().unwrap();
        assert_eq!(metadata.modified, time);
        assert!(metadata.is_symlink());
        assert_eq!(Metadata::at(&parent, "m".as_ref()).unwrap(), None);
    }
}
