//! Layers: a folder in overlayfs form, and the tar it is sent as.

pub mod compress;
pub mod content;
pub mod entries;
pub mod tar_reader;
pub mod whiteout;
