//! Files over http(s), for `ADD https://…`: fetched once, asked for again only with what the server
//! said of them.
//!
//! Follows BuildKit's `source/http/source.go`. Other than there, a connection that breaks is taken
//! up where it broke, and what a server may make us do is bounded: where it leads, how long it may
//! be silent, how much it may send, and that a file name is one plain component.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use async_trait::async_trait;
use fs_err::File;
use rbuild_cache::digest::Hasher;
use rbuild_cache::limits::{Exceeded, Limit, Limits};
use rbuild_solver::http_source::{Fetched, HttpSource, HttpSourceError, Validators};
use rbuild_solver::progress::Task;
use reqwest::header::{
    ACCEPT_ENCODING, AUTHORIZATION, CONTENT_DISPOSITION, CONTENT_LENGTH, CONTENT_RANGE, ETAG,
    HeaderMap, HeaderName, HeaderValue, IF_NONE_MATCH, IF_RANGE, LAST_MODIFIED, RANGE,
};
use reqwest::{Method, Request, Response, StatusCode};
use tokio::time::Instant;
use url::Url;

use crate::registry::Registry;
use crate::registry::clients::{self, Sent};
use crate::registry::error::Cause;
use crate::registry::hosts::Scheme;
use crate::registry::retry::{Patience, retry_after};
use crate::registry::sink::{Gauge, Sink};
use crate::registry::transport;

const MOST_REDIRECTS: usize = 10;
/// How many bytes count as progress.
const PROGRESS: u64 = 64 << 10;

/// Fetches files through the HTTP clients of the registry client: the same proxies, the same
/// certificates.
#[derive(Clone, Debug)]
pub struct HttpFiles {
    registry: Registry,
    limits: Limits,
}

impl HttpFiles {
    /// Fetches through the clients of `registry`; none is made before the first file.
    pub fn new(registry: Registry, limits: Limits) -> Self {
        Self { registry, limits }
    }

    async fn try_fetch(
        &self,
        url: &Url,
        known: Option<&Validators>,
        destination: &Path,
        task: &Task,
    ) -> Result<Fetched, Cause> {
        let mut patience = self.registry.transport().patience();
        let mut download = Download::new(destination, self.limits.exceeded(Limit::DownloadSize));
        loop {
            let (begun, from) = (Instant::now(), download.position());
            let (cause, asked) = match self.go_on(url, known, &mut download, &patience, task).await
            {
                Ok(Answer::Done(fetched)) => return Ok(fetched),
                Ok(Answer::Later(cause, asked)) => (cause, asked),
                Err(cause) if cause.is_transient() => (cause, None),
                Err(cause) => return Err(cause),
            };
            if download.position() >= from + PROGRESS {
                patience.renew();
            } else {
                patience.spend(begun.elapsed());
            }
            let unreachable = matches!(cause, Cause::Unreachable(_));
            if !patience.pause(asked, unreachable).await {
                return Err(cause);
            }
        }
    }

    /// Fetches what is missing, until the end or until something breaks.
    async fn go_on(
        &self,
        url: &Url,
        known: Option<&Validators>,
        download: &mut Download,
        patience: &Patience,
        task: &Task,
    ) -> Result<Answer, Cause> {
        let headers = download.request_headers(known);
        let mut response = self.get(url, &headers, patience).await?;
        match response.status() {
            StatusCode::NOT_MODIFIED if known.is_some_and(|known| known.etag.is_some()) => {
                return Ok(Answer::Done(Fetched::NotModified));
            }
            StatusCode::PARTIAL_CONTENT if download.continues(&response) => {}
            status if status.is_success() => download.start(&response)?,
            status if transport::is_passing(status) => {
                let asked = retry_after(response.headers());
                return Ok(Answer::Later(transport::status_cause(response).await, asked));
            }
            StatusCode::NOT_FOUND => return Err(Cause::NotFound("the file".to_owned())),
            _ => return Err(transport::status_cause(response).await),
        }
        let gauge = Gauge::of(task, "downloading".to_owned(), download.length);
        let silence = self.registry.transport().silence();
        // Drops of a few bytes just before each timeout are no progress either.
        let (mut mark, mut since) = (download.position(), Instant::now());
        while let Some(piece) =
            transport::next_piece(&mut response, silence.min(patience.left())).await?
        {
            download.write(piece).await?;
            gauge.at(download.position());
            if download.position() >= mark + PROGRESS {
                (mark, since) = (download.position(), Instant::now());
            } else if since.elapsed() >= patience.left() {
                return Err(Cause::Stalled(since.elapsed()));
            }
        }
        let size = download.position();
        if download.length.is_some_and(|length| size < length) {
            return Err(Cause::Connection(format!("it ended after {size} bytes")));
        }
        gauge.done(size);
        download.finish().await.map(Answer::Done)
    }

    /// Asks for `url`, and for where that leads.
    async fn get(
        &self,
        url: &Url,
        headers: &HeaderMap,
        patience: &Patience,
    ) -> Result<Response, Cause> {
        let clients = self.registry.transport().clients();
        let (mut address, authorization) = without_user(url);
        let origin = address.origin();
        for _ in 0..=MOST_REDIRECTS {
            let host = transport::host_of(&address)
                .ok_or_else(|| Cause::Protocol(format!("it leads to `{address}`")))?;
            let scheme = if address.scheme() == "http" { Scheme::Http } else { Scheme::Https };
            let client = clients.client(&host, scheme, None)?;
            let mut request = Request::new(Method::GET, address.clone());
            *request.headers_mut() = headers.clone();
            if let Some(authorization) =
                authorization.as_ref().filter(|_| address.origin() == origin)
            {
                request.headers_mut().insert(AUTHORIZATION, authorization.clone());
            }
            let silence = self.registry.transport().silence().min(patience.left());
            let response = clients::exchange(&client, request, silence, &Sent::default()).await?;
            if !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
                return Ok(response);
            }
            let next = transport::location(&response)?;
            if address.scheme() == "https" && next.scheme() != "https" {
                return Err(Cause::Protocol(format!("it redirects from https to `{next}`")));
            }
            address = next;
        }
        Err(Cause::Protocol(format!("it redirects more than {MOST_REDIRECTS} times")))
    }
}

#[async_trait]
impl HttpSource for HttpFiles {
    async fn fetch(
        &self,
        url: &str,
        known: Option<&Validators>,
        destination: &Path,
        task: &Task,
    ) -> Result<Fetched, HttpSourceError> {
        let failed =
            |message: String, hint: Option<String>| HttpSourceError { message, hint, source: None };
        let address = Url::parse(url).map_err(|e| failed(format!("`{url}`: {e}"), None))?;
        if !matches!(address.scheme(), "http" | "https") {
            return Err(failed(format!("`{url}` is neither http nor https"), None));
        }
        let shown = without_user(&address).0;
        let time = std::time::Duration::from_secs(self.limits.of(Limit::DownloadTime));
        let fetching = self.try_fetch(&address, known, destination, task);
        let fetched = match tokio::time::timeout(time, fetching).await {
            Ok(fetched) => fetched,
            Err(_) => Err(Cause::Limit(self.limits.exceeded(Limit::DownloadTime))),
        };
        fetched.map_err(|cause| {
            let hint = match &cause {
                Cause::Unreachable(_) => Some("check the address and the proxy variables".into()),
                Cause::Handshake(_) => Some("`SSL_CERT_FILE` names further authorities".into()),
                _ => None,
            };
            failed(format!("`{shown}`: {cause}"), hint)
        })
    }
}

/// What one attempt came to, unless it failed for good.
enum Answer {
    Done(Fetched),
    Later(Cause, Option<std::time::Duration>),
}

/// A file that is on its way.
struct Download {
    destination: PathBuf,
    sink: Option<Sink<HashedFile>>,
    /// What the answer that the bytes so far are from said of the file.
    validators: Validators,
    filename: Option<String>,
    modified: Option<i64>,
    length: Option<u64>,
    /// How long it may be.
    largest: Exceeded,
}

impl Download {
    fn new(destination: &Path, largest: Exceeded) -> Self {
        Self {
            destination: destination.to_owned(),
            sink: None,
            validators: Validators::default(),
            filename: None,
            modified: None,
            length: None,
            largest,
        }
    }

    fn position(&self) -> u64 {
        self.sink.as_ref().map_or(0, Sink::position)
    }

    fn request_headers(&self, known: Option<&Validators>) -> HeaderMap {
        let mut headers = HeaderMap::new();
        let mut set = |name: HeaderName, value: &str| {
            // What a server sent can be sent back; what cannot was made up by somebody else.
            if let Ok(value) = HeaderValue::from_str(value) {
                headers.insert(name, value);
            }
        };
        // Ranges and digests are of the bytes themselves, not of some compression of them.
        set(ACCEPT_ENCODING, "identity");
        match (&self.validators.etag, self.position()) {
            (Some(etag), position) if position > 0 && !etag.starts_with("W/") => {
                set(RANGE, &format!("bytes={position}-"));
                set(IF_RANGE, etag);
            }
            _ => {
                let known = known.cloned().unwrap_or_default();
                known.etag.iter().for_each(|etag| set(IF_NONE_MATCH, etag));
            }
        }
        headers
    }

    /// Whether `response` goes on exactly where the bytes so far end.
    fn continues(&self, response: &Response) -> bool {
        let range = response.headers().get(CONTENT_RANGE).and_then(|value| value.to_str().ok());
        let position = self.position();
        position > 0 && range.is_some_and(|r| r.starts_with(&format!("bytes {position}-")))
    }

    /// Begins from the first byte with `response`.
    fn start(&mut self, response: &Response) -> Result<(), Cause> {
        if response.status() == StatusCode::PARTIAL_CONTENT {
            self.validators = Validators::default();
            return Err(Cause::Connection("it sent another range than the one asked for".into()));
        }
        let headers = response.headers();
        let text = |name: HeaderName| headers.get(name)?.to_str().ok().map(str::to_owned);
        self.length = text(CONTENT_LENGTH).and_then(|length| length.parse().ok());
        if self.length.is_some_and(|length| length > self.largest.value) {
            return Err(Cause::Limit(self.largest));
        }
        self.validators = Validators { etag: text(ETAG) };
        self.filename = text(CONTENT_DISPOSITION).and_then(|value| filename(&value));
        self.modified = text(LAST_MODIFIED).as_deref().and_then(seconds);
        let path = self.destination.clone();
        self.sink = Some(Sink::start(move || {
            Ok(HashedFile { file: File::create(&path)?, hasher: Hasher::new() })
        }));
        Ok(())
    }

    async fn write(&mut self, piece: bytes::Bytes) -> Result<(), Cause> {
        let position = self.position() + piece.len() as u64;
        match self.length {
            Some(length) if position > length => {
                return Err(Cause::TooLarge { what: "the file".to_owned(), limit: length });
            }
            None if position > self.largest.value => return Err(Cause::Limit(self.largest)),
            _ => {}
        }
        self.sink.as_mut().expect("`start` was called for the first byte").write(piece).await
    }

    async fn finish(&mut self) -> Result<Fetched, Cause> {
        let sink = self.sink.as_mut().expect("`start` was called for the first byte");
        let (digest, size) = sink.finish().await?.hasher.finish();
        Ok(Fetched::Body {
            filename: self.filename.take(),
            modified: self.modified,
            validators: std::mem::take(&mut self.validators),
            digest,
            size,
        })
    }
}

/// A file whose bytes are hashed as they are written.
struct HashedFile {
    file: File,
    hasher: Hasher,
}

impl Write for HashedFile {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.hasher.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.file.flush()
    }
}

/// The address without user and password, which then stand in a header, and in no message.
fn without_user(url: &Url) -> (Url, Option<HeaderValue>) {
    let mut address = url.clone();
    if url.username().is_empty() && url.password().is_none() {
        return (address, None);
    }
    let decode = |text: &str| {
        let pair = format!("={}", text.replace('+', "%2B"));
        let decoded = url::form_urlencoded::parse(pair.as_bytes()).next();
        decoded.map(|(_, value)| value.into_owned()).unwrap_or_default()
    };
    let (user, password) = (decode(url.username()), decode(url.password().unwrap_or("")));
    let credentials = http_auth::basic::encode_credentials(&user, &password);
    // An http address always can have a user, and so none.
    let _ = address.set_username("");
    let _ = address.set_password(None);
    let mut header = HeaderValue::try_from(credentials).expect("base64 can stand in a header");
    header.set_sensitive(true);
    (address, Some(header))
}

/// Seconds since the epoch of an HTTP date.
fn seconds(date: &str) -> Option<i64> {
    let time = httpdate::parse_http_date(date).ok()?;
    i64::try_from(time.duration_since(UNIX_EPOCH).ok()?.as_secs()).ok()
}

/// The file name in `Content-Disposition` (RFC 6266), if it is one plain component.
fn filename(value: &str) -> Option<String> {
    let mut plain = None;
    let mut extended = None;
    for (name, value) in parameters(value) {
        if name.eq_ignore_ascii_case("filename*") {
            extended = extended_value(&value);
        } else if name.eq_ignore_ascii_case("filename") {
            plain = Some(value);
        }
    }
    extended.or(plain).filter(|name| {
        !matches!(name.as_str(), "" | "." | "..") && !name.contains(['/', '\\', '\0'])
    })
}

/// The parameters behind the type of a header's value: `; name=value; name="quoted \" value"`.
fn parameters(value: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut rest = value.split_once(';').map_or("", |(_, rest)| rest);
    while let Some((name, after)) = rest.split_once('=') {
        let after = after.trim_start();
        let mut text = String::new();
        if let Some(quoted) = after.strip_prefix('"') {
            let mut characters = quoted.char_indices();
            let mut end = quoted.len();
            while let Some((position, character)) = characters.next() {
                match character {
                    '"' => {
                        end = position + 1;
                        break;
                    }
                    '\\' => text.extend(characters.next().map(|(_, c)| c)),
                    character => text.push(character),
                }
            }
            rest = &quoted[end..];
        } else {
            let end = after.find(';').unwrap_or(after.len());
            text.push_str(after[..end].trim_end());
            rest = &after[end..];
        }
        found.push((name.trim().to_owned(), text));
        rest = rest.trim_start().strip_prefix(';').unwrap_or("");
    }
    found
}

/// RFC 8187: `UTF-8''percent%20encoded`.
fn extended_value(value: &str) -> Option<String> {
    let mut parts = value.splitn(3, '\'');
    if !parts.next()?.eq_ignore_ascii_case("utf-8") {
        return None;
    }
    let encoded = parts.nth(1)?.replace('+', "%2B");
    let pair = format!("={encoded}");
    let decoded = url::form_urlencoded::parse(pair.as_bytes()).next();
    decoded.map(|(_, value)| value.into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_files() {
        let check = |value: &str, expected: Option<&str>| {
            assert_eq!(filename(value).as_deref(), expected, "{value}");
        };
        check("attachment; filename=a.tar.gz", Some("a.tar.gz"));
        check("attachment; filename=\"a b\\\".txt\"; x=y", Some("a b\".txt"));
        check(
            "attachment;filename=\"plain\"; filename*=UTF-8''na%C3%AFve%20file",
            Some("naïve file"),
        );
        check("attachment", None);
        check("attachment; filename=", None);
        check("attachment; filename=\"../../etc/passwd\"", None);
        check("attachment; filename=..", None);
        check("attachment; filename*=UTF-8''..%2Fx", None);
        check("attachment; filename=\"unfinished", Some("unfinished"));
    }

    #[test]
    fn passwords_are_not_shown() {
        let url = Url::parse("https://me:p%40ss@example.com/x").unwrap();
        let (address, header) = without_user(&url);
        assert_eq!(address.as_str(), "https://example.com/x");
        assert_eq!(header.unwrap(), http_auth::basic::encode_credentials("me", "p@ss"));
    }
}
