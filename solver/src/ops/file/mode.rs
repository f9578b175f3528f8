//! `--chmod`: what a mode becomes.
//!
//! Symbolic modes follow chmod(1) with a umask of zero, as BuildKit reads them
//! (tonistiigi/dchapes-mode).

use crate::graph::ModeChange;

const SETUID: u32 = 0o4000;
const SETGID: u32 = 0o2000;
const STICKY: u32 = 0o1000;
/// What a clause without `u`, `g`, `o` or `a` is about; the sticky bit has to be named.
const STANDARD: u32 = SETUID | SETGID | 0o777;

/// A `--chmod` that makes sense.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Chmod {
    Octal(u32),
    Symbolic(Vec<Command>),
}

/// One step of a symbolic mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Command {
    Clear(u32),
    Set(u32),
    /// `X`: for directories and for what somebody may execute already.
    SetIfExecutable(u32),
    /// The permissions of one of user (6), group (3) or others (0), by their shift, for each of
    /// `to`.
    Copy {
        from: u32,
        to: u32,
        operator: Operator,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operator {
    Add,
    Remove,
    Assign,
}

impl Chmod {
    /// Reads `change`; `None` when it makes no sense.
    pub(super) fn new(change: &ModeChange) -> Option<Self> {
        match change {
            ModeChange::Octal(mode) => (*mode <= 0o7777).then_some(Self::Octal(*mode)),
            ModeChange::Symbolic(text) => {
                let commands: Option<Vec<Vec<Command>>> = text.split(',').map(clause).collect();
                Some(Self::Symbolic(commands?.concat()))
            }
        }
    }

    /// What becomes of `mode`.
    pub(super) fn apply(&self, mode: u32, directory: bool) -> u32 {
        let commands = match self {
            Self::Octal(mode) => return *mode,
            Self::Symbolic(commands) => commands,
        };
        let executable = directory || mode & 0o111 != 0;
        commands.iter().fold(mode, |mode, command| match *command {
            Command::Clear(bits) => mode & !bits,
            Command::Set(bits) => mode | bits,
            Command::SetIfExecutable(bits) => {
                if executable {
                    mode | bits
                } else {
                    mode
                }
            }
            Command::Copy { from, to, operator } => {
                let copied = [6, 3, 0].map(|shift| ((mode >> from) & 7) << shift);
                let copied = copied.iter().fold(0, |all, bits| all | bits) & to;
                match operator {
                    Operator::Add => mode | copied,
                    Operator::Remove => mode & !copied,
                    Operator::Assign => mode & !(to & 0o777) | copied,
                }
            }
        })
    }

    /// The mode of directories that are made on the way to the destination: an octal one's
    /// permissions, but a symbolic one does not apply to what was not there before (BuildKit,
    /// tonistiigi/fsutil, copy.go, `prepareTargetDir`).
    pub(super) fn of_parents(change: Option<&Self>) -> u32 {
        match change {
            Some(Self::Octal(mode)) => mode & 0o777,
            Some(Self::Symbolic(_)) | None => 0o755,
        }
    }
}

/// `ug+rX-w`: whom, then operators with permissions.
fn clause(text: &str) -> Option<Vec<Command>> {
    let operators = text.trim_start_matches(['u', 'g', 'o', 'a']);
    let who = text[..text.len() - operators.len()].chars().fold(0, |who, c| who | bits_of(c));
    let mut commands = Vec::new();
    let mut rest = operators;
    // At least one operator.
    loop {
        let operator = match rest.chars().next()? {
            '+' => Operator::Add,
            '-' => Operator::Remove,
            '=' => Operator::Assign,
            _ => return None,
        };
        let permissions = &rest[1..];
        let end = permissions.find(['+', '-', '=']).unwrap_or(permissions.len());
        commands.extend(operation(who, operator, &permissions[..end])?);
        rest = &permissions[end..];
        if rest.is_empty() {
            return Some(commands);
        }
    }
}

fn bits_of(who: char) -> u32 {
    match who {
        'u' => SETUID | 0o700,
        'g' => SETGID | 0o070,
        'o' => 0o007,
        _ => STANDARD,
    }
}

fn operation(who: u32, operator: Operator, permissions: &str) -> Option<Vec<Command>> {
    let named = if who == 0 { STANDARD } else { who };
    // Set-id and sticky bits mean nothing for others alone.
    let only_others = who == 0o007;
    let (mut plain, mut conditional, mut sticky) = (0, 0, 0);
    let mut sources = Vec::new();
    for permission in permissions.chars() {
        match permission {
            'r' => plain |= 0o444,
            'w' => plain |= 0o222,
            'x' => plain |= 0o111,
            'X' if operator == Operator::Remove => plain |= 0o111,
            'X' => conditional |= 0o111,
            's' if !only_others => plain |= SETUID | SETGID,
            't' if !only_others => sticky = STICKY,
            's' | 't' => {}
            'u' => sources.push(6),
            'g' => sources.push(3),
            'o' => sources.push(0),
            _ => return None,
        }
    }
    let bits = (plain & named) | sticky;
    let mut commands = Vec::new();
    if operator == Operator::Assign && sources.is_empty() {
        commands.push(Command::Clear(named | sticky));
    }
    let copy = |from| Command::Copy { from, to: named, operator };
    commands.extend(sources.into_iter().map(copy));
    match operator {
        Operator::Add | Operator::Assign => commands.push(Command::Set(bits)),
        Operator::Remove => commands.push(Command::Clear(bits)),
    }
    commands.push(Command::SetIfExecutable(conditional & named));
    Some(commands)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn symbolic(text: &str) -> Option<Chmod> {
        Chmod::new(&ModeChange::Symbolic(text.into()))
    }

    #[test]
    fn symbolic_modes_do_what_chmod_does() {
        let check = |text: &str, mode: u32, expected: u32| {
            let found = symbolic(text).unwrap().apply(mode, false);
            assert_eq!(found, expected, "{text} of {mode:o} is {found:o}");
        };
        check("a+x", 0o644, 0o755);
        check("+x", 0o644, 0o755);
        check("u=rwX,go=rX", 0o600, 0o644);
        check("u=rwX,go=rX", 0o700, 0o755);
        check("go-r,u+s", 0o664, 0o4620);
        check("+t", 0o644, 0o1644);
        check("o+t", 0o644, 0o644);
        check("a=", 0o4755, 0);
        check("=r", 0o6777, 0o444);
        check("g=u", 0o640, 0o660);
        check("o+g", 0o641, 0o645);
        check("u-g", 0o750, 0o250);
        check("u+x-w", 0o644, 0o544);
        check("a-X", 0o755, 0o644);
        check("g+s", 0o755, 0o2755);
        check("ug=rw", 0o6777, 0o667);
    }

    #[test]
    fn x_means_directories_too() {
        let change = symbolic("a=rX").unwrap();
        assert_eq!(change.apply(0o600, true), 0o555);
        assert_eq!(change.apply(0o600, false), 0o444);
    }

    #[test]
    fn nonsense_is_refused() {
        for text in ["", "u", "x", "u+y", "+x,", "u+x g+x", "0855", "ü+x"] {
            assert_eq!(symbolic(text), None, "{text}");
        }
        assert_eq!(Chmod::new(&ModeChange::Octal(0o10000)), None);
    }

    /// Any symbolic mode gives what the machine's own chmod gives, of permissions; GNU and BSD
    /// differ in when they take the other bits away.
    #[test]
    fn agrees_with_chmod() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let texts = [
            "u+rwx",
            "g-w",
            "o=",
            "a=r",
            "ug+x,o-r",
            "u=g",
            "g=o",
            "o=u",
            "u+s",
            "ug=s",
            "a+X",
            "u=rw,g=u,o=g",
            "u-x+w",
            "=rwx",
            "+X",
            "g=rX",
        ];
        for text in texts {
            for mode in [0o000, 0o644, 0o755, 0o751, 0o711, 0o777, 0o640] {
                let path = file.path();
                let permissions = std::os::unix::fs::PermissionsExt::from_mode(mode);
                fs_err::set_permissions(path, permissions).unwrap();
                // The umask decides where nobody is named; BuildKit's is zero.
                let script = format!("umask 0; chmod -- '{text}' '{}'", path.display());
                let status = std::process::Command::new("sh").args(["-c", &script]).status();
                assert!(status.unwrap().success());
                let expected = rbuild_cache::metadata::Metadata::of(file.as_file()).unwrap().mode;
                let found = symbolic(text).unwrap().apply(mode, false);
                assert_eq!(found, expected, "{text} of {mode:o}: {found:o}, not {expected:o}");
            }
        }
    }
}
