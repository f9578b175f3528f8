//! The committed snapshots of a state folder, and whether they are still what they were.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::meta::Meta;
use super::{Draft, Snapshot, SnapshotError, SnapshotId};
use crate::digest::Digest;
use crate::layer::content::{self, Content, Known};
use crate::layer::entries::{Entry, entries, entries_but};
use crate::layer::{opaque, whiteout};
use crate::metadata::{self, Metadata};
use crate::remove::remove_tree;
use crate::session::{Session, Temporary, random_name};

/// A snapshot's last use is noted when it was longer ago, in seconds.
const LAST_USED_PRECISION: i64 = 60;

/// Nobody waits until the memory of more entries than these is given back.
const FREED_BESIDE: usize = 1024;

/// The committed snapshots of a state folder: what all snapshotters share.
#[derive(Clone, Debug)]
pub struct Committed {
    pub(super) folder: PathBuf,
    session: Arc<Session>,
    boot: Arc<str>,
    /// Looked up or committed by this process, and held by it: they stay as they are.
    found: Arc<Mutex<HashMap<SnapshotId, Found>>>,
    /// Those of them that have folders of which they say nothing.
    implied: Arc<Mutex<HashMap<SnapshotId, Vec<PathBuf>>>>,
    /// A damaged one was found since this was last asked.
    pub(super) damaged: Arc<AtomicBool>,
    /// Whether the roots of snapshots hide everything below.
    opaque: Arc<Mutex<HashMap<SnapshotId, bool>>>,
}

#[derive(Clone, Debug)]
pub(super) struct Found {
    snapshot: Snapshot,
    /// What its files must look like; absent once this was asked, or when this process made them.
    unasked: Option<Digest>,
    /// Its files may be linked into others.
    pub(super) sharing: bool,
}

impl Committed {
    /// The snapshots in `folder`, which exists; new ones are written aside in `session`.
    pub fn new(folder: PathBuf, session: Arc<Session>) -> io::Result<Self> {
        let boot = match fs_err::read_to_string("/proc/sys/kernel/random/boot_id") {
            // Without /proc each process is a boot of its own: slower, and right.
            Err(_) => random_name().into(),
            Ok(text) => text.trim().into(),
        };
        let (found, implied, opaque) = (Arc::default(), Arc::default(), Arc::default());
        let damaged = Arc::default();
        Ok(Self { folder, session, boot, found, implied, damaged, opaque })
    }

    pub(super) fn draft(&self) -> Result<Draft, SnapshotError> {
        Draft::new(&self.session)
    }

    pub(super) fn commit(&self, id: &SnapshotId, draft: Draft) -> Result<Snapshot, SnapshotError> {
        let mut draft = draft;
        let known = draft.known.get_mut().unwrap_or_else(PoisonError::into_inner);
        let entries = entries_but(&draft.temporary.path().join("fs"), &known.paths)?;
        self.commit_entries(id, draft, entries)
    }

    /// Commits what overlayfs wrote into `draft` over the folders `lower`.
    pub(super) fn commit_over(
        &self,
        id: &SnapshotId,
        draft: Draft,
        lower: &[PathBuf],
    ) -> Result<Snapshot, SnapshotError> {
        let mut entries = entries(&draft.folder())?;
        opaque::unmark(&draft.folder(), &mut entries, lower)?;
        self.commit_entries(id, draft, entries)
    }

    /// Commits `draft`, in which `entries` are.
    fn commit_entries(
        &self,
        id: &SnapshotId,
        draft: Draft,
        entries: Vec<Entry>,
    ) -> Result<Snapshot, SnapshotError> {
        let Draft { temporary, known, implied, sharing } = draft;
        let known = known.into_inner().unwrap_or_else(PoisonError::into_inner);
        let implied = implied.into_inner().unwrap_or_else(PoisonError::into_inner);
        let folder = temporary.path().join("fs");
        let found = content::of_entries(&folder, &entries, &known)?;
        if entries.len() > FREED_BESIDE {
            rayon::spawn(move || drop((entries, known)));
        }
        let sharing = sharing.into_inner();
        let meta = Meta { implied, sharing, ..Meta::new(&found, &self.boot) };
        meta.write(&temporary.path().join("meta"))?;
        self.session.hold(id.as_str())?;
        match temporary.rename(&self.folder.join(id.as_str())) {
            Ok(()) => {
                let Content { digest, size, .. } = found;
                let snapshot = Snapshot { id: id.clone(), content: digest, size };
                Ok(self.note(snapshot, None, &meta))
            }
            Err((e, temporary)) if is_there(&e) => self.use_other(id, temporary),
            Err((e, _)) => Err(e.into()),
        }
    }

    /// Somebody else committed under the same name; theirs stays unless it is damaged.
    fn use_other(&self, id: &SnapshotId, ours: Temporary) -> Result<Snapshot, SnapshotError> {
        if let Some(theirs) = self.get(id)? {
            return Ok(theirs);
        }
        ours.rename(&self.folder.join(id.as_str())).map_err(|(e, _)| e)?;
        self.get(id)?.ok_or_else(|| SnapshotError::Missing(id.clone()))
    }

    fn note(&self, snapshot: Snapshot, unasked: Option<Digest>, meta: &Meta) -> Snapshot {
        if !meta.implied.is_empty() {
            let mut all = self.implied.lock().unwrap_or_else(PoisonError::into_inner);
            all.insert(snapshot.id.clone(), meta.implied.clone());
        }
        let found = Found { snapshot: snapshot.clone(), unasked, sharing: meta.sharing };
        self.found().insert(snapshot.id.clone(), found);
        snapshot
    }

    pub(super) fn found(&self) -> MutexGuard<'_, HashMap<SnapshotId, Found>> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn get(&self, id: &SnapshotId) -> Result<Option<Snapshot>, SnapshotError> {
        if let Some(found) = self.found().get(id) {
            return Ok(Some(found.snapshot.clone()));
        }
        self.session.hold(id.as_str())?;
        let Some(file) = self.open_meta(id)? else { return Ok(None) };
        let meta = match self.read_meta(file)? {
            Some(meta) if *meta.boot == *self.boot => Some(meta),
            // In an earlier boot; or its files were looked at and are well.
            Some(meta) => self.survived(id, &meta)?,
            None => None,
        };
        let Some(meta) = meta else {
            tracing::warn!(snapshot = %id, "dropped a damaged snapshot");
            self.take_away(id)?;
            return Ok(None);
        };
        let snapshot = Snapshot { id: id.clone(), content: meta.content, size: meta.size };
        Ok(Some(self.note(snapshot, Some(meta.stamp), &meta)))
    }

    /// The `meta` of `id`, if there is one. A folder without is what a power loss left, and goes.
    fn open_meta(&self, id: &SnapshotId) -> Result<Option<fs_err::File>, SnapshotError> {
        let folder = self.folder.join(id.as_str());
        let open = || missing_is_none(fs_err::File::open(folder.join("meta")));
        let meta = open()?;
        if meta.is_some() || missing_is_none(fs_err::symlink_metadata(&folder))?.is_none() {
            return Ok(meta);
        }
        // Somebody may have committed it since: what they move here has its `meta`.
        let meta = open()?;
        if meta.is_none() {
            self.take_away(id)?;
        }
        Ok(meta)
    }

    /// What `file` says, if it is whole. Notes that the snapshot is used.
    fn read_meta(&self, mut file: fs_err::File) -> Result<Option<Meta>, SnapshotError> {
        let last_used = Metadata::of(file.file())?.modified.seconds;
        if (last_used - self.session.begun()).abs() >= LAST_USED_PRECISION {
            // In a store that cannot be written to, nothing is removed either.
            let _ = metadata::touch(file.file());
        }
        let mut bytes = Vec::new();
        io::Read::read_to_end(&mut file, &mut bytes)?;
        Ok(Meta::parse(&bytes))
    }

    /// Compares the tree of `id` with its digest. If it agrees, this and what the files look like is
    /// noted for the rest of this boot.
    fn survived(&self, id: &SnapshotId, meta: &Meta) -> Result<Option<Meta>, SnapshotError> {
        let found = content::of_folder(&self.folder(id), &Known::default())?;
        if found.digest != meta.content || found.size != meta.size {
            return Ok(None);
        }
        let (implied, sharing) = (meta.implied.clone(), meta.sharing);
        let noted = Meta { implied, sharing, ..Meta::new(&found, &self.boot) };
        let aside = self.session.unused_path();
        noted.write(&aside)?;
        fs_err::rename(&aside, self.folder.join(id.as_str()).join("meta"))?;
        Ok(Some(noted))
    }

    pub(super) fn ensure_whole(&self, id: &SnapshotId) -> Result<(), SnapshotError> {
        let unasked = self.found().get(id).and_then(|found| found.unasked);
        let Some(stamp) = unasked else { return Ok(()) };
        let looks_well = match content::stamp(&self.folder(id)) {
            Ok(found) => found == stamp,
            Err(e) if e.kind() == io::ErrorKind::NotFound => false,
            Err(e) => return Err(e.into()),
        };
        if !looks_well && !self.is_as_committed(id)? {
            tracing::warn!(snapshot = %id, "dropped a damaged snapshot");
            self.found().remove(id);
            self.take_away(id)?;
            self.damaged.store(true, Ordering::Relaxed);
            return Err(SnapshotError::Damaged(id.clone()));
        }
        if let Some(found) = self.found().get_mut(id) {
            found.unasked = None;
        }
        Ok(())
    }

    /// Whether the tree of `id` agrees with its digest.
    fn is_as_committed(&self, id: &SnapshotId) -> Result<bool, SnapshotError> {
        let bytes = match fs_err::read(self.folder.join(id.as_str()).join("meta")) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
            read => read?,
        };
        match Meta::parse(&bytes) {
            Some(meta) => match self.survived(id, &meta) {
                Err(SnapshotError::Io(e)) if e.kind() == io::ErrorKind::NotFound => Ok(false),
                survived => Ok(survived?.is_some()),
            },
            None => Ok(false),
        }
    }

    /// Where the tree of `id` is, whether or not it is there.
    pub fn folder(&self, id: &SnapshotId) -> PathBuf {
        self.folder.join(id.as_str()).join("fs")
    }

    pub(super) fn lower(&self, ids: &[SnapshotId]) -> Result<Vec<PathBuf>, SnapshotError> {
        self.whole(&self.visible(ids)?)
    }

    /// Those of `ids` that are not below one whose root is opaque.
    pub(super) fn visible(&self, ids: &[SnapshotId]) -> Result<Vec<SnapshotId>, SnapshotError> {
        let mut visible = Vec::with_capacity(ids.len());
        for id in ids {
            self.get(id)?.ok_or_else(|| SnapshotError::Missing(id.clone()))?;
            if self.is_opaque(id, &self.folder(id))? {
                visible.clear();
            }
            visible.push(id.clone());
        }
        Ok(visible)
    }

    /// The folders of `ids`, each looked at.
    pub(super) fn whole(&self, ids: &[SnapshotId]) -> Result<Vec<PathBuf>, SnapshotError> {
        ids.iter().map(|id| self.ensure_whole(id).map(|()| self.folder(id))).collect()
    }

    pub(super) fn implied(&self, id: &SnapshotId) -> Result<Vec<PathBuf>, SnapshotError> {
        self.get(id)?;
        let implied = self.implied.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(implied.get(id).cloned().unwrap_or_default())
    }

    /// Asked once for each snapshot: a build asks for each step about all the steps before.
    fn is_opaque(&self, id: &SnapshotId, folder: &Path) -> Result<bool, SnapshotError> {
        let mut opaque = self.opaque.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = opaque.get(id) {
            return Ok(*known);
        }
        let is_opaque = whiteout::is_opaque(folder)?;
        opaque.insert(id.clone(), is_opaque);
        Ok(is_opaque)
    }

    pub(super) fn remove(&self, id: &SnapshotId) -> Result<bool, SnapshotError> {
        let aside = self.session.alone(|held| {
            if held.contains(id.as_str()) && self.folder.join(id.as_str()).exists() {
                return Ok::<_, io::Error>(None);
            }
            self.move_aside(id).map(Some)
        })?;
        match aside {
            None => Ok(false),
            Some(None) => Ok(true),
            Some(Some(aside)) => Ok(remove_tree(&aside).map(|()| true)?),
        }
    }

    /// Moves a snapshot that nobody holds out of the way, to where the caller removes it; `None` when
    /// there is none. To be called in [`Session::alone`].
    pub(crate) fn move_aside(&self, id: &SnapshotId) -> io::Result<Option<PathBuf>> {
        let aside = self.session.unused_path();
        match fs_err::rename(self.folder.join(id.as_str()), &aside) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            done => done.map(|()| Some(aside)),
        }
    }

    /// Removes a damaged snapshot, whoever holds it.
    pub(super) fn take_away(&self, id: &SnapshotId) -> Result<(), SnapshotError> {
        let aside = self.session.unused_path();
        match fs_err::rename(self.folder.join(id.as_str()), &aside) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            done => Ok(done.and_then(|()| remove_tree(&aside))?),
        }
    }

    pub(super) fn list(&self) -> Result<Vec<SnapshotId>, SnapshotError> {
        let mut ids = Vec::new();
        for entry in fs_err::read_dir(&self.folder)? {
            ids.extend(entry?.file_name().to_str().and_then(|name| name.parse().ok()));
        }
        ids.sort_unstable();
        Ok(ids)
    }
}

fn is_there(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::AlreadyExists)
}

fn missing_is_none<T>(found: io::Result<T>) -> io::Result<Option<T>> {
    match found {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        found => found.map(Some),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::StateFolder;

    /// A snapshot of a file `a`, in a state folder that nobody has open.
    fn at_rest() -> (tempfile::TempDir, SnapshotId) {
        let top = tempfile::tempdir().unwrap();
        let state = StateFolder::open(top.path()).unwrap();
        let draft = state.snapshots().draft().unwrap();
        fs_err::write(draft.folder().join("a"), "text").unwrap();
        let id = SnapshotId::random();
        state.snapshots().commit(&id, draft).unwrap();
        (top, id)
    }

    #[test]
    fn a_snapshot_of_an_earlier_boot_is_compared_with_its_digest() {
        let check = |damage: &dyn Fn(&Path), is_whole: bool| {
            let (top, id) = at_rest();
            let folder = top.path().join("snapshots").join(id.as_str());
            let mut meta = Meta::parse(&fs_err::read(folder.join("meta")).unwrap()).unwrap();
            meta.boot = "an earlier one".into();
            meta.write(&folder.join("meta")).unwrap();
            damage(&folder);
            let state = StateFolder::open(top.path()).unwrap();
            assert_eq!(state.snapshots().get(&id).unwrap().is_some(), is_whole);
            assert_eq!(folder.exists(), is_whole);
            if is_whole {
                // In this boot it is not read again.
                drop(state);
                let state = StateFolder::open(top.path()).unwrap();
                assert!(state.snapshots().get(&id).unwrap().is_some());
                state.snapshots().ensure_whole(&id).unwrap();
            }
        };
        check(&|_| {}, true);
        check(&|folder| fs_err::write(folder.join("fs/a"), "").unwrap(), false);
        check(&|folder| fs_err::remove_file(folder.join("fs/a")).unwrap(), false);
        check(&|folder| fs_err::write(folder.join("meta"), "").unwrap(), false);
        check(&|folder| fs_err::remove_file(folder.join("meta")).unwrap(), false);
    }

    #[test]
    fn looking_for_what_is_just_committed_does_it_no_harm() {
        let top = tempfile::tempdir().unwrap();
        let [ours, theirs] = [(); 2].map(|()| StateFolder::open(top.path()).unwrap());
        for _ in 0..300 {
            let (id, draft) = (SnapshotId::random(), ours.snapshots().draft().unwrap());
            let done = AtomicBool::new(false);
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    while !done.load(Ordering::Relaxed) {
                        theirs.snapshots().get(&id).unwrap();
                    }
                });
                ours.snapshots().commit(&id, draft).unwrap();
                done.store(true, Ordering::Relaxed);
            });
            assert!(ours.snapshots().folder(&id).exists());
        }
    }

    #[test]
    fn a_snapshot_that_somebody_wrote_to_is_not_used() {
        let check = |damage: &dyn Fn(&Path), is_whole: bool| {
            let (top, id) = at_rest();
            std::thread::sleep(std::time::Duration::from_millis(10));
            damage(&top.path().join("snapshots").join(id.as_str()).join("fs"));
            for round in ["first", "second"] {
                let state = StateFolder::open(top.path()).unwrap();
                let Some(_) = state.snapshots().get(&id).unwrap() else {
                    assert!(!is_whole && round == "second");
                    continue;
                };
                let lower = state.snapshots().lower(std::slice::from_ref(&id));
                assert_eq!(lower.is_ok(), is_whole);
                assert!(is_whole || matches!(lower, Err(SnapshotError::Damaged(_))), "{lower:?}");
            }
        };
        check(&|_| {}, true);
        check(&|fs| fs_err::write(fs.join("a"), "texT").unwrap(), false);
        check(&|fs| fs_err::write(fs.join("a"), "").unwrap(), false);
        check(&|fs| fs_err::write(fs.join("b"), "").unwrap(), false);
        check(&|fs| fs_err::remove_file(fs.join("a")).unwrap(), false);
        // The same bytes again, at another time: that is well.
        check(&|fs| fs_err::write(fs.join("a"), "text").unwrap(), true);
    }
}
