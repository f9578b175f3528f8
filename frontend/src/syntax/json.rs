//! The JSON form of arguments: `["a", "b"]`.
//!
//! Follows BuildKit's `parser/line_parsers.go` and Go's `encoding/json`: what is not JSON at all is
//! in another form, but an array of other things than texts is a mistake.

use std::iter::Peekable;
use std::str::CharIndices;

use serde::de::IgnoredAny;

use super::line::Slice;
use crate::diagnostic::Diagnostic;
use crate::source::Text;

/// The texts of the JSON array that `arguments` is; `None` where it is none.
pub fn strings(arguments: Slice<'_>) -> Result<Option<Vec<Text>>, Diagnostic> {
    let text = arguments.as_str();
    if !text.starts_with('[') {
        return Ok(None);
    }
    let mut scanner = Scanner { arguments, chars: text.char_indices().peekable() };
    if let Some(strings) = scanner.array() {
        return Ok(Some(strings));
    }
    match serde_json::from_str::<Vec<IgnoredAny>>(text) {
        Ok(_) => {
            let message = "when using JSON array syntax, arrays must be comprised of strings only";
            Err(Diagnostic::error(message, arguments.span()))
        }
        Err(_) => Ok(None),
    }
}

/// Reads an array of texts; each function is `None` where something else stands.
struct Scanner<'a> {
    arguments: Slice<'a>,
    chars: Peekable<CharIndices<'a>>,
}

impl Scanner<'_> {
    fn array(&mut self) -> Option<Vec<Text>> {
        let mut strings = Vec::new();
        self.expect('[')?;
        self.skip_blanks();
        if self.chars.next_if(|(_, c)| *c == ']').is_none() {
            loop {
                self.skip_blanks();
                strings.push(self.string()?);
                self.skip_blanks();
                match self.chars.next()? {
                    (_, ',') => {}
                    (_, ']') => break,
                    _ => return None,
                }
            }
        }
        self.skip_blanks();
        self.chars.next().is_none().then_some(strings)
    }

    fn string(&mut self) -> Option<Text> {
        let start = self.expect('"')?;
        let mut value = String::new();
        loop {
            match self.chars.next()? {
                (end, '"') => {
                    let span = self.arguments.slice(start..end + 1).span();
                    return Some(Text::new(value, span));
                }
                (_, '\\') => value.push(self.escaped()?),
                (_, c) if (c as u32) < 0x20 => return None,
                (_, c) => value.push(c),
            }
        }
    }

    fn escaped(&mut self) -> Option<char> {
        Some(match self.chars.next()?.1 {
            c @ ('"' | '\\' | '/') => c,
            'b' => '\x08',
            'f' => '\x0c',
            'n' => '\n',
            'r' => '\r',
            't' => '\t',
            'u' => {
                let first = self.hex()?;
                match char::from_u32(first) {
                    Some(c) => c,
                    None => self.surrogate_pair(first)?,
                }
            }
            _ => return None,
        })
    }

    /// The character that `first` and a `\u` behind it make; as Go has it, half a pair is U+FFFD.
    fn surrogate_pair(&mut self, first: u32) -> Option<char> {
        let mut ahead = self.chars.clone();
        let escaped = ahead.next().is_some_and(|(_, c)| c == '\\')
            && ahead.next().is_some_and(|(_, c)| c == 'u');
        if escaped && first < 0xdc00 {
            let before = std::mem::replace(&mut self.chars, ahead);
            let second = self.hex()?;
            if (0xdc00..0xe000).contains(&second) {
                return char::from_u32(0x1_0000 + ((first - 0xd800) << 10) + (second - 0xdc00));
            }
            self.chars = before;
        }
        Some(char::REPLACEMENT_CHARACTER)
    }

    fn hex(&mut self) -> Option<u32> {
        (0..4).try_fold(0, |value, _| Some(value * 16 + self.chars.next()?.1.to_digit(16)?))
    }

    fn expect(&mut self, expected: char) -> Option<usize> {
        self.chars.next_if(|(_, c)| *c == expected).map(|(at, _)| at)
    }

    fn skip_blanks(&mut self) {
        while self.chars.next_if(|(_, c)| matches!(c, ' ' | '\t' | '\n' | '\r')).is_some() {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::syntax::line::Line;

    fn read(text: &str) -> Result<Option<Vec<String>>, String> {
        let line = Line::new(text, 0);
        let strings = strings(line.as_slice()).map_err(|diagnostic| diagnostic.message)?;
        Ok(strings.map(|strings| strings.into_iter().map(|text| text.value).collect()))
    }

    #[test]
    fn arrays_of_texts() {
        let check = |text: &str, expected: &[&str]| {
            let expected = expected.iter().map(|text| (*text).to_owned()).collect();
            assert_eq!(read(text), Ok(Some(expected)), "{text}");
        };
        check("[]", &[]);
        check("[ ]", &[]);
        check(r#"["a", "b" ,"c"]"#, &["a", "b", "c"]);
        check(r#"["\" \\ \/ \b\f\n\r\t é"]"#, &["\" \\ / \x08\x0c\n\r\t é"]);
        check(r#"["\u00e9\ud83d\ude00"]"#, &["é😀"]);
        check(r#"["\ud83d", "\ude00a", "\ud83d\u0041"]"#, &["\u{fffd}", "\u{fffd}a", "\u{fffd}A"]);
    }

    #[test]
    fn what_is_no_json_is_in_another_form() {
        for text in ["", "a", "['a']", "[\"a\",]", "[\"a\"", "[\"a\"] b", "[\"\\x\"]", "[\"a\tb\"]"]
        {
            assert_eq!(read(text), Ok(None), "{text}");
        }
    }

    #[test]
    fn arrays_of_other_things_are_refused() {
        for text in ["[1]", "[\"a\", true]", "[[]]", "[null]", "[{\"a\": \"b\"}]"] {
            assert!(read(text).is_err(), "{text}");
        }
    }
}
