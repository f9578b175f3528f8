//! Files that exports write: whole or not at all.

use std::fs::{File, Permissions};
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Mode, OFlags};
use tempfile::NamedTempFile;

use crate::file_place::FilePlace;
use crate::request::Destination;

/// A file that is being written, a device, or standard output.
pub(super) struct DestinationWriter {
    out: BufWriter<Sink>,
}

enum Sink {
    /// Without a name until all of it is there: who is killed meanwhile leaves nothing behind.
    Nameless(File, PathBuf),
    /// Where the file system has no such files: written beside its place and renamed.
    Named(NamedTempFile, PathBuf),
    Stdout(io::Stdout),
    /// A device or a pipe.
    Device(fs_err::File),
}

impl Sink {
    /// A file that is going to be at `path`.
    fn beside(path: PathBuf) -> io::Result<Self> {
        let folder = FilePlace::folder(&path);
        if let Some(file) = nameless(folder) {
            return Ok(Self::Nameless(file, path));
        }
        let permissions = Permissions::from_mode(MODE);
        let file = tempfile::Builder::new().permissions(permissions).tempfile_in(folder)?;
        Ok(Self::Named(file, path))
    }

    /// The file, and what it is to be called; `None` for what has no way back.
    fn file(&mut self) -> Option<(&mut File, &Path)> {
        match self {
            Self::Nameless(file, path) => Some((file, path)),
            Self::Named(file, path) => Some((file.as_file_mut(), path)),
            Self::Stdout(_) | Self::Device(_) => None,
        }
    }
}

impl DestinationWriter {
    pub(super) fn create(destination: &Destination) -> io::Result<Self> {
        let sink = match destination {
            Destination::Stdout => Sink::Stdout(io::stdout()),
            Destination::File(path) | Destination::Folder(path) => {
                match FilePlace::of(path).map_err(|e| about(path, &e))? {
                    FilePlace::Device(device) => Sink::Device(device),
                    FilePlace::File(place) => Sink::beside(place).map_err(|e| about(path, &e))?,
                }
            }
        };
        Ok(Self { out: BufWriter::with_capacity(256 << 10, sink) })
    }

    /// Where the next byte goes; `None` for a pipe, which has no way back.
    pub(super) fn position(&mut self) -> io::Result<Option<u64>> {
        self.out.flush()?;
        let Some((file, path)) = self.out.get_mut().file() else { return Ok(None) };
        file.stream_position().map(Some).map_err(|e| about(path, &e))
    }

    /// Leaves `length` bytes out, for [`Self::fill`].
    pub(super) fn skip(&mut self, length: u64) -> io::Result<()> {
        let length = i64::try_from(length).map_err(io::Error::other)?;
        self.in_file(|file| file.seek(SeekFrom::Current(length)).map(drop))
    }

    /// Writes what was left out at `position`.
    pub(super) fn fill(&mut self, position: u64, bytes: &[u8]) -> io::Result<()> {
        self.in_file(|file| file.write_all_at(bytes, position))
    }

    /// Takes back all that was written from `position` on.
    pub(super) fn back_to(&mut self, position: u64) -> io::Result<()> {
        self.in_file(|file| {
            file.set_len(position)?;
            file.seek(SeekFrom::Start(position)).map(drop)
        })
    }

    fn in_file(&mut self, change: impl FnOnce(&mut File) -> io::Result<()>) -> io::Result<()> {
        self.out.flush()?;
        match self.out.get_mut().file() {
            Some((file, path)) => change(file).map_err(|e| about(path, &e)),
            None => Err(io::Error::from(io::ErrorKind::NotSeekable)),
        }
    }

    /// Puts the file in its place.
    ///
    /// It is not synced: a build can be repeated, and waiting for the disk would cost more than
    /// writing.
    pub(super) fn finish(self) -> io::Result<()> {
        match self.out.into_inner().map_err(io::IntoInnerError::into_error)? {
            Sink::Stdout(mut stdout) => stdout.flush(),
            Sink::Device(mut device) => device.flush(),
            Sink::Nameless(file, path) => name(&file, &path).map_err(|e| about(&path, &e)),
            Sink::Named(file, path) => {
                file.persist(&path).map(drop).map_err(|e| about(&path, &e.error))
            }
        }
    }
}

/// What the umask leaves of it, as for any file that a program makes.
const MODE: u32 = 0o666;

/// A file in `folder` that has no name; `None` where there cannot be one, or where it could not be
/// given a name.
fn nameless(folder: &Path) -> Option<File> {
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    let file = rustix::fs::open(folder, flags, Mode::from_raw_mode(MODE)).ok()?;
    let can_be_named = Path::new(&own_descriptor(&file)).exists();
    can_be_named.then(|| file.into())
}

/// Gives a file without a name the name `path`, in place of what is there: a link does not replace,
/// so that it gets another name first.
fn name(file: &File, path: &Path) -> io::Result<()> {
    let link = |aside: &Path| {
        let from = own_descriptor(file);
        let follow = AtFlags::SYMLINK_FOLLOW;
        Ok(rustix::fs::linkat(rustix::fs::CWD, from, rustix::fs::CWD, aside, follow)?)
    };
    let aside = tempfile::Builder::new().make_in(FilePlace::folder(path), link)?;
    aside.persist(path).map(drop).map_err(|e| e.error)
}

fn own_descriptor(file: &impl AsRawFd) -> String {
    format!("/proc/self/fd/{}", file.as_raw_fd())
}

fn about(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("cannot write `{}`: {error}", path.display()))
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Stdout(stdout) => stdout.write(bytes),
            Self::Device(device) => device.write(bytes),
            Self::Nameless(file, path) => file.write(bytes).map_err(|e| about(path, &e)),
            Self::Named(file, path) => file.write(bytes).map_err(|e| about(path, &e)),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Stdout(stdout) => stdout.flush(),
            Self::Device(device) => device.flush(),
            Self::Nameless(file, _) => file.flush(),
            Self::Named(file, _) => file.flush(),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_appears_whole_or_not_at_all() {
        let top = tempfile::tempdir().unwrap();
        let names = || -> Vec<String> {
            let entries = fs_err::read_dir(top.path()).unwrap();
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
        };
        let path = top.path().join("file");
        let create = || DestinationWriter::create(&Destination::File(path.clone())).unwrap();
        fs_err::write(&path, "before").unwrap();
        let is_nameless = nameless(top.path()).is_some();
        let mut given_up = create();
        given_up.write_all(b"half").unwrap();
        given_up.flush().unwrap();
        assert_eq!(names().len(), if is_nameless { 1 } else { 2 });
        drop(given_up);
        assert_eq!((names().len(), fs_err::read(&path).unwrap()), (1, b"before".to_vec()));

        let mut whole = create();
        let start = whole.position().unwrap().unwrap();
        whole.skip(2).unwrap();
        whole.write_all(b"cdefgh").unwrap();
        whole.fill(start, b"ab").unwrap();
        whole.back_to(5).unwrap();
        whole.write_all(b"!").unwrap();
        whole.finish().unwrap();
        assert_eq!((names().len(), fs_err::read(&path).unwrap()), (1, b"abcde!".to_vec()));
        // As open to others as any file that is made here.
        let mode = |path: &Path| fs_err::metadata(path).unwrap().permissions().mode();
        let other = top.path().join("other");
        fs_err::write(&other, "").unwrap();
        assert_eq!(mode(&path), mode(&other));
    }
}
