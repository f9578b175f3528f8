//! `rbuild build` and `rbuild check`: progress around a build, and what is written when it is done.

use rbuild_solver::progress::Reporter;
use rbuild_solver::sandbox::namespaces::{self, Identity};

use rbuild_cache::oci::ImageRef;
use rbuild_cache::snapshot::SnapshotterKind;

use super::{lines, print, run_async, tell};
use crate::cli::{BuildArgs, GlobalArgs};
use crate::error::{BuildError, ErrorKind, Problem};
use crate::metadata;
use crate::progress::{self, harmless};
use crate::progress::{Display, End};
use crate::request::{BuildRequest, Call, Destination, Environment, OutputSpec, ProgressMode};
use crate::{Outcome, StageSize};

/// Builds.
pub(super) fn run(
    global: &GlobalArgs,
    arguments: &BuildArgs,
    environment: &Environment,
) -> Result<(), BuildError> {
    build(BuildRequest::new(global, arguments, environment)?)
}

/// `rbuild check` is `rbuild build --check`.
pub(super) fn check(
    global: &GlobalArgs,
    arguments: &BuildArgs,
    environment: &Environment,
) -> Result<(), BuildError> {
    let arguments = BuildArgs { check: true, ..arguments.clone() };
    build(BuildRequest::new(global, &arguments, environment)?)
}

fn build(mut request: BuildRequest) -> Result<(), BuildError> {
    if request.call == Call::Build {
        become_root(&request)?;
        request.settings.snapshotter = snapshotter(&request)?;
    }
    let request = &request;
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
pub(super) fn become_root(request: &BuildRequest) -> Result<(), BuildError> {
    let identity = super::become_root()?;
    if identity == Identity::Single {
        note(
            request,
            "this user has one id: owners of files are remembered instead of set, and steps are \
             slower; `newuidmap` (package uidmap) and ranges in /etc/subuid and /etc/subgid avoid \
             that",
        );
    }
    Ok(())
}

/// Overlayfs, or copies where it cannot be used, which is told. Comes as early as
/// [`become_root`].
fn snapshotter(request: &BuildRequest) -> Result<SnapshotterKind, BuildError> {
    let folder = &request.settings.state_folder;
    let obstacle = namespaces::overlay_obstacle(folder).map_err(|error| {
        BuildError::fault(&error).hint(format!(
            "the state folder is `{}`; `--root DIR` or RBUILD_ROOT names another one",
            folder.display()
        ))
    })?;
    let Some(obstacle) = obstacle else { return Ok(SnapshotterKind::Overlay) };
    let why = obstacle.source.map_or(obstacle.message, |error| error.to_string());
    note(
        request,
        &format!(
            "overlayfs cannot be used in `{}` ({why}): steps work on copies, which takes longer; \
             `--root DIR` or RBUILD_ROOT names a folder on another disk",
            folder.display()
        ),
    );
    Ok(SnapshotterKind::Copy)
}

/// Tells what is no fault, where people read.
fn note(request: &BuildRequest, text: &str) {
    if !matches!(request.settings.progress, ProgressMode::Quiet | ProgressMode::RawJson) {
        tell(&format!("note: {text}\n"));
    }
}

/// Shows warnings, and with `--quiet` the image's ID, unless stdout is an archive.
fn show_result(request: &BuildRequest, built: &Outcome) -> Result<(), BuildError> {
    let is_archive = |output: &OutputSpec| output.destination == Some(Destination::Stdout);
    if request.settings.progress == ProgressMode::Quiet {
        return match built.image_id().filter(|_| !request.outputs.iter().any(is_archive)) {
            Some(id) => print(&format!("{id}\n")),
            None => Ok(()),
        };
    }
    if request.settings.progress != ProgressMode::RawJson {
        tell(&sizes(built));
        for result in &built.slim {
            tell(&format!("\n{}", crate::slim::summary(&result.report)));
        }
        tell(&warnings(&built.warnings, request.settings.colors));
    }
    Ok(())
}

/// What each stage took, and what the image takes: `stage build   412.3 MB in 5 layers`. Below it
/// the image's names, each with its ID.
fn sizes(built: &Outcome) -> String {
    let name = |size: &StageSize| {
        if size.name.starts_with("image") {
            size.name.clone()
        } else {
            format!("stage {}", size.name)
        }
    };
    let width = built.sizes.iter().map(|size| name(size).len()).max().unwrap_or(0);
    let size_line = |size: &StageSize| {
        let layers = progress::count(size.layers, "layer", "layers");
        let bytes = progress::bytes(size.size);
        let line = format!("{:width$}   {bytes:>9} in {layers}", name(size));
        harmless::line(&line)
    };
    let id = built.image_id().map_or(String::new(), |id| format!("   {}", id.short()));
    let name_line = |name: &ImageRef| format!("{}{id}", name.familiar());
    let sizes = built.sizes.iter().map(size_line);
    format!("\n{}", lines(sizes.chain(built.names.iter().map(name_line))))
}

/// The warnings of the Dockerfile, and how many they are.
fn warnings(warnings: &[Problem], colors: bool) -> String {
    if warnings.is_empty() {
        return String::new();
    }
    let count = progress::count(warnings.len(), "warning", "warnings");
    let drawings = lines(warnings.iter().map(|warning| warning.draw(colors)));
    format!("\n{drawings}{count} about the Dockerfile; `rbuild check` shows them without a build\n")
}
