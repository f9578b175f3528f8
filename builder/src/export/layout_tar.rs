//! An OCI layout as a tar, like containerd's `core/images/archive/exporter.go` writes it: blobs first,
//! then what names them.
//!
//! Layers can be written while they are compressed, so that an archive is nearly done when its last
//! layer is. They stand in the order of the image, lowest first, whichever was ready first; all other
//! blobs follow in the order of their digests. So the same images give the same bytes.
//!
//! The header of an entry has the length and the name, which for a layer that is being compressed is
//! its digest: both come last. In a file, the header is written when they are known; on a pipe, the
//! layer waits until it is whole.

use std::collections::{BTreeSet, HashMap};
use std::io::{self, Read, Write};

use rbuild_cache::digest::Digest;
use rbuild_cache::layer::tar_reader::{TarEntry, TarKind};
use rbuild_cache::layer::tar_writer::TarWriter;
use rbuild_cache::oci::Descriptor;
use rbuild_cache::state::StateFolder;
use rbuild_cache::store::growing::{End, Growing};
use tokio::sync::mpsc::UnboundedReceiver;

use super::ExportError;
use super::destination::DestinationWriter;
use crate::image::{ComingBlob, ComingLayer};

/// A tar of a layout that is being written.
pub(super) struct LayoutTar<W: Write> {
    tar: TarWriter<W>,
    /// The blobs that are in it.
    written: BTreeSet<Digest>,
    /// For layers on their way.
    piece: Vec<u8>,
}

/// How many bytes of a layer are copied at once.
const PIECE: usize = 256 << 10;
/// The length of a header that needs no records.
const HEADER: u64 = 512;

impl<W: Write> LayoutTar<W> {
    /// Begins one.
    pub(super) fn new(out: W) -> io::Result<Self> {
        let mut tar = TarWriter::new(out);
        tar.entry(&entry("blobs", TarKind::Folder, 0o755))?;
        tar.entry(&entry("blobs/sha256", TarKind::Folder, 0o755))?;
        Ok(Self { tar, written: BTreeSet::new(), piece: Vec::new() })
    }

    /// Hands on what is written so far.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        self.tar.get_mut().flush()
    }

    /// Adds a blob, which is checked on the way.
    pub(super) fn blob(
        &mut self,
        state: &StateFolder,
        blob: &Descriptor,
    ) -> Result<(), ExportError> {
        if !self.written.insert(blob.digest) {
            return Ok(());
        }
        self.tar.entry(&blob_entry(&blob.digest, blob.size))?;
        let mut reader = state.blobs().leaving(blob)?;
        let written = self.tar.data(&mut reader, blob.size)?;
        // Only the end says that all of it was right.
        if written != blob.size || reader.read(&mut [0])? > 0 {
            return Err(io::Error::other(format!("blob `{}` changed", blob.digest)).into());
        }
        Ok(())
    }

    /// Adds those of `blobs` that are not in it yet, in their order, then `files` in theirs, and ends
    /// it.
    pub(super) fn finish<'a>(
        mut self,
        state: &StateFolder,
        blobs: impl IntoIterator<Item = &'a Descriptor>,
        files: &[(&str, Vec<u8>)],
    ) -> Result<W, ExportError> {
        for blob in blobs {
            self.blob(state, blob)?;
        }
        for (name, bytes) in files {
            let size = bytes.len() as u64;
            self.tar.entry(&entry(name, TarKind::File { size }, 0o444))?;
            self.tar.data(&mut &bytes[..], size)?;
        }
        Ok(self.tar.finish()?)
    }
}

impl LayoutTar<DestinationWriter> {
    /// Adds the layers of images that are just being written; `counts` says how many each has. When
    /// `layers` ends before all of them came, writing the images failed, and so has this.
    pub(super) fn layers(
        &mut self,
        state: &StateFolder,
        counts: &[usize],
        mut layers: UnboundedReceiver<ComingLayer>,
    ) -> Result<(), ExportError> {
        let mut ready: HashMap<(usize, usize), ComingBlob> = HashMap::new();
        let places = counts.iter().enumerate();
        for place in places.flat_map(|(image, count)| (0..*count).map(move |layer| (image, layer)))
        {
            let blob = loop {
                if let Some(blob) = ready.remove(&place) {
                    break blob;
                }
                match layers.blocking_recv() {
                    Some(layer) if layer.place >= place => {
                        ready.entry(layer.place).or_insert(layer.blob);
                    }
                    // It was written while it grew.
                    Some(_) => {}
                    None => return Ok(()),
                }
            };
            match blob {
                ComingBlob::Stored(blob) => self.blob(state, &blob)?,
                ComingBlob::Growing(blob) => self.growing(&blob)?,
            }
        }
        Ok(())
    }

    /// Adds a blob that grows. One that is given up is left out: whoever wrote it says why.
    fn growing(&mut self, blob: &Growing) -> Result<(), ExportError> {
        let out = self.tar.get_mut();
        let Some(start) = out.position()? else { return self.grown(blob) };
        out.skip(HEADER)?;
        let mut reader = blob.leaving();
        self.piece.resize(PIECE, 0);
        loop {
            match reader.read(&mut self.piece) {
                Ok(0) => break,
                Ok(read) => out.write_all(&self.piece[..read])?,
                Err(_) if blob.end() == Some(End::Broken) => return Ok(out.back_to(start)?),
                Err(error) => return Err(error.into()),
            }
        }
        let End::Whole(digest, size) = blob.wait() else { return Ok(out.back_to(start)?) };
        let header = header_of(&digest, size)?;
        if header.len() as u64 != HEADER || self.written.contains(&digest) {
            // Too long for a plain header; or in it already, from another layer with the same bytes.
            out.back_to(start)?;
            return self.grown(blob);
        }
        out.fill(start, &header)?;
        self.tar.pad(size)?;
        self.written.insert(digest);
        Ok(())
    }

    /// Adds a blob once it is whole. It need not be checked: whoever wrote it just did.
    fn grown(&mut self, blob: &Growing) -> Result<(), ExportError> {
        let End::Whole(digest, size) = blob.wait() else { return Ok(()) };
        if self.written.insert(digest) {
            self.tar.entry(&blob_entry(&digest, size))?;
            self.tar.data(&mut blob.leaving(), size)?;
        }
        Ok(())
    }
}

fn header_of(digest: &Digest, size: u64) -> io::Result<Vec<u8>> {
    let mut header = TarWriter::new(Vec::new());
    header.entry(&blob_entry(digest, size))?;
    Ok(std::mem::take(header.get_mut()))
}

fn blob_entry(digest: &Digest, size: u64) -> TarEntry {
    entry(&format!("blobs/sha256/{}", digest.hex()), TarKind::File { size }, 0o444)
}

fn entry(path: &str, kind: TarKind, mode: u32) -> TarEntry {
    let path = path.as_bytes().to_vec();
    TarEntry { path, kind, mode, uid: 0, gid: 0, mtime: (0, 0), xattrs: Vec::new() }
}

#[cfg(test)]
mod tests {
    use rbuild_cache::layer::tar_reader::TarReader;
    use rbuild_cache::oci::MediaType;
    use tokio::sync::mpsc;

    use super::*;
    use crate::request::Destination;

    /// The names and lengths of a tar's files.
    fn listed(bytes: &[u8]) -> Vec<(String, u64)> {
        let mut tar = TarReader::new(bytes);
        let mut files = Vec::new();
        while let Some(entry) = tar.next_entry().unwrap() {
            if let TarKind::File { size } = entry.kind {
                let path = String::from_utf8(entry.path).unwrap();
                files.push((path.rsplit('/').next().unwrap().to_owned(), size));
            }
        }
        tar.drain().unwrap();
        files
    }

    /// What is made of layers that come in this order: for each its place, and its bytes in pieces.
    /// Every other one grows, those without bytes are given up.
    fn archive(layers: &[(usize, &[&[u8]])], count: usize) -> Vec<u8> {
        let top = tempfile::tempdir().unwrap();
        let state = StateFolder::open(top.path().join("state")).unwrap();
        let (sender, receiver) = mpsc::unbounded_channel();
        let mut writers = Vec::new();
        for (number, (layer, pieces)) in layers.iter().enumerate() {
            let mut writer = state.blobs().writer().unwrap();
            let blob = if number % 2 == 0 {
                writers.push((writer.growing().unwrap(), writer, pieces));
                ComingBlob::Growing(writers.last().unwrap().0.clone())
            } else {
                pieces.iter().for_each(|piece| writer.write_all(piece).unwrap());
                let (digest, size) = writer.commit(None).unwrap();
                ComingBlob::Stored(Box::new(Descriptor::new(MediaType::OciLayer, digest, size)))
            };
            sender.send(ComingLayer { place: (0, *layer), blob }).unwrap();
        }
        drop(sender);
        let file = top.path().join("archive.tar");
        let writing = std::thread::spawn({
            let (state, file) = (state.clone(), file.clone());
            move || {
                let out = DestinationWriter::create(&Destination::File(file)).unwrap();
                let mut tar = LayoutTar::new(out).unwrap();
                tar.layers(&state, &[count], receiver).unwrap();
                let more = [("index.json", b"{}".to_vec())];
                tar.finish(&state, [], &more).unwrap().finish().unwrap();
            }
        });
        for (_, mut writer, pieces) in writers {
            for piece in *pieces {
                writer.write_all(piece).unwrap();
                std::thread::sleep(std::time::Duration::from_millis(5));
            }
            if !pieces.is_empty() {
                writer.commit(None).unwrap();
            }
        }
        writing.join().unwrap();
        fs_err::read(file).unwrap()
    }

    fn hex(bytes: &[u8]) -> String {
        Digest::of(bytes).hex()
    }

    #[test]
    fn layers_stand_in_their_order_whichever_came_first_and_once() {
        let large = vec![7; 700_001];
        let layers: [(usize, &[&[u8]]); 4] =
            [(2, &[b"two"]), (0, &[b"zero"]), (1, &[&large, b"", &large]), (3, &[b"zero"])];
        let tar = archive(&layers, 4);
        let expected = [
            (hex(b"zero"), 4),
            (hex(&[&large[..], &large].concat()), 1_400_002),
            (hex(b"two"), 3),
            ("index.json".to_owned(), 2),
        ];
        assert_eq!(listed(&tar), expected);
        let others: [(usize, &[&[u8]]); 4] =
            [(3, &[b"ze", b"ro"]), (1, &[&large, &large]), (0, &[b"zero"]), (2, &[b"two"])];
        assert!(archive(&others, 4) == tar, "what grew in one grew not in the other");
    }

    #[test]
    fn what_is_given_up_is_not_in_it() {
        let tar = archive(&[(0, &[]), (1, &[b"one"])], 2);
        assert_eq!(listed(&tar), [(hex(b"one"), 3), ("index.json".to_owned(), 2)]);
        // The third never comes.
        assert_eq!(listed(&archive(&[(0, &[b"zero"])], 2)).len(), 2);
    }
}
