//! Files that exports write: whole or not at all.

use std::fs::Permissions;
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

use crate::request::Destination;

/// A file that is being written, or standard output.
pub(super) struct DestinationWriter {
    out: BufWriter<Sink>,
}

enum Sink {
    /// Written beside its place and renamed.
    File(NamedTempFile, PathBuf),
    Stdout(io::Stdout),
}

impl DestinationWriter {
    pub(super) fn create(destination: &Destination) -> io::Result<Self> {
        let sink = match destination {
            Destination::Stdout => Sink::Stdout(io::stdout()),
            Destination::File(path) | Destination::Folder(path) => {
                let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
                let folder = folder.unwrap_or(Path::new("."));
                // What the umask leaves of it, as for any file that a program makes.
                let file = tempfile::Builder::new()
                    .permissions(Permissions::from_mode(0o666))
                    .tempfile_in(folder)
                    .map_err(|e| about(path, &e))?;
                Sink::File(file, path.clone())
            }
        };
        Ok(Self { out: BufWriter::with_capacity(256 << 10, sink) })
    }

    /// Where the next byte goes; `None` for a pipe, which has no way back.
    pub(super) fn position(&mut self) -> io::Result<Option<u64>> {
        self.out.flush()?;
        match self.out.get_mut() {
            Sink::File(file, path) => file.stream_position().map(Some).map_err(|e| about(path, &e)),
            Sink::Stdout(_) => Ok(None),
        }
    }

    /// Leaves `length` bytes out, for [`Self::fill`].
    pub(super) fn skip(&mut self, length: u64) -> io::Result<()> {
        let length = i64::try_from(length).map_err(io::Error::other)?;
        self.in_file(|file| file.seek(SeekFrom::Current(length)).map(drop))
    }

    /// Writes what was left out at `position`.
    pub(super) fn fill(&mut self, position: u64, bytes: &[u8]) -> io::Result<()> {
        self.in_file(|file| file.as_file().write_all_at(bytes, position))
    }

    /// Takes back all that was written from `position` on.
    pub(super) fn back_to(&mut self, position: u64) -> io::Result<()> {
        self.in_file(|file| {
            file.as_file().set_len(position)?;
            file.seek(SeekFrom::Start(position)).map(drop)
        })
    }

    fn in_file(
        &mut self,
        change: impl FnOnce(&mut NamedTempFile) -> io::Result<()>,
    ) -> io::Result<()> {
        self.out.flush()?;
        match self.out.get_mut() {
            Sink::File(file, path) => change(file).map_err(|e| about(path, &e)),
            Sink::Stdout(_) => Err(io::Error::from(io::ErrorKind::NotSeekable)),
        }
    }

    /// Puts the file in its place.
    ///
    /// It is not synced: a build can be repeated, and waiting for the disk would cost more than
    /// writing.
    pub(super) fn finish(self) -> io::Result<()> {
        match self.out.into_inner().map_err(io::IntoInnerError::into_error)? {
            Sink::Stdout(mut stdout) => stdout.flush(),
            Sink::File(file, path) => {
                file.persist(&path).map(drop).map_err(|e| about(&path, &e.error))
            }
        }
    }
}

fn about(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("cannot write `{}`: {error}", path.display()))
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::File(file, path) => file.write(bytes).map_err(|e| about(path, &e)),
            Self::Stdout(stdout) => stdout.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::File(file, _) => file.flush(),
            Self::Stdout(stdout) => stdout.flush(),
        }
    }
}

impl Write for DestinationWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.out.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}
