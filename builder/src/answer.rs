//! `--call`: what is wrong with a Dockerfile, what its target can be given, which stages it has;
//! answered on stdout instead of building.
//!
//! Texts and JSON are those that buildx prints (BuildKit's `frontend/subrequests/{lint,outline,
//! targets}`; buildx `commands/build.go`, `printResult`), since programs read them. Left out of the
//! JSON is `definition`, BuildKit's own graph.

use std::fmt::Write as _;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use rbuild_frontend::check::Warning;
use rbuild_frontend::diagnostic::{Diagnostic, Diagnostics};
use rbuild_frontend::source::{Source, Span};
use rbuild_frontend::{BuildOptions, Dockerfile, Outline, Resolved, TargetDescription};
use serde_json::{Map, Value, json};

use crate::build::{Loaded, Session};
use crate::error::{BuildError, ErrorKind};
use crate::progress::harmless;
use crate::request::{Call, CallFormat};

/// The answer to a `--call`.
#[derive(Clone, Debug, Default)]
pub struct Answer {
    /// For stdout.
    pub text: String,
    /// It says that something is wrong.
    pub failure: Option<BuildError>,
}

/// Answers the call of the session's request; `None` when it is to build.
pub(crate) async fn answer(
    session: &Session<'_>,
    loaded: &Loaded,
) -> Result<Option<Answer>, BuildError> {
    let call = session.request.call;
    if call == Call::Build {
        return Ok(None);
    }
    let Loaded { contexts, dockerfile } = loaded;
    let source = &dockerfile.source;
    if let Call::Targets(format) = call {
        let targets = rbuild_frontend::targets(dockerfile);
        let text = match format {
            CallFormat::Text => targets_text(&targets),
            CallFormat::Json => pretty(&targets_json(&targets, source)),
        };
        return Ok(Some(Answer { text, failure: None }));
    }
    let options = session.options(&session.request.platforms[0], contexts);
    let resolved = session.resolve(dockerfile, &options).await;
    if let (Call::Check(format), Err(error)) = (call, &resolved) {
        return Ok(Some(check_without_images(format, dockerfile, &options, error)));
    }
    let resolved = resolved?;
    let wrong = |diagnostics: Diagnostics| BuildError::dockerfile(&diagnostics.0, source);
    if let Call::Outline(format) = call {
        let outline = rbuild_frontend::outline(dockerfile, &options, &resolved).map_err(wrong)?;
        let text = match format {
            CallFormat::Text => outline_text(&outline),
            CallFormat::Json => pretty(&outline_json(&outline, source)),
        };
        return Ok(Some(Answer { text, failure: None }));
    }
    let mut report = rbuild_frontend::check(dockerfile, &options, &resolved).map_err(wrong)?;
    let json = call == Call::Check(CallFormat::Json);
    if !json {
        // As BuildKit: programs get the order in which they were found.
        report.warnings.sort_by_key(|warning| source.line(warning.span.start));
    }
    let text = if json {
        pretty(&check_json(&report.warnings, &report.errors.0, source))
    } else {
        check_text(&report.warnings, !report.errors.0.is_empty(), source)
    };
    let failure = match (report.warnings.is_empty(), report.errors.0.is_empty()) {
        (true, true) => None,
        (_, false) if !json => Some(wrong(report.errors)),
        // The answer says it all; what is left is the exit code.
        _ => Some(BuildError { kind: ErrorKind::Failed, problems: Vec::new() }),
    };
    Ok(Some(Answer { text, failure }))
}

/// The answer to `--check` where a stage or an image that the Dockerfile names cannot be had: what
/// the text alone shows, and that error.
fn check_without_images(
    format: CallFormat,
    dockerfile: &Dockerfile,
    options: &BuildOptions,
    error: &BuildError,
) -> Answer {
    let source = &dockerfile.source;
    // What is wrong besides comes of what is missing.
    let report = rbuild_frontend::check(dockerfile, options, &Resolved::default());
    let mut warnings = report.map(|report| report.warnings).unwrap_or_default();
    match format {
        CallFormat::Text => {
            warnings.sort_by_key(|warning| source.line(warning.span.start));
            Answer { text: check_text(&warnings, true, source), failure: Some(error.clone()) }
        }
        CallFormat::Json => {
            let problem = error.problems.first();
            let mut diagnostic = Diagnostic::error(
                problem.map_or("", |problem| problem.message.as_str()),
                Span::default(),
            );
            diagnostic.span = problem.and_then(|problem| {
                let span = &problem.excerpt.as_ref()?.span;
                Some(Span::new(span.start, span.end))
            });
            let text = pretty(&check_json(&warnings, &[diagnostic], source));
            let failure = BuildError { kind: error.kind, problems: Vec::new() };
            Answer { text, failure: Some(failure) }
        }
    }
}

fn pretty(value: &Value) -> String {
    format!("{value:#}\n")
}

fn check_text(warnings: &[Warning], errors: bool, source: &Source) -> String {
    let mut text = match warnings.len() {
        0 if errors => String::new(),
        0 => "Check complete, no warnings found.\n".to_owned(),
        1 => "Check complete, 1 warning has been found!\n".to_owned(),
        count => format!("Check complete, {count} warnings have been found!\n"),
    };
    for warning in warnings {
        let url = warning.rule.url().map_or(String::new(), |url| format!(" - {url}"));
        let message = harmless::line(&warning.message);
        let _ = write!(text, "\nWARNING: {}{url}\n{message}\n", warning.rule.name());
        excerpt(&mut text, source, warning.span);
    }
    if errors && !warnings.is_empty() {
        text.push('\n');
    }
    text
}

/// The lines of a span with those around them (BuildKit, `solver/errdefs/source.go`).
fn excerpt(text: &mut String, source: &Source, span: Span) {
    const RULE: &str = "--------------------\n";
    let lines: Vec<&str> = source.text().split('\n').collect();
    let (first, last) = lines_of(source, span);
    let (mut start, mut end) = (first, last.min(lines.len()));
    let wanted = if start == end { 4 } else { 2 };
    let mut added = 0;
    while added < wanted {
        if start > 1 {
            start -= 1;
            added += 1;
        }
        if end != lines.len() {
            end += 1;
            added += 1;
        }
        added += 1;
    }
    let _ = write!(text, "{}:{first}\n{RULE}", source.name());
    for number in start..=end {
        let mark = if (first..=last).contains(&number) { ">>>" } else { "   " };
        let line = lines.get(number - 1).copied().unwrap_or_default();
        // Tabs stay tabs, as programs that read this know them.
        let line = line.split('\t').map(harmless::line).collect::<Vec<_>>().join("\t");
        let _ = writeln!(text, " {number:3} | {mark} {line}");
    }
    text.push_str(RULE);
}

/// The first and the last line of a span, counted from 1.
fn lines_of(source: &Source, span: Span) -> (usize, usize) {
    let last = span.end.saturating_sub(1).max(span.start);
    (source.line(span.start), source.line(last))
}

/// A span as BuildKit's `pb.Location`, a range for each line: zeros are left out, as Go leaves them
/// out.
fn location(source: &Source, span: Span) -> Value {
    let (first, last) = lines_of(source, span);
    let range = |line| json!({ "start": { "line": line }, "end": { "line": line } });
    json!({ "ranges": (first..=last).map(range).collect::<Vec<Value>>() })
}

fn check_json(warnings: &[Warning], errors: &[Diagnostic], source: &Source) -> Value {
    let warning = |warning: &Warning| {
        let mut object = Map::new();
        object.insert("ruleName".into(), warning.rule.name().into());
        object.insert("description".into(), warning.rule.description().into());
        if let Some(url) = warning.rule.url() {
            object.insert("url".into(), url.into());
        }
        object.insert("detail".into(), warning.message.clone().into());
        object.insert("location".into(), location(source, warning.span));
        Value::Object(object)
    };
    let warnings: Vec<Value> = warnings.iter().map(warning).collect();
    let mut answer = json!({
        "warnings": warnings,
        "sources": [{
            "filename": source.name(),
            "data": BASE64_STANDARD.encode(source.text()),
            "language": "Dockerfile",
        }],
    });
    if let Some(error) = errors.first() {
        let place = error.span.map_or(json!({}), |span| location(source, span));
        answer["buildError"] = json!({ "message": error.message, "location": place });
    }
    answer
}

fn outline_text(outline: &Outline) -> String {
    let mut text = String::new();
    if outline.name.is_some() || outline.description.is_some() {
        let name = outline.name.as_deref().unwrap_or("(default)");
        let mut rows = vec![["TARGET:", name]];
        rows.extend(outline.description.as_deref().map(|words| ["DESCRIPTION:", words]));
        text.push_str(&columns(&rows, 1));
        text.push('\n');
    }
    if !outline.arguments.is_empty() {
        let mut rows = vec![["BUILD ARG", "VALUE", "DESCRIPTION"]];
        rows.extend(outline.arguments.iter().map(|argument| {
            let description = argument.description.as_deref().unwrap_or_default();
            [argument.name.as_str(), argument.value.as_str(), description]
        }));
        text.push_str(&columns(&rows, 3));
        text.push('\n');
    }
    for (heading, inputs) in [("SECRET", &outline.secrets), ("SSH", &outline.ssh)] {
        if inputs.is_empty() {
            continue;
        }
        let mut rows = vec![[heading, "REQUIRED"]];
        rows.extend(
            inputs.iter().map(|input| [&*input.name, if input.required { "true" } else { "" }]),
        );
        text.push_str(&columns(&rows, 3));
        text.push('\n');
    }
    text
}

fn outline_json(outline: &Outline, source: &Source) -> Value {
    let mut answer = Map::new();
    let mut text = |key: &str, value: &Option<String>| {
        if let Some(value) = value {
            answer.insert(key.to_owned(), value.clone().into());
        }
    };
    text("name", &outline.name);
    text("description", &outline.description);
    let argument = |argument: &rbuild_frontend::OutlineArgument| {
        let mut object = Map::from_iter([("name".to_owned(), argument.name.clone().into())]);
        if let Some(description) = &argument.description {
            object.insert("description".into(), description.clone().into());
        }
        if !argument.value.is_empty() {
            object.insert("value".into(), argument.value.clone().into());
        }
        object.insert("location".into(), location(source, argument.span));
        Value::Object(object)
    };
    let input = |input: &rbuild_frontend::OutlineInput| {
        let mut object = Map::from_iter([("name".to_owned(), input.name.clone().into())]);
        if input.required {
            object.insert("required".into(), true.into());
        }
        object.insert("location".into(), location(source, input.span));
        Value::Object(object)
    };
    let mut list = |key: &str, values: Vec<Value>| {
        if !values.is_empty() {
            answer.insert(key.to_owned(), values.into());
        }
    };
    list("args", outline.arguments.iter().map(argument).collect());
    list("secrets", outline.secrets.iter().map(input).collect());
    list("ssh", outline.ssh.iter().map(input).collect());
    list("sources", vec![BASE64_STANDARD.encode(source.text()).into()]);
    Value::Object(answer)
}

fn targets_text(targets: &[TargetDescription]) -> String {
    let names: Vec<String> = targets
        .iter()
        .map(|target| match (&target.name, target.default) {
            (None, true) => "(default)".to_owned(),
            (name, true) => format!("{} (default)", name.as_deref().unwrap_or_default()),
            (name, false) => name.clone().unwrap_or_default(),
        })
        .collect();
    let mut rows = vec![["TARGET", "DESCRIPTION"]];
    let described = names.iter().zip(targets);
    rows.extend(
        described.map(|(name, target)| {
            [name.as_str(), target.description.as_deref().unwrap_or_default()]
        }),
    );
    columns(&rows, 1)
}

fn targets_json(targets: &[TargetDescription], source: &Source) -> Value {
    let target = |target: &TargetDescription| {
        let mut object = Map::new();
        let mut text = |key: &str, value: Option<&str>| {
            if let Some(value) = value.filter(|value| !value.is_empty()) {
                object.insert(key.to_owned(), value.into());
            }
        };
        text("name", target.name.as_deref());
        text("description", target.description.as_deref());
        text("base", Some(&target.base));
        text("platform", target.platform.as_deref());
        if target.default {
            object.insert("default".into(), true.into());
        }
        object.insert("location".into(), location(source, target.span));
        Value::Object(object)
    };
    let targets: Vec<Value> = targets.iter().map(target).collect();
    json!({ "targets": targets, "sources": [BASE64_STANDARD.encode(source.text())] })
}

/// Rows whose cells begin below each other, `gap` blanks behind the longest one; the last cell of a
/// row ends it (Go's `text/tabwriter`).
fn columns<const N: usize>(rows: &[[&str; N]], gap: usize) -> String {
    let rows: Vec<[String; N]> = rows.iter().map(|row| row.map(harmless::line)).collect();
    let width =
        |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0) + gap;
    let mut text = String::new();
    for row in &rows {
        for (column, cell) in row.iter().enumerate() {
            text.push_str(cell);
            if column + 1 < N {
                text.push_str(&" ".repeat(width(column) - cell.chars().count()));
            }
        }
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use rbuild_cache::oci::Platform;

    use super::*;

    const DOCKERFILE: &str = "\
# VERSION is what is built.
ARG VERSION=1

# build compiles.
FROM scratch AS Build
ARG VERSION
ENV v=$VERSION
LABEL a=$MISSING

FROM scratch
COPY --from=Build / /
";

    fn parsed(source: Source) -> rbuild_frontend::Dockerfile {
        let (dockerfile, diagnostics) = rbuild_frontend::parse(source);
        assert!(!diagnostics.has_errors());
        dockerfile
    }

    fn check_report(text: &str) -> (Source, Vec<Warning>, Vec<Diagnostic>) {
        let source = Source::new("Dockerfile", text);
        let dockerfile = parsed(source.clone());
        let options = BuildOptions::new(Platform::new("linux", "amd64", None));
        let report = rbuild_frontend::check(&dockerfile, &options, &Resolved::default()).unwrap();
        (source, report.warnings, report.errors.0)
    }

    #[test]
    fn checks_as_text() {
        let (source, warnings, _) = check_report(DOCKERFILE);
        insta::assert_snapshot!(check_text(&warnings, false, &source), @r#"
        Check complete, 2 warnings have been found!

        WARNING: StageNameCasing - https://docs.docker.com/go/dockerfile/rule/stage-name-casing/
        Stage name 'Build' should be lowercase
        Dockerfile:5
        --------------------
           3 |     
           4 |     # build compiles.
           5 | >>> FROM scratch AS Build
           6 |     ARG VERSION
           7 |     ENV v=$VERSION
        --------------------

        WARNING: UndefinedVar - https://docs.docker.com/go/dockerfile/rule/undefined-var/
        Usage of undefined variable '$MISSING'
        Dockerfile:8
        --------------------
           6 |     ARG VERSION
           7 |     ENV v=$VERSION
           8 | >>> LABEL a=$MISSING
           9 |     
          10 |     FROM scratch
        --------------------
        "#);
        let (source, warnings, _) = check_report("FROM scratch\nLABEL\ta=$MISSING\tb=c\u{1b}[2J\n");
        let text = check_text(&warnings, false, &source);
        assert!(text.contains("\n   2 | >>> LABEL\ta=$MISSING\tb=c\n"), "{text:?}");
        assert_eq!(check_text(&[], false, &source), "Check complete, no warnings found.\n");
    }

    #[test]
    fn checks_as_json() {
        let (source, warnings, errors) = check_report(DOCKERFILE);
        let answer = check_json(&warnings, &errors, &source);
        insta::assert_snapshot!(pretty(&answer), @r#"
        {
          "warnings": [
            {
              "ruleName": "StageNameCasing",
              "description": "Stage names should be lowercase",
              "url": "https://docs.docker.com/go/dockerfile/rule/stage-name-casing/",
              "detail": "Stage name 'Build' should be lowercase",
              "location": {
                "ranges": [
                  {
                    "start": {
                      "line": 5
                    },
                    "end": {
                      "line": 5
                    }
                  }
                ]
              }
            },
            {
              "ruleName": "UndefinedVar",
              "description": "Variables should be defined before their use",
              "url": "https://docs.docker.com/go/dockerfile/rule/undefined-var/",
              "detail": "Usage of undefined variable '$MISSING'",
              "location": {
                "ranges": [
                  {
                    "start": {
                      "line": 8
                    },
                    "end": {
                      "line": 8
                    }
                  }
                ]
              }
            }
          ],
          "sources": [
            {
              "filename": "Dockerfile",
              "data": "IyBWRVJTSU9OIGlzIHdoYXQgaXMgYnVpbHQuCkFSRyBWRVJTSU9OPTEKCiMgYnVpbGQgY29tcGlsZXMuCkZST00gc2NyYXRjaCBBUyBCdWlsZApBUkcgVkVSU0lPTgpFTlYgdj0kVkVSU0lPTgpMQUJFTCBhPSRNSVNTSU5HCgpGUk9NIHNjcmF0Y2gKQ09QWSAtLWZyb209QnVpbGQgLyAvCg==",
              "language": "Dockerfile"
            }
          ]
        }
        "#);
        let (source, warnings, errors) = check_report("FROM scratch\nCOPY --from=9 a b\n");
        let answer = check_json(&warnings, &errors, &source);
        assert_eq!(answer["buildError"]["location"]["ranges"][0]["start"]["line"], 2, "{answer}");
    }

    #[test]
    fn targets_are_listed() {
        let source = Source::new("Dockerfile", DOCKERFILE);
        let dockerfile = parsed(source.clone());
        let targets = rbuild_frontend::targets(&dockerfile);
        insta::assert_snapshot!(targets_text(&targets), @r#"
        TARGET    DESCRIPTION
        build     compiles.
        (default)
        "#);
        insta::assert_snapshot!(pretty(&targets_json(&targets, &source)), @r#"
        {
          "targets": [
            {
              "name": "build",
              "description": "compiles.",
              "base": "scratch",
              "location": {
                "ranges": [
                  {
                    "start": {
                      "line": 5
                    },
                    "end": {
                      "line": 5
                    }
                  }
                ]
              }
            },
            {
              "base": "scratch",
              "default": true,
              "location": {
                "ranges": [
                  {
                    "start": {
                      "line": 10
                    },
                    "end": {
                      "line": 10
                    }
                  }
                ]
              }
            }
          ],
          "sources": [
            "IyBWRVJTSU9OIGlzIHdoYXQgaXMgYnVpbHQuCkFSRyBWRVJTSU9OPTEKCiMgYnVpbGQgY29tcGlsZXMuCkZST00gc2NyYXRjaCBBUyBCdWlsZApBUkcgVkVSU0lPTgpFTlYgdj0kVkVSU0lPTgpMQUJFTCBhPSRNSVNTSU5HCgpGUk9NIHNjcmF0Y2gKQ09QWSAtLWZyb209QnVpbGQgLyAvCg=="
          ]
        }
        "#);
    }

    #[test]
    fn an_outline_lists_what_can_be_given() {
        let source = Source::new("Dockerfile", DOCKERFILE);
        let dockerfile = parsed(source.clone());
        let options = BuildOptions::new(Platform::new("linux", "amd64", None));
        let outline =
            rbuild_frontend::outline(&dockerfile, &options, &Resolved::default()).unwrap();
        insta::assert_snapshot!(outline_text(&outline), @r#"
        BUILD ARG   VALUE   DESCRIPTION
        VERSION     1       is what is built.
        "#);
        insta::assert_snapshot!(pretty(&outline_json(&outline, &source)), @r#"
        {
          "args": [
            {
              "name": "VERSION",
              "description": "is what is built.",
              "value": "1",
              "location": {
                "ranges": [
                  {
                    "start": {
                      "line": 2
                    },
                    "end": {
                      "line": 2
                    }
                  }
                ]
              }
            }
          ],
          "sources": [
            "IyBWRVJTSU9OIGlzIHdoYXQgaXMgYnVpbHQuCkFSRyBWRVJTSU9OPTEKCiMgYnVpbGQgY29tcGlsZXMuCkZST00gc2NyYXRjaCBBUyBCdWlsZApBUkcgVkVSU0lPTgpFTlYgdj0kVkVSU0lPTgpMQUJFTCBhPSRNSVNTSU5HCgpGUk9NIHNjcmF0Y2gKQ09QWSAtLWZyb209QnVpbGQgLyAvCg=="
          ]
        }
        "#);
    }
}
