//! Trees that are being made: drafts, which are filled, and active trees, which steps write to.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{Shown, SnapshotError, sharing};
use crate::digest::Digest;
use crate::layer::content::{Known, KnownFile};
use crate::layer::diff::Before;
use crate::session::{Session, Temporary};

/// Something kept beside a tree, in a form that who keeps it knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Note {
    /// What the step that made it read.
    Reads,
    /// Which of its files can be linked.
    Files,
}

impl Note {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Reads => "reads",
            Self::Files => "files",
        }
    }
}

/// A folder that is being filled. Dropped, it is removed.
#[derive(Debug)]
pub struct Draft {
    pub(super) temporary: Temporary,
    pub(super) known: Mutex<Known>,
    pub(super) implied: Mutex<Vec<PathBuf>>,
    pub(super) sharing: AtomicBool,
}

impl Draft {
    pub(super) fn new(session: &Arc<Session>) -> Result<Self, SnapshotError> {
        let temporary = session.temporary()?;
        make_root(&temporary.path().join("fs"))?;
        Ok(Self {
            temporary,
            known: Mutex::default(),
            implied: Mutex::default(),
            sharing: AtomicBool::default(),
        })
    }

    /// The folder.
    pub fn folder(&self) -> PathBuf {
        self.temporary.path().join("fs")
    }

    /// Tells that the file at `path` (relative to the folder) has these bytes, so that committing
    /// need not read them.
    pub fn know(&self, path: impl Into<PathBuf>, digest: Digest) {
        self.known().paths.insert(path.into(), KnownFile { digest, metadata: None });
    }

    /// The same for many files, of some of which all is known.
    pub fn know_all(&self, files: HashMap<PathBuf, KnownFile>) {
        let mut known = self.known();
        if known.paths.is_empty() {
            known.paths = files;
        } else {
            known.paths.extend(files);
        }
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

    /// Keeps `bytes` beside the tree, for [`Snapshotter::note`](super::Snapshotter::note).
    pub fn add_note(&self, note: Note, bytes: &[u8]) -> io::Result<()> {
        fs_err::write(self.temporary.path().join(note.name()), bytes)
    }

    /// Tells that no step of this build is going to see the files: other snapshots may link them
    /// ([`Snapshotter::may_link_from`](super::Snapshotter::may_link_from)).
    pub fn set_sharing(&self) {
        self.sharing.store(true, Ordering::Relaxed);
    }

    /// Tells that files are links to those of other snapshots: steps get copies.
    pub fn set_linked(&self) -> io::Result<()> {
        self.set_sharing();
        fs_err::write(self.temporary.path().join(sharing::LINKED), "")
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A tree that is being written to. Dropped, it is removed.
#[derive(Debug)]
pub struct Active {
    pub(super) draft: Draft,
    pub(super) kind: ActiveKind,
    /// Keeps what is mounted from being linked elsewhere.
    pub(super) _shown: Vec<Shown>,
}

#[derive(Debug)]
pub(super) enum ActiveKind {
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
    /// [`Draft::set_sharing`]
    pub fn set_sharing(&self) {
        self.draft.set_sharing();
    }

    /// [`Draft::add_note`]
    pub fn add_note(&self, note: Note, bytes: &[u8]) -> io::Result<()> {
        self.draft.add_note(note, bytes)
    }

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

/// Makes the root of a tree: its mode must not depend on the umask.
pub(super) fn make_root(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    fs_err::create_dir(path)?;
    fs_err::set_permissions(path, std::fs::Permissions::from_mode(0o755))
}
