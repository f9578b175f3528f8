//! Sizes and time spans as Go programs read them: Docker's flags and the Dockerfile language have both.

use crate::quote::Quoted;

/// A size in bytes, as Docker reads it (docker/go-units, `RAMInBytes`): `64m`, `1.5 GiB`, `4096`. Units
/// are powers of 1024, whether an `i` is in them or not; case does not matter.
pub fn bytes(text: &str) -> Option<u64> {
    let last = text.rfind(|c: char| c.is_ascii_digit() || matches!(c, '.' | ' '))?;
    let (number, suffix) = text.split_at(last + 1);
    let number: f64 = number.strip_suffix(' ').unwrap_or(number).parse().ok()?;
    let suffix = suffix.to_lowercase();
    let power = match suffix.as_str() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 1,
        "m" | "mb" | "mib" => 2,
        "g" | "gb" | "gib" => 3,
        "t" | "tb" | "tib" => 4,
        "p" | "pb" | "pib" => 5,
        _ => return None,
    };
    let bytes = number * 1024_f64.powi(power);
    // Beyond what a file system can hold, Go's conversion is undefined.
    #[expect(clippy::cast_possible_truncation, reason = "the range is checked")]
    #[expect(clippy::cast_sign_loss, reason = "the range is checked")]
    (0.0..9.0e18).contains(&bytes).then_some(bytes as u64)
}

/// A duration as Go's `time.ParseDuration` reads it: `1h30m`, `1.5s`, `300ms`. In nanoseconds, which may be
/// below zero.
///
/// # Errors
///
/// What Go says of it.
pub fn nanoseconds(text: &str) -> Result<i64, String> {
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
    fn sizes_as_docker_reads_them() {
        let check = |text, expected| assert_eq!(bytes(text), expected, "{text}");
        check("4096", Some(4096));
        check("64m", Some(64 << 20));
        check("1 GiB", Some(1 << 30));
        check("2kb", Some(2048));
        check("7b", Some(7));
        check("1x", None);
        check("k", None);
        check("-1", None);
    }

    #[test]
    fn durations_as_go_reads_them() {
        let check = |text, expected: Result<i64, &str>| {
            assert_eq!(nanoseconds(text), expected.map_err(str::to_owned), "{text}");
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
