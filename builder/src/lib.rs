//! Builds container images from Dockerfiles.

pub mod cli;
pub mod error;
pub mod progress;
pub mod request;
