//! Builds container images from Dockerfiles.

pub mod cli;
pub mod error;
pub mod progress;
pub mod image_document;
pub mod image_source;
pub mod oci_layout;
pub mod registry;
pub mod request;
