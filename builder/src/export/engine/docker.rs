//! Loading into Docker.

use rbuild_cache::digest::Digest;
use rbuild_cache::oci::Descriptor;
use rbuild_solver::progress::{EventKind, Task};

use super::client::Client;
use super::{Loading, Report};

/// Sends the layers that the engine lacks.
pub(super) async fn load(image: &Loading, client: &Client, task: &Task) -> Result<Report, String> {
    let mut report = Report::default();
    let layers = &image.manifest.layers;
    if !keeps_blobs(client).await? {
        let mut question = image.docker_archive();
        question.leave_out(&digests(layers));
        let (sent, answer) = client.load(question, &image.state).await?;
        report.sent += sent;
        let Err(reason) = answer else {
            return Ok(Report { left_out: layers.len(), ..report });
        };
        let known = known_layers(layers, &reason);
        if known > 0 {
            let mut archive = image.docker_archive();
            archive.leave_out(&left_out(layers, known));
            let (sent, answer) = client.load(archive, &image.state).await?;
            report.sent += sent;
            match answer {
                Ok(()) => return Ok(Report { left_out: known, ..report }),
                // Somebody removed a layer in between.
                Err(reason) if missing_layer(layers, &reason).is_some() => {
                    task.tell(EventKind::Warning { message: format!("sending all: {reason}") });
                }
                Err(reason) => return Err(reason),
            }
        }
    }
    let (sent, answer) = client.load(image.docker_archive(), &image.state).await?;
    report.sent += sent;
    answer.map(|()| report)
}

/// Whether the engine keeps images in containerd's store.
async fn keeps_blobs(client: &Client) -> Result<bool, String> {
    let info = client.get("/info").await?;
    Ok(info["DriverStatus"].to_string().contains("io.containerd.snapshotter"))
}

fn digests(layers: &[Descriptor]) -> Vec<Digest> {
    layers.iter().map(|layer| layer.digest).collect()
}

/// How many of the lowest layers the engine has, as its complaint about the next one says.
fn known_layers(layers: &[Descriptor], reason: &str) -> usize {
    missing_layer(layers, reason).unwrap_or(0)
}

/// Which layer the engine did not find in the archive.
fn missing_layer(layers: &[Descriptor], reason: &str) -> Option<usize> {
    layers.iter().position(|layer| reason.contains(&layer.digest.hex()))
}

/// The blobs of the `known` lowest layers. One that is also a higher layer must be sent.
fn left_out(layers: &[Descriptor], known: usize) -> Vec<Digest> {
    let (lower, upper) = layers.split_at(known);
    let needed = digests(upper);
    digests(lower).into_iter().filter(|digest| !needed.contains(digest)).collect()
}

#[cfg(test)]
mod tests {
    use rbuild_cache::oci::MediaType;

    use super::*;

    #[test]
    fn a_complaint_says_which_layers_are_there() {
        let layer = |text: &str| Descriptor::of(MediaType::OciLayerGzip, text.as_bytes());
        let layers = [layer("a"), layer("b"), layer("a"), layer("c")];
        let complaint = |layer: &Descriptor| {
            format!("open /tmp/docker-import-1/blobs/sha256/{}: no such file", layer.digest.hex())
        };
        assert_eq!(known_layers(&layers, &complaint(&layers[0])), 0);
        assert_eq!(known_layers(&layers, &complaint(&layers[1])), 1);
        assert_eq!(known_layers(&layers, &complaint(&layers[3])), 3);
        assert_eq!(known_layers(&layers, "disk full"), 0);
        assert_eq!(left_out(&layers, 1), [], "it is needed again");
        assert_eq!(left_out(&layers, 3), [layers[0].digest, layers[1].digest, layers[0].digest]);
    }
}
