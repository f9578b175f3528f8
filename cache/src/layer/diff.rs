//! What changed in a plain folder since it was last looked at, as a layer in overlayfs form.
//!
//! A path is unchanged if its inode and the time of the inode's last change are: the kernel sets
//! that time whenever anything about a file changes, and nobody else can.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::entries::{Entry, Kind, entries};
use super::flatten::{copy_metadata, set_time};
use super::whiteout;

/// How a folder was.
#[derive(Debug)]
pub struct Before(HashMap<PathBuf, Version>);

#[derive(Debug, PartialEq)]
struct Version {
    inode: u64,
    changed: (i64, u32),
    is_folder: bool,
}

impl Before {
    /// Notes how `folder` is now.
    pub fn of(folder: &Path) -> io::Result<Self> {
        let before = entries(folder)?.into_iter().map(|entry| (version(&entry), entry.path));
        let before = before.map(|(version, path)| (path, version)).collect();
        // File systems count in ticks of the kernel's clock: what is changed from now on must not
        // fall into the tick in which it was made.
        std::thread::sleep(Duration::from_millis(20));
        Ok(Self(before))
    }

    /// Moves what changed in `folder` since then to `layer`, and notes there what is gone.
    pub fn move_changes(&self, folder: &Path, layer: &Path) -> io::Result<()> {
        let after = entries(folder)?;
        let mut made: Vec<&Entry> = Vec::new();
        let mut replaced: Option<&Path> = None;
        for entry in &after {
            let is_in_replaced = replaced.is_some_and(|path| entry.path.starts_with(path));
            let before = self.0.get(&entry.path);
            let is_folder = matches!(entry.kind, Kind::Folder { .. });
            if before == Some(&version(entry)) && !is_in_replaced {
                continue;
            }
            make_parents(layer, &after, &entry.path, &mut made)?;
            let place = layer.join(&entry.path);
            if !is_folder {
                fs_err::rename(folder.join(&entry.path), place)?;
                continue;
            }
            make_folder(&place, entry, &mut made)?;
            let is_another =
                before.is_some_and(|before| before.is_folder && before.inode != entry.inode);
            if is_another && !is_in_replaced {
                whiteout::set_opaque(&place)?;
                replaced = Some(&entry.path);
            }
        }
        self.note_deleted(layer, &after, &mut made)?;
        made.sort_unstable_by(|a, b| b.path.cmp(&a.path));
        made.iter().try_for_each(|entry| set_time(&layer.join(&entry.path), entry))
    }

    fn note_deleted<'a>(
        &self,
        layer: &Path,
        after: &'a [Entry],
        made: &mut Vec<&'a Entry>,
    ) -> io::Result<()> {
        let now: HashMap<&Path, &Entry> =
            after.iter().map(|entry| (entry.path.as_path(), entry)).collect();
        let is_folder =
            |path: &Path| path.as_os_str().is_empty() || self.is_same_folder(path, &now);
        for path in self.0.keys() {
            let parent = path.parent().unwrap_or(Path::new(""));
            if !now.contains_key(path.as_path()) && parent.ancestors().all(is_folder) {
                make_parents(layer, after, path, made)?;
                whiteout::make_whiteout(&layer.join(path))?;
            }
        }
        Ok(())
    }

    /// Whether the folder at `path` is the one that was there: otherwise, all that was in it is
    /// hidden with it.
    fn is_same_folder(&self, path: &Path, now: &HashMap<&Path, &Entry>) -> bool {
        match (self.0.get(path), now.get(path)) {
            (Some(before), Some(now)) => {
                let is_folder = matches!(now.kind, Kind::Folder { .. });
                before.is_folder && is_folder && before.inode == now.inode
            }
            _ => false,
        }
    }
}

fn version(entry: &Entry) -> Version {
    Version {
        inode: entry.inode,
        changed: entry.changed,
        is_folder: matches!(entry.kind, Kind::Folder { .. }),
    }
}

/// Makes the folders that `path` is in, as they are afterwards.
fn make_parents<'a>(
    layer: &Path,
    after: &'a [Entry],
    path: &Path,
    made: &mut Vec<&'a Entry>,
) -> io::Result<()> {
    let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) else {
        return Ok(());
    };
    if fs_err::symlink_metadata(layer.join(parent)).is_ok() {
        return Ok(());
    }
    make_parents(layer, after, parent, made)?;
    let found = after.binary_search_by(|entry| super::entries::compare_paths(&entry.path, parent));
    let entry = found.map_err(|_| io::Error::other(format!("`{}` is gone", parent.display())))?;
    make_folder(&layer.join(parent), &after[entry], made)
}

fn make_folder<'a>(path: &Path, entry: &'a Entry, made: &mut Vec<&'a Entry>) -> io::Result<()> {
    match fs_err::create_dir(path) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => return Ok(()),
        done => done?,
    }
    made.push(entry);
    copy_metadata(path, entry)
}
