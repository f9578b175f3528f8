//! Keeps the state folder within its budget, at the end of each build.
//!
//! Only a build that wrote something can have made it larger; for the rest (what others put on the
//! disk, what grew old) it is enough to look now and then. What is longest unused goes first. What
//! any running build uses, this one's own results among it, stays, and so do images with names:
//! where these alone are more than the budget, it is exceeded.

use std::time::Duration;

use rbuild_cache::prune::{self, PruneError, Room as Limits};
use rbuild_cache::state::StateFolder;
use rbuild_cache::usage::{Entry, Usage, upper_bound};

use crate::config::Budget;

/// A build that wrote nothing looks so often.
const NOW_AND_THEN: Duration = Duration::from_hours(1);

/// Of what kind the memo is that says when somebody looked last.
const MEMO: &str = "budget";

/// What went, if anything did: how many entries, and how many bytes they took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pruned {
    /// How many entries.
    pub entries: usize,
    /// How many bytes they took.
    pub bytes: u64,
}

/// Brings the state folder into its budget. `now` is in seconds since 1970.
pub fn keep(state: &StateFolder, budget: &Budget, now: i64) -> Result<Pruned, PruneError> {
    if *budget == Budget::default() || !is_time(state, now)? {
        return Ok(Pruned::default());
    }
    state.index().remember(MEMO, b"looked", now.to_string().as_bytes())?;
    let disk = rustix::fs::statvfs(state.root()).map_err(std::io::Error::from)?;
    let (size, free) = (disk.f_blocks * disk.f_frsize, disk.f_bavail * disk.f_frsize);
    let limits = Limits {
        most: budget.max_size.map(|room| room.bytes_of(size)),
        free: budget.min_free.map(|room| room.bytes_of(size)),
        reserved: None,
    };
    if budget.age.is_none() {
        // Most builds end here: what is there is less than allowed even if links count fully.
        let most = upper_bound(state)?;
        if limits.keep(most, free).is_none_or(|keep| most <= keep) {
            return Ok(Pruned::default());
        }
    }
    let usage = Usage::of(state)?;
    let keep = limits.keep(usage.total(), free);
    let since = budget.age.map(|age| now - i64::try_from(age.as_secs()).unwrap_or(i64::MAX));
    let goes = |entry: &Entry, left: u64| {
        since.is_some_and(|since| entry.last_used < since) || keep.is_some_and(|keep| left > keep)
    };
    let plan = prune::plan(&usage, goes);
    let entries: Vec<&Entry> = plan.iter().map(|(entry, _)| *entry).collect();
    let mut pruned = Pruned::default();
    prune::remove(state, &entries, now, &mut |entry| {
        pruned.entries += 1;
        let planned = plan.iter().find(|(planned, _)| planned.name == entry.name);
        pruned.bytes += planned.map_or(0, |(_, bytes)| *bytes);
    })?;
    Ok(pruned)
}

fn is_time(state: &StateFolder, now: i64) -> Result<bool, PruneError> {
    if state.session().wrote() {
        return Ok(true);
    }
    let looked = state.index().recall(MEMO, b"looked")?;
    let looked = looked.and_then(|bytes| String::from_utf8(bytes).ok()?.parse::<i64>().ok());
    let pause = i64::try_from(NOW_AND_THEN.as_secs()).unwrap_or(i64::MAX);
    // A clock that was wrong must not put it off for ever.
    Ok(looked.is_none_or(|looked| now - looked >= pause || looked > now))
}
