//! Flags of instructions: `--name`, `--name=value`.
//!
//! Follows BuildKit's `parser/split_command.go` and `instructions/bflag.go`.

use super::line::Slice;
use std::collections::HashSet;

use crate::diagnostic::{Diagnostic, Diagnostics, all, did_you_mean};
use crate::source::{Span, Text};

/// A flag as it was written, without quotes and escapes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flag {
    /// Its name with the dashes: `--from`.
    pub name: Text,
    /// What stands behind the `=`, if there is one.
    pub value: Option<Text>,
}

impl Flag {
    fn new(word: &str, written: Slice<'_>) -> Self {
        let span = written.span();
        let (name, value) = match word.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (word, None),
        };
        // Quotes before the `=` move it; then both halves stand where the whole does.
        let plain = written.as_str().starts_with(name);
        let name_span = if plain { written.slice(0..name.len()).span() } else { span };
        let value_span = match value {
            Some(_) if plain => written.tail(name.len() + 1).span(),
            Some(_) | None => span,
        };
        Self {
            name: Text::new(name.to_owned(), name_span),
            value: value.map(|value| Text::new(value.to_owned(), value_span)),
        }
    }

    /// Checks it against the names and kinds in `known`; `again` if one of its name was before.
    fn check(&self, again: bool, known: &[(&str, Kind)]) -> Result<(), Diagnostic> {
        let name = self.name.as_str();
        let wrong = |message: String| Err(Diagnostic::error(message, self.name.span));
        let bare = name.strip_prefix("--").unwrap_or(name);
        let Some((_, kind)) = known.iter().find(|(known, _)| *known == bare) else {
            return Err(unknown(self, bare, known));
        };
        if again && *kind != Kind::Repeated {
            return wrong(format!("duplicate flag specified: {name}"));
        }
        match (kind, self.value.as_ref().map(Text::as_str)) {
            (Kind::Switch, Some("")) | (Kind::Single | Kind::Repeated, None) => {
                wrong(format!("missing a value on flag: {name}"))
            }
            (Kind::Switch, Some(text)) if switch(text).is_none() => {
                let message = format!("expecting boolean value for flag {name}, not: {text}");
                Err(Diagnostic::error(message, self.span()))
            }
            _ => Ok(()),
        }
    }

    /// From its first byte to its last.
    pub fn span(&self) -> Span {
        self.value.as_ref().map_or(self.name.span, |value| self.name.span.to(value.span))
    }
}

/// The words that `line` begins with and that begin with `--`, and what follows them.
///
/// Quotes and escapes are removed from flags. A lone `--` ends them.
pub fn split(line: Slice<'_>, escape: char) -> (Vec<Flag>, Slice<'_>) {
    let mut flags = Vec::new();
    let mut rest = line;
    loop {
        let text = rest.as_str();
        let word = rest.tail(text.len() - text.trim_start().len());
        if !word.as_str().starts_with("--") {
            // White space at the end of the line is nobody's word.
            return (flags, word);
        }
        let (unquoted, length) = unquote(word.as_str(), escape);
        rest = word.tail(length);
        if unquoted == "--" {
            return (flags, rest);
        }
        flags.push(Flag::new(&unquoted, word.slice(0..length)));
    }
}

/// The first word of `text` without quotes and escapes, and how many bytes of `text` it takes.
fn unquote(text: &str, escape: char) -> (String, usize) {
    let mut word = String::new();
    let mut quote = None;
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match quote {
            None if c.is_whitespace() => return (word, at),
            None if c == '\'' || c == '"' => quote = Some(c),
            Some(open) if c == open => quote = None,
            // An escape character at the very end is dropped.
            _ if c == escape => word.extend(chars.next().map(|(_, escaped)| escaped)),
            _ => word.push(c),
        }
    }
    (word, text.len())
}

/// What kind of value a flag has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// None, `true` or `false`.
    Switch,
    /// One, given at most once.
    Single,
    /// One, given any number of times.
    Repeated,
}

/// The flags of one instruction, checked against those it knows.
#[derive(Clone, Debug)]
pub struct Flags<'a> {
    given: &'a [Flag],
}

impl<'a> Flags<'a> {
    /// Checks `given` against the names (without dashes) and kinds in `known`.
    ///
    /// # Errors
    /// What is wrong with each of them.
    pub fn check(given: &'a [Flag], known: &[(&str, Kind)]) -> Result<Self, Diagnostics> {
        let mut seen = HashSet::new();
        all(given.iter().map(|flag| {
            let again = !seen.insert(flag.name.as_str());
            flag.check(again, known)
        }))?;
        Ok(Self { given })
    }

    /// The value of a single flag, if it is given.
    pub fn single(&self, name: &str) -> Option<&'a Text> {
        self.all(name).next()
    }

    /// The value of a single flag, if it is given and not empty.
    pub fn text(&self, name: &str) -> Option<Text> {
        self.single(name).filter(|value| !value.value.is_empty()).cloned()
    }

    /// The values of a repeated flag.
    pub fn texts(&self, name: &str) -> Vec<Text> {
        self.all(name).cloned().collect()
    }

    /// What a switch is set to, if it is given.
    pub fn switch(&self, name: &str) -> Option<bool> {
        self.named(name).next().and_then(|flag| match &flag.value {
            None => Some(true),
            Some(value) => switch(value.as_str()),
        })
    }

    fn all(&self, name: &str) -> impl Iterator<Item = &'a Text> {
        self.named(name).filter_map(|flag| flag.value.as_ref())
    }

    fn named(&self, name: &str) -> impl Iterator<Item = &'a Flag> {
        self.given.iter().filter(move |flag| flag.name.value.strip_prefix("--") == Some(name))
    }
}

fn switch(text: &str) -> Option<bool> {
    match text.to_lowercase().as_str() {
        "true" => Some(true),
        "false" => Some(false),
        _ => None,
    }
}

fn unknown(flag: &Flag, bare: &str, known: &[(&str, Kind)]) -> Diagnostic {
    let name = flag.name.as_str();
    let diagnostic = Diagnostic::error(format!("unknown flag: {name}"), flag.name.span);
    let names = known.iter().map(|(name, _)| *name);
    let lower = bare.to_lowercase();
    match did_you_mean(bare, names.clone()).or_else(|| names.clone().find(|name| *name == lower)) {
        Some(meant) => diagnostic.label(format!("did you mean `--{meant}`?")),
        None if known.is_empty() => diagnostic.label("this instruction has no flags"),
        None => {
            let names: Vec<String> = names.map(|name| format!("`--{name}`")).collect();
            diagnostic.hint(format!("the flags here are {}", names.join(", ")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::syntax::line::Line;

    #[test]
    fn flags_end_where_a_word_has_no_dashes() {
        let check = |text: &str, flags: &[(&str, Option<&str>)], arguments: &str| {
            let line = Line::new(text, 0);
            let (found, rest) = split(line.as_slice(), '\\');
            let found: Vec<_> = found
                .iter()
                .map(|flag| (flag.name.as_str(), flag.value.as_ref().map(Text::as_str)))
                .collect();
            assert_eq!((found.as_slice(), rest.as_str().trim()), (flags, arguments), "{text}");
        };
        check("--a --b=c d --e", &[("--a", None), ("--b", Some("c"))], "d --e");
        check("--a='b c'\" d\" e", &[("--a", Some("b c d"))], "e");
        check("--a=b\\ c d", &[("--a", Some("b c"))], "d");
        check("--a -- --b", &[("--a", None)], "--b");
        check("--a=b=c", &[("--a", Some("b=c"))], "");
        check("--a\\", &[("--a", None)], "");
        check("--", &[], "");
        check("-a b", &[], "-a b");
        check("", &[], "");
    }

    #[test]
    fn names_and_values_stand_where_they_were_written() {
        let text = "--from=a b";
        let line = Line::new(text, 10);
        let (flags, _) = split(line.as_slice(), '\\');
        assert_eq!(flags[0].name.span, Span::new(10, 16));
        assert_eq!(flags[0].value.as_ref().unwrap().span, Span::new(17, 18));
        assert_eq!(flags[0].span(), Span::new(10, 18));
    }

    #[test]
    fn wrong_flags_are_refused() {
        let check = |text: &str, expected: &str| {
            let line = Line::new(text, 0);
            let (flags, _) = split(line.as_slice(), '\\');
            let known =
                [("link", Kind::Switch), ("from", Kind::Single), ("exclude", Kind::Repeated)];
            let error = Flags::check(&flags, &known).map(|_| ()).unwrap_err();
            let messages: Vec<&str> =
                error.0.iter().map(|diagnostic| diagnostic.message.as_str()).collect();
            assert_eq!(messages.join(" "), expected, "{text}");
        };
        check(
            "--form=a --from --a",
            "unknown flag: --form missing a value on flag: --from unknown flag: --a",
        );
        check("--form=a", "unknown flag: --form");
        check("--from", "missing a value on flag: --from");
        check("--link=", "missing a value on flag: --link");
        check("--link=1", "expecting boolean value for flag --link, not: 1");
        check("--link --link", "duplicate flag specified: --link");
        check("--exclude=a --exclude", "missing a value on flag: --exclude");
    }
}
