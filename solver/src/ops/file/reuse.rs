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

use rbuild_cache::digest::{Digest, Hasher};
use rbuild_cache::metadata::{Metadata, Timestamp};
use rbuild_cache::snapshot::{Note, SnapshotId};
use rbuild_cache::state::StateFolder;
use rbuild_cache::view::{Entry, View};
use rustix::fs::AtFlags;
use rustix::io::Errno;

/// What begins a list: a name and the version of what follows.
const MAGIC: &[u8; 16] = b"rbuild files 1\n\0";

/// Bytes of a record: an identity, and where its path begins.
const RECORD: usize = 32 + 4;

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

/// Links files of the store into one new layer.
#[derive(Debug)]
pub(super) struct Links {
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
        Self {
            lists: ids.into_iter().take(LISTS).filter_map(list).collect(),
            state: state.clone(),
            linked: Mutex::default(),
            sources: Mutex::default(),
            any: AtomicBool::default(),
        }
    }

    /// Whether anything was linked.
    pub(super) fn any(&self) -> bool {
        self.any.load(Ordering::Relaxed)
    }

    /// Links a file that is just like `identity` as `name` into `folder`; returns whether there was
    /// one.
    ///
    /// # Errors
    /// When `name` is there already. All other obstacles mean that the file has to be copied.
    pub(super) fn link(
        &self,
        identity: Identity,
        folder: BorrowedFd<'_>,
        name: &OsStr,
    ) -> Result<bool, Errno> {
        for list in &self.lists {
            for path in list.paths(identity).take(TRIES) {
                let Some(from) = list.folder(&self.state) else { break };
                let linked = || Ok(rustix::fs::linkat(from, path, folder, name, AtFlags::empty())?);
                if self.once(linked, folder, name)? {
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }

    /// The same for the file that is `entry` of `view`.
    pub(super) fn link_entry(
        &self,
        view: &View,
        entry: &Entry,
        folder: BorrowedFd<'_>,
        name: &OsStr,
    ) -> Result<bool, Errno> {
        let layer = view.layer_of(entry);
        let known = self.sources.lock().unwrap_or_else(PoisonError::into_inner).get(layer).copied();
        let may_link = known.unwrap_or_else(|| {
            let may_link = self.state.snapshots().may_link_from(layer);
            let mut sources = self.sources.lock().unwrap_or_else(PoisonError::into_inner);
            *sources.entry(layer.to_owned()).or_insert(may_link)
        });
        if !may_link {
            return Ok(false);
        }
        self.once(|| view.link(entry, folder, name), folder, name)
    }

    /// Makes a link, and takes it away when its file is in the layer already.
    fn once(
        &self,
        link: impl FnOnce() -> std::io::Result<()>,
        folder: BorrowedFd<'_>,
        name: &OsStr,
    ) -> Result<bool, Errno> {
        match link() {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
                return Err(Errno::EXIST);
            }
            Err(_) => return Ok(false),
        }
        self.any.store(true, Ordering::Relaxed);
        let inode = rustix::fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW)?.st_ino;
        if self.linked.lock().unwrap_or_else(PoisonError::into_inner).insert(inode) {
            return Ok(true);
        }
        rustix::fs::unlinkat(folder, name, AtFlags::empty()).map(|()| false)
    }
}

/// What a layer has, by identity.
#[derive(Debug)]
struct List {
    id: SnapshotId,
    bytes: Vec<u8>,
    records: usize,
    /// The layer's tree; none when nothing may be linked from it.
    folder: OnceLock<Option<fs_err::File>>,
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
        Some(Self { id, bytes, records, folder: OnceLock::new() })
    }

    fn records(&self) -> &[[u8; RECORD]] {
        &self.bytes[MAGIC.len() + 8..].as_chunks().0[..self.records]
    }

    /// The paths of files that are just like `identity`.
    fn paths(&self, identity: Identity) -> impl Iterator<Item = &OsStr> {
        let wanted = identity.0;
        let records = self.records();
        let first = records.partition_point(|record| record[..32] < wanted.as_bytes()[..]);
        let equal = move |record: &&[u8; RECORD]| record[..32] == wanted.as_bytes()[..];
        records[first..].iter().take_while(equal).filter_map(|record| {
            let at = u32::from_le_bytes(*record.last_chunk()?);
            let paths = &self.bytes[MAGIC.len() + 8 + self.records * RECORD..];
            let (length, rest) =
                paths.get(usize::try_from(at).ok()?..)?.split_first_chunk::<2>()?;
            rest.get(..u16::from_le_bytes(*length).into()).map(OsStr::from_bytes)
        })
    }

    /// The layer's tree, when first asked for: from then on nobody removes it while this process runs.
    fn folder(&self, state: &StateFolder) -> Option<BorrowedFd<'_>> {
        let open = || {
            let snapshots = state.snapshots();
            snapshots.get(&self.id).ok()??;
            snapshots.ensure_whole(&self.id).ok()?;
            let folder = snapshots.folder(&self.id);
            snapshots.may_link_from(&folder).then(|| fs_err::File::open(folder).ok()).flatten()
        };
        self.folder.get_or_init(open).as_ref().map(|folder| folder.file().as_fd())
    }
}

/// A list of `files`.
pub(super) fn encoded(files: &HashMap<PathBuf, Identity>) -> Vec<u8> {
    let mut sorted: Vec<(Identity, &Path)> =
        files.iter().map(|(path, identity)| (*identity, path.as_path())).collect();
    sorted.sort_unstable();
    let mut paths = Vec::new();
    let mut records = Vec::with_capacity(sorted.len() * RECORD);
    for (identity, path) in sorted {
        let path = path.as_os_str().as_bytes();
        let (Ok(at), Ok(length)) = (u32::try_from(paths.len()), u16::try_from(path.len())) else {
            continue;
        };
        records.extend(identity.0.as_bytes());
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
        let files: HashMap<PathBuf, Identity> = [
            ("a".into(), identity("a")),
            ("d/b".into(), identity("b")),
            ("d/same".into(), identity("a")),
        ]
        .into();
        let bytes = encoded(&files);
        let list = List::read(bytes.clone(), SnapshotId::random()).unwrap();
        let check = |text: &str, expected: &[&str]| {
            assert_eq!(list.paths(identity(text)).collect::<Vec<_>>(), expected);
        };
        check("a", &["a", "d/same"]);
        check("b", &["d/b"]);
        check("c", &[]);
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1;
            assert!(List::read(damaged, SnapshotId::random()).is_none(), "byte {at}");
            assert!(List::read(bytes[..at].to_vec(), SnapshotId::random()).is_none());
        }
    }
}
