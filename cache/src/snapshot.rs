//! Trees of layers: each snapshot is what one step (or one layer of an image) adds to those below.
//!
//! A snapshot's folder is in overlayfs form whichever [`Snapshotter`] made it: deleted paths are
//! whiteouts, folders that hide what is below them are opaque ([`crate::layer::whiteout`]). Once
//! committed it never changes, and it is only ever read.
//!
//! Nobody waits for the disk when a snapshot is committed. Instead `meta` says in which boot of the
//! machine it was written: while that boot lasts, what was written is read back, on the disk or
//! not. In a later boot the tree is compared with its digest before it is used for the first time,
//! and dropped when it does not agree. The same is done when its files do not look as they did when
//! it was committed ([`crate::layer::content::stamp`]), which each process asks before it reads them.
//!
//! The time of `meta`'s last writing is when the snapshot was last used, to the minute.

mod chain;
mod committed;
mod copy;
mod draft;
mod id;
mod meta;
mod overlay;
mod sharing;

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use self::committed::Committed;
pub use self::copy::CopySnapshotter;
pub use self::draft::{Active, ActiveRoot, Draft, Note};
use self::draft::{ActiveKind, make_root};
pub use self::id::{SnapshotId, SnapshotIdError};
pub(crate) use self::meta::Meta;
pub use self::overlay::OverlaySnapshotter;
pub use self::sharing::Shown;
use crate::digest::TreeDigest;
use crate::sighting::Sighting;

/// A committed tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// Its name.
    pub id: SnapshotId,
    /// What it contains, without times.
    pub content: TreeDigest,
    /// The bytes of its files, each counted once however many hard links it has.
    pub size: u64,
}

/// Says why a tree could not be made or found.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// A parent that was named is not there.
    #[error("snapshot `{0}` is missing")]
    Missing(SnapshotId),
    /// Its files are not what they were when it was committed. It was removed.
    #[error("snapshot `{0}` was damaged, and is removed")]
    Damaged(SnapshotId),
    /// The tree was prepared by another kind of snapshotter.
    #[error("the tree was prepared by another snapshotter")]
    Foreign,
    /// The disk failed.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Keeps trees, and makes new ones on top of others.
///
/// Committing and removing are atomic: another process sees a whole snapshot or none. Committing
/// under a name that exists already leaves the one that is there, since names of layers are
/// digests of what they hold.
pub trait Snapshotter: fmt::Debug + Send + Sync {
    /// The snapshots that are committed.
    fn committed(&self) -> &Committed;

    /// How trees are put together.
    fn kind(&self) -> SnapshotterKind;

    /// Makes a tree ready to be written to: what `parents` make together, lowest first.
    ///
    /// # Errors
    /// [`SnapshotError::Missing`] when a parent is not there.
    fn prepare(&self, parents: &[SnapshotId]) -> Result<Active, SnapshotError>;

    /// Commits what was written to `active` since it was prepared. Nothing may be mounted from it
    /// any more.
    fn commit_active(&self, id: &SnapshotId, active: Active) -> Result<Snapshot, SnapshotError>;

    /// An empty folder, to be filled in overlayfs form.
    fn draft(&self) -> Result<Draft, SnapshotError> {
        self.committed().draft()
    }

    /// Commits what a draft was filled with.
    fn commit(&self, id: &SnapshotId, draft: Draft) -> Result<Snapshot, SnapshotError> {
        self.committed().commit(id, draft)
    }

    /// The snapshot called `id`, which from now on stays there while this process runs; `None` if
    /// there is none, or it was damaged.
    fn get(&self, id: &SnapshotId) -> Result<Option<Snapshot>, SnapshotError> {
        self.committed().get(id)
    }

    /// Where the tree of `id` is, whether or not it is there.
    fn folder(&self, id: &SnapshotId) -> PathBuf {
        self.committed().folder(id)
    }

    /// Makes sure that the files of `id`, which [`Snapshotter::get`] found, are those that were
    /// committed. Whoever reads them elsewhere than through [`Snapshotter::lower`] asks this first.
    ///
    /// # Errors
    /// [`SnapshotError::Damaged`] when they are not; the snapshot is gone then.
    fn ensure_whole(&self, id: &SnapshotId) -> Result<(), SnapshotError> {
        self.committed().ensure_whole(id)
    }

    /// Whether a damaged snapshot was found and removed since this was last asked, or another process
    /// has removed one that this one uses: what failed for that reason may succeed when it is begun
    /// anew.
    fn found_damage(&self) -> bool {
        self.committed().found_damage()
    }

    /// The folders of `ids`, for mounting or merging, in the same order: lowest first.
    ///
    /// What is below a snapshot whose root is opaque is left out, since overlayfs looks for that
    /// mark on all folders but a layer's root.
    ///
    /// # Errors
    /// [`SnapshotError::Missing`] when one is not there, [`SnapshotError::Damaged`] when its files
    /// are not what they were.
    fn lower(&self, ids: &[SnapshotId]) -> Result<Vec<PathBuf>, SnapshotError> {
        self.committed().lower(ids)
    }

    /// Like [`Snapshotter::lower`], for mounting where a step sees the files: none of them has a name
    /// in another snapshot, as long as what is returned beside the folders is kept.
    fn shown(&self, ids: &[SnapshotId]) -> Result<(Vec<PathBuf>, Vec<Shown>), SnapshotError> {
        Ok((self.lower(ids)?, Vec::new()))
    }

    /// Whether files of the snapshot in `folder` may be linked into others. If so, steps never see
    /// them from now on, but copies.
    fn may_link_from(&self, folder: &Path) -> bool {
        self.committed().may_link_from(folder)
    }

    /// The folders that the layer in `id` has without saying anything of them
    /// ([`Draft::set_implied`]); none for a snapshot that is not there.
    fn implied(&self, id: &SnapshotId) -> Result<Vec<PathBuf>, SnapshotError> {
        self.committed().implied(id)
    }

    /// What was kept beside the tree of `id`, if anything was. It is no part of the tree: nothing but
    /// what users are told, and where bytes are taken from, may depend on it.
    fn note(&self, id: &SnapshotId, note: Note) -> Result<Option<Vec<u8>>, SnapshotError> {
        match fs_err::read(self.committed().folder.join(id.as_str()).join(note.name())) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            read => Ok(read.map(Some)?),
        }
    }

    /// The snapshots beside which there is such a note, the last used first.
    fn noted(&self, note: Note) -> Result<Vec<SnapshotId>, SnapshotError> {
        let mut noted = Vec::new();
        for id in self.list()? {
            let folder = self.committed().folder.join(id.as_str());
            let times = |name| fs_err::metadata(folder.join(name)).and_then(|file| file.modified());
            if fs_err::metadata(folder.join(note.name())).is_ok() {
                noted.push((times("meta").ok(), id));
            }
        }
        noted.sort_unstable_by(|a, b| b.cmp(a));
        Ok(noted.into_iter().map(|(_, id)| id).collect())
    }

    /// Removes a snapshot that is damaged, whoever holds it; `seen` is the one that was found to be.
    fn discard(&self, id: &SnapshotId, seen: &Sighting) -> Result<(), SnapshotError> {
        self.committed().found().remove(id);
        self.committed().take_away(id, seen)
    }

    /// The names of all snapshots, sorted.
    fn list(&self) -> Result<Vec<SnapshotId>, SnapshotError> {
        self.committed().list()
    }
}

/// A kind of snapshotter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SnapshotterKind {
    /// Mounts with overlayfs.
    #[default]
    Overlay,
    /// Copies; for kernels and users that cannot mount.
    Copy,
}

impl SnapshotterKind {
    /// The snapshotter of this kind that keeps its trees among `committed`.
    pub fn over(self, committed: Committed) -> Arc<dyn Snapshotter> {
        match self {
            Self::Overlay => Arc::new(OverlaySnapshotter::new(committed)),
            Self::Copy => Arc::new(CopySnapshotter::new(committed)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layer::entries::{Kind, entries};
    use crate::layer::whiteout;
    use crate::prune;
    use crate::state::StateFolder;
    use crate::usage::{Entry, Usage};

    fn states() -> Vec<(tempfile::TempDir, StateFolder)> {
        [SnapshotterKind::Overlay, SnapshotterKind::Copy]
            .map(|kind| {
                let top = tempfile::tempdir().unwrap();
                let state = StateFolder::open_with(top.path(), kind).unwrap();
                (top, state)
            })
            .into()
    }

    /// Commits a step that `script` (of /bin/sh, in the tree's root) makes on top of `parents`.
    /// `None` where overlayfs cannot be mounted.
    fn run(state: &StateFolder, parents: &[SnapshotId], script: &str) -> Option<Snapshot> {
        let snapshots = state.snapshots();
        let active = snapshots.prepare(parents).unwrap();
        let mut shell = match active.root() {
            ActiveRoot::Folder(folder) => {
                let mut shell = std::process::Command::new("sh");
                shell.current_dir(folder).args(["-euc", script]);
                shell
            }
            ActiveRoot::Overlay { lower, upper, work } => {
                if !rustix::process::geteuid().is_root() {
                    tracing::warn!("skipped: mounting overlayfs here needs root");
                    return None;
                }
                let empty = state.temporary().unwrap();
                let lower = if lower.is_empty() { vec![empty.path().to_owned()] } else { lower };
                let lower: Vec<String> =
                    lower.iter().rev().map(|path| path.display().to_string()).collect();
                let options = format!(
                    "lowerdir={},upperdir={},workdir={},redirect_dir=off,metacopy=off,index=off",
                    lower.join(":"),
                    upper.display(),
                    work.display()
                );
                let mount = state.temporary().unwrap();
                let script = format!(
                    "mount -t overlay overlay -o '{options}' '{0}'; cd '{0}'; {script}",
                    mount.path().display()
                );
                let mut shell = std::process::Command::new("unshare");
                shell.args(["-m", "sh", "-euc", &script]);
                let status = shell.status().unwrap();
                assert!(status.success(), "{script}");
                return Some(snapshots.commit_active(&SnapshotId::random(), active).unwrap());
            }
        };
        assert!(shell.status().unwrap().success(), "{script}");
        Some(snapshots.commit_active(&SnapshotId::random(), active).unwrap())
    }

    /// What all snapshots together show.
    fn merged(state: &StateFolder, ids: &[SnapshotId]) -> Vec<String> {
        let folder = state.temporary().unwrap();
        for layer in state.snapshots().lower(ids).unwrap() {
            crate::layer::flatten::add_layer(&layer, folder.path()).unwrap();
        }
        let show = |entry: crate::layer::entries::Entry| match entry.kind {
            Kind::Folder { opaque } => {
                format!("{}/{}", entry.path.display(), ["", "!"][usize::from(opaque)])
            }
            Kind::File { .. } => {
                let text = fs_err::read_to_string(folder.path().join(&entry.path)).unwrap();
                format!("{}={}", entry.path.display(), text.trim_end())
            }
            Kind::HardLink(first) => format!("{}=>{}", entry.path.display(), first.display()),
            other => format!("{} {other:?}", entry.path.display()),
        };
        entries(folder.path()).unwrap().into_iter().map(show).collect()
    }

    /// The paths of one layer.
    fn paths(state: &StateFolder, id: &SnapshotId) -> Vec<String> {
        let entries = entries(&state.snapshots().folder(id)).unwrap().into_iter();
        entries
            .map(|entry| match entry.kind {
                Kind::Whiteout => format!("-{}", entry.path.display()),
                _ => entry.path.display().to_string(),
            })
            .collect()
    }

    #[test]
    fn a_step_keeps_what_it_changed_and_nothing_else() {
        for (_top, state) in states() {
            let base = "mkdir d e f; echo 1 > d/a; echo 2 > d/b; echo 3 > e/c; echo 4 > f/d; \
                        echo 5 > g; ln g h; echo 6 > top";
            let Some(base) = run(&state, &[], base) else { continue };
            let check = |script: &str, changed: Option<&[&str]>, expected: &[&str]| {
                let Some(step) = run(&state, std::slice::from_ref(&base.id), script) else {
                    return;
                };
                if let Some(changed) = changed {
                    assert_eq!(paths(&state, &step.id), changed, "{script}");
                }
                let shown = merged(&state, &[base.id.clone(), step.id]);
                let differs = |line: &&String| !base_lines(&state, &base).contains(line);
                let shown: Vec<&String> = shown.iter().filter(differs).collect();
                assert_eq!(shown, expected, "{script}");
            };
            check(":", Some(&[]), &[]);
            check("echo x > d/a", Some(&["d", "d/a"]), &["d/a=x"]);
            check("chmod 600 top", Some(&["top"]), &[]);
            check("rm d/a", Some(&["d", "-d/a"]), &[]);
            check("rm -r d", Some(&["-d"]), &[]);
            // Opaque, or each path deleted where the folder has the old one's inode.
            check("rm -r d; mkdir d; echo x > d/x", None, &["d/x=x"]);
            check("rm -r d; echo x > d", Some(&["d"]), &["d=x"]);
            check("rm top; mkdir -p top/in", Some(&["top", "top/in"]), &["top/", "top/in/"]);
            check("mv e moved", Some(&["-e", "moved", "moved/c"]), &["moved/", "moved/c=3"]);
        }
    }

    fn base_lines(state: &StateFolder, base: &Snapshot) -> Vec<String> {
        merged(state, std::slice::from_ref(&base.id))
    }

    #[test]
    fn steps_lie_on_top_of_each_other() {
        for (_top, state) in states() {
            let Some(one) = run(&state, &[], "mkdir d; echo 1 > d/a; echo 1 > b") else { continue };
            let ids = vec![one.id];
            let two = run(&state, &ids, "rm d/a; echo 2 > d/c").unwrap();
            let ids = [ids, vec![two.id]].concat();
            let three = run(&state, &ids, "test ! -e d/a; rm -r d; mkdir d; echo 3 > d/a").unwrap();
            let ids = [ids, vec![three.id]].concat();
            assert_eq!(merged(&state, &ids), ["b=1", "d/", "d/a=3"]);
        }
    }

    #[test]
    fn an_opaque_root_hides_all_that_is_below() {
        for (_top, state) in states() {
            let Some(one) = run(&state, &[], "echo 1 > a") else { continue };
            let draft = state.snapshots().draft().unwrap();
            whiteout::set_opaque(&draft.folder()).unwrap();
            let two = state.snapshots().commit(&SnapshotId::random(), draft).unwrap();
            let ids = [one.id, two.id];
            let three = run(&state, &ids, "test ! -e a; echo 3 > b").unwrap();
            let ids = [&ids[..], &[three.id]].concat();
            assert_eq!(merged(&state, &ids), ["b=3"]);
        }
    }

    #[test]
    fn a_commit_is_seen_by_others_and_a_draft_is_not() {
        for (top, state) in states() {
            let other = StateFolder::open(top.path()).unwrap();
            let id = SnapshotId::random();
            let draft = state.snapshots().draft().unwrap();
            fs_err::write(draft.folder().join("a"), "text").unwrap();
            assert_eq!(other.snapshots().get(&id).unwrap(), None);
            let snapshot = state.snapshots().commit(&id, draft).unwrap();
            assert_eq!(snapshot.size, 4);
            assert_eq!(other.snapshots().get(&id).unwrap(), Some(snapshot.clone()));
            assert_eq!(other.snapshots().list().unwrap(), std::slice::from_ref(&id));
            let again = state.snapshots().draft().unwrap();
            assert_eq!(state.snapshots().commit(&id, again).unwrap(), snapshot, "it stays");
            drop(state.snapshots().draft().unwrap());
            let missing = SnapshotId::random();
            let prepared = state.snapshots().prepare(&[missing]);
            assert!(matches!(prepared, Err(SnapshotError::Missing(_))));
        }
    }

    #[test]
    fn what_somebody_holds_is_not_removed() {
        for (top, state) in states() {
            let id = SnapshotId::random();
            let draft = state.snapshots().draft().unwrap();
            state.snapshots().commit(&id, draft).unwrap();
            let other = StateFolder::open(top.path()).unwrap();
            let usage = Usage::of(&other).unwrap();
            let all: Vec<&Entry> = usage.entries.iter().collect();
            let removed = || {
                let mut removed = 0;
                prune::remove(&other, &all, 1, &mut |_| removed += 1).unwrap();
                removed
            };
            assert_eq!(removed(), 0);
            assert!(state.snapshots().folder(&id).is_dir());
            drop(state);
            assert_eq!(removed(), 1);
            assert_eq!(other.snapshots().get(&id).unwrap(), None);
            assert_eq!(removed(), 0);
        }
    }
}
