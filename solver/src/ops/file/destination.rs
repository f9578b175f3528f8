//! The tree that files are written to: layers to look at, and one new layer folder on top to write
//! into.
//!
//! All paths here are resolved ones: relative to the root, no component a link. A directory that
//! only exists below is made in the new layer, with the same mode, owner and attributes, as soon as
//! something is written into it: what overlayfs does when it copies up.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rbuild_cache::digest::Digest;
use rbuild_cache::layer::content::KnownFile;
use rbuild_cache::metadata::{self, Metadata, Timestamp};
use rbuild_cache::view::{self, Entry, View};
use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;

use super::FileError;
use super::reuse::{Identity, Links, Plain};

/// Of fewer files, the commit asks once more what they are.
const WORTH_KNOWING: usize = 16;

/// Where files are written to.
pub(super) struct Destination {
    below: View,
    /// The layers below with the new one on top.
    merged: View,
    folder: PathBuf,
    layer: OwnedFd,
    /// Directories that are in the new layer, and whether something from below shows through.
    known: HashMap<PathBuf, Shows>,
    written: HashMap<PathBuf, KnownFile>,
    /// Written files that have one name, no attributes and nothing else that could not be linked.
    plain: HashMap<PathBuf, Plain>,
    links: Option<Links>,
}

/// What was written into a layer.
pub(super) struct Written {
    /// The digests of files, and what else is known of them.
    pub(super) files: HashMap<PathBuf, KnownFile>,
    /// The files that later layers can link.
    pub(super) plain: HashMap<PathBuf, Plain>,
    /// Some files are those of other layers.
    pub(super) linked: bool,
}

/// A file that was made.
pub(super) struct Made {
    pub(super) path: PathBuf,
    pub(super) digest: Digest,
    /// Absent for one that could not be linked.
    pub(super) identity: Option<Identity>,
    /// What it was when it was finished.
    pub(super) metadata: Option<Metadata>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shows {
    Nothing,
    Below,
}

/// What a directory gets that was not there before.
#[derive(Clone, Copy, Debug)]
pub(super) struct NewDirectory {
    pub(super) mode: u32,
    pub(super) owner: (u32, u32),
    pub(super) time: Option<i64>,
}

/// A directory of the new layer, opened to write into.
pub(super) struct OpenDirectory {
    path: PathBuf,
    folder: OwnedFd,
    /// What is there below, if something can be.
    below: Option<Entry>,
}

impl Destination {
    /// Writes into `folder`, an empty one, as a layer over `below`.
    ///
    /// With `links`, files may be those of other layers: the folder must not be written to afterwards.
    pub(super) fn new(
        below: &View,
        folder: &Path,
        links: Option<Links>,
    ) -> Result<Self, FileError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let layer = rustix::fs::open(folder, flags, Mode::empty())
            .map_err(|error| FileError::State(error.into()))?;
        let shows = if below.is_empty() { Shows::Nothing } else { Shows::Below };
        let destination = Self {
            below: below.clone(),
            merged: below.with_layer(folder.to_owned()),
            folder: folder.to_owned(),
            layer,
            known: HashMap::from([(PathBuf::new(), shows)]),
            written: HashMap::new(),
            plain: HashMap::new(),
            links,
        };
        if shows == Shows::Below {
            let root = below.root()?;
            destination.dress_as(Path::new(""), below, &root)?;
        }
        Ok(destination)
    }

    /// What was written.
    pub(super) fn finish(self) -> Written {
        let linked = self.links.is_some_and(|links| links.any());
        Written { files: self.written, plain: self.plain, linked }
    }

    /// Notes that the file at `path` has these bytes.
    pub(super) fn note(&mut self, path: PathBuf, digest: Digest) {
        self.plain.remove(&path);
        self.written.insert(path, KnownFile { digest, metadata: None });
    }

    /// Notes files that were made.
    pub(super) fn note_all(&mut self, files: Vec<Made>) {
        self.written.reserve(files.len());
        self.plain.reserve(files.len());
        // They have what they were given and nothing else: no access list of the folder they are in.
        let are_bare = files.len() >= WORTH_KNOWING && !metadata::hands_on_access(&self.folder);
        for Made { path, digest, identity, metadata } in files {
            match identity.zip(metadata) {
                Some((identity, Metadata { inode, .. })) => {
                    self.plain.insert(path.clone(), Plain { identity, inode });
                }
                None => _ = self.plain.remove(&path),
            }
            let metadata = metadata.filter(|_| are_bare && identity.is_some());
            self.written.insert(path, KnownFile { digest, metadata });
        }
    }

    /// Notes that what is at `path` is no file, whatever was there before.
    pub(super) fn note_other(&mut self, path: &Path) {
        self.written.remove(path);
        self.plain.remove(path);
    }

    /// What files can be linked from.
    pub(super) fn links(&self) -> Option<&Links> {
        self.links.as_ref()
    }

    /// Notes that the file at `path` is the one at `first`.
    pub(super) fn note_link(&mut self, first: &Path, path: &Path) {
        self.plain.remove(first);
        match self.written.get_mut(first) {
            Some(file) => {
                file.metadata = None;
                let digest = file.digest;
                self.note(path.to_owned(), digest);
            }
            None => self.note_other(path),
        }
    }

    /// Where `path` leads, links followed, relative to the root.
    pub(super) fn resolve(&self, path: &Path) -> Result<PathBuf, FileError> {
        Ok(self.merged.resolve(path)?.path)
    }

    /// What is at `path`, a resolved one, by now.
    pub(super) fn entry(&self, path: &Path) -> Result<Option<Entry>, FileError> {
        Ok(self.merged.lookup(path)?)
    }

    /// Makes `path` and what is missing on the way. Returns those that were made, outermost first.
    pub(super) fn make_directories(
        &mut self,
        path: &Path,
        new: NewDirectory,
    ) -> Result<Vec<PathBuf>, FileError> {
        let mut made = Vec::new();
        let mut here = PathBuf::new();
        for component in path.components() {
            here.push(component);
            if self.known.contains_key(&here) {
                continue;
            }
            if self.make_directory(&here, new)? {
                made.push(here.clone());
            }
        }
        Ok(made)
    }

    /// Makes the directory `path`, whose parent exists; returns whether it was missing.
    pub(super) fn make_directory(
        &mut self,
        path: &Path,
        new: NewDirectory,
    ) -> Result<bool, FileError> {
        match self.entry(path)? {
            Some(entry) if entry.metadata().is_directory() => return Ok(false),
            Some(_) => return Err(FileError::NotADirectory(Path::new("/").join(path))),
            None => {}
        }
        if let Some(parent) = path.parent()
            && !self.entry(parent)?.is_some_and(|entry| entry.metadata().is_directory())
        {
            return Err(FileError::io(path, Errno::NOENT.into()));
        }
        self.create(path)?;
        let failed = |source| FileError::io(path, source);
        let folder = self.open(path)?;
        metadata::set_owner_and_mode(&folder, new.owner.0, new.owner.1, new.mode)
            .map_err(failed)?;
        if let Some(time) = new.time {
            metadata::set_modified(&folder, Timestamp::from_seconds(time)).map_err(failed)?;
        }
        Ok(true)
    }

    /// Makes an empty directory in the new layer, where the tree has none. Its parent exists.
    pub(super) fn create(&mut self, path: &Path) -> Result<(), FileError> {
        let parent = path.parent().unwrap_or(Path::new(""));
        self.copy_up(parent)?;
        let failed = |error: Errno| FileError::io(path, error.into());
        rustix::fs::mkdirat(&self.layer, path, Mode::RWXU).map_err(failed)?;
        // What is not there may be there below, under a file that this layer replaced before.
        let hidden = match self.known.get(parent) {
            Some(Shows::Below) => self.below.lookup(path)?,
            Some(Shows::Nothing) | None => None,
        };
        if hidden.is_some_and(|entry| entry.metadata().is_directory()) {
            let folder = self.open(path)?;
            metadata::mark_opaque(&folder).map_err(|source| FileError::io(path, source))?;
        }
        self.known.insert(path.to_owned(), Shows::Nothing);
        Ok(())
    }

    /// Makes sure that the directory `path`, which the tree has, is in the new layer. That changes
    /// no time of the directory that it is in: for who looks at the tree, nothing was made.
    pub(super) fn copy_up(&mut self, path: &Path) -> Result<(), FileError> {
        let mut here = PathBuf::new();
        for component in path.components() {
            here.push(component);
            if self.known.contains_key(&here) {
                continue;
            }
            let failed = |error: Errno| FileError::io(&here, error.into());
            let Some(entry) = self.below.lookup(&here)? else {
                return Err(failed(Errno::NOENT));
            };
            self.keeping_time(here.parent().unwrap_or(Path::new("")), || {
                rustix::fs::mkdirat(&self.layer, &here, Mode::RWXU).map_err(failed)
            })?;
            self.dress_as(&here, &self.below, &entry)?;
            self.known.insert(here.clone(), Shows::Below);
        }
        Ok(())
    }

    /// Does `work` in the directory `path` of the new layer, which has the same time before and
    /// after.
    fn keeping_time(
        &self,
        path: &Path,
        work: impl FnOnce() -> Result<(), FileError>,
    ) -> Result<(), FileError> {
        let failed = |source| FileError::io(path, source);
        let folder = self.open(path)?;
        let before = Metadata::of(&folder).map_err(failed)?.modified;
        work()?;
        metadata::set_modified(&folder, before).map_err(failed)
    }

    /// Gives the directory `path` of the new layer what `entry` has.
    fn dress_as(&self, path: &Path, view: &View, entry: &Entry) -> Result<(), FileError> {
        let failed = |source| FileError::io(path, source);
        let folder = self.open(path)?;
        let Metadata { uid, gid, mode, modified, .. } = *entry.metadata();
        metadata::set_owner_and_mode(&folder, uid, gid, mode).map_err(failed)?;
        let xattrs = view.xattrs(entry)?;
        metadata::set_xattrs_at(&folder, OsStr::new(""), &xattrs).map_err(failed)?;
        metadata::set_modified(&folder, modified).map_err(failed)
    }

    fn open(&self, path: &Path) -> Result<OwnedFd, FileError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        view::open_beneath(self.layer.as_fd(), path, flags)
            .map_err(|source| FileError::io(path, source))
    }

    /// Opens a directory that the tree has, to write into.
    pub(super) fn open_directory(&mut self, path: &Path) -> Result<OpenDirectory, FileError> {
        self.copy_up(path)?;
        let below = match self.known.get(path) {
            Some(Shows::Nothing) => None,
            Some(Shows::Below) | None => self.below.lookup(path)?,
        };
        Ok(OpenDirectory { path: path.to_owned(), folder: self.open(path)?, below })
    }

    /// Removes whatever is at `path`, which is about to be replaced: only the new layer's own part
    /// needs it, the rest will be hidden by what comes.
    pub(super) fn remove(&mut self, path: &Path) -> Result<(), FileError> {
        let failed = |source| FileError::io(path, source);
        let Some(metadata) = Metadata::at(&self.layer, path.as_os_str()).map_err(failed)? else {
            return Ok(());
        };
        if metadata.is_directory() {
            // The path is the new layer's own, and no component of it is a link.
            fs_err::remove_dir_all(self.folder.join(path)).map_err(failed)?;
            self.known.retain(|known, _| !known.starts_with(path));
        } else {
            rustix::fs::unlinkat(&self.layer, path, AtFlags::empty())
                .map_err(|error| failed(error.into()))?;
        }
        self.written.retain(|written, _| !written.starts_with(path));
        self.plain.retain(|written, _| !written.starts_with(path));
        Ok(())
    }

    /// Where `path` leads if the directory `root` is the root, links followed.
    pub(super) fn resolve_in(&self, root: &Path, path: &Path) -> Result<PathBuf, FileError> {
        match self.merged.lookup(root)? {
            Some(root) => Ok(self.merged.resolve_in(&root, path)?.path),
            None => Err(FileError::io(root, Errno::NOENT.into())),
        }
    }

    /// Makes sure that the file, link or device at `path`, which the tree has, is in the new layer.
    pub(super) fn copy_up_file(&mut self, path: &Path) -> Result<(), FileError> {
        let failed = |source| FileError::io(path, source);
        if Metadata::at(&self.layer, path.as_os_str()).map_err(failed)?.is_some() {
            return Ok(());
        }
        let Some(entry) = self.below.lookup(path)? else {
            return Err(failed(Errno::NOENT.into()));
        };
        let parent = path.parent().unwrap_or(Path::new(""));
        let open = self.open_directory(parent)?;
        self.keeping_time(parent, || super::copy::copy_as_it_is(&self.below, &entry, &open))
    }

    /// The new layer's folder.
    pub(super) fn layer(&self) -> BorrowedFd<'_> {
        self.layer.as_fd()
    }

    /// The layers below, for [`OpenDirectory::clear`].
    pub(super) fn below(&self) -> &View {
        &self.below
    }
}

impl OpenDirectory {
    /// The descriptor.
    pub(super) fn folder(&self) -> BorrowedFd<'_> {
        self.folder.as_fd()
    }

    /// Makes way for a file called `name`.
    ///
    /// # Errors
    /// [`FileError::ReplaceDirectory`] when it is a directory.
    pub(super) fn clear(&self, below: &View, name: &OsStr) -> Result<(), FileError> {
        let path = self.path.join(name);
        let failed = |source| FileError::io(&path, source);
        let refused = || FileError::ReplaceDirectory(Path::new("/").join(&path));
        match Metadata::at(&self.folder, name).map_err(failed)? {
            Some(metadata) if metadata.is_directory() => return Err(refused()),
            Some(_) => {
                rustix::fs::unlinkat(&self.folder, name, AtFlags::empty())
                    .map_err(|error| failed(error.into()))?;
            }
            None => {
                if let Some(directory) = &self.below
                    && let Some(entry) = below.child(directory, name)?
                    && entry.metadata().is_directory()
                {
                    return Err(refused());
                }
            }
        }
        Ok(())
    }

    /// What is called `name` in it by now.
    pub(super) fn lookup(&self, below: &View, name: &OsStr) -> Result<Option<Metadata>, FileError> {
        let there = Metadata::at(&self.folder, name)
            .map_err(|source| FileError::io(&self.path.join(name), source))?;
        match (there, &self.below) {
            (None, Some(directory)) => {
                Ok(below.child(directory, name)?.map(|entry| *entry.metadata()))
            }
            (there, _) => Ok(there),
        }
    }

    /// Its path.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether everything in it is in the new layer.
    pub(super) fn is_new(&self) -> bool {
        self.below.is_none()
    }
}
