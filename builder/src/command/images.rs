//! `rbuild images`, `tag` and `rmi`: the names in the local store.

use rbuild_cache::oci::ImageRef;
use serde_json::json;

use super::table::Table;
use super::{lines, print, settings, tell};
use crate::cli::{GlobalArgs, ImagesArgs, RmiArgs, TagArgs};
use crate::error::{BuildError, ErrorKind};
use crate::local_image::{self, LocalImage, LocalImageError, LocalPlatform};
use crate::progress;
use crate::request::Environment;

/// Lists the images.
pub(super) fn list(
    global: &GlobalArgs,
    arguments: &ImagesArgs,
    environment: &Environment,
) -> Result<(), BuildError> {
    let settings = settings(global, environment)?;
    let state = local_image::open(&settings)?;
    let mut images = Vec::new();
    for (name, root) in local_image::names(&state)? {
        match local_image::read(&state, &name, &root) {
            Ok(image) => images.push(image),
            // One that is damaged does not hide the others.
            Err(error) => tell(&as_warning(error.into()).draw(settings.colors)),
        }
    }
    if arguments.quiet {
        return print(&lines(images.iter().map(LocalImage::id)));
    }
    if arguments.json {
        return print(&lines(images.iter().map(as_json)));
    }
    let mut table = Table::new(["NAME", "IMAGE ID", "PLATFORM", "CREATED", "SIZE"]);
    for image in &images {
        let platforms: Vec<String> =
            image.platforms.iter().map(|platform| platform.platform().to_string()).collect();
        let created = image.platforms.first().and_then(LocalPlatform::created);
        table.row([
            image.familiar(),
            image.id().short(),
            platforms.join(","),
            created.map_or("-".to_owned(), |time| super::table::ago(time, settings.now)),
            progress::bytes(image.size()),
        ]);
    }
    print(&table.draw())
}

fn as_warning(mut error: BuildError) -> BuildError {
    error.problems.iter_mut().for_each(|problem| problem.warning = true);
    error
}

fn as_json(image: &LocalImage) -> serde_json::Value {
    let platforms: Vec<String> =
        image.platforms.iter().map(|platform| platform.platform().to_string()).collect();
    json!({
        "name": image.name,
        "id": image.id(),
        "digest": image.root.digest,
        "platforms": platforms,
        "created": image.platforms.first().map(|platform| &platform.config["created"]),
        "size": image.size(),
    })
}

/// Gives an image one more name.
pub(super) fn tag(
    global: &GlobalArgs,
    arguments: &TagArgs,
    environment: &Environment,
) -> Result<(), BuildError> {
    let state = local_image::open(&settings(global, environment)?)?;
    let name: ImageRef = arguments.name.parse().map_err(LocalImageError::Name)?;
    let image = local_image::find(&state, &arguments.image)?;
    state.layout().set(&[name.to_string()], &image.root).map_err(LocalImageError::Layout)?;
    Ok(())
}

/// Takes names away. Those that are there are removed also when another one is not.
pub(super) fn remove(
    global: &GlobalArgs,
    arguments: &RmiArgs,
    environment: &Environment,
) -> Result<(), BuildError> {
    let state = local_image::open(&settings(global, environment)?)?;
    let mut problems = Vec::new();
    for text in &arguments.images {
        let parsed: Result<ImageRef, _> = text.parse();
        let name = parsed.map_or_else(|_| text.clone(), |name| name.to_string());
        let removed = state.layout().remove(&name).map_err(LocalImageError::Layout)?;
        if removed.is_some() {
            print(&format!("removed {text}\n"))?;
            continue;
        }
        // By its ID, an image loses all its names.
        match local_image::find(&state, text) {
            Ok(image) => {
                for (name, root) in local_image::names(&state)? {
                    if root.digest == image.root.digest {
                        state.layout().remove(&name).map_err(LocalImageError::Layout)?;
                        print(&format!("removed {name}\n"))?;
                    }
                }
            }
            Err(error) => problems.extend(BuildError::from(error).problems),
        }
    }
    if problems.is_empty() {
        return Ok(());
    }
    Err(BuildError { kind: ErrorKind::Failed, problems })
}
