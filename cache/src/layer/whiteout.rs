//! How a layer says that something below it is gone, in its two forms.
//!
//! In a tar, `.wh.NAME` hides NAME, and `.wh..wh..opq` in a folder hides all that lower layers have
//! in it (image-spec, layer.md, "Whiteouts"). In a folder for overlayfs, a character device 0:0
//! hides its own name, and an extended attribute makes a folder opaque (kernel,
//! Documentation/filesystems/overlayfs.rst). That attribute is `trusted.overlay.opaque` for root;
//! without root it is `user.overlay.opaque`, which the mount option `userxattr` asks for. Which of
//! the two a process uses depends on what it may do and never changes.
//!
//! Some file systems take no such device: overlayfs itself, on which a container's state folder can
//! be. There an empty file with an attribute stands for it. Nothing mounts layers from there
//! (`snapshot/copy.rs`), so only rbuild reads it.

use std::ffi::OsStr;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::OnceLock;

use rustix::fs::{CWD, FileType, Mode, OFlags, XattrFlags};
use rustix::io::Errno;

/// What the name of a whiteout begins with in a tar.
pub const PREFIX: &[u8] = b".wh.";
/// What makes the folder it is in opaque, in a tar.
pub const OPAQUE: &[u8] = b".wh..wh..opq";

/// Which attributes of overlayfs this process uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Marks {
    /// `trusted.overlay.*`: the process is root outside of all user namespaces.
    Trusted,
    /// `user.overlay.*`: overlayfs is mounted with `userxattr`.
    User,
}

impl Marks {
    /// The attributes that this process uses.
    pub fn of_this_process() -> Self {
        static MARKS: OnceLock<Marks> = OnceLock::new();
        *MARKS.get_or_init(|| if has_power_outside() { Self::Trusted } else { Self::User })
    }

    /// The attribute that makes a folder opaque when its value is `y`.
    pub fn opaque(self) -> &'static str {
        match self {
            Self::Trusted => "trusted.overlay.opaque",
            Self::User => "user.overlay.opaque",
        }
    }
}

/// `CAP_SYS_ADMIN` in the first user namespace, which `trusted.*` attributes are for.
fn has_power_outside() -> bool {
    let map = fs_err::read_to_string("/proc/self/uid_map").unwrap_or_default();
    let first = map.split_ascii_whitespace().eq(["0", "0", "4294967295"]);
    let able = rustix::thread::capabilities(None)
        .is_ok_and(|sets| sets.effective.contains(rustix::thread::CapabilitySet::SYS_ADMIN));
    first && able
}

/// Whether an extended attribute is overlayfs's own: not part of the tree, and without power when
/// it comes from elsewhere.
pub fn is_mark(name: &[u8]) -> bool {
    name.starts_with(b"trusted.overlay.") || name.starts_with(b"user.overlay.")
}

/// Whether a file of a layer's folder is a whiteout, from its type and device number.
pub fn is_whiteout(file_type: FileType, rdev: u64) -> bool {
    file_type == FileType::CharacterDevice && rdev == 0
}

/// What an empty file has that stands for a whiteout.
pub(crate) const SUBSTITUTE: &str = "user.rbuild.whiteout";

/// Makes a whiteout at `path`, where nothing is.
pub fn make_whiteout(path: &Path) -> io::Result<()> {
    make_whiteout_at(CWD, path.as_os_str()).map_err(|e| at(path, e))
}

/// Makes a whiteout called `name` in `folder`, where nothing is.
pub fn make_whiteout_at(folder: impl AsFd, name: &OsStr) -> Result<(), Errno> {
    let kind = FileType::CharacterDevice;
    match rustix::fs::mknodat(&folder, name, kind, Mode::empty(), 0) {
        Err(Errno::PERM) => make_substitute_at(folder, name),
        done => done,
    }
}

fn make_substitute_at(folder: impl AsFd, name: &OsStr) -> Result<(), Errno> {
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
    let file = rustix::fs::openat(folder, name, flags, Mode::empty())?;
    rustix::fs::fsetxattr(file, SUBSTITUTE, b"y", XattrFlags::empty())
}

/// Lets the folder at `path` hide nothing.
pub fn set_transparent(path: &Path) -> io::Result<()> {
    let name = Marks::of_this_process().opaque();
    match rustix::fs::lremovexattr(path, name) {
        Ok(()) | Err(Errno::NODATA) => Ok(()),
        Err(e) => Err(at(path, e)),
    }
}

/// Whether the folder at `path` hides what lower layers have in it.
pub fn is_opaque(path: &Path) -> io::Result<bool> {
    let mut value = [0; 2];
    let name = Marks::of_this_process().opaque();
    match rustix::fs::lgetxattr(path, name, &mut value[..]) {
        Ok(length) => Ok(&value[..length] == b"y"),
        Err(Errno::NODATA | Errno::NOTSUP | Errno::RANGE) => Ok(false),
        Err(e) => Err(at(path, e)),
    }
}

/// Makes the folder at `path` hide what lower layers have in it.
pub fn set_opaque(path: &Path) -> io::Result<()> {
    let name = Marks::of_this_process().opaque();
    rustix::fs::lsetxattr(path, name, b"y", XattrFlags::empty()).map_err(|e| at(path, e))
}

/// The error with the path that it is about, as `fs_err` words it.
pub(crate) fn at(path: &Path, error: Errno) -> io::Error {
    let error = io::Error::from(error);
    let shown = String::from_utf8_lossy(path.as_os_str().as_bytes()).into_owned();
    io::Error::new(error.kind(), format!("`{shown}`: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layer::entries::Kind;

    #[test]
    fn marks_are_read_as_they_were_written() {
        let folder = tempfile::tempdir().unwrap();
        let (hides, gone) = (folder.path().join("hides"), folder.path().join("gone"));
        fs_err::create_dir(&hides).unwrap();
        assert!(!is_opaque(&hides).unwrap());
        set_opaque(&hides).unwrap();
        assert!(is_opaque(&hides).unwrap());
        make_whiteout(&gone).unwrap();
        let stat = rustix::fs::lstat(&gone).unwrap();
        assert!(is_whiteout(FileType::from_raw_mode(stat.st_mode), stat.st_rdev));
    }

    #[test]
    fn a_file_can_stand_for_a_whiteout() {
        let top = tempfile::tempdir().unwrap();
        let folder = fs_err::File::open(top.path()).unwrap();
        make_substitute_at(&folder, "gone".as_ref()).unwrap();
        fs_err::write(top.path().join("empty"), "").unwrap();
        let is_whiteout = |name: &str| {
            crate::metadata::Metadata::at(&folder, name.as_ref()).unwrap().unwrap().is_whiteout()
        };
        assert!(is_whiteout("gone") && !is_whiteout("empty"));
        let entries = crate::layer::entries::entries(top.path()).unwrap();
        let kinds: Vec<_> = entries.into_iter().map(|entry| entry.kind).collect();
        assert_eq!(kinds, [Kind::File { size: 0 }, Kind::Whiteout]);
    }
}
