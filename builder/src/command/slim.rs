//! `rbuild slim why`: why a slim image has a file, or has it not.

use rbuild_solver::ops::slim::report::{Answer, KeptFile, SlimReport};

use super::{lines, print, settings};
use crate::cli::{GlobalArgs, SlimArgs, SlimCommand};
use crate::error::{BuildError, ErrorKind, Problem};
use crate::local_image;
use crate::progress::bytes;
use crate::request::Environment;
use crate::slim;

/// Does what `arguments` say.
pub(super) fn run(
    global: &GlobalArgs,
    arguments: &SlimArgs,
    environment: &Environment,
) -> Result<(), BuildError> {
    let state = local_image::open(&settings(global, environment)?)?;
    let (SlimCommand::Why { image, .. } | SlimCommand::Report { image, .. }) = &arguments.command;
    let id = match image {
        Some(name) => Some(local_image::find(&state, name)?.id()),
        None => None,
    };
    let report = slim::recall(&state, id)?.ok_or_else(|| missing(image.as_deref()))?;
    match &arguments.command {
        SlimCommand::Why { path, .. } => print(&why(&report, path)?),
        SlimCommand::Report { json: true, .. } => {
            let json = serde_json::to_string_pretty(&report);
            print(&(json.expect("reports have string keys only") + "\n"))
        }
        SlimCommand::Report { json: false, .. } => print(&slim::table(&report)),
    }
}

fn missing(image: Option<&str>) -> BuildError {
    let message = match image {
        Some(name) => format!("nothing is known of how `{name}` was slimmed"),
        None => "no image was slimmed yet".to_owned(),
    };
    failed(message)
        .hint("`rbuild --slim .` makes a slim image and remembers why each file is in it")
}

fn failed(message: String) -> BuildError {
    BuildError::new(ErrorKind::Failed, Problem { message, ..Problem::default() })
}

/// The chain from `path` to what the image asks for.
fn why(report: &SlimReport, path: &str) -> Result<String, BuildError> {
    match report.why(path) {
        Answer::Kept(chain) => Ok(lines(chain.iter().enumerate().map(|(i, file)| link(i, file)))),
        Answer::Dropped(dropped) => {
            let of = dropped.package.as_ref().map(|name| format!(" of the package {name}"));
            let size = bytes(dropped.bytes);
            let of = of.unwrap_or_default();
            let text = if dropped.path.trim_end_matches('/') == path.trim_end_matches('/') {
                format!("{path} ({size}){of} is not kept: nothing leads to it\n")
            } else {
                format!("{path} is not kept: nothing leads into {} ({size})\n", dropped.path)
            };
            Ok(format!("{text}`--slim-keep {path}` keeps it\n"))
        }
        Answer::Unknown => Err(failed(format!("the full image has no `{path}`"))),
    }
}

fn link(depth: usize, file: &KeptFile) -> String {
    let indent = "  ".repeat(depth);
    let package = file.package.as_ref().map(|name| format!(", of {name}")).unwrap_or_default();
    let size = if file.bytes > 0 { format!(" ({}{package})", bytes(file.bytes)) } else { package };
    let why = match &file.why {
        Some(why) => why.to_string(),
        None => "was written for the slim image".to_owned(),
    };
    let end = if file.because.is_some() { ":" } else { "" };
    format!("{indent}{}{size} {why}{end}", file.path)
}
