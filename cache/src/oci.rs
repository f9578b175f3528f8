//! The words of the OCI image-spec that everything here speaks: descriptors, media types,
//! platforms and references.
//!
//! Manifests and configs that came from elsewhere are kept as the bytes they came as; these types
//! read them and write our own.

mod manifest;
mod platform;
mod reference;

pub use manifest::{Descriptor, Index, Manifest, MediaType};
pub use platform::{Platform, PlatformError};
pub use reference::{ImageRef, ReferenceError};
