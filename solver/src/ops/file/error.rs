//! Why files could not be written.

use std::io;
use std::path::{Path, PathBuf};

use rbuild_cache::checksum::ChecksumError;
use rbuild_cache::layer::tar_reader::TarError;
use rbuild_cache::limits::Exceeded;
use rbuild_cache::pattern::PatternError;
use rbuild_cache::snapshot::SnapshotError;
use rbuild_cache::view::{Entry, View, ViewError};
use rustix::io::Errno;

/// Says why files could not be written.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// A source that does not exist.
    #[error("{0:?}: not found")]
    NotFound(String),
    /// A source that `.dockerignore` hides.
    #[error("{0:?}: not found")]
    Ignored(String),
    /// A destination that leads through something that is no directory.
    #[error("mkdir {}: not a directory", .0.display())]
    NotADirectory(PathBuf),
    /// A directory is to be copied where something else is.
    #[error("cannot copy to non-directory: {}", .0.display())]
    CopyToNonDirectory(PathBuf),
    /// A file is to be copied where a directory is.
    #[error("cannot replace to directory {} with file", .0.display())]
    ReplaceDirectory(PathBuf),
    /// A user by name where there is no `/etc/passwd` to know it from.
    #[error("invalid user index: -1 (`{0}` cannot be looked up in an empty tree)")]
    NoUserFile(String),
    /// `USER` that `/etc/passwd` does not know.
    #[error("unable to find user {0}: no matching entries in passwd file")]
    UnknownUser(String),
    /// `USER name:group` that `/etc/group` does not know.
    #[error("unable to find group {0}: no matching entries in group file")]
    UnknownGroup(String),
    /// A number in `/etc/passwd` or `/etc/group` is none.
    #[error("`{0}` is not a user or group number")]
    BadId(String),
    /// A file of the image that rbuild reads is larger than it may be.
    #[error("`{path}` exceeds {limit} bytes")]
    TooLarge {
        /// Which.
        path: String,
        /// How large it may be.
        limit: u64,
    },
    /// `--chmod` with a mode that makes no sense.
    #[error("invalid mode `{0}`")]
    Mode(String),
    /// The context is not what it was when it was hashed.
    #[error("`{}` changed during the build", .0.display())]
    Changed(PathBuf),
    /// A character device 0:0, which in a layer means that a file was deleted.
    #[error("cannot copy `{}`: a layer cannot hold a device 0:0", .0.display())]
    Whiteout(PathBuf),
    /// An archive that cannot be read to its end.
    #[error("cannot unpack `{}`", path.display())]
    Tar {
        /// Its path in the source.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: TarError,
    },
    /// An entry of an archive that cannot be made.
    #[error("cannot unpack the entry `{entry}`: it {why}")]
    Entry {
        /// The entry's path in the archive.
        entry: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// There is more in the context than one COPY may take.
    #[error("the context has {0}")]
    Context(Exceeded),
    /// There is more in an archive than may be.
    #[error("the archive `{}` has {exceeded}", path.display())]
    Archive {
        /// Its path in the source.
        path: PathBuf,
        /// Of what.
        exceeded: Exceeded,
    },
    /// A pattern that makes no sense.
    #[error(transparent)]
    Pattern(#[from] PatternError),
    /// A tree could not be read.
    #[error(transparent)]
    View(#[from] ViewError),
    /// The system refused.
    #[error("cannot write `{}`", path.display())]
    Io {
        /// The path in the tree.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A source could not be hashed.
    #[error(transparent)]
    Checksum(ChecksumError),
    /// The state folder failed.
    #[error("cannot use the state folder")]
    State(#[source] io::Error),
    /// The result could not be kept.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
}

impl FileError {
    pub(crate) fn io(path: &Path, source: io::Error) -> Self {
        Self::Io { path: Path::new("/").join(path), source }
    }

    /// `error` of opening the file `entry` of `view`. What somebody has taken from a context, or put
    /// something else in the place of, since it was found, is no fault: it has to be looked for anew.
    pub(super) fn of_opening(view: &View, entry: &Entry, error: ViewError) -> Self {
        let is_other = match &error {
            ViewError::NotAFile(_) => true,
            ViewError::Io { source, .. } => {
                source.raw_os_error() == Some(Errno::LOOP.raw_os_error())
            }
            ViewError::TooManyLinks(_) => false,
        };
        if view.may_change() && is_other {
            Self::Changed(entry.absolute_path())
        } else {
            Self::View(error)
        }
    }
}

impl From<ChecksumError> for FileError {
    fn from(error: ChecksumError) -> Self {
        match error {
            ChecksumError::NotFound { path } => Self::NotFound(path),
            ChecksumError::View(error) => Self::View(error),
            error @ (ChecksumError::Changing(_) | ChecksumError::Read { .. }) => {
                Self::Checksum(error)
            }
        }
    }
}
