//! Sources that are fetched by git.

use crate::error::Cause;
use crate::graph::GitOp;
use crate::ops::{Work, Worker};
use crate::tree::Tree;

/// Why a source could not be fetched.
#[derive(Debug, thiserror::Error)]
pub enum GitError {
    /// Not there yet.
    #[error("sources by git are not there yet")]
    NotYet,
}

impl Worker {
    /// The tree of `op`.
    pub(crate) async fn git(&self, _work: &Work<'_>, _op: &GitOp) -> Result<Tree, Cause> {
        Err(GitError::NotYet.into())
    }
}
