//! Texts as Go's `fmt` and `strconv` print them: history entries hold such.

use crate::quote::Quoted;

/// A list as `%v` prints it: `[a b]`.
pub(crate) fn list<T: AsRef<str>>(items: &[T]) -> String {
    let items: Vec<&str> = items.iter().map(AsRef::as_ref).collect();
    format!("[{}]", items.join(" "))
}

/// A list as `%q` prints it: `["a" "b"]`.
pub(crate) fn quoted_list<T: AsRef<str>>(items: &[T]) -> String {
    let items: Vec<String> = items.iter().map(|item| Quoted(item.as_ref()).to_string()).collect();
    list(&items)
}

/// A time span as Go prints it: `1m30s`, `1.5s`, `0s` (Go: `time.Duration.String`).
pub(crate) fn duration(nanoseconds: i64) -> String {
    let sign = if nanoseconds < 0 { "-" } else { "" };
    let total = nanoseconds.unsigned_abs();
    if total == 0 {
        return "0s".to_owned();
    }
    if total < 1_000_000_000 {
        let (unit, name) = match total {
            0..1_000 => (1, "ns"),
            1_000..1_000_000 => (1_000, "µs"),
            _ => (1_000_000, "ms"),
        };
        return format!("{sign}{}{name}", decimal(total, unit));
    }
    let (minutes, rest) = (total / 60_000_000_000, total % 60_000_000_000);
    let (hours, minutes) = (minutes / 60, minutes % 60);
    let seconds = decimal(rest, 1_000_000_000);
    match (hours, minutes) {
        (0, 0) => format!("{sign}{seconds}s"),
        (0, minutes) => format!("{sign}{minutes}m{seconds}s"),
        (hours, minutes) => format!("{sign}{hours}h{minutes}m{seconds}s"),
    }
}

/// `number / unit` with as many decimals as it needs; `unit` is a power of ten.
fn decimal(number: u64, unit: u64) -> String {
    let (whole, rest) = (number / unit, number % unit);
    if rest == 0 {
        return whole.to_string();
    }
    let decimals = format!("{:0width$}", rest, width = unit.ilog10() as usize);
    format!("{whole}.{}", decimals.trim_end_matches('0'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prints_lists() {
        assert_eq!(quoted_list(&["a b", "c"]), r#"["a b" "c"]"#);
        assert_eq!(list(&["a b", "c"]), "[a b c]");
    }

    #[test]
    fn prints_durations() {
        let check = |nanoseconds, expected: &str| assert_eq!(duration(nanoseconds), expected);
        check(0, "0s");
        check(1_500, "1.5µs");
        check(20_000_000, "20ms");
        check(1_500_000_000, "1.5s");
        check(90_000_000_000, "1m30s");
        check(3_600_000_000_000, "1h0m0s");
        check(5_000_000_000, "5s");
    }
}
