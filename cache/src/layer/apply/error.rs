//! Why a layer cannot be unpacked.

use std::io;

use rustix::io::Errno;

use crate::layer::tar_reader::TarError;
use crate::limits::Exceeded;

/// Says why a layer cannot be unpacked.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// It is not a right tar.
    #[error(transparent)]
    Tar(TarError),
    /// An entry makes no sense.
    #[error("the layer's entry `{path}` {why}")]
    Entry {
        /// The entry's path.
        path: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// An entry could not be made.
    #[error("cannot unpack the layer's entry `{path}`")]
    Unpack {
        /// The entry's path.
        path: String,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// A limit was passed.
    #[error("the layer has {0}")]
    Limit(#[from] Exceeded),
}

/// What went wrong with an entry, before it is said with which.
pub(super) enum Failure {
    Tar(TarError),
    Why(&'static str),
    Io(io::Error),
}

impl Failure {
    /// Says with which entry.
    pub(super) fn about(self, path: &[u8]) -> ApplyError {
        let path = String::from_utf8_lossy(path).into_owned();
        match self {
            Self::Tar(error) => error.into(),
            Self::Why(why) => ApplyError::Entry { path, why },
            Self::Io(source) => ApplyError::Unpack { path, source },
        }
    }
}

/// What a reader of the stream could not but pass on as its own is a limit all the same.
impl From<TarError> for ApplyError {
    fn from(error: TarError) -> Self {
        match error {
            TarError::Io(error) => match Exceeded::within(&error) {
                Some(exceeded) => Self::Limit(exceeded),
                None => Self::Tar(TarError::Io(error)),
            },
            error => Self::Tar(error),
        }
    }
}

impl From<TarError> for Failure {
    fn from(error: TarError) -> Self {
        Self::Tar(error)
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<Errno> for Failure {
    fn from(error: Errno) -> Self {
        Self::Io(error.into())
    }
}
