//! Builds container images from Dockerfiles.
fn main() {}
