//! The Engine API, as far as loading needs it, over a socket or TCP.

use std::io::{self, Write};
use std::time::Duration;

use bytes::Bytes;
use futures::stream;
use serde_json::Value;
use tokio::sync::mpsc;

use super::address::Address;
use super::{Answer, Writing};
use crate::registry::hosts::{KeyPair, OwnRegistry};
use crate::registry::tls::{self, HostCertificates};

/// Speaks to one engine.
#[derive(Debug)]
pub(in crate::export) struct Client {
    http: reqwest::Client,
    base: String,
    /// It is podman, whose answers are Docker's.
    pub(super) is_podman: bool,
}

impl Client {
    /// Asks who is there.
    pub(super) async fn connect(address: &Address) -> Result<Self, String> {
        let failed = |reason: String| format!("{address} cannot be reached: {reason}");
        let builder = reqwest::Client::builder()
            .user_agent(concat!("rbuild/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(Duration::from_secs(10))
            .no_proxy();
        let (builder, base) = match address {
            Address::Unix(path) => {
                let builder = builder.tls_backend_preconfigured(tls::without_roots());
                (builder.unix_socket(path.clone()), "http://localhost".to_owned())
            }
            Address::Tcp { host, certificates: None } => {
                let builder = builder.tls_backend_preconfigured(tls::without_roots());
                (builder, format!("http://{host}"))
            }
            Address::Tcp { host, certificates: Some(folder) } => {
                let there = |name: &str| Some(folder.join(name)).filter(|path| path.exists());
                let pair = there("cert.pem").zip(there("key.pem"));
                let own = OwnRegistry {
                    ca: there("ca.pem").into_iter().collect(),
                    keypair: pair.map(|(cert, key)| KeyPair { key, cert }).into_iter().collect(),
                    ..OwnRegistry::default()
                };
                let certificates = HostCertificates::find(host, &[], Some(&own));
                let config = certificates.and_then(|found| tls::verified(host, &found));
                let config = config.map_err(|error| failed(error.to_string()))?;
                (builder.tls_backend_preconfigured(config), format!("https://{host}"))
            }
            Address::Ssh(_) => return Err(failed("it is reached through `docker` alone".into())),
        };
        let http = builder.build().map_err(|error| failed(innermost(&error)))?;
        let mut client = Self { http, base, is_podman: false };
        let version = client.get("/version").await.map_err(failed)?;
        let components = version["Components"].as_array().map_or(&[][..], Vec::as_slice);
        let name = |component: &Value| component["Name"].as_str().map(str::to_owned);
        client.is_podman = components.iter().filter_map(name).any(|name| name.contains("Podman"));
        Ok(client)
    }

    /// What it is, for people.
    pub(super) fn name(&self) -> &'static str {
        if self.is_podman { "podman" } else { "docker" }
    }

    /// What is at `path`.
    pub(super) async fn get(&self, path: &str) -> Result<Value, String> {
        let request = self.http.get(format!("{}{path}", self.base)).timeout(Duration::from_mins(1));
        let response = request.send().await.map_err(|error| innermost(&error))?;
        let status = response.status();
        let bytes = response.bytes().await.map_err(|error| innermost(&error))?;
        if !status.is_success() {
            // Why, it says in JSON; something between may have answered in its place.
            let value: Value = serde_json::from_slice(&bytes).unwrap_or_default();
            return Err(format!("`{path}`: {status} {}", value["message"].as_str().unwrap_or("")));
        }
        serde_json::from_slice(&bytes)
            .map_err(|error| format!("`{path}`: no container engine answers so: {error}"))
    }

    /// Calls for something to be done at `path`.
    pub(super) async fn post(&self, path: &str) -> Result<(), String> {
        let request = self.http.post(format!("{}{path}", self.base));
        let response = request.send().await.map_err(|error| innermost(&error))?;
        let status = response.status();
        if status.is_success() { Ok(()) } else { Err(format!("`{path}`: {status}")) }
    }

    /// Sends the archive that `writing` writes to be loaded. Gives what the engine says of it, at once
    /// where that is nothing good: what is left to write ends when it notices that nobody listens.
    pub(super) async fn load(&self, writing: Writing) -> Result<Answer, String> {
        let (sender, receiver) = mpsc::channel::<io::Result<Bytes>>(8);
        let written = tokio::task::spawn_blocking(move || {
            let mut out = Pieces { sender, piece: Vec::new() };
            let written = writing(&mut out).and_then(|()| Ok(out.flush()?));
            if written.is_err() {
                // The request ends with an error instead of an archive that looks whole. Who has gone
                // away needs none.
                let _ = out.sender.blocking_send(Err(io::Error::other("it cannot be written")));
            }
            written.map_err(|error| error.to_string())
        });
        let pieces = stream::unfold(receiver, |mut receiver| async {
            receiver.recv().await.map(|piece| (piece, receiver))
        });
        let request = self
            .http
            .post(format!("{}/images/load?quiet=1", self.base))
            .header("Content-Type", "application/x-tar")
            .body(reqwest::Body::wrap_stream(pieces));
        let response = request.send().await.map_err(|error| innermost(&error))?;
        let status = response.status();
        let bytes = response.bytes().await.map_err(|error| innermost(&error))?;
        let answer = said(status.is_success(), &bytes);
        if answer.is_ok() {
            // What it has not read it cannot have loaded.
            written.await.map_err(|error| error.to_string())??;
        }
        Ok(answer)
    }
}

/// What is wrong, in the lines of JSON that an engine answers with.
fn said(success: bool, answer: &[u8]) -> Answer {
    let lines = serde_json::Deserializer::from_slice(answer).into_iter::<Value>();
    let (mut last, mut unreadable) = (String::new(), None);
    for line in lines {
        let line = match line {
            Ok(line) => line,
            Err(error) => {
                unreadable = Some(format!("its answer cannot be read: {error}"));
                break;
            }
        };
        let wrong = line["error"].as_str().or_else(|| line["cause"].as_str());
        if let Some(wrong) = wrong.or_else(|| line["message"].as_str()) {
            wrong.trim().clone_into(&mut last);
        }
    }
    match (success, last.is_empty(), unreadable) {
        (true, true, None) => Ok(()),
        // It may have loaded the image, or not: a success that nobody can read is none.
        (true, true, Some(unreadable)) => Err(unreadable),
        (_, false, _) => Err(last),
        (false, true, _) => Err(String::from_utf8_lossy(answer).trim().to_owned()),
    }
}

/// Hands what is written over in pieces.
struct Pieces {
    sender: mpsc::Sender<io::Result<Bytes>>,
    piece: Vec<u8>,
}

impl Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.piece.extend_from_slice(bytes);
        if self.piece.len() >= 256 << 10 {
            self.flush()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        let piece = std::mem::take(&mut self.piece);
        if piece.is_empty() {
            return Ok(());
        }
        let gone = |_| io::Error::new(io::ErrorKind::BrokenPipe, "the engine reads no further");
        self.sender.blocking_send(Ok(piece.into())).map_err(gone)
    }
}

/// The error at the bottom, which is what happened.
fn innermost(error: &dyn std::error::Error) -> String {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_is_found_in_the_answer() {
        let check = |success: bool, answer: &str, expected: Result<(), &str>| {
            assert_eq!(said(success, answer.as_bytes()), expected.map_err(str::to_owned));
        };
        check(true, "{\"stream\":\"Loaded image: a\\n\"}\r\n", Ok(()));
        let failed =
            "{\"stream\":\"x\"}\r\n{\"errorDetail\":{\"message\":\"no\"},\"error\":\"no\"}\r\n";
        check(true, failed, Err("no"));
        check(false, r#"{"cause":"why","message":"what","response":500}"#, Err("why"));
        check(false, "gone", Err("gone"));
        check(true, "", Ok(()));
        let torn = "{\"stream\":\"x\"}\r\n{\"errorDet";
        let said = said(true, torn.as_bytes()).unwrap_err();
        assert!(said.starts_with("its answer cannot be read"), "{said}");
    }
}
