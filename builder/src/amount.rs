//! Amounts as people write them: `20GB`, `512MiB`, `10%`, `36h`, `30d`. Units of bytes are powers of
//! 1024, as in BuildKit's own limits (cmd/buildkitd/config/gcpolicy.go) and buildx's flags.

use std::time::Duration;

use rbuild_frontend::amount;

/// An amount of room on a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Room {
    /// So many bytes.
    Bytes(u64),
    /// So many hundredths of the disk.
    Percent(u64),
}

impl Room {
    /// Reads bytes with or without a unit, or hundredths of the disk.
    pub fn parse(text: &str) -> Option<Self> {
        match text.trim().strip_suffix('%') {
            Some(number) => {
                let percent: u64 = number.trim().parse().ok()?;
                (percent <= 100).then_some(Self::Percent(percent))
            }
            None => amount::bytes(text.trim()).map(Self::Bytes),
        }
    }

    /// The bytes that it is on a disk of `disk` bytes.
    pub fn bytes_of(self, disk: u64) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes,
            Self::Percent(percent) => disk / 100 * percent,
        }
    }
}

/// Reads a time as Go does, before which days and weeks may stand: `1h30m`, `1.5h`, `30d`, `2w`. There
/// is none below zero.
pub fn duration(text: &str) -> Option<Duration> {
    const DAY: Duration = Duration::from_hours(24);
    let (mut rest, mut days) = (text.trim(), None::<u32>);
    for (unit, length) in [('w', 7), ('d', 1)] {
        if let Some((number, behind)) = rest.split_once(unit) {
            let number: u32 = number.parse().ok().filter(|_| !number.starts_with('+'))?;
            days = Some(days.unwrap_or(0).checked_add(number.checked_mul(length)?)?);
            rest = behind;
        }
    }
    let below = match days {
        Some(_) if rest.is_empty() => 0,
        _ => u64::try_from(amount::nanoseconds(rest).ok()?).ok()?,
    };
    DAY.checked_mul(days.unwrap_or(0))?.checked_add(Duration::from_nanos(below))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rooms() {
        let check = |text, expected| assert_eq!(Room::parse(text), expected, "{text}");
        check("0", Some(Room::Bytes(0)));
        check("20GB", Some(Room::Bytes(20 << 30)));
        check(" 1.5 GiB ", Some(Room::Bytes(3 << 29)));
        check("10%", Some(Room::Percent(10)));
        check("1k", Some(Room::Bytes(1024)));
        check("7m", Some(Room::Bytes(7 << 20)));
        for wrong in ["", "GB", "-1", "5 pounds", ".", "99999999999TB", "101%", "-1%"] {
            check(wrong, None);
        }
        assert_eq!(Room::Percent(25).bytes_of(4000), 1000);
    }

    #[test]
    fn durations() {
        let check = |text, milliseconds: Option<u64>| {
            assert_eq!(duration(text), milliseconds.map(Duration::from_millis), "{text}");
        };
        check("24h", Some(86_400_000));
        check("1h30m", Some(5_400_000));
        check("1.5h", Some(5_400_000));
        check("1s250ms", Some(1250));
        check("1w1d1s", Some(691_201_000));
        check("30d", Some(2_592_000_000));
        check("2w", Some(1_209_600_000));
        check("0s", Some(0));
        check("0", Some(0));
        let wrong = ["", "10", "h", ".s", "1x", "1d2w", "-1h", "1h-", "-1d", "+1d", "1m 3"];
        let huge = ["9999999999w", "99999999999999999999s"];
        for wrong in wrong.into_iter().chain(huge) {
            check(wrong, None);
        }
    }
}
