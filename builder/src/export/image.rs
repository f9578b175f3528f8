//! `type=image`: the image in the local store, under its names; with `push=true` (which is what
//! `type=registry` means) in registries.
//!
//! What is pushed is not kept in the local store as well, unless `store=true` or the push fails:
//! layers of a base image that the registry has already are then never fetched.

use std::sync::Arc;

use async_trait::async_trait;
use rbuild_cache::digest::Digest;
use rbuild_cache::oci::ImageRef;
use rbuild_solver::image_source::ImageSourceError;

use super::attributes::{Attributes, wrong};
use super::{Around, ExportError, Exported, Exporter, blocking, referrers};
use crate::image::{self, AttestationPlace, BuiltImage, ImageOptions, LayerWatcher, WrittenImage};
use crate::image_source::Images;
use crate::image_transfer::StoredBlobs;
use crate::registry::RegistryError;
use crate::registry::push::{BlobSource, Naming, PushContent};
use crate::request::{BuildRequest, UsageError};

/// Names images in the local store, and pushes them.
pub(super) struct ImageExporter {
    names: Vec<ImageRef>,
    options: ImageOptions,
    push: Option<Naming>,
    store: bool,
    /// Each name also stands with the digest: `name-canonical`.
    canonical: bool,
    /// Another name, with the digest; only where there is no other when `false`.
    dangling: Option<(String, bool)>,
    /// Layers of base images are unpacked at once.
    unpack: bool,
}

impl ImageExporter {
    pub(super) fn new(
        attributes: &mut Attributes,
        request: &BuildRequest,
    ) -> Result<Self, UsageError> {
        let push = attributes.boolean("push", false)?;
        let options = attributes.image_options(request)?;
        if options.attestations == AttestationPlace::Referrer && !push {
            let reason = "the local store has no referrers: it goes with `push=true`";
            return Err(wrong("attestations", "referrer", reason));
        }
        if let Some(insecure) = attributes.take("registry.insecure") {
            let reason = "say so of the registry: `insecure = true` in registries.toml";
            return Err(wrong("registry.insecure", &insecure, reason));
        }
        let empty_only = attributes.boolean("danging-name-empty-only", false)?;
        let dangling = attributes.take("dangling-name-prefix").map(|prefix| (prefix, !empty_only));
        if let Some((prefix, _)) = &dangling
            && let Err(error) = prefix.parse::<ImageRef>()
        {
            return Err(wrong("dangling-name-prefix", prefix, &error.reason));
        }
        let by_digest = attributes.boolean("push-by-digest", false)?;
        let names = attributes.names(request)?;
        let naming = if by_digest { Naming::Digest } else { Naming::Tag };
        Ok(Self {
            options: ImageOptions { names: names.clone(), ..options },
            names,
            push: push.then_some(naming),
            canonical: attributes.boolean("name-canonical", false)?,
            dangling,
            unpack: attributes.boolean("unpack", false)?,
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
        let begun = around.packing.iter().flat_map(|one| one.growing(self.options.compression));
        for layer in begun {
            // It is received below.
            let _ = watcher.send(layer);
        }
        let watcher = LayerWatcher::New(watcher);
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
        let mut entries = Vec::new();
        for (position, name) in self.names.iter().enumerate() {
            let left = &self.names[position..];
            let image = pusher.push(name, naming, &content, &source, &around.task).await;
            if let Err(error) = image {
                return Err(self.kept(error, left, written, around).await?);
            }
            match referrers::push(name, written, &source, around).await {
                Ok(listed) => entries.extend(listed),
                Err(error) => return Err(self.kept(error, &left[1..], written, around).await?),
            }
        }
        for entry in entries {
            if let Err(error) = entry.settle(around).await {
                return Err(self.kept(error, &[], written, around).await?);
            }
        }
        Ok(())
    }

    /// Keeps what was not pushed under the names `left`, and tells in `error` how to go on. The store
    /// has no place for statements: they come with a build alone.
    async fn kept(
        &self,
        error: RegistryError,
        left: &[ImageRef],
        written: &WrittenImage,
        around: &Around,
    ) -> Result<ExportError, ExportError> {
        let mut error = ImageSourceError::from(error);
        let remedy = if left.is_empty() {
            "the image was pushed; building it again says it anew".to_owned()
        } else {
            self.keep(written, around).await?;
            let left: Vec<String> = left.iter().map(ImageRef::familiar).collect();
            format!("`rbuild push {}` finishes it: the image is here", left.join(" "))
        };
        error.hint = Some(match error.hint {
            None => remedy,
            Some(hint) => format!("{hint}; {remedy}"),
        });
        Ok(error.into())
    }

    /// Makes it the local image of its names. Layers of a base that is in a registry stay there.
    async fn keep(&self, written: &WrittenImage, around: &Around) -> Result<(), ExportError> {
        let mut here = written.clone();
        here.locations.retain(|_, location| Images::image_at(location).is_none());
        image::fetch_layers(&around.images, &here, &around.task).await?;
        self.name(written, around).await
    }

    /// What the image is called in the store.
    fn all_names(&self, digest: &Digest) -> Vec<String> {
        let mut names: Vec<String> = self.names.iter().map(ToString::to_string).collect();
        let with_digest = |name: &ImageRef| name.with_digest(*digest).to_string();
        if self.canonical {
            let canonical: Vec<String> = self.names.iter().map(with_digest).collect();
            names.extend(canonical);
        }
        if let Some((prefix, always)) = &self.dangling
            && (*always || names.is_empty())
        {
            // It was checked when it was read.
            names.extend(prefix.parse().ok().as_ref().map(with_digest));
        }
        names
    }

    async fn name(&self, written: &WrittenImage, around: &Around) -> Result<(), ExportError> {
        let names = self.all_names(&written.root.digest);
        let (state, root) = (around.images.state().clone(), written.root.clone());
        blocking(move || Ok(state.layout().set(&names, &root)?)).await
    }
}

#[async_trait]
impl Exporter for ImageExporter {
    fn title(&self) -> String {
        "exporting to image".into()
    }

    fn layers(&self) -> Option<&ImageOptions> {
        Some(&self.options)
    }

    async fn export(&self, built: &[BuiltImage], around: &Around) -> Result<Exported, ExportError> {
        let written = self.write(built, around).await?;
        if self.store {
            image::fetch_layers(&around.images, &written, &around.task).await?;
            self.name(&written, around).await?;
        }
        if self.unpack {
            for image in built {
                image::snapshots(&around.images, &image.tree, &around.task).await?;
            }
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
