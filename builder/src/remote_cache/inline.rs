//! `type=inline`: the records of an image's own layers, in its config. Whoever can pull the image
//! has the cache; what is not in the image (other stages) is not in the cache.

use std::collections::HashMap;

use rbuild_cache::digest::CacheKey;
use rbuild_solver::remote_cache::RemoteResult;
use rbuild_solver::tree::TreeLayer;

use super::import::ImportError;
use super::record::{BUILDKIT_INLINE, INLINE, Record, RecordError, Records};
use crate::image::LayerDescription;

/// The keys of the layers that a build made or found, by `identity`.
///
/// Of each step it is one key, and the same whether the step ran or was found: otherwise the image
/// would have another digest on each machine.
pub type InlineKeys = HashMap<String, Vec<CacheKey>>;

/// Names the result in a layer; none for layers of base images.
pub(super) fn identity(layer: &TreeLayer) -> Option<String> {
    match layer {
        TreeLayer::Image { .. } => None,
        TreeLayer::Snapshot(snapshot) => Some(snapshot.id.to_string()),
        TreeLayer::Remote(remote) => {
            let RemoteResult { keys, layer, location, .. } = &*remote.result;
            let key = keys.first().map_or(layer.descriptor.digest, |key| key.0);
            Some(format!("{key}@{location}"))
        }
    }
}

/// The records of an image of these layers, for its config. No time is after `latest`.
pub(crate) fn records<'a>(
    keys: &InlineKeys,
    layers: impl Iterator<Item = (&'a TreeLayer, LayerDescription)>,
    latest: Option<i64>,
) -> serde_json::Value {
    let mut records = Vec::new();
    for (position, (layer, described)) in layers.enumerate() {
        let Some(keys) = identity(layer).and_then(|identity| keys.get(&identity)) else { continue };
        let (content, size) = match layer {
            TreeLayer::Image { .. } => continue,
            TreeLayer::Snapshot(snapshot) => (snapshot.content, snapshot.size),
            TreeLayer::Remote(remote) => (remote.result.content, remote.result.size),
        };
        records.push(Record {
            keys: keys.clone(),
            layer: position,
            diff_id: described.diff_id,
            content,
            size,
            created: latest.map_or(described.created, |latest| described.created.min(latest)),
            source: None,
        });
    }
    Records::new(records).to_json()
}

/// The records in an image's config.
pub(super) fn records_in(config: &[u8]) -> Result<Records, ImportError> {
    let syntax = |error: serde_json::Error| RecordError::Syntax(error.to_string());
    let config: serde_json::Value = serde_json::from_slice(config).map_err(syntax)?;
    match (config.get(INLINE), config.get(BUILDKIT_INLINE)) {
        (Some(records), _) => Ok(Records::parse(records.to_string().as_bytes())?),
        (None, Some(_)) => Err(ImportError::BuildKit),
        (None, None) => Err(ImportError::NoRecords),
    }
}
