//! The text of a Dockerfile: its name, its bytes, and the line and column of each of them.
//!
//! Spans are offsets into the text, small and cheap to copy; only who shows one to people asks the
//! [`Source`] for its line.

use std::sync::Arc;

use rbuild_solver::graph;

/// A stretch of bytes in the text of a [`Source`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Span {
    /// The offset of its first byte.
    pub start: usize,
    /// The offset behind its last byte.
    pub end: usize,
}

impl Span {
    /// The stretch from `start` to before `end`.
    pub const fn new(start: usize, end: usize) -> Self {
        Self { start, end }
    }

    /// The stretch from the beginning of `self` to the end of `last`.
    #[must_use]
    pub const fn to(self, last: Self) -> Self {
        Self { start: self.start, end: last.end }
    }
}

/// A value, and where it was written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Spanned<T> {
    /// What was written.
    pub value: T,
    /// Where.
    pub span: Span,
}

/// A piece of text as it was written: variables in it are not expanded yet.
pub type Text = Spanned<String>;

impl<T> Spanned<T> {
    /// `value`, written at `span`.
    pub const fn new(value: T, span: Span) -> Self {
        Self { value, span }
    }
}

impl Text {
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.value
    }

    /// The same place with another text: what an expansion makes of it.
    #[must_use]
    pub fn with(&self, value: impl Into<String>) -> Self {
        Self::new(value.into(), self.span)
    }
}

/// A place for people: line and column, both counted from 1, the column in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// The line.
    pub line: usize,
    /// The column.
    pub column: usize,
}

/// The text of one file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    name: Arc<str>,
    text: Arc<str>,
    line_starts: Vec<usize>,
}

impl Source {
    /// The file shown as `name`, with `text` in it.
    pub fn new(name: impl Into<Arc<str>>, text: impl Into<Arc<str>>) -> Self {
        let text = text.into();
        let line_starts =
            std::iter::once(0).chain(text.match_indices('\n').map(|(at, _)| at + 1)).collect();
        Self { name: name.into(), text, line_starts }
    }

    /// The file shown as `name`, with `bytes` in it.
    ///
    /// What is not UTF-8 becomes U+FFFD, as it does in the image config that such bytes end up in.
    pub fn from_bytes(name: impl Into<Arc<str>>, bytes: &[u8]) -> Self {
        Self::new(name, String::from_utf8_lossy(bytes))
    }

    /// The name that the file is shown under.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// All of the text.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The text at `span`; empty where the span is of another source.
    pub fn slice(&self, span: Span) -> &str {
        self.text.get(span.start..span.end).unwrap_or_default()
    }

    /// Where the byte at `offset` stands; the end of the text for offsets behind it.
    pub fn position(&self, offset: usize) -> Position {
        let line = self.line_starts.partition_point(|start| *start <= offset);
        let start = self.line_starts[line - 1];
        let before = self.text.get(start..offset).unwrap_or(&self.text[start..]);
        Position { line, column: before.chars().count() + 1 }
    }

    /// The line that the byte at `offset` stands on, counted from 1.
    pub fn line(&self, offset: usize) -> usize {
        self.line_starts.partition_point(|start| *start <= offset)
    }

    /// The stretch of line number `line` (counted from 1), without its line break.
    pub fn line_span(&self, line: usize) -> Option<Span> {
        let start = *self.line_starts.get(line.checked_sub(1)?)?;
        let end = self.line_starts.get(line).copied().unwrap_or(self.text.len());
        let text = self.text[start..end].trim_end_matches(['\r', '\n']);
        Some(Span::new(start, start + text.len()))
    }

    /// `span` in the form that the graph carries to the failed step.
    pub fn locate(&self, span: Span) -> graph::Span {
        graph::Span {
            file: Arc::clone(&self.name),
            start: span.start,
            end: span.end,
            line: self.line(span.start),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_count_lines_and_characters_from_one() {
        let source = Source::new("Dockerfile", "FROM a\r\nRUN é x\n");
        let check = |offset, line, column| {
            assert_eq!(source.position(offset), Position { line, column }, "{offset}");
        };
        check(0, 1, 1);
        check(5, 1, 6);
        check(8, 2, 1);
        check(source.text().find('x').unwrap(), 2, 7);
        check(source.text().len(), 3, 1);
        check(1000, 3, 1);
    }

    #[test]
    fn lines_have_no_line_breaks() {
        let source = Source::new("Dockerfile", "a\r\n\nlast");
        let line = |number| source.line_span(number).map(|span| source.slice(span));
        assert_eq!(
            [line(0), line(1), line(2), line(3), line(4)],
            [None, Some("a"), Some(""), Some("last"), None]
        );
    }
}
