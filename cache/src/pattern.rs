//! Patterns for paths: wildcards as Go's `filepath.Match` reads them, and lists of patterns with
//! exceptions, as in `.dockerignore`, `--exclude` and `--parents`.
//!
//! The lists follow moby's `patternmatcher` to the letter, also where it surprises: a pattern
//! becomes a regular expression, so `[[:digit:]]` works and `[!a]` is an `a` or an exclamation
//! mark. Paths are relative, with slashes, without `.` and `..`.

use std::fmt;

use regex::Regex;

/// Says what is wrong with a pattern.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    /// A bracket is not closed, or an escape has nothing behind it.
    #[error("syntax error in pattern `{0}`")]
    Syntax(String),
    /// An exception that excepts nothing.
    #[error("illegal exclusion pattern: \"!\"")]
    EmptyException,
}

/// The shortest path that means the same as `path`, without looking at a disk.
///
/// What Go's `filepath.Clean` makes of it: no doubled slashes, no `.`, no inner `..`, no slash at
/// the end; `.` for nothing.
pub fn clean(path: &str) -> String {
    let absolute = path.starts_with('/');
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." if parts.last().is_some_and(|last| *last != "..") => {
                parts.pop();
            }
            ".." if absolute => {}
            part => parts.push(part),
        }
    }
    match (absolute, parts.join("/")) {
        (true, joined) => format!("/{joined}"),
        (false, joined) if joined.is_empty() => ".".to_owned(),
        (false, joined) => joined,
    }
}

/// Whether `text` holds a `*`, `?` or `[` that is not escaped.
pub fn has_wildcards(text: &str) -> bool {
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => _ = chars.next(),
            '*' | '?' | '[' => return true,
            _ => {}
        }
    }
    false
}

/// `path` in two: the folders before the first one with a wildcard, and the pattern from there on.
/// The pattern is empty where there is no wildcard.
pub fn split_wildcards(path: &str) -> (String, String) {
    let path = clean(path);
    let Some(first) = path.split('/').position(has_wildcards) else {
        return (path, String::new());
    };
    let parts: Vec<&str> = path.split('/').collect();
    let (before, pattern) = parts.split_at(first);
    let before = match before {
        [""] => "/".to_owned(),
        before => before.join("/"),
    };
    (before, pattern.join("/"))
}

/// Whether the whole of `name` is as `pattern` says, the way of Go's `filepath.Match`.
///
/// `*` is any text without a slash, `?` one character that is not a slash, `[a-z]` and `[^a-z]` one
/// character of or not of a set, and a backslash takes the meaning from the character behind it.
/// There is no `**`: it is two `*`.
///
/// # Errors
/// When the pattern makes no sense, whatever the name is.
pub fn glob_match(pattern: &str, name: &str) -> Result<bool, PatternError> {
    let tokens = glob_tokens(pattern).ok_or_else(|| PatternError::Syntax(pattern.to_owned()))?;
    let name: Vec<char> = name.chars().collect();
    Ok(tokens_match(&tokens, &name))
}

/// What a glob is made of.
enum Token {
    Star,
    Any,
    Char(char),
    Set { negated: bool, ranges: Vec<(char, char)> },
}

impl Token {
    fn matches(&self, c: char) -> bool {
        match self {
            Self::Star | Self::Any => c != '/',
            Self::Char(expected) => c == *expected,
            Self::Set { negated, ranges } => {
                ranges.iter().any(|(low, high)| (*low..=*high).contains(&c)) != *negated
            }
        }
    }
}

/// `pattern` read from left to right; `None` where it makes no sense.
fn glob_tokens(pattern: &str) -> Option<Vec<Token>> {
    let mut chars = pattern.chars().peekable();
    let mut tokens = Vec::new();
    while let Some(c) = chars.next() {
        tokens.push(match c {
            '*' => Token::Star,
            '?' => Token::Any,
            '\\' => Token::Char(chars.next()?),
            '[' => {
                let negated = chars.next_if_eq(&'^').is_some();
                let mut ranges = Vec::new();
                // A `]` closes a set only behind its first member.
                while ranges.is_empty() || chars.next_if_eq(&']').is_none() {
                    let low = set_member(&mut chars)?;
                    let high = match chars.next_if_eq(&'-') {
                        Some(_) => set_member(&mut chars)?,
                        None => low,
                    };
                    ranges.push((low, high));
                }
                Token::Set { negated, ranges }
            }
            c => Token::Char(c),
        });
    }
    Some(tokens)
}

fn set_member(chars: &mut std::iter::Peekable<std::str::Chars<'_>>) -> Option<char> {
    match chars.next()? {
        '-' | ']' => None,
        '\\' => chars.next(),
        c => Some(c),
    }
}

/// Goes back to the last star only: what an earlier one could take, the last can take too, as long
/// as no slash lies between. So the time is at most the product of both lengths.
fn tokens_match(tokens: &[Token], name: &[char]) -> bool {
    let (mut token, mut at) = (0, 0);
    let mut last_star: Option<(usize, usize)> = None;
    while at < name.len() || token < tokens.len() {
        match tokens.get(token) {
            Some(Token::Star) => {
                last_star = Some((token, at));
                token += 1;
                continue;
            }
            Some(expected) if name.get(at).is_some_and(|c| expected.matches(*c)) => {
                token += 1;
                at += 1;
                continue;
            }
            Some(_) | None => {}
        }
        match last_star {
            Some((star, end)) if end < name.len() && name[end] != '/' => {
                last_star = Some((star, end + 1));
                token = star + 1;
                at = end + 1;
            }
            Some(_) | None => return false,
        }
    }
    true
}

/// A list of patterns, the later ones of which may take back what earlier ones said.
#[derive(Clone, Debug, Default)]
pub struct PatternMatcher {
    patterns: Vec<Pattern>,
}

/// What the patterns of a [`PatternMatcher`] said about a folder; asked again for what is in it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ParentMatches(Option<Vec<bool>>);

impl PatternMatcher {
    /// A matcher for `patterns`, in order. Empty ones are left out; one that begins with `!` is an
    /// exception from those before it.
    pub fn new(patterns: impl IntoIterator<Item = impl AsRef<str>>) -> Result<Self, PatternError> {
        let texts = patterns.into_iter();
        let patterns = texts.filter_map(|text| Pattern::new(text.as_ref()).transpose());
        Ok(Self { patterns: patterns.collect::<Result<_, _>>()? })
    }

    /// The patterns in use, in order.
    pub fn patterns(&self) -> &[Pattern] {
        &self.patterns
    }

    /// Whether one of the patterns is an exception.
    pub fn has_exceptions(&self) -> bool {
        self.patterns.iter().any(|pattern| pattern.exception)
    }

    /// Whether `path` matches, or a folder that it is in does, and no later exception does.
    pub fn matches_or_parent_matches(&self, path: &str) -> bool {
        self.matches(path, &ParentMatches::default()).0
    }

    /// Whether `path` matches, given what was said about the folder that it is in; and what to
    /// give for what is in `path`.
    ///
    /// With the default for `parent`, all folders that `path` is in are looked at. A walk begins
    /// with that, and hands each folder's answer to what is in it.
    pub fn matches(&self, path: &str, parent: &ParentMatches) -> (bool, ParentMatches) {
        let mut matched = false;
        let mut said = vec![false; self.patterns.len()];
        for (i, pattern) in self.patterns.iter().enumerate() {
            let inherited = parent.0.as_ref().is_some_and(|said| said[i]);
            // A pattern is asked only where its answer would change something.
            if !inherited && pattern.exception != matched {
                continue;
            }
            said[i] = inherited
                || pattern.matches(path)
                || (parent.0.is_none() && folders(path).any(|folder| pattern.matches(folder)));
            if said[i] {
                matched = !pattern.exception;
            }
        }
        (matched, ParentMatches(Some(said)))
    }

    /// Whether nothing in the folder `path`, which matched, can be saved by an exception: a walk
    /// need not enter it.
    pub fn covers(&self, path: &str) -> bool {
        let path = format!("{path}/");
        self.exceptions().all(|exception| match exception.literal_prefix() {
            Some(prefix) => !format!("{prefix}/").starts_with(&path),
            None => false,
        })
    }

    /// Whether something in the folder `path`, which did not match, may match: a walk that looks
    /// for what matches must enter it.
    pub fn may_match_below(&self, path: &str) -> bool {
        let path = format!("{path}/");
        self.patterns.iter().filter(|pattern| !pattern.exception).any(|pattern| {
            match pattern.literal_prefix() {
                Some(prefix) => format!("{prefix}/").starts_with(&path),
                None => true,
            }
        })
    }

    fn exceptions(&self) -> impl Iterator<Item = &Pattern> {
        self.patterns.iter().filter(|pattern| pattern.exception)
    }
}

/// The folders that `path` is in, outermost first.
fn folders(path: &str) -> impl Iterator<Item = &str> {
    path.match_indices('/').map(|(at, _)| &path[..at])
}

/// One pattern of a [`PatternMatcher`].
#[derive(Clone, Debug)]
pub struct Pattern {
    text: String,
    exception: bool,
    kind: Kind,
}

/// How a pattern is asked; most need no regular expression.
#[derive(Clone, Debug)]
enum Kind {
    /// The path is the pattern's text.
    Exact,
    /// The path begins as the text before its `**`.
    Prefix,
    /// The path ends as the text behind its `**`.
    Suffix,
    Regex(Regex),
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Pattern {
    fn new(text: &str) -> Result<Option<Self>, PatternError> {
        let text = text.trim();
        if text.is_empty() {
            return Ok(None);
        }
        let cleaned = clean(text);
        let (exception, text) = match cleaned.strip_prefix('!') {
            Some("") => return Err(PatternError::EmptyException),
            Some(text) => (true, text),
            None => (false, cleaned.as_str()),
        };
        if glob_tokens(text).is_none() {
            return Err(PatternError::Syntax(text.to_owned()));
        }
        let kind = Kind::of(text).ok_or_else(|| PatternError::Syntax(text.to_owned()))?;
        Ok(Some(Self { text: text.to_owned(), exception, kind }))
    }

    /// The pattern, without the `!` of an exception.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Whether it begins with `!`.
    pub fn is_exception(&self) -> bool {
        self.exception
    }

    /// The pattern without a `**` or `*` at its end, where nothing else in it is a wildcard.
    fn literal_prefix(&self) -> Option<&str> {
        let prefix = self.text.strip_suffix("/**").unwrap_or(&self.text);
        let prefix = prefix.strip_suffix("/*").unwrap_or(prefix);
        (!prefix.contains(['*', '[', ']', '?', '^', '\\'])).then_some(prefix)
    }

    fn matches(&self, path: &str) -> bool {
        match &self.kind {
            Kind::Exact => path == self.text,
            Kind::Prefix => path.starts_with(&self.text[..self.text.len() - 2]),
            Kind::Suffix => {
                let suffix = &self.text[2..];
                path.ends_with(suffix) || suffix.strip_prefix('/') == Some(path)
            }
            Kind::Regex(regex) => regex.is_match(path),
        }
    }
}

impl Kind {
    /// `None` for a set that makes no sense as a regular expression, as `[z-a]`.
    fn of(text: &str) -> Option<Self> {
        let mut regex = String::from("^");
        let mut kind = Self::Exact;
        let mut special = false;
        let mut chars = text.chars().peekable();
        let mut at_start = true;
        while let Some(c) = chars.next() {
            let first = std::mem::take(&mut at_start);
            match c {
                '*' if chars.next_if_eq(&'*').is_some() => {
                    chars.next_if_eq(&'/');
                    let last = chars.peek().is_none();
                    if last && matches!(kind, Self::Exact) && !special {
                        kind = Self::Prefix;
                    } else {
                        regex.push_str(if last { ".*" } else { "(.*/)?" });
                        special = true;
                    }
                    if first {
                        kind = Self::Suffix;
                        special = false;
                    }
                }
                '*' => {
                    regex.push_str("[^/]*");
                    special = true;
                }
                '?' => {
                    regex.push_str("[^/]");
                    special = true;
                }
                // Moby means to escape `|`, `{` and `}` too, but its table has no room for them:
                // next to a wildcard they mean what they mean in regular expressions.
                '.' | '+' | '(' | ')' | '$' => regex.extend(['\\', c]),
                '\\' => {
                    regex.push('\\');
                    // Nothing behind it: refused before, by the check of the syntax.
                    regex.extend(chars.next());
                    special = true;
                }
                '[' | ']' => {
                    regex.push(c);
                    special = true;
                }
                c => regex.push(c),
            }
        }
        if !special {
            return Some(kind);
        }
        regex.push('$');
        Regex::new(&for_our_engine(&regex)).ok().map(Self::Regex)
    }
}

/// `regex`, written for Go's engine, for ours. They differ in sets, where ours has operators and
/// sets inside sets, and in braces, which in Go stand for themselves unless they say how often.
fn for_our_engine(regex: &str) -> String {
    let mut out = String::with_capacity(regex.len());
    let mut rest = regex;
    while let Some(c) = rest.chars().next() {
        let length = match c {
            '\\' => {
                let escaped = rest[1..].chars().next().map_or(0, char::len_utf8);
                out.push_str(&rest[..=escaped]);
                1 + escaped
            }
            '[' => set_for_our_engine(rest, &mut out),
            '{' if !is_repetition(rest) => {
                out.push_str("\\{");
                1
            }
            c => {
                out.push(c);
                c.len_utf8()
            }
        };
        rest = &rest[length..];
    }
    out
}

/// Appends the set that `regex` begins with, every character that could mean something escaped;
/// returns how many bytes of `regex` it takes.
fn set_for_our_engine(regex: &str, out: &mut String) -> usize {
    let negated = regex[1..].starts_with('^');
    out.push_str(if negated { "[^" } else { "[" });
    let first = if negated { 2 } else { 1 };
    let mut at = first;
    while let Some(c) = regex[at..].chars().next() {
        let class = regex[at..].starts_with("[:").then(|| regex[at + 2..].find(":]")).flatten();
        if let Some(end) = class {
            let end = at + 2 + end + 2;
            out.push_str(&regex[at..end]);
            at = end;
            continue;
        }
        at += c.len_utf8();
        match c {
            ']' if at > first + 1 => {
                out.push(']');
                return at;
            }
            '\\' => {
                let escaped = regex[at..].chars().next();
                out.push('\\');
                out.extend(escaped);
                at += escaped.map_or(0, char::len_utf8);
            }
            // Between two members it makes a range; the next member is never an operator.
            '-' if at > first + 1 && !regex[at..].starts_with(']') => {
                out.push('-');
                if let Some(high) = regex[at..].chars().next().filter(char::is_ascii_punctuation)
                    && high != '\\'
                {
                    out.extend(['\\', high]);
                    at += 1;
                }
            }
            c if c.is_ascii_punctuation() => out.extend(['\\', c]),
            c => out.push(c),
        }
    }
    at
}

/// Whether `regex` begins with `{2}`, `{2,}` or `{2,3}`.
fn is_repetition(regex: &str) -> bool {
    let Some((inside, _)) = regex[1..].split_once('}') else { return false };
    let (least, most) = inside.split_once(',').unwrap_or((inside, ""));
    let digits = |text: &str| text.bytes().all(|b| b.is_ascii_digit());
    !least.is_empty() && digits(least) && digits(most)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cleans_as_go_does() {
        let check = |path, expected| assert_eq!(clean(path), expected, "{path:?}");
        check("", ".");
        check("./a//b/", "a/b");
        check("a/../../b", "../b");
        check("/../a/./b/..", "/a");
        check("..", "..");
        check("/", "/");
    }

    /// The table of Go's `path/filepath/match_test.go`, as far as it says something of its own.
    #[test]
    fn globs_as_go_does() {
        let check = |pattern, name, expected: Option<bool>| {
            assert_eq!(glob_match(pattern, name).ok(), expected, "{pattern:?} {name:?}");
        };
        check("abc", "abc", Some(true));
        check("*", "abc", Some(true));
        check("*c", "abc", Some(true));
        check("a*", "a", Some(true));
        check("a*", "ab/c", Some(false));
        check("a*/b", "abc/b", Some(true));
        check("a*/b", "a/c/b", Some(false));
        check("a*b*c*d*e*/f", "axbxcxdxe/f", Some(true));
        check("a*b*c*d*e*/f", "axbxcxdxe/xxx/f", Some(false));
        check("a*b?c*x", "abxbbxdbxebxczzx", Some(true));
        check("a*b?c*x", "abxbbxdbxebxczzy", Some(false));
        check("ab[c]", "abc", Some(true));
        check("ab[b-d]", "abc", Some(true));
        check("ab[e-g]", "abc", Some(false));
        check("ab[^c]", "abc", Some(false));
        check("ab[^e-g]", "abc", Some(true));
        check("a\\*b", "a*b", Some(true));
        check("a\\*b", "ab", Some(false));
        check("a?b", "a☺b", Some(true));
        check("a[^a]b", "a☺b", Some(true));
        check("a???b", "a☺b", Some(false));
        check("[a-ζ]*", "α", Some(true));
        check("*[a-ζ]", "A", Some(false));
        check("a?b", "a/b", Some(false));
        check("a*b", "a/b", Some(false));
        check("[\\]a]", "]", Some(true));
        check("[x\\-]", "-", Some(true));
        check("[]a]", "]", None);
        check("[-]", "-", None);
        check("[x-]", "x", None);
        check("[a-b-c]", "a", None);
        check("[", "a", None);
        check("[^bc", "a", None);
        check("a[", "ab", None);
        check("a[", "x", None);
        check("\\", "a", None);
        check("*x", "xxx", Some(true));
        check("", "", Some(true));
        check("**", "a/b", Some(false));
    }

    #[test]
    fn splits_before_the_first_wildcard() {
        let check = |path, before: &str, pattern: &str| {
            assert_eq!(split_wildcards(path), (before.to_owned(), pattern.to_owned()), "{path:?}");
        };
        check("/a/b*/c", "/a", "b*/c");
        check("/*", "/", "*");
        check("*.txt", "", "*.txt");
        check("a/b/", "a/b", "");
        check("a\\*", "a\\*", "");
    }

    #[test]
    fn patterns_match_as_mobys_do() {
        let check = |pattern: &str, path: &str, expected: bool| {
            let matcher = PatternMatcher::new([pattern]).unwrap();
            assert_eq!(matcher.matches_or_parent_matches(path), expected, "{pattern:?} {path:?}");
        };
        check("**", "file", true);
        check("**", "dir/file", true);
        check("**/", "file", true);
        check("**/**", "dir/file", true);
        check("dir/**", "dir/file", true);
        check("dir/**", "dir/dir2/file/", true);
        check("dir/**", "dir", false);
        check("**/dir", "dir", true);
        check("**/dir", "dir/file", true);
        check("**/dir2/*", "dir/dir2/file", true);
        check("**/dir2/**", "dir/dir2/dir2/file", true);
        check("**file", "file", true);
        check("**file", "dir/file", true);
        check("**/file", "dir/file", true);
        check("**/file*txt", "dir/dir/file.txt", true);
        check("**/**/*.txt", "dir/dir/file.txt", true);
        check("**/**/*.txt2", "dir/dir/file.txt", false);
        check("**/*.txt", "file.txt", true);
        check("a**/*.txt", "a/dir/file.txt", true);
        check("a**/*.txt", "dir/file.txt", false);
        check("a/*.txt", "a/file.txt", true);
        check("a/*.txt", "a/b/file.txt", false);
        check("a/b", "a/b/c", true);
        check("a[b-d]e", "ace", true);
        check("a[b-d]e", "aee", false);
        check("a[^b-d]e", "aze", true);
        check("a\\*b", "a*b", true);
        check("a\\*b", "axb", false);
        check("abc.def", "abcZdef", false);
        check("a?c", "a/c", false);
        check("**/foo/bar", "in/foo/bar", true);
        check("**/foo/bar", "foo/barbar", false);
        check("abc/**", "abcd", false);
        check("**/.foo", "bar.foo", false);
        check("*/..", "a", false);
        check("bar/", "bar", true);
        check("./bar", "bar", true);
        check("a(b)c/def", "a(b)c/def", true);
        check("a.|)$(}+{bc", "a.|)$(}+{bc", true);
        check("dist/*.whl", "dist/proxy.py-2.4.0rc3.dev36+g08acad9-py3-none-any.whl", true);
        check("[!a]x", "bx", false);
        check("[!a]x", "!x", true);
        check("[[:digit:]]", "7", true);
        check("{a,b}", "a", false);
        check("[a&&b]", "&", true);
        check("a{2}*", "aab", true);
        check("{a}*", "{a}b", true);
        check("a|*", "anything/at/all", true);
    }

    #[test]
    fn later_patterns_take_back_what_earlier_ones_said() {
        let check = |patterns: &[&str], path: &str, expected: bool| {
            let matcher = PatternMatcher::new(patterns).unwrap();
            assert_eq!(matcher.matches_or_parent_matches(path), expected, "{patterns:?} {path:?}");
        };
        check(&["*", "!a"], "a", false);
        check(&["*", "!a"], "b", true);
        check(&["!a", "*"], "a", true);
        check(&["docs", "!docs/README.md"], "docs/README.md", false);
        check(&["docs", "!docs/README.md"], "docs/other", true);
        check(&["**", "!util/docker/web"], "util/docker/web/foo", false);
        check(&["**", "!util/docker/web", "util/docker/web/foo"], "util/docker/web/foo", true);
        check(&["a", "!a/b", "a/b/c"], "a/b/c", true);
        check(&["", " a "], "a", true);
    }

    fn walked(matcher: &PatternMatcher, path: &str) -> bool {
        let mut said = ParentMatches::default();
        for folder in folders(path) {
            said = matcher.matches(folder, &said).1;
        }
        matcher.matches(path, &said).0
    }

    #[test]
    fn a_walk_says_the_same_as_each_path_alone() {
        let paths = ["a", "a/b", "a/b/c", "a/d", "a/d/x.txt", "x.txt", "a/b/c/e"];
        let lists: [&[&str]; 5] = [
            &["a", "!a/b"],
            &["*", "!a", "a/b", "!a/b/c"],
            &["a/*", "!a/b", "a/b/c/e"],
            &["!a", "a/b"],
            &["**/c", "!**/e"],
        ];
        for patterns in lists {
            let matcher = PatternMatcher::new(patterns).unwrap();
            for path in paths {
                assert_eq!(
                    walked(&matcher, path),
                    matcher.matches_or_parent_matches(path),
                    "{patterns:?} {path}"
                );
            }
        }
    }

    #[test]
    fn an_exception_for_a_folder_that_did_not_match_is_forgotten_in_a_walk() {
        // Moby's walk asks an exception only where there is something to except, and does not come
        // back to it for what is in the folder. Contexts are sent by such a walk.
        let matcher = PatternMatcher::new(["**/*.txt", "!a/d"]).unwrap();
        assert!(!matcher.matches_or_parent_matches("a/d/x.txt"));
        assert!(walked(&matcher, "a/d/x.txt"));
    }

    #[test]
    fn a_folder_is_entered_only_for_what_may_be_saved_in_it() {
        let check = |patterns: &[&str], folder: &str, covered: bool| {
            let matcher = PatternMatcher::new(patterns).unwrap();
            assert_eq!(matcher.covers(folder), covered, "{patterns:?} {folder}");
        };
        check(&["a"], "a", true);
        check(&["*", "!a/b/c"], "a", false);
        check(&["*", "!a/b/c"], "a/b", false);
        check(&["*", "!a/b/c"], "b", true);
        check(&["*", "!a/b/**"], "a/b", false);
        check(&["*", "!a/b/*"], "a/c", true);
        check(&["*", "!**/x"], "b", false);
    }

    #[test]
    fn wrong_patterns_are_refused() {
        let check = |pattern: &str| {
            assert!(PatternMatcher::new([pattern]).is_err(), "{pattern}");
        };
        check("!");
        check("[");
        check("a\\");
        check("[z-a]");
    }
}
