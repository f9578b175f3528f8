//! Removes trees that others filled: steps leave folders that their owner may not list.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// Removes `path` and everything below it; nothing there is success.
///
/// Folders without permissions (overlayfs's own `work`, or what a step made) are opened up first
/// when that is what stands in the way.
pub fn remove_tree(path: &Path) -> io::Result<()> {
    match fs_err::remove_dir_all(path) {
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {
            open_up(path)?;
            fs_err::remove_dir_all(path)
        }
        done => missing_is_fine(done),
    }
}

/// Removes `path`, whatever it is; a link is not followed, and nothing there is success.
pub fn remove_any(path: &Path) -> io::Result<()> {
    match fs_err::symlink_metadata(path) {
        Ok(there) if there.is_dir() => remove_tree(path),
        Ok(_) => missing_is_fine(fs_err::remove_file(path)),
        Err(e) => missing_is_fine(Err(e)),
    }
}

/// Somebody else may remove the same meanwhile.
fn missing_is_fine(done: io::Result<()>) -> io::Result<()> {
    match done {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done,
    }
}

/// Gives the owner all rights on the folders below `folder`, and on itself. No link is followed.
fn open_up(folder: &Path) -> io::Result<()> {
    fs_err::set_permissions(folder, std::fs::Permissions::from_mode(0o700))?;
    for entry in fs_err::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            open_up(&entry.path())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn removes_what_its_owner_may_not_list() {
        let top = tempfile::tempdir().unwrap();
        let closed = top.path().join("a/closed");
        fs_err::create_dir_all(closed.join("inner")).unwrap();
        fs_err::set_permissions(&closed, std::fs::Permissions::from_mode(0o000)).unwrap();
        remove_tree(&top.path().join("a")).unwrap();
        assert!(!top.path().join("a").exists());
        remove_tree(&top.path().join("a")).unwrap();
    }

    #[test]
    fn two_may_remove_the_same() {
        let top = tempfile::tempdir().unwrap();
        for round in 0..300 {
            let path = top.path().join(round.to_string());
            if round % 2 == 0 {
                fs_err::write(&path, "").unwrap();
            } else {
                fs_err::create_dir_all(path.join("a/b")).unwrap();
            }
            std::thread::scope(|scope| {
                let both = [(); 2].map(|()| scope.spawn(|| remove_any(&path)));
                for done in both {
                    done.join().unwrap().unwrap();
                }
            });
            assert!(!path.exists());
        }
    }

    #[test]
    fn removes_a_link_and_not_what_it_points_at() {
        let top = tempfile::tempdir().unwrap();
        let (folder, link) = (top.path().join("folder"), top.path().join("link"));
        fs_err::create_dir_all(folder.join("inner")).unwrap();
        fs_err::os::unix::fs::symlink("folder", &link).unwrap();
        remove_any(&link).unwrap();
        assert!(fs_err::symlink_metadata(&link).is_err());
        assert!(folder.join("inner").is_dir());
        remove_any(&folder).unwrap();
        remove_any(&folder).unwrap();
        assert!(!folder.exists());
    }
}
