//! `rbuild build` and `rbuild check`: progress around a build, and what is written when it is done.

use rbuild_solver::progress::Reporter;

use super::{print, run_async, tell};
use crate::Outcome;
use crate::cli::{BuildArgs, GlobalArgs};
use crate::error::{BuildError, ErrorKind, Problem};
use crate::metadata;
use crate::progress::{Display, End};
use crate::request::{BuildRequest, Call, Environment, ProgressMode};

/// Builds.
pub(super) fn run(
    global: &GlobalArgs,
    arguments: &BuildArgs,
    environment: &Environment,
) -> Result<(), BuildError> {
    build(&BuildRequest::new(global, arguments, environment)?)
}

/// `rbuild check` is `rbuild build --check`.
pub(super) fn check(
    global: &GlobalArgs,
    arguments: &BuildArgs,
    environment: &Environment,
) -> Result<(), BuildError> {
    let arguments = BuildArgs { check: true, ..arguments.clone() };
    build(&BuildRequest::new(global, &arguments, environment)?)
}

fn build(request: &BuildRequest) -> Result<(), BuildError> {
    if request.call == Call::Build {
        become_root()?;
    }
    // An answer about a Dockerfile is all that a call shows.
    let display = (request.call == Call::Build).then(|| Display::new(&request.settings));
    let reporter = match &display {
        Some(display) => Reporter::new(display.sink()),
        None => Reporter::new(std::sync::Arc::new(rbuild_solver::progress::Silent)),
    };
    let result = run_async(crate::build(request, &reporter));
    if let Some(display) = display {
        display.finish(match &result {
            Ok(_) => End::Done,
            Err(error) if matches!(error.kind, ErrorKind::Interrupted(_)) => End::Interrupted,
            Err(_) => End::Failed,
        });
    }
    let built = result?;
    if let Some(answer) = built.answer {
        print(&answer.text)?;
        return answer.failure.map_or(Ok(()), Err);
    }
    metadata::write(request, &built)?;
    show_result(request, &built)
}

/// Lets ordinary users own the files of layers and mount them. Comes before the display, since
/// afterwards this process has more than one thread.
fn become_root() -> Result<(), BuildError> {
    rbuild_solver::sandbox::namespaces::become_root().map(drop).map_err(|error| {
        let fault = BuildError::fault(&error);
        match error.hint {
            Some(hint) => fault.hint(hint),
            None => fault,
        }
    })
}

/// Shows warnings, and with `--quiet` the image's ID.
fn show_result(request: &BuildRequest, built: &Outcome) -> Result<(), BuildError> {
    if request.settings.progress == ProgressMode::Quiet {
        return match built.image_id() {
            Some(id) => print(&format!("{id}\n")),
            None => Ok(()),
        };
    }
    if request.settings.progress != ProgressMode::RawJson {
        tell(&warnings(&built.warnings, request.settings.colors));
    }
    Ok(())
}

/// The warnings of the Dockerfile, and how many they are.
fn warnings(warnings: &[Problem], colors: bool) -> String {
    if warnings.is_empty() {
        return String::new();
    }
    let count = match warnings.len() {
        1 => "1 warning".to_owned(),
        count => format!("{count} warnings"),
    };
    let drawings: String =
        warnings.iter().map(|warning| format!("\n{}", warning.draw(colors))).collect();
    format!("{drawings}\n{count} about the Dockerfile; `rbuild check` shows them without a build\n")
}
