//! What somebody saw at a path, to be told apart from what is there later.
//!
//! Whoever finds an entry damaged has looked at it for a while. Others may have found the same
//! meanwhile, removed it, and made it anew under the same name. So who judges an entry remembers
//! which one that was, and removes it or nothing ([`Session::take_away`](crate::session::Session)).

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use fs_err::File;
use rustix::fs::{Mode, OFlags, fstat};
use rustix::io::Errno;

use crate::layer::whiteout::at;

/// A file or folder that was seen. As long as this lives, nothing else gets its inode.
#[derive(Debug)]
pub struct Sighting(OwnedFd);

impl Sighting {
    /// What is at `path`, if anything is. A link is seen itself.
    pub fn at(path: &Path) -> io::Result<Option<Self>> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match rustix::fs::open(path, flags, Mode::empty()) {
            Ok(seen) => Ok(Some(Self(seen))),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(at(path, error)),
        }
    }

    /// What `file` opens.
    pub fn of(file: &File) -> io::Result<Self> {
        Ok(Self(file.file().try_clone()?.into()))
    }

    /// Whether it is at `path` by now, and nothing else.
    pub fn is_at(&self, path: &Path) -> io::Result<bool> {
        let seen = fstat(&self.0)?;
        match fs_err::symlink_metadata(path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(e) => Err(e),
            Ok(there) => Ok((there.dev(), there.ino()) == (seen.st_dev, seen.st_ino)),
        }
    }

    /// Itself, to look into a folder whatever it is called by now.
    pub(crate) fn folder(&self) -> &OwnedFd {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_the_same_name_is_another_one() {
        let top = tempfile::tempdir().unwrap();
        let path = top.path().join("entry");
        assert!(Sighting::at(&path).unwrap().is_none());
        let make: [&dyn Fn(); 3] = [
            &|| fs_err::write(&path, "").unwrap(),
            &|| fs_err::create_dir(&path).unwrap(),
            &|| fs_err::os::unix::fs::symlink("nowhere", &path).unwrap(),
        ];
        for make in make {
            make();
            let seen = Sighting::at(&path).unwrap().unwrap();
            assert!(seen.is_at(&path).unwrap());
            for _ in 0..3 {
                crate::remove::remove_any(&path).unwrap();
                assert!(!seen.is_at(&path).unwrap());
                // File systems like to give a new file the inode of the last one that went.
                make();
                assert!(!seen.is_at(&path).unwrap());
            }
            crate::remove::remove_any(&path).unwrap();
        }
    }

    #[test]
    fn what_is_open_is_seen_under_any_name() {
        let top = tempfile::tempdir().unwrap();
        let [one, two] = ["one", "two"].map(|name| top.path().join(name));
        let seen = Sighting::of(&File::create(&one).unwrap()).unwrap();
        fs_err::rename(&one, &two).unwrap();
        assert!(!seen.is_at(&one).unwrap() && seen.is_at(&two).unwrap());
    }
}
