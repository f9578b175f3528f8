//! The Dockerfile language, compiled to rbuild's build graph: a pure function, no IO.

pub mod check;
pub mod diagnostic;
mod dockerfile;
pub mod expand;
pub mod git_address;
pub mod instruction;
pub mod quote;
pub mod source;
pub mod syntax;

pub use dockerfile::{Dockerfile, Stage};

/// What a Dockerfile says, as far as it could be understood, and what is wrong with it.
#[derive(Clone, Debug)]
pub struct Parsed {
    /// What was understood. Instructions with errors are left out.
    pub dockerfile: Dockerfile,
    /// What is wrong; empty, or errors. Build checks come later: see [`check`].
    pub diagnostics: diagnostic::Diagnostics,
}
