//! Shell patterns in `${v#p}`, `${v%p}` and `${v/p/r}`: `*` and `?`, without brackets.

use regex::Regex;

use super::{ExpandReason, LIMIT};

/// At which end of a value something is taken off.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    Front,
    Back,
}

/// `value` without the shortest or longest beginning or end that is as `pattern` says.
pub(super) fn trim(
    value: &str,
    pattern: &str,
    end: End,
    longest: bool,
) -> Result<String, ExpandReason> {
    match end {
        End::Front => trim_front(value, pattern, longest),
        // The shortest end cannot be asked for, but the shortest beginning of the reverse can.
        End::Back => {
            let reversed = trim_front(&reverse(value), &reverse_pattern(pattern), longest)?;
            Ok(reverse(&reversed))
        }
    }
}

fn trim_front(value: &str, pattern: &str, longest: bool) -> Result<String, ExpandReason> {
    let star = if longest { ".*" } else { ".*?" };
    let regex = compile(pattern, "^", star)?;
    let end = regex.find(value).map_or(0, |found| found.end());
    Ok(value[end..].to_owned())
}

/// `value` with the first, or all, of what is as `pattern` says replaced.
///
/// Where all are, `$0` and the like in the replacement have Go's meaning (`regexp.Expand`), since
/// BuildKit gives it to them.
pub(super) fn replace(
    value: &str,
    pattern: &str,
    replacement: &str,
    all: bool,
) -> Result<String, ExpandReason> {
    let regex = compile(pattern, "", ".*")?;
    if !all {
        return Ok(regex.replacen(value, 1, regex::NoExpand(replacement)).into_owned());
    }
    let mut out = String::with_capacity(value.len());
    let mut behind = 0;
    for captures in regex.captures_iter(value) {
        let found = captures.get_match();
        out.push_str(&value[behind..found.start()]);
        captures.expand(replacement, &mut out);
        behind = found.end();
        if out.len() > LIMIT {
            return Err(ExpandReason::TooLong);
        }
    }
    out.push_str(&value[behind..]);
    Ok(out)
}

/// The regular expression that finds what `pattern` says, behind `anchor`, with `star` for `*`.
fn compile(pattern: &str, anchor: &str, star: &str) -> Result<Regex, ExpandReason> {
    let wrong = |reason: String| ExpandReason::Pattern { pattern: pattern.to_owned(), reason };
    let mut regex = anchor.to_owned();
    let mut chars = pattern.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '*' => regex.push_str(star),
            '?' => regex.push('.'),
            // These two are escaped for the sake of the `${…}` around the pattern.
            '\\' if matches!(chars.peek(), Some('}' | '/')) => {}
            '\\' => match chars.next() {
                Some(escaped @ ('*' | '?' | '\\')) => regex.extend(['\\', escaped]),
                other => {
                    let other = other.unwrap_or(char::REPLACEMENT_CHARACTER);
                    return Err(wrong(format!("invalid escape '\\{other}'")));
                }
            },
            '[' | ']' | '{' | '}' | '.' | '+' | '(' | ')' | '|' | '^' | '$' => {
                regex.extend(['\\', c]);
            }
            c => regex.push(c),
        }
    }
    Regex::new(&regex).map_err(|error| wrong(error.to_string()))
}

fn reverse(text: &str) -> String {
    text.chars().rev().collect()
}

/// `pattern` from back to front, with each escape still before what it escapes.
fn reverse_pattern(pattern: &str) -> String {
    let mut units: Vec<&str> = Vec::new();
    let mut rest = pattern;
    while let Some(first) = rest.chars().next() {
        let second = rest[first.len_utf8()..].chars().next().filter(|_| first == '\\');
        let length = first.len_utf8() + second.map_or(0, char::len_utf8);
        let (unit, behind) = rest.split_at(length);
        units.push(unit);
        rest = behind;
    }
    units.into_iter().rev().collect()
}
