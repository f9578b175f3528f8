//! Where base images come from: a registry, an OCI layout on disk, the local store.

use std::sync::Arc;

use async_trait::async_trait;
use rbuild_cache::digest::Digest;
use rbuild_cache::layer::LayerError;
use rbuild_cache::oci::Platform;
use rbuild_cache::snapshot::Snapshot;

use crate::graph::ImageLayer;
use crate::progress::Task;

/// An image as it was found: all of it but its layers' bytes.
#[derive(Clone, Debug, PartialEq)]
pub struct ResolvedImage {
    /// The name as progress shows it.
    pub name: String,
    /// Where its blobs are; means something only to the source that resolved it.
    pub location: String,
    /// The digest of its manifest, and of the index it was found in when there was one.
    pub manifest: Digest,
    /// The digest that the name stands for: of the index, if there is one.
    pub digest: Digest,
    /// The config's bytes as they came, checked against their digest.
    pub config: Arc<[u8]>,
    /// The platform it is for.
    pub platform: Platform,
    /// Its layers, lowest first; as many as the config's diff ids.
    pub layers: Vec<ImageLayer>,
}

/// Brings the layers of images here. Implemented by the program.
#[async_trait]
pub trait ImageSource: Send + Sync {
    /// The snapshot of `layer`, which is fetched when it is not here, and unpacked while it
    /// arrives. `location` is the [`ResolvedImage::location`] of its image.
    ///
    /// Nothing is committed before digest and size of the blob and the diff id of what is in it
    /// were found right.
    async fn unpack(
        &self,
        location: &str,
        layer: &ImageLayer,
        task: &Task,
    ) -> Result<Snapshot, UnpackError>;
}

/// Says why there is no snapshot of an image's layer.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// The layer could not be had.
    #[error(transparent)]
    Source(#[from] ImageSourceError),
    /// It could not be unpacked.
    #[error(transparent)]
    Layer(#[from] LayerError),
}

/// Says why an image could not be had.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct ImageSourceError {
    /// What went wrong: the reference, the host, what was tried.
    pub message: String,
    /// What the user can do.
    pub hint: Option<String>,
    /// What lies behind.
    #[source]
    pub source: Option<Box<dyn std::error::Error + Send + Sync>>,
}
