//! The files of an archive on their way into the content store.

use std::collections::HashMap;
use std::io::{self, Read, Write};

use rbuild_cache::digest::{DiffId, Digest, Hashing};
use rbuild_cache::layer::compress::{Compression, Compressor, Format, decompress};
use rbuild_cache::layer::tar_reader::{FilePiece, TarKind, TarReader};
use rbuild_cache::state::StateFolder;
use rbuild_cache::store::MAX_DOCUMENT;

use super::{ArchiveError, blob_of};

/// What an archive held.
#[derive(Debug, Default)]
pub(super) struct Entries {
    /// `index.json` and `manifest.json`.
    documents: HashMap<String, Vec<u8>>,
    files: HashMap<String, StoredFile>,
    /// Links and what they point at, from the top of the archive.
    links: HashMap<String, String>,
}

/// A file that was stored as a blob.
#[derive(Clone, Debug)]
pub(super) struct StoredFile {
    /// The blob's.
    pub(super) digest: Digest,
    /// The blob's length in bytes.
    pub(super) size: u64,
    pub(super) form: Form,
}

/// In which form a file is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// As it came, compressed so or not at all.
    AsItCame(Option<Format>),
    /// With gzip, which it was not before; then it had this digest.
    Gzipped(DiffId),
}

impl Entries {
    /// Reads an archive to its end.
    pub(super) fn read(
        state: &StateFolder,
        stream: impl Read + Send + 'static,
    ) -> Result<Self, ArchiveError> {
        let mut entries = Self::default();
        let mut tar = TarReader::new(decompress(stream)?);
        while let Some(entry) = tar.next_entry()? {
            let path = normal(&String::from_utf8_lossy(&entry.path), "");
            match entry.kind {
                TarKind::File { size } if matches!(&*path, "index.json" | "manifest.json") => {
                    entries.documents.insert(path, document(&mut tar, size)?);
                }
                TarKind::File { .. } => {
                    let stored = store(state, &mut tar, &path)?;
                    entries.files.insert(path, stored);
                }
                TarKind::HardLink(target) => {
                    let target = normal(&String::from_utf8_lossy(&target), "");
                    entries.links.insert(path, target);
                }
                TarKind::Link(target) => {
                    let folder = path.rsplit_once('/').map_or("", |(folder, _)| folder);
                    let target = normal(&String::from_utf8_lossy(&target), folder);
                    entries.links.insert(path, target);
                }
                TarKind::Folder
                | TarKind::Fifo
                | TarKind::CharDevice(..)
                | TarKind::BlockDevice(..) => {}
            }
        }
        // A compressed archive that is cut short says so only at its end.
        tar.drain()?;
        Ok(entries)
    }

    /// The bytes of `index.json` or `manifest.json`.
    pub(super) fn document(&self, name: &str) -> Option<&[u8]> {
        self.documents.get(name).map(Vec::as_slice)
    }

    /// The file at `path`, links followed.
    pub(super) fn file(&self, path: &str) -> Option<&StoredFile> {
        let mut path = normal(path, "");
        for _ in 0..8 {
            if let Some(file) = self.files.get(&path) {
                return Some(file);
            }
            path = self.links.get(&path)?.clone();
        }
        None
    }
}

/// A path without `.`, `..` and slashes around it, as seen from the top; it names nothing on disk.
fn normal(path: &str, folder: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    let absolute = path.starts_with('/');
    let start = folder.split('/').filter(|_| !absolute);
    for part in start.chain(path.split('/')) {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join("/")
}

fn document(tar: &mut TarReader<impl Read>, size: u64) -> Result<Vec<u8>, ArchiveError> {
    if size > MAX_DOCUMENT {
        let reason = format!("it has more than {MAX_DOCUMENT} bytes");
        return Err(ArchiveError::Syntax { file: "index.json or manifest.json".into(), reason });
    }
    let mut bytes = Vec::new();
    copy(tar, &mut Vec::new(), &mut bytes)?;
    Ok(bytes)
}

/// Stores the current file: the blob of a layout as it is, checked; a layer that is not compressed
/// with gzip.
fn store(
    state: &StateFolder,
    tar: &mut TarReader<impl Read>,
    path: &str,
) -> Result<StoredFile, ArchiveError> {
    let mut start = Vec::new();
    let named = blob_of(path);
    let mut first = vec![0; 64 << 10];
    // The first bytes say what it is.
    while start.len() < 6 {
        match tar.read_piece(&mut first)? {
            FilePiece::Data(read) => start.extend_from_slice(&first[..read]),
            FilePiece::Hole(_) | FilePiece::End => break,
        }
    }
    let format = Format::of(&start);
    // `ID/layer.tar`, `DIGEST.tar`: what else there is are configs and marks of versions.
    let is_layer = named.is_none() && format.is_none() && path.ends_with("tar");
    if !is_layer {
        let mut writer = state.blobs().writer()?;
        let size = copy(tar, &mut start, &mut writer)?;
        let (digest, size) = writer.commit(named.map(|digest| (digest, size)))?;
        return Ok(StoredFile { digest, size, form: Form::AsItCame(format) });
    }
    let writer = state.blobs().writer()?;
    let compressor = Compressor::new(Compression::default(), writer);
    let mut hashing = Hashing::new(compressor);
    copy(tar, &mut start, &mut hashing)?;
    let (compressor, diff_id, _) = hashing.finish();
    let (digest, size) = compressor.finish()?.commit(None)?;
    Ok(StoredFile { digest, size, form: Form::Gzipped(DiffId(diff_id)) })
}

/// Copies `start` and the rest of the current file; returns how many bytes that were.
fn copy(
    tar: &mut TarReader<impl Read>,
    start: &mut Vec<u8>,
    out: &mut impl Write,
) -> Result<u64, ArchiveError> {
    let mut written = start.len() as u64;
    out.write_all(&std::mem::take(start))?;
    let mut buffer = vec![0; 256 << 10];
    loop {
        match tar.read_piece(&mut buffer)? {
            FilePiece::Data(read) => {
                out.write_all(&buffer[..read])?;
                written += read as u64;
            }
            FilePiece::Hole(length) => {
                written += io::copy(&mut io::repeat(0).take(length), out)?;
            }
            FilePiece::End => return Ok(written),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_stay_in_the_archive() {
        let check = |path: &str, folder: &str, expected: &str| {
            assert_eq!(normal(path, folder), expected, "{path} in {folder}");
        };
        check("./blobs//sha256/a", "", "blobs/sha256/a");
        check("../a/layer.tar", "b", "a/layer.tar");
        check("../../../etc/passwd", "b", "etc/passwd");
        check("/a", "b", "a");
    }
}
