//! `rbuild load`: the images of an archive become local images.

use std::io::{self, Read};

use rbuild_cache::oci::ImageRef;

use super::inspect::platform;
use super::{print, run_async, settings};
use crate::cli::{GlobalArgs, LoadArgs};
use crate::error::{BuildError, ErrorKind, Problem};
use crate::image_archive::{self, ArchiveError, ArchivedImage};
use crate::local_image::{self, LocalImageError};
use crate::request::{Environment, UsageError, limits};

/// Reads an archive, and gives its images their names when all of it was right.
pub(super) fn run(
    global: &GlobalArgs,
    arguments: &LoadArgs,
    environment: &Environment,
) -> Result<(), BuildError> {
    let settings = settings(global, environment)?;
    let platform = platform(arguments.platform.as_deref())?;
    let tag = arguments.tag.as_deref().map(local_image::new_name);
    let tag = tag.transpose().map_err(LocalImageError::Name)?;
    let source = match &arguments.input {
        Some(path) => format!("`{}`", path.display()),
        None => "stdin".to_owned(),
    };
    if arguments.input.is_none() && environment.stdin_is_terminal {
        let reason = "stdin is a terminal: name a file, or pipe an archive into it";
        return Err(UsageError::value("--input", "-", reason).into());
    }
    let failed = |error: ArchiveError| failed(&source, &error);
    let stream: Box<dyn Read + Send> = match &arguments.input {
        Some(path) => Box::new(fs_err::File::open(path).map_err(|e| failed(e.into()))?),
        None => Box::new(io::stdin()),
    };
    let state = local_image::open(&settings)?.with_limits(limits(&arguments.limit)?);
    let reading = {
        let state = state.clone();
        tokio_blocking(move || image_archive::read(&state, stream, platform.as_ref()))
    };
    let mut images = run_async(reading)?.map_err(failed)?;
    for image in &mut images {
        // An archive can call an image by any digest: only its own is believed.
        let digest = image.root.digest;
        image.names.retain(|name| name.digest().is_none_or(|own| own == digest));
    }
    name(&mut images, tag, &source)?;
    for image in &images {
        let names: Vec<String> = image.names.iter().map(ToString::to_string).collect();
        state.layout().set(&names, &image.root).map_err(LocalImageError::Layout)?;
        if !arguments.quiet {
            for name in &image.names {
                print(&format!("Loaded image: {}\n", name.familiar()))?;
            }
        }
    }
    Ok(())
}

async fn tokio_blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, BuildError> {
    tokio::task::spawn_blocking(work).await.map_err(|error| BuildError::fault(&error))
}

/// Gives the one image without a name the name `tag`. The store knows images by name alone, so
/// that one without would be lost.
fn name(
    images: &mut [ArchivedImage],
    tag: Option<ImageRef>,
    source: &str,
) -> Result<(), BuildError> {
    let count = images.len();
    let mut unnamed: Vec<&mut ArchivedImage> =
        images.iter_mut().filter(|image| image.names.is_empty()).collect();
    let wrong = |message: String, hint: String| {
        let problem = Problem { message, hints: vec![hint], ..Problem::default() };
        Err(BuildError::new(ErrorKind::Failed, problem))
    };
    match (&mut unnamed[..], tag) {
        ([], None) => Ok(()),
        ([], Some(tag)) if count == 1 => {
            images[0].names.push(tag);
            Ok(())
        }
        ([image], Some(tag)) => {
            image.names.push(tag);
            Ok(())
        }
        ([image], None) => {
            let digest = image.root.digest;
            let called = image.tag.as_ref().map_or(String::new(), |tag| format!(", only `{tag}`"));
            wrong(
                format!("image `{digest}` in {source} has no name{called}"),
                "give it one with `-t NAME`".into(),
            )
        }
        (several, _) => wrong(
            format!("`-t` names one image, but {source} has {}", several.len().max(count)),
            "save them with their names, or one at a time".into(),
        ),
    }
}

fn failed(source: &str, error: &ArchiveError) -> BuildError {
    let mut problem = Problem::of(error);
    problem.message = format!("cannot load {source}: {}", problem.message);
    problem.hints.extend(error.hint().map(str::to_owned));
    let kind = match error {
        ArchiveError::Io(_) | ArchiveError::Layout(_) => ErrorKind::Fault,
        _ => ErrorKind::Failed,
    };
    BuildError::new(kind, problem)
}
