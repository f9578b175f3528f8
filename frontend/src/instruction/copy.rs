//! `COPY [flags] source… destination`, and the sources that ADD shares.

use super::{Expander, expand_text, expand_texts};
use crate::diagnostic::Diagnostic;
use crate::source::Text;

/// Files copied from the context, a stage or an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Copy {
    /// What, and to where.
    pub sources: Sources,
    /// `--from`: a stage's name or number, an image, or a named context.
    pub from: Option<Text>,
    /// `--chown`
    pub chown: Option<Text>,
    /// `--chmod`
    pub chmod: Option<Text>,
    /// `--link`
    pub link: bool,
    /// `--parents`
    pub parents: bool,
    /// `--exclude`, in order; no variables are expanded in them.
    pub exclude: Vec<Text>,
}

/// What COPY and ADD copy, and to where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sources {
    /// Paths, wildcards included; for ADD also URLs.
    pub paths: Vec<Text>,
    /// Files that stand in the Dockerfile.
    pub inline: Vec<InlineFile>,
    /// To where.
    pub destination: Text,
}

/// A here-document that is a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InlineFile {
    /// The file's name: the word that ends the document.
    pub name: Text,
    /// Its content.
    pub data: Text,
    /// Variables in its content are expanded.
    pub expand: bool,
}

impl Copy {
    pub(super) fn expand(&mut self, expander: &mut Expander<'_>) -> Result<(), Diagnostic> {
        for flag in [&mut self.chown, &mut self.chmod].into_iter().flatten() {
            expand_text(flag, expander)?;
        }
        self.sources.expand(expander)
    }
}

impl Sources {
    pub(super) fn expand(&mut self, expander: &mut Expander<'_>) -> Result<(), Diagnostic> {
        expand_texts(&mut self.paths, expander)?;
        expand_text(&mut self.destination, expander)
    }
}
