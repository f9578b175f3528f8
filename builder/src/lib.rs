//! Builds container images from Dockerfiles.

pub mod cli;
pub mod request;
