//! Where files of `ADD http(s)://…` come from.

use std::path::Path;

use async_trait::async_trait;
use rbuild_cache::digest::Digest;

use crate::progress::Task;

/// What an earlier answer said of itself; sent along, it saves fetching the same bytes again.
///
/// Its time is none of that: who asks whether a file was changed since then is told that it was not
/// when an older file took its place, or another one in the same second.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Validators {
    /// The `ETag` header.
    pub etag: Option<String>,
}

/// What a server answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fetched {
    /// The file is what the validators say it was.
    NotModified,
    /// The file, written to where it was asked for.
    Body {
        /// The name that the server gives it (`Content-Disposition`), one plain component.
        filename: Option<String>,
        /// `Last-Modified` in seconds since the epoch.
        modified: Option<i64>,
        /// What to send along the next time.
        validators: Validators,
        /// The digest of its bytes.
        digest: Digest,
        /// Its length in bytes.
        size: u64,
    },
}

/// Fetches files over http(s). Implemented by the program.
#[async_trait]
pub trait HttpSource: Send + Sync {
    /// Fetches `url` into the new file `destination`, unless it is still what `known` says.
    async fn fetch(
        &self,
        url: &str,
        known: Option<&Validators>,
        destination: &Path,
        task: &Task,
    ) -> Result<Fetched, HttpSourceError>;
}

/// Says why a file could not be fetched.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct HttpSourceError {
    /// What went wrong: the address and what the server said.
    pub message: String,
    /// What the user can do.
    pub hint: Option<String>,
    /// What lies behind.
    #[source]
    pub source: Option<Box<dyn std::error::Error + Send + Sync>>,
}
