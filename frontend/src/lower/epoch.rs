//! `SOURCE_DATE_EPOCH`: the time that history entries and new directories get.
//!
//! Its value is a number of seconds, or it names what the time is taken from: `context`, a named
//! context, or a stage that does nothing but fetch something. What was last changed when, only a
//! look at that source tells; [`epoch`] says at which one. Follows BuildKit's
//! `dockerfile2llb/epoch.go`.

use rbuild_solver::graph::{GitOp, HttpOp};

use super::environment::Environment;
use super::source::{file_name, git_op};
use super::{arguments, nowhere};
use crate::diagnostic::{Diagnostic, Diagnostics};
use crate::expand::{Env as _, Lexer};
use crate::git_address::GitAddress;
use crate::instruction::{Add, Instruction};
use crate::options::{BuildContext, BuildOptions, NamedContext, Resolved};
use crate::source::Span;
use crate::{Dockerfile, Stage};

const VARIABLE: &str = "SOURCE_DATE_EPOCH";

/// Where the epoch of a build comes from.
#[derive(Clone, Debug, PartialEq)]
pub enum EpochSource {
    /// There is none.
    None,
    /// It was given, in seconds.
    At(i64),
    /// It is the time of a commit.
    Git(GitOp),
    /// It is when a file was last changed; where the server does not say, when the newest file in
    /// it was, if it is a tar.
    Http(HttpOp),
}

/// Says where the epoch comes from. For the last two, the caller finds it out and puts it into
/// [`Resolved::epoch`] before [`crate::lower`].
///
/// # Errors
/// When it is neither a number nor the name of something that has a time.
pub fn epoch(dockerfile: &Dockerfile, options: &BuildOptions) -> Result<EpochSource, Diagnostics> {
    Ok(source(dockerfile, options)?)
}

/// The epoch, and options in whose build arguments it stands as a number.
pub(super) fn settled(
    dockerfile: &Dockerfile,
    options: &BuildOptions,
    resolved: &Resolved,
) -> Result<(Option<i64>, BuildOptions), Diagnostic> {
    let epoch = match source(dockerfile, options)? {
        EpochSource::None => None,
        EpochSource::At(seconds) => Some(seconds),
        EpochSource::Git(_) | EpochSource::Http(_) => resolved.epoch,
    };
    let mut options = options.clone();
    if options.build_args.contains_key(VARIABLE) {
        match epoch {
            Some(epoch) => options.build_args.insert(VARIABLE.into(), epoch.to_string()),
            None => options.build_args.remove(VARIABLE),
        };
    }
    Ok((epoch, options))
}

/// Puts the epoch in place of what the ARG before the first FROM says.
pub(super) fn settle_global(globals: &mut Environment, epoch: Option<i64>) {
    match epoch {
        _ if globals.get(VARIABLE).is_none() => {}
        Some(epoch) => globals.set(VARIABLE, &epoch.to_string()),
        None => globals.remove(VARIABLE),
    }
}

fn source(dockerfile: &Dockerfile, options: &BuildOptions) -> Result<EpochSource, Diagnostic> {
    let mut globals = arguments::globals(dockerfile, options)?;
    let given = options.build_arg(VARIABLE).or(globals.get(VARIABLE)).unwrap_or_default();
    let value = given.to_owned();
    globals.remove(VARIABLE);
    if value.is_empty() {
        return Ok(EpochSource::None);
    }
    if let Ok(seconds) = value.parse() {
        return Ok(EpochSource::At(seconds));
    }
    if value == "context" {
        return Ok(match &options.context {
            BuildContext::Folder { .. } | BuildContext::Tar => EpochSource::None,
            BuildContext::Git(address) => EpochSource::Git(git_op(address)),
            BuildContext::Archive(url) => EpochSource::Http(file("context", url)),
        });
    }
    if let Some((_, context)) = options.named_context(&value, options.target_platform()) {
        return Ok(match context {
            NamedContext::Git(address) => EpochSource::Git(git_op(address)),
            NamedContext::Http(url) => EpochSource::Http(file("context", url)),
            NamedContext::Folder { .. }
            | NamedContext::Scratch
            | NamedContext::Image(_)
            | NamedContext::OciLayout
            | NamedContext::Built { .. } => EpochSource::None,
        });
    }
    let is_named = |stage: &&Stage| {
        stage.from.name.as_ref().is_some_and(|name| name.as_str().eq_ignore_ascii_case(&value))
    };
    if let Some(stage) = dockerfile.stages.iter().find(is_named) {
        return stage_source(dockerfile, options, stage, globals);
    }
    let mut diagnostic = nowhere(format!("invalid {VARIABLE}: {value}"));
    if options.build_arg(VARIABLE).is_none() {
        let declared = arguments::declarations(dockerfile)
            .find(|(declaration, _)| declaration.name.as_str() == VARIABLE);
        diagnostic.span = declared.map(|(_, span)| span);
    }
    Err(diagnostic)
}

fn file(name: &str, url: &str) -> HttpOp {
    HttpOp { url: url.to_owned(), filename: name.to_owned(), checksum: None }
}

/// What a stage fetches that does nothing else.
fn stage_source(
    dockerfile: &Dockerfile,
    options: &BuildOptions,
    stage: &Stage,
    mut env: Environment,
) -> Result<EpochSource, Diagnostic> {
    let refuse = |message: &str, span: Span| Err(Diagnostic::error(message, span));
    let lexer = Lexer::new(dockerfile.escape);
    if lexer.expand_text(&stage.from.base, &env)?.result != "scratch" {
        let message = "SOURCE_DATE_EPOCH stage must use FROM scratch";
        return refuse(message, stage.from.base.span);
    }
    let one = "SOURCE_DATE_EPOCH stage must contain exactly one remote ADD";
    let mut found = None;
    for statement in &stage.statements {
        let span = statement.origin.span;
        match &statement.instruction {
            Instruction::Arg(arg) => {
                for declaration in &arg.declarations {
                    let name = declaration.name.as_str();
                    match (options.build_arg(name), &declaration.default) {
                        (Some(value), _) => env.set(name, value),
                        (None, Some(default)) => {
                            let value = lexer.expand_text(default, &env)?.result;
                            env.set(name, &value);
                        }
                        (None, None) => {}
                    }
                }
            }
            Instruction::Add(_) if found.is_some() => return refuse(one, span),
            Instruction::Add(add) => found = Some(add_source(add, lexer, &env, span)?),
            other => {
                let keyword = other.name();
                let message = format!(
                    "SOURCE_DATE_EPOCH stage does not meet source-only requirements: unsupported \
                     {keyword} instruction"
                );
                return refuse(&message, span);
            }
        }
    }
    found.ok_or_else(|| Diagnostic::error(one, stage.origin.span))
}

fn add_source(
    add: &Add,
    lexer: Lexer,
    env: &Environment,
    span: Span,
) -> Result<EpochSource, Diagnostic> {
    let ([source], []) = (add.sources.paths.as_slice(), add.sources.inline.as_slice()) else {
        let message = "SOURCE_DATE_EPOCH stage must contain exactly one remote ADD source";
        return Err(Diagnostic::error(message, span));
    };
    let source = source.with(lexer.expand_text(source, env)?.result);
    let checksum = match &add.checksum {
        Some(checksum) => Some(checksum.with(lexer.expand_text(checksum, env)?.result)),
        None => None,
    };
    if let Some(address) = GitAddress::parse(&source.value) {
        let wrong = |error: crate::git_address::GitAddressError| {
            Diagnostic::error(error.to_string(), source.span)
        };
        let mut op = git_op(&address.map_err(wrong)?);
        op.keep_git_dir |= add.keep_git_dir.unwrap_or(false);
        op.checksum = checksum.map(|checksum| checksum.value).or(op.checksum);
        return Ok(EpochSource::Git(op));
    }
    if !super::copy::is_http(&source.value) {
        let message = "SOURCE_DATE_EPOCH stage source must be a single HTTP(S) or Git ADD";
        return Err(Diagnostic::error(message, source.span));
    }
    let mut op = file(&file_name(&source.value), &source.value);
    op.checksum = checksum.as_ref().map(super::copy::digest).transpose()?;
    Ok(EpochSource::Http(op))
}
