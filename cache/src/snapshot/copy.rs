//! Snapshots without overlayfs: preparing copies the layers below into one plain folder, and
//! committing keeps what changed in it. Slow, and right wherever files can be made.

use std::path::PathBuf;

use super::{
    Active, ActiveKind, Committed, Snapshot, SnapshotError, SnapshotId, Snapshotter,
    SnapshotterKind, make_root,
};
use crate::layer::diff::Before;
use crate::layer::flatten::add_layer;
use crate::remove::remove_tree;

/// Keeps trees by copying.
#[derive(Debug)]
pub struct CopySnapshotter {
    committed: Committed,
}

impl CopySnapshotter {
    /// Keeps trees among `committed`.
    pub fn new(committed: Committed) -> Self {
        Self { committed }
    }
}

impl Snapshotter for CopySnapshotter {
    fn committed(&self) -> &Committed {
        &self.committed
    }

    fn kind(&self) -> SnapshotterKind {
        SnapshotterKind::Copy
    }

    fn prepare(&self, parents: &[SnapshotId]) -> Result<Active, SnapshotError> {
        let layers: Vec<PathBuf> = self.lower(parents)?;
        let draft = self.draft()?;
        let merged = draft.temporary.path().join("merged");
        make_root(&merged)?;
        layers.iter().try_for_each(|layer| add_layer(layer, &merged))?;
        let before = Before::of(&merged)?;
        Ok(Active { draft, kind: ActiveKind::Copy(before), _shown: Vec::new() })
    }

    fn commit_active(&self, id: &SnapshotId, active: Active) -> Result<Snapshot, SnapshotError> {
        let merged = active.draft.temporary.path().join("merged");
        match &active.kind {
            ActiveKind::Copy(before) => before.move_changes(&merged, &active.draft.folder())?,
            ActiveKind::Overlay { .. } => {
                return Err(SnapshotError::Foreign);
            }
        }
        remove_tree(&merged)?;
        self.committed.commit(id, active.draft)
    }
}
