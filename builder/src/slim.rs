//! `--slim`, as far as it is not the graph's: what is asked for, of what, and what the image says of
//! itself afterwards.
//!
//! The settings of the request, the Dockerfile and its labels become one vertex behind the target
//! (`SlimTarget`). When it is solved, its report decides what goes on (`finish`): config, labels
//! and history of the image, warnings, and whether the build fails.

mod table;

use std::path::Path;

use rbuild_cache::digest::Digest;
use rbuild_cache::oci::{ImageRef, Platform};
use rbuild_cache::state::StateFolder;
use rbuild_frontend::image_config::{ContainerConfig, ImageConfig};
use rbuild_frontend::source::Source;
use rbuild_frontend::{Lowered, syntax};
use rbuild_solver::graph::{Graph, Op, SlimMode, SlimOp, SlimProbe, Vertex, VertexId};
use rbuild_solver::ops::slim::report::{Outcome, SlimReport};
use rbuild_solver::ops::slim::report_name;
use rbuild_solver::tree::Tree;

use crate::error::{BuildError, ErrorKind, Excerpt, Problem};
use crate::image::BuiltImage;
use crate::request::{PROBE_TIMEOUT, SlimRequest, SlimSettings, SlimSwitch, UsageError};

pub use table::{summary, table};

/// Under which kind the state folder remembers which report is of which image.
const MEMO: &str = "slim image";
/// The image that was slimmed last.
const LAST: &[u8] = b"last";

/// A target that is slimmed.
#[derive(Clone, Debug)]
pub(crate) struct SlimTarget {
    /// The vertex that makes the slim tree.
    pub(crate) vertex: VertexId,
    op: Op,
    nonroot: bool,
}

/// Adds to `graph` what slims the image that `lowered` is, if that is asked for.
pub(crate) fn target(
    request: &SlimRequest,
    source: &Source,
    platform: &Platform,
    lowered: &Lowered,
    graph: &mut Graph,
) -> Result<Option<SlimTarget>, BuildError> {
    let config = &lowered.config.config;
    let image = directives(source)?.or(labels(lowered)?);
    let settings = request.settings.clone().or(image);
    let mode = match settings.mode {
        Some(SlimSwitch::Mode(mode)) => mode,
        Some(SlimSwitch::On) => SlimMode::Auto,
        Some(SlimSwitch::Off) | None => {
            return match request.needs_slim() {
                Some(flag) if settings.mode.is_none() => Err(UsageError::NeedsSlim { flag }.into()),
                _ => Ok(None),
            };
        }
    };
    if mode == SlimMode::Trace && settings.probe.is_none() && config.healthcheck.is_none() {
        let reason = "it keeps what a probe opens, so it needs `--slim-probe` or a HEALTHCHECK";
        return Err(UsageError::value("--slim", "trace", reason).into());
    }
    let nonroot = settings.nonroot == Some(true);
    let op = Op::Slim(Box::new(slim_op(mode, settings, config, platform)));
    let what = command(config).first().cloned().unwrap_or_default();
    let name = format!("[slim {platform}] keep what `{what}` needs");
    let ignore_cache = lowered.ignore_cache;
    let vertex = Vertex { op: op.clone(), name, span: None, ignore_cache };
    let vertex = graph.add(vertex, &[lowered.target]);
    Ok(Some(SlimTarget { vertex, op, nonroot }))
}

fn slim_op(
    mode: SlimMode,
    settings: SlimSettings,
    config: &ContainerConfig,
    platform: &Platform,
) -> SlimOp {
    let healthcheck = healthcheck(config);
    // A probe that is not run changes nothing, so it is not in the op.
    let is_run = mode != SlimMode::Closure;
    let probe = settings.probe.filter(|_| is_run).unwrap_or_else(|| {
        if is_run && !healthcheck.is_empty() {
            SlimProbe::Command(healthcheck.clone())
        } else {
            SlimProbe::Alive
        }
    });
    let timeout = settings.probe_timeout.unwrap_or(PROBE_TIMEOUT);
    SlimOp {
        rules: SlimOp::RULES,
        mode,
        command: command(config),
        env: config.env.clone(),
        cwd: if config.working_dir.is_empty() { "/".into() } else { config.working_dir.clone() },
        user: Some(config.user.clone()).filter(|user| !user.is_empty()),
        healthcheck,
        volumes: config.volumes.iter().cloned().collect(),
        probe,
        probe_timeout: if is_run { timeout } else { 0 },
        keep: settings.keep,
        drop: settings.drop,
        base: settings.base.unwrap_or_default(),
        platform: platform.clone(),
    }
}

fn command(config: &ContainerConfig) -> Vec<String> {
    config.entrypoint.iter().chain(&config.cmd).cloned().collect()
}

/// What HEALTHCHECK runs, its shell included.
fn healthcheck(config: &ContainerConfig) -> Vec<String> {
    let Some(check) = &config.healthcheck else { return Vec::new() };
    match check.test.split_first() {
        Some((kind, words)) if kind == "CMD" => words.to_vec(),
        Some((kind, words)) if kind == "CMD-SHELL" => {
            let shell = ["/bin/sh".to_owned(), "-c".to_owned()];
            let shell = if config.shell.is_empty() { &shell[..] } else { &config.shell[..] };
            shell.iter().chain(words).cloned().collect()
        }
        _ => Vec::new(),
    }
}

/// What `# rbuild: slim=auto` and its like say at the top of the Dockerfile.
fn directives(source: &Source) -> Result<SlimSettings, BuildError> {
    let mut settings = SlimSettings::default();
    for (name, value) in syntax::directive::own(source) {
        settings.set("# rbuild:", name.as_str(), value.as_str()).map_err(|error| {
            let mut problem = Problem::of(&error);
            // The value, or the name when there is no such setting.
            let is_value =
                matches!(&error, UsageError::Value { value: wrong, .. } if wrong == value.as_str());
            let span = if is_value { value.span } else { name.span };
            problem.excerpt = Some(Excerpt::of(source, span));
            BuildError::new(ErrorKind::Failed, problem)
        })?;
    }
    Ok(settings)
}

/// What the image's labels say. That a base image was slimmed does not mean that this one is to be.
fn labels(lowered: &Lowered) -> Result<SlimSettings, BuildError> {
    let mut settings = SlimSettings::of_labels(&lowered.config.config.labels)
        .map_err(|error| BuildError::failed(&error))?;
    let inherited = lowered.base.as_ref().and_then(|base| base.config.labels.get("rbuild.slim"));
    if inherited.is_some() && inherited == lowered.config.config.labels.get("rbuild.slim") {
        settings.mode = None;
    }
    Ok(settings)
}

/// What is said of an image that was slimmed.
#[derive(Clone, Debug)]
pub struct SlimResult {
    /// What the report is called in the state folder.
    pub name: Digest,
    /// What was kept, and why.
    pub report: SlimReport,
}

/// Makes `image`, whose tree is the slim one, say so; or fails where the request says that it must.
pub(crate) fn finish(
    request: &SlimRequest,
    state: &StateFolder,
    target: &SlimTarget,
    full: &Tree,
    image: &mut BuiltImage,
) -> Result<SlimResult, BuildError> {
    let name = report_name(&target.op, full.digest());
    let report = SlimReport::load(state, &name).map_err(|error| BuildError::fault(&error))?;
    let report = report.ok_or_else(|| {
        BuildError::fault(&std::io::Error::other("the report of what was slimmed is gone"))
    })?;
    if let Outcome::Full { reason, .. } = &report.outcome
        && (request.strict || report.mode == SlimMode::Trace)
    {
        return Err(failed(
            format!("the slim image does not work as the full one: {reason}"),
            "without `--slim-strict`, `--slim=auto` exports the full image; `--slim-keep PATH` \
             keeps what is missing",
        ));
    }
    let is_proven = report.verification.as_ref().is_some_and(|verification| verification.passed);
    if report.mode == SlimMode::Trace && !is_proven {
        return Err(failed(
            "`--slim=trace` needs a run of the probe, and this platform's programs cannot be run \
             here"
                .into(),
            "`--slim=closure` runs nothing",
        ));
    }
    if let Some(budget) = request.max_size
        && report.slim.bytes > budget
    {
        let (size, budget) = (report.slim.bytes, budget);
        return Err(failed(
            format!(
                "the slim image has {size} bytes, more than `--slim-max-size` allows: {budget}"
            ),
            "`--slim-report FILE` shows what takes them",
        ));
    }
    if report.outcome == Outcome::Slim {
        describe(&report, target, image);
    }
    Ok(SlimResult { name, report })
}

fn failed(message: String, hint: &str) -> BuildError {
    let problem = Problem { message, hints: vec![hint.to_owned()], ..Problem::default() };
    BuildError::new(ErrorKind::Failed, problem)
}

/// Labels, annotations and history of an image that was slimmed, and its user.
fn describe(report: &SlimReport, target: &SlimTarget, image: &mut BuiltImage) {
    let mode = match report.mode {
        SlimMode::Auto => "auto",
        SlimMode::Closure => "closure",
        SlimMode::Trace => "trace",
    };
    let verified = report.verification.as_ref().is_some_and(|verification| verification.passed);
    let labels = [
        ("mode", mode.to_owned()),
        ("verified", verified.to_string()),
        ("from", report.from.0.to_string()),
        ("bytes", format!("{}/{}", report.slim.bytes, report.full.bytes)),
    ];
    for (name, value) in labels {
        let name = format!("dev.rbuild.slim.{name}");
        image.annotations.insert(name.clone(), value.clone());
        image.config.config.labels.insert(name, value);
    }
    if target.nonroot {
        image.config.config.user = "65532:65532".into();
    }
    // The layers of the steps are gone; what they did is still what made the files.
    without_layers(&mut image.config);
    if let Some(base) = &mut image.base {
        without_layers(base);
    }
}

fn without_layers(config: &mut ImageConfig) {
    for entry in &mut config.history {
        entry.empty_layer = true;
    }
}

/// What the user should know of an image that was slimmed.
pub(crate) fn warnings(result: &SlimResult) -> Vec<Problem> {
    let report = &result.report;
    let warning = |message: String, hint: Option<&str>| Problem {
        warning: true,
        message,
        hints: hint.into_iter().map(str::to_owned).collect(),
        ..Problem::default()
    };
    let mut warnings = Vec::new();
    if let Outcome::Full { reason, .. } = &report.outcome {
        warnings.push(warning(
            format!("THE IMAGE IS NOT SLIM: the full image was exported, since {reason}"),
            Some(
                "`--slim-report FILE` shows what differed; `--slim-strict` makes this an error; \
                 `--no-cache` has it compared again",
            ),
        ));
    }
    warnings.extend(report.notes.iter().map(|note| warning(note.clone(), None)));
    warnings
}

/// What the full image beside the slim one `name` is called: `app:debug`, `app:1-debug`.
pub(crate) fn debug_name(name: &ImageRef) -> Option<ImageRef> {
    let text = name.to_string();
    let (path, tag) = match text.rsplit_once(':') {
        Some((path, tag)) if !tag.contains('/') => (path, tag),
        _ => (&*text, "latest"),
    };
    let tag = if tag == "latest" { "debug".to_owned() } else { format!("{tag}-debug") };
    format!("{path}:{tag}").parse().ok()
}

/// Remembers that `image` is of `result`, so that `rbuild slim why` finds it.
pub(crate) fn remember(
    state: &StateFolder,
    image: Option<Digest>,
    result: &SlimResult,
) -> Result<(), BuildError> {
    let keys = image.as_ref().map(|image| &image.as_bytes()[..]).into_iter().chain([LAST]);
    for key in keys {
        let remembered = state.index().remember(MEMO, key, result.name.as_bytes());
        remembered.map_err(|error| BuildError::fault(&error))?;
    }
    Ok(())
}

/// The report of the image called `image`, or of the one that was slimmed last.
pub(crate) fn recall(
    state: &StateFolder,
    image: Option<Digest>,
) -> Result<Option<SlimReport>, BuildError> {
    let key = image.as_ref().map_or(LAST, |image| &image.as_bytes()[..]);
    let name = state.index().recall(MEMO, key).map_err(|error| BuildError::fault(&error))?;
    let name = name.and_then(|bytes| <[u8; 32]>::try_from(bytes).ok()).map(Digest::from_bytes);
    let Some(name) = name else { return Ok(None) };
    SlimReport::load(state, &name).map_err(|error| BuildError::fault(&error))
}

/// Writes the reports of all platforms into `path`: as JSON if it is called so, as a table otherwise.
pub(crate) fn write_report(path: &Path, results: &[SlimResult]) -> Result<(), BuildError> {
    let is_json = path.extension().is_some_and(|ending| ending == "json");
    let text = if is_json {
        let reports: Vec<&SlimReport> = results.iter().map(|result| &result.report).collect();
        let json = match &reports[..] {
            [only] => serde_json::to_string_pretty(only),
            all => serde_json::to_string_pretty(all),
        };
        json.expect("reports have string keys only") + "\n"
    } else {
        results.iter().map(|result| table(&result.report)).collect::<Vec<_>>().join("\n")
    };
    crate::metadata::write_file(path, text.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directives_that_mean_nothing_are_refused_with_their_place() {
        let check = |text: &str, expected: &str, place: &str| {
            let source = Source::new("Dockerfile", format!("# rbuild: {text}\nFROM a\n"));
            let error = directives(&source).unwrap_err();
            let problem = &error.problems[0];
            assert!(problem.message.ends_with(expected), "{error}");
            let span = problem.excerpt.as_ref().unwrap().span.clone();
            assert_eq!(&source.text()[span], place);
        };
        check("slym=auto", "there is no such setting", "slym");
        check("slim=perhaps", "expected auto, closure, trace or off", "perhaps");
    }

    #[test]
    fn debug_names() {
        let check = |name: &str, expected: &str| {
            let name: ImageRef = name.parse().unwrap();
            assert_eq!(debug_name(&name).unwrap().familiar(), expected);
        };
        check("app", "app:debug");
        check("me/app:1", "me/app:1-debug");
        check("localhost:5000/app", "localhost:5000/app:debug");
    }

    #[test]
    fn health_checks_become_commands() {
        let check = |test: &[&str], shell: &[&str], expected: &[&str]| {
            let texts = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
            let config = ContainerConfig {
                healthcheck: Some(rbuild_frontend::image_config::HealthcheckConfig {
                    test: texts(test),
                    ..Default::default()
                }),
                shell: texts(shell),
                ..ContainerConfig::default()
            };
            assert_eq!(healthcheck(&config), expected);
        };
        check(&["CMD", "curl", "x"], &[], &["curl", "x"]);
        check(&["CMD-SHELL", "curl x"], &[], &["/bin/sh", "-c", "curl x"]);
        check(&["CMD-SHELL", "curl x"], &["bash", "-c"], &["bash", "-c", "curl x"]);
        check(&["NONE"], &[], &[]);
        check(&[], &[], &[]);
    }
}
