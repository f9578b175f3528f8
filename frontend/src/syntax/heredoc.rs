//! Here-documents: `<<NAME`, `<<-NAME`, `<<"NAME"`, in ADD, COPY and RUN.

use super::{BareInstruction, Parts, json};
use crate::diagnostic::Diagnostic;
use crate::expand::{Lexer, NoEnv, Quotes};
use crate::source::{Span, Text};

/// A here-document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Heredoc {
    /// The word that ends it, without quotes: also the name of the file it becomes.
    pub name: Text,
    /// The number before `<<`; 0 when there is none.
    pub descriptor: u64,
    /// `<<-`: leading tabs are to be removed. They are still in `content`.
    pub strip_tabs: bool,
    /// Variables in it are expanded: no part of its name is quoted.
    pub expand: bool,
    /// Its lines, each with its line break.
    pub content: Text,
}

/// How words that may name here-documents are read, whatever the escape character is elsewhere.
const WORDS: Lexer =
    Lexer { quotes: Quotes::Keep, keep_escapes: true, keep_unset: true, ..Lexer::new('\\') };
/// How the name is read with its quotes, and without.
const QUOTED_NAME: Lexer = Lexer { keep_escapes: false, ..WORDS };
const NAME: Lexer = Lexer { quotes: Quotes::Remove, ..QUOTED_NAME };

impl Heredoc {
    /// The here-document that `word` names, without its content.
    ///
    /// # Errors
    /// What is wrong with its name.
    pub fn parse(word: &str, span: Span) -> Result<Option<Self>, Diagnostic> {
        let digits = word.bytes().take_while(u8::is_ascii_digit).count();
        let (descriptor, rest) = word.split_at(digits);
        let Some(rest) = rest.strip_prefix("<<") else { return Ok(None) };
        let (strip_tabs, rest) = match rest.strip_prefix('-') {
            Some(rest) => (true, rest),
            None => (false, rest),
        };
        let written = rest.trim_start_matches([' ', '\t', '\n', '\x0c', '\r']);
        if written.is_empty() || written.contains('<') {
            return Ok(None);
        }
        let words = |lexer: Lexer| lexer.words(written, &NoEnv).map_err(|error| error.at(span));
        let (names, quoted_names) = (words(NAME)?, words(QUOTED_NAME)?);
        let [name] = names.as_slice() else { return Ok(None) };
        let quotes: usize = quoted_names.iter().map(|name| count_quotes(name)).sum();
        Ok(Some(Self {
            name: Text::new(name.clone(), span),
            descriptor: if descriptor.is_empty() {
                0
            } else {
                descriptor.parse().unwrap_or(u64::MAX)
            },
            strip_tabs,
            expand: count_quotes(name) == quotes,
            content: Text::new(String::new(), span),
        }))
    }

    /// The content as it is meant: for `<<-` without the tabs that lines begin with.
    pub fn text(&self) -> String {
        if self.strip_tabs {
            without_leading_tabs(&self.content.value)
        } else {
            self.content.value.clone()
        }
    }

    /// Whether `line`, without its line break, ends the document.
    pub(super) fn ends_at(&self, line: &str) -> bool {
        let line = if self.strip_tabs { line.trim_start_matches('\t') } else { line };
        line == self.name.value
    }
}

/// `text` without the tabs that its lines begin with.
pub(crate) fn without_leading_tabs(text: &str) -> String {
    text.split_inclusive('\n').map(|line| line.trim_start_matches('\t')).collect()
}

fn count_quotes(word: &str) -> usize {
    word.matches(['\'', '"']).count()
}

/// The here-documents that the line of `bare` names, without their content.
pub(super) fn named_by(bare: &BareInstruction) -> Result<Vec<Heredoc>, Diagnostic> {
    let line = bare.line();
    if !line.as_str().contains("<<") || !may_have_heredocs(bare) {
        return Ok(Vec::new());
    }
    // Quotes that do not pair up are for the shell to complain of: BuildKit then sees no words.
    let words = WORDS.words(line.as_str(), &NoEnv).unwrap_or_default();
    let mut heredocs = Vec::new();
    let mut behind = 0;
    for word in words.iter().filter(|word| word.contains("<<")) {
        let found = line.as_str()[behind..].find(word).map(|at| behind + at);
        behind = found.map_or(behind, |start| start + word.len());
        let written = found.map_or(line, |start| line.slice(start..behind));
        heredocs.extend(Heredoc::parse(word, written.span())?);
    }
    Ok(heredocs)
}

/// Whether this is an ADD, COPY or RUN, or an ONBUILD of one, and not in JSON form.
fn may_have_heredocs(bare: &BareInstruction) -> bool {
    let keyword = bare.origin.keyword.value.to_lowercase();
    let (keyword, arguments) = if keyword == "onbuild" {
        let inner = Parts::of(bare.arguments(), bare.escape);
        (inner.keyword.as_str().to_lowercase(), inner.arguments)
    } else {
        (keyword, bare.arguments())
    };
    matches!(keyword.as_str(), "add" | "copy" | "run")
        && !matches!(json::strings(arguments), Ok(Some(_)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_told_from_other_words() {
        let check = |word: &str, expected: Option<(u64, bool, &str, bool)>| {
            let heredoc = Heredoc::parse(word, Span::default()).unwrap();
            let found = heredoc.as_ref().map(|heredoc| {
                (heredoc.descriptor, heredoc.strip_tabs, heredoc.name.as_str(), heredoc.expand)
            });
            assert_eq!(found, expected, "{word}");
        };
        check("<<EOF", Some((0, false, "EOF", true)));
        check("<<-EOF", Some((0, true, "EOF", true)));
        check("<<- EOF", Some((0, true, "EOF", true)));
        check("5<<EOF", Some((5, false, "EOF", true)));
        check("99999999999999999999<<EOF", Some((u64::MAX, false, "EOF", true)));
        check("<<'EOF'", Some((0, false, "EOF", false)));
        check("<<\"E O F\"", Some((0, false, "E O F", false)));
        check("<<E\"O\"F", Some((0, false, "EOF", false)));
        check("<<\\EOF", Some((0, false, "EOF", true)));
        check("<<$NAME", Some((0, false, "$NAME", true)));
        check("<<EOF<", None);
        check("<<<EOF", None);
        check("<<", None);
        check("<EOF", None);
        check("a<<EOF", None);
        check("<<a b", None);
    }
}
