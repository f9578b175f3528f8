//! Why a tree could not be slimmed.

use std::io;
use std::path::{Path, PathBuf};

use rbuild_cache::pattern::PatternError;
use rbuild_cache::snapshot::SnapshotError;
use rbuild_cache::view::ViewError;

/// Says why a tree could not be slimmed.
#[derive(Debug, thiserror::Error)]
pub enum SlimError {
    /// There is nothing to begin with.
    #[error("the image has neither ENTRYPOINT nor CMD: what it needs cannot be told")]
    NoCommand,
    /// The program is not in the image.
    #[error("the image runs `{name}`, which is no program in it")]
    MissingProgram {
        /// The first word of what it runs.
        name: String,
        /// The image's PATH.
        path: String,
    },
    /// The program is left out.
    #[error("`--slim-drop` leaves out `{}`, which the image runs", path.display())]
    DroppedProgram {
        /// The program, or what it cannot start without.
        path: PathBuf,
    },
    /// The program cannot be read.
    #[error("cannot say what the program `{}` needs: {reason}", path.display())]
    BrokenProgram {
        /// The program.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The full image does not pass its own probe.
    #[error("the probe fails on the full image already: {reason}")]
    ProbeFails {
        /// What it said.
        reason: String,
    },
    /// A pattern makes no sense.
    #[error(transparent)]
    Pattern(#[from] PatternError),
    /// The tree could not be read.
    #[error(transparent)]
    View(#[from] ViewError),
    /// The result could not be written.
    #[error("cannot write `{}`", path.display())]
    Io {
        /// The path in the tree.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The result could not be kept.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
}

impl SlimError {
    /// The system refused to write `path` of the tree.
    pub(super) fn io(path: &Path, source: io::Error) -> Self {
        Self::Io { path: Path::new("/").join(path), source }
    }

    /// What the user can do.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::NoCommand => Some("give the image an ENTRYPOINT or a CMD".into()),
            Self::MissingProgram { name, path } if !name.contains('/') && !path.is_empty() => {
                Some(format!("it was looked for in `{path}`"))
            }
            Self::ProbeFails { .. } => Some(
                "mend it, give it more time with `--slim-probe-timeout`, or slim without running \
                 anything: `--slim=closure`"
                    .into(),
            ),
            Self::DroppedProgram { .. } => Some("leave it out of `--slim-drop`".into()),
            Self::BrokenProgram { .. }
            | Self::MissingProgram { .. }
            | Self::Pattern(_)
            | Self::View(_)
            | Self::Io { .. }
            | Self::Snapshot(_) => None,
        }
    }
}
