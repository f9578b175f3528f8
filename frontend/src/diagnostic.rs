//! What is wrong with a Dockerfile, and how it is drawn.
//!
//! A [`Diagnostic`] is data: severity, message, place, advice. [`Diagnostic::render`] draws it
//! without colours; a terminal adds those. A parse collects [`Diagnostics`] and goes on, so that
//! several mistakes are shown at once.

use std::fmt::{self, Write as _};

use unicode_width::UnicodeWidthChar as _;

use crate::source::{Source, Span};

/// How much a [`Diagnostic`] matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Something that is probably not meant; the build goes on.
    Warning,
    /// Nothing can be built.
    Error,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Warning => "warning",
            Self::Error => "error",
        })
    }
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Diagnostic {
    /// How much it matters.
    pub severity: Severity,
    /// What is wrong, in BuildKit's words where BuildKit has some.
    pub message: String,
    /// Where, if at one place.
    pub span: Option<Span>,
    /// What is said behind the carets: ``did you mean `--from`?``
    pub label: Option<String>,
    /// What the user can do, below the drawing.
    pub hints: Vec<String>,
}

impl Diagnostic {
    /// An error at `span`.
    pub fn error(message: impl Into<String>, span: Span) -> Self {
        Self {
            severity: Severity::Error,
            message: message.into(),
            span: Some(span),
            label: None,
            hints: Vec::new(),
        }
    }

    /// A warning at `span`.
    pub fn warning(message: impl Into<String>, span: Span) -> Self {
        Self { severity: Severity::Warning, ..Self::error(message, span) }
    }

    /// Says `label` behind the carets.
    #[must_use]
    pub fn label(mut self, label: impl Into<String>) -> Self {
        self.label = Some(label.into());
        self
    }

    /// Adds what the user can do.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hints.push(hint.into());
        self
    }

    /// The drawing: message, place, the line with carets below it, hints; without a last line
    /// break.
    pub fn render(&self, source: &Source) -> String {
        let mut out = format!("{}: {}", self.severity, self.message);
        if let Some(span) = self.span {
            draw_line(&mut out, source, span, self.label.as_deref());
        }
        for hint in &self.hints {
            let _ = write!(out, "\n  = hint: {hint}");
        }
        out
    }
}

/// How many characters of a line are shown before the one that matters, and in all.
const BEFORE: usize = 60;
const SHOWN: usize = 160;

fn draw_line(out: &mut String, source: &Source, span: Span, label: Option<&str>) {
    let at = source.position(span.start);
    let line = source.line_span(at.line).map_or("", |line| source.slice(line));
    let skipped = if at.column > SHOWN { at.column - BEFORE } else { 0 };
    let shown: String = line.chars().skip(skipped).take(SHOWN).map(as_shown).collect();
    let gutter = at.line.to_string();
    // Counted in what a terminal shows: one character may be two columns wide, or none.
    let mut columns = shown.chars().map(|c| c.width().unwrap_or(0));
    let indent = " ".repeat(columns.by_ref().take(at.column - 1 - skipped).sum());
    let in_span = source.slice(span).lines().next().map_or(0, |text| text.chars().count());
    let carets = "^".repeat(columns.take(in_span).sum::<usize>().max(1));
    let blank = " ".repeat(gutter.len());
    // Writing to a string cannot fail.
    let _ = write!(out, "\n{blank}--> {}:{}:{}", source.name(), at.line, at.column);
    let _ = write!(out, "\n{gutter} | {shown}");
    let _ = write!(out, "\n{blank} | {indent}{carets}");
    if let Some(label) = label {
        let _ = write!(out, " {label}");
    }
}

/// Tabs are one column wide, and control characters do nothing to the terminal.
fn as_shown(c: char) -> char {
    match c {
        '\t' => ' ',
        c if c.is_control() => '\u{fffd}',
        c => c,
    }
}

/// All that is wrong, in the order in which it was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Diagnostics(pub Vec<Diagnostic>);

impl From<Diagnostic> for Diagnostics {
    fn from(diagnostic: Diagnostic) -> Self {
        Self(vec![diagnostic])
    }
}

/// Both values, or all that is wrong with either.
pub(crate) fn both<A, B>(
    one: Result<A, impl Into<Diagnostics>>,
    other: Result<B, impl Into<Diagnostics>>,
) -> Result<(A, B), Diagnostics> {
    let mut wrong = Diagnostics::default();
    let (one, other) = (wrong.keep(one), wrong.keep(other));
    wrong.unless_wrong(one.zip(other))
}

/// All values, or all that is wrong with any.
pub(crate) fn all<T>(
    results: impl IntoIterator<Item = Result<T, Diagnostic>>,
) -> Result<Vec<T>, Diagnostics> {
    let mut wrong = Diagnostics::default();
    let values = results.into_iter().filter_map(|result| wrong.keep(result)).collect();
    wrong.unless_wrong(Some(values))
}

impl Diagnostics {
    /// Adds one.
    pub fn push(&mut self, diagnostic: Diagnostic) {
        self.0.push(diagnostic);
    }

    /// The value of `result`, or `None` and its errors added.
    pub fn keep<T>(&mut self, result: Result<T, impl Into<Self>>) -> Option<T> {
        result.map_err(|wrong| self.0.extend(wrong.into().0)).ok()
    }

    /// `value`, unless something is wrong.
    pub(crate) fn unless_wrong<T>(self, value: Option<T>) -> Result<T, Self> {
        match value {
            Some(value) if !self.has_errors() => Ok(value),
            Some(_) | None => Err(self),
        }
    }

    /// Whether nothing can be built.
    pub fn has_errors(&self) -> bool {
        self.0.iter().any(|diagnostic| diagnostic.severity == Severity::Error)
    }

    /// All drawings, in the order of their places, an empty line between two.
    pub fn render(&self, source: &Source) -> String {
        let mut sorted: Vec<&Diagnostic> = self.0.iter().collect();
        sorted.sort_by_key(|diagnostic| diagnostic.span.map(|span| span.start));
        let drawn: Vec<String> =
            sorted.into_iter().map(|diagnostic| diagnostic.render(source)).collect();
        drawn.join("\n\n")
    }
}

/// The one of `options` that `word` is probably a misspelling of: at most two letters are off.
///
/// The same choice as BuildKit's `util/suggest`; an exact match is no misspelling.
pub fn did_you_mean<'a>(word: &str, options: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    const TOO_FAR: usize = 3;
    /// Nobody has as many names but who wants to keep us busy.
    const MOST: usize = 300;
    let mut best = None;
    for option in options.into_iter().take(MOST) {
        let distance = edit_distance(word, option, TOO_FAR);
        if distance == 0 {
            return None;
        }
        if distance < best.map_or(TOO_FAR, |(distance, _)| distance) {
            best = Some((distance, option));
        }
    }
    best.map(|(_, option)| option).filter(|option| !option.is_empty())
}

/// Words that differ from their first to their last letter, and are so long, are no misspellings.
const MOST_LETTERS: usize = 64;

/// `a` and `b` without what both begin with and both end with.
fn without_common_ends<'a>(a: &'a str, b: &'a str) -> (&'a str, &'a str) {
    let pairs = a.chars().zip(b.chars());
    let front: usize = pairs.take_while(|(x, y)| x == y).map(|(x, _)| x.len_utf8()).sum();
    let (a, b) = (&a[front..], &b[front..]);
    let pairs = a.chars().rev().zip(b.chars().rev());
    let back: usize = pairs.take_while(|(x, y)| x == y).map(|(x, _)| x.len_utf8()).sum();
    (&a[..a.len() - back], &b[..b.len() - back])
}

/// How many letters must be added, removed or replaced to make `b` of `a`; `limit` if more.
fn edit_distance(a: &str, b: &str, limit: usize) -> usize {
    // More bytes are more characters, or wider ones, of which each is another one.
    if a.len().abs_diff(b.len()) >= 4 * limit {
        return limit;
    }
    let (a, b) = without_common_ends(a, b);
    let a: Vec<char> = a.chars().collect();
    let b: Vec<char> = b.chars().collect();
    if a.len().abs_diff(b.len()) >= limit || a.len().min(b.len()) > MOST_LETTERS {
        return limit;
    }
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.iter().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, to) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(from != to);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()].min(limit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_the_line_and_carets_below_what_is_wrong() {
        let source = Source::new("Dockerfile", "FROM a\n\n\nCOPY --form=build /out /out\n");
        let start = source.text().find("--form").unwrap();
        let drawn = Diagnostic::error("unknown flag: --form", Span::new(start, start + 6))
            .label("did you mean `--from`?")
            .hint("see the reference")
            .render(&source);
        assert_eq!(
            drawn,
            "error: unknown flag: --form\n --> Dockerfile:4:6\n\
             4 | COPY --form=build /out /out\n  |      ^^^^^^ did you mean `--from`?\n  = hint: see the reference"
        );
    }

    #[test]
    fn carets_stand_below_wide_characters_and_tabs() {
        let check = |line: &str, wrong: &str, expected: &str| {
            let source = Source::new("Dockerfile", line);
            let start = line.find(wrong).unwrap();
            let drawn = Diagnostic::error("no", Span::new(start, start + wrong.len()));
            let drawn = drawn.render(&source);
            let drawing = drawn.split_once("\n1 | ").unwrap().1;
            assert_eq!(drawing, expected, "{line}");
        };
        check("COPY\t\ta b", "a", "COPY  a b\n  |       ^");
        check("LABEL 漢字=1 x=$", "x=$", "LABEL 漢字=1 x=$\n  |              ^^^");
        check("LABEL 漢字=1", "漢字", "LABEL 漢字=1\n  |       ^^^^");
        // An accent of its own has no column of its own.
        check("ENV e\u{301}=1 b", "b", "ENV e\u{301}=1 b\n  |         ^");
        check("ENV e\u{301}=1", "e\u{301}", "ENV e\u{301}=1\n  |     ^");
        check("ENV \u{1b}=1 b", "b", "ENV \u{fffd}=1 b\n  |         ^");
    }

    #[test]
    fn a_long_line_is_shown_around_what_is_wrong() {
        let text = format!("RUN {}X", "a".repeat(100_000));
        let source = Source::new("Dockerfile", text.as_str());
        let drawn = Diagnostic::error("no", Span::new(text.len() - 1, text.len())).render(&source);
        assert!(drawn.len() < 500 && drawn.ends_with('^'), "{drawn}");
    }

    #[test]
    fn misspellings_are_at_most_two_letters_off() {
        let check = |word, expected| {
            let options = ["mount", "network", "security", "device"];
            assert_eq!(did_you_mean(word, options), expected, "{word}");
        };
        check("mont", Some("mount"));
        check("mounts", Some("mount"));
        check("mount", None);
        check("FROM", None);
        check("netwrk", Some("network"));
        check("entwork", Some("network"));
        check("networkxyz", None);
        check("netwörkx", Some("network"));
        check("", None);
    }
}
