//! What can be wrong with a tar.

use std::io;

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
