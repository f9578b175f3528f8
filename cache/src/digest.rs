//! Digests and the identifiers that are digests: what names every blob, tree and cache entry.
//!
//! A digest is parsed once, at the border, into [`Digest`], which cannot hold a wrong value and is
//! therefore safe as a path component. Only `sha256` is known (image-spec, descriptor.md,
//! "Registered algorithms"); other algorithms are refused by name.

use std::fmt;
use std::io::{self, Read, Write};
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest as _, Sha256};

/// The sha256 of some bytes; shown and parsed as `sha256:<64 lower-case hex digits>`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest([u8; 32]);

/// Says what is wrong with a string that should be a digest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DigestError {
    /// The part before the colon names another algorithm.
    #[error("digest `{0}` is not a sha256 digest")]
    Algorithm(String),
    /// What follows `sha256:` is not 64 lower-case hex digits.
    #[error("digest `{0}` is not `sha256:` and 64 lower-case hex digits")]
    Encoding(String),
}

impl Digest {
    /// The digest of `bytes`.
    pub fn of(bytes: impl AsRef<[u8]>) -> Self {
        Self(Sha256::digest(bytes).into())
    }

    /// The digest whose 32 raw bytes are `bytes`.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The 32 raw bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The 64 lower-case hex digits, without the algorithm.
    pub fn hex(&self) -> String {
        hex::encode(self.0)
    }

    /// The first twelve hex digits, as people are shown digests.
    pub fn short(&self) -> String {
        hex::encode(&self.0[..6])
    }

    /// Reads `stream` to its end: its digest and its length in bytes.
    pub fn of_stream(mut stream: impl Read) -> io::Result<(Self, u64)> {
        let mut hasher = Hasher::new();
        let mut piece = vec![0; 64 * 1024];
        loop {
            match stream.read(&mut piece) {
                Ok(0) => return Ok(hasher.finish()),
                Ok(n) => hasher.update(&piece[..n]),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Digest {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, DigestError> {
        let Some(encoded) = text.strip_prefix("sha256:") else {
            return Err(DigestError::Algorithm(text.to_owned()));
        };
        let lower_case = encoded.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        let mut bytes = [0; 32];
        if !lower_case || hex::decode_to_slice(encoded, &mut bytes).is_err() {
            return Err(DigestError::Encoding(text.to_owned()));
        }
        Ok(Self(bytes))
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// So many bytes are gathered before they are hashed: what says what a file is comes in pieces of a
/// few bytes, and handing each of them on costs more than hashing it.
const GATHERED: usize = 512;

/// Hashes bytes piece by piece, counting them.
#[derive(Clone, Debug)]
pub struct Hasher {
    sha256: Sha256,
    length: u64,
    gathered: [u8; GATHERED],
    /// How many of them there are.
    waiting: usize,
}

impl Default for Hasher {
    fn default() -> Self {
        Self { sha256: Sha256::new(), length: 0, gathered: [0; GATHERED], waiting: 0 }
    }
}

impl Hasher {
    /// Starts with no bytes.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds `bytes`.
    pub fn update(&mut self, bytes: impl AsRef<[u8]>) {
        let bytes = bytes.as_ref();
        self.length += bytes.len() as u64;
        if bytes.len() > GATHERED - self.waiting {
            self.sha256.update(&self.gathered[..self.waiting]);
            self.waiting = 0;
        }
        if bytes.len() > GATHERED {
            self.sha256.update(bytes);
        } else {
            self.gathered[self.waiting..][..bytes.len()].copy_from_slice(bytes);
            self.waiting += bytes.len();
        }
    }

    /// Adds `bytes` behind their length, so that two fields never run into each other.
    pub fn field(&mut self, bytes: impl AsRef<[u8]>) {
        self.update((bytes.as_ref().len() as u64).to_le_bytes());
        self.update(bytes);
    }

    /// The digest of what was added, and its length in bytes.
    pub fn finish(mut self) -> (Digest, u64) {
        self.sha256.update(&self.gathered[..self.waiting]);
        (Digest(self.sha256.finalize().into()), self.length)
    }

    /// The digest of what was added.
    pub fn digest(self) -> Digest {
        self.finish().0
    }
}

/// A stream that hashes what is read from it or written to it.
#[derive(Debug)]
pub struct Hashing<S> {
    stream: S,
    hasher: Hasher,
}

impl<S> Hashing<S> {
    /// Around `stream`, of which nothing was read or written.
    pub fn new(stream: S) -> Self {
        Self { stream, hasher: Hasher::new() }
    }

    /// The stream, and the digest and length in bytes of what passed.
    pub fn finish(self) -> (S, Digest, u64) {
        let (digest, length) = self.hasher.finish();
        (self.stream, digest, length)
    }
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.stream.read(buffer)?;
        self.hasher.update(&buffer[..read]);
        Ok(read)
    }
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.stream.write(bytes)?;
        self.hasher.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

/// Declares a digest with a meaning of its own.
macro_rules! digest_newtype {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub Digest);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.0)
            }
        }
    };
}

digest_newtype! {
    /// The digest of a layer's uncompressed tar (image-spec, config.md, `rootfs.diff_ids`).
    DiffId
}
digest_newtype! {
    /// The hash under which the result of a step is found.
    CacheKey
}
digest_newtype! {
    /// What a tree contains, without times: two trees with one `TreeDigest` cache the same steps.
    TreeDigest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_only_what_it_shows() {
        let empty = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(Digest::of("").to_string(), empty);
        assert_eq!(empty.parse(), Ok(Digest::of("")));
        for wrong in ["", "sha512:00", "sha256:", "sha256:../../etc/passwd", &empty.to_uppercase()]
        {
            assert!(wrong.parse::<Digest>().is_err(), "{wrong}");
        }
        assert!(empty.replace('e', "E").parse::<Digest>().is_err());
    }

    #[test]
    fn a_stream_hashes_what_passed_and_no_more() {
        let mut reader = Hashing::new(&b"passed, not read"[..]);
        reader.read_exact(&mut [0; 6]).unwrap();
        let (rest, digest, length) = reader.finish();
        assert_eq!((rest, digest, length), (&b", not read"[..], Digest::of("passed"), 6));
        let mut room = [0; 6];
        let mut writer = Hashing::new(&mut room[..]);
        assert_eq!(writer.write(b"passed, not written").unwrap(), 6);
        let (_, digest, length) = writer.finish();
        assert_eq!((digest, length), (Digest::of("passed"), 6));
    }

    #[test]
    fn it_does_not_matter_in_which_pieces_bytes_come() {
        let bytes: Vec<u8> = (0..3000_u32).map(|n| u8::try_from(n % 251).unwrap()).collect();
        for piece in [1, 7, 64, GATHERED - 1, GATHERED, GATHERED + 1, 3000] {
            let mut hasher = Hasher::new();
            bytes.chunks(piece).for_each(|piece| hasher.update(piece));
            assert_eq!(hasher.finish(), (Digest::of(&bytes), 3000), "{piece}");
        }
        let mut hasher = Hasher::new();
        for piece in [&bytes[..300], &bytes[300..1000], &bytes[1000..1100], &bytes[1100..]] {
            hasher.update(piece);
        }
        assert_eq!(hasher.digest(), Digest::of(&bytes));
    }

    #[test]
    fn fields_do_not_run_together() {
        let of = |fields: &[&str]| {
            let mut hasher = Hasher::new();
            for field in fields {
                hasher.field(field);
            }
            hasher.digest()
        };
        assert_ne!(of(&["ab", "c"]), of(&["a", "bc"]));
        assert_ne!(of(&["a"]), of(&["a", ""]));
    }
}
