//! `COPY [flags] source… destination`, and the sources that ADD shares.

use super::{Expander, expand_text, expand_texts, list};
use crate::diagnostic::{Diagnostic, Diagnostics, both};
use crate::source::Text;
use crate::syntax::flag::{Flags, Kind};
use crate::syntax::heredoc::without_leading_tabs;
use crate::syntax::{BareInstruction, Heredoc};

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
    pub(super) fn parse(bare: &BareInstruction) -> Result<Self, Diagnostics> {
        let paths =
            Sources::at_least_two(bare, "COPY").and_then(|paths| Sources::of(paths, bare, "COPY"));
        let flags = Flags::check(
            &bare.flags,
            &[
                ("chown", Kind::Single),
                ("from", Kind::Single),
                ("chmod", Kind::Single),
                ("link", Kind::Switch),
                ("exclude", Kind::Repeated),
                ("parents", Kind::Switch),
            ],
        );
        let (sources, flags) = both(paths, flags)?;
        Ok(Self {
            sources,
            from: flags.text("from"),
            chown: flags.text("chown"),
            chmod: flags.text("chmod"),
            link: flags.switch("link").unwrap_or(false),
            parents: flags.switch("parents").unwrap_or(false),
            exclude: flags.texts("exclude"),
        })
    }

    pub(super) fn expand(&mut self, expander: &mut Expander<'_>) -> Result<(), Diagnostic> {
        for flag in [&mut self.chown, &mut self.chmod].into_iter().flatten() {
            expand_text(flag, expander)?;
        }
        self.sources.expand(expander)
    }
}

impl Sources {
    /// The arguments of `bare`, of which there must be a source and a destination.
    pub(super) fn at_least_two(
        bare: &BareInstruction,
        keyword: &str,
    ) -> Result<Vec<Text>, Diagnostic> {
        let paths = list(bare.arguments())?;
        if paths.len() < 2 {
            return Err(bare.error(format!(
                "{keyword} requires at least two arguments, but only one was provided. Destination \
                 could not be determined"
            )));
        }
        Ok(paths)
    }

    /// Tells apart which of `paths` are here-documents of `bare`, which are paths, and which is the
    /// destination: the last.
    pub(super) fn of(
        mut paths: Vec<Text>,
        bare: &BareInstruction,
        keyword: &str,
    ) -> Result<Self, Diagnostic> {
        let destination = paths.pop().expect("there are at least two arguments");
        if is_heredoc(&destination) {
            let message = format!("{keyword} cannot accept a heredoc as a destination");
            return Err(Diagnostic::error(message, destination.span));
        }
        let mut sources = Self { paths: Vec::new(), inline: Vec::new(), destination };
        for path in paths {
            match Heredoc::parse(path.as_str(), path.span).ok().flatten() {
                Some(heredoc) => sources.inline.push(InlineFile::of(&heredoc, &bare.heredocs)),
                None => sources.paths.push(path),
            }
        }
        Ok(sources)
    }

    pub(super) fn expand(&mut self, expander: &mut Expander<'_>) -> Result<(), Diagnostic> {
        expand_texts(&mut self.paths, expander)?;
        expand_text(&mut self.destination, expander)
    }
}

impl InlineFile {
    /// The file that `named` becomes, with the content of the last one of that name in `heredocs`;
    /// it is empty where there is none, as in the JSON form.
    fn of(named: &Heredoc, heredocs: &[Heredoc]) -> Self {
        let found = heredocs.iter().rev().find(|heredoc| heredoc.name.value == named.name.value);
        let content = found.map_or(&named.content, |heredoc| &heredoc.content);
        let data = if named.strip_tabs {
            content.with(without_leading_tabs(content.as_str()))
        } else {
            content.clone()
        };
        Self { name: named.name.clone(), data, expand: named.expand }
    }
}

fn is_heredoc(word: &Text) -> bool {
    matches!(Heredoc::parse(word.as_str(), word.span), Ok(Some(_)))
}
