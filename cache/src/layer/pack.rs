//! Packs a layer's folder as a tar: the same folder gives the same bytes on any machine.
//!
//! Entries are sorted by path; of the names of one file, the first is the file. Sockets are left
//! out. Unlike BuildKit (containerd, pkg/archive/tar.go, `ChangeWriter`), all extended attributes
//! are kept, not just capabilities; and a folder that replaces one of a lower layer says so with an
//! opaque whiteout instead of one whiteout for each thing it hides.

use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use fs_err::File;
use rustix::fs::{major, minor};

use super::entries::{Entry, Kind, entries};
use super::opaque;
use super::tar_reader::{TarEntry, TarKind};
use super::tar_writer::TarWriter;
use super::whiteout;
use crate::digest::{DiffId, Hashing};

/// What decides how a layer is packed, besides what is in it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PackOptions {
    /// Later times are written as this one: seconds since 1970.
    pub latest: Option<i64>,
    /// The folders of the layers below, lowest first, if they are known. A folder that hides
    /// nothing of theirs is not written as opaque: overlayfs marks each new folder so.
    pub lower: Option<Vec<PathBuf>>,
}

/// Says why a layer cannot be packed.
#[derive(Debug, thiserror::Error)]
pub enum PackError {
    /// A file is longer or shorter than it was: the snapshot is damaged.
    #[error("`{0}` changed while it was packed")]
    Changed(PathBuf),
    /// The disk failed.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Writes the layer in `folder` to `out` as an uncompressed tar; returns its digest and size.
pub fn pack(
    folder: &Path,
    options: &PackOptions,
    out: impl Write,
) -> Result<(DiffId, u64), PackError> {
    let mut writer = TarWriter::new(Hashing::new(out));
    if is_opaque_root(folder, options)? {
        writer.entry(&whiteout_at(whiteout::OPAQUE.to_vec()))?;
    }
    for entry in entries(folder)? {
        write_entry(&mut writer, folder, options, entry)?;
    }
    let (_, digest, size) = writer.finish()?.finish();
    Ok((DiffId(digest), size))
}

fn is_opaque_root(folder: &Path, options: &PackOptions) -> io::Result<bool> {
    let hides_something = options.lower.as_ref().is_none_or(|lower| !lower.is_empty());
    Ok(hides_something && whiteout::is_opaque(folder)?)
}

fn write_entry(
    writer: &mut TarWriter<impl Write>,
    folder: &Path,
    options: &PackOptions,
    entry: Entry,
) -> Result<(), PackError> {
    let path = entry.path.as_os_str().as_bytes().to_vec();
    let (mut is_opaque, mut xattrs) = (false, entry.xattrs);
    let kind = match entry.kind {
        Kind::Whiteout => {
            let start = path.iter().rposition(|byte| *byte == b'/').map_or(0, |at| at + 1);
            let (parent, name) = path.split_at(start);
            let whiteout = whiteout_at([parent, whiteout::PREFIX, name].concat());
            return Ok(writer.entry(&whiteout)?);
        }
        Kind::Socket => return Ok(()),
        Kind::Folder { opaque: marked } => {
            is_opaque = match &options.lower {
                Some(lower) => marked && opaque::hides(lower, &entry.path)?,
                None => marked,
            };
            TarKind::Folder
        }
        Kind::File { size } => TarKind::File { size },
        Kind::HardLink(first) => {
            // The attributes are the file's, and stand with it.
            xattrs.clear();
            TarKind::HardLink(first.into_os_string().into_encoded_bytes())
        }
        Kind::Link(target) => TarKind::Link(target),
        Kind::CharDevice(device) => TarKind::CharDevice(major(device), minor(device)),
        Kind::BlockDevice(device) => TarKind::BlockDevice(major(device), minor(device)),
        Kind::Fifo => TarKind::Fifo,
    };
    let mtime = options.latest.map_or(entry.mtime.0, |latest| entry.mtime.0.min(latest));
    let (mode, uid, gid) = (entry.mode, entry.uid, entry.gid);
    let written = TarEntry { path, kind, mode, uid, gid, mtime: (mtime, 0), xattrs };
    writer.entry(&written)?;
    if let TarKind::File { size } = written.kind {
        write_data(writer, &folder.join(&entry.path), size)?;
    }
    if is_opaque {
        let path = [&written.path, &b"/"[..], whiteout::OPAQUE].concat();
        writer.entry(&whiteout_at(path))?;
    }
    Ok(())
}

fn write_data(writer: &mut TarWriter<impl Write>, path: &Path, size: u64) -> Result<(), PackError> {
    let mut file = File::open(path)?;
    let written = writer.data(&mut file, size)?;
    if written != size || file.read(&mut [0])? > 0 {
        return Err(PackError::Changed(path.to_owned()));
    }
    Ok(())
}

/// An empty file. Nothing about it means anything but its name, and nothing about it may depend on
/// when the file was deleted.
fn whiteout_at(path: Vec<u8>) -> TarEntry {
    let kind = TarKind::File { size: 0 };
    TarEntry { path, kind, mode: 0, uid: 0, gid: 0, mtime: (0, 0), xattrs: Vec::new() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packed(folder: &Path, options: &PackOptions) -> Vec<u8> {
        let mut out = Vec::new();
        let (diff_id, size) = pack(folder, options, &mut out).unwrap();
        assert_eq!((diff_id.0, size), (crate::digest::Digest::of(&out), out.len() as u64));
        out
    }

    /// What Python's tarfile sees, a reader that is not ours: type, mode, time and path.
    fn listed(tar: &[u8]) -> String {
        const LIST: &str = "
import sys, tarfile
for m in tarfile.open(fileobj=sys.stdin.buffer, mode='r|'):
    print(m.type.decode(), oct(m.mode), m.mtime, m.name, m.linkname)
";
        let mut python = std::process::Command::new("python3")
            .args(["-c", LIST])
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        python.stdin.take().unwrap().write_all(tar).unwrap();
        String::from_utf8(python.wait_with_output().unwrap().stdout).unwrap()
    }

    fn set_time(path: &Path, seconds: u64) {
        let file = File::open(path).unwrap();
        let time = std::time::UNIX_EPOCH + std::time::Duration::new(seconds, 999);
        file.set_modified(time).unwrap();
    }

    #[test]
    fn the_form_is_fixed() {
        use std::os::unix::fs::PermissionsExt;
        let top = tempfile::tempdir().unwrap();
        let folder = top.path();
        fs_err::write(folder.join("b.txt"), "text").unwrap();
        fs_err::create_dir(folder.join("b")).unwrap();
        fs_err::hard_link(folder.join("b.txt"), folder.join("b/again")).unwrap();
        fs_err::os::unix::fs::symlink("b.txt", folder.join("b/ö")).unwrap();
        whiteout::make_whiteout(&folder.join("b/gone")).unwrap();
        whiteout::set_opaque(&folder.join("b")).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(folder.join("socket")).unwrap();
        for (path, mode) in [("b.txt", 0o4711), ("b", 0o1777)] {
            let mode = std::fs::Permissions::from_mode(mode);
            fs_err::set_permissions(folder.join(path), mode).unwrap();
        }
        set_time(&folder.join("b.txt"), 100);
        set_time(&folder.join("b"), 200);
        let link_time = rustix::fs::Timespec { tv_sec: 300, tv_nsec: 0 };
        rustix::fs::utimensat(
            rustix::fs::CWD,
            folder.join("b/ö"),
            &rustix::fs::Timestamps { last_access: link_time, last_modification: link_time },
            rustix::fs::AtFlags::SYMLINK_NOFOLLOW,
        )
        .unwrap();
        let expected = "\
5 0o1777 150 b \n\
0 0o0 0 b/.wh..wh..opq \n\
0 0o0 0 b/.wh.gone \n\
0 0o4711 100 b/again \n\
2 0o777 150 b/ö b.txt\n\
1 0o4711 100 b.txt b/again\n";
        // The opaque mark comes right behind its folder, whiteouts where the deleted path was.
        let mut lines: Vec<&str> = expected.lines().collect();
        lines.swap(2, 3);
        let options = PackOptions { latest: Some(150), lower: None };
        let tar = packed(folder, &options);
        let list = listed(&tar);
        assert_eq!(list.lines().collect::<Vec<_>>(), lines);
        assert_eq!(tar, packed(folder, &options));
    }

    #[test]
    fn a_folder_is_opaque_only_where_it_hides_something() {
        let top = tempfile::tempdir().unwrap();
        let (upper, lower) = (top.path().join("upper"), top.path().join("lower"));
        fs_err::create_dir_all(upper.join("new")).unwrap();
        fs_err::create_dir_all(upper.join("old")).unwrap();
        fs_err::create_dir_all(lower.join("old")).unwrap();
        whiteout::set_opaque(&upper.join("new")).unwrap();
        whiteout::set_opaque(&upper.join("old")).unwrap();
        let opaque = |lower: Option<Vec<PathBuf>>| {
            let list = listed(&packed(&upper, &PackOptions { latest: None, lower }));
            list.lines().filter(|line| line.contains(".wh..wh..opq")).count()
        };
        assert_eq!(opaque(Some(vec![lower])), 1);
        assert_eq!(opaque(Some(vec![])), 0);
        assert_eq!(opaque(None), 2);
    }

    #[test]
    fn what_does_not_fit_a_header_goes_into_records() {
        let top = tempfile::tempdir().unwrap();
        let long = "n".repeat(200);
        fs_err::write(top.path().join(&long), "").unwrap();
        fs_err::os::unix::fs::symlink("t".repeat(150), top.path().join("link")).unwrap();
        let list = listed(&packed(top.path(), &PackOptions::default()));
        assert!(list.contains(&long), "{list}");
        assert!(list.contains(&"t".repeat(150)), "{list}");
    }
}
