//! Text → bare instructions: directives, logical lines, here-documents, flags. What the words of
//! an instruction mean is `instruction.rs`'s.
//!
//! Follows BuildKit's `frontend/dockerfile/parser/parser.go`. A mistake costs the instruction that
//! it is in; reading goes on behind it.

pub mod csv;
pub mod directive;
pub mod flag;
pub mod heredoc;
pub mod json;
pub mod line;
pub mod word;

use std::iter::Peekable;

use crate::diagnostic::{Diagnostic, Diagnostics};
use crate::source::{Source, Span, Text};
use directive::Directives;
use flag::Flag;
pub use heredoc::Heredoc;
use line::{Line, Slice};

/// The most bytes that a line may have; BuildKit's `bufio.Scanner` takes no more.
pub const MAX_LINE: usize = 65_535;

/// Where an instruction came from, and how it was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// The whole instruction, continuations joined, without here-documents: what progress shows
    /// and what BuildKit calls its source code.
    pub text: String,
    /// Its first word as it was written: `COPY`, `Copy`.
    pub keyword: Text,
    /// From its first byte to its last, here-documents included.
    pub span: Span,
    /// The comment lines right above it, without `#` and white space.
    pub comments: Vec<Text>,
}

/// The bare instructions of a file.
#[derive(Clone, Debug)]
pub struct Syntax {
    /// The escape character: backslash, or what `# escape=` says.
    pub escape: char,
    /// In order.
    pub instructions: Vec<BareInstruction>,
    /// The last lines of instructions that an empty line interrupts.
    pub empty_continuations: Vec<Span>,
}

/// An instruction before anybody asks what it says.
#[derive(Clone, Debug)]
pub struct BareInstruction {
    /// Where it came from.
    pub origin: Origin,
    /// Its flags in order.
    pub flags: Vec<Flag>,
    /// The here-documents that its line names, in order.
    pub heredocs: Vec<Heredoc>,
    /// The escape character that holds for it.
    pub escape: char,
    line: Line,
    /// Where the arguments begin and end in `line`.
    arguments: (usize, usize),
}

impl BareInstruction {
    /// All of the line, with the white space at its end.
    pub fn line(&self) -> Slice<'_> {
        self.line.as_slice()
    }

    /// What follows keyword and flags, without white space at its ends.
    pub fn arguments(&self) -> Slice<'_> {
        self.line.as_slice().slice(self.arguments.0..self.arguments.1)
    }

    /// An error about the instruction as a whole, which points at its keyword.
    pub fn error(&self, message: impl Into<String>) -> Diagnostic {
        Diagnostic::error(message, self.origin.keyword.span)
    }
}

/// An instruction's line in its parts.
#[derive(Clone, Debug)]
pub struct Parts<'a> {
    /// The first word.
    pub keyword: Slice<'a>,
    /// What follows it, as long as it begins with `--`.
    pub flags: Vec<Flag>,
    /// The rest, without white space at its ends.
    pub arguments: Slice<'a>,
}

impl<'a> Parts<'a> {
    /// Takes `line` apart (`splitCommand`).
    pub fn of(line: Slice<'a>, escape: char) -> Self {
        let (keyword, rest) = line.trim().split_blank();
        let rest = rest.unwrap_or_else(|| line.trim().tail(line.trim().as_str().len()));
        let (flags, arguments) = flag::split(rest, escape);
        Self { keyword, flags, arguments: arguments.trim() }
    }
}

/// Reads the bare instructions of `source`.
///
/// Places are in `source`, or, where `pin` is given, all there: for text that is not of the file
/// that is shown.
pub fn read(source: &Source, pin: Option<Span>, diagnostics: &mut Diagnostics) -> Syntax {
    let mut reader = Reader {
        lines: PhysicalLines { text: source.text(), offset: 0 }.peekable(),
        pin,
        directives: Directives::default(),
        comments: Vec::new(),
        syntax: Syntax { escape: '\\', instructions: Vec::new(), empty_continuations: Vec::new() },
        diagnostics,
    };
    reader.read();
    reader.syntax
}

/// A line as it stands in the file, with its line break.
#[derive(Clone, Copy)]
struct PhysicalLine<'a> {
    text: &'a str,
    offset: usize,
}

impl<'a> PhysicalLine<'a> {
    fn without_break(self) -> &'a str {
        self.text.trim_end_matches(['\r', '\n'])
    }

    fn is_comment(self) -> bool {
        self.text.trim_start().starts_with('#')
    }

    fn is_too_long(self) -> bool {
        self.text.strip_suffix('\n').unwrap_or(self.text).len() > MAX_LINE
    }

    fn span(self) -> Span {
        Span::new(self.offset, self.offset + self.without_break().len())
    }
}

struct PhysicalLines<'a> {
    text: &'a str,
    offset: usize,
}

impl<'a> Iterator for PhysicalLines<'a> {
    type Item = PhysicalLine<'a>;

    fn next(&mut self) -> Option<PhysicalLine<'a>> {
        let rest = &self.text[self.offset..];
        let text = rest.split_inclusive('\n').next()?;
        let offset = self.offset;
        self.offset += text.len();
        // Only the file begins with a byte order mark.
        let unmarked = text.strip_prefix('\u{feff}').filter(|_| offset == 0).unwrap_or(text);
        Some(PhysicalLine { text: unmarked, offset: offset + text.len() - unmarked.len() })
    }
}

struct Reader<'a, 'd> {
    lines: Peekable<PhysicalLines<'a>>,
    pin: Option<Span>,
    directives: Directives,
    /// The comments since the last instruction or empty comment.
    comments: Vec<Text>,
    syntax: Syntax,
    diagnostics: &'d mut Diagnostics,
}

impl<'a> Reader<'a, '_> {
    fn read(&mut self) {
        while let Some(first) = self.next_line() {
            let text = first.without_break().trim_start();
            let offset = first.offset + (first.without_break().len() - text.len());
            if self.read_directive(text, offset) {
                continue;
            }
            if first.is_comment() {
                self.keep_comment(first);
                continue;
            }
            if text.is_empty() {
                continue;
            }
            let (line, last) = self.read_logical_line(text, offset);
            let mut bare = self.bare(line, Span::new(offset, last));
            bare.heredocs = self.read_heredocs(&mut bare);
            self.syntax.instructions.push(bare);
        }
    }

    /// The next line; none, and nothing more, where it is longer than BuildKit takes.
    fn next_line(&mut self) -> Option<PhysicalLine<'a>> {
        let line = self.lines.next()?;
        if !line.is_too_long() {
            return Some(line);
        }
        let message = format!("dockerfile line greater than max allowed size of {MAX_LINE}");
        let start = Span::new(line.offset, line.offset);
        self.diagnostics.push(Diagnostic::error(message, self.place(start)));
        self.lines.by_ref().for_each(drop);
        None
    }

    fn place(&self, span: Span) -> Span {
        self.pin.unwrap_or(span)
    }

    /// Whether `text`, a line without white space before it, is a directive.
    fn read_directive(&mut self, text: &str, offset: usize) -> bool {
        match self.directives.read(text, offset) {
            Ok(None) => false,
            Ok(Some(directive)) => {
                if directive.name == "escape" {
                    self.set_escape(&directive.value);
                }
                true
            }
            Err(diagnostic) => {
                self.diagnostics.push(diagnostic);
                true
            }
        }
    }

    fn set_escape(&mut self, value: &Text) {
        match value.as_str() {
            "\\" => self.syntax.escape = '\\',
            "`" => self.syntax.escape = '`',
            other => {
                let message = format!("invalid escape token '{other}' does not match ` or \\");
                self.diagnostics.push(Diagnostic::error(message, value.span));
            }
        }
    }

    /// Keeps a comment for the instruction below it. An empty one parts it from those above.
    fn keep_comment(&mut self, line: PhysicalLine<'_>) {
        // BuildKit cuts off the first character, whether it is the `#` or a blank before it.
        let cut = line.without_break().chars().next().map_or(0, char::len_utf8);
        let text = &line.without_break()[cut..];
        let comment = text.trim();
        if comment.is_empty() {
            self.comments.clear();
            return;
        }
        let start = line.offset + cut + (text.len() - text.trim_start().len());
        let span = self.place(Span::new(start, start + comment.len()));
        self.comments.push(Text::new(comment.to_owned(), span));
    }

    /// Joins the line that begins with `text` with those that continue it; also returns where the
    /// last one ends. Comments in between are left out, and so are empty lines.
    fn read_logical_line(&mut self, text: &str, offset: usize) -> (Line, usize) {
        let (joined, mut continues) = self.without_continuation(text);
        let mut line = Line::new(joined, offset);
        let mut last = Span::new(offset, offset + text.len());
        let mut interrupted = false;
        while continues {
            let Some(next) = self.next_line() else { break };
            last = next.span();
            if next.is_comment() {
                continue;
            }
            let text = next.without_break();
            if text.trim_start().is_empty() {
                interrupted = true;
                continue;
            }
            let (joined, more) = self.without_continuation(text);
            line.push(joined, next.offset);
            continues = more;
        }
        if interrupted {
            let span = self.place(last);
            self.syntax.empty_continuations.push(span);
        }
        (line.pinned_to(self.pin), last.end)
    }

    /// `text` without the escape character at its end, and whether it had one.
    fn without_continuation<'t>(&self, text: &'t str) -> (&'t str, bool) {
        let escape = self.syntax.escape;
        let end = text.trim_end_matches([' ', '\t']);
        match end.strip_suffix(escape) {
            Some(before) if !before.ends_with(escape) => (before, true),
            Some(_) | None => (text, false),
        }
    }

    /// The instruction that `line` is, which stands at `span` of the source.
    fn bare(&mut self, line: Line, span: Span) -> BareInstruction {
        let escape = self.syntax.escape;
        let all = line.as_slice();
        let Parts { keyword, flags, arguments } = Parts::of(all, escape);
        let origin = Origin {
            text: all.trim().as_str().to_owned(),
            keyword: keyword.text(),
            span: self.place(span),
            comments: std::mem::take(&mut self.comments),
        };
        let arguments = all.range_of(arguments);
        BareInstruction { origin, flags, heredocs: Vec::new(), escape, line, arguments }
    }

    /// Reads the here-documents that `bare` names, which are the lines that follow.
    fn read_heredocs(&mut self, bare: &mut BareInstruction) -> Vec<Heredoc> {
        let Some(mut heredocs) = self.diagnostics.keep(heredoc::named_by(bare)) else {
            return Vec::new();
        };
        for heredoc in &mut heredocs {
            let start = self.lines.peek().map_or(bare.origin.span.end, |line| line.offset);
            let mut content = Text::new(String::new(), Span::new(start, start));
            let closed = loop {
                let Some(line) = self.next_line() else { break false };
                if self.pin.is_none() {
                    bare.origin.span.end = line.span().end;
                }
                if heredoc.ends_at(line.without_break()) {
                    break true;
                }
                content.value.push_str(line.text);
                content.span.end = line.offset + line.text.len();
            };
            content.span = self.place(content.span);
            heredoc.content = content;
            if !closed {
                let diagnostic = Diagnostic::error("unterminated heredoc", heredoc.name.span)
                    .label(format!("no line `{}` follows", heredoc.name.value));
                self.diagnostics.push(diagnostic);
                break;
            }
        }
        heredocs
    }
}
