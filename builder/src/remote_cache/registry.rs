//! `type=registry`: a cache under a name of its own at a registry.

use std::collections::HashMap;
use std::io::Read;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use rbuild_cache::digest::Digest;
use rbuild_cache::oci::{Descriptor, ImageRef};
use rbuild_solver::image_source::ImageSourceError;
use rbuild_solver::progress::{EventKind, Reporter, Task};
use rbuild_solver::remote_cache::RemoteResult;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::export::CacheContent;
use super::import::{self, ImportError};
use crate::image::StepBlob;
use crate::image_source::Images;
use crate::image_transfer::StoredBlobs;
use crate::registry::RegistryError;
use crate::registry::push::{BlobSource, Naming, PushContent};

/// What the cache, or the image, called `image` says.
pub(super) async fn results(
    images: &Images,
    image: &ImageRef,
) -> Result<Vec<RemoteResult>, ImportError> {
    let (root, location) = images.at_registry(image).await?;
    import::results(&images.documents(image), &root, &location).await
}

/// Layers on their way to a registry, before it is known which records will name them.
pub(super) struct Upload {
    image: ImageRef,
    images: Images,
    reporter: Reporter,
    /// One line of progress for all of them, begun with the first.
    task: Option<Task>,
    at_once: Arc<Semaphore>,
    running: JoinSet<Result<(), RegistryError>>,
}

impl Upload {
    /// Layers for `image`; none yet.
    pub(super) fn new(image: ImageRef, images: Images, reporter: Reporter) -> Self {
        let at_once = images.registry().transport().settings().transfers.max(1);
        let at_once = Arc::new(Semaphore::new(at_once));
        Self { image, images, reporter, task: None, at_once, running: JoinSet::new() }
    }

    /// Begins to send a layer.
    pub(super) fn begin(&mut self, blob: &StepBlob) {
        let task = self.task.get_or_insert_with(|| {
            self.reporter.start(format!("sending layers to {}", self.image))
        });
        let (image, images, task) = (self.image.clone(), self.images.clone(), task.clone());
        let at_once = Arc::clone(&self.at_once);
        let descriptor = blob.descriptor.clone();
        let locations = blob.location.iter().map(|at| (descriptor.digest, at.clone())).collect();
        self.running.spawn(async move {
            let _place = at_once.acquire().await.expect("the semaphore is never closed");
            let source: Arc<dyn BlobSource> = Arc::new(StoredBlobs::new(images.clone(), locations));
            images.registry().pusher().push_blob(&image, &descriptor, &source, &task).await
        });
    }

    /// Waits for the layers, and sends what names them.
    ///
    /// That a layer did not get there is no failure yet: the last push tries once more, and says why
    /// it is none.
    pub(super) async fn finish(
        mut self,
        content: CacheContent,
        locations: HashMap<Digest, String>,
        task: &Task,
    ) -> Result<(), RegistryError> {
        while let Some(sent) = self.running.join_next().await {
            if let Ok(Err(error)) = sent {
                tracing::debug!(%error, "a layer of the cache was not sent");
            }
        }
        if let Some(task) = &self.task {
            task.tell(EventKind::Finished);
        }
        let inner = StoredBlobs::new(self.images.clone(), locations);
        let (config, bytes) = content.config.clone();
        let blobs = std::iter::once(config.clone()).chain(content.layers).collect();
        let source: Arc<dyn BlobSource> =
            Arc::new(CacheBlobs { inner, config: config.digest, bytes });
        let content = PushContent { blobs, manifests: content.manifests };
        let pusher = self.images.registry().pusher();
        pusher.push(&self.image, Naming::Tag, &content, &source, task).await?;
        Ok(())
    }
}

/// The layers of a cache, and its config, which is in memory only.
struct CacheBlobs {
    inner: StoredBlobs,
    config: Digest,
    bytes: Bytes,
}

#[async_trait]
impl BlobSource for CacheBlobs {
    async fn ensure(&self, descriptor: &Descriptor, task: &Task) -> Result<(), ImageSourceError> {
        if descriptor.digest == self.config {
            return Ok(());
        }
        self.inner.ensure(descriptor, task).await
    }

    fn open(&self, descriptor: &Descriptor) -> std::io::Result<Box<dyn Read + Send>> {
        if descriptor.digest == self.config {
            return Ok(Box::new(std::io::Cursor::new(self.bytes.clone())));
        }
        self.inner.open(descriptor)
    }

    fn origin(&self, digest: &Digest, registry: &str) -> Option<ImageRef> {
        self.inner.origin(digest, registry)
    }

    fn arrived(&self, digest: &Digest, image: &ImageRef) {
        self.inner.arrived(digest, image);
    }
}
