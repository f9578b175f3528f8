//! What differs between two steps, in words.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::reads::Change;
use super::{Evidence, InputEvidence, Reads};

/// Names of variables of the Dockerfile that are ARGs; all others are ENVs.
pub type Names = BTreeSet<String>;

/// So many paths are named in one line.
const NAMED: usize = 2;

/// So much of a value is shown in one line.
const SHOWN: usize = 40;

/// One thing that differs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum Difference {
    /// The command of a RUN.
    Command {
        /// As it was.
        before: String,
        /// As it is.
        now: String,
    },
    /// A variable: `ARG VERSION`, `ENV PATH`.
    Variable {
        /// What it is called.
        name: String,
        /// Its value before; none when it was not set.
        before: Option<String>,
        /// Its value now.
        now: Option<String>,
    },
    /// Another part of the instruction.
    Part {
        /// Which: `user`, `destination`.
        name: String,
        /// As it was.
        before: String,
        /// As it is.
        now: String,
    },
    /// The image that it builds on.
    Image {
        /// What it is called.
        name: String,
        /// Its manifest before.
        before: String,
        /// Its manifest now.
        now: String,
    },
    /// The result of a step before it.
    Step {
        /// The step.
        name: String,
    },
    /// A path that it reads.
    Path {
        /// Which.
        path: String,
        /// `changed`, `added`, `removed`.
        how: String,
    },
    /// A source elsewhere: a git repository, a file by http.
    Revision {
        /// The commit, or the file's digest, as it was.
        before: String,
        /// As it is.
        now: String,
    },
    /// What it reads, where it is not known which paths these are.
    Content {
        /// Of what.
        name: String,
    },
}

/// All that differs, that which says most first.
pub(super) fn differences(
    old: &Evidence,
    new: &Evidence,
    old_reads: Option<&Reads>,
    new_reads: Option<&Reads>,
    arguments: &Names,
) -> Vec<Difference> {
    let mut found = of_ops(&old.op, &new.op, arguments);
    let mut content = Vec::new();
    for (position, now) in new.inputs.iter().enumerate() {
        let Some(before) = old.inputs.get(position) else { continue };
        if before.tree != now.tree {
            found.extend(of_trees(before, now));
        } else if let (Some(before), Some(now)) = (&before.revision, &now.revision)
            && before != now
        {
            found.push(Difference::Revision { before: before.clone(), now: now.clone() });
        } else if before.content != now.content {
            content.push(Difference::Content { name: now.from.clone() });
        }
    }
    let paths = match (old_reads, new_reads) {
        (Some(old), Some(new)) => new.since(old),
        _ => Vec::new(),
    };
    if paths.is_empty() {
        found.extend(content);
    }
    found.extend(paths.into_iter().map(|(path, change)| {
        let how = match change {
            Change::Changed => "changed",
            Change::Added => "added",
            Change::Removed => "removed",
        };
        Difference::Path { path, how: how.to_owned() }
    }));
    found
}

fn of_trees(before: &InputEvidence, now: &InputEvidence) -> Option<Difference> {
    match (before.image, now.image) {
        (Some(before), Some(image)) if before == image => None,
        (Some(before), Some(image)) => Some(Difference::Image {
            name: now.from.clone(),
            before: before.to_string(),
            now: image.to_string(),
        }),
        _ => Some(Difference::Step { name: now.from.clone() }),
    }
}

fn of_ops(old: &Value, new: &Value, arguments: &Names) -> Vec<Difference> {
    if old == new {
        return Vec::new();
    }
    let mut found = Vec::new();
    let run = |op: &Value| op.get("run").cloned();
    let (Some(before), Some(now)) = (run(old), run(new)) else {
        add_parts("", old, new, &mut found);
        return found;
    };
    let (Value::Object(before), Value::Object(now)) = (&before, &now) else { return found };
    for (name, now) in now {
        let before = before.get(name).unwrap_or(&Value::Null);
        match name.as_str() {
            _ if before == now => {}
            "args" => found.push(Difference::Command { before: words(before), now: words(now) }),
            "env" => add_variables(before, now, arguments, &mut found),
            _ => {
                let known = found.len();
                add_parts(name, before, now, &mut found);
                let whole = name.replace('_', " ");
                for difference in &mut found[known..] {
                    if let Difference::Part { name, .. } = difference
                        && *name != whole
                    {
                        // `mount id`: there are many ids.
                        *name = format!("{} {name}", whole.trim_end_matches('s'));
                    }
                }
            }
        }
    }
    // A variable changes the command too where progress shows it expanded; here the shell does that.
    found.sort_by_key(|difference| !matches!(difference, Difference::Variable { .. }));
    found
}

/// Names the innermost members that differ: those that people write.
fn add_parts(name: &str, old: &Value, new: &Value, found: &mut Vec<Difference>) {
    match (old, new) {
        _ if old == new => {}
        // People write these in one word.
        _ if matches!(name, "mode" | "owner") => found.push(part(name, old, new)),
        (Value::Object(before), Value::Object(now)) => {
            let names: BTreeSet<&String> = before.keys().chain(now.keys()).collect();
            for name in names {
                let value = |object: &serde_json::Map<String, Value>| {
                    object.get(name).cloned().unwrap_or_default()
                };
                add_parts(name, &value(before), &value(now), found);
            }
        }
        (Value::Array(before), Value::Array(now))
            if before.len() == now.len() && before.iter().any(Value::is_object) =>
        {
            for (before, now) in before.iter().zip(now) {
                add_parts(name, before, now, found);
            }
        }
        (Value::Array(before), Value::Array(now))
            if before.iter().chain(now).any(Value::is_object) =>
        {
            let without = |all: &[Value], others: &[Value]| -> Value {
                let left = all.iter().filter(|item| !others.contains(item)).cloned();
                let left: Vec<Value> = left.collect();
                if left.is_empty() { Value::Null } else { Value::Array(left) }
            };
            found.push(part(name, &without(before, now), &without(now, before)));
        }
        _ => found.push(part(name, old, new)),
    }
}

fn part(name: &str, before: &Value, now: &Value) -> Difference {
    let words = match name {
        "mode" => mode,
        "owner" => owner,
        _ => words,
    };
    Difference::Part { name: name.replace('_', " "), before: words(before), now: words(now) }
}

/// A mode as people write it: a number of an op, or a [`ModeChange`](crate::graph::ModeChange).
fn mode(value: &Value) -> String {
    match value.get("octal").unwrap_or(value).as_u64() {
        Some(number) => format!("{number:04o}"),
        None => words(value.get("symbolic").unwrap_or(value)),
    }
}

/// An [`Owner`](crate::graph::Owner) as people write it: `user:group`.
fn owner(value: &Value) -> String {
    let name = |of: &str| {
        let name = value.get(of).filter(|name| !name.is_null())?;
        Some(words(name.get("id").or_else(|| name.get("name")).unwrap_or(name)))
    };
    match (name("user"), name("group")) {
        (Some(user), Some(group)) => format!("{user}:{group}"),
        (Some(user), None) => user,
        _ => words(value),
    }
}

/// The text that `items` are the bytes of, if they are bytes.
fn text(items: &[Value]) -> Option<String> {
    let byte = |item: &Value| item.as_u64().and_then(|number| u8::try_from(number).ok());
    let bytes: Vec<u8> = items.iter().map(byte).collect::<Option<_>>()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

fn words(value: &Value) -> String {
    match value {
        Value::Null => "nothing".to_owned(),
        Value::String(text) => text.clone(),
        Value::Array(items) if items.iter().all(Value::is_string) => {
            let texts: Vec<&str> = items.iter().filter_map(Value::as_str).collect();
            // A shell that is called with one text is what `RUN TEXT` is.
            match texts.as_slice() {
                [_, "-c", text] => (*text).to_owned(),
                texts => texts.join(" "),
            }
        }
        // Bytes of a file that the Dockerfile holds.
        Value::Array(items) => text(items).unwrap_or_else(|| value.to_string()),
        other => other.to_string(),
    }
}

fn add_variables(old: &Value, new: &Value, arguments: &Names, found: &mut Vec<Difference>) {
    let variables = |list: &Value| -> BTreeMap<String, String> {
        let lines = list.as_array().into_iter().flatten().filter_map(Value::as_str);
        let pairs = lines.filter_map(|line| line.split_once('='));
        pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
    };
    let (before, now) = (variables(old), variables(new));
    let names: BTreeSet<&String> = before.keys().chain(now.keys()).collect();
    let known = found.len();
    for name in names {
        let (before, now) = (before.get(name), now.get(name));
        if before != now {
            let keyword = if arguments.contains(name) { "ARG" } else { "ENV" };
            found.push(Difference::Variable {
                name: format!("{keyword} {name}"),
                before: before.cloned(),
                now: now.cloned(),
            });
        }
    }
    if found.len() == known {
        found.push(part("the order of variables", old, new));
    }
}

/// The first differences in one line.
pub(super) fn reason(differences: &[Difference]) -> String {
    let Some(first) = differences.first() else {
        return "its record is gone".to_owned();
    };
    if !matches!(first, Difference::Path { .. }) {
        return first.to_string();
    }
    let named: Vec<String> = differences.iter().take(NAMED).map(ToString::to_string).collect();
    match differences.len() - named.len() {
        0 => named.join(", "),
        1 => format!("{}, and 1 more", named.join(", ")),
        more => format!("{}, and {more} more", named.join(", ")),
    }
}

impl std::fmt::Display for Difference {
    /// In one line.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Command { .. } => f.write_str("command changed"),
            Self::Variable { name, before: Some(before), now: Some(now) } => {
                let [before, now] = apart(before, now);
                write!(f, "{name} {before} → {now}")
            }
            Self::Variable { name, before: None, now } => {
                write!(f, "{name} is new: {}", cut(now.as_deref().unwrap_or_default()))
            }
            Self::Variable { name, now: None, .. } => write!(f, "{name} is gone"),
            Self::Part { name, before, now } => {
                let [before, now] = apart(before, now);
                write!(f, "{name} changed: {before} → {now}")
            }
            Self::Image { name, now, .. } => {
                let end = now.len().min("sha256:".len() + 12);
                write!(f, "base image {name} moved to {}", &now[..end])
            }
            Self::Step { name } => write!(f, "input step `{}` changed", cut(name)),
            Self::Revision { now, .. } => write!(f, "the source is {} now", cut(now)),
            Self::Path { path, how } => write!(f, "`{path}` {how}"),
            Self::Content { name } if name.is_empty() => f.write_str("what it reads changed"),
            Self::Content { name } => write!(f, "what it reads of `{}` changed", cut(name)),
        }
    }
}

/// So much of two values is shown before the place where they begin to differ.
const BEFORE: usize = 10;

/// The beginnings of two values; where those are the same, what they are from where they differ.
fn apart(before: &str, now: &str) -> [String; 2] {
    let shown = [cut(before), cut(now)];
    if shown[0] != shown[1] {
        return shown;
    }
    let same = before.chars().zip(now.chars()).take_while(|(a, b)| a == b).count();
    // A line is shown from its beginning.
    let line: usize = before
        .split_inclusive('\n')
        .map(|line| line.chars().count())
        .scan(0, |at, length| {
            *at += length;
            Some(*at)
        })
        .take_while(|end| *end <= same)
        .last()
        .unwrap_or(0);
    let from = line.max(same.saturating_sub(BEFORE));
    [before, now].map(|text| format!("…{}", cut(&text.chars().skip(from).collect::<String>())))
}

/// The beginning of a long value.
fn cut(text: &str) -> String {
    let line = text.lines().next().unwrap_or_default();
    let short: String = line.chars().take(SHOWN).collect();
    if short.len() < text.len() { format!("{short}…") } else { short }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn evidence(op: Value, inputs: &[(&str, &str)]) -> Evidence {
        let input = |(digest, from): &(&str, &str)| InputEvidence {
            tree: Some((*digest).to_owned()),
            from: (*from).to_owned(),
            ..InputEvidence::default()
        };
        Evidence { op, inputs: inputs.iter().map(input).collect() }
    }

    #[track_caller]
    fn check(old: &Evidence, new: &Evidence, expected: &str) {
        let arguments = Names::from(["VERSION".to_owned()]);
        assert_eq!(reason(&differences(old, new, None, None, &arguments)), expected);
    }

    fn run(command: &str, env: &[&str]) -> Value {
        json!({"run": {"args": ["/bin/sh", "-c", command], "env": env, "cwd": "/"}})
    }

    #[test]
    fn commands_and_variables() {
        let old = evidence(run("make", &["VERSION=1", "A=b"]), &[("1", "x")]);
        let check = |op: Value, expected: &str| check(&old, &evidence(op, &[("1", "x")]), expected);
        check(run("make all", &["VERSION=1", "A=b"]), "command changed");
        check(run("make", &["VERSION=2", "A=b"]), "ARG VERSION 1 → 2");
        check(run("make all", &["VERSION=2", "A=b"]), "ARG VERSION 1 → 2");
        check(run("make", &["VERSION=1", "A=c"]), "ENV A b → c");
        check(run("make", &["VERSION=1"]), "ENV A is gone");
        check(run("make", &["VERSION=1", "A=b", "N=1"]), "ENV N is new: 1");
        let long = "x".repeat(100);
        let expected = format!("ARG VERSION 1 → {}…", &long[..40]);
        check(run("make", &[&format!("VERSION={long}"), "A=b"]), &expected);
    }

    #[test]
    fn long_values_are_shown_where_they_differ() {
        let check = |before: &str, now: &str, expected: [&str; 2]| {
            assert_eq!(apart(before, now), expected);
        };
        let path = "https://downloads.example.org/releases/linux/";
        let url = |version: &str| format!("{path}{version}.tar.gz");
        check(&url("1.2"), &url("1.3"), ["…s/linux/1.2.tar.gz", "…s/linux/1.3.tar.gz"]);
        check("one\ntwo\n", "one\nthree\n", ["…two…", "…three…"]);
        check("one\n", "one\ntwo", ["…", "…two"]);
        check("é1\n2", "é1\n3", ["…2", "…3"]);
    }

    #[test]
    fn mounts() {
        let cache = |id: &str| json!({"target": "/c", "source": {"cache": {"id": id, "mode": 493}}, "read_only": false});
        let secret = || json!({"target": "/s", "source": {"secret": {"id": "s"}}});
        let run =
            |mounts: Vec<Value>| evidence(json!({"run": {"args": ["x"], "mounts": mounts}}), &[]);
        let old = run(vec![cache("/a"), secret()]);
        check(&old, &run(vec![cache("/b"), secret()]), "mount id changed: /a → /b");
        check(
            &old,
            &run(vec![cache("/a")]),
            "mounts changed: [{\"target\":\"/s\",\"source\":{\"secret\":{\"id\"… → nothing",
        );
    }

    #[test]
    fn instructions() {
        let copy = |to: &str, mode: u32| json!({"file": {"actions": [{"copy": {"destination": to, "mode": {"octal": mode}}}]}});
        let old = evidence(copy("/a", 7), &[]);
        check(&old, &evidence(copy("/b", 7), &[]), "destination changed: /a → /b");
        check(&old, &evidence(copy("/a", 0o644), &[]), "mode changed: 0007 → 0644");
        let part = |name: &str, before: Value, now: Value| part(name, &before, &now).to_string();
        let symbolic = json!({"symbolic": "u+x"});
        assert_eq!(part("mode", Value::Null, symbolic), "mode changed: nothing → u+x");
        let owner = |group: Value| json!({"user": {"id": 1}, "group": group});
        assert_eq!(
            part("owner", owner(Value::Null), owner(json!({"name": "g"}))),
            "owner changed: 1 → 1:g"
        );
        assert_eq!(part("data", json!([97, 10]), json!([98, 10])), "data changed: a… → b…");
    }

    #[test]
    fn inputs() {
        let op = || run("make", &[]);
        let old = evidence(op(), &[("1", "[1/3] COPY . .")]);
        let new = evidence(op(), &[("2", "[1/3] COPY . .")]);
        check(&old, &new, "input step `[1/3] COPY . .` changed");
        check(&old, &old, "its record is gone");
        let image = |digit: u8| {
            let mut evidence = evidence(op(), &[("1", "debian:12")]);
            evidence.inputs[0].tree = Some(digit.to_string());
            evidence.inputs[0].image = Some(rbuild_cache::digest::Digest::from_bytes([digit; 32]));
            evidence
        };
        check(&image(1), &image(2), "base image debian:12 moved to sha256:020202020202");
    }

    #[test]
    fn paths() {
        let reads = |paths: &[(&str, u8)]| {
            Reads::new(paths.iter().map(|(path, n)| (path.as_bytes().to_vec(), [*n; 8])).collect())
        };
        let some = |digest: &str| {
            let content = Some(digest.to_owned());
            let input = InputEvidence { content, from: "context".into(), ..Default::default() };
            Evidence { op: Value::Null, inputs: vec![input] }
        };
        let check = |old: &Reads, new: &Reads, expected: &str| {
            let names = Names::new();
            let found = differences(&some("1"), &some("2"), Some(old), Some(new), &names);
            assert_eq!(reason(&found), expected);
        };
        let old = reads(&[("src/a", 1), ("src/b", 1)]);
        check(&old, &reads(&[("src/a", 2), ("src/b", 1)]), "`src/a` changed");
        check(&old, &reads(&[("src/b", 1)]), "`src/a` removed");
        check(
            &old,
            &reads(&[("src/a", 2), ("src/c", 1)]),
            "`src/a` changed, `src/b` removed, and 1 more",
        );
        check(&old, &old, "what it reads of `context` changed");
    }
}
