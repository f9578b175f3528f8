//! `rbuild inspect` and `rbuild history`: what an image of the local store consists of.

use rbuild_cache::oci::Platform;
use serde_json::{Value, json};

use super::table::{Table, ago};
use super::{print, settings};
use crate::cli::{GlobalArgs, HistoryArgs, InspectArgs};
use crate::error::{BuildError, ErrorKind, Problem};
use crate::local_image::{self, LocalImage, LocalPlatform};
use crate::progress;
use crate::request::{Environment, UsageError};

/// Shows images as `docker image inspect` does, one object for each platform, with the digests and
/// sizes of what they consist of.
pub(super) fn inspect(
    global: &GlobalArgs,
    arguments: &InspectArgs,
    environment: &Environment,
) -> Result<(), BuildError> {
    let state = local_image::open(&settings(global, environment)?)?;
    let wanted = platform(arguments.platform.as_deref())?;
    let mut objects = Vec::new();
    for text in &arguments.images {
        let image = local_image::find(&state, text)?;
        for platform in chosen(&image, wanted.as_ref())? {
            objects.push(object(&image, platform));
        }
    }
    print(&format!("{:#}\n", Value::Array(objects)))
}

fn object(image: &LocalImage, platform: &LocalPlatform) -> Value {
    let (config, manifest) = (&platform.config, &platform.manifest);
    let empty = Value::Array(Vec::new());
    json!({
        "Id": manifest.config.digest,
        "RepoTags": [image.familiar()],
        "Digest": image.root.digest,
        "Manifest": platform.descriptor,
        "Created": config["created"],
        "Author": config["author"].as_str().unwrap_or_default(),
        "Architecture": config["architecture"],
        "Variant": config["variant"].as_str().unwrap_or_default(),
        "Os": config["os"],
        "Size": manifest.layers.iter().map(|layer| layer.size).sum::<u64>(),
        "Config": config["config"],
        "RootFS": { "Type": "layers", "Layers": config["rootfs"].get("diff_ids").unwrap_or(&empty) },
        "Layers": manifest.layers,
        "Annotations": manifest.annotations,
        "History": config.get("history").unwrap_or(&empty),
    })
}

/// Shows how an image came about, the newest step first.
pub(super) fn history(
    global: &GlobalArgs,
    arguments: &HistoryArgs,
    environment: &Environment,
) -> Result<(), BuildError> {
    let settings = settings(global, environment)?;
    let state = local_image::open(&settings)?;
    let wanted = platform(arguments.platform.as_deref())?;
    let image = local_image::find(&state, &arguments.image)?;
    let platforms = chosen(&image, wanted.as_ref())?;
    let Some(platform) = platforms.first() else { return Ok(()) };
    let mut table = Table::new(["CREATED", "SIZE", "CREATED BY"]);
    let mut layers = platform.manifest.layers.iter();
    let mut rows = Vec::new();
    for entry in platform.config["history"].as_array().map_or(&[][..], Vec::as_slice) {
        let created = entry["created"].as_str().and_then(|text| text.parse().ok());
        let size = match entry["empty_layer"].as_bool() {
            Some(true) => 0,
            _ => layers.next().map_or(0, |layer| layer.size),
        };
        let by = entry["created_by"].as_str().unwrap_or_default();
        rows.push([
            created.map_or("-".to_owned(), |time| ago(time, settings.now)),
            progress::bytes(size),
            if arguments.no_trunc { by.to_owned() } else { shortened(by) },
        ]);
    }
    // An image without history still has layers.
    rows.extend(
        layers.map(|layer| ["-".to_owned(), progress::bytes(layer.size), layer.digest.to_string()]),
    );
    rows.into_iter().rev().for_each(|row| table.row(row));
    print(&table.draw())
}

/// The first 72 characters on one line.
fn shortened(text: &str) -> String {
    let line: String = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(71) {
        Some((end, _)) if end + 1 < line.len() => format!("{}…", &line[..end]),
        _ => line,
    }
}

fn platform(text: Option<&str>) -> Result<Option<Platform>, BuildError> {
    let parse = |text: &str| {
        text.parse().map_err(|_| {
            let reason = "expected os/arch[/variant], such as linux/amd64";
            UsageError::value("--platform", text, reason).into()
        })
    };
    text.map(parse).transpose()
}

/// The platforms of `image` that are meant: the one asked for, or all.
fn chosen<'a>(
    image: &'a LocalImage,
    wanted: Option<&Platform>,
) -> Result<Vec<&'a LocalPlatform>, BuildError> {
    let Some(wanted) = wanted else { return Ok(image.platforms.iter().collect()) };
    let found: Vec<_> =
        image.platforms.iter().filter(|platform| platform.platform() == *wanted).collect();
    if !found.is_empty() {
        return Ok(found);
    }
    let there: Vec<String> =
        image.platforms.iter().map(|platform| platform.platform().to_string()).collect();
    let message = format!("the image `{}` is not for {wanted}", image.familiar());
    let problem = Problem {
        message,
        hints: vec![format!("it is for {}", there.join(", "))],
        ..Problem::default()
    };
    Err(BuildError::new(ErrorKind::Failed, problem))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_commands_are_shortened() {
        assert_eq!(shortened("RUN a\n  b"), "RUN a b");
        assert_eq!(shortened(&"é".repeat(100)).chars().count(), 72);
        assert_eq!(shortened(&"x".repeat(72)).chars().count(), 72);
    }
}
