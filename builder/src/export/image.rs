//! `type=image`: the image in the local store, under its names; with `push=true` (which is what
//! `type=registry` means) in registries.
//!
//! What is pushed is not kept in the local store as well, unless `store=true`: layers of a base
//! image that the registry has already are then never fetched.

use std::sync::Arc;

use async_trait::async_trait;
use rbuild_cache::oci::ImageRef;

use super::attributes::Attributes;
use super::{Around, ExportError, Exported, Exporter, blocking};
use crate::image::{self, BuiltImage, ImageOptions, WrittenImage};
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
        for name in &self.names {
            pusher
                .push(name, naming, &content, &source, &around.task)
                .await
                .map_err(rbuild_solver::image_source::ImageSourceError::from)?;
        }
        Ok(())
    }
}

#[async_trait]
impl Exporter for ImageExporter {
    fn title(&self) -> String {
        "exporting to image".into()
    }

    async fn export(&self, built: &[BuiltImage], around: &Around) -> Result<Exported, ExportError> {
        let written = image::write(&around.images, built, &self.options, &around.task).await?;
        if self.store {
            image::fetch_layers(&around.images, &written, &around.task).await?;
            let names: Vec<String> = self.names.iter().map(ToString::to_string).collect();
            let (state, root) = (around.images.state().clone(), written.root.clone());
            blocking(move || Ok(state.layout().set(&names, &root)?)).await?;
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
