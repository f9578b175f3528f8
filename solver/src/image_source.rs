//! Where base images come from: a registry, an OCI layout on disk, the local store.

use std::sync::Arc;

use async_trait::async_trait;
use rbuild_cache::digest::Digest;
use rbuild_cache::oci::Platform;

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

/// Resolves names to images and fetches their layers. Implemented by the program.
#[async_trait]
pub trait ImageSource: Send + Sync {
    /// Makes sure that the blob of `layer` is in the local content store, checked against digest
    /// and size. `location` is the [`ResolvedImage::location`] of its image.
    async fn fetch(
        &self,
        location: &str,
        layer: &ImageLayer,
        task: &Task,
    ) -> Result<(), ImageSourceError>;
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
