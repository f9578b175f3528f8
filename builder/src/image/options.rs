//! How an image is written, as the attributes of an output say.

use rbuild_cache::layer::Compression;
use rbuild_cache::oci::ImageRef;

use super::AttestationPlace;
use crate::request::Annotation;

/// How an image is written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[allow(clippy::struct_excessive_bools, reason = "each is an attribute of its own")]
pub struct ImageOptions {
    /// How new layers are compressed.
    pub compression: Compression,
    /// Layers of base images are compressed so as well.
    pub force_compression: bool,
    /// Docker's media types instead of the OCI's.
    pub docker_types: bool,
    /// No file of a new layer is later than `SOURCE_DATE_EPOCH`.
    pub rewrite_timestamp: bool,
    /// Annotations.
    pub annotations: Vec<Annotation>,
    /// What `SOURCE_DATE_EPOCH` of the build is overridden with.
    pub epoch: Option<i64>,
    /// When layers of which that is not known were made, in seconds since the epoch.
    pub now: i64,
    /// What statements about the image call it.
    pub names: Vec<ImageRef>,
    /// Where they stand.
    pub attestations: AttestationPlace,
    /// Statements that are for images alone stand there too.
    pub inline_attestations: bool,
    /// The manifest of statements is one of an artifact, with the image as its subject, and not one
    /// of an image for no platform.
    pub oci_artifact: bool,
    /// Layers of base images that are to be had elsewhere only stay so.
    pub prefer_nondistributable: bool,
}

impl ImageOptions {
    /// After which time no file of a new layer may be, in a build with this `SOURCE_DATE_EPOCH`.
    pub(crate) fn latest(&self, epoch: Option<i64>) -> Option<i64> {
        self.epoch.or(epoch).filter(|_| self.rewrite_timestamp)
    }
}
