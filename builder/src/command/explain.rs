//! `rbuild explain`: why the last build that ran anything ran what it ran.

use std::fmt::Write as _;

use rbuild_solver::evidence::{Difference, History, Miss};
use serde_json::json;

use super::table::ago;
use super::{lines, print, settings};
use crate::cli::{ExplainArgs, GlobalArgs};
use crate::error::{BuildError, ErrorKind, Problem};
use crate::local_image;
use crate::progress::harmless;
use crate::request::{Environment, Settings};

/// Says for each step that ran why it was not found in the cache; for one that is named, all that
/// differs from the nearest earlier result.
pub(super) fn run(
    global: &GlobalArgs,
    arguments: &ExplainArgs,
    environment: &Environment,
) -> Result<(), BuildError> {
    let settings = settings(global, environment)?;
    let state = local_image::open(&settings)?;
    let history = History::last(state.index()).map_err(|error| BuildError::fault(&error))?;
    let Some(history) = history else {
        return Err(failed("no build ran anything yet, or its history is gone"));
    };
    let numbered: Vec<(usize, &Miss)> =
        history.missed.iter().enumerate().map(|(position, miss)| (position + 1, miss)).collect();
    let chosen = match &arguments.step {
        None => numbered,
        Some(step) => choose(&numbered, &history, step)?,
    };
    if arguments.json {
        let object = |(number, miss): &(usize, &Miss)| json!({ "number": number, "step": miss });
        return print(&lines(chosen.iter().map(object)));
    }
    let whole = arguments.step.is_some();
    let text: String =
        chosen.iter().map(|(number, miss)| shown(*number, miss, whole, &settings)).collect();
    if whole {
        return print(&text);
    }
    let time = time(history.at, &settings);
    print(&format!(
        "The last build that ran anything began {time}: {} cached, {} ran.\n\n{text}",
        history.cached.len(),
        history.missed.len(),
    ))
}

/// The steps that `text` names: by number, or by a part of the name.
fn choose<'a>(
    numbered: &[(usize, &'a Miss)],
    history: &History,
    text: &str,
) -> Result<Vec<(usize, &'a Miss)>, BuildError> {
    let is_number = |number: usize| text.parse() == Ok(number);
    let mut chosen: Vec<_> = numbered.iter().filter(|(n, _)| is_number(*n)).copied().collect();
    if chosen.is_empty() {
        chosen = numbered.iter().filter(|(_, miss)| miss.step.contains(text)).copied().collect();
    }
    if !chosen.is_empty() {
        return Ok(chosen);
    }
    match history.cached.iter().find(|name| name.contains(text)) {
        Some(name) => Err(failed(&format!("`{name}` was found in the cache"))),
        None => Err(failed(&format!("the last build that ran anything has no step `{text}`"))
            .hint("`rbuild explain` lists those that ran")),
    }
}

fn failed(message: &str) -> BuildError {
    let problem = Problem { message: message.to_owned(), ..Problem::default() };
    BuildError::new(ErrorKind::Failed, problem)
}

fn time(seconds: i64, settings: &Settings) -> String {
    let time = jiff::Timestamp::from_second(seconds);
    time.map_or("at some time".to_owned(), |time| ago(time, settings.now))
}

/// A step and why it ran; `whole` with all that differs.
fn shown(number: usize, miss: &Miss, whole: bool, settings: &Settings) -> String {
    let mut text = format!("{number:>3}  {}\n", harmless::line(&miss.step));
    // Writing to a string cannot fail.
    let _ = writeln!(text, "     {}", harmless::line(&miss.reason));
    if !whole {
        return text;
    }
    if let Some((name, created)) = &miss.compared_with {
        let name = harmless::line(name);
        let _ = writeln!(
            text,
            "     compared with the result of `{name}`, {}:",
            time(*created, settings)
        );
    }
    for difference in &miss.differences {
        for line in comparison(difference) {
            let _ = writeln!(text, "       {}", harmless::line(&line));
        }
    }
    text
}

/// Before with a minus, now with a plus.
fn comparison(difference: &Difference) -> Vec<String> {
    let both = |title: &str, before: &str, now: &str| {
        let mut lines = vec![title.to_owned()];
        lines.extend(before.lines().map(|line| format!("- {line}")));
        lines.extend(now.lines().map(|line| format!("+ {line}")));
        lines
    };
    match difference {
        Difference::Command { before, now } => both("command:", before, now),
        Difference::Variable { name, before, now } => both(
            &format!("{name}:"),
            before.as_deref().unwrap_or_default(),
            now.as_deref().unwrap_or_default(),
        ),
        Difference::Part { name, before, now } | Difference::Image { name, before, now } => {
            both(&format!("{name}:"), before, now)
        }
        Difference::Revision { before, now } => both("source:", before, now),
        Difference::Path { path, how } => {
            let sign = match how.as_str() {
                "added" => '+',
                "removed" => '-',
                _ => '~',
            };
            vec![format!("{sign} {path}")]
        }
        Difference::Step { .. } | Difference::Content { .. } => vec![difference.to_string()],
    }
}
