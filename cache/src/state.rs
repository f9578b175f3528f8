//! The state folder as a whole: makes what is missing, and hands out the parts.

mod claim;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::checksum::{FileMemo, FileMemos};
use crate::index::{Index, IndexError};
use crate::layout::Layout;
use crate::limits::Limits;
use crate::lock::Locks;
use crate::session::{self, Session, Temporary};
use crate::snapshot::{Committed, SnapshotError, Snapshotter, SnapshotterKind};
use crate::store::ContentStore;

pub use claim::claim;
pub(crate) use claim::is_special;

/// The folder in which rbuild keeps everything; see the crate's documentation for what is where.
/// Cheap to clone.
#[derive(Clone, Debug)]
pub struct StateFolder {
    root: PathBuf,
    session: Arc<Session>,
    blobs: ContentStore,
    snapshots: Arc<dyn Snapshotter>,
    index: Arc<Index>,
    locks: Locks,
    layout: Layout,
    limits: Limits,
    memos: Arc<FileMemos>,
}

/// Says why a state folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// It holds an OCI layout of a version that is not known.
    #[error("`{path}` is not an OCI layout of version 1.0.0")]
    Version {
        /// The file that says so.
        path: PathBuf,
    },
    /// It, or something in it, belongs to somebody else, who could change what builds read.
    #[error("`{path}` belongs to another user, who could change what builds read")]
    Foreign {
        /// What is somebody else's.
        path: PathBuf,
    },
    /// Everybody may write to it, and something is in it.
    #[error("everybody may write to `{path}`, and so change what builds read")]
    Open {
        /// The folder.
        path: PathBuf,
    },
    /// Something in it is of another kind than it should be.
    #[error("`{path}` is not a {expected}")]
    Kind {
        /// What it is about.
        path: PathBuf,
        /// What it should be.
        expected: &'static str,
    },
    /// Its index cannot be opened.
    #[error(transparent)]
    Index(#[from] IndexError),
    /// Its snapshots cannot be used.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// The disk failed.
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl StateFolder {
    /// Opens the state folder at `root`, makes it when it is missing, and removes what killed
    /// processes left in it.
    pub fn open(root: impl Into<PathBuf>) -> Result<Self, StateError> {
        Self::open_with(root, SnapshotterKind::default())
    }

    /// Like [`StateFolder::open`], with a given kind of snapshotter. Their snapshots are the same.
    pub fn open_with(
        root: impl Into<PathBuf>,
        snapshotter: SnapshotterKind,
    ) -> Result<Self, StateError> {
        // Others, in other folders, get paths in it: the sandbox's processes.
        let root = std::path::absolute(root.into())?;
        claim(&root)?;
        let is_made = is_made(&root)?;
        let tmp = root.join("tmp");
        session::remove_dead_sessions(&tmp)?;
        let session = Session::start(&tmp)?;
        if !is_made {
            finish_making(&root, &session)?;
        }
        let blobs = ContentStore::new(root.join("blobs/sha256"), Arc::clone(&session));
        let committed = Committed::new(root.join("snapshots"), Arc::clone(&session))?;
        let locks = Locks::new(root.join("locks"));
        Ok(Self {
            snapshots: snapshotter.over(committed),
            index: Arc::new(Index::open(&root.join("index.db"))?),
            layout: Layout::new(&root, blobs.clone(), locks.clone(), Arc::clone(&session)),
            locks,
            blobs,
            root,
            limits: Limits::default(),
            memos: Arc::new(FileMemos::new(session.folder().to_owned())),
            session,
        })
    }

    /// Takes in as much as `limits` let it.
    #[must_use]
    pub fn with_limits(self, limits: Limits) -> Self {
        Self { limits, ..self }
    }

    /// How much it takes in.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Where it is.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The blobs.
    pub fn blobs(&self) -> &ContentStore {
        &self.blobs
    }

    /// The trees.
    pub fn snapshots(&self) -> &Arc<dyn Snapshotter> {
        &self.snapshots
    }

    /// The results of steps.
    pub fn index(&self) -> &Arc<Index> {
        &self.index
    }

    /// The locks between processes.
    pub fn locks(&self) -> &Locks {
        &self.locks
    }

    /// The images by name.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// This process's presence in the folder.
    pub fn session(&self) -> &Session {
        &self.session
    }

    /// A new empty folder that is removed when it is dropped, or when this process dies.
    pub fn temporary(&self) -> io::Result<Temporary> {
        self.session.temporary()
    }

    /// What the files of the context called `name` hashed to; read once by this process. `name` is a
    /// single plain component.
    pub fn file_memo(&self, name: &str) -> io::Result<Arc<FileMemo>> {
        Ok(self.memos.open(self.folder("context")?.join(name)))
    }

    /// The folder `name` of those that hold state of other parts (`mounts`, `context`), made when
    /// it is missing. `name` is a single plain component.
    pub fn folder(&self, name: &str) -> io::Result<PathBuf> {
        let path = self.root.join(name);
        match claim::make(&path) {
            Ok(()) => Ok(path),
            Err(StateError::Io(error)) => Err(error),
            Err(error) => Err(io::Error::other(error)),
        }
    }
}

/// `oci-layout` is the last thing that is written.
fn is_made(root: &Path) -> Result<bool, StateError> {
    let path = root.join("oci-layout");
    let text = match fs_err::read(&path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
        read => read?,
    };
    let layout: serde_json::Value = serde_json::from_slice(&text).unwrap_or_default();
    match layout["imageLayoutVersion"].as_str() {
        Some("1.0.0") => Ok(true),
        _ => Err(StateError::Version { path }),
    }
}

/// Several processes may do this at once, and any of them may be killed.
fn finish_making(root: &Path, session: &Session) -> io::Result<()> {
    let aside = session.unused_path();
    fs_err::write(&aside, br#"{"imageLayoutVersion":"1.0.0"}"#)?;
    fs_err::File::open(&aside)?.sync_all()?;
    fs_err::rename(&aside, root.join("oci-layout"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn opens_twice_and_leaves_nothing_behind() {
        let top = tempfile::tempdir().unwrap();
        let root = top.path().join("deep/state");
        let (one, two) = (StateFolder::open(&root).unwrap(), StateFolder::open(&root).unwrap());
        let (a, b) = (one.temporary().unwrap(), two.temporary().unwrap());
        assert_ne!(a.path(), b.path());
        drop((one, two, a, b));
        assert_eq!(fs_err::read_dir(root.join("tmp")).unwrap().count(), 0);
    }

    #[test]
    fn making_that_was_interrupted_is_finished() {
        let top = tempfile::tempdir().unwrap();
        fs_err::create_dir_all(top.path().join("tmp")).unwrap();
        fs_err::write(top.path().join("tmp/half"), "").unwrap();
        drop(StateFolder::open(top.path()).unwrap());
        assert!(top.path().join("oci-layout").is_file());
        assert_eq!(fs_err::read_dir(top.path().join("tmp")).unwrap().count(), 0);
    }

    #[test]
    fn folders_that_were_removed_are_made_again() {
        let top = tempfile::tempdir().unwrap();
        drop(StateFolder::open(top.path()).unwrap());
        for folder in claim::FOLDERS {
            fs_err::remove_dir_all(top.path().join(folder)).unwrap();
            let state = StateFolder::open(top.path()).unwrap();
            assert!(top.path().join(folder).is_dir(), "{folder}");
            state.blobs().put(b"blob").unwrap();
            drop(state.locks().exclusive("lock").unwrap());
        }
    }

    #[test]
    fn another_layout_is_left_alone() {
        let top = tempfile::tempdir().unwrap();
        fs_err::write(top.path().join("oci-layout"), r#"{"imageLayoutVersion":"2.0.0"}"#).unwrap();
        assert!(matches!(StateFolder::open(top.path()), Err(StateError::Version { .. })));
    }
}
