//! The records of a cache as they are written. This is version 1 of the format.
//!
//! A cache is an OCI image manifest: its config is a document of type [`MEDIA_TYPE`], its layers are
//! the layers of steps as ordinary layer blobs, so that any registry takes it, keeps what it names
//! and can copy it. In an image the same document stands in the config under [`INLINE`], and speaks
//! of the image's own layers.
//!
//! ```json
//! {
//!   "version": 1,
//!   "records": [{
//!     "keys": ["sha256:…"],        the keys (solver/src/key.rs) that lead to it
//!     "layer": 0,                  which of the manifest's layers it is
//!     "diffId": "sha256:…",        of that layer's uncompressed tar
//!     "content": "sha256:…",       of the tree without times (cache/src/layer/content.rs)
//!     "size": 1234,                bytes of the tree's files
//!     "created": 1700000000,       seconds since 1970
//!     "source": {…}                what a server said of a file by http: digest, validators
//!   }]
//! }
//! ```
//!
//! Neither ops nor names of steps, build arguments or paths are in it: keys are digests, and what
//! somebody gave a stage that is not published stays with them.
//!
//! `BuildKit`'s caches (`application/vnd.buildkit.cacheconfig.v0`) hold its own keys, which are digests
//! of its own encoding of steps: nothing in them can be compared with ours.

use rbuild_cache::digest::{CacheKey, DiffId, TreeDigest};
use rbuild_cache::oci::{Descriptor, MediaType};
use rbuild_solver::graph::ImageLayer;
use rbuild_solver::remote_cache::RemoteResult;
use serde::{Deserialize, Serialize};

/// The media type of a cache's config.
pub const MEDIA_TYPE: &str = "application/vnd.rbuild.cache.config.v1+json";
/// The member of an image's config that holds records.
pub const INLINE: &str = "rbuild.cache.v1";
/// The media type of `BuildKit`'s records.
pub const BUILDKIT: &str = "application/vnd.buildkit.cacheconfig.v0";
/// The member of an image's config that holds `BuildKit`'s records.
pub const BUILDKIT_INLINE: &str = "moby.buildkit.cache.v0";

/// The version that is written, and the only one that is read.
const VERSION: u32 = 1;
/// A cache with more records is refused.
const MOST_RECORDS: usize = 50_000;
/// A record with more keys is refused.
pub const MOST_KEYS: u32 = 64;

/// All records of a cache.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Records {
    version: u32,
    records: Vec<Record>,
}

/// What one step came to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    /// The keys that lead to it.
    pub keys: Vec<CacheKey>,
    /// The position of its layer in the manifest.
    pub layer: usize,
    /// The digest of the layer's uncompressed tar.
    pub diff_id: DiffId,
    /// What its tree contains, without times.
    pub content: TreeDigest,
    /// The bytes of its files.
    pub size: u64,
    /// When it ran, in seconds since 1970.
    pub created: i64,
    /// What a server said of the file that it is (solver/src/ops/http.rs).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<serde_json::Value>,
}

/// Says what is wrong with records.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum RecordError {
    /// They are not the JSON that they should be.
    #[error("its records cannot be read: {0}")]
    Syntax(String),
    /// A version of another rbuild.
    #[error("its records are of version {0}, and this rbuild reads version {VERSION}")]
    Version(u32),
    /// Too much of something.
    #[error("it has {found} {what}; at most {limit} are read")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// How many there are.
        found: usize,
        /// How many there may be.
        limit: usize,
    },
    /// A record names a layer that the manifest does not have, or that is none.
    #[error("a record is about layer {0}, which the manifest does not have")]
    Layer(usize),
}

impl Records {
    /// The document for `records`, in an order that depends on nothing but them.
    pub fn new(mut records: Vec<Record>) -> Self {
        for record in &mut records {
            record.keys.sort_unstable();
            record.keys.dedup();
        }
        records.sort_by(|a, b| (a.layer, &a.keys).cmp(&(b.layer, &b.keys)));
        Self { version: VERSION, records }
    }

    /// The document as JSON.
    #[expect(clippy::missing_panics_doc, reason = "records have string keys only")]
    pub fn to_json(&self) -> serde_json::Value {
        serde_json::to_value(self).expect("records have string keys only")
    }

    /// Reads a document.
    pub fn parse(bytes: &[u8]) -> Result<Self, RecordError> {
        #[derive(Deserialize)]
        struct Version {
            version: u32,
        }
        let syntax = |error: serde_json::Error| RecordError::Syntax(error.to_string());
        let Version { version } = serde_json::from_slice(bytes).map_err(syntax)?;
        if version != VERSION {
            return Err(RecordError::Version(version));
        }
        serde_json::from_slice(bytes).map_err(syntax)
    }

    /// What the records say, of `layers`, which can be fetched at `location`.
    pub fn results(
        self,
        layers: &[Descriptor],
        location: &str,
    ) -> Result<Vec<RemoteResult>, RecordError> {
        let limited = |what, found, limit| {
            if found > limit { Err(RecordError::TooMany { what, found, limit }) } else { Ok(()) }
        };
        limited("records", self.records.len(), MOST_RECORDS)?;
        let result = |record: Record| {
            limited("keys of one record", record.keys.len(), MOST_KEYS as usize)?;
            let layer = layers.get(record.layer).filter(|layer| is_layer(&layer.media_type));
            let descriptor = layer.ok_or(RecordError::Layer(record.layer))?.clone();
            Ok(RemoteResult {
                keys: record.keys,
                content: record.content,
                size: record.size,
                layer: ImageLayer { descriptor, diff_id: record.diff_id },
                location: location.to_owned(),
                created: record.created,
                source: record.source,
            })
        };
        self.records.into_iter().map(result).collect()
    }
}

/// Layers that must be fetched from addresses of their own are no results.
fn is_layer(media_type: &MediaType) -> bool {
    matches!(
        media_type,
        MediaType::OciLayer
            | MediaType::OciLayerGzip
            | MediaType::OciLayerZstd
            | MediaType::DockerLayer
            | MediaType::DockerLayerGzip
    )
}

#[cfg(test)]
mod tests {
    use rbuild_cache::digest::Digest;

    use super::*;

    fn record(key: &str, layer: usize) -> Record {
        Record {
            keys: vec![CacheKey(Digest::of(key))],
            layer,
            diff_id: DiffId(Digest::of("diff")),
            content: TreeDigest(Digest::of("content")),
            size: 1,
            created: 2,
            source: None,
        }
    }

    fn layers() -> Vec<Descriptor> {
        let blob = |media_type| Descriptor::of(media_type, b"blob");
        vec![blob(MediaType::OciLayerGzip), blob(MediaType::Foreign("x".into()))]
    }

    #[test]
    fn records_are_read_as_they_were_written_in_a_fixed_order() {
        let (one, two) = (record("a", 0), record("b", 0));
        let document = Records::new(vec![one.clone(), two.clone()]);
        assert_eq!(document, Records::new(vec![two, one]));
        let bytes = document.to_json().to_string();
        let read = Records::parse(bytes.as_bytes()).unwrap();
        assert_eq!(read, document);
        let results = read.results(&layers(), "here").unwrap();
        assert_eq!((results.len(), &*results[0].location), (2, "here"));
    }

    #[test]
    fn what_is_wrong_is_refused() {
        let check = |records: Vec<Record>, expected: &str| {
            let error = Records::new(records).results(&layers(), "").unwrap_err();
            assert_eq!(error.to_string(), expected);
        };
        check(vec![record("a", 2)], "a record is about layer 2, which the manifest does not have");
        check(vec![record("a", 1)], "a record is about layer 1, which the manifest does not have");
        let keys = (0..100).map(|n| CacheKey(Digest::of(n.to_string()))).collect();
        check(
            vec![Record { keys, ..record("a", 0) }],
            "it has 100 keys of one record; at most 64 are read",
        );
        let bytes = Records::new(vec![record("a", 0)]).to_json().to_string();
        for end in 0..bytes.len() {
            assert!(Records::parse(&bytes.as_bytes()[..end]).is_err());
        }
        let other = bytes.replace("\"version\":1", "\"version\":2");
        assert_eq!(Records::parse(other.as_bytes()).unwrap_err(), RecordError::Version(2));
    }
}
