//! Looking into what rbuild wrote: OCI archives and layouts, tar files.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use serde_json::Value;
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;

use crate::rbuild::{json, scratch};

/// An OCI archive with one image, unpacked to a layout whose every blob matches its digest.
pub(crate) struct OciArchive {
    pub(crate) folder: TempDir,
    /// The digest of the manifest, as `index.json` has it.
    pub(crate) digest: String,
    pub(crate) manifest: Value,
    pub(crate) config: Value,
}

impl OciArchive {
    #[track_caller]
    pub(crate) fn open(path: &Path) -> Self {
        let folder = scratch();
        tar::Archive::new(fs_err::File::open(path).unwrap()).unpack(folder.path()).unwrap();
        let index = json(folder.path().join("index.json"));
        let manifests = index["manifests"].as_array().unwrap();
        assert_eq!(manifests.len(), 1, "images in {index}");
        let digest = manifests[0]["digest"].as_str().unwrap().to_owned();
        let manifest: Value = serde_json::from_slice(&blob(folder.path(), &manifests[0])).unwrap();
        let config = serde_json::from_slice(&blob(folder.path(), &manifest["config"])).unwrap();
        for layer in manifest["layers"].as_array().unwrap() {
            blob(folder.path(), layer);
        }
        Self { folder, digest, manifest, config }
    }

    /// The digest that the archive's index names: of a manifest or an index.
    #[track_caller]
    pub(crate) fn open_root(path: &Path) -> String {
        let files = tar_files(fs_err::File::open(path).unwrap());
        let index: Value = serde_json::from_slice(&files["index.json"]).unwrap();
        index["manifests"][0]["digest"].as_str().unwrap().to_owned()
    }

    /// The number of layers.
    pub(crate) fn layers(&self) -> usize {
        self.manifest["layers"].as_array().unwrap().len()
    }

    /// The names in the last layer, folders with a slash at the end.
    pub(crate) fn names_in_last_layer(&self) -> Vec<String> {
        let layer = self.manifest["layers"].as_array().unwrap().last().unwrap();
        let bytes = blob(self.folder.path(), layer);
        let tar = flate2::read::MultiGzDecoder::new(&bytes[..]);
        tar_files(tar).into_keys().collect()
    }
}

/// A blob that a descriptor names; its size and digest are checked.
#[track_caller]
fn blob(layout: &Path, descriptor: &Value) -> Vec<u8> {
    let digest = descriptor["digest"].as_str().unwrap();
    let hex = digest.strip_prefix("sha256:").unwrap();
    let bytes = fs_err::read(layout.join("blobs/sha256").join(hex)).unwrap();
    assert_eq!(bytes.len() as u64, descriptor["size"], "size of {digest}");
    assert_eq!(hex::encode(Sha256::digest(&bytes)), hex);
    bytes
}

/// What a tar holds: regular files by name with their bytes, everything else with none.
pub(crate) fn tar_files(tar: impl std::io::Read) -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    for entry in tar::Archive::new(tar).entries().unwrap() {
        let mut entry = entry.unwrap();
        let name = entry.path().unwrap().to_str().unwrap().trim_start_matches("./").to_owned();
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).unwrap();
        files.insert(name, bytes);
    }
    files
}

/// The digest of what a folder holds: names, kinds, modes and bytes; no times.
pub(crate) fn digest_of_tree(folder: &Path) -> String {
    fn add(folder: &Path, hasher: &mut Sha256) {
        let mut entries: Vec<_> = fs_err::read_dir(folder).unwrap().map(Result::unwrap).collect();
        entries.sort_by_key(fs_err::DirEntry::file_name);
        for entry in entries {
            let metadata = entry.metadata().unwrap();
            hasher.update(entry.file_name().as_encoded_bytes());
            hasher.update(metadata.mode().to_le_bytes());
            if metadata.is_dir() {
                add(&entry.path(), hasher);
            } else if metadata.is_symlink() {
                let target = fs_err::read_link(entry.path()).unwrap();
                hasher.update(target.as_os_str().as_encoded_bytes());
            } else if metadata.is_file() {
                hasher.update(Sha256::digest(fs_err::read(entry.path()).unwrap()));
            }
            hasher.update(b"\n");
        }
    }
    let mut hasher = Sha256::new();
    add(folder, &mut hasher);
    hex::encode(hasher.finalize())
}
