//! Variables in words: `$NAME`, `${NAME:-word}` and their like, quotes and escapes.
//!
//! Follows BuildKit's `frontend/dockerfile/shell/lex.go`, which is like a shell, but not quite one.
//! Nesting costs no stack: a text that is all `${a:-${a:-…` is read with a list of open braces.

mod pattern;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::BuildHasher;
use std::iter::Peekable;
use std::str::Chars;
use std::sync::LazyLock;

use regex::Regex;

use crate::diagnostic::Diagnostic;
use crate::quote::Quoted;
use crate::source::{Span, Text};
use pattern::End;

/// Where variables get their values.
pub trait Env {
    /// The value of `name`; empty is something else than absent.
    fn get(&self, name: &str) -> Option<&str>;
}

impl Env for BTreeMap<String, String> {
    fn get(&self, name: &str) -> Option<&str> {
        Self::get(self, name).map(String::as_str)
    }
}

impl<S: BuildHasher> Env for HashMap<String, String, S> {
    fn get(&self, name: &str) -> Option<&str> {
        Self::get(self, name).map(String::as_str)
    }
}

/// The environment in which nothing is defined.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoEnv;

impl Env for NoEnv {
    fn get(&self, _name: &str) -> Option<&str> {
        None
    }
}

/// What became of a text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Expansion {
    /// The text with its variables expanded and, unless they are kept, without its quotes.
    pub result: String,
    /// Names of variables that were looked up and have a value.
    pub matched: BTreeSet<String>,
    /// Names of variables that were looked up and have none.
    pub unmatched: BTreeSet<String>,
}

/// Says why a text could not be expanded.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("failed to process {}: {reason}", Quoted(&shortened(.text)))]
pub struct ExpandError {
    /// The text.
    pub text: String,
    /// What is wrong with it.
    pub reason: ExpandReason,
}

/// What is wrong with a text that could not be expanded, in BuildKit's words.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ExpandReason {
    /// The last quote is not closed.
    #[error("unexpected end of statement while looking for matching {0}-quote")]
    OpenQuote(&'static str),
    /// The last `${` is not closed, or the pattern in one.
    #[error("syntax error: missing {0}")]
    Missing(&'static str),
    /// `${}`, `${:…`, `${{…`
    #[error("syntax error: bad substitution")]
    BadSubstitution,
    /// What follows the name in `${…}` has no meaning.
    #[error("unsupported modifier ({0}) in substitution")]
    Modifier(String),
    /// A pattern with an escape that has no meaning.
    #[error("invalid pattern ({pattern}) in substitution: {reason}")]
    Pattern {
        /// The pattern.
        pattern: String,
        /// What is wrong with it.
        reason: String,
    },
    /// `${name:?message}` of a variable that is not there.
    #[error("{name}: {message}")]
    Required {
        /// The variable.
        name: String,
        /// What the Dockerfile says of it.
        message: String,
    },
    /// The text comes to more than [`LIMIT`], or the values of the variables in it do.
    #[error("the text expands to more than {} MiB", LIMIT >> 20)]
    TooLong,
}

/// The most bytes that one text may expand to. BuildKit has no limit; a handful of lines that
/// double a variable would fill the memory.
pub const LIMIT: usize = 16 << 20;

impl ExpandError {
    /// The error as it is shown for a text at `span`.
    pub fn at(&self, span: Span) -> Diagnostic {
        Diagnostic::error(self.to_string(), span)
    }
}

fn shortened(text: &str) -> String {
    const SHOWN: usize = 200;
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

/// How texts are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lexer {
    /// The character that takes the meaning from the one behind it.
    pub escape: char,
    /// What becomes of quotes.
    pub quotes: Quotes,
    /// Escape characters stay in the result.
    pub keep_escapes: bool,
    /// Variables that are not defined stay in the result as they were written.
    pub keep_unset: bool,
}

/// What becomes of quotes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quotes {
    /// They protect what is in them, and go.
    Remove,
    /// They protect what is in them, and stay.
    Keep,
    /// They are characters like any other.
    Ignore,
}

impl Lexer {
    /// The reading of most instructions: quotes and escapes go, and so do undefined variables.
    pub const fn new(escape: char) -> Self {
        Self { escape, quotes: Quotes::Remove, keep_escapes: false, keep_unset: false }
    }

    /// The reading of the content of here-documents, in which quotes mean nothing.
    pub const fn for_heredocs() -> Self {
        Self { quotes: Quotes::Ignore, ..Self::new('\\') }
    }

    /// The reading of what progress shows of a command, in which the shell has a say too.
    pub const fn for_display(escape: char) -> Self {
        Self { quotes: Quotes::Keep, keep_unset: true, ..Self::new(escape) }
    }

    /// What becomes of `text`, given `env`.
    pub fn expand(&self, text: &str, env: &dyn Env) -> Result<Expansion, ExpandError> {
        let mut reader = Reader::new(self, text, env);
        match reader.read() {
            Ok(_) => Ok(Expansion {
                result: reader.out,
                matched: reader.matched,
                unmatched: reader.unmatched,
            }),
            Err(reason) => Err(ExpandError { text: text.to_owned(), reason }),
        }
    }

    /// What becomes of `text`, with an error that points at it.
    pub fn expand_text(&self, text: &Text, env: &dyn Env) -> Result<Expansion, Diagnostic> {
        self.expand(text.as_str(), env).map_err(|error| error.at(text.span))
    }

    /// What becomes of `text`, split at white space that neither quotes nor escapes protect.
    pub fn words(&self, text: &str, env: &dyn Env) -> Result<Vec<String>, ExpandError> {
        let mut reader = Reader { split: true, ..Reader::new(self, text, env) };
        reader.read().map_err(|reason| ExpandError { text: text.to_owned(), reason })
    }
}

/// What the reader is inside of. The innermost frame is a [`Frame::Word`] or a [`Frame::Quote`];
/// each of the others waits for the word that is read on top of it.
enum Frame {
    Word(OpenWord),
    /// Double quotes, whose content begins at this offset of the output.
    Quote(usize),
    /// `${name:-` waits for its word.
    Modifier {
        name: String,
        modifier: Modifier,
    },
    /// `${name/` waits for its pattern.
    Pattern {
        name: String,
        all: bool,
    },
    /// `${name/pattern/` waits for its replacement.
    Replacement {
        name: String,
        all: bool,
        pattern: String,
    },
}

/// A text that ends at `stop`, or else at the end.
struct OpenWord {
    stop: Option<char>,
    keep_escapes: bool,
    /// Where it begins in the output.
    start: usize,
    words: Vec<String>,
    in_word: bool,
}

/// What follows the name in `${name…word}`.
#[derive(Clone, Copy)]
struct Modifier {
    /// With a colon, an empty value is like none.
    empty_is_unset: bool,
    sign: char,
}

impl std::fmt::Display for Modifier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}{}", if self.empty_is_unset { ":" } else { "" }, self.sign)
    }
}

/// The value of a `${…}`.
enum Value {
    /// The word that was read for it, which is at the end of the output already.
    Word,
    Text(String),
}

struct Reader<'a> {
    lexer: &'a Lexer,
    env: &'a dyn Env,
    chars: Peekable<Chars<'a>>,
    frames: Vec<Frame>,
    /// What has come out so far. Inner words are made at its end and stay there where they are the
    /// value, so that nesting costs no copies.
    out: String,
    /// How many bytes of values were looked at.
    looked_at: usize,
    matched: BTreeSet<String>,
    unmatched: BTreeSet<String>,
    /// Words are wanted.
    split: bool,
    /// The word that is being made, where words are wanted. BuildKit has one for all frames: what
    /// stands before a `${name:-…}` in the same word is lost.
    word: String,
}

type Step<T> = Result<T, ExpandReason>;

impl<'a> Reader<'a> {
    fn new(lexer: &'a Lexer, text: &'a str, env: &'a dyn Env) -> Self {
        // Go's scanner drops a byte order mark.
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        Self {
            lexer,
            env,
            chars: text.chars().peekable(),
            frames: Vec::new(),
            out: String::with_capacity(text.len()),
            looked_at: 0,
            matched: BTreeSet::new(),
            unmatched: BTreeSet::new(),
            split: false,
            word: String::new(),
        }
    }

    /// Reads all of the text into `out`, and returns its words where they are wanted.
    fn read(&mut self) -> Step<Vec<String>> {
        self.open_word(None, self.lexer.keep_escapes);
        loop {
            let step = match self.frames.last() {
                Some(Frame::Quote(start)) => self.step_quote(*start).map(|()| None),
                Some(_) | None => self.step_word(),
            };
            match step {
                Ok(None) if self.out.len() > LIMIT => return Err(ExpandReason::TooLong),
                Ok(None) => {}
                Ok(Some(words)) => return Ok(words),
                Err(reason) => return Err(self.outermost(reason)),
            }
        }
    }

    /// At the end of the text, the first brace that is not closed is to blame, not the last.
    fn outermost(&mut self, reason: ExpandReason) -> ExpandReason {
        if self.chars.peek().is_some() {
            return reason;
        }
        let open = self.frames.iter().find_map(|frame| match frame {
            Frame::Modifier { .. } | Frame::Replacement { .. } => Some("'}'"),
            Frame::Pattern { .. } => Some("'/' in ${}"),
            Frame::Word(_) | Frame::Quote(_) => None,
        });
        open.map_or(reason, ExpandReason::Missing)
    }

    fn open_word(&mut self, stop: Option<char>, keep_escapes: bool) {
        self.word.clear();
        let start = self.out.len();
        let word = OpenWord { stop, keep_escapes, start, words: Vec::new(), in_word: false };
        self.frames.push(Frame::Word(word));
    }

    /// Reads one character, quote or variable of a word; returns the words of the outermost one at
    /// its end.
    fn step_word(&mut self) -> Step<Option<Vec<String>>> {
        let stop = self.innermost_word().stop;
        let Some(&next) = self.chars.peek() else {
            return match stop {
                None => self.close_word(),
                // Whatever this says, the brace that waits for the word says it again.
                Some(_) => Err(ExpandReason::Missing("'}'")),
            };
        };
        if Some(next) == stop {
            self.chars.next();
            return self.close_word();
        }
        match next {
            '$' => self.dollar()?,
            '<' => self.less_than(),
            '\'' if self.lexer.quotes != Quotes::Ignore => self.single_quote()?,
            '"' if self.lexer.quotes != Quotes::Ignore => {
                self.chars.next();
                let start = self.out.len();
                if self.lexer.quotes == Quotes::Keep {
                    self.out.push('"');
                }
                self.frames.push(Frame::Quote(start));
            }
            _ => self.plain(),
        }
        Ok(None)
    }

    /// A character without a meaning, or an escaped one.
    fn plain(&mut self) {
        let Some(c) = self.chars.next() else { return };
        let start = self.out.len();
        if c != self.lexer.escape {
            self.out.push(c);
            self.split_from(start);
            return;
        }
        if self.innermost_word().keep_escapes {
            self.out.push(c);
        }
        self.out.extend(self.chars.next());
        self.protect_from(start);
    }

    /// `<<` and the blanks behind it stay in one word: a here-document's name may follow.
    fn less_than(&mut self) {
        let start = self.out.len();
        self.out.extend(self.chars.next());
        if let Some(second) = self.chars.next_if_eq(&'<') {
            self.out.push(second);
            while let Some(blank) = self.chars.next_if(|c| matches!(c, '\t' | '\r' | ' ')) {
                self.out.push(blank);
            }
        }
        self.protect_from(start);
    }

    fn single_quote(&mut self) -> Step<()> {
        let start = self.out.len();
        let kept = self.chars.next().filter(|_| self.lexer.quotes == Quotes::Keep);
        self.out.extend(kept);
        loop {
            match self.chars.next().ok_or(ExpandReason::OpenQuote("single"))? {
                '\'' => break,
                c => self.out.push(c),
            }
        }
        self.out.extend(kept);
        self.protect_from(start);
        Ok(())
    }

    /// Reads one character or variable in double quotes, which began at `start` of the output.
    fn step_quote(&mut self, start: usize) -> Step<()> {
        if self.chars.peek() == Some(&'$') {
            return self.dollar();
        }
        let escape = self.lexer.escape;
        match self.chars.next().ok_or(ExpandReason::OpenQuote("double"))? {
            '"' => {
                if self.lexer.quotes == Quotes::Keep {
                    self.out.push('"');
                }
                self.frames.pop();
                self.protect_from(start);
            }
            c if c == escape => {
                if self.innermost_word().keep_escapes {
                    self.out.push(c);
                }
                // Before anything that cannot be escaped, the escape character stands for itself.
                match self.chars.next_if(|c| matches!(c, '"' | '$') || *c == escape) {
                    Some(escaped) => self.out.push(escaped),
                    None if self.chars.peek().is_some() => self.out.push(c),
                    None => {}
                }
            }
            c => self.out.push(c),
        }
        Ok(())
    }

    /// `$name`, or the beginning of `${name…`.
    fn dollar(&mut self) -> Step<()> {
        self.chars.next();
        if self.chars.next_if_eq(&'{').is_none() {
            let name = self.name();
            if name.is_empty() {
                self.add_value("$");
                return Ok(());
            }
            return self.add_variable(&name, "$", "");
        }
        match self.chars.peek() {
            None => return Err(ExpandReason::Missing("'}'")),
            Some('{' | '}' | ':') => return Err(ExpandReason::BadSubstitution),
            Some(_) => {}
        }
        let name = self.name();
        match self.chars.next().ok_or(ExpandReason::Missing("'}'"))? {
            '}' => self.add_variable(&name, "${", "}"),
            ':' => {
                let sign = self.chars.next().ok_or(ExpandReason::Missing("'}'"))?;
                self.modifier(name, Modifier { empty_is_unset: true, sign })
            }
            sign @ ('+' | '-' | '?' | '#' | '%') => {
                self.modifier(name, Modifier { empty_is_unset: false, sign })
            }
            '/' => {
                let all = self.chars.next_if_eq(&'/').is_some();
                self.frames.push(Frame::Pattern { name, all });
                self.open_word(Some('/'), true);
                Ok(())
            }
            other => Err(ExpandReason::Modifier(other.to_string())),
        }
    }

    fn modifier(&mut self, name: String, modifier: Modifier) -> Step<()> {
        let is_pattern = matches!(modifier.sign, '#' | '%');
        if modifier.empty_is_unset && is_pattern {
            return Err(ExpandReason::Modifier(modifier.to_string()));
        }
        self.frames.push(Frame::Modifier { name, modifier });
        self.open_word(Some('}'), is_pattern);
        Ok(())
    }

    /// A name: letters, digits and `_`; or only digits; or one of the shell's special characters.
    fn name(&mut self) -> String {
        let mut name = String::new();
        let Some(&first) = self.chars.peek() else { return name };
        if is_digit(first) {
            while let Some(digit) = self.chars.next_if(|c| is_digit(*c)) {
                name.push(digit);
            }
        } else if matches!(first, '@' | '*' | '#' | '?' | '-' | '$' | '!') {
            name.extend(self.chars.next());
        } else {
            while let Some(c) = self.chars.next_if(|c| is_letter(*c) || is_digit(*c) || *c == '_') {
                name.push(c);
            }
        }
        name
    }

    fn look_up(&mut self, name: &str) -> Step<Option<&'a str>> {
        let value = self.env.get(name);
        let names = if value.is_some() { &mut self.matched } else { &mut self.unmatched };
        if !names.contains(name) {
            names.insert(name.to_owned());
        }
        self.looked_at += value.map_or(0, str::len);
        if self.looked_at > LIMIT {
            return Err(ExpandReason::TooLong);
        }
        Ok(value)
    }

    /// Ends the innermost word and gives it to the brace that waits for it; returns the words of
    /// the outermost one.
    fn close_word(&mut self) -> Step<Option<Vec<String>>> {
        let last = std::mem::take(&mut self.word);
        let Some(Frame::Word(mut word)) = self.frames.pop() else {
            unreachable!("only words are closed")
        };
        if !last.is_empty() {
            word.words.push(last);
        }
        let value = match self.frames.pop() {
            None => return Ok(Some(word.words)),
            Some(Frame::Modifier { name, modifier }) => {
                self.modified(&name, modifier, word.start)?
            }
            Some(Frame::Replacement { name, all, pattern }) => {
                let replacement = self.out.split_off(word.start);
                Value::Text(self.replaced(&name, all, &pattern, &replacement)?)
            }
            Some(Frame::Pattern { name, all }) => {
                let pattern = self.out.split_off(word.start);
                self.frames.push(Frame::Replacement { name, all, pattern });
                self.open_word(Some('}'), true);
                return Ok(None);
            }
            Some(Frame::Word(_) | Frame::Quote(_)) => unreachable!("neither waits for a word"),
        };
        if let Value::Text(text) = value {
            self.out.truncate(word.start);
            self.out.push_str(&text);
        }
        self.split_from(word.start);
        Ok(None)
    }

    /// The value of `${name…word}`, where the word is what begins at `start` of the output.
    fn modified(&mut self, name: &str, modifier: Modifier, start: usize) -> Step<Value> {
        let value = self.look_up(name)?;
        let word = &self.out[start..];
        if value.is_none() && self.lexer.keep_unset {
            return Ok(Value::Text(format!("${{{name}{modifier}{word}}}")));
        }
        let usable = value.filter(|value| !(modifier.empty_is_unset && value.is_empty()));
        match modifier.sign {
            '-' => Ok(usable.map_or(Value::Word, |value| Value::Text(value.to_owned()))),
            '+' => Ok(usable.map_or(Value::Text(String::new()), |_| Value::Word)),
            '?' => usable.map(|value| Value::Text(value.to_owned())).ok_or_else(|| {
                let state = if value.is_none() { "unset" } else { "empty" };
                let message = match word {
                    "" => format!("is not allowed to be {state}"),
                    word => word.to_owned(),
                };
                ExpandReason::Required { name: name.to_owned(), message }
            }),
            sign @ ('#' | '%') => {
                let end = if sign == '#' { End::Front } else { End::Back };
                // A doubled sign takes as much as it can.
                let (longest, pattern) = match word.strip_prefix(sign) {
                    Some(pattern) => (true, pattern),
                    None => (false, word),
                };
                pattern::trim(value.unwrap_or_default(), pattern, end, longest).map(Value::Text)
            }
            _ => Err(ExpandReason::Modifier(modifier.to_string())),
        }
    }

    /// The value of `${name/pattern/replacement}`.
    fn replaced(&mut self, name: &str, all: bool, pattern: &str, with: &str) -> Step<String> {
        let value = self.look_up(name)?;
        if value.is_none() && self.lexer.keep_unset {
            // BuildKit forgets a second slash here.
            return Ok(format!("${{{name}/{pattern}/{with}}}"));
        }
        pattern::replace(value.unwrap_or_default(), pattern, with, all)
    }

    fn innermost_word(&mut self) -> &mut OpenWord {
        self.frames
            .iter_mut()
            .rev()
            .find_map(|frame| match frame {
                Frame::Word(word) => Some(word),
                Frame::Quote(_)
                | Frame::Modifier { .. }
                | Frame::Pattern { .. }
                | Frame::Replacement { .. } => None,
            })
            .expect("the outermost frame is a word, and is closed last")
    }

    /// Adds the value of a variable, which stays as it was written, in `before` and `behind`, where
    /// it is not defined and that is wanted.
    fn add_variable(&mut self, name: &str, before: &str, behind: &str) -> Step<()> {
        match self.look_up(name)? {
            None if self.lexer.keep_unset => self.add_value(&format!("{before}{name}{behind}")),
            value => self.add_value(value.unwrap_or_default()),
        }
        Ok(())
    }

    fn add_value(&mut self, value: &str) {
        let start = self.out.len();
        self.out.push_str(value);
        self.split_from(start);
    }

    /// What was added to the output since `start` belongs to the word that is being made: nothing
    /// in it separates words.
    fn protect_from(&mut self, start: usize) {
        if self.split {
            self.word.push_str(&self.out[start..]);
            self.innermost_word().in_word = true;
        }
    }

    /// White space in what was added to the output since `start` separates words, unless it is in
    /// quotes: then it is taken as a whole when they close.
    fn split_from(&mut self, start: usize) {
        if !self.split || matches!(self.frames.last(), Some(Frame::Quote(_))) {
            return;
        }
        let added = self.out[start..].to_owned();
        for c in added.chars() {
            if !c.is_whitespace() {
                self.word.push(c);
                self.innermost_word().in_word = true;
            } else if self.innermost_word().in_word && !self.word.is_empty() {
                let finished = std::mem::take(&mut self.word);
                let word = self.innermost_word();
                word.words.push(finished);
                word.in_word = false;
            }
        }
    }
}

/// Unicode's letters (L) and decimal digits (Nd), as Go tells them; Rust's `is_alphabetic` and
/// `is_numeric` take more.
fn is_letter(c: char) -> bool {
    static LETTER: LazyLock<Regex> =
        LazyLock::new(|| Regex::new(r"^\p{L}").expect("the pattern is well-formed"));
    c.is_ascii_alphabetic() || (!c.is_ascii() && LETTER.is_match(c.encode_utf8(&mut [0; 4])))
}

fn is_digit(c: char) -> bool {
    static DIGIT: LazyLock<Regex> =
        LazyLock::new(|| Regex::new(r"^\p{Nd}").expect("the pattern is well-formed"));
    c.is_ascii_digit() || (!c.is_ascii() && DIGIT.is_match(c.encode_utf8(&mut [0; 4])))
}

#[cfg(test)]
mod tests;
