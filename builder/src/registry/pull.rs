//! Reading from a registry (distribution-spec, "Pull"): manifests, configs, and layers into the
//! content store.
//!
//! Every byte is compared with digest and size before anybody sees it. A large blob comes as
//! several ranges at once, in order, so that it is hashed as it is written; a broken connection is
//! taken up where it broke, if the host really continues there.

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use futures::TryStreamExt as _;
use futures::future::BoxFuture;
use futures::stream::FuturesOrdered;
use rbuild_cache::digest::Digest;
use rbuild_cache::oci::{Descriptor, ImageRef, Index, MediaType};
use rbuild_cache::store::{BlobWriter, ContentStore, StoreError};
use rbuild_solver::progress::Task;
use reqwest::header::{
    ACCEPT, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG, HeaderMap, HeaderValue, RANGE,
};
use reqwest::{Method, Response, StatusCode};
use tokio::sync::{Mutex as AsyncMutex, Semaphore, SemaphorePermit};
use tokio::time::Instant;
use url::Url;

use super::error::{Cause, Failure, RegistryError};
use super::hosts::{Endpoint, Scheme};
use super::retry::Patience;
use super::sink::{Gauge, Sink};
use super::transport::{self, Call, Target, Transport};
use crate::layer_arrival::Watcher;

/// No manifest, index or config may be longer, in bytes.
pub const LONGEST_DOCUMENT: u64 = 8 << 20;
/// How often a blob that came with a wrong digest is fetched again.
const MOST_DAMAGED: u32 = 3;
/// How many parts of one blob are on their way at once.
const PARTS: usize = 4;
/// How many bytes count as progress.
const PROGRESS: u64 = 64 << 10;
/// What a manifest may be.
const ACCEPTED: &str = "application/vnd.oci.image.index.v1+json, \
    application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, \
    application/vnd.docker.distribution.manifest.v2+json, */*;q=0.1";

/// A manifest or index as a tag had it.
#[derive(Clone, Debug)]
pub(super) struct Version {
    pub(super) document: (Descriptor, Bytes),
    /// What the host calls it, if that can be compared.
    pub(super) etag: Option<HeaderValue>,
}

/// Reads from registries, and knows which mirrors are down.
#[derive(Debug)]
pub struct Puller {
    transport: Arc<Transport>,
    /// Blobs on their way.
    blobs: Semaphore,
    /// Requests on their way, and parts of blobs that wait in memory for those before them.
    transfers: Semaphore,
    /// Mirrors that could not be reached; they are not asked again by this process.
    down: Mutex<HashSet<String>>,
    /// Hosts that don't serve ranges.
    whole_only: Mutex<HashSet<String>>,
    /// Blobs on their way: two steps that need one blob fetch it once.
    flights: Mutex<HashMap<Digest, Arc<AsyncMutex<()>>>>,
}

impl Puller {
    /// Reads through `transport`.
    pub fn new(transport: Arc<Transport>) -> Self {
        let at_once = transport.settings().transfers.max(1);
        Self {
            transport,
            blobs: Semaphore::new(at_once),
            transfers: Semaphore::new(at_once),
            down: Mutex::default(),
            whole_only: Mutex::default(),
            flights: Mutex::default(),
        }
    }

    /// What carries requests.
    pub(super) fn transport(&self) -> &Transport {
        &self.transport
    }

    /// What `image` stands for, without its bytes. `None` when the registry does not say it all in
    /// the headers; then [`Self::manifest`] does.
    pub async fn head(&self, image: &ImageRef) -> Result<Option<Descriptor>, RegistryError> {
        let action = format!("resolving `{image}`");
        let mut tried = Tried::new(action);
        for endpoint in self.endpoints(image, &tried)? {
            let call = manifest_call(Method::HEAD, &endpoint, &image.manifest_name());
            match self.transport.send(&call, &mut self.patience(&endpoint)).await {
                Ok(response) if response.status().is_success() => {
                    return Ok(descriptor_in(response.headers()));
                }
                // Some hosts don't know HEAD; GET will tell.
                Ok(response) if response.status() == StatusCode::METHOD_NOT_ALLOWED => {
                    return Ok(None);
                }
                Ok(response) => {
                    let cause = self.transport.failure(&call, response, &image.familiar()).await;
                    self.failed(&mut tried, &endpoint, cause)?;
                }
                Err(cause) => self.failed(&mut tried, &endpoint, cause)?,
            }
        }
        Err(tried.error())
    }

    /// The manifest or index that `image` stands for, with the bytes it came as.
    pub async fn manifest(&self, image: &ImageRef) -> Result<(Descriptor, Bytes), RegistryError> {
        let mut tried = Tried::new(format!("reading the manifest of `{image}`"));
        for endpoint in self.endpoints(image, &tried)? {
            match self.manifest_at(&endpoint, image).await {
                Ok(found) => return Ok(found),
                Err(cause) => self.failed(&mut tried, &endpoint, cause)?,
            }
        }
        Err(tried.error())
    }

    /// Whether the registry itself lists `referrer` among what is said of `subject`
    /// (distribution-spec, "Listing Referrers"). `false` also when it has no such interface.
    pub async fn lists_referrer(
        &self,
        image: &ImageRef,
        subject: &Digest,
        referrer: &Digest,
    ) -> bool {
        let endpoint = self.transport.hosts().and_then(|hosts| hosts.push_endpoint(image));
        let Ok(endpoint) = endpoint else { return false };
        let path = format!("/v2/{}/referrers/{subject}", endpoint.repository);
        let call =
            Call::new(Method::GET, &endpoint, path).header(ACCEPT, MediaType::OciIndex.as_str());
        let Ok(response) = self.transport.send(&call, &mut self.patience(&endpoint)).await else {
            return false;
        };
        // Some answer a question that they do not know with a page.
        if response.status() != StatusCode::OK
            || media_type_in(response.headers()) != Some(MediaType::OciIndex)
        {
            return false;
        }
        let read = transport::read_body(response, LONGEST_DOCUMENT, self.transport.silence());
        let Ok(bytes) = read.await else { return false };
        let index: Option<Index> = serde_json::from_slice(&bytes).ok();
        index.is_some_and(|index| index.manifests.iter().any(|one| one.digest == *referrer))
    }

    /// The blob that `descriptor` names in the repository of `image`, in memory: a config.
    pub async fn document(
        &self,
        image: &ImageRef,
        descriptor: &Descriptor,
    ) -> Result<Bytes, RegistryError> {
        let mut tried = Tried::new(format!("reading the config of `{image}`"));
        for endpoint in self.endpoints(image, &tried)? {
            match self.document_at(&endpoint, descriptor).await {
                Ok(bytes) => return Ok(bytes),
                Err(cause) => self.failed(&mut tried, &endpoint, cause)?,
            }
        }
        Err(tried.error())
    }

    /// Makes sure that the blob that `descriptor` names in the repository of `image` is in `store`.
    /// One that has to be downloaded is shown to `watcher`, once for each attempt.
    pub async fn fetch(
        &self,
        image: &ImageRef,
        descriptor: &Descriptor,
        store: &ContentStore,
        watcher: Option<&Watcher>,
        task: &Task,
    ) -> Result<(), RegistryError> {
        let flight = {
            let mut flights = self.flights.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(flights.entry(descriptor.digest).or_default())
        };
        let _flight = flight.lock().await;
        let mut tried = Tried::new(format!("pulling `{}` of `{image}`", descriptor.digest));
        let local =
            |e: StoreError| RegistryError::new(tried.action.clone(), image.registry(), e.into());
        if store.contains_whole(descriptor).map_err(local)? {
            return Ok(());
        }
        let _room = acquired(&self.blobs).await;
        let sources = self.sources(image, descriptor, &tried)?;
        let gauge = Gauge::new(task, descriptor);
        let mut damaged = 0;
        let mut sink = Sink::blob(store, watcher);
        let mut sources = sources.iter().peekable();
        while let Some(source) = sources.peek() {
            let outcome = match self.download(source, descriptor, &mut sink, &gauge).await {
                Ok(()) => sink.commit(descriptor).await,
                Err(cause) => Err(sink.cause(cause).await),
            };
            let cause = match outcome {
                Ok(()) => {
                    gauge.done(descriptor.size);
                    return Ok(());
                }
                Err(cause) => cause,
            };
            if let Cause::Damaged { .. } = cause {
                sink = Sink::blob(store, watcher);
                damaged += 1;
                if !source.endpoint.mirror && damaged < MOST_DAMAGED {
                    continue;
                }
            }
            if sink.is_closed() {
                sink = Sink::blob(store, watcher);
            }
            self.failed(&mut tried, &source.endpoint, cause)?;
            sources.next();
        }
        Err(tried.error())
    }

    async fn manifest_at(
        &self,
        endpoint: &Endpoint,
        image: &ImageRef,
    ) -> Result<(Descriptor, Bytes), Cause> {
        self.version_at(endpoint, image).await.map(|version| version.document)
    }

    /// The manifest with what the host calls this version of it.
    pub(super) async fn version_at(
        &self,
        endpoint: &Endpoint,
        image: &ImageRef,
    ) -> Result<Version, Cause> {
        let call = manifest_call(Method::GET, endpoint, &image.manifest_name());
        let mut patience = self.patience(endpoint);
        loop {
            let begun = Instant::now();
            let response = self.transport.send(&call, &mut patience).await?;
            if !response.status().is_success() {
                return Err(self.transport.failure(&call, response, &image.familiar()).await);
            }
            let headers = response.headers().clone();
            let read =
                transport::read_body(response, LONGEST_DOCUMENT, self.transport.silence()).await;
            let checked = read.map_err(named("the manifest")).and_then(|bytes| {
                let claimed = image.digest().or_else(|| digest_in(&headers));
                let found = Digest::of(&bytes);
                if claimed.is_some_and(|claimed| claimed != found) {
                    let detail = format!("its digest is `{found}`");
                    return Err(Cause::Damaged { what: claimed.unwrap_or(found), detail });
                }
                let media_type = media_type_of(&headers, &bytes);
                let descriptor = Descriptor::new(media_type, found, bytes.len() as u64);
                Ok(Version { document: (descriptor, bytes), etag: strong_etag(&headers) })
            });
            match checked {
                Err(cause) if cause.is_transient() => {
                    patience.spend(begun.elapsed());
                    if !patience.pause(None, false).await {
                        return Err(cause);
                    }
                }
                other => return other,
            }
        }
    }

    async fn document_at(
        &self,
        endpoint: &Endpoint,
        descriptor: &Descriptor,
    ) -> Result<Bytes, Cause> {
        let (digest, limit) = (descriptor.digest, LONGEST_DOCUMENT);
        if descriptor.size > limit {
            return Err(Cause::TooLarge { what: format!("`{digest}`"), limit });
        }
        let call = Call::new(Method::GET, endpoint, blob_path(endpoint, &digest));
        let mut patience = self.patience(endpoint);
        loop {
            let begun = Instant::now();
            let response = self.transport.send(&call, &mut patience).await?;
            if !response.status().is_success() {
                let what = format!("blob `{digest}`");
                return Err(self.transport.failure(&call, response, &what).await);
            }
            let read =
                match transport::read_body(response, descriptor.size, self.transport.silence())
                    .await
                {
                    Err(Cause::TooLarge { limit, .. }) => {
                        let detail = format!("it has more than {limit} bytes");
                        Err(Cause::Damaged { what: digest, detail })
                    }
                    Ok(bytes) if (bytes.len() as u64) < descriptor.size => {
                        let detail =
                            format!("it has {} bytes instead of {}", bytes.len(), descriptor.size);
                        Err(Cause::Damaged { what: digest, detail })
                    }
                    Ok(bytes) if Digest::of(&bytes) != digest => {
                        let detail = format!("its digest is `{}`", Digest::of(&bytes));
                        Err(Cause::Damaged { what: digest, detail })
                    }
                    other => other,
                };
            match read {
                Err(cause) if cause.is_transient() => {
                    patience.spend(begun.elapsed());
                    if !patience.pause(None, false).await {
                        return Err(cause);
                    }
                }
                other => return other,
            }
        }
    }

    /// Brings `sink` from where it is to the end of the blob.
    async fn download(
        &self,
        source: &Source,
        descriptor: &Descriptor,
        sink: &mut Sink<BlobWriter>,
        gauge: &Gauge,
    ) -> Result<(), Cause> {
        let mut patience = self.patience(&source.endpoint);
        while sink.position() < descriptor.size {
            let (begun, from) = (Instant::now(), sink.position());
            match self.download_on(source, descriptor, sink, gauge, &mut patience).await {
                Ok(()) => {}
                Err(cause) if cause.is_transient() && !matches!(cause, Cause::Damaged { .. }) => {
                    if sink.position() >= from + PROGRESS {
                        patience.renew();
                    } else {
                        patience.spend(begun.elapsed());
                    }
                    if !patience.pause(None, false).await {
                        return Err(cause);
                    }
                }
                Err(cause) => return Err(cause),
            }
        }
        Ok(())
    }

    /// Goes on with the blob from where `sink` is, until its end or until something breaks.
    async fn download_on(
        &self,
        source: &Source,
        descriptor: &Descriptor,
        sink: &mut Sink<BlobWriter>,
        gauge: &Gauge,
        patience: &mut Patience,
    ) -> Result<(), Cause> {
        let (from, size) = (sink.position(), descriptor.size);
        let host = &source.endpoint.host;
        let part = self.transport.settings().range.max(1);
        let in_parts = size - from >= part.saturating_mul(2);
        let whole_only = self.whole_only().contains(host);
        let first = match (whole_only, in_parts) {
            (false, true) => Some(from..from + part),
            (false, false) if from > 0 => Some(from..size),
            _ => None,
        };
        let permit = acquired(&self.transfers).await;
        let (response, range) = self.open(source, descriptor, first, patience).await?;
        if range.end == size {
            return self.stream(response, range.start, descriptor, sink, gauge).await;
        }
        let opened = self.part(source, descriptor, range.clone(), Some(response), permit);
        let mut parts: FuturesOrdered<BoxFuture<'_, Result<Part<'_>, Cause>>> =
            FuturesOrdered::new();
        parts.push_back(Box::pin(opened));
        let mut next = range.end;
        loop {
            while parts.len() < PARTS && next < size {
                // Parts before a missing one wait in memory, so that further ones need room; the
                // first one is waited for, when this blob holds none.
                let permit = match self.transfers.try_acquire() {
                    Ok(permit) => permit,
                    Err(_) if parts.is_empty() => acquired(&self.transfers).await,
                    Err(_) => break,
                };
                let end = size.min(next + part);
                let further = self.part(source, descriptor, next..end, None, permit);
                parts.push_back(Box::pin(further));
                next = end;
            }
            let Some(part) = parts.try_next().await? else { break };
            for piece in part.pieces {
                sink.write(piece).await?;
            }
            gauge.at(sink.position());
        }
        Ok(())
    }

    /// Asks for `range` of a blob, or for all of it: the answer, and which bytes of the blob are
    /// really in it.
    async fn open(
        &self,
        source: &Source,
        descriptor: &Descriptor,
        range: Option<Range<u64>>,
        patience: &mut Patience,
    ) -> Result<(Response, Range<u64>), Cause> {
        let mut call = Call::new(Method::GET, &source.endpoint, "");
        call.target = source.target.clone();
        if let Some(range) = &range {
            call = call.header(RANGE, &format!("bytes={}-{}", range.start, range.end - 1));
        }
        let response = self.transport.send(&call, patience).await?;
        let no_ranges = || {
            self.whole_only().insert(source.endpoint.host.clone());
        };
        match (response.status(), range) {
            (StatusCode::OK, asked) => {
                if asked.is_some() {
                    no_ranges();
                }
                Ok((response, 0..descriptor.size))
            }
            (StatusCode::PARTIAL_CONTENT, Some(range)) => {
                if content_range_is(response.headers(), &range, descriptor.size) {
                    return Ok((response, range));
                }
                no_ranges();
                Err(Cause::Connection("it sent another range than the one asked for".into()))
            }
            (StatusCode::RANGE_NOT_SATISFIABLE, Some(_)) => {
                no_ranges();
                Err(Cause::Connection("it does not have the range asked for".into()))
            }
            _ => {
                let what = format!("blob `{}`", descriptor.digest);
                Err(self.transport.failure(&call, response, &what).await)
            }
        }
    }

    /// One part of a blob, in memory. `opened` is the answer to the first request for it, if that
    /// was made. A connection that breaks is taken up where it broke.
    async fn part<'a>(
        &self,
        source: &Source,
        descriptor: &Descriptor,
        range: Range<u64>,
        opened: Option<Response>,
        permit: SemaphorePermit<'a>,
    ) -> Result<Part<'a>, Cause> {
        let mut patience = self.patience(&source.endpoint);
        let (mut pieces, mut position, mut opened) = (Vec::new(), range.start, opened);
        loop {
            let (begun, from) = (Instant::now(), position);
            let attempt = async {
                let rest = position..range.end;
                let mut response = if let Some(opened) = opened.take() {
                    opened
                } else {
                    let asked = Some(rest.clone());
                    let (response, got) =
                        self.open(source, descriptor, asked, &mut patience).await?;
                    if got != rest {
                        return Err(Cause::Connection("it stopped serving ranges".into()));
                    }
                    response
                };
                while let Some(piece) =
                    transport::next_piece(&mut response, self.transport.silence()).await?
                {
                    position += piece.len() as u64;
                    if position > range.end {
                        let detail = "a range of it is longer than asked for".to_owned();
                        return Err(Cause::Damaged { what: descriptor.digest, detail });
                    }
                    pieces.push(piece);
                }
                Ok(())
            };
            let cause = match attempt.await {
                Ok(()) if position == range.end => return Ok(Part { pieces, _room: permit }),
                Ok(()) => Cause::Connection("a range ended early".to_owned()),
                // The whole download has to go on in another way.
                Err(cause) if self.whole_only().contains(&source.endpoint.host) => {
                    return Err(cause);
                }
                Err(cause @ (Cause::Connection(_) | Cause::Stalled(_))) => cause,
                Err(cause) => return Err(cause),
            };
            if position > from {
                patience.renew();
            } else {
                patience.spend(begun.elapsed());
            }
            if !patience.pause(None, false).await {
                return Err(cause);
            }
        }
    }

    /// Writes a body that begins at byte `start` of the blob and ends with it. What the sink has
    /// already is skipped; the digest tells in the end whether both were parts of one blob.
    async fn stream(
        &self,
        mut response: Response,
        start: u64,
        descriptor: &Descriptor,
        sink: &mut Sink<BlobWriter>,
        gauge: &Gauge,
    ) -> Result<(), Cause> {
        let mut position = start;
        while let Some(mut piece) =
            transport::next_piece(&mut response, self.transport.silence()).await?
        {
            let end = position + piece.len() as u64;
            if end > descriptor.size {
                let detail = format!("it has more than {} bytes", descriptor.size);
                return Err(Cause::Damaged { what: descriptor.digest, detail });
            }
            let known = sink.position().saturating_sub(position).min(piece.len() as u64);
            position = end;
            let piece = piece.split_off(usize::try_from(known).expect("it is within the piece"));
            if !piece.is_empty() {
                sink.write(piece).await?;
                gauge.at(sink.position());
            }
        }
        if position < descriptor.size {
            return Err(Cause::Connection(format!("it ended after {position} bytes")));
        }
        Ok(())
    }

    fn endpoints(&self, image: &ImageRef, tried: &Tried) -> Result<Vec<Endpoint>, RegistryError> {
        let failed = |e: super::hosts::HostsError| {
            RegistryError::new(tried.action.clone(), image.registry(), e.into())
        };
        let mut endpoints =
            self.transport.hosts().and_then(|h| h.pull_endpoints(image)).map_err(failed)?;
        let down = self.down.lock().unwrap_or_else(PoisonError::into_inner);
        endpoints.retain(|endpoint| !endpoint.mirror || !down.contains(&endpoint.host));
        Ok(endpoints)
    }

    /// Where a blob may be had: the endpoints, and for a foreign layer the addresses that its
    /// descriptor names (image-spec, descriptor.md, "urls").
    fn sources(
        &self,
        image: &ImageRef,
        descriptor: &Descriptor,
        tried: &Tried,
    ) -> Result<Vec<Source>, RegistryError> {
        let of_endpoint = |endpoint: Endpoint| Source {
            target: Target::Path(blob_path(&endpoint, &descriptor.digest)),
            endpoint,
        };
        let endpoints = self.endpoints(image, tried)?.into_iter().map(of_endpoint);
        let of_address = |text: &String| {
            let address = Url::parse(text).ok()?;
            let scheme = match address.scheme() {
                "http" => Scheme::Http,
                "https" => Scheme::Https,
                _ => return None,
            };
            let endpoint = Endpoint {
                host: transport::host_of(&address)?,
                repository: String::new(),
                schemes: vec![scheme],
                mirror: false,
            };
            Some(Source { endpoint, target: Target::Address(address) })
        };
        let addresses = descriptor.urls.iter().filter_map(of_address);
        Ok(match descriptor.media_type {
            MediaType::Foreign(_) => addresses.chain(endpoints).collect(),
            _ => endpoints.collect(),
        })
    }

    /// Patience with an endpoint: less with a mirror, since another one can be asked.
    fn patience(&self, endpoint: &Endpoint) -> Patience {
        let whole = self.transport.settings().patience;
        Patience::new(if endpoint.mirror { whole / 4 } else { whole })
    }

    /// Notes that `endpoint` failed.
    ///
    /// # Errors
    /// When asking another one cannot help: the fault is on this machine.
    fn failed(
        &self,
        tried: &mut Tried,
        endpoint: &Endpoint,
        cause: Cause,
    ) -> Result<(), RegistryError> {
        if let Cause::Local(_) | Cause::Store(_) = cause {
            return Err(RegistryError::new(tried.action.clone(), &endpoint.host, cause));
        }
        let gone = matches!(cause, Cause::Unreachable(_) | Cause::Stalled(_));
        if endpoint.mirror && gone {
            let mut down = self.down.lock().unwrap_or_else(PoisonError::into_inner);
            down.insert(endpoint.host.clone());
        }
        tried.failures.push(cause.at(&endpoint.host));
        Ok(())
    }

    fn whole_only(&self) -> std::sync::MutexGuard<'_, HashSet<String>> {
        self.whole_only.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Waits for room among the `places`, which are never closed.
async fn acquired(places: &Semaphore) -> SemaphorePermit<'_> {
    places.acquire().await.expect("the semaphore is never closed")
}

/// One place where a blob may be had.
struct Source {
    endpoint: Endpoint,
    target: Target,
}

/// A part of a blob that is in memory until those before it are written.
struct Part<'a> {
    pieces: Vec<Bytes>,
    _room: SemaphorePermit<'a>,
}

/// What failed at which host so far.
struct Tried {
    action: String,
    failures: Vec<Failure>,
}

impl Tried {
    fn new(action: String) -> Self {
        Self { action, failures: Vec::new() }
    }

    /// The last failure is the registry's own, those before are its mirrors'.
    fn error(mut self) -> RegistryError {
        let failure = self.failures.pop().expect("a registry has an endpoint, and it failed");
        RegistryError { action: self.action, failure, mirrors: self.failures }
    }
}

/// The path of a manifest, by tag or digest.
pub fn manifest_path(endpoint: &Endpoint, name: &str) -> String {
    format!("/v2/{}/manifests/{name}", endpoint.repository)
}

/// The path of a blob.
pub fn blob_path(endpoint: &Endpoint, digest: &Digest) -> String {
    format!("/v2/{}/blobs/{digest}", endpoint.repository)
}

fn manifest_call<'a>(method: Method, endpoint: &'a Endpoint, name: &str) -> Call<'a> {
    Call::new(method, endpoint, manifest_path(endpoint, name)).header(ACCEPT, ACCEPTED)
}

/// Whether `Content-Range` says that the body is `range` of a blob of `size` bytes.
fn content_range_is(headers: &HeaderMap, range: &Range<u64>, size: u64) -> bool {
    let Some(value) = headers.get(CONTENT_RANGE).and_then(|value| value.to_str().ok()) else {
        return false;
    };
    let expected = format!("bytes {}-{}/", range.start, range.end - 1);
    let total = value.trim().strip_prefix(&expected);
    total.is_some_and(|total| total == "*" || total.parse() == Ok(size))
}

fn digest_in(headers: &HeaderMap) -> Option<Digest> {
    headers.get("docker-content-digest")?.to_str().ok()?.trim().parse().ok()
}

/// The version's name, if it is one by which the host can be asked to replace just that version
/// (RFC 9110, 13.1.1): a weak one never matches.
fn strong_etag(headers: &HeaderMap) -> Option<HeaderValue> {
    headers.get(ETAG).filter(|etag| etag.as_bytes().starts_with(b"\"")).cloned()
}

/// The media type of a manifest: what the host says; what the manifest says of itself when the host
/// says nothing of use; otherwise what its fields show.
fn media_type_of(headers: &HeaderMap, bytes: &[u8]) -> MediaType {
    let said = media_type_in(headers).filter(|said| said.is_index() || said.is_manifest());
    said.unwrap_or_else(|| crate::image_document::media_type(bytes))
}

fn media_type_in(headers: &HeaderMap) -> Option<MediaType> {
    let value = headers.get(CONTENT_TYPE)?.to_str().ok()?;
    Some(MediaType::from(value.split(';').next()?.trim().to_owned()))
}

fn descriptor_in(headers: &HeaderMap) -> Option<Descriptor> {
    let size = headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()?;
    let media_type = media_type_in(headers).filter(|t| t.is_index() || t.is_manifest())?;
    Some(Descriptor::new(media_type, digest_in(headers)?, size))
}

fn named(what: &'static str) -> impl Fn(Cause) -> Cause {
    move |cause| match cause {
        Cause::TooLarge { limit, .. } => Cause::TooLarge { what: what.to_owned(), limit },
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_range_that_was_asked_for() {
        let check = |value: &str, expected: bool| {
            let mut headers = HeaderMap::new();
            headers.insert(CONTENT_RANGE, value.parse().unwrap());
            assert_eq!(content_range_is(&headers, &(10..20), 100), expected, "{value}");
        };
        check("bytes 10-19/100", true);
        check("bytes 10-19/*", true);
        check("bytes 10-19/101", false);
        check("bytes 10-20/100", false);
        check("bytes 0-19/100", false);
        check("10-19/100", false);
        check("", false);
        assert!(!content_range_is(&HeaderMap::new(), &(10..20), 100));
    }
}
