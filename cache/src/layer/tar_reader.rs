//! Reads tars: the one reader, for layers and for archives that are added.
//!
//! It reads ustar, PAX and GNU tars (POSIX.1-2017, pax, "ustar Interchange Format" and "pax
//! Extended Header"; GNU tar manual, "Basic Tar Format") as strictly as can be: where two readers
//! could see different entries in the same bytes, the tar is refused. PAX records beat the header's
//! fields, the size included; a GNU long name that contradicts a PAX path is an error.

#[cfg(test)]
mod blocks;
mod error;
mod field;
mod pax;
mod sparse;

use std::io::{self, Read};

use tar::Header;

pub use error::TarError;

use field::{check_sum, device, number, signed_number, until_zero};
use pax::Records;

const BLOCK: usize = 512;

/// No header that describes another one (PAX records, long names, sparse maps) is longer, in
/// bytes. Go's reader has the same bound.
const MAX_EXTENSION: u64 = 1 << 20;

/// Reads the entries of a tar one after the other.
#[derive(Debug)]
pub struct TarReader<R> {
    stream: R,
    /// What PAX global headers said.
    global: Records,
    /// Bytes of the current entry in the stream that were not read yet.
    stored: u64,
    /// Bytes behind them up to the next block.
    padding: u64,
    /// What is to come of the current entry.
    pieces: std::vec::IntoIter<Piece>,
    piece: Option<Piece>,
    holes: u64,
    ended: bool,
}

/// An entry of a tar.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TarEntry {
    /// Its path as it stands there: not checked, of any bytes but zero, and perhaps empty.
    pub path: Vec<u8>,
    /// What it is.
    pub kind: TarKind,
    /// Permissions with setuid, setgid and sticky bit.
    pub mode: u32,
    /// The owner.
    pub uid: u32,
    /// The group.
    pub gid: u32,
    /// When it was last written: seconds since 1970, and nanoseconds.
    pub mtime: (i64, u32),
    /// Extended attributes, in the order of the records.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// What an entry of a tar is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TarKind {
    /// A file; its bytes come from [`TarReader::read_piece`].
    File {
        /// Its length in bytes, holes included.
        size: u64,
    },
    /// Another name of the file with this path.
    HardLink(Vec<u8>),
    /// A symbolic link to this target.
    Link(Vec<u8>),
    /// A character device with these numbers.
    CharDevice(u32, u32),
    /// A block device with these numbers.
    BlockDevice(u32, u32),
    /// A folder.
    Folder,
    /// A named pipe.
    Fifo,
}

/// The next part of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FilePiece {
    /// So many bytes were read.
    Data(usize),
    /// So many zero bytes follow that are not stored.
    Hole(u64),
    /// The file is complete.
    End,
}

#[derive(Clone, Copy, Debug)]
enum Piece {
    Data(u64),
    Hole(u64),
}

impl<R: Read> TarReader<R> {
    /// Reads the tar that `stream` is.
    pub fn new(stream: R) -> Self {
        Self {
            stream,
            global: Records::default(),
            stored: 0,
            padding: 0,
            pieces: Vec::new().into_iter(),
            piece: None,
            holes: 0,
            ended: false,
        }
    }

    /// The next entry. What was not read of the one before is skipped.
    pub fn next_entry(&mut self) -> Result<Option<TarEntry>, TarError> {
        let mut local: Option<Records> = None;
        let (mut long_path, mut long_link) = (None, None);
        loop {
            self.skip_rest()?;
            let dangling = local.is_some() || long_path.is_some() || long_link.is_some();
            let Some(header) = self.next_header()? else {
                return if dangling { Err(TarError::Truncated) } else { Ok(None) };
            };
            let size = number(&header.as_old().size, "size")?;
            match header.as_bytes()[156] {
                b'g' => {
                    let records = self.extension(size)?;
                    self.global.add(&records)?;
                }
                b'x' | b'X' => {
                    if local.is_some() {
                        return Err(TarError::Pax("two headers for one entry"));
                    }
                    let mut records = self.global.clone();
                    records.add(&self.extension(size)?)?;
                    local = Some(records);
                }
                b'L' => set_once(&mut long_path, until_zero(&self.extension(size)?))?,
                b'K' => set_once(&mut long_link, until_zero(&self.extension(size)?))?,
                // A volume's label is no entry.
                b'V' => self.begin(size, vec![Piece::Data(size)]),
                kind => {
                    let records = local.unwrap_or_else(|| self.global.clone());
                    let names = Names { long_path, long_link };
                    return self.entry(&header, kind, size, records, &names).map(Some);
                }
            }
        }
    }

    /// Reads the next part of the current entry into `buffer`.
    pub fn read_piece(&mut self, buffer: &mut [u8]) -> Result<FilePiece, TarError> {
        loop {
            match self.piece {
                Some(Piece::Hole(length)) => {
                    self.piece = None;
                    if length > 0 {
                        return Ok(FilePiece::Hole(length));
                    }
                }
                Some(Piece::Data(length)) if length > 0 => {
                    let wanted = buffer.len().min(usize::try_from(length).unwrap_or(usize::MAX));
                    let read = read_some(&mut self.stream, &mut buffer[..wanted])?;
                    if read == 0 {
                        return Err(TarError::Truncated);
                    }
                    self.stored -= read as u64;
                    self.piece = Some(Piece::Data(length - read as u64));
                    return Ok(FilePiece::Data(read));
                }
                Some(Piece::Data(_)) | None => match self.pieces.next() {
                    Some(piece) => self.piece = Some(piece),
                    None => return Ok(FilePiece::End),
                },
            }
        }
    }

    /// Reads to the stream's end what follows the tar's, and returns the stream.
    pub fn drain(mut self) -> Result<R, TarError> {
        self.skip_rest()?;
        io::copy(&mut self.stream, &mut io::sink())?;
        Ok(self.stream)
    }

    fn next_header(&mut self) -> Result<Option<Header>, TarError> {
        if self.ended {
            return Ok(None);
        }
        let Some(block) = self.block()? else {
            // Readers agree that end blocks may be missing.
            self.ended = true;
            return Ok(None);
        };
        if block == [0; BLOCK] {
            self.ended = true;
            return match self.block()? {
                Some(next) if next != [0; BLOCK] => Err(TarError::LoneZeroBlock),
                _ => Ok(None),
            };
        }
        let header = Header::from_byte_slice(&block).clone();
        check_sum(&header)?;
        Ok(Some(header))
    }

    fn block(&mut self) -> Result<Option<[u8; BLOCK]>, TarError> {
        let mut block = [0; BLOCK];
        let mut filled = 0;
        while filled < BLOCK {
            match read_some(&mut self.stream, &mut block[filled..])? {
                0 if filled == 0 => return Ok(None),
                0 => return Err(TarError::Truncated),
                read => filled += read,
            }
        }
        Ok(Some(block))
    }

    fn begin(&mut self, stored: u64, pieces: Vec<Piece>) {
        self.stored = stored;
        self.padding = stored.wrapping_neg() % BLOCK as u64;
        self.pieces = pieces.into_iter();
        self.piece = None;
    }

    fn skip_rest(&mut self) -> Result<(), TarError> {
        let rest = self.stored + self.padding;
        let skipped = io::copy(&mut self.stream.by_ref().take(rest), &mut io::sink())?;
        // Readers agree as well that what fills the last block may be missing: umoci leaves it out.
        if skipped < rest && skipped != self.stored {
            return Err(TarError::Truncated);
        }
        self.begin(0, Vec::new());
        Ok(())
    }

    /// The bytes of a header that describes another one.
    fn extension(&mut self, size: u64) -> Result<Vec<u8>, TarError> {
        if size > MAX_EXTENSION {
            return Err(TarError::TooLarge { what: "a header", limit: MAX_EXTENSION });
        }
        let mut bytes = Vec::new();
        self.stream.by_ref().take(size).read_to_end(&mut bytes)?;
        if (bytes.len() as u64) < size {
            return Err(TarError::Truncated);
        }
        self.begin(size, Vec::new());
        self.stored = 0;
        Ok(bytes)
    }

    fn entry(
        &mut self,
        header: &Header,
        kind: u8,
        header_size: u64,
        records: Records,
        names: &Names,
    ) -> Result<TarEntry, TarError> {
        let old = header.as_old();
        let path = names.path(header, &records)?;
        let link = names.link(header, &records)?;
        // Links and devices have no bytes, whatever their size says; readers agree on that.
        let has_data = matches!(kind, 0 | b'0' | b'7' | b'S' | b'D');
        let size = if has_data { records.size.unwrap_or(header_size) } else { 0 };
        if !has_data && matches!(kind, b'5') && records.size.unwrap_or(header_size) > 0 {
            return Err(TarError::Name("a size although it is a folder"));
        }
        let kind = match kind {
            b'0' | 0 | b'7' if path.ends_with(b"/") && size == 0 => TarKind::Folder,
            b'0' | 0 | b'7' | b'S' => return self.file(header, kind, size, path, records),
            b'1' => TarKind::HardLink(link),
            b'2' => TarKind::Link(link),
            b'3' => TarKind::CharDevice(device(header, 329)?, device(header, 337)?),
            b'4' => TarKind::BlockDevice(device(header, 329)?, device(header, 337)?),
            b'5' => TarKind::Folder,
            b'D' => {
                self.begin(size, vec![Piece::Data(size)]);
                TarKind::Folder
            }
            b'6' => TarKind::Fifo,
            kind => {
                let path = String::from_utf8_lossy(&path).into_owned();
                return Err(TarError::Type { kind: kind.into(), path });
            }
        };
        finish(old, path, kind, records)
    }

    fn file(
        &mut self,
        header: &Header,
        kind: u8,
        stored: u64,
        path: Vec<u8>,
        mut records: Records,
    ) -> Result<TarEntry, TarError> {
        let sparse = std::mem::take(&mut records.sparse);
        let path = sparse.name.clone().unwrap_or(path);
        let size = if kind == b'S' {
            self.old_sparse(header, stored)?
        } else {
            match sparse.version {
                (Some(1), Some(0)) => self.sparse_in_data(&sparse, stored)?,
                (None | Some(0), _) if sparse.numbers.is_empty() && sparse.size.is_none() => {
                    self.begin(stored, vec![Piece::Data(stored)]);
                    stored
                }
                (None | Some(0), _) => {
                    let size = sparse.size.ok_or(TarError::Sparse("without a size"))?;
                    self.begin_sparse(&sparse.numbers, size, stored, stored)?
                }
                _ => return Err(TarError::Sparse("of an unknown version")),
            }
        };
        finish(header.as_old(), path, TarKind::File { size }, records)
    }
}

fn finish(
    old: &tar::OldHeader,
    path: Vec<u8>,
    kind: TarKind,
    records: Records,
) -> Result<TarEntry, TarError> {
    let id = |field: &[u8], name| -> Result<u32, TarError> {
        u32::try_from(number(field, name)?).map_err(|_| TarError::Number { field: name })
    };
    Ok(TarEntry {
        path,
        kind,
        // The type's bits, which some writers add, are above.
        mode: u32::try_from(number(&old.mode, "mode")? & 0o7777).unwrap_or(0),
        uid: records.uid.map_or_else(|| id(&old.uid, "uid"), Ok)?,
        gid: records.gid.map_or_else(|| id(&old.gid, "gid"), Ok)?,
        mtime: match records.mtime {
            Some(mtime) => mtime,
            None => (signed_number(&old.mtime, "mtime")?, 0),
        },
        xattrs: records.xattrs,
    })
}

/// GNU's long names for an entry.
struct Names {
    long_path: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
}

impl Names {
    fn path(&self, header: &Header, records: &Records) -> Result<Vec<u8>, TarError> {
        let bytes = header.as_bytes();
        // Some readers go by the version and take what stands there for padding.
        if bytes[257..263] == *b"ustar\0" && bytes[263..265] != *b"00" && bytes[345] != 0 {
            return Err(TarError::Name("a prefix in a header of unknown version"));
        }
        choose(self.long_path.as_ref(), records.path.as_ref(), || header.path_bytes().into_owned())
    }

    fn link(&self, header: &Header, records: &Records) -> Result<Vec<u8>, TarError> {
        let plain = || until_zero(&header.as_old().linkname);
        choose(self.long_link.as_ref(), records.link.as_ref(), plain)
    }
}

fn choose(
    gnu: Option<&Vec<u8>>,
    pax: Option<&Vec<u8>>,
    plain: impl FnOnce() -> Vec<u8>,
) -> Result<Vec<u8>, TarError> {
    match (gnu, pax) {
        (Some(gnu), Some(pax)) if gnu != pax => Err(TarError::Name("two different names")),
        (Some(name), _) | (None, Some(name)) => Ok(name.clone()),
        (None, None) => Ok(plain()),
    }
}

fn set_once(name: &mut Option<Vec<u8>>, value: Vec<u8>) -> Result<(), TarError> {
    if name.replace(value).is_some() {
        return Err(TarError::Name("two long names"));
    }
    Ok(())
}

fn read_some(stream: &mut impl Read, buffer: &mut [u8]) -> Result<usize, TarError> {
    loop {
        match stream.read(buffer) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            read => return Ok(read?),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::blocks::{blocks, paths, read, refused};
    use super::*;

    #[test]
    fn reads_what_gnu_tar_writes() {
        let folder = tempfile::tempdir().unwrap();
        let long = format!("{}/{}", "d".repeat(120), "f".repeat(120));
        fs_err::create_dir_all(folder.path().join("in").join("d".repeat(120))).unwrap();
        fs_err::write(folder.path().join("in").join(&long), "long").unwrap();
        let sparse = fs_err::File::create(folder.path().join("in/sparse")).unwrap();
        sparse.set_len(1 << 20).unwrap();
        sparse.file().write_all_at(b"middle", 500_000).unwrap();
        drop(sparse);
        for format in [
            &["--format=gnu"][..],
            &["--format=pax"],
            &["--format=gnu", "--sparse"],
            &["--format=pax", "--sparse", "--sparse-version=0.0"],
            &["--format=pax", "--sparse", "--sparse-version=0.1"],
            &["--format=pax", "--sparse", "--sparse-version=1.0"],
        ] {
            let tar = std::process::Command::new("tar")
                .args(format)
                .args(["--sort=name", "-C"])
                .arg(folder.path().join("in"))
                .args(["-cf", "-", "."])
                .output()
                .unwrap();
            let entries = read(&tar.stdout).unwrap();
            let file = |path: &str| {
                let wanted = format!("./{path}");
                let found = entries.iter().find(|(entry, _)| entry.path == wanted.as_bytes());
                found.unwrap_or_else(|| panic!("{path} in {format:?}")).1.clone()
            };
            assert_eq!(file(&long), b"long", "{format:?}");
            let sparse = file("sparse");
            assert_eq!(sparse.len(), 1 << 20, "{format:?}");
            assert_eq!(&sparse[500_000..500_006], b"middle", "{format:?}");
            assert_eq!(sparse.iter().filter(|byte| **byte != 0).count(), 6, "{format:?}");
        }
    }

    #[test]
    fn pax_beats_the_header() {
        // To a reader that goes by the header, what is hidden in the data is an entry.
        let hidden = blocks().file("hidden", b"").0;
        let size = hidden.len().to_string();
        let tar = blocks()
            .pax(&[("size", &size), ("path", "renamed"), ("uid", "3000000"), ("mtime", "-1.25")])
            .header(b'0', "name", 0, |_| {})
            .data(&hidden)
            .file("next", b"")
            .end();
        let entries = read(&tar).unwrap();
        assert_eq!(entries.len(), 2);
        assert_eq!(entries[0].0.path, b"renamed");
        assert_eq!((entries[0].0.uid, entries[0].0.mtime), (3_000_000, (-2, 750_000_000)));
        assert_eq!(entries[0].1, hidden);
    }

    #[test]
    fn a_pax_header_is_not_about_the_long_name_behind_it() {
        let tar = blocks()
            .pax(&[("size", "5")])
            .header(b'L', "././@LongLink", 9, |_| {})
            .data(b"long-name")
            .header(b'0', "name", 0, |_| {})
            .data(b"hello")
            .file("next", b"")
            .end();
        assert_eq!(paths(&tar), ["long-name", "next"]);
    }

    #[test]
    fn what_two_readers_could_read_differently_is_refused() {
        let file = || blocks().file("a", b"x");
        refused(&file().0[..700], "ends in the middle");
        refused(&file().pax(&[("path", "b")]).end(), "ends in the middle");
        refused(&[&file().0[..], &[0; BLOCK], &file().0].concat(), "after a zero block");
        let two = blocks().pax(&[("path", "a")]).pax(&[("path", "b")]).file("c", b"");
        refused(&two.end(), "two headers");
        let names = blocks()
            .pax(&[("path", "a")])
            .header(b'L', "././@LongLink", 1, |_| {})
            .data(b"b")
            .file("c", b"");
        refused(&names.end(), "two different names");
        let mut damaged = file().end();
        damaged[0] = b'b';
        refused(&damaged, "checksum");
        refused(&blocks().header(b'Z', "a", 0, |_| {}).end(), "unknown type `Z`");
    }

    #[test]
    fn the_last_block_need_not_be_full() {
        let tar = blocks().file("a", b"").file("b", b"data").0;
        assert_eq!(paths(&tar[..BLOCK * 2 + 4]), ["a", "b"]);
        assert_eq!(read(&tar[..BLOCK * 2 + 4]).unwrap()[1].1, b"data");
        refused(&tar[..BLOCK * 2 + 3], "ends in the middle");
        refused(&tar[..BLOCK * 2 + 5], "ends in the middle");
        let pax = blocks().pax(&[("path", "b")]).0;
        refused(&pax[..BLOCK + 10], "ends in the middle");
    }

    #[test]
    fn what_follows_the_end_is_no_entry() {
        let tar = [blocks().file("a", b"x").end(), blocks().file("b", b"x").end()].concat();
        assert_eq!(paths(&tar), ["a"]);
        let mut reader = TarReader::new(&tar[..]);
        while reader.next_entry().unwrap().is_some() {}
        assert!(reader.drain().unwrap().is_empty());
    }

    #[test]
    fn huge_and_negative_sizes_are_refused_before_memory_is_asked_for() {
        let binary = |bytes: [u8; 12]| {
            move |header: &mut Header| header.as_old_mut().size.copy_from_slice(&bytes)
        };
        let negative = blocks().header(b'0', "a", 0, binary([0xff; 12])).end();
        refused(&negative, "`size`");
        let mut huge = [0xff; 12];
        huge[0] = 0x80;
        refused(&blocks().header(b'0', "a", 0, binary(huge)).end(), "`size`");
        let large = blocks().header(b'x', "a", 8 << 30, |_| {}).end();
        refused(&large, "more than 1048576 bytes");
        let many = blocks()
            .pax(&[("GNU.sparse.size", "9000000000000000000"), ("GNU.sparse.map", "0,0")])
            .file("a", b"");
        refused(&many.end(), "holes");
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes: Vec<u8>, at in 0_usize..2048) {
            let mut tar = blocks().pax(&[("path", "x")]).file("a", b"data").end();
            for (n, byte) in bytes.iter().enumerate() {
                let position = (at + n) % tar.len();
                tar[position] = *byte;
            }
            let _ = read(&tar);
        }
    }
}
