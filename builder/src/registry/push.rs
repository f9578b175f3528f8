//! Writing to a registry (distribution-spec, "Push"): what is there already is not sent, what the
//! registry has in another repository is mounted, the rest goes up in one streamed request a blob.
//!
//! Blobs go before the manifests that name them, inner manifests before outer ones, tags last, so
//! that nobody ever sees an image of which something is missing. Success is what the registry
//! acknowledged.

use std::collections::BTreeMap;
use std::io::Read;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::TryStreamExt as _;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use rbuild_cache::digest::Digest;
use rbuild_cache::oci::{Descriptor, ImageRef, MediaType};
use rbuild_solver::image_source::ImageSourceError;
use rbuild_solver::progress::{EventKind, Task};
use reqwest::header::{ACCEPT, CONTENT_TYPE};
use reqwest::{Method, StatusCode};
use tokio::time::Instant;
use url::Url;

use super::auth::Scope;
use super::clients::Sent;
use super::error::{Cause, RegistryError};
use super::hosts::Endpoint;
use super::pull::{blob_path, manifest_path};
use super::retry::{Patience, retry_after};
use super::sink::Gauge;
use super::transport::{self, Call, Target, Transport, Upload};

/// An image to push: everything that has to be at the registry.
#[derive(Clone, Debug, PartialEq)]
pub struct PushContent {
    /// Configs and layers.
    pub blobs: Vec<Descriptor>,
    /// Manifests and indexes with their bytes; what names another one stands behind it. The last
    /// is the one that gets the tag.
    pub manifests: Vec<(Descriptor, Bytes)>,
}

/// Gives the bytes of blobs that are pushed.
#[async_trait]
pub trait BlobSource: Send + Sync {
    /// Makes sure that the blob can be opened; it may have to be fetched first.
    async fn ensure(&self, descriptor: &Descriptor, task: &Task) -> Result<(), ImageSourceError>;
    /// Opens the blob; called anew for each attempt to send it.
    fn open(&self, descriptor: &Descriptor) -> std::io::Result<Box<dyn Read + Send>>;
    /// An image at `registry` in whose repository the blob is known to be.
    fn origin(&self, digest: &Digest, registry: &str) -> Option<ImageRef>;
    /// Is told that the blob is in the repository of `image` now.
    fn arrived(&self, digest: &Digest, image: &ImageRef);
}

/// What a push came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pushed {
    /// How many blobs were sent.
    pub sent: u64,
    /// How many bytes that were.
    pub sent_bytes: u64,
    /// How many blobs the registry took over from another repository.
    pub mounted: u64,
    /// How many blobs were there already.
    pub existing: u64,
}

/// Writes to registries.
#[derive(Debug)]
pub struct Pusher {
    transport: Arc<Transport>,
}

/// A blob on its way: how it got there, and its size.
type Transfer<'a> = BoxFuture<'a, Result<(Way, u64), Cause>>;

/// How a blob got there.
enum Way {
    Existing,
    Mounted,
    Sent,
}

impl Pusher {
    /// Writes through `transport`.
    pub fn new(transport: Arc<Transport>) -> Self {
        Self { transport }
    }

    /// Pushes `content` under the name `image`: under its tag, or by digest alone when it has
    /// one or when `by_digest` says so.
    ///
    /// # Errors
    /// Then the tag still stands for what it stood for before; pushing again sends only what is
    /// missing.
    pub async fn push(
        &self,
        image: &ImageRef,
        naming: Naming,
        content: &PushContent,
        source: &Arc<dyn BlobSource>,
        task: &Task,
    ) -> Result<Pushed, RegistryError> {
        let endpoint = self.transport.hosts().and_then(|hosts| hosts.push_endpoint(image));
        let failed = |cause| {
            let action = format!("pushing `{image}` (its tag is as it was)");
            RegistryError::new(action, image.registry(), cause)
        };
        let endpoint = endpoint.map_err(|e| failed(e.into()))?;
        let job = Job { transport: &self.transport, endpoint: &endpoint, image, source, task };
        job.push(naming, content).await.map_err(failed)
    }
}

/// Under which name the last manifest of a [`PushContent`] is put.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Naming {
    /// Under the image's tag.
    Tag,
    /// Under its digest alone.
    Digest,
}

/// One push to one repository.
struct Job<'a> {
    transport: &'a Transport,
    endpoint: &'a Endpoint,
    image: &'a ImageRef,
    source: &'a Arc<dyn BlobSource>,
    task: &'a Task,
}

impl Job<'_> {
    async fn push(&self, naming: Naming, content: &PushContent) -> Result<Pushed, Cause> {
        let Some((root, _)) = content.manifests.last() else {
            return Err(Cause::Protocol("there is no manifest to push".to_owned()));
        };
        let name = match naming {
            Naming::Tag if self.image.digest().is_none() => self.image.manifest_name(),
            Naming::Tag | Naming::Digest => root.digest.to_string(),
        };
        let blobs: BTreeMap<Digest, &Descriptor> = content
            .blobs
            .iter()
            .filter(|blob| !matches!(blob.media_type, MediaType::Foreign(_)))
            .map(|blob| (blob.digest, blob))
            .collect();
        let result = EventKind::Result { what: "manifest".to_owned(), digest: root.digest };
        if self.is_there(&name, root).await? {
            self.task.tell(result);
            return Ok(Pushed { existing: blobs.len() as u64, ..Pushed::default() });
        }
        let pushed = self.push_blobs(blobs.into_values()).await?;
        for (descriptor, bytes) in &content.manifests {
            let is_root = descriptor.digest == root.digest;
            let name = if is_root { name.clone() } else { descriptor.digest.to_string() };
            self.put_manifest(&name, descriptor, bytes).await?;
        }
        self.task.tell(result);
        Ok(pushed)
    }

    /// Whether `name` stands for `root` already; then the registry has all that it names.
    async fn is_there(&self, name: &str, root: &Descriptor) -> Result<bool, Cause> {
        let call = self
            .call(Method::HEAD, manifest_path(self.endpoint, name))
            .header(ACCEPT, root.media_type.as_str());
        let response = self.transport.send(&call, &mut self.transport.patience()).await?;
        let digest = response.headers().get("docker-content-digest");
        let found = digest.and_then(|digest| digest.to_str().ok()?.parse::<Digest>().ok());
        Ok(response.status().is_success() && found == Some(root.digest))
    }

    /// Brings all `blobs` there, several at once.
    async fn push_blobs<'d>(
        &self,
        blobs: impl Iterator<Item = &'d Descriptor>,
    ) -> Result<Pushed, Cause> {
        let at_once = self.transport.settings().transfers.max(1);
        let mut pushed = Pushed::default();
        let mut waiting: Vec<&Descriptor> = blobs.collect();
        // The largest first: the end of a push is then not one large blob alone.
        waiting.sort_by_key(|blob| blob.size);
        let mut running: FuturesUnordered<Transfer<'_>> = FuturesUnordered::new();
        loop {
            while running.len() < at_once
                && let Some(blob) = waiting.pop()
            {
                running.push(Box::pin(async {
                    let way = self.push_blob(blob).await?;
                    self.source.arrived(&blob.digest, self.image);
                    Ok((way, blob.size))
                }));
            }
            match running.try_next().await? {
                None => return Ok(pushed),
                Some((Way::Existing, _)) => pushed.existing += 1,
                Some((Way::Mounted, _)) => pushed.mounted += 1,
                Some((Way::Sent, size)) => {
                    pushed.sent += 1;
                    pushed.sent_bytes += size;
                }
            }
        }
    }

    async fn push_blob(&self, blob: &Descriptor) -> Result<Way, Cause> {
        if self.has_blob(&blob.digest).await? {
            return Ok(Way::Existing);
        }
        let mut session = match self.mount(blob).await? {
            Mount::Done => return Ok(Way::Mounted),
            Mount::Upload(session) => Some(session),
            Mount::No => None,
        };
        self.source.ensure(blob, self.task).await.map_err(std::io::Error::other)?;
        let gauge = Gauge::new(self.task, blob);
        let mut patience = self.transport.patience();
        loop {
            let address = match session.take() {
                Some(address) => address,
                None => self.start_upload(&mut patience).await?,
            };
            let (cause, asked) = match self.send_blob(blob, address, &gauge, &mut patience).await? {
                Sending::Done => {
                    gauge.done(blob.size);
                    return Ok(Way::Sent);
                }
                Sending::Failed(cause, asked) => (cause, asked),
            };
            if !patience.pause(asked, false).await {
                return Err(cause);
            }
            // The answer may have got lost after the registry took the blob.
            if self.has_blob(&blob.digest).await? {
                gauge.done(blob.size);
                return Ok(Way::Sent);
            }
        }
    }

    async fn has_blob(&self, digest: &Digest) -> Result<bool, Cause> {
        let call = self.call(Method::HEAD, blob_path(self.endpoint, digest));
        let response = self.transport.send(&call, &mut self.transport.patience()).await?;
        match response.status() {
            StatusCode::NOT_FOUND => Ok(false),
            status if status.is_success() => Ok(true),
            _ => Err(self.transport.failure(&call, response, "the repository").await),
        }
    }

    /// Asks the registry to take the blob over from a repository in which it is.
    async fn mount(&self, blob: &Descriptor) -> Result<Mount, Cause> {
        let registry = self.image.registry();
        let origin = self.source.origin(&blob.digest, registry).filter(|origin| {
            origin.registry() == registry && origin.repository() != self.image.repository()
        });
        let Some(origin) = origin else { return Ok(Mount::No) };
        let query = url::form_urlencoded::Serializer::new(String::new())
            .append_pair("mount", &blob.digest.to_string())
            .append_pair("from", origin.repository())
            .finish();
        let path = format!("/v2/{}/blobs/uploads/?{query}", self.endpoint.repository);
        let mut call = self.call(Method::POST, path);
        call.scopes.push(Scope::pull(origin.repository()));
        let response = self.transport.send(&call, &mut self.transport.patience()).await;
        match response {
            Ok(response) if response.status() == StatusCode::CREATED => Ok(Mount::Done),
            Ok(response) if response.status() == StatusCode::ACCEPTED => {
                Ok(Mount::Upload(session(&response)?))
            }
            // A registry that refuses to mount may still take the bytes.
            Ok(_) | Err(Cause::Denied { .. } | Cause::Token { .. }) => Ok(Mount::No),
            Err(cause) => Err(cause),
        }
    }

    /// Opens an upload: the address to which the bytes go.
    async fn start_upload(&self, patience: &mut Patience) -> Result<Url, Cause> {
        let path = format!("/v2/{}/blobs/uploads/", self.endpoint.repository);
        let call = self.call(Method::POST, path);
        let response = self.transport.send(&call, patience).await?;
        if response.status() != StatusCode::ACCEPTED {
            return Err(self.transport.failure(&call, response, "the repository").await);
        }
        session(&response)
    }

    /// Sends a blob in one request to the address of an upload.
    async fn send_blob(
        &self,
        blob: &Descriptor,
        mut address: Url,
        gauge: &Gauge,
        patience: &mut Patience,
    ) -> Result<Sending, Cause> {
        address.query_pairs_mut().append_pair("digest", &blob.digest.to_string());
        let mut call = self.call(Method::PUT, "").header(CONTENT_TYPE, "application/octet-stream");
        call.target = Target::Address(address);
        let (source, descriptor, gauge) = (Arc::clone(self.source), blob.clone(), gauge.clone());
        call.body = Upload::Stream {
            open: Arc::new(move || source.open(&descriptor)),
            length: blob.size,
            on_sent: Arc::new(move |sent| gauge.at(sent)),
        };
        let (begun, sent) = (Instant::now(), Arc::new(Sent::default()));
        let outcome = self.transport.send_once(&call, patience.left(), &sent).await;
        patience.spend(sent.idle().min(begun.elapsed()));
        match outcome {
            // The specification says 201; some registries say it otherwise.
            Ok(response) if matches!(response.status().as_u16(), 200 | 201 | 204) => {
                Ok(Sending::Done)
            }
            Ok(response) if is_worth_a_new_upload(response.status()) => {
                let asked = retry_after(response.headers());
                match asked.filter(|wait| *wait >= patience.left()) {
                    Some(wait) => Err(Cause::Later(wait)),
                    None => Ok(Sending::Failed(transport::status_cause(response).await, asked)),
                }
            }
            Ok(response) => Err(self.transport.failure(&call, response, "the upload").await),
            Err(cause) if cause.is_transient() => Ok(Sending::Failed(cause, None)),
            Err(cause) => Err(cause),
        }
    }

    async fn put_manifest(
        &self,
        name: &str,
        descriptor: &Descriptor,
        bytes: &Bytes,
    ) -> Result<(), Cause> {
        let mut call = self
            .call(Method::PUT, manifest_path(self.endpoint, name))
            .header(CONTENT_TYPE, descriptor.media_type.as_str());
        call.body = Upload::Bytes(bytes.clone());
        let response = self.transport.send(&call, &mut self.transport.patience()).await?;
        if !response.status().is_success() {
            return Err(self.transport.failure(&call, response, "the repository").await);
        }
        let stored = response.headers().get("docker-content-digest");
        match stored.and_then(|digest| digest.to_str().ok()?.parse::<Digest>().ok()) {
            Some(stored) if stored != descriptor.digest => Err(Cause::Protocol(format!(
                "it stored manifest `{stored}` instead of `{}`",
                descriptor.digest
            ))),
            Some(_) | None => Ok(()),
        }
    }

    /// A call with the right to write to the repository.
    fn call(&self, method: Method, path: impl Into<String>) -> Call<'_> {
        let mut call = Call::new(method, self.endpoint, path);
        call.scopes = vec![Scope::push(&self.endpoint.repository)];
        call
    }
}

/// The address of an upload. A registry behind a proxy that ends TLS may not know that it is
/// asked by https.
fn session(response: &reqwest::Response) -> Result<Url, Cause> {
    let mut address = transport::location(response)?;
    let asked = response.url();
    if asked.scheme() == "https" && address.host_str() == asked.host_str() {
        // Both are special schemes, so this cannot fail.
        let _ = address.set_scheme("https");
        let _ = address.set_port(asked.port());
    }
    Ok(address)
}

/// What came of asking to mount.
enum Mount {
    Done,
    /// The registry wants the bytes instead, here.
    Upload(Url),
    No,
}

/// What came of sending.
enum Sending {
    Done,
    Failed(Cause, Option<std::time::Duration>),
}

/// Whether an upload that was answered so may go through if it is begun anew: passing faults, and
/// sessions that the registry forgot (404) or whose bytes got mixed up on the way (400, 416).
fn is_worth_a_new_upload(status: StatusCode) -> bool {
    transport::is_passing(status) || matches!(status.as_u16(), 400 | 404 | 416)
}
