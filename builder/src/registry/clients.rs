//! HTTP clients, made when they are first needed: a build that contacts nobody pays for none.
//!
//! One client speaks to all hosts that need the same TLS settings, so that connections are shared.
//! Redirects, retries and credentials are not its matter; neither follows it any by itself.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use reqwest::{Client, Request, Response, redirect};
use tokio::time::Instant;

use super::error::Cause;
use super::hosts::{OwnRegistry, Scheme};
use super::settings::RegistrySettings;
use super::tls::{self, HostCertificates};

const CONNECT: Duration = Duration::from_secs(10);
/// For how long a host may say nothing.
pub const SILENCE: Duration = Duration::from_secs(20);

/// The HTTP clients of a process.
#[derive(Debug)]
pub struct Clients {
    settings: Arc<RegistrySettings>,
    made: Mutex<HashMap<Key, Client>>,
}

/// What tells clients apart.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key {
    scheme: Scheme,
    /// The host, when it has certificates of its own.
    host: Option<String>,
}

impl Clients {
    /// No clients yet.
    pub fn new(settings: Arc<RegistrySettings>) -> Self {
        Self { settings, made: Mutex::default() }
    }

    /// The client that speaks `scheme` to `host`.
    pub fn client(
        &self,
        host: &str,
        scheme: Scheme,
        own: Option<&OwnRegistry>,
    ) -> Result<Client, Cause> {
        let certificates = match scheme {
            Scheme::Http => HostCertificates::default(),
            Scheme::Https | Scheme::HttpsUnverified => {
                HostCertificates::find(host, &self.settings.certificates, own)?
            }
        };
        let key = Key { scheme, host: (!certificates.is_empty()).then(|| host.to_owned()) };
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(client) = made.get(&key) {
            return Ok(client.clone());
        }
        let config = match scheme {
            Scheme::Http => tls::without_roots(),
            Scheme::Https => tls::verified(host, &certificates)?,
            Scheme::HttpsUnverified => tls::unverified(host, &certificates)?,
        };
        let proxies = self.settings.proxies.clone();
        let client = Client::builder()
            .user_agent(concat!("rbuild/", env!("CARGO_PKG_VERSION")))
            .tls_backend_preconfigured(config)
            .redirect(redirect::Policy::none())
            .retry(reqwest::retry::never())
            .referer(false)
            .no_proxy()
            .proxy(reqwest::Proxy::custom(move |url| proxies.proxy_for(url)))
            .connect_timeout(CONNECT.min(self.settings.patience))
            .pool_idle_timeout(Duration::from_secs(30))
            .http2_adaptive_window(true)
            .build()
            .map_err(|e| Cause::Protocol(root_cause(&e)))?;
        made.insert(key, client.clone());
        Ok(client)
    }
}

/// Counts the bytes of a body that went out, and when.
#[derive(Debug)]
pub struct Sent {
    begun: Instant,
    bytes: AtomicU64,
    last_millis: AtomicU64,
    /// Why the body could not be read to its end.
    fault: Mutex<Option<std::io::Error>>,
}

impl Default for Sent {
    fn default() -> Self {
        Self {
            begun: Instant::now(),
            bytes: AtomicU64::new(0),
            last_millis: AtomicU64::new(0),
            fault: Mutex::default(),
        }
    }
}

impl Sent {
    /// Counts `bytes` more.
    pub fn add(&self, bytes: u64) -> u64 {
        let millis = u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last_millis.store(millis, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed) + bytes
    }

    /// How many bytes went out.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// For how long nothing went out.
    pub fn idle(&self) -> Duration {
        let last = Duration::from_millis(self.last_millis.load(Ordering::Relaxed));
        self.begun.elapsed().saturating_sub(last)
    }

    /// Notes that the body could not be read on.
    pub fn fail(&self, fault: std::io::Error) {
        *self.fault.lock().unwrap_or_else(PoisonError::into_inner) = Some(fault);
    }

    /// Why the body could not be read on: then that is why the exchange failed.
    fn fault(&self) -> Option<Cause> {
        self.fault.lock().unwrap_or_else(PoisonError::into_inner).take().map(Cause::Local)
    }

    /// How long the host may take to answer: it stores the body meanwhile.
    fn silence(&self, silence: Duration) -> Duration {
        silence + Duration::from_secs(self.bytes.load(Ordering::Relaxed) / 20_000_000)
    }
}

/// Sends `request` and waits for the head of the answer, as long as bytes of its body go out, and
/// `silence` longer.
pub async fn exchange(
    client: &Client,
    request: Request,
    silence: Duration,
    sent: &Sent,
) -> Result<Response, Cause> {
    let answer = client.execute(request);
    tokio::pin!(answer);
    loop {
        let patience = sent.silence(silence);
        let left = patience.saturating_sub(sent.idle());
        if left.is_zero() {
            return Err(Cause::Stalled(patience));
        }
        if let Ok(result) = tokio::time::timeout(left, &mut answer).await {
            return result.map_err(|e| sent.fault().unwrap_or_else(|| cause_of(&e)));
        }
    }
}

/// What a failed exchange says to the user.
pub fn cause_of(error: &reqwest::Error) -> Cause {
    let reason = root_cause(error);
    if is_of_tls(error) {
        return Cause::Handshake(reason);
    }
    if error.is_timeout() {
        return Cause::Unreachable(format!("no connection within {} seconds", CONNECT.as_secs()));
    }
    if error.is_connect() { Cause::Unreachable(reason) } else { Cause::Connection(reason) }
}

/// The innermost message: the outer ones repeat the address and say "error sending request".
fn root_cause(error: &reqwest::Error) -> String {
    let mut innermost: &(dyn std::error::Error + 'static) = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}

/// Whether the fault is one of TLS. Errors of connecting are wrapped in IO errors, whose `source`
/// leaves out what they wrap.
fn is_of_tls(error: &(dyn std::error::Error + 'static)) -> bool {
    let wrapped = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
    error.is::<rustls::Error>()
        || wrapped.is_some_and(|wrapped| is_of_tls(wrapped))
        || error.source().is_some_and(is_of_tls)
}
