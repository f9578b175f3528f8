//! Opaque folders that hide nothing.
//!
//! overlayfs marks each folder that a step makes as opaque, whether or not there is anything below
//! to hide. Such a mark means nothing, and a layer that is packed and unpacked again has lost it: so
//! that both are the same tree, the mark goes when the step's layer is committed.

use std::io;
use std::path::{Path, PathBuf};

use super::entries::{Entry, Kind};
use super::whiteout;

/// Takes the mark from those of `entries`, which are what is in `folder`, that hide nothing of the
/// layers in the folders `lower`.
pub fn unmark(folder: &Path, entries: &mut [Entry], lower: &[PathBuf]) -> io::Result<()> {
    for entry in entries {
        if entry.kind == (Kind::Folder { opaque: true }) && !hides(lower, &entry.path)? {
            whiteout::set_transparent(&folder.join(&entry.path))?;
            entry.kind = Kind::Folder { opaque: false };
        }
    }
    Ok(())
}

/// Whether a layer below has a folder at `path`.
pub fn hides(lower: &[PathBuf], path: &Path) -> io::Result<bool> {
    for folder in lower {
        match fs_err::symlink_metadata(folder.join(path)) {
            Ok(metadata) if metadata.is_dir() => return Ok(true),
            Ok(_) => {}
            Err(e)
                if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layer::entries::entries;

    #[test]
    fn only_what_hides_something_stays_marked() {
        let top = tempfile::tempdir().unwrap();
        let (upper, lower) = (top.path().join("upper"), top.path().join("lower"));
        for folder in ["upper/new/below", "upper/old", "upper/was-a-file", "lower/old"] {
            fs_err::create_dir_all(top.path().join(folder)).unwrap();
        }
        fs_err::write(lower.join("was-a-file"), "").unwrap();
        for folder in ["new", "old", "was-a-file"] {
            whiteout::set_opaque(&upper.join(folder)).unwrap();
        }
        let mut found = entries(&upper).unwrap();
        unmark(&upper, &mut found, &[lower]).unwrap();
        let marked = |entries: &[Entry]| -> Vec<PathBuf> {
            let opaque = entries.iter().filter(|e| e.kind == (Kind::Folder { opaque: true }));
            opaque.map(|entry| entry.path.clone()).collect()
        };
        assert_eq!(marked(&found), [Path::new("old")]);
        assert_eq!(marked(&entries(&upper).unwrap()), [Path::new("old")]);
    }
}
