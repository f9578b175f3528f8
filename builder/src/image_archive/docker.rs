//! Docker's older form: `manifest.json` names configs and layers by path (moby, image/tarexport).
//!
//! It has no manifests. One is made of what there is, with OCI's media types; the config, and with
//! it the image's ID, stays what it was.

use std::collections::{BTreeMap, HashMap};

use rbuild_cache::digest::{DiffId, Digest};
use rbuild_cache::layer::{self, Compression, compress::Format, decompress};
use rbuild_cache::limits::{Bounded, Limit};
use rbuild_cache::oci::{Descriptor, ImageRef, Manifest, MediaType};
use rbuild_cache::state::StateFolder;
use serde::Deserialize;

use super::entry::{Entries, Form, StoredFile};
use super::{ArchiveError, ArchivedImage, check_layers, document, syntax};
use crate::image_document;

/// One image of `manifest.json`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Listed {
    config: String,
    repo_tags: Option<Vec<String>>,
    layers: Option<Vec<String>>,
}

/// The images that `list` names.
pub(super) fn images(
    state: &StateFolder,
    list: &[u8],
    entries: &Entries,
) -> Result<Vec<ArchivedImage>, ArchiveError> {
    let list: Vec<Listed> =
        serde_json::from_slice(list).map_err(|error| syntax("manifest.json", &error))?;
    if list.is_empty() {
        return Err(ArchiveError::NoImages);
    }
    let mut layers = Layers { state, known: HashMap::new() };
    list.into_iter().map(|listed| image(&mut layers, listed, entries)).collect()
}

fn image(
    layers: &mut Layers<'_>,
    listed: Listed,
    entries: &Entries,
) -> Result<ArchivedImage, ArchiveError> {
    let state = layers.state;
    let file =
        |path: &str| entries.file(path).ok_or_else(|| ArchiveError::Missing(path.to_owned()));
    let config = file(&listed.config)?;
    let config = Descriptor::new(MediaType::OciConfig, config.digest, config.size);
    let bytes = document(state, &config)?;
    let (platform, diff_ids) = image_document::read_config(&config, &bytes)?;
    let paths = listed.layers.unwrap_or_default();
    check_layers(state, paths.len())?;
    let mut manifest = Manifest {
        schema_version: 2,
        media_type: Some(MediaType::OciManifest),
        config,
        layers: Vec::with_capacity(paths.len()),
        annotations: BTreeMap::new(),
    };
    for (position, path) in paths.iter().enumerate() {
        let diff_id = diff_ids.get(position);
        manifest.layers.push(layers.layer(path, file(path)?, diff_id)?);
    }
    image_document::check_config(&manifest, &bytes)?;
    let json = serde_json::to_vec(&manifest).expect("a manifest has string keys only");
    state.blobs().put(&json)?;
    let mut root = Descriptor::of(MediaType::OciManifest, &json);
    root.platform = platform;
    let tags = listed.repo_tags.unwrap_or_default();
    // What is called `<none>:<none>` has no name.
    let names: Vec<ImageRef> = tags.iter().filter_map(|tag| tag.parse().ok()).collect();
    Ok(ArchivedImage { root, names, tag: None })
}

/// Layers as they are stored.
struct Layers<'a> {
    state: &'a StateFolder,
    /// By the digests of their files. Images may name one a thousand times: it is unpacked once.
    known: HashMap<Digest, (DiffId, Descriptor)>,
}

impl Layers<'_> {
    /// The layer at `path`; that it is the one that the config names is checked.
    fn layer(
        &mut self,
        path: &str,
        file: &StoredFile,
        expected: Option<&DiffId>,
    ) -> Result<Descriptor, ArchiveError> {
        if !self.known.contains_key(&file.digest) {
            self.known.insert(file.digest, stored(self.state, file)?);
        }
        let (found, descriptor) = self.known[&file.digest].clone();
        match expected {
            Some(expected) if *expected != found => Err(ArchiveError::DiffId {
                file: path.to_owned(),
                found: found.to_string(),
                expected: expected.to_string(),
            }),
            _ => Ok(descriptor),
        }
    }
}

/// What a layer unpacks to, and its blob in a form that registries know.
fn stored(state: &StateFolder, file: &StoredFile) -> Result<(DiffId, Descriptor), ArchiveError> {
    let diff_id = match file.form {
        Form::Gzipped(diff_id) => diff_id,
        Form::AsItCame(None) => DiffId(file.digest),
        Form::AsItCame(Some(_)) => {
            let stream = decompress(state.blobs().open(&file.digest)?)?;
            let stream = Bounded::new(stream, state.limits(), Limit::LayerSize);
            DiffId(Digest::of_stream(stream)?.0)
        }
    };
    let stored = |media_type| Descriptor::new(media_type, file.digest, file.size);
    let descriptor = match file.form {
        Form::Gzipped(_) | Form::AsItCame(Some(Format::Gzip)) => stored(MediaType::OciLayerGzip),
        Form::AsItCame(Some(Format::Zstd)) => stored(MediaType::OciLayerZstd),
        Form::AsItCame(None) => stored(MediaType::OciLayer),
        // No registry knows these.
        Form::AsItCame(Some(Format::Bzip2 | Format::Xz)) => {
            let from = stored(MediaType::OciLayer);
            layer::recompress(state, &from, &diff_id, Compression::default())?.descriptor
        }
    };
    Ok((diff_id, descriptor))
}
