//! One blob's way into a repository (distribution-spec, "Pushing blobs"): in one request when it is
//! there as a whole, in one that has no length while it is still being made; and on from where an
//! upload broke when the registry says how far it came.

use std::sync::Arc;
use std::time::Duration;

use rbuild_cache::digest::Digest;
use rbuild_cache::oci::Descriptor;
use reqwest::header::{CONTENT_RANGE, CONTENT_TYPE, RANGE};
use reqwest::{Method, Response, StatusCode};
use tokio::time::Instant;
use url::Url;

use super::auth::Scope;
use super::clients::Sent;
use super::error::Cause;
use super::hosts::Endpoint;
use super::pull::blob_path;
use super::retry::{Patience, retry_after};
use super::transport::{self, Call, OnSent, Opener, Target, Transport, Upload};

/// What the bodies of uploads are.
const BYTES: &str = "application/octet-stream";

/// The uploads of one repository.
#[derive(Clone, Copy)]
pub struct Uploads<'a> {
    /// Carries the requests.
    pub transport: &'a Transport,
    /// The registry and the repository.
    pub endpoint: &'a Endpoint,
}

/// What came of sending.
pub enum Sending {
    /// The registry has it.
    Done,
    /// It does not, and why; after how long it wants to be asked again.
    Failed(Cause, Option<Duration>),
}

/// Gives the bytes of a blob from a position on, anew for each attempt.
pub type OpenFrom =
    Arc<dyn Fn(u64) -> std::io::Result<Box<dyn std::io::Read + Send>> + Send + Sync>;

impl Uploads<'_> {
    /// A call with the right to write to the repository.
    pub fn call(&self, method: Method, path: impl Into<String>) -> Call<'_> {
        let mut call = Call::new(method, self.endpoint, path);
        call.scopes = vec![Scope::push(&self.endpoint.repository)];
        call
    }

    fn at(&self, method: Method, address: Url) -> Call<'_> {
        let mut call = self.call(method, "");
        call.target = Target::Address(address);
        call
    }

    /// Whether the repository has the blob.
    pub async fn has(&self, digest: &Digest) -> Result<bool, Cause> {
        let call = self.call(Method::HEAD, blob_path(self.endpoint, digest));
        let response = self.transport.send(&call, &mut self.transport.patience()).await?;
        match response.status() {
            StatusCode::NOT_FOUND => Ok(false),
            status if status.is_success() => Ok(true),
            _ => Err(self.transport.failure(&call, response, "the repository").await),
        }
    }

    /// Opens an upload: the address to which the bytes go.
    pub async fn start(&self, patience: &mut Patience) -> Result<Url, Cause> {
        let path = format!("/v2/{}/blobs/uploads/", self.endpoint.repository);
        let call = self.call(Method::POST, path);
        let response = self.transport.send(&call, patience).await?;
        if response.status() != StatusCode::ACCEPTED {
            return Err(self.transport.failure(&call, response, "the repository").await);
        }
        session(&response)
    }

    /// Sends what `open` yields to the upload at `address`, however long that will be: the address
    /// at which the upload goes on.
    pub async fn stream(
        &self,
        address: Url,
        open: Opener,
        on_sent: OnSent,
        sent: &Arc<Sent>,
    ) -> Result<Url, Cause> {
        let mut call = self.at(Method::PATCH, address).header(CONTENT_TYPE, BYTES);
        call.body = Upload::Stream { open, length: None, on_sent };
        let patience = self.transport.patience();
        let response = self.transport.send_once(&call, patience.left(), sent).await?;
        if response.status().is_success() {
            return session(&response);
        }
        Err(self.transport.failure(&call, response, "the upload").await)
    }

    /// Says that the upload at `address` is complete, and which blob it is.
    pub async fn complete(&self, address: Url, digest: &Digest) -> Result<(), Cause> {
        let call = self.at(Method::PUT, with_digest(address, digest));
        let patience = self.transport.patience();
        let response = self.transport.send_once(&call, patience.left(), &Arc::default()).await?;
        if is_taken(response.status()) {
            return Ok(());
        }
        Err(self.transport.failure(&call, response, "the upload").await)
    }

    /// Gives an upload up. It ends by itself some day, so that nobody waits for the answer.
    pub async fn cancel(&self, address: Url) {
        let call = self.at(Method::DELETE, address);
        let brief = Duration::from_secs(1);
        if let Err(cause) = self.transport.send_once(&call, brief, &Arc::default()).await {
            tracing::debug!(%cause, "an upload that is not needed was not given up");
        }
    }

    /// Sends the bytes of `blob` from byte `from` on to the upload at `address`.
    ///
    /// # Errors
    /// When trying again cannot help.
    pub async fn send(
        &self,
        blob: &Descriptor,
        (address, from): (Url, u64),
        open: &OpenFrom,
        on_sent: OnSent,
        patience: &mut Patience,
    ) -> Result<Sending, Cause> {
        let (begun, sent) = (Instant::now(), Arc::new(Sent::default()));
        let opener = Arc::clone(open);
        let body = Upload::Stream {
            open: Arc::new(move || opener(from)),
            length: Some(blob.size - from),
            on_sent: Arc::new(move |sent| on_sent(from + sent)),
        };
        let address = if from == 0 {
            let whole = self.at(Method::PUT, with_digest(address, &blob.digest));
            let mut call = whole.header(CONTENT_TYPE, BYTES);
            call.body = body;
            let outcome = self.transport.send_once(&call, patience.left(), &sent).await;
            patience.spend(sent.idle().min(begun.elapsed()));
            return self.outcome(&call, outcome, patience).await;
        } else if from < blob.size {
            let range = format!("{from}-{}", blob.size - 1);
            let rest = self.at(Method::PATCH, address).header(CONTENT_TYPE, BYTES);
            let mut call = rest.header(CONTENT_RANGE, &range);
            call.body = body;
            let outcome = self.transport.send_once(&call, patience.left(), &sent).await;
            patience.spend(sent.idle().min(begun.elapsed()));
            match outcome {
                Ok(response) if response.status() == StatusCode::ACCEPTED => session(&response)?,
                outcome => return self.outcome(&call, outcome, patience).await,
            }
        } else {
            address
        };
        let call = self.at(Method::PUT, with_digest(address, &blob.digest));
        let outcome = self.transport.send_once(&call, patience.left(), &Arc::default()).await;
        self.outcome(&call, outcome, patience).await
    }

    /// How far the upload at `address` came, and where it goes on; `None` when the registry does
    /// not say so, or has nothing.
    pub async fn reached(&self, address: Url, size: u64) -> Option<(Url, u64)> {
        let call = self.at(Method::GET, address);
        let response = self.transport.send(&call, &mut self.transport.patience()).await.ok()?;
        if response.status() != StatusCode::NO_CONTENT {
            return None;
        }
        // `0-0` is what registries say of an upload that has nothing yet.
        let last: u64 =
            response.headers().get(RANGE)?.to_str().ok()?.strip_prefix("0-")?.parse().ok()?;
        let from = last.checked_add(1).filter(|from| last > 0 && *from <= size)?;
        Some((session(&response).unwrap_or_else(|_| response.url().clone()), from))
    }

    async fn outcome(
        &self,
        call: &Call<'_>,
        outcome: Result<Response, Cause>,
        patience: &Patience,
    ) -> Result<Sending, Cause> {
        match outcome {
            Ok(response) if is_taken(response.status()) => Ok(Sending::Done),
            Ok(response) if is_worth_a_new_upload(response.status()) => {
                let asked = retry_after(response.headers());
                match asked.filter(|wait| *wait >= patience.left()) {
                    Some(wait) => Err(Cause::Later(wait)),
                    None => Ok(Sending::Failed(transport::status_cause(response).await, asked)),
                }
            }
            Ok(response) => Err(self.transport.failure(call, response, "the upload").await),
            Err(cause) if cause.is_transient() => Ok(Sending::Failed(cause, None)),
            Err(cause) => Err(cause),
        }
    }
}

fn with_digest(mut address: Url, digest: &Digest) -> Url {
    address.query_pairs_mut().append_pair("digest", &digest.to_string());
    address
}

/// The address of an upload. A registry behind a proxy that ends TLS may not know that it is
/// asked by https.
pub fn session(response: &Response) -> Result<Url, Cause> {
    let mut address = transport::location(response)?;
    let asked = response.url();
    if asked.scheme() == "https" && address.host_str() == asked.host_str() {
        // Both are special schemes, so this cannot fail.
        let _ = address.set_scheme("https");
        let _ = address.set_port(asked.port());
    }
    Ok(address)
}

/// Whether the registry has the blob now. The specification says 201; some say it otherwise.
fn is_taken(status: StatusCode) -> bool {
    matches!(status.as_u16(), 200 | 201 | 204)
}

/// Whether an upload that was answered so may go through if it is begun anew: passing faults, and
/// sessions that the registry forgot (404) or whose bytes got mixed up on the way (400, 416).
fn is_worth_a_new_upload(status: StatusCode) -> bool {
    transport::is_passing(status) || matches!(status.as_u16(), 400 | 404 | 416)
}
