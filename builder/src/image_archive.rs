//! Reading archives of images: what `docker save`, `podman save`, skopeo, buildah and rbuild write,
//! compressed or not, from a file or a pipe.
//!
//! An archive is read once, from front to back, since a pipe allows no more. Blobs go into the
//! content store as they come: those of an OCI layout under the digest that their name promises,
//! layers of Docker's older form compressed on the way, so that they are stored as a registry wants
//! them. What the archive says of itself often stands at its end; only when all of that is
//! consistent does a name stand for one of its images. An archive that is cut short therefore
//! leaves nothing behind but blobs that nobody names.
//!
//! How much an archive may unpack to, and of how many parts it may be, the state's limits say.

mod docker;
mod entry;

use std::collections::HashMap;
use std::io::{self, Read};

use rbuild_cache::digest::Digest;
use rbuild_cache::layer::tar_reader::TarError;
use rbuild_cache::layer::{ApplyError, LayerError};
use rbuild_cache::layout::{CONTAINERD_NAME, LayoutError, REF_NAME};
use rbuild_cache::limits::{Exceeded, Limit, Limits};
use rbuild_cache::oci::{Descriptor, ImageRef, Index, Manifest, MediaType, Platform};
use rbuild_cache::state::StateFolder;
use rbuild_cache::store::StoreError;

use crate::image_document::{self, DEEPEST, Document, DocumentError};

use entry::Entries;

/// An image of an archive: all of it is in the content store.
#[derive(Clone, Debug, PartialEq)]
pub struct ArchivedImage {
    /// Its manifest or index.
    pub root: Descriptor,
    /// What the archive calls it.
    pub names: Vec<ImageRef>,
    /// What the archive calls it that is no name by itself: a bare tag.
    pub tag: Option<String>,
}

/// Says why an archive cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// It ends too early.
    #[error("the archive is cut short")]
    Truncated,
    /// It ends before it has begun.
    #[error("it is not an archive of images, but {0}")]
    NoTar(&'static str),
    /// It is no tar, or a wrong one.
    #[error("it is not an archive of images: {0}")]
    Tar(TarError),
    /// It has neither `index.json` nor `manifest.json`.
    #[error("it is a tar, but not of images: it has neither `index.json` nor `manifest.json`")]
    NoImages,
    /// A part of it that says what is in it is no JSON, or is unlike what it should be.
    #[error("`{file}` in it cannot be read: {reason}")]
    Syntax {
        /// Which file.
        file: String,
        /// What is wrong.
        reason: String,
    },
    /// Something that it names is not in it.
    #[error("`{0}` is named in it, but is not in it")]
    Missing(String),
    /// A manifest or an index contradicts itself.
    #[error(transparent)]
    Document(Box<DocumentError>),
    /// A layer is another one than the image's config says.
    #[error("layer `{file}` has diff id `{found}`, but the image's config says `{expected}`")]
    DiffId {
        /// Which file.
        file: String,
        /// What it unpacks to.
        found: String,
        /// What the config says.
        expected: String,
    },
    /// It has no image for the platform.
    #[error("it has no image for `{0}`")]
    Platform(Box<Platform>),
    /// There is more of it than rbuild takes.
    #[error("{what} {exceeded}")]
    Limit {
        /// What has or is too much: `the archive has`.
        what: String,
        /// Of what.
        exceeded: Exceeded,
    },
    /// A layer cannot be read.
    #[error(transparent)]
    Layer(LayerError),
    /// A blob is damaged, or cannot be stored.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The images cannot be named.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// Reading or writing failed.
    #[error(transparent)]
    Io(io::Error),
}

impl ArchiveError {
    /// What the user can do.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Truncated => Some("save it again; nothing of it was loaded"),
            Self::NoImages => {
                Some("`docker import` takes the tar of a file system; rbuild does not")
            }
            Self::NoTar(_) => {
                Some("`docker save`, `podman save`, skopeo and `rbuild save` write such archives")
            }
            Self::Missing(_) | Self::DiffId { .. } => Some("save it again; nothing was loaded"),
            Self::Layout(error) => error.hint(),
            _ => None,
        }
    }
}

impl From<DocumentError> for ArchiveError {
    fn from(error: DocumentError) -> Self {
        Self::Document(Box::new(error))
    }
}

impl From<io::Error> for ArchiveError {
    fn from(error: io::Error) -> Self {
        match Exceeded::within(&error) {
            Some(exceeded) => exceeded.into(),
            None => Self::Io(error),
        }
    }
}

impl From<LayerError> for ArchiveError {
    fn from(error: LayerError) -> Self {
        match error {
            LayerError::Apply(ApplyError::Limit(exceeded)) => exceeded.into(),
            LayerError::Io(error) => error.into(),
            other => Self::Layer(other),
        }
    }
}

impl From<Exceeded> for ArchiveError {
    fn from(exceeded: Exceeded) -> Self {
        let of_a_layer = matches!(exceeded.limit, Limit::LayerSize | Limit::LayerFiles);
        let what = if of_a_layer { "a layer has" } else { "it has" };
        Self::Limit { what: what.to_owned(), exceeded }
    }
}

impl From<TarError> for ArchiveError {
    fn from(error: TarError) -> Self {
        match error {
            TarError::Truncated => Self::Truncated,
            TarError::Io(error) => error.into(),
            other => Self::Tar(other),
        }
    }
}

/// Reads an archive to its end and stores what is in it. Nothing of it has a name afterwards.
pub fn read(
    state: &StateFolder,
    stream: impl Read + Send + 'static,
    platform: Option<&Platform>,
) -> Result<Vec<ArchivedImage>, ArchiveError> {
    let entries = match Entries::read(state, stream) {
        Err(ArchiveError::Io(error)) if error.kind() == io::ErrorKind::UnexpectedEof => {
            return Err(ArchiveError::Truncated);
        }
        read => read?,
    };
    let images = if let Some(index) = entries.document("index.json") {
        layout_images(state, index)?
    } else if let Some(list) = entries.document("manifest.json") {
        docker::images(state, list, &entries)?
    } else {
        return Err(ArchiveError::NoImages);
    };
    match platform {
        None => Ok(images),
        Some(platform) => images.into_iter().map(|image| only(state, image, platform)).collect(),
    }
}

/// The images that the index of an OCI layout names.
fn layout_images(state: &StateFolder, index: &[u8]) -> Result<Vec<ArchivedImage>, ArchiveError> {
    let index: Index = serde_json::from_slice(index).map_err(|e| syntax("index.json", &e))?;
    let mut contents = Contents { state, whole: HashMap::new() };
    let mut images: Vec<ArchivedImage> = Vec::new();
    for mut root in index.manifests {
        // Referrers of images of the layout are no images.
        if root.artifact_type.is_some() {
            continue;
        }
        let containerd = root.annotations.remove(CONTAINERD_NAME);
        let called = root.annotations.remove(REF_NAME);
        let name = containerd.or_else(|| called.clone().filter(|name| name.contains(['/', ':'])));
        let name: Option<ImageRef> = name.and_then(|name| name.parse().ok());
        if root.media_type.is_index() || root.media_type.is_manifest() {
            let root = contents.whole(&root, 0)?;
            let tag = called.filter(|_| name.is_none());
            match images.iter_mut().find(|known| known.root.digest == root.digest) {
                Some(known) => known.names.extend(name),
                None => images.push(ArchivedImage { root, names: name.into_iter().collect(), tag }),
            }
        }
    }
    if images.is_empty() { Err(ArchiveError::NoImages) } else { Ok(images) }
}

/// What of an archive is known to be whole.
struct Contents<'a> {
    state: &'a StateFolder,
    /// By digest and size, what is taken for it. An index may name another one a thousand times, and
    /// that one a third: each is looked at once.
    whole: HashMap<(Digest, u64), Descriptor>,
}

impl Contents<'_> {
    /// Checks that all that `root` names is here. Of an index of which the archive holds just one
    /// image, as `docker save --platform` writes it, that image is taken.
    fn whole(&mut self, root: &Descriptor, depth: usize) -> Result<Descriptor, ArchiveError> {
        if let Some(known) = self.whole.get(&(root.digest, root.size)) {
            return Ok(known.clone());
        }
        if depth > DEEPEST {
            return Err(DocumentError::Deep.into());
        }
        let bytes = document(self.state, root)?;
        let taken = match image_document::parse(root, &bytes)? {
            Document::Manifest(manifest) => {
                check_manifest(self.state, &manifest)?;
                root.clone()
            }
            Document::Index(index) => self.whole_index(root, &index, depth)?,
        };
        self.whole.insert((root.digest, root.size), taken.clone());
        Ok(taken)
    }

    fn whole_index(
        &mut self,
        root: &Descriptor,
        index: &Index,
        depth: usize,
    ) -> Result<Descriptor, ArchiveError> {
        let (mut found, mut missing) = (HashMap::new(), None);
        for child in &index.manifests {
            if !self.state.blobs().contains_whole(child)? {
                missing.get_or_insert(child.digest);
                continue;
            }
            let taken = self.whole(child, depth + 1)?;
            if !image_document::is_attestation(child) && !image_document::is_attestation(&taken) {
                found.insert(taken.digest, taken);
            }
        }
        match (missing, found.len()) {
            (_, 0) => Err(ArchiveError::Missing(root.digest.to_string())),
            (None, _) => Ok(root.clone()),
            (Some(_), 1) => Ok(found.into_values().next().expect("there is one")),
            (Some(digest), _) => Err(ArchiveError::Missing(digest.to_string())),
        }
    }
}

/// The bytes of a manifest, an index or a config, if it is no longer than such may be.
fn document(state: &StateFolder, descriptor: &Descriptor) -> Result<Vec<u8>, ArchiveError> {
    let what = || format!("`{}`", descriptor.digest);
    check_size(state.limits(), descriptor.size, what)?;
    state.blobs().read(descriptor).map_err(missing)
}

fn check_size(
    limits: &Limits,
    size: u64,
    what: impl FnOnce() -> String,
) -> Result<(), ArchiveError> {
    let checked = limits.check(Limit::DocumentSize, size);
    checked.map_err(|exceeded| ArchiveError::Limit { what: format!("{} has", what()), exceeded })
}

fn check_layers(state: &StateFolder, layers: usize) -> Result<(), ArchiveError> {
    let checked = state.limits().check(Limit::Layers, layers as u64);
    checked.map_err(|exceeded| ArchiveError::Limit { what: "an image has".into(), exceeded })
}

fn check_manifest(state: &StateFolder, manifest: &Manifest) -> Result<(), ArchiveError> {
    check_layers(state, manifest.layers.len())?;
    for blob in manifest.layers.iter().chain([&manifest.config]) {
        let elsewhere = matches!(blob.media_type, MediaType::Foreign(_)) && !blob.urls.is_empty();
        if !elsewhere && !state.blobs().contains_whole(blob)? {
            return Err(ArchiveError::Missing(blob.digest.to_string()));
        }
    }
    if matches!(manifest.config.media_type, MediaType::OciConfig | MediaType::DockerConfig) {
        let config = document(state, &manifest.config)?;
        image_document::check_config(manifest, &config)?;
    }
    Ok(())
}

/// What of `image` is for `platform`.
fn only(
    state: &StateFolder,
    mut image: ArchivedImage,
    platform: &Platform,
) -> Result<ArchivedImage, ArchiveError> {
    for _ in 0..=DEEPEST {
        let bytes = state.blobs().read(&image.root)?;
        match image_document::parse(&image.root, &bytes)? {
            Document::Index(index) => {
                image.root = image_document::choose(&index.manifests, platform)?.clone();
            }
            Document::Manifest(manifest) => {
                let config = state.blobs().read(&manifest.config)?;
                let (found, _) = image_document::read_config(&manifest.config, &config)?;
                let serves = found.is_none_or(|found| found.serves(platform).is_some());
                return if serves {
                    Ok(image)
                } else {
                    Err(ArchiveError::Platform(Box::new(platform.clone())))
                };
            }
        }
    }
    Err(DocumentError::Deep.into())
}

fn missing(error: StoreError) -> ArchiveError {
    match error {
        StoreError::Missing(digest) => ArchiveError::Missing(digest.to_string()),
        other => other.into(),
    }
}

fn syntax(file: &str, error: &serde_json::Error) -> ArchiveError {
    ArchiveError::Syntax { file: file.to_owned(), reason: error.to_string() }
}

/// The digest in a path such as `blobs/sha256/…`.
fn blob_of(path: &str) -> Option<Digest> {
    format!("sha256:{}", path.strip_prefix("blobs/sha256/")?).parse().ok()
}
