//! Where the closure begins: what a container runs, what the image names, what the user brought,
//! what was asked for, what a run of the probe opened.

use std::path::{Path, PathBuf};

use rbuild_cache::pattern::PatternMatcher;

use super::closure::Closure;
use super::files::FileId;
use super::reason::Why;
use super::shebang::{self, Shebang};
use super::{Observed, SlimError};
use crate::graph::{SlimMode, SlimOp};

/// Variables whose values are lists of places to look in, not places that are needed.
const NOT_NAMED: &[&str] =
    &["HOME", "LD_LIBRARY_PATH", "MANPATH", "OLDPWD", "PATH", "PWD", "SHELL"];

/// Programs that run what stands behind their own arguments.
const WRAPPERS: &[&str] = &[
    "catatonit",
    "chpst",
    "dumb-init",
    "env",
    "gosu",
    "nice",
    "nohup",
    "setpriv",
    "setsid",
    "stdbuf",
    "su-exec",
    "timeout",
    "tini",
    "xvfb-run",
];

/// Keeps the roots.
///
/// # Errors
/// When there is no program, or `--slim-drop` leaves it out.
pub(super) fn keep(closure: &mut Closure<'_>) -> Result<FileId, SlimError> {
    let op = closure.op;
    let program = keep_program(closure, op)?;
    keep_healthcheck(closure, op);
    if op.mode != SlimMode::Trace {
        keep_named_by_variables(closure, op);
    }
    keep_asked(closure, op)?;
    if op.mode != SlimMode::Trace {
        for id in closure.files.ids().filter(|id| closure.partition.is_users(*id)) {
            closure.keep(id, Why::User, None);
        }
    }
    for folder in op.volumes.iter().chain([&op.cwd]) {
        closure.keep_path(Path::new(folder), Why::Argument, Some(program));
    }
    Ok(program)
}

/// Keeps what runs asked for. To be called when all else is kept: what leads to a file says more than
/// that it was opened.
pub(super) fn keep_observed(closure: &mut Closure<'_>, observed: &Observed) {
    for (paths, why) in [(&observed.opened, Why::Opened), (&observed.put_back, Why::PutBack)] {
        for path in paths {
            keep_asked_for(closure, path, &why);
        }
    }
}

fn keep_program(closure: &mut Closure<'_>, op: &SlimOp) -> Result<FileId, SlimError> {
    let Some(name) = op.command.first() else { return Err(SlimError::NoCommand) };
    let search_path = closure.variable("PATH").unwrap_or_default();
    let missing = || SlimError::MissingProgram { name: name.clone(), path: search_path.to_owned() };
    let path = closure.which(name).ok_or_else(missing)?;
    let found = closure.files.resolve(&path);
    let on_the_way = found.links.iter().chain(&found.file);
    if let Some(dropped) = on_the_way.into_iter().find(|id| closure.is_dropped(**id)) {
        return Err(SlimError::DroppedProgram { path: closure.files.path(*dropped) });
    }
    let program = closure.keep_program(&path, Why::Program, None).ok_or_else(missing)?;
    keep_arguments(closure, program, &path, &op.command[1..], &Why::Argument);
    Ok(program)
}

fn keep_healthcheck(closure: &mut Closure<'_>, op: &SlimOp) {
    let Some(name) = op.healthcheck.first() else { return };
    let Some(path) = closure.which(name) else {
        closure.note(format!("the health check runs `{name}`, which is not in the image"));
        return;
    };
    if let Some(program) = closure.keep_program(&path, Why::Healthcheck, None) {
        keep_arguments(closure, program, &path, &op.healthcheck[1..], &Why::Healthcheck);
    }
}

/// Keeps what the arguments of `program` name.
fn keep_arguments(
    closure: &mut Closure<'_>,
    program: FileId,
    path: &Path,
    arguments: &[String],
    why: &Why,
) {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    if shebang::is_shell(&name) {
        let script = arguments.iter().position(|word| is_command_flag(word));
        if let Some(script) = script.and_then(|position| arguments.get(position + 1)) {
            if script.trim_start().starts_with("exec ") || arguments.len() == 2 {
                closure.note(format!(
                    "the image keeps the shell `{}`, since it runs its command by it: the form \
                     with brackets, `CMD [\"program\", \"argument\"]`, needs none",
                    path.display()
                ));
            }
            closure.keep_commands(script, Some(program));
            return;
        }
    }
    let runs_others = WRAPPERS.contains(&&*name) || is_script(closure, program);
    for word in arguments {
        let value = word.split_once('=').map_or(&**word, |(_, value)| value);
        if runs_others
            && !word.starts_with('-')
            && let Some(path) = closure.which(word)
        {
            closure.keep_program(&path, why.clone(), Some(program));
            continue;
        }
        let place = Path::new("/").join(closure.op.cwd.trim_start_matches('/')).join(value);
        let found = closure.files.resolve(&place).file;
        if !value.is_empty() && found.is_some_and(|id| id != FileId::ROOT) {
            closure.keep_program(&place, why.clone(), Some(program));
        }
    }
}

/// `-c`, `-ec`: what follows is a script.
fn is_command_flag(word: &str) -> bool {
    word.starts_with('-') && !word.starts_with("--") && word.ends_with('c')
}

fn is_script(closure: &Closure<'_>, program: FileId) -> bool {
    let limit = u64::try_from(shebang::LENGTH).expect("a small number");
    // One that cannot be read fails where the program itself is followed.
    let start = closure.files.read_start(program, limit).ok().flatten();
    start.is_some_and(|start| Shebang::of(&start).is_some())
}

fn keep_named_by_variables(closure: &mut Closure<'_>, op: &SlimOp) {
    for (name, value) in op.env.iter().filter_map(|line| line.split_once('=')) {
        if NOT_NAMED.contains(&name) {
            continue;
        }
        for path in value.split(':').filter(|path| path.len() > 1 && path.starts_with('/')) {
            let path = Path::new(path);
            let why = Why::Variable(name.to_owned());
            let Some(id) = closure.files.resolve(path).file else { continue };
            if closure.files.is_file(id) {
                closure.keep_path(path, why, None);
            } else if path.components().count() > 2 && closure.files.below(id).len() < 400 {
                closure.keep_folder(path, &why, None);
            }
        }
    }
}

fn keep_asked(closure: &mut Closure<'_>, op: &SlimOp) -> Result<(), SlimError> {
    for pattern in &op.keep {
        let matcher = PatternMatcher::new([pattern.trim_start_matches('/')])?;
        let mut is_any = false;
        for id in closure.files.ids().skip(1) {
            let path = closure.files.text(id);
            if matcher.matches_or_parent_matches(path.trim_start_matches('/')) {
                is_any = true;
                let place = closure.files.path(id);
                closure.keep(id, Why::Asked(pattern.clone()), None);
                if closure.files.is_executable(id) {
                    closure.keep_program(&place, Why::Asked(pattern.clone()), None);
                }
            }
        }
        if !is_any {
            // The pattern may be of a path through links: `/bin/sh`.
            let found = closure.which(pattern).or_else(|| {
                let path = PathBuf::from(pattern);
                closure.files.resolve(&path).file.map(|_| path)
            });
            match found {
                Some(path) => _ = closure.keep_program(&path, Why::Asked(pattern.clone()), None),
                None => closure.note(format!("`--slim-keep {pattern}` matches nothing")),
            }
        }
    }
    Ok(())
}

/// Keeps what a run opened: what the path leads to, and what of it is needed to be opened again.
fn keep_asked_for(closure: &mut Closure<'_>, path: &Path, why: &Why) {
    let found = closure.files.resolve(path).file;
    match found {
        Some(id) if closure.files.is_executable(id) => {
            closure.keep_program(path, why.clone(), None);
        }
        Some(_) => _ = closure.keep_path(path, why.clone(), None),
        None => {}
    }
}
