//! That the state folder is its user's alone.
//!
//! Layers hold setuid programs, files that everybody may write to, and what is private to an image.
//! The folders above them are closed, or whoever has an account on the machine could run, change and
//! read all that (as in Docker's folder once, CVE-2021-41091).
//!
//! Somebody else could also have been there first: a link or a pipe in the place of what rbuild
//! writes has it write elsewhere, or wait for ever. So what is there must be its user's, as with
//! Git's `safe.directory`.

use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::StateError;
use crate::layer::whiteout::at;

/// Folders that there always are. What somebody removed by hand was held by nobody else.
pub(super) const FOLDERS: [&str; 5] = ["blobs", "blobs/sha256", "snapshots", "locks", "tmp"];
/// Folders of other parts, which make them when they need them.
const OTHER_FOLDERS: [&str; 3] = ["context", "mounts", "stubs"];
/// Files, if they are there.
const FILES: [&str; 6] =
    ["index.db-journal", "index.db-shm", "index.db-wal", "index.json", "oci-layout", "overlay"];
/// The index of steps tells their commands; SQLite gives the files beside it the same mode.
const INDEX: &str = "index.db";

const STICKY: u32 = 0o1000;
const WRITABLE_FOR_OTHERS: u32 = 0o002;
const OF_OTHERS: u32 = 0o077;

/// Makes the folder at `root` and the folders in it that are missing, and sees to it that all this, and
/// what else is in it, is this user's. Nothing in it is opened before this was asked.
pub fn claim(root: &Path) -> Result<(), StateError> {
    claim_root(root)?;
    for name in FOLDERS {
        make(&root.join(name))?;
    }
    for name in OTHER_FOLDERS {
        is_folder(&root.join(name))?;
    }
    for name in FILES {
        is_file(&root.join(name))?;
    }
    let index = root.join(INDEX);
    // An empty file is an empty database.
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
    let mode = Mode::RUSR | Mode::WUSR;
    make_unless(&index, is_file, || rustix::fs::open(&index, flags, mode).map(drop))
}

fn claim_root(root: &Path) -> Result<(), StateError> {
    let about = match fs_err::metadata(root) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            if let Some(parent) = root.parent() {
                fs_err::create_dir_all(parent)?;
            }
            match rustix::fs::mkdir(root, Mode::RWXU) {
                Ok(()) | Err(Errno::EXIST) => fs_err::metadata(root)?,
                Err(error) => return Err(at(root, error).into()),
            }
        }
        about => about?,
    };
    let is_open =
        |mode: u32| mode & WRITABLE_FOR_OTHERS != 0 && mode & STICKY == 0 && about.is_dir();
    if !is_ours(&about) {
        return Err(StateError::Foreign { path: root.to_owned() });
    }
    if is_open(about.mode()) {
        if fs_err::read_dir(root)?.next().is_some() {
            return Err(StateError::Open { path: root.to_owned() });
        }
        let mode = about.mode() & 0o7777 & !WRITABLE_FOR_OTHERS;
        fs_err::set_permissions(root, std::fs::Permissions::from_mode(mode))?;
    }
    Ok(())
}

/// Makes a folder that is closed to others, or closes the one that is there.
pub(super) fn make(path: &Path) -> Result<(), StateError> {
    make_unless(path, is_folder, || rustix::fs::mkdir(path, Mode::RWXU))
}

/// Calls `make` unless `is_there`, which also looks at what somebody has made meanwhile.
fn make_unless(
    path: &Path,
    is_there: impl Fn(&Path) -> Result<bool, StateError>,
    make: impl Fn() -> rustix::io::Result<()>,
) -> Result<(), StateError> {
    while !is_there(path)? {
        match make() {
            Ok(()) => break,
            Err(Errno::EXIST) => {}
            Err(error) => return Err(at(path, error).into()),
        }
    }
    Ok(())
}

/// Whether there is a folder at `path`, which nothing else may be at.
fn is_folder(path: &Path) -> Result<bool, StateError> {
    let Some(about) = found(path)? else { return Ok(false) };
    if !about.is_dir() {
        return Err(StateError::Kind { path: path.to_owned(), expected: "folder" });
    }
    close(path, &about, 0o700);
    Ok(true)
}

/// Whether there is a file at `path`, which nothing else may be at.
fn is_file(path: &Path) -> Result<bool, StateError> {
    let Some(about) = found(path)? else { return Ok(false) };
    if !about.is_file() {
        return Err(StateError::Kind { path: path.to_owned(), expected: "plain file" });
    }
    let name = path.file_name().and_then(|name| name.to_str());
    if name.is_some_and(|name| name.starts_with(INDEX)) {
        close(path, &about, 0o600);
    }
    Ok(true)
}

/// Closes what an older rbuild left open to others.
fn close(path: &Path, about: &std::fs::Metadata, mode: u32) {
    if about.mode() & OF_OTHERS != 0 {
        // A file system without modes cannot close it.
        let _ = fs_err::set_permissions(path, std::fs::Permissions::from_mode(mode));
    }
}

/// What is at `path`, which is refused when it is not this user's. A link must be this user's, and
/// what it leads to as well.
fn found(path: &Path) -> Result<Option<std::fs::Metadata>, StateError> {
    let about = match fs_err::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        about => about?,
    };
    let foreign = || StateError::Foreign { path: path.to_owned() };
    if !is_ours(&about) {
        return Err(foreign());
    }
    let about = if about.is_symlink() { fs_err::metadata(path)? } else { about };
    if is_ours(&about) { Ok(Some(about)) } else { Err(foreign()) }
}

fn is_ours(about: &std::fs::Metadata) -> bool {
    about.uid() == rustix::process::geteuid().as_raw()
}

/// Whether opening what is described waits for somebody, or does something.
pub(crate) fn is_special(about: &std::fs::Metadata) -> bool {
    let kind = about.file_type();
    kind.is_fifo() || kind.is_socket() || kind.is_char_device() || kind.is_block_device()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn mode(path: &Path) -> u32 {
        fs_err::metadata(path).unwrap().mode() & 0o7777
    }

    fn set_mode(path: &Path, mode: u32) {
        fs_err::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn what_is_made_is_closed_to_others() {
        let top = tempfile::tempdir().unwrap();
        let root = top.path().join("deep/state");
        claim(&root).unwrap();
        assert_eq!((mode(&root), mode(&root.join(INDEX))), (0o700, 0o600));
        for folder in FOLDERS {
            assert_eq!(mode(&root.join(folder)), 0o700, "{folder}");
        }
        // As an older rbuild made it.
        set_mode(&root, 0o755);
        set_mode(&root.join("snapshots"), 0o755);
        claim(&root).unwrap();
        assert_eq!((mode(&root), mode(&root.join("snapshots"))), (0o755, 0o700));
    }

    #[test]
    fn an_open_folder_is_taken_when_it_is_empty() {
        let top = tempfile::tempdir().unwrap();
        let root = top.path();
        set_mode(root, 0o777);
        claim(root).unwrap();
        assert_eq!(mode(root), 0o775);
        set_mode(root, 0o777);
        assert!(matches!(claim(root), Err(StateError::Open { .. })));
        // As `/tmp` is.
        set_mode(root, 0o1777);
        claim(root).unwrap();
    }

    /// Where everybody may make something, somebody else can be faster than rbuild.
    #[test]
    fn what_was_made_meanwhile_is_looked_at() {
        let top = tempfile::tempdir().unwrap();
        let path = top.path().join("mounts");
        let made = make_unless(&path, is_folder, || {
            rustix::fs::symlink("nowhere", &path)?;
            rustix::fs::mkdir(&path, Mode::RWXU)
        });
        assert!(made.is_err(), "{made:?}");
    }

    #[test]
    fn what_is_not_of_its_kind_is_refused() {
        let top = tempfile::tempdir().unwrap();
        let folders = FOLDERS.iter().chain(&OTHER_FOLDERS).map(|name| (*name, true));
        let files = FILES.iter().chain([&INDEX]).map(|name| (*name, false));
        for (name, is_folder) in folders.chain(files) {
            let root = top.path().join(name.replace('/', "-"));
            claim(&root).unwrap();
            let path = root.join(name);
            crate::remove::remove_any(&path).unwrap();
            rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, Mode::RWXU, 0)
                .unwrap();
            assert!(matches!(claim(&root), Err(StateError::Kind { .. })), "{name}");
            // One's own link to what it should be is as good.
            fs_err::remove_file(&path).unwrap();
            let elsewhere = root.with_extension("elsewhere");
            if is_folder {
                fs_err::create_dir(&elsewhere).unwrap();
            } else {
                fs_err::write(&elsewhere, "").unwrap();
            }
            symlink(&elsewhere, &path).unwrap();
            claim(&root).unwrap();
        }
    }
}
