//! Adding to an OCI layout in a folder of the user's (image-spec, image-layout.md): a cache that
//! several machines share, an image that was exported as a folder.
//!
//! Each file is written beside its place and renamed, so that readers see it whole or not at all. A
//! blob that is there already is compared with its digest: the folder may live as long as a project,
//! and what a full disk or a cut transfer left in it would otherwise never heal.

use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use rbuild_cache::digest::Digest;
use rbuild_cache::oci::Descriptor;
use rbuild_cache::store::{ContentStore, StoreError};

use crate::oci_layout::open_plain;

const LAYOUT: &[u8] = br#"{"imageLayoutVersion":"1.0.0"}"#;

/// A folder that is, or becomes, an OCI layout.
#[derive(Clone, Debug)]
pub(crate) struct LayoutFolder {
    path: PathBuf,
    blobs: PathBuf,
}

impl LayoutFolder {
    /// The layout in `path`, which is made when it is missing.
    pub(crate) fn make(path: &Path) -> io::Result<Self> {
        let blobs = path.join("blobs/sha256");
        fs_err::create_dir_all(&blobs)?;
        Ok(Self { path: path.to_owned(), blobs })
    }

    /// Where its index is.
    pub(crate) fn index(&self) -> PathBuf {
        self.path.join("index.json")
    }

    /// Copies a blob of `store` into it, unless it is there and whole.
    pub(crate) fn add(&self, store: &ContentStore, blob: &Descriptor) -> Result<(), StoreError> {
        let place = self.blobs.join(blob.digest.hex());
        if holds(&place, blob) {
            return Ok(());
        }
        // Checked first, then copied by the kernel, which shares the bytes where the disk can.
        io::copy(&mut store.reader(blob)?, &mut io::sink()).map_err(StoreError::of_reading)?;
        let source = store.open(&blob.digest)?;
        replace(&place, |file| io::copy(&mut source.file(), file).map(drop))?;
        Ok(())
    }

    /// Writes a document into it.
    pub(crate) fn put(&self, digest: &Digest, bytes: &[u8]) -> io::Result<()> {
        replace(&self.blobs.join(digest.hex()), |file| file.write_all(bytes))
    }

    /// Makes `index` its index: last, since everything that it names must be there.
    pub(crate) fn set_index(&self, index: &[u8]) -> io::Result<()> {
        replace(&self.path.join("oci-layout"), |file| file.write_all(LAYOUT))?;
        replace(&self.index(), |file| file.write_all(index))
    }
}

/// Whether the blob is at `place`. What cannot be read is not there.
fn holds(place: &Path, blob: &Descriptor) -> bool {
    let Ok(mut file) = open_plain(place) else { return false };
    file.metadata().is_ok_and(|there| there.len() == blob.size)
        && Digest::of_stream(&mut file).is_ok_and(|(digest, _)| digest == blob.digest)
}

/// Writes a file beside its place and renames it.
fn replace(
    place: &Path,
    write: impl FnOnce(&mut std::fs::File) -> io::Result<()>,
) -> io::Result<()> {
    let folder = place.parent().unwrap_or(Path::new("."));
    let mut file = tempfile::Builder::new()
        .prefix(".rbuild-")
        .permissions(std::fs::Permissions::from_mode(0o666))
        .tempfile_in(folder)?;
    write(file.as_file_mut())?;
    file.persist(place)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use rbuild_cache::oci::MediaType;
    use rbuild_cache::state::StateFolder;

    use super::*;

    #[test]
    fn a_damaged_blob_heals_and_a_whole_one_stays() {
        use std::os::unix::fs::MetadataExt;
        let top = tempfile::tempdir().unwrap();
        let state = StateFolder::open(top.path().join("state")).unwrap();
        let folder = LayoutFolder::make(&top.path().join("layout")).unwrap();
        let blob = Descriptor::of(MediaType::OciLayer, b"hello");
        state.blobs().put(b"hello").unwrap();
        let place = folder.blobs.join(blob.digest.hex());
        let check = |spoil: &dyn Fn()| {
            let _ = fs_err::remove_file(&place);
            spoil();
            folder.add(state.blobs(), &blob).unwrap();
            assert_eq!(fs_err::read(&place).unwrap(), b"hello");
            assert!(fs_err::symlink_metadata(&place).unwrap().is_file());
        };
        check(&|| {});
        check(&|| fs_err::write(&place, "hallo").unwrap());
        check(&|| fs_err::write(&place, "hell").unwrap());
        check(&|| {
            let mode = 0o600.into();
            let kind = rustix::fs::FileType::Fifo;
            rustix::fs::mknodat(rustix::fs::CWD, &place, kind, mode, 0).unwrap();
        });
        let inode = || fs_err::metadata(&place).unwrap().ino();
        let before = inode();
        folder.add(state.blobs(), &blob).unwrap();
        assert_eq!(inode(), before);
        // What is damaged here is not passed on.
        fs_err::write(state.blobs().path(&blob.digest), "hxllo").unwrap();
        fs_err::remove_file(&place).unwrap();
        let error = folder.add(state.blobs(), &blob).unwrap_err();
        assert!(matches!(error, StoreError::Digest { .. }), "{error}");
        assert!(!place.exists());
    }
}
