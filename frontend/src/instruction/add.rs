//! `ADD [flags] source… destination`: COPY that also fetches URLs and unpacks archives.

use super::{Expander, Sources, expand_text};
use crate::diagnostic::{Diagnostic, Diagnostics, both};
use crate::source::Text;
use crate::syntax::BareInstruction;
use crate::syntax::flag::{Flags, Kind};

/// Files copied from the context, fetched, or unpacked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Add {
    /// What, and to where.
    pub sources: Sources,
    /// `--chown`
    pub chown: Option<Text>,
    /// `--chmod`
    pub chmod: Option<Text>,
    /// `--link`
    pub link: bool,
    /// `--checksum`
    pub checksum: Option<Text>,
    /// `--keep-git-dir`; its default hangs on the source.
    pub keep_git_dir: Option<bool>,
    /// `--unpack`; its default hangs on the source.
    pub unpack: Option<bool>,
    /// `--exclude`, in order; no variables are expanded in them.
    pub exclude: Vec<Text>,
}

impl Add {
    pub(super) fn parse(bare: &BareInstruction) -> Result<Self, Diagnostics> {
        let paths =
            Sources::at_least_two(bare, "ADD").and_then(|paths| Sources::of(paths, bare, "ADD"));
        let flags = Flags::check(
            &bare.flags,
            &[
                ("chown", Kind::Single),
                ("chmod", Kind::Single),
                ("link", Kind::Switch),
                ("keep-git-dir", Kind::Switch),
                ("checksum", Kind::Single),
                ("unpack", Kind::Switch),
                ("exclude", Kind::Repeated),
            ],
        );
        let (sources, flags) = both(paths, flags)?;
        Ok(Self {
            sources,
            chown: flags.text("chown"),
            chmod: flags.text("chmod"),
            link: flags.switch("link").unwrap_or(false),
            checksum: flags.text("checksum"),
            keep_git_dir: flags.switch("keep-git-dir"),
            unpack: flags.switch("unpack"),
            exclude: flags.texts("exclude"),
        })
    }

    pub(super) fn expand(&mut self, expander: &mut Expander<'_>) -> Result<(), Diagnostic> {
        for flag in [&mut self.chown, &mut self.chmod, &mut self.checksum].into_iter().flatten() {
            expand_text(flag, expander)?;
        }
        self.sources.expand(expander)
    }
}
