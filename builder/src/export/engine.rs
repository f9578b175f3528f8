//! `--load`: an image handed to a container engine, Docker or podman, of which only the layers
//! travel that the engine does not have.
//!
//! An engine is asked before anything large is sent. Docker's classic image store takes an archive
//! without the layers that it knows (moby, `image/tarexport/load.go`: a layer whose chain is
//! registered is never opened), and so it is sent none at first; its answer names the first one
//! that it lacks. podman takes an OCI archive without the blobs that its storage knows
//! (containers/image, `storage/storage_dest.go`, `TryReusingBlob`). Docker's containerd store keeps
//! blobs themselves and is sent all of them.

mod address;
mod client;
mod docker;
mod podman;
mod program;

use rbuild_cache::oci::{Descriptor, ImageRef, Manifest};
use rbuild_cache::state::StateFolder;
use rbuild_solver::progress::{EventKind, Task};

use super::{ExportError, ImageArchive};
use crate::progress;
use crate::request::EngineSettings;

use address::Address;
use client::Client;

/// An image that is to be loaded, in the two forms that engines read.
#[derive(Clone, Debug)]
pub(super) struct Loading {
    /// What it consists of.
    pub(super) manifest: Manifest,
    /// Its manifest, as an index names it.
    pub(super) root: Descriptor,
    /// The digests of its unpacked layers, as its config has them.
    pub(super) diff_ids: Vec<String>,
    /// The config's bytes.
    pub(super) config: Vec<u8>,
    /// What it is to be called.
    pub(super) names: Vec<ImageRef>,
    /// Where its blobs are.
    pub(super) state: StateFolder,
}

/// What came of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Report {
    /// How many bytes went to the engine, those of the question included.
    sent: u64,
    /// How many of its layers were not sent.
    left_out: usize,
}

impl Loading {
    /// Hands it to the engine that `context` or the environment names, otherwise to the first that
    /// is there.
    pub(super) async fn load(
        self,
        context: Option<&str>,
        settings: &EngineSettings,
        task: &Task,
    ) -> Result<(), ExportError> {
        let failed = |reason: String| ExportError::Load(reason);
        let (engine, report) = match address::named(context, settings).map_err(failed)? {
            Some(address @ Address::Ssh(_)) => {
                let report = program::docker(&self, &address).await?;
                (format!("docker at {address}"), report)
            }
            Some(address) => {
                let client = Client::connect(&address).await.map_err(failed)?;
                self.send_to(client, &address, task).await?
            }
            None => self.send_to_first(settings, task).await?,
        };
        let layers = self.manifest.layers.len();
        let said = format!(
            "loaded into {engine}: sent {}, {} of {layers} layers were there\n",
            progress::bytes(report.sent),
            report.left_out
        );
        task.tell(EventKind::Output { stream: 1, bytes: said.into() });
        Ok(())
    }

    async fn send_to_first(
        &self,
        settings: &EngineSettings,
        task: &Task,
    ) -> Result<(String, Report), ExportError> {
        let mut tried = Vec::new();
        for address in address::usual(settings) {
            match Client::connect(&address).await {
                Ok(client) => return self.send_to(client, &address, task).await,
                Err(reason) => tried.push(reason),
            }
        }
        if let Some(report) = program::podman(self, settings).await? {
            return Ok(("podman".to_owned(), report));
        }
        tried.push("the program `podman` is not installed".to_owned());
        Err(ExportError::Load(format!("no container engine is there: {}", tried.join("; "))))
    }

    async fn send_to(
        &self,
        client: Client,
        address: &Address,
        task: &Task,
    ) -> Result<(String, Report), ExportError> {
        let report = if client.is_podman {
            podman::load(self, &client).await
        } else {
            docker::load(self, &client, task).await
        };
        let report = report.map_err(|reason| {
            ExportError::Load(format!("{} at {address}: {reason}", client.name()))
        })?;
        Ok((format!("{} at {address}", client.name()), report))
    }

    /// The archive that Docker reads.
    fn docker_archive(&self) -> ImageArchive {
        let mut archive = ImageArchive::default();
        archive.add(self.blobs(), []);
        archive.list(&self.manifest, &self.config, &self.names);
        archive
    }

    /// The OCI layout that podman reads: it wants one name in it, and gives the others itself.
    fn oci_archive(&self) -> ImageArchive {
        let named = match self.names.first() {
            Some(name) => super::called(&self.root, name),
            None => self.root.clone(),
        };
        let mut archive = ImageArchive::default();
        archive.add(self.blobs(), [named]);
        archive
    }

    fn blobs(&self) -> impl Iterator<Item = &Descriptor> {
        self.manifest.layers.iter().chain([&self.manifest.config, &self.root])
    }
}
