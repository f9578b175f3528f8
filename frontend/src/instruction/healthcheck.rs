//! `HEALTHCHECK NONE` and `HEALTHCHECK [options] CMD command`.

use std::time::Duration;

use super::CommandLine;

/// How to tell whether a container is well.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Healthcheck {
    /// Not at all: the base's check is switched off.
    None,
    /// By a command.
    Command(HealthcheckCommand),
}

/// A command that tells whether a container is well; an absent option is the runtime's default.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthcheckCommand {
    /// What to run; not empty.
    pub command: CommandLine,
    /// `--interval`
    pub interval: Option<Duration>,
    /// `--timeout`
    pub timeout: Option<Duration>,
    /// `--start-period`
    pub start_period: Option<Duration>,
    /// `--start-interval`
    pub start_interval: Option<Duration>,
    /// `--retries`; 0 is the default.
    pub retries: u32,
}
