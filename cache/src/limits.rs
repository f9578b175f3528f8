//! How much of something is taken from outside before it is refused: an image, an archive, a
//! context or a server may be made to fill the disk or the memory (a "bomb").
//!
//! Every limit is here, with its name, what it means and how much it is unless the user says
//! otherwise; whoever takes something in asks [`Limits::check`]. Limits are in no cache key: what
//! was taken in under one set of them is as good under another.

use std::fmt;
use std::io::{self, Read};
use std::str::FromStr;

/// Something that is limited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// Bytes of a layer's tar when it is unpacked, files that are listed included.
    LayerSize,
    /// Entries of a layer.
    LayerFiles,
    /// Layers of an image.
    Layers,
    /// Folders above one another in a path of a layer, an archive or a context.
    PathDepth,
    /// Bytes of a manifest, an index or a config.
    DocumentSize,
    /// Bytes that one COPY or ADD takes from a context.
    ContextSize,
    /// Files that one COPY or ADD takes from a context.
    ContextFiles,
    /// Bytes of an archive when it is unpacked: one given to ADD, a context that is a tar, or one of
    /// images that is loaded.
    ArchiveSize,
    /// Entries of such an archive.
    ArchiveFiles,
    /// Files and links of an archive of images, of those that can be parts of images.
    ArchiveParts,
    /// Bytes that ADD fetches from a server.
    DownloadSize,
    /// Seconds that it may take for that.
    DownloadTime,
}

impl Limit {
    /// All of them.
    pub const ALL: [Self; 12] = [
        Self::LayerSize,
        Self::LayerFiles,
        Self::Layers,
        Self::PathDepth,
        Self::DocumentSize,
        Self::ContextSize,
        Self::ContextFiles,
        Self::ArchiveSize,
        Self::ArchiveFiles,
        Self::ArchiveParts,
        Self::DownloadSize,
        Self::DownloadTime,
    ];

    /// What users call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::LayerSize => "layer-size",
            Self::LayerFiles => "layer-files",
            Self::Layers => "layers",
            Self::PathDepth => "path-depth",
            Self::DocumentSize => "document-size",
            Self::ContextSize => "context-size",
            Self::ContextFiles => "context-files",
            Self::ArchiveSize => "archive-size",
            Self::ArchiveFiles => "archive-files",
            Self::ArchiveParts => "archive-parts",
            Self::DownloadSize => "download-size",
            Self::DownloadTime => "download-time",
        }
    }

    /// What it is counted in.
    pub fn unit(self) -> Unit {
        match self {
            Self::LayerSize
            | Self::DocumentSize
            | Self::ContextSize
            | Self::ArchiveSize
            | Self::DownloadSize => Unit::Bytes,
            Self::DownloadTime => Unit::Seconds,
            Self::LayerFiles | Self::ContextFiles | Self::ArchiveFiles | Self::ArchiveParts => {
                Unit::Files
            }
            Self::Layers => Unit::Layers,
            Self::PathDepth => Unit::Folders,
        }
    }

    /// More than anything real has, and little enough that what has no end is noticed.
    pub fn usual(self) -> u64 {
        match self {
            Self::LayerSize | Self::ContextSize | Self::ArchiveSize => 1 << 40,
            Self::LayerFiles | Self::ContextFiles | Self::ArchiveFiles => 20_000_000,
            Self::ArchiveParts => 100_000,
            Self::Layers => 4096,
            Self::PathDepth => 2047,
            Self::DocumentSize => 8 << 20,
            Self::DownloadSize => 64 << 30,
            Self::DownloadTime => 6 * 3600,
        }
    }

    /// The most that it can be set to, where that is not as much as one likes: the kernel has no
    /// longer paths, and documents are held in memory.
    pub fn most(self) -> Option<u64> {
        matches!(self, Self::PathDepth | Self::DocumentSize).then(|| self.usual())
    }
}

impl FromStr for Limit {
    type Err = UnknownLimit;

    fn from_str(text: &str) -> Result<Self, UnknownLimit> {
        Self::ALL.into_iter().find(|limit| limit.name() == text).ok_or(UnknownLimit)
    }
}

/// There is no limit of that name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there is no limit of that name")]
pub struct UnknownLimit;

/// What a [`Limit`] is counted in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Bytes.
    Bytes,
    /// Seconds.
    Seconds,
    /// Files, folders and whatever else has a name.
    Files,
    /// Layers.
    Layers,
    /// Folders, one in the other.
    Folders,
}

impl fmt::Display for Unit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Bytes => "bytes",
            Self::Seconds => "seconds",
            Self::Files => "files",
            Self::Layers => "layers",
            Self::Folders => "folders in one another",
        })
    }
}

/// The limits of one run of rbuild.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits([u64; Limit::ALL.len()]);

impl Default for Limits {
    fn default() -> Self {
        Self(Limit::ALL.map(Limit::usual))
    }
}

impl Limits {
    /// How much of `limit` there may be.
    pub fn of(&self, limit: Limit) -> u64 {
        self.0[limit as usize]
    }

    /// Sets one, and returns all.
    #[must_use]
    pub fn with(mut self, limit: Limit, value: u64) -> Self {
        self.0[limit as usize] = value;
        self
    }

    /// Refuses more than there may be of `limit`.
    pub fn check(&self, limit: Limit, found: u64) -> Result<(), Exceeded> {
        if found > self.of(limit) { Err(self.exceeded(limit)) } else { Ok(()) }
    }

    /// Says that there is more of `limit` than there may be.
    pub fn exceeded(&self, limit: Limit) -> Exceeded {
        Exceeded { limit, value: self.of(limit) }
    }
}

/// There is more of something than there may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("more than {value} {}: `--limit {}=N` sets how many there may be", limit.unit(), limit.name())]
pub struct Exceeded {
    /// Of what.
    pub limit: Limit,
    /// How much there may be.
    pub value: u64,
}

impl Exceeded {
    /// The limit that a [`Bounded`] stream ran into, if that is what `error` is about.
    pub fn within(error: &io::Error) -> Option<Self> {
        error.get_ref()?.downcast_ref().copied()
    }
}

/// A stream that ends with an [`Exceeded`] error when it is longer than it may be.
#[derive(Debug)]
pub struct Bounded<R> {
    stream: R,
    left: u64,
    exceeded: Exceeded,
}

impl<R> Bounded<R> {
    /// Bounds `stream` by `limit`.
    pub fn new(stream: R, limits: &Limits, limit: Limit) -> Self {
        Self { stream, left: limits.of(limit), exceeded: limits.exceeded(limit) }
    }

    /// The stream itself.
    pub fn into_inner(self) -> R {
        self.stream
    }
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.stream.read(buffer)?;
        let left = self.left.checked_sub(read as u64);
        self.left = left.ok_or_else(|| io::Error::other(self.exceeded))?;
        Ok(read)
    }
}

/// How many components a path has that mean something.
pub fn depth(path: &[u8]) -> u64 {
    let components = path.split(|byte| *byte == b'/');
    components.filter(|component| !matches!(*component, b"" | b".")).count() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_has_its_place_and_its_name() {
        for limit in Limit::ALL {
            assert_eq!(Limits::default().of(limit), limit.usual());
            assert_eq!(limit.name().parse(), Ok(limit));
            let limits = Limits::default().with(limit, 7);
            assert_eq!(limits.of(limit), 7);
            assert!(limits.check(limit, 7).is_ok());
            assert_eq!(limits.check(limit, 8), Err(Exceeded { limit, value: 7 }));
        }
        assert_eq!("size".parse::<Limit>(), Err(UnknownLimit));
    }

    #[test]
    fn the_error_names_the_flag() {
        let exceeded = Limits::default().with(Limit::LayerFiles, 3).exceeded(Limit::LayerFiles);
        assert_eq!(
            exceeded.to_string(),
            "more than 3 files: `--limit layer-files=N` sets how many there may be"
        );
    }
}
