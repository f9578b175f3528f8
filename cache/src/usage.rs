//! What a state folder holds, entry by entry, with what each takes on the disk and when it was last
//! used: what `du` shows, and what `prune` chooses from.
//!
//! Sizes are those of the disk's blocks, as du(1) counts them. A file that several entries link is
//! counted once, with the entry that was there first; it is freed when the last of them goes
//! ([`Freeing`]). Looking holds nothing: entries can be gone a moment later.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rayon::prelude::*;

use crate::digest::{DiffId, Digest};
use crate::index::{CacheRecord, IndexError};
use crate::layer;
use crate::layout::LayoutError;
use crate::oci::{Descriptor, Index, Manifest};
use crate::session::held_names;
use crate::snapshot::{Meta, SnapshotId};
use crate::state::StateFolder;
use crate::store::hold_name;

/// What an entry is, and what it is called on the disk.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum EntryName {
    /// A tree.
    Snapshot(SnapshotId),
    /// A blob.
    Blob(Digest),
    /// The folders of a cache mount, below `mounts/`.
    Mount(String),
    /// What the files of a context hashed to, or what a COPY of it wrote: a file below `context/`.
    Context(String),
}

/// The kinds of entries, called as BuildKit calls them (client/llb, `UsageRecordType`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryKind {
    /// The result of a step, a layer of an image, a blob.
    Regular,
    /// A folder of the caller, or what is known of one.
    LocalSource,
    /// A checked-out commit.
    GitCheckout,
    /// A cache mount.
    CacheMount,
}

impl EntryKind {
    /// The name: `exec.cachemount`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Regular => "regular",
            Self::LocalSource => "source.local",
            Self::GitCheckout => "source.git.checkout",
            Self::CacheMount => "exec.cachemount",
        }
    }
}

/// Something that can be removed by itself.
#[derive(Clone, Debug)]
pub struct Entry {
    /// What and where it is.
    pub name: EntryName,
    /// The name by which people tell it from others; of a cache mount its id.
    pub id: String,
    /// What it is good for.
    pub kind: EntryKind,
    /// What it is, for people: `RUN go build`.
    pub description: String,
    /// The bytes it takes on the disk; files that an earlier entry has too are not counted.
    pub size: u64,
    /// When it was made, in seconds since 1970.
    pub created: i64,
    /// When it was last used, in seconds since 1970, to the minute.
    pub last_used: i64,
    /// A running process uses it.
    pub in_use: bool,
    /// It is part of an image that has a name.
    pub shared: bool,
    /// It changes when it is used.
    pub mutable: bool,
    /// Bytes of files that nothing else links.
    own: u64,
    /// Files that other entries link too, by inode.
    linked: Vec<(u64, u64)>,
}

/// What a state folder holds.
#[derive(Clone, Debug, Default)]
pub struct Usage {
    /// The entries, the longest unused first.
    pub entries: Vec<Entry>,
    /// The bytes of everything else: the index, locks, what running processes write.
    pub rest: u64,
}

/// Says why it cannot be told what a state folder holds.
#[derive(Debug, thiserror::Error)]
pub enum UsageError {
    /// The index cannot be asked.
    #[error(transparent)]
    Index(#[from] IndexError),
    /// The images cannot be listed.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// The disk failed.
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl Entry {
    /// Whether an image that has a name would be broken without it. Trees can be made again of blobs.
    pub fn is_needed(&self) -> bool {
        self.shared && matches!(self.name, EntryName::Blob(_))
    }
}

impl Usage {
    /// Looks at all of `state`.
    pub fn of(state: &StateFolder) -> Result<Self, UsageError> {
        let parts = NamedParts::of(state)?;
        let held = held_names(&state.root().join("tmp"))?;
        let records = state.index().records()?;
        let records: HashMap<&SnapshotId, &CacheRecord> =
            records.iter().map(|record| (&record.snapshot, record)).collect();
        let looker = Looker { state, named: &parts, held: &held, records: &records };
        let root = state.root();
        let (snapshots, blobs) = (root.join("snapshots"), root.join("blobs/sha256"));
        let places: Vec<(EntryName, PathBuf)> = names_in(&snapshots)?
            .into_iter()
            .filter_map(|name| {
                Some((EntryName::Snapshot(name.parse().ok()?), snapshots.join(name)))
            })
            .chain(names_in(&blobs)?.into_iter().filter_map(|name| {
                let digest = format!("sha256:{name}").parse().ok()?;
                Some((EntryName::Blob(digest), blobs.join(name)))
            }))
            .chain(names_in(&root.join("mounts"))?.into_iter().map(|name| {
                let path = root.join("mounts").join(&name);
                (EntryName::Mount(name), path)
            }))
            .chain(names_in(&root.join("context"))?.into_iter().map(|name| {
                let path = root.join("context").join(&name);
                (EntryName::Context(name), path)
            }))
            .collect();
        let found: Vec<Option<Entry>> = places
            .par_iter()
            .map(|(name, path)| looker.look_at(name, path))
            .collect::<Result<_, _>>()?;
        let mut entries: Vec<Entry> = found.into_iter().flatten().collect();
        entries.sort_by(|a, b| (a.created, &a.name).cmp(&(b.created, &b.name)));
        count_links_once(&mut entries);
        entries.sort_by(|a, b| {
            (a.last_used, a.created, &a.name).cmp(&(b.last_used, b.created, &b.name))
        });
        let apart: HashSet<&Path> = places.iter().map(|(_, path)| path.as_path()).collect();
        let rest = Weight::of(root, &|path| apart.contains(path))?;
        let rest = rest.own + rest.linked.iter().map(|(_, bytes)| bytes).sum::<u64>();
        Ok(Self { entries, rest })
    }

    /// The bytes of all of it, as du(1) would say.
    pub fn total(&self) -> u64 {
        self.rest + self.entries.iter().map(|entry| entry.size).sum::<u64>()
    }

    /// Counts what removing entries, one after the other, frees.
    pub fn freeing(&self) -> Freeing {
        let mut links: HashMap<u64, usize> = HashMap::new();
        for (inode, _) in self.entries.iter().flat_map(|entry| &entry.linked) {
            *links.entry(*inode).or_default() += 1;
        }
        Freeing { links }
    }
}

/// Counts what removing entries frees: a file that several entries link goes with the last of them.
#[derive(Debug)]
pub struct Freeing {
    links: HashMap<u64, usize>,
}

impl Freeing {
    /// The bytes that removing `entry` frees, when those that this was asked of before are gone.
    pub fn of(&mut self, entry: &Entry) -> u64 {
        let mut freed = entry.own;
        for (inode, bytes) in &entry.linked {
            let left = self.links.entry(*inode).or_insert(1);
            *left -= 1;
            freed += if *left == 0 { *bytes } else { 0 };
        }
        freed
    }
}

/// At most so many bytes are taken by `state`: links between snapshots count each time. Quicker than
/// [`Usage::of`], since no snapshot is looked into.
pub fn upper_bound(state: &StateFolder) -> io::Result<u64> {
    let root = state.root();
    let snapshots = root.join("snapshots");
    let of_snapshots: u64 = names_in(&snapshots)?
        .par_iter()
        .map(|name| {
            let top = snapshots.join(name);
            // One that was damaged does not say what it takes, and takes it all the same.
            match fs_err::read(top.join("meta")).ok().as_deref().and_then(Meta::parse) {
                Some(meta) => Ok(meta.disk),
                None => Ok(Weight::of(&top, &|_| false)?.bytes()),
            }
        })
        .sum::<io::Result<u64>>()?;
    let rest = Weight::of(root, &|path| path == snapshots)?;
    Ok(of_snapshots + rest.bytes())
}

/// Each file that several entries link counts for the first of them.
fn count_links_once(entries: &mut [Entry]) {
    let mut counted = HashSet::new();
    for entry in entries {
        let first = entry.linked.iter().filter(|(inode, _)| counted.insert(*inode));
        entry.size = entry.own + first.map(|(_, bytes)| bytes).sum::<u64>();
    }
}

struct Looker<'a> {
    state: &'a StateFolder,
    named: &'a NamedParts,
    held: &'a HashSet<String>,
    records: &'a HashMap<&'a SnapshotId, &'a CacheRecord>,
}

impl Looker<'_> {
    /// What is at `path`; `None` when it is gone.
    fn look_at(&self, name: &EntryName, path: &Path) -> io::Result<Option<Entry>> {
        let Some(metadata) = metadata(path)? else { return Ok(None) };
        let weight = Weight::of(path, &|_| false)?;
        let mut entry = Entry {
            name: name.clone(),
            id: String::new(),
            kind: EntryKind::Regular,
            description: String::new(),
            size: 0,
            created: metadata.mtime(),
            last_used: metadata.mtime(),
            in_use: false,
            shared: false,
            mutable: false,
            own: weight.own,
            linked: weight.linked,
        };
        match name {
            EntryName::Snapshot(id) => self.add_snapshot(&mut entry, id, path)?,
            EntryName::Blob(digest) => {
                entry.id = digest.to_string();
                entry.in_use = self.held.contains(&hold_name(digest));
                let images = self.named.blobs.get(digest);
                entry.shared = images.is_some();
                entry.description = images.map_or("blob".into(), |name| format!("blob of {name}"));
            }
            EntryName::Mount(folder) => {
                entry.kind = EntryKind::CacheMount;
                entry.mutable = true;
                let id = fs_err::read_to_string(path.join("id")).or_else(|_| {
                    // Of the form in which each numbered folder has one.
                    fs_err::read_to_string(path.join("0/id"))
                });
                entry.id = id.unwrap_or_else(|_| folder.clone());
                entry.description = format!("cache mount {}", entry.id);
                entry.last_used = latest(path)?.max(entry.last_used);
                entry.in_use = self.is_mounted(path, folder)?;
            }
            EntryName::Context(file) => {
                entry.id.clone_from(file);
                entry.kind = EntryKind::LocalSource;
                entry.mutable = true;
                entry.description = "what files of a build context hashed to".into();
            }
        }
        Ok(Some(entry))
    }

    fn add_snapshot(&self, entry: &mut Entry, id: &SnapshotId, path: &Path) -> io::Result<()> {
        entry.id = id.to_string();
        entry.in_use = self.held.contains(id.as_str());
        entry.shared = self.named.snapshots.contains(id);
        if let Some(meta) = metadata(&path.join("meta"))? {
            entry.last_used = meta.mtime();
        }
        if let Some(record) = self.records.get(id) {
            entry.description.clone_from(&record.description);
            entry.created = record.created;
            entry.kind = kind_of(record);
        } else if id.as_str().starts_with("layer-") {
            entry.description = "layer of an image".into();
        } else {
            entry.description = "a result whose record is gone".into();
        }
        Ok(())
    }

    fn is_mounted(&self, path: &Path, folder: &str) -> io::Result<bool> {
        for number in names_in(path)?.iter().filter(|name| name.parse::<u32>().is_ok()) {
            let lock = self.state.locks().try_exclusive(&mount_lock(folder, number))?;
            if lock.is_none() {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// The name of the lock that whoever uses a folder of a cache mount holds.
pub fn mount_lock(folder: &str, number: impl std::fmt::Display) -> String {
    format!("mount-{folder}-{number}")
}

/// What the op in a record's evidence is for.
fn kind_of(record: &CacheRecord) -> EntryKind {
    match &record.evidence["op"] {
        serde_json::Value::Object(op) if op.contains_key("git") => EntryKind::GitCheckout,
        serde_json::Value::Null => EntryKind::LocalSource,
        _ => EntryKind::Regular,
    }
}

/// What images that have names consist of.
#[derive(Debug, Default)]
pub(crate) struct NamedParts {
    /// Blobs, each with the name of an image that it belongs to.
    pub(crate) blobs: BTreeMap<Digest, String>,
    pub(crate) snapshots: BTreeSet<SnapshotId>,
}

impl NamedParts {
    pub(crate) fn of(state: &StateFolder) -> Result<Self, UsageError> {
        let mut named = Self::default();
        let mut diff_ids = HashSet::new();
        for (name, root) in state.layout().images()? {
            named.add(state, &name, &root, &mut diff_ids)?;
        }
        named.snapshots.extend(diff_ids.iter().map(SnapshotId::of_layer));
        for (snapshot, diff_id) in layer::exported(state)? {
            if diff_ids.contains(&diff_id) {
                named.snapshots.insert(snapshot);
            }
        }
        Ok(named)
    }

    /// Blobs that are missing or damaged name nothing further. One that cannot be read may name
    /// what nobody else does.
    fn add(
        &mut self,
        state: &StateFolder,
        name: &str,
        blob: &Descriptor,
        diff_ids: &mut HashSet<DiffId>,
    ) -> io::Result<()> {
        if self.blobs.insert(blob.digest, name.to_owned()).is_some() {
            return Ok(());
        }
        if blob.media_type.is_index() {
            let index: Option<Index> = document(state, &blob.digest)?;
            for manifest in index.iter().flat_map(|index| &index.manifests) {
                self.add(state, name, manifest, diff_ids)?;
            }
        } else if blob.media_type.is_manifest() {
            let Some(manifest) = document::<Manifest>(state, &blob.digest)? else {
                return Ok(());
            };
            for part in manifest.layers.iter().chain([&manifest.config]) {
                self.blobs.entry(part.digest).or_insert_with(|| name.to_owned());
            }
            let config: Option<serde_json::Value> = document(state, &manifest.config.digest)?;
            let config = config.unwrap_or_default();
            let ids = config["rootfs"]["diff_ids"].as_array().into_iter().flatten();
            let ids = ids.filter_map(|id| id.as_str()?.parse().ok().map(DiffId));
            diff_ids.extend(ids);
        }
        Ok(())
    }
}

/// A small blob, read without being held; none if it is missing or damaged.
fn document<T: serde::de::DeserializeOwned>(
    state: &StateFolder,
    digest: &Digest,
) -> io::Result<Option<T>> {
    let file = match fs_err::File::open(state.blobs().path(digest)) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened?,
    };
    let mut bytes = Vec::new();
    file.take(crate::store::MAX_DOCUMENT + 1).read_to_end(&mut bytes)?;
    let is_whole = Digest::of(&bytes) == *digest;
    Ok(is_whole.then(|| serde_json::from_slice(&bytes).ok()).flatten())
}

/// What a path and everything below it takes on the disk.
#[derive(Default)]
struct Weight {
    own: u64,
    /// Inodes that have names elsewhere, each once.
    linked: Vec<(u64, u64)>,
}

impl Weight {
    fn of(path: &Path, leave_out: &(dyn Fn(&Path) -> bool + Sync)) -> io::Result<Self> {
        let mut weight = Self::default();
        let mut links: HashMap<u64, (u64, u64, u64)> = HashMap::new();
        let mut open = vec![path.to_owned()];
        while let Some(path) = open.pop() {
            // What others remove meanwhile weighs nothing.
            let Some(metadata) = metadata(&path)? else { continue };
            let bytes = metadata.blocks() * 512;
            if metadata.is_dir() {
                weight.own += bytes;
                let names = names_in(&path)?.into_iter().map(|name| path.join(name));
                open.extend(names.filter(|path| !leave_out(path)));
            } else if metadata.nlink() > 1 {
                let link = links.entry(metadata.ino()).or_insert((bytes, metadata.nlink(), 0));
                link.2 += 1;
            } else {
                weight.own += bytes;
            }
        }
        for (inode, (bytes, names, here)) in links {
            if names <= here {
                weight.own += bytes;
            } else {
                weight.linked.push((inode, bytes));
            }
        }
        weight.linked.sort_unstable();
        Ok(weight)
    }

    fn bytes(&self) -> u64 {
        self.own + self.linked.iter().map(|(_, bytes)| bytes).sum::<u64>()
    }
}

fn metadata(path: &Path) -> io::Result<Option<std::fs::Metadata>> {
    match fs_err::symlink_metadata(path) {
        Err(e) if is_gone(&e) => Ok(None),
        metadata => metadata.map(Some),
    }
}

/// The latest time of writing of `path`'s children.
fn latest(path: &Path) -> io::Result<i64> {
    let mut latest = 0;
    for name in names_in(path)? {
        let metadata = metadata(&path.join(name))?;
        latest = latest.max(metadata.map_or(0, |metadata| metadata.mtime()));
    }
    Ok(latest)
}

/// The names in a folder, sorted; none when there is no such folder. Names that are no text are
/// lossy, which only those of users' files can be.
fn names_in(folder: &Path) -> io::Result<Vec<String>> {
    let entries = match fs_err::read_dir(folder) {
        Err(e) if is_gone(&e) => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut names = Vec::new();
    for entry in entries {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.sort_unstable();
    Ok(names)
}

fn is_gone(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Else what it names would go as what no image needs.
    #[test]
    fn a_manifest_that_cannot_be_read_is_an_error_and_a_damaged_one_is_none() {
        let top = tempfile::tempdir().unwrap();
        let state = StateFolder::open(top.path()).unwrap();
        let digest = Digest::of("{}");
        state.blobs().put(b"{}").unwrap();
        let read = || document::<serde_json::Value>(&state, &digest);
        assert!(read().unwrap().is_some());
        let path = state.blobs().path(&digest);
        fs_err::write(&path, "[]").unwrap();
        assert_eq!(read().unwrap(), None);
        fs_err::remove_file(&path).unwrap();
        assert_eq!(read().unwrap(), None);
        fs_err::os::unix::fs::symlink(path.file_name().unwrap(), &path).unwrap();
        assert!(read().is_err());
    }

    #[test]
    fn the_sum_is_what_du_says_and_links_count_once() {
        let top = tempfile::tempdir().unwrap();
        let state = StateFolder::open(top.path().join("state")).unwrap();
        let first = state.snapshots().draft().unwrap();
        fs_err::write(first.folder().join("big"), vec![7; 1_000_000]).unwrap();
        let big = first.folder().join("big");
        let second = state.snapshots().draft().unwrap();
        fs_err::hard_link(&big, second.folder().join("same")).unwrap();
        state.snapshots().commit(&SnapshotId::random(), first).unwrap();
        state.snapshots().commit(&SnapshotId::random(), second).unwrap();
        state.blobs().put(&vec![5; 50_000]).unwrap();
        let usage = Usage::of(&state).unwrap();
        let du = std::process::Command::new("du").args(["-s", "-B1"]).arg(state.root()).output();
        let du = String::from_utf8(du.unwrap().stdout).unwrap();
        let du: u64 = du.split_whitespace().next().unwrap().parse().unwrap();
        assert!(usage.total().abs_diff(du) * 100 <= du, "{} and {du}", usage.total());
        assert_eq!(usage.entries.len(), 3);
        assert!(usage.entries.iter().all(|entry| entry.in_use), "this process holds them");
        let snapshots: Vec<usize> =
            (0..3).filter(|n| matches!(usage.entries[*n].name, EntryName::Snapshot(_))).collect();
        assert!(upper_bound(&state).unwrap() > usage.total());
        for snapshot in fs_err::read_dir(state.root().join("snapshots")).unwrap() {
            fs_err::write(snapshot.unwrap().path().join("meta"), "damaged").unwrap();
        }
        assert!(upper_bound(&state).unwrap() > usage.total(), "damage takes no less room");
        let mut freeing = usage.freeing();
        let freed = snapshots.iter().map(|n| freeing.of(&usage.entries[*n]));
        let freed: Vec<u64> = freed.collect();
        assert!(freed[0] < 100_000 && freed[1] > 900_000, "{freed:?}");
    }
}
