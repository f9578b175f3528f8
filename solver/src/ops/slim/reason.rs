//! Why a file is kept: one link of the chain that leads from the program to it.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::files::FileId;

/// Why a file is kept, and for whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Reason {
    /// Why.
    pub(super) why: Why,
    /// The file that needs it; none for what the image itself asks for.
    pub(super) from: Option<FileId>,
}

/// Why a file is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Why {
    /// It is what a container runs.
    Program,
    /// It is what the health check runs.
    Healthcheck,
    /// The command names it.
    Argument,
    /// A variable of the environment names it.
    Variable(String),
    /// `--slim-keep` asks for it.
    Asked(String),
    /// No package of the distribution brought it.
    User,
    /// The path leads through this link.
    Link,
    /// It loads the program (`PT_INTERP`).
    Loader,
    /// A library that is linked.
    Library(String),
    /// A variant of a library for newer processors.
    LibraryVariant,
    /// A library whose name stands in the program, which can load libraries at run time.
    LoadedByName(String),
    /// Its path stands in the program.
    PathInProgram(String),
    /// It interprets the script (`#!`).
    Interpreter,
    /// A command of a shell script.
    Command(String),
    /// A part of a language's runtime that cannot do without.
    Runtime(String),
    /// A module that the application imports by name.
    Module(String),
    /// Converts character sets, for `iconv_open`.
    Charset,
    /// Describes a language and its characters, for `setlocale`.
    Locale,
    /// Looks up users or hosts.
    NameService,
    /// Certificates of authorities and the settings of TLS.
    Certificates,
    /// Describes a terminal.
    Terminal,
    /// Checks passwords and sessions.
    Authentication,
    /// Every image has it, unless `--slim-base` says otherwise.
    Base,
    /// The licence of a package of which files are kept.
    License,
    /// A run of the probe opened it.
    Opened,
    /// A run of the slim image looked for it and the full image has it.
    PutBack,
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Program => f.write_str("is the program"),
            Self::Healthcheck => f.write_str("is run by the health check"),
            Self::Argument => f.write_str("is named by the command"),
            Self::Variable(name) => write!(f, "is named by the variable {name}"),
            Self::Asked(pattern) => write!(f, "was asked for by `{pattern}`"),
            Self::User => f.write_str("is the application's own"),
            Self::Link => f.write_str("is a link on the way"),
            Self::Loader => f.write_str("loads the program"),
            Self::Library(name) => write!(f, "is linked as {name}"),
            Self::LibraryVariant => f.write_str("is a variant for newer processors"),
            Self::LoadedByName(name) => write!(f, "can be loaded as {name}"),
            Self::PathInProgram(path) => write!(f, "is named in it as {path}"),
            Self::Interpreter => f.write_str("interprets it"),
            Self::Command(word) => write!(f, "is run by it as {word}"),
            Self::Runtime(language) => write!(f, "is part of the runtime of {language}"),
            Self::Module(name) => write!(f, "is imported as {name}"),
            Self::Charset => f.write_str("converts character sets for it"),
            Self::Locale => f.write_str("describes the locale to it"),
            Self::NameService => f.write_str("looks up names for it"),
            Self::Certificates => f.write_str("lets it check certificates"),
            Self::Terminal => f.write_str("describes terminals to it"),
            Self::Authentication => f.write_str("authenticates for it"),
            Self::Base => f.write_str("is in every image"),
            Self::License => f.write_str("is the licence of its package"),
            Self::Opened => f.write_str("was opened in a run of the probe"),
            Self::PutBack => f.write_str("was looked for in a run of the slim image"),
        }
    }
}
