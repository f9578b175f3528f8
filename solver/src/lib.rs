//! The graph of a build and its execution.
//!
//! A frontend makes a [`graph::Graph`]: plain data, each vertex an op and the vertices it reads.
//! [`solve::solve`] makes the trees of its targets: every vertex has one task, which asks the cache
//! first and works only when nobody has its result. What the solver needs of the world it is given
//! through traits: [`sandbox::Sandbox`] runs commands, [`image_source::ImageSource`] fetches layers,
//! [`http_source::HttpSource`] fetches files, [`progress::Progress`] is told what happens.
//!
//! Nothing here knows what a Dockerfile is.

pub mod device;
pub mod error;
pub mod evidence;
pub mod graph;
pub mod http_source;
pub mod image_source;
mod jobs;
pub mod key;
pub mod mount;
pub mod ops;
pub mod progress;
pub mod remote_cache;
pub mod sandbox;
mod single_flight;
pub mod solve;
pub mod source_digest;
pub mod tree;

pub use jobs::{Gate, Jobs};
