//! `FROM [--platform=…] image [AS name]`: where a stage begins.

use std::fmt;

use crate::diagnostic::{Diagnostic, Diagnostics, both};
use crate::quote::Quoted;
use crate::source::Text;
use crate::syntax::BareInstruction;
use crate::syntax::flag::{Flags, Kind};
use crate::syntax::line::Slice;

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

impl From {
    pub(super) fn parse(bare: &BareInstruction) -> Result<Self, Diagnostics> {
        let words = super::words(bare.arguments());
        let (image, as_keyword, name) = match words.as_slice() {
            [image] => (image, None, None),
            [image, keyword, name] if keyword.as_str().eq_ignore_ascii_case("as") => {
                (image, Some(keyword.text()), Some(*name))
            }
            _ => return Err(bare.error("FROM requires either one or three arguments").into()),
        };
        let flags = Flags::check(&bare.flags, &[("platform", Kind::Single)]);
        let (name, flags) = both(name.map(StageName::parse).transpose(), flags)?;
        Ok(Self { base: image.text(), name, platform: flags.text("platform"), as_keyword })
    }
}

impl StageName {
    fn parse(word: Slice<'_>) -> Result<Self, Diagnostic> {
        let lower = word.as_str().to_lowercase();
        let valid = lower.starts_with(|c: char| c.is_ascii_lowercase())
            && lower.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.'));
        if !valid {
            let name = Quoted(word.as_str());
            let message = format!(
                "invalid name for build stage: {name}, name can't start with a number or contain \
                 symbols"
            );
            return Err(Diagnostic::error(message, word.span()));
        }
        Ok(Self { lower, written: word.text() })
    }

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
