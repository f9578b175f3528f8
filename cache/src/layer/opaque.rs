//! Opaque folders that hide nothing.
//!
//! overlayfs marks each folder that a step makes as opaque, whether or not there is anything below
//! to hide. Such a mark means nothing, and a layer that is packed and unpacked again has lost it: so
//! that both are the same tree, the mark goes when the step's layer is committed.

use std::fs::Metadata;
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
    for layer in lower {
        if find(layer, path)?.is_some_and(|found| found.is_dir()) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// What `layer` has at `path`, itself: a link on the way there is no folder.
pub fn find(layer: &Path, path: &Path) -> io::Result<Option<Metadata>> {
    let (mut at, mut found) = (layer.to_owned(), None);
    for name in path {
        if found.as_ref().is_some_and(|folder: &Metadata| !folder.is_dir()) {
            return Ok(None);
        }
        at.push(name);
        found = match fs_err::symlink_metadata(&at) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            looked => Some(looked?),
        };
    }
    Ok(found)
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
        assert!(find(&upper, Path::new("new/below")).unwrap().unwrap().is_dir());
        fs_err::os::unix::fs::symlink("new", upper.join("link")).unwrap();
        assert!(find(&upper, Path::new("link/below")).unwrap().is_none());
        let marked = |entries: &[Entry]| -> Vec<PathBuf> {
            let opaque = entries.iter().filter(|e| e.kind == (Kind::Folder { opaque: true }));
            opaque.map(|entry| entry.path.clone()).collect()
        };
        assert_eq!(marked(&found), [Path::new("old")]);
        assert_eq!(marked(&entries(&upper).unwrap()), [Path::new("old")]);
    }
}
