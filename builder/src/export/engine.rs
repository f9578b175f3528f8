//! `--load`: an image handed to a container engine, Docker or podman, of which only the layers
//! travel that the engine does not have, each as soon as it is packed.
//!
//! What an engine has, it is asked first ([`known`]). Docker's classic image store takes an archive
//! without the layers that it knows (moby, `image/tarexport/load.go`: a layer whose chain is
//! registered is never opened); podman takes an OCI archive without the blobs that its storage knows
//! (containers/image, `storage/storage_dest.go`, `TryReusingBlob`). Docker's containerd store keeps
//! blobs themselves and is sent all of them. Where an archive is not taken that lacks something,
//! all of it is sent.

mod address;
mod client;
mod known;
mod program;
mod stream;
mod writing;

use rbuild_cache::digest::Digest;
use rbuild_cache::oci::{Descriptor, ImageRef, Manifest};
use rbuild_cache::state::StateFolder;
use rbuild_solver::progress::{EventKind, Task};

use super::{ExportError, ImageArchive};
use crate::progress;
use crate::request::EngineSettings;

use address::Address;
use client::Client;
pub(super) use stream::Streaming;
use writing::Writing;

/// An image that is to be loaded, in the two forms that engines read.
#[derive(Clone, Debug)]
pub(super) struct Loading {
    /// What it consists of.
    pub(super) manifest: Manifest,
    /// Its manifest, as an index names it.
    pub(super) root: Descriptor,
    /// The config's bytes.
    pub(super) config: Vec<u8>,
    /// What it is to be called.
    pub(super) names: Vec<ImageRef>,
}

/// What became of an archive that was sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Sent {
    /// How many bytes went to the engine.
    pub(super) bytes: u64,
    /// What the engine said of them.
    pub(super) answer: Answer,
}

/// What an engine says of an archive: what is wrong with it, if anything.
type Answer = Result<(), String>;

/// An engine that takes images.
#[derive(Debug)]
pub(super) enum Engine {
    /// Docker's or podman's, which listens at an address.
    Service(Client, Address),
    /// podman without a service: the program. `root` is who runs it.
    PodmanProgram { root: bool },
    /// Docker's on another machine, which the program `docker` knows how to get to.
    DockerProgram(Address),
}

impl Engine {
    /// The engine that `context` or the environment names, otherwise the first that is there.
    pub(super) async fn find(
        context: Option<&str>,
        settings: &EngineSettings,
    ) -> Result<Self, ExportError> {
        let connect = async |address: Address| {
            Client::connect(&address).await.map(|client| Self::Service(client, address))
        };
        match address::named(context, settings).map_err(ExportError::Load)? {
            Some(address @ Address::Ssh(_)) => return Ok(Self::DockerProgram(address)),
            Some(address) => return connect(address).await.map_err(ExportError::Load),
            None => {}
        }
        let mut tried = Vec::new();
        for address in address::usual(settings) {
            match connect(address).await {
                Ok(engine) => return Ok(engine),
                Err(reason) => tried.push(reason),
            }
        }
        if program::has_podman().await? {
            return Ok(Self::PodmanProgram { root: settings.root });
        }
        tried.push("the program `podman` is not installed".to_owned());
        Err(ExportError::Load(format!("no container engine is there: {}", tried.join("; "))))
    }

    /// What users call it.
    fn name(&self) -> String {
        match self {
            Self::Service(client, address) => format!("{} at {address}", client.name()),
            Self::PodmanProgram { .. } => "podman".to_owned(),
            Self::DockerProgram(address) => format!("docker at {address}"),
        }
    }

    fn is_podman(&self) -> bool {
        match self {
            Self::Service(client, _) => client.is_podman,
            Self::PodmanProgram { .. } => true,
            Self::DockerProgram(_) => false,
        }
    }

    /// Sends the archive that `writing` writes. An engine that is done with it ends the wait, also
    /// when there is more to write.
    async fn send(&self, writing: Writing) -> Result<Sent, ExportError> {
        let (writing, written) = writing::watched(writing);
        let answer = match self {
            Self::Service(client, _) => {
                client.load(writing).await.map_err(|reason| self.failed(&reason))
            }
            Self::PodmanProgram { root } => program::podman_load(*root, writing).await,
            Self::DockerProgram(address) => program::docker_load(address, writing).await,
        };
        // An engine can only say that the archive broke off, not why.
        match written.failure() {
            Some(error) => Err(error),
            None => Ok(Sent { bytes: written.bytes(), answer: answer? }),
        }
    }

    /// Gives the image further names, where an archive has just the first.
    async fn name_others(&self, names: &[ImageRef]) -> Result<(), ExportError> {
        let Some((first, others)) = names.split_first().filter(|_| self.is_podman()) else {
            return Ok(());
        };
        for name in others {
            match self {
                Self::Service(client, _) => {
                    let (repository, tag) =
                        crate::local_image::repository_and_tag(&name.to_string());
                    let tag = tag.unwrap_or_else(|| "latest".into());
                    let path = format!("/images/{first}/tag?repo={repository}&tag={tag}");
                    client.post(&path).await.map_err(|reason| self.failed(&reason))?;
                }
                Self::PodmanProgram { root } => program::podman_tag(*root, first, name).await?,
                Self::DockerProgram(_) => {}
            }
        }
        Ok(())
    }

    fn failed(&self, reason: &str) -> ExportError {
        ExportError::Load(format!("{}: {reason}", self.name()))
    }

    /// Sees to what is left to do once an image was streamed to it: where that archive was not taken
    /// as it lacked layers, all of it goes there. All blobs are here then. Tells what travelled.
    pub(super) async fn finish(
        &self,
        image: &Loading,
        (sent, left_out): (Sent, usize),
        state: &StateFolder,
        task: &Task,
    ) -> Result<(), ExportError> {
        let (mut bytes, mut left_out, mut answer) = (sent.bytes, left_out, sent.answer);
        if let Some(reason) = answer.as_ref().err().filter(|_| left_out > 0) {
            // Somebody removed a layer in between, or it is there in another form.
            task.tell(EventKind::Warning { message: format!("sending all layers: {reason}") });
            let (archive, state) = (image.archive(self.is_podman()), state.clone());
            let writing: Writing = Box::new(move |out| archive.write(&state, out).map(drop));
            let all = self.send(writing).await?;
            (bytes, left_out, answer) = (bytes + all.bytes, 0, all.answer);
        }
        answer.map_err(|reason| self.failed(&reason))?;
        self.name_others(&image.names).await?;
        let said = format!(
            "loaded into {}: sent {}, {left_out} of {} layers were there\n",
            self.name(),
            progress::bytes(bytes),
            image.manifest.layers.len()
        );
        task.tell(EventKind::Output { stream: 1, bytes: said.into() });
        Ok(())
    }
}

impl Loading {
    /// The archive that an engine reads. Docker goes by `manifest.json`; podman wants an OCI layout
    /// with one name in it, and gives the others itself.
    fn archive(&self, is_podman: bool) -> ImageArchive {
        let mut archive = ImageArchive::default();
        let blobs = self.manifest.layers.iter().chain([&self.manifest.config, &self.root]);
        if is_podman {
            let named = match self.names.first() {
                Some(name) => super::called(&self.root, name),
                None => self.root.clone(),
            };
            archive.add(blobs, [named]);
        } else {
            // Docker's containerd store goes by the layout's index, and loads what that names.
            let mut named: Vec<Descriptor> =
                self.names.iter().map(|name| super::called(&self.root, name)).collect();
            if named.is_empty() {
                named.push(self.root.clone());
            }
            archive.add(blobs, named);
            archive.list(&self.manifest, &self.config, &self.names);
        }
        archive
    }

    /// The same without these layers.
    fn archive_without(&self, is_podman: bool, layers: &[Digest]) -> ImageArchive {
        let mut archive = self.archive(is_podman);
        archive.leave_out(layers);
        archive
    }
}
