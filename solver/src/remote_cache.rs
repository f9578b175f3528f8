//! What steps came to on other machines, and who is told what they come to here.
//!
//! A result found elsewhere is a claim: these keys lead to a tree with this digest, which this blob
//! unpacks to. Keys of later steps are made of the claimed digest, so that a chain of known steps
//! moves no byte. The blob is fetched when somebody reads the tree, and then all of the claim is
//! checked: the blob's digest, the layer's, the tree's. A claim that does not hold is rejected, and
//! whoever solves begins again without it: it costs time, and nothing that was built on it stays.

use std::sync::Arc;

use async_trait::async_trait;
use rbuild_cache::digest::{CacheKey, TreeDigest};
use rbuild_cache::index::{CacheRecord, IndexError};
use rbuild_cache::layer::LayerError;
use rbuild_cache::snapshot::{Snapshot, SnapshotId};
use rbuild_cache::state::StateFolder;
use serde_json::Value;

use crate::graph::ImageLayer;
use crate::image_source::{ImageSource, UnpackError};
use crate::progress::Task;
use crate::tree::{Tree, TreeLayer};

/// The caches of others. Implemented by the program.
#[async_trait]
pub trait RemoteCache: Send + Sync {
    /// What the step with this key came to elsewhere, if anybody knows.
    async fn find(&self, key: &CacheKey) -> Option<Arc<RemoteResult>>;

    /// Takes note that a result cannot be used, and why: it is not found again.
    fn reject(&self, remote: &RemoteLayer, reason: &str);

    /// Takes note of what a step of this build came to. A step may be told of more than once.
    fn came_to(&self, result: StepResult);
}

/// What a step came to elsewhere, as somebody says.
#[derive(Clone, Debug, PartialEq)]
pub struct RemoteResult {
    /// The keys under which it is known there.
    pub keys: Vec<CacheKey>,
    /// What its tree contains, without times.
    pub content: TreeDigest,
    /// The bytes of its files.
    pub size: u64,
    /// The blob that its tree is in.
    pub layer: ImageLayer,
    /// Where the blob is, in the words of the [`ImageSource`].
    pub location: String,
    /// When it ran, in seconds since 1970.
    pub created: i64,
    /// [`StepResult::source`]
    pub source: Option<Value>,
}

/// A result of elsewhere as a layer of a tree.
#[derive(Clone, Debug, PartialEq)]
pub struct RemoteLayer {
    /// What was found.
    pub result: Arc<RemoteResult>,
    /// The key under which this build asked for it. Only under this one is it kept here: what else
    /// its cache says of it is not this machine's to believe.
    pub key: CacheKey,
    /// The step as people know it: `RUN go build`.
    pub name: String,
}

/// What a step of this build came to.
#[derive(Clone, Debug)]
pub struct StepResult {
    /// The keys under which it was asked for or recorded.
    pub keys: Vec<CacheKey>,
    /// Its layer.
    pub layer: TreeLayer,
    /// The tree it stands on.
    pub base: Tree,
    /// What a server said of the file that it is, in a form that who asks for the result knows.
    pub source: Option<Value>,
}

/// Says why a result of elsewhere is none.
#[derive(Debug, thiserror::Error)]
pub enum RemoteError {
    /// Its blob could not be had, is no layer, or another than was said.
    #[error(transparent)]
    Unpack(#[from] UnpackError),
    /// Its tree is another than was said.
    #[error("its tree has digest `{}`, but its record says `{}`", found.0, claimed.0)]
    Content {
        /// What the record says.
        claimed: TreeDigest,
        /// What it unpacked to.
        found: TreeDigest,
    },
    /// The index could not be written.
    #[error(transparent)]
    Index(#[from] IndexError),
}

/// The snapshot of a result of elsewhere: fetched, unpacked and compared with all that was said of
/// it. From now on the local index knows it.
///
/// # Errors
/// When the claim does not hold, whyever: the result is to be rejected.
pub async fn realize(
    state: &StateFolder,
    images: &dyn ImageSource,
    remote: &RemoteLayer,
    task: &Task,
) -> Result<Snapshot, RemoteError> {
    let result = &remote.result;
    let snapshot = checked(state, images, result, task).await?;
    let record = CacheRecord {
        snapshot: snapshot.id.clone(),
        content: snapshot.content,
        description: remote.name.clone(),
        evidence: Value::Null,
        created: result.created,
    };
    state.index().insert(&[remote.key], &record)?;
    Ok(snapshot)
}

async fn checked(
    state: &StateFolder,
    images: &dyn ImageSource,
    result: &RemoteResult,
    task: &Task,
) -> Result<Snapshot, RemoteError> {
    let id = SnapshotId::of_layer(&result.layer.diff_id);
    let known = state.snapshots().get(&id).map_err(LayerError::from).map_err(UnpackError::from)?;
    let snapshot = match known {
        Some(snapshot) => snapshot,
        None => images.unpack(&result.location, &result.layer, task).await?,
    };
    if snapshot.content != result.content {
        return Err(RemoteError::Content { claimed: result.content, found: snapshot.content });
    }
    Ok(snapshot)
}
