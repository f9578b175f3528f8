//! `ENV name=value …` and `LABEL name=value …`, and their old form `ENV name value`.

use super::{Expander, expand_text};
use crate::diagnostic::{Diagnostic, Diagnostics, all, both};
use crate::quote::Quoted;
use crate::source::Text;
use crate::syntax::flag::Flags;
use crate::syntax::line::Slice;
use crate::syntax::{BareInstruction, word};

/// A name and its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pair {
    /// The name.
    pub name: Text,
    /// The value.
    pub value: Text,
    /// The old form without `=`.
    pub legacy: bool,
}

impl Pair {
    /// Reads the pairs of the instruction `keyword`, ENV or LABEL.
    pub(super) fn parse(bare: &BareInstruction, keyword: &str) -> Result<Vec<Self>, Diagnostics> {
        let pairs = Self::read(bare.arguments(), bare, keyword);
        let (pairs, _) = both(pairs, Flags::check(&bare.flags, &[]))?;
        if pairs.is_empty() {
            return Err(bare.error(format!("{keyword} requires at least one argument")).into());
        }
        all(pairs.into_iter().map(|pair| {
            if !pair.name.value.is_empty() {
                return Ok(pair);
            }
            let message = format!("{keyword} names can not be blank");
            Err(Diagnostic::error(message, pair.name.span.to(pair.value.span)))
        }))
    }

    /// The pairs that `arguments` are. Whether the first word has a `=` tells which form it is.
    pub(super) fn read(
        arguments: Slice<'_>,
        bare: &BareInstruction,
        keyword: &str,
    ) -> Result<Vec<Self>, Diagnostics> {
        let words = word::words(arguments, bare.escape);
        match words.first() {
            None => Ok(Vec::new()),
            Some(first) if !first.as_str().contains('=') => match arguments.split_blank() {
                (name, Some(value)) => {
                    Ok(vec![Self { name: name.text(), value: value.text(), legacy: true }])
                }
                (name, None) => {
                    let message = format!("{keyword} must have two arguments");
                    let wrong = Diagnostic::error(message, name.span());
                    Err(wrong.label("expected `name=value`").into())
                }
            },
            Some(_) => all(words.into_iter().map(Self::assignment)),
        }
    }

    fn assignment(word: Slice<'_>) -> Result<Self, Diagnostic> {
        let Some(at) = word.as_str().find('=') else {
            let message = format!(
                "Syntax error - can't find = in {}. Must be of the form: name=value",
                Quoted(word.as_str())
            );
            return Err(Diagnostic::error(message, word.span())
                .label("a value with blanks must be in quotes"));
        };
        let (name, value) = (word.slice(0..at).text(), word.tail(at + 1).text());
        Ok(Self { name, value, legacy: false })
    }

    pub(super) fn expand(&mut self, expander: &mut Expander<'_>) -> Result<(), Diagnostic> {
        expand_text(&mut self.name, expander)?;
        expand_text(&mut self.value, expander)
    }
}
