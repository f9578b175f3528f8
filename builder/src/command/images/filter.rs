//! `rbuild images --filter`: which images are listed (docker/cli, `docs/reference/commandline/
//! image_ls.md`, "Filtering").

use std::time::SystemTime;

use rbuild_cache::pattern::glob_match;
use rbuild_cache::state::StateFolder;

use crate::error::BuildError;
use crate::local_image::{self, LocalImage, LocalPlatform};
use crate::request::{Settings, UsageError, boolean};

const FLAG: &str = "--filter";

/// All of these must hold; of several references, one.
#[derive(Debug, Default)]
pub(super) struct Filters {
    references: Vec<String>,
    labels: Vec<(String, Option<String>)>,
    dangling: Option<bool>,
    before: Option<jiff::Timestamp>,
    since: Option<jiff::Timestamp>,
}

impl Filters {
    /// Reads `KEY=VALUE`s; `image` is the name that stands without a flag.
    pub(super) fn parse(
        texts: &[String],
        image: Option<&str>,
        state: &StateFolder,
        settings: &Settings,
    ) -> Result<Self, BuildError> {
        let mut filters = Self::default();
        filters.references.extend(image.map(str::to_owned));
        for text in texts {
            let wrong = |reason: &str| UsageError::value(FLAG, text, reason);
            let (key, value) = text.split_once('=').ok_or_else(|| wrong("expected KEY=VALUE"))?;
            match key {
                "reference" => {
                    glob_match(value, "").map_err(|error| wrong(&error.to_string()))?;
                    filters.references.push(value.to_owned());
                }
                "label" => filters.labels.push(match value.split_once('=') {
                    Some((key, value)) => (key.to_owned(), Some(value.to_owned())),
                    None => (value.to_owned(), None),
                }),
                "dangling" => {
                    let dangling = boolean(value);
                    filters.dangling =
                        Some(dangling.ok_or_else(|| wrong("it is neither `true` nor `false`"))?);
                }
                "before" => filters.before = created(&local_image::find(state, value)?),
                "since" => filters.since = created(&local_image::find(state, value)?),
                "until" => {
                    let until = until(value, settings.now).ok_or_else(|| {
                        wrong("expected a time such as 2024-01-31T00:00:00Z, or a span such as 24h")
                    })?;
                    filters.before = Some(filters.before.map_or(until, |known| known.min(until)));
                }
                _ => {
                    let known = "it is none of reference, label, dangling, before, since, until";
                    return Err(wrong(known).into());
                }
            }
        }
        Ok(filters)
    }

    /// Whether the image is listed.
    pub(super) fn match_image(&self, image: &LocalImage) -> bool {
        let named = |pattern: &String| is_called(image, pattern);
        let label = |(key, value): &(String, Option<String>)| {
            let found = image
                .platforms
                .iter()
                .find_map(|platform| platform.config["config"]["Labels"][key.as_str()].as_str());
            found.is_some_and(|found| value.as_ref().is_none_or(|value| value == found))
        };
        let time = created(image);
        (self.references.is_empty() || self.references.iter().any(named))
            && self.labels.iter().all(label)
            // What has no name is not in the store's list.
            && self.dangling != Some(true)
            && self.before.is_none_or(|before| time.is_some_and(|time| time < before))
            && self.since.is_none_or(|since| time.is_some_and(|time| time > since))
    }
}

/// Whether a pattern such as `app`, `app:v*` or `example.org/*/app` means the image.
fn is_called(image: &LocalImage, pattern: &str) -> bool {
    let (repository, tag) = image.repository_and_tag();
    let tagged = tag.map_or_else(|| repository.clone(), |tag| format!("{repository}:{tag}"));
    let names = [&*repository, &*tagged, &*image.name];
    // A pattern that is none was refused when it was read.
    names.iter().any(|name| glob_match(pattern, name).unwrap_or(false))
}

fn created(image: &LocalImage) -> Option<jiff::Timestamp> {
    image.platforms.first().and_then(LocalPlatform::created)
}

/// A time, or how long ago.
fn until(text: &str, now: SystemTime) -> Option<jiff::Timestamp> {
    if let Ok(time) = text.parse() {
        return Some(time);
    }
    let span: jiff::Span = text.parse().ok()?;
    jiff::Timestamp::try_from(now).ok()?.checked_sub(span).ok()
}
