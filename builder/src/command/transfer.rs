//! `rbuild pull` and `push`: images between registries and the local store, with progress.

use std::future::Future;

use rbuild_cache::digest::Digest;
use rbuild_cache::limits::Limits;
use rbuild_cache::oci::ImageRef;
use rbuild_solver::image_source::ImageSourceError;
use rbuild_solver::progress::{EventKind, Reporter, Task};

use super::inspect::platform;
use super::{print, run_async};
use crate::cli::{GlobalArgs, PullArgs, PushArgs};
use crate::error::{BuildError, ErrorKind};
use crate::image_source::Images;
use crate::image_transfer;
use crate::local_image::{self, LocalImageError};
use crate::progress::{Display, End};
use crate::registry::Registry;
use crate::request::{Environment, ProgressMode, Settings, limits};

/// Brings images into the local store.
pub(super) fn pull(
    global: &GlobalArgs,
    arguments: &PullArgs,
    environment: &Environment,
) -> Result<(), BuildError> {
    let settings = settings(global, arguments.quiet, environment)?;
    let platform = platform(arguments.platform.as_deref())?;
    let names = names(&arguments.images)?;
    let images = images(&settings, limits(&arguments.limit)?)?;
    let (images, platform) = (&images, platform.as_ref());
    for_each(&names, |name| {
        with_progress(&settings, &format!("pull {name}"), async |task| {
            if arguments.all_platforms {
                return image_transfer::pull_all(images, name, &task).await;
            }
            Ok(image_transfer::pull(images, name, platform, &task).await?.digest)
        })
    })
}

/// Sends images of the local store to their registries.
pub(super) fn push(
    global: &GlobalArgs,
    arguments: &PushArgs,
    environment: &Environment,
) -> Result<(), BuildError> {
    let settings = settings(global, arguments.quiet, environment)?;
    let platform = platform(arguments.platform.as_deref())?;
    let names = names(&arguments.images)?;
    let images = images(&settings, Limits::default())?;
    let images = &images;
    for_each(&names, |name| {
        with_progress(&settings, &format!("push {name}"), async |task| {
            Ok(image_transfer::push(images, name, platform.as_ref(), &task).await?.1)
        })
    })
}

/// Moves the image of each name and prints what the name stands for then. One that fails does not
/// keep the others from being moved.
fn for_each(
    names: &[ImageRef],
    moved: impl Fn(&str) -> Result<Digest, BuildError>,
) -> Result<(), BuildError> {
    let mut errors = Vec::new();
    for name in names {
        let name = name.to_string();
        match moved(&name) {
            Ok(digest) => {
                // It may have been asked for by its digest.
                let name = name.split('@').next().unwrap_or_default();
                print(&format!("{name}@{digest}\n"))?;
            }
            Err(error) => {
                let is_last = matches!(error.kind, ErrorKind::Interrupted(_));
                errors.push(error);
                if is_last {
                    break;
                }
            }
        }
    }
    BuildError::all(errors)
}

fn settings(
    global: &GlobalArgs,
    quiet: bool,
    environment: &Environment,
) -> Result<Settings, BuildError> {
    let progress = quiet.then_some("quiet");
    Ok(Settings::new(global, progress, environment)?)
}

fn names(texts: &[String]) -> Result<Vec<ImageRef>, BuildError> {
    let name = |text: &String| text.parse().map_err(|error| LocalImageError::Name(error).into());
    texts.iter().map(name).collect()
}

fn images(settings: &Settings, limits: Limits) -> Result<Images, BuildError> {
    let registry = Registry::new(settings.registry.clone());
    Ok(Images::new(registry, local_image::open(settings)?.with_limits(limits)))
}

/// Runs `work` as one task of progress, called `name`.
fn with_progress<T, F>(
    settings: &Settings,
    name: &str,
    work: impl FnOnce(Task) -> F,
) -> Result<T, BuildError>
where
    F: Future<Output = Result<T, ImageSourceError>>,
{
    let display = Display::new(settings);
    let task = Reporter::new(display.sink()).start(name);
    let result = run_async(async { work(task.clone()).await.map_err(BuildError::from) });
    let end = match &result {
        Ok(_) => {
            task.tell(EventKind::Finished);
            End::Done
        }
        Err(error) if matches!(error.kind, ErrorKind::Interrupted(_)) => {
            task.tell(EventKind::Canceled);
            End::Interrupted
        }
        Err(error) => {
            // The quiet mode shows the error once, below; so do the others.
            if settings.progress != ProgressMode::Quiet {
                task.tell(EventKind::Failed { message: error.to_string() });
            }
            End::Failed
        }
    };
    display.finish(end);
    result
}
