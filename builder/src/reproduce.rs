//! Whether a build makes the same image twice, and if not, what is different first.
//!
//! Layers are compared from the lowest up, and in a layer the files by path: what differs first is
//! what made the rest differ, more often than not.

use std::io::Read;

use rbuild_cache::digest::{Digest, Hasher};
use rbuild_cache::layer::decompress;
use rbuild_cache::layer::tar_reader::{FilePiece, TarEntry, TarError, TarKind, TarReader};
use rbuild_cache::oci::Manifest;
use rbuild_cache::state::StateFolder;
use rbuild_cache::store::StoreError;
use serde_json::Value;

use crate::image::WrittenImage;

/// What is different first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// In what: a layer with the step that made it, or the config.
    pub place: String,
    /// Which file, if it is in a layer.
    pub path: Option<String>,
    /// Which property of it, or which field of the config.
    pub field: String,
    /// What it was the first time.
    pub first: String,
    /// What it was the second time.
    pub second: String,
}

/// Says why images cannot be compared.
#[derive(Debug, thiserror::Error)]
pub enum CompareError {
    /// A blob is missing or damaged.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A layer cannot be read.
    #[error(transparent)]
    Tar(#[from] TarError),
    /// A document cannot be read.
    #[error("a document of the image cannot be read")]
    Document(#[from] serde_json::Error),
    /// The disk failed.
    #[error(transparent)]
    Io(#[from] std::io::Error),
}

/// An image, and where its blobs are.
#[derive(Clone, Copy, Debug)]
pub struct Made<'a> {
    /// The image.
    pub image: &'a WrittenImage,
    /// The state folder it was made in.
    pub state: &'a StateFolder,
}

/// What is different first between two images that were made by the same build; nothing if they
/// are the same.
pub fn difference(first: Made<'_>, second: Made<'_>) -> Result<Option<Difference>, CompareError> {
    if first.image.root.digest == second.image.root.digest {
        return Ok(None);
    }
    for ((one, one_bytes), (other, other_bytes)) in
        first.image.manifests.iter().zip(&second.image.manifests)
    {
        if one.digest == other.digest {
            continue;
        }
        if !one.media_type.is_manifest() {
            return Ok(json_difference("the index", one_bytes, other_bytes)?);
        }
        let manifests: [Manifest; 2] =
            [serde_json::from_slice(one_bytes)?, serde_json::from_slice(other_bytes)?];
        let config = first.state.blobs().read(&manifests[0].config)?;
        let other_config = second.state.blobs().read(&manifests[1].config)?;
        let steps = steps(&config)?;
        let layers = manifests[0].layers.iter().zip(&manifests[1].layers);
        for (position, (one, other)) in layers.enumerate() {
            if one.digest == other.digest {
                continue;
            }
            let place = match steps.get(position) {
                Some(step) => format!("layer {} (`{step}`)", position + 1),
                None => format!("layer {}", position + 1),
            };
            let streams = [first.state.blobs().reader(one)?, second.state.blobs().reader(other)?];
            let [one_stream, other_stream] = streams;
            let found = layer_difference(decompress(one_stream)?, decompress(other_stream)?)?;
            let (path, field, first, second) = found.unwrap_or_else(|| {
                let (one, other) = (one.digest.to_string(), other.digest.to_string());
                (None, "compressed bytes".to_owned(), one, other)
            });
            return Ok(Some(Difference { place, path, field, first, second }));
        }
        if let Some(found) = json_difference("the config", &config, &other_config)? {
            return Ok(Some(found));
        }
        return Ok(json_difference("the manifest", one_bytes, other_bytes)?);
    }
    let field = "number of manifests".to_owned();
    let count = |made: Made<'_>| made.image.manifests.len().to_string();
    let (first, second) = (count(first), count(second));
    Ok(Some(Difference { place: "the index".to_owned(), path: None, field, first, second }))
}

/// Which steps made the layers, as the config's history says.
fn steps(config: &[u8]) -> Result<Vec<String>, serde_json::Error> {
    let config: Value = serde_json::from_slice(config)?;
    let history = config["history"].as_array().map_or(&[][..], Vec::as_slice);
    let made = history.iter().filter(|entry| entry["empty_layer"] != true);
    Ok(made.map(|entry| entry["created_by"].as_str().unwrap_or_default().to_owned()).collect())
}

/// What is different first: which file, which property, and the two values.
type Found = (Option<String>, String, String, String);

fn layer_difference(one: impl Read, other: impl Read) -> Result<Option<Found>, CompareError> {
    let (mut one, mut other) = (TarReader::new(one), TarReader::new(other));
    loop {
        let (first, second) = match (one.next_entry()?, other.next_entry()?) {
            (None, None) => return Ok(None),
            (Some(first), Some(second)) if first.path == second.path => (first, second),
            (first, second) => return Ok(Some(only_in_one(first, second))),
        };
        let contents = [content(&mut one)?, content(&mut other)?];
        if let Some((field, one, other)) = entry_difference(&first, &second, &contents) {
            return Ok(Some((Some(path(&first)), field, one, other)));
        }
    }
}

/// Layers are sorted by path, so that the lower path is the one that the other has not.
fn only_in_one(first: Option<TarEntry>, second: Option<TarEntry>) -> Found {
    let found = |entry: &TarEntry, first: &str, second: &str| {
        (Some(path(entry)), "existence".to_owned(), first.to_owned(), second.to_owned())
    };
    match (first, second) {
        (Some(first), Some(second)) if first.path > second.path => {
            found(&second, "is not there", "is there")
        }
        (Some(first), _) => found(&first, "is there", "is not there"),
        (None, Some(second)) => found(&second, "is not there", "is there"),
        (None, None) => (None, String::new(), String::new(), String::new()),
    }
}

fn path(entry: &TarEntry) -> String {
    format!("/{}", String::from_utf8_lossy(&entry.path).trim_end_matches('/'))
}

/// The digest of the current file's bytes.
fn content(tar: &mut TarReader<impl Read>) -> Result<Digest, TarError> {
    let (mut hasher, mut buffer) = (Hasher::new(), vec![0; 64 << 10]);
    loop {
        match tar.read_piece(&mut buffer)? {
            FilePiece::Data(read) => hasher.update(&buffer[..read]),
            FilePiece::Hole(length) => hasher.field(length.to_le_bytes()),
            FilePiece::End => return Ok(hasher.digest()),
        }
    }
}

fn entry_difference(
    one: &TarEntry,
    other: &TarEntry,
    contents: &[Digest; 2],
) -> Option<(String, String, String)> {
    let text = |bytes: &Vec<u8>| String::from_utf8_lossy(bytes).into_owned();
    let time = |(seconds, nanoseconds): (i64, u32)| {
        jiff::Timestamp::new(seconds, i32::try_from(nanoseconds).unwrap_or(0))
            .map_or_else(|_| seconds.to_string(), |time| time.to_string())
    };
    let kind = |kind: &TarKind| match kind {
        TarKind::File { .. } => "a file".to_owned(),
        TarKind::HardLink(target) => format!("a hard link to `{}`", text(target)),
        TarKind::Link(target) => format!("a link to `{}`", text(target)),
        TarKind::CharDevice(major, minor) => format!("a character device {major}:{minor}"),
        TarKind::BlockDevice(major, minor) => format!("a block device {major}:{minor}"),
        TarKind::Folder => "a folder".to_owned(),
        TarKind::Fifo => "a named pipe".to_owned(),
    };
    let xattrs = |entry: &TarEntry| {
        let shown =
            entry.xattrs.iter().map(|(name, value)| format!("{}={}", text(name), text(value)));
        shown.collect::<Vec<_>>().join(" ")
    };
    let fields = [
        ("kind", kind(&one.kind), kind(&other.kind)),
        ("content", contents[0].to_string(), contents[1].to_string()),
        ("mode", format!("{:04o}", one.mode), format!("{:04o}", other.mode)),
        ("owner", format!("{}:{}", one.uid, one.gid), format!("{}:{}", other.uid, other.gid)),
        ("extended attributes", xattrs(one), xattrs(other)),
        ("time", time(one.mtime), time(other.mtime)),
    ];
    let different = fields.into_iter().find(|(_, one, other)| one != other);
    different.map(|(field, one, other)| (field.to_owned(), one, other))
}

fn json_difference(
    place: &str,
    one: &[u8],
    other: &[u8],
) -> Result<Option<Difference>, serde_json::Error> {
    let (one, other): (Value, Value) =
        (serde_json::from_slice(one)?, serde_json::from_slice(other)?);
    Ok(value_difference("", &one, &other).map(|(field, first, second)| Difference {
        place: place.to_owned(),
        path: None,
        field,
        first,
        second,
    }))
}

fn value_difference(at: &str, one: &Value, other: &Value) -> Option<(String, String, String)> {
    match (one, other) {
        _ if one == other => None,
        (Value::Object(first), Value::Object(second)) => {
            let keys = first.keys().chain(second.keys().filter(|key| !first.contains_key(*key)));
            keys.into_iter().find_map(|key| {
                let null = &Value::Null;
                let at = if at.is_empty() { key.clone() } else { format!("{at}.{key}") };
                let (one, other) =
                    (first.get(key).unwrap_or(null), second.get(key).unwrap_or(null));
                value_difference(&at, one, other)
            })
        }
        (Value::Array(first), Value::Array(second)) if first.len() == second.len() => {
            let pairs = first.iter().zip(second).enumerate();
            pairs
                .into_iter()
                .find_map(|(n, (one, other))| value_difference(&format!("{at}[{n}]"), one, other))
        }
        _ => Some((at.to_owned(), one.to_string(), other.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use rbuild_cache::layer::tar_writer::TarWriter;

    use super::*;

    fn tar(entries: &[(&str, u32, i64, &str)]) -> Vec<u8> {
        let mut tar = TarWriter::new(Vec::new());
        for (path, mode, time, text) in entries {
            let entry = TarEntry {
                path: path.as_bytes().to_vec(),
                kind: TarKind::File { size: text.len() as u64 },
                mode: *mode,
                uid: 0,
                gid: 0,
                mtime: (*time, 0),
                xattrs: Vec::new(),
            };
            tar.entry(&entry).unwrap();
            tar.data(&mut text.as_bytes(), text.len() as u64).unwrap();
        }
        tar.finish().unwrap()
    }

    #[test]
    fn the_first_file_that_differs_is_named_with_what_differs() {
        type Entries<'a> = &'a [(&'a str, u32, i64, &'a str)];
        let check = |one: Entries<'_>, other: Entries<'_>, expected: &str| {
            let found = layer_difference(&tar(one)[..], &tar(other)[..]).unwrap();
            let shown = found.map(|(path, field, _, _)| format!("{} {field}", path.unwrap()));
            assert_eq!(shown.as_deref().unwrap_or("none"), expected);
        };
        let (a, b) = (("a", 0o644, 0, "x"), ("b", 0o644, 0, "x"));
        check(&[a, b], &[a, b], "none");
        check(&[a, b], &[a, ("b", 0o644, 0, "y")], "/b content");
        check(&[a, b], &[a, ("b", 0o600, 0, "x")], "/b mode");
        check(&[("a", 0o644, 1, "x"), b], &[a, ("b", 0o644, 0, "y")], "/a time");
        check(&[a, b], &[a], "/b existence");
        check(&[b], &[a, b], "/a existence");
    }

    #[test]
    fn fields_are_named_by_where_they_are() {
        let check = |one: &str, other: &str, expected: &str| {
            let found = json_difference("x", one.as_bytes(), other.as_bytes()).unwrap();
            assert_eq!(found.map_or("none".to_owned(), |found| found.field), expected);
        };
        check(r#"{"a": {"b": [1, 2]}}"#, r#"{"a": {"b": [1, 3]}}"#, "a.b[1]");
        check(r#"{"a": 1}"#, r#"{"b": 1}"#, "a");
        check(r#"{"a": 1}"#, r#"{"a": 1}"#, "none");
    }
}
