//! Loading into podman, through its socket.

use std::collections::BTreeSet;

use rbuild_cache::digest::Digest;
use serde_json::Value;

use super::client::Client;
use super::{Loading, Report};

/// Of at most so many images podman is asked for their layers, the newest first.
const ASKED: usize = 200;

/// Sends the layers that podman lacks.
pub(super) async fn load(image: &Loading, client: &Client) -> Result<Report, String> {
    let known = left_out(image, &layers(client).await?);
    let mut archive = image.oci_archive();
    archive.leave_out(&known);
    let (mut sent, mut answer) = client.load(archive, &image.state).await?;
    let mut count = known.len();
    if answer.is_err() && count > 0 {
        // It has the layer, but not in this form: compressed by somebody else, say.
        let (more, second) = client.load(image.oci_archive(), &image.state).await?;
        (sent, answer, count) = (sent + more, second, 0);
    }
    answer?;
    if let Some((first, others)) = image.names.split_first() {
        for name in others {
            let (repository, tag) = crate::local_image::repository_and_tag(&name.to_string());
            let tag = tag.unwrap_or_else(|| "latest".into());
            client.post(&format!("/images/{first}/tag?repo={repository}&tag={tag}")).await?;
        }
    }
    Ok(Report { sent, left_out: count })
}

/// The layers that are there already, by the digests of their blobs.
pub(super) fn left_out(image: &Loading, known: &BTreeSet<String>) -> Vec<Digest> {
    let layers = image.manifest.layers.iter().zip(&image.diff_ids);
    layers.filter(|(_, id)| known.contains(*id)).map(|(layer, _)| layer.digest).collect()
}

/// The digests of all unpacked layers of the engine's images.
async fn layers(client: &Client) -> Result<BTreeSet<String>, String> {
    let images = client.get("/images/json").await?;
    let mut known = BTreeSet::new();
    for image in images.as_array().map_or(&[][..], Vec::as_slice).iter().take(ASKED) {
        let Some(id) = image["Id"].as_str() else { continue };
        // One that was removed meanwhile has no layers.
        let Ok(image) = client.get(&format!("/images/{id}/json")).await else { continue };
        known.extend(of_image(&image));
    }
    Ok(known)
}

/// The layers that an image's inspection lists.
pub(super) fn of_image(image: &Value) -> Vec<String> {
    let layers = image["RootFS"]["Layers"].as_array().map_or(&[][..], Vec::as_slice);
    layers.iter().filter_map(|layer| Some(layer.as_str()?.to_owned())).collect()
}
