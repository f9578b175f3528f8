//! `ONBUILD instruction`: kept in the image, for builds that start from it.

use super::{Pair, list};
use crate::diagnostic::{Diagnostic, Diagnostics};
use crate::syntax::flag::Flags;
use crate::syntax::{BareInstruction, Parts, json};

/// An instruction for later builds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Onbuild {
    /// The instruction as the image config keeps it, here-documents included.
    pub expression: String,
}

impl Onbuild {
    pub(super) fn parse(bare: &BareInstruction) -> Result<Self, Diagnostics> {
        let trigger = bare.arguments();
        if trigger.is_empty() {
            return Err(bare.error("ONBUILD requires at least one argument").into());
        }
        let inner = Parts::of(trigger, bare.escape);
        let keyword = inner.keyword.as_str().to_uppercase();
        match keyword.as_str() {
            "ONBUILD" => {
                let message = "Chaining ONBUILD via `ONBUILD ONBUILD` isn't allowed";
                return Err(Diagnostic::error(message, inner.keyword.span()).into());
            }
            "MAINTAINER" | "FROM" => {
                let message = format!("{keyword} isn't allowed as an ONBUILD trigger");
                return Err(Diagnostic::error(message, inner.keyword.span()).into());
            }
            _ => check_form(&keyword, &inner, bare)?,
        }
        Flags::check(&bare.flags, &[])?;
        Ok(Self { expression: expression(bare) })
    }
}

/// Refuses a trigger whose arguments cannot be taken apart. Everything else is found out by those
/// who build from the image, as in BuildKit.
fn check_form(keyword: &str, inner: &Parts<'_>, bare: &BareInstruction) -> Result<(), Diagnostics> {
    match keyword {
        "ENV" | "LABEL" => Pair::read(inner.arguments, bare, keyword).map(drop),
        "ADD" | "COPY" | "VOLUME" => Ok(list(inner.arguments).map(drop)?),
        "CMD" | "ENTRYPOINT" | "RUN" | "SHELL" => Ok(json::strings(inner.arguments).map(drop)?),
        "HEALTHCHECK" => {
            let (_, command) = inner.arguments.split_blank();
            Ok(command.map_or(Ok(()), |command| json::strings(command).map(drop))?)
        }
        _ => Ok(()),
    }
}

/// The trigger's line as it was written, with its here-documents behind it.
fn expression(bare: &BareInstruction) -> String {
    let line = bare.line().as_str();
    let keyword = bare.origin.keyword.value.len();
    let mut expression = line.trim_start()[keyword..].trim_start().to_owned();
    for heredoc in &bare.heredocs {
        expression.push('\n');
        expression.push_str(heredoc.content.as_str());
        expression.push_str(heredoc.name.as_str());
    }
    expression
}
