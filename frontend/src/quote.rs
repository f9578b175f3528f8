//! Text in quotes the way Go's `%q` writes it, which is in BuildKit's messages and history lines.

use std::fmt::{self, Write as _};
use std::sync::LazyLock;

use regex::Regex;

/// Shows `text` in double quotes, with escapes for what does not print.
#[derive(Clone, Copy, Debug)]
pub struct Quoted<'a>(pub &'a str);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_char('"')?;
        for c in self.0.chars() {
            match c {
                '"' | '\\' => write!(f, "\\{c}")?,
                '\x07' => f.write_str("\\a")?,
                '\x08' => f.write_str("\\b")?,
                '\x0c' => f.write_str("\\f")?,
                '\n' => f.write_str("\\n")?,
                '\r' => f.write_str("\\r")?,
                '\t' => f.write_str("\\t")?,
                '\x0b' => f.write_str("\\v")?,
                ' '..='~' => f.write_char(c)?,
                '\0'..='\x1f' | '\x7f' => write!(f, "\\x{:02x}", c as u32)?,
                c if prints(c) => f.write_char(c)?,
                c if (c as u32) < 0x1_0000 => write!(f, "\\u{:04x}", c as u32)?,
                c => write!(f, "\\U{:08x}", c as u32)?,
            }
        }
        f.write_char('"')
    }
}

/// Letters, marks, numbers, punctuation and symbols print (Go's `unicode.IsPrint`).
fn prints(c: char) -> bool {
    static PRINTS: LazyLock<Regex> = LazyLock::new(|| {
        Regex::new(r"[\p{L}\p{M}\p{N}\p{P}\p{S}]").expect("the pattern is well-formed")
    });
    PRINTS.is_match(c.encode_utf8(&mut [0; 4]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_as_go_does() {
        let check = |text, expected| assert_eq!(Quoted(text).to_string(), expected);
        check("a b", "\"a b\"");
        check("\"\\", r#""\"\\""#);
        check("\n\t\0\x7f", r#""\n\t\x00\x7f""#);
        check("é안☺\u{308}", "\"é안☺\u{308}\"");
        check("\u{a0}\u{200b}\u{feff}\u{e0001}", r#""\u00a0\u200b\ufeff\U000e0001""#);
    }
}
