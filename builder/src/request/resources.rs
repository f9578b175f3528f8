//! How much of the machine a RUN step may take: memory, processors, processes, time. Values are read
//! as `docker build` and `docker run` read them (docker/cli `cli/command/container/opts.go`).

use std::time::Duration;

use rbuild_solver::sandbox::resources::{MemorySwap, Resources};

use super::{UsageError, step};
use crate::amount;
use crate::cli::BuildArgs;

/// The least memory that Docker lets a container have.
const LEAST_MEMORY: u64 = 6 << 20;

/// Reads `--memory` and all its like.
pub(super) fn resources(arguments: &BuildArgs) -> Result<Resources, UsageError> {
    let memory = arguments.memory.as_deref().map(memory).transpose()?;
    let memory_swap = arguments
        .memory_swap
        .as_deref()
        .map(|text| memory_swap(text, memory))
        .transpose()?
        .flatten();
    let (cpu_quota, cpu_period) = cpu_time(arguments)?;
    Ok(Resources {
        memory,
        memory_swap,
        cpu_period,
        cpu_quota,
        // As with Docker, 0 is what is not set.
        cpu_shares: arguments.cpu_shares.filter(|shares| *shares > 0),
        cpuset_cpus: list("--cpuset-cpus", arguments.cpuset_cpus.as_deref())?,
        cpuset_mems: list("--cpuset-mems", arguments.cpuset_mems.as_deref())?,
        // As with Docker, no number below 1 is a limit.
        pids: arguments.pids_limit.and_then(|limit| u64::try_from(limit).ok()).filter(|n| *n > 0),
    })
}

fn memory(text: &str) -> Result<u64, UsageError> {
    let memory = step::bytes("--memory", text)?;
    if memory < LEAST_MEMORY {
        return Err(UsageError::value("--memory", text, "it is less than 6m"));
    }
    Ok(memory)
}

fn memory_swap(text: &str, memory: Option<u64>) -> Result<Option<MemorySwap>, UsageError> {
    const FLAG: &str = "--memory-swap";
    let wrong = |reason: &str| UsageError::value(FLAG, text, reason);
    let memory = memory.ok_or_else(|| wrong("it needs `--memory`"))?;
    if text == "-1" {
        return Ok(Some(MemorySwap::Unlimited));
    }
    match step::bytes(FLAG, text)? {
        0 => Ok(None),
        total if total < memory => Err(wrong("it is memory and swap together: less than memory")),
        total => Ok(Some(MemorySwap::Bytes(total))),
    }
}

/// Quota and period, in microseconds.
fn cpu_time(arguments: &BuildArgs) -> Result<(Option<u64>, Option<u64>), UsageError> {
    /// What the kernel takes as a period, and the shortest quota.
    const PERIODS: std::ops::RangeInclusive<u64> = 1000..=1_000_000;
    const PERIOD: u64 = 100_000;
    let period = arguments.cpu_period.filter(|period| *period > 0);
    if let Some(period) = period.filter(|period| !PERIODS.contains(period)) {
        let reason = "expected 1000 to 1000000 microseconds";
        return Err(UsageError::value("--cpu-period", period.to_string(), reason));
    }
    // Negative numbers and 0 are no limit.
    let quota = arguments.cpu_quota.and_then(|quota| u64::try_from(quota).ok());
    let quota = quota.filter(|quota| *quota > 0);
    if let Some(quota) = quota.filter(|quota| quota < PERIODS.start()) {
        let reason = "expected at least 1000 microseconds";
        return Err(UsageError::value("--cpu-quota", quota.to_string(), reason));
    }
    let Some(text) = arguments.cpus.as_deref() else { return Ok((quota, period)) };
    if arguments.cpu_quota.is_some() || arguments.cpu_period.is_some() {
        let reason = "it says the same as `--cpu-quota` and `--cpu-period`: give one";
        return Err(UsageError::value("--cpus", text, reason));
    }
    let wrong = || UsageError::value("--cpus", text, "expected a number, such as 1.5");
    let cpus: f64 = text.parse().map_err(|_| wrong())?;
    if !(0.01..=100_000.0).contains(&cpus) {
        return Err(wrong());
    }
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "the range is checked above"
    )]
    let quota = (cpus * PERIOD as f64).round() as u64;
    Ok((Some(quota), Some(PERIOD)))
}

/// `0-3,6`
fn list(flag: &'static str, text: Option<&str>) -> Result<Option<String>, UsageError> {
    let Some(text) = text.filter(|text| !text.is_empty()) else { return Ok(None) };
    let is_number = |text: &str| text.parse::<u16>().is_ok();
    let is_range = |part: &str| match part.split_once('-') {
        Some((first, last)) => is_number(first) && is_number(last),
        None => is_number(part),
    };
    if text.split(',').all(is_range) {
        Ok(Some(text.to_owned()))
    } else {
        Err(UsageError::value(flag, text, "expected numbers, such as 0-3 or 0,1"))
    }
}

/// Reads `--timeout`: seconds, or a time with its units.
pub(super) fn timeout(text: &str) -> Result<Duration, UsageError> {
    let alone = text.trim().bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    match amount::duration(&if alone { format!("{}s", text.trim()) } else { text.to_owned() }) {
        Some(timeout) if !timeout.is_zero() => Ok(timeout),
        _ => Err(UsageError::value("--timeout", text, "expected a time, such as 90, 30s or 1h30m")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(change: impl FnOnce(&mut BuildArgs)) -> Result<Resources, String> {
        let mut arguments = BuildArgs::default();
        change(&mut arguments);
        resources(&arguments).map_err(|error| error.to_string())
    }

    #[test]
    fn memory_and_swap() {
        let check = |memory: &str, swap: Option<&str>, expected| {
            let found = of(|arguments| {
                arguments.memory = Some(memory.to_owned());
                arguments.memory_swap = swap.map(ToOwned::to_owned);
            });
            assert_eq!(found.unwrap().memory_swap, expected);
        };
        check("64m", None, None);
        check("64m", Some("0"), None);
        check("64m", Some("-1"), Some(MemorySwap::Unlimited));
        check("64m", Some("1g"), Some(MemorySwap::Bytes(1 << 30)));
        let wrong = |memory: Option<&str>, swap: &str, expected: &str| {
            let error = of(|arguments| {
                arguments.memory = memory.map(ToOwned::to_owned);
                arguments.memory_swap = Some(swap.to_owned());
            });
            assert!(error.clone().unwrap_err().contains(expected), "{error:?}");
        };
        wrong(None, "1g", "it needs `--memory`");
        wrong(Some("64m"), "32m", "less than memory");
        wrong(Some("1m"), "0", "less than 6m");
    }

    #[test]
    fn processors() {
        let check = |cpus: Option<&str>, quota, period, expected| {
            let found = of(|arguments| {
                arguments.cpus = cpus.map(ToOwned::to_owned);
                (arguments.cpu_quota, arguments.cpu_period) = (quota, period);
            });
            assert_eq!(found.ok().map(|found| (found.cpu_quota, found.cpu_period)), expected);
        };
        check(None, None, None, Some((None, None)));
        check(Some("1.5"), None, None, Some((Some(150_000), Some(100_000))));
        check(None, Some(50_000), None, Some((Some(50_000), None)));
        check(None, Some(-1), Some(10_000), Some((None, Some(10_000))));
        check(None, Some(10), None, None);
        check(None, None, Some(10), None);
        check(Some("1"), Some(50_000), None, None);
        check(Some("nan"), None, None, None);
        check(Some("0"), None, None, None);
        let set = |text: &str| of(|arguments| arguments.cpuset_cpus = Some(text.to_owned()));
        assert_eq!(set("0-3,6").unwrap().cpuset_cpus.as_deref(), Some("0-3,6"));
        assert!(set("all").is_err() && set("1-").is_err());
    }

    #[test]
    fn processes() {
        let check = |limit, expected| {
            assert_eq!(of(|arguments| arguments.pids_limit = Some(limit)).unwrap().pids, expected);
        };
        check(100, Some(100));
        check(0, None);
        check(-1, None);
    }

    #[test]
    fn times() {
        let check = |text: &str, expected: Option<u64>| {
            let found = timeout(text).ok().map(|time| time.as_millis());
            assert_eq!(found, expected.map(u128::from), "{text}");
        };
        check("90", Some(90_000));
        check("0.5", Some(500));
        check("30s", Some(30_000));
        check("1h30m", Some(5_400_000));
        check("1m 3", None);
        check("5x", None);
        check("1m30", None);
        check("0", None);
        check("", None);
        check("-1", None);
    }
}
