//! `type=docker`: what `docker load` and `podman load` read. It is an OCI layout too; old engines
//! go by its `manifest.json`. Without a destination, an engine loads it at once (`--load`).

use std::io::{self, Read};
use std::process::{Command, Stdio};

use async_trait::async_trait;
use rbuild_cache::oci::{ImageRef, Manifest};
use rbuild_cache::state::StateFolder;

use super::attributes::Attributes;
use super::{Around, ExportError, Exported, Exporter, ImageArchive};
use super::{blocking, created, layout, save};
use crate::image::{self, BuiltImage, ImageOptions, WrittenImage};
use crate::request::{BuildRequest, Destination, UsageError};

/// Writes archives for `docker load`.
pub(super) struct DockerExporter {
    /// None: an engine loads it.
    destination: Option<Destination>,
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
        Ok(Self {
            destination: attributes.destination.clone(),
            names: attributes.names(request)?,
            options: attributes.image_options(request)?,
        })
    }
}

impl DockerExporter {
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
        let (_, bytes) = written.manifests.first().expect("an image has a manifest");
        let manifest: Manifest = serde_json::from_slice(bytes).map_err(io::Error::other)?;
        let config = around.images.state().blobs().read(&manifest.config)?;
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

    async fn export(&self, built: &[BuiltImage], around: &Around) -> Result<Exported, ExportError> {
        if built.len() > 1 {
            return Err(ExportError::Format(
                "Docker's image format holds an image for a single platform",
            ));
        }
        let written = image::write(&around.images, built, &self.options, &around.task).await?;
        image::fetch_layers(&around.images, &written, &around.task).await?;
        let archive = self.archive(&written, built, around)?;
        let exported = Exported {
            image: Some(written.root.clone()),
            config: written.config,
            names: self.names.clone(),
        };
        let (state, destination) = (around.images.state().clone(), self.destination.clone());
        blocking(move || match destination {
            Some(Destination::Folder(folder)) => archive.write_folder(&state, &folder),
            Some(destination) => save(&archive, &state, &destination),
            None => load(&archive, &state),
        })
        .await?;
        Ok(exported)
    }
}

/// Hands the archive to the engine that is installed.
fn load(archive: &ImageArchive, state: &StateFolder) -> Result<(), ExportError> {
    for program in ["docker", "podman"] {
        let mut command = Command::new(program);
        command.arg("load").stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut engine = match command.spawn() {
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            spawned => spawned?,
        };
        let stdin = engine.stdin.take().expect("it is piped");
        let mut stderr = engine.stderr.take().expect("it is piped");
        // Read beside, so that a talkative engine is never stuck.
        let said = std::thread::spawn(move || {
            let mut said = String::new();
            // What cannot be read cannot be shown; the exit code says enough.
            let _ = stderr.read_to_string(&mut said);
            said
        });
        // Closing the pipe at the end tells the engine that it has all.
        let sent = archive.write(state, io::BufWriter::with_capacity(256 << 10, stdin));
        let status = engine.wait()?;
        let said = said.join().unwrap_or_default();
        if !status.success() {
            return Err(ExportError::Load(format!("{program}: {}", said.trim())));
        }
        return sent;
    }
    Err(ExportError::Load("neither `docker` nor `podman` is installed".into()))
}
