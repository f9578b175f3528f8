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
        let file = self
            .view
            .open(&self.entry)
            .map_err(|error| FileError::of_opening(&self.view, &self.entry, error))?;
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
        disk: 0,
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

#[cfg(test)]
mod tests {
    use fs_err as fs;

    use super::*;
    use crate::graph::{CopyAction, FileAction, ModeChange, Name, Owner};
    use crate::ops::file::tests::{Place, copy, show};

    /// A tar of `dir/`, `file=bytes`, `link->target`, `name*other` (a hard link), each with a mode
    /// after `@`; all belong to 11:22.
    fn tar(entries: &[&str]) -> Vec<u8> {
        let mut tar = Vec::new();
        for line in entries {
            let (line, mode) = line.split_once('@').unwrap_or((line, ""));
            let mut header = tar::Header::new_ustar();
            let (name, kind, bytes) = if let Some((name, target)) = line.split_once("->") {
                header.as_ustar_mut().unwrap().linkname[..target.len()]
                    .copy_from_slice(target.as_bytes());
                (name, tar::EntryType::Symlink, "")
            } else if let Some((name, target)) = line.split_once('*') {
                header.as_ustar_mut().unwrap().linkname[..target.len()]
                    .copy_from_slice(target.as_bytes());
                (name, tar::EntryType::Link, "")
            } else if let Some((name, bytes)) = line.split_once('=') {
                (name, tar::EntryType::Regular, bytes)
            } else {
                (line, tar::EntryType::Directory, "")
            };
            header.as_ustar_mut().unwrap().name[..name.len()].copy_from_slice(name.as_bytes());
            header.set_entry_type(kind);
            let usual = if kind.is_dir() { 0o755 } else { 0o644 };
            header.set_mode(u32::from_str_radix(mode, 8).unwrap_or(usual));
            header.set_size(bytes.len() as u64);
            header.set_uid(11);
            header.set_gid(22);
            header.set_mtime(1_400_000_000);
            header.set_cksum();
            tar.extend(header.as_bytes());
            tar.extend(bytes.as_bytes());
            tar.resize(tar.len().next_multiple_of(512), 0);
        }
        tar.resize(tar.len() + 1024, 0);
        tar
    }

    fn unpacked(base: &[&str], entries: &[&str], to: &str) -> Option<String> {
        let place = Place::new(base, &[])?;
        fs::write(place.context.path().join("a.tar"), tar(entries)).unwrap();
        let add = CopyAction { unpack: true, ..copy(&["a.tar"], to) };
        Some(match place.run(vec![FileAction::Copy(add)]) {
            Ok(()) => show(&place.layer()).replace("@11:22", ""),
            Err(error) => error.to_string(),
        })
    }

    #[test]
    fn archives_are_unpacked() {
        let check = |base: &[&str], entries: &[&str], expected: &str| {
            if let Some(found) = unpacked(base, entries, "/x/") {
                assert_eq!(found, expected, "{entries:?} over {base:?}");
            }
        };
        check(
            &[],
            &["f=1", "d/@700", "d/g=2@4755", "l->f", "h*f"],
            "x/ x/d/@700 x/d/g=2@4755 x/f=1 x/h=1 x/l->f",
        );
        check(&[], &["p/q/f=1"], "x/ x/p/ x/p/q/ x/p/q/f=1");
        check(&["x/f=old"], &["f=1"], "x/ x/f=1");
        check(&["x/d/old=1"], &["d=file"], "x/ x/d=file");
        check(&["x/d->e", "x/e/"], &["d/"], "x/ x/d/");
        check(&["x/d->/e", "x/e/"], &["d/f=1"], "x/ x/e/ x/e/f=1");
        check(&["x/old=1@600"], &["h*old"], "x/ x/h=1 x/old=1");
        check(&["x/d/old=1"], &["d=file", "d/", "d/f=1"], "x/ x/d/ x/d/f=1");
        check(&[], &["./", "./f=1"], "x/ x/f=1");
        check(&["x@700"], &["=", "./@777", "f=1"], "x/@700 x/f=1");
        check(&[], &["f=1@600", "h*f@755"], "x/ x/f=1@755 x/h=1@755");
        check(&[], &[".wh.f=1"], "x/ x/.wh.f=1");
    }

    /// Whatever the archive says, everything ends up below the destination.
    #[test]
    fn archives_stay_where_they_are_unpacked() {
        let check = |base: &[&str], entries: &[&str], expected: &str| {
            if let Some(found) = unpacked(base, entries, "/x/") {
                assert_eq!(found, expected, "{entries:?} over {base:?}");
            }
        };
        check(&[], &["../../evil=1"], "x/ x/evil=1");
        check(&[], &["/abs=1"], "x/ x/abs=1");
        check(&[], &["l->/", "l/evil=1"], "x/ x/evil=1 x/l->/");
        check(&[], &["l->../..", "l/evil=1"], "x/ x/evil=1 x/l->../..");
        check(
            &[],
            &["a/", "a/l->..", "a/l/l2->..", "a/l/l2/evil=1"],
            "x/ x/a/ x/a/l->.. x/evil=1 x/l2->..",
        );
        check(
            &["secret=1"],
            &["h*../secret"],
            "cannot unpack the entry `h`: it is a hard link to what is not there",
        );
        check(&["secret=1"], &["l->/secret", "l=2"], "x/ x/l=2");
        check(&["secret=1"], &["l->../secret", "h*l", "h=2"], "x/ x/h=2 x/l->../secret");
        check(&[], &["l->l", "l/f=1"], "too many symbolic links in `/l`");
        check(&[], &["d/", "h*d"], "cannot unpack the entry `h`: it is a hard link to a directory");
        check(&[], &["f=1", "f/g=2"], "mkdir /x/f: not a directory");
        check(&["y/", "x->y"], &["f=1"], "y/ y/f=1");
    }

    #[test]
    fn what_is_no_archive_is_copied() {
        let Some(place) = Place::new(&[], &["a.tar=text", "empty.tar="]) else { return };
        let add = CopyAction { unpack: true, ..copy(&["*.tar"], "/x/") };
        place.run(vec![FileAction::Copy(add)]).unwrap();
        assert_eq!(show(&place.layer()), "x/ x/a.tar=text x/empty.tar=");
    }

    #[test]
    fn an_archive_cut_short_is_an_error() {
        let Some(place) = Place::new(&[], &[]) else { return };
        let whole = tar(&["a=1", "f=12345"]);
        fs::write(place.context.path().join("a.tar"), &whole[..1538]).unwrap();
        let add = CopyAction { unpack: true, ..copy(&["a.tar"], "/x/") };
        let error = place.run(vec![FileAction::Copy(add)]).unwrap_err();
        assert_eq!(error.to_string(), "cannot unpack `/a.tar`");
    }

    #[test]
    fn chown_is_for_archives_too_and_times_stay() {
        let Some(place) = Place::new(&[], &[]) else { return };
        fs::write(place.context.path().join("a.tar"), tar(&["d/", "d/f=1"])).unwrap();
        let add = CopyAction {
            unpack: true,
            owner: Some(Owner { user: Name::Id(5), group: None }),
            mode: Some(ModeChange::Octal(0o600)),
            ..copy(&["a.tar"], "/x/")
        };
        place.run(vec![FileAction::Copy(add)]).unwrap();
        assert_eq!(show(&place.layer()), "x/@5:5 x/d/@5:5 x/d/f=1@5:5");
        for path in ["x/d", "x/d/f"] {
            let entry = place.layer().lookup(Path::new(path)).unwrap().unwrap();
            assert_eq!(entry.metadata().modified.seconds, 1_400_000_000, "{path}");
        }
    }
}
