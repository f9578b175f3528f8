//! `rbuild inspect`: what an image of the local store consists of.

use rbuild_cache::digest::Digest;
use rbuild_cache::oci::{ImageRef, Platform};
use rbuild_cache::state::StateFolder;
use serde_json::{Value, json};

use super::go_template::GoTemplate;
use super::{print, settings};
use crate::cli::{GlobalArgs, InspectArgs};
use crate::error::{BuildError, ErrorKind, Problem};
use crate::local_image::{self, LocalImage, LocalPlatform, Statement};
use crate::request::{Environment, UsageError};

/// Shows images as `docker image inspect` does, one object for each platform, with the digests and
/// sizes of what they consist of.
pub(super) fn inspect(
    global: &GlobalArgs,
    arguments: &InspectArgs,
    environment: &Environment,
) -> Result<(), BuildError> {
    let wrong = |error: super::go_template::TemplateError| {
        let format = arguments.format.clone().unwrap_or_default();
        UsageError::value("--format", format, error.to_string())
    };
    let template = match arguments.format.as_deref() {
        None | Some("json") => None,
        Some(format) => Some(GoTemplate::parse(format).map_err(wrong)?.with_unset(&UNSET)),
    };
    let state = local_image::open(&settings(global, environment)?)?;
    let wanted = platform(arguments.platform.as_deref())?;
    let (mut objects, mut errors) = (Vec::new(), Vec::new());
    for text in &arguments.images {
        match shown(&state, text, arguments.provenance, wanted.as_ref()) {
            Ok(shown) => objects.extend(shown),
            Err(error) => errors.push(error),
        }
    }
    let text = match (template, &arguments.format) {
        (Some(template), _) => {
            let line = |object| Ok(template.run(&with_unset(object))? + "\n");
            let lines: Result<String, _> = objects.into_iter().map(line).collect();
            lines.map_err(wrong)?
        }
        (None, Some(_)) => format!("{}\n", Value::Array(objects)),
        (None, None) => format!("{:#}\n", Value::Array(objects)),
    };
    // As in docker, those that are there are shown also when another one is not.
    print(&text)?;
    BuildError::all(errors)
}

/// The objects for what `text` names.
fn shown(
    state: &StateFolder,
    text: &str,
    only_provenance: bool,
    wanted: Option<&Platform>,
) -> Result<Vec<Value>, BuildError> {
    let image = local_image::find(state, text)?;
    if only_provenance {
        return provenance(state, &image, wanted);
    }
    let names = local_image::names_of(state, &image)?;
    let platforms = chosen(&image, wanted)?;
    Ok(platforms.into_iter().map(|platform| object(&image, &names, platform)).collect())
}

/// What an image's config may leave out, and how Docker's templates show it then (moby,
/// `api/types/image`, `github.com/moby/docker-image-spec`).
const UNSET: [(&str, &str); 13] = [
    ("User", ""),
    ("ExposedPorts", "map[]"),
    ("Env", "[]"),
    ("Entrypoint", "[]"),
    ("Cmd", "[]"),
    ("Volumes", "map[]"),
    ("WorkingDir", ""),
    ("Labels", "map[]"),
    ("StopSignal", ""),
    ("ArgsEscaped", "false"),
    ("Healthcheck", "<nil>"),
    ("OnBuild", "[]"),
    ("Shell", "[]"),
];

/// The object with the fields that Docker's has in any case: who asks for one that is unset has made
/// no mistake.
fn with_unset(mut object: Value) -> Value {
    if let Some(config) = object.get_mut("Config") {
        if config.is_null() {
            *config = json!({});
        }
        if let Some(fields) = config.as_object_mut() {
            for (name, shown) in UNSET {
                let value = match shown {
                    "" => "".into(),
                    "false" => false.into(),
                    _ => Value::Null,
                };
                fields.entry(name).or_insert(value);
            }
        }
    }
    object
}

fn object(image: &LocalImage, names: &[ImageRef], platform: &LocalPlatform) -> Value {
    let (config, manifest) = (&platform.config, &platform.manifest);
    let empty = Value::Array(Vec::new());
    let by_digest = |name: &ImageRef| {
        let (repository, _) = local_image::repository_and_tag(&name.familiar());
        format!("{repository}@{}", image.root.digest)
    };
    let mut digests: Vec<String> = names.iter().map(by_digest).collect();
    digests.dedup();
    json!({
        "Id": manifest.config.digest,
        "RepoTags": names.iter().map(ImageRef::familiar).collect::<Vec<_>>(),
        "RepoDigests": digests,
        "Digest": image.root.digest,
        "Descriptor": image.root,
        "Manifest": platform.descriptor,
        "Created": config["created"],
        "Comment": last_comment(config),
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

/// What an image says of how it was built: an object for each statement.
fn provenance(
    state: &StateFolder,
    image: &LocalImage,
    wanted: Option<&Platform>,
) -> Result<Vec<Value>, BuildError> {
    let meant: Vec<Digest> =
        chosen(image, wanted)?.iter().map(|platform| platform.descriptor.digest).collect();
    let statements = local_image::statements(state, image)?;
    let about = statements.into_iter().filter(|found| meant.contains(&found.subject));
    let object = |found: Statement| {
        let platforms = &image.platforms;
        let of = platforms.iter().find(|one| one.descriptor.digest == found.subject);
        json!({
            "Platform": of.map(|one| one.platform().to_string()),
            "Manifest": found.subject,
            "Statement": found.statement,
        })
    };
    let objects: Vec<Value> = about.map(object).collect();
    if objects.is_empty() {
        let message = format!("the image `{}` does not say how it was built", image.familiar());
        let hint = "an image that is built with `--provenance=mode=min` does".to_owned();
        let problem = Problem { message, hints: vec![hint], ..Problem::default() };
        return Err(BuildError::new(ErrorKind::Failed, problem));
    }
    Ok(objects)
}

fn last_comment(config: &Value) -> &str {
    let last = config["history"].as_array().and_then(|entries| entries.last());
    last.and_then(|entry| entry["comment"].as_str()).unwrap_or_default()
}

/// Reads `--platform`.
pub(super) fn platform(text: Option<&str>) -> Result<Option<Platform>, BuildError> {
    let parse = |text: &str| {
        text.parse().map_err(|_| {
            let reason = "expected os/arch[/variant], such as linux/amd64";
            UsageError::value("--platform", text, reason).into()
        })
    };
    text.map(parse).transpose()
}

/// The platforms of `image` that are meant: the one asked for, or all.
pub(super) fn chosen<'a>(
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
