//! What an engine has of an image's layers, by what it says of its images.

use std::collections::BTreeSet;

use futures::{StreamExt as _, stream};
use serde_json::Value;

use super::client::Client;
use super::{Engine, program};
use crate::export::ExportError;

/// Of at most so many images an engine is asked for their layers, the newest first.
const ASKED: usize = 200;
/// So many questions are on their way at once.
const AT_ONCE: usize = 8;

/// What an engine has, by the digests of unpacked layers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Known {
    /// Nothing that could be left out.
    Nothing,
    /// These layers, wherever they stand.
    Layers(BTreeSet<String>),
    /// The layers of these images, each above those that are below it there.
    Chains(Vec<Vec<String>>),
}

impl Known {
    /// Whether the last of these layers, the lowest of an image, is there.
    pub(super) fn has(&self, lowest: &[String]) -> bool {
        match self {
            Self::Nothing => false,
            Self::Layers(layers) => lowest.last().is_some_and(|last| layers.contains(last)),
            Self::Chains(chains) => chains.iter().any(|chain| chain.starts_with(lowest)),
        }
    }
}

impl Engine {
    /// Asks what it has.
    pub(super) async fn known(&self) -> Result<Known, ExportError> {
        match self {
            Self::Service(client, _) if client.is_podman => {
                let chains = chains(client).await.map_err(|reason| self.failed(&reason))?;
                Ok(Known::Layers(chains.into_iter().flatten().collect()))
            }
            Self::Service(client, _) => {
                let known = async {
                    if keeps_blobs(client).await? {
                        return Ok(Known::Nothing);
                    }
                    Ok(Known::Chains(chains(client).await?))
                };
                known.await.map_err(|reason: String| self.failed(&reason))
            }
            Self::PodmanProgram { root } => {
                let images = program::podman_images(*root, ASKED).await?;
                Ok(Known::Layers(images.iter().flat_map(of_image).collect()))
            }
            // What is asked over there is asked through a shell each time.
            Self::DockerProgram(_) => Ok(Known::Nothing),
        }
    }
}

/// Whether Docker keeps images in containerd's store.
async fn keeps_blobs(client: &Client) -> Result<bool, String> {
    let info = client.get("/info").await?;
    Ok(info["DriverStatus"].to_string().contains("io.containerd.snapshotter"))
}

/// The layers of the engine's images.
async fn chains(client: &Client) -> Result<Vec<Vec<String>>, String> {
    let images = client.get("/images/json").await?;
    let images = images.as_array().map_or(&[][..], Vec::as_slice);
    let ids = images.iter().take(ASKED).filter_map(|image| image["Id"].as_str());
    let asked: Vec<_> = ids
        .map(|id| async move {
            match client.get(&format!("/images/{id}/json")).await {
                Ok(image) => of_image(&image),
                // It was removed meanwhile; or the engine has gone away, which sending tells.
                Err(reason) => {
                    tracing::debug!(id, reason, "the engine says nothing of this image");
                    Vec::new()
                }
            }
        })
        .collect();
    Ok(stream::iter(asked).buffer_unordered(AT_ONCE).collect().await)
}

/// The layers that an image's inspection lists, lowest first. podman leaves out the algorithm.
fn of_image(image: &Value) -> Vec<String> {
    let layers = image["RootFS"]["Layers"].as_array().map_or(&[][..], Vec::as_slice);
    let digest = |layer: &str| {
        if layer.contains(':') { layer.to_owned() } else { format!("sha256:{layer}") }
    };
    layers.iter().filter_map(|layer| layer.as_str().map(digest)).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn texts(text: &str) -> Vec<String> {
        text.split_whitespace().map(|word| format!("sha256:{word}")).collect()
    }

    #[test]
    fn docker_has_a_layer_above_those_below_it_and_podman_anywhere() {
        let images = [texts("a b c"), texts("d")];
        let docker = Known::Chains(images.to_vec());
        let podman = Known::Layers(images.iter().flatten().cloned().collect());
        let check = |lowest: &str, expected: (bool, bool)| {
            let lowest = texts(lowest);
            assert_eq!((docker.has(&lowest), podman.has(&lowest)), expected, "{lowest:?}");
            assert!(!Known::Nothing.has(&lowest));
        };
        check("a", (true, true));
        check("a b", (true, true));
        check("a b c", (true, true));
        check("b", (false, true));
        check("a c", (false, true));
        check("d", (true, true));
        check("d a", (false, true));
        check("a b c e", (false, false));
    }

    #[test]
    fn layers_have_their_algorithm() {
        let image = json!({"RootFS": {"Layers": ["sha256:a", "b"]}});
        assert_eq!(of_image(&image), texts("a b"));
        assert_eq!(of_image(&Value::Null), [] as [String; 0]);
    }
}
