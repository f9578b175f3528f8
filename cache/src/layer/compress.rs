//! Compressing layers on all cores, and reading what others compressed.
//!
//! The input is cut into pieces of a fixed size, and each becomes a gzip member or a zstd frame of
//! its own (RFC 1952, 2.2; RFC 8878, 3.1: readers take several as one). So pieces are compressed
//! side by side, and the bytes do not depend on how many cores there were.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::fmt;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::ops::RangeInclusive;
use std::sync::mpsc::{self, Receiver, SyncSender, TryRecvError};
use std::time::Duration;

use libdeflater::{CompressionLvl, Compressor as Deflater};

/// How a layer is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Compression {
    /// Not at all.
    None,
    /// gzip, at a level from 0 (stored) to 12.
    Gzip {
        /// The level.
        level: u8,
    },
    /// zstd, at a level from 1 to 22.
    Zstd {
        /// The level.
        level: u8,
    },
}

/// Says why there is no such [`Compression`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CompressionError {
    /// The name is not known.
    #[error("compression `{0}` is not one of `uncompressed`, `gzip`, `zstd`")]
    Name(String),
    /// The level is out of range.
    #[error("compression level {level} of `{name}` is not from {least} to {most}")]
    Level {
        /// The compression.
        name: &'static str,
        /// The level that was asked for.
        level: i32,
        /// The lowest level.
        least: u8,
        /// The highest level.
        most: u8,
    },
}

impl Default for Compression {
    fn default() -> Self {
        // A hundredth larger than zlib's level 6, at three times its speed.
        Self::Gzip { level: 4 }
    }
}

impl Compression {
    /// The compression that BuildKit's exporters call `name`, at `level` if one is asked for.
    pub fn named(name: &str, level: Option<i32>) -> Result<Self, CompressionError> {
        let within = |name, least: u8, most: u8, usual: u8| match level {
            None => Ok(usual),
            Some(level) => u8::try_from(level)
                .ok()
                .filter(|level| (least..=most).contains(level))
                .ok_or(CompressionError::Level { name, level, least, most }),
        };
        match name {
            "uncompressed" => Ok(Self::None),
            "gzip" => Ok(Self::Gzip { level: within("gzip", 0, 12, 4)? }),
            "zstd" => Ok(Self::Zstd { level: within("zstd", 1, 22, 3)? }),
            other => Err(CompressionError::Name(other.to_owned())),
        }
    }

    /// Bytes of input for each member or frame.
    fn piece(self) -> usize {
        match self {
            Self::None | Self::Gzip { .. } => 1 << 20,
            Self::Zstd { .. } => 4 << 20,
        }
    }

    /// Replaces what is in `member` with `piece` compressed.
    fn compress(self, piece: &[u8], member: &mut Vec<u8>) -> io::Result<()> {
        match self {
            Self::None => {
                member.clear();
                member.extend_from_slice(piece);
                Ok(())
            }
            Self::Gzip { level } => gzip(piece, level, member),
            Self::Zstd { level } => {
                member.resize(zstd::zstd_safe::compress_bound(piece.len()), 0);
                let length = zstd::bulk::compress_to_buffer(piece, &mut member[..], level.into())?;
                member.truncate(length);
                Ok(())
            }
        }
    }
}

impl fmt::Display for Compression {
    /// All that decides which bytes come out, the codecs' versions included.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("uncompressed"),
            Self::Gzip { level } => write!(f, "gzip/libdeflate-1.26/1MiB/sampled/{level}"),
            Self::Zstd { level } => {
                write!(f, "zstd/{}/4MiB/{level}", zstd::zstd_safe::version_string())
            }
        }
    }
}

thread_local! {
    /// By level. Making one costs more than compressing a small piece.
    static DEFLATERS: RefCell<Vec<(u8, Deflater)>> = const { RefCell::new(Vec::new()) };
}

/// Calls `with` with a deflater of this level.
fn deflater<T>(
    level: u8,
    with: impl FnOnce(&mut Deflater) -> Result<T, libdeflater::CompressionError>,
) -> io::Result<T> {
    let failed = |e: &dyn fmt::Debug| io::Error::other(format!("gzip, level {level}: {e:?}"));
    DEFLATERS.with_borrow_mut(|kept| {
        if kept.iter().all(|(of, _)| *of != level) {
            let of_library = CompressionLvl::new(level.into()).map_err(|e| failed(&e))?;
            kept.push((level, Deflater::new(of_library)));
        }
        let (_, deflater) =
            kept.iter_mut().find(|(of, _)| *of == level).expect("it was just put there");
        with(deflater).map_err(|e| failed(&e))
    })
}

fn gzip(piece: &[u8], level: u8, member: &mut Vec<u8>) -> io::Result<()> {
    deflater(effort(piece, level)?, |deflater| {
        member.resize(deflater.gzip_compress_bound(piece.len()), 0);
        let length = deflater.gzip_compress(piece, member)?;
        member.truncate(length);
        Ok(())
    })
}

/// The level for a piece. The middle ones find hardly more than the first in what hardly shrinks
/// (images, archives, keys), and take a quarter longer; four samples tell. Who asks for the last byte
/// gets it.
fn effort(piece: &[u8], level: u8) -> io::Result<u8> {
    const MIDDLE: RangeInclusive<u8> = 2..=5;
    const SAMPLE: usize = 8 << 10;
    if !MIDDLE.contains(&level) || piece.len() < 16 * SAMPLE {
        return Ok(level);
    }
    let shrunk = deflater(1, |deflater| {
        let mut room = vec![0; deflater.deflate_compress_bound(SAMPLE)];
        let mut shrunk = 0;
        for quarter in 0..4 {
            let start = quarter * piece.len() / 4;
            shrunk += deflater.deflate_compress(&piece[start..start + SAMPLE], &mut room)?;
        }
        Ok(shrunk)
    });
    Ok(if shrunk? * 10 > 4 * SAMPLE * 9 { 1 } else { level })
}

/// Compresses what is written to it, on all cores.
pub struct Compressor<W: Write> {
    compression: Compression,
    out: W,
    piece: Vec<u8>,
    /// Pieces that are being compressed, in order.
    pending: VecDeque<Receiver<Piece>>,
    /// Memory of pieces that were written: new memory for each would have to be zeroed by the kernel.
    spare: Vec<Vec<u8>>,
    started: bool,
}

/// A piece that was compressed.
struct Piece {
    compressed: io::Result<Vec<u8>>,
    /// Memory that is free again.
    spare: Vec<u8>,
}

impl<W: Write> Compressor<W> {
    /// Compresses to `out`.
    pub fn new(compression: Compression, out: W) -> Self {
        Self {
            compression,
            out,
            piece: Vec::new(),
            pending: VecDeque::new(),
            spare: Vec::new(),
            started: false,
        }
    }

    /// Writes what is left, and returns `out`.
    pub fn finish(mut self) -> io::Result<W> {
        // An empty stream is one empty member.
        if !self.piece.is_empty() || !self.started {
            self.start_piece();
        }
        while !self.pending.is_empty() {
            self.write_piece()?;
        }
        self.out.flush()?;
        Ok(self.out)
    }

    fn start_piece(&mut self) {
        self.started = true;
        let compression = self.compression;
        let mut piece = std::mem::replace(&mut self.piece, self.spare.pop().unwrap_or_default());
        let mut member = self.spare.pop().unwrap_or_default();
        let (sender, receiver) = mpsc::sync_channel(1);
        rayon::spawn(move || {
            let done = compression.compress(&piece, &mut member);
            piece.clear();
            // Nobody listens when the layer was given up.
            let _ = sender.send(Piece { compressed: done.map(|()| member), spare: piece });
        });
        self.pending.push_back(receiver);
    }

    /// Writes the piece that was begun first.
    fn write_piece(&mut self) -> io::Result<()> {
        let Some(next) = self.pending.pop_front() else { return Ok(()) };
        let Piece { compressed, spare } = wait(&next)?;
        let compressed = compressed?;
        self.out.write_all(&compressed)?;
        self.spare.extend([compressed, spare]);
        Ok(())
    }
}

impl<W: Write> Write for Compressor<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.compression == Compression::None {
            self.started = true;
            return self.out.write(bytes);
        }
        let room = self.compression.piece() - self.piece.len();
        let taken = bytes.len().min(room);
        if self.piece.capacity() == 0 {
            self.piece.reserve_exact(self.compression.piece());
        }
        self.piece.extend_from_slice(&bytes[..taken]);
        if self.piece.len() == self.compression.piece() {
            self.start_piece();
            if self.pending.len() > 2 * rayon::current_num_threads() {
                self.write_piece()?;
            }
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// Waits for a piece. On one of rayon's threads other work is done meanwhile, since that work may
/// be the piece itself.
fn wait(piece: &Receiver<Piece>) -> io::Result<Piece> {
    let gone = |_| io::Error::other("a thread that compressed a layer panicked");
    loop {
        match piece.try_recv() {
            Ok(piece) => return Ok(piece),
            Err(TryRecvError::Disconnected) => return Err(gone(mpsc::RecvError)),
            Err(TryRecvError::Empty) => {}
        }
        match rayon::yield_now() {
            None => return piece.recv().map_err(gone),
            Some(rayon::Yield::Executed) => {}
            Some(rayon::Yield::Idle) => {
                if let Ok(piece) = piece.recv_timeout(Duration::from_millis(1)) {
                    return Ok(piece);
                }
            }
        }
    }
}

/// Reads `stream` decompressed, whichever of gzip, zstd, bzip2 or xz it is; anything else is
/// returned as it is. What it is, its first bytes say.
pub fn decompress(stream: impl Read + Send + 'static) -> io::Result<Box<dyn Read + Send>> {
    let mut stream = BufReader::with_capacity(128 << 10, stream);
    let mut start = Vec::with_capacity(6);
    stream.by_ref().take(6).read_to_end(&mut start)?;
    let format = Format::of(&start);
    let whole = BufReader::with_capacity(128 << 10, io::Cursor::new(start).chain(stream));
    Ok(match format {
        Some(Format::Gzip) => Box::new(ReadAhead::new(flate2::bufread::MultiGzDecoder::new(whole))),
        Some(Format::Zstd) => Box::new(ReadAhead::new(zstd_reader(whole)?)),
        Some(Format::Bzip2) => Box::new(ReadAhead::new(bzip2::bufread::MultiBzDecoder::new(whole))),
        Some(Format::Xz) => {
            Box::new(ReadAhead::new(xz2::bufread::XzDecoder::new_multi_decoder(whole)))
        }
        None => Box::new(whole),
    })
}

fn zstd_reader<R: BufRead>(stream: R) -> io::Result<impl Read> {
    let mut decoder = zstd::stream::read::Decoder::with_buffer(stream)?;
    // 128 MiB, as the format asks every reader to grant (RFC 8878, 3.1.1.1.2 recommends 8 MiB,
    // the command's default is 128): a frame may not ask for as much memory as it likes.
    decoder.window_log_max(27)?;
    Ok(decoder)
}

/// How a stream is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// RFC 1952
    Gzip,
    /// RFC 8878
    Zstd,
    /// bzip2
    Bzip2,
    /// xz
    Xz,
}

impl Format {
    /// The format of a stream that begins with `start`, of which six bytes are enough.
    pub fn of(start: &[u8]) -> Option<Self> {
        match start {
            [0x1f, 0x8b, 8, ..] => Some(Self::Gzip),
            // A frame, or a skippable one before it.
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Some(Self::Zstd),
            [b'B', b'Z', b'h', b'1'..=b'9', ..] => Some(Self::Bzip2),
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Some(Self::Xz),
            _ => None,
        }
    }
}

/// Reads on a thread of its own, a few pieces ahead: whoever unpacks does so while the next bytes
/// are decompressed.
struct ReadAhead {
    pieces: Receiver<io::Result<Vec<u8>>>,
    piece: io::Cursor<Vec<u8>>,
}

impl ReadAhead {
    fn new(stream: impl Read + Send + 'static) -> Self {
        let (sender, pieces) = mpsc::sync_channel(4);
        std::thread::spawn(move || read_ahead(stream, &sender));
        Self { pieces, piece: io::Cursor::default() }
    }
}

fn read_ahead(mut stream: impl Read, sender: &SyncSender<io::Result<Vec<u8>>>) {
    loop {
        let mut piece = Vec::with_capacity(256 << 10);
        let read = stream.by_ref().take(256 << 10).read_to_end(&mut piece);
        let is_end = matches!(read, Ok(0) | Err(_));
        let gone = sender.send(read.map(|_| piece)).is_err();
        if is_end || gone {
            return;
        }
    }
}

impl Read for ReadAhead {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let read = self.piece.read(buffer)?;
            if read > 0 || buffer.is_empty() {
                return Ok(read);
            }
            match self.pieces.recv() {
                Ok(piece) => self.piece = io::Cursor::new(piece?),
                Err(_) => return Err(io::Error::other("decompression ended without saying why")),
            }
            if self.piece.get_ref().is_empty() {
                // The end; it is told again when asked again.
                let (sender, pieces) = mpsc::sync_channel(1);
                let _ = sender.send(Ok(Vec::new()));
                self.pieces = pieces;
                return Ok(0);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Compression; 4] = [
        Compression::None,
        Compression::Gzip { level: 0 },
        Compression::Gzip { level: 4 },
        Compression::Zstd { level: 3 },
    ];

    fn compressed(compression: Compression, bytes: &[u8]) -> Vec<u8> {
        let mut compressor = Compressor::new(compression, Vec::new());
        compressor.write_all(bytes).unwrap();
        compressor.finish().unwrap()
    }

    fn some_bytes(length: usize) -> Vec<u8> {
        (0..length).map(|n| u8::try_from(((n * n) >> 7) & 0xff).unwrap()).collect()
    }

    #[test]
    fn reads_what_it_wrote() {
        for compression in ALL {
            for length in [0, 1, (1 << 20) - 1, 1 << 20, (9 << 20) + 17] {
                let bytes = some_bytes(length);
                let stream = io::Cursor::new(compressed(compression, &bytes));
                let mut back = Vec::new();
                let mut reader = decompress(stream).unwrap();
                reader.read_to_end(&mut back).unwrap();
                assert!(back == bytes, "{compression} {length}");
                assert_eq!(reader.read(&mut [0; 9]).unwrap(), 0, "the end is the end");
            }
        }
    }

    #[test]
    fn what_hardly_shrinks_gets_little_effort() {
        let mut state = 1_u64;
        let noise: Vec<u8> = std::iter::repeat_with(|| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            state.to_be_bytes()[0]
        })
        .take(1 << 20)
        .collect();
        let text: Vec<u8> = (0..150_000).flat_map(|n: u32| n.to_string().into_bytes()).collect();
        let check = |piece: &[u8], level: u8, expected: u8| {
            assert_eq!(effort(piece, level).unwrap(), expected, "{} {level}", piece.len());
        };
        check(&noise, 4, 1);
        check(&noise, 9, 9);
        check(&noise, 0, 0);
        check(&noise[..100], 4, 4);
        check(&text, 4, 4);
        let member = |level| {
            let mut member = Vec::new();
            gzip(&noise, level, &mut member).unwrap();
            member
        };
        assert!(member(1) == member(4));
    }

    #[test]
    fn bytes_do_not_depend_on_the_number_of_cores() {
        let bytes = some_bytes(7 << 20);
        for compression in ALL {
            let with = |threads| {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                pool.install(|| compressed(compression, &bytes))
            };
            assert!(with(1) == with(5), "{compression}");
            assert!(with(1) == compressed(compression, &bytes), "{compression}");
        }
    }

    #[test]
    fn layers_compressed_on_all_threads_at_once_do_not_wait_for_each_other() {
        use rayon::prelude::*;
        let bytes = some_bytes(20 << 20);
        let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap();
        let sizes: Vec<usize> = pool
            .install(|| (0..4).into_par_iter().map(|_| compressed(ALL[2], &bytes).len()).collect());
        assert!(sizes.iter().all(|size| *size == sizes[0]));
    }

    #[test]
    fn damaged_streams_are_errors() {
        for compression in &ALL[2..] {
            let whole = compressed(*compression, &some_bytes(3 << 20));
            let check = |damaged: Vec<u8>| {
                let read = decompress(io::Cursor::new(damaged))
                    .and_then(|mut reader| io::copy(&mut reader, &mut io::sink()));
                assert!(read.is_err(), "{compression}");
            };
            check(whole[..whole.len() - 3].to_vec());
            check([&whole[..], b"and more"].concat());
        }
    }

    #[test]
    fn levels_are_checked() {
        assert_eq!(Compression::named("gzip", None), Ok(Compression::default()));
        assert_eq!(Compression::named("zstd", Some(22)), Ok(Compression::Zstd { level: 22 }));
        assert!(Compression::named("gzip", Some(13)).is_err());
        assert!(Compression::named("zstd", Some(-1)).is_err());
        assert!(Compression::named("estargz", None).is_err());
    }
}
