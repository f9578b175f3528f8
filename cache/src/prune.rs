//! What may be removed from a state folder, and in which order.
//!
//! Records first, then snapshots, then blobs: nothing that remains points at what is gone. An entry
//! that a running process holds stays: the entry is moved away before the question is asked, the
//! process looks for it after it has said that it holds it ([`crate::session::Session::hold`]), so
//! that one of them always sees the other.

use crate::index::IndexError;
use crate::snapshot::{SnapshotError, SnapshotId};
use crate::state::StateFolder;

/// Says why something could not be removed.
#[derive(Debug, thiserror::Error)]
pub enum PruneError {
    /// Its records are still there.
    #[error(transparent)]
    Index(#[from] IndexError),
    /// Its tree is still there.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
}

/// Removes a result: its records, then its tree. Returns whether the tree is gone; it stays when a
/// running process holds it.
pub fn remove_result(state: &StateFolder, snapshot: &SnapshotId) -> Result<bool, PruneError> {
    state.index().forget(snapshot)?;
    Ok(state.snapshots().remove(snapshot)?)
}
