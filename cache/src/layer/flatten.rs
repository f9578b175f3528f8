//! Layers as files of their own: put together in one plain folder, as overlayfs would show them, or
//! copied as they are.

use std::io;
use std::path::Path;

use fs_err::File;
use rayon::prelude::*;
use rustix::fs::{CWD, FileType, Mode, OFlags};

use super::entries::{Entry, Kind, entries};
use super::whiteout::{self, at};
use crate::metadata::{self, Timestamp, Xattrs};
use crate::remove::remove_any;

/// Adds the layer in `layer` to the plain folder `folder`, to which the layers below were added.
///
/// Each folder on the way to one of the layer's entries is an entry of the layer as well, and so a
/// real folder here by the time: no link is ever followed.
pub fn add_layer(layer: &Path, folder: &Path) -> io::Result<()> {
    if whiteout::is_opaque(layer)? {
        for entry in fs_err::read_dir(folder)? {
            remove_any(&entry?.path())?;
        }
    }
    let entries = entries(layer)?;
    for entry in &entries {
        add(layer, folder, entry)?;
    }
    // Times of folders change with what is written into them.
    let folders = entries.iter().rev().filter(|entry| matches!(entry.kind, Kind::Folder { .. }));
    for entry in folders {
        set_time(&folder.join(&entry.path), entry)?;
    }
    Ok(())
}

/// Makes the empty folder `copy` the same layer as `layer`, marks and all, of files of its own.
pub(crate) fn copy_layer(layer: &Path, copy: &Path) -> io::Result<()> {
    let entries = entries(layer)?;
    let is_folder = |entry: &&Entry| matches!(entry.kind, Kind::Folder { .. });
    for entry in entries.iter().filter(is_folder) {
        let path = copy.join(&entry.path);
        fs_err::create_dir(&path)?;
        if let Kind::Folder { opaque: true } = entry.kind {
            whiteout::set_opaque(&path)?;
        }
    }
    entries.par_iter().try_for_each(|entry| match entry.kind {
        Kind::Folder { .. } | Kind::HardLink(_) => Ok(()),
        Kind::Whiteout => whiteout::make_whiteout(&copy.join(&entry.path)),
        _ => place(layer, &copy.join(&entry.path), entry),
    })?;
    for entry in &entries {
        if let Kind::HardLink(first) = &entry.kind {
            fs_err::hard_link(copy.join(first), copy.join(&entry.path))?;
        }
    }
    // The innermost first: what is written into a folder changes its time, and its mode may be such
    // that nothing can be reached through it.
    for entry in entries.iter().rev().filter(is_folder) {
        copy_metadata(&copy.join(&entry.path), entry)?;
    }
    if whiteout::is_opaque(layer)? {
        whiteout::set_opaque(copy)?;
    }
    Ok(())
}

fn add(layer: &Path, folder: &Path, entry: &Entry) -> io::Result<()> {
    let path = folder.join(&entry.path);
    let is_folder = fs_err::symlink_metadata(&path).is_ok_and(|there| there.is_dir());
    match &entry.kind {
        Kind::Folder { opaque } if is_folder && !opaque => {}
        _ => remove_any(&path)?,
    }
    match &entry.kind {
        Kind::Whiteout => Ok(()),
        Kind::HardLink(first) => fs_err::hard_link(folder.join(first), &path),
        _ => place(layer, &path, entry),
    }
}

/// Makes a copy of the file of `layer` that `entry` is, at `path`, where nothing is, or a folder
/// where a folder is to be.
pub(crate) fn place(layer: &Path, path: &Path, entry: &Entry) -> io::Result<()> {
    match &entry.kind {
        // They are nothing by themselves.
        Kind::Whiteout | Kind::HardLink(_) => return Ok(()),
        Kind::Folder { .. } if path.exists() => {}
        Kind::Folder { .. } => fs_err::create_dir(path)?,
        // A reflink where the file system has them.
        Kind::File { .. } => drop(fs_err::copy(layer.join(&entry.path), path)?),
        Kind::Link(target) => {
            let target = std::ffi::CString::new(target.clone()).map_err(io::Error::other)?;
            rustix::fs::symlink(target, path).map_err(|e| at(path, e))?;
        }
        Kind::CharDevice(device) => node(path, FileType::CharacterDevice, *device)?,
        Kind::BlockDevice(device) => node(path, FileType::BlockDevice, *device)?,
        Kind::Fifo => node(path, FileType::Fifo, 0)?,
        Kind::Socket => node(path, FileType::Socket, 0)?,
    }
    copy_metadata(path, entry)
}

fn node(path: &Path, kind: FileType, device: u64) -> io::Result<()> {
    rustix::fs::mknodat(CWD, path, kind, Mode::from_raw_mode(0o600), device)
        .map_err(|e| at(path, e))
}

/// Gives `path` what `entry` says of owner, mode, attributes and time.
pub(crate) fn copy_metadata(path: &Path, entry: &Entry) -> io::Result<()> {
    let (parent, name) = (path.parent().unwrap_or(path), path.file_name().unwrap_or_default());
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let parent = rustix::fs::open(parent, flags, Mode::empty()).map_err(|e| at(path, e))?;
    metadata::set_owner_at(&parent, name, entry.uid, entry.gid)?;
    if !matches!(entry.kind, Kind::Link(_)) {
        metadata::set_mode_at(&parent, name, entry.mode)?;
    }
    let named = |(name, value): &(Vec<u8>, Vec<u8>)| {
        Ok((std::ffi::CString::new(name.clone())?, value.clone()))
    };
    let xattrs: Xattrs = entry.xattrs.iter().map(named).collect::<io::Result<_>>()?;
    metadata::set_xattrs_at(&parent, name, &xattrs)?;
    set_time(path, entry)
}

pub(crate) fn set_time(path: &Path, entry: &Entry) -> io::Result<()> {
    let parent = File::open(path.parent().unwrap_or(path))?;
    let time = Timestamp { seconds: entry.mtime.0, nanoseconds: entry.mtime.1 };
    metadata::set_modified_at(&parent, path.file_name().unwrap_or_default(), time)
}
