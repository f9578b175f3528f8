//! Archives that every engine loads: an OCI layout with the `manifest.json` by which older readers
//! go (moby, image/tarexport; containers/image, docker/internal/tarfile).

use std::collections::BTreeMap;
use std::io;

use rbuild_cache::digest::Digest;
use rbuild_cache::oci::{Descriptor, ImageRef, Manifest, MediaType};
use rbuild_cache::state::StateFolder;
use serde_json::{Map, Value, json};

use super::ExportError;
use super::layout::{self, LayoutContent};
use super::layout_tar::LayoutTar;

/// Images on their way into one archive.
#[derive(Clone, Debug, Default)]
pub(crate) struct ImageArchive {
    content: LayoutContent,
    /// What `manifest.json` lists.
    listed: Vec<ListedImage>,
}

/// An image for one platform: `manifest.json` has no place for more.
#[derive(Clone, Debug)]
struct ListedImage {
    manifest: Manifest,
    diff_ids: Vec<String>,
    repo_tags: Vec<String>,
}

impl ImageArchive {
    /// Adds an image: all blobs and manifests that it consists of, and the descriptors by which the
    /// layout's index names it.
    pub(crate) fn add<'a>(
        &mut self,
        blobs: impl IntoIterator<Item = &'a Descriptor>,
        images: impl IntoIterator<Item = Descriptor>,
    ) {
        self.content.add(blobs, images);
    }

    /// Lists the image in `manifest.json`; `config` are the bytes of its config. One that is listed
    /// already just gets the names.
    pub(crate) fn list(&mut self, manifest: &Manifest, config: &[u8], names: &[ImageRef]) {
        let repo_tags = names.iter().filter(|name| name.tag().is_some()).map(ImageRef::familiar);
        let same = |listed: &&mut ListedImage| listed.manifest.config == manifest.config;
        if let Some(listed) = self.listed.iter_mut().find(same) {
            listed.repo_tags.extend(repo_tags);
            listed.repo_tags.dedup();
            return;
        }
        let config: Value = serde_json::from_slice(config).unwrap_or_default();
        let diff_ids = config["rootfs"]["diff_ids"].as_array().map_or(&[][..], Vec::as_slice);
        self.listed.push(ListedImage {
            manifest: manifest.clone(),
            diff_ids: diff_ids.iter().filter_map(|id| Some(id.as_str()?.to_owned())).collect(),
            repo_tags: repo_tags.collect(),
        });
    }

    /// Leaves out the bytes of layers that the reader is known to have.
    pub(crate) fn leave_out(&mut self, layers: &[Digest]) {
        self.content.remove(layers);
    }

    /// Writes it as a tar.
    pub(crate) fn write<W: io::Write>(
        &self,
        state: &StateFolder,
        out: W,
    ) -> Result<W, ExportError> {
        layout::write_tar(state, &self.content, &self.files(), out)
    }

    /// Writes what is missing in `tar`, and its end.
    pub(super) fn finish<W: io::Write>(
        &self,
        state: &StateFolder,
        tar: LayoutTar<W>,
    ) -> Result<W, ExportError> {
        layout::finish_tar(state, &self.content, &self.files(), tar)
    }

    /// The files at its top that a layout does not have.
    fn files(&self) -> Vec<(&'static str, Vec<u8>)> {
        if self.listed.is_empty() {
            return Vec::new();
        }
        let list = Value::Array(self.listed.iter().map(ListedImage::entry).collect());
        vec![("manifest.json", serde_json::to_vec(&list).expect("it has string keys only"))]
    }

    /// Adds it to the layout in `folder`, which has no `manifest.json`.
    pub(crate) fn write_folder(
        &self,
        state: &StateFolder,
        folder: &std::path::Path,
    ) -> Result<(), ExportError> {
        layout::write_folder(state, &self.content, folder)
    }
}

impl ListedImage {
    fn entry(&self) -> Value {
        let path = |blob: &Descriptor| format!("blobs/sha256/{}", blob.digest.hex());
        let layers = &self.manifest.layers;
        let mut entry = json!({
            "Config": path(&self.manifest.config),
            "RepoTags": self.repo_tags,
            "Layers": layers.iter().map(path).collect::<Vec<_>>(),
        });
        // Where layers are fetched from that are not in the archive.
        let foreign: BTreeMap<&String, &Descriptor> = (self.diff_ids.iter().zip(layers))
            .filter(|(_, layer)| matches!(layer.media_type, MediaType::Foreign(_)))
            .collect();
        if !foreign.is_empty() {
            let source = |(diff_id, layer): (&String, &Descriptor)| {
                let layer = serde_json::to_value(layer).expect("it has string keys only");
                (diff_id.clone(), layer)
            };
            entry["LayerSources"] = foreign.into_iter().map(source).collect::<Map<_, _>>().into();
        }
        entry
    }
}
