//! `type=docker`: what `docker load` and `podman load` read. It is an OCI layout too; old engines
//! go by its `manifest.json`. Without a destination, an engine loads it at once (`--load`).

use std::io;
use std::path::Path;

use async_trait::async_trait;
use rbuild_cache::oci::{ImageRef, Manifest};
use tokio::sync::{mpsc, oneshot};

use super::attributes::Attributes;
use super::engine::{Engine, Loading, Streaming};
use super::{Around, ExportError, Exported, Exporter, ImageArchive};
use super::{blocking, created, layout, write_into_tar, write_whole};
use crate::image::{self, AttestationPlace, BuiltImage, ImageOptions, LayerWatcher, WrittenImage};
use crate::request::{BuildRequest, Destination, EngineSettings, UsageError};

/// Writes archives for `docker load`.
pub(super) struct DockerExporter {
    /// None: an engine loads it.
    destination: Option<Destination>,
    /// Docker's name for the engine that loads it.
    context: Option<String>,
    engines: EngineSettings,
    names: Vec<ImageRef>,
    options: ImageOptions,
}

impl DockerExporter {
    pub(super) fn new(
        attributes: &mut Attributes,
        request: &BuildRequest,
    ) -> Result<Self, UsageError> {
        // Whether it is a tar, the destination says already.
        attributes.take("tar");
        let names = attributes.names(request)?;
        Ok(Self {
            destination: attributes.destination.clone(),
            context: attributes.take("context"),
            engines: request.settings.engine.clone(),
            options: ImageOptions { names: names.clone(), ..attributes.image_options(request)? },
            names,
        })
    }
}

/// The manifest of an image for one platform, and the bytes of its config.
fn documents(written: &WrittenImage, around: &Around) -> Result<(Manifest, Vec<u8>), ExportError> {
    let (_, bytes) = written.manifests.first().expect("an image has a manifest");
    let manifest: Manifest = serde_json::from_slice(bytes).map_err(io::Error::other)?;
    let config = around.images.state().blobs().read(&manifest.config)?;
    Ok((manifest, config))
}

impl DockerExporter {
    /// Hands the image to an engine, layer by layer while they are packed.
    async fn load(
        &self,
        built: &[BuiltImage],
        around: &Around,
    ) -> Result<WrittenImage, ExportError> {
        let (images, task) = (&around.images, &around.task);
        // Engines keep nothing beside an image. It goes there as it is without.
        let attestations = AttestationPlace::Referrer;
        let options = ImageOptions { attestations, ..self.options.clone() };
        let engine = Engine::find(self.context.as_deref(), &self.engines).await?;
        let (watcher, layers) = mpsc::unbounded_channel();
        let (finished, image) = oneshot::channel();
        let writing = async {
            let watcher = Some(LayerWatcher::Ready(watcher));
            let written = image::write_watched(images, built, &options, watcher, task).await?;
            // Who does not listen any more has failed, and says why.
            let _ = finished.send(self.loading(&written, around)?);
            Ok::<_, ExportError>(written)
        };
        let streaming = engine.stream(Streaming { layers, image }, around);
        let (written, (sent, left_out)) = tokio::try_join!(writing, streaming)?;
        if left_out > 0 && sent.answer.is_err() {
            image::fetch_layers(images, &written, task).await?;
        }
        let loading = self.loading(&written, around)?;
        engine.finish(&loading, (sent, left_out), images.state(), task).await?;
        Ok(written)
    }

    async fn write_folder(
        &self,
        folder: &Path,
        built: &[BuiltImage],
        around: &Around,
    ) -> Result<WrittenImage, ExportError> {
        let written = write_whole(built, &self.options, around).await?;
        let archive = self.archive(&written, built, around)?;
        let (state, folder) = (around.images.state().clone(), folder.to_owned());
        blocking(move || archive.write_folder(&state, &folder)).await?;
        Ok(written)
    }

    async fn write_tar(
        &self,
        destination: &Destination,
        built: &[BuiltImage],
        around: &Around,
    ) -> Result<WrittenImage, ExportError> {
        let (written, tar) = write_into_tar(built, &self.options, destination, around).await?;
        let archive = self.archive(&written, built, around)?;
        let state = around.images.state().clone();
        blocking(move || Ok(archive.finish(&state, tar)?.finish()?)).await?;
        Ok(written)
    }

    fn loading(&self, written: &WrittenImage, around: &Around) -> Result<Loading, ExportError> {
        let (manifest, config) = documents(written, around)?;
        let (root, names) = (written.root.clone(), self.names.clone());
        Ok(Loading { manifest, root, config, names })
    }

    fn archive(
        &self,
        written: &WrittenImage,
        built: &[BuiltImage],
        around: &Around,
    ) -> Result<ImageArchive, ExportError> {
        let mut archive = ImageArchive::default();
        let manifests = written.manifests.iter().map(|(descriptor, _)| descriptor);
        let names = layout::named(written, &self.names, created(built, &self.options));
        archive.add(written.blobs.iter().chain(manifests), names);
        let (manifest, config) = documents(written, around)?;
        archive.list(&manifest, &config, &self.names);
        Ok(archive)
    }
}

#[async_trait]
impl Exporter for DockerExporter {
    fn title(&self) -> String {
        match self.destination {
            Some(_) => "exporting to docker image format".into(),
            None => "loading into the container engine".into(),
        }
    }

    fn layers(&self) -> Option<&ImageOptions> {
        Some(&self.options)
    }

    async fn export(&self, built: &[BuiltImage], around: &Around) -> Result<Exported, ExportError> {
        if built.len() > 1 {
            return Err(ExportError::Format(
                "Docker's image format holds an image for a single platform",
            ));
        }
        let written = match &self.destination {
            None => self.load(built, around).await?,
            Some(Destination::Folder(folder)) => self.write_folder(folder, built, around).await?,
            Some(destination @ (Destination::File(_) | Destination::Stdout)) => {
                self.write_tar(destination, built, around).await?
            }
        };
        Ok(Exported {
            image: Some(written.root),
            config: written.config,
            names: self.names.clone(),
        })
    }
}
