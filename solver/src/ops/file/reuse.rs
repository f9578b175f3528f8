//! A file that the last result of the same op holds already is linked into the new one, not copied:
//! after a change of one file among thousands, nearly all of a COPY is links.
//!
//! Committed snapshots never change, so one file may be part of several. Inside one snapshot it is
//! linked once at most, since a second name would be a hard link of the image: only the file at the
//! same path is taken, and only if it has no other name there.
//!
//! What the last result holds is written beside the context's memo, one flat file for each op; it
//! counts for nothing if it is missing, damaged or foreign, or if its snapshot is gone.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use rbuild_cache::digest::{Digest, Hasher};
use rbuild_cache::metadata::{Metadata, Timestamp};
use rbuild_cache::snapshot::SnapshotId;
use rbuild_cache::state::StateFolder;
use rustix::fs::AtFlags;
use rustix::io::Errno;

/// What begins the file: a name and the version of what follows.
const MAGIC: &[u8; 16] = b"rbuild layer 1\n\0";

/// With fewer files than this, copying costs less than looking.
const WORTH_IT: usize = 50;

/// Everything about a file but its name: its bytes, mode, owner and time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Identity(Digest);

impl Identity {
    pub(super) fn new(digest: Digest, metadata: &Metadata, time: Timestamp) -> Self {
        let mut hasher = Hasher::new();
        hasher.update(digest.as_bytes());
        hasher.update(metadata.mode.to_le_bytes());
        hasher.update(metadata.uid.to_le_bytes());
        hasher.update(metadata.gid.to_le_bytes());
        hasher.update(time.seconds.to_le_bytes());
        hasher.update(time.nanoseconds.to_le_bytes());
        Self(hasher.digest())
    }
}

/// The last result of an op.
#[derive(Debug)]
pub(super) struct Last {
    folder: fs_err::File,
    files: HashMap<PathBuf, Identity>,
}

impl Last {
    /// Reads what `file` says the last result was; `None` if there is none any more.
    pub(super) fn open(file: &Path, state: &StateFolder) -> Option<Self> {
        let bytes = fs_err::read(file).ok()?;
        let (snapshot, files) = decoded(&bytes)?;
        // From now on nobody removes it while this process runs.
        state.snapshots().get(&snapshot).ok()??;
        state.snapshots().ensure_whole(&snapshot).ok()?;
        let folder = fs_err::File::open(state.snapshots().folder(&snapshot)).ok()?;
        Some(Self { folder, files })
    }

    /// Links the file at `path` as `name` into `folder` if it is just like `identity`; returns
    /// whether it did.
    ///
    /// # Errors
    /// When `name` is there already. All other obstacles (too many links, another file system) mean
    /// that the file has to be copied.
    pub(super) fn link(
        &self,
        path: &Path,
        identity: Identity,
        folder: BorrowedFd<'_>,
        name: &OsStr,
    ) -> Result<bool, Errno> {
        if self.files.get(path) != Some(&identity) {
            return Ok(false);
        }
        let from = self.folder.file().as_fd();
        match rustix::fs::linkat(from, path, folder, name, AtFlags::empty()) {
            Ok(()) => Ok(true),
            Err(Errno::EXIST) => Err(Errno::EXIST),
            Err(_) => Ok(false),
        }
    }
}

/// Writes down that `snapshot` holds `files`, aside and renamed.
pub(super) fn save(
    file: &Path,
    snapshot: &SnapshotId,
    files: &HashMap<PathBuf, Identity>,
) -> std::io::Result<()> {
    if files.len() < WORTH_IT {
        return Ok(());
    }
    let mut aside = tempfile::NamedTempFile::new_in(file.parent().unwrap_or(Path::new(".")))?;
    aside.write_all(&encoded(snapshot, files))?;
    aside.persist(file).map_err(|error| error.error)?;
    Ok(())
}

fn encoded(snapshot: &SnapshotId, files: &HashMap<PathBuf, Identity>) -> Vec<u8> {
    let mut bytes = MAGIC.to_vec();
    field(&mut bytes, snapshot.as_str().as_bytes());
    for (path, identity) in files {
        bytes.extend(identity.0.as_bytes());
        field(&mut bytes, path.as_os_str().as_bytes());
    }
    let check = Digest::of(&bytes);
    bytes.extend(check.as_bytes());
    bytes
}

fn field(bytes: &mut Vec<u8>, field: &[u8]) {
    let length = u32::try_from(field.len()).expect("paths are shorter than 4 GiB");
    bytes.extend(length.to_le_bytes());
    bytes.extend(field);
}

fn decoded(bytes: &[u8]) -> Option<(SnapshotId, HashMap<PathBuf, Identity>)> {
    let (bytes, check) = bytes.split_last_chunk::<32>()?;
    if Digest::of(bytes).as_bytes() != check {
        return None;
    }
    let (snapshot, mut rest) = split_field(bytes.strip_prefix(MAGIC)?)?;
    let snapshot = std::str::from_utf8(snapshot).ok()?.parse().ok()?;
    let mut files = HashMap::new();
    while !rest.is_empty() {
        let (identity, after) = rest.split_first_chunk::<32>()?;
        let (path, after) = split_field(after)?;
        let path = PathBuf::from(OsString::from_vec(path.to_vec()));
        files.insert(path, Identity(Digest::from_bytes(*identity)));
        rest = after;
    }
    Some((snapshot, files))
}

fn split_field(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = bytes.split_first_chunk::<4>()?;
    rest.split_at_checked(usize::try_from(u32::from_le_bytes(*length)).ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_read_and_nothing_else() {
        let snapshot = SnapshotId::random();
        let identity = |text: &str| Identity(Digest::of(text));
        let files: HashMap<PathBuf, Identity> =
            [("a".into(), identity("a")), ("d/b".into(), identity("b"))].into();
        let bytes = encoded(&snapshot, &files);
        assert_eq!(decoded(&bytes), Some((snapshot, files)));
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1;
            assert_eq!(decoded(&damaged), None, "byte {at}");
            assert_eq!(decoded(&bytes[..at]), None, "{at} bytes");
        }
    }
}
