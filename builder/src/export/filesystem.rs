//! The files of a result, as `tar` and `local` write them: the merged tree of each platform, in
//! the order of paths.

use std::collections::HashMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use rbuild_cache::digest::Digest;
use rbuild_cache::layer::tar_reader::{TarEntry, TarKind};
use rbuild_cache::metadata::FileType;
use rbuild_cache::view::{Entry, View};
use rustix::fs::{major, minor};

use super::attributes::{Attributes, wrong};
use super::{Around, ExportError};
use crate::image::{self, BuiltImage};
use crate::provenance::Provenance;
use crate::request::UsageError;

/// What `tar` and `local` have in common.
pub(super) struct FilesystemOptions {
    /// Each platform's files are in a folder of its own; by default if there are several.
    platform_split: Option<bool>,
    /// What `SOURCE_DATE_EPOCH` of the build is overridden with.
    epoch: Option<i64>,
    /// What the names of files with statements begin with.
    attestation_prefix: String,
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
    /// How the files were built, and the name of the file that says so.
    pub(super) provenance: Option<(String, Provenance)>,
}

impl FilesystemOptions {
    pub(super) fn new(attributes: &mut Attributes) -> Result<Self, UsageError> {
        let platform_split = attributes.optional_boolean("platform-split")?;
        let attestation_prefix = attributes.take("attestation-prefix").unwrap_or_default();
        if attestation_prefix.contains('/') {
            let reason = "it is part of the name of a file";
            return Err(wrong("attestation-prefix", &attestation_prefix, reason));
        }
        Ok(Self { platform_split, epoch: attributes.epoch()?, attestation_prefix })
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
                provenance: self.provenance(image, built.len() > 1 && !split),
            });
        }
        if !split && built.len() > 1 {
            refuse_what_is_there_twice(&files)?;
        }
        Ok(files)
    }
}

impl FilesystemOptions {
    /// What is said of the files, and the name of the file that says it: with the platform in it
    /// where several are in one folder.
    fn provenance(&self, image: &BuiltImage, several: bool) -> Option<(String, Provenance)> {
        let provenance = image.provenance.as_ref().filter(|one| !one.inline_only)?;
        let mut name = format!("{}{}", self.attestation_prefix, provenance.file_name);
        if several {
            let platform = image.platform.to_string().replace('/', "_");
            let (stem, extension) = match name.rsplit_once('.') {
                Some((stem, extension)) => (stem, format!(".{extension}")),
                None => (&*name, String::new()),
            };
            name = format!("{stem}.{platform}{extension}");
        }
        Some((name, provenance.clone()))
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

    /// The file that says how the others were built, with its bytes.
    pub(super) fn statement(&self) -> Result<Option<(TarEntry, Vec<u8>)>, ExportError> {
        let Some((name, provenance)) = &self.provenance else { return Ok(None) };
        let mut files = Vec::new();
        self.walk(&mut |file| {
            if matches!(file.entry.metadata().file_type, FileType::File) {
                let (digest, _) = Digest::of_stream(file.open()?)?;
                files.push((file.entry.path().display().to_string(), digest));
            }
            Ok(())
        })?;
        let statement = provenance.of_files(&files);
        let bytes = serde_json::to_vec_pretty(&statement).expect("it has string keys only");
        let entry = TarEntry {
            path: bytes_of(&self.placed(Path::new(name))),
            kind: TarKind::File { size: bytes.len() as u64 },
            mode: 0o600,
            uid: 0,
            gid: 0,
            mtime: (self.epoch.unwrap_or(0), 0),
            xattrs: Vec::new(),
        };
        Ok(Some((entry, bytes)))
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
