//! An image as an OCI layout (image-spec, image-layout.md): as a tar, like containerd's
//! `core/images/archive/exporter.go` writes it, or in a folder.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::path::Path;

use rbuild_cache::layer::tar_reader::{TarEntry, TarKind};
use rbuild_cache::layer::tar_writer::TarWriter;
use rbuild_cache::layout::{CONTAINERD_NAME, REF_NAME};
use rbuild_cache::oci::{Descriptor, ImageRef, Index, MediaType};
use rbuild_cache::state::StateFolder;
use rbuild_frontend::image_config::Timestamp;

use super::ExportError;
use crate::image::WrittenImage;

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
    let name = |name: &ImageRef| {
        let mut root = root.clone();
        let tag = name.tag().map_or_else(|| name.to_string(), str::to_owned);
        root.annotations.insert(CONTAINERD_NAME.into(), name.to_string());
        root.annotations.insert(REF_NAME.into(), tag);
        root
    };
    names.iter().map(name).collect()
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

/// All that an image's blobs are: configs, layers, manifests.
fn all_blobs(image: &WrittenImage) -> BTreeMap<String, &Descriptor> {
    let manifests = image.manifests.iter().map(|(descriptor, _)| descriptor);
    let blobs = image.blobs.iter().chain(manifests);
    blobs.map(|blob| (blob.digest.hex(), blob)).collect()
}

/// Writes the image as a tar. `more` are further files at its top, by name.
pub(super) fn write_tar(
    state: &StateFolder,
    image: &WrittenImage,
    names: Vec<Descriptor>,
    more: &[(&str, Vec<u8>)],
    out: impl Write,
) -> Result<(), ExportError> {
    let mut tar = TarWriter::new(out);
    tar.entry(&entry("blobs", TarKind::Folder, 0o755))?;
    tar.entry(&entry("blobs/sha256", TarKind::Folder, 0o755))?;
    for (hex, blob) in all_blobs(image) {
        let size = blob.size;
        tar.entry(&entry(&format!("blobs/sha256/{hex}"), TarKind::File { size }, 0o444))?;
        let mut reader = state.blobs().reader(blob)?;
        let written = tar.data(&mut reader, size)?;
        // Only the end says that all of it was right.
        if written != size || reader.read(&mut [0])? > 0 {
            return Err(io::Error::other(format!("blob `{}` changed", blob.digest)).into());
        }
    }
    let mut files = vec![("index.json", index_of(names)), ("oci-layout", LAYOUT.to_vec())];
    files.extend(more.iter().map(|(name, bytes)| (*name, bytes.clone())));
    files.sort_unstable_by_key(|(name, _)| *name);
    for (name, bytes) in files {
        let size = bytes.len() as u64;
        tar.entry(&entry(name, TarKind::File { size }, 0o444))?;
        tar.data(&mut &bytes[..], size)?;
    }
    tar.finish()?;
    Ok(())
}

fn entry(path: &str, kind: TarKind, mode: u32) -> TarEntry {
    let path = path.as_bytes().to_vec();
    TarEntry { path, kind, mode, uid: 0, gid: 0, mtime: (0, 0), xattrs: Vec::new() }
}

/// Adds the image to the layout in `folder`, which is made if it is missing. Images that are there
/// stay, but for their names where this one has the same.
pub(super) fn write_folder(
    state: &StateFolder,
    image: &WrittenImage,
    names: Vec<Descriptor>,
    folder: &Path,
) -> Result<(), ExportError> {
    let blobs = folder.join("blobs/sha256");
    fs_err::create_dir_all(&blobs)?;
    for (hex, blob) in all_blobs(image) {
        let place = blobs.join(&hex);
        if fs_err::metadata(&place).is_ok_and(|there| there.len() == blob.size) {
            continue;
        }
        let mut reader = state.blobs().reader(blob)?;
        replace(&place, |file| io::copy(&mut reader, file).map(drop))?;
    }
    let index = folder.join("index.json");
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
    manifests.extend(names);
    replace(&folder.join("oci-layout"), |file| file.write_all(LAYOUT))?;
    replace(&index, |file| file.write_all(&index_of(manifests)))?;
    Ok(())
}

/// Writes a file beside its place and renames it.
fn replace(place: &Path, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let folder = place.parent().unwrap_or(Path::new("."));
    let mut file = tempfile::Builder::new()
        .permissions(std::fs::Permissions::from_mode(0o666))
        .tempfile_in(folder)?;
    write(&mut file)?;
    file.persist(place)?;
    Ok(())
}
