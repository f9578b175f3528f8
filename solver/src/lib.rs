//! The graph of a build and its execution.

pub mod error;
pub mod graph;
pub mod image_source;
pub mod progress;
pub mod sandbox;
