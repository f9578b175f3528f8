//! `rbuild prune`: removes from the state folder what nobody needs, as `docker buildx prune` does.
//!
//! Without `--all`, results that named images consist of stay; blobs of named images always do, and
//! so does what a running build uses.

use std::io::{self, BufRead, Write};

use rbuild_cache::prune::{self, PruneError, Room as Limits};
use rbuild_cache::state::StateFolder;
use rbuild_cache::usage::{Entry, Usage};

use super::filter::Filters;
use super::{become_root, du, print, settings, tell};
use crate::amount::Room;
use crate::build::seconds;
use crate::cli::{GlobalArgs, PruneArgs};
use crate::error::BuildError;
use crate::local_image;
use crate::progress;
use crate::request::{Environment, Settings, UsageError};

/// Another build can leave something to remove while this goes on; not for ever.
const ROUNDS_MAX: usize = 3;

/// Removes what the flags say, and says how much that was.
pub(super) fn run(
    global: &GlobalArgs,
    arguments: &PruneArgs,
    environment: &Environment,
) -> Result<(), BuildError> {
    let settings = settings(global, environment)?;
    let request = Request::new(arguments)?;
    let asks = !arguments.force && !arguments.dry_run;
    if asks && environment.stdin_is_terminal && !confirmed(arguments)? {
        return Ok(());
    }
    become_root()?;
    let state = local_image::open(&settings)?;
    if arguments.dry_run {
        return dry_run(&state, &request, arguments, &settings);
    }
    let mut freed = 0;
    for _ in 0..ROUNDS_MAX {
        let freed_now = round(&state, &request, arguments, &settings)?;
        freed += freed_now;
        // Without a limit, one round has tried everything.
        if freed_now == 0 || request.room == Flags::default() {
            break;
        }
    }
    print(&format!("Total: {} freed\n", progress::bytes(freed)))
}

/// What the flags mean.
struct Request {
    filters: Filters,
    room: Flags,
    all: bool,
}

/// How much may stay.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
struct Flags {
    most: Option<Room>,
    free: Option<Room>,
    reserved: Option<Room>,
}

impl Request {
    fn new(arguments: &PruneArgs) -> Result<Self, UsageError> {
        let room = |flag: &'static str, text: &Option<String>| {
            let parse = |text: &String| {
                Room::parse(text).ok_or_else(|| {
                    UsageError::value(flag, text, "expected a size like `20GB` or `10%`")
                })
            };
            text.as_ref().map(parse).transpose()
        };
        // buildx keeps the older name for the same.
        let reserved = room("--reserved-space", &arguments.reserved_space)?;
        let storage = room("--keep-storage", &arguments.keep_storage)?;
        Ok(Self {
            filters: Filters::parse(&arguments.filter)?,
            room: Flags {
                most: room("--max-used-space", &arguments.max_used_space)?,
                free: room("--min-free-space", &arguments.min_free_space)?,
                reserved: reserved.or(storage),
            },
            all: arguments.all,
        })
    }

    /// What goes, and how many bytes it frees.
    fn plan<'a>(
        &self,
        state: &StateFolder,
        usage: &'a Usage,
        settings: &Settings,
    ) -> Result<Vec<(&'a Entry, u64)>, BuildError> {
        let disk = rustix::fs::statvfs(state.root()).map_err(io::Error::from);
        let disk = disk.map_err(|error| BuildError::fault(&error))?;
        let size = disk.f_blocks * disk.f_frsize;
        let bytes = |room: Option<Room>| room.map(|room| room.bytes_of(size));
        let limits = Limits {
            most: bytes(self.room.most),
            free: bytes(self.room.free),
            reserved: bytes(self.room.reserved),
        };
        let keep = limits.keep(usage.total(), disk.f_bavail * disk.f_frsize);
        let now = seconds(settings.now);
        Ok(prune::plan(usage, |entry, left| {
            (self.all || !entry.shared)
                && self.filters.hold(entry, now)
                && keep.is_none_or(|keep| left > keep)
        }))
    }
}

/// Removes once what goes now; the bytes that this freed.
fn round(
    state: &StateFolder,
    request: &Request,
    arguments: &PruneArgs,
    settings: &Settings,
) -> Result<u64, BuildError> {
    let usage = Usage::of(state).map_err(|error| BuildError::fault(&error))?;
    let plan = request.plan(state, &usage, settings)?;
    let entries: Vec<&Entry> = plan.iter().map(|(entry, _)| *entry).collect();
    let mut freed = 0;
    let mut said = Ok(());
    prune::remove(state, &entries, seconds(settings.now), &mut |entry| {
        let bytes = plan.iter().find(|(planned, _)| planned.name == entry.name);
        let bytes = bytes.map_or(0, |(_, bytes)| *bytes);
        freed += bytes;
        if said.is_ok() {
            said = print(&shown(entry, bytes, arguments, settings));
        }
    })
    .map_err(|error: PruneError| BuildError::fault(&error))?;
    said.map(|()| freed)
}

fn dry_run(
    state: &StateFolder,
    request: &Request,
    arguments: &PruneArgs,
    settings: &Settings,
) -> Result<(), BuildError> {
    let usage = Usage::of(state).map_err(|error| BuildError::fault(&error))?;
    let plan = request.plan(state, &usage, settings)?;
    for (entry, bytes) in &plan {
        print(&shown(entry, *bytes, arguments, settings))?;
    }
    let freed = plan.iter().map(|(_, bytes)| bytes).sum();
    print(&format!("Total: {} would be freed\n", progress::bytes(freed)))
}

fn shown(entry: &Entry, freed: u64, arguments: &PruneArgs, settings: &Settings) -> String {
    if arguments.verbose {
        return du::details(entry, settings);
    }
    let line = format!("{:>9}   {}   {}", progress::bytes(freed), entry.id, entry.description);
    format!("{}\n", progress::harmless::line(&line))
}

/// Asks on the terminal, as buildx does.
fn confirmed(arguments: &PruneArgs) -> Result<bool, BuildError> {
    let what = if arguments.all {
        "all build cache, also that which images in the local store were made of"
    } else {
        "all build cache that no image in the local store was made of"
    };
    let what = if arguments.filter.is_empty() { what } else { "what the filters select" };
    tell(&format!("This removes {what}. Continue? [y/N] "));
    let _ = io::stderr().flush();
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer).map_err(|error| BuildError::fault(&error))?;
    Ok(matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrong_sizes_are_refused() {
        let arguments = PruneArgs { max_used_space: Some("much".into()), ..PruneArgs::default() };
        assert!(Request::new(&arguments).is_err());
        let arguments = PruneArgs { keep_storage: Some("1GB".into()), ..PruneArgs::default() };
        let request = Request::new(&arguments).ok().unwrap();
        assert_eq!(request.room.reserved, Some(Room::Bytes(1 << 30)));
    }
}
