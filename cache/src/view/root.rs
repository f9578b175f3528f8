//! Opening what is below a folder that somebody else may change meanwhile: no component of a path
//! may be a link by the time it is opened.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};
use std::sync::OnceLock;

use rustix::fs::{Mode, OFlags, RawDir, ResolveFlags};
use rustix::io::Errno;

/// Bytes for the names of one `getdents64`.
const NAMES_BUFFER: usize = 32 * 1024;

/// The folder of a layer; opened when it is first needed, since of many layers most are not.
#[derive(Debug)]
pub(super) struct Root {
    pub(super) path: PathBuf,
    folder: OnceLock<OwnedFd>,
}

impl Root {
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path, folder: OnceLock::new() }
    }

    pub(super) fn open(&self) -> io::Result<BorrowedFd<'_>> {
        if let Some(folder) = self.folder.get() {
            return Ok(folder.as_fd());
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let folder = rustix::fs::open(&self.path, flags, Mode::empty())?;
        Ok(self.folder.get_or_init(|| folder).as_fd())
    }
}

/// Opens `path` in `root`; no component of it may be a link, whoever puts one there.
pub fn open_beneath(root: BorrowedFd<'_>, path: &Path, flags: OFlags) -> io::Result<OwnedFd> {
    let flags = flags | OFlags::CLOEXEC;
    let here = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    match rustix::fs::openat2(root, here, flags, Mode::empty(), resolve) {
        // Kernels before 5.6, and filters that do not know the call.
        Err(Errno::NOSYS | Errno::PERM) => open_step_by_step(root, path, flags),
        other => Ok(other?),
    }
}

fn open_step_by_step(root: BorrowedFd<'_>, path: &Path, flags: OFlags) -> io::Result<OwnedFd> {
    let step = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut folder: Option<OwnedFd> = None;
    for component in path.parent().unwrap_or(Path::new("")).components() {
        let Component::Normal(name) = component else { return Err(Errno::XDEV.into()) };
        let here = folder.as_ref().map_or(root, |folder| folder.as_fd());
        folder = Some(rustix::fs::openat(here, name, step, Mode::empty())?);
    }
    let name = path.file_name().unwrap_or(OsStr::new("."));
    let here = folder.as_ref().map_or(root, |folder| folder.as_fd());
    Ok(rustix::fs::openat(here, name, flags | OFlags::NOFOLLOW, Mode::empty())?)
}

/// Calls `each` with the names in `folder`, as the system lists them.
pub(super) fn read_names(folder: &OwnedFd, mut each: impl FnMut(&[u8])) -> io::Result<()> {
    let mut buffer = Vec::with_capacity(NAMES_BUFFER);
    let mut names = RawDir::new(folder, buffer.spare_capacity_mut());
    while let Some(entry) = names.next() {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            each(name);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::tests::make;

    #[test]
    fn opening_step_by_step_follows_no_links_either() {
        let folder = make(&["d/f=1", "l->d", "d/g->f"]);
        let root = fs_err::File::open(folder.path()).unwrap();
        let open = |path: &str| {
            open_step_by_step(root.as_fd(), Path::new(path), OFlags::RDONLY | OFlags::CLOEXEC)
        };
        assert!(open("d/f").is_ok());
        assert!(open("").is_ok());
        for wrong in ["l/f", "d/g", "../x", "d/../d/f"] {
            assert!(open(wrong).is_err(), "{wrong}");
        }
    }
}
