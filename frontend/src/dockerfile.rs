//! A parsed Dockerfile: arguments before the first FROM, then stages.

use crate::instruction::{From, Statement};
use crate::source::{Source, Span, Text};
use crate::syntax::Origin;

/// What a Dockerfile says.
#[derive(Clone, Debug)]
pub struct Dockerfile {
    /// Its text.
    pub source: Source,
    /// What `# check=` says, if it is there.
    pub check: Option<Text>,
    /// Where lines are empty that continue an instruction.
    pub empty_continuations: Vec<Span>,
    /// The escape character: backslash, or what `# escape=` says.
    pub escape: char,
    /// The ARGs before the first FROM.
    pub arguments: Vec<Statement>,
    /// The stages in order; at least one.
    pub stages: Vec<Stage>,
}

/// A FROM and what follows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stage {
    /// Where it begins.
    pub from: From,
    /// Where that was written, and how.
    pub origin: Origin,
    /// What the comment above it says: `# name description`.
    pub description: Option<String>,
    /// What follows.
    pub statements: Vec<Statement>,
}
