//! Mount points that an image may lack, as a layer below all others.
//!
//! `/etc/hosts`, or the target of a `RUN --mount`, must exist to be mounted upon, and must not
//! come out in the image. BuildKit makes such files in the step's layer and removes them
//! afterwards, which leaves the folders they were in changed. Here they come from a folder that is
//! the lowest layer: nothing is written, and nothing is left to tidy up. Where an image hides that
//! layer (a link or a whiteout), [`super::mount_point`] makes and removes them all the same.

use std::collections::{BTreeSet, HashMap};
use std::fs::Permissions;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use rbuild_cache::digest::Digest;

use super::mount_point::Kind;
use crate::sandbox::{ProcessSpec, SandboxError, SandboxMountSource};

/// The folders made so far, by what is in them.
#[derive(Debug)]
pub(super) struct Stubs {
    folder: PathBuf,
    made: Mutex<HashMap<BTreeSet<(String, Kind)>, PathBuf>>,
}

impl Stubs {
    pub(super) fn new(folder: PathBuf) -> Self {
        Self { folder, made: Mutex::new(HashMap::new()) }
    }

    /// Returns a folder with the mount points that `process` needs.
    pub(super) fn folder_for(&self, process: &ProcessSpec) -> Result<PathBuf, SandboxError> {
        self.folder_with(mount_points(process))
    }

    /// Returns a folder with nothing in it.
    pub(super) fn empty(&self) -> Result<PathBuf, SandboxError> {
        self.folder_with(BTreeSet::new())
    }

    fn folder_with(&self, wanted: BTreeSet<(String, Kind)>) -> Result<PathBuf, SandboxError> {
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(folder) = made.get(&wanted) {
            return Ok(folder.clone());
        }
        let folder = self.make(&wanted).map_err(|error| SandboxError {
            message: format!("cannot make mount points in `{}`", self.folder.display()),
            hint: None,
            source: Some(error),
        })?;
        made.insert(wanted, folder.clone());
        Ok(folder)
    }

    fn make(&self, wanted: &BTreeSet<(String, Kind)>) -> io::Result<PathBuf> {
        let name = wanted.iter().fold(String::new(), |name, (path, kind)| {
            name + path + if *kind == Kind::Directory { "/\0" } else { "\0" }
        });
        let folder = self.folder.join(&Digest::of(name.as_bytes()).hex()[..32]);
        if folder.exists() {
            return Ok(folder);
        }
        fs_err::create_dir_all(&self.folder)?;
        let aside = tempfile::tempdir_in(&self.folder)?;
        // The root's own mode does not show: the layers above have one.
        for (path, kind) in wanted {
            let path = Path::new(path);
            let folders = match kind {
                Kind::Directory => path,
                Kind::File => path.parent().unwrap_or(Path::new("")),
            };
            make_folders(aside.path(), folders)?;
            if *kind == Kind::File {
                fs_err::File::create(aside.path().join(path))?;
            }
        }
        match fs_err::rename(aside.path(), &folder) {
            Ok(()) => {}
            // Another process made the same.
            Err(_) if folder.exists() => {}
            Err(error) => return Err(error),
        }
        Ok(folder)
    }
}

/// Makes `folders` below `root`, readable for everyone whatever the umask is.
fn make_folders(root: &Path, folders: &Path) -> io::Result<()> {
    let mut folder = root.to_owned();
    for component in folders {
        folder.push(component);
        if !folder.exists() {
            fs_err::create_dir(&folder)?;
            fs_err::set_permissions(&folder, Permissions::from_mode(0o755))?;
        }
    }
    Ok(())
}

/// Returns what `process` mounts upon, relative to the root. What cannot stand beside the rest, or
/// whose kind is only known later, is left out.
fn mount_points(process: &ProcessSpec) -> BTreeSet<(String, Kind)> {
    let mut wanted = BTreeSet::from([
        ("etc/hosts".to_owned(), Kind::File),
        ("etc/resolv.conf".to_owned(), Kind::File),
    ]);
    for mount in &process.mounts {
        let kind = match &mount.source {
            SandboxMountSource::Tmpfs { .. } => Kind::Directory,
            SandboxMountSource::Host { path, .. } if path.is_dir() => Kind::Directory,
            SandboxMountSource::File { .. }
            | SandboxMountSource::Socket { .. }
            | SandboxMountSource::Device { .. }
            | SandboxMountSource::Host { .. } => Kind::File,
            SandboxMountSource::Bind { root, path } if path.is_empty() && root.is_dir() => {
                Kind::Directory
            }
            SandboxMountSource::Overlay { path, .. } if path.trim_matches('/').is_empty() => {
                Kind::Directory
            }
            SandboxMountSource::Bind { .. } | SandboxMountSource::Overlay { .. } => continue,
        };
        if let Some(path) = plain(&mount.target) {
            let conflicts = wanted.iter().any(|(other, other_kind)| {
                (*other == path && *other_kind != kind)
                    || (*other_kind == Kind::File && is_below(&path, other))
                    || (kind == Kind::File && is_below(other, &path))
            });
            if !conflicts {
                wanted.insert((path, kind));
            }
        }
    }
    wanted
}

/// Returns `target` relative to the root, unless it is the root, goes up, or is in a folder that
/// shall come out in the image.
fn plain(target: &str) -> Option<String> {
    let components: Vec<_> =
        target.split('/').filter(|component| !component.is_empty() && *component != ".").collect();
    let first = *components.first()?;
    let special = ["proc", "sys", "dev"].contains(&first) || components.contains(&"..");
    (!special).then(|| components.join("/"))
}

fn is_below(path: &str, folder: &str) -> bool {
    Path::new(path).starts_with(folder)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(target: &str, expected: Option<&str>) {
        assert_eq!(plain(target).as_deref(), expected, "{target}");
    }

    #[test]
    fn targets_become_paths_below_the_root() {
        check("/run/secrets/id", Some("run/secrets/id"));
        check("//cache/./x/", Some("cache/x"));
        check("/", None);
        check("/a/../b", None);
        check("/dev/shm", None);
        check("/proc/x", None);
    }

    #[test]
    fn a_folder_is_made_once_and_found_again() {
        let folder = tempfile::tempdir().unwrap();
        let wanted = BTreeSet::from([
            ("etc/hosts".to_owned(), Kind::File),
            ("cache/x".to_owned(), Kind::Directory),
        ]);
        let first = Stubs::new(folder.path().to_owned()).make(&wanted).unwrap();
        let second = Stubs::new(folder.path().to_owned()).make(&wanted).unwrap();
        assert_eq!(first, second);
        assert!(first.join("etc/hosts").is_file() && first.join("cache/x").is_dir());
        assert_eq!(fs_err::read_dir(folder.path()).unwrap().count(), 1);
    }
}
