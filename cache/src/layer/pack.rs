//! Packs a layer's folder as a tar: the same folder gives the same bytes on any machine.
//!
//! The form is the one that Go's `archive/tar` gives BuildKit's layers (containerd,
//! pkg/archive/tar.go, `ChangeWriter`): ustar headers, PAX records for what does not fit them,
//! no names of users, whole seconds, no sockets. Entries are sorted by path; of the names of one
//! file, the first is the file. Unlike there, all extended attributes are kept, not just
//! capabilities; and a folder that replaces one of a lower layer says so with an opaque whiteout
//! instead of one whiteout for each thing it hides.

use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use fs_err::File;
use tar::{EntryType, Header};

use super::entries::{Entry, Kind, entries};
use super::whiteout;
use crate::digest::{DiffId, Hasher};

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
    let mut writer = Writer { out: Hashing { out, hasher: Hasher::new() }, options };
    if is_opaque_root(folder, options)? {
        writer.whiteout(whiteout::OPAQUE)?;
    }
    for entry in entries(folder)? {
        writer.entry(folder, &entry)?;
    }
    writer.out.write_all(&[0; 1024])?;
    writer.out.flush()?;
    let (digest, size) = writer.out.hasher.finish();
    Ok((DiffId(digest), size))
}

fn is_opaque_root(folder: &Path, options: &PackOptions) -> io::Result<bool> {
    let hides_something = options.lower.as_ref().is_none_or(|lower| !lower.is_empty());
    Ok(hides_something && whiteout::is_opaque(folder)?)
}

struct Hashing<W> {
    out: W,
    hasher: Hasher,
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.out.write(bytes)?;
        self.hasher.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

struct Writer<'a, W: Write> {
    out: Hashing<W>,
    options: &'a PackOptions,
}

impl<W: Write> Writer<'_, W> {
    fn entry(&mut self, folder: &Path, entry: &Entry) -> Result<(), PackError> {
        let path = entry.path.as_os_str().as_bytes();
        match &entry.kind {
            Kind::Whiteout => {
                let start = path.iter().rposition(|byte| *byte == b'/').map_or(0, |at| at + 1);
                let (parent, name) = path.split_at(start);
                Ok(self.whiteout(&[parent, whiteout::PREFIX, name].concat())?)
            }
            Kind::Socket => Ok(()),
            Kind::Folder { opaque } => {
                let path = [path, b"/"].concat();
                self.header(entry, EntryType::Directory, &path, b"", 0)?;
                if *opaque && self.hides(&entry.path)? {
                    self.whiteout(&[&path, whiteout::OPAQUE].concat())?;
                }
                Ok(())
            }
            Kind::File { size } => {
                self.header(entry, EntryType::Regular, path, b"", *size)?;
                self.data(&folder.join(&entry.path), *size)
            }
            Kind::HardLink(first) => {
                let first = first.as_os_str().as_bytes();
                Ok(self.header(entry, EntryType::Link, path, first, 0)?)
            }
            Kind::Link(target) => Ok(self.header(entry, EntryType::Symlink, path, target, 0)?),
            Kind::CharDevice(_) => Ok(self.header(entry, EntryType::Char, path, b"", 0)?),
            Kind::BlockDevice(_) => Ok(self.header(entry, EntryType::Block, path, b"", 0)?),
            Kind::Fifo => Ok(self.header(entry, EntryType::Fifo, path, b"", 0)?),
        }
    }

    /// Whether lower layers have a folder at `path`.
    fn hides(&self, path: &Path) -> io::Result<bool> {
        let Some(lower) = &self.options.lower else { return Ok(true) };
        for folder in lower {
            match fs_err::symlink_metadata(folder.join(path)) {
                Ok(metadata) if metadata.is_dir() => return Ok(true),
                Ok(_) => {}
                Err(e)
                    if matches!(
                        e.kind(),
                        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
                    ) => {}
                Err(e) => return Err(e),
            }
        }
        Ok(false)
    }

    fn data(&mut self, path: &Path, size: u64) -> Result<(), PackError> {
        let mut file = File::open(path)?.take(size);
        let written = io::copy(&mut file, &mut self.out)?;
        if written != size || file.into_inner().read(&mut [0])? > 0 {
            return Err(PackError::Changed(path.to_owned()));
        }
        Ok(self.pad(size)?)
    }

    fn pad(&mut self, size: u64) -> io::Result<()> {
        let padding = usize::try_from(size.wrapping_neg() % 512).expect("it is less than 512");
        self.out.write_all(&[0; 512][..padding])
    }

    /// An empty file. Nothing about it means anything but its name, and nothing about it may
    /// depend on when the file was deleted.
    fn whiteout(&mut self, path: &[u8]) -> io::Result<()> {
        let nothing = Entry {
            path: PathBuf::new(),
            kind: Kind::Whiteout,
            mode: 0,
            uid: 0,
            gid: 0,
            mtime: (0, 0),
            xattrs: Vec::new(),
            inode: 0,
            changed: (0, 0),
        };
        self.header(&nothing, EntryType::Regular, path, b"", 0)
    }

    fn header(
        &mut self,
        entry: &Entry,
        kind: EntryType,
        path: &[u8],
        link: &[u8],
        size: u64,
    ) -> io::Result<()> {
        let mtime = self.options.latest.map_or(entry.mtime.0, |latest| entry.mtime.0.min(latest));
        let mut records = Records::default();
        let mut header = plain_header(kind);
        header.set_mode(entry.mode);
        records.name("path", path, &mut header.as_old_mut().name);
        records.name("linkpath", link, &mut header.as_old_mut().linkname);
        header.set_uid(records.number("uid", entry.uid.into(), LARGEST_ID));
        header.set_gid(records.number("gid", entry.gid.into(), LARGEST_ID));
        header.set_size(records.number("size", size, LARGEST));
        header.set_mtime(match u64::try_from(mtime) {
            Ok(mtime) => records.number("mtime", mtime, LARGEST),
            Err(_) => {
                records.add("mtime", mtime.to_string().as_bytes());
                0
            }
        });
        if let Kind::CharDevice(device) | Kind::BlockDevice(device) = entry.kind {
            header.set_device_major(rustix::fs::major(device))?;
            header.set_device_minor(rustix::fs::minor(device))?;
        }
        if !matches!(kind, EntryType::Link) {
            for (name, value) in &entry.xattrs {
                records.add(&[b"SCHILY.xattr.", &name[..]].concat(), value);
            }
        }
        self.records(path, &records.bytes)?;
        header.set_cksum();
        self.out.write_all(header.as_bytes())
    }

    fn records(&mut self, path: &[u8], records: &[u8]) -> io::Result<()> {
        if records.is_empty() {
            return Ok(());
        }
        let mut header = plain_header(EntryType::XHeader);
        let last = path.split(|byte| *byte == b'/').rfind(|part| !part.is_empty());
        let name = [b"PaxHeaders.0/", last.unwrap_or(b"")].concat();
        fill(&mut header.as_old_mut().name, &name);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(records.len() as u64);
        header.set_cksum();
        self.out.write_all(header.as_bytes())?;
        self.out.write_all(records)?;
        self.pad(records.len() as u64)
    }
}

/// The largest numbers that fit a header in octal.
const LARGEST_ID: u64 = 0o777_7777;
const LARGEST: u64 = 0o777_7777_7777;

fn plain_header(kind: EntryType) -> Header {
    let mut header = Header::new_ustar();
    header.set_entry_type(kind);
    header
}

/// As much of `text` as fits, in ASCII, for readers that do not know PAX.
fn fill(field: &mut [u8], text: &[u8]) {
    for (byte, text) in field.iter_mut().zip(text) {
        *byte = if text.is_ascii() { *text } else { b'_' };
    }
}

/// PAX records: what does not fit into a header.
#[derive(Default)]
struct Records {
    bytes: Vec<u8>,
}

impl Records {
    fn name(&mut self, key: &str, name: &[u8], field: &mut [u8]) {
        fill(field, name);
        if name.len() > field.len() || !name.is_ascii() {
            self.add(key, name);
        }
    }

    /// The number for the header's field.
    fn number(&mut self, key: &str, number: u64, largest: u64) -> u64 {
        if number <= largest {
            return number;
        }
        self.add(key, number.to_string().as_bytes());
        0
    }

    /// `LENGTH KEY=VALUE\n`, where the length counts itself.
    fn add(&mut self, key: impl AsRef<[u8]>, value: &[u8]) {
        let key = key.as_ref();
        let rest = key.len() + value.len() + 3;
        let mut length = rest + 1;
        while length != rest + length.to_string().len() {
            length += 1;
        }
        self.bytes.extend_from_slice(length.to_string().as_bytes());
        self.bytes.push(b' ');
        self.bytes.extend_from_slice(key);
        self.bytes.push(b'=');
        self.bytes.extend_from_slice(value);
        self.bytes.push(b'\n');
    }
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
        let file = std::fs::File::open(path).unwrap();
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
