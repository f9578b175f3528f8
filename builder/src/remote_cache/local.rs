//! `type=local`: caches in a folder, which is an OCI layout (image-spec, image-layout.md) and a set:
//! what its index does not name goes, so that a folder that a CI keeps from run to run does not grow.
//!
//! Several builds may write to one folder: one at a time, under a lock on the folder itself. Who
//! reads meanwhile may find a blob gone, and runs that step.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;
use std::path::{Path, PathBuf};

use fs_err::File;
use rbuild_cache::digest::Digest;
use rbuild_cache::layout::REF_NAME;
use rbuild_cache::oci::{Descriptor, Index, MediaType};
use rbuild_cache::state::StateFolder;
use rbuild_cache::store::StoreError;
use rbuild_solver::image_source::ImageSourceError;
use rbuild_solver::progress::Task;
use rbuild_solver::remote_cache::RemoteResult;
use rustix::fs::{FlockOperation, flock};

use super::export::CacheContent;
use super::import::{self, ImportError};
use crate::image_document::{self, Document};
use crate::image_source::Images;
use crate::layout_folder::LayoutFolder;
use crate::oci_layout::{LayoutReference, OciLayout, OciLayoutError};

/// Says why a folder could not be written.
#[derive(Debug, thiserror::Error)]
pub enum LocalError {
    /// The folder is something else than a layout.
    #[error(transparent)]
    Layout(#[from] OciLayoutError),
    /// A layer is damaged.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The disk failed.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// What the cache in `folder` says.
pub(super) async fn results(
    folder: &Path,
    digest: Option<Digest>,
    tag: &str,
) -> Result<Vec<RemoteResult>, ImportError> {
    let folder = std::path::absolute(folder).unwrap_or_else(|_| folder.to_owned());
    let missing = |path: &str| !folder.join(path).exists();
    if missing("oci-layout") || missing("index.json") {
        return Err(ImportError::Missing);
    }
    let layout = OciLayout::open(&folder).map_err(ImageSourceError::from)?;
    let reference = LayoutReference { path: folder.clone(), tag: Some(tag.to_owned()), digest };
    let root = match layout.find(&reference) {
        Err(OciLayoutError::NoImage { .. }) => return Err(ImportError::Missing),
        found => found.map_err(ImageSourceError::from)?,
    };
    import::results(&layout, &root, &Images::in_layout(&folder)).await
}

/// Brings the layers of `content` here that are elsewhere.
pub(super) async fn fetch(
    images: &Images,
    content: &CacheContent,
    locations: &HashMap<Digest, String>,
    task: &Task,
) -> Result<(), ImageSourceError> {
    for layer in &content.layers {
        if let Some(location) = locations.get(&layer.digest) {
            images.fetch_blob(location, layer, task).await?;
        }
    }
    Ok(())
}

/// Writes `content` into `folder` as its cache called `tag`, and removes what its index does not
/// name any more, unless that is to be kept.
pub(super) fn write(
    state: &StateFolder,
    folder: &Path,
    tag: &str,
    keep: bool,
    content: &CacheContent,
) -> Result<(), LocalError> {
    let layout = LayoutFolder::make(folder)?;
    let lock = File::open(folder)?;
    flock(&lock, FlockOperation::LockExclusive).map_err(io::Error::from)?;
    for layer in &content.layers {
        layout.add(state.blobs(), layer)?;
    }
    let documents = content.manifests.iter().chain([&content.config]);
    for (descriptor, bytes) in documents {
        layout.put(&descriptor.digest, bytes)?;
    }
    let mut index = read_index(&layout.index())?;
    let is_called = |d: &Descriptor| d.annotations.get(REF_NAME).is_some_and(|name| name == tag);
    index.manifests.retain(|descriptor| !is_called(descriptor));
    if let Some((root, _)) = content.manifests.last() {
        let mut root = root.clone();
        root.annotations.insert(REF_NAME.into(), tag.to_owned());
        index.manifests.push(root);
    }
    let bytes = serde_json::to_vec(&index).expect("an index has string keys only");
    layout.set_index(&bytes)?;
    if !keep {
        sweep(folder, &index)?;
    }
    Ok(())
}

fn read_index(path: &Path) -> Result<Index, LocalError> {
    match fs_err::read(path) {
        Ok(bytes) => Ok(serde_json::from_slice(&bytes)
            .map_err(|e| io::Error::other(format!("`{}`: {e}", path.display())))?),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Index {
            schema_version: 2,
            media_type: Some(MediaType::OciIndex),
            manifests: Vec::new(),
            annotations: BTreeMap::new(),
        }),
        Err(e) => Err(e.into()),
    }
}

/// Removes the blobs that `index` does not lead to. If part of it cannot be read, nobody knows what
/// that would lead to, and nothing is removed.
fn sweep(folder: &Path, index: &Index) -> Result<(), LocalError> {
    let layout = OciLayout::open(folder)?;
    let mut named = HashSet::new();
    for descriptor in &index.manifests {
        if let Err(error) = collect(&layout, descriptor, &mut named, 0) {
            tracing::warn!(%error, folder = %folder.display(), "nothing is removed");
            return Ok(());
        }
    }
    for entry in fs_err::read_dir(folder.join("blobs/sha256"))? {
        let entry = entry?;
        let name = entry.file_name();
        let is_named = name.to_str().is_some_and(|name| named.contains(name));
        if !is_named && entry.file_type()?.is_file() {
            remove(&entry.path())?;
        }
    }
    Ok(())
}

fn remove(path: &PathBuf) -> io::Result<()> {
    match fs_err::remove_file(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done,
    }
}

/// Adds the names of all blobs that `descriptor` leads to.
fn collect(
    layout: &OciLayout,
    descriptor: &Descriptor,
    named: &mut HashSet<String>,
    depth: usize,
) -> io::Result<()> {
    if depth > image_document::DEEPEST {
        return Err(io::Error::other(image_document::DocumentError::Deep));
    }
    named.insert(descriptor.digest.hex());
    if !descriptor.media_type.is_index() && !descriptor.media_type.is_manifest() {
        return Ok(());
    }
    let bytes = layout.read(descriptor).map_err(io::Error::other)?;
    match image_document::parse(descriptor, &bytes).map_err(io::Error::other)? {
        Document::Index(index) => {
            index.manifests.iter().try_for_each(|child| collect(layout, child, named, depth + 1))
        }
        Document::Manifest(manifest) => {
            named.insert(manifest.config.digest.hex());
            named.extend(manifest.layers.iter().map(|layer| layer.digest.hex()));
            Ok(())
        }
    }
}
