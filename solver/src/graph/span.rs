//! Where in a Dockerfile something came from.

use super::SharedText;

/// A stretch of bytes in a source text, with the line for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    /// The file's name as it is shown: `Dockerfile`.
    pub file: SharedText,
    /// The offset of its first byte in the source.
    pub start: usize,
    /// The offset behind its last byte.
    pub end: usize,
    /// The line of its first byte, counted from 1.
    pub line: usize,
}
