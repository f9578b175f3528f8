//! Digests of files and of parts of trees: what a cache key that depends on content is made of.
//!
//! A digest says what a build would get: types, modes, owners, bytes, targets of links, extended
//! attributes, and which names are one file; never times, as in BuildKit (cache/contenthash).
//!
//! Reading every byte of a large context for each build would cost more than everything else, so
//! what a caller's files hashed to is remembered ([`FileMemo`]).

mod file_memo;

use std::io;
use std::path::{Path, PathBuf};

use rayon::prelude::*;

pub use file_memo::{FileMemo, FileMemos};

use crate::digest::{Digest, Hasher};
use crate::metadata::{FileType, Metadata};
use crate::view::{Entry, View, ViewError};

/// Says why a digest could not be had.
#[derive(Debug, thiserror::Error)]
pub enum ChecksumError {
    /// There is no such path.
    #[error("{path:?}: not found")]
    NotFound {
        /// The path, from `/`.
        path: String,
    },
    /// The tree could not be read.
    #[error(transparent)]
    View(#[from] ViewError),
    /// A file changed each time it was read.
    #[error("`{}` changes while it is read", .0.display())]
    Changing(PathBuf),
    /// A file could not be read.
    #[error("cannot read `{}`", path.display())]
    Read {
        /// The path in the tree.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Adds what an entry is to a digest: all that a build can see of it but its times.
///
/// `content` is the digest of a regular file's bytes; `target` where a link leads.
pub fn add_entry(
    hasher: &mut Hasher,
    path: &Path,
    metadata: &Metadata,
    content: Option<Digest>,
    target: Option<&Path>,
) {
    use std::os::unix::ffi::OsStrExt;
    hasher.field(path.as_os_str().as_bytes());
    hasher.field([type_code(metadata.file_type)]);
    // The mode of a link means nothing and differs between file systems.
    let mode = if metadata.is_symlink() { 0 } else { metadata.mode };
    for number in [mode, metadata.uid, metadata.gid] {
        hasher.field(number.to_le_bytes());
    }
    match metadata.file_type {
        FileType::File => {
            hasher.field(content.map(|digest| *digest.as_bytes()).unwrap_or_default());
        }
        FileType::CharDevice | FileType::BlockDevice => {
            hasher.field(metadata.device.to_le_bytes());
        }
        FileType::Symlink => hasher.field(target.unwrap_or(Path::new("")).as_os_str().as_bytes()),
        FileType::Directory | FileType::Fifo | FileType::Socket => {}
    }
}

fn type_code(file_type: FileType) -> u8 {
    match file_type {
        FileType::File => b'f',
        FileType::Directory => b'd',
        FileType::Symlink => b'l',
        FileType::Fifo => b'p',
        FileType::Socket => b's',
        FileType::CharDevice => b'c',
        FileType::BlockDevice => b'b',
    }
}

/// The digest of `path` and everything below it, as a bind mount shows it. A link in the last place
/// is followed.
///
/// # Errors
/// [`ChecksumError::NotFound`] when there is nothing.
///
/// # Panics
/// Never: what is in a folder has its path in front.
pub fn of_path(view: &View, path: &Path, memo: &FileMemo) -> Result<Digest, ChecksumError> {
    let Some(root) = view.resolve(path)?.entry else {
        let path = Path::new("/").join(path).display().to_string();
        return Err(ChecksumError::NotFound { path });
    };
    let entries = descendants(view, &root)?;
    let contents: Vec<(Option<Digest>, Option<PathBuf>)> =
        entries.par_iter().map(|entry| content(view, entry, memo)).collect::<Result<_, _>>()?;
    let mut hasher = Hasher::new();
    for (entry, (digest, target)) in entries.iter().zip(&contents) {
        let path = entry.path().strip_prefix(root.path()).unwrap_or(entry.path());
        add_entry(&mut hasher, path, entry.metadata(), *digest, target.as_deref());
        add_xattrs(&mut hasher, view, entry)?;
    }
    Ok(hasher.digest())
}

fn add_xattrs(hasher: &mut Hasher, view: &View, entry: &Entry) -> Result<(), ViewError> {
    let xattrs = view.xattrs(entry)?;
    hasher.field(xattrs.len().to_le_bytes());
    for (name, value) in xattrs {
        hasher.field(name.to_bytes());
        hasher.field(value);
    }
    Ok(())
}

fn content(
    view: &View,
    entry: &Entry,
    memo: &FileMemo,
) -> Result<(Option<Digest>, Option<PathBuf>), ChecksumError> {
    Ok(match entry.metadata().file_type {
        FileType::File => (Some(memo.digest(view, entry)?.0), None),
        FileType::Symlink => (None, Some(view.read_link(entry)?)),
        FileType::Directory
        | FileType::Fifo
        | FileType::Socket
        | FileType::CharDevice
        | FileType::BlockDevice => (None, None),
    })
}

/// `root` and everything below it: each directory before what is in it, names sorted.
pub fn descendants(view: &View, root: &Entry) -> Result<Vec<Entry>, ViewError> {
    let children = view.children(root)?;
    let below: Vec<Vec<Entry>> = children
        .into_par_iter()
        .map(|child| match child.metadata().file_type {
            FileType::Directory => descendants(view, &child),
            FileType::File
            | FileType::Symlink
            | FileType::Fifo
            | FileType::Socket
            | FileType::CharDevice
            | FileType::BlockDevice => Ok(vec![child]),
        })
        .collect::<Result<_, _>>()?;
    Ok(std::iter::once(root.clone()).chain(below.into_iter().flatten()).collect())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use fs_err as fs;

    use super::*;
    use crate::pattern::PatternMatcher;

    struct Folder(tempfile::TempDir);

    impl Folder {
        fn new() -> Self {
            let folder = Self(tempfile::tempdir().unwrap());
            folder.write("f", "1");
            folder
        }

        fn path(&self, name: &str) -> PathBuf {
            self.0.path().join(name)
        }

        fn write(&self, name: &str, bytes: &str) {
            fs::write(self.path(name), bytes).unwrap();
        }

        fn digest(&self) -> Digest {
            let view = View::folder(self.0.path().to_owned(), PatternMatcher::default());
            of_path(&view, Path::new("/"), &FileMemo::none()).unwrap()
        }
    }

    #[test]
    fn a_digest_changes_with_all_that_a_build_sees_but_times() {
        let check = |change: &dyn Fn(&Folder), changes: bool| {
            let folder = Folder::new();
            let before = folder.digest();
            change(&folder);
            assert_eq!(folder.digest() != before, changes);
        };
        let mode = |f: &Folder, mode| {
            fs::set_permissions(f.path("f"), std::fs::Permissions::from_mode(mode)).unwrap();
        };
        check(&|_| (), false);
        check(&|f| f.write("f", "1"), false);
        check(&|f| f.write("f", "2"), true);
        check(&|f| f.write("g", ""), true);
        check(&|f| fs::rename(f.path("f"), f.path("g")).unwrap(), true);
        check(&|f| mode(f, 0o600), true);
        check(&|f| symlink("f", f.path("l")).unwrap(), true);
        check(&|f| fs::create_dir(f.path("d")).unwrap(), true);
    }

    #[test]
    fn nothing_is_not_found() {
        let folder = Folder::new();
        let view = View::folder(folder.0.path().to_owned(), PatternMatcher::default());
        let error = of_path(&view, Path::new("/x"), &FileMemo::none()).unwrap_err();
        assert_eq!(error.to_string(), "\"/x\": not found");
    }
}
