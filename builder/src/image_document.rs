//! Reading what an image is made of: indexes, manifests and configs that came from elsewhere.
//!
//! Their bytes were checked against digest and size by whoever fetched them; here they are checked
//! against each other, and the image for a platform is found in them. Follows image-spec
//! (manifest.md, image-index.md, config.md) and containerd's `images.Manifest`.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use rbuild_cache::digest::{DiffId, Digest};
use rbuild_cache::limits::{Exceeded, Limit, Limits};
use rbuild_cache::oci::{Descriptor, Index, Manifest, MediaType, Platform};
use rbuild_solver::graph::ImageLayer;
use rbuild_solver::image_source::{ImageSourceError, ResolvedImage};
use serde::Deserialize;

use crate::progress::count;

/// How many indexes may be inside one another.
pub const DEEPEST: usize = 4;
/// How many manifests and indexes an image may consist of: each costs a request, and who makes an
/// image up can go on without end.
pub const MOST_DOCUMENTS: usize = 10_000;
/// No document is longer, in bytes: neither of a registry nor of a layout.
pub const LONGEST_DOCUMENT: u64 = 8 << 20;

/// An index or a manifest.
#[derive(Clone, Debug, PartialEq)]
pub enum Document {
    /// Several images.
    Index(Index),
    /// One image.
    Manifest(Box<Manifest>),
}

/// Says what is wrong with an image's documents.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum DocumentError {
    /// It is something else.
    #[error("`{0}` is not a type of image that rbuild knows")]
    Type(String),
    /// It is not the JSON that its type promises.
    #[error("`{digest}` is not a valid `{media_type}`: {reason}")]
    Syntax {
        /// Which blob.
        digest: Digest,
        /// What it should be.
        media_type: String,
        /// What is wrong.
        reason: String,
    },
    /// The index has no image for the platform.
    #[error("there is no image for `{wanted}` in it, only for {}", .found.join(", "))]
    Platform {
        /// The platform that was asked for.
        wanted: Box<Platform>,
        /// What there is, each in backticks.
        found: Vec<String>,
    },
    /// It is no image, but something else that registries keep: a chart, a signature.
    #[error("it is not an image, but an artifact of type `{0}`")]
    Artifact(String),
    /// There is more of it than rbuild takes.
    #[error("{what} has {exceeded}")]
    Limit {
        /// What of the image.
        what: String,
        /// Of what.
        exceeded: Exceeded,
    },
    /// Indexes inside indexes.
    #[error("its indexes are more than {DEEPEST} deep")]
    Deep,
    /// Indexes beside indexes.
    #[error("it has more than {MOST_DOCUMENTS} manifests")]
    Wide,
    /// Config and manifest disagree.
    #[error("its config names {} and its manifest {layers}", count(*.diff_ids, "layer", "layers"))]
    Layers {
        /// In the config.
        diff_ids: usize,
        /// In the manifest.
        layers: usize,
    },
}

/// What rbuild itself reads of an image's config. The rest is the frontend's.
#[derive(Deserialize)]
struct Config {
    #[serde(default)]
    os: String,
    #[serde(default)]
    architecture: String,
    variant: Option<String>,
    rootfs: Option<RootFs>,
}

#[derive(Deserialize)]
struct RootFs {
    diff_ids: Option<Vec<DiffId>>,
}

/// Gives the small blobs of images, checked against digest and size.
#[async_trait]
pub trait DocumentSource: Send + Sync {
    /// The bytes of an index, manifest or config.
    async fn document(&self, descriptor: &Descriptor) -> Result<Bytes, ImageSourceError>;
}

/// Finds the image for `platform` below `root`, and reads all of it but its layers.
pub async fn resolve(
    source: &dyn DocumentSource,
    name: &str,
    location: &str,
    root: &Descriptor,
    platform: &Platform,
    limits: &Limits,
) -> Result<ResolvedImage, ImageSourceError> {
    let (descriptor, manifest) = manifest_for(source, name, root, platform, limits).await?;
    check_size(limits, &manifest.config).map_err(|e| of(name, &e))?;
    let layers = manifest.layers.len() as u64;
    limits.check(Limit::Layers, layers).map_err(|exceeded| {
        of(name, &DocumentError::Limit { what: "its manifest".to_owned(), exceeded })
    })?;
    let config = source.document(&manifest.config).await?;
    let (found, diff_ids) = read_config(&manifest.config, &config).map_err(|e| of(name, &e))?;
    let layers =
        pair(&manifest.layers, &diff_ids).map_err(|error| match &manifest.config.media_type {
            // What a config of another type holds are no layers.
            MediaType::Other(kind) => of(name, &DocumentError::Artifact(kind.clone())),
            _ => of(name, &error),
        })?;
    Ok(ResolvedImage {
        name: name.to_owned(),
        location: location.to_owned(),
        manifest: descriptor.digest,
        digest: root.digest,
        config: Arc::from(&config[..]),
        platform: found.or(descriptor.platform).unwrap_or_else(|| platform.clone()),
        layers,
    })
}

/// The manifest of the image for `platform` below `root`.
pub async fn manifest_for(
    source: &dyn DocumentSource,
    name: &str,
    root: &Descriptor,
    platform: &Platform,
    limits: &Limits,
) -> Result<(Descriptor, Manifest), ImageSourceError> {
    let mut descriptor = root.clone();
    for _ in 0..=DEEPEST {
        check_size(limits, &descriptor).map_err(|e| of(name, &e))?;
        let bytes = source.document(&descriptor).await?;
        match parse(&descriptor, &bytes).map_err(|e| of(name, &e))? {
            Document::Manifest(manifest) => return Ok((descriptor, *manifest)),
            Document::Index(mut index) => {
                name_platforms(source, &mut index.manifests, platform, limits).await;
                descriptor = choose(&index.manifests, platform).map_err(|e| of(name, &e))?.clone();
            }
        }
    }
    Err(of(name, &DocumentError::Deep))
}

/// How many images of one index are read for their platforms.
const MOST_UNNAMED: usize = 32;

/// Gives the images of an index that name no platform the one that their config names, unless
/// another image serves `platform` (containerd's `images.Manifest`, which reads the first of them
/// only). What cannot be read may still be anything.
async fn name_platforms(
    source: &dyn DocumentSource,
    manifests: &mut [Descriptor],
    platform: &Platform,
    limits: &Limits,
) {
    let serves = |d: &Descriptor| d.platform.as_ref().and_then(|p| p.serves(platform)).is_some();
    if manifests.iter().any(serves) {
        return;
    }
    let unnamed = |d: &&mut Descriptor| {
        d.platform.is_none() && d.media_type.is_manifest() && !is_attestation(d)
    };
    for descriptor in manifests.iter_mut().filter(unnamed).take(MOST_UNNAMED) {
        descriptor.platform = platform_in_config(source, descriptor, limits).await;
    }
}

async fn platform_in_config(
    source: &dyn DocumentSource,
    descriptor: &Descriptor,
    limits: &Limits,
) -> Option<Platform> {
    check_size(limits, descriptor).ok()?;
    let bytes = source.document(descriptor).await.ok()?;
    let Document::Manifest(manifest) = parse(descriptor, &bytes).ok()? else { return None };
    check_size(limits, &manifest.config).ok()?;
    let config = source.document(&manifest.config).await.ok()?;
    read_config(&manifest.config, &config).ok()?.0
}

fn check_size(limits: &Limits, descriptor: &Descriptor) -> Result<(), DocumentError> {
    let what = || format!("`{}`", descriptor.digest);
    let checked = limits.check(Limit::DocumentSize, descriptor.size);
    checked.map_err(|exceeded| DocumentError::Limit { what: what(), exceeded })
}

/// Reads an index or a manifest.
pub fn parse(descriptor: &Descriptor, bytes: &[u8]) -> Result<Document, DocumentError> {
    let syntax = |reason: String| DocumentError::Syntax {
        digest: descriptor.digest,
        media_type: descriptor.media_type.to_string(),
        reason,
    };
    // CVE-2021-41190: what is an index to one reader and a manifest to another.
    let shape: Shape = serde_json::from_slice(bytes).map_err(|e| syntax(e.to_string()))?;
    if shape.manifests.is_some() && (shape.layers.is_some() || shape.config.is_some()) {
        return Err(syntax("it is both an index and a manifest".to_owned()));
    }
    let own = shape.media_type.map(MediaType::from).filter(|own| own != &descriptor.media_type);
    let known = descriptor.media_type.is_index() || descriptor.media_type.is_manifest();
    if let Some(own) = own.filter(|_| known) {
        return Err(syntax(format!("it calls itself `{own}`")));
    }
    if descriptor.media_type.is_index() {
        let index = serde_json::from_slice(bytes).map_err(|e| syntax(e.to_string()))?;
        return Ok(Document::Index(index));
    }
    if descriptor.media_type.is_manifest() {
        let manifest = serde_json::from_slice(bytes).map_err(|e| syntax(e.to_string()))?;
        return Ok(Document::Manifest(manifest));
    }
    Err(DocumentError::Type(descriptor.media_type.to_string()))
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Shape {
    media_type: Option<String>,
    schema_version: Option<u32>,
    manifests: Option<serde::de::IgnoredAny>,
    layers: Option<serde::de::IgnoredAny>,
    config: Option<serde::de::IgnoredAny>,
}

/// The media type that a manifest or index without a known one has by its fields.
pub fn media_type(bytes: &[u8]) -> MediaType {
    let unknown = || MediaType::Other("application/octet-stream".to_owned());
    let Ok(shape) = serde_json::from_slice::<Shape>(bytes) else { return unknown() };
    match (shape.media_type, shape.schema_version) {
        (Some(media_type), _) => MediaType::from(media_type),
        (None, Some(1)) => {
            MediaType::Other("application/vnd.docker.distribution.manifest.v1+json".to_owned())
        }
        (None, _) if shape.manifests.is_some() => MediaType::OciIndex,
        (None, _) if shape.config.is_some() => MediaType::OciManifest,
        (None, _) => unknown(),
    }
}

/// The image for `platform`: the one that serves it best, the first of equals. What names no
/// platform may be anything, and is taken when nothing else is there.
pub fn choose<'a>(
    manifests: &'a [Descriptor],
    platform: &Platform,
) -> Result<&'a Descriptor, DocumentError> {
    let is_image = |d: &&Descriptor| {
        (d.media_type.is_manifest() || d.media_type.is_index()) && !is_attestation(d)
    };
    let images = || manifests.iter().filter(is_image);
    let best = images()
        .filter_map(|d| Some((d.platform.as_ref()?.serves(platform)?, d)))
        .min_by_key(|(rank, _)| *rank);
    if let Some((_, descriptor)) = best {
        return Ok(descriptor);
    }
    images().find(|d| d.platform.is_none()).ok_or_else(|| {
        let mut found: Vec<String> = images()
            .filter_map(|d| d.platform.as_ref().map(|platform| format!("`{platform}`")))
            .collect();
        found.dedup();
        if found.is_empty() {
            found.push("nothing".to_owned());
        }
        DocumentError::Platform { wanted: Box::new(platform.clone()), found }
    })
}

/// Provenance and SBOMs stand in the index beside the images that they are about.
pub fn is_attestation(descriptor: &Descriptor) -> bool {
    let kind = descriptor.annotations.get("vnd.docker.reference.type");
    kind.is_some_and(|kind| kind == "attestation-manifest")
        || descriptor.platform.as_ref().is_some_and(|p| p.os == "unknown")
}

/// The platform (if it names one) and the diff ids of a config.
pub fn read_config(
    descriptor: &Descriptor,
    bytes: &[u8],
) -> Result<(Option<Platform>, Vec<DiffId>), DocumentError> {
    let config: Config = serde_json::from_slice(bytes).map_err(|e| DocumentError::Syntax {
        digest: descriptor.digest,
        media_type: descriptor.media_type.to_string(),
        reason: e.to_string(),
    })?;
    let named = !config.os.is_empty() && !config.architecture.is_empty();
    let platform =
        named.then(|| Platform::new(&config.os, &config.architecture, config.variant.as_deref()));
    Ok((platform, config.rootfs.and_then(|rootfs| rootfs.diff_ids).unwrap_or_default()))
}

/// Checks that a config is one of an image with the layers of `manifest`.
pub fn check_config(manifest: &Manifest, config: &[u8]) -> Result<(), DocumentError> {
    let (_, diff_ids) = read_config(&manifest.config, config)?;
    pair(&manifest.layers, &diff_ids).map(drop)
}

fn pair(layers: &[Descriptor], diff_ids: &[DiffId]) -> Result<Vec<ImageLayer>, DocumentError> {
    if layers.len() != diff_ids.len() {
        return Err(DocumentError::Layers { diff_ids: diff_ids.len(), layers: layers.len() });
    }
    let layer = |(descriptor, diff_id): (&Descriptor, &DiffId)| ImageLayer {
        descriptor: descriptor.clone(),
        diff_id: *diff_id,
    };
    Ok(layers.iter().zip(diff_ids).map(layer).collect())
}

/// What is wrong with the image `name`.
pub fn of(name: &str, error: &DocumentError) -> ImageSourceError {
    let hint = match error {
        DocumentError::Platform { .. } => Some("`--platform` chooses another".to_owned()),
        DocumentError::Type(_)
        | DocumentError::Syntax { .. }
        | DocumentError::Artifact(_)
        | DocumentError::Deep
        | DocumentError::Wide
        | DocumentError::Limit { .. }
        | DocumentError::Layers { .. } => None,
    };
    ImageSourceError { message: format!("image `{name}`: {error}"), hint, source: None }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn index(platforms: &[Option<&str>]) -> Vec<Descriptor> {
        let entry = |(n, platform): (usize, Option<&str>)| Descriptor {
            platform: platform.map(|platform| platform.parse().unwrap()),
            ..Descriptor::of(MediaType::OciManifest, n.to_string().as_bytes())
        };
        platforms.iter().copied().enumerate().map(entry).collect()
    }

    #[test]
    fn chooses_the_best_image_for_a_platform() {
        let check = |platforms: &[Option<&str>], wanted: &str, expected: Result<usize, &str>| {
            let entries = index(platforms);
            let chosen = choose(&entries, &wanted.parse().unwrap());
            let position = chosen.map(|d| entries.iter().position(|e| e == d).unwrap());
            assert_eq!(position.map_err(|e| e.to_string()), expected.map_err(str::to_owned));
        };
        check(&[Some("linux/arm64"), Some("linux/amd64")], "linux/amd64", Ok(1));
        check(&[Some("linux/arm/v6"), Some("linux/arm/v7")], "linux/arm/v7", Ok(1));
        check(&[Some("linux/arm/v6"), Some("linux/arm64")], "linux/arm/v7", Ok(0));
        check(&[Some("linux/arm64"), None], "linux/amd64", Ok(1));
        check(
            &[Some("linux/arm64"), Some("windows/amd64"), Some("unknown/unknown")],
            "linux/amd64",
            Err("there is no image for `linux/amd64` in it, only for `linux/arm64`, \
                 `windows/amd64`"),
        );
    }

    #[test]
    fn what_is_two_things_at_once_is_refused() {
        let check = |media_type: MediaType, text: &str, expected: &str| {
            let descriptor = Descriptor::of(media_type, text.as_bytes());
            let error = parse(&descriptor, text.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        };
        let both = r#"{"schemaVersion": 2, "manifests": [], "layers": []}"#;
        check(MediaType::OciIndex, both, "both an index and a manifest");
        let other = r#"{"mediaType": "application/vnd.oci.image.index.v1+json"}"#;
        check(MediaType::OciManifest, other, "it calls itself");
        check(MediaType::OciManifest, "[", "not a valid");
        let v1 = r#"{"schemaVersion": 1, "fsLayers": []}"#;
        check(media_type(v1.as_bytes()), v1, "not a type of image that rbuild knows");
    }

    #[test]
    fn as_many_diff_ids_as_layers() {
        let layers = index(&[None, None]);
        let diff_ids = vec![DiffId(Digest::of("a"))];
        assert_eq!(
            pair(&layers, &diff_ids).unwrap_err().to_string(),
            "its config names 1 layer and its manifest 2"
        );
    }
}
