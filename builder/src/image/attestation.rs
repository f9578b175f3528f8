//! The manifest that carries what an image says of itself (BuildKit, exporter/containerimage/
//! writer.go, `commitAttestationsManifest`; docs/attestations/attestation-storage.md).

use bytes::Bytes;
use rbuild_cache::digest::Digest;
use rbuild_cache::oci::{Descriptor, Manifest, MediaType, Platform};
use rbuild_cache::state::StateFolder;
use rbuild_cache::store::StoreError;
use serde_json::{Value, json};

use super::{ImageOptions, WrittenImage, pretty};
use crate::provenance::{PREDICATE, Provenance, STATEMENT};

const ARTIFACT: &str = "application/vnd.docker.attestation.manifest.v1+json";
const EMPTY: &str = "application/vnd.oci.empty.v1+json";

/// Where what an image says of itself stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AttestationPlace {
    /// In an index beside the image, as BuildKit has it.
    #[default]
    Index,
    /// At the registry as a referrer of the image (distribution-spec, "Listing Referrers"): the
    /// image stays what it is.
    Referrer,
}

/// A manifest of statements, with what it consists of.
#[derive(Clone, Debug, PartialEq)]
pub struct Attestation {
    /// Its manifest, as an index names it.
    pub descriptor: Descriptor,
    /// The manifest's bytes.
    pub bytes: Bytes,
    /// Its config and the statements.
    pub blobs: Vec<Descriptor>,
    /// The image it is about.
    pub subject: Descriptor,
}

/// Writes what `provenance` says of `image`, which is for one platform.
pub(super) fn write(
    state: &StateFolder,
    provenance: &Provenance,
    image: &WrittenImage,
    platform: &Platform,
    options: &ImageOptions,
) -> Result<Attestation, StoreError> {
    let (subject, bytes) = &image.manifests[0];
    let manifest: Manifest = serde_json::from_slice(bytes).expect("it was written by `image.rs`");
    let statement =
        provenance.of_image(&subject.digest, platform, &options.names, &manifest.layers);
    let statement = serde_json::to_vec(&statement).expect("it has string keys only");
    let mut layer = Descriptor::of(MediaType::Other(STATEMENT.to_owned()), &statement);
    layer.annotations.insert("in-toto.io/predicate-type".into(), PREDICATE.into());
    state.blobs().put(&statement)?;

    let is_referrer = options.attestations == AttestationPlace::Referrer;
    let is_artifact = options.oci_artifact || is_referrer;
    let (config, config_type) = if is_artifact {
        (b"{}".to_vec(), MediaType::Other(EMPTY.to_owned()))
    } else {
        (unknown_config(&layer.digest), MediaType::OciConfig)
    };
    state.blobs().put(&config)?;
    let config = Descriptor::of(config_type, &config);
    let mut manifest = json!({
        "schemaVersion": 2,
        "mediaType": MediaType::OciManifest,
    });
    if is_artifact {
        manifest["artifactType"] = ARTIFACT.into();
    }
    manifest["config"] = json!(config);
    if is_artifact {
        manifest["config"]["data"] = "e30=".into();
    }
    manifest["layers"] = json!([layer]);
    if is_artifact {
        let subject = Descriptor::new(subject.media_type.clone(), subject.digest, subject.size);
        manifest["subject"] = json!(subject);
    }
    let bytes = pretty(&manifest);
    state.blobs().put(&bytes)?;
    let mut descriptor = Descriptor::of(MediaType::OciManifest, &bytes);
    if is_referrer {
        descriptor.artifact_type = Some(ARTIFACT.to_owned());
    } else {
        let about = [
            ("vnd.docker.reference.digest", subject.digest.to_string()),
            ("vnd.docker.reference.type", "attestation-manifest".to_owned()),
        ];
        descriptor.annotations.extend(about.map(|(key, value)| (key.to_owned(), value)));
        // Whoever looks for an image to run passes it by.
        descriptor.platform = Some(Platform::new("unknown", "unknown", None));
    }
    let subject = subject.clone();
    Ok(Attestation { descriptor, bytes: bytes.into(), blobs: vec![config, layer], subject })
}

/// The config of an image that is none.
fn unknown_config(layer: &Digest) -> Vec<u8> {
    let config: Value = json!({
        "architecture": "unknown",
        "os": "unknown",
        "config": {},
        "rootfs": { "type": "layers", "diff_ids": [layer] },
    });
    serde_json::to_vec(&config).expect("it has string keys only")
}
