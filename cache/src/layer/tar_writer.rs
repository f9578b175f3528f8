//! Writes tars: the one writer, for layers and for archives of images and file systems.
//!
//! The form is the one that Go's `archive/tar` gives BuildKit's layers (containerd,
//! pkg/archive/tar.go): ustar headers, PAX records for what does not fit them, no names of users,
//! whole seconds. Sparse files are written as plain ones.

use std::io::{self, Read, Write};

use tar::{EntryType, Header};

use super::tar_reader::{TarEntry, TarKind};

/// Writes the entries of a tar one after the other.
#[derive(Debug)]
pub struct TarWriter<W: Write> {
    out: W,
    /// For data on its way; most files are smaller.
    buffer: Vec<u8>,
}

/// How many bytes of data are read at once.
const PIECE: usize = 128 << 10;

impl<W: Write> TarWriter<W> {
    /// Writes to `out`.
    pub fn new(out: W) -> Self {
        Self { out, buffer: Vec::new() }
    }

    /// What is written to. Between entries, whoever writes to it directly writes whole entries.
    pub fn get_mut(&mut self) -> &mut W {
        &mut self.out
    }

    /// Writes an entry without its data, which for a file that is not empty must follow at once
    /// ([`TarWriter::data`]). Folders get the slash that ends their names.
    pub fn entry(&mut self, entry: &TarEntry) -> io::Result<()> {
        let mut path = entry.path.clone();
        let (mut link, mut size) = (&b""[..], 0);
        let kind = match &entry.kind {
            TarKind::File { size: length } => {
                size = *length;
                EntryType::Regular
            }
            TarKind::HardLink(target) => {
                link = target;
                EntryType::Link
            }
            TarKind::Link(target) => {
                link = target;
                EntryType::Symlink
            }
            TarKind::CharDevice(..) => EntryType::Char,
            TarKind::BlockDevice(..) => EntryType::Block,
            TarKind::Folder => {
                path.push(b'/');
                EntryType::Directory
            }
            TarKind::Fifo => EntryType::Fifo,
        };
        let mut records = Records::default();
        let mut header = plain_header(kind);
        header.set_mode(entry.mode);
        records.name("path", &path, &mut header.as_old_mut().name);
        records.name("linkpath", link, &mut header.as_old_mut().linkname);
        header.set_uid(records.number("uid", entry.uid.into(), LARGEST_ID));
        header.set_gid(records.number("gid", entry.gid.into(), LARGEST_ID));
        header.set_size(records.number("size", size, LARGEST));
        header.set_mtime(if let Ok(mtime) = u64::try_from(entry.mtime.0) {
            records.number("mtime", mtime, LARGEST)
        } else {
            records.add("mtime", entry.mtime.0.to_string().as_bytes());
            0
        });
        if let TarKind::CharDevice(major, minor) | TarKind::BlockDevice(major, minor) = entry.kind {
            header.set_device_major(major)?;
            header.set_device_minor(minor)?;
        }
        for (name, value) in &entry.xattrs {
            records.add([b"SCHILY.xattr.", &name[..]].concat(), value);
        }
        self.records(&path, &records.bytes)?;
        header.set_cksum();
        self.out.write_all(header.as_bytes())
    }

    /// Writes `size` bytes of `data`; returns how many there were, which the caller compares.
    pub fn data(&mut self, data: &mut impl Read, size: u64) -> io::Result<u64> {
        let mut written = 0;
        self.buffer.resize(PIECE, 0);
        while written < size {
            let most = usize::try_from(size - written).map_or(PIECE, |left| left.min(PIECE));
            match data.read(&mut self.buffer[..most]) {
                Ok(0) => break,
                Ok(read) => {
                    self.out.write_all(&self.buffer[..read])?;
                    written += read as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.pad(size)?;
        Ok(written)
    }

    /// Fills up the last block of data of `size` bytes.
    ///
    /// # Panics
    /// Never: what is left over of a block fits into memory.
    pub fn pad(&mut self, size: u64) -> io::Result<()> {
        let padding = usize::try_from(size.wrapping_neg() % 512).expect("it is less than 512");
        self.out.write_all(&[0; 512][..padding])
    }

    /// Writes the end, and returns what was written to.
    pub fn finish(mut self) -> io::Result<W> {
        self.out.write_all(&[0; 1024])?;
        self.out.flush()?;
        Ok(self.out)
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
