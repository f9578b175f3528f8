//! The files that are kept, from the layers that were slimmed into a new one: links where no step can
//! tell, copies elsewhere.
//!
//! All about them stays: owners, modes, times, holes, attributes, capabilities, and which of them are
//! hard links of one another. From which layers may be linked is the rule of COPY
//! (`cache/src/snapshot/sharing.rs`): those that no step sees, since programs look at how many names a
//! file has. What is copied is hashed on its way, so that committing the layer need not read it again.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use rbuild_cache::digest::{Digest, Hasher};
use rbuild_cache::layer::content::KnownFile;
use rbuild_cache::metadata::{self, FileType, Metadata};
use rbuild_cache::view::{self, Entry};
use rustix::fs::{AtFlags, Mode, OFlags, SeekFrom as Seek};
use rustix::io::Errno;

use super::SlimError;
use super::files::{FileId, Files};
use crate::ops::file::Links;

/// So many folders are open at once.
const OPEN_AT_ONCE: usize = 256;

/// Bytes that are read and written at once. Larger files the kernel may share, where it can.
const PIECE: usize = 256 << 10;

/// Brings files of a tree into a layer.
pub(super) struct Transfer<'a> {
    /// The tree.
    pub(super) files: &'a Files,
    /// The layer's folder, in which the folders of all files are.
    pub(super) target: BorrowedFd<'a>,
    /// What files are linked by; absent where none may be.
    pub(super) links: Option<&'a Links>,
    /// Whether new files get an access list that nobody gave them.
    pub(super) hands_on_access: bool,
}

/// A file that is made, and what is known of it then.
type Made = Option<(PathBuf, KnownFile)>;

impl Transfer<'_> {
    /// Writes the files `kept`, none of which is a folder, by all threads; returns what is known of
    /// those that were copied.
    pub(super) fn write(&self, kept: &[FileId]) -> Result<HashMap<PathBuf, KnownFile>, SlimError> {
        let (folders, names) = self.sorted(kept);
        let folders: Vec<(FileId, Vec<FileId>)> = folders.into_iter().collect();
        let mut known = HashMap::with_capacity(kept.len());
        for folders in folders.chunks(OPEN_AT_ONCE) {
            let open: Vec<(OwnedFd, &[FileId])> = folders
                .iter()
                .map(|(folder, files)| Ok((self.open(*folder)?, &files[..])))
                .collect::<Result<_, SlimError>>()?;
            let made: Vec<Vec<Made>> = open
                .par_iter()
                .map(|(folder, files)| {
                    files.par_iter().map(|file| self.make(*file, folder.as_fd())).collect()
                })
                .collect::<Result<_, SlimError>>()?;
            known.extend(made.into_iter().flatten().flatten());
        }
        for (first, name) in names {
            rustix::fs::linkat(self.target, first, self.target, name, AtFlags::empty())
                .map_err(|error| SlimError::io(name, error.into()))?;
        }
        Ok(known)
    }

    /// The files to make, by folder; and the further names that some of them have.
    #[expect(clippy::type_complexity, reason = "taken apart at once")]
    fn sorted(&self, kept: &[FileId]) -> (BTreeMap<FileId, Vec<FileId>>, Vec<(&Path, &Path)>) {
        let mut first: HashMap<(&Path, u64), &Path> = HashMap::new();
        let (mut folders, mut names) = (BTreeMap::<FileId, Vec<FileId>>::new(), Vec::new());
        for id in kept {
            let file = self.files.get(*id);
            let (path, metadata) = (file.entry.path(), file.entry.metadata());
            if metadata.links > 1 {
                // Two layers of a store may have a file in common; that is no hard link of the image.
                let inode = (self.files.view().layer_of(&file.entry), metadata.inode);
                let first = *first.entry(inode).or_insert(path);
                if first != path {
                    names.push((first, path));
                    continue;
                }
            }
            folders.entry(file.parent).or_default().push(*id);
        }
        (folders, names)
    }

    fn open(&self, folder: FileId) -> Result<OwnedFd, SlimError> {
        let path = self.files.get(folder).entry.path();
        view::open_beneath(self.target, path, OFlags::PATH | OFlags::DIRECTORY)
            .map_err(|error| SlimError::io(path, error))
    }

    fn make(&self, id: FileId, folder: BorrowedFd<'_>) -> Result<Made, SlimError> {
        let entry = &self.files.get(id).entry;
        let made = match entry.metadata().file_type {
            FileType::File => self.file(entry, folder),
            FileType::Symlink => self.symlink(entry, folder).map(|()| None),
            // Nobody minds a second name of one of these.
            FileType::CharDevice | FileType::BlockDevice | FileType::Fifo | FileType::Socket => {
                self.files.view().link(entry, folder, entry.name()).map(|()| None)
            }
            FileType::Directory => Err(Errno::ISDIR.into()),
        };
        match made {
            Ok(known) => Ok(known.map(|known| (entry.path().to_owned(), known))),
            Err(error) => Err(SlimError::io(entry.path(), error)),
        }
    }

    fn symlink(&self, entry: &Entry, folder: BorrowedFd<'_>) -> io::Result<()> {
        let to = self.files.view().read_link(entry).map_err(io::Error::other)?;
        let (name, metadata) = (entry.name(), entry.metadata());
        rustix::fs::symlinkat(&to, folder, name)?;
        metadata::set_owner_at(folder, name, metadata.uid, metadata.gid)?;
        metadata::set_modified_at(folder, name, metadata.modified)
    }

    /// Links or copies a regular file; returns what is known of a copy.
    fn file(&self, entry: &Entry, folder: BorrowedFd<'_>) -> io::Result<Option<KnownFile>> {
        let (view, name) = (self.files.view(), entry.name());
        if let Some(links) = self.links
            && links.link_entry(view, entry, folder, name)?.is_some()
        {
            return Ok(None);
        }
        let Metadata { uid, gid, mode, modified, size, disk, links, .. } = *entry.metadata();
        let source = view.open(entry).map_err(io::Error::other)?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let file = File::from(rustix::fs::openat(folder, name, flags, Mode::RUSR | Mode::WUSR)?);
        let digest = if disk < size {
            copy_sparse(&source, &file, size).map(|()| None)?
        } else {
            copy_whole(&source, &file, size)?
        };
        let xattrs = view.xattrs(entry).map_err(io::Error::other)?;
        // A new owner takes capabilities away, and not every mode lets attributes be set.
        metadata::set_owner_at(folder, name, uid, gid)?;
        metadata::set_xattrs_at(folder, name, &xattrs)?;
        metadata::set_mode_at(folder, name, mode)?;
        metadata::set_modified(&file, modified)?;
        let Some(digest) = digest else { return Ok(None) };
        let is_plain = links == 1 && xattrs.is_empty() && !self.hands_on_access;
        let metadata = is_plain.then(|| Metadata::of(&file)).transpose()?;
        Ok(Some(KnownFile { digest, metadata }))
    }
}

/// Copies the `size` bytes of a file; returns their digest, unless the file system shares them.
fn copy_whole(mut source: &File, mut target: &File, size: u64) -> io::Result<Option<Digest>> {
    let piece = usize::try_from(size).map_or(PIECE, |size| size.clamp(1, PIECE));
    if size > PIECE as u64 && rustix::fs::ioctl_ficlone(target, source).is_ok() {
        return Ok(None);
    }
    let (mut hasher, mut left, mut piece) = (Hasher::new(), size, vec![0; piece]);
    while left > 0 {
        match source.read(&mut piece) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(length) => {
                hasher.update(&piece[..length]);
                target.write_all(&piece[..length])?;
                left = left.saturating_sub(length as u64);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(Some(hasher.digest()))
}

/// Copies `size` bytes; holes stay holes.
fn copy_sparse(mut source: &File, mut target: &File, size: u64) -> io::Result<()> {
    let mut position = 0;
    while position < size {
        let start = match rustix::fs::seek(source, Seek::Data(position)) {
            Ok(start) => start,
            // Nothing but a hole is left.
            Err(Errno::NXIO) => break,
            // File systems that know no holes.
            Err(Errno::INVAL) => position,
            Err(error) => return Err(error.into()),
        };
        let end = rustix::fs::seek(source, Seek::Hole(start)).unwrap_or(size).min(size);
        source.seek(SeekFrom::Start(start))?;
        target.seek(SeekFrom::Start(start))?;
        io::copy(&mut source.take(end - start), &mut target)?;
        position = end;
    }
    target.set_len(size)
}
