//! `rbuild cache verify`: compares everything in the state folder with its digest.

use std::io::{self, Write};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use rbuild_cache::verify::{Remedy, Report, verify};

use super::{become_root, lines, print, settings, tell};
use crate::cli::{CacheCommand, CacheVerifyArgs, GlobalArgs};
use crate::error::{BuildError, ErrorKind, Problem};
use crate::local_image;
use crate::progress;
use crate::request::Environment;

/// Between two drawings of how far it is.
const TICK: Duration = Duration::from_millis(125);

/// Does what the subcommand says.
pub(super) fn run(
    global: &GlobalArgs,
    command: &CacheCommand,
    environment: &Environment,
) -> Result<(), BuildError> {
    match command {
        CacheCommand::Verify(arguments) => check(global, arguments, environment),
    }
}

fn check(
    global: &GlobalArgs,
    arguments: &CacheVerifyArgs,
    environment: &Environment,
) -> Result<(), BuildError> {
    let settings = settings(global, environment)?;
    become_root()?;
    let state = local_image::open(&settings)?;
    let begun = Instant::now();
    let drawn = Mutex::new(None);
    let draw = |done: u64, all: u64, bytes: u64| {
        let now = begun.elapsed();
        let Ok(mut drawn) = drawn.try_lock() else { return };
        if drawn.is_none_or(|drawn| now.saturating_sub(drawn) >= TICK) {
            *drawn = Some(now);
            tell(&format!("\r{done} of {all} entries, {} read", progress::bytes(bytes)));
            let _ = io::stderr().flush();
        }
    };
    let silent = |_, _, _| {};
    let told: &(dyn Fn(u64, u64, u64) + Sync) =
        if environment.stderr_is_terminal { &draw } else { &silent };
    let remedy = if arguments.repair { Remedy::Remove } else { Remedy::Tell };
    let report = verify(&state, remedy, told).map_err(|error| BuildError::fault(&error))?;
    if environment.stderr_is_terminal {
        tell("\r\x1b[K");
    }
    print(&shown(&report))?;
    let left = report.damage.iter().filter(|damage| !damage.repaired).count();
    let is_broken = left > 0 || (!arguments.repair && !report.incomplete.is_empty());
    if !is_broken {
        return Ok(());
    }
    let message = match (left, report.incomplete.len()) {
        (0, images) => progress::count(images, "image is incomplete", "images are incomplete"),
        (left, _) => progress::count(left, "entry is damaged", "entries are damaged"),
    };
    let problem = Problem { message, ..Problem::default() };
    Err(BuildError::new(ErrorKind::Failed, problem).hint(if arguments.repair {
        "what cannot be read was left; the kernel's log (`dmesg`) may tell why"
    } else {
        "`rbuild cache verify --repair` removes what is damaged; the next build makes it again"
    }))
}

fn shown(report: &Report) -> String {
    let damage = report.damage.iter().map(|damage| {
        let repaired = if damage.repaired { " (removed)" } else { "" };
        progress::harmless::line(&format!("damaged: {}: {}{repaired}", damage.what, damage.why))
    });
    let incomplete = report.incomplete.iter().map(|name| {
        progress::harmless::line(&format!(
            "incomplete: image {name}: build or pull it again to make it whole"
        ))
    });
    let sum = format!(
        "{} entries checked, {} read, {} damaged",
        report.checked,
        progress::bytes(report.bytes),
        report.damage.len()
    );
    lines(damage.chain(incomplete).chain([sum]))
}
