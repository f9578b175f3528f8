//! Words with quotes, as ARG, ENV and LABEL have them.
//!
//! Follows `parseWords` in BuildKit's `parser/line_parsers.go`.

use super::line::Slice;

/// The words of `line`, parted by white space outside of quotes. Quotes and escapes stay in them;
/// an escape character at the very end does not.
pub fn words(line: Slice<'_>, escape: char) -> Vec<Slice<'_>> {
    let text = line.as_str();
    let mut words = Vec::new();
    let mut rest = 0;
    while let Some(blanks) = text[rest..].find(|c: char| !c.is_whitespace()) {
        let start = rest + blanks;
        let (end, behind) = word_end(text, start, escape);
        if start < end {
            words.push(line.slice(start..end));
        }
        rest = behind;
    }
    words
}

/// Where the word that begins at `start` ends, and where the text goes on behind it.
fn word_end(text: &str, start: usize, escape: char) -> (usize, usize) {
    let mut quote = None;
    let mut chars = text[start..].char_indices();
    while let Some((at, c)) = chars.next() {
        match quote {
            None if c.is_whitespace() => return (start + at, start + at),
            None if matches!(c, '\'' | '"') => quote = Some(c),
            Some(open) if c == open => quote = None,
            // Between single quotes nothing can be escaped.
            None | Some('"') if c == escape => match chars.next() {
                Some(_) => {}
                None => return (start + at, text.len()),
            },
            _ => {}
        }
    }
    (text.len(), text.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::syntax::line::Line;

    #[test]
    fn quotes_hold_words_together() {
        let check = |text: &str, expected: &[&str]| {
            let line = Line::new(text, 0);
            let words: Vec<&str> =
                words(line.as_slice(), '\\').into_iter().map(Slice::as_str).collect();
            assert_eq!(words, expected, "{text}");
        };
        check("a=b  c=d", &["a=b", "c=d"]);
        check("a='b c' d", &["a='b c'", "d"]);
        check("a=\"b \\\" c\" d", &["a=\"b \\\" c\"", "d"]);
        check("a='b\\' d", &["a='b\\'", "d"]);
        check("a=b\\ c d", &["a=b\\ c", "d"]);
        check("a=b\\", &["a=b"]);
        check("\\", &[]);
        check("''", &["''"]);
        check("a=\"b", &["a=\"b"]);
        check("a=\"b\\", &["a=\"b"]);
        check("  ", &[]);
    }
}
