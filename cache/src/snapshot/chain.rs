//! Long chains of layers: those at the bottom are merged into fewer.
//!
//! The kernel mounts at most 500 layers at once, asks all of them for a path that is in none, and
//! takes longer for each. So a chain that is longer than [`LONGEST`] begins with snapshots that hold
//! what [`PIECE`] layers make together, in overlayfs form and of copies of their files (reflinks where
//! the disk has them): a step would see hard links (`sharing.rs`). Pieces are cut
//! from the bottom, where a chain does not change as it grows: each is made once, for all steps that
//! follow and for later builds. Nobody misses one that is removed; it is made again.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

use super::{Committed, SnapshotError, SnapshotId};
use crate::digest::{DiffId, Hasher};
use crate::layer::entries::{Entry, Kind, entries};
use crate::layer::{flatten, opaque, whiteout};
use crate::remove::remove_any;

/// Chains up to this length stay as they are.
const LONGEST: usize = 128;
/// How many layers are merged into one.
const PIECE: usize = 64;

/// A chain that shows what `ids` show, lowest first, and is not much longer than [`LONGEST`].
pub(super) fn shorten(
    committed: &Committed,
    ids: Vec<SnapshotId>,
) -> Result<Vec<SnapshotId>, SnapshotError> {
    shorten_to(committed, ids, LONGEST, PIECE)
}

fn shorten_to(
    committed: &Committed,
    ids: Vec<SnapshotId>,
    longest: usize,
    piece: usize,
) -> Result<Vec<SnapshotId>, SnapshotError> {
    if ids.len() <= longest {
        return Ok(ids);
    }
    let mut short: Vec<SnapshotId> = Vec::new();
    let mut rest = &ids[..];
    while rest.len() > longest {
        let (bottom, above) = rest.split_at(piece);
        short.push(merged(committed, &short, bottom)?);
        rest = above;
    }
    short.extend_from_slice(rest);
    Ok(short)
}

/// The snapshot that shows, over `below`, what `piece` shows over it.
fn merged(
    committed: &Committed,
    below: &[SnapshotId],
    piece: &[SnapshotId],
) -> Result<SnapshotId, SnapshotError> {
    let id = name(below, piece);
    if committed.get(&id)?.is_some() {
        match committed.ensure_whole(&id) {
            // Its files are those of its layers, which are looked at before it is made again.
            Err(SnapshotError::Damaged(_)) => {}
            looked => return looked.map(|()| id),
        }
    }
    let below: Vec<PathBuf> = below.iter().map(|id| committed.folder(id)).collect();
    let draft = committed.draft()?;
    let mut merge = Merge { folder: draft.folder(), below, folders: BTreeMap::new() };
    for layer in piece {
        committed.ensure_whole(layer)?;
        merge.add(&committed.folder(layer))?;
    }
    merge.set_times()?;
    committed.commit(&id, draft)?;
    Ok(id)
}

fn name(below: &[SnapshotId], piece: &[SnapshotId]) -> SnapshotId {
    let mut hasher = Hasher::new();
    hasher.field("rbuild merged layers 1");
    hasher.field((below.len() as u64).to_le_bytes());
    for id in below.iter().chain(piece) {
        hasher.field(id.as_str());
    }
    SnapshotId::of_layer(&DiffId(hasher.digest()))
}

/// Layers that become one.
struct Merge {
    /// Where.
    folder: PathBuf,
    /// The layers that will be below: what whiteouts and opaque folders may have to hide.
    below: Vec<PathBuf>,
    /// The folders so far, as the last layer that has each says they are.
    folders: BTreeMap<PathBuf, Entry>,
}

impl Merge {
    /// Adds a layer on top.
    fn add(&mut self, layer: &Path) -> io::Result<()> {
        if whiteout::is_opaque(layer)? {
            for entry in fs_err::read_dir(&self.folder)? {
                remove_any(&entry?.path())?;
            }
            self.folders.clear();
            if !self.below.is_empty() {
                whiteout::set_opaque(&self.folder)?;
            }
        }
        for entry in entries(layer)? {
            self.add_entry(layer, entry)?;
        }
        Ok(())
    }

    fn add_entry(&mut self, layer: &Path, entry: Entry) -> io::Result<()> {
        let path = self.folder.join(&entry.path);
        let there = match fs_err::symlink_metadata(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => None,
            found => Some(found?.is_dir()),
        };
        match &entry.kind {
            Kind::Folder { opaque } => {
                // A file or a whiteout in between ends what a folder merges with, too.
                let alone = *opaque || there == Some(false);
                if alone {
                    remove_any(&path)?;
                    self.forget(&entry.path);
                }
                if alone || there.is_none() {
                    fs_err::create_dir(&path)?;
                } else {
                    forget_xattrs(&path)?;
                }
                if alone && opaque::hides(&self.below, &entry.path)? {
                    whiteout::set_opaque(&path)?;
                }
                flatten::copy_metadata(&path, &entry)?;
                self.folders.insert(entry.path.clone(), entry);
            }
            Kind::Whiteout => {
                remove_any(&path)?;
                self.forget(&entry.path);
                // One that hides nothing would be seen where its folder is not merged.
                if is_in(&self.below, &entry.path)? {
                    whiteout::make_whiteout(&path)?;
                }
            }
            _ => {
                remove_any(&path)?;
                self.forget(&entry.path);
                match &entry.kind {
                    // It came before, in the same layer.
                    Kind::HardLink(first) => fs_err::hard_link(self.folder.join(first), &path)?,
                    _ => flatten::place(layer, &path, &entry)?,
                }
            }
        }
        Ok(())
    }

    /// Forgets the folders at and below `path`, which are gone.
    fn forget(&mut self, path: &Path) {
        self.folders.retain(|folder, _| !folder.starts_with(path));
    }

    /// Times of folders change with what is written into them.
    fn set_times(&self) -> io::Result<()> {
        self.folders
            .iter()
            .rev()
            .try_for_each(|(path, entry)| flatten::set_time(&self.folder.join(path), entry))
    }
}

/// Whether one of `layers` has anything at `path`.
fn is_in(layers: &[PathBuf], path: &Path) -> io::Result<bool> {
    for layer in layers {
        if opaque::find(layer, path)?.is_some() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Takes a folder's own attributes away, which the layer above does not have.
fn forget_xattrs(path: &Path) -> io::Result<()> {
    let mut names = vec![0_u8; 64 * 1024];
    let length = match rustix::fs::llistxattr(path, &mut names) {
        Ok(length) => length,
        Err(Errno::OPNOTSUPP) => 0,
        Err(errno) => return Err(whiteout::at(path, errno)),
    };
    for name in names[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        if crate::metadata::is_own(name) {
            match rustix::fs::lremovexattr(path, name) {
                Ok(()) | Err(Errno::NODATA | Errno::PERM | Errno::ACCESS | Errno::OPNOTSUPP) => {}
                Err(errno) => return Err(whiteout::at(path, errno)),
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::StateFolder;
    use crate::view::View;

    /// Numbers that look like chance and are the same each time.
    struct Chance(u64);

    impl Chance {
        fn below(&mut self, limit: u64) -> u64 {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (self.0 >> 33) % limit
        }

        fn one_of<'a>(&mut self, all: &[&'a str]) -> &'a str {
            all[usize::try_from(self.below(all.len() as u64)).unwrap()]
        }
    }

    /// A layer of a few entries, some of which hide or replace what is below.
    fn layer(state: &StateFolder, chance: &mut Chance) -> SnapshotId {
        let draft = state.snapshots().draft().unwrap();
        for _ in 0..=chance.below(4) {
            let folder = draft.folder().join(chance.one_of(&["a", "b", "a/c", "a/c/d", ""]));
            if fs_err::create_dir_all(&folder).is_err() {
                continue;
            }
            let path = folder.join(chance.one_of(&["a", "c", "d", "e"]));
            // What is there already in this layer stays.
            let _ = match chance.below(6) {
                0 => whiteout::make_whiteout(&path),
                1 => fs_err::create_dir(&path).and_then(|()| whiteout::set_opaque(&path)),
                2 => fs_err::create_dir(&path),
                3 => fs_err::os::unix::fs::symlink("a", &path),
                4 => fs_err::write(&path, "")
                    .and_then(|()| fs_err::hard_link(&path, folder.join("linked"))),
                _ => fs_err::write(&path, chance.below(1000).to_string()),
            };
        }
        state.snapshots().commit(&SnapshotId::random(), draft).unwrap().id
    }

    /// All that `folders` show together.
    fn shown(folders: Vec<PathBuf>) -> Vec<String> {
        fn add(view: &View, folder: &crate::view::Entry, out: &mut Vec<String>) {
            for entry in view.children(folder).unwrap() {
                let metadata = entry.metadata();
                let text = if metadata.is_file() {
                    io::read_to_string(view.open(&entry).unwrap()).unwrap()
                } else if metadata.is_symlink() {
                    view.read_link(&entry).unwrap().display().to_string()
                } else {
                    String::new()
                };
                let (path, kind) = (entry.path().display(), metadata.file_type);
                let (mode, time) = (metadata.mode, metadata.modified);
                out.push(format!("{path} {kind:?} {mode:o} {time:?} {text}"));
                if metadata.is_directory() {
                    add(view, &entry, out);
                }
            }
        }
        let view = View::layers(folders);
        let root = view.resolve(Path::new("/")).unwrap().entry.unwrap();
        let mut out = Vec::new();
        add(&view, &root, &mut out);
        out
    }

    #[test]
    fn merged_layers_show_what_they_showed_one_by_one() {
        let top = tempfile::tempdir().unwrap();
        let state = StateFolder::open(top.path()).unwrap();
        if rustix::fs::mknodat(
            rustix::fs::CWD,
            top.path().join("device"),
            rustix::fs::FileType::CharacterDevice,
            0o600.into(),
            0,
        )
        .is_err()
        {
            tracing::warn!("skipped: whiteouts cannot be made here");
            return;
        }
        let committed = state.snapshots().committed().clone();
        for seed in 0..40 {
            let mut chance = Chance(seed);
            let ids: Vec<SnapshotId> = (0..11).map(|_| layer(&state, &mut chance)).collect();
            let short = shorten_to(&committed, ids.clone(), 4, 3).unwrap();
            assert_eq!(short.len(), 3 + 2, "three merged ones and the last two");
            let folders = |ids: &[SnapshotId]| ids.iter().map(|id| committed.folder(id)).collect();
            assert_eq!(shown(folders(&short)), shown(folders(&ids)), "seed {seed}");
            assert_eq!(shorten_to(&committed, ids, 4, 3).unwrap(), short);
        }
    }

    #[test]
    fn pieces_are_made_once_as_a_chain_grows() {
        let top = tempfile::tempdir().unwrap();
        let state = StateFolder::open(top.path()).unwrap();
        let mut ids = Vec::new();
        for n in 0..PIECE * 4 {
            let draft = state.snapshots().draft().unwrap();
            fs_err::write(draft.folder().join(n.to_string()), "").unwrap();
            ids.push(state.snapshots().commit(&SnapshotId::random(), draft).unwrap().id);
            let folders = state.snapshots().lower(&ids).unwrap();
            assert!(folders.len() <= LONGEST + 2, "{} folders", folders.len());
        }
        assert_eq!(state.snapshots().list().unwrap().len(), PIECE * 4 + 2);
        let whole = shown(state.snapshots().lower(&ids).unwrap());
        assert_eq!(whole.len(), PIECE * 4);
        // Somebody removes a piece, or writes into it: it is made again.
        let short = shorten(state.snapshots().committed(), ids.clone()).unwrap();
        fs_err::remove_file(state.snapshots().folder(&short[0]).join("7")).unwrap();
        drop(state);
        let state = StateFolder::open(top.path()).unwrap();
        assert_eq!(shown(state.snapshots().lower(&ids).unwrap()), whole);
    }
}
