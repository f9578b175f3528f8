//! A layer on its way: unpacked while it is downloaded, from the file that the blob is written to.
//!
//! The unpacked tree waits, uncommitted, for the end of the blob, and that comes only when digest
//! and size are right ([`rbuild_cache::store::growing`]); the diff id is compared then. The blob
//! stays in the store: the local store is an OCI layout, and pushes and exports pass a base's layers
//! on as they came.

use rbuild_cache::layer::{self, ApplyError, LayerError};
use rbuild_cache::snapshot::{Snapshot, SnapshotId};
use rbuild_cache::store::StoreError;
use rbuild_cache::store::growing::Growing;
use rbuild_solver::graph::ImageLayer;
use rbuild_solver::image_source::{ImageSourceError, UnpackError};
use rbuild_solver::progress::Task;
use tokio::sync::mpsc::{self, UnboundedReceiver};

use crate::image_source::Images;

/// Is given a blob at the start of each attempt to download it.
pub type Watcher = mpsc::UnboundedSender<Growing>;

/// The snapshot of `layer`, whose blob is at `location`.
///
/// # Errors
/// No snapshot is left when the blob or what is in it is not what the image says.
pub async fn snapshot(
    images: &Images,
    location: &str,
    layer: &ImageLayer,
    task: &Task,
) -> Result<Snapshot, UnpackError> {
    match arrived(images, location, layer, task).await {
        // What lay in the store was damaged, and is gone by now: it is fetched as if it had not been.
        Err(UnpackError::Layer(LayerError::Store(
            StoreError::Missing(_) | StoreError::Digest { .. } | StoreError::Size { .. },
        ))) => arrived(images, location, layer, task).await,
        arrived => arrived,
    }
}

async fn arrived(
    images: &Images,
    location: &str,
    layer: &ImageLayer,
    task: &Task,
) -> Result<Snapshot, UnpackError> {
    let id = SnapshotId::of_layer(&layer.diff_id);
    if let Some(found) = images.state().snapshots().get(&id).map_err(LayerError::from)? {
        return Ok(found);
    }
    let (watcher, attempts) = mpsc::unbounded_channel();
    let (fetched, unpacked) = tokio::join!(
        images.fetch_watched(location, &layer.descriptor, watcher, task),
        unpack_attempts(images, layer, attempts)
    );
    fetched?;
    match unpacked {
        Some(Ok(snapshot)) => Ok(snapshot),
        // What is wrong with the layer itself is not looked for twice.
        Some(Err(
            error @ (LayerError::DiffId { .. } | LayerError::Apply(ApplyError::Limit(_))),
        )) => Err(error.into()),
        // It was here already; or unpacking failed, and the whole blob tells why.
        None | Some(Err(_)) => {
            let (state, layer) = (images.state().clone(), layer.clone());
            let whole = tokio::task::spawn_blocking(move || {
                layer::unpack(&state, &layer.descriptor, &layer.diff_id)
            });
            Ok(whole.await.map_err(gone)??)
        }
    }
}

/// Unpacks each attempt after the one before ended; what came of the last.
async fn unpack_attempts(
    images: &Images,
    layer: &ImageLayer,
    mut attempts: UnboundedReceiver<Growing>,
) -> Option<Result<Snapshot, LayerError>> {
    let mut last = None;
    while let Some(blob) = attempts.recv().await {
        let (state, diff_id) = (images.state().clone(), layer.diff_id);
        let unpacking = tokio::task::spawn_blocking(move || {
            layer::unpack_stream(&state, blob.reader(), &diff_id)
        });
        last = Some(match unpacking.await {
            Ok(unpacked) => unpacked,
            Err(panicked) => Err(LayerError::Io(std::io::Error::other(panicked))),
        });
    }
    last
}

fn gone(error: tokio::task::JoinError) -> ImageSourceError {
    ImageSourceError {
        message: format!("a thread that unpacked a layer ended: {error}"),
        hint: None,
        source: Some(Box::new(error)),
    }
}
