//! Layers: a folder in overlayfs form, and the tar it is sent as.

pub mod content;
pub mod entries;
pub mod whiteout;
