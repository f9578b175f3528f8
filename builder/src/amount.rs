//! Amounts as people write them: `20GB`, `512MiB`, `10%`, `36h`, `30d`.

use std::time::Duration;

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
            None => bytes(text).map(Self::Bytes),
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

/// Reads bytes, with or without a unit: `kB`, `MB`, `GB`, `TB` are powers of 1000, `KiB` and its like
/// of 1024, as docker reads them; case does not matter.
pub fn bytes(text: &str) -> Option<u64> {
    let text = text.trim().to_ascii_lowercase();
    let unit = text.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(text.len());
    let (number, unit) = (text[..unit].trim(), &text[unit..]);
    let factor: u64 = match unit {
        "" | "b" => 1,
        "k" | "kb" => 1000,
        "m" | "mb" => 1_000_000,
        "g" | "gb" => 1_000_000_000,
        "t" | "tb" => 1_000_000_000_000,
        "ki" | "kib" => 1 << 10,
        "mi" | "mib" => 1 << 20,
        "gi" | "gib" => 1 << 30,
        "ti" | "tib" => 1 << 40,
        _ => return None,
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if fraction.len() > 6 || (whole.is_empty() && fraction.is_empty()) {
        return None;
    }
    let digits = |digits: &str| if digits.is_empty() { Some(0) } else { decimal(digits) };
    let scale = 10_u64.pow(u32::try_from(fraction.len()).ok()?);
    let part = u128::from(digits(fraction)?) * u128::from(factor) / u128::from(scale);
    digits(whole)?.checked_mul(factor)?.checked_add(u64::try_from(part).ok()?)
}

/// Reads a time as Go writes it, and days and weeks: `1h30m`, `90s`, `30d`, `2w`.
pub fn duration(text: &str) -> Option<Duration> {
    let mut rest = text.trim();
    let mut seconds: u64 = 0;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit())?;
        let number = decimal(&rest[..digits])?;
        rest = &rest[digits..];
        let letters = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        let factor = match &rest[..letters] {
            "s" => 1,
            "m" => 60,
            "h" => 3600,
            "d" => 86_400,
            "w" => 7 * 86_400,
            _ => return None,
        };
        seconds = seconds.checked_add(number.checked_mul(factor)?)?;
        rest = &rest[letters..];
    }
    Some(Duration::from_secs(seconds))
}

/// Digits and nothing else: no sign.
fn decimal(digits: &str) -> Option<u64> {
    digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        let check = |text, expected| assert_eq!(bytes(text), expected, "{text}");
        check("0", Some(0));
        check("512", Some(512));
        check("20GB", Some(20_000_000_000));
        check("1.5 GiB", Some(1_610_612_736));
        check("100kB", Some(100_000));
        check("7m", Some(7_000_000));
        for wrong in ["", "GB", "-1", "1e3", "5 pounds", "+3", ".", "99999999999TB"] {
            check(wrong, None);
        }
        assert_eq!(Room::parse("10%"), Some(Room::Percent(10)));
        assert_eq!(Room::parse("1k"), Some(Room::Bytes(1000)));
        assert_eq!(Room::parse("101%"), None);
        assert_eq!(Room::Percent(25).bytes_of(4000), 1000);
    }

    #[test]
    fn times() {
        let check = |text, expected: Option<u64>| {
            assert_eq!(duration(text), expected.map(Duration::from_secs), "{text}");
        };
        check("24h", Some(86_400));
        check("1h30m", Some(5400));
        check("30d", Some(2_592_000));
        check("2w", Some(1_209_600));
        check("0s", Some(0));
        for wrong in ["", "10", "h", "1x", "-1h", "1h-", "99999999999999999999s"] {
            check(wrong, None);
        }
    }
}
