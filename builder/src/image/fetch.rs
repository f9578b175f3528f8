//! Brings layers here that are elsewhere: as blobs for who sends the image on, as snapshots for who
//! writes its files.

use futures::{StreamExt as _, TryStreamExt as _};
use rbuild_cache::digest::DiffId;
use rbuild_cache::layer;
use rbuild_cache::oci::Descriptor;
use rbuild_cache::snapshot::SnapshotId;
use rbuild_solver::progress::Task;
use rbuild_solver::remote_cache;
use rbuild_solver::tree::{Tree, TreeLayer};

use super::{ImageError, ReadyLayer, WrittenImage, blocking};
use crate::image_source::Images;
use crate::layer_arrival;

/// How many layers are fetched at once.
pub(super) const AT_ONCE: usize = 4;

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

/// Brings the blob of `layer` here, if it is not.
pub(crate) async fn bring_ready(
    images: &Images,
    layer: &ReadyLayer,
    task: &Task,
) -> Result<(), ImageError> {
    let Some(location) = &layer.location else { return Ok(()) };
    let unchecked = layer.unchecked.then_some(layer.diff_id);
    bring(images, &layer.descriptor, location, unchecked, task).await
}

/// Brings a layer here. One that is `unchecked` must be the layer with that diff id.
pub(super) async fn bring(
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
