//! Tables for people: columns as wide as they must be, and times as how long ago.

use std::time::{Duration, SystemTime};

use console::measure_text_width;
use indicatif::HumanDuration;

use crate::progress::harmless;

/// Rows below a heading.
pub(super) struct Table<const N: usize> {
    rows: Vec<[String; N]>,
}

impl<const N: usize> Table<N> {
    /// A table with just its heading.
    pub(super) fn new(heading: [&str; N]) -> Self {
        Self { rows: vec![heading.map(str::to_owned)] }
    }

    /// Adds a row. What came from outside cannot drive the terminal.
    pub(super) fn row(&mut self, cells: [String; N]) {
        self.rows.push(cells.map(|cell| harmless::line(&cell)));
    }

    /// All rows, each with a line break.
    pub(super) fn draw(&self) -> String {
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

/// About how long before `now` something was: `3 days ago`.
pub(super) fn ago(time: jiff::Timestamp, now: SystemTime) -> String {
    let now = jiff::Timestamp::try_from(now).unwrap_or(time);
    match u64::try_from(now.as_second() - time.as_second()) {
        Ok(seconds @ 1..) => format!("{} ago", HumanDuration(Duration::from_secs(seconds))),
        Ok(0) | Err(_) => "now".to_owned(),
    }
}

#[cfg(test)]
mod tests {
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
        check(0, "now");
        check(1, "1 second ago");
        check(119, "2 minutes ago");
        check(7200, "2 hours ago");
        check(86_400 * 400, "57 weeks ago");
    }
}
