//! Parser directives: `# syntax=`, `# escape=` and `# check=` lines at the top of the file.
//!
//! Follows BuildKit's `parser/directives.go`.

use crate::source::{Source, Span, Text};

/// A directive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Directive {
    /// Its name: `syntax`, `escape` or `check`.
    pub name: String,
    /// Its value, without white space at its ends.
    pub value: Text,
}

/// The names that make a comment a directive.
const NAMES: [&str; 3] = ["syntax", "escape", "check"];

impl Directive {
    /// The name, in lower case, and value of the directive that the comment `text` (without its
    /// `#`) is.
    pub fn from_comment(text: &str) -> Option<(String, &str)> {
        let text = text.trim_start();
        let (name, value) = text.split_once('=')?;
        let name = name.trim_end().to_ascii_lowercase();
        let value = value.trim();
        let known = NAMES.contains(&name.as_str()) && !value.is_empty();
        known.then_some((name, value))
    }

    /// The first directive called `name` among those that begin `source`, as BuildKit looks for
    /// `syntax` and `check`: other than for `escape`, a `#!` line may stand before them, and
    /// nothing before a `#`.
    ///
    /// The lines begin with `marker`: `#`, or `//` where the file is in another language.
    pub fn find(source: &Source, name: &str, marker: &str) -> Option<Text> {
        let text = source.text();
        let mut offset = text.len() - text.trim_start_matches('\u{feff}').len();
        if text[offset..].starts_with("#!") {
            offset = text[offset..].find('\n').map_or(text.len(), |end| offset + end + 1);
        }
        let mut seen = Vec::new();
        for line in text[offset..].split_inclusive('\n') {
            let comment = line.trim_end_matches(['\r', '\n']).strip_prefix(marker)?;
            let (found, value) = Self::from_comment(comment)?;
            if seen.contains(&found) {
                return None;
            }
            if found == name {
                let start = offset + (value.as_ptr() as usize - line.as_ptr() as usize);
                let span = Span::new(start, start + value.len());
                return Some(Text::new(value.to_owned(), span));
            }
            seen.push(found);
            offset += line.len();
        }
        None
    }
}
