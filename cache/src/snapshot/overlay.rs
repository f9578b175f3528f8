//! Snapshots that overlayfs puts together: preparing copies nothing, and what a step wrote lies in
//! a folder of its own, which becomes the snapshot.

use std::path::PathBuf;

use super::chain;
use super::{
    Active, ActiveKind, Committed, Shown, Snapshot, SnapshotError, SnapshotId, Snapshotter,
    SnapshotterKind,
};
use crate::remove::remove_tree;

/// Keeps trees for mounting with overlayfs.
#[derive(Debug)]
pub struct OverlaySnapshotter {
    committed: Committed,
}

impl OverlaySnapshotter {
    /// Keeps trees among `committed`.
    pub fn new(committed: Committed) -> Self {
        Self { committed }
    }
}

impl Snapshotter for OverlaySnapshotter {
    fn committed(&self) -> &Committed {
        &self.committed
    }

    fn kind(&self) -> SnapshotterKind {
        SnapshotterKind::Overlay
    }

    fn prepare(&self, parents: &[SnapshotId]) -> Result<Active, SnapshotError> {
        let (lower, shown) = self.shown(parents)?;
        let draft = self.draft()?;
        fs_err::create_dir(draft.temporary.path().join("work"))?;
        Ok(Active { draft, kind: ActiveKind::Overlay { lower }, _shown: shown })
    }

    fn lower(&self, ids: &[SnapshotId]) -> Result<Vec<PathBuf>, SnapshotError> {
        let visible = self.committed.visible(ids)?;
        self.committed.whole(&chain::shorten(&self.committed, visible)?)
    }

    fn shown(&self, ids: &[SnapshotId]) -> Result<(Vec<PathBuf>, Vec<Shown>), SnapshotError> {
        let visible = self.committed.visible(ids)?;
        let (own, shown) = self.committed.shown(visible)?;
        let folders = self.committed.whole(&chain::shorten(&self.committed, own)?)?;
        Ok((folders, shown))
    }

    fn commit_active(&self, id: &SnapshotId, active: Active) -> Result<Snapshot, SnapshotError> {
        remove_tree(&active.draft.temporary.path().join("work"))?;
        match &active.kind {
            ActiveKind::Overlay { lower } => self.committed.commit_over(id, active.draft, lower),
            ActiveKind::Copy(_) => Err(SnapshotError::Foreign),
        }
    }
}
