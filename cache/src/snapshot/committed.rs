//! The committed snapshots of a state folder, and whether they are still what they were.

use std::collections::HashMap;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::fs::CWD;
use rustix::io::Errno;

use super::meta::Meta;
use super::{Draft, Snapshot, SnapshotError, SnapshotId};
use crate::digest::Digest;
use crate::layer::content::{self, Content, Known};
use crate::layer::entries::{Entry, entries, entries_but};
use crate::layer::whiteout::at;
use crate::layer::{opaque, whiteout};
use crate::metadata::{self, Metadata};
use crate::session::{Session, Temporary, random_name};
use crate::sighting::Sighting;

/// A snapshot's last use is noted when it was longer ago, in seconds.
const LAST_USED_PRECISION: i64 = 60;

/// Most `meta` have fewer bytes than these.
const META_USUAL: usize = 1024;

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
    damaged: Arc<AtomicBool>,
    /// Whether the roots of snapshots hide everything below.
    opaque: Arc<Mutex<HashMap<SnapshotId, bool>>>,
}

#[derive(Clone, Debug)]
pub(super) struct Found {
    snapshot: Snapshot,
    /// What its files looked like when they were written.
    stamp: Digest,
    /// Whether they still do was asked, or this process made them.
    asked: Asked,
    /// Its files may be linked into others.
    pub(super) sharing: bool,
}

/// Whether a snapshot's files look as they did was asked, or need not be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asked {
    Yes,
    No,
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
        if let Some(theirs) = self.put(id, temporary)? {
            return Ok(theirs);
        }
        let Content { digest, size, .. } = found;
        let snapshot = Snapshot { id: id.clone(), content: digest, size };
        Ok(self.note(snapshot, Asked::Yes, &meta))
    }

    /// Puts `ours` in its place. What somebody else committed under the same name stays there and is
    /// returned, unless it is damaged.
    fn put(&self, id: &SnapshotId, mut ours: Temporary) -> Result<Option<Snapshot>, SnapshotError> {
        let place = self.place(id);
        loop {
            match self.session.hold_with(id.as_str(), || ours.rename(&place))? {
                Ok(()) => return Ok(None),
                Err((e, kept)) if is_there(&e) => ours = kept,
                Err((e, _)) => return Err(e.into()),
            }
            if let Some(theirs) = self.get(id)? {
                return Ok(Some(theirs));
            }
        }
    }

    fn note(&self, snapshot: Snapshot, asked: Asked, meta: &Meta) -> Snapshot {
        if !meta.implied.is_empty() {
            let mut all = self.implied.lock().unwrap_or_else(PoisonError::into_inner);
            all.insert(snapshot.id.clone(), meta.implied.clone());
        }
        let Meta { stamp, sharing, .. } = *meta;
        let found = Found { snapshot: snapshot.clone(), stamp, asked, sharing };
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
        let meta = match self.meta_of_this_boot(id)? {
            Some(meta) => Some(meta),
            None => self.meta_of_survivor(id)?,
        };
        let Some(meta) = meta else { return Ok(None) };
        let snapshot = Snapshot { id: id.clone(), content: meta.content, size: meta.size };
        Ok(Some(self.note(snapshot, Asked::No, &meta)))
    }

    /// What `meta` of `id` says, if it is whole and was written in this boot. Notes that the snapshot is
    /// used.
    fn meta_of_this_boot(&self, id: &SnapshotId) -> Result<Option<Meta>, SnapshotError> {
        let file = fs_err::File::open(self.place(id).join("meta"));
        let Some(mut file) = missing_is_none(file)? else { return Ok(None) };
        let last_used = Metadata::of(file.file())?.modified.seconds;
        if (last_used - self.session.begun()).abs() >= LAST_USED_PRECISION {
            // In a store that cannot be written to, nothing is removed either.
            let _ = metadata::touch(file.file());
        }
        // Most are read whole at once then, which is asked for each step of a build.
        let mut bytes = Vec::with_capacity(META_USUAL);
        file.read_to_end(&mut bytes)?;
        Ok(Meta::parse(&bytes).filter(|meta| *meta.boot == *self.boot))
    }

    /// The same of a snapshot of an earlier boot whose tree agrees with its digest. One that does not,
    /// or has no `meta`, which a power loss does, is taken away.
    fn meta_of_survivor(&self, id: &SnapshotId) -> Result<Option<Meta>, SnapshotError> {
        while let Some(seen) = Sighting::at(&self.place(id))? {
            if let Some(meta) = self.survived(id, &seen)? {
                return Ok(Some(meta));
            }
            self.take_away(id, &seen)?;
        }
        Ok(None)
    }

    /// Compares the tree of `id`, which was `seen`, with its digest. If it agrees, this and what the
    /// files look like is noted for the rest of this boot.
    fn survived(&self, id: &SnapshotId, seen: &Sighting) -> Result<Option<Meta>, SnapshotError> {
        let Some(meta) = Meta::read(seen)? else { return Ok(None) };
        let found = missing_is_none(content::of_folder(&self.folder(id), &Known::default()))?;
        let Some(found) = found else { return Ok(None) };
        if found.digest != meta.content || found.size != meta.size {
            return Ok(None);
        }
        let (implied, sharing) = (meta.implied.clone(), meta.sharing);
        let noted = Meta { implied, sharing, ..Meta::new(&found, &self.boot) };
        let aside = self.session.unused_path();
        noted.write(&aside)?;
        // Not by its path: what somebody put there meanwhile has a `meta` of its own.
        match rustix::fs::renameat(CWD, &aside, seen.folder(), "meta") {
            Ok(()) => Ok(Some(noted)),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(at(&self.place(id), error).into()),
        }
    }

    pub(super) fn ensure_whole(&self, id: &SnapshotId) -> Result<(), SnapshotError> {
        let stamp = match self.found().get(id) {
            Some(found) if found.asked == Asked::No => found.stamp,
            Some(_) | None => return Ok(()),
        };
        let looks_well = match content::stamp(&self.folder(id)) {
            Ok(found) => found == stamp,
            Err(e) if e.kind() == io::ErrorKind::NotFound => false,
            Err(e) => return Err(e.into()),
        };
        if !looks_well && !self.is_as_committed(id)? {
            self.found().remove(id);
            self.damaged.store(true, Ordering::Relaxed);
            return Err(SnapshotError::Damaged(id.clone()));
        }
        if let Some(found) = self.found().get_mut(id) {
            found.asked = Asked::Yes;
        }
        Ok(())
    }

    /// Whether the tree of `id` agrees with its digest; if not, it is taken away.
    fn is_as_committed(&self, id: &SnapshotId) -> Result<bool, SnapshotError> {
        let Some(seen) = Sighting::at(&self.place(id))? else { return Ok(false) };
        let is_well = self.survived(id, &seen)?.is_some();
        if !is_well {
            self.take_away(id, &seen)?;
        }
        Ok(is_well)
    }

    /// [`Snapshotter::found_damage`](super::Snapshotter::found_damage)
    pub(super) fn found_damage(&self) -> bool {
        let is_there = |id: &SnapshotId, found: &mut Found| {
            let meta = fs_err::read(self.place(id).join("meta")).ok();
            let meta = meta.as_deref().and_then(Meta::parse);
            meta.is_some_and(|meta| meta.stamp == found.stamp)
        };
        let mut found = self.found();
        let before = found.len();
        found.retain(is_there);
        self.damaged.swap(false, Ordering::Relaxed) || found.len() < before
    }

    /// Where `id` is, whether or not it is there.
    fn place(&self, id: &SnapshotId) -> PathBuf {
        self.folder.join(id.as_str())
    }

    /// Where the tree of `id` is, whether or not it is there.
    pub fn folder(&self, id: &SnapshotId) -> PathBuf {
        self.place(id).join("fs")
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

    /// Moves a snapshot that nobody holds out of the way, to where the caller removes it; `None` when
    /// there is none. To be called in [`Session::alone`].
    pub(crate) fn move_aside(&self, id: &SnapshotId) -> io::Result<Option<PathBuf>> {
        let aside = self.session.unused_path();
        match fs_err::rename(self.place(id), &aside) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            done => done.map(|()| Some(aside)),
        }
    }

    /// Removes a damaged snapshot, whoever holds it. What was `seen` is damaged: what somebody else has
    /// committed in its place since stays.
    pub(super) fn take_away(&self, id: &SnapshotId, seen: &Sighting) -> Result<(), SnapshotError> {
        if self.session.take_away(&self.place(id), seen)? {
            tracing::warn!(snapshot = %id, "dropped a damaged snapshot");
        }
        Ok(())
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
    use io::ErrorKind::{AlreadyExists, DirectoryNotEmpty, NotADirectory};
    matches!(error.kind(), DirectoryNotEmpty | AlreadyExists | NotADirectory)
}

/// What has a file above it is as little there.
fn missing_is_none<T>(found: io::Result<T>) -> io::Result<Option<T>> {
    match found {
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            Ok(None)
        }
        found => found.map(Some),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::Snapshotter;
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
    fn what_was_committed_in_the_place_of_a_damaged_one_stays() {
        let (top, id) = at_rest();
        let [ours, theirs] = [(); 2].map(|()| StateFolder::open(top.path()).unwrap());
        let place = top.path().join("snapshots").join(id.as_str());
        fs_err::write(place.join("meta"), "").unwrap();
        let seen = Sighting::at(&place).unwrap().unwrap();
        assert_eq!(theirs.snapshots().get(&id).unwrap(), None);
        let anew = theirs.snapshots().commit(&id, theirs.snapshots().draft().unwrap()).unwrap();
        ours.snapshots().discard(&id, &seen).unwrap();
        assert_eq!(ours.snapshots().get(&id).unwrap(), Some(anew));
        assert!(place.join("fs").is_dir());
    }

    #[test]
    fn what_another_took_away_is_noticed() {
        let (top, id) = at_rest();
        let [ours, theirs] = [(); 2].map(|()| StateFolder::open(top.path()).unwrap());
        let (ours, theirs) = (ours.snapshots(), theirs.snapshots());
        let take_away = || {
            let seen = Sighting::at(&top.path().join("snapshots").join(id.as_str())).unwrap();
            theirs.discard(&id, &seen.unwrap()).unwrap();
        };
        let commit = |snapshots: &dyn Snapshotter| {
            let draft = snapshots.draft().unwrap();
            fs_err::write(draft.folder().join("a"), "text").unwrap();
            snapshots.commit(&id, draft).unwrap();
        };
        ours.lower(std::slice::from_ref(&id)).unwrap();
        assert!(!ours.found_damage());
        take_away();
        assert!(ours.found_damage() && !ours.found_damage());
        assert_eq!(ours.get(&id).unwrap(), None);
        commit(&**ours);
        assert!(!ours.found_damage());
        // What is there again is not what was mounted.
        take_away();
        commit(&**theirs);
        assert!(ours.found_damage() && !ours.found_damage());
        assert!(ours.get(&id).unwrap().is_some());
    }

    /// As two builds that need the same layer do.
    #[test]
    fn two_who_find_the_same_damage_leave_one_whole_snapshot() {
        let damages: [&(dyn Fn(&Path) + Sync); 3] = [
            &|place| fs_err::remove_file(place.join("meta")).unwrap(),
            &|place| fs_err::write(place.join("fs/a"), "damaged").unwrap(),
            &|place| fs_err::remove_dir_all(place.join("fs")).unwrap(),
        ];
        let top = tempfile::tempdir().unwrap();
        let fill = |state: &StateFolder, id: &SnapshotId| {
            let draft = state.snapshots().draft().unwrap();
            fs_err::write(draft.folder().join("a"), "text").unwrap();
            state.snapshots().commit(id, draft).unwrap();
        };
        for round in 0..40 {
            let id = SnapshotId::random();
            fill(&StateFolder::open(top.path()).unwrap(), &id);
            let place = top.path().join("snapshots").join(id.as_str());
            let mut meta = Meta::parse(&fs_err::read(place.join("meta")).unwrap()).unwrap();
            meta.boot = "an earlier one".into();
            meta.write(&place.join("meta")).unwrap();
            damages[round % damages.len()](&place);
            let start = std::sync::Barrier::new(2);
            let build = || {
                let state = StateFolder::open(top.path()).unwrap();
                let snapshots = state.snapshots();
                start.wait();
                if snapshots.get(&id).unwrap().is_none() {
                    fill(&state, &id);
                }
                // What it has by now nobody takes away.
                let lower = snapshots.lower(std::slice::from_ref(&id)).unwrap();
                assert_eq!(fs_err::read_to_string(lower[0].join("a")).unwrap(), "text");
            };
            std::thread::scope(|scope| {
                let both = [(); 2].map(|()| scope.spawn(build));
                for build in both {
                    build.join().unwrap();
                }
            });
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
