//! Variables in words: `$NAME`, `${NAME:-word}` and their like, quotes and escapes.
//!
//! Follows BuildKit's `frontend/dockerfile/shell/lex.go`.

use std::collections::BTreeSet;

/// Where variables get their values.
pub trait Env {
    /// The value of `name`.
    fn get(&self, name: &str) -> Option<&str>;
}

/// What became of a text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Expansion {
    /// The text with its variables expanded.
    pub result: String,
    /// Names of variables that were looked up and have a value.
    pub matched: BTreeSet<String>,
    /// Names of variables that were looked up and have none.
    pub unmatched: BTreeSet<String>,
}
