//! `.dockerignore`: from the file's bytes to patterns.
//!
//! What the patterns match is [`rbuild_cache::pattern::PatternMatcher`]'s. Follows
//! moby/patternmatcher's `ignorefile/ignorefile.go`.

use rbuild_cache::pattern::{PatternError, PatternMatcher, clean};

/// Reads the patterns of an ignore file, in order.
///
/// A line is a pattern, `!` before it makes an exception of it, lines that begin with `#` are
/// comments. White space around a pattern does not count, nor does a leading slash.
///
/// # Errors
/// When a pattern is none, such as `[`.
pub fn read(bytes: &[u8]) -> Result<Vec<String>, PatternError> {
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    let text = String::from_utf8_lossy(bytes);
    let patterns: Vec<String> =
        text.lines().filter(|line| !line.starts_with('#')).filter_map(pattern).collect();
    PatternMatcher::new(&patterns)?;
    Ok(patterns)
}

fn pattern(line: &str) -> Option<String> {
    let line = line.trim();
    let (exception, path) = match line.strip_prefix('!') {
        Some(path) => ("!", path.trim()),
        None => ("", line),
    };
    if path.is_empty() {
        return (!exception.is_empty()).then(|| exception.to_owned());
    }
    let path = clean(path);
    let path = match path.strip_prefix('/') {
        Some(below) if !below.is_empty() => below.to_owned(),
        Some(_) | None => path,
    };
    Some(format!("{exception}{path}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: &[&str]) {
        assert_eq!(read(text.as_bytes()).unwrap(), expected, "{text:?}");
    }

    #[test]
    fn patterns() {
        check("", &[]);
        check("a\nb\n", &["a", "b"]);
        check("\u{feff}a\r\n\r\n  b  \r\n", &["a", "b"]);
        check("# a\n #b\n", &["#b"]);
        check("/a/\n/\n./a//b/../c\n", &["a", "/", "a/c"]);
        check("*\n! /a/b\n", &["*", "!a/b"]);
        check("**/*.o\n!**/keep.o", &["**/*.o", "!**/keep.o"]);
    }

    #[test]
    fn what_is_no_pattern_is_refused() {
        assert!(read(b"a\n[\n").is_err());
        assert!(read(b"!\n").is_err());
    }
}
