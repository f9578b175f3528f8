//! `FROM [--platform=…] image [AS name]`: where a stage begins.

use std::fmt;

use crate::source::Text;

/// What a stage is made from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct From {
    /// The image, or the stage, that it starts with.
    pub base: Text,
    /// The stage's name.
    pub name: Option<StageName>,
    /// `--platform`
    pub platform: Option<Text>,
    /// The word between image and name as it was written: `AS`, `as`.
    pub as_keyword: Option<Text>,
}

/// The name of a stage: begins with a letter, then letters, digits, `-`, `_` and `.`. Case does not
/// matter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StageName {
    /// In lower case, as stages are looked up.
    lower: String,
    /// As it was written.
    pub written: Text,
}

impl StageName {
    /// The name in lower case.
    pub fn as_str(&self) -> &str {
        &self.lower
    }
}

impl fmt::Display for StageName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.lower)
    }
}
