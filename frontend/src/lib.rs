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

pub use dockerfile::{Dockerfile, ParseError, Stage, parse, parse_trigger};
