//! Files that snapshots share as hard links, so that what the store has is not written again; and why
//! no step ever sees that.
//!
//! A hard link shows: `gzip`, `bzip2` and `xz` refuse a file with two names, and `tar` stores the
//! second one as a link. A step that works in a new store must not fail in one that happens to hold
//! the same files. So a snapshot is either mounted as it is or linked from, never both:
//!
//! - Who commits a snapshot says whether a step of its build is going to see it. Only from one that no
//!   step sees may be linked ([`Meta::sharing`](super::Meta)).
//! - Before the first link, the mark [`LINKED`] is put beside its tree, for good. A step that is to see
//!   it after all, perhaps of another Dockerfile, gets a copy of the whole layer: one that is made
//!   once, and never linked.
//! - Whoever mounts one without the mark keeps its folder locked meanwhile (flock, shared); whoever
//!   puts the mark there has the lock alone, or copies files instead.
//!
//! Within one snapshot a file is linked once at most: two names would be a hard link of the image.

use std::io;
use std::path::Path;

use fs_err::File;
use rustix::fs::{FlockOperation, flock};

use super::{Committed, SnapshotError, SnapshotId};
use crate::digest::{DiffId, Hasher};
use crate::layer::flatten;
use crate::lock::retry_interrupted;

/// The mark beside the tree of a snapshot that has files in common with others.
pub(super) const LINKED: &str = "linked";

/// A snapshot that is mounted as it is: as long as this lives, nobody links its files.
#[derive(Debug)]
pub struct Shown {
    _lock: File,
}

impl Committed {
    /// `ids`, or copies of those that have files in common with others; and what keeps the former as
    /// they are.
    pub(super) fn shown(
        &self,
        ids: Vec<SnapshotId>,
    ) -> Result<(Vec<SnapshotId>, Vec<Shown>), SnapshotError> {
        let mut shown = Vec::new();
        let mut own = Vec::with_capacity(ids.len());
        for id in ids {
            if !self.found().get(&id).is_some_and(|found| found.sharing) {
                own.push(id);
                continue;
            }
            let folder = self.folder.join(id.as_str());
            let lock = File::open(&folder)?;
            retry_interrupted(|| flock(&lock, FlockOperation::LockShared))?;
            if folder.join(LINKED).exists() {
                own.push(self.copied(&id)?);
            } else {
                shown.push(Shown { _lock: lock });
                own.push(id);
            }
        }
        Ok((own, shown))
    }

    /// A copy of `id`, made when there is none.
    fn copied(&self, id: &SnapshotId) -> Result<SnapshotId, SnapshotError> {
        let mut hasher = Hasher::new();
        hasher.field("rbuild copied layer 1");
        hasher.field(id.as_str());
        let copy = SnapshotId::of_layer(&DiffId(hasher.digest()));
        if self.get(&copy)?.is_some() {
            match self.ensure_whole(&copy) {
                Err(SnapshotError::Damaged(_)) => {}
                looked => return looked.map(|()| copy),
            }
        }
        self.ensure_whole(id)?;
        let draft = self.draft()?;
        flatten::copy_layer(&self.folder(id), &draft.folder())?;
        self.commit(&copy, draft)?;
        Ok(copy)
    }

    /// [`Snapshotter::may_link_from`](super::Snapshotter::may_link_from)
    pub(super) fn may_link_from(&self, tree: &Path) -> bool {
        let Some(folder) = tree.parent() else { return false };
        let name = folder.file_name().and_then(|name| name.to_str());
        let id = name.and_then(|name| name.parse::<SnapshotId>().ok());
        let sharing = id.is_some_and(|id| self.found().get(&id).is_some_and(|found| found.sharing));
        // Where the mark cannot be put, files are copied.
        sharing && mark(folder).unwrap_or(false)
    }
}

/// Puts the mark beside a tree unless somebody shows it; returns whether it is there.
fn mark(folder: &Path) -> io::Result<bool> {
    let mark = folder.join(LINKED);
    if mark.exists() {
        return Ok(true);
    }
    let lock = File::open(folder)?;
    if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
        return Ok(false);
    }
    File::create(mark).map(|_| true)
}
