//! Typed instructions: what each of the eighteen says, before variables are expanded.
//!
//! Every text carries its place, so that what is wrong with it can be pointed at. Follows
//! BuildKit's `frontend/dockerfile/instructions`.

mod add;
mod arg;
mod command_line;
mod copy;
mod env;
mod expose;
mod from;
mod healthcheck;
mod onbuild;
mod run;
mod shell;
mod text;
mod volume;

pub use add::Add;
pub use arg::{Arg, ArgDeclaration};
pub use command_line::CommandLine;
pub use copy::{Copy, InlineFile, Sources};
pub use env::Pair;
pub use from::{From, StageName};
pub use healthcheck::{Healthcheck, HealthcheckCommand};
pub use onbuild::Onbuild;
pub use run::{Mount, MountType, Run};

use crate::diagnostic::{Diagnostic, Diagnostics, did_you_mean};
use crate::source::Text;
use crate::syntax::line::Slice;
use crate::syntax::{BareInstruction, Origin, json};

/// An instruction, and where it came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Statement {
    /// What it says.
    pub instruction: Instruction,
    /// Where it was written, and how.
    pub origin: Origin,
}

/// What one instruction says. FROM is not here: it begins a [`crate::Stage`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Instruction {
    /// `ADD`
    Add(Add),
    /// `ARG`
    Arg(Arg),
    /// `CMD`
    Cmd(CommandLine),
    /// `COPY`
    Copy(Copy),
    /// `ENTRYPOINT`
    Entrypoint(CommandLine),
    /// `ENV`
    Env(Vec<Pair>),
    /// `EXPOSE`: ports as they were written, sorted; each may expand to several words.
    Expose(Vec<Text>),
    /// `HEALTHCHECK`
    Healthcheck(Healthcheck),
    /// `LABEL`
    Label(Vec<Pair>),
    /// `MAINTAINER`
    Maintainer(Text),
    /// `ONBUILD`
    Onbuild(Onbuild),
    /// `RUN`
    Run(Run),
    /// `SHELL`
    Shell(Vec<Text>),
    /// `STOPSIGNAL`
    StopSignal(Text),
    /// `USER`
    User(Text),
    /// `VOLUME`
    Volume(Vec<Text>),
    /// `WORKDIR`
    Workdir(Text),
}

/// What one bare instruction says.
pub(crate) enum Parsed {
    /// Another stage begins.
    From(From),
    /// Anything else.
    Instruction(Instruction),
}

/// Reads what `bare` says.
pub(crate) fn parse(bare: &BareInstruction) -> Result<Parsed, Diagnostics> {
    let keyword = bare.origin.keyword.value.to_lowercase();
    let instruction = match keyword.as_str() {
        "from" => return From::parse(bare).map(Parsed::From),
        "add" => Instruction::Add(Add::parse(bare)?),
        "arg" => Instruction::Arg(Arg::parse(bare)?),
        "cmd" => Instruction::Cmd(CommandLine::parse(bare)?),
        "copy" => Instruction::Copy(Copy::parse(bare)?),
        "entrypoint" => Instruction::Entrypoint(CommandLine::parse(bare)?),
        "env" => Instruction::Env(Pair::parse(bare, "ENV")?),
        "expose" => Instruction::Expose(expose::parse(bare)?),
        "healthcheck" => Instruction::Healthcheck(Healthcheck::parse(bare)?),
        "label" => Instruction::Label(Pair::parse(bare, "LABEL")?),
        "maintainer" => Instruction::Maintainer(text::parse(bare, "MAINTAINER")?),
        "onbuild" => Instruction::Onbuild(Onbuild::parse(bare)?),
        "run" => Instruction::Run(Run::parse(bare)?),
        "shell" => Instruction::Shell(shell::parse(bare)?),
        "stopsignal" => Instruction::StopSignal(text::parse_any_flags(bare, "STOPSIGNAL")?),
        "user" => Instruction::User(text::parse(bare, "USER")?),
        "volume" => Instruction::Volume(volume::parse(bare)?),
        "workdir" => Instruction::Workdir(text::parse(bare, "WORKDIR")?),
        _ => return Err(unknown(bare).into()),
    };
    Ok(Parsed::Instruction(instruction))
}

/// The keywords, as they are suggested for misspelt ones.
const KEYWORDS: [&str; 18] = [
    "ADD",
    "ARG",
    "CMD",
    "COPY",
    "ENTRYPOINT",
    "ENV",
    "EXPOSE",
    "FROM",
    "HEALTHCHECK",
    "LABEL",
    "MAINTAINER",
    "ONBUILD",
    "RUN",
    "SHELL",
    "STOPSIGNAL",
    "USER",
    "VOLUME",
    "WORKDIR",
];

/// The keyword that `keyword`, in upper case, is probably a misspelling of.
pub(crate) fn meant(keyword: &str) -> Option<&'static str> {
    did_you_mean(keyword, KEYWORDS)
}

fn unknown(bare: &BareInstruction) -> Diagnostic {
    let keyword = bare.origin.keyword.as_str();
    let diagnostic = bare.error(format!("unknown instruction: {keyword}"));
    match meant(&keyword.to_uppercase()) {
        Some(meant) if keyword == keyword.to_lowercase() => {
            diagnostic.label(format!("did you mean `{}`?", meant.to_lowercase()))
        }
        Some(meant) => diagnostic.label(format!("did you mean `{meant}`?")),
        None => diagnostic,
    }
}

/// What makes one word of a text: expands variables and removes quotes.
///
/// The caller knows the variables, and takes note of those that are not defined.
pub type Expander<'a> = dyn FnMut(&Text) -> Result<String, Diagnostic> + 'a;

impl Instruction {
    /// The instruction's name in upper case.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Add(_) => "ADD",
            Self::Arg(_) => "ARG",
            Self::Cmd(_) => "CMD",
            Self::Copy(_) => "COPY",
            Self::Entrypoint(_) => "ENTRYPOINT",
            Self::Env(_) => "ENV",
            Self::Expose(_) => "EXPOSE",
            Self::Healthcheck(_) => "HEALTHCHECK",
            Self::Label(_) => "LABEL",
            Self::Maintainer(_) => "MAINTAINER",
            Self::Onbuild(_) => "ONBUILD",
            Self::Run(_) => "RUN",
            Self::Shell(_) => "SHELL",
            Self::StopSignal(_) => "STOPSIGNAL",
            Self::User(_) => "USER",
            Self::Volume(_) => "VOLUME",
            Self::Workdir(_) => "WORKDIR",
        }
    }

    /// Expands, in place and in BuildKit's order, every text of this instruction in which
    /// variables have a meaning and of which one word comes.
    ///
    /// That is all of them for ENV, LABEL, USER, VOLUME, WORKDIR and STOPSIGNAL; sources,
    /// destination, `--chown`, `--chmod` (and `--checksum`) for COPY and ADD. Left alone are: ARG,
    /// whose default counts only where no value is given; EXPOSE, whose texts may become several
    /// words; the mounts of RUN, which [`Run::mounts`] expands; here-documents, which
    /// [`Self::expand_inline`] expands by other rules; and the rest, in which `$` means nothing.
    pub fn expand(&mut self, expander: &mut Expander<'_>) -> Result<(), Diagnostic> {
        match self {
            Self::Add(add) => add.expand(expander),
            Self::Copy(copy) => copy.expand(expander),
            Self::Env(pairs) | Self::Label(pairs) => {
                pairs.iter_mut().try_for_each(|pair| pair.expand(expander))
            }
            Self::StopSignal(text) | Self::User(text) | Self::Workdir(text) => {
                expand_text(text, expander)
            }
            Self::Volume(texts) => expand_texts(texts, expander),
            Self::Arg(_)
            | Self::Cmd(_)
            | Self::Entrypoint(_)
            | Self::Expose(_)
            | Self::Healthcheck(_)
            | Self::Maintainer(_)
            | Self::Onbuild(_)
            | Self::Run(_)
            | Self::Shell(_) => Ok(()),
        }
    }

    /// Expands the files that COPY and ADD hold as here-documents, where their name is unquoted.
    ///
    /// The expander must leave quotes as they are, and its escape is always a backslash
    /// ([`crate::expand::Lexer::for_heredocs`]).
    pub fn expand_inline(&mut self, expander: &mut Expander<'_>) -> Result<(), Diagnostic> {
        match self {
            Self::Add(Add { sources, .. }) | Self::Copy(Copy { sources, .. }) => {
                let files = sources.inline.iter_mut().filter(|file| file.expand);
                files.map(|file| &mut file.data).try_for_each(|data| expand_text(data, expander))
            }
            Self::Arg(_)
            | Self::Cmd(_)
            | Self::Entrypoint(_)
            | Self::Env(_)
            | Self::Expose(_)
            | Self::Healthcheck(_)
            | Self::Label(_)
            | Self::Maintainer(_)
            | Self::Onbuild(_)
            | Self::Run(_)
            | Self::Shell(_)
            | Self::StopSignal(_)
            | Self::User(_)
            | Self::Volume(_)
            | Self::Workdir(_) => Ok(()),
        }
    }
}

/// The words of `arguments`; none where there is no text.
fn words(arguments: Slice<'_>) -> Vec<Slice<'_>> {
    if arguments.is_empty() { Vec::new() } else { arguments.split_blanks() }
}

/// The members of the JSON array that `arguments` are, or else their words.
fn list(arguments: Slice<'_>) -> Result<Vec<Text>, Diagnostic> {
    Ok(match json::strings(arguments)? {
        Some(strings) => strings,
        None => words(arguments).into_iter().map(Slice::text).collect(),
    })
}

/// What the comment `# name description` says of `name`.
pub(crate) fn description(comments: &[Text], name: &str) -> Option<String> {
    let about =
        |comment: &Text| comment.as_str().strip_prefix(name)?.strip_prefix(' ').map(str::to_owned);
    comments.iter().find_map(about)
}

fn expand_text(text: &mut Text, expander: &mut Expander<'_>) -> Result<(), Diagnostic> {
    text.value = expander(text)?;
    Ok(())
}

fn expand_texts(texts: &mut [Text], expander: &mut Expander<'_>) -> Result<(), Diagnostic> {
    texts.iter_mut().try_for_each(|text| expand_text(text, expander))
}
