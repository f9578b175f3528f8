//! `ONBUILD instruction`: kept in the image, for builds that start from it.

/// An instruction for later builds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Onbuild {
    /// The instruction as the image config keeps it, here-documents included.
    pub expression: String,
}
