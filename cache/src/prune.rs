//! Removes what nobody needs from a state folder, while builds go on.
//!
//! Records first, then snapshots, then blobs: nothing that remains points at what is gone. An entry
//! that a running process holds stays. Whether one is held, and moving it aside, happens while
//! nobody can begin to hold anything ([`Session::alone`](crate::session::Session::alone)); whoever
//! holds it afterwards looks for it afterwards, and finds it gone. What names of images lead to is
//! looked up in that same moment, since a process names its image before it ends.

use std::collections::{BTreeSet, HashSet};
use std::io;
use std::path::PathBuf;

use crate::index::IndexError;
use crate::layer;
use crate::remove::remove_any;
use crate::snapshot::{SnapshotError, SnapshotId};
use crate::state::StateFolder;
use crate::store::hold_name;
use crate::usage::{Entry, EntryName, NamedParts, Usage, UsageError, mount_lock};

/// So many entries are moved aside while others wait.
const AT_ONCE: usize = 32;

/// Says why something could not be removed.
#[derive(Debug, thiserror::Error)]
pub enum PruneError {
    /// Its records are still there.
    #[error(transparent)]
    Index(#[from] IndexError),
    /// Its tree is still there.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// It cannot be told what there is.
    #[error(transparent)]
    Usage(#[from] UsageError),
    /// The disk failed.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// How much room the cache may take, in bytes (BuildKit's `calculateKeepBytes`, cache/manager.go).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Room {
    /// It takes at most so much.
    pub most: Option<u64>,
    /// So much of the disk stays free.
    pub free: Option<u64>,
    /// So much it keeps in any case.
    pub reserved: Option<u64>,
}

impl Room {
    /// How many bytes may be kept, of `total` that there are, with `free` on the disk; `None` when
    /// there is no limit.
    pub fn keep(&self, total: u64, free: u64) -> Option<u64> {
        if *self == Self::default() {
            return None;
        }
        let mut keep = self.most.unwrap_or(0);
        match self.free.map(|wanted| wanted.saturating_sub(free)) {
            Some(0) if self.most.is_none() => keep = total,
            Some(missing) if missing > 0 => {
                let fits = total.saturating_sub(missing);
                keep = self.most.map_or(fits, |most| most.min(fits));
            }
            _ => {}
        }
        Some(keep.max(self.reserved.unwrap_or(0)))
    }
}

/// Which entries of `usage` go, in the order in which they go, each with the bytes that it frees.
///
/// Asks `goes` for each entry, the longest unused first, with the bytes that are left if it stays.
/// What is in use stays whatever the answer is, and so do blobs of images that have names.
pub fn plan(usage: &Usage, mut goes: impl FnMut(&Entry, u64) -> bool) -> Vec<(&Entry, u64)> {
    let mut left = usage.total();
    let mut freeing = usage.freeing();
    let mut plan = Vec::new();
    for entry in &usage.entries {
        if !entry.in_use && !entry.is_needed() && goes(entry, left) {
            let freed = freeing.of(entry);
            left = left.saturating_sub(freed);
            plan.push((entry, freed));
        }
    }
    plan
}

/// Removes entries, and tells of each that is gone. Those that are in use by now stay, and so do
/// blobs of images that have names by now. `now` is in seconds since 1970.
pub fn remove(
    state: &StateFolder,
    entries: &[&Entry],
    now: i64,
    gone: &mut dyn FnMut(&Entry),
) -> Result<(), PruneError> {
    let order = |entry: &&&Entry| match entry.name {
        EntryName::Snapshot(_) => 0,
        EntryName::Blob(_) => 1,
        EntryName::Mount(_) => 2,
        EntryName::Context(_) => 3,
    };
    let mut entries: Vec<&Entry> = entries.to_vec();
    // Stable: within a kind, the order stays.
    entries.sort_by_key(|entry| order(&entry));
    forget_memos(state, &entries)?;
    for some in entries.chunks(AT_ONCE) {
        let aside = move_aside(state, some, now)?;
        for (entry, path) in some.iter().zip(aside) {
            let Some(path) = path else { continue };
            remove_any(&path)?;
            gone(entry);
        }
    }
    forget_gone(state, now)?;
    state.locks().sweep()?;
    Ok(())
}

/// Forgets results whose trees are gone: they were damaged, or somebody removed them by hand.
fn forget_gone(state: &StateFolder, now: i64) -> Result<(), PruneError> {
    let recorded = state.index().snapshots()?;
    // Listed afterwards: a result is recorded once its tree is there.
    let there: HashSet<SnapshotId> = state.snapshots().list()?.into_iter().collect();
    let gone: Vec<SnapshotId> = recorded.into_iter().filter(|id| !there.contains(id)).collect();
    Ok(state.index().prune(&gone, now)?)
}

/// What is remembered of layers and blobs is of no use without them.
fn forget_memos(state: &StateFolder, entries: &[&Entry]) -> Result<(), PruneError> {
    let (mut snapshots, mut blobs) = (BTreeSet::new(), Vec::new());
    for entry in entries {
        match &entry.name {
            EntryName::Snapshot(id) => _ = snapshots.insert(id),
            EntryName::Blob(digest) => blobs.push(digest),
            EntryName::Mount(_) | EntryName::Context(_) => {}
        }
    }
    layer::forget_exports(state, &snapshots)?;
    Ok(layer::forget_checked(state, &blobs)?)
}

/// Moves what nobody holds to where it can be removed without hurry: a path for each entry that is
/// gone from its place.
fn move_aside(
    state: &StateFolder,
    entries: &[&Entry],
    now: i64,
) -> Result<Vec<Option<PathBuf>>, PruneError> {
    let snapshots = state.snapshots().committed();
    state.session().alone(|held| {
        let free: Vec<SnapshotId> = entries
            .iter()
            .filter_map(|entry| match &entry.name {
                EntryName::Snapshot(id) if !held.contains(id.as_str()) => Some(id.clone()),
                _ => None,
            })
            .collect();
        state.index().prune(&free, now)?;
        let named = if entries.iter().any(|entry| matches!(entry.name, EntryName::Blob(_))) {
            NamedParts::of(state)?
        } else {
            NamedParts::default()
        };
        let mut aside = Vec::with_capacity(entries.len());
        for entry in entries {
            aside.push(match &entry.name {
                EntryName::Snapshot(id) if free.contains(id) => snapshots.move_aside(id)?,
                EntryName::Blob(digest)
                    if !held.contains(&hold_name(digest)) && !named.blobs.contains_key(digest) =>
                {
                    state.blobs().move_aside(digest)?
                }
                EntryName::Snapshot(_) | EntryName::Blob(_) => None,
                EntryName::Mount(folder) => move_mount(state, folder)?,
                EntryName::Context(file) => {
                    move_there(state, &state.root().join("context").join(file))?
                }
            });
        }
        Ok(aside)
    })
}

/// Cache mounts are locked by those who use them, each numbered folder by itself: all of them go, or
/// none.
fn move_mount(state: &StateFolder, folder: &str) -> io::Result<Option<PathBuf>> {
    let path = state.root().join("mounts").join(folder);
    let mut locked = Vec::new();
    let entries = match fs_err::read_dir(&path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        entries => entries?,
    };
    for entry in entries {
        let name = entry?.file_name();
        let Some(number) = name.to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        match state.locks().try_exclusive(&mount_lock(folder, number))? {
            Some(lock) => locked.push((lock, name)),
            None => return Ok(None),
        }
    }
    let aside = state.session().unused_path();
    fs_err::create_dir(&aside)?;
    for (_lock, name) in &locked {
        fs_err::rename(path.join(name), aside.join(name))?;
    }
    // A step may be about to make a new one in it.
    match fs_err::remove_dir(&path) {
        Err(e) if e.kind() != io::ErrorKind::DirectoryNotEmpty => Err(e),
        _ => Ok(Some(aside)),
    }
}

fn move_there(state: &StateFolder, path: &std::path::Path) -> io::Result<Option<PathBuf>> {
    let aside = state.session().unused_path();
    match fs_err::rename(path, &aside) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        done => done.map(|()| Some(aside)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::{CacheKey, Digest};
    use crate::index::CacheRecord;
    use crate::oci::{Descriptor, MediaType};

    #[test]
    fn how_much_is_kept() {
        let check = |room: (u64, u64, u64), total, free, expected: Option<u64>| {
            let some = |n: u64| (n > 0).then_some(n);
            let room = Room { most: some(room.0), free: some(room.1), reserved: some(room.2) };
            assert_eq!(room.keep(total, free), expected, "{room:?}");
        };
        check((0, 0, 0), 100, 10, None);
        check((50, 0, 0), 100, 10, Some(50));
        check((0, 20, 0), 100, 10, Some(90));
        check((0, 5, 0), 100, 10, Some(100));
        check((95, 20, 0), 100, 10, Some(90));
        check((50, 20, 0), 100, 10, Some(50));
        check((50, 200, 70), 100, 10, Some(70));
        check((0, 0, 30), 100, 10, Some(30));
    }

    fn step(state: &StateFolder, name: &str, size: usize) -> SnapshotId {
        let draft = state.snapshots().draft().unwrap();
        fs_err::write(draft.folder().join("file"), vec![1; size]).unwrap();
        let snapshot = state.snapshots().commit(&SnapshotId::random(), draft).unwrap();
        let record = CacheRecord {
            snapshot: snapshot.id.clone(),
            content: snapshot.content,
            description: name.to_owned(),
            evidence: serde_json::json!({"op": {"run": {}}}),
            created: 1,
        };
        state.index().insert(&[CacheKey(Digest::of(name))], &record).unwrap();
        snapshot.id
    }

    fn set_age(state: &StateFolder, id: &SnapshotId, last_used: i64) {
        let meta = state.root().join("snapshots").join(id.as_str()).join("meta");
        let time = crate::metadata::Timestamp::from_seconds(last_used);
        crate::metadata::set_modified(fs_err::File::open(meta).unwrap().file(), time).unwrap();
    }

    #[test]
    fn the_longest_unused_goes_first_and_what_is_held_stays() {
        let top = tempfile::tempdir().unwrap();
        let maker = StateFolder::open(top.path()).unwrap();
        let steps = ["a", "b", "c", "d"].map(|name| step(&maker, name, 100_000));
        let holder = StateFolder::open(top.path()).unwrap();
        holder.snapshots().get(&steps[0]).unwrap().unwrap();
        for (id, age) in steps.iter().zip([10, 40, 20, 30]) {
            set_age(&maker, id, age);
        }
        drop(maker);
        let state = StateFolder::open(top.path()).unwrap();
        let usage = Usage::of(&state).unwrap();
        let keep = usage.total() - 150_000;
        let planned = plan(&usage, |_, left| left > keep);
        let names: Vec<&str> =
            planned.iter().map(|(entry, _)| entry.description.as_str()).collect();
        assert_eq!(names, ["c", "d"], "a is in use, b was used last");
        let before = usage.total();
        let going: Vec<&Entry> = planned.iter().map(|(entry, _)| *entry).collect();
        let mut gone = 0;
        remove(&state, &going, 99, &mut |_| gone += 1).unwrap();
        assert_eq!(gone, 2);
        let freed: u64 = planned.iter().map(|(_, bytes)| bytes).sum();
        // The index grew: it remembers what was pruned.
        let after = Usage::of(&state).unwrap();
        assert_eq!(before - usage.rest - freed, after.total() - after.rest);
        let key = |name: &str| CacheKey(Digest::of(name));
        assert_eq!(state.index().lookup(&key("c")).unwrap(), None);
        assert!(state.index().was_pruned(&key("c")).unwrap());
        assert!(state.index().lookup(&key("b")).unwrap().is_some());
        assert!(!state.index().was_pruned(&key("b")).unwrap());
    }

    #[test]
    fn what_is_held_after_the_plan_was_made_stays_too() {
        let top = tempfile::tempdir().unwrap();
        let maker = StateFolder::open(top.path()).unwrap();
        let id = step(&maker, "a", 10);
        let blob = maker.blobs().put(b"blob").unwrap();
        drop(maker);
        let state = StateFolder::open(top.path()).unwrap();
        let usage = Usage::of(&state).unwrap();
        let holder = StateFolder::open(top.path()).unwrap();
        holder.snapshots().get(&id).unwrap().unwrap();
        assert!(holder.blobs().contains(&blob).unwrap());
        let all: Vec<&Entry> = usage.entries.iter().collect();
        assert_eq!(all.len(), 2);
        remove(&state, &all, 1, &mut |entry| panic!("{entry:?} is gone")).unwrap();
        drop(holder);
        let mut gone = 0;
        remove(&state, &all, 1, &mut |_| gone += 1).unwrap();
        assert_eq!(gone, 2);
    }

    #[test]
    fn results_whose_trees_were_damaged_are_forgotten() {
        let top = tempfile::tempdir().unwrap();
        let state = StateFolder::open(top.path()).unwrap();
        let [damaged, whole] = ["a", "b"].map(|name| step(&state, name, 10));
        fs_err::remove_dir_all(top.path().join("snapshots").join(damaged.as_str())).unwrap();
        remove(&state, &[], 1, &mut |entry| panic!("{entry:?} is gone")).unwrap();
        assert_eq!(state.index().snapshots().unwrap(), [whole]);
        assert!(state.index().was_pruned(&CacheKey(Digest::of("a"))).unwrap());
    }

    #[test]
    fn blobs_of_named_images_stay_whatever_is_selected() {
        let top = tempfile::tempdir().unwrap();
        let maker = StateFolder::open(top.path()).unwrap();
        let blob = |bytes: &str, kind: MediaType| {
            maker.blobs().put(bytes.as_bytes()).unwrap();
            Descriptor::of(kind, bytes.as_bytes())
        };
        let layer = blob("layer", MediaType::OciLayer);
        let config = blob(r#"{"rootfs":{"diff_ids":[]}}"#, MediaType::OciConfig);
        let manifest = serde_json::json!({
            "schemaVersion": 2, "mediaType": MediaType::OciManifest, "config": config,
            "layers": [layer],
        });
        let manifest = blob(&manifest.to_string(), MediaType::OciManifest);
        blob("nobody's", MediaType::OciLayer);
        maker.layout().set(&["a:1".into()], &manifest).unwrap();
        drop(maker);
        let state = StateFolder::open(top.path()).unwrap();
        let usage = Usage::of(&state).unwrap();
        assert_eq!(usage.entries.iter().filter(|entry| entry.shared).count(), 3);
        let all: Vec<&Entry> = usage.entries.iter().collect();
        remove(&state, &all, 1, &mut |entry| assert!(!entry.shared, "{entry:?}")).unwrap();
        assert_eq!(state.blobs().list().unwrap().len(), 3);
        state.layout().remove("a:1").unwrap();
        remove(&state, &all, 1, &mut |_| {}).unwrap();
        assert_eq!(state.blobs().list().unwrap().len(), 0);
    }
}
