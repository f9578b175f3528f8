//! Layers: a folder in overlayfs form, and the tar it is sent as.
//!
//! [`unpack`] turns the blob of a layer into a snapshot, [`export`] a snapshot into a blob. Both do
//! their work once, however often and from however many processes they are asked.

pub mod apply;
pub mod compress;
pub mod content;
pub mod diff;
pub mod entries;
pub mod flatten;
pub mod implied;
pub mod opaque;
pub mod pack;
pub mod tar_reader;
pub mod tar_writer;
pub mod whiteout;

use std::collections::BTreeSet;
use std::io::{self, Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde::{Deserialize, Serialize};

pub use apply::{Applied, ApplyError, apply};
pub use compress::{Compression, decompress};
pub use implied::{are_settled, settle};
pub use pack::{PackError, PackOptions, pack};

use crate::digest::{DiffId, Digest, Hasher, Hashing};
use crate::index::IndexError;
use crate::limits::{Bounded, Limit};
use crate::oci::{Descriptor, MediaType};
use crate::snapshot::{Snapshot, SnapshotError, SnapshotId};
use crate::state::StateFolder;
use crate::store::StoreError;
use crate::store::growing::Growing;
use crate::view::ViewError;

/// Says why a layer could not be unpacked or packed.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    /// Its tar is wrong.
    #[error(transparent)]
    Apply(#[from] ApplyError),
    /// It unpacks to something else than the image's config says.
    #[error(
        "the layer's uncompressed bytes have digest `{found}`, but its image says `{expected}`"
    )]
    DiffId {
        /// The config's diff id.
        expected: DiffId,
        /// The stream's.
        found: DiffId,
    },
    /// Its snapshot is not there.
    #[error("snapshot `{0}` is missing")]
    Missing(SnapshotId),
    /// It could not be packed.
    #[error(transparent)]
    Pack(#[from] PackError),
    /// Its blob is missing or damaged, or could not be written.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Its snapshot could not be made.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// A layer below it could not be looked at.
    #[error(transparent)]
    View(#[from] ViewError),
    /// The index could not be asked.
    #[error(transparent)]
    Index(#[from] IndexError),
    /// The disk failed.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// The snapshot to which the layer in the blob `blob` unpacks. Both the blob's digest and the
/// layer's are checked. For a tree of several layers, [`settle`] puts them together.
pub fn unpack(
    state: &StateFolder,
    blob: &Descriptor,
    diff_id: &DiffId,
) -> Result<Snapshot, LayerError> {
    if let Some(snapshot) = state.snapshots().get(&SnapshotId::of_layer(diff_id))? {
        return Ok(snapshot);
    }
    let stream = state.blobs().reader(blob)?;
    unpack_stream(state, stream, diff_id).map_err(|error| {
        // A damaged blob looks like a wrong layer; what is wrong is the blob, which goes.
        let mut again = match state.blobs().reader(blob) {
            Ok(again) => again,
            Err(damaged) => return damaged.into(),
        };
        match io::copy(&mut again, &mut io::sink()).map_err(io::Error::downcast::<StoreError>) {
            Err(Ok(damaged)) => damaged.into(),
            Ok(_) | Err(Err(_)) => error,
        }
    })
}

/// Like [`unpack`] for a layer that is just arriving. The caller checks that the stream is the
/// blob it should be.
pub fn unpack_stream(
    state: &StateFolder,
    stream: impl Read + Send + 'static,
    diff_id: &DiffId,
) -> Result<Snapshot, LayerError> {
    let id = SnapshotId::of_layer(diff_id);
    let _single = state.locks().exclusive(id.as_str())?;
    if let Some(snapshot) = state.snapshots().get(&id)? {
        return Ok(snapshot);
    }
    let draft = state.snapshots().draft()?;
    let applied = apply(decompress(stream)?, &draft, state.limits())?;
    if applied.diff_id != *diff_id {
        return Err(LayerError::DiffId { expected: *diff_id, found: applied.diff_id });
    }
    draft.set_implied(applied.implied);
    Ok(state.snapshots().commit(&id, draft)?)
}

/// A layer as it is sent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExportedLayer {
    /// Its blob, which is in the content store.
    pub descriptor: Descriptor,
    /// The digest of its uncompressed tar.
    pub diff_id: DiffId,
}

/// Packs and compresses a snapshot into a blob, or finds the blob that was made before.
///
/// `lower` are the snapshots below it, lowest first, if they are known: see
/// [`PackOptions::lower`]. Times after `latest` are written as `latest`.
pub fn export(
    state: &StateFolder,
    id: &SnapshotId,
    lower: Option<&[SnapshotId]>,
    compression: Compression,
    latest: Option<i64>,
) -> Result<ExportedLayer, LayerError> {
    export_watched(state, id, lower, compression, latest, Watch::default())
}

/// Who looks on while a layer is exported.
#[derive(Default)]
pub struct Watch {
    /// Is shown a blob that has to be made before its first byte is there, so that it can be sent
    /// while it is compressed.
    pub begun: Option<Box<dyn FnOnce(Growing) + Send>>,
    /// Whether nobody wants the layer any more: then making it ends with an error.
    pub unwanted: Option<Arc<AtomicBool>>,
}

/// Like [`export`], for somebody who looks on.
pub fn export_watched(
    state: &StateFolder,
    id: &SnapshotId,
    lower: Option<&[SnapshotId]>,
    compression: Compression,
    latest: Option<i64>,
    watch: Watch,
) -> Result<ExportedLayer, LayerError> {
    let key = memo_key(id, lower, compression, latest);
    if let Some(known) = recall(state, &key)? {
        return Ok(known);
    }
    let _single = state.locks().exclusive(&format!("export-{}", Digest::of(&key).hex()))?;
    if let Some(known) = recall(state, &key)? {
        return Ok(known);
    }
    let snapshots = state.snapshots();
    snapshots.get(id)?.ok_or_else(|| LayerError::Missing(id.clone()))?;
    snapshots.ensure_whole(id)?;
    let lower = lower.map(|lower| lower.iter().map(|id| snapshots.folder(id)).collect());
    let options = PackOptions { latest, lower };
    let mut writer = state.blobs().writer()?;
    if let Some(begun) = watch.begun {
        begun(writer.growing()?);
    }
    let writer = Wanted { out: writer, unwanted: watch.unwanted };
    let mut compressor = compress::Compressor::new(compression, writer);
    let (diff_id, _) = pack(&snapshots.folder(id), &options, &mut compressor)?;
    let (digest, size) = compressor.finish()?.out.commit(None)?;
    let descriptor = Descriptor::new(media_type(compression), digest, size);
    let exported = ExportedLayer { descriptor, diff_id };
    remember(state, &key, &exported)?;
    Ok(exported)
}

/// Checks that the layer in `blob` is the one with this diff id, without unpacking it. That there is
/// a snapshot of that layer says nothing of the blob. What was found is remembered.
pub fn check(state: &StateFolder, blob: &Descriptor, diff_id: &DiffId) -> Result<(), LayerError> {
    let key = blob.digest.as_bytes();
    if state.index().recall(CHECKED, key)?.is_some_and(|known| known == diff_id.0.as_bytes()) {
        return Ok(());
    }
    let found = DiffId(Digest::of_stream(unpacked(state, blob)?)?.0);
    if found != *diff_id {
        return Err(LayerError::DiffId { expected: *diff_id, found });
    }
    Ok(state.index().remember(CHECKED, key, found.0.as_bytes())?)
}

/// The tar in `blob`, no longer than one may be.
fn unpacked(state: &StateFolder, blob: &Descriptor) -> Result<impl Read, LayerError> {
    let stream = decompress(state.blobs().reader(blob)?)?;
    Ok(Bounded::new(stream, state.limits(), Limit::LayerSize))
}

/// Compresses the layer in `blob` anew, or finds the blob that was made before.
pub fn recompress(
    state: &StateFolder,
    blob: &Descriptor,
    diff_id: &DiffId,
    compression: Compression,
) -> Result<ExportedLayer, LayerError> {
    let key = format!("{}\n{compression}", blob.digest).into_bytes();
    if let Some(known) = recall(state, &key)? {
        return Ok(known);
    }
    let mut stream = Hashing::new(unpacked(state, blob)?);
    let mut compressor = compress::Compressor::new(compression, state.blobs().writer()?);
    io::copy(&mut stream, &mut compressor)?;
    let (_, digest, _) = stream.finish();
    let found = DiffId(digest);
    if found != *diff_id {
        return Err(LayerError::DiffId { expected: *diff_id, found });
    }
    let (digest, size) = compressor.finish()?.commit(None)?;
    let descriptor = Descriptor::new(media_type(compression), digest, size);
    let exported = ExportedLayer { descriptor, diff_id: *diff_id };
    remember(state, &key, &exported)?;
    Ok(exported)
}

/// Writes as long as somebody wants it.
struct Wanted<W> {
    out: W,
    unwanted: Option<Arc<AtomicBool>>,
}

impl<W: Write> Write for Wanted<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.unwanted.as_ref().is_some_and(|unwanted| unwanted.load(Ordering::Relaxed)) {
            return Err(io::Error::other("nobody wants the layer any more"));
        }
        self.out.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// The media type of a layer that rbuild writes.
pub fn media_type(compression: Compression) -> MediaType {
    match compression {
        Compression::None => MediaType::OciLayer,
        Compression::Gzip { .. } => MediaType::OciLayerGzip,
        Compression::Zstd { .. } => MediaType::OciLayerZstd,
    }
}

/// Under which name the index remembers which layers are in the blobs of others.
const CHECKED: &str = "checked-layer";

/// Under which name the index remembers exported layers.
const MEMO: &str = "exported-layer";

/// Changes whenever `pack` writes other bytes for the same folder.
const PACK_VERSION: u32 = 1;

fn memo_key(
    id: &SnapshotId,
    lower: Option<&[SnapshotId]>,
    compression: Compression,
    latest: Option<i64>,
) -> Vec<u8> {
    let lower = lower.map_or_else(String::new, |lower| {
        let mut hasher = Hasher::new();
        for id in lower {
            hasher.field(id.as_str());
        }
        hasher.digest().hex()
    });
    format!("{PACK_VERSION}\n{id}\n{lower}\n{compression}\n{latest:?}").into_bytes()
}

/// The snapshots that were exported, each with a diff id that it was exported as.
pub fn exported(state: &StateFolder) -> Result<Vec<(SnapshotId, DiffId)>, IndexError> {
    let memos = state.index().memos(MEMO)?;
    let exported = memos.iter().filter_map(|(key, value)| {
        let layer: ExportedLayer = serde_json::from_slice(value).ok()?;
        Some((exported_snapshot(key)?, layer.diff_id))
    });
    Ok(exported.collect())
}

/// Forgets what these snapshots were exported as.
pub fn forget_exports(
    state: &StateFolder,
    snapshots: &BTreeSet<&SnapshotId>,
) -> Result<(), IndexError> {
    if snapshots.is_empty() {
        return Ok(());
    }
    let keys = state.index().memos(MEMO)?.into_iter().map(|(key, _)| key);
    let keys: Vec<Vec<u8>> = keys
        .filter(|key| exported_snapshot(key).is_some_and(|id| snapshots.contains(&id)))
        .collect();
    state.index().forget_memos(MEMO, &keys)
}

/// Forgets which layers were in these blobs.
pub fn forget_checked(state: &StateFolder, blobs: &[&Digest]) -> Result<(), IndexError> {
    let keys: Vec<&[u8]> = blobs.iter().map(|digest| digest.as_bytes().as_slice()).collect();
    state.index().forget_memos(CHECKED, &keys)
}

/// Whose export a memo is of, by its key; none for a blob that was compressed anew.
fn exported_snapshot(key: &[u8]) -> Option<SnapshotId> {
    std::str::from_utf8(key).ok()?.lines().nth(1)?.parse().ok()
}

fn recall(state: &StateFolder, key: &[u8]) -> Result<Option<ExportedLayer>, LayerError> {
    let Some(bytes) = state.index().recall(MEMO, key)? else { return Ok(None) };
    // What cannot be read is made again.
    let Ok(known) = serde_json::from_slice::<ExportedLayer>(&bytes) else { return Ok(None) };
    Ok(state.blobs().contains_whole(&known.descriptor)?.then_some(known))
}

fn remember(state: &StateFolder, key: &[u8], layer: &ExportedLayer) -> Result<(), LayerError> {
    let bytes = serde_json::to_vec(layer).expect("a layer has string keys only");
    Ok(state.index().remember(MEMO, key, &bytes)?)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn state() -> (tempfile::TempDir, StateFolder) {
        let top = tempfile::tempdir().unwrap();
        let state = StateFolder::open(top.path()).unwrap();
        (top, state)
    }

    fn step(state: &StateFolder, fill: impl FnOnce(&Path)) -> SnapshotId {
        let draft = state.snapshots().draft().unwrap();
        fill(&draft.folder());
        state.snapshots().commit(&SnapshotId::random(), draft).unwrap().id
    }

    #[test]
    fn what_was_exported_unpacks_to_the_same_and_is_not_made_twice() {
        let (_top, state) = state();
        let id = step(&state, |folder| fs_err::write(folder.join("a"), "text").unwrap());
        for compression in ["uncompressed", "gzip", "zstd"] {
            let compression = Compression::named(compression, None).unwrap();
            let exported = export(&state, &id, Some(&[]), compression, None).unwrap();
            let back = unpack(&state, &exported.descriptor, &exported.diff_id).unwrap();
            assert_eq!(back.content, state.snapshots().get(&id).unwrap().unwrap().content);
            assert_eq!(export(&state, &id, Some(&[]), compression, None).unwrap(), exported);
            let anew =
                recompress(&state, &exported.descriptor, &exported.diff_id, compression).unwrap();
            assert_eq!(anew, exported);
        }
    }

    #[test]
    fn only_what_was_not_compressed_so_before_is_compressed() {
        let (_top, state) = state();
        let id = step(&state, |folder| fs_err::write(folder.join("a"), "text").unwrap());
        let check = |name: &str, level: Option<i32>, expected: bool| {
            let compression = Compression::named(name, level).unwrap();
            let compressed = Arc::new(AtomicBool::new(false));
            let seen = Arc::clone(&compressed);
            let begun = move |_| seen.store(true, Ordering::Relaxed);
            let watch = Watch { begun: Some(Box::new(begun)), unwanted: None };
            export_watched(&state, &id, Some(&[]), compression, None, watch).unwrap();
            assert_eq!(compressed.load(Ordering::Relaxed), expected, "{compression}");
        };
        check("gzip", None, true);
        check("gzip", None, false);
        check("gzip", Some(4), false);
        check("gzip", Some(9), true);
        check("zstd", None, true);
        check("zstd", Some(3), false);
        check("gzip", Some(9), false);
        // The codec's version is part of what is remembered: other versions make other bytes.
        assert!(Compression::default().to_string().contains("libdeflate-"));
    }

    #[test]
    fn a_layer_that_nobody_wants_is_given_up() {
        let (_top, state) = state();
        let id = step(&state, |folder| fs_err::write(folder.join("a"), vec![7; 1 << 20]).unwrap());
        let unwanted = Some(Arc::new(AtomicBool::new(true)));
        let watch = Watch { begun: None, unwanted };
        let given_up = export_watched(&state, &id, None, Compression::None, None, watch);
        assert!(given_up.unwrap_err().to_string().contains("nobody wants"));
        assert!(export(&state, &id, None, Compression::None, None).is_ok());
    }

    #[test]
    fn a_blob_that_is_gone_is_made_again() {
        let (_top, state) = state();
        let id = step(&state, |folder| fs_err::write(folder.join("a"), "text").unwrap());
        let exported = export(&state, &id, None, Compression::default(), None).unwrap();
        fs_err::remove_file(state.blobs().path(&exported.descriptor.digest)).unwrap();
        assert_eq!(export(&state, &id, None, Compression::default(), None).unwrap(), exported);
        assert!(state.blobs().contains(&exported.descriptor.digest).unwrap());
    }

    #[test]
    fn a_blob_is_not_taken_for_a_layer_that_is_here() {
        let (_top, state) = state();
        let [here, other] = ["here", "other"].map(|name| {
            let id = step(&state, |folder| fs_err::write(folder.join(name), name).unwrap());
            export(&state, &id, None, Compression::default(), None).unwrap()
        });
        unpack(&state, &here.descriptor, &here.diff_id).unwrap();
        for _ in ["for the first time", "remembered"] {
            check(&state, &here.descriptor, &here.diff_id).unwrap();
            let error = check(&state, &other.descriptor, &here.diff_id).unwrap_err();
            assert!(matches!(error, LayerError::DiffId { .. }), "{error}");
        }
    }

    #[test]
    fn a_layer_that_is_not_what_its_image_says_leaves_no_snapshot() {
        let (_top, state) = state();
        let id = step(&state, |folder| fs_err::write(folder.join("a"), "text").unwrap());
        let exported = export(&state, &id, None, Compression::default(), None).unwrap();
        let wrong = DiffId(Digest::of("other"));
        let error = unpack(&state, &exported.descriptor, &wrong).unwrap_err();
        assert!(matches!(error, LayerError::DiffId { .. }), "{error}");
        assert_eq!(state.snapshots().list().unwrap(), [id]);
        let path = state.blobs().path(&exported.descriptor.digest);
        let mut bytes = fs_err::read(&path).unwrap();
        bytes[60] ^= 1;
        fs_err::write(&path, bytes).unwrap();
        let error = unpack(&state, &exported.descriptor, &exported.diff_id).unwrap_err();
        assert!(matches!(error, LayerError::Store(StoreError::Digest { .. })), "{error}");
        assert!(!path.exists());
    }
}
