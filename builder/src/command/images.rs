//! `rbuild images`, `tag` and `rmi`: the names in the local store, listed as `docker images` does.

mod filter;

use std::collections::BTreeSet;

use rbuild_cache::state::StateFolder;
use serde_json::{Value, json};

use super::list_format::Listing;
use super::table::{ago, human_size};
use super::{lines, print, settings, tell};
use crate::cli::{GlobalArgs, ImagesArgs, RmiArgs, TagArgs};
use crate::error::BuildError;
use crate::local_image::{self, LocalImage, LocalImageError, LocalPlatform};
use crate::request::{Environment, Settings};

use filter::Filters;

/// Docker's fields (docker/cli, `cli/command/formatter/image.go`), and the platforms.
const HEADINGS: &[(&str, &str)] = &[
    ("ID", "IMAGE ID"),
    ("Repository", "REPOSITORY"),
    ("Tag", "TAG"),
    ("Digest", "DIGEST"),
    ("CreatedSince", "CREATED"),
    ("CreatedAt", "CREATED AT"),
    ("Size", "SIZE"),
    ("Containers", "CONTAINERS"),
    ("VirtualSize", "SIZE"),
    ("SharedSize", "SHARED SIZE"),
    ("UniqueSize", "UNIQUE SIZE"),
    ("Platform", "PLATFORM"),
];

const LISTING: Listing = Listing {
    headings: HEADINGS,
    table: r"{{.Repository}}\t{{.Tag}}\t{{.ID}}\t{{.CreatedSince}}\t{{.Size}}",
};

const WITH_DIGESTS: Listing = Listing {
    headings: HEADINGS,
    table: r"{{.Repository}}\t{{.Tag}}\t{{.Digest}}\t{{.ID}}\t{{.CreatedSince}}\t{{.Size}}",
};

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
    let filters = Filters::parse(&arguments.filter, arguments.image.as_deref(), &state, &settings)?;
    images.retain(|image| filters.match_image(image));
    // The newest first; names decide among equals.
    images.sort_by_key(|image| std::cmp::Reverse(created(image)));
    let id = |image: &LocalImage| {
        if arguments.no_trunc { image.id().to_string() } else { image.id().short() }
    };
    if arguments.quiet && arguments.format.is_none() {
        return print(&lines(images.iter().map(id)));
    }
    if arguments.json {
        return print(&lines(images.iter().map(as_json)));
    }
    let rows: Vec<Value> = images.iter().map(|image| row(image, &id(image), &settings)).collect();
    let listing = if arguments.digests { WITH_DIGESTS } else { LISTING };
    print(&listing.draw(arguments.format.as_deref(), &rows)?)
}

fn created(image: &LocalImage) -> Option<jiff::Timestamp> {
    image.platforms.first().and_then(LocalPlatform::created)
}

fn row(image: &LocalImage, id: &str, settings: &Settings) -> Value {
    let (repository, tag) = image.repository_and_tag();
    let created = created(image);
    let platforms: Vec<String> =
        image.platforms.iter().map(|platform| platform.platform().to_string()).collect();
    json!({
        "ID": id,
        "Repository": repository,
        "Tag": tag.unwrap_or_else(|| "<none>".into()),
        "Digest": image.root.digest,
        "CreatedSince": created.map_or("N/A".to_owned(), |time| ago(time, settings.now)),
        "CreatedAt": created.map_or("N/A".to_owned(), |time| {
            format!("{} +0000 UTC", time.strftime("%Y-%m-%d %H:%M:%S"))
        }),
        "Size": human_size(image.size()),
        "Containers": "N/A",
        "VirtualSize": human_size(image.size()),
        "SharedSize": "N/A",
        "UniqueSize": "N/A",
        "Platform": platforms.join(","),
    })
}

fn as_warning(mut error: BuildError) -> BuildError {
    error.problems.iter_mut().for_each(|problem| problem.warning = true);
    error
}

fn as_json(image: &LocalImage) -> Value {
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
    let name = local_image::new_name(&arguments.name).map_err(LocalImageError::Name)?;
    let image = local_image::find(&state, &arguments.image)?;
    let is_there = state.layout().add_name(&name.to_string(), &image.root);
    if is_there.map_err(LocalImageError::Layout)? {
        return Ok(());
    }
    // Somebody has taken its names away since it was found.
    Err(LocalImageError::Missing(arguments.image.clone()).into())
}

/// Takes names away. Those that are there are removed also when another one is not.
pub(super) fn remove(
    global: &GlobalArgs,
    arguments: &RmiArgs,
    environment: &Environment,
) -> Result<(), BuildError> {
    let state = local_image::open(&settings(global, environment)?)?;
    let mut errors = Vec::new();
    for text in &arguments.images {
        match untag(&state, text, arguments.force) {
            Ok(names) => {
                let untagged = |name: &String| format!("Untagged: {}", local_image::familiar(name));
                print(&lines(names.iter().map(untagged)))?;
            }
            Err(LocalImageError::Missing(_)) if arguments.force => {}
            Err(error) => errors.push(error.into()),
        }
    }
    BuildError::all(errors)
}

/// Takes the names away that `text` stands for: by its ID, an image loses all, but those in several
/// repositories only with `force`, as in docker.
fn untag(state: &StateFolder, text: &str, force: bool) -> Result<Vec<String>, LocalImageError> {
    let meant = local_image::meant(state, &local_image::names(state)?, text)?;
    let familiar = meant.names.iter().map(|name| local_image::familiar(name));
    let repositories: BTreeSet<String> =
        familiar.map(|name| local_image::repository_and_tag(&name).0).collect();
    if meant.by_id && repositories.len() > 1 && !force {
        let names = meant.names.iter().map(|name| local_image::familiar(name)).collect();
        return Err(LocalImageError::SeveralRepositories(text.to_owned(), names));
    }
    let mut removed = Vec::new();
    for name in meant.names {
        if state.layout().remove(&name)?.is_some() {
            removed.push(name);
        }
    }
    if removed.is_empty() {
        // Somebody else was quicker.
        return Err(LocalImageError::Missing(text.to_owned()));
    }
    Ok(removed)
}
