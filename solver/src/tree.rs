//! What a vertex results in: a tree, as the list of its layers, or a folder of the caller.

use std::path::PathBuf;
use std::sync::Arc;

use rbuild_cache::digest::{Hasher, TreeDigest};
use rbuild_cache::snapshot::Snapshot;

use crate::graph::ImageLayer;
use crate::remote_cache::RemoteLayer;

/// A file tree: layers, lowest first. Layers of base images need not be here yet.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Tree {
    /// The layers, lowest first.
    pub layers: Vec<TreeLayer>,
}

/// One layer of a [`Tree`].
#[derive(Clone, Debug, PartialEq)]
pub enum TreeLayer {
    /// Of a base image: fetched and unpacked when somebody reads it.
    Image {
        /// The layer.
        layer: Arc<ImageLayer>,
        /// The image's [`crate::graph::ImageOp::location`].
        location: Arc<str>,
    },
    /// Made by a step.
    Snapshot(Snapshot),
    /// Made by a step elsewhere: fetched, unpacked and checked when somebody reads it.
    Remote(Arc<RemoteLayer>),
}

impl Tree {
    /// What the tree contains, without times. Equal for trees that look alike and consist of the
    /// same layers, so that a step which ran again and made the same files changes nothing below.
    pub fn digest(&self) -> TreeDigest {
        let mut hasher = Hasher::new();
        for layer in &self.layers {
            match layer {
                TreeLayer::Image { layer, .. } => {
                    hasher.field("diff id");
                    hasher.field(layer.diff_id.0.as_bytes());
                }
                TreeLayer::Snapshot(snapshot) => {
                    hasher.field("content");
                    hasher.field(snapshot.content.0.as_bytes());
                }
                TreeLayer::Remote(remote) => {
                    hasher.field("content");
                    hasher.field(remote.result.content.0.as_bytes());
                }
            }
        }
        TreeDigest(hasher.digest())
    }

    /// The tree with one more layer on top.
    #[must_use]
    pub fn with(self, snapshot: Snapshot) -> Self {
        self.with_layer(TreeLayer::Snapshot(snapshot))
    }

    /// The tree with one more layer on top, wherever that is.
    #[must_use]
    pub fn with_layer(mut self, layer: TreeLayer) -> Self {
        self.layers.push(layer);
        self
    }
}

/// What a vertex results in.
#[derive(Clone, Debug)]
pub enum Output {
    /// A tree in the state folder.
    Tree(Tree),
    /// A folder of the caller, of which a step reads only what it names.
    Folder(Folder),
}

/// A folder of the caller, and what of it builds may see.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Folder {
    /// The name of the context, for its memo of checksums.
    pub name: String,
    /// Where it is.
    pub root: PathBuf,
    /// Patterns of `.dockerignore`.
    pub ignore: Vec<String>,
}
