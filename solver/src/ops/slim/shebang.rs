//! The first line of scripts: which program interprets them.

/// How many bytes of a file the kernel looks at.
pub(super) const LENGTH: usize = 256;

/// Who interprets a script.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Shebang {
    /// The program that the kernel starts.
    pub(super) interpreter: String,
    /// What `env` looks up in PATH, when it is `env` that is started.
    pub(super) command: Option<String>,
}

impl Shebang {
    /// The shebang that the file beginning with `start` has.
    pub(super) fn of(start: &[u8]) -> Option<Self> {
        let line = start.strip_prefix(b"#!")?;
        let line = line.split(|byte| *byte == b'\n').next()?;
        let line = String::from_utf8_lossy(line);
        let mut words = line.split_whitespace();
        let interpreter = words.next()?.to_owned();
        if !interpreter.starts_with('/') {
            return None;
        }
        let is_env = interpreter.rsplit('/').next() == Some("env");
        let command = words.find(|word| !word.starts_with('-') && !word.contains('='));
        Some(Self { interpreter, command: command.filter(|_| is_env).map(str::to_owned) })
    }
}

/// Whether `program` is called like a shell.
pub(super) fn is_shell(program: &str) -> bool {
    let name = program.rsplit('/').next().unwrap_or_default();
    ["sh", "ash", "bash", "dash", "ksh", "mksh", "zsh", "csh", "tcsh", "fish", "rbash"]
        .contains(&name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shebangs() {
        let check = |text: &str, expected: Option<(&str, Option<&str>)>| {
            let expected = expected.map(|(interpreter, command)| Shebang {
                interpreter: interpreter.into(),
                command: command.map(str::to_owned),
            });
            assert_eq!(Shebang::of(text.as_bytes()), expected, "{text}");
        };
        check("#!/bin/sh\n", Some(("/bin/sh", None)));
        check("#! /bin/sh -e\necho", Some(("/bin/sh", None)));
        check("#!/usr/bin/env python3\n", Some(("/usr/bin/env", Some("python3"))));
        check("#!/usr/bin/env -S A=1 node --x\n", Some(("/usr/bin/env", Some("node"))));
        check("#!/usr/bin/python3 -E", Some(("/usr/bin/python3", None)));
        check("#!relative\n", None);
        check("#!\n", None);
        check("#", None);
        check("", None);
    }
}
