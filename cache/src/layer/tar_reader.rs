//! Reads tars: the one reader, for layers and for archives that are added.
//!
//! It reads ustar, PAX and GNU tars (POSIX.1-2017, pax, "ustar Interchange Format" and "pax
//! Extended Header"; GNU tar manual, "Basic Tar Format") as strictly as can be: where two readers
//! could see different entries in the same bytes, the tar is refused. PAX records beat the header's
//! fields, the size included; a GNU long name that contradicts a PAX path is an error.

use std::io::{self, Read};

use tar::Header;

const BLOCK: usize = 512;

/// No header that describes another one (PAX records, long names, sparse maps) is longer, in
/// bytes. Go's reader has the same bound.
const MAX_EXTENSION: u64 = 1 << 20;

/// All holes of one tar together are no larger, in bytes: they cost nothing to send, and hours to
/// hash.
const MAX_HOLES: u64 = 16 << 30;

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

/// Says what is wrong with a tar.
#[derive(Debug, thiserror::Error)]
pub enum TarError {
    /// It ends in the middle of something.
    #[error("the tar ends in the middle of an entry")]
    Truncated,
    /// A header's checksum does not agree with it.
    #[error("a header of the tar has a wrong checksum")]
    Checksum,
    /// Something follows a single zero block.
    #[error("the tar goes on after a zero block")]
    LoneZeroBlock,
    /// A field is no number, negative, or too large.
    #[error("the field `{field}` of a header of the tar is not a number in its range")]
    Number {
        /// Which.
        field: &'static str,
    },
    /// PAX records are malformed.
    #[error("the tar has malformed PAX records: {0}")]
    Pax(&'static str),
    /// A name is not a name.
    #[error("the tar has an entry with {0}")]
    Name(&'static str),
    /// The entry is of a type that is not known.
    #[error("the tar has an entry of unknown type `{kind}`: `{path}`")]
    Type {
        /// The type's letter.
        kind: char,
        /// The entry.
        path: String,
    },
    /// A sparse file's map makes no sense.
    #[error("the tar has a sparse file with a wrong map: {0}")]
    Sparse(&'static str),
    /// A limit was passed.
    #[error("the tar has {what} of more than {limit} bytes")]
    TooLarge {
        /// What is too large.
        what: &'static str,
        /// The limit in bytes.
        limit: u64,
    },
    /// The stream failed.
    #[error(transparent)]
    Io(io::Error),
}

impl From<io::Error> for TarError {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::UnexpectedEof { Self::Truncated } else { Self::Io(error) }
    }
}

/// PAX records that mean something here.
#[derive(Clone, Debug, Default)]
struct Records {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<u32>,
    gid: Option<u32>,
    mtime: Option<(i64, u32)>,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    sparse: SparseRecords,
}

#[derive(Clone, Debug, Default)]
struct SparseRecords {
    version: (Option<u64>, Option<u64>),
    name: Option<Vec<u8>>,
    size: Option<u64>,
    /// Offset and length, alternating.
    numbers: Vec<u64>,
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
        if skipped < rest {
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

    /// GNU's first format: the map begins in the header and goes on in blocks behind it.
    fn old_sparse(&mut self, header: &Header, stored: u64) -> Result<u64, TarError> {
        let gnu = header.as_gnu().ok_or(TarError::Sparse("in a header that is not GNU's"))?;
        let mut numbers = Vec::new();
        let mut add = |offset: &[u8], length: &[u8]| -> Result<(), TarError> {
            if offset[0] != 0 || length[0] != 0 {
                numbers.push(number(offset, "sparse offset")?);
                numbers.push(number(length, "sparse length")?);
            }
            Ok(())
        };
        gnu.sparse.iter().try_for_each(|piece| add(&piece.offset, &piece.numbytes))?;
        let mut more = gnu.is_extended();
        let mut blocks = 0;
        while more {
            let block = self.block()?.ok_or(TarError::Truncated)?;
            block[..504].chunks(24).try_for_each(|piece| add(&piece[..12], &piece[12..]))?;
            more = block[504] != 0;
            blocks += BLOCK as u64;
            if blocks > MAX_EXTENSION {
                return Err(TarError::TooLarge { what: "a sparse map", limit: MAX_EXTENSION });
            }
        }
        let size = number(&gnu.realsize, "real size")?;
        self.begin_sparse(&numbers, size, stored, stored)
    }

    /// GNU's last format: the map is the first of the entry's data, in decimal lines.
    fn sparse_in_data(&mut self, sparse: &SparseRecords, stored: u64) -> Result<u64, TarError> {
        let mut text = Vec::new();
        let mut lines = 0;
        let mut wanted = 1;
        let mut numbers = Vec::new();
        let mut line_start = 0;
        while lines < wanted {
            if text.len() as u64 >= MAX_EXTENSION {
                return Err(TarError::TooLarge { what: "a sparse map", limit: MAX_EXTENSION });
            }
            if (text.len() as u64) >= stored {
                return Err(TarError::Sparse("without an end"));
            }
            text.extend_from_slice(&self.block()?.ok_or(TarError::Truncated)?);
            while lines < wanted
                && let Some(length) = text[line_start..].iter().position(|byte| *byte == b'\n')
            {
                let value = decimal(&text[line_start..line_start + length])
                    .ok_or(TarError::Sparse("that is not of numbers"))?;
                line_start += length + 1;
                if lines == 0 {
                    wanted = value
                        .checked_mul(2)
                        .and_then(|n| n.checked_add(1))
                        .ok_or(TarError::Sparse("that is endless"))?;
                } else {
                    numbers.push(value);
                }
                lines += 1;
            }
        }
        let size = sparse.size.ok_or(TarError::Sparse("without a size"))?;
        let map = text.len() as u64;
        let rest = stored.checked_sub(map).ok_or(TarError::Sparse("longer than its entry"))?;
        self.begin_sparse(&numbers, size, rest, rest)
    }

    /// Begins a file of which only pieces are stored; returns its whole size.
    fn begin_sparse(
        &mut self,
        numbers: &[u64],
        size: u64,
        stored: u64,
        in_stream: u64,
    ) -> Result<u64, TarError> {
        if numbers.len() % 2 == 1 {
            return Err(TarError::Sparse("that ends in an offset"));
        }
        let (mut pieces, mut position, mut data, mut holes) = (Vec::new(), 0_u64, 0_u64, 0_u64);
        for pair in numbers.chunks_exact(2) {
            let (offset, length) = (pair[0], pair[1]);
            let hole = offset.checked_sub(position).ok_or(TarError::Sparse("that overlaps"))?;
            let end = offset.checked_add(length).filter(|end| *end <= size);
            position = end.ok_or(TarError::Sparse("that reaches over the file's end"))?;
            holes += hole;
            data += length;
            pieces.extend([Piece::Hole(hole), Piece::Data(length)]);
        }
        if data != stored {
            return Err(TarError::Sparse("of another size than its data"));
        }
        pieces.push(Piece::Hole(size - position));
        holes += size - position;
        self.holes = self.holes.saturating_add(holes);
        if self.holes > MAX_HOLES {
            return Err(TarError::TooLarge { what: "holes", limit: MAX_HOLES });
        }
        self.begin(in_stream, pieces);
        Ok(size)
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

impl Records {
    /// Adds the records in `bytes`: `LENGTH KEY=VALUE\n`, one after the other.
    fn add(&mut self, mut bytes: &[u8]) -> Result<(), TarError> {
        // Each header's own list of pieces begins anew.
        self.sparse.numbers.clear();
        while !bytes.is_empty() {
            let space = bytes
                .iter()
                .take(8)
                .position(|byte| *byte == b' ')
                .ok_or(TarError::Pax("a record without a length"))?;
            let length = decimal(&bytes[..space])
                .and_then(|length| usize::try_from(length).ok())
                .filter(|length| *length > space + 1 && *length <= bytes.len())
                .ok_or(TarError::Pax("a record with a wrong length"))?;
            let (record, rest) = bytes.split_at(length);
            let record = record[space + 1..]
                .strip_suffix(b"\n")
                .ok_or(TarError::Pax("a record that does not end its line"))?;
            let equals = record
                .iter()
                .position(|byte| *byte == b'=')
                .filter(|equals| *equals > 0)
                .ok_or(TarError::Pax("a record without a key"))?;
            self.set(&record[..equals], &record[equals + 1..])?;
            bytes = rest;
        }
        Ok(())
    }

    fn set(&mut self, key: &[u8], value: &[u8]) -> Result<(), TarError> {
        let wrong = |what| TarError::Pax(what);
        let name = |value: &[u8]| match value {
            [] => Ok(None),
            _ if value.contains(&0) => Err(wrong("a name with a zero byte")),
            _ => Ok(Some(value.to_vec())),
        };
        let count = |value: &[u8]| match value {
            [] => Ok(None),
            _ => decimal(value).map(Some).ok_or(wrong("a value that is not a number")),
        };
        let id = |value: &[u8]| -> Result<Option<u32>, TarError> {
            let id = count(value)?;
            id.map(|id| u32::try_from(id).map_err(|_| wrong("an owner out of range"))).transpose()
        };
        match key {
            b"path" => self.path = name(value)?,
            b"linkpath" => self.link = name(value)?,
            b"size" => self.size = count(value)?,
            b"uid" => self.uid = id(value)?,
            b"gid" => self.gid = id(value)?,
            b"mtime" => self.mtime = time(value)?,
            b"GNU.sparse.major" => self.sparse.version.0 = count(value)?,
            b"GNU.sparse.minor" => self.sparse.version.1 = count(value)?,
            b"GNU.sparse.name" => self.sparse.name = name(value)?,
            b"GNU.sparse.size" | b"GNU.sparse.realsize" => self.sparse.size = count(value)?,
            b"GNU.sparse.offset" | b"GNU.sparse.numbytes" => {
                let is_offset = key == b"GNU.sparse.offset";
                if is_offset != self.sparse.numbers.len().is_multiple_of(2) {
                    return Err(TarError::Sparse("that is out of order"));
                }
                self.sparse.numbers.extend(count(value)?);
            }
            b"GNU.sparse.map" => {
                self.sparse.numbers = value
                    .split(|byte| *byte == b',')
                    .map(|number| decimal(number).ok_or(TarError::Sparse("that is not of numbers")))
                    .collect::<Result<_, _>>()?;
            }
            _ => {
                if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                    if name.is_empty() || name.contains(&0) {
                        return Err(wrong("an extended attribute without a name"));
                    }
                    self.xattrs.retain(|(known, _)| known != name);
                    self.xattrs.push((name.to_vec(), value.to_vec()));
                }
            }
        }
        Ok(())
    }
}

/// `[-]SECONDS[.FRACTION]`
fn time(value: &[u8]) -> Result<Option<(i64, u32)>, TarError> {
    let wrong = || TarError::Pax("a time that is not a number");
    if value.is_empty() {
        return Ok(None);
    }
    let (negative, value) = match value.strip_prefix(b"-") {
        Some(value) => (true, value),
        None => (false, value),
    };
    let (whole, fraction) = match value.iter().position(|byte| *byte == b'.') {
        Some(point) => (&value[..point], &value[point + 1..]),
        None => (value, &b""[..]),
    };
    if !fraction.iter().all(u8::is_ascii_digit) {
        return Err(wrong());
    }
    let seconds = decimal(whole).and_then(|n| i64::try_from(n).ok()).ok_or_else(wrong)?;
    let digits = fraction.iter().chain(std::iter::repeat(&b'0')).take(9);
    let nanoseconds = digits.fold(0_u32, |n, digit| n * 10 + u32::from(digit - b'0'));
    Ok(Some(match (negative, nanoseconds) {
        (false, _) => (seconds, nanoseconds),
        (true, 0) => (-seconds, 0),
        (true, _) => (-seconds - 1, 1_000_000_000 - nanoseconds),
    }))
}

fn check_sum(header: &Header) -> Result<(), TarError> {
    let bytes = header.as_bytes();
    let wanted = number(&header.as_old().cksum, "checksum")?;
    let without = bytes[..148].iter().chain(&[b' '; 8]).chain(&bytes[156..]);
    let unsigned: u64 = without.clone().map(|byte| u64::from(*byte)).sum();
    // Some old writers summed signed bytes.
    let signed: i64 = without.map(|byte| i64::from(byte.cast_signed())).sum();
    if wanted == unsigned || i64::try_from(wanted) == Ok(signed) {
        Ok(())
    } else {
        Err(TarError::Checksum)
    }
}

fn device(header: &Header, offset: usize) -> Result<u32, TarError> {
    let field = &header.as_bytes()[offset..offset + 8];
    u32::try_from(number(field, "device")?).map_err(|_| TarError::Number { field: "device" })
}

fn number(field: &[u8], name: &'static str) -> Result<u64, TarError> {
    let value = signed_number(field, name)?;
    u64::try_from(value).map_err(|_| TarError::Number { field: name })
}

/// A number in octal, or in GNU's binary form for those that do not fit.
fn signed_number(field: &[u8], name: &'static str) -> Result<i64, TarError> {
    let wrong = || TarError::Number { field: name };
    if field[0] & 0x80 != 0 {
        let negative = field[0] & 0x40 != 0;
        let first = if negative { field[0] } else { field[0] & 0x7f };
        let mut value = i128::from(first.cast_signed());
        for byte in &field[1..] {
            value = value.checked_mul(256).ok_or_else(wrong)? + i128::from(*byte);
        }
        return i64::try_from(value).map_err(|_| wrong());
    }
    let blank = |byte: &u8| matches!(byte, b' ' | 0);
    let start = field.iter().position(|byte| !blank(byte)).unwrap_or(field.len());
    let digits = &field[start..];
    let end = digits.iter().position(blank).unwrap_or(digits.len());
    if !digits[end..].iter().all(blank) {
        return Err(wrong());
    }
    digits[..end].iter().try_fold(0_i64, |value, digit| match digit {
        b'0'..=b'7' => value
            .checked_mul(8)
            .and_then(|value| value.checked_add(i64::from(digit - b'0')))
            .ok_or_else(wrong),
        _ => Err(wrong()),
    })
}

fn decimal(text: &[u8]) -> Option<u64> {
    if text.is_empty() {
        return None;
    }
    text.iter().try_fold(0_u64, |value, digit| {
        let digit = digit.is_ascii_digit().then(|| u64::from(digit - b'0'))?;
        // Sizes and times are signed where they end up.
        value.checked_mul(10)?.checked_add(digit).filter(|value| *value <= i64::MAX.unsigned_abs())
    })
}

fn until_zero(bytes: &[u8]) -> Vec<u8> {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    bytes[..end].to_vec()
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

    use super::*;

    /// A tar's blocks, written by hand so that they can be wrong.
    #[derive(Default)]
    pub(crate) struct Blocks(pub(crate) Vec<u8>);

    impl Blocks {
        fn header(mut self, kind: u8, path: &str, size: u64, change: impl Fn(&mut Header)) -> Self {
            let mut header = Header::new_ustar();
            header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
            header.set_mode(0o644);
            header.set_uid(0);
            header.set_gid(0);
            header.set_mtime(7);
            header.set_size(size);
            header.as_mut_bytes()[156] = kind;
            change(&mut header);
            header.set_cksum();
            self.0.extend_from_slice(header.as_bytes());
            self
        }

        fn data(mut self, data: &[u8]) -> Self {
            self.0.extend_from_slice(data);
            self.0.resize(self.0.len().next_multiple_of(BLOCK), 0);
            self
        }

        fn file(self, path: &str, data: &[u8]) -> Self {
            self.header(b'0', path, data.len() as u64, |_| {}).data(data)
        }

        fn pax(self, records: &[(&str, &str)]) -> Self {
            let mut text = Vec::new();
            for (key, value) in records {
                let rest = key.len() + value.len() + 3;
                let mut length = rest + 1;
                while length != rest + length.to_string().len() {
                    length += 1;
                }
                text.extend_from_slice(format!("{length} {key}={value}\n").as_bytes());
            }
            self.header(b'x', "pax", text.len() as u64, |_| {}).data(&text)
        }

        fn end(mut self) -> Vec<u8> {
            self.0.extend_from_slice(&[0; 2 * BLOCK]);
            self.0
        }
    }

    fn blocks() -> Blocks {
        Blocks::default()
    }

    /// All entries with their bytes.
    fn read(tar: &[u8]) -> Result<Vec<(TarEntry, Vec<u8>)>, TarError> {
        let mut reader = TarReader::new(tar);
        let mut entries = Vec::new();
        while let Some(entry) = reader.next_entry()? {
            let (mut data, mut buffer) = (Vec::new(), [0; 100]);
            loop {
                match reader.read_piece(&mut buffer)? {
                    FilePiece::Data(length) => data.extend_from_slice(&buffer[..length]),
                    FilePiece::Hole(length) => {
                        data.resize(data.len() + usize::try_from(length).unwrap(), 0);
                    }
                    FilePiece::End => break,
                }
            }
            entries.push((entry, data));
        }
        Ok(entries)
    }

    fn paths(tar: &[u8]) -> Vec<String> {
        let path = |(entry, _): (TarEntry, Vec<u8>)| String::from_utf8(entry.path).unwrap();
        read(tar).unwrap().into_iter().map(path).collect()
    }

    fn refused(tar: &[u8], message: &str) {
        let error = read(tar).unwrap_err().to_string();
        assert!(error.contains(message), "{error}");
    }

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
    fn what_follows_the_end_is_no_entry() {
        let tar = [blocks().file("a", b"x").end(), blocks().file("b", b"x").end()].concat();
        assert_eq!(paths(&tar), ["a"]);
        let mut reader = TarReader::new(&tar[..]);
        while reader.next_entry().unwrap().is_some() {}
        assert!(reader.drain().unwrap().is_empty());
    }

    #[test]
    fn malformed_records_are_refused() {
        let check = |records: &[u8], message: &str| {
            let header = blocks().header(b'x', "pax", records.len() as u64, |_| {}).data(records);
            refused(&header.file("a", b"").end(), message);
        };
        check(b"path=a\n", "without a length");
        check(b"99 path=a\n", "wrong length");
        check(b"3 path=a\n", "does not end its line");
        check(b"10 path=ab", "does not end its line");
        check(b"8 =path\n", "without a key");
        check(b"11 size=-1\n", "not a number");
        check(b"30 size=99999999999999999999\n\n", "not a number");
        check(b"13 path=a\0b\n\n", "zero byte");
        check(b"18446744073709551616 path=a\n", "without a length");
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

    #[test]
    fn wrong_maps_are_refused() {
        let check = |map: &str, message: &str| {
            let records = [("GNU.sparse.size", "10"), ("GNU.sparse.map", map)];
            refused(&blocks().pax(&records).file("a", b"xx").end(), message);
        };
        check("0", "ends in an offset");
        check("0,1,0,1", "overlaps");
        check("9,2", "over the file's end");
        check("0,1", "another size");
        check("0,x", "not of numbers");
    }

    #[test]
    fn xattrs_keep_any_bytes() {
        let tar = blocks().pax(&[("SCHILY.xattr.user.a", "b=c\nd")]).file("a", b"").end();
        let entries = read(&tar).unwrap();
        assert_eq!(entries[0].0.xattrs, [(b"user.a".to_vec(), b"b=c\nd".to_vec())]);
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
