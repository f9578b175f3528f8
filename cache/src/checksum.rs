//! Digests of files and of parts of trees: what a cache key that depends on content is made of.
//!
//! A digest says what a build would get: types, modes, owners, bytes, targets of links, extended
//! attributes, and which names are one file; never times, as in BuildKit (cache/contenthash).
//!
//! Reading every byte of a large context for each build would cost more than everything else, so
//! what a caller's files hashed to is remembered by (file system, inode, size, time of change): see
//! [`FileMemo`].

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock, PoisonError};

use fs_err as fs;
use rayon::prelude::*;

use crate::digest::{Digest, Hasher};
use crate::metadata::{FileType, Metadata, Timestamp};
use crate::view::{Entry, View, ViewError};

/// Says why a digest could not be had.
#[derive(Debug, thiserror::Error)]
pub enum ChecksumError {
    /// There is no such path.
    #[error("{path:?}: not found")]
    NotFound {
        /// The path, from `/`.
        path: String,
    },
    /// The tree could not be read.
    #[error(transparent)]
    View(#[from] ViewError),
    /// A file changed each time it was read.
    #[error("`{}` changes while it is read", .0.display())]
    Changing(PathBuf),
    /// A file could not be read.
    #[error("cannot read `{}`", path.display())]
    Read {
        /// The path in the tree.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Adds what an entry is to a digest: all that a build can see of it but its times.
///
/// `content` is the digest of a regular file's bytes; `target` where a link leads.
pub fn add_entry(
    hasher: &mut Hasher,
    path: &Path,
    metadata: &Metadata,
    content: Option<Digest>,
    target: Option<&Path>,
) {
    use std::os::unix::ffi::OsStrExt;
    hasher.field(path.as_os_str().as_bytes());
    hasher.field([type_code(metadata.file_type)]);
    // The mode of a link means nothing and differs between file systems.
    let mode = if metadata.is_symlink() { 0 } else { metadata.mode };
    for number in [mode, metadata.uid, metadata.gid] {
        hasher.field(number.to_le_bytes());
    }
    match metadata.file_type {
        FileType::File => {
            hasher.field(content.map(|digest| *digest.as_bytes()).unwrap_or_default());
        }
        FileType::CharDevice | FileType::BlockDevice => {
            hasher.field(metadata.device.to_le_bytes());
        }
        FileType::Symlink => hasher.field(target.unwrap_or(Path::new("")).as_os_str().as_bytes()),
        FileType::Directory | FileType::Fifo | FileType::Socket => {}
    }
}

fn type_code(file_type: FileType) -> u8 {
    match file_type {
        FileType::File => b'f',
        FileType::Directory => b'd',
        FileType::Symlink => b'l',
        FileType::Fifo => b'p',
        FileType::Socket => b's',
        FileType::CharDevice => b'c',
        FileType::BlockDevice => b'b',
    }
}

/// The digest of `path` and everything below it, as a bind mount shows it. A link in the last place
/// is followed.
///
/// # Errors
/// [`ChecksumError::NotFound`] when there is nothing.
///
/// # Panics
/// Never: what is in a folder has its path in front.
pub fn of_path(view: &View, path: &Path, memo: &FileMemo) -> Result<Digest, ChecksumError> {
    let Some(root) = view.resolve(path)?.entry else {
        let path = Path::new("/").join(path).display().to_string();
        return Err(ChecksumError::NotFound { path });
    };
    let entries = descendants(view, &root)?;
    let contents: Vec<(Option<Digest>, Option<PathBuf>)> =
        entries.par_iter().map(|entry| content(view, entry, memo)).collect::<Result<_, _>>()?;
    let mut hasher = Hasher::new();
    for (entry, (digest, target)) in entries.iter().zip(&contents) {
        let path = entry.path().strip_prefix(root.path()).unwrap_or(entry.path());
        add_entry(&mut hasher, path, entry.metadata(), *digest, target.as_deref());
        add_xattrs(&mut hasher, view, entry)?;
    }
    Ok(hasher.digest())
}

fn add_xattrs(hasher: &mut Hasher, view: &View, entry: &Entry) -> Result<(), ViewError> {
    let xattrs = view.xattrs(entry)?;
    hasher.field(xattrs.len().to_le_bytes());
    for (name, value) in xattrs {
        hasher.field(name.to_bytes());
        hasher.field(value);
    }
    Ok(())
}

fn content(
    view: &View,
    entry: &Entry,
    memo: &FileMemo,
) -> Result<(Option<Digest>, Option<PathBuf>), ChecksumError> {
    Ok(match entry.metadata().file_type {
        FileType::File => (Some(memo.digest(view, entry)?.0), None),
        FileType::Symlink => (None, Some(view.read_link(entry)?)),
        FileType::Directory
        | FileType::Fifo
        | FileType::Socket
        | FileType::CharDevice
        | FileType::BlockDevice => (None, None),
    })
}

/// `root` and everything below it: each directory before what is in it, names sorted.
pub fn descendants(view: &View, root: &Entry) -> Result<Vec<Entry>, ViewError> {
    let children = view.children(root)?;
    let below: Vec<Vec<Entry>> = children
        .into_par_iter()
        .map(|child| match child.metadata().file_type {
            FileType::Directory => descendants(view, &child),
            FileType::File
            | FileType::Symlink
            | FileType::Fifo
            | FileType::Socket
            | FileType::CharDevice
            | FileType::BlockDevice => Ok(vec![child]),
        })
        .collect::<Result<_, _>>()?;
    Ok(std::iter::once(root.clone()).chain(below.into_iter().flatten()).collect())
}

/// What begins a memo's file: a name and the version of what follows.
const MAGIC: &[u8; 16] = b"rbuild files 1\n\0";

/// Bytes of a record: file system, inode, size, modified, changed, digest.
const RECORD: usize = 8 + 8 + 8 + 12 + 12 + 32;

/// Records that nobody asked for are kept up to this number, beside those that were.
const UNUSED_MAX: usize = 200_000;

/// How many times a file that changes while it is read is read again.
const READS_MAX: usize = 3;

/// Which file, in which version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Version {
    file_system: u64,
    inode: u64,
    size: u64,
    modified: Timestamp,
    changed: Timestamp,
}

impl From<&Metadata> for Version {
    fn from(metadata: &Metadata) -> Self {
        let Metadata { file_system, inode, size, modified, changed, .. } = *metadata;
        Self { file_system, inode, size, modified, changed }
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
/// The memo is no more than a help: a missing, damaged or foreign file counts as empty.
#[derive(Debug, Default)]
pub struct FileMemo {
    file: Option<PathBuf>,
    known: HashMap<Version, Digest>,
    fresh: Mutex<HashMap<Version, Digest>>,
    begun: OnceLock<Option<Timestamp>>,
}

impl FileMemo {
    /// A memo that remembers nothing.
    pub fn none() -> Self {
        Self::default()
    }

    /// The memo kept in `file`, which need not exist; its folder must.
    pub fn open(file: PathBuf) -> Self {
        let known = read_records(&file).unwrap_or_default();
        Self { file: Some(file), known, ..Self::default() }
    }

    /// The digest of a regular file's bytes, and its metadata when they were read: the same as
    /// before unless it changed in between.
    ///
    /// # Errors
    /// [`ChecksumError::Changing`] when it changes each time it is read.
    pub fn digest(&self, view: &View, entry: &Entry) -> Result<(Digest, Metadata), ChecksumError> {
        let version = Version::from(entry.metadata());
        let lock = || self.fresh.lock().unwrap_or_else(PoisonError::into_inner);
        let known = self.known.get(&version).copied().or_else(|| lock().get(&version).copied());
        if let Some(digest) = known {
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
            if begun.is_some_and(|begun| is_settled(&after, begun)) {
                lock().insert(Version::from(&after), digest);
            }
            let (uid, gid) = (entry.metadata().uid, entry.metadata().gid);
            return Ok((digest, Metadata { uid, gid, ..after }));
        }
        Err(ChecksumError::Changing(entry.absolute_path()))
    }

    /// Writes down what was learned, if anything was: aside, then renamed. Of two processes that
    /// save at once, one's news are lost.
    pub fn save(&self) -> io::Result<()> {
        let fresh = self.fresh.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(file) = &self.file else { return Ok(()) };
        if fresh.is_empty() {
            return Ok(());
        }
        // A file has one version at a time: news replace what was known of the same inode.
        let renewed: std::collections::HashSet<(u64, u64)> =
            fresh.keys().map(|version| (version.file_system, version.inode)).collect();
        let kept = self
            .known
            .iter()
            .filter(|(version, _)| !renewed.contains(&(version.file_system, version.inode)));
        let mut records: Vec<(Version, Digest)> =
            kept.take(UNUSED_MAX).chain(fresh.iter()).map(|(v, d)| (*v, *d)).collect();
        records.sort_unstable_by_key(|(version, _)| *version);
        let folder = file.parent().unwrap_or(Path::new("."));
        let mut aside = tempfile::NamedTempFile::new_in(folder)?;
        aside.write_all(&encoded(&records))?;
        aside.persist(file).map_err(|error| error.error)?;
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

fn encoded(records: &[(Version, Digest)]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(MAGIC.len() + records.len() * RECORD + 32);
    bytes.extend(MAGIC);
    for (version, digest) in records {
        for number in [version.file_system, version.inode, version.size] {
            bytes.extend(number.to_le_bytes());
        }
        for time in [version.modified, version.changed] {
            bytes.extend(time.seconds.to_le_bytes());
            bytes.extend(time.nanoseconds.to_le_bytes());
        }
        bytes.extend(digest.as_bytes());
    }
    let check = Digest::of(&bytes);
    bytes.extend(check.as_bytes());
    bytes
}

/// The records of `file`; `None` for anything that [`encoded`] did not write.
fn read_records(file: &Path) -> Option<HashMap<Version, Digest>> {
    let mut bytes = Vec::new();
    fs::File::open(file).ok()?.read_to_end(&mut bytes).ok()?;
    let (bytes, check) = bytes.split_last_chunk::<32>()?;
    let records = bytes.strip_prefix(MAGIC)?;
    if Digest::of(bytes).as_bytes() != check || records.len() % RECORD != 0 {
        return None;
    }
    records.chunks_exact(RECORD).map(decoded).collect()
}

fn decoded(record: &[u8]) -> Option<(Version, Digest)> {
    let (file_system, record) = record.split_first_chunk::<8>()?;
    let (inode, record) = record.split_first_chunk::<8>()?;
    let (size, record) = record.split_first_chunk::<8>()?;
    let (modified, record) = record.split_first_chunk::<12>()?;
    let (changed, digest) = record.split_first_chunk::<12>()?;
    let version = Version {
        file_system: u64::from_le_bytes(*file_system),
        inode: u64::from_le_bytes(*inode),
        size: u64::from_le_bytes(*size),
        modified: time(modified)?,
        changed: time(changed)?,
    };
    Some((version, Digest::from_bytes(digest.try_into().ok()?)))
}

fn time(bytes: &[u8; 12]) -> Option<Timestamp> {
    let (seconds, nanoseconds) = bytes.split_first_chunk::<8>()?;
    Some(Timestamp {
        seconds: i64::from_le_bytes(*seconds),
        nanoseconds: u32::from_le_bytes(nanoseconds.try_into().ok()?),
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;
    use crate::pattern::PatternMatcher;

    struct Folder(tempfile::TempDir);

    impl Folder {
        fn new() -> Self {
            let folder = Self(tempfile::tempdir().unwrap());
            folder.write("f", "1");
            folder
        }

        fn path(&self, name: &str) -> PathBuf {
            self.0.path().join(name)
        }

        fn write(&self, name: &str, bytes: &str) {
            fs::write(self.path(name), bytes).unwrap();
        }

        fn digest(&self) -> Digest {
            let view = View::folder(self.0.path().to_owned(), PatternMatcher::default());
            of_path(&view, Path::new("/"), &FileMemo::none()).unwrap()
        }
    }

    #[test]
    fn a_digest_changes_with_all_that_a_build_sees_but_times() {
        let check = |change: &dyn Fn(&Folder), changes: bool| {
            let folder = Folder::new();
            let before = folder.digest();
            change(&folder);
            assert_eq!(folder.digest() != before, changes);
        };
        let mode = |f: &Folder, mode| {
            fs::set_permissions(f.path("f"), std::fs::Permissions::from_mode(mode)).unwrap();
        };
        check(&|_| (), false);
        check(&|f| f.write("f", "1"), false);
        check(&|f| f.write("f", "2"), true);
        check(&|f| f.write("g", ""), true);
        check(&|f| fs::rename(f.path("f"), f.path("g")).unwrap(), true);
        check(&|f| mode(f, 0o600), true);
        check(&|f| symlink("f", f.path("l")).unwrap(), true);
        check(&|f| fs::create_dir(f.path("d")).unwrap(), true);
    }

    #[test]
    fn nothing_is_not_found() {
        let folder = Folder::new();
        let view = View::folder(folder.0.path().to_owned(), PatternMatcher::default());
        let error = of_path(&view, Path::new("/x"), &FileMemo::none()).unwrap_err();
        assert_eq!(error.to_string(), "\"/x\": not found");
    }

    fn record(inode: u64) -> (Version, Digest) {
        let time = Timestamp { seconds: -1, nanoseconds: 7 };
        let version = Version { file_system: 1, inode, size: 3, modified: time, changed: time };
        (version, Digest::of(inode.to_le_bytes()))
    }

    #[test]
    fn a_memo_keeps_what_it_was_told_and_nothing_damaged() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("memo");
        let records = [record(1), record(2)];
        let bytes = encoded(&records);
        fs::write(&file, &bytes).unwrap();
        assert_eq!(read_records(&file).unwrap(), HashMap::from(records));
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1;
            fs::write(&file, damaged).unwrap();
            assert_eq!(read_records(&file), None, "byte {at}");
        }
        fs::write(&file, &bytes[..bytes.len() - 1]).unwrap();
        assert_eq!(read_records(&file), None);
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
    fn a_memo_saves_reading() {
        let state = tempfile::tempdir().unwrap();
        let folder = Folder::new();
        let view = View::folder(folder.0.path().to_owned(), PatternMatcher::default());
        let entry = view.lookup(Path::new("f")).unwrap().unwrap();
        let file = state.path().join("memo");
        let mut memo = FileMemo::open(file.clone());
        // As if the file had been changed long ago.
        memo.begun = OnceLock::from(Some(Timestamp::from_seconds(i64::MAX / 2)));
        let (digest, _) = memo.digest(&view, &entry).unwrap();
        assert_eq!(digest, Digest::of("1"));
        memo.save().unwrap();
        let memo = FileMemo::open(file);
        assert_eq!(memo.known.len(), 1);
        // Not read again: it could not be.
        fs::remove_file(folder.path("f")).unwrap();
        assert_eq!(memo.digest(&view, &entry).unwrap().0, digest);
    }
}
