//! Compares everything in a state folder with what it should be, and removes what is damaged, so that
//! it is made again.
//!
//! Blobs are hashed, trees compared with their digests, files that end in their own digest with
//! that, the index by SQLite's check, and the list of images is read; at last it is asked whether
//! images that have names are whole. What cache mounts hold nobody vouches for. Builds may go on
//! meanwhile: what they remove or make anew is passed over.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicU64, Ordering};

use rayon::prelude::*;

use crate::checksum::FileMemo;
use crate::digest::Digest;
use crate::index::IndexError;
use crate::layer::content::{self, Known};
use crate::layout::LayoutError;
use crate::sighting::Sighting;
use crate::snapshot::{Meta, SnapshotError, SnapshotId};
use crate::state::StateFolder;
use crate::store::StoreError;
use crate::usage::{NamedParts, UsageError};

/// Something that is not what it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// What: `blob sha256:…`.
    pub what: String,
    /// What is wrong with it.
    pub why: String,
    /// It was removed, and is made again when it is needed. What cannot be read stays.
    pub repaired: bool,
}

/// What was found.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// How many entries were compared.
    pub checked: u64,
    /// How many bytes were read.
    pub bytes: u64,
    /// What is damaged, sorted.
    pub damage: Vec<Damage>,
    /// Names of images that lack blobs: building or pulling them makes them whole.
    pub incomplete: Vec<String>,
}

/// Says why a state folder could not be checked.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// The blobs could not be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The trees could not be read.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// The index could not be asked.
    #[error(transparent)]
    Index(#[from] IndexError),
    /// The list of images could not be read.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// It could not be told what images consist of.
    #[error(transparent)]
    Usage(#[from] UsageError),
    /// The disk failed.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// What to do about damage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Remedy {
    /// Nothing.
    Tell,
    /// Remove it.
    Remove,
}

/// Compares all of `state`, on all cores. `progress` is told, from any thread, how many entries of
/// how many are done and how many bytes were read.
pub fn verify(
    state: &StateFolder,
    remedy: Remedy,
    progress: &(dyn Fn(u64, u64, u64) + Sync),
) -> Result<Report, VerifyError> {
    let blobs = state.blobs().list()?;
    let snapshots = state.snapshots().list()?;
    let contexts = files_in(&state.root().join("context"))?;
    let check = Check {
        state,
        remedy,
        done: AtomicU64::new(0),
        bytes: AtomicU64::new(0),
        all: (blobs.len() + snapshots.len() + contexts.len()) as u64 + 2,
        progress,
        damage: Mutex::default(),
    };
    check.index()?;
    check.images()?;
    blobs.par_iter().try_for_each(|(digest, _)| check.blob(digest))?;
    snapshots.par_iter().try_for_each(|id| check.snapshot(id))?;
    contexts.par_iter().try_for_each(|name| check.context(name))?;
    let mut damage = check.damage.into_inner().unwrap_or_else(PoisonError::into_inner);
    damage.sort_by(|a, b| a.what.cmp(&b.what));
    let damaged = |digest: &Digest| damage.iter().any(|one| one.what == blob_name(digest));
    // Of a list that cannot be read it is not known what it names.
    let named = match state.layout().check()? {
        None => NamedParts::of(state)?.blobs,
        Some(_) => BTreeMap::new(),
    };
    let mut incomplete: Vec<String> = named
        .into_iter()
        .filter(|(digest, _)| damaged(digest) || !state.blobs().path(digest).is_file())
        .map(|(_, name)| name)
        .collect();
    incomplete.sort_unstable();
    incomplete.dedup();
    Ok(Report { checked: check.all, bytes: check.bytes.into_inner(), damage, incomplete })
}

struct Check<'a> {
    state: &'a StateFolder,
    remedy: Remedy,
    done: AtomicU64,
    bytes: AtomicU64,
    all: u64,
    progress: &'a (dyn Fn(u64, u64, u64) + Sync),
    damage: Mutex<Vec<Damage>>,
}

impl Check<'_> {
    /// Notes that one more entry is done, and what is wrong with it; `repair` removes it.
    fn note(
        &self,
        what: String,
        bytes: u64,
        wrong: Option<String>,
        repair: impl FnOnce() -> Result<(), VerifyError>,
    ) -> Result<(), VerifyError> {
        self.count(bytes);
        let Some(why) = wrong else { return Ok(()) };
        let repaired = self.remedy == Remedy::Remove;
        if repaired {
            repair()?;
        }
        self.tell(what, why, repaired);
        Ok(())
    }

    /// One more entry is done.
    fn count(&self, bytes: u64) {
        let bytes = self.bytes.fetch_add(bytes, Ordering::Relaxed) + bytes;
        (self.progress)(self.done.fetch_add(1, Ordering::Relaxed) + 1, self.all, bytes);
    }

    fn tell(&self, what: String, why: String, repaired: bool) {
        let mut damage = self.damage.lock().unwrap_or_else(PoisonError::into_inner);
        damage.push(Damage { what, why, repaired });
    }

    fn index(&self) -> Result<(), VerifyError> {
        let lines = self.state.index().check()?;
        let wrong = (!lines.is_empty()).then(|| lines.join("; "));
        self.note("the index".into(), 0, wrong, || Ok(self.state.index().start_afresh()?))
    }

    fn images(&self) -> Result<(), VerifyError> {
        let layout = self.state.layout();
        let wrong = layout.check()?;
        self.note("the list of images".into(), 0, wrong, || Ok(layout.start_afresh()?))
    }

    /// Compares the entry at `path`: `look` says how many bytes it read and what is wrong, `repair`
    /// removes it. What others remove or replace meanwhile is passed over. What cannot be read is told
    /// of and stays: the reason may pass.
    fn entry(
        &self,
        what: String,
        path: &Path,
        look: impl FnOnce(&Sighting) -> io::Result<(u64, Option<String>)>,
        repair: impl FnOnce(&Sighting) -> Result<(), VerifyError>,
    ) -> Result<(), VerifyError> {
        let Some(seen) = Sighting::at(path)? else {
            return self.note(what, 0, None, || Ok(()));
        };
        let (bytes, mut wrong) = match look(&seen) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => (0, Some(e.to_string())),
            Err(e) => {
                self.count(0);
                self.tell(what, e.to_string(), false);
                return Ok(());
            }
            Ok(found) => found,
        };
        if wrong.is_some() && !seen.is_at(path)? {
            wrong = None;
        }
        self.note(what, bytes, wrong, || repair(&seen))
    }

    fn blob(&self, digest: &Digest) -> Result<(), VerifyError> {
        let path = self.state.blobs().path(digest);
        let look = |_: &Sighting| {
            if !fs_err::symlink_metadata(&path)?.is_file() {
                return Ok((0, Some("it is not a plain file".to_owned())));
            }
            let (found, size) = Digest::of_stream(fs_err::File::open(&path)?)?;
            Ok((size, (found != *digest).then(|| format!("its bytes have digest `{found}`"))))
        };
        self.entry(blob_name(digest), &path, look, |seen| self.take_away(&path, seen))
    }

    /// Its record stays: who makes it again is told why it has to be made.
    fn snapshot(&self, id: &SnapshotId) -> Result<(), VerifyError> {
        let top = self.state.root().join("snapshots").join(id.as_str());
        let look = |seen: &Sighting| wrong_with_snapshot(&top, seen);
        self.entry(format!("snapshot {id}"), &top, look, |seen| {
            Ok(self.state.snapshots().discard(id, seen)?)
        })
    }

    /// Forms of earlier versions count as damaged: nobody reads them any more.
    fn context(&self, name: &str) -> Result<(), VerifyError> {
        let path = self.state.root().join("context").join(name);
        let look = |_: &Sighting| {
            let bytes = fs_err::read(&path)?;
            let is_whole = bytes.is_empty() || FileMemo::is_whole(&bytes);
            let wrong = (!is_whole).then(|| "it does not end in its own digest".to_owned());
            Ok((bytes.len() as u64, wrong))
        };
        let what = format!("what is known of context {name}");
        self.entry(what, &path, look, |seen| self.take_away(&path, seen))
    }

    fn take_away(&self, path: &Path, seen: &Sighting) -> Result<(), VerifyError> {
        self.state.session().take_away(path, seen)?;
        Ok(())
    }
}

fn blob_name(digest: &Digest) -> String {
    format!("blob {digest}")
}

fn wrong_with_snapshot(top: &Path, seen: &Sighting) -> io::Result<(u64, Option<String>)> {
    let Some(meta) = Meta::read(seen)? else {
        return Ok((0, Some("its `meta` is missing or not as it was written".into())));
    };
    let found = content::of_folder(&top.join("fs"), &Known::default())?;
    let wrong = if found.digest != meta.content {
        Some(format!("its files have digest `{}` instead of `{}`", found.digest, meta.content))
    } else if found.size != meta.size {
        Some(format!("its files have {} bytes instead of {}", found.size, meta.size))
    } else {
        None
    };
    Ok((found.size, wrong))
}

/// The names of the files in a folder; none when there is no such folder.
fn files_in(folder: &Path) -> io::Result<Vec<String>> {
    let entries = match fs_err::read_dir(folder) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_file() {
            names.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn damage_is_found_and_repaired() {
        let top = tempfile::tempdir().unwrap();
        let state = StateFolder::open(top.path()).unwrap();
        let draft = state.snapshots().draft().unwrap();
        fs_err::write(draft.folder().join("file"), "text").unwrap();
        let id = state.snapshots().commit(&SnapshotId::random(), draft).unwrap().id;
        let blob = state.blobs().put(b"blob").unwrap();
        fs_err::create_dir(top.path().join("context")).unwrap();
        let known = top.path().join("context/known");
        fs_err::write(&known, FileMemo::file_of_none()).unwrap();
        let found = |remedy| {
            let report = verify(&state, remedy, &|_, _, _| {}).unwrap();
            assert_eq!(report.checked, 5);
            report.damage.into_iter().map(|damage| damage.what).collect::<Vec<_>>()
        };
        assert_eq!(found(Remedy::Tell), Vec::<String>::new());
        // The time of the last writing stays: only reading tells.
        let file = state.snapshots().folder(&id).join("file");
        let time = fs_err::metadata(&file).unwrap().modified().unwrap();
        fs_err::write(&file, "Text").unwrap();
        fs_err::File::options().write(true).open(&file).unwrap().set_modified(time).unwrap();
        fs_err::write(state.blobs().path(&blob), "blub").unwrap();
        fs_err::write(&known, "short").unwrap();
        fs_err::write(top.path().join("index.json"), "{").unwrap();
        let list = "the list of images".to_owned();
        let known = "what is known of context known".to_owned();
        let expected = [blob_name(&blob), format!("snapshot {id}"), list, known];
        assert_eq!(found(Remedy::Tell), expected);
        assert_eq!(found(Remedy::Remove), expected);
        let report = verify(&state, Remedy::Tell, &|_, _, _| {}).unwrap();
        assert_eq!((report.checked, report.damage), (2, Vec::new()));
        assert_eq!(state.layout().images().unwrap(), BTreeMap::new());
        assert_eq!(state.snapshots().get(&id).unwrap(), None);
    }

    #[test]
    fn what_cannot_be_read_does_not_keep_the_rest_from_being_repaired() {
        let top = tempfile::tempdir().unwrap();
        let state = StateFolder::open(top.path()).unwrap();
        let [unreadable, damaged] = ["one", "two"].map(|name| {
            let draft = state.snapshots().draft().unwrap();
            fs_err::write(draft.folder().join(name), "text").unwrap();
            state.snapshots().commit(&SnapshotId::random(), draft).unwrap().id
        });
        let meta = |id: &SnapshotId| top.path().join("snapshots").join(id.as_str()).join("meta");
        fs_err::remove_file(meta(&unreadable)).unwrap();
        fs_err::create_dir(meta(&unreadable)).unwrap();
        fs_err::write(meta(&damaged), "").unwrap();
        let mut repaired: Vec<(String, bool)> = verify(&state, Remedy::Remove, &|_, _, _| {})
            .unwrap()
            .damage
            .into_iter()
            .map(|damage| (damage.what, damage.repaired))
            .collect();
        repaired.sort_by_key(|(_, repaired)| *repaired);
        let name = |id: &SnapshotId| format!("snapshot {id}");
        assert_eq!(repaired, [(name(&unreadable), false), (name(&damaged), true)]);
        assert_eq!(state.snapshots().list().unwrap(), [unreadable]);
    }

    /// Builds mend what they find damaged, also between the finding and the removing.
    #[test]
    fn what_was_mended_meanwhile_stays() {
        let top = tempfile::tempdir().unwrap();
        let ours = StateFolder::open(top.path()).unwrap();
        let draft = ours.snapshots().draft().unwrap();
        let id = ours.snapshots().commit(&SnapshotId::random(), draft).unwrap().id;
        let blob = ours.blobs().put(b"blob").unwrap();
        let damage_blob = || fs_err::write(ours.blobs().path(&blob), "blub").unwrap();
        fs_err::write(top.path().join("snapshots").join(id.as_str()).join("meta"), "").unwrap();
        let theirs = StateFolder::open(top.path()).unwrap();
        let mend = |_, _, _| {
            if theirs.snapshots().get(&id).unwrap().is_none() {
                theirs.snapshots().commit(&id, theirs.snapshots().draft().unwrap()).unwrap();
            }
            let mut writer = theirs.blobs().writer().unwrap();
            writer.write_all(b"blob").unwrap();
            writer.commit(None).unwrap();
        };
        let check = Check {
            state: &ours,
            remedy: Remedy::Remove,
            done: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            all: 2,
            progress: &mend,
            damage: Mutex::default(),
        };
        check.snapshot(&id).unwrap();
        damage_blob();
        check.blob(&blob).unwrap();
        assert_eq!(check.damage.lock().unwrap().len(), 2);
        assert_eq!(fs_err::read(ours.blobs().path(&blob)).unwrap(), b"blob");
        assert!(ours.snapshots().get(&id).unwrap().is_some());
        let report = verify(&ours, Remedy::Tell, &|_, _, _| {}).unwrap();
        assert_eq!(report.damage, Vec::new());
    }
}
