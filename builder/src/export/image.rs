//! `type=image`: the image in the local store, under its names; with `push=true` (which is what
//! `type=registry` means) in registries.
//!
//! What is pushed is not kept in the local store as well, unless `store=true` or the push fails:
//! layers of a base image that the registry has already are then never fetched.

use std::sync::Arc;

use async_trait::async_trait;
use rbuild_cache::oci::ImageRef;
use rbuild_solver::image_source::ImageSourceError;

use super::attributes::Attributes;
use super::{Around, ExportError, Exported, Exporter, blocking};
use crate::image::{self, BuiltImage, ImageOptions, WrittenImage};
use crate::image_source::Images;
use crate::image_transfer::StoredBlobs;
use crate::registry::push::{BlobSource, Naming, PushContent};
use crate::request::{BuildRequest, UsageError};

/// Names images in the local store, and pushes them.
pub(super) struct ImageExporter {
    names: Vec<ImageRef>,
    options: ImageOptions,
    push: Option<Naming>,
    store: bool,
}

impl ImageExporter {
    pub(super) fn new(
        attributes: &mut Attributes,
        request: &BuildRequest,
    ) -> Result<Self, UsageError> {
        let push = attributes.boolean("push", false)?;
        let by_digest = attributes.boolean("push-by-digest", false)?;
        let naming = if by_digest { Naming::Digest } else { Naming::Tag };
        Ok(Self {
            names: attributes.names(request)?,
            options: attributes.image_options(request)?,
            push: push.then_some(naming),
            store: attributes.boolean("store", !push)?,
        })
    }

    /// Writes the image; layers that are compressed for it are on their way to the first name's
    /// registry meanwhile.
    async fn write(
        &self,
        built: &[BuiltImage],
        around: &Around,
    ) -> Result<WrittenImage, ExportError> {
        let (images, task) = (&around.images, &around.task);
        let Some(first) = self.names.first().filter(|_| self.push.is_some()) else {
            return Ok(image::write(images, built, &self.options, task).await?);
        };
        let (watcher, layers) = tokio::sync::mpsc::unbounded_channel();
        let (written, ()) = tokio::join!(
            image::write_watched(images, built, &self.options, Some(watcher), task),
            images.registry().pusher().push_growing(first, layers, task)
        );
        Ok(written?)
    }

    /// Pushes under all names. What was pushed nowhere yet is kept under its names here.
    async fn push(
        &self,
        naming: Naming,
        written: &WrittenImage,
        around: &Around,
    ) -> Result<(), ExportError> {
        let content =
            PushContent { blobs: written.blobs.clone(), manifests: written.manifests.clone() };
        let blobs = StoredBlobs::new(around.images.clone(), written.locations.clone());
        let source: Arc<dyn BlobSource> = Arc::new(blobs);
        let pusher = around.images.registry().pusher();
        for (position, name) in self.names.iter().enumerate() {
            let outcome = pusher.push(name, naming, &content, &source, &around.task).await;
            if let Err(error) = outcome {
                let mut error = ImageSourceError::from(error);
                self.keep(written, around).await?;
                let left: Vec<String> =
                    self.names[position..].iter().map(ImageRef::familiar).collect();
                let kept =
                    format!("`rbuild push {}` finishes it: the image is here", left.join(" "));
                error.hint = Some(match error.hint {
                    None => kept,
                    Some(hint) => format!("{hint}; {kept}"),
                });
                return Err(error.into());
            }
        }
        Ok(())
    }

    /// Makes it the local image of its names. Layers of a base that is in a registry stay there.
    async fn keep(&self, written: &WrittenImage, around: &Around) -> Result<(), ExportError> {
        let mut here = written.clone();
        here.locations.retain(|_, location| Images::image_at(location).is_none());
        image::fetch_layers(&around.images, &here, &around.task).await?;
        self.name(written, around).await
    }

    async fn name(&self, written: &WrittenImage, around: &Around) -> Result<(), ExportError> {
        let names: Vec<String> = self.names.iter().map(ToString::to_string).collect();
        let (state, root) = (around.images.state().clone(), written.root.clone());
        blocking(move || Ok(state.layout().set(&names, &root)?)).await
    }
}

#[async_trait]
impl Exporter for ImageExporter {
    fn title(&self) -> String {
        "exporting to image".into()
    }

    async fn export(&self, built: &[BuiltImage], around: &Around) -> Result<Exported, ExportError> {
        let written = self.write(built, around).await?;
        if self.store {
            image::fetch_layers(&around.images, &written, &around.task).await?;
            self.name(&written, around).await?;
        }
        if let Some(naming) = self.push {
            self.push(naming, &written, around).await?;
        }
        Ok(Exported {
            image: Some(written.root),
            config: written.config,
            names: self.names.clone(),
        })
    }
}
