//! Tars as nobody well-meaning makes them, and images of them.

use std::path::Path;

use rbuild_cache::digest::Digest;
use serde_json::{Value, json};

/// Entries in the form that tests are written in, as a tar with its end:
///
/// `path=data` a file, `path/` a folder, `path->target` a symbolic link, `path=>target` a hard
/// link, `path|` a FIFO, `path%` a device 1:3; after `@MODE:` with that mode.
pub(crate) fn tar(entries: &[&str]) -> Vec<u8> {
    let mut tar: Vec<u8> = entries.iter().flat_map(|text| entry(text)).collect();
    tar.resize(tar.len() + 1024, 0);
    tar
}

/// One of them.
pub(crate) fn entry(text: &str) -> Vec<u8> {
    let (mode, text) = match text.strip_prefix('@').and_then(|rest| rest.split_once(':')) {
        Some((mode, rest)) => (u32::from_str_radix(mode, 8).unwrap(), rest),
        None => (0o755, text),
    };
    if let Some((path, target)) = text.split_once("->") {
        header(b'2', path, target, b"", mode)
    } else if let Some((path, target)) = text.split_once("=>") {
        header(b'1', path, target, b"", mode)
    } else if let Some((path, data)) = text.split_once('=') {
        header(b'0', path, "", data.as_bytes(), mode)
    } else if let Some(path) = text.strip_suffix('|') {
        header(b'6', path, "", b"", mode)
    } else if let Some(path) = text.strip_suffix('%') {
        header(b'3', path, "", b"", mode)
    } else {
        header(b'5', text, "", b"", mode)
    }
}

/// An entry of any type, with what follows its header. A long name or target becomes PAX records.
pub(crate) fn header(kind: u8, path: &str, link: &str, data: &[u8], mode: u32) -> Vec<u8> {
    let mut records = String::new();
    if path.len() > 100 {
        records += &record("path", path);
    }
    if link.len() > 100 {
        records += &record("linkpath", link);
    }
    let mut bytes = if records.is_empty() { Vec::new() } else { pax(&records) };
    let short = |text: &str| text.as_bytes()[..text.len().min(100)].to_vec();
    bytes.extend(block(kind, &short(path), &short(link), data.len() as u64, mode));
    bytes.extend_from_slice(data);
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes
}

/// A PAX header with `records`, which hold for the entry after it.
pub(crate) fn pax(records: &str) -> Vec<u8> {
    let mut bytes = block(b'x', b"PaxHeaders/x", b"", records.len() as u64, 0o644);
    bytes.extend_from_slice(records.as_bytes());
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes
}

/// `LENGTH NAME=VALUE\n`
pub(crate) fn record(name: &str, value: &str) -> String {
    let rest = format!(" {name}={value}\n");
    let mut length = rest.len() + 1;
    while length != rest.len() + length.to_string().len() {
        length = rest.len() + length.to_string().len();
    }
    format!("{length}{rest}")
}

/// A header's 512 bytes.
pub(crate) fn block(kind: u8, path: &[u8], link: &[u8], size: u64, mode: u32) -> Vec<u8> {
    let mut block = vec![0; 512];
    block[..path.len()].copy_from_slice(path);
    let mut set = |at: usize, text: String| {
        block[at..at + text.len()].copy_from_slice(text.as_bytes());
    };
    set(100, format!("{mode:07o}"));
    set(108, "0000000".to_owned());
    set(116, "0000000".to_owned());
    set(124, format!("{size:011o}"));
    set(136, format!("{:011o}", 1_000_000));
    set(148, "        ".to_owned());
    set(257, "ustar\0".to_owned());
    set(263, "00".to_owned());
    if kind == b'3' {
        set(329, "0000001".to_owned());
        set(337, "0000003".to_owned());
    }
    block[156] = kind;
    block[157..157 + link.len()].copy_from_slice(link);
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    block
}

/// An image of `layers`, uncompressed, as an OCI layout.
pub(crate) struct HostileImage {
    /// The layers' tars.
    pub(crate) layers: Vec<Vec<u8>>,
    pub(crate) config: Value,
    /// The manifest; its layers and config are filled in.
    pub(crate) manifest: Value,
}

impl HostileImage {
    pub(crate) fn new(layers: Vec<Vec<u8>>) -> Self {
        let ids: Vec<String> = layers.iter().map(|layer| Digest::of(layer).to_string()).collect();
        let config = json!({
            "architecture": "amd64", "os": "linux", "config": {},
            "rootfs": { "type": "layers", "diff_ids": ids },
        });
        let manifest = json!({
            "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        });
        Self { layers, config, manifest }
    }

    /// Writes it to `folder`, and returns the digests of manifest, config and layers.
    pub(crate) fn write(&self, folder: &Path) -> Vec<Digest> {
        let layers: Vec<Value> = self
            .layers
            .iter()
            .map(|layer| describe(folder, "application/vnd.oci.image.layer.v1.tar", layer))
            .collect();
        let config = serde_json::to_vec(&self.config).unwrap();
        let config = describe(folder, "application/vnd.oci.image.config.v1+json", &config);
        let mut manifest = self.manifest.clone();
        manifest["config"] = config.clone();
        manifest["layers"] = Value::Array(layers.clone());
        let manifest = serde_json::to_vec(&manifest).unwrap();
        let manifest = describe(folder, "application/vnd.oci.image.manifest.v1+json", &manifest);
        write_index(folder, std::slice::from_ref(&manifest));
        [manifest, config].iter().chain(&layers).map(digest_of).collect()
    }
}

/// Writes `index.json` and `oci-layout`.
pub(crate) fn write_index(folder: &Path, manifests: &[Value]) {
    let index = json!({ "schemaVersion": 2, "manifests": manifests });
    fs_err::create_dir_all(folder).unwrap();
    fs_err::write(folder.join("index.json"), index.to_string()).unwrap();
    fs_err::write(folder.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
}

/// Writes a blob and returns its descriptor.
pub(crate) fn describe(folder: &Path, media_type: &str, bytes: &[u8]) -> Value {
    let digest = Digest::of(bytes);
    let path = blob_path(folder, &digest);
    fs_err::create_dir_all(path.parent().unwrap()).unwrap();
    fs_err::write(path, bytes).unwrap();
    json!({ "mediaType": media_type, "digest": digest.to_string(), "size": bytes.len() })
}

/// Where a layout keeps a blob.
pub(crate) fn blob_path(folder: &Path, digest: &Digest) -> std::path::PathBuf {
    folder.join("blobs/sha256").join(digest.hex())
}

fn digest_of(descriptor: &Value) -> Digest {
    descriptor["digest"].as_str().unwrap().parse().unwrap()
}
