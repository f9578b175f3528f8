//! `rbuild du`: what the state folder holds, and what each cached step takes.

use rbuild_cache::index::CacheRecord;
use rbuild_cache::state::StateFolder;
use serde_json::json;

use super::table::{Table, ago};
use super::{lines, print, settings};
use crate::cli::{DuArgs, GlobalArgs};
use crate::error::BuildError;
use crate::local_image;
use crate::progress;
use crate::request::Environment;

/// Lists the cached steps, the last used first, and the sums.
pub(super) fn run(
    global: &GlobalArgs,
    arguments: &DuArgs,
    environment: &Environment,
) -> Result<(), BuildError> {
    let settings = settings(global, environment)?;
    let state = local_image::open(&settings)?;
    let steps = steps(&state)?;
    let blobs = state.blobs().list().map_err(|error| BuildError::fault(&error))?;
    let of_blobs: u64 = blobs.iter().map(|(_, size)| size).sum();
    let of_steps: u64 = steps.iter().map(|(_, size)| size).sum();
    if arguments.json {
        let object = |(record, size): &(CacheRecord, u64)| {
            json!({
                "id": record.snapshot, "description": record.description, "size": size,
                "created": record.created, "last_used": record.last_used,
            })
        };
        return print(&lines(steps.iter().map(object)));
    }
    let time = |seconds: i64| {
        let time = jiff::Timestamp::from_second(seconds);
        time.map_or("-".to_owned(), |time| ago(time, settings.now))
    };
    let mut table = Table::new(["SIZE", "LAST USED", "CREATED", "STEP"]);
    for (record, size) in &steps {
        table.row([
            progress::bytes(*size),
            time(record.last_used),
            time(record.created),
            record.description.clone(),
        ]);
    }
    let sums = format!(
        "\n{} in {} steps, {} in {} blobs of images, in {}\n",
        progress::bytes(of_steps),
        steps.len(),
        progress::bytes(of_blobs),
        blobs.len(),
        settings.state_folder.display(),
    );
    print(&(table.draw() + &sums))
}

/// The cached steps whose trees are there, each with the bytes of its files.
fn steps(state: &StateFolder) -> Result<Vec<(CacheRecord, u64)>, BuildError> {
    let mut records = state.index().records().map_err(|error| BuildError::fault(&error))?;
    records.sort_by_key(|record| std::cmp::Reverse(record.last_used));
    records.dedup_by(|one, other| one.snapshot == other.snapshot);
    let mut steps = Vec::new();
    for record in records {
        let snapshot = state.snapshots().get(&record.snapshot);
        if let Some(snapshot) = snapshot.map_err(|error| BuildError::fault(&error))? {
            steps.push((record, snapshot.size));
        }
    }
    Ok(steps)
}
