//! Text → bare instructions: directives, logical lines, here-documents, flags. What the words of
//! an instruction mean is `instruction.rs`'s.
//!
//! Follows BuildKit's `frontend/dockerfile/parser/parser.go`.

pub mod directive;
pub mod line;

use crate::source::{Span, Text};

/// Where an instruction came from, and how it was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// The whole instruction, continuations joined, without here-documents: what progress shows
    /// and what BuildKit calls its source code.
    pub text: String,
    /// Its first word as it was written: `COPY`, `Copy`.
    pub keyword: Text,
    /// From its first byte to its last, here-documents included.
    pub span: Span,
    /// The comment lines right above it, without `#` and white space.
    pub comments: Vec<Text>,
}

/// A here-document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Heredoc {
    /// The word that ends it, without quotes: also the name of the file it becomes.
    pub name: Text,
    /// The number before `<<`; 0 when there is none.
    pub descriptor: u64,
    /// `<<-`: leading tabs are to be removed. They are still in `content`.
    pub strip_tabs: bool,
    /// Variables in it are expanded: no part of its name is quoted.
    pub expand: bool,
    /// Its lines, each with its line break.
    pub content: Text,
}

impl Heredoc {
    /// The content as it is meant: for `<<-` without the tabs that lines begin with.
    pub fn text(&self) -> String {
        if !self.strip_tabs {
            return self.content.value.clone();
        }
        self.content.value.split_inclusive('\n').map(|line| line.trim_start_matches('\t')).collect()
    }
}
