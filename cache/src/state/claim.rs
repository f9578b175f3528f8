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

/// What the folder has in it, if it is there.
const FOLDERS: [&str; 7] = ["blobs", "context", "locks", "mounts", "snapshots", "stubs", "tmp"];
const FILES: [&str; 6] =
    ["index.db", "index.db-journal", "index.db-shm", "index.db-wal", "index.json", "oci-layout"];
/// The index of steps tells their commands; SQLite gives the files beside it the same mode.
const INDEX: &str = "index.db";

const STICKY: u32 = 0o1000;
const WRITABLE_FOR_OTHERS: u32 = 0o002;
const OF_OTHERS: u32 = 0o077;

/// Makes the folder at `root` when it is missing, and sees to it that it, and what is in it, is this
/// user's. Nothing in it is opened before this was asked.
pub fn claim(root: &Path) -> Result<(), StateError> {
    make(root)?;
    let about = fs_err::metadata(root)?;
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
    for name in FOLDERS {
        let path = root.join(name);
        let Some(about) = found(&path)? else { continue };
        if !about.is_dir() {
            return Err(StateError::Kind { path, expected: "folder" });
        }
        if about.mode() & OF_OTHERS != 0 {
            // An older rbuild left them open. A file system without modes cannot close them.
            let _ = fs_err::set_permissions(&path, std::fs::Permissions::from_mode(0o700));
        }
    }
    for name in FILES {
        let path = root.join(name);
        let Some(about) = found(&path)? else { continue };
        if !about.is_file() {
            return Err(StateError::Kind { path, expected: "plain file" });
        }
        if name.starts_with(INDEX) && about.mode() & OF_OTHERS != 0 {
            let _ = fs_err::set_permissions(&path, std::fs::Permissions::from_mode(0o600));
        }
    }
    make_index(&root.join(INDEX))?;
    Ok(())
}

/// Makes a folder that is closed to others, unless there is one.
pub(super) fn make(path: &Path) -> io::Result<()> {
    if let Some(parent) = path.parent() {
        fs_err::create_dir_all(parent)?;
    }
    match rustix::fs::mkdir(path, Mode::RWXU) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(error) => Err(at(path, error)),
    }
}

/// An empty file is an empty database.
fn make_index(path: &Path) -> io::Result<()> {
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
    match rustix::fs::open(path, flags, Mode::RUSR | Mode::WUSR) {
        Ok(_) | Err(Errno::EXIST) => Ok(()),
        Err(error) => Err(at(path, error)),
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
        // As an older rbuild made it.
        set_mode(&root, 0o755);
        fs_err::create_dir(root.join("snapshots")).unwrap();
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

    #[test]
    fn what_is_not_of_its_kind_is_refused() {
        let top = tempfile::tempdir().unwrap();
        for (name, is_folder) in
            FOLDERS.iter().map(|name| (name, true)).chain(FILES.iter().map(|name| (name, false)))
        {
            let root = top.path().join(name);
            claim(&root).unwrap();
            let path = root.join(name);
            let _ = fs_err::remove_file(&path);
            rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, Mode::RWXU, 0)
                .unwrap();
            assert!(matches!(claim(&root), Err(StateError::Kind { .. })), "{name}");
            // One's own link to what it should be is as good.
            fs_err::remove_file(&path).unwrap();
            let elsewhere = top.path().join(format!("{name}-elsewhere"));
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
