//! `type=local`: the files of the result in a folder (BuildKit, exporter/local/export.go).
//!
//! Files belong to whoever builds. `mode=copy` leaves what is in the folder besides, `mode=delete`
//! removes it. No link in the folder is followed, neither one that was there nor one that the
//! result has: folders are opened component by component, and files are made aside and renamed.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use rbuild_cache::layer::tar_reader::{TarEntry, TarKind};
use rbuild_cache::metadata::{self, Metadata, Timestamp, Xattrs};
use rbuild_cache::remove::remove_tree;
use rbuild_cache::view::open_beneath;
use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;

use super::attributes::{Attributes, wrong};
use super::filesystem::{FilesystemOptions, OutgoingFile, PlatformFiles};
use super::{Around, ExportError, Exported, Exporter, blocking};
use crate::image::{BuiltImage, ImageOptions};
use crate::request::{Destination, UsageError};

/// Writes files to a folder.
pub(super) struct LocalExporter {
    folder: PathBuf,
    options: FilesystemOptions,
    surplus: Surplus,
}

/// What happens to what is in the folder and not in the result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Surplus {
    Kept,
    Deleted,
}

impl LocalExporter {
    pub(super) fn new(attributes: &mut Attributes) -> Result<Self, UsageError> {
        let folder = match attributes.destination.clone() {
            Some(Destination::Folder(folder) | Destination::File(folder)) => folder,
            Some(Destination::Stdout) | None => {
                return Err(wrong("dest", "", "it must be a folder"));
            }
        };
        let surplus = match attributes.take("mode").as_deref() {
            None | Some("" | "copy") => Surplus::Kept,
            Some("delete") => Surplus::Deleted,
            Some(other) => return Err(wrong("mode", other, "it is neither `copy` nor `delete`")),
        };
        Ok(Self { folder, options: FilesystemOptions::new(attributes)?, surplus })
    }
}

#[async_trait]
impl Exporter for LocalExporter {
    fn title(&self) -> String {
        "exporting to client directory".into()
    }

    fn layers(&self) -> Option<&ImageOptions> {
        None
    }

    async fn export(&self, built: &[BuiltImage], around: &Around) -> Result<Exported, ExportError> {
        let files = self.options.files(built, around).await?;
        let (folder, surplus) = (self.folder.clone(), self.surplus);
        blocking(move || write(&files, &folder, surplus)).await?;
        Ok(Exported::default())
    }
}

fn write(files: &[PlatformFiles], folder: &Path, surplus: Surplus) -> Result<(), ExportError> {
    fs_err::create_dir_all(folder)?;
    let mut writer = FolderWriter::open(folder)?;
    for files in files {
        if let Some(own) = files.own_folder() {
            writer.write(&own, &Content::None)?;
        }
        files.walk(&mut |file| writer.write(&file.tar, &Content::File(file)))?;
        if let Some((entry, bytes)) = files.statement()? {
            writer.write(&entry, &Content::Bytes(&bytes))?;
        }
    }
    if surplus == Surplus::Deleted {
        writer.delete_surplus(folder)?;
    }
    writer.finish()
}

/// Where the bytes of a file come from.
enum Content<'a> {
    None,
    File(&'a OutgoingFile<'a>),
    Bytes(&'a [u8]),
}

struct FolderWriter {
    root: OwnedFd,
    /// The folder of the last file: most files are in the same.
    last: Option<(PathBuf, OwnedFd)>,
    /// Modes and times of folders, set at the end.
    folders: Vec<(PathBuf, TarEntry)>,
    written: BTreeSet<PathBuf>,
}

/// The name of a file that is not in its place yet.
const ASIDE: &str = ".rbuild-export";

impl FolderWriter {
    fn open(folder: &Path) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root =
            rustix::fs::open(folder, flags, Mode::empty()).map_err(|e| about(folder, &e.into()))?;
        Ok(Self { root, last: None, folders: Vec::new(), written: BTreeSet::new() })
    }

    fn write(&mut self, entry: &TarEntry, content: &Content<'_>) -> Result<(), ExportError> {
        let path = Path::new(OsStr::from_bytes(&entry.path)).to_owned();
        self.written.insert(path.clone());
        let parent = path.parent().unwrap_or(Path::new("")).to_owned();
        if self.last.as_ref().is_none_or(|(last, _)| *last != parent) {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY;
            let folder =
                open_beneath(self.root.as_fd(), &parent, flags).map_err(|e| about(&path, &e))?;
            self.last = Some((parent, folder));
        }
        let Some((_, folder)) = &self.last else { return Ok(()) };
        let name = path.file_name().unwrap_or_default();
        if entry.kind == TarKind::Folder {
            make_folder(folder, name).map_err(|e| about(&path, &e))?;
            self.folders.push((path, entry.clone()));
            return Ok(());
        }
        let made = self.make_aside(folder, entry, content).and_then(|made| {
            if made {
                put_in_place(folder, name)?;
            }
            Ok(())
        });
        made.map_err(|error| match error {
            ExportError::Io(e) => about(&path, &e).into(),
            other => other,
        })
    }

    /// Makes the file under the name [`ASIDE`]; returns whether it was made.
    fn make_aside(
        &self,
        folder: &OwnedFd,
        entry: &TarEntry,
        content: &Content<'_>,
    ) -> Result<bool, ExportError> {
        remove_at(folder, OsStr::new(ASIDE))?;
        let private = Mode::from_raw_mode(0o600);
        match (&entry.kind, content) {
            (TarKind::File { .. }, Content::Bytes(bytes)) => {
                let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
                let made = rustix::fs::openat(folder, ASIDE, flags, private).map_err(io_error)?;
                io::Write::write_all(&mut std::fs::File::from(made), bytes)?;
            }
            (TarKind::File { .. }, Content::File(file)) => {
                let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
                let made = rustix::fs::openat(folder, ASIDE, flags, private).map_err(io_error)?;
                // The kernel copies, and shares the bytes where the file system can.
                io::copy(&mut file.open()?, &mut std::fs::File::from(made))?;
            }
            (TarKind::HardLink(first), _) => {
                let first = Path::new(OsStr::from_bytes(first));
                let parent = first.parent().unwrap_or(Path::new(""));
                let flags = OFlags::PATH | OFlags::DIRECTORY;
                let parent = open_beneath(self.root.as_fd(), parent, flags)?;
                let name = first.file_name().unwrap_or_default();
                rustix::fs::linkat(parent, name, folder, ASIDE, AtFlags::empty())
                    .map_err(io_error)?;
                return Ok(true);
            }
            (TarKind::Link(target), _) => {
                rustix::fs::symlinkat(OsStr::from_bytes(target), folder, ASIDE)
                    .map_err(io_error)?;
            }
            (TarKind::Fifo, _) => {
                rustix::fs::mknodat(folder, ASIDE, FileType::Fifo, private, 0).map_err(io_error)?;
            }
            (TarKind::CharDevice(major, minor) | TarKind::BlockDevice(major, minor), _) => {
                let kind = match entry.kind {
                    TarKind::CharDevice(..) => FileType::CharacterDevice,
                    _ => FileType::BlockDevice,
                };
                let device = rustix::fs::makedev(*major, *minor);
                match rustix::fs::mknodat(folder, ASIDE, kind, private, device) {
                    // Without root there are no devices.
                    Err(Errno::PERM) => return Ok(false),
                    done => done.map_err(io_error)?,
                }
            }
            (TarKind::Folder | TarKind::File { .. }, _) => return Ok(false),
        }
        if !matches!(entry.kind, TarKind::Link(_)) {
            metadata::set_mode_at(folder, OsStr::new(ASIDE), entry.mode)?;
        }
        finish_at(folder, OsStr::new(ASIDE), entry)?;
        Ok(true)
    }

    /// Removes what is in the folder and was not written.
    fn delete_surplus(&self, top: &Path) -> Result<(), ExportError> {
        let mut open = vec![PathBuf::new()];
        while let Some(folder) = open.pop() {
            for found in fs_err::read_dir(top.join(&folder))? {
                let found = found?;
                let path = folder.join(found.file_name());
                let is_folder = found.file_type()?.is_dir();
                match (self.written.contains(&path), is_folder) {
                    (true, true) => open.push(path),
                    (true, false) => {}
                    (false, true) => remove_tree(&found.path())?,
                    (false, false) => fs_err::remove_file(found.path())?,
                }
            }
        }
        Ok(())
    }

    /// Gives folders their modes and times, the innermost first.
    fn finish(mut self) -> Result<(), ExportError> {
        while let Some((path, entry)) = self.folders.pop() {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY;
            let folder =
                open_beneath(self.root.as_fd(), &path, flags).map_err(|e| about(&path, &e))?;
            finish_at(&folder, OsStr::new(""), &entry).map_err(|e| about(&path, &e))?;
            let mode = Mode::from_raw_mode(entry.mode);
            rustix::fs::fchmod(&folder, mode).map_err(|e| about(&path, &e.into()))?;
            let time = Timestamp { seconds: entry.mtime.0, nanoseconds: entry.mtime.1 };
            metadata::set_modified(&folder, time).map_err(|e| about(&path, &e))?;
        }
        Ok(())
    }
}

fn make_folder(parent: &OwnedFd, name: &OsStr) -> io::Result<()> {
    if Metadata::at(parent, name)?.is_some_and(|there| there.is_directory()) {
        return Ok(());
    }
    remove_at(parent, name)?;
    Ok(rustix::fs::mkdirat(parent, name, Mode::from_raw_mode(0o700))?)
}

/// Renames what was made aside, over what is there unless that is a folder, which goes first.
fn put_in_place(folder: &OwnedFd, name: &OsStr) -> io::Result<()> {
    if Metadata::at(folder, name)?.is_some_and(|there| there.is_directory()) {
        remove_at(folder, name)?;
    }
    rustix::fs::renameat(folder, ASIDE, folder, name)?;
    // Renaming a hard link over another of the same file does nothing at all.
    remove_at(folder, OsStr::new(ASIDE))
}

fn remove_at(folder: &OwnedFd, name: &OsStr) -> io::Result<()> {
    match Metadata::at(folder, name)? {
        None => Ok(()),
        Some(there) if there.is_directory() => {
            let folder = Path::new("/proc/self/fd").join(folder.as_raw_fd().to_string());
            remove_tree(&folder.join(name))
        }
        Some(_) => Ok(rustix::fs::unlinkat(folder, name, AtFlags::empty())?),
    }
}

fn finish_at(folder: &OwnedFd, name: &OsStr, entry: &TarEntry) -> io::Result<()> {
    let named = |(name, value): &(Vec<u8>, Vec<u8>)| {
        Ok((std::ffi::CString::new(name.clone())?, value.clone()))
    };
    let xattrs: Xattrs = entry.xattrs.iter().map(named).collect::<io::Result<_>>()?;
    metadata::set_xattrs_at(folder, name, &xattrs)?;
    if name.is_empty() {
        return Ok(());
    }
    let time = Timestamp { seconds: entry.mtime.0, nanoseconds: entry.mtime.1 };
    metadata::set_modified_at(folder, name, time)
}

fn io_error(error: Errno) -> io::Error {
    error.into()
}

fn about(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("cannot write `{}`: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use rbuild_cache::view::View;

    use super::*;

    fn files(folder: &Path) -> Vec<PlatformFiles> {
        let view = View::layers(vec![folder.to_owned()]);
        vec![PlatformFiles {
            folder: None,
            platform: "linux/amd64".into(),
            epoch: Some(9),
            view,
            provenance: None,
        }]
    }

    #[test]
    fn links_in_the_folder_are_replaced_and_not_followed() {
        let top = tempfile::tempdir().unwrap();
        let (tree, out) = (top.path().join("tree"), top.path().join("out"));
        let outside = top.path().join("outside");
        for folder in [&tree.join("a"), &out, &outside] {
            fs_err::create_dir_all(folder).unwrap();
        }
        fs_err::write(outside.join("file"), "untouched").unwrap();
        fs_err::write(tree.join("a/file"), "new").unwrap();
        fs_err::write(tree.join("b"), "new").unwrap();
        fs_err::os::unix::fs::symlink(&outside, out.join("a")).unwrap();
        fs_err::os::unix::fs::symlink(outside.join("file"), out.join("b")).unwrap();
        write(&files(&tree), &out, Surplus::Kept).unwrap();
        assert_eq!(fs_err::read_to_string(outside.join("file")).unwrap(), "untouched");
        assert_eq!(fs_err::read_to_string(out.join("a/file")).unwrap(), "new");
        assert!(fs_err::symlink_metadata(out.join("b")).unwrap().is_file());
    }

    #[test]
    fn files_keep_what_they_are_and_surplus_goes_when_asked() {
        let top = tempfile::tempdir().unwrap();
        let (tree, out) = (top.path().join("tree"), top.path().join("out"));
        fs_err::create_dir_all(tree.join("d")).unwrap();
        fs_err::write(tree.join("d/a"), "text").unwrap();
        fs_err::hard_link(tree.join("d/a"), tree.join("d/b")).unwrap();
        let mode = std::fs::Permissions::from_mode(0o2750);
        fs_err::set_permissions(tree.join("d"), mode).unwrap();
        fs_err::create_dir_all(out.join("d/old")).unwrap();
        fs_err::write(out.join("old"), "").unwrap();
        write(&files(&tree), &out, Surplus::Kept).unwrap();
        assert!(out.join("old").exists() && out.join("d/old").exists());
        write(&files(&tree), &out, Surplus::Deleted).unwrap();
        assert!(!out.join("old").exists() && !out.join("d/old").exists());
        let about = |path: &str| Metadata::at(rustix::fs::CWD, out.join(path).as_os_str());
        let (folder, a, b) =
            (about("d").unwrap().unwrap(), about("d/a").unwrap().unwrap(), about("d/b").unwrap());
        assert_eq!((folder.mode, folder.modified.seconds), (0o2750, 9));
        assert_eq!(a.inode, b.unwrap().inode);
    }
}
