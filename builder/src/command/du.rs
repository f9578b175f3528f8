//! `rbuild du`: what the state folder holds, entry by entry, and the sums.

use rbuild_cache::usage::{Entry, EntryName, Usage};
use serde_json::json;

use super::filter::Filters;
use super::table::{Table, ago};
use super::{become_root, lines, print, settings};
use crate::build::seconds;
use crate::cli::{DuArgs, GlobalArgs};
use crate::error::BuildError;
use crate::local_image;
use crate::progress;
use crate::request::{Environment, Settings};

/// Lists the entries, the last used first, and the sums.
pub(super) fn run(
    global: &GlobalArgs,
    arguments: &DuArgs,
    environment: &Environment,
) -> Result<(), BuildError> {
    let settings = settings(global, environment)?;
    let filters = Filters::parse(&arguments.filter)?;
    become_root()?;
    let state = local_image::open(&settings)?;
    let usage = Usage::of(&state).map_err(|error| BuildError::fault(&error))?;
    let now = seconds(settings.now);
    let entries: Vec<&Entry> =
        usage.entries.iter().rev().filter(|entry| filters.hold(entry, now)).collect();
    if arguments.json {
        return print(&lines(entries.iter().map(|entry| object(entry))));
    }
    let list = if arguments.verbose {
        entries.iter().map(|entry| details(entry, &settings)).collect()
    } else {
        table(&entries, &settings)
    };
    print(&(list + &sums(&entries, &usage, &filters, &settings)))
}

fn object(entry: &Entry) -> serde_json::Value {
    json!({
        "id": entry.id, "type": entry.kind.name(), "description": entry.description,
        "size": entry.size, "created": entry.created, "last_used": entry.last_used,
        "in_use": entry.in_use, "shared": entry.shared, "mutable": entry.mutable,
    })
}

/// A table of entries for people.
pub(super) fn table(entries: &[&Entry], settings: &Settings) -> String {
    let mut table = Table::new(["ID", "SIZE", "LAST USED", "CREATED", "DESCRIPTION"]);
    for entry in entries {
        table.row([
            short(entry),
            progress::bytes(entry.size),
            time(entry.last_used, settings),
            time(entry.created, settings),
            entry.description.clone(),
        ]);
    }
    table.draw()
}

/// All that is known of an entry, a line each.
pub(super) fn details(entry: &Entry, settings: &Settings) -> String {
    let fields = [
        ("ID", entry.id.clone()),
        ("Type", entry.kind.name().to_owned()),
        ("Description", entry.description.clone()),
        ("Size", progress::bytes(entry.size)),
        ("Created", time(entry.created, settings)),
        ("Last used", time(entry.last_used, settings)),
        ("In use", entry.in_use.to_string()),
        ("Shared", entry.shared.to_string()),
        ("Mutable", entry.mutable.to_string()),
    ];
    let line = |(name, value): &(&str, String)| {
        progress::harmless::line(&format!("{:13}{value}", format!("{name}:")))
    };
    format!("{}\n", lines(fields.iter().map(line)))
}

/// As much of the id as tells it from others; that of a cache mount whole.
fn short(entry: &Entry) -> String {
    match &entry.name {
        EntryName::Blob(digest) => digest.short(),
        EntryName::Snapshot(_) | EntryName::Context(_) => entry.id.chars().take(18).collect(),
        EntryName::Mount(_) => entry.id.clone(),
    }
}

fn time(seconds: i64, settings: &Settings) -> String {
    let time = jiff::Timestamp::from_second(seconds);
    time.map_or("-".to_owned(), |time| ago(time, settings.now))
}

fn sums(entries: &[&Entry], usage: &Usage, filters: &Filters, settings: &Settings) -> String {
    let sum = |counts: &dyn Fn(&Entry) -> bool| {
        let sizes = entries.iter().filter(|entry| counts(entry)).map(|entry| entry.size);
        progress::bytes(sizes.sum())
    };
    let total = if filters.are_none() {
        format!(
            "Index, locks and the like: {}\nTotal:       {} in {}\n",
            progress::bytes(usage.rest),
            progress::bytes(usage.total()),
            settings.state_folder.display(),
        )
    } else {
        format!("Total:       {}\n", sum(&|_| true))
    };
    format!(
        "\nReclaimable: {}\nShared:      {}\nPrivate:     {}\n{total}",
        sum(&|entry| !entry.in_use && !entry.is_needed()),
        sum(&|entry| entry.shared),
        sum(&|entry| !entry.shared),
    )
}
