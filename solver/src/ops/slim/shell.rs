//! Which commands a shell script runs, as far as its text shows.
//!
//! A script's commands cannot be known without running it. What is read here is each word that
//! stands where a command can stand; a caller keeps those that PATH knows. So a word too many costs
//! a file, and what stands in variables or in `eval` is not seen: a probe run is.

use std::collections::BTreeSet;

/// Words that stand where commands stand and are none, or that others follow.
const PREFIXES: &[&str] = &[
    "!",
    "{",
    "(",
    "if",
    "then",
    "elif",
    "else",
    "while",
    "until",
    "do",
    "exec",
    "command",
    "time",
    "nohup",
    "exec",
    "sudo",
    "builtin",
    "eval",
    "env",
    "nice",
    "trap",
    "xargs",
    "gosu",
    "su-exec",
    "tini",
    "dumb-init",
    "setsid",
    "--",
    "in",
    "timeout",
    "stdbuf",
];

/// The words of `script` that may be commands.
pub(super) fn commands(script: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let joined = script.replace("\\\n", " ");
    for line in joined.lines() {
        let line = line.trim_start();
        if line.starts_with('#') {
            continue;
        }
        for part in line.split([';', '|', '&', '`', '(', ')']) {
            add_commands(part, &mut found);
        }
    }
    found
}

fn add_commands(part: &str, found: &mut BTreeSet<String>) {
    for word in part.split_whitespace() {
        let bare = word.trim_matches(['"', '\'', '$', '{', '}']);
        if bare.is_empty() || is_assignment(bare) || word.starts_with('-') {
            continue;
        }
        if PREFIXES.contains(&bare) {
            // `env`, `timeout` and their like are programs too.
            found.insert(bare.to_owned());
            continue;
        }
        if bare.starts_with('#') {
            return;
        }
        if bare.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"/._-+[".contains(&byte)) {
            found.insert(bare.to_owned());
        }
        // A number may stand behind `timeout` or `nice`.
        if bare.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.') {
            continue;
        }
        return;
    }
}

fn is_assignment(word: &str) -> bool {
    word.split_once('=').is_some_and(|(name, _)| {
        !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_of_scripts() {
        let check = |script: &str, expected: &[&str]| {
            let found = commands(script);
            for command in expected {
                assert!(found.contains(*command), "{command} in {script}: {found:?}");
            }
        };
        check("exec gunicorn app:app", &["exec", "gunicorn"]);
        check("#!/bin/sh\nset -e\nA=1 migrate && serve | tee log", &["migrate", "serve", "tee"]);
        check("if [ -f /x ]; then\n  cat /x\nfi", &["[", "cat"]);
        check("exec timeout 5 curl -f http://x", &["timeout", "curl"]);
        check("echo `date` $(uname -a)", &["date", "uname", "echo"]);
        check("FOO=1 \\\n  python3 x.py", &["python3"]);
        assert!(!commands("# rm -rf /\n").contains("rm"));
        assert!(!commands("echo hello world").contains("world"));
    }
}
