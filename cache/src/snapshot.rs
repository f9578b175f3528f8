//! Trees of layers: each snapshot is what one step (or one layer of an image) adds to those below.
//!
//! A snapshot's folder is in overlayfs form whichever [`Snapshotter`] made it: deleted paths are
//! whiteouts, folders that hide what is below them are opaque ([`crate::layer::whiteout`]). Once
//! committed it never changes, and it is only ever read.
//!
//! Nobody waits for the disk when a snapshot is committed. Instead `meta` says in which boot of the
//! machine it was written: while that boot lasts, what was written is read back, on the disk or
//! not. In a later boot the tree is compared with its digest before it is used for the first time,
//! and dropped when it does not agree.

mod overlay;

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

pub use overlay::OverlaySnapshotter;

use crate::digest::{DiffId, Digest, TreeDigest};
use crate::layer::content::{self, Content, Known};
use crate::remove::remove_tree;
use crate::session::{Session, Temporary, held_names, random_name};

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

    /// Removes a snapshot unless a running process holds it; returns whether it is gone.
    fn remove(&self, id: &SnapshotId) -> Result<bool, SnapshotError> {
        self.committed().remove(id)
    }

    /// The names of all snapshots, sorted.
    fn list(&self) -> Result<Vec<SnapshotId>, SnapshotError> {
        self.committed().list()
    }
}

/// Picks the snapshotter for what this kernel and this user can do.
pub fn choose(committed: Committed) -> Result<Arc<dyn Snapshotter>, SnapshotError> {
    Ok(Arc::new(OverlaySnapshotter::new(committed)))
}

/// A folder that is being filled. Dropped, it is removed.
#[derive(Debug)]
pub struct Draft {
    temporary: Temporary,
    known: Mutex<Known>,
}

impl Draft {
    fn new(session: &Arc<Session>) -> Result<Self, SnapshotError> {
        let temporary = session.temporary()?;
        make_root(&temporary.path().join("fs"))?;
        Ok(Self { temporary, known: Mutex::default() })
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
    found: Arc<Mutex<HashMap<SnapshotId, Snapshot>>>,
}

/// What `meta` holds.
#[derive(Serialize, Deserialize)]
struct Meta {
    content: TreeDigest,
    size: u64,
    /// The boot in which the tree was written, or last found whole.
    boot: Box<str>,
}

impl Committed {
    /// The snapshots in `folder`, which exists; new ones are written aside in `session`.
    pub fn new(folder: PathBuf, session: Arc<Session>) -> io::Result<Self> {
        let boot = match fs_err::read_to_string("/proc/sys/kernel/random/boot_id") {
            // Without /proc each process is a boot of its own: slower, and right.
            Err(_) => random_name().into(),
            Ok(text) => text.trim().into(),
        };
        Ok(Self { folder, session, boot, found: Arc::default() })
    }

    fn draft(&self) -> Result<Draft, SnapshotError> {
        Draft::new(&self.session)
    }

    fn commit(&self, id: &SnapshotId, draft: Draft) -> Result<Snapshot, SnapshotError> {
        let Draft { temporary, known } = draft;
        let known = known.into_inner().unwrap_or_else(PoisonError::into_inner);
        let Content { digest, size } = content::of_folder(&temporary.path().join("fs"), &known)?;
        let meta = Meta { content: digest, size, boot: self.boot.as_ref().into() };
        write_meta(&temporary.path().join("meta"), &meta)?;
        self.session.hold(id.as_str())?;
        match temporary.rename(&self.folder.join(id.as_str())) {
            Ok(()) => Ok(self.note(Snapshot { id: id.clone(), content: digest, size })),
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

    fn note(&self, snapshot: Snapshot) -> Snapshot {
        self.found().insert(snapshot.id.clone(), snapshot.clone());
        snapshot
    }

    fn found(&self) -> MutexGuard<'_, HashMap<SnapshotId, Snapshot>> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn get(&self, id: &SnapshotId) -> Result<Option<Snapshot>, SnapshotError> {
        if let Some(found) = self.found().get(id) {
            return Ok(Some(found.clone()));
        }
        self.session.hold(id.as_str())?;
        let path = self.folder.join(id.as_str()).join("meta");
        let bytes = match fs_err::read(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                // A folder without `meta` is what a power loss left.
                self.take_away(id)?;
                return Ok(None);
            }
            read => read?,
        };
        match serde_json::from_slice::<Meta>(&bytes) {
            Ok(meta) if meta.boot.as_ref() == self.boot.as_ref() || self.survived(id, &meta)? => {
                let Meta { content, size, .. } = meta;
                Ok(Some(self.note(Snapshot { id: id.clone(), content, size })))
            }
            Ok(_) | Err(_) => {
                tracing::warn!(snapshot = %id, "dropped a damaged snapshot");
                self.take_away(id)?;
                Ok(None)
            }
        }
    }

    /// Whether a snapshot of an earlier boot is whole; if so, this is noted for the rest of this
    /// boot.
    fn survived(&self, id: &SnapshotId, meta: &Meta) -> Result<bool, SnapshotError> {
        let Content { digest, size } = content::of_folder(&self.folder(id), &Known::default())?;
        if digest != meta.content || size != meta.size {
            return Ok(false);
        }
        let noted = Meta { boot: self.boot.as_ref().into(), ..*meta };
        let aside = self.session.unused_path();
        write_meta(&aside, &noted)?;
        fs_err::rename(&aside, self.folder.join(id.as_str()).join("meta"))?;
        Ok(true)
    }

    /// Where the tree of `id` is, whether or not it is there.
    pub fn folder(&self, id: &SnapshotId) -> PathBuf {
        self.folder.join(id.as_str()).join("fs")
    }

    /// The folder of a snapshot that is there.
    fn existing_folder(&self, id: &SnapshotId) -> Result<PathBuf, SnapshotError> {
        self.get(id)?.map(|_| self.folder(id)).ok_or_else(|| SnapshotError::Missing(id.clone()))
    }

    fn remove(&self, id: &SnapshotId) -> Result<bool, SnapshotError> {
        let path = self.folder.join(id.as_str());
        let aside = self.session.unused_path();
        match fs_err::rename(&path, &aside) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(true),
            done => done?,
        }
        let tmp = self.folder.with_file_name("tmp");
        if held_names(&tmp)?.contains(id.as_str()) {
            match fs_err::rename(&aside, &path) {
                // Its holder missed it and has made it again.
                Err(e) if is_there(&e) => remove_tree(&aside)?,
                done => done?,
            }
            return Ok(false);
        }
        remove_tree(&aside)?;
        Ok(true)
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

fn write_meta(path: &Path, meta: &Meta) -> io::Result<()> {
    fs_err::write(path, serde_json::to_vec(meta).expect("meta has string keys only"))
}

fn is_there(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::AlreadyExists)
}
