//! Packing layers of an image while the steps after them run.
//!
//! An image is known to be wanted before its last step is done, so each of its layers can be packed
//! and compressed as soon as its own step is. What is packed is remembered like every layer; who
//! exports the image finds it, or waits for what has begun. A build that fails has packed in vain.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use futures::StreamExt as _;
use rbuild_cache::layer::{Compression, Watch};
use rbuild_cache::store::growing::Growing;
use rbuild_solver::graph::{Graph, Op, VertexId};
use rbuild_solver::progress::{Reporter, Silent};
use rbuild_solver::solve::MadeWatcher;
use rbuild_solver::tree::Tree;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::JoinHandle;

use crate::image::{self, ImageOptions};
use crate::image_source::Images;

/// How many layers are packed at once; each uses all cores by itself.
const AT_ONCE: usize = 2;

/// Packs layers beside a build. Dropped, it gives up what it has not done.
#[derive(Debug)]
pub(crate) struct Packing {
    /// For which steps, and after which time no file of their layers may be.
    steps: HashMap<VertexId, Option<i64>>,
    compression: Compression,
    made: UnboundedSender<Made>,
    growing: Arc<Mutex<Vec<Growing>>>,
    unwanted: Arc<AtomicBool>,
    work: JoinHandle<()>,
}

/// A tree whose last layer is to be packed.
#[derive(Debug)]
struct Made {
    tree: Tree,
    latest: Option<i64>,
}

impl Packing {
    /// Begins to pack layers of `targets` as an image with these options has them. Each target comes
    /// with the `SOURCE_DATE_EPOCH` of its build.
    pub(crate) fn start(
        images: &Images,
        options: &ImageOptions,
        graph: &Graph,
        targets: impl IntoIterator<Item = (VertexId, Option<i64>)>,
    ) -> Self {
        let mut steps = HashMap::new();
        for (target, epoch) in targets {
            let latest = options.latest(epoch);
            steps.extend(layers_of(graph, target).map(|step| (step, latest)));
        }
        let (made, received) = unbounded_channel();
        let (growing, unwanted) = (Arc::default(), Arc::default());
        let packer = Packer {
            images: images.clone(),
            options: options.clone(),
            growing: Arc::clone(&growing),
            unwanted: Arc::clone(&unwanted),
        };
        let work = tokio::spawn(packer.run(received));
        Self { steps, compression: options.compression, made, growing, unwanted, work }
    }

    /// Whom the solver tells of what it makes.
    pub(crate) fn watcher(&self) -> MadeWatcher {
        let (steps, made) = (self.steps.clone(), self.made.clone());
        Arc::new(move |step, tree| {
            if let Some(&latest) = steps.get(&step) {
                // Without a packer the exporter does it.
                let _ = made.send(Made { tree: tree.clone(), latest });
            }
        })
    }

    /// The blobs in this compression that have begun and are not done.
    pub(crate) fn growing(&self, compression: Compression) -> Vec<Growing> {
        if compression != self.compression {
            return Vec::new();
        }
        let growing = self.growing.lock().unwrap_or_else(PoisonError::into_inner);
        growing.iter().filter(|blob| blob.end().is_none()).cloned().collect()
    }
}

impl Drop for Packing {
    fn drop(&mut self) {
        self.unwanted.store(true, Ordering::Relaxed);
        self.work.abort();
    }
}

/// The steps that make the layers of `target`, but for those of base images.
fn layers_of(graph: &Graph, target: VertexId) -> impl Iterator<Item = VertexId> {
    std::iter::successors(Some(target), |step| graph.inputs(*step).first().copied())
        .take_while(|step| matches!(graph.vertex(*step).op, Op::Run(_) | Op::File(_) | Op::Merge))
}

/// What the task of a [`Packing`] has.
struct Packer {
    images: Images,
    options: ImageOptions,
    growing: Arc<Mutex<Vec<Growing>>>,
    unwanted: Arc<AtomicBool>,
}

impl Packer {
    async fn run(self, mut received: UnboundedReceiver<Made>) {
        let made = futures::stream::poll_fn(|context| received.poll_recv(context));
        made.for_each_concurrent(AT_ONCE, |made| self.pack(made)).await;
    }

    /// Packs the last layer. What goes wrong here goes wrong again for who exports the image, and
    /// is told there.
    async fn pack(&self, made: Made) {
        let growing = Arc::clone(&self.growing);
        let begun = move |blob| growing.lock().unwrap_or_else(PoisonError::into_inner).push(blob);
        let unwanted = Some(Arc::clone(&self.unwanted));
        let watch = Watch { begun: Some(Box::new(begun)), unwanted };
        let task = Reporter::new(Arc::new(Silent)).start("pack");
        let packed =
            image::pack_last(&self.images, &self.options, made.latest, &made.tree, watch, &task);
        if let Err(error) = packed.await {
            tracing::debug!(%error, "a layer was not packed beside the build");
        }
    }
}

#[cfg(test)]
mod tests {
    use rbuild_solver::graph::{FileOp, Vertex};

    use super::*;

    #[test]
    fn the_layers_of_a_target_are_those_of_its_own_steps() {
        let mut graph = Graph::new();
        let file = || Op::File(FileOp { actions: Vec::new() });
        let scratch = graph.add(Vertex::internal(Op::Scratch, "scratch"), &[]);
        let other = graph.add(Vertex::internal(file(), "other"), &[scratch]);
        let first = graph.add(Vertex::internal(file(), "first"), &[scratch]);
        let linked = graph.add(Vertex::internal(file(), "linked"), &[scratch, other]);
        let merged = graph.add(Vertex::internal(Op::Merge, "merged"), &[first, linked]);
        let last = graph.add(Vertex::internal(file(), "last"), &[merged, other]);
        assert_eq!(layers_of(&graph, last).collect::<Vec<_>>(), [last, merged, first]);
        assert_eq!(layers_of(&graph, scratch).count(), 0);
    }
}
