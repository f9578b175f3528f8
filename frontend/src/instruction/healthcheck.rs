//! `HEALTHCHECK NONE` and `HEALTHCHECK [options] CMD command`.

use std::time::Duration;

use super::CommandLine;
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
    let nanoseconds = parse_duration(text.as_str()).map_err(wrong)?;
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

/// A duration as Go's `time.ParseDuration` reads it: `1h30m`, `1.5s`, `300ms`. In nanoseconds.
fn parse_duration(text: &str) -> Result<i64, String> {
    let invalid = || format!("time: invalid duration {}", Quoted(text));
    let (sign, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (-1, rest),
        None => (1, text.strip_prefix('+').unwrap_or(text)),
    };
    if rest == "0" {
        return Ok(0);
    }
    if rest.is_empty() {
        return Err(invalid());
    }
    let mut total: i128 = 0;
    while !rest.is_empty() {
        let number_end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let (number, behind) = rest.split_at(number_end);
        let unit_end =
            behind.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(behind.len());
        let (unit, behind) = behind.split_at(unit_end);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
            return Err(invalid());
        }
        if unit.is_empty() {
            return Err(format!("time: missing unit in duration {}", Quoted(text)));
        }
        let nanoseconds = unit_nanoseconds(unit).ok_or_else(|| {
            format!("time: unknown unit {} in duration {}", Quoted(unit), Quoted(text))
        })?;
        total += decimal(whole, fraction, nanoseconds).ok_or_else(invalid)?;
        if total > i128::from(i64::MAX) {
            return Err(invalid());
        }
        rest = behind;
    }
    i64::try_from(sign * total).map_err(|_| invalid())
}

fn unit_nanoseconds(unit: &str) -> Option<i128> {
    Some(match unit {
        "ns" => 1,
        "us" | "µs" | "μs" => 1_000,
        "ms" => 1_000_000,
        "s" => 1_000_000_000,
        "m" => 60 * 1_000_000_000,
        "h" => 3600 * 1_000_000_000,
        _ => return None,
    })
}

/// `whole.fraction` times `unit`; digits that make no difference are left out.
fn decimal(whole: &str, fraction: &str, unit: i128) -> Option<i128> {
    const DIGITS: usize = 15;
    let number = |digits: &str| match digits {
        "" => Some(0),
        digits => digits.parse::<u64>().ok().map(i128::from),
    };
    let fraction = &fraction[..fraction.len().min(DIGITS)];
    let scale = 10_i128.pow(u32::try_from(fraction.len()).ok()?);
    Some(number(whole)? * unit + number(fraction)? * unit / scale)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_as_go_reads_them() {
        let check = |text, expected: Result<i64, &str>| {
            assert_eq!(parse_duration(text), expected.map_err(str::to_owned), "{text}");
        };
        check("0", Ok(0));
        check("1h30m", Ok(5_400_000_000_000));
        check("1.5s", Ok(1_500_000_000));
        check(".5s", Ok(500_000_000));
        check("5.s", Ok(5_000_000_000));
        check("300ms", Ok(300_000_000));
        check("10us", Ok(10_000));
        check("-1s", Ok(-1_000_000_000));
        check("+2s", Ok(2_000_000_000));
        check("3.0000000000000000001s", Ok(3_000_000_000));
        check("", Err("time: invalid duration \"\""));
        check("5", Err("time: missing unit in duration \"5\""));
        check("5x", Err("time: unknown unit \"x\" in duration \"5x\""));
        check(".s", Err("time: invalid duration \".s\""));
        check("s", Err("time: invalid duration \"s\""));
        check("9999999h", Err("time: invalid duration \"9999999h\""));
    }
}
