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
//! it was committed ([`content::stamp`]), which each process asks before it reads them.
//!
//! The time of `meta`'s last writing is when the snapshot was last used, to the minute.

mod chain;
mod copy;
mod overlay;

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

pub use copy::CopySnapshotter;
pub use overlay::OverlaySnapshotter;

use crate::digest::{DiffId, Digest, TreeDigest};
use crate::layer::content::{self, Content, Known};
use crate::layer::diff::Before;
use crate::layer::entries::{Entry, entries};
use crate::layer::opaque;
use crate::layer::whiteout;
use crate::metadata::{self, Metadata};
use crate::remove::remove_tree;
use crate::session::{Session, Temporary, random_name};

/// Names a snapshot: `layer-<hex of its diff id>` or `step-<random hex>`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SnapshotId(String);

/// The text is not the name of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not the name of a snapshot")]
pub struct SnapshotIdError(String);

impl SnapshotId {
    /// The snapshot to which the layer with this diff id unpacks.
    pub fn of_layer(diff_id: &DiffId) -> Self {
        Self(format!("layer-{}", diff_id.0.hex()))
    }

    /// A name that nothing has yet, for what a step makes.
    pub fn random() -> Self {
        Self(format!("step-{}", random_name()))
    }

    /// The name, which is safe as a component of a path.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for SnapshotId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for SnapshotId {
    type Err = SnapshotIdError;

    fn from_str(text: &str) -> Result<Self, SnapshotIdError> {
        let (hex, length) = match text.split_once('-') {
            Some(("layer", hex)) => (hex, 64),
            Some(("step", hex)) => (hex, 32),
            _ => ("", 1),
        };
        let digits = hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        if digits && hex.len() == length {
            Ok(Self(text.to_owned()))
        } else {
            Err(SnapshotIdError(text.to_owned()))
        }
    }
}

impl TryFrom<String> for SnapshotId {
    type Error = SnapshotIdError;

    fn try_from(text: String) -> Result<Self, SnapshotIdError> {
        text.parse()
    }
}

impl From<SnapshotId> for String {
    fn from(id: SnapshotId) -> Self {
        id.0
    }
}

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

    /// Whether a damaged snapshot was found and removed since this was last asked: what failed for
    /// that reason may succeed when it is begun anew.
    fn found_damage(&self) -> bool {
        self.committed().damaged.swap(false, Ordering::Relaxed)
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

    /// The folders that the layer in `id` has without saying anything of them
    /// ([`Draft::set_implied`]); none for a snapshot that is not there.
    fn implied(&self, id: &SnapshotId) -> Result<Vec<PathBuf>, SnapshotError> {
        self.committed().implied(id)
    }

    /// What was kept beside the tree of `id` ([`Draft::set_reads`]), if anything was. It is no part of
    /// the tree: nothing but what users are told may depend on it.
    fn reads(&self, id: &SnapshotId) -> Result<Option<Vec<u8>>, SnapshotError> {
        match fs_err::read(self.committed().folder.join(id.as_str()).join("reads")) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            read => Ok(read.map(Some)?),
        }
    }

    /// Removes a snapshot unless a running process holds it; returns whether it is gone.
    fn remove(&self, id: &SnapshotId) -> Result<bool, SnapshotError> {
        self.committed().remove(id)
    }

    /// Removes a snapshot that is damaged, whoever holds it.
    fn discard(&self, id: &SnapshotId) -> Result<(), SnapshotError> {
        self.committed().found().remove(id);
        self.committed().take_away(id)
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

/// A folder that is being filled. Dropped, it is removed.
#[derive(Debug)]
pub struct Draft {
    temporary: Temporary,
    known: Mutex<Known>,
    implied: Mutex<Vec<PathBuf>>,
    reads: Mutex<Vec<u8>>,
}

impl Draft {
    fn new(session: &Arc<Session>) -> Result<Self, SnapshotError> {
        let temporary = session.temporary()?;
        make_root(&temporary.path().join("fs"))?;
        Ok(Self {
            temporary,
            known: Mutex::default(),
            implied: Mutex::default(),
            reads: Mutex::default(),
        })
    }

    /// The folder.
    pub fn folder(&self) -> PathBuf {
        self.temporary.path().join("fs")
    }

    /// Tells that the file at `path` (relative to the folder) has these bytes, so that committing
    /// need not read them.
    pub fn know(&self, path: impl Into<PathBuf>, digest: Digest) {
        self.known().paths.insert(path.into(), digest);
    }

    /// Like [`Draft::know`] for the file that is this inode, whatever it is called by then.
    pub fn know_inode(&self, inode: u64, digest: Digest) {
        self.known().inodes.insert(inode, digest);
    }

    /// Tells which folders (relative to the folder, the outermost first) a layer has without saying
    /// anything of them: see [`crate::layer::implied`].
    pub fn set_implied(&self, folders: Vec<PathBuf>) {
        *self.implied.lock().unwrap_or_else(PoisonError::into_inner) = folders;
    }

    /// Keeps `bytes` beside the tree: what the step that makes it read, for [`Snapshotter::reads`].
    pub fn set_reads(&self, bytes: Vec<u8>) {
        *self.reads.lock().unwrap_or_else(PoisonError::into_inner) = bytes;
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A tree that is being written to. Dropped, it is removed.
#[derive(Debug)]
pub struct Active {
    draft: Draft,
    kind: ActiveKind,
}

#[derive(Debug)]
enum ActiveKind {
    Overlay { lower: Vec<PathBuf> },
    Copy(Before),
}

/// How an [`Active`] tree is seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ActiveRoot {
    /// By mounting overlayfs; `redirect_dir`, `metacopy` and `index` must be off.
    Overlay {
        /// The layers' folders, lowest first. Empty for an empty tree.
        lower: Vec<PathBuf>,
        /// Takes what is written.
        upper: PathBuf,
        /// overlayfs's own; on the same file system as `upper`.
        work: PathBuf,
    },
    /// As it is.
    Folder(PathBuf),
}

impl Active {
    /// How the tree is seen.
    pub fn root(&self) -> ActiveRoot {
        match &self.kind {
            ActiveKind::Overlay { lower } => ActiveRoot::Overlay {
                lower: lower.clone(),
                upper: self.draft.folder(),
                work: self.draft.temporary.path().join("work"),
            },
            ActiveKind::Copy(_) => ActiveRoot::Folder(self.draft.temporary.path().join("merged")),
        }
    }
}

/// The committed snapshots of a state folder: what all snapshotters share.
#[derive(Clone, Debug)]
pub struct Committed {
    folder: PathBuf,
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
struct Found {
    snapshot: Snapshot,
    /// What its files must look like; absent once this was asked, or when this process made them.
    unasked: Option<Digest>,
}

/// What `meta` holds, behind a line with the digest of it.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Meta {
    pub(crate) content: TreeDigest,
    pub(crate) size: u64,
    /// The bytes on the disk, links to other snapshots' files included.
    pub(crate) disk: u64,
    /// What the files look like: [`content::stamp`].
    stamp: Digest,
    /// The boot in which the tree was written, or last found whole.
    boot: Box<str>,
    /// [`Draft::set_implied`]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    implied: Vec<PathBuf>,
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

    fn draft(&self) -> Result<Draft, SnapshotError> {
        Draft::new(&self.session)
    }

    fn commit(&self, id: &SnapshotId, draft: Draft) -> Result<Snapshot, SnapshotError> {
        let entries = entries(&draft.folder())?;
        self.commit_entries(id, draft, &entries)
    }

    /// Commits what overlayfs wrote into `draft` over the folders `lower`.
    fn commit_over(
        &self,
        id: &SnapshotId,
        draft: Draft,
        lower: &[PathBuf],
    ) -> Result<Snapshot, SnapshotError> {
        let mut entries = entries(&draft.folder())?;
        opaque::unmark(&draft.folder(), &mut entries, lower)?;
        self.commit_entries(id, draft, &entries)
    }

    /// Commits `draft`, in which `entries` are.
    fn commit_entries(
        &self,
        id: &SnapshotId,
        draft: Draft,
        entries: &[Entry],
    ) -> Result<Snapshot, SnapshotError> {
        let Draft { temporary, known, implied, reads } = draft;
        let known = known.into_inner().unwrap_or_else(PoisonError::into_inner);
        let implied = implied.into_inner().unwrap_or_else(PoisonError::into_inner);
        let folder = temporary.path().join("fs");
        let found = content::of_entries(&folder, entries, &known)?;
        let meta = Meta::new(&found, &self.boot, implied);
        let reads = reads.into_inner().unwrap_or_else(PoisonError::into_inner);
        if !reads.is_empty() {
            fs_err::write(temporary.path().join("reads"), reads)?;
        }
        write_meta(&temporary.path().join("meta"), &meta)?;
        self.session.hold(id.as_str())?;
        match temporary.rename(&self.folder.join(id.as_str())) {
            Ok(()) => {
                let Content { digest, size, .. } = found;
                let snapshot = Snapshot { id: id.clone(), content: digest, size };
                Ok(self.note(snapshot, None, meta.implied))
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

    fn note(&self, snapshot: Snapshot, unasked: Option<Digest>, implied: Vec<PathBuf>) -> Snapshot {
        if !implied.is_empty() {
            let mut all = self.implied.lock().unwrap_or_else(PoisonError::into_inner);
            all.insert(snapshot.id.clone(), implied);
        }
        let found = Found { snapshot: snapshot.clone(), unasked };
        self.found().insert(snapshot.id.clone(), found);
        snapshot
    }

    fn found(&self) -> MutexGuard<'_, HashMap<SnapshotId, Found>> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn get(&self, id: &SnapshotId) -> Result<Option<Snapshot>, SnapshotError> {
        if let Some(found) = self.found().get(id) {
            return Ok(Some(found.snapshot.clone()));
        }
        self.session.hold(id.as_str())?;
        let path = self.folder.join(id.as_str()).join("meta");
        let file = match fs_err::File::open(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                // A folder without `meta` is what a power loss left.
                self.take_away(id)?;
                return Ok(None);
            }
            opened => opened?,
        };
        let meta = match self.read_meta(file)? {
            Some(meta) if *meta.boot == *self.boot => Some((meta.stamp, meta)),
            // In an earlier boot; or its files were looked at and are well.
            Some(meta) => self.survived(id, &meta)?.map(|meta| (meta.stamp, meta)),
            None => None,
        };
        let Some((stamp, Meta { content, size, implied, .. })) = meta else {
            tracing::warn!(snapshot = %id, "dropped a damaged snapshot");
            self.take_away(id)?;
            return Ok(None);
        };
        let snapshot = Snapshot { id: id.clone(), content, size };
        Ok(Some(self.note(snapshot, Some(stamp), implied)))
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
        let noted = Meta::new(&found, &self.boot, meta.implied.clone());
        let aside = self.session.unused_path();
        write_meta(&aside, &noted)?;
        fs_err::rename(&aside, self.folder.join(id.as_str()).join("meta"))?;
        Ok(Some(noted))
    }

    fn ensure_whole(&self, id: &SnapshotId) -> Result<(), SnapshotError> {
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

    fn lower(&self, ids: &[SnapshotId]) -> Result<Vec<PathBuf>, SnapshotError> {
        self.whole(&self.visible(ids)?)
    }

    /// Those of `ids` that are not below one whose root is opaque.
    fn visible(&self, ids: &[SnapshotId]) -> Result<Vec<SnapshotId>, SnapshotError> {
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
    fn whole(&self, ids: &[SnapshotId]) -> Result<Vec<PathBuf>, SnapshotError> {
        ids.iter().map(|id| self.ensure_whole(id).map(|()| self.folder(id))).collect()
    }

    fn implied(&self, id: &SnapshotId) -> Result<Vec<PathBuf>, SnapshotError> {
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

    fn remove(&self, id: &SnapshotId) -> Result<bool, SnapshotError> {
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
    fn take_away(&self, id: &SnapshotId) -> Result<(), SnapshotError> {
        let aside = self.session.unused_path();
        match fs_err::rename(self.folder.join(id.as_str()), &aside) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            done => Ok(done.and_then(|()| remove_tree(&aside))?),
        }
    }

    fn list(&self) -> Result<Vec<SnapshotId>, SnapshotError> {
        let mut ids = Vec::new();
        for entry in fs_err::read_dir(&self.folder)? {
            ids.extend(entry?.file_name().to_str().and_then(|name| name.parse().ok()));
        }
        ids.sort_unstable();
        Ok(ids)
    }
}

/// Makes the root of a tree: its mode must not depend on the umask.
fn make_root(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    fs_err::create_dir(path)?;
    fs_err::set_permissions(path, std::fs::Permissions::from_mode(0o755))
}

impl Meta {
    fn new(found: &Content, boot: &str, implied: Vec<PathBuf>) -> Self {
        let Content { digest, size, disk, stamp } = *found;
        Self { content: digest, size, disk, stamp, boot: boot.into(), implied }
    }

    /// Reads what [`write_meta`] wrote; `None` for anything else.
    pub(crate) fn parse(bytes: &[u8]) -> Option<Self> {
        let (check, json) = bytes.split_at_checked(META_CHECK)?;
        let is_whole = check[..META_CHECK - 1] == *Digest::of(json).hex().as_bytes();
        is_whole.then(|| serde_json::from_slice(json).ok()).flatten()
    }
}

/// A digest in hex and a line break: what `meta` begins with.
const META_CHECK: usize = 65;

/// A snapshot's last use is noted when it was longer ago, in seconds.
const LAST_USED_PRECISION: i64 = 60;

fn write_meta(path: &Path, meta: &Meta) -> io::Result<()> {
    let json = serde_json::to_vec(meta).expect("meta has string keys only");
    let mut bytes = Digest::of(&json).hex().into_bytes();
    bytes.push(b'\n');
    bytes.extend(json);
    fs_err::write(path, bytes)
}

fn is_there(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::AlreadyExists)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layer::entries::{Kind, entries};
    use crate::state::StateFolder;

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
            assert!(!other.snapshots().remove(&id).unwrap());
            assert!(state.snapshots().folder(&id).is_dir());
            drop(state);
            assert!(other.snapshots().remove(&id).unwrap());
            assert_eq!(other.snapshots().get(&id).unwrap(), None);
            assert!(other.snapshots().remove(&id).unwrap());
        }
    }

    #[test]
    fn a_snapshot_of_an_earlier_boot_is_compared_with_its_digest() {
        let check = |damage: &dyn Fn(&Path), is_whole: bool| {
            let top = tempfile::tempdir().unwrap();
            let id = SnapshotId::random();
            {
                let state = StateFolder::open(top.path()).unwrap();
                let draft = state.snapshots().draft().unwrap();
                fs_err::write(draft.folder().join("a"), "text").unwrap();
                state.snapshots().commit(&id, draft).unwrap();
            }
            let folder = top.path().join("snapshots").join(id.as_str());
            let mut meta = Meta::parse(&fs_err::read(folder.join("meta")).unwrap()).unwrap();
            meta.boot = "an earlier one".into();
            write_meta(&folder.join("meta"), &meta).unwrap();
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
    fn a_snapshot_that_somebody_wrote_to_is_not_used() {
        let check = |damage: &dyn Fn(&Path), is_whole: bool| {
            let top = tempfile::tempdir().unwrap();
            let id = SnapshotId::random();
            {
                let state = StateFolder::open(top.path()).unwrap();
                let draft = state.snapshots().draft().unwrap();
                fs_err::write(draft.folder().join("a"), "text").unwrap();
                state.snapshots().commit(&id, draft).unwrap();
            }
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

    #[test]
    fn names_are_not_paths() {
        for wrong in ["", "step-", "step-../../x", "layer-00", "other-0123"] {
            assert!(wrong.parse::<SnapshotId>().is_err(), "{wrong}");
        }
        let id = SnapshotId::random();
        assert_eq!(id.as_str().parse(), Ok(id));
        let layer = SnapshotId::of_layer(&DiffId(Digest::of("")));
        assert_eq!(layer.as_str().parse(), Ok(layer));
    }
}
