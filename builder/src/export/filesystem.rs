//! The files of a result, as `tar` and `local` write them: the merged tree of each platform, in
//! the order of paths.

use std::collections::HashMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use rbuild_cache::layer::tar_reader::{TarEntry, TarKind};
use rbuild_cache::metadata::FileType;
use rbuild_cache::view::{Entry, View};
use rustix::fs::{major, minor};

use super::attributes::Attributes;
use super::{Around, ExportError};
use crate::image::{self, BuiltImage};
use crate::request::UsageError;

/// What `tar` and `local` have in common.
pub(super) struct FilesystemOptions {
    /// Each platform's files are in a folder of its own; by default if there are several.
    platform_split: Option<bool>,
    /// What `SOURCE_DATE_EPOCH` of the build is overridden with.
    epoch: Option<i64>,
}

/// The files for one platform.
pub(super) struct PlatformFiles {
    /// The folder they go into, in a split result.
    pub(super) folder: Option<String>,
    /// The platform, as people write it.
    pub(super) platform: String,
    /// The time that all files get.
    pub(super) epoch: Option<i64>,
    pub(super) view: View,
}

impl FilesystemOptions {
    pub(super) fn new(attributes: &mut Attributes) -> Result<Self, UsageError> {
        let platform_split = attributes.optional_boolean("platform-split")?;
        Ok(Self { platform_split, epoch: attributes.epoch()? })
    }

    /// The files of all platforms. Layers of base images are fetched for it.
    pub(super) async fn files(
        &self,
        built: &[BuiltImage],
        around: &Around,
    ) -> Result<Vec<PlatformFiles>, ExportError> {
        let split = self.platform_split.unwrap_or(built.len() > 1);
        let mut files = Vec::with_capacity(built.len());
        for image in built {
            let snapshots = image::snapshots(&around.images, &image.tree, &around.task).await?;
            let folders = around.images.state().snapshots().lower(&snapshots)?;
            let platform = image.platform.to_string();
            files.push(PlatformFiles {
                folder: split.then(|| platform.replace('/', "_")),
                platform,
                epoch: self.epoch.or(image.epoch),
                view: View::layers(folders),
            });
        }
        if !split && built.len() > 1 {
            refuse_what_is_there_twice(&files)?;
        }
        Ok(files)
    }
}

fn refuse_what_is_there_twice(files: &[PlatformFiles]) -> Result<(), ExportError> {
    let mut owners: HashMap<PathBuf, &str> = HashMap::new();
    for files in files {
        files.walk(&mut |file| {
            if file.entry.metadata().is_directory() {
                return Ok(());
            }
            match owners.insert(file.entry.path().to_owned(), &files.platform) {
                None => Ok(()),
                Some(other) => Err(ExportError::Twice {
                    path: file.entry.absolute_path().display().to_string(),
                    one: other.to_owned(),
                    other: files.platform.clone(),
                }),
            }
        })?;
    }
    Ok(())
}

/// A file of a result on its way out.
pub(super) struct OutgoingFile<'a> {
    pub(super) entry: &'a Entry,
    /// As it stands in a tar.
    pub(super) tar: TarEntry,
    view: &'a View,
}

impl OutgoingFile<'_> {
    /// Its bytes, if it is a file.
    pub(super) fn open(&self) -> Result<File, ExportError> {
        Ok(self.view.open(self.entry)?)
    }
}

impl PlatformFiles {
    /// Calls `visit` for each path but the root, a folder before what is in it. Sockets are left
    /// out.
    pub(super) fn walk(
        &self,
        visit: &mut dyn FnMut(&OutgoingFile<'_>) -> Result<(), ExportError>,
    ) -> Result<(), ExportError> {
        let mut first_names: HashMap<(usize, u64), PathBuf> = HashMap::new();
        let mut open = self.view.children(&self.view.root()?)?;
        open.reverse();
        while let Some(entry) = open.pop() {
            if let Some(kind) = self.kind(&entry, &mut first_names)? {
                let tar = self.tar_entry(&entry, kind)?;
                visit(&OutgoingFile { entry: &entry, tar, view: &self.view })?;
            }
            if entry.metadata().is_directory() {
                open.extend(self.view.children(&entry)?.into_iter().rev());
            }
        }
        Ok(())
    }

    fn kind(
        &self,
        entry: &Entry,
        first_names: &mut HashMap<(usize, u64), PathBuf>,
    ) -> Result<Option<TarKind>, ExportError> {
        let metadata = entry.metadata();
        if metadata.links > 1 && !metadata.is_directory() {
            let inode = (entry.layer(), metadata.inode);
            if let Some(first) = first_names.get(&inode) {
                return Ok(Some(TarKind::HardLink(bytes_of(&self.placed(first)))));
            }
            first_names.insert(inode, entry.path().to_owned());
        }
        let device = (major(metadata.device), minor(metadata.device));
        Ok(Some(match metadata.file_type {
            FileType::File => TarKind::File { size: metadata.size },
            FileType::Directory => TarKind::Folder,
            FileType::Symlink => TarKind::Link(bytes_of(&self.view.read_link(entry)?)),
            FileType::Fifo => TarKind::Fifo,
            FileType::CharDevice => TarKind::CharDevice(device.0, device.1),
            FileType::BlockDevice => TarKind::BlockDevice(device.0, device.1),
            FileType::Socket => return Ok(None),
        }))
    }

    fn tar_entry(&self, entry: &Entry, kind: TarKind) -> Result<TarEntry, ExportError> {
        let metadata = entry.metadata();
        let mtime = match self.epoch {
            Some(epoch) => (epoch, 0),
            None => (metadata.modified.seconds, metadata.modified.nanoseconds),
        };
        let xattrs = match kind {
            TarKind::HardLink(_) => Vec::new(),
            _ => self.view.xattrs(entry)?,
        };
        Ok(TarEntry {
            path: bytes_of(&self.placed(entry.path())),
            kind,
            mode: metadata.mode,
            uid: metadata.uid,
            gid: metadata.gid,
            mtime,
            xattrs: xattrs.into_iter().map(|(name, value)| (name.into_bytes(), value)).collect(),
        })
    }

    /// Where in the result a path of the tree is.
    fn placed(&self, path: &Path) -> PathBuf {
        self.folder.as_ref().map_or_else(|| path.to_owned(), |folder| Path::new(folder).join(path))
    }

    /// The folder of this platform in a split result.
    pub(super) fn own_folder(&self) -> Option<TarEntry> {
        let path = self.folder.as_ref()?.clone().into_bytes();
        let mtime = (self.epoch.unwrap_or(0), 0);
        let kind = TarKind::Folder;
        Some(TarEntry { path, kind, mode: 0o755, uid: 0, gid: 0, mtime, xattrs: Vec::new() })
    }
}

fn bytes_of(path: &Path) -> Vec<u8> {
    use std::os::unix::ffi::OsStrExt;
    path.as_os_str().as_bytes().to_vec()
}
