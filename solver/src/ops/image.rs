//! Images: nothing to do until somebody reads their files; then all missing layers are fetched and
//! unpacked side by side, each into a folder of its own.

use std::sync::Arc;

use futures::future::try_join_all;
use rbuild_cache::digest::CacheKey;
use rbuild_cache::layer::{self, LayerError};
use rbuild_cache::snapshot::{Snapshot, SnapshotId};

use crate::error::Cause;
use crate::graph::{ImageLayer, ImageOp};
use crate::image_source::UnpackError;
use crate::ops::{Worker, blocking};
use crate::progress::Task;
use crate::remote_cache::{self, RemoteLayer};
use crate::single_flight;
use crate::solve::Surroundings;
use crate::tree::{Tree, TreeLayer};

/// The tree of `image`, none of it fetched.
pub(crate) fn tree(image: &ImageOp) -> Tree {
    let location: Arc<str> = image.location.as_str().into();
    let layer = |layer: &ImageLayer| TreeLayer::Image {
        layer: Arc::new(layer.clone()),
        location: Arc::clone(&location),
    };
    Tree { layers: image.layers.iter().map(layer).collect() }
}

impl Worker {
    /// The snapshots of `tree`, lowest first, all of them in the state folder.
    pub(crate) async fn realize(&self, tree: &Tree, task: &Task) -> Result<Vec<SnapshotId>, Cause> {
        let layers = tree.layers.iter().map(async |layer| match layer {
            TreeLayer::Snapshot(snapshot) => Ok(snapshot.id.clone()),
            TreeLayer::Image { layer, location } => {
                self.unpacked(layer, location, task).await.map(|snapshot| snapshot.id)
            }
            TreeLayer::Remote(remote) => self.checked(remote, task).await,
        });
        let ids = try_join_all(layers).await?;
        let state = &self.surroundings.state;
        // Most trees: nobody waits for another thread then.
        if layer::are_settled(state, &ids).map_err(Cause::state)? {
            return Ok(ids);
        }
        let state = state.clone();
        blocking(move || layer::settle(&state, &ids).map_err(Cause::state)).await
    }

    /// The snapshot of what a step came to elsewhere.
    async fn checked(&self, remote: &RemoteLayer, task: &Task) -> Result<SnapshotId, Cause> {
        let Surroundings { state, images, remote: cache, .. } = &*self.surroundings;
        let cache = cache.as_deref().expect("whoever found it is still there");
        let flight = remote.result.layer.diff_id.0;
        let _flight = single_flight::lock(state.locks(), &CacheKey(flight)).await?;
        let realized = remote_cache::realize(state, &**images, remote, task).await;
        realized.map(|snapshot| snapshot.id).map_err(|error| {
            let (step, reason) = (remote.name.clone(), error.to_string());
            cache.reject(remote, &reason);
            Cause::Rejected { step, reason }
        })
    }

    /// The snapshot of an image's layer; fetched and unpacked once, however many ask.
    async fn unpacked(
        &self,
        layer: &ImageLayer,
        location: &str,
        task: &Task,
    ) -> Result<Snapshot, Cause> {
        let state = &self.surroundings.state;
        let id = SnapshotId::of_layer(&layer.diff_id);
        if let Some(snapshot) = state.snapshots().get(&id).map_err(Cause::state)? {
            return Ok(snapshot);
        }
        let key = CacheKey(layer.diff_id.0);
        let _flight = single_flight::lock(state.locks(), &key).await?;
        if let Some(snapshot) = state.snapshots().get(&id).map_err(Cause::state)? {
            return Ok(snapshot);
        }
        self.surroundings.images.unpack(location, layer, task).await.map_err(|error| match error {
            UnpackError::Source(error) => error.into(),
            UnpackError::Layer(LayerError::DiffId { expected, found }) => {
                Cause::DiffId { blob: layer.descriptor.digest, found, expected }
            }
            UnpackError::Layer(error) => Cause::state(error),
        })
    }
}
