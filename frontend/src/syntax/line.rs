//! Logical lines: what an instruction says once its continuations are joined, with the place in
//! the file of every byte of it.

use std::ops::Range;

use crate::source::{Span, Text};

/// The text of one instruction, joined from the lines it stands on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Line {
    text: String,
    /// Where pieces of `text` begin: (offset in `text`, offset in the source), both ascending.
    pieces: Vec<(usize, usize)>,
    /// All of it stands here, wherever its pieces seem to be: the line is not from this source.
    pinned: Option<Span>,
}

impl Line {
    /// The line that is `text` and stands at `offset` of the source.
    pub fn new(text: impl Into<String>, offset: usize) -> Self {
        Self { text: text.into(), pieces: vec![(0, offset)], pinned: None }
    }

    /// Appends `text`, which stands at `offset` of the source.
    pub fn push(&mut self, text: &str, offset: usize) {
        self.pieces.push((self.text.len(), offset));
        self.text.push_str(text);
    }

    /// The same text with all of it standing at `span`: a trigger that came with an image is shown
    /// at the FROM that brought it.
    #[must_use]
    pub fn pinned_to(mut self, span: Option<Span>) -> Self {
        self.pinned = span;
        self
    }

    /// All of it.
    pub fn as_slice(&self) -> Slice<'_> {
        Slice { line: self, start: 0, end: self.text.len() }
    }

    fn source_offset(&self, offset: usize) -> usize {
        let next = self.pieces.partition_point(|(at, _)| *at <= offset);
        let (at, source) = self.pieces[next.saturating_sub(1)];
        source + (offset - at)
    }

    fn span(&self, start: usize, end: usize) -> Span {
        if let Some(span) = self.pinned {
            return span;
        }
        let first = self.source_offset(start);
        // The end is looked up at the last byte: the byte behind it may be on another line.
        let last = if end > start { self.source_offset(end - 1) + 1 } else { first };
        Span::new(first, last)
    }
}

/// A part of a [`Line`].
#[derive(Clone, Copy, Debug)]
pub struct Slice<'a> {
    line: &'a Line,
    start: usize,
    end: usize,
}

impl<'a> Slice<'a> {
    /// The text.
    pub fn as_str(self) -> &'a str {
        &self.line.text[self.start..self.end]
    }

    /// Whether there is no text.
    pub fn is_empty(self) -> bool {
        self.start == self.end
    }

    /// Where it stands in the source.
    pub fn span(self) -> Span {
        self.line.span(self.start, self.end)
    }

    /// The part of it at `range`, in bytes from its beginning.
    #[must_use]
    pub fn slice(self, range: Range<usize>) -> Self {
        Self { start: self.start + range.start, end: self.start + range.end, ..self }
    }

    /// The part from `offset` to the end.
    #[must_use]
    pub fn tail(self, offset: usize) -> Self {
        self.slice(offset..self.as_str().len())
    }

    /// Where `part`, a part of it, begins and ends in it, in bytes.
    pub fn range_of(self, part: Slice<'_>) -> (usize, usize) {
        (part.start - self.start, part.end - self.start)
    }

    /// A copy of the text, with its place.
    pub fn text(self) -> Text {
        Text::new(self.as_str().to_owned(), self.span())
    }

    /// The part without white space at both ends.
    #[must_use]
    pub fn trim(self) -> Self {
        let text = self.as_str();
        let start = text.len() - text.trim_start().len();
        self.slice(start..start + text.trim().len())
    }

    /// What stands before and behind the first run of blanks; nothing behind where there is none.
    pub fn split_blank(self) -> (Self, Option<Self>) {
        let text = self.as_str();
        let Some(first) = text.find(is_blank) else { return (self, None) };
        let behind = text[first..].find(|c| !is_blank(c)).map_or(text.len(), |n| first + n);
        (self.slice(0..first), Some(self.tail(behind)))
    }

    /// All parts between runs of blanks. White space at an end leaves an empty part there.
    pub fn split_blanks(self) -> Vec<Self> {
        let mut parts = Vec::new();
        let mut rest = self;
        loop {
            let (part, behind) = rest.split_blank();
            parts.push(part);
            match behind {
                Some(behind) => rest = behind,
                None => return parts,
            }
        }
    }
}

/// What separates words: the blanks of BuildKit's `reWhitespace`.
pub fn is_blank(c: char) -> bool {
    matches!(c, '\t' | '\x0b' | '\x0c' | '\r' | ' ')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_knows_where_it_stood() {
        let source = "RUN a \\\n  # no\n  b";
        let mut line = Line::new("RUN a ", 0);
        line.push("  b", source.find("  b").unwrap());
        let all = line.as_slice();
        assert_eq!(all.as_str(), "RUN a   b");
        assert_eq!(&source[all.slice(8..9).span().start..][..1], "b");
        assert_eq!(all.slice(4..6).span(), Span::new(4, 6));
        assert_eq!(all.tail(4).span(), Span::new(4, source.len()));
    }

    #[test]
    fn splits_at_runs_of_blanks() {
        let check = |text: &str, expected: &[&str]| {
            let line = Line::new(text, 0);
            let parts: Vec<&str> =
                line.as_slice().split_blanks().into_iter().map(Slice::as_str).collect();
            assert_eq!(parts, expected, "{text:?}");
        };
        check("a", &["a"]);
        check("a \t b", &["a", "b"]);
        check("a ", &["a", ""]);
        check("", &[""]);
    }
}
