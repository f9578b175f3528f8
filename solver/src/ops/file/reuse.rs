//! A file that the store holds already is linked into a new layer, not written: whoever copied it
//! before, from where, and to which path.
//!
//! What counts is the whole file: bytes, mode, owner and time, which hard links have in common. A
//! layer of COPY keeps beside its tree a list of its files by that ([`Note::Files`]); the lists of the
//! latest layers are asked. What comes from a tree of the store is linked from there. Which layers
//! may share files, and why no step sees it, is said in `cache/src/snapshot/sharing.rs`.
//!
//! Inside one layer each file is linked once at most: two names would be a hard link of the image.
//! Lists and layers that are gone, damaged or foreign count for nothing, and a file that has as many
//! names as its file system allows is copied.

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

use rayon::prelude::*;
use rbuild_cache::digest::{Digest, Hasher};
use rbuild_cache::metadata::{Metadata, Timestamp};
use rbuild_cache::snapshot::{Note, SnapshotId};
use rbuild_cache::state::StateFolder;
use rbuild_cache::view::{Entry, View};
use rustix::fs::AtFlags;
use rustix::io::Errno;

/// What begins a list: a name and the version of what follows. Lists of other versions count for
/// nothing: their files are copied once more.
const MAGIC: &[u8; 16] = b"rbuild files 2\n\0";

/// Bytes of a record: an identity, an inode, and where its path begins.
const RECORD: usize = 32 + 8 + 4;

/// With fewer files than this, and fewer bytes, copying costs less than looking.
const WORTH_FILES: usize = 50;
const WORTH_BYTES: u64 = 1 << 20;

/// So many lists are asked.
const LISTS: usize = 8;

/// So many equal files of a list are tried.
const TRIES: usize = 4;

/// Whether a new layer may have files in common with others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sharing {
    /// No step of this build sees it.
    Allowed,
    /// A step may see it.
    Forbidden,
}

/// Everything about a file but its name: its bytes, mode, owner and time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Identity(Digest);

impl Identity {
    pub(super) fn new(digest: Digest, metadata: &Metadata, time: Timestamp) -> Self {
        let mut hasher = Hasher::new();
        hasher.update(digest.as_bytes());
        hasher.update(metadata.mode.to_le_bytes());
        hasher.update(metadata.uid.to_le_bytes());
        hasher.update(metadata.gid.to_le_bytes());
        hasher.update(time.seconds.to_le_bytes());
        hasher.update(time.nanoseconds.to_le_bytes());
        Self(hasher.digest())
    }
}

/// Whether it pays to look for, and to keep a list of, so many files with so many bytes.
pub(super) fn is_worth_it(files: usize, bytes: u64) -> bool {
    files >= WORTH_FILES || bytes >= WORTH_BYTES
}

/// What is linked: what the file must be.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wanted {
    /// None for one that no list has.
    pub(super) identity: Option<Identity>,
    pub(super) mode: u32,
    pub(super) owner: (u32, u32),
    pub(super) time: Timestamp,
    pub(super) size: u64,
}

impl Wanted {
    /// Whether `found` is that file in the list's inode `inode`, not written to since: all that a
    /// layer's stamp (`cache/src/layer/content.rs`) would tell of it.
    fn is(&self, inode: u64, found: &Metadata) -> bool {
        found.is_file()
            && found.inode == inode
            && found.size == self.size
            && found.modified == self.time
            && found.mode == self.mode
            && (found.uid, found.gid) == self.owner
    }
}

/// Links files of the store into one new layer.
#[derive(Debug)]
pub(in crate::ops) struct Links {
    state: StateFolder,
    lists: Vec<List>,
    /// The files that were linked, by inode.
    linked: Mutex<HashSet<u64>>,
    /// Layers that are copied from: whether they may be linked from.
    sources: Mutex<HashMap<PathBuf, bool>>,
    any: AtomicBool,
}

impl Links {
    /// Reads the latest lists of `state`.
    pub(super) fn open(state: &StateFolder) -> Self {
        let ids = state.snapshots().noted(Note::Files).unwrap_or_default();
        let list = |id: SnapshotId| List::read(state.snapshots().note(&id, Note::Files).ok()??, id);
        let ids: Vec<SnapshotId> = ids.into_iter().take(LISTS).collect();
        let lists: Vec<Option<List>> = ids.into_par_iter().map(list).collect();
        Self { lists: lists.into_iter().flatten().collect(), ..Self::between_layers(state) }
    }

    /// Links nothing but files of layers that are at hand ([`Links::link_entry`]).
    pub(in crate::ops) fn between_layers(state: &StateFolder) -> Self {
        Self {
            lists: Vec::new(),
            state: state.clone(),
            linked: Mutex::default(),
            sources: Mutex::default(),
            any: AtomicBool::default(),
        }
    }

    /// Whether anything was linked.
    pub(in crate::ops) fn any(&self) -> bool {
        self.any.load(Ordering::Relaxed)
    }

    /// Links a file that is just what is `wanted` as `name` into `folder`; returns what it is, if there
    /// was one.
    ///
    /// # Errors
    /// When `name` is there already. All other obstacles mean that the file has to be copied.
    pub(super) fn link(
        &self,
        wanted: &Wanted,
        folder: BorrowedFd<'_>,
        name: &OsStr,
    ) -> Result<Option<Metadata>, Errno> {
        let Some(identity) = wanted.identity else { return Ok(None) };
        for list in &self.lists {
            for (inode, path) in list.files(identity).take(TRIES) {
                let Some(from) = list.folder(&self.state) else { break };
                let link = || Ok(rustix::fs::linkat(from, path, folder, name, AtFlags::empty())?);
                if list.whole.get() != Some(&true) {
                    let linked = self.claimed(inode, link, folder, name)?;
                    let Some(linked) = linked else { continue };
                    if wanted.is(inode, &linked) {
                        return Ok(Some(linked));
                    }
                    // Damage, or a store all of whose files were copied by another program.
                    rustix::fs::unlinkat(folder, name, AtFlags::empty())?;
                    self.unclaim(inode);
                    if !list.is_whole(&self.state) {
                        break;
                    }
                }
                let Some(linked) = self.looked_at(link, folder, name)? else { continue };
                if self.claim(linked.inode) {
                    return Ok(Some(linked));
                }
                rustix::fs::unlinkat(folder, name, AtFlags::empty())?;
            }
        }
        Ok(None)
    }

    /// The same for the file that is `entry` of `view`.
    pub(in crate::ops) fn link_entry(
        &self,
        view: &View,
        entry: &Entry,
        folder: BorrowedFd<'_>,
        name: &OsStr,
    ) -> Result<Option<Metadata>, Errno> {
        let layer = view.layer_of(entry);
        let known = self.sources.lock().unwrap_or_else(PoisonError::into_inner).get(layer).copied();
        let may_link = known.unwrap_or_else(|| {
            let may_link = self.state.snapshots().may_link_from(layer);
            let mut sources = self.sources.lock().unwrap_or_else(PoisonError::into_inner);
            *sources.entry(layer.to_owned()).or_insert(may_link)
        });
        if !may_link {
            return Ok(None);
        }
        let inode = entry.metadata().inode;
        self.claimed(inode, || view.link(entry, folder, name), folder, name)
    }

    /// Makes a link to the file `inode` unless the layer has one; says what it is.
    fn claimed(
        &self,
        inode: u64,
        link: impl FnOnce() -> std::io::Result<()>,
        folder: BorrowedFd<'_>,
        name: &OsStr,
    ) -> Result<Option<Metadata>, Errno> {
        if !self.claim(inode) {
            return Ok(None);
        }
        let linked = self.looked_at(link, folder, name);
        if !matches!(linked, Ok(Some(_))) {
            self.unclaim(inode);
        }
        linked
    }

    /// Takes a file for the layer, in which it may be once; returns whether it was not there.
    fn claim(&self, inode: u64) -> bool {
        self.linked.lock().unwrap_or_else(PoisonError::into_inner).insert(inode)
    }

    fn unclaim(&self, inode: u64) {
        self.linked.lock().unwrap_or_else(PoisonError::into_inner).remove(&inode);
    }

    /// Makes a link, and says what it is; nothing when it could not be made.
    fn looked_at(
        &self,
        link: impl FnOnce() -> std::io::Result<()>,
        folder: BorrowedFd<'_>,
        name: &OsStr,
    ) -> Result<Option<Metadata>, Errno> {
        match link() {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
                return Err(Errno::EXIST);
            }
            Err(_) => return Ok(None),
        }
        self.any.store(true, Ordering::Relaxed);
        let failed = |error: std::io::Error| Errno::from_io_error(&error).unwrap_or(Errno::IO);
        Metadata::at(folder, name).map_err(failed)?.ok_or(Errno::NOENT).map(Some)
    }
}

/// What a layer has, by identity.
#[derive(Debug)]
struct List {
    id: SnapshotId,
    bytes: Vec<u8>,
    records: usize,
    /// The number of the first record of each group of identities: those that begin with the same
    /// bits, of which there are so many that a group has about one.
    groups: Vec<u32>,
    /// The layer's tree; none when nothing may be linked from it.
    folder: OnceLock<Option<fs_err::File>>,
    /// Whether the whole layer is as it was; asked only when a file is not what the list says.
    whole: OnceLock<bool>,
}

impl List {
    /// The list that [`encoded`] wrote for `id`; `None` for anything else.
    fn read(bytes: Vec<u8>, id: SnapshotId) -> Option<Self> {
        let (content, check) = bytes.split_last_chunk::<32>()?;
        if Digest::of(content).as_bytes() != check {
            return None;
        }
        let (count, rest) = content.strip_prefix(MAGIC)?.split_first_chunk::<8>()?;
        let records = usize::try_from(u64::from_le_bytes(*count)).ok()?;
        (rest.len() >= records.checked_mul(RECORD)?).then_some(())?;
        let (folder, whole) = (OnceLock::new(), OnceLock::new());
        let mut list = Self { id, bytes, records, groups: Vec::new(), folder, whole };
        list.groups = list.grouped();
        Some(list)
    }

    fn records(&self) -> &[[u8; RECORD]] {
        &self.bytes[MAGIC.len() + 8..].as_chunks().0[..self.records]
    }

    fn grouped(&self) -> Vec<u32> {
        let groups = self.records.next_power_of_two();
        let mut first = Vec::with_capacity(groups + 1);
        for (number, record) in (0..u32::MAX).zip(self.records()) {
            while first.len() <= group_of(record, groups) {
                first.push(number);
            }
        }
        first.resize(groups + 1, u32::try_from(self.records).unwrap_or(u32::MAX));
        first
    }

    /// The inodes and paths of files that are just like `identity`.
    fn files(&self, identity: Identity) -> impl Iterator<Item = (u64, &OsStr)> {
        let wanted = identity.0;
        let group = group_of(wanted.as_bytes(), self.groups.len() - 1);
        let number = |group: usize| usize::try_from(self.groups[group]).unwrap_or(usize::MAX);
        let group = self.records().get(number(group)..number(group + 1)).unwrap_or_default();
        let equal = move |record: &&[u8; RECORD]| record[..32] == wanted.as_bytes()[..];
        group.iter().filter(equal).filter_map(|record| {
            let inode = u64::from_le_bytes(*record[32..].first_chunk()?);
            let at = u32::from_le_bytes(*record.last_chunk()?);
            let paths = &self.bytes[MAGIC.len() + 8 + self.records * RECORD..];
            let (length, rest) =
                paths.get(usize::try_from(at).ok()?..)?.split_first_chunk::<2>()?;
            Some((inode, OsStr::from_bytes(rest.get(..u16::from_le_bytes(*length).into())?)))
        })
    }

    /// The layer's tree, when first asked for: from then on nobody removes it while this process runs.
    ///
    /// Whether a file of it is what it was is seen when it is linked, one by one.
    fn folder(&self, state: &StateFolder) -> Option<BorrowedFd<'_>> {
        let open = || {
            let snapshots = state.snapshots();
            snapshots.get(&self.id).ok()??;
            let folder = snapshots.folder(&self.id);
            snapshots.may_link_from(&folder).then(|| fs_err::File::open(folder).ok()).flatten()
        };
        let open = self.folder.get_or_init(open).as_ref().map(|folder| folder.file().as_fd());
        open.filter(|_| self.whole.get() != Some(&false))
    }

    fn is_whole(&self, state: &StateFolder) -> bool {
        *self.whole.get_or_init(|| state.snapshots().ensure_whole(&self.id).is_ok())
    }
}

/// Which of `groups`, a power of two, an identity is in.
fn group_of(identity: &[u8], groups: usize) -> usize {
    let first = identity.first_chunk().map_or(0, |bytes| u64::from_be_bytes(*bytes));
    let bits = groups.trailing_zeros();
    usize::try_from(first.checked_shr(u64::BITS - bits).unwrap_or(0)).unwrap_or(0)
}

/// A file that can be linked.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plain {
    pub(super) identity: Identity,
    pub(super) inode: u64,
}

/// A list of `files`.
pub(super) fn encoded(files: &HashMap<PathBuf, Plain>) -> Vec<u8> {
    let mut sorted: Vec<(Identity, u64, &Path)> =
        files.iter().map(|(path, file)| (file.identity, file.inode, path.as_path())).collect();
    sorted.par_sort_unstable();
    let mut paths = Vec::new();
    let mut records = Vec::with_capacity(sorted.len() * RECORD);
    for (identity, inode, path) in sorted {
        let path = path.as_os_str().as_bytes();
        let (Ok(at), Ok(length)) = (u32::try_from(paths.len()), u16::try_from(path.len())) else {
            continue;
        };
        records.extend(identity.0.as_bytes());
        records.extend(inode.to_le_bytes());
        records.extend(at.to_le_bytes());
        paths.extend(length.to_le_bytes());
        paths.extend(path);
    }
    let mut bytes = MAGIC.to_vec();
    bytes.extend(((records.len() / RECORD) as u64).to_le_bytes());
    bytes.extend(records);
    bytes.extend(paths);
    let check = Digest::of(&bytes);
    bytes.extend(check.as_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_read_and_nothing_else() {
        let identity = |text: &str| Identity(Digest::of(text));
        let file = |path: &str, text, inode| {
            (PathBuf::from(path), Plain { identity: identity(text), inode })
        };
        let files = [file("a", "a", 1), file("d/b", "b", 2), file("d/same", "a", 3)];
        let bytes = encoded(&files.into());
        let list = List::read(bytes.clone(), SnapshotId::random()).unwrap();
        let check = |text: &str, expected: &[(u64, &str)]| {
            let expected: Vec<(u64, &OsStr)> =
                expected.iter().map(|(inode, path)| (*inode, OsStr::new(path))).collect();
            assert_eq!(list.files(identity(text)).collect::<Vec<_>>(), expected);
        };
        check("a", &[(1, "a"), (3, "d/same")]);
        check("b", &[(2, "d/b")]);
        check("c", &[]);
        check("d", &[]);
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1;
            assert!(List::read(damaged, SnapshotId::random()).is_none(), "byte {at}");
            assert!(List::read(bytes[..at].to_vec(), SnapshotId::random()).is_none());
        }
    }

    #[test]
    fn files_are_found_among_any_number() {
        for number in [0, 1, 2, 3, 100, 1000] {
            let path = |n: u64| PathBuf::from(format!("{n}"));
            let identity = |n: u64| Identity(Digest::of(n.to_le_bytes()));
            let file = |n| (path(n), Plain { identity: identity(n), inode: n });
            let list = encoded(&(0..number).map(file).collect());
            let list = List::read(list, SnapshotId::random()).unwrap();
            for n in 0..number {
                let found: Vec<(u64, &OsStr)> = list.files(identity(n)).collect();
                assert_eq!(found, [(n, path(n).as_os_str())]);
            }
            assert_eq!(list.files(identity(number)).count(), 0);
        }
    }

    /// An older list, as a state folder may have it.
    #[test]
    fn a_list_of_another_version_counts_for_nothing() {
        let mut bytes = b"rbuild files 1\n\0".to_vec();
        bytes.extend(0_u64.to_le_bytes());
        let check = Digest::of(&bytes);
        bytes.extend(check.as_bytes());
        assert!(List::read(bytes, SnapshotId::random()).is_none());
    }
}
