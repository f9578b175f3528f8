//! The images of the local store, read: what a name stands for, for which platforms, how large.
//!
//! Manifests and configs are read as the store holds them, each checked against its digest.

use std::collections::BTreeMap;

use rbuild_cache::digest::Digest;
use rbuild_cache::layout::LayoutError;
use rbuild_cache::oci::{Descriptor, ImageRef, Index, Manifest, Platform, ReferenceError};
use rbuild_cache::state::{StateError, StateFolder};
use rbuild_cache::store::StoreError;
use serde_json::Value;

use crate::error::{BuildError, ErrorKind, Problem};
use crate::provenance::STATEMENT;
use crate::request::Settings;

/// An image of the local store.
#[derive(Clone, Debug)]
pub struct LocalImage {
    /// What it is called, as the store has it.
    pub name: String,
    /// Its manifest or index.
    pub root: Descriptor,
    /// One for each platform; those of an index that are no images (attestations) are left out.
    pub platforms: Vec<LocalPlatform>,
}

/// An image for one platform.
#[derive(Clone, Debug)]
pub struct LocalPlatform {
    /// Its manifest's descriptor.
    pub descriptor: Descriptor,
    /// Its manifest.
    pub manifest: Manifest,
    /// Its config.
    pub config: Value,
}

/// Says why an image of the local store cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LocalImageError {
    /// There is none of that name.
    #[error("there is no image `{0}` in the local store")]
    Missing(String),
    /// The name is none.
    #[error(transparent)]
    Name(#[from] ReferenceError),
    /// The state folder cannot be used.
    #[error(transparent)]
    State(#[from] StateError),
    /// The images cannot be listed or changed.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// One of its blobs is missing or damaged.
    #[error("the image `{name}` is damaged: {source}")]
    Blob {
        /// The image.
        name: String,
        /// What is wrong.
        source: StoreError,
    },
    /// One of its documents is not what its media type says.
    #[error("the image `{name}` is damaged: {digest} cannot be read: {source}")]
    Document {
        /// The image.
        name: String,
        /// The document.
        digest: Digest,
        /// What is wrong.
        source: serde_json::Error,
    },
}

impl From<LocalImageError> for BuildError {
    fn from(error: LocalImageError) -> Self {
        let kind = match &error {
            LocalImageError::Missing(_) => ErrorKind::Failed,
            LocalImageError::Name(_) => ErrorKind::Usage,
            LocalImageError::State(_)
            | LocalImageError::Layout(_)
            | LocalImageError::Blob { .. }
            | LocalImageError::Document { .. } => ErrorKind::Fault,
        };
        let hint = match &error {
            LocalImageError::Missing(_) => Some("`rbuild images` lists them"),
            LocalImageError::Blob { .. } | LocalImageError::Document { .. } => {
                Some("`rbuild rmi` removes it; building or pulling it again makes it whole")
            }
            LocalImageError::Layout(error) => error.hint(),
            LocalImageError::Name(_) | LocalImageError::State(_) => None,
        };
        let error = Self::new(kind, Problem::of(&error));
        match hint {
            Some(hint) => error.hint(hint),
            None => error,
        }
    }
}

/// Opens the state folder of `settings`.
pub fn open(settings: &Settings) -> Result<StateFolder, LocalImageError> {
    Ok(StateFolder::open(&settings.state_folder)?)
}

/// The names in the store and what each stands for, sorted.
pub fn names(state: &StateFolder) -> Result<BTreeMap<String, Descriptor>, LocalImageError> {
    Ok(state.layout().images()?)
}

/// A name as people write it: `debian:bookworm`, not `docker.io/library/debian:bookworm`.
pub fn familiar(name: &str) -> String {
    let parsed: Result<ImageRef, _> = name.parse();
    parsed.map_or_else(|_| name.to_owned(), |name| name.familiar())
}

/// A name in its two parts. A digest behind it is left out.
pub fn repository_and_tag(name: &str) -> (String, Option<String>) {
    let name = name.split('@').next().unwrap_or_default();
    // A colon before a slash belongs to the host: its port.
    match name.rsplit_once(':') {
        Some((repository, tag)) if !tag.contains('/') => {
            (repository.to_owned(), Some(tag.to_owned()))
        }
        Some(_) | None => (name.to_owned(), None),
    }
}

/// All names of `image`, sorted; names that are none are left out.
pub fn names_of(state: &StateFolder, image: &LocalImage) -> Result<Vec<ImageRef>, LocalImageError> {
    let same = names(state)?.into_iter().filter(|(_, root)| root.digest == image.root.digest);
    Ok(same.filter_map(|(name, _)| name.parse().ok()).collect())
}

/// What `text` names in the store: an image's name, or the beginning (at least four digits) of its
/// ID or digest.
pub fn find(state: &StateFolder, text: &str) -> Result<LocalImage, LocalImageError> {
    let names = names(state)?;
    let parsed: Result<ImageRef, _> = text.parse();
    for name in parsed.iter().map(ToString::to_string).chain([text.to_owned()]) {
        if let Some(root) = names.get(&name) {
            return read(state, &name, root);
        }
    }
    let digits = text.strip_prefix("sha256:").unwrap_or(text);
    if digits.len() >= 4 && digits.bytes().all(|b| b.is_ascii_hexdigit()) {
        for (name, root) in &names {
            let image = read(state, name, root)?;
            if image.id().hex().starts_with(digits) || root.digest.hex().starts_with(digits) {
                return Ok(image);
            }
        }
        return Err(LocalImageError::Missing(text.to_owned()));
    }
    parsed?;
    Err(LocalImageError::Missing(text.to_owned()))
}

/// Reads the image `root`, which is called `name`.
pub fn read(
    state: &StateFolder,
    name: &str,
    root: &Descriptor,
) -> Result<LocalImage, LocalImageError> {
    let bytes = |descriptor: &Descriptor| {
        let read = state.blobs().read(descriptor);
        read.map_err(|source| LocalImageError::Blob { name: name.to_owned(), source })
    };
    let broken = |digest: Digest| {
        let name = name.to_owned();
        move |source| LocalImageError::Document { name, digest, source }
    };
    let manifests = if root.media_type.is_index() {
        let index: Index = serde_json::from_slice(&bytes(root)?).map_err(broken(root.digest))?;
        let is_image = |manifest: &Descriptor| {
            manifest.media_type.is_manifest()
                && manifest.platform.as_ref().is_none_or(|platform| platform.os != "unknown")
        };
        index.manifests.into_iter().filter(is_image).collect()
    } else {
        vec![root.clone()]
    };
    let platform = |descriptor: Descriptor| {
        let manifest: Manifest =
            serde_json::from_slice(&bytes(&descriptor)?).map_err(broken(descriptor.digest))?;
        let config: Value = serde_json::from_slice(&bytes(&manifest.config)?)
            .map_err(broken(manifest.config.digest))?;
        Ok(LocalPlatform { descriptor, manifest, config })
    };
    let platforms = manifests.into_iter().map(platform).collect::<Result<_, LocalImageError>>()?;
    Ok(LocalImage { name: name.to_owned(), root: root.clone(), platforms })
}

/// Something that is said of an image.
#[derive(Clone, Debug)]
pub struct Statement {
    /// The manifest of the image.
    pub subject: Digest,
    /// What is said: an in-toto statement.
    pub statement: Value,
}

/// All provenance that stands in the index of `image`.
pub fn statements(
    state: &StateFolder,
    image: &LocalImage,
) -> Result<Vec<Statement>, LocalImageError> {
    if !image.root.media_type.is_index() {
        return Ok(Vec::new());
    }
    let name = &image.name;
    let bytes = |descriptor: &Descriptor| {
        let read = state.blobs().read(descriptor);
        read.map_err(|source| LocalImageError::Blob { name: name.clone(), source })
    };
    let broken = |digest: Digest| {
        let name = name.clone();
        move |source| LocalImageError::Document { name, digest, source }
    };
    let index: Index =
        serde_json::from_slice(&bytes(&image.root)?).map_err(broken(image.root.digest))?;
    let mut statements = Vec::new();
    for descriptor in &index.manifests {
        let about = descriptor.annotations.get("vnd.docker.reference.digest");
        let Some(subject) = about.and_then(|digest| digest.parse().ok()) else { continue };
        let manifest: Manifest =
            serde_json::from_slice(&bytes(descriptor)?).map_err(broken(descriptor.digest))?;
        for layer in manifest.layers.iter().filter(|layer| layer.media_type.as_str() == STATEMENT) {
            let statement: Value =
                serde_json::from_slice(&bytes(layer)?).map_err(broken(layer.digest))?;
            let says = statement["predicateType"].as_str().unwrap_or_default();
            if says.starts_with("https://slsa.dev/provenance/") {
                statements.push(Statement { subject, statement });
            }
        }
    }
    Ok(statements)
}

impl LocalImage {
    /// Its ID: the digest of its config, or of its index if it is for several platforms.
    pub fn id(&self) -> Digest {
        match &self.platforms[..] {
            [only] => only.manifest.config.digest,
            _ => self.root.digest,
        }
    }

    /// The bytes of its layers and configs, as they are stored; what two platforms share is counted
    /// once.
    pub fn size(&self) -> u64 {
        let blobs = self.platforms.iter().flat_map(|platform| {
            platform.manifest.layers.iter().chain([&platform.manifest.config])
        });
        blobs.map(|blob| (blob.digest, blob.size)).collect::<BTreeMap<_, _>>().values().sum()
    }

    /// The name as people write it.
    pub fn familiar(&self) -> String {
        familiar(&self.name)
    }

    /// The name as people write it, in its two parts.
    pub fn repository_and_tag(&self) -> (String, Option<String>) {
        repository_and_tag(&self.familiar())
    }
}

impl LocalPlatform {
    /// The platform, as its config says.
    pub fn platform(&self) -> Platform {
        let text = |key: &str| self.config[key].as_str().filter(|text| !text.is_empty());
        Platform::new(
            text("os").unwrap_or("linux"),
            text("architecture").unwrap_or("unknown"),
            text("variant"),
        )
    }

    /// When it was made.
    pub fn created(&self) -> Option<jiff::Timestamp> {
        self.config["created"].as_str()?.parse().ok()
    }
}
