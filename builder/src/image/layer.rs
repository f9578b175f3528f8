//! The layers of an image as blobs: those of steps are packed and compressed, those of base images and
//! of remote caches stay where they are unless the image has them in another form.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rbuild_cache::digest::DiffId;
use rbuild_cache::layer::{self, LayerError, Watch};
use rbuild_cache::oci::{Descriptor, MediaType};
use rbuild_cache::snapshot::{Snapshot, SnapshotId};
use rbuild_cache::store::growing::Growing;
use rbuild_frontend::image_config::{ExportedLayer, Timestamp};
use rbuild_solver::graph::ImageLayer;
use rbuild_solver::progress::Task;
use rbuild_solver::remote_cache::{self, RemoteLayer};
use rbuild_solver::tree::{Tree, TreeLayer};
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::{Semaphore, SemaphorePermit};

use super::fetch::{AT_ONCE, bring};
use super::{ImageError, ImageOptions, blocking};
use crate::image_source::Images;

/// How many layers are packed at once. Packing uses all cores by itself; what is gained by a second
/// one is that they have work while the first waits for the disk, and by more that many cores don't
/// wait for one reader. No more than that: who takes the layers in order waits for the lowest.
fn packed_at_once() -> usize {
    std::thread::available_parallelism().map_or(2, |cores| (cores.get() / 4).clamp(2, 4))
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

/// Who is told of an image's layers while it is written. What nobody listens to is just written.
#[derive(Clone, Debug)]
pub enum LayerWatcher {
    /// Of those that have to be compressed, as they begin.
    New(UnboundedSender<Growing>),
    /// Of all, in no order, when all is known about them; they stay where they are.
    Ready(UnboundedSender<ReadyLayer>),
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

/// A layer of an image that is being written, when all is known about it.
#[derive(Clone, Debug)]
pub struct ReadyLayer {
    /// Which of the image's layers it is, from 0 up.
    pub position: usize,
    /// Its blob.
    pub descriptor: Descriptor,
    /// What it unpacks to.
    pub diff_id: DiffId,
    /// Where its blob can be fetched, if that may not be here.
    pub location: Option<String>,
    /// Nobody has looked whether the blob is what its record says.
    pub unchecked: bool,
}

/// The blob of a [`ComingLayer`].
#[derive(Clone, Debug)]
pub enum ComingBlob {
    /// It is being compressed.
    Growing(Growing),
    /// It is in the content store.
    Stored(Box<Descriptor>),
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
pub(super) struct WrittenLayer {
    pub(super) descriptor: Descriptor,
    pub(super) exported: ExportedLayer,
    /// When its step ran; 0 for layers of base images.
    pub(super) created: i64,
    /// Where it can be fetched, if it may not be here.
    pub(super) location: Option<String>,
    /// Nobody has looked whether the blob is what its record says.
    pub(super) unchecked: bool,
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
pub(super) struct Layers<'a> {
    images: &'a Images,
    options: &'a ImageOptions,
    /// After which time no file of a new layer may be.
    latest: Option<i64>,
    /// Who is told, with the number of the image.
    watcher: Option<(&'a LayerWatcher, usize)>,
    task: &'a Task,
    packing: Semaphore,
    fetching: Semaphore,
}

impl<'a> Layers<'a> {
    pub(super) fn new(images: &'a Images, options: &'a ImageOptions, task: &'a Task) -> Self {
        let packing = Semaphore::new(packed_at_once());
        let fetching = Semaphore::new(AT_ONCE);
        Self { images, options, latest: None, watcher: None, task, packing, fetching }
    }

    /// The same with no file later than `latest`, told to who listens.
    pub(super) fn with(
        self,
        latest: Option<i64>,
        watcher: Option<(&'a LayerWatcher, usize)>,
    ) -> Self {
        Self { latest, watcher, ..self }
    }

    /// The layers of `tree`, lowest first.
    pub(super) async fn all(&self, tree: &Tree) -> Result<Vec<WrittenLayer>, ImageError> {
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
        if let Some((LayerWatcher::Ready(watcher), _)) = self.watcher {
            // When nobody listens, it is only written.
            let _ = watcher.send(ReadyLayer {
                position,
                descriptor: written.descriptor.clone(),
                diff_id: written.exported.diff_id,
                location: written.location.clone(),
                unchecked: written.unchecked,
            });
        }
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
                LayerWatcher::Ready(_) => {}
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
