//! Tables for people: columns as wide as they must be, and times as how long ago.

use std::time::SystemTime;

use console::measure_text_width;

use crate::progress::harmless;

/// Rows below a heading.
pub(crate) struct Table<const N: usize> {
    rows: Vec<[String; N]>,
}

impl<const N: usize> Table<N> {
    /// A table with just its heading.
    pub(crate) fn new(heading: [&str; N]) -> Self {
        Self { rows: vec![heading.map(str::to_owned)] }
    }

    /// Adds a row. What came from outside cannot drive the terminal.
    pub(crate) fn row(&mut self, cells: [String; N]) {
        self.rows.push(cells.map(|cell| harmless::line(&cell)));
    }

    /// All rows, each with a line break.
    pub(crate) fn draw(&self) -> String {
        let width = |column: usize| {
            self.rows.iter().map(|row| measure_text_width(&row[column])).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..N).map(width).collect();
        let line = |row: &[String; N]| {
            let mut line = String::new();
            for (cell, width) in row.iter().zip(&widths) {
                line.push_str(cell);
                line.push_str(&" ".repeat(width - measure_text_width(cell) + 3));
            }
            format!("{}\n", line.trim_end())
        };
        self.rows.iter().map(line).collect()
    }
}

/// About how long before `now` something was, in Docker's words (go-units, `HumanDuration`).
pub(super) fn ago(time: jiff::Timestamp, now: SystemTime) -> String {
    let now = jiff::Timestamp::try_from(now).unwrap_or(time);
    let seconds = (now.as_second() - time.as_second()).max(0);
    let hours = (seconds + 1800) / 3600;
    let span = match seconds {
        0 => "Less than a second".to_owned(),
        1 => "1 second".to_owned(),
        2..60 => format!("{seconds} seconds"),
        60..120 => "About a minute".to_owned(),
        120..3600 => format!("{} minutes", seconds / 60),
        _ if hours == 1 => "About an hour".to_owned(),
        _ if hours < 48 => format!("{hours} hours"),
        _ if hours < 24 * 14 => format!("{} days", hours / 24),
        _ if hours < 24 * 60 => format!("{} weeks", hours / 24 / 7),
        _ if hours < 24 * 730 => format!("{} months", hours / 24 / 30),
        _ => format!("{} years", hours / 24 / 365),
    };
    format!("{span} ago")
}

/// Bytes as Docker's lists show them, in units of 1000 and three digits: `4.26MB` (go-units,
/// `HumanSizeWithPrecision`).
pub(super) fn human_size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["B", "kB", "MB", "GB", "TB", "PB"];
    #[allow(clippy::cast_precision_loss, reason = "three digits of it are shown")]
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1000.0 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    let digits = if value >= 99.95 {
        0
    } else if value >= 9.995 {
        1
    } else {
        2
    };
    let shown = format!("{value:.digits$}");
    let shown = if shown.contains('.') {
        shown.trim_end_matches('0').trim_end_matches('.')
    } else {
        &shown
    };
    format!("{shown}{}", UNITS[unit])
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn columns_are_as_wide_as_they_must_be() {
        let mut table = Table::new(["NAME", "SIZE"]);
        table.row(["app:v1".into(), "4.1 MB".into()]);
        table.row(["é\x1b[2J".into(), "1 B".into()]);
        assert_eq!(table.draw(), "NAME     SIZE\napp:v1   4.1 MB\né        1 B\n");
    }

    #[test]
    fn times() {
        let check = |seconds: u64, expected: &str| {
            let now = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
            assert_eq!(ago(jiff::Timestamp::UNIX_EPOCH, now), expected);
        };
        check(0, "Less than a second ago");
        check(1, "1 second ago");
        check(119, "About a minute ago");
        check(3000, "50 minutes ago");
        check(3600, "About an hour ago");
        check(7200, "2 hours ago");
        check(86_400 * 3, "3 days ago");
        check(86_400 * 20, "2 weeks ago");
        check(86_400 * 400, "13 months ago");
        check(86_400 * 800, "2 years ago");
    }

    #[test]
    fn sizes() {
        let check = |bytes: u64, expected: &str| assert_eq!(human_size(bytes), expected);
        check(0, "0B");
        check(999, "999B");
        check(1000, "1kB");
        check(1024, "1.02kB");
        check(4_261_000, "4.26MB");
        check(72_800_000, "72.8MB");
        check(117_400_000, "117MB");
        check(1_050_000_000, "1.05GB");
    }
}
