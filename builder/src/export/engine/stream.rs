//! The archive of an image on its way into an engine while the image's layers are packed: each layer
//! goes as soon as it is ready and those below it went, and the documents last.

use std::io::Write;

use futures::{FutureExt as _, StreamExt as _, stream};
use rbuild_cache::digest::Digest;
use rbuild_cache::oci::Descriptor;
use rbuild_cache::state::StateFolder;
use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender};
use tokio::sync::oneshot;

use super::known::Known;
use super::{Engine, Loading, Sent, Writing};
use crate::export::layout_tar::LayoutTar;
use crate::export::{Around, ExportError, ImageArchive};
use crate::image::{self, ReadyLayer};

/// How many layers are fetched at once that are not here.
const AT_ONCE: usize = 4;

/// What an image that is being written tells who streams it.
pub(in crate::export) struct Streaming {
    /// Layers as they get ready, in any order.
    pub(in crate::export) layers: UnboundedReceiver<ReadyLayer>,
    /// All of it, once that is known.
    pub(in crate::export) image: oneshot::Receiver<Loading>,
}

impl Engine {
    /// Sends the image, but for layers that the engine has. Gives what came of that, and how many
    /// layers were left out.
    pub(in crate::export) async fn stream(
        &self,
        streaming: Streaming,
        around: &Around,
    ) -> Result<(Sent, usize), ExportError> {
        let known = self.known().await?;
        let (ready, received) = mpsc::unbounded_channel();
        let (rest, finished) = oneshot::channel();
        let state = around.images.state().clone();
        let writing: Writing = Box::new(move |out| write(out, &state, received, finished));
        let is_podman = self.is_podman();
        let choosing = async {
            let left_out = choose(streaming.layers, &known, around, ready).await?;
            // Without a word about all of it, writing the image failed: the archive has no end.
            if let Ok(image) = streaming.image.await {
                let archive = image.archive_without(is_podman, &left_out.digests);
                // An engine that has gone away says why by itself.
                let _ = rest.send(archive);
            }
            Ok::<_, ExportError>(left_out.layers)
        };
        // An engine that has an answer ends it, whatever else is still to be packed: it cannot have
        // all before the last word was sent.
        let (sending, choosing) = (self.send(writing).fuse(), choosing.fuse());
        futures::pin_mut!(sending, choosing);
        futures::select_biased! {
            left_out = choosing => {
                let left_out = left_out?;
                Ok((sending.await?, left_out))
            }
            sent = sending => {
                let reason = sent?.answer.err();
                Err(self.failed(&reason.unwrap_or_else(|| "it read no further".to_owned())))
            }
        }
    }
}

/// The layers that an engine is not sent.
#[derive(Debug, Default, PartialEq, Eq)]
struct LeftOut {
    /// How many.
    layers: usize,
    /// Their blobs, but for those that are also sent, as other layers.
    digests: Vec<Digest>,
}

/// Hands those layers on that the engine lacks, in the order of the image; they are here then.
async fn choose(
    layers: UnboundedReceiver<ReadyLayer>,
    known: &Known,
    around: &Around,
    ready: UnboundedSender<Descriptor>,
) -> Result<LeftOut, ExportError> {
    let mut lowest = Vec::new();
    let chosen = in_order(layers).map(|layer| {
        lowest.push(layer.diff_id.to_string());
        let is_there = known.has(&lowest);
        async move {
            // A layer that nobody has looked into is looked into, whoever has it.
            if !is_there || layer.unchecked {
                image::bring_ready(&around.images, &layer, &around.task).await?;
            }
            Ok::<_, ExportError>((layer.descriptor, is_there))
        }
    });
    let mut chosen = std::pin::pin!(chosen.buffered(AT_ONCE));
    let (mut left_out, mut sent) = (LeftOut::default(), Vec::new());
    while let Some(layer) = chosen.next().await {
        let (descriptor, is_there) = layer?;
        if is_there {
            left_out.layers += 1;
            left_out.digests.push(descriptor.digest);
        } else {
            sent.push(descriptor.digest);
            // An engine that has gone away says why by itself.
            let _ = ready.send(descriptor);
        }
    }
    left_out.digests.retain(|digest| !sent.contains(digest));
    Ok(left_out)
}

/// The layers, lowest first.
fn in_order(layers: UnboundedReceiver<ReadyLayer>) -> impl stream::Stream<Item = ReadyLayer> {
    let begun = (layers, Vec::<ReadyLayer>::new(), 0);
    stream::unfold(begun, |(mut layers, mut early, position)| async move {
        loop {
            if let Some(at) = early.iter().position(|layer| layer.position == position) {
                let layer = early.swap_remove(at);
                return Some((layer, (layers, early, position + 1)));
            }
            early.push(layers.recv().await?);
        }
    })
}

/// Writes the archive: layers as they come, then all else.
fn write(
    out: &mut dyn Write,
    state: &StateFolder,
    mut layers: UnboundedReceiver<Descriptor>,
    rest: oneshot::Receiver<ImageArchive>,
) -> Result<(), ExportError> {
    let mut tar = LayoutTar::new(out)?;
    while let Some(layer) = layers.blocking_recv() {
        tar.blob(state, &layer)?;
        tar.flush()?;
    }
    let Ok(rest) = rest.blocking_recv() else {
        return Err(ExportError::Load("the image was not finished".to_owned()));
    };
    rest.finish(state, tar)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::{Arc, Mutex};
    use std::time::{Duration, Instant};

    use rbuild_cache::oci::MediaType;

    use super::*;

    /// Memory that others look into while it is written.
    #[derive(Clone, Default)]
    struct Seen(Arc<Mutex<Vec<u8>>>);

    impl Seen {
        fn has(&self, text: &[u8]) -> bool {
            self.0.lock().unwrap().windows(text.len()).any(|window| window == text)
        }
    }

    impl Write for Seen {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_layer_is_out_before_the_next_one_is_there() {
        let top = tempfile::tempdir().unwrap();
        let state = StateFolder::open(top.path().join("state")).unwrap();
        let blob = |text: &[u8]| {
            state.blobs().put(text).unwrap();
            Descriptor::of(MediaType::OciLayer, text)
        };
        let (one, two) = (blob(b"the first layer"), blob(b"the second layer"));
        let (ready, layers) = mpsc::unbounded_channel();
        let (rest, finished) = oneshot::channel();
        let seen = Seen::default();
        let writer = {
            let (mut out, state) = (seen.clone(), state.clone());
            std::thread::spawn(move || write(&mut out, &state, layers, finished))
        };
        let wait_for = |text: &[u8]| {
            let begun = Instant::now();
            while !seen.has(text) {
                assert!(begun.elapsed() < Duration::from_secs(20), "it does not come");
                std::thread::sleep(Duration::from_millis(2));
            }
        };
        ready.send(one.clone()).unwrap();
        wait_for(b"the first layer");
        assert!(!seen.has(b"the second layer"));
        ready.send(two.clone()).unwrap();
        wait_for(b"the second layer");
        drop(ready);
        assert!(!seen.has(b"oci-layout"));
        let mut archive = ImageArchive::default();
        archive.add([&one, &two], []);
        rest.send(archive).unwrap_or_else(|_| panic!("the writer is gone"));
        writer.join().unwrap().unwrap();
        assert!(seen.has(b"oci-layout"));
    }

    #[test]
    fn an_image_that_was_not_finished_is_no_archive() {
        let top = tempfile::tempdir().unwrap();
        let state = StateFolder::open(top.path().join("state")).unwrap();
        let (ready, layers) = mpsc::unbounded_channel();
        let (rest, finished) = oneshot::channel();
        drop((ready, rest));
        let mut out = Seen::default();
        assert!(write(&mut out, &state, layers, finished).is_err());
        assert!(!out.has(b"oci-layout"));
    }

    #[tokio::test]
    async fn layers_come_in_the_order_of_the_image() {
        let (sender, layers) = mpsc::unbounded_channel();
        for position in [2, 0, 3, 1] {
            let text = format!("layer {position}");
            sender
                .send(ReadyLayer {
                    position,
                    descriptor: Descriptor::of(MediaType::OciLayer, text.as_bytes()),
                    diff_id: rbuild_cache::digest::DiffId(Digest::of(&text)),
                    location: None,
                    unchecked: false,
                })
                .unwrap();
        }
        drop(sender);
        let order: Vec<usize> = in_order(layers).map(|layer| layer.position).collect().await;
        assert_eq!(order, [0, 1, 2, 3]);
    }
}
