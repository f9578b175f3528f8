//! Bytes and trees, named by digest: everything rbuild keeps on disk.

pub mod digest;
pub mod oci;
pub mod pattern;
