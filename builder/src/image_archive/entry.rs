//! The files of an archive on their way into the content store.
//!
//! What an archive says of itself may stand at its end, so all is kept that could be named there. That
//! is little: no program that writes such archives puts parts of images deeper than `ID/layer.tar` or
//! `blobs/sha256/DIGEST` (moby, podman, skopeo, containerd, go-containerregistry, Bazel, Nix).

use std::collections::HashMap;
use std::io::{self, Read, Write};

use rbuild_cache::digest::{DiffId, Digest, Hashing};
use rbuild_cache::layer::compress::{Compression, Compressor, Format, decompress};
use rbuild_cache::layer::tar_reader::{FilePiece, TarError, TarKind, TarReader};
use rbuild_cache::limits::{Bounded, Limit, Limits, depth};
use rbuild_cache::state::StateFolder;

use super::{ArchiveError, blob_of, check_size};

/// No part of an image has a longer path, in bytes.
const LONGEST_PATH: usize = 255;

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
        let limits = state.limits();
        let stream = Bounded::new(decompress(stream)?, limits, Limit::ArchiveSize);
        let mut archive = Archive { tar: TarReader::new(stream), limits, unpacked: 0 };
        let mut count = 0;
        while let Some(entry) = archive.tar.next_entry().map_err(|error| match error {
            // Less than one header.
            TarError::Truncated if count == 0 => ArchiveError::NoTar("too short for a tar"),
            other => other.into(),
        })? {
            count += 1;
            limits.check(Limit::ArchiveFiles, count)?;
            limits.check(Limit::PathDepth, depth(&entry.path))?;
            let path = normal(&String::from_utf8_lossy(&entry.path), "");
            if !may_be_part(&path) {
                continue;
            }
            limits.check(Limit::ArchiveParts, entries.count() + 1)?;
            match entry.kind {
                TarKind::File { size } if matches!(&*path, "index.json" | "manifest.json") => {
                    let bytes = archive.document(&path, size)?;
                    entries.documents.insert(path, bytes);
                }
                TarKind::File { .. } => {
                    let stored = archive.store(state, &path)?;
                    entries.files.insert(path, stored);
                }
                TarKind::HardLink(target) => entries.link(path, &target, ""),
                TarKind::Link(target) => {
                    let folder = path.rsplit_once('/').map_or("", |(folder, _)| folder).to_owned();
                    entries.link(path, &target, &folder);
                }
                TarKind::Folder
                | TarKind::Fifo
                | TarKind::CharDevice(..)
                | TarKind::BlockDevice(..) => {}
            }
        }
        if count == 0 {
            return Err(ArchiveError::NoTar("empty"));
        }
        // A compressed archive that is cut short says so only at its end.
        archive.tar.drain()?;
        Ok(entries)
    }

    /// How many there are.
    fn count(&self) -> u64 {
        (self.files.len() + self.links.len()) as u64
    }

    fn link(&mut self, path: String, target: &[u8], folder: &str) {
        let target = normal(&String::from_utf8_lossy(target), folder);
        if may_be_part(&target) {
            self.links.insert(path, target);
        }
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

/// Whether what an archive says of itself may name the file at `path`.
fn may_be_part(path: &str) -> bool {
    let most = if path.starts_with("blobs/") { 2 } else { 1 };
    path.len() <= LONGEST_PATH && path.matches('/').count() <= most
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

/// An archive that is being read.
struct Archive<'a, R> {
    tar: TarReader<R>,
    limits: &'a Limits,
    /// How many bytes of files were read. Holes are in no stream that could be bounded.
    unpacked: u64,
}

impl<R: Read> Archive<'_, R> {
    /// The current file, `path`, in memory.
    fn document(&mut self, path: &str, size: u64) -> Result<Vec<u8>, ArchiveError> {
        check_size(self.limits, size, || format!("`{path}`"))?;
        let mut bytes = Vec::new();
        self.copy(&[], 0, &mut bytes)?;
        Ok(bytes)
    }

    /// Stores the current file: the blob of a layout as it is, checked; a layer that is not
    /// compressed with gzip.
    fn store(&mut self, state: &StateFolder, path: &str) -> Result<StoredFile, ArchiveError> {
        let (mut start, mut hole) = (Vec::new(), 0);
        let named = blob_of(path);
        let mut first = vec![0; 64 << 10];
        // The first bytes say what it is: nothing that is compressed has zeros there.
        while start.len() < 6 && hole == 0 {
            match self.tar.read_piece(&mut first)? {
                FilePiece::Data(read) => start.extend_from_slice(&first[..read]),
                FilePiece::Hole(length) => hole = length,
                FilePiece::End => break,
            }
        }
        let format = Format::of(&start);
        // `ID/layer.tar`, `DIGEST.tar`: what else there is are configs and marks of versions.
        let is_layer = named.is_none() && format.is_none() && path.ends_with("tar");
        if !is_layer {
            let mut writer = state.blobs().writer()?;
            let size = self.copy(&start, hole, &mut writer)?;
            let (digest, size) = writer.commit(named.map(|digest| (digest, size)))?;
            return Ok(StoredFile { digest, size, form: Form::AsItCame(format) });
        }
        let writer = state.blobs().writer()?;
        let compressor = Compressor::new(Compression::default(), writer);
        let mut hashing = Hashing::new(compressor);
        self.copy(&start, hole, &mut hashing)?;
        let (compressor, diff_id, _) = hashing.finish();
        let (digest, size) = compressor.finish()?.commit(None)?;
        Ok(StoredFile { digest, size, form: Form::Gzipped(DiffId(diff_id)) })
    }

    /// Copies `start`, a hole of so many bytes, and the rest of the current file; returns how many
    /// bytes that were.
    fn copy(&mut self, start: &[u8], hole: u64, out: &mut impl Write) -> Result<u64, ArchiveError> {
        let mut written = start.len() as u64 + hole;
        self.take(written)?;
        out.write_all(start)?;
        io::copy(&mut io::repeat(0).take(hole), out)?;
        let mut buffer = vec![0; 256 << 10];
        loop {
            match self.tar.read_piece(&mut buffer)? {
                FilePiece::Data(read) => {
                    self.take(read as u64)?;
                    out.write_all(&buffer[..read])?;
                    written += read as u64;
                }
                FilePiece::Hole(length) => {
                    self.take(length)?;
                    written += io::copy(&mut io::repeat(0).take(length), out)?;
                }
                FilePiece::End => return Ok(written),
            }
        }
    }

    /// Counts what is about to be written.
    fn take(&mut self, bytes: u64) -> Result<(), ArchiveError> {
        self.unpacked = self.unpacked.saturating_add(bytes);
        Ok(self.limits.check(Limit::ArchiveSize, self.unpacked)?)
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

    #[test]
    fn parts_of_images_are_near_the_top() {
        let check = |path: &str, expected: bool| assert_eq!(may_be_part(path), expected, "{path}");
        let digest = "0".repeat(64);
        check("index.json", true);
        check(&format!("sha256:{digest}"), true);
        check(&format!("{digest}.tar.gz"), true);
        check(&format!("{digest}/layer.tar"), true);
        check(&format!("blobs/sha256/{digest}.tar.gz"), true);
        check(&format!("blobs/sha256/{digest}/x"), false);
        check("usr/bin/env", false);
        check(&"x".repeat(256), false);
    }
}
