//! Descriptors, manifests and indexes (image-spec, descriptor.md, manifest.md, image-index.md), in
//! their OCI and Docker spellings.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use super::Platform;
use crate::digest::Digest;

/// What a blob is, as its media type says.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub enum MediaType {
    /// `application/vnd.oci.image.index.v1+json`
    OciIndex,
    /// `application/vnd.oci.image.manifest.v1+json`
    OciManifest,
    /// `application/vnd.oci.image.config.v1+json`
    OciConfig,
    /// `application/vnd.oci.image.layer.v1.tar`
    OciLayer,
    /// `application/vnd.oci.image.layer.v1.tar+gzip`
    OciLayerGzip,
    /// `application/vnd.oci.image.layer.v1.tar+zstd`
    OciLayerZstd,
    /// `application/vnd.docker.distribution.manifest.list.v2+json`
    DockerList,
    /// `application/vnd.docker.distribution.manifest.v2+json`
    DockerManifest,
    /// `application/vnd.docker.container.image.v1+json`
    DockerConfig,
    /// `application/vnd.docker.image.rootfs.diff.tar`
    DockerLayer,
    /// `application/vnd.docker.image.rootfs.diff.tar.gzip`
    DockerLayerGzip,
    /// `application/vnd.docker.image.rootfs.foreign.diff.tar.gzip` and OCI's `nondistributable`
    /// ones: the layer is fetched from the addresses that its descriptor names.
    Foreign(String),
    /// Any other media type, kept as it is.
    Other(String),
}

impl MediaType {
    const TABLE: &[(Self, &'static str)] = &[
        (Self::OciIndex, "application/vnd.oci.image.index.v1+json"),
        (Self::OciManifest, "application/vnd.oci.image.manifest.v1+json"),
        (Self::OciConfig, "application/vnd.oci.image.config.v1+json"),
        (Self::OciLayer, "application/vnd.oci.image.layer.v1.tar"),
        (Self::OciLayerGzip, "application/vnd.oci.image.layer.v1.tar+gzip"),
        (Self::OciLayerZstd, "application/vnd.oci.image.layer.v1.tar+zstd"),
        (Self::DockerList, "application/vnd.docker.distribution.manifest.list.v2+json"),
        (Self::DockerManifest, "application/vnd.docker.distribution.manifest.v2+json"),
        (Self::DockerConfig, "application/vnd.docker.container.image.v1+json"),
        (Self::DockerLayer, "application/vnd.docker.image.rootfs.diff.tar"),
        (Self::DockerLayerGzip, "application/vnd.docker.image.rootfs.diff.tar.gzip"),
    ];

    /// The media type as it stands in a manifest.
    ///
    /// # Panics
    /// Never: the table has a row for each type without text of its own.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Foreign(text) | Self::Other(text) => text,
            known => Self::TABLE
                .iter()
                .find_map(|(media_type, text)| (media_type == known).then_some(*text))
                .expect("the table has a row for each media type without text"),
        }
    }

    /// Whether the blob is an index (or Docker's manifest list).
    pub fn is_index(&self) -> bool {
        matches!(self, Self::OciIndex | Self::DockerList)
    }

    /// Whether the blob is the manifest of one image.
    pub fn is_manifest(&self) -> bool {
        matches!(self, Self::OciManifest | Self::DockerManifest)
    }
}

impl From<String> for MediaType {
    fn from(text: String) -> Self {
        if let Some((media_type, _)) = Self::TABLE.iter().find(|(_, known)| *known == text) {
            return media_type.clone();
        }
        if text.contains(".foreign.") || text.contains(".nondistributable.") {
            return Self::Foreign(text);
        }
        Self::Other(text)
    }
}

impl From<MediaType> for String {
    fn from(media_type: MediaType) -> Self {
        media_type.as_str().to_owned()
    }
}

impl fmt::Display for MediaType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Names a blob and says what it is and how long (image-spec, descriptor.md).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// What the blob is.
    pub media_type: MediaType,
    /// The digest of its bytes.
    pub digest: Digest,
    /// Its length in bytes.
    pub size: u64,
    /// Where else it may be fetched from.
    #[serde(default, deserialize_with = "null_is_empty", skip_serializing_if = "Vec::is_empty")]
    pub urls: Vec<String>,
    /// Arbitrary metadata.
    #[serde(
        default,
        deserialize_with = "null_is_empty",
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    pub annotations: BTreeMap<String, String>,
    /// For which platform the image in it is; only in an index.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
    /// The type of an artifact, when the blob is an artifact's manifest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
}

impl Descriptor {
    /// Names a blob with no further properties.
    pub fn new(media_type: MediaType, digest: Digest, size: u64) -> Self {
        Self {
            media_type,
            digest,
            size,
            urls: Vec::new(),
            annotations: BTreeMap::new(),
            platform: None,
            artifact_type: None,
        }
    }

    /// Names the blob that consists of `bytes`.
    pub fn of(media_type: MediaType, bytes: &[u8]) -> Self {
        Self::new(media_type, Digest::of(bytes), bytes.len() as u64)
    }
}

/// One image: its config and its layers, lowest first (image-spec, manifest.md).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// Always 2.
    pub schema_version: u32,
    /// The manifest's own media type; some producers leave it out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub media_type: Option<MediaType>,
    /// The image's config.
    pub config: Descriptor,
    /// The layers, lowest first; `null` for an image without layers, as BuildKit writes it.
    #[serde(default, deserialize_with = "null_is_empty")]
    pub layers: Vec<Descriptor>,
    /// Arbitrary metadata.
    #[serde(
        default,
        deserialize_with = "null_is_empty",
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    pub annotations: BTreeMap<String, String>,
}

/// Several images, one for each platform (image-spec, image-index.md).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Index {
    /// Always 2.
    pub schema_version: u32,
    /// The index's own media type; some producers leave it out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub media_type: Option<MediaType>,
    /// The images.
    #[serde(default, deserialize_with = "null_is_empty")]
    pub manifests: Vec<Descriptor>,
    /// Arbitrary metadata.
    #[serde(
        default,
        deserialize_with = "null_is_empty",
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    pub annotations: BTreeMap<String, String>,
}

/// Reads a list or map in whose place `null` stands, as Go's encoder writes it and its decoder reads it.
fn null_is_empty<'de, D: serde::Deserializer<'de>, T: Default + Deserialize<'de>>(
    deserializer: D,
) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn media_types_survive_a_round_trip() {
        for (media_type, text) in MediaType::TABLE {
            assert_eq!(&MediaType::from((*text).to_owned()), media_type);
            assert_eq!(media_type.as_str(), *text);
        }
        let other = MediaType::from("application/x".to_owned());
        assert_eq!(other, MediaType::Other("application/x".into()));
    }

    #[test]
    fn reads_null_layers() {
        let config = serde_json::to_value(Descriptor::of(MediaType::OciConfig, b"{}")).unwrap();
        let json = serde_json::json!({"schemaVersion": 2, "config": config, "layers": null});
        let manifest: Manifest = serde_json::from_value(json).unwrap();
        assert!(manifest.layers.is_empty());
    }

    #[test]
    fn reads_null_annotations() {
        let config = Descriptor::of(MediaType::OciConfig, b"{}");
        let mut json = serde_json::to_value(&config).unwrap();
        json["annotations"] = serde_json::Value::Null;
        json["urls"] = serde_json::Value::Null;
        let json = serde_json::json!({"schemaVersion": 2, "config": json, "annotations": null});
        let manifest: Manifest = serde_json::from_value(json).unwrap();
        assert_eq!((manifest.config, manifest.annotations), (config, BTreeMap::new()));
    }
}
