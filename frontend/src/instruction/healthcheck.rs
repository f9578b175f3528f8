//! `HEALTHCHECK NONE` and `HEALTHCHECK [options] CMD command`.

use std::time::Duration;

use super::CommandLine;
use crate::amount::nanoseconds;
use crate::diagnostic::{Diagnostic, Diagnostics, all, both};
use crate::quote::Quoted;
use crate::source::Text;
use crate::syntax::BareInstruction;
use crate::syntax::flag::{Flags, Kind};

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

impl Healthcheck {
    pub(super) fn parse(bare: &BareInstruction) -> Result<Self, Diagnostics> {
        let arguments = bare.arguments();
        if arguments.is_empty() {
            return Err(bare.error("HEALTHCHECK requires at least one argument").into());
        }
        let kind_length =
            arguments.as_str().find(char::is_whitespace).unwrap_or(arguments.as_str().len());
        let (kind, command) = (arguments.slice(0..kind_length), arguments.tail(kind_length).trim());
        let name = kind.as_str().to_uppercase();
        let parsed = CommandLine::read(command)?;
        if name == "NONE" {
            // Flags are not looked at, as in BuildKit.
            if !parsed.is_empty() {
                let message = "HEALTHCHECK NONE takes no arguments";
                return Err(Diagnostic::error(message, command.span()).into());
            }
            return Ok(Self::None);
        }
        let flags = Flags::check(
            &bare.flags,
            &[
                ("interval", Kind::Single),
                ("timeout", Kind::Single),
                ("start-period", Kind::Single),
                ("start-interval", Kind::Single),
                ("retries", Kind::Single),
            ],
        )?;
        if name != "CMD" {
            let message = format!("Unknown type {} in HEALTHCHECK (try CMD)", Quoted(&name));
            return Err(Diagnostic::error(message, kind.span()).into());
        }
        if parsed.is_empty() {
            let message = "Missing command after HEALTHCHECK CMD";
            return Err(Diagnostic::error(message, kind.span()).into());
        }
        let names = ["interval", "timeout", "start-period", "start-interval"];
        let times = all(names.map(|name| interval(&flags, name)));
        let (times, retries) = both(times, retries(flags.text("retries")))?;
        Ok(Self::Command(HealthcheckCommand {
            command: parsed,
            interval: times[0],
            timeout: times[1],
            start_period: times[2],
            start_interval: times[3],
            retries,
        }))
    }
}

/// The time that the flag `name` says; none where it is absent, empty or nought.
fn interval(flags: &Flags<'_>, name: &str) -> Result<Option<Duration>, Diagnostic> {
    let Some(text) = flags.text(name) else { return Ok(None) };
    let wrong = |message: String| Diagnostic::error(message, text.span);
    let nanoseconds = nanoseconds(text.as_str()).map_err(wrong)?;
    match u64::try_from(nanoseconds) {
        Ok(0) => Ok(None),
        Ok(nanoseconds) if nanoseconds >= 1_000_000 => Ok(Some(Duration::from_nanos(nanoseconds))),
        Ok(_) | Err(_) => Err(wrong(format!("Interval {} cannot be less than 1ms", Quoted(name)))),
    }
}

fn retries(text: Option<Text>) -> Result<u32, Diagnostic> {
    let Some(text) = text else { return Ok(0) };
    let wrong = |message: String| Diagnostic::error(message, text.span);
    match text.as_str().parse::<i64>() {
        Ok(number @ i64::MIN..0) if number >= i64::from(i32::MIN) => {
            Err(wrong(format!("--retries cannot be negative ({number})")))
        }
        Ok(number) if number <= i64::from(i32::MAX) && number >= 0 => {
            Ok(u32::try_from(number).unwrap_or(0))
        }
        other => {
            let digits = text.as_str().strip_prefix(['+', '-']).unwrap_or(text.as_str());
            let number = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
            let reason =
                if other.is_ok() || number { "value out of range" } else { "invalid syntax" };
            let text = Quoted(text.as_str());
            Err(wrong(format!("strconv.ParseInt: parsing {text}: {reason}")))
        }
    }
}
