//! Finding and making the places in a root file system where something is mounted.
//!
//! Every path is resolved by the kernel inside the root (`openat2` with `RESOLVE_IN_ROOT`): links
//! of the image cannot lead out of it, and nothing is looked up twice.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, Timespec, Timestamps};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

/// What a missing mount point is made as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Kind {
    /// For file systems and folders.
    Directory,
    /// For anything else.
    File,
}

/// A mount point (or folder above one) that the image lacks and that was made; the folder it is
/// in travels beside it.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Stub {
    /// Its name in its folder.
    name: String,
    /// The folder's times before it was made, seconds and nanoseconds: last access, last
    /// modification.
    times_before: [(i64, i64); 2],
    /// The folder's last modification right after.
    modified_after: (i64, i64),
}

impl Stub {
    /// Returns its name in its folder.
    pub(super) fn name(&self) -> &str {
        &self.name
    }
}

/// Opens `path` below `root`, whatever it is, without reading it. Links stay inside.
pub(super) fn resolve(root: BorrowedFd<'_>, path: &str) -> rustix::io::Result<OwnedFd> {
    open_inside(root, path, OFlags::PATH)
}

/// Opens `path` below `root`, and makes what is missing of it: folders with mode 0755, and at the
/// end a folder or an empty file. Dangling links are followed to where they lead.
///
/// `made` gets everything that was made with the folder it is in, outermost first.
pub(super) fn ensure(
    root: BorrowedFd<'_>,
    path: &str,
    kind: Kind,
    mut made: impl FnMut(Stub, OwnedFd) -> io::Result<()>,
) -> io::Result<OwnedFd> {
    match resolve(root, path) {
        Err(Errno::NOENT) => {}
        result => return Ok(result?),
    }
    let mut rest: VecDeque<String> = components(path).collect();
    let mut done = String::from(".");
    let mut links = 0;
    while let Some(name) = rest.pop_front() {
        let next = format!("{done}/{name}");
        match resolve(root, &next) {
            Ok(_) => done = next,
            Err(Errno::NOENT) => {
                let folder = open_inside(root, &done, OFlags::PATH | OFlags::DIRECTORY)?;
                if let Some(target) = link_target(folder.as_fd(), &name)? {
                    links += 1;
                    if links > 40 {
                        return Err(Errno::LOOP.into());
                    }
                    if target.starts_with('/') {
                        done = String::from(".");
                    }
                    for component in components(&target).collect::<Vec<_>>().into_iter().rev() {
                        rest.push_front(component);
                    }
                    continue;
                }
                let kind = if rest.is_empty() { kind } else { Kind::Directory };
                let stub = make(folder.as_fd(), &name, kind)?;
                made(stub, folder)?;
                done = next;
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(resolve(root, &done)?)
}

/// Removes a stub, unless something was put into it, and gives its folder the times back that it
/// had. Works by descriptor: whatever the step did with the path, nothing else is touched.
pub(super) fn remove(stub: &Stub, folder: BorrowedFd<'_>) -> io::Result<()> {
    let status = match rustix::fs::statat(folder, &stub.name, AtFlags::SYMLINK_NOFOLLOW) {
        Err(Errno::NOENT) => return Ok(()),
        status => status?,
    };
    let flags = match FileType::from_raw_mode(status.st_mode) {
        FileType::Directory => AtFlags::REMOVEDIR,
        FileType::RegularFile if status.st_size == 0 => AtFlags::empty(),
        _ => return Ok(()),
    };
    let now = times(folder)?;
    match rustix::fs::unlinkat(folder, &stub.name, flags) {
        Err(Errno::NOTEMPTY) => return Ok(()),
        result => result?,
    }
    let times = if now[1] == stub.modified_after { stub.times_before } else { now };
    Ok(rustix::fs::utimensat(folder, c".", &timestamps(times), AtFlags::empty())?)
}

fn open_inside(root: BorrowedFd<'_>, path: &str, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    let resolution = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let path = if path.is_empty() { "." } else { path };
    loop {
        let flags = flags | OFlags::CLOEXEC;
        match rustix::fs::openat2(root, path, flags, Mode::empty(), resolution) {
            // Something was renamed on the way, and the kernel wants to be asked again.
            Err(Errno::AGAIN) => {}
            result => return result,
        }
    }
}

fn components(path: &str) -> impl Iterator<Item = String> + use<> {
    let components: Vec<_> = path
        .split('/')
        .filter(|component| !component.is_empty() && *component != ".")
        .map(ToOwned::to_owned)
        .collect();
    components.into_iter()
}

fn link_target(folder: BorrowedFd<'_>, name: &str) -> io::Result<Option<String>> {
    match rustix::fs::readlinkat(folder, name, Vec::new()) {
        Ok(target) => target
            .into_string()
            .map(Some)
            .map_err(|_| io::Error::from(io::ErrorKind::InvalidFilename)),
        Err(Errno::NOENT | Errno::INVAL) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn make(folder: BorrowedFd<'_>, name: &str, kind: Kind) -> io::Result<Stub> {
    let times_before = times(folder)?;
    match kind {
        Kind::Directory => rustix::fs::mkdirat(folder, name, Mode::from_raw_mode(0o755))?,
        Kind::File => {
            let mode = Mode::from_raw_mode(0o644);
            rustix::fs::mknodat(folder, name, FileType::RegularFile, mode, 0)?;
        }
    }
    Ok(Stub { name: name.to_owned(), times_before, modified_after: times(folder)?[1] })
}

fn times(folder: BorrowedFd<'_>) -> io::Result<[(i64, i64); 2]> {
    let status = rustix::fs::statat(folder, c".", AtFlags::empty())?;
    let nanoseconds = |value: u64| i64::try_from(value).expect("less than a second");
    Ok([
        (status.st_atime, nanoseconds(status.st_atime_nsec)),
        (status.st_mtime, nanoseconds(status.st_mtime_nsec)),
    ])
}

fn timestamps([access, modification]: [(i64, i64); 2]) -> Timestamps {
    let timespec = |(tv_sec, tv_nsec)| Timespec { tv_sec, tv_nsec };
    Timestamps { last_access: timespec(access), last_modification: timespec(modification) }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    struct Root(tempfile::TempDir);

    impl Root {
        fn new() -> Self {
            Self(tempfile::tempdir().unwrap())
        }

        fn descriptor(&self) -> OwnedFd {
            fs_err::File::open(self.0.path()).unwrap().into_parts().0.into()
        }

        fn exists(&self, path: &str) -> bool {
            self.0.path().join(path).exists()
        }

        fn ensure(&self, path: &str, kind: Kind) -> io::Result<Vec<(Stub, OwnedFd)>> {
            let mut made = Vec::new();
            ensure(self.descriptor().as_fd(), path, kind, |stub, folder| {
                made.push((stub, folder));
                Ok(())
            })?;
            Ok(made)
        }
    }

    fn check(links: &[(&str, &str)], path: &str, expected: &str) {
        let root = Root::new();
        for (link, target) in links {
            symlink(target, root.0.path().join(link)).unwrap();
        }
        let made = root.ensure(path, Kind::File).unwrap();
        assert!(root.exists(expected), "{expected} was not made for {path}");
        for (stub, folder) in made.iter().rev() {
            remove(stub, folder.as_fd()).unwrap();
        }
        let left = fs_err::read_dir(root.0.path()).unwrap().count();
        assert_eq!(left, links.len(), "stubs are left of {path}");
    }

    #[test]
    fn missing_folders_and_files_are_made_and_removed() {
        check(&[], "/file", "file");
        check(&[], "/a/b/c", "a/b/c");
        check(&[], "a//./b", "a/b");
    }

    #[test]
    fn dangling_links_are_followed_inside_the_root() {
        check(&[("link", "/target")], "/link", "target");
        check(&[("link", "deep/er")], "/link/file", "deep/er/file");
        check(&[("link", "../../../up")], "/link", "up");
        check(&[("a", "b"), ("b", "/c")], "/a/d", "c/d");
    }

    #[test]
    fn circles_of_links_end() {
        let root = Root::new();
        symlink("b", root.0.path().join("a")).unwrap();
        symlink("a", root.0.path().join("b")).unwrap();
        assert!(root.ensure("/a", Kind::Directory).is_err());
    }

    #[test]
    fn a_stub_that_was_written_to_stays() {
        let root = Root::new();
        let made = root.ensure("/a/b", Kind::Directory).unwrap();
        fs_err::write(root.0.path().join("a/other"), "x").unwrap();
        for (stub, folder) in made.iter().rev() {
            remove(stub, folder.as_fd()).unwrap();
        }
        assert!(root.exists("a/other") && !root.exists("a/b"));
    }

    #[test]
    fn the_folder_gets_its_times_back() {
        let root = Root::new();
        fs_err::create_dir(root.0.path().join("etc")).unwrap();
        let folder = fs_err::File::open(root.0.path().join("etc")).unwrap();
        let old = timestamps([(1000, 1), (2000, 2)]);
        rustix::fs::futimens(&folder, &old).unwrap();
        for (stub, folder) in root.ensure("/etc/hosts", Kind::File).unwrap() {
            remove(&stub, folder.as_fd()).unwrap();
        }
        assert_eq!(times(folder.as_fd()).unwrap()[1], (2000, 2));
    }
}
