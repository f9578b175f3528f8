//! Parser directives: `# syntax=`, `# escape=` and `# check=` lines at the top of the file.
//!
//! Follows BuildKit's `parser/directives.go`.

use crate::diagnostic::Diagnostic;
use crate::source::{Source, Span, Text};

/// A directive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Directive {
    /// Its name in lower case: `syntax`, `escape` or `check`.
    pub name: String,
    /// Its value, without white space at its ends.
    pub value: Text,
}

/// The names that make a comment a directive.
const NAMES: [&str; 3] = ["syntax", "escape", "check"];

/// White space around names and values (Go's `\s`).
const BLANKS: [char; 5] = ['\t', '\n', '\x0c', '\r', ' '];

impl Directive {
    /// The name, in lower case, and value of the directive that the comment `text` (without its
    /// `#`) is.
    pub fn from_comment(text: &str) -> Option<(String, &str)> {
        let (name, value) = text.trim_start().split_once('=')?;
        let name = name.trim_end_matches(BLANKS).to_ascii_lowercase();
        let value = value.trim_matches(BLANKS);
        let known = NAMES.contains(&name.as_str()) && !value.is_empty();
        known.then_some((name, value))
    }
}

/// Reads directives as long as there are some: the first line that is none ends them.
#[derive(Clone, Debug, Default)]
pub(super) struct Directives {
    seen: Vec<String>,
    done: bool,
}

impl Directives {
    /// The directive that `line`, which stands at `offset`, is.
    pub(super) fn read(
        &mut self,
        line: &str,
        offset: usize,
    ) -> Result<Option<Directive>, Diagnostic> {
        self.read_marked(line, offset, "#")
    }

    fn read_marked(
        &mut self,
        line: &str,
        offset: usize,
        marker: &str,
    ) -> Result<Option<Directive>, Diagnostic> {
        let comment = line.strip_prefix(marker).filter(|_| !self.done);
        let Some((name, value)) = comment.and_then(Directive::from_comment) else {
            self.done = true;
            return Ok(None);
        };
        let start = offset + line.rfind(value).unwrap_or(0);
        let span = Span::new(start, start + value.len());
        if self.seen.contains(&name) {
            let message = format!("only one {name} parser directive can be used");
            return Err(Diagnostic::error(message, Span::new(offset, span.end)));
        }
        self.seen.push(name.clone());
        Ok(Some(Directive { name, value: Text::new(value.to_owned(), span) }))
    }
}

/// The directive called `name`, as BuildKit looks for `syntax` and `check`: other than for
/// `escape`, a `#!` line may stand before the directives, but no white space before a `#`.
pub fn find(source: &Source, name: &str) -> Option<Text> {
    find_marked(source, name, "#")
}

/// The frontend that `source` asks for: the first word of its `syntax` directive, which in another
/// language than ours may begin with `//`, or be a field of a JSON object.
pub fn frontend(source: &Source) -> Option<Text> {
    let directive = find(source, "syntax").or_else(|| find_marked(source, "syntax", "//"));
    if let Some(directive) = directive {
        let word = directive.value.split(' ').next().unwrap_or_default();
        let span = Span::new(directive.span.start, directive.span.start + word.len());
        return Some(Text::new(word.to_owned(), span));
    }
    let text = source.text().trim_start_matches('\u{feff}');
    if !text.trim_start().starts_with('{') {
        return None;
    }
    let object: serde_json::Map<String, serde_json::Value> = serde_json::from_str(text).ok()?;
    let name = object.get("syntax")?.as_str()?.to_owned();
    Some(Text::new(name, source.line_span(1)?))
}

/// Whether the frontend `name` is the language that is read here: `docker/dockerfile`, or its
/// `-upstream`, of any version and from any registry.
pub fn is_ours(name: &str) -> bool {
    let name = name.split('@').next().unwrap_or_default();
    let (path, last) = name.rsplit_once('/').unwrap_or(("", name));
    let repository = last.split(':').next().unwrap_or_default();
    matches!(repository, "dockerfile" | "dockerfile-upstream")
        && (path == "docker" || path.ends_with("/docker"))
}

/// Directives of rbuild's own, `# rbuild: NAME=VALUE`, one a line: names and values, in order. They
/// stand among the comments before the first instruction.
pub fn own(source: &Source) -> Vec<(Text, Text)> {
    let text = source.text();
    let mut found = Vec::new();
    let mut offset = text.len() - text.trim_start_matches('\u{feff}').len();
    for line in text[offset..].split_inclusive('\n') {
        let start = offset;
        offset += line.len();
        let content = line.trim_matches(BLANKS);
        let Some(comment) = content.strip_prefix('#') else {
            if content.is_empty() {
                continue;
            }
            break;
        };
        let setting = comment.trim_start().strip_prefix("rbuild:");
        let Some((name, value)) = setting.and_then(|setting| setting.split_once('=')) else {
            continue;
        };
        let (name, value) = (name.trim_matches(BLANKS), value.trim_matches(BLANKS));
        let text = |part: &str, at: usize| {
            Text::new(part.to_owned(), Span::new(start + at, start + at + part.len()))
        };
        let name_at = line.find(name).unwrap_or(0);
        let value_at = line.find('=').map_or(0, |at| at + 1);
        let value_at = value_at + line[value_at..].find(value).unwrap_or(0);
        found.push((text(name, name_at), text(value, value_at)));
    }
    found
}

fn find_marked(source: &Source, name: &str, marker: &str) -> Option<Text> {
    let text = source.text();
    let mut offset = text.len() - text.trim_start_matches('\u{feff}').len();
    if text[offset..].starts_with("#!") {
        offset = text[offset..].find('\n').map_or(text.len(), |end| offset + end + 1);
    }
    let mut directives = Directives::default();
    for line in text[offset..].split_inclusive('\n') {
        let content = line.strip_suffix('\n').unwrap_or(line);
        let content = content.strip_suffix('\r').unwrap_or(content);
        let directive = directives.read_marked(content, offset, marker).ok()??;
        if directive.name == name {
            return Some(directive.value);
        }
        offset += line.len();
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directives_stand_before_everything_else() {
        let check = |text: &str, name: &str, expected: Option<&str>| {
            let source = Source::new("Dockerfile", text);
            let found = find(&source, name);
            assert_eq!(found.as_ref().map(Text::as_str), expected, "{text:?}");
            assert_eq!(found.map(|value| source.slice(value.span).to_owned()).as_deref(), expected);
        };
        check("# check=skip=all\nFROM a", "check", Some("skip=all"));
        check("#syntax = a \r\n# CHECK=error=true", "check", Some("error=true"));
        check("\u{feff}# check=a", "check", Some("a"));
        check("#!/bin/x\n# check=a", "check", Some("a"));
        check("# about\n# check=a", "check", None);
        check("\n# check=a", "check", None);
        check(" # check=a", "check", None);
        check("# other=b\n# check=a", "check", None);
        check("# syntax=a\n# syntax=b\n# check=a", "check", None);
        check("# check=", "check", None);
    }

    #[test]
    fn directives_of_its_own_stand_before_the_first_instruction() {
        let text = "# syntax=x\n# about\n\n#rbuild: slim = auto\r\n# rbuild: slim-probe=a b=c\n\
                    # rbuild: no\nFROM a\n# rbuild: slim=off\n";
        let source = Source::new("Dockerfile", text);
        let found = own(&source);
        let shown: Vec<(&str, &str)> =
            found.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        assert_eq!(shown, [("slim", "auto"), ("slim-probe", "a b=c")]);
        for (_, value) in &found {
            assert_eq!(source.slice(value.span), value.as_str());
        }
    }

    #[test]
    fn other_languages_name_their_frontend_otherwise() {
        let check = |text: &str, expected: Option<&str>| {
            let source = Source::new("Dockerfile", text);
            assert_eq!(frontend(&source).as_ref().map(Text::as_str), expected, "{text:?}");
        };
        check("# syntax=a/b:1 --flag", Some("a/b:1"));
        check("// syntax=a/b\n{}", Some("a/b"));
        check("{\"syntax\": \"a/b\"}", Some("a/b"));
        check("{\"syntax\": 1}", None);
        check("FROM a", None);
    }

    #[test]
    fn docker_dockerfile_is_ours_wherever_it_comes_from() {
        let check = |name, expected| assert_eq!(is_ours(name), expected, "{name}");
        check("docker/dockerfile", true);
        check("docker/dockerfile:1.7-labs", true);
        check("docker.io/docker/dockerfile:1@sha256:abc", true);
        check("localhost:5000/mirror/docker/dockerfile:1", true);
        check("docker/dockerfile-upstream:master-labs", true);
        check("dockerfile:1", false);
        check("mydocker/dockerfile", false);
        check("docker/buildx-bake", false);
    }
}
