//! `ARG name[=default] …`.

use super::description;
use crate::diagnostic::{Diagnostic, Diagnostics, all};
use crate::source::Text;
use crate::syntax::line::Slice;
use crate::syntax::{BareInstruction, Origin, word};

/// Build arguments that are declared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Arg {
    /// In order.
    pub declarations: Vec<ArgDeclaration>,
}

/// One build argument.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ArgDeclaration {
    /// Its name.
    pub name: Text,
    /// Its default; absent is something else than empty.
    pub default: Option<Text>,
    /// What the comment above says of it: `# NAME description`.
    pub description: Option<String>,
}

impl Arg {
    /// Flags are neither known nor refused here, as in BuildKit.
    pub(super) fn parse(bare: &BareInstruction) -> Result<Self, Diagnostics> {
        let words = word::words(bare.arguments(), bare.escape);
        if words.is_empty() {
            return Err(bare.error("ARG requires at least one argument").into());
        }
        let read = |word: Slice<'_>| ArgDeclaration::read(word, &bare.origin);
        Ok(Self { declarations: all(words.into_iter().map(read))? })
    }
}

impl ArgDeclaration {
    fn read(word: Slice<'_>, origin: &Origin) -> Result<Self, Diagnostic> {
        let (name, default) = match word.as_str().find('=') {
            Some(0) => return Err(Diagnostic::error("ARG names can not be blank", word.span())),
            Some(at) => (word.slice(0..at), Some(word.tail(at + 1).text())),
            None => (word, None),
        };
        let description = description(&origin.comments, name.as_str());
        Ok(Self { name: name.text(), default, description })
    }
}
