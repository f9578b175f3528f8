//! The flags of commands about the state folder: what it holds, what goes, what is damaged, and why
//! something was not in it.

use clap::{Args, Subcommand};

/// `rbuild du`
#[derive(Clone, Debug, Args)]
pub struct DuArgs {
    /// Print a JSON object for each entry
    #[arg(long, conflicts_with = "verbose")]
    pub json: bool,
    /// Print all that is known of each entry
    #[arg(short, long)]
    pub verbose: bool,
    /// Only entries for which this holds: `type=exec.cachemount`, `until=24h`, `id=REGEX`, `shared`
    #[arg(long, value_name = "FILTER")]
    pub filter: Vec<String>,
}

/// `rbuild prune`, whose flags are those of `docker buildx prune`.
#[derive(Clone, Debug, Default, Args)]
#[command(after_help = PRUNE_EXAMPLES)]
#[allow(clippy::struct_excessive_bools, reason = "flags are what was typed")]
pub struct PruneArgs {
    /// Remove also results that images in the local store were made of
    #[arg(short, long)]
    pub all: bool,
    /// Only entries for which this holds: until=TIME, id=REGEX, type=TYPE, description=TEXT, inuse,
    /// mutable, immutable, shared, private; `!=` and `~=` (a regular expression) too
    #[arg(long, value_name = "FILTER")]
    pub filter: Vec<String>,
    /// Do not ask
    #[arg(short, long)]
    pub force: bool,
    /// Say what would be removed, and remove nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Print all that is known of each entry
    #[arg(long)]
    pub verbose: bool,
    /// Keep at most so much: `20GB`, or `10%` of the disk
    #[arg(long, value_name = "SIZE")]
    pub max_used_space: Option<String>,
    /// Remove until so much of the disk is free
    #[arg(long, value_name = "SIZE")]
    pub min_free_space: Option<String>,
    /// Keep so much in any case
    #[arg(long, value_name = "SIZE")]
    pub reserved_space: Option<String>,
    /// The older name of --reserved-space
    #[arg(long, value_name = "SIZE", conflicts_with = "reserved_space")]
    pub keep_storage: Option<String>,
}

const PRUNE_EXAMPLES: &str = "\
Examples:
  rbuild prune                                         what no image in the local store was made of
  rbuild prune --filter until=72h                      what nobody used for three days
  rbuild prune --filter type=exec.cachemount --filter id=/root/.cache
                                                       one cache mount
  rbuild prune --all --max-used-space 20GB             the longest unused, until 20 GB are left

Images in the local store stay: `rbuild rmi` removes those. What a running build uses stays too.
`max-size`, `min-free` and `age` in config.toml do the same at the end of each build.";

/// `rbuild explain`
#[derive(Clone, Debug, Args)]
pub struct ExplainArgs {
    /// A step: its number in the answer without one, or part of its name
    #[arg(value_name = "STEP")]
    pub step: Option<String>,
    /// Print a JSON object for each step
    #[arg(long)]
    pub json: bool,
}

/// `rbuild cache`
#[derive(Clone, Debug, Args)]
pub struct CacheArgs {
    /// What to do.
    #[command(subcommand)]
    pub command: CacheCommand,
}

/// What `rbuild cache` can do.
#[derive(Clone, Debug, Subcommand)]
pub enum CacheCommand {
    /// Compare everything in the state folder with its digest
    Verify(CacheVerifyArgs),
}

/// `rbuild cache verify`
#[derive(Clone, Debug, Args)]
#[command(after_help = "Exit codes: 0 all is well or was repaired, 1 something is damaged.")]
pub struct CacheVerifyArgs {
    /// Remove what is damaged, so that the next build makes it again
    #[arg(long)]
    pub repair: bool,
}
