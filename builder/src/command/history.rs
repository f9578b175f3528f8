//! `rbuild history`: how an image of the local store came about, as `docker history` shows it.

use serde_json::{Value, json};

use super::inspect::{chosen, platform};
use super::list_format::Listing;
use super::table::{ago, human_size};
use super::{lines, print, settings};
use crate::cli::{GlobalArgs, HistoryArgs};
use crate::error::BuildError;
use crate::local_image::{self, LocalPlatform};
use crate::request::{Environment, Settings};

/// Docker's fields (docker/cli, `cli/command/formatter/history.go`).
const LISTING: Listing = Listing {
    headings: &[
        ("ID", "IMAGE"),
        ("CreatedSince", "CREATED"),
        ("CreatedAt", "CREATED AT"),
        ("CreatedBy", "CREATED BY"),
        ("Size", "SIZE"),
        ("Comment", "COMMENT"),
    ],
    table: r"{{.ID}}\t{{.CreatedSince}}\t{{.CreatedBy}}\t{{.Size}}\t{{.Comment}}",
};

/// What stands for a step that is no image by itself, which all but the last are.
const MISSING: &str = "<missing>";

/// How much of a command is shown.
const SHORT: usize = 45;

/// Shows how an image came about, the newest step first.
pub(super) fn run(
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
    let rows = rows(platform, arguments, &settings);
    if arguments.quiet && arguments.format.is_none() {
        let id = |row: &Value| row["ID"].as_str().unwrap_or_default().to_owned();
        return print(&lines(rows.iter().map(id)));
    }
    print(&LISTING.draw(arguments.format.as_deref(), &rows)?)
}

fn rows(platform: &LocalPlatform, arguments: &HistoryArgs, settings: &Settings) -> Vec<Value> {
    let mut layers = platform.manifest.layers.iter();
    let mut rows = Vec::new();
    let size = |bytes: u64| {
        if arguments.human { human_size(bytes) } else { bytes.to_string() }
    };
    for entry in platform.config["history"].as_array().map_or(&[][..], Vec::as_slice) {
        let created = entry["created"].as_str().and_then(|text| text.parse().ok());
        let bytes = match entry["empty_layer"].as_bool() {
            Some(true) => 0,
            _ => layers.next().map_or(0, |layer| layer.size),
        };
        let at = created.map_or("N/A".to_owned(), |time: jiff::Timestamp| {
            time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
        });
        let since = created.map_or("N/A".to_owned(), |time| ago(time, settings.now));
        let by = entry["created_by"].as_str().unwrap_or_default();
        rows.push(json!({
            "ID": MISSING,
            "CreatedSince": if arguments.human { since } else { at.clone() },
            "CreatedAt": at,
            "CreatedBy": if arguments.no_trunc { by.to_owned() } else { shortened(by) },
            "Size": size(bytes),
            "Comment": entry["comment"].as_str().unwrap_or_default(),
        }));
    }
    // An image without history still has layers.
    rows.extend(layers.map(|layer| {
        json!({
            "ID": MISSING,
            "CreatedSince": "N/A",
            "CreatedAt": "N/A",
            "CreatedBy": layer.digest,
            "Size": size(layer.size),
            "Comment": "",
        })
    }));
    rows.reverse();
    if let Some(newest) = rows.first_mut() {
        let id = platform.manifest.config.digest;
        newest["ID"] = if arguments.no_trunc { id.to_string() } else { id.short() }.into();
    }
    rows
}

/// The first characters on one line.
fn shortened(text: &str) -> String {
    let line: String = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(SHORT - 1) {
        Some((end, last)) if end + last.len_utf8() < line.len() => format!("{}…", &line[..end]),
        _ => line,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_commands_are_shortened() {
        assert_eq!(shortened("RUN a\n  b"), "RUN a b");
        assert_eq!(shortened(&"é".repeat(100)).chars().count(), SHORT);
        assert_eq!(shortened(&"x".repeat(SHORT)).chars().count(), SHORT);
        assert!(!shortened(&"x".repeat(SHORT)).ends_with('…'));
        assert!(shortened(&"x".repeat(SHORT + 1)).ends_with('…'));
    }
}
