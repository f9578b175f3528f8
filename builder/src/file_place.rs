//! Where a file that rbuild writes really is. A file is written beside its place and renamed, so that
//! it is there whole or not at all; but nobody who names `/dev/null` or a pipe wants it replaced.

use std::io;
use std::path::{Path, PathBuf};

use fs_err::File;

/// What is at the place of a file.
#[derive(Debug)]
pub(crate) enum FilePlace {
    /// A file or nothing: one that was written elsewhere is renamed to this path.
    File(PathBuf),
    /// A device or a pipe, opened for writing.
    Device(File),
}

impl FilePlace {
    /// Looks at `path`; links to what is there are followed.
    pub(crate) fn of(path: &Path) -> io::Result<Self> {
        let there = match fs_err::metadata(path) {
            // Nothing, or a link to nothing, which is replaced.
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                return Ok(Self::File(path.to_owned()));
            }
            there => there?,
        };
        if there.is_dir() {
            return Err(io::ErrorKind::IsADirectory.into());
        }
        if there.is_file() {
            return Ok(Self::File(fs_err::canonicalize(path)?));
        }
        Ok(Self::Device(File::options().write(true).open(path)?))
    }

    /// The folder in which a file is written before it is renamed to `path`.
    pub(crate) fn folder(path: &Path) -> &Path {
        path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_written_to_and_links_followed() {
        let top = tempfile::tempdir().unwrap();
        let at = |name: &str| top.path().join(name);
        let check = |name: &str, expected: Option<&str>| match FilePlace::of(&at(name)).unwrap() {
            FilePlace::File(path) => assert_eq!(path, at(expected.unwrap())),
            FilePlace::Device(_) => assert_eq!(expected, None),
        };
        fs_err::write(at("file"), "").unwrap();
        for (target, link) in [("file", "link"), ("/dev/null", "null"), ("nothing", "dangling")] {
            fs_err::os::unix::fs::symlink(target, at(link)).unwrap();
        }
        check("new", Some("new"));
        check("file", Some("file"));
        check("link", Some("file"));
        check("dangling", Some("dangling"));
        check("null", None);
        assert!(FilePlace::of(top.path()).is_err());
    }
}
