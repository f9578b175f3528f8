//! `type=docker`: what `docker load` and `podman load` read. It is an OCI layout too; old engines
//! go by its `manifest.json`. Without a destination, an engine loads it at once (`--load`).

use std::io::{self, Read};
use std::process::{ChildStdin, Command, Stdio};

use async_trait::async_trait;
use rbuild_cache::oci::{Descriptor, ImageRef, Manifest};
use rbuild_cache::state::StateFolder;
use serde_json::json;

use super::attributes::Attributes;
use super::destination::DestinationWriter;
use super::{Around, ExportError, Exported, Exporter, blocking, created, layout};
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
        let names = layout::named(&written, &self.names, created(built, &self.options));
        let exported = Exported {
            image: Some(written.root.clone()),
            config: written.config,
            names: self.names.clone(),
        };
        let repo_tags = self.names.iter().map(ImageRef::familiar).collect();
        let archive = Archive { state: around.images.state().clone(), written, names, repo_tags };
        let destination = self.destination.clone();
        blocking(move || match destination {
            Some(Destination::Folder(folder)) => {
                layout::write_folder(&archive.state, &archive.written, archive.names, &folder)
            }
            Some(destination) => {
                let mut out = DestinationWriter::create(&destination)?;
                archive.write(&mut out)?;
                Ok(out.finish()?)
            }
            None => archive.load(),
        })
        .await?;
        Ok(exported)
    }
}

struct Archive {
    state: StateFolder,
    written: WrittenImage,
    names: Vec<Descriptor>,
    repo_tags: Vec<String>,
}

impl Archive {
    fn write(self, out: impl io::Write) -> Result<(), ExportError> {
        let list = manifest_list(&self.written, &self.repo_tags)?;
        let more = [("manifest.json", list)];
        layout::write_tar(&self.state, &self.written, self.names, &more, out)
    }

    /// Hands the archive to the engine that is installed.
    fn load(self) -> Result<(), ExportError> {
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
            let sent = self.send(stdin);
            let status = engine.wait()?;
            let said = said.join().unwrap_or_default();
            if !status.success() {
                return Err(ExportError::Load(format!("{program}: {}", said.trim())));
            }
            return sent;
        }
        Err(ExportError::Load("neither `docker` nor `podman` is installed".into()))
    }

    /// Closes the pipe at the end, which tells the engine that it has all.
    fn send(self, stdin: ChildStdin) -> Result<(), ExportError> {
        self.write(io::BufWriter::with_capacity(256 << 10, stdin))
    }
}

/// `manifest.json` (moby, image/tarexport).
fn manifest_list(written: &WrittenImage, repo_tags: &[String]) -> Result<Vec<u8>, ExportError> {
    let (_, bytes) = written.manifests.last().expect("an image has a manifest");
    let manifest: Manifest = serde_json::from_slice(bytes).map_err(io::Error::other)?;
    let path = |blob: &Descriptor| format!("blobs/sha256/{}", blob.digest.hex());
    let layers: Vec<String> = manifest.layers.iter().map(path).collect();
    let list = json!([{
        "Config": path(&manifest.config),
        "RepoTags": repo_tags,
        "Layers": layers,
    }]);
    Ok(serde_json::to_vec(&list).expect("it has string keys only"))
}
