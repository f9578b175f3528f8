//! Where images come from: registries, OCI layouts, and the local images. One [`ImageSource`] for
//! the solver, and the resolving of names before there is a graph.
//!
//! A name means, as with docker: the local image of that name if there is one (that somebody built,
//! pulled or tagged), otherwise what the registry says now. `--pull` leaves the local images out. A
//! registry is asked each time what a tag stands for; only when it cannot be reached (and without
//! `--pull`) does what it said last stand in, with a warning. A name with a digest needs nobody
//! once its documents are here.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use rbuild_cache::digest::Digest;
use rbuild_cache::oci::{Descriptor, ImageRef, Manifest, Platform};
use rbuild_cache::snapshot::Snapshot;
use rbuild_cache::state::StateFolder;
use rbuild_cache::store::StoreError;
use rbuild_solver::graph::ImageLayer;
use rbuild_solver::image_source::{ImageSource, ImageSourceError, ResolvedImage, UnpackError};
use rbuild_solver::progress::{EventKind, Task};

use crate::image_document::{self, DocumentSource};
use crate::layer_arrival::{self, Watcher};
use crate::oci_layout::{LayoutReference, OciLayout};
use crate::registry::{Registry, RegistryError};

/// Locations of images in registries: the image's name follows.
const REGISTRY: &str = "registry:";
/// Locations of images in OCI layouts: the folder follows.
const LAYOUT: &str = "oci-layout:";
/// The location of local images.
const LOCAL: &str = "local:";

/// Of what kind the memos are that say what a name stood for when a registry was asked last.
const LAST_SEEN: &str = "image-last-seen";
/// Of what kind the memos are that say in which repository a blob is.
const ORIGIN: &str = "blob-origin";

/// Which images a name may stand for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ResolveMode {
    /// A local image, otherwise the registry's.
    #[default]
    PreferLocal,
    /// The registry's, whatever is here (`--pull`).
    Pull,
}

/// All images that a build can reach. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Images {
    registry: Registry,
    state: StateFolder,
    /// Blobs that could not be had, or were not what was said of them.
    doubted: Arc<Mutex<HashSet<Digest>>>,
}

impl Images {
    /// The images of `registry` and those in `state`.
    pub fn new(registry: Registry, state: StateFolder) -> Self {
        Self { registry, state, doubted: Arc::default() }
    }

    /// The image that `name` stands for, for `platform`. Its layers stay where they are.
    pub async fn resolve(
        &self,
        name: &str,
        platform: &Platform,
        mode: ResolveMode,
        task: &Task,
    ) -> Result<ResolvedImage, ImageSourceError> {
        let image: ImageRef = name.parse().map_err(plain)?;
        if mode == ResolveMode::PreferLocal
            && let Some(found) = self.resolve_local(&image, platform).await?
        {
            return Ok(found);
        }
        let root = self.root(&image, mode, task).await?;
        let location = format!("{REGISTRY}{}", pinned(&image, root.digest));
        let documents = RegistryDocuments { images: self, image: &image };
        let name = image.to_string();
        let resolved = image_document::resolve(
            &documents,
            &name,
            &location,
            &root,
            platform,
            self.state.limits(),
        )
        .await?;
        task.tell(EventKind::Result { what: "manifest".into(), digest: resolved.manifest });
        Ok(resolved)
    }

    /// The image that `reference` names in an OCI layout, for `platform`. `name` is how it is
    /// shown.
    pub async fn resolve_layout(
        &self,
        reference: &LayoutReference,
        name: &str,
        platform: &Platform,
    ) -> Result<ResolvedImage, ImageSourceError> {
        let path = std::path::absolute(&reference.path).map_err(plain)?;
        let layout = OciLayout::open(&path)?;
        let root = layout.find(reference)?;
        let location = format!("{LAYOUT}{}", path.display());
        image_document::resolve(&layout, name, &location, &root, platform, self.state.limits())
            .await
    }

    /// What `image` stands for at its registry now, and where what it names is.
    pub async fn at_registry(
        &self,
        image: &ImageRef,
    ) -> Result<(Descriptor, String), RegistryError> {
        let root = self.ask(image).await?;
        let location = format!("{REGISTRY}{}", pinned(image, root.digest));
        Ok((root, location))
    }

    /// The location of what is in the OCI layout in `folder`, an absolute path.
    pub fn in_layout(folder: &Path) -> String {
        format!("{LAYOUT}{}", folder.display())
    }

    /// The documents in the repository of `image`.
    pub fn documents<'a>(&'a self, image: &'a ImageRef) -> impl DocumentSource + 'a {
        RegistryDocuments { images: self, image }
    }

    /// An image, at whatever registry, in whose repository the blob called `digest` is known to be.
    pub fn origin(&self, digest: &Digest) -> Option<ImageRef> {
        self.recall_origin(digest.as_bytes())
    }

    /// An image at `registry` in whose repository the blob called `digest` is known to be.
    pub fn origin_at(&self, digest: &Digest, registry: &str) -> Option<ImageRef> {
        self.recall_origin(&[digest.as_bytes(), registry.as_bytes()].concat())
    }

    /// Notes that the blob called `digest` is in the repository of `image`: pushes to other
    /// repositories of that registry can then leave it to the registry.
    pub fn note_origin(&self, digest: &Digest, image: &ImageRef) {
        let repository = format!("{}/{}", image.registry(), image.repository());
        let at_registry = [digest.as_bytes(), image.registry().as_bytes()].concat();
        for key in [digest.as_bytes().to_vec(), at_registry] {
            if self.recall_origin(&key).is_some_and(|known| known.registry() == image.registry()) {
                continue;
            }
            // Without it, only a push would send more than it must.
            if let Err(error) = self.state.index().remember(ORIGIN, &key, repository.as_bytes()) {
                tracing::debug!(%error, "the blob's repository is not remembered");
            }
        }
    }

    fn recall_origin(&self, key: &[u8]) -> Option<ImageRef> {
        // An index that cannot be read costs a transfer, not the build.
        let memo = self.state.index().recall(ORIGIN, key).ok()??;
        String::from_utf8(memo).ok()?.parse().ok()
    }

    /// The local image called `image`; none when there is none for `platform`.
    async fn resolve_local(
        &self,
        image: &ImageRef,
        platform: &Platform,
    ) -> Result<Option<ResolvedImage>, ImageSourceError> {
        let name = image.to_string();
        let Some(root) = self.state.layout().get(&name).map_err(plain)? else { return Ok(None) };
        let documents = LocalDocuments(self);
        let found =
            image_document::resolve(&documents, &name, LOCAL, &root, platform, self.state.limits())
                .await;
        match found {
            Ok(resolved) if resolved.platform.serves(platform).is_some() => Ok(Some(resolved)),
            Ok(_) => Ok(None),
            // Part of it is gone, or there is none for this platform: the registry may help.
            Err(error) => {
                tracing::debug!(%error, name, "the local image cannot be used");
                Ok(None)
            }
        }
    }

    /// What `image` stands for now: the descriptor of an index or a manifest.
    async fn root(
        &self,
        image: &ImageRef,
        mode: ResolveMode,
        task: &Task,
    ) -> Result<Descriptor, ImageSourceError> {
        if let Some(digest) = image.digest()
            && let Some(bytes) = self.stored(&digest)
        {
            return Ok(Descriptor::of(image_document::media_type(&bytes), &bytes));
        }
        match self.ask(image).await {
            Ok(root) => {
                self.remember(image, &root);
                Ok(root)
            }
            Err(error) if error.is_unreachable() && mode == ResolveMode::PreferLocal => {
                let Some(root) = self.last_seen(image) else { return Err(error.into()) };
                let message = format!("{error}; using what it was last: `{}`", root.digest);
                task.tell(EventKind::Warning { message });
                Ok(root)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Asks the registry: just for the digest, when the documents may be here already.
    async fn ask(&self, image: &ImageRef) -> Result<Descriptor, RegistryError> {
        let puller = self.registry.puller();
        if image.digest().is_none()
            && let Some(root) = puller.head(image).await?
        {
            return Ok(root);
        }
        let (root, bytes) = puller.manifest(image).await?;
        self.keep(&bytes)
            .map_err(|e| RegistryError::new("storing a manifest", image.registry(), e.into()))?;
        Ok(root)
    }

    fn remember(&self, image: &ImageRef, root: &Descriptor) {
        if self.last_seen(image).as_ref() == Some(root) {
            return;
        }
        let value = serde_json::to_vec(root).expect("a descriptor is JSON");
        let key = image.to_string();
        // Only a later build without network would miss it.
        if let Err(error) = self.state.index().remember(LAST_SEEN, key.as_bytes(), &value) {
            tracing::debug!(%error, "the image's digest is not remembered");
        }
    }

    fn last_seen(&self, image: &ImageRef) -> Option<Descriptor> {
        let memo = self.state.index().recall(LAST_SEEN, image.to_string().as_bytes()).ok()??;
        serde_json::from_slice(&memo).ok()
    }

    fn keep(&self, bytes: &[u8]) -> Result<(), StoreError> {
        self.state.blobs().put(bytes).map(drop)
    }

    /// The state folder.
    pub fn state(&self) -> &StateFolder {
        &self.state
    }

    /// The registry client.
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// Whether `location` is that of an image in an OCI layout.
    pub fn is_layout(location: &str) -> bool {
        location.starts_with(LAYOUT)
    }

    /// The image in whose repository `location` says that something is.
    pub fn image_at(location: &str) -> Option<ImageRef> {
        location.strip_prefix(REGISTRY)?.parse().ok()
    }

    /// Makes sure that a blob of an image at `location` is in the local content store.
    pub async fn fetch_blob(
        &self,
        location: &str,
        descriptor: &Descriptor,
        task: &Task,
    ) -> Result<(), ImageSourceError> {
        self.fetch(location, descriptor, None, task).await
    }

    /// Like [`Self::fetch_blob`]; a blob that has to be downloaded is shown to `watcher` as it
    /// grows, once for each attempt from its first byte on.
    pub async fn fetch_watched(
        &self,
        location: &str,
        descriptor: &Descriptor,
        watcher: Watcher,
        task: &Task,
    ) -> Result<(), ImageSourceError> {
        self.fetch(location, descriptor, Some(watcher), task).await
    }

    /// Notes that a blob is not what was said of it.
    pub fn doubt(&self, digest: &Digest) {
        self.doubted.lock().unwrap_or_else(PoisonError::into_inner).insert(*digest);
    }

    /// Whether a blob could not be had when it was needed, or was not what was said of it.
    pub fn is_doubted(&self, digest: &Digest) -> bool {
        self.doubted.lock().unwrap_or_else(PoisonError::into_inner).contains(digest)
    }

    async fn fetch(
        &self,
        location: &str,
        descriptor: &Descriptor,
        watcher: Option<Watcher>,
        task: &Task,
    ) -> Result<(), ImageSourceError> {
        let fetched = self.fetch_from(location, descriptor, watcher, task).await;
        if fetched.is_err() {
            self.doubt(&descriptor.digest);
        }
        fetched
    }

    async fn fetch_from(
        &self,
        location: &str,
        descriptor: &Descriptor,
        watcher: Option<Watcher>,
        task: &Task,
    ) -> Result<(), ImageSourceError> {
        if let Some(name) = location.strip_prefix(REGISTRY) {
            let image: ImageRef = name.parse().map_err(plain)?;
            return self.fetch_remote(&image, descriptor, watcher, task).await;
        }
        if let Some(path) = location.strip_prefix(LAYOUT) {
            let (layout, store) = (OciLayout::open(&PathBuf::from(path))?, self.state.blobs());
            let (descriptor, store) = (descriptor.clone(), store.clone());
            let copied = tokio::task::spawn_blocking(move || layout.fetch(&descriptor, &store));
            return Ok(copied.await.map_err(plain)??);
        }
        self.fetch_local(descriptor, watcher, task).await
    }

    /// A document that is here, by digest alone.
    pub fn stored(&self, digest: &Digest) -> Option<Vec<u8>> {
        let size = self.state.blobs().open(digest).ok()?.metadata().ok()?.len();
        let media_type = rbuild_cache::oci::MediaType::OciManifest;
        self.state.blobs().read(&Descriptor::new(media_type, *digest, size)).ok()
    }

    /// Notes in which repository the blobs of a manifest are.
    fn note_origins(&self, image: &ImageRef, manifest: &[u8]) {
        let Ok(manifest) = serde_json::from_slice::<Manifest>(manifest) else { return };
        for blob in manifest.layers.iter().chain([&manifest.config]) {
            self.note_origin(&blob.digest, image);
        }
    }

    async fn fetch_local(
        &self,
        descriptor: &Descriptor,
        watcher: Option<Watcher>,
        task: &Task,
    ) -> Result<(), ImageSourceError> {
        if self.state.blobs().contains_whole(descriptor).map_err(plain)? {
            return Ok(());
        }
        match self.origin(&descriptor.digest) {
            Some(image) => self.fetch_remote(&image, descriptor, watcher, task).await,
            None => Err(ImageSourceError {
                message: format!("layer `{}` of a local image is missing", descriptor.digest),
                hint: Some("pull or build the image again".to_owned()),
                source: None,
            }),
        }
    }

    async fn fetch_remote(
        &self,
        image: &ImageRef,
        descriptor: &Descriptor,
        watcher: Option<Watcher>,
        task: &Task,
    ) -> Result<(), ImageSourceError> {
        let puller = self.registry.puller();
        Ok(puller.fetch(image, descriptor, self.state.blobs(), watcher.as_ref(), task).await?)
    }
}

#[async_trait]
impl ImageSource for Images {
    async fn unpack(
        &self,
        location: &str,
        layer: &ImageLayer,
        task: &Task,
    ) -> Result<Snapshot, UnpackError> {
        layer_arrival::snapshot(self, location, layer, task).await
    }
}

/// The documents of an image in a registry; they are kept, and asked for once.
struct RegistryDocuments<'a> {
    images: &'a Images,
    image: &'a ImageRef,
}

#[async_trait]
impl DocumentSource for RegistryDocuments<'_> {
    async fn document(&self, descriptor: &Descriptor) -> Result<Bytes, ImageSourceError> {
        let store = self.images.state.blobs();
        if store.contains_whole(descriptor).map_err(plain)?
            && let Ok(bytes) = store.read(descriptor)
        {
            return Ok(bytes.into());
        }
        let puller = self.images.registry.puller();
        let is_root = descriptor.media_type.is_index() || descriptor.media_type.is_manifest();
        let bytes = if is_root {
            let image = pinned(self.image, descriptor.digest);
            let (found, bytes) = puller.manifest(&image).await?;
            if found.size != descriptor.size {
                let (digest, size) = (descriptor.digest, descriptor.size);
                return Err(ImageSourceError {
                    message: format!(
                        "manifest `{digest}` of `{}` has {} bytes instead of {size}",
                        self.image, found.size
                    ),
                    hint: None,
                    source: None,
                });
            }
            if descriptor.media_type.is_manifest() {
                self.images.note_origins(self.image, &bytes);
            }
            bytes
        } else {
            puller.document(self.image, descriptor).await?
        };
        self.images.keep(&bytes).map_err(plain)?;
        Ok(bytes)
    }
}

/// The documents of a local image.
struct LocalDocuments<'a>(&'a Images);

#[async_trait]
impl DocumentSource for LocalDocuments<'_> {
    async fn document(&self, descriptor: &Descriptor) -> Result<Bytes, ImageSourceError> {
        Ok(self.0.state.blobs().read(descriptor).map_err(plain)?.into())
    }
}

/// `image` at `digest`. The tag stays, since people know the image by it.
fn pinned(image: &ImageRef, digest: Digest) -> ImageRef {
    let with_tag = format!("{image}@{digest}").parse();
    with_tag.unwrap_or_else(|_| image.with_digest(digest))
}

/// An error whose message says it all.
fn plain(error: impl std::error::Error + Send + Sync + 'static) -> ImageSourceError {
    ImageSourceError { message: error.to_string(), hint: None, source: None }
}
