//! Blobs by digest, in the shape of an OCI layout's `blobs/` (image-spec, image-layout.md).
//!
//! A blob is written aside, hashed as it is written, and renamed to the name of its digest. Bytes
//! are not waited for until [`ContentStore::sync`], since a blob that a power loss damaged is found
//! out: whoever reads one compares it with its digest and size, and a damaged one is removed, so
//! that it is fetched or made again.

pub mod growing;

use std::collections::HashSet;
use std::io::{self, BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use fs_err::File;
use rayon::prelude::*;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::digest::{Digest, Hasher};
use crate::layer::whiteout::at;
use crate::metadata;
use crate::oci::Descriptor;
use crate::page_cache::PageCache;
use crate::session::Session;
use crate::sighting::Sighting;
use growing::{End, Growing};

/// No manifest, index or config is longer, in bytes. Registries refuse far shorter ones.
pub const MAX_DOCUMENT: u64 = 16 << 20;

/// Blobs by digest.
#[derive(Clone, Debug)]
pub struct ContentStore {
    /// `blobs/sha256`
    folder: PathBuf,
    session: Arc<Session>,
    /// Written by this process.
    own: Arc<Mutex<HashSet<Digest>>>,
    /// Written by this process and not yet synced.
    unsynced: Arc<Mutex<Vec<Digest>>>,
}

/// Says what is wrong with a blob.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// There is none.
    #[error("blob `{0}` is missing")]
    Missing(Digest),
    /// Its bytes are not those that its name promises.
    #[error("blob `{expected}` is damaged: its bytes have digest `{found}`")]
    Digest {
        /// What it is called.
        expected: Digest,
        /// What it is.
        found: Digest,
    },
    /// It is longer or shorter than its descriptor says.
    #[error("blob `{digest}` has {found} bytes instead of {expected}")]
    Size {
        /// What it is called.
        digest: Digest,
        /// The descriptor's size.
        expected: u64,
        /// Its size.
        found: u64,
    },
    /// It is too long to be read as a whole.
    #[error("blob `{digest}` of {size} bytes is too long for a `{kind}` (limit {MAX_DOCUMENT})")]
    TooLong {
        /// What it is called.
        digest: Digest,
        /// The descriptor's size.
        size: u64,
        /// Its media type.
        kind: String,
    },
    /// It is a link, a folder, a pipe: not a plain file.
    #[error("blob `{0}` is not a plain file")]
    NotAFile(Digest),
    /// The disk failed.
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl StoreError {
    /// Whether a blob is not what it was, or no longer there.
    pub fn is_damage(&self) -> bool {
        match self {
            Self::Missing(_) | Self::Digest { .. } | Self::Size { .. } | Self::NotAFile(_) => true,
            Self::TooLong { .. } | Self::Io(_) => false,
        }
    }

    /// What went wrong when a [`BlobReader`] was read.
    pub fn of_reading(error: io::Error) -> Self {
        error.downcast().unwrap_or_else(Self::Io)
    }
}

impl ContentStore {
    /// The blobs in `folder`, which exists; they are written aside in `session`.
    pub fn new(folder: PathBuf, session: Arc<Session>) -> Self {
        Self { folder, session, own: Arc::default(), unsynced: Arc::default() }
    }

    /// Whether there is a blob called `digest`; if so, nobody removes it while this process runs.
    ///
    /// Its bytes are not looked at.
    pub fn contains(&self, digest: &Digest) -> Result<bool, StoreError> {
        self.session.hold(&hold_name(digest))?;
        match fs_err::symlink_metadata(self.path(digest)) {
            Ok(metadata) => {
                self.note_use(digest, &metadata);
                Ok(metadata.is_file())
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(e) => Err(e.into()),
        }
    }

    /// The time of a blob's last writing is when it was last used, to the minute.
    fn note_use(&self, digest: &Digest, metadata: &std::fs::Metadata) {
        use std::os::unix::fs::MetadataExt;
        if metadata.is_file() && (metadata.mtime() - self.session.begun()).abs() >= 60 {
            // In a store that cannot be written to, nothing is removed either.
            let _ = File::open(self.path(digest)).and_then(|file| metadata::touch(file.file()));
        }
    }

    /// Whether there is a blob called as `descriptor` says and as long. One that is not as long and
    /// damaged is removed.
    pub fn contains_whole(&self, descriptor: &Descriptor) -> Result<bool, StoreError> {
        if !self.contains(&descriptor.digest)? {
            return Ok(false);
        }
        let found = fs_err::metadata(self.path(&descriptor.digest));
        if found.is_ok_and(|metadata| metadata.len() == descriptor.size) {
            return Ok(true);
        }
        match self.reader(descriptor) {
            Ok(_) => Ok(true),
            Err(StoreError::Size { .. } | StoreError::Missing(_)) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Where the blob called `digest` is, whether or not it is there.
    pub fn path(&self, digest: &Digest) -> PathBuf {
        self.folder.join(digest.hex())
    }

    /// Opens a blob whose bytes the caller checks. A link or pipe in its place is refused.
    pub fn open(&self, digest: &Digest) -> Result<File, StoreError> {
        self.session.hold(&hold_name(digest))?;
        // NONBLOCK: opening a pipe would wait for its writer.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let path = self.path(digest);
        let file = match rustix::fs::open(&path, flags, Mode::empty()) {
            Ok(file) => File::from_parts(file.into(), path),
            Err(Errno::NOENT) => return Err(StoreError::Missing(*digest)),
            Err(Errno::LOOP) => return Err(StoreError::NotAFile(*digest)),
            Err(e) => return Err(at(&path, e).into()),
        };
        let metadata = file.metadata()?;
        self.note_use(digest, &metadata);
        if metadata.is_file() { Ok(file) } else { Err(StoreError::NotAFile(*digest)) }
    }

    /// Reads a blob that is checked on the way: the end comes only if all bytes were right.
    pub fn reader(&self, descriptor: &Descriptor) -> Result<BlobReader, StoreError> {
        let file = self.open(&descriptor.digest)?;
        let found = file.metadata()?.len();
        if found != descriptor.size {
            let (digest, expected) = (descriptor.digest, descriptor.size);
            // Anybody's index may name a blob of ours with a wrong size: that does not make it wrong.
            if Digest::of_stream(&file)?.0 != digest {
                self.take_away(&digest, &file)?;
            }
            return Err(StoreError::Size { digest, expected, found });
        }
        let (hasher, expected) = (Some(Hasher::new()), descriptor.digest);
        Ok(BlobReader { file, hasher, expected, store: self.clone(), leaves: None })
    }

    /// Like [`Self::reader`], for who sends the blob away: what has gone does not stay in memory, and what
    /// this process wrote itself is not hashed once more, as who gets it compares it with its digest.
    pub fn leaving(&self, descriptor: &Descriptor) -> Result<BlobReader, StoreError> {
        let mut reader = self.reader(descriptor)?;
        reader.leaves = Some((PageCache::default(), 0));
        if lock(&self.own).contains(&descriptor.digest) {
            reader.hasher = None;
        }
        Ok(reader)
    }

    /// A whole small blob (manifest, index, config), checked.
    pub fn read(&self, descriptor: &Descriptor) -> Result<Vec<u8>, StoreError> {
        if descriptor.size > MAX_DOCUMENT {
            return Err(StoreError::TooLong {
                digest: descriptor.digest,
                size: descriptor.size,
                kind: descriptor.media_type.to_string(),
            });
        }
        let mut bytes = Vec::with_capacity(usize::try_from(descriptor.size).unwrap_or(0));
        let mut reader = self.reader(descriptor)?;
        match reader.read_to_end(&mut bytes) {
            Ok(_) => Ok(bytes),
            Err(e) => Err(StoreError::of_reading(e)),
        }
    }

    /// Stores `bytes`.
    pub fn put(&self, bytes: &[u8]) -> Result<Digest, StoreError> {
        let digest = Digest::of(bytes);
        if self.contains(&digest)? {
            let there = fs_err::metadata(self.path(&digest))?.len();
            if there == bytes.len() as u64 {
                return Ok(digest);
            }
        }
        let mut writer = self.writer()?;
        writer.write_all(bytes)?;
        Ok(writer.commit(None)?.0)
    }

    /// Starts a blob. Dropped without [`BlobWriter::commit`], it never was.
    pub fn writer(&self) -> Result<BlobWriter, StoreError> {
        let path = self.session.unused_path();
        let file = File::options().create_new(true).write(true).open(&path)?;
        let file = BufWriter::with_capacity(256 << 10, file);
        let (store, hasher) = (self.clone(), Hasher::new());
        Ok(BlobWriter { store, path: Some(path), file, hasher, written: 0, growing: None })
    }

    /// Stores what `stream` yields to its end, which must have the given digest and size if any.
    pub fn ingest(
        &self,
        stream: &mut dyn Read,
        expected: Option<(Digest, u64)>,
    ) -> Result<(Digest, u64), StoreError> {
        let mut writer = self.writer()?;
        // One byte more than expected is enough to know that it is too long.
        let limit = expected.map_or(u64::MAX, |(_, size)| size.saturating_add(1));
        io::copy(&mut stream.take(limit), &mut writer)?;
        writer.commit(expected)
    }

    /// Waits until the blobs that this process wrote would outlive a power loss.
    pub fn sync(&self) -> Result<(), StoreError> {
        self.sync_those(|_| true)
    }

    /// Like [`Self::sync`] for those that are `wanted` alone: the disk is slow, and nobody misses
    /// what can be fetched again.
    pub fn sync_those(&self, wanted: impl Fn(&Digest) -> bool) -> Result<(), StoreError> {
        let written: Vec<Digest> =
            { lock(&self.unsynced).extract_if(.., |digest| wanted(digest)).collect() };
        if written.is_empty() {
            return Ok(());
        }
        // Side by side: the file system writes what it is asked for at once as one.
        written.par_iter().try_for_each(|digest| match File::open(self.path(digest)) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            opened => opened?.sync_all(),
        })?;
        File::open(&self.folder)?.sync_all()?;
        Ok(())
    }

    /// Waits until the bytes of a blob are on the disk, so that [`Self::sync`] finds little to wait for.
    /// Its name is left to that.
    pub fn sync_bytes(&self, digest: &Digest) -> Result<(), StoreError> {
        match File::open(self.path(digest)) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            opened => Ok(opened?.sync_data()?),
        }
    }

    /// Removes a damaged blob, which `file` opens. What somebody else has stored in its place since
    /// stays.
    fn take_away(&self, digest: &Digest, file: &File) -> io::Result<()> {
        self.session.take_away(&self.path(digest), &Sighting::of(file)?).map(drop)
    }

    /// Moves a blob that nobody holds out of the way, to where the caller removes it; `None` when
    /// there is none. To be called in [`Session::alone`].
    pub(crate) fn move_aside(&self, digest: &Digest) -> io::Result<Option<PathBuf>> {
        let aside = self.session.unused_path();
        match fs_err::rename(self.path(digest), &aside) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            done => done.map(|()| Some(aside)),
        }
    }

    /// All blobs with their sizes in bytes, in no order.
    pub fn list(&self) -> Result<Vec<(Digest, u64)>, StoreError> {
        let mut blobs = Vec::new();
        for entry in fs_err::read_dir(&self.folder)? {
            let entry = entry?;
            let name = entry.file_name();
            let digest = name.to_str().and_then(|hex| format!("sha256:{hex}").parse().ok());
            let size = match entry.metadata() {
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                metadata => metadata?.len(),
            };
            blobs.extend(digest.map(|digest| (digest, size)));
        }
        Ok(blobs)
    }
}

/// What a blob is called among the names that sessions hold.
pub(crate) fn hold_name(digest: &Digest) -> String {
    format!("blob-{}", digest.hex())
}

/// A blob that is being written.
#[derive(Debug)]
pub struct BlobWriter {
    store: ContentStore,
    /// Absent once it was committed.
    path: Option<PathBuf>,
    file: BufWriter<File>,
    hasher: Hasher,
    /// Bytes, those in the buffer included.
    written: u64,
    /// For those who read it meanwhile.
    growing: Option<Growing>,
}

impl BlobWriter {
    /// The blob for those who want to read it while it is written.
    pub fn growing(&mut self) -> Result<Growing, StoreError> {
        if let Some(growing) = &self.growing {
            return Ok(growing.clone());
        }
        let growing = Growing::new(File::open(self.path())?, self.in_file());
        Ok(self.growing.insert(growing).clone())
    }

    fn in_file(&self) -> u64 {
        self.written - self.file.buffer().len() as u64
    }

    /// Where it is being written. What is written through this path instead of through the writer
    /// must be vouched for: [`BlobWriter::commit_written`].
    ///
    /// # Panics
    /// Never: only committing takes the path, and it takes `self` as well.
    pub fn path(&self) -> &Path {
        self.path.as_deref().expect("`commit` takes the path together with `self`")
    }

    /// Checks what was written, when there is something to compare it with, and gives the blob its
    /// name.
    pub fn commit(mut self, expected: Option<(Digest, u64)>) -> Result<(Digest, u64), StoreError> {
        self.file.flush()?;
        let (digest, size) = std::mem::take(&mut self.hasher).finish();
        check(expected, digest, size)?;
        self.rename(digest, size)?;
        Ok((digest, size))
    }

    /// Like [`BlobWriter::commit`] for a file that was written through [`BlobWriter::path`], in
    /// any order: it is read back and hashed.
    pub fn commit_written(mut self, expected: (Digest, u64)) -> Result<(Digest, u64), StoreError> {
        self.file.flush()?;
        let (digest, size) = Digest::of_stream(File::open(self.path())?)?;
        check(Some(expected), digest, size)?;
        self.rename(digest, size)?;
        Ok((digest, size))
    }

    fn rename(&mut self, digest: Digest, size: u64) -> Result<(), StoreError> {
        let put = || fs_err::rename(self.path(), self.store.path(&digest));
        self.store.session.hold_with(&hold_name(&digest), put)??;
        self.path = None;
        lock(&self.store.own).insert(digest);
        lock(&self.store.unsynced).push(digest);
        if let Some(growing) = &self.growing {
            growing.ended(End::Whole(digest, size));
        }
        Ok(())
    }
}

fn check(expected: Option<(Digest, u64)>, digest: Digest, size: u64) -> Result<(), StoreError> {
    match expected {
        Some((expected, length)) if length != size => {
            Err(StoreError::Size { digest: expected, expected: length, found: size })
        }
        Some((expected, _)) if expected != digest => {
            Err(StoreError::Digest { expected, found: digest })
        }
        _ => Ok(()),
    }
}

impl Write for BlobWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.hasher.update(&bytes[..written]);
        self.written += written as u64;
        if let Some(growing) = &self.growing {
            growing.is_at(self.in_file());
        }
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Drop for BlobWriter {
    fn drop(&mut self) {
        if let Some(growing) = &self.growing {
            growing.ended(End::Broken);
        }
        if let Some(path) = &self.path {
            // What cannot be removed now goes with the session.
            let _ = fs_err::remove_file(path);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Reads a blob and checks it: see [`ContentStore::reader`].
#[derive(Debug)]
pub struct BlobReader {
    file: File,
    /// Absent once the end was reached, and where nothing is compared.
    hasher: Option<Hasher>,
    expected: Digest,
    store: ContentStore,
    /// Who has the kernel forget what was read, and how much that is.
    leaves: Option<(PageCache, u64)>,
}

impl Read for BlobReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read(buffer)?;
        if let Some(hasher) = &mut self.hasher {
            hasher.update(&buffer[..read]);
        }
        if let Some((cache, position)) = &mut self.leaves {
            *position += read as u64;
            cache.is_at(*position, &self.file);
        }
        if read > 0 || buffer.is_empty() {
            return Ok(read);
        }
        let found = self.hasher.take().map_or(self.expected, Hasher::digest);
        if found == self.expected {
            return Ok(0);
        }
        self.store.take_away(&self.expected, &self.file).map_err(io::Error::other)?;
        Err(io::Error::other(StoreError::Digest { expected: self.expected, found }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::MediaType;

    pub(super) fn store() -> (tempfile::TempDir, ContentStore) {
        let top = tempfile::tempdir().unwrap();
        fs_err::create_dir_all(top.path().join("tmp")).unwrap();
        fs_err::create_dir_all(top.path().join("blobs")).unwrap();
        let session = Session::start(&top.path().join("tmp")).unwrap();
        let store = ContentStore::new(top.path().join("blobs"), session);
        (top, store)
    }

    fn descriptor(bytes: &[u8]) -> Descriptor {
        Descriptor::of(MediaType::OciConfig, bytes)
    }

    #[test]
    fn a_blob_is_there_once_it_was_committed_and_not_before() {
        let (top, store) = store();
        let mut writer = store.writer().unwrap();
        writer.write_all(b"hello").unwrap();
        assert!(!store.contains(&Digest::of("hello")).unwrap());
        drop(writer);
        let session = fs_err::read_dir(top.path().join("tmp")).unwrap().next().unwrap().unwrap();
        assert_eq!(fs_err::read_dir(session.path()).unwrap().count(), 1, "only `held` is left");
        store.put(b"hello").unwrap();
        store.sync().unwrap();
        assert_eq!(store.read(&descriptor(b"hello")).unwrap(), b"hello");
        assert_eq!(store.list().unwrap(), [(Digest::of("hello"), 5)]);
    }

    #[test]
    fn only_what_is_wanted_is_waited_for() {
        let (_top, store) = store();
        let (one, two) = (store.put(b"one").unwrap(), store.put(b"two").unwrap());
        store.sync_those(|digest| *digest == one).unwrap();
        assert_eq!(*store.unsynced.lock().unwrap(), [two]);
        store.sync().unwrap();
        assert!(store.unsynced.lock().unwrap().is_empty());
    }

    #[test]
    fn what_is_not_what_it_should_be_is_not_stored() {
        let (_top, store) = store();
        let check = |expected: (Digest, u64), message: &str| {
            let error = store.ingest(&mut &b"hello"[..], Some(expected)).unwrap_err();
            assert!(error.to_string().contains(message), "{error}");
            assert_eq!(store.list().unwrap(), []);
        };
        check((Digest::of("hallo"), 5), "is damaged");
        check((Digest::of("hello"), 4), "5 bytes instead of 4");
        check((Digest::of("hello"), 6), "5 bytes instead of 6");
    }

    #[test]
    fn a_damaged_blob_is_noticed_and_removed() {
        let (_top, store) = store();
        let wanted = descriptor(b"hello");
        for damaged in ["hellO", "hell", "", "hello!"] {
            store.put(b"hello").unwrap();
            fs_err::write(store.path(&wanted.digest), damaged).unwrap();
            store.read(&wanted).unwrap_err();
            assert!(!store.contains(&wanted.digest).unwrap(), "{damaged}");
        }
    }

    #[test]
    fn a_good_blob_survives_a_descriptor_with_a_wrong_size() {
        let (_top, store) = store();
        let good = descriptor(b"hello");
        store.put(b"hello").unwrap();
        for size in [0, 4, 6, 1 << 40] {
            let wrong = Descriptor { size, ..good.clone() };
            assert!(matches!(store.reader(&wrong), Err(StoreError::Size { .. })), "{size}");
            assert!(!store.contains_whole(&wrong).unwrap(), "{size}");
            assert_eq!(store.read(&good).unwrap(), b"hello");
        }
    }

    #[test]
    fn what_others_wrote_is_checked_when_it_leaves() {
        let (top, ours) = store();
        let session = Session::start(&top.path().join("tmp")).unwrap();
        let theirs = ContentStore::new(top.path().join("blobs"), session);
        let wanted = descriptor(b"hello");
        ours.put(b"hello").unwrap();
        let leaves = |store: &ContentStore| {
            let mut text = String::new();
            store.leaving(&wanted).unwrap().read_to_string(&mut text).map(|_| text)
        };
        assert_eq!(leaves(&ours).unwrap(), "hello");
        assert_eq!(leaves(&theirs).unwrap(), "hello");
        fs_err::write(ours.path(&wanted.digest), "hellO").unwrap();
        assert_eq!(leaves(&ours).unwrap(), "hellO");
        leaves(&theirs).unwrap_err();
        assert!(!ours.contains(&wanted.digest).unwrap());
    }

    /// As two builds that read the same damaged blob do.
    #[test]
    fn what_was_stored_in_the_place_of_a_damaged_blob_stays() {
        let (top, ours) = store();
        let session = Session::start(&top.path().join("tmp")).unwrap();
        let theirs = ContentStore::new(top.path().join("blobs"), session);
        let wanted = descriptor(b"hello");
        ours.put(b"hello").unwrap();
        fs_err::write(ours.path(&wanted.digest), "hellO").unwrap();
        let mut reader = ours.reader(&wanted).unwrap();
        theirs.read(&wanted).unwrap_err();
        theirs.put(b"hello").unwrap();
        reader.read_to_end(&mut Vec::new()).unwrap_err();
        assert_eq!(theirs.read(&wanted).unwrap(), b"hello");
        let damaged = File::open(ours.path(&wanted.digest)).unwrap();
        let mut writer = theirs.writer().unwrap();
        writer.write_all(b"hello").unwrap();
        writer.commit(None).unwrap();
        ours.take_away(&wanted.digest, &damaged).unwrap();
        assert_eq!(theirs.read(&wanted).unwrap(), b"hello");
    }

    #[test]
    fn links_pipes_and_folders_are_no_blobs() {
        let (top, store) = store();
        let wanted = descriptor(b"hello");
        let path = store.path(&wanted.digest);
        fs_err::write(top.path().join("outside"), "hello").unwrap();
        fs_err::os::unix::fs::symlink(top.path().join("outside"), &path).unwrap();
        assert!(matches!(store.read(&wanted), Err(StoreError::NotAFile(_))));
        fs_err::remove_file(&path).unwrap();
        rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, 0o600.into(), 0)
            .unwrap();
        assert!(matches!(store.read(&wanted), Err(StoreError::NotAFile(_))));
        fs_err::remove_file(&path).unwrap();
        fs_err::create_dir(&path).unwrap();
        assert!(matches!(store.read(&wanted), Err(StoreError::NotAFile(_))));
    }

    #[test]
    fn a_huge_document_is_refused_before_it_is_read() {
        let (_top, store) = store();
        let huge = Descriptor { size: u64::MAX, ..descriptor(b"hello") };
        assert!(matches!(store.read(&huge), Err(StoreError::TooLong { .. })));
    }
}
