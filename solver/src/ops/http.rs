//! Sources that are fetched by http.

use crate::error::Cause;
use crate::graph::HttpOp;
use crate::ops::{Work, Worker};
use crate::tree::Tree;

/// Why a source could not be fetched.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// Not there yet.
    #[error("sources by http are not there yet")]
    NotYet,
}

impl Worker {
    /// The tree of `op`.
    pub(crate) async fn http(&self, _work: &Work<'_>, _op: &HttpOp) -> Result<Tree, Cause> {
        Err(HttpError::NotYet.into())
    }
}
