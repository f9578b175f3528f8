//! ADD of an archive: what is in it is written instead of it.
//!
//! Follows moby's go-archive as BuildKit calls it (solver/llbsolver/file/unpack.go): the directory
//! that is unpacked into is the root of everything in the archive, so `..` and absolute paths and
//! links stay inside it, and links that are there are followed there. An entry replaces what it
//! meets unless both are directories. Names of whiteouts mean nothing here.
//!
//! The archive is hostile; which bytes are which entry, `cache::layer::tar_reader` decides, for
//! layers as well.

use std::ffi::{CString, OsStr};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rbuild_cache::digest::{Digest, Hasher};
use rbuild_cache::layer::decompress;
use rbuild_cache::layer::tar_reader::{FilePiece, TarEntry, TarError, TarKind, TarReader};
use rbuild_cache::layer::whiteout::is_mark;
use rbuild_cache::limits::{Bounded, Exceeded, Limit, Limits, depth};
use rbuild_cache::metadata::{self, FileType, Metadata, Timestamp, Xattrs};
use rbuild_cache::view::{Entry, View};
use rustix::fs::AtFlags;

use super::FileError;
use super::copy::{make_node, new_file};
use super::destination::{Destination, NewDirectory, OpenDirectory};

/// Bytes that are read at once.
const BUFFER: usize = 128 * 1024;

/// An archive to unpack.
#[derive(Debug)]
pub(super) struct Archive {
    pub(super) destination: String,
    pub(super) owner: Option<(u32, u32)>,
    pub(super) time: Option<i64>,
    pub(super) view: View,
    pub(super) entry: Entry,
    /// As it was when it was hashed.
    pub(super) metadata: Metadata,
    pub(super) digest: Digest,
    /// How much may be in it.
    pub(super) limits: Limits,
}

/// Whether `entry` is a tar, compressed or not: one whose first entry can be read.
pub(super) fn is_archive(view: &View, entry: &Entry) -> Result<bool, FileError> {
    if !entry.metadata().is_file() {
        return Ok(false);
    }
    let Ok(stream) = decompress(view.open(entry)?) else { return Ok(false) };
    Ok(matches!(TarReader::new(stream).next_entry(), Ok(Some(_))))
}

impl Archive {
    /// Writes what is in the archive.
    pub(super) fn unpack(&self, destination: &mut Destination) -> Result<(), FileError> {
        let root = destination.resolve(Path::new(&self.destination))?;
        let new =
            NewDirectory { mode: 0o755, owner: self.owner.unwrap_or_default(), time: self.time };
        destination.make_directories(&root, new)?;
        let file = self.view.open(&self.entry)?;
        let failed = |source| FileError::io(self.entry.path(), source);
        let again = file.try_clone().map_err(failed)?;
        let stream = decompress(file).map_err(failed)?;
        let stream = Bounded::new(stream, &self.limits, Limit::ArchiveSize);
        let mut reader = TarReader::new(stream);
        let mut entries = 0;
        let mut unpacking = Unpacking {
            destination,
            root,
            owner: self.owner,
            last: None,
            directories: Vec::new(),
            buffer: vec![0; BUFFER],
        };
        while let Some(entry) = reader.next_entry().map_err(|source| self.broken(source))? {
            let name = String::from_utf8_lossy(&entry.path).into_owned();
            entries += 1;
            self.limits.check(Limit::ArchiveFiles, entries).map_err(|e| self.exceeded(e))?;
            let depth = depth(&entry.path);
            self.limits.check(Limit::PathDepth, depth).map_err(|e| self.exceeded(e))?;
            unpacking.entry(&entry, &mut reader).map_err(|failure| match failure {
                Failure::File(error) => error,
                Failure::Tar(source) => self.broken(source),
                Failure::Why(why) => FileError::Entry { entry: name, why },
            })?;
        }
        unpacking.finish()?;
        self.check_unchanged(again).map_err(failed)?
    }

    fn broken(&self, source: TarError) -> FileError {
        if let TarError::Io(error) = &source
            && let Some(exceeded) = Exceeded::within(error)
        {
            return self.exceeded(exceeded);
        }
        FileError::Tar { path: self.entry.absolute_path(), source }
    }

    fn exceeded(&self, exceeded: Exceeded) -> FileError {
        FileError::Archive { path: self.entry.absolute_path(), exceeded }
    }

    /// What was unpacked must be what was hashed.
    fn check_unchanged(&self, mut file: std::fs::File) -> io::Result<Result<(), FileError>> {
        if !self.view.may_change() || Metadata::of(&file)?.is_same_version(&self.metadata) {
            return Ok(Ok(()));
        }
        file.rewind()?;
        let (digest, _) = Digest::of_stream(&file)?;
        let changed = || FileError::Changed(self.entry.absolute_path());
        Ok(if digest == self.digest { Ok(()) } else { Err(changed()) })
    }
}

/// What went wrong with an entry, before it is said with which.
enum Failure {
    File(FileError),
    Tar(TarError),
    Why(&'static str),
}

impl From<FileError> for Failure {
    fn from(error: FileError) -> Self {
        Self::File(error)
    }
}

struct Unpacking<'a> {
    destination: &'a mut Destination,
    root: PathBuf,
    owner: Option<(u32, u32)>,
    /// The directory of the entry before, by its name in the archive: most entries have the same.
    last: Option<(Vec<Vec<u8>>, OpenDirectory)>,
    /// Directories whose times are set at the end.
    directories: Vec<(PathBuf, Timestamp)>,
    buffer: Vec<u8>,
}

impl Unpacking<'_> {
    fn entry<R: Read>(
        &mut self,
        entry: &TarEntry,
        reader: &mut TarReader<R>,
    ) -> Result<(), Failure> {
        let mut components = components(&entry.path);
        let Some(name) = components.pop() else {
            // The directory that is unpacked into keeps what it has, whatever the entry is.
            return Ok(());
        };
        let name = OsStr::from_bytes(&name);
        let open = match self.last.take() {
            Some((last, open)) if last == components => open,
            _ => self.parent(&components)?,
        };
        let path = open.path().join(name);
        let there = open.lookup(self.destination.below(), name)?;
        let folder = matches!(entry.kind, TarKind::Folder);
        let merged = folder && there.is_some_and(|there| there.is_directory());
        let replaces = there.is_some() && !merged;
        if replaces {
            self.destination.remove(&path)?;
        }
        self.make(entry, reader, &open, name, merged)?;
        // What is replaced may be a link on the way to the directory.
        if !replaces {
            self.last = Some((components, open));
        }
        Ok(())
    }

    /// Makes one entry, called `name`, in `open`.
    fn make<R: Read>(
        &mut self,
        entry: &TarEntry,
        reader: &mut TarReader<R>,
        open: &OpenDirectory,
        name: &OsStr,
        merged: bool,
    ) -> Result<(), Failure> {
        let path = open.path().join(name);
        let failed = |source| Failure::File(FileError::io(&path, source));
        let (uid, gid) = self.owner.unwrap_or((entry.uid, entry.gid));
        let time = Timestamp {
            seconds: entry.mtime.0.max(0),
            nanoseconds: if entry.mtime.0 < 0 { 0 } else { entry.mtime.1 },
        };
        let mut made = metadata_of(entry, (uid, gid));
        match &entry.kind {
            TarKind::Folder => {
                if merged {
                    self.destination.copy_up(&path)?;
                } else {
                    self.destination.create(&path)?;
                }
                let directory = self.destination.open_directory(&path)?;
                metadata::set_owner_and_mode(directory.folder(), uid, gid, entry.mode)
                    .map_err(failed)?;
                self.directories.push((path.clone(), time));
            }
            TarKind::File { .. } => {
                let mut file = new_file(open.folder(), name)
                    .map_err(|error| failed(io::Error::from(error)))?;
                let digest = write(&mut file, reader, &mut self.buffer, &path)?;
                metadata::set_owner_and_mode(&file, uid, gid, entry.mode).map_err(failed)?;
                self.destination.note(path.clone(), digest);
            }
            TarKind::HardLink(target) => {
                let target = self.hard_link_target(target)?;
                rustix::fs::linkat(
                    self.destination.layer(),
                    &target,
                    open.folder(),
                    name,
                    AtFlags::empty(),
                )
                .map_err(|error| failed(error.into()))?;
                self.destination.note_link(&target, &path);
                // The last entry for a file says what it is.
                metadata::set_owner_at(open.folder(), name, uid, gid).map_err(failed)?;
                let there = Metadata::at(open.folder(), name).map_err(failed)?;
                if there.is_some_and(|there| there.is_symlink()) {
                    return Ok(());
                }
                metadata::set_mode_at(open.folder(), name, entry.mode).map_err(failed)?;
            }
            TarKind::Link(target) => {
                rustix::fs::symlinkat(OsStr::from_bytes(target), open.folder(), name)
                    .map_err(|error| failed(error.into()))?;
                metadata::set_owner_at(open.folder(), name, uid, gid).map_err(failed)?;
            }
            TarKind::CharDevice(0, 0) => {
                return Err(Failure::File(FileError::Whiteout(Path::new("/").join(path))));
            }
            TarKind::CharDevice(major, minor) => {
                made.device = rustix::fs::makedev(*major, *minor);
                make_node(open, name, rustix::fs::FileType::CharacterDevice, &made)
                    .map_err(failed)?;
            }
            TarKind::BlockDevice(major, minor) => {
                made.device = rustix::fs::makedev(*major, *minor);
                make_node(open, name, rustix::fs::FileType::BlockDevice, &made).map_err(failed)?;
            }
            TarKind::Fifo => {
                make_node(open, name, rustix::fs::FileType::Fifo, &made).map_err(failed)?;
            }
        }
        metadata::set_xattrs_at(open.folder(), name, &xattrs(entry)?).map_err(failed)?;
        metadata::set_modified_at(open.folder(), name, time).map_err(failed)
    }

    /// The directory that an entry is in; made when it is missing, for root.
    fn parent(&mut self, components: &[Vec<u8>]) -> Result<OpenDirectory, FileError> {
        let inside: PathBuf = components.iter().map(|part| OsStr::from_bytes(part)).collect();
        let path = self.destination.resolve_in(&self.root, &inside)?;
        let new = NewDirectory { mode: 0o755, owner: (0, 0), time: None };
        self.destination.make_directories(&path, new)?;
        self.destination.open_directory(&path)
    }

    /// Where in the new layer the target of a hard link is: it may have been below until now.
    fn hard_link_target(&mut self, target: &[u8]) -> Result<PathBuf, Failure> {
        const MISSING: Failure = Failure::Why("is a hard link to what is not there");
        let mut components = components(target);
        let Some(name) = components.pop() else { return Err(MISSING) };
        let inside: PathBuf = components.iter().map(|part| OsStr::from_bytes(part)).collect();
        let parent = self.destination.resolve_in(&self.root, &inside)?;
        let path = parent.join(OsStr::from_bytes(&name));
        match self.destination.entry(&path)? {
            None => Err(MISSING),
            Some(entry) if entry.metadata().is_directory() => {
                Err(Failure::Why("is a hard link to a directory"))
            }
            Some(_) => {
                self.destination.copy_up_file(&path)?;
                Ok(path)
            }
        }
    }

    /// Sets what writing into directories has changed.
    fn finish(self) -> Result<(), FileError> {
        for (path, time) in self.directories {
            let layer = self.destination.layer();
            let failed = |source| FileError::io(&path, source);
            // A later entry may have replaced it.
            let there = Metadata::at(layer, path.as_os_str()).map_err(failed)?;
            if there.is_some_and(|there| there.is_directory()) {
                metadata::set_modified_at(layer, path.as_os_str(), time).map_err(failed)?;
            }
        }
        Ok(())
    }
}

/// The components of a path, from the root of the archive: `..` ends there.
fn components(path: &[u8]) -> Vec<Vec<u8>> {
    let mut components: Vec<Vec<u8>> = Vec::new();
    for part in path.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => _ = components.pop(),
            part => components.push(part.to_vec()),
        }
    }
    components
}

fn metadata_of(entry: &TarEntry, (uid, gid): (u32, u32)) -> Metadata {
    Metadata {
        file_type: FileType::File,
        mode: entry.mode,
        uid,
        gid,
        size: 0,
        modified: Timestamp::default(),
        changed: Timestamp::default(),
        device: 0,
        file_system: 0,
        inode: 0,
        links: 1,
    }
}

fn xattrs(entry: &TarEntry) -> Result<Xattrs, Failure> {
    // What users note on their files is lost, as in BuildKit; what the kernel goes by is not.
    let lost = |name: &[u8]| name.starts_with(b"user.") || is_mark(name);
    let own = entry.xattrs.iter().filter(|(name, _)| !lost(name));
    own.map(|(name, value)| match CString::new(name.clone()) {
        Ok(name) => Ok((name, value.clone())),
        Err(_) => Err(Failure::Why("has an attribute without a name")),
    })
    .collect()
}

fn write<R: Read>(
    file: &mut std::fs::File,
    reader: &mut TarReader<R>,
    buffer: &mut [u8],
    path: &Path,
) -> Result<Digest, Failure> {
    let failed = |source| Failure::File(FileError::io(path, source));
    let mut hasher = Hasher::new();
    let mut length: u64 = 0;
    loop {
        match reader.read_piece(buffer).map_err(Failure::Tar)? {
            FilePiece::Data(read) => {
                file.write_all(&buffer[..read]).map_err(failed)?;
                hasher.update(&buffer[..read]);
                length += read as u64;
            }
            FilePiece::Hole(zeros) => {
                length += zeros;
                let _ = file.seek(SeekFrom::Start(length)).map_err(failed)?;
                file.set_len(length).map_err(failed)?;
                let mut left = zeros;
                while left > 0 {
                    let piece = left.min(ZEROS.len() as u64);
                    hasher.update(&ZEROS[..usize::try_from(piece).unwrap_or(ZEROS.len())]);
                    left -= piece;
                }
            }
            FilePiece::End => return Ok(hasher.digest()),
        }
    }
}

static ZEROS: [u8; 16 * 1024] = [0; 16 * 1024];
