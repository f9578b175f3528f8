//! An image as an OCI layout (image-spec, image-layout.md): as a tar ([`super::layout_tar`]), or in a
//! folder.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::Path;

use rbuild_cache::digest::Digest;
use rbuild_cache::layout::{CONTAINERD_NAME, REF_NAME};
use rbuild_cache::oci::{Descriptor, ImageRef, Index, MediaType};
use rbuild_cache::state::StateFolder;
use rbuild_frontend::image_config::Timestamp;

use super::ExportError;
use super::layout_tar::LayoutTar;
use crate::image::WrittenImage;
use crate::layout_folder::LayoutFolder;

const LAYOUT: &[u8] = br#"{"imageLayoutVersion":"1.0.0"}"#;
const CREATED: &str = "org.opencontainers.image.created";

/// The descriptors by which a layout's index names an image: one for each name.
pub(super) fn named(image: &WrittenImage, names: &[ImageRef], created: i64) -> Vec<Descriptor> {
    let mut root = image.root.clone();
    root.annotations
        .entry(CREATED.into())
        .or_insert_with(|| Timestamp::from_seconds(created).to_string());
    if names.is_empty() {
        return vec![root];
    }
    names.iter().map(|name| called(&root, name)).collect()
}

/// The descriptor by which a layout's index calls an image `name`, as containerd has it.
pub(crate) fn called(root: &Descriptor, name: &ImageRef) -> Descriptor {
    let mut root = root.clone();
    let tag = name.tag().map_or_else(|| name.to_string(), str::to_owned);
    root.annotations.insert(CONTAINERD_NAME.into(), name.to_string());
    root.annotations.insert(REF_NAME.into(), tag);
    root
}

fn index_of(manifests: Vec<Descriptor>) -> Vec<u8> {
    let index = Index {
        schema_version: 2,
        media_type: Some(MediaType::OciIndex),
        manifests,
        annotations: BTreeMap::new(),
    };
    serde_json::to_vec(&index).expect("an index has string keys only")
}

/// What a layout holds.
#[derive(Clone, Debug, Default)]
pub(crate) struct LayoutContent {
    /// Configs, layers and manifests, by the hexadecimal digits of their digests.
    blobs: BTreeMap<String, Descriptor>,
    /// What its index names.
    images: Vec<Descriptor>,
}

impl LayoutContent {
    /// One image, named by `images`.
    pub(super) fn of(written: &WrittenImage, images: Vec<Descriptor>) -> Self {
        let mut content = Self::default();
        let manifests = written.manifests.iter().map(|(descriptor, _)| descriptor);
        content.add(written.blobs.iter().chain(manifests), images);
        for referrer in &written.referrers {
            let blobs = referrer.blobs.iter().chain([&referrer.descriptor]);
            content.add(blobs, [referrer.descriptor.clone()]);
        }
        content
    }

    /// Adds what an image consists of, and the descriptors by which the index names it.
    pub(super) fn add<'a>(
        &mut self,
        blobs: impl IntoIterator<Item = &'a Descriptor>,
        images: impl IntoIterator<Item = Descriptor>,
    ) {
        self.blobs.extend(blobs.into_iter().map(|blob| (blob.digest.hex(), blob.clone())));
        for image in images {
            if !self.images.contains(&image) {
                self.images.push(image);
            }
        }
    }

    /// Leaves out blobs that the reader is known to have.
    pub(super) fn remove(&mut self, digests: &[Digest]) {
        for digest in digests {
            self.blobs.remove(&digest.hex());
        }
    }

    /// The blobs that are written. A layer that is to be had elsewhere only (a foreign one) is left
    /// out where it was never fetched.
    fn written(&self, state: &StateFolder) -> Result<Vec<(&str, &Descriptor)>, ExportError> {
        let mut written = Vec::with_capacity(self.blobs.len());
        for (hex, blob) in &self.blobs {
            let elsewhere = matches!(blob.media_type, MediaType::Foreign(_));
            if !elsewhere || state.blobs().contains_whole(blob)? {
                written.push((hex.as_str(), blob));
            }
        }
        Ok(written)
    }
}

/// Writes the layout as a tar. `more` are further files at its top, by name.
pub(super) fn write_tar<W: Write>(
    state: &StateFolder,
    content: &LayoutContent,
    more: &[(&str, Vec<u8>)],
    out: W,
) -> Result<W, ExportError> {
    finish_tar(state, content, more, LayoutTar::new(out)?)
}

/// Writes what is missing in `tar`, and its end.
pub(super) fn finish_tar<W: Write>(
    state: &StateFolder,
    content: &LayoutContent,
    more: &[(&str, Vec<u8>)],
    tar: LayoutTar<W>,
) -> Result<W, ExportError> {
    let mut files =
        vec![("index.json", index_of(content.images.clone())), ("oci-layout", LAYOUT.to_vec())];
    files.extend(more.iter().map(|(name, bytes)| (*name, bytes.clone())));
    files.sort_unstable_by_key(|(name, _)| *name);
    let blobs = content.written(state)?;
    tar.finish(state, blobs.into_iter().map(|(_, blob)| blob), &files)
}

/// Adds the images to the layout in `folder`, which is made if it is missing. Images that are there
/// stay, but for their names where a new one has the same.
pub(super) fn write_folder(
    state: &StateFolder,
    content: &LayoutContent,
    folder: &Path,
) -> Result<(), ExportError> {
    let names = &content.images;
    let layout = LayoutFolder::make(folder)?;
    for (_, blob) in content.written(state)? {
        layout.add(state.blobs(), blob)?;
    }
    let index = layout.index();
    let mut manifests = match fs_err::read(&index) {
        Ok(bytes) => {
            serde_json::from_slice::<Index>(&bytes)
                .map_err(|e| io::Error::other(format!("`{}`: {e}", index.display())))?
                .manifests
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(e) => return Err(e.into()),
    };
    manifests.retain(|old| {
        let name = old.annotations.get(REF_NAME);
        names.iter().all(|new| new.digest != old.digest || new.annotations.get(REF_NAME) != name)
            && (name.is_none() || names.iter().all(|new| new.annotations.get(REF_NAME) != name))
    });
    manifests.extend(names.iter().cloned());
    Ok(layout.set_index(&index_of(manifests))?)
}
