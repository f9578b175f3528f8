//! An image out of what was built: layers become blobs, and config, manifest and index say which.
//!
//! Follows BuildKit's `exporter/containerimage/writer.go`: the same documents with the same fields
//! in the same order, so that a tool that reads its images reads these. Layers of base images stay
//! the blobs that they are, and need not even be here; the layers of steps are packed and
//! compressed once, however many exporters ask.

mod attestation;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _};
use rbuild_cache::digest::{DiffId, Digest};
use rbuild_cache::index::IndexError;
use rbuild_cache::layer::{self, Compression, LayerError, Watch};
use rbuild_cache::oci::{Descriptor, ImageRef, Index, Manifest, MediaType, Platform};
use rbuild_cache::snapshot::{Snapshot, SnapshotId};
use rbuild_cache::state::StateFolder;
use rbuild_cache::store::StoreError;
use rbuild_cache::store::growing::Growing;
use rbuild_frontend::image_config::{ExportedLayer, ImageConfig, Timestamp};
use rbuild_solver::graph::ImageLayer;
use rbuild_solver::image_source::{ImageSourceError, UnpackError};
use rbuild_solver::progress::{EventKind, Task};
use rbuild_solver::remote_cache::{self, RemoteError, RemoteLayer};
use rbuild_solver::tree::{Tree, TreeLayer};
use serde::Serialize;
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::image_source::Images;
use crate::layer_arrival;
use crate::provenance::Provenance;
use crate::remote_cache::inline::{self, InlineKeys};
use crate::request::{Annotation, AnnotationSubject};

pub use attestation::{Attestation, AttestationPlace};

/// How many layers are fetched at once.
const AT_ONCE: usize = 4;

/// How many layers are packed at once. Packing uses all cores by itself; what is gained by a second
/// one is that they have work while the first waits for the disk, and by more that many cores don't
/// wait for one reader. No more than that: who takes the layers in order waits for the lowest.
fn packed_at_once() -> usize {
    std::thread::available_parallelism().map_or(2, |cores| (cores.get() / 4).clamp(2, 4))
}

/// What was built for one platform.
#[derive(Clone, Debug)]
pub struct BuiltImage {
    /// For which.
    pub platform: Platform,
    /// Its config, without digests of layers and times of steps.
    pub config: ImageConfig,
    /// The config of the image that it was made from.
    pub base: Option<ImageConfig>,
    /// `SOURCE_DATE_EPOCH`, in seconds.
    pub epoch: Option<i64>,
    /// Its files.
    pub tree: Tree,
    /// How it was built, if that is to be said.
    pub provenance: Option<Provenance>,
    /// What its config says of the steps that made its layers (`--cache-to type=inline`).
    pub inline: Option<Arc<InlineKeys>>,
    /// What its manifest says of it, where manifests can. What the user says counts more.
    pub annotations: BTreeMap<String, String>,
}

/// What is said of a layer besides its blob.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LayerDescription {
    /// The digest of its tar.
    pub(crate) diff_id: DiffId,
    /// When its step ran, in seconds since the epoch.
    pub(crate) created: i64,
}

/// The blob of a step's layer.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct StepBlob {
    /// The blob.
    pub(crate) descriptor: Descriptor,
    /// What is said of it.
    pub(crate) described: LayerDescription,
    /// Where it can be fetched, if it may not be here.
    pub(crate) location: Option<String>,
}

/// How an image is written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[allow(clippy::struct_excessive_bools, reason = "each is an attribute of its own")]
pub struct ImageOptions {
    /// How new layers are compressed.
    pub compression: Compression,
    /// Layers of base images are compressed so as well.
    pub force_compression: bool,
    /// Docker's media types instead of the OCI's.
    pub docker_types: bool,
    /// No file of a new layer is later than `SOURCE_DATE_EPOCH`.
    pub rewrite_timestamp: bool,
    /// Annotations.
    pub annotations: Vec<Annotation>,
    /// What `SOURCE_DATE_EPOCH` of the build is overridden with.
    pub epoch: Option<i64>,
    /// When layers of which that is not known were made, in seconds since the epoch.
    pub now: i64,
    /// What statements about the image call it.
    pub names: Vec<ImageRef>,
    /// Where they stand.
    pub attestations: AttestationPlace,
    /// Statements that are for images alone stand there too.
    pub inline_attestations: bool,
    /// The manifest of statements is one of an artifact, with the image as its subject, and not one
    /// of an image for no platform.
    pub oci_artifact: bool,
    /// Layers of base images that are to be had elsewhere only stay so.
    pub prefer_nondistributable: bool,
}

impl ImageOptions {
    /// After which time no file of a new layer may be, in a build with this `SOURCE_DATE_EPOCH`.
    pub(crate) fn latest(&self, epoch: Option<i64>) -> Option<i64> {
        self.epoch.or(epoch).filter(|_| self.rewrite_timestamp)
    }
}

/// Who is told of an image's layers while it is written. What nobody listens to is just written.
#[derive(Clone, Debug)]
pub enum LayerWatcher {
    /// Of those that have to be compressed, as they begin.
    New(UnboundedSender<Growing>),
    /// Of all, in no order. Those that are elsewhere are brought here for it.
    All(UnboundedSender<ComingLayer>),
}

/// A layer of an image that is being written. The first word about a place counts.
#[derive(Clone, Debug)]
pub struct ComingLayer {
    /// Which of the images it is in, and which of that one's layers it is, from 0 up.
    pub place: (usize, usize),
    /// Its blob.
    pub blob: ComingBlob,
}

/// The blob of a [`ComingLayer`].
#[derive(Clone, Debug)]
pub enum ComingBlob {
    /// It is being compressed.
    Growing(Growing),
    /// It is in the content store.
    Stored(Box<Descriptor>),
}

/// An image that was written: its documents are in the content store, and so are new layers.
#[derive(Clone, Debug, PartialEq)]
pub struct WrittenImage {
    /// The manifest, or the index of several platforms, with the annotations and the platform that
    /// an index that names it should give.
    pub root: Descriptor,
    /// The config's digest, if it is for one platform.
    pub config: Option<Digest>,
    /// All configs and layers, each once.
    pub blobs: Vec<Descriptor>,
    /// All manifests with their bytes; an index stands behind what it names.
    pub manifests: Vec<(Descriptor, Bytes)>,
    /// Where layers that may not be here can be fetched: the location of their image.
    pub locations: HashMap<Digest, String>,
    /// Results of elsewhere that nobody has unpacked yet.
    pub unchecked: HashMap<Digest, DiffId>,
    /// Statements about it that are in no index.
    pub referrers: Vec<Attestation>,
}

/// Says why an image could not be written.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// A layer could not be packed.
    #[error("cannot export a layer of the image")]
    Layer(#[from] LayerError),
    /// A layer of a base image could not be fetched.
    #[error(transparent)]
    Source(#[from] ImageSourceError),
    /// A layer of a base image could not be fetched or unpacked.
    #[error(transparent)]
    Unpack(#[from] UnpackError),
    /// A result of elsewhere is none.
    #[error(transparent)]
    Remote(#[from] RemoteError),
    /// A document could not be stored.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The index could not be asked.
    #[error(transparent)]
    Index(#[from] IndexError),
    /// An annotation is on something that the image does not have.
    #[error("annotation `{key}` cannot be set: {reason}")]
    Annotation {
        /// Its key.
        key: String,
        /// What is missing.
        reason: &'static str,
    },
    /// Docker's media types have no place for statements.
    #[error("provenance cannot be kept with `oci-mediatypes=false`")]
    Provenance,
    /// A thread ended without a result.
    #[error("a thread that exported a layer panicked")]
    Panicked,
}

/// Writes the image that `built` is: for one platform a manifest, for several an index.
///
/// # Errors
/// [`ImageError::Annotation`] when an annotation has nothing to be on.
pub async fn write(
    images: &Images,
    built: &[BuiltImage],
    options: &ImageOptions,
    task: &Task,
) -> Result<WrittenImage, ImageError> {
    write_watched(images, built, options, None, task).await
}

/// Like [`write()`]; layers that have to be compressed are shown to `watcher` as they begin.
pub async fn write_watched(
    images: &Images,
    built: &[BuiltImage],
    options: &ImageOptions,
    watcher: Option<LayerWatcher>,
    task: &Task,
) -> Result<WrittenImage, ImageError> {
    check_annotations(built, options)?;
    let mut written = Vec::with_capacity(built.len());
    for (number, image) in built.iter().enumerate() {
        let watcher = watcher.as_ref().map(|watcher| (watcher, number));
        written.push(write_one(images, image, options, watcher, task).await?);
    }
    let mut attestations = attestations(images.state(), built, &written, options, task)?;
    let referrers = match options.attestations {
        AttestationPlace::Index => Vec::new(),
        AttestationPlace::Referrer => std::mem::take(&mut attestations),
    };
    let mut written = if built.len() == 1 && attestations.is_empty() {
        written.remove(0)
    } else {
        combine(images.state(), written, attestations, options, task)?
    };
    written.referrers = referrers;
    Ok(written)
}

/// What is said of each image.
fn attestations(
    state: &StateFolder,
    built: &[BuiltImage],
    written: &[WrittenImage],
    options: &ImageOptions,
    task: &Task,
) -> Result<Vec<Attestation>, ImageError> {
    let mut attestations = Vec::new();
    for (built, written) in built.iter().zip(written) {
        let Some(provenance) = said(built, options) else { continue };
        let attestation = attestation::write(state, provenance, written, &built.platform, options)?;
        let digest = attestation.descriptor.digest;
        task.tell(EventKind::Result { what: "attestation manifest".into(), digest });
        attestations.push(attestation);
    }
    Ok(attestations)
}

/// The provenance that goes into an image.
fn said<'a>(built: &'a BuiltImage, options: &ImageOptions) -> Option<&'a Provenance> {
    built.provenance.as_ref().filter(|one| options.inline_attestations || !one.inline_only)
}

fn check_annotations(built: &[BuiltImage], options: &ImageOptions) -> Result<(), ImageError> {
    let says = built.iter().any(|built| said(built, options).is_some());
    if says && options.docker_types {
        return Err(ImageError::Provenance);
    }
    let is_index = built.len() > 1 || (says && options.attestations == AttestationPlace::Index);
    for annotation in &options.annotations {
        let wrong = |reason| Err(ImageError::Annotation { key: annotation.key.clone(), reason });
        let of_index = matches!(
            annotation.subject,
            AnnotationSubject::Index | AnnotationSubject::IndexDescriptor
        );
        if of_index && !is_index {
            return wrong("an image for a single platform has no index");
        }
        if options.docker_types && annotation.subject != AnnotationSubject::Manifest {
            return wrong("`oci-mediatypes=false` leaves no place for it");
        }
        let platform = annotation.platform.as_ref();
        if platform.is_some_and(|platform| built.iter().all(|one| one.platform != *platform)) {
            return wrong("the image is not built for that platform");
        }
    }
    Ok(())
}

fn annotated(
    options: &ImageOptions,
    subject: AnnotationSubject,
    platform: Option<&Platform>,
) -> BTreeMap<String, String> {
    let meant = |annotation: &&Annotation| {
        annotation.subject == subject
            && (annotation.platform.is_none() || annotation.platform.as_ref() == platform)
    };
    let annotations = options.annotations.iter().filter(meant);
    annotations.map(|one| (one.key.clone(), one.value.clone())).collect()
}

async fn write_one(
    images: &Images,
    built: &BuiltImage,
    options: &ImageOptions,
    watcher: Option<(&LayerWatcher, usize)>,
    task: &Task,
) -> Result<WrittenImage, ImageError> {
    let epoch = options.epoch.or(built.epoch);
    let latest = options.latest(built.epoch);
    let layers = Layers { latest, watcher, ..Layers::new(images, options, task) };
    let layers = layers.all(&built.tree).await?;
    let mut config = built.config.clone();
    let described: Vec<ExportedLayer> = layers.iter().map(|layer| layer.exported.clone()).collect();
    config.finish(&described, built.base.as_ref(), epoch.map(Timestamp::from_seconds));
    if let Some(keys) = &built.inline {
        let described = layers.iter().map(|layer| LayerDescription {
            diff_id: layer.exported.diff_id,
            created: layer.created,
        });
        config.inline_cache =
            Some(inline::records(keys, built.tree.layers.iter().zip(described), epoch));
    }
    let config = config.to_json();
    let types = if options.docker_types {
        (MediaType::DockerManifest, MediaType::DockerConfig)
    } else {
        (MediaType::OciManifest, MediaType::OciConfig)
    };
    let config_descriptor = Descriptor::of(types.1, &config);
    let own = if options.docker_types { BTreeMap::new() } else { built.annotations.clone() };
    let given = annotated(options, AnnotationSubject::Manifest, Some(&built.platform));
    let manifest = Manifest {
        schema_version: 2,
        media_type: Some(types.0.clone()),
        config: config_descriptor.clone(),
        layers: layers.iter().map(|layer| layer.descriptor.clone()).collect(),
        annotations: own.into_iter().chain(given).collect(),
    };
    let manifest = manifest_bytes(&manifest);
    let state = images.state();
    state.blobs().put(&config)?;
    state.blobs().put(&manifest)?;
    let mut root = Descriptor::of(types.0, &manifest);
    root.platform = Some(built.platform.clone());
    root.annotations =
        annotated(options, AnnotationSubject::ManifestDescriptor, Some(&built.platform));
    task.tell(EventKind::Result { what: "manifest".into(), digest: root.digest });
    task.tell(EventKind::Result { what: "config".into(), digest: config_descriptor.digest });
    let mut blobs = vec![config_descriptor.clone()];
    let (mut locations, mut unchecked) = (HashMap::new(), HashMap::new());
    for layer in layers {
        if layer.unchecked {
            unchecked.insert(layer.descriptor.digest, layer.exported.diff_id);
        }
        if let Some(location) = layer.location {
            locations.insert(layer.descriptor.digest, location);
        }
        if blobs.iter().all(|known| known.digest != layer.descriptor.digest) {
            blobs.push(layer.descriptor);
        }
    }
    Ok(WrittenImage {
        manifests: vec![(root.clone(), manifest.into())],
        config: Some(config_descriptor.digest),
        root,
        blobs,
        locations,
        unchecked,
        referrers: Vec::new(),
    })
}

/// The images of several platforms as one index, with what is said of them.
fn combine(
    state: &StateFolder,
    written: Vec<WrittenImage>,
    attestations: Vec<Attestation>,
    options: &ImageOptions,
    task: &Task,
) -> Result<WrittenImage, ImageError> {
    let media_type = if options.docker_types { MediaType::DockerList } else { MediaType::OciIndex };
    let index = Index {
        schema_version: 2,
        media_type: Some(media_type.clone()),
        manifests: (written.iter().map(|image| &image.root))
            .chain(attestations.iter().map(|attestation| &attestation.descriptor))
            .cloned()
            .collect(),
        annotations: annotated(options, AnnotationSubject::Index, None),
    };
    let bytes = pretty(&index);
    state.blobs().put(&bytes)?;
    let mut root = Descriptor::of(media_type, &bytes);
    root.annotations = annotated(options, AnnotationSubject::IndexDescriptor, None);
    task.tell(EventKind::Result { what: "manifest list".into(), digest: root.digest });
    let mut all = WrittenImage {
        root: root.clone(),
        config: None,
        blobs: Vec::new(),
        manifests: Vec::new(),
        locations: HashMap::new(),
        unchecked: HashMap::new(),
        referrers: Vec::new(),
    };
    for image in written {
        let known = |blob: &Descriptor| all.blobs.iter().any(|known| known.digest == blob.digest);
        let new: Vec<Descriptor> = image.blobs.into_iter().filter(|blob| !known(blob)).collect();
        all.blobs.extend(new);
        all.manifests.extend(image.manifests);
        all.locations.extend(image.locations);
        all.unchecked.extend(image.unchecked);
    }
    for attestation in attestations {
        all.blobs.extend(attestation.blobs);
        all.manifests.push((attestation.descriptor, attestation.bytes));
    }
    all.manifests.push((root, bytes.into()));
    Ok(all)
}

/// A manifest as BuildKit writes it; its list of layers is `null` when there is none.
fn manifest_bytes(manifest: &Manifest) -> Vec<u8> {
    let mut value = serde_json::to_value(manifest).expect("a manifest has string keys only");
    if manifest.layers.is_empty() {
        value["layers"] = serde_json::Value::Null;
    }
    pretty(&value)
}

fn pretty(document: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec_pretty(document).expect("documents of images have string keys only")
}

/// Brings all blobs of `written` here that are not.
pub async fn fetch_layers(
    images: &Images,
    written: &WrittenImage,
    task: &Task,
) -> Result<(), ImageError> {
    let missing = written.blobs.iter().filter_map(|blob| {
        let location = written.locations.get(&blob.digest)?;
        let unchecked = written.unchecked.get(&blob.digest).copied();
        Some(bring(images, blob, location, unchecked, task))
    });
    let missing: Vec<_> = missing.collect();
    futures::stream::iter(missing).buffer_unordered(AT_ONCE).try_collect::<()>().await?;
    Ok(())
}

/// Brings a layer here. One that is `unchecked` must be the layer with that diff id.
async fn bring(
    images: &Images,
    blob: &Descriptor,
    location: &str,
    unchecked: Option<DiffId>,
    task: &Task,
) -> Result<(), ImageError> {
    images.fetch_blob(location, blob, task).await?;
    let Some(diff_id) = unchecked else { return Ok(()) };
    let (state, digest, blob) = (images.state().clone(), blob.digest, blob.clone());
    let checked = blocking(move || layer::check(&state, &blob, &diff_id)).await;
    if checked.is_err() {
        images.doubt(&digest);
    }
    checked
}

/// The snapshots of all layers of `tree`, lowest first; those of base images are fetched and
/// unpacked when they are not here.
pub async fn snapshots(
    images: &Images,
    tree: &Tree,
    task: &Task,
) -> Result<Vec<SnapshotId>, ImageError> {
    let unpacked = tree.layers.iter().map(|layer| async move {
        match layer {
            TreeLayer::Snapshot(snapshot) => Ok(snapshot.id.clone()),
            TreeLayer::Image { layer, location } => {
                let snapshot = layer_arrival::snapshot(images, location, layer, task).await;
                Ok(snapshot.map(|snapshot| snapshot.id)?)
            }
            TreeLayer::Remote(remote) => {
                let snapshot = remote_cache::realize(images.state(), images, remote, task).await;
                if snapshot.is_err() {
                    images.doubt(&remote.result.layer.descriptor.digest);
                }
                Ok(snapshot?.id)
            }
        }
    });
    let unpacked: Vec<_> = unpacked.collect();
    let ids: Result<Vec<SnapshotId>, ImageError> =
        futures::stream::iter(unpacked).buffered(AT_ONCE).try_collect().await;
    let (ids, state) = (ids?, images.state().clone());
    blocking(move || layer::settle(&state, &ids)).await
}

/// The blob of `layer`, which a step made over `base`: the one that an image with these options has,
/// but that a blob of elsewhere stays as it is unless `force_compression` says otherwise.
///
/// # Panics
/// When `layer` is of a base image.
pub(crate) async fn step_blob(
    images: &Images,
    options: &ImageOptions,
    base: &Tree,
    layer: &TreeLayer,
    task: &Task,
) -> Result<StepBlob, ImageError> {
    let layers = Layers::new(images, options, task);
    let mut written = match layer {
        TreeLayer::Image { .. } => unreachable!("layers of base images are no results of steps"),
        TreeLayer::Snapshot(snapshot) => {
            layers.of_step(snapshot, layers.known_snapshots(base)?.as_deref(), 0).await?
        }
        TreeLayer::Remote(remote) if options.force_compression => {
            layers.of_remote(remote, None, 0).await?
        }
        TreeLayer::Remote(remote) => WrittenLayer::remote(remote),
    };
    let media_type = converted(written.descriptor.media_type, options.docker_types);
    written.descriptor.media_type = media_type;
    Ok(StepBlob {
        descriptor: written.descriptor,
        described: LayerDescription { diff_id: written.exported.diff_id, created: written.created },
        location: written.location,
    })
}

/// Packs the last layer of `tree`, which a step made; does nothing while it cannot be known how the
/// image will have it.
pub(crate) async fn pack_last(
    images: &Images,
    options: &ImageOptions,
    latest: Option<i64>,
    tree: &Tree,
    watch: Watch,
    task: &Task,
) -> Result<(), ImageError> {
    let Some((TreeLayer::Snapshot(snapshot), below)) = tree.layers.split_last() else {
        return Ok(());
    };
    let layers = Layers { latest, ..Layers::new(images, options, task) };
    let Some(lower) = layers.known(below)? else { return Ok(()) };
    layers.pack(snapshot, Some(&lower), watch).await.map(drop)
}

/// A layer as it stands in a manifest, and what its config says of it.
struct WrittenLayer {
    descriptor: Descriptor,
    exported: ExportedLayer,
    /// When its step ran; 0 for layers of base images.
    created: i64,
    /// Where it can be fetched, if it may not be here.
    location: Option<String>,
    /// Nobody has looked whether the blob is what its record says.
    unchecked: bool,
}

impl WrittenLayer {
    /// A result of elsewhere, as it is there.
    fn remote(remote: &RemoteLayer) -> Self {
        let result = &remote.result;
        Self {
            descriptor: Descriptor {
                annotations: BTreeMap::new(),
                ..result.layer.descriptor.clone()
            },
            exported: ExportedLayer {
                diff_id: result.layer.diff_id,
                created: Some(Timestamp::from_seconds(result.created)),
                description: remote.name.clone(),
            },
            created: result.created,
            location: Some(result.location.clone()),
            unchecked: true,
        }
    }
}

/// Turns a tree's layers into blobs.
struct Layers<'a> {
    images: &'a Images,
    options: &'a ImageOptions,
    latest: Option<i64>,
    /// With the number of the image.
    watcher: Option<(&'a LayerWatcher, usize)>,
    task: &'a Task,
    packing: Semaphore,
    fetching: Semaphore,
}

impl<'a> Layers<'a> {
    fn new(images: &'a Images, options: &'a ImageOptions, task: &'a Task) -> Self {
        let packing = Semaphore::new(packed_at_once());
        let fetching = Semaphore::new(AT_ONCE);
        Self { images, options, latest: None, watcher: None, task, packing, fetching }
    }

    async fn all(&self, tree: &Tree) -> Result<Vec<WrittenLayer>, ImageError> {
        let ids = self.known_snapshots(tree)?;
        let layers = tree.layers.iter().enumerate().map(|(position, layer)| {
            let lower = ids.as_ref().map(|ids| &ids[..position]);
            self.one(position, layer, lower)
        });
        // All have begun; each waits for room where it needs some, the lowest first.
        let mut layers = futures::future::try_join_all(layers).await?;
        for layer in &mut layers {
            let media_type = &mut layer.descriptor.media_type;
            *media_type = converted(media_type.clone(), self.options.docker_types);
            if !self.options.prefer_nondistributable {
                make_distributable(&mut layer.descriptor);
            }
        }
        Ok(layers)
    }

    async fn one(
        &self,
        position: usize,
        layer: &TreeLayer,
        lower: Option<&[SnapshotId]>,
    ) -> Result<WrittenLayer, ImageError> {
        let mut written = match layer {
            TreeLayer::Image { layer, location } => self.of_image(layer, location).await?,
            TreeLayer::Snapshot(snapshot) => self.of_step(snapshot, lower, position).await?,
            TreeLayer::Remote(remote) => self.of_remote(remote, lower, position).await?,
        };
        if let Some((LayerWatcher::All(watcher), image)) = self.watcher {
            if let Some(location) = written.location.take() {
                let unchecked = written.unchecked.then_some(written.exported.diff_id);
                let _room = room(&self.fetching).await;
                bring(self.images, &written.descriptor, &location, unchecked, self.task).await?;
                written.unchecked = false;
            }
            let blob = ComingBlob::Stored(Box::new(written.descriptor.clone()));
            // When nobody listens, it is only written.
            let _ = watcher.send(ComingLayer { place: (image, position), blob });
        }
        Ok(written)
    }

    /// The snapshots of all layers, if all are here: then it is known what each layer hides.
    fn known_snapshots(&self, tree: &Tree) -> Result<Option<Vec<SnapshotId>>, ImageError> {
        self.known(&tree.layers)
    }

    fn known(&self, layers: &[TreeLayer]) -> Result<Option<Vec<SnapshotId>>, ImageError> {
        let snapshots = self.images.state().snapshots();
        let mut ids = Vec::with_capacity(layers.len());
        for layer in layers {
            let id = match layer {
                TreeLayer::Image { layer, .. } => SnapshotId::of_layer(&layer.diff_id),
                TreeLayer::Snapshot(snapshot) => {
                    // The build has just used it.
                    ids.push(snapshot.id.clone());
                    continue;
                }
                TreeLayer::Remote(remote) => SnapshotId::of_layer(&remote.result.layer.diff_id),
            };
            if snapshots.get(&id).map_err(LayerError::from)?.is_none() {
                return Ok(None);
            }
            ids.push(id);
        }
        Ok(Some(ids))
    }

    async fn of_image(
        &self,
        layer: &ImageLayer,
        location: &str,
    ) -> Result<WrittenLayer, ImageError> {
        let exported =
            ExportedLayer { diff_id: layer.diff_id, created: None, description: String::new() };
        let wanted = layer::media_type(self.options.compression);
        let is_so = converted(layer.descriptor.media_type.clone(), false) == wanted;
        if is_so || !self.options.force_compression {
            let descriptor = layer.descriptor.clone();
            let mut location = Some(location.to_owned());
            let foreign = matches!(descriptor.media_type, MediaType::Foreign(_));
            if foreign && !self.options.prefer_nondistributable {
                // Its addresses are about to be forgotten.
                let from = location.take().unwrap_or_default();
                self.fetch(&from, &descriptor).await?;
            }
            let (created, unchecked) = (0, false);
            return Ok(WrittenLayer { descriptor, exported, created, location, unchecked });
        }
        self.fetch(location, &layer.descriptor).await?;
        let (state, layer) = (self.images.state().clone(), layer.clone());
        let compression = self.options.compression;
        let _room = room(&self.packing).await;
        let anew = blocking(move || {
            layer::recompress(&state, &layer.descriptor, &layer.diff_id, compression)
        });
        let descriptor = anew.await?.descriptor;
        let (created, unchecked) = (0, false);
        Ok(WrittenLayer { descriptor, exported, created, location: None, unchecked })
    }

    /// A layer of elsewhere: the blob as it is where it serves, so that it need not be here.
    async fn of_remote(
        &self,
        remote: &RemoteLayer,
        lower: Option<&[SnapshotId]>,
        position: usize,
    ) -> Result<WrittenLayer, ImageError> {
        let as_it_is = WrittenLayer::remote(remote);
        let (images, task) = (self.images, self.task);
        if self.latest.is_some() {
            // Its times change, so it is packed anew.
            let fetching = room(&self.fetching).await;
            let snapshot = remote_cache::realize(images.state(), images, remote, task).await;
            drop(fetching);
            if snapshot.is_err() {
                images.doubt(&remote.result.layer.descriptor.digest);
            }
            let packed = self.of_step(&snapshot?, lower, position).await?;
            let exported = ExportedLayer { diff_id: packed.exported.diff_id, ..as_it_is.exported };
            return Ok(WrittenLayer { exported, created: as_it_is.created, ..packed });
        }
        let wanted = layer::media_type(self.options.compression);
        let layer = remote.result.layer.clone();
        if converted(layer.descriptor.media_type.clone(), false) == wanted {
            return Ok(as_it_is);
        }
        self.fetch(&remote.result.location, &layer.descriptor).await?;
        let (state, compression) = (images.state().clone(), self.options.compression);
        let packing = room(&self.packing).await;
        let anew = blocking(move || {
            layer::recompress(&state, &layer.descriptor, &layer.diff_id, compression)
        });
        let anew = anew.await;
        drop(packing);
        if anew.is_err() {
            images.doubt(&remote.result.layer.descriptor.digest);
        }
        let descriptor = anew?.descriptor;
        Ok(WrittenLayer { descriptor, location: None, unchecked: false, ..as_it_is })
    }

    async fn fetch(&self, location: &str, blob: &Descriptor) -> Result<(), ImageError> {
        let _room = room(&self.fetching).await;
        Ok(self.images.fetch_blob(location, blob, self.task).await?)
    }

    async fn of_step(
        &self,
        snapshot: &Snapshot,
        lower: Option<&[SnapshotId]>,
        position: usize,
    ) -> Result<WrittenLayer, ImageError> {
        let record = self.images.state().index().made(&snapshot.id)?;
        let (created, description) = record.map_or((self.options.now, String::new()), |record| {
            (record.created, record.description)
        });
        let given_up = GivenUp::default();
        let mut watch = Watch { begun: None, unwanted: Some(Arc::clone(&given_up.0)) };
        if let Some((watcher, image)) = self.watcher.map(|(one, image)| (one.clone(), image)) {
            // When nobody listens, it is only stored.
            watch.begun = Some(Box::new(move |growing| match watcher {
                LayerWatcher::New(watcher) => drop(watcher.send(growing)),
                LayerWatcher::All(watcher) => {
                    let blob = ComingBlob::Growing(growing);
                    drop(watcher.send(ComingLayer { place: (image, position), blob }));
                }
            }));
        }
        let _room = room(&self.packing).await;
        let exported = self.pack(snapshot, lower, watch).await?;
        let layer = ExportedLayer {
            diff_id: exported.diff_id,
            created: Some(Timestamp::from_seconds(created)),
            description,
        };
        Ok(WrittenLayer {
            descriptor: exported.descriptor,
            exported: layer,
            created,
            location: None,
            unchecked: false,
        })
    }

    /// The blob of a step's layer.
    async fn pack(
        &self,
        snapshot: &Snapshot,
        lower: Option<&[SnapshotId]>,
        watch: Watch,
    ) -> Result<layer::ExportedLayer, ImageError> {
        let lower = lower.map(<[SnapshotId]>::to_vec);
        let (state, id) = (self.images.state().clone(), snapshot.id.clone());
        let (compression, latest) = (self.options.compression, self.latest);
        let packed = blocking(move || {
            layer::export_watched(&state, &id, lower.as_deref(), compression, latest, watch)
        });
        packed.await
    }
}

/// Dropped before the layer is done, it ends the work on it.
#[derive(Default)]
struct GivenUp(Arc<AtomicBool>);

impl Drop for GivenUp {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Waits for one of the `places`, which are never closed.
async fn room(places: &Semaphore) -> SemaphorePermit<'_> {
    places.acquire().await.expect("the semaphore is never closed")
}

/// A layer's media type in the other family; types that only one family has stay.
fn converted(media_type: MediaType, docker_types: bool) -> MediaType {
    match (media_type, docker_types) {
        (MediaType::OciLayer, true) => MediaType::DockerLayer,
        (MediaType::OciLayerGzip, true) => MediaType::DockerLayerGzip,
        (MediaType::DockerLayer, false) => MediaType::OciLayer,
        (MediaType::DockerLayerGzip, false) => MediaType::OciLayerGzip,
        (other, _) => other,
    }
}

/// A layer that was to be fetched from its addresses becomes one like any other (BuildKit,
/// `prefer-nondist-layers`): then the image is whole wherever it is.
fn make_distributable(layer: &mut Descriptor) {
    let MediaType::Foreign(text) = &layer.media_type else { return };
    let plain = text.replace(".nondistributable.", ".").replace(".foreign.", ".");
    layer.media_type = MediaType::from(plain);
    layer.urls.clear();
}

/// Runs what computes or waits for the disk on a thread of its own.
async fn blocking<T: Send + 'static, E: Send + 'static>(
    work: impl FnOnce() -> Result<T, E> + Send + 'static,
) -> Result<T, ImageError>
where
    ImageError: From<E>,
{
    let done = tokio::task::spawn_blocking(work).await.map_err(|_| ImageError::Panicked)?;
    Ok(done?)
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;

    use rbuild_solver::progress::{Reporter, Silent};

    use super::*;
    use crate::registry::{Registry, RegistrySettings};

    struct Store {
        images: Images,
        _folder: tempfile::TempDir,
    }

    fn store() -> Store {
        let folder = tempfile::tempdir().unwrap();
        let state = StateFolder::open(folder.path()).unwrap();
        let images = Images::new(Registry::new(RegistrySettings::default()), state);
        Store { images, _folder: folder }
    }

    impl Store {
        fn step(&self, fill: impl FnOnce(&Path)) -> Snapshot {
            let snapshots = self.images.state().snapshots();
            let draft = snapshots.draft().unwrap();
            fill(&draft.folder());
            snapshots.commit(&SnapshotId::random(), draft).unwrap()
        }

        async fn write(
            &self,
            built: &[BuiltImage],
            options: &ImageOptions,
        ) -> Result<(WrittenImage, serde_json::Value), ImageError> {
            let task = Reporter::new(Arc::new(Silent)).start("export");
            let written = write(&self.images, built, options, &task).await?;
            let (last, bytes) = written.manifests.last().unwrap();
            assert_eq!(self.images.state().blobs().read(last).unwrap(), *bytes);
            let document = serde_json::from_slice(bytes).unwrap();
            Ok((written, document))
        }
    }

    fn built(platform: &str, steps: &[Snapshot]) -> BuiltImage {
        let platform: Platform = platform.parse().unwrap();
        BuiltImage {
            config: ImageConfig::empty(&platform),
            platform,
            base: None,
            epoch: None,
            tree: steps.iter().cloned().fold(Tree::default(), Tree::with),
            inline: None,
            annotations: BTreeMap::new(),
            provenance: None,
        }
    }

    fn annotation(subject: AnnotationSubject, platform: Option<&str>) -> ImageOptions {
        let platform = platform.map(|platform| platform.parse().unwrap());
        let (key, value) = ("k".to_owned(), "v".to_owned());
        let annotations = vec![Annotation { subject, platform, key, value }];
        ImageOptions { annotations, ..ImageOptions::default() }
    }

    #[tokio::test]
    async fn an_image_without_layers_is_written_as_buildkit_writes_it() {
        let store = store();
        let image = built("linux/amd64", &[]);
        let (written, manifest) = store.write(&[image], &ImageOptions::default()).await.unwrap();
        assert_eq!(manifest["layers"], serde_json::Value::Null);
        assert_eq!(manifest["mediaType"], "application/vnd.oci.image.manifest.v1+json");
        assert_eq!(written.root.platform.unwrap().to_string(), "linux/amd64");
        assert_eq!(written.blobs.len(), 1);
    }

    #[tokio::test]
    async fn layers_are_written_once_and_in_the_wanted_form() {
        let store = store();
        let step = store.step(|folder| fs_err::write(folder.join("a"), "text").unwrap());
        let image = built("linux/amd64", &[step.clone(), step]);
        let options = ImageOptions { now: 7, ..ImageOptions::default() };
        let (written, manifest) =
            store.write(std::slice::from_ref(&image), &options).await.unwrap();
        assert_eq!(manifest["layers"].as_array().unwrap().len(), 2);
        assert_eq!(written.blobs.len(), 2, "a config, and one blob for both layers");
        let (again, _) = store.write(std::slice::from_ref(&image), &options).await.unwrap();
        assert_eq!(again, written);
        let docker = ImageOptions { docker_types: true, ..options };
        let (_, manifest) = store.write(&[image], &docker).await.unwrap();
        assert_eq!(
            manifest["layers"][0]["mediaType"],
            "application/vnd.docker.image.rootfs.diff.tar.gzip"
        );
    }

    #[tokio::test]
    async fn several_platforms_are_an_index() {
        let store = store();
        let images = [built("linux/amd64", &[]), built("linux/arm64", &[])];
        let options = annotation(AnnotationSubject::ManifestDescriptor, Some("linux/arm64"));
        let (written, index) = store.write(&images, &options).await.unwrap();
        assert_eq!(written.manifests.len(), 3);
        assert_eq!(written.config, None);
        assert_eq!(index["manifests"][1]["platform"]["architecture"], "arm64");
        assert_eq!(index["manifests"][1]["annotations"]["k"], "v");
        assert_eq!(index["manifests"][0]["annotations"], serde_json::Value::Null);
    }

    #[tokio::test]
    async fn annotations_need_something_to_be_on() {
        let store = store();
        let image = [built("linux/amd64", &[])];
        let check = async |options: ImageOptions, reason: &str| {
            let error = store.write(&image, &options).await.unwrap_err().to_string();
            assert!(error.contains(reason), "{error}");
        };
        check(annotation(AnnotationSubject::Index, None), "has no index").await;
        let other = annotation(AnnotationSubject::Manifest, Some("linux/arm64"));
        check(other, "not built for that platform").await;
        let docker = annotation(AnnotationSubject::ManifestDescriptor, None);
        check(ImageOptions { docker_types: true, ..docker }, "leaves no place").await;
    }
}
