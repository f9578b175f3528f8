//! The Dockerfile language, compiled to rbuild's build graph: a pure function, no IO.

pub mod diagnostic;
mod dockerfile;
pub mod expand;
pub mod git_address;
pub mod instruction;
pub mod source;
pub mod syntax;

pub use dockerfile::{Dockerfile, Stage};
