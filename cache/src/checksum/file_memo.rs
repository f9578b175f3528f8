//! What the files of a context hashed to when they were last read: one flat file for a context.
//!
//! It is read in one go and asked where it lies, by a table of where which file's record is, so that
//! 200,000 of them cost little more than reading them.

use std::collections::{HashMap, HashSet};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use fs_err as fs;
use rayon::prelude::*;
use rustix::fs::{FsWord, fstatfs};

use super::ChecksumError;
use crate::digest::{Digest, Hasher};
use crate::metadata::{Metadata, Timestamp};
use crate::view::{Entry, View};

/// What begins a memo's file: a name and the version of what follows.
const MAGIC: &[u8; 16] = b"rbuild files 2\n\0";

/// Bytes of what tells a version of a file: file system, inode, size, modified, changed.
const VERSION: usize = 8 + 8 + 8 + 12 + 12;

/// Bytes of it that tell the file: file system and inode.
const FILE: usize = 8 + 8;

/// Bytes of a record: a version, and the digest.
const RECORD: usize = VERSION + 32;

/// So many bytes of the file are checked by one thread at a time.
const PIECE: usize = 1 << 20;

/// Records that nobody asked for are kept up to this number, beside those that were.
const UNUSED_MAX: usize = 200_000;

/// How many times a file that changes while it is read is read again.
const READS_MAX: usize = 3;

/// Which file, in which version, as it is written: sorted as the bytes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Version([u8; VERSION]);

impl Version {
    fn of(metadata: &Metadata) -> Self {
        let mut bytes = [0; VERSION];
        let mut rest = &mut bytes[..];
        let mut add = |field: &[u8]| {
            let (here, after) = std::mem::take(&mut rest).split_at_mut(field.len());
            here.copy_from_slice(field);
            rest = after;
        };
        for number in [metadata.file_system, metadata.inode, metadata.size] {
            add(&number.to_be_bytes());
        }
        for time in [metadata.modified, metadata.changed] {
            add(&time.seconds.to_be_bytes());
            add(&time.nanoseconds.to_be_bytes());
        }
        Self(bytes)
    }

    fn file(&self) -> &[u8] {
        &self.0[..FILE]
    }
}

/// What files hashed to, by file system, inode, size and times; one flat file for a context.
///
/// A file that was changed without any of these changing would go unnoticed. The kernel sets the
/// time of change (ctime), and nobody else can, but its clock ticks only every few milliseconds:
/// a file changed twice within one tick looks the same both times. So, like git ("racy git"), what
/// was hashed too soon after the last change is not remembered. Which time it is, a new file in the
/// memo's own folder tells: it is the same clock.
///
/// Nor is remembered what lies where times of change mean nothing (`keeps_times_of_change`).
///
/// The memo is no more than a help: a missing, damaged or foreign file counts as empty.
#[derive(Debug, Default)]
pub struct FileMemo {
    file: Option<PathBuf>,
    /// The folder in which it is written before it gets its name.
    aside: PathBuf,
    known: Records,
    fresh: Mutex<HashMap<Version, Digest>>,
    /// How many of the fresh ones are written down.
    saved: AtomicUsize,
    begun: OnceLock<Option<Timestamp>>,
}

impl FileMemo {
    /// A memo that remembers nothing.
    pub fn none() -> Self {
        Self::default()
    }

    /// The memo kept in `file`, which need not exist; its folder must, and so must `aside`, in which it
    /// is written.
    pub fn open(file: PathBuf, aside: PathBuf) -> Self {
        let known = Records::read(&file).unwrap_or_default();
        Self { file: Some(file), aside, known, ..Self::default() }
    }

    /// The file of a memo that knows nothing.
    #[cfg(test)]
    pub(crate) fn file_of_none() -> Vec<u8> {
        encoded(&[])
    }

    /// Whether `bytes` are a memo's file, undamaged.
    pub fn is_whole(bytes: &[u8]) -> bool {
        whole_records(bytes).is_some()
    }

    /// The digest of a regular file's bytes, if it is known.
    pub fn known(&self, metadata: &Metadata) -> Option<Digest> {
        let version = Version::of(metadata);
        self.known.find(&version).or_else(|| {
            self.fresh.lock().unwrap_or_else(PoisonError::into_inner).get(&version).copied()
        })
    }

    /// The digest of a regular file's bytes, and its metadata when they were read: the same as
    /// before unless it changed in between.
    ///
    /// # Errors
    /// [`ChecksumError::Changing`] when it changes each time it is read.
    pub fn digest(&self, view: &View, entry: &Entry) -> Result<(Digest, Metadata), ChecksumError> {
        let lock = || self.fresh.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(digest) = self.known(entry.metadata()) {
            return Ok((digest, *entry.metadata()));
        }
        let begun = self.begun();
        let failed = |source| ChecksumError::Read { path: entry.absolute_path(), source };
        for _ in 0..READS_MAX {
            let file = view.open(entry)?;
            let before = Metadata::of(&file).map_err(failed)?;
            let (digest, _) = Digest::of_stream(&file).map_err(failed)?;
            let after = Metadata::of(&file).map_err(failed)?;
            if view.may_change() && !after.is_same_version(&before) {
                continue;
            }
            if begun.is_some_and(|begun| is_settled(&after, begun))
                && fstatfs(&file).is_ok_and(|about| keeps_times_of_change(about.f_type))
            {
                lock().insert(Version::of(&after), digest);
            }
            let (uid, gid) = (entry.metadata().uid, entry.metadata().gid);
            return Ok((digest, Metadata { uid, gid, ..after }));
        }
        Err(ChecksumError::Changing(entry.absolute_path()))
    }

    /// Whether anything was learned that is not written down.
    pub fn has_news(&self) -> bool {
        let fresh = self.fresh.lock().unwrap_or_else(PoisonError::into_inner);
        self.file.is_some() && fresh.len() > self.saved.load(Ordering::Relaxed)
    }

    /// Writes down what was learned since the last time, if anything was: aside, then renamed. Of two
    /// processes that save at once, one's news are lost.
    pub fn save(&self) -> io::Result<()> {
        let Some(file) = &self.file else { return Ok(()) };
        let fresh = self.fresh.lock().unwrap_or_else(PoisonError::into_inner);
        if fresh.len() == self.saved.load(Ordering::Relaxed) {
            return Ok(());
        }
        // A file has one version at a time: news replace what was known of the same inode.
        let renewed: HashSet<&[u8]> = fresh.keys().map(Version::file).collect();
        let mut unused = 0;
        let kept = self.known.iter().filter(|(record, used)| {
            unused += usize::from(!used);
            (*used || unused <= UNUSED_MAX) && !renewed.contains(&record[..FILE])
        });
        let fresh_records = fresh.iter().map(|(version, digest)| record(version, digest));
        let mut records: Vec<[u8; RECORD]> =
            kept.map(|(record, _)| *record).chain(fresh_records).collect();
        #[expect(clippy::stable_sort_primitive, reason = "it makes use of most lying in order")]
        records.sort();
        let mut aside = tempfile::NamedTempFile::new_in(&self.aside)?;
        aside.write_all(&encoded(&records))?;
        aside.persist(file).map_err(|error| error.error)?;
        self.saved.store(fresh.len(), Ordering::Relaxed);
        Ok(())
    }

    /// The time at which the first file was hashed, as the file system's clock has it.
    fn begun(&self) -> Option<Timestamp> {
        *self.begun.get_or_init(|| {
            let folder = self.file.as_ref()?.parent()?;
            let probe = tempfile::tempfile_in(folder).ok()?;
            Metadata::of(&probe).ok().map(|metadata| metadata.modified)
        })
    }
}

/// The memos of a process, each read once however many steps copy from its context.
#[derive(Debug)]
pub struct FileMemos {
    aside: PathBuf,
    open: Mutex<HashMap<PathBuf, Arc<FileMemo>>>,
}

impl FileMemos {
    /// Those of a process that writes aside in the folder `aside`.
    pub fn new(aside: PathBuf) -> Self {
        Self { aside, open: Mutex::default() }
    }

    /// The memo kept in `file`.
    pub fn open(&self, file: PathBuf) -> Arc<FileMemo> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let memo = open
            .entry(file)
            .or_insert_with_key(|file| Arc::new(FileMemo::open(file.clone(), self.aside.clone())));
        Arc::clone(memo)
    }
}

/// Whether files of a file system of the type `magic` have a time of change of their own. Whoever makes
/// an image for mounting can give all its files one time, so that those of two images, mounted one
/// after the other, differ in nothing but their bytes. FAT calls the time of writing that.
fn keeps_times_of_change(magic: FsWord) -> bool {
    // The kernel's numbers (linux/magic.h) are 32 bits wide; the field's width depends on the
    // architecture.
    let magic = u32::try_from(magic & 0xffff_ffff).unwrap_or_default();
    !matches!(
        magic,
        0x7371_7368 // squashfs
            | 0xE0F5_E1E2 // EROFS
            | 0x9660 // ISO 9660
            | 0x1501_3346 // UDF
            | 0x28CD_3D45 // cramfs
            | 0x7275 // romfs
            | 0x4D44 // FAT
            | 0x2011_BAB0 // exFAT
    )
}

/// Whether `metadata` changed so long before `begun` that a later change cannot look the same.
fn is_settled(metadata: &Metadata, begun: Timestamp) -> bool {
    let changed = metadata.changed.max(metadata.modified);
    // Times without fractions come from file systems that count whole seconds, or two.
    let coarse = metadata.changed.nanoseconds == 0;
    let slack: i128 = if coarse { 3_000_000_000 } else { 50_000_000 };
    let nanoseconds =
        |time: Timestamp| i128::from(time.seconds) * 1_000_000_000 + i128::from(time.nanoseconds);
    nanoseconds(changed) + slack < nanoseconds(begun)
}

/// The records of a memo's file, as they lie there.
#[derive(Debug, Default)]
struct Records {
    /// [`MAGIC`], the records, sorted, and the check.
    bytes: Vec<u8>,
    /// Which of them were asked for.
    used: Vec<AtomicBool>,
    /// Where the records of files are, by a hash of the file: each in the first place that is free.
    places: Vec<u32>,
}

/// What is in a place where no record is.
const FREE: u32 = u32::MAX;

impl Records {
    /// Those of `file`; `None` for anything that [`encoded`] did not write.
    fn read(file: &Path) -> Option<Self> {
        let mut bytes = Vec::new();
        fs::File::open(file).ok()?.read_to_end(&mut bytes).ok()?;
        let records = whole_records(&bytes)? / RECORD;
        // Places are numbered with 32 bits.
        (records < FREE as usize).then_some(())?;
        let used = (0..records).map(|_| AtomicBool::new(false)).collect();
        let mut records = Self { bytes, used, places: Vec::new() };
        records.places = records.placed();
        Some(records)
    }

    /// A place for each record; half of them and more stay free, so that few are tried.
    fn placed(&self) -> Vec<u32> {
        let mut places = vec![FREE; (2 * self.used.len() + 1).next_power_of_two()];
        for (number, record) in (0..FREE).zip(self.all()) {
            let mut place = place_of(record, places.len());
            while places[place] != FREE {
                place = (place + 1) % places.len();
            }
            places[place] = number;
        }
        places
    }

    fn all(&self) -> &[[u8; RECORD]] {
        let records = self.bytes.get(MAGIC.len()..).unwrap_or_default();
        // What is left over is the check.
        records.as_chunks().0
    }

    fn find(&self, version: &Version) -> Option<Digest> {
        let all = self.all();
        let mut place = place_of(&version.0, self.places.len());
        loop {
            let number = *self.places.get(place)?;
            let record = all.get(usize::try_from(number).ok()?)?;
            if record[..VERSION] == version.0 {
                self.used[usize::try_from(number).ok()?].store(true, Ordering::Relaxed);
                let digest = record.last_chunk().expect("a record ends with a digest");
                return Some(Digest::from_bytes(*digest));
            }
            place = (place + 1) % self.places.len();
        }
    }

    /// The records, and whether somebody asked for each.
    fn iter(&self) -> impl Iterator<Item = (&[u8; RECORD], bool)> {
        self.all().iter().zip(self.used.iter().map(|used| used.load(Ordering::Relaxed)))
    }
}

/// Which of `places`, a power of two, is the first one for a record of the file that `record` begins
/// with. Inodes are numbers in a row, which a multiplication spreads.
fn place_of(record: &[u8], places: usize) -> usize {
    let number =
        |at: usize| record[at..].first_chunk().map_or(0, |bytes| u64::from_be_bytes(*bytes));
    let spread = (number(0) ^ number(8)).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
    usize::try_from(spread).unwrap_or(0) & places.wrapping_sub(1)
}

/// How long the records in the file `bytes` are, all together; `None` unless it is as [`encoded`] wrote
/// it.
fn whole_records(bytes: &[u8]) -> Option<usize> {
    let (content, check) = bytes.split_last_chunk::<32>()?;
    let records = content.strip_prefix(MAGIC)?;
    let whole = records.len().is_multiple_of(RECORD) && check_of(content).as_bytes() == check;
    whole.then_some(records.len())
}

fn record(version: &Version, digest: &Digest) -> [u8; RECORD] {
    let mut record = [0; RECORD];
    record[..VERSION].copy_from_slice(&version.0);
    record[VERSION..].copy_from_slice(digest.as_bytes());
    record
}

fn encoded(records: &[[u8; RECORD]]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(MAGIC.len() + records.len() * RECORD + 32);
    bytes.extend(MAGIC);
    bytes.extend(records.as_flattened());
    let check = check_of(&bytes);
    bytes.extend(check.as_bytes());
    bytes
}

/// A digest of `content` that several threads can come to together.
fn check_of(content: &[u8]) -> Digest {
    let pieces: Vec<Digest> = content.par_chunks(PIECE).map(Digest::of).collect();
    let mut hasher = Hasher::new();
    for piece in pieces {
        hasher.update(piece.as_bytes());
    }
    hasher.digest()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pattern::PatternMatcher;

    fn version(inode: u64, size: u64) -> Version {
        let time = Timestamp { seconds: -1, nanoseconds: 7 };
        let file = tempfile::tempfile().unwrap();
        let metadata = Metadata::of(file).unwrap();
        let times = Metadata { modified: time, changed: time, ..metadata };
        Version::of(&Metadata { file_system: 1, inode, size, ..times })
    }

    /// The versions that are in `file`, each found; `None` where it is no memo.
    fn read(file: &Path) -> Option<Vec<Version>> {
        let records = Records::read(file)?;
        let versions = records.all().iter().map(|record| Version(*record.first_chunk().unwrap()));
        let versions: Vec<Version> = versions.collect();
        for version in &versions {
            assert!(records.find(version).is_some());
        }
        Some(versions)
    }

    #[test]
    fn a_memo_keeps_what_it_was_told_and_nothing_damaged() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("memo");
        let versions = [version(1, 3), version(2, 3)];
        let bytes = encoded(&versions.map(|version| record(&version, &Digest::of("x"))));
        fs::write(&file, &bytes).unwrap();
        assert_eq!(read(&file).unwrap(), versions);
        let records = Records::read(&file).unwrap();
        assert_eq!(records.find(&version(2, 3)), Some(Digest::of("x")));
        assert_eq!(records.find(&version(2, 4)), None);
        assert_eq!(Records::default().find(&version(2, 3)), None);
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1;
            fs::write(&file, damaged).unwrap();
            assert_eq!(read(&file), None, "byte {at}");
        }
        fs::write(&file, &bytes[..bytes.len() - 1]).unwrap();
        assert_eq!(read(&file), None);
    }

    #[test]
    fn a_file_hashed_right_after_its_change_is_not_remembered() {
        let at = |seconds, nanoseconds| Timestamp { seconds, nanoseconds };
        let check = |changed, begun, expected| {
            let folder = tempfile::tempfile().unwrap();
            let metadata = Metadata { modified: changed, changed, ..Metadata::of(folder).unwrap() };
            assert_eq!(is_settled(&metadata, begun), expected);
        };
        check(at(100, 1), at(100, 1), false);
        check(at(100, 1), at(100, 40_000_000), false);
        check(at(100, 1), at(100, 60_000_000), true);
        check(at(100, 0), at(102, 60_000_000), false);
        check(at(100, 0), at(104, 0), true);
        check(at(200, 1), at(100, 0), false);
    }

    #[test]
    fn times_are_trusted_where_the_kernel_keeps_them() {
        let check = |magic, expected| assert_eq!(keeps_times_of_change(magic), expected);
        check(0xEF53, true); // ext4
        check(0x0102_1994, true); // tmpfs
        check(0x7371_7368, false);
        check(0x4D44, false);
    }

    #[test]
    fn a_memo_saves_reading() {
        let (state, folder) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let only = folder.path().join("f");
        fs::write(&only, "1").unwrap();
        let view = View::folder(folder.path().to_owned(), PatternMatcher::default());
        let entry = view.lookup(Path::new("f")).unwrap().unwrap();
        let file = state.path().join("memo");
        let open = || FileMemo::open(file.clone(), state.path().to_owned());
        let mut memo = open();
        // As if the file had been changed long ago.
        memo.begun = OnceLock::from(Some(Timestamp::from_seconds(i64::MAX / 2)));
        let (digest, _) = memo.digest(&view, &entry).unwrap();
        assert_eq!(digest, Digest::of("1"));
        memo.save().unwrap();
        let memo = open();
        assert_eq!(memo.known.all().len(), 1);
        // Not read again: it could not be.
        fs::remove_file(only).unwrap();
        assert_eq!(memo.digest(&view, &entry).unwrap().0, digest);
    }

    /// What is half-written, whoever dies over it, is not taken for a memo.
    #[test]
    fn nothing_lies_beside_a_memo() {
        let top = tempfile::tempdir().unwrap();
        let (folder, aside) = (top.path().join("context"), top.path().join("nowhere"));
        fs::create_dir(&folder).unwrap();
        let memo = FileMemo::open(folder.join("memo"), aside.clone());
        memo.fresh.lock().unwrap().insert(version(1, 3), Digest::of("x"));
        memo.save().unwrap_err();
        fs::create_dir(&aside).unwrap();
        memo.save().unwrap();
        assert_eq!(fs::read_dir(folder).unwrap().count(), 1);
        assert_eq!(fs::read_dir(aside).unwrap().count(), 0);
    }

    #[test]
    fn news_replace_what_was_known_of_the_same_file() {
        let (folder, aside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let file = folder.path().join("memo");
        let open = || FileMemo::open(file.clone(), aside.path().to_owned());
        let learn = |memo: &FileMemo, version| {
            memo.fresh.lock().unwrap().insert(version, Digest::of("x"));
            memo.save().unwrap();
        };
        let memo = open();
        learn(&memo, version(1, 3));
        learn(&memo, version(2, 3));
        assert_eq!(read(&file).unwrap(), [version(1, 3), version(2, 3)]);
        learn(&open(), version(1, 4));
        assert_eq!(read(&file).unwrap(), [version(1, 4), version(2, 3)]);
        let memos = FileMemos::new(aside.path().to_owned());
        assert!(Arc::ptr_eq(&memos.open(file.clone()), &memos.open(file)));
    }
}
