//! Files by http(s): a tree that holds one file, mode 0600, with the server's time of its last
//! change, as BuildKit has it (source/http/source.go).
//!
//! With `--checksum` a known file is taken without asking anybody. Otherwise the server is asked
//! each time whether the file is still the one it sent; what it said of it is remembered in the
//! index, and travels with results that machines share: one that never saw the file asks in the same
//! way. Two addresses with the same bytes have two trees, since the file's name is in them.

use std::path::PathBuf;

use rbuild_cache::digest::{CacheKey, Digest};
use rbuild_cache::metadata::{self, Timestamp};
use rbuild_cache::snapshot::{Draft, SnapshotId};
use serde::{Deserialize, Serialize};

use crate::error::Cause;
use crate::graph::{HttpOp, Op};
use crate::http_source::{Fetched, HttpSourceError, Validators};
use crate::key::{self, InputDigest};
use crate::ops::{Work, Worker, blocking};
use crate::remote_cache::StepResult;
use crate::single_flight;
use crate::tree::{Tree, TreeLayer};

/// The kind of memo that holds what servers said of their files.
pub(crate) const MEMO: &str = "http";

/// Why a source could not be fetched.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// The name that the file should have is no name.
    #[error("`{0}` cannot be the name of a file")]
    Name(String),
    /// The server sent something else than `--checksum` says.
    #[error("digest mismatch {found} (expected: {expected})")]
    Checksum {
        /// The digest of what came.
        found: Digest,
        /// What it should have been.
        expected: Digest,
    },
    /// The server says that nothing changed since a file that nobody asked about.
    #[error("the server answered `{0}` with \"not modified\", unasked")]
    NotModified(String),
    /// The file could not be fetched.
    #[error(transparent)]
    Source(#[from] HttpSourceError),
}

/// What is remembered of an address.
#[derive(Clone, Serialize, Deserialize)]
struct Memo {
    etag: Option<String>,
    digest: Digest,
    modified: Option<i64>,
}

/// A file that was fetched before, here or elsewhere.
struct Remembered {
    validators: Validators,
    memo: Memo,
    key: CacheKey,
    layer: TreeLayer,
}

impl Worker {
    /// The tree of `op`.
    pub(crate) async fn http(&self, work: &Work<'_>, op: &HttpOp) -> Result<Tree, Cause> {
        check_name(&op.filename)?;
        if let Some(checksum) = op.checksum {
            // Whatever time the server gives it: the bytes are what was asked for.
            let key = pinned_key(op, checksum);
            if let Some(layer) = self.known(work, &key).await? {
                Self::hit(work);
                return Ok(self.came_to(vec![key], Tree::default(), layer));
            }
        }
        let address = key::definition(&Op::Http(HttpOp { checksum: None, ..op.clone() }), &[]);
        let _flight = single_flight::lock(self.surroundings.state.locks(), &address).await?;
        let known = self.remembered(work, op, &address).await?;
        let draft = self.surroundings.state.snapshots().draft().map_err(Cause::state)?;
        let path = draft.folder().join(&op.filename);
        let validators = known.as_ref().map(|known| &known.validators);
        let source = &self.surroundings.http;
        let fetched = source.fetch(&op.url, validators, &path, &work.task).await;
        match (fetched.map_err(HttpError::from)?, known) {
            (Fetched::NotModified, Some(Remembered { memo, key, layer, .. })) => {
                Self::hit(work);
                Ok(self.tell_file(vec![key, address], layer, &memo))
            }
            (Fetched::NotModified, None) => Err(HttpError::NotModified(op.url.clone()).into()),
            (Fetched::Body { digest, modified, validators, .. }, known) => {
                if let Some(expected) = op.checksum.filter(|expected| *expected != digest) {
                    return Err(HttpError::Checksum { found: digest, expected }.into());
                }
                let memo = Memo { etag: validators.etag, digest, modified };
                let _ = work.revision.set(digest.to_string());
                let is_same = known.is_some_and(|known| known.memo.digest == digest);
                if is_same {
                    self.again(work, "the server does not say that it is unchanged");
                } else {
                    self.miss(work, &[], &[InputDigest::Content(digest)], None);
                }
                let layer = match self.known(work, &file_key(op, digest, modified)).await? {
                    // What came is thrown away: a server without tags sends it each time.
                    Some(layer @ TreeLayer::Snapshot(_)) => layer,
                    _ => self.commit_file(work, op, draft, path, &memo).await?,
                };
                self.keep_file(work, op, &address, layer, memo).await
            }
        }
    }

    /// What is known of the address, here or elsewhere, and the tree that came of it, if it is still
    /// there.
    async fn remembered(
        &self,
        work: &Work<'_>,
        op: &HttpOp,
        address: &CacheKey,
    ) -> Result<Option<Remembered>, Cause> {
        let index = self.surroundings.state.index();
        let memo = index.recall(MEMO, op.url.as_bytes()).map_err(Cause::state)?;
        let here = memo.and_then(|memo| serde_json::from_slice::<Memo>(&memo).ok());
        if let Some(memo) = here
            && let Some(known) = self.with_result(work, op, memo).await?
        {
            return Ok(Some(known));
        }
        let Some(remote) = self.surroundings.remote.as_ref().filter(|_| !work.vertex.ignore_cache)
        else {
            return Ok(None);
        };
        let source = remote.find(address).await.and_then(|result| result.source.clone());
        match source.and_then(|source| serde_json::from_value(source).ok()) {
            Some(memo) => self.with_result(work, op, memo).await,
            None => Ok(None),
        }
    }

    /// What came of the file that `memo` is of, if it is one that is wanted.
    async fn with_result(
        &self,
        work: &Work<'_>,
        op: &HttpOp,
        memo: Memo,
    ) -> Result<Option<Remembered>, Cause> {
        let wanted = op.checksum.is_none_or(|checksum| checksum == memo.digest);
        if !wanted {
            return Ok(None);
        }
        let key = file_key(op, memo.digest, memo.modified);
        let layer = self.known(work, &key).await?;
        let validators = Validators { etag: memo.etag.clone() };
        Ok(layer.map(|layer| Remembered { validators, memo, key, layer }))
    }

    /// Tells those who share results of the file, and of what the server said of it.
    fn tell_file(&self, keys: Vec<CacheKey>, layer: TreeLayer, memo: &Memo) -> Tree {
        let source = serde_json::to_value(memo).ok();
        self.tell_result(StepResult { keys, layer, base: Tree::default(), source })
    }

    /// The layer of the file that was fetched to `path`.
    async fn commit_file(
        &self,
        work: &Work<'_>,
        op: &HttpOp,
        draft: Draft,
        path: PathBuf,
        memo: &Memo,
    ) -> Result<TreeLayer, Cause> {
        let state = self.surroundings.state.clone();
        let (name, sharing) = (op.filename.clone(), work.sharing);
        let (digest, modified) = (memo.digest, memo.modified);
        let snapshot = blocking(move || {
            let file = fs_err::File::open(path).map_err(Cause::state)?;
            metadata::set_owner_and_mode(file.file(), 0, 0, 0o600).map_err(Cause::state)?;
            // The epoch where the server says nothing, as BuildKit does it.
            let time = Timestamp::from_seconds(modified.unwrap_or(0));
            metadata::set_modified(file.file(), time).map_err(Cause::state)?;
            draft.know(name, digest);
            if sharing {
                draft.set_sharing();
            }
            state.snapshots().commit(&SnapshotId::random(), draft).map_err(Cause::state)
        })
        .await?;
        Ok(TreeLayer::Snapshot(snapshot))
    }

    /// Writes down that `layer` is the file, and remembers what was said of it.
    async fn keep_file(
        &self,
        work: &Work<'_>,
        op: &HttpOp,
        address: &CacheKey,
        layer: TreeLayer,
        memo: Memo,
    ) -> Result<Tree, Cause> {
        let keys = vec![file_key(op, memo.digest, memo.modified), pinned_key(op, memo.digest)];
        self.record(work, keys.clone(), &layer, &[InputDigest::Content(memo.digest)]).await?;
        let bytes = serde_json::to_vec(&memo).expect("a memo is plain data");
        let index = self.surroundings.state.index();
        index.remember(MEMO, op.url.as_bytes(), &bytes).map_err(Cause::state)?;
        let keys = keys.into_iter().chain([*address]).collect();
        Ok(self.tell_file(keys, layer, &memo))
    }
}

/// The key of the file with these bytes and this time.
fn file_key(op: &HttpOp, digest: Digest, modified: Option<i64>) -> CacheKey {
    let op = Op::Http(HttpOp { checksum: None, ..op.clone() });
    let time = Digest::of(modified.unwrap_or(0).to_le_bytes());
    key::content(&op, &[InputDigest::Content(digest), InputDigest::Content(time)])
}

/// The key of the file with these bytes, whatever its time.
fn pinned_key(op: &HttpOp, digest: Digest) -> CacheKey {
    let op = Op::Http(HttpOp { checksum: Some(digest), ..op.clone() });
    key::content(&op, &[])
}

fn check_name(name: &str) -> Result<(), HttpError> {
    let wrong = matches!(name, "" | "." | "..") || name.contains(['/', '\0']) || name.len() > 255;
    if wrong { Err(HttpError::Name(name.to_owned())) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_one_component() {
        let check = |name: &str, good| assert_eq!(check_name(name).is_ok(), good, "{name}");
        check("file.tar.gz", true);
        check("..file", true);
        for name in ["", ".", "..", "a/b", "/a", "a\0"] {
            check(name, false);
        }
        check(&"x".repeat(256), false);
    }

    #[test]
    fn keys_tell_bytes_times_and_addresses_apart() {
        let op = |url: &str| HttpOp { url: url.into(), filename: "f".into(), checksum: None };
        let (a, b) = (Digest::of("a"), Digest::of("b"));
        let key = file_key(&op("http://x/f"), a, Some(1));
        assert_eq!(key, file_key(&op("http://x/f"), a, Some(1)));
        assert_ne!(key, file_key(&op("http://x/f"), b, Some(1)));
        assert_ne!(key, file_key(&op("http://x/f"), a, Some(2)));
        assert_ne!(key, file_key(&op("http://y/f"), a, Some(1)));
        let checked = HttpOp { checksum: Some(a), ..op("http://x/f") };
        assert_eq!(pinned_key(&checked, a), pinned_key(&op("http://x/f"), a));
    }
}
