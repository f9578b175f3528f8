//! What is in a layer's folder: every path with all that a layer keeps of it.

use std::cmp::Ordering;
use std::collections::HashMap;
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::DirEntryExt;
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use rustix::fs::{FileType, Stat, lstat};
use rustix::io::Errno;

use super::content::KnownFile;
use super::whiteout::{self, Marks, at, is_whiteout};
use crate::metadata::{self, Metadata, is_own};
use crate::ownership::{self, Owner, Ownership};

/// Below this many folders or files, handing them to other threads costs more than it saves.
const WORTH_SHARING: usize = 8;

/// A path of a layer.
#[derive(Clone, Debug)]
pub struct Entry {
    /// The path, relative to the layer's folder.
    pub path: PathBuf,
    /// What it is.
    pub kind: Kind,
    /// Permissions with setuid, setgid and sticky bit.
    pub mode: u32,
    /// The owner.
    pub uid: u32,
    /// The group.
    pub gid: u32,
    /// When it was last written: seconds since 1970, and nanoseconds.
    pub mtime: (i64, u32),
    /// Extended attributes by name, without overlayfs's own.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Which file of its file system it is.
    pub inode: u64,
    /// When anything about it changed last, set by the kernel alone.
    pub changed: (i64, u32),
    /// The bytes that it takes on the disk.
    pub disk: u64,
}

/// What a path of a layer is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A folder.
    Folder {
        /// It hides what lower layers have in it.
        opaque: bool,
    },
    /// A file.
    File {
        /// Its length in bytes.
        size: u64,
    },
    /// The same file as the one at this path, which sorts before.
    HardLink(PathBuf),
    /// A symbolic link.
    Link(Vec<u8>),
    /// A character device: its number.
    CharDevice(u64),
    /// A block device: its number.
    BlockDevice(u64),
    /// A named pipe.
    Fifo,
    /// A socket; no tar can hold one.
    Socket,
    /// What lower layers have at this path is gone.
    Whiteout,
}

/// Lists all paths below `folder`, sorted by component, so that a folder comes before what is in
/// it. `folder` itself is not listed.
pub fn entries(folder: &Path) -> io::Result<Vec<Entry>> {
    entries_but(folder, &HashMap::new())
}

/// Like [`entries`], but does not ask for what is `known` of files, by path.
pub(crate) fn entries_but(
    folder: &Path,
    known: &HashMap<PathBuf, KnownFile>,
) -> io::Result<Vec<Entry>> {
    all(folder, Look::Whole, known)
}

/// Like [`entries`], but without targets of links and extended attributes, which cost a system call
/// for each path; where owners are among the latter, they are read all the same.
pub fn outline(folder: &Path) -> io::Result<Vec<Entry>> {
    let is_needed = Ownership::of_this_process() == Ownership::Remembered;
    all(folder, if is_needed { Look::Whole } else { Look::Outline }, &HashMap::new())
}

/// How closely paths are looked at.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Look {
    Whole,
    Outline,
}

fn all(folder: &Path, look: Look, known: &HashMap<PathBuf, KnownFile>) -> io::Result<Vec<Entry>> {
    let mut lists: Vec<std::vec::IntoIter<Found>> = Vec::new();
    let mut open = vec![PathBuf::new()];
    let mut folders = 1;
    let mut number = 0;
    while !open.is_empty() {
        let found: Vec<io::Result<Vec<Found>>> = if open.len() < WORTH_SHARING {
            open.iter().map(|path| list(folder, path, look, known)).collect()
        } else {
            open.par_iter().map(|path| list(folder, path, look, known)).collect()
        };
        open.clear();
        for found in found {
            let mut found = found?;
            for found in &mut found {
                if matches!(found.entry.kind, Kind::Folder { .. }) {
                    open.push(found.entry.path.clone());
                    found.content = folders;
                    folders += 1;
                }
            }
            number += found.len();
            lists.push(found.into_iter());
        }
    }
    Ok(link_up(in_order(lists, number)))
}

/// Puts lists of sorted folders, the first of which is the root's, together: each behind its folder.
fn in_order(mut lists: Vec<std::vec::IntoIter<Found>>, number: usize) -> Vec<Found> {
    let mut all = Vec::with_capacity(number);
    let mut inside = vec![0];
    while let Some(here) = inside.last() {
        match lists[*here].next() {
            None => _ = inside.pop(),
            Some(found) => {
                if found.content > 0 {
                    inside.push(found.content);
                }
                all.push(found);
            }
        }
    }
    all
}

/// Orders paths by component: `a/b` before `a.b`.
pub fn compare_paths(a: &Path, b: &Path) -> Ordering {
    let rank = |byte: &u8| if *byte == b'/' { 0 } else { *byte };
    let (a, b) = (a.as_os_str().as_bytes(), b.as_os_str().as_bytes());
    a.iter().map(rank).cmp(b.iter().map(rank))
}

struct Found {
    entry: Entry,
    /// Device and inode, when the inode has other names.
    inode: Option<(u64, u64)>,
    /// The number of the list of what is in it; none for what is no folder.
    content: usize,
}

/// Of several names of one inode, the first is the file and the others are hard links to it.
fn link_up(found: Vec<Found>) -> Vec<Entry> {
    let mut first: HashMap<(u64, u64), PathBuf> = HashMap::new();
    let link = |Found { mut entry, inode, .. }: Found| {
        let Some(inode) = inode else { return entry };
        match first.get(&inode) {
            Some(path) => entry.kind = Kind::HardLink(path.clone()),
            None => {
                first.insert(inode, entry.path.clone());
            }
        }
        entry
    };
    found.into_iter().map(link).collect()
}

/// What is in a folder, sorted by name.
fn list(
    top: &Path,
    path: &Path,
    look: Look,
    known: &HashMap<PathBuf, KnownFile>,
) -> io::Result<Vec<Found>> {
    let mut found = Vec::new();
    for entry in fs_err::read_dir(top.join(path))? {
        let entry = entry?;
        let path = path.join(entry.file_name());
        let metadata = known.get(&path).and_then(|file| file.metadata);
        found.push(match metadata.filter(|metadata| metadata.inode == entry.ino()) {
            Some(metadata) => as_known(path, &metadata),
            None => look_at(top, path, look)?,
        });
    }
    found.sort_unstable_by(|a, b| a.entry.path.as_os_str().cmp(b.entry.path.as_os_str()));
    Ok(found)
}

/// A file with one name and no attributes.
fn as_known(path: PathBuf, metadata: &Metadata) -> Found {
    let Metadata { mode, uid, gid, size, modified, changed, inode, disk, .. } = *metadata;
    let entry = Entry {
        path,
        kind: Kind::File { size },
        mode,
        uid,
        gid,
        mtime: (modified.seconds, modified.nanoseconds),
        xattrs: Vec::new(),
        inode,
        changed: (changed.seconds, changed.nanoseconds),
        disk,
    };
    Found { entry, inode: None, content: 0 }
}

fn look_at(top: &Path, path: PathBuf, look: Look) -> io::Result<Found> {
    let full = top.join(&path);
    let stat = lstat(&full).map_err(|e| at(&full, e))?;
    let (mut xattrs, opaque) = match look {
        Look::Whole => xattrs(&full)?,
        Look::Outline => (Vec::new(), false),
    };
    let owner = owner(&stat, &xattrs);
    let gone = xattrs.iter().any(|(name, _)| name == whiteout::SUBSTITUTE.as_bytes());
    xattrs.retain(|(name, value)| !ownership::is_note(name, value));
    let kind = if gone { Kind::Whiteout } else { kind(&full, &stat, opaque, look)? };
    let shared = stat.st_nlink > 1 && !matches!(kind, Kind::Folder { .. } | Kind::Whiteout);
    let entry = Entry {
        path,
        kind,
        mode: stat.st_mode & 0o7777,
        uid: owner.uid,
        gid: owner.gid,
        mtime: (stat.st_mtime, u32::try_from(stat.st_mtime_nsec).unwrap_or(0)),
        xattrs,
        inode: stat.st_ino,
        changed: (stat.st_ctime, u32::try_from(stat.st_ctime_nsec).unwrap_or(0)),
        // The kernel counts in units of 512 bytes, whatever the file system's blocks are.
        disk: u64::try_from(stat.st_blocks).unwrap_or(0) * 512,
    };
    Ok(Found { entry, inode: shared.then_some((stat.st_dev, stat.st_ino)), content: 0 })
}

fn owner(stat: &Stat, xattrs: &Xattrs) -> Owner {
    let real = Owner { uid: stat.st_uid, gid: stat.st_gid };
    if Ownership::of_this_process() == Ownership::Set {
        return real;
    }
    let xattrs = xattrs.iter().map(|(name, value)| (&name[..], &value[..]));
    ownership::among(xattrs, metadata::FileType::of_mode(stat.st_mode))
}

fn kind(path: &Path, stat: &Stat, opaque: bool, look: Look) -> io::Result<Kind> {
    Ok(match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => Kind::Folder { opaque },
        FileType::Symlink if look == Look::Outline => Kind::Link(Vec::new()),
        FileType::Symlink => Kind::Link(fs_err::read_link(path)?.into_os_string().into_vec()),
        FileType::CharacterDevice if is_whiteout(FileType::CharacterDevice, stat.st_rdev) => {
            Kind::Whiteout
        }
        FileType::CharacterDevice => Kind::CharDevice(stat.st_rdev),
        FileType::BlockDevice => Kind::BlockDevice(stat.st_rdev),
        FileType::Fifo => Kind::Fifo,
        FileType::Socket => Kind::Socket,
        FileType::RegularFile | FileType::Unknown => {
            Kind::File { size: stat.st_size.try_into().unwrap_or(0) }
        }
    })
}

/// Names and values of a file's extended attributes.
type Xattrs = Vec<(Vec<u8>, Vec<u8>)>;

/// The extended attributes, sorted by name, with the note of the owner, and whether they make a folder opaque.
fn xattrs(path: &Path) -> io::Result<(Xattrs, bool)> {
    let names = match grow(|buffer| rustix::fs::llistxattr(path, buffer)) {
        Ok(names) => names,
        Err(Errno::NOTSUP) => return Ok((Vec::new(), false)),
        Err(e) => return Err(at(path, e)),
    };
    let opaque_mark = Marks::of_this_process().opaque().as_bytes();
    let (mut xattrs, mut opaque) = (Vec::new(), false);
    for name in names.split(|b| *b == 0).filter(|name| !name.is_empty()) {
        if !is_own(name) && name != opaque_mark && !ownership::is_note_name(name) {
            continue;
        }
        let value =
            match grow(|buffer| rustix::fs::lgetxattr(path, OsStr::from_bytes(name), buffer)) {
                Ok(value) => value,
                Err(Errno::NODATA) => continue,
                Err(e) => return Err(at(path, e)),
            };
        if name == opaque_mark {
            opaque = value == b"y";
        } else {
            xattrs.push((name.to_vec(), value));
        }
    }
    xattrs.sort_unstable();
    Ok((xattrs, opaque))
}

/// Calls with a larger buffer until what is asked for fits.
fn grow(call: impl Fn(&mut [u8]) -> Result<usize, Errno>) -> Result<Vec<u8>, Errno> {
    let mut buffer = vec![0; 256];
    loop {
        match call(&mut buffer[..]) {
            Ok(length) => {
                buffer.truncate(length);
                return Ok(buffer);
            }
            Err(Errno::RANGE) if buffer.len() < 1 << 20 => buffer.resize(buffer.len() * 4, 0),
            Err(e) => return Err(e),
        }
    }
}
