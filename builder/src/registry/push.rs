//! Writing to a registry (distribution-spec, "Push"): what is there already is not sent, what the
//! registry has in another repository is mounted, the rest goes up in one streamed request a blob.
//!
//! Blobs go before the manifests that name them, inner manifests before outer ones, tags last, so
//! that nobody ever sees an image of which something is missing. Success is what the registry
//! acknowledged.

use std::collections::{BTreeMap, HashMap};
use std::io::Read;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use futures::TryStreamExt as _;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use rbuild_cache::digest::Digest;
use rbuild_cache::oci::{Descriptor, ImageRef, MediaType};
use rbuild_solver::image_source::ImageSourceError;
use rbuild_solver::progress::{EventKind, Task};
use reqwest::header::{ACCEPT, CONTENT_TYPE, HeaderName, HeaderValue};
use reqwest::{Method, Response, StatusCode};
use url::Url;

use super::auth::Scope;
use super::error::{Cause, RegistryError};
use super::hosts::Endpoint;
use super::pull::manifest_path;
use super::retry::pause_after;
use super::sink::Gauge;
use super::transport::{Call, Transport, Upload};
use super::upload::{OpenFrom, Sending, Uploads, session};

/// How often what a registry does not see is looked for and its manifests are put again.
const MOST_LOST: u32 = 3;

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
    /// What this process brought where while it was made, until a push tells of it.
    arrived: Mutex<HashMap<(String, String, Digest), bool>>,
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
        Self { transport, arrived: Mutex::default() }
    }

    /// What carries requests.
    pub(super) fn transport(&self) -> &Transport {
        &self.transport
    }

    /// Notes that a blob is in the repository of `endpoint`, and whether it was `sent` for that.
    pub(super) fn note(&self, endpoint: &Endpoint, digest: Digest, sent: bool) {
        let key = (endpoint.host.clone(), endpoint.repository.clone(), digest);
        self.arrived.lock().unwrap_or_else(PoisonError::into_inner).insert(key, sent);
    }

    /// Forgets what was noted of `endpoint`: it has to be asked again what is there.
    fn forget(&self, endpoint: &Endpoint) {
        let mut arrived = self.arrived.lock().unwrap_or_else(PoisonError::into_inner);
        arrived.retain(|(host, repository, _), _| {
            (host, repository) != (&endpoint.host, &endpoint.repository)
        });
    }

    /// How a blob got there that this process noted; it was sent at most once.
    fn noted(&self, endpoint: &Endpoint, digest: Digest) -> Option<Way> {
        let key = (endpoint.host.clone(), endpoint.repository.clone(), digest);
        let mut arrived = self.arrived.lock().unwrap_or_else(PoisonError::into_inner);
        let sent = arrived.get_mut(&key)?;
        Some(if std::mem::take(sent) { Way::Sent } else { Way::Existing })
    }

    /// Brings one blob into the repository of `image`, before there is a manifest that names it.
    pub async fn push_blob(
        &self,
        image: &ImageRef,
        blob: &Descriptor,
        source: &Arc<dyn BlobSource>,
        task: &Task,
    ) -> Result<(), RegistryError> {
        let action = || format!("pushing `{}` to `{image}`", blob.digest);
        let failed = |cause| RegistryError::new(action(), image.registry(), cause);
        let endpoint = self.transport.hosts().and_then(|hosts| hosts.push_endpoint(image));
        let endpoint = endpoint.map_err(|e| failed(e.into()))?;
        let uploads = Uploads { transport: &self.transport, endpoint: &endpoint };
        let job = Job { pusher: self, uploads, image, source, task };
        let way = job.push_blob(blob).await.map_err(failed)?;
        self.note(&endpoint, blob.digest, matches!(way, Way::Sent));
        source.arrived(&blob.digest, image);
        Ok(())
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
        let uploads = Uploads { transport: &self.transport, endpoint: &endpoint };
        let job = Job { pusher: self, uploads, image, source, task };
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
    pusher: &'a Pusher,
    uploads: Uploads<'a>,
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
        let mut pushed = self.push_blobs(blobs.values().copied()).await?;
        for failures in 0.. {
            match self.put_manifests(&name, &content.manifests).await {
                Ok(()) => break,
                Err(Cause::BlobUnknown { detail, .. }) if failures < MOST_LOST => {
                    tracing::debug!(detail, "looking again for what the registry does not see");
                    tokio::time::sleep(pause_after(failures)).await;
                }
                Err(cause) => return Err(cause),
            }
            self.pusher.forget(self.uploads.endpoint);
            let again = self.push_blobs(blobs.values().copied()).await?;
            pushed.sent += again.sent;
            pushed.sent_bytes += again.sent_bytes;
        }
        self.task.tell(result);
        Ok(pushed)
    }

    /// Puts `manifests`, the last one under `name`, the others under their digests.
    async fn put_manifests(
        &self,
        name: &str,
        manifests: &[(Descriptor, Bytes)],
    ) -> Result<(), Cause> {
        for (at, (descriptor, bytes)) in manifests.iter().enumerate() {
            let is_root = at + 1 == manifests.len();
            let by_digest = descriptor.digest.to_string();
            let name = if is_root { name } else { &by_digest };
            let response = self.uploads.put_manifest(name, (descriptor, bytes), None).await?;
            self.uploads.check_stored(response, descriptor).await?;
        }
        Ok(())
    }

    /// Whether `name` stands for `root` already; then the registry has all that it names.
    async fn is_there(&self, name: &str, root: &Descriptor) -> Result<bool, Cause> {
        let Uploads { transport, endpoint } = self.uploads;
        let call = self
            .uploads
            .call(Method::HEAD, manifest_path(endpoint, name))
            .header(ACCEPT, root.media_type.as_str());
        let response = transport.send(&call, &mut transport.patience()).await?;
        let digest = response.headers().get("docker-content-digest");
        let found = digest.and_then(|digest| digest.to_str().ok()?.parse::<Digest>().ok());
        Ok(response.status().is_success() && found == Some(root.digest))
    }

    /// Brings all `blobs` there, several at once.
    async fn push_blobs<'d>(
        &self,
        blobs: impl Iterator<Item = &'d Descriptor>,
    ) -> Result<Pushed, Cause> {
        let at_once = self.uploads.transport.settings().transfers.max(1);
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
        let Uploads { transport, endpoint } = self.uploads;
        if let Some(way) = self.pusher.noted(endpoint, blob.digest) {
            return Ok(way);
        }
        if self.uploads.has(&blob.digest).await? {
            return Ok(Way::Existing);
        }
        let mut session = match self.mount(blob).await? {
            Mount::Done => return Ok(Way::Mounted),
            Mount::Upload(address) => Some((address, 0)),
            Mount::No => None,
        };
        self.source.ensure(blob, self.task).await.map_err(std::io::Error::other)?;
        let gauge = Gauge::new(self.task, blob);
        let open = self.opener(blob);
        let mut patience = transport.patience();
        loop {
            let (address, from) = match session.take() {
                Some(session) => session,
                None => (self.uploads.start(&mut patience).await?, 0),
            };
            let told = gauge.clone();
            let sending = self.uploads.send(
                blob,
                (address.clone(), from),
                &open,
                Arc::new(move |sent| told.at(sent)),
                &mut patience,
            );
            let Sending::Failed(cause, asked) = sending.await? else {
                gauge.done(blob.size);
                return Ok(Way::Sent);
            };
            if !patience.pause(asked, false).await {
                return Err(cause);
            }
            // The answer may have got lost after the registry took the blob.
            if self.uploads.has(&blob.digest).await? {
                gauge.done(blob.size);
                return Ok(Way::Sent);
            }
            if blob.size >= transport.settings().range {
                session = self.uploads.reached(address, blob.size).await;
                if session.as_ref().is_some_and(|(_, reached)| *reached > from) {
                    patience.renew();
                }
            }
        }
    }

    /// Opens `blob` from a position on.
    fn opener(&self, blob: &Descriptor) -> OpenFrom {
        let (source, blob) = (Arc::clone(self.source), blob.clone());
        Arc::new(move |from| {
            let mut reader = source.open(&blob)?;
            // It is checked as it is read, so that what was sent before is read again.
            std::io::copy(&mut reader.by_ref().take(from), &mut std::io::sink())?;
            Ok(reader)
        })
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
        let Uploads { transport, endpoint } = self.uploads;
        let path = format!("/v2/{}/blobs/uploads/?{query}", endpoint.repository);
        let mut call = self.uploads.call(Method::POST, path);
        call.scopes.push(Scope::pull(origin.repository()));
        let response = transport.send(&call, &mut transport.patience()).await;
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
}

impl Uploads<'_> {
    /// Puts a manifest or an index under `name`, if `condition` holds at the registry. Gives what it
    /// answered.
    pub(super) async fn put_manifest(
        &self,
        name: &str,
        (descriptor, bytes): (&Descriptor, &Bytes),
        condition: Option<(HeaderName, HeaderValue)>,
    ) -> Result<Response, Cause> {
        let mut call = self.manifest_call(name, descriptor);
        call.headers.extend(condition);
        call.body = Upload::Bytes(bytes.clone());
        self.transport.send(&call, &mut self.transport.patience()).await
    }

    fn manifest_call(&self, name: &str, descriptor: &Descriptor) -> Call<'_> {
        self.call(Method::PUT, manifest_path(self.endpoint, name))
            .header(CONTENT_TYPE, descriptor.media_type.as_str())
    }

    /// Whether the answer to a put says that the registry has `descriptor` now.
    pub(super) async fn check_stored(
        &self,
        response: Response,
        descriptor: &Descriptor,
    ) -> Result<(), Cause> {
        if !response.status().is_success() {
            let call = self.manifest_call("", descriptor);
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
}

/// What came of asking to mount.
enum Mount {
    Done,
    /// The registry wants the bytes instead, here.
    Upload(Url),
    No,
}
