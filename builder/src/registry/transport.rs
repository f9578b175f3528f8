//! One request to a registry, until it is answered: the scheme the host understands, credentials,
//! redirects, and patience with passing faults. What the answer means is the caller's matter.

use std::collections::HashMap;
use std::io::Read;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::Stream;
use oci_client::errors::{OciEnvelope, OciError, OciErrorCode};
use reqwest::header::{AUTHORIZATION, CONTENT_LENGTH, HeaderName, HeaderValue, LOCATION};
use reqwest::{Body, Method, Request, Response, StatusCode};
use tokio::sync::mpsc;
use tokio::time::Instant;
use url::Url;

use super::auth::{Authenticator, Scope};
use super::clients::{self, Clients, SILENCE, Sent};
use super::credentials::Credentials;
use super::error::Cause;
use super::hosts::{Endpoint, Hosts, HostsError, Scheme};
use super::retry::{Patience, retry_after};
use super::settings::RegistrySettings;

/// How many redirects are followed, as curl's and Go's clients do.
const MOST_REDIRECTS: usize = 10;
/// How often a request may be answered 401 before it is given up.
const MOST_CHALLENGES: usize = 2;
/// A piece of an upload, in bytes.
const PIECE: usize = 256 << 10;

/// What is asked of a host.
#[derive(Clone)]
pub struct Call<'a> {
    /// The method.
    pub method: Method,
    /// Whom.
    pub endpoint: &'a Endpoint,
    /// Where.
    pub target: Target,
    /// Further headers.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// What goes with it.
    pub body: Upload,
    /// What it needs to be allowed.
    pub scopes: Vec<Scope>,
}

/// Where a [`Call`] goes.
#[derive(Clone, Debug)]
pub enum Target {
    /// A path at the endpoint, with its query.
    Path(String),
    /// An address that the host gave us.
    Address(Url),
}

/// Opens the bytes of an upload, anew for each attempt.
pub type Opener = Arc<dyn Fn() -> std::io::Result<Box<dyn Read + Send>> + Send + Sync>;
/// Is told how many bytes of an upload are out.
pub type OnSent = Arc<dyn Fn(u64) + Send + Sync>;

/// The body of a [`Call`].
#[derive(Clone)]
pub enum Upload {
    /// None.
    Empty,
    /// A small one.
    Bytes(Bytes),
    /// A large one.
    Stream {
        /// Opens it.
        open: Opener,
        /// Its length in bytes; absent while it is still being made.
        length: Option<u64>,
        /// Is told how far it is.
        on_sent: OnSent,
    },
}

impl<'a> Call<'a> {
    /// Asks `endpoint` for `path`, with the right to read its repository.
    pub fn new(method: Method, endpoint: &'a Endpoint, path: impl Into<String>) -> Self {
        Self {
            method,
            endpoint,
            target: Target::Path(path.into()),
            headers: Vec::new(),
            body: Upload::Empty,
            scopes: vec![Scope::pull(&endpoint.repository)],
        }
    }

    /// With one more header.
    ///
    /// # Panics
    /// When `value` is not visible ASCII: ours are media types and ranges.
    #[must_use]
    pub fn header(mut self, name: HeaderName, value: &str) -> Self {
        let value = HeaderValue::from_str(value).expect("our headers are visible ASCII");
        self.headers.push((name, value));
        self
    }
}

/// Speaks to registries.
#[derive(Debug)]
pub struct Transport {
    settings: Arc<RegistrySettings>,
    clients: Clients,
    hosts: OnceLock<Hosts>,
    authenticator: Authenticator,
    /// The scheme that each host was found to understand.
    spoken: Mutex<HashMap<String, Scheme>>,
}

impl Transport {
    /// Speaks to nobody yet, and reads nothing.
    pub fn new(settings: Arc<RegistrySettings>) -> Self {
        let credentials = Credentials::new(&settings);
        Self {
            clients: Clients::new(settings.clone()),
            hosts: OnceLock::new(),
            authenticator: Authenticator::new(credentials, settings.patience),
            spoken: Mutex::default(),
            settings,
        }
    }

    /// The settings it was made with.
    pub fn settings(&self) -> &RegistrySettings {
        &self.settings
    }

    /// What the configuration files say; they are read when this is first asked.
    pub fn hosts(&self) -> Result<&Hosts, HostsError> {
        if let Some(hosts) = self.hosts.get() {
            return Ok(hosts);
        }
        let loaded = Hosts::load(&self.settings)?;
        Ok(self.hosts.get_or_init(|| loaded))
    }

    /// Who proves who asks.
    pub fn authenticator(&self) -> &Authenticator {
        &self.authenticator
    }

    /// The clients.
    pub fn clients(&self) -> &Clients {
        &self.clients
    }

    /// Patience for one operation.
    pub fn patience(&self) -> Patience {
        Patience::new(self.settings.patience)
    }

    /// For how long a host may be silent while its answer comes: there is patience for two times.
    pub fn silence(&self) -> Duration {
        SILENCE.min(self.settings.patience / 2)
    }

    /// Sends `call`, again and again while it meets passing faults and `patience` lasts. An answer
    /// that is neither 401 nor a passing fault is returned as it is.
    pub async fn send(&self, call: &Call<'_>, patience: &mut Patience) -> Result<Response, Cause> {
        loop {
            let sent = Arc::new(Sent::default());
            let begun = Instant::now();
            let outcome = self.attempt(call, patience.left(), &sent).await;
            let idle = match call.body {
                Upload::Stream { .. } => sent.idle(),
                Upload::Empty | Upload::Bytes(_) => begun.elapsed(),
            };
            let (cause, asked) = match outcome {
                Ok(response) if !is_passing(response.status()) => return Ok(response),
                Ok(response) => {
                    let asked = retry_after(response.headers());
                    match asked {
                        Some(wait) if wait >= patience.left() => (Cause::Later(wait), asked),
                        _ => (status_cause(response).await, asked),
                    }
                }
                Err(cause) if cause.is_transient() => (cause, None),
                Err(cause) => return Err(cause),
            };
            patience.spend(idle);
            tracing::debug!(host = call.endpoint.host, %cause, "trying again");
            let unreachable = matches!(cause, Cause::Unreachable(_));
            if !patience.pause(asked, unreachable).await {
                return Err(cause);
            }
        }
    }

    /// Sends `call` once, whatever comes of it: what went before it must be done anew, too. The
    /// answer may be a passing fault.
    pub async fn send_once(
        &self,
        call: &Call<'_>,
        left: Duration,
        sent: &Arc<Sent>,
    ) -> Result<Response, Cause> {
        self.attempt(call, left, sent).await
    }

    /// Sends `call` once, in the scheme that the host is known to understand, or in each that it
    /// may.
    async fn attempt(
        &self,
        call: &Call<'_>,
        left: Duration,
        sent: &Arc<Sent>,
    ) -> Result<Response, Cause> {
        let known = self.spoken().get(&call.endpoint.host).copied();
        if let Some(scheme) = known {
            return self.in_scheme(call, scheme, left, sent).await;
        }
        let mut telling: Option<Result<Response, Cause>> = None;
        for &scheme in &call.endpoint.schemes {
            let outcome = self.in_scheme(call, scheme, left, sent).await;
            let not_understood = match &outcome {
                // What a TLS port says to plain HTTP.
                Ok(response) => {
                    scheme == Scheme::Http && response.status() == StatusCode::BAD_REQUEST
                }
                Err(Cause::Unreachable(_) | Cause::Connection(_) | Cause::Handshake(_)) => true,
                Err(_) => false,
            };
            if !not_understood {
                self.spoken().insert(call.endpoint.host.clone(), scheme);
                return outcome;
            }
            // What speaks TLS is known by the first attempt; then the later one tells what is wrong.
            let later_tells = match (&telling, &outcome) {
                (None, _) | (_, Err(Cause::Handshake(_))) => true,
                (Some(Ok(_)), outcome) => !matches!(outcome, Err(Cause::Unreachable(_))),
                (Some(Err(_)), _) => false,
            };
            if later_tells {
                telling = Some(outcome);
            }
        }
        telling.unwrap_or_else(|| Err(Cause::Protocol("no scheme to speak to it is known".into())))
    }

    async fn in_scheme(
        &self,
        call: &Call<'_>,
        scheme: Scheme,
        left: Duration,
        sent: &Arc<Sent>,
    ) -> Result<Response, Cause> {
        let hosts = self.hosts()?;
        let base = base_address(&call.endpoint.host, scheme)?;
        let address = match &call.target {
            Target::Path(path) => base.join(path).map_err(|e| Cause::Protocol(e.to_string()))?,
            Target::Address(address) => address.clone(),
        };
        let ours = address.origin() == base.origin();
        let mut challenges = 0;
        loop {
            let authorization = if ours {
                let scopes = &call.scopes;
                self.authenticator
                    .authorization(&self.clients, hosts, call.endpoint, scopes)
                    .await?
            } else {
                None
            };
            let way = Way { base: &base, scheme, hosts, silence: self.silence().min(left), sent };
            let response = self.follow(call, address.clone(), authorization.as_ref(), &way).await?;
            let from_us = response.url().origin() == base.origin();
            if response.status() != StatusCode::UNAUTHORIZED || !from_us {
                return Ok(response);
            }
            if challenges == MOST_CHALLENGES {
                return Err(self.denied(call, response).await);
            }
            challenges += 1;
            let shown = authorization.as_ref();
            self.authenticator
                .learn(call.endpoint, &call.scopes, response.headers(), shown)
                .await?;
        }
    }

    /// Sends `call` to `address` and where that leads. Credentials go to the host that they are
    /// for, and nowhere else.
    async fn follow(
        &self,
        call: &Call<'_>,
        mut address: Url,
        authorization: Option<&HeaderValue>,
        way: &Way<'_>,
    ) -> Result<Response, Cause> {
        for _ in 0..=MOST_REDIRECTS {
            let ours = address.origin() == way.base.origin();
            let host = host_of(&address)
                .ok_or_else(|| Cause::Protocol(format!("it leads to `{address}`")))?;
            let scheme = if ours { way.scheme } else { scheme_for(&address, &host, way.hosts) };
            let client = self.clients.client(&host, scheme, way.hosts.own(&host))?;
            let mut request = Request::new(call.method.clone(), address.clone());
            request.headers_mut().extend(call.headers.iter().cloned());
            if let Some(authorization) = authorization.filter(|_| ours) {
                request.headers_mut().insert(AUTHORIZATION, authorization.clone());
            }
            set_body(&mut request, &call.body, way.sent);
            let response = clients::exchange(&client, request, way.silence, way.sent).await?;
            let Some(next) = redirect(&response, &call.method)? else { return Ok(response) };
            if address.scheme() == "https" && next.scheme() != "https" {
                return Err(Cause::Protocol(format!("it redirects from https to `{next}`")));
            }
            address = next;
        }
        Err(Cause::Protocol(format!("it redirects more than {MOST_REDIRECTS} times")))
    }

    async fn denied(&self, call: &Call<'_>, response: Response) -> Cause {
        let detail = format!("{}{}", response.status(), said(response).await);
        let offered = self.authenticator.offered(&call.endpoint.host, &call.scopes).await;
        Cause::Denied { detail, offered }
    }

    /// What an answer that is no success means: `what` is what was asked for.
    pub async fn failure(&self, call: &Call<'_>, response: Response, what: &str) -> Cause {
        match response.status() {
            StatusCode::NOT_FOUND => match status_cause(response).await {
                // It is not what was put that is missing, but what that names.
                cause @ Cause::BlobUnknown { .. } if call.method == Method::PUT => cause,
                _ => Cause::NotFound(what.to_owned()),
            },
            StatusCode::FORBIDDEN | StatusCode::UNAUTHORIZED => self.denied(call, response).await,
            _ => status_cause(response).await,
        }
    }

    fn spoken(&self) -> std::sync::MutexGuard<'_, HashMap<String, Scheme>> {
        self.spoken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What stays the same along redirects.
struct Way<'a> {
    base: &'a Url,
    scheme: Scheme,
    hosts: &'a Hosts,
    silence: Duration,
    sent: &'a Arc<Sent>,
}

fn base_address(host: &str, scheme: Scheme) -> Result<Url, Cause> {
    let name = match scheme {
        Scheme::Http => "http",
        Scheme::Https | Scheme::HttpsUnverified => "https",
    };
    Url::parse(&format!("{name}://{host}/"))
        .map_err(|e| Cause::Protocol(format!("`{host}` is not a host: {e}")))
}

/// Host and port of `address`, the port left out when it is the scheme's own.
pub fn host_of(address: &Url) -> Option<String> {
    let host = address.host_str()?;
    Some(address.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}")))
}

/// How to speak to a host that another one named.
pub fn scheme_for(address: &Url, host: &str, hosts: &Hosts) -> Scheme {
    if address.scheme() == "http" {
        return Scheme::Http;
    }
    match hosts.own(host) {
        Some(own) if own.insecure => Scheme::HttpsUnverified,
        Some(_) | None => Scheme::Https,
    }
}

/// Where an answer leads. Bodies are sent again only where the status says that the method stays.
fn redirect(response: &Response, method: &Method) -> Result<Option<Url>, Cause> {
    let reading = matches!(*method, Method::GET | Method::HEAD);
    let follows = match response.status().as_u16() {
        301..=303 => reading,
        307 | 308 => true,
        _ => false,
    };
    if !follows {
        return Ok(None);
    }
    location(response).map(Some)
}

/// The address in `Location`, which may be relative (RFC 9110, 10.2.2).
pub fn location(response: &Response) -> Result<Url, Cause> {
    let wrong = |reason: String| Cause::Protocol(format!("its `Location` is no address: {reason}"));
    let value = response.headers().get(LOCATION).ok_or_else(|| wrong("it is missing".into()))?;
    let text = value.to_str().map_err(|e| wrong(e.to_string()))?;
    let address = response.url().join(text).map_err(|e| wrong(e.to_string()))?;
    if matches!(address.scheme(), "http" | "https") {
        return Ok(address);
    }
    Err(wrong(format!("`{address}`")))
}

/// Whether the same request may succeed a little later.
pub fn is_passing(status: StatusCode) -> bool {
    matches!(status.as_u16(), 408 | 429 | 500 | 502 | 503 | 504)
}

/// What a status that says no tells the user.
pub async fn status_cause(response: Response) -> Cause {
    let status = response.status().to_string();
    let refusal = Refusal::read(response).await;
    let detail = refusal.detail();
    let unknown = |code: &OciErrorCode| {
        matches!(code, OciErrorCode::BlobUnknown | OciErrorCode::ManifestBlobUnknown)
    };
    match &refusal {
        Refusal::Errors(errors) if errors.iter().any(|error| unknown(&error.code)) => {
            Cause::BlobUnknown { status, detail }
        }
        Refusal::Errors(_) | Refusal::Text(_) => Cause::Status { status, detail },
    }
}

/// What the host says about its refusal, behind a colon; empty when it says nothing.
pub async fn said(response: Response) -> String {
    let said = Refusal::read(response).await.detail();
    if said.is_empty() { said } else { format!(": {said}") }
}

/// The body of an answer that says no.
enum Refusal {
    /// As the specification wants it.
    Errors(Vec<OciError>),
    /// Some other text: the visible part of its first line.
    Text(String),
}

impl Refusal {
    async fn read(response: Response) -> Self {
        let Ok(body) = read_body(response, 64 << 10, Duration::from_secs(5)).await else {
            return Self::Text(String::new());
        };
        if let Ok(envelope) = serde_json::from_slice::<OciEnvelope>(&body) {
            return Self::Errors(envelope.errors);
        }
        let text = String::from_utf8_lossy(&body);
        let visible = |c: &char| !c.is_control();
        Self::Text(text.lines().next().unwrap_or("").chars().filter(visible).take(200).collect())
    }

    /// In words.
    fn detail(&self) -> String {
        let one = |error: &OciError| {
            let code = serde_json::to_value(&error.code).ok();
            let code = code.and_then(|code| code.as_str().map(str::to_owned)).unwrap_or_default();
            if error.message.is_empty() { code } else { error.message.clone() }
        };
        match self {
            Self::Errors(errors) => errors.iter().map(one).collect::<Vec<_>>().join("; "),
            Self::Text(text) => text.clone(),
        }
    }
}

/// The body of `response`, at most `limit` bytes of it.
pub async fn read_body(
    mut response: Response,
    limit: u64,
    silence: Duration,
) -> Result<Bytes, Cause> {
    let mut body = BytesMut::new();
    while let Some(piece) = next_piece(&mut response, silence).await? {
        if (body.len() + piece.len()) as u64 > limit {
            return Err(Cause::TooLarge { what: "its answer".to_owned(), limit });
        }
        body.extend_from_slice(&piece);
    }
    Ok(body.freeze())
}

/// The next bytes of a body; `None` at its end.
pub async fn next_piece(
    response: &mut Response,
    silence: Duration,
) -> Result<Option<Bytes>, Cause> {
    match tokio::time::timeout(silence, response.chunk()).await {
        Err(_) => Err(Cause::Stalled(silence)),
        Ok(Err(e)) => Err(match clients::cause_of(&e) {
            Cause::Unreachable(reason) => Cause::Connection(reason),
            other => other,
        }),
        Ok(Ok(piece)) => Ok(piece),
    }
}

fn set_body(request: &mut Request, body: &Upload, sent: &Arc<Sent>) {
    match body {
        Upload::Empty => {
            if matches!(*request.method(), Method::POST | Method::PUT | Method::PATCH) {
                request.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from_static("0"));
            }
        }
        Upload::Bytes(bytes) => *request.body_mut() = Some(bytes.clone().into()),
        Upload::Stream { open, length, on_sent } => {
            if let Some(length) = length {
                request.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(*length));
            }
            let pieces = pieces(open.clone(), on_sent.clone(), sent.clone());
            *request.body_mut() = Some(Body::wrap_stream(pieces));
        }
    }
}

/// Reads an upload on a blocking thread, a few pieces ahead of what the host takes.
fn pieces(
    open: Opener,
    on_sent: OnSent,
    sent: Arc<Sent>,
) -> impl Stream<Item = std::io::Result<Bytes>> + Send + 'static {
    let (sender, receiver) = mpsc::channel::<std::io::Result<Bytes>>(4);
    let counted = Arc::clone(&sent);
    tokio::task::spawn_blocking(move || {
        let mut reader = match open() {
            Ok(reader) => reader,
            // Nobody listens any more when sending fails: the request was given up.
            Err(e) => {
                sent.fail(e);
                return drop(sender.blocking_send(Err(std::io::ErrorKind::Other.into())));
            }
        };
        loop {
            let mut piece = vec![0; PIECE];
            let length = match read_full(&mut *reader, &mut piece) {
                Ok(0) => return,
                Ok(length) => length,
                Err(e) => {
                    sent.fail(e);
                    return drop(sender.blocking_send(Err(std::io::ErrorKind::Other.into())));
                }
            };
            piece.truncate(length);
            if sender.blocking_send(Ok(Bytes::from(piece))).is_err() || length < PIECE {
                return;
            }
        }
    });
    futures::stream::unfold(receiver, move |mut receiver| {
        let (on_sent, sent) = (on_sent.clone(), counted.clone());
        async move {
            let piece = receiver.recv().await?;
            if let Ok(bytes) = &piece {
                on_sent(sent.add(bytes.len() as u64));
            }
            Some((piece, receiver))
        }
    })
}

/// Fills `buffer` as far as `reader` reaches.
fn read_full(reader: &mut dyn Read, buffer: &mut [u8]) -> std::io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match reader.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(length) => filled += length,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(filled)
}
