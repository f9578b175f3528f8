//! What can be wrong with what was asked for, and what the user can do.

use crate::config::ConfigError;

/// Says what is wrong with what was asked for. All of it is wrong usage.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UsageError {
    /// A flag's value is no value for it.
    #[error("invalid value `{value}` for `{flag}`: {reason}")]
    Value {
        /// The flag.
        flag: &'static str,
        /// What was given.
        value: String,
        /// What is wrong with it.
        reason: String,
    },
    /// An environment variable's value is no value for it.
    #[error("invalid value `{value}` of the environment variable `{name}`: {reason}")]
    Variable {
        /// The variable.
        name: &'static str,
        /// What it holds.
        value: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Two flags exclude each other.
    #[error("`{one}` and `{other}` cannot be used together")]
    Conflict {
        /// The one.
        one: String,
        /// The other.
        other: String,
        /// What can be done.
        instead: String,
    },
    /// A flag about slim images where none is made.
    #[error("`{flag}` says something about slim images, and nothing is slimmed")]
    NeedsSlim {
        /// The flag.
        flag: &'static str,
    },
    /// A push of an image without a name.
    #[error("a name is needed to push the image")]
    NoName,
    /// A flag that rbuild is going to have.
    #[error("{0} is not there yet in this version of rbuild")]
    NotYet(String),
    /// A bill of materials.
    #[error("{0} asks for a scanner of images, and rbuild has none")]
    NoScanner(String),
    /// A flag of buildx that means nothing here.
    #[error("`{flag}` means nothing to rbuild: {reason}")]
    Meaningless {
        /// The flag.
        flag: &'static str,
        /// Why.
        reason: &'static str,
    },
    /// A file that a flag names cannot be used.
    #[error("cannot use {what}: {reason}")]
    File {
        /// What it is: a secret of some name.
        what: String,
        /// What is wrong with it.
        reason: String,
    },
    /// `config.toml` cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// No folder to keep the state in.
    #[error("there is no place for the state folder: neither HOME nor XDG_DATA_HOME is set")]
    NoStateFolder,
}

impl UsageError {
    /// A flag's value is no value for it.
    pub fn value(flag: &'static str, value: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Value { flag, value: value.into(), reason: reason.into() }
    }

    /// What the user can do.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Conflict { instead, .. } => Some(instead.clone()),
            Self::NoName => Some("give it one with `-t NAME`".into()),
            Self::NeedsSlim { .. } => Some("give `--slim` too".into()),
            Self::NoScanner(_) => Some(
                "scan what was built: `-o type=oci,dest=FILE.tar`, then \
                 `syft scan oci-archive:FILE.tar -o spdx-json`"
                    .into(),
            ),
            Self::NoStateFolder => Some("name one with `--root DIR` or RBUILD_ROOT".into()),
            Self::Value { .. }
            | Self::Variable { .. }
            | Self::NotYet(_)
            | Self::Meaningless { .. }
            | Self::File { .. }
            | Self::Config(_) => None,
        }
    }
}
