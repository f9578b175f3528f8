//! Points in time as a config holds them: RFC 3339, written as Go writes them.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A point in time, to the nanosecond.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Timestamp(jiff::Timestamp);

impl Timestamp {
    /// `seconds` after the epoch; the nearest representable time for one out of range.
    pub fn from_seconds(seconds: i64) -> Self {
        let bound = if seconds < 0 { jiff::Timestamp::MIN } else { jiff::Timestamp::MAX };
        Self(jiff::Timestamp::from_second(seconds).unwrap_or(bound))
    }

    /// Seconds after the epoch.
    pub fn seconds(self) -> i64 {
        self.0.as_second()
    }
}

impl From<jiff::Timestamp> for Timestamp {
    fn from(timestamp: jiff::Timestamp) -> Self {
        Self(timestamp)
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for Timestamp {
    type Err = jiff::Error;

    fn from_str(text: &str) -> Result<Self, jiff::Error> {
        text.parse().map(Self)
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_written_as_go_does() {
        let check = |text: &str, expected: &str| {
            assert_eq!(text.parse::<Timestamp>().unwrap().to_string(), expected);
        };
        check("2023-11-14T22:13:20Z", "2023-11-14T22:13:20Z");
        check("2023-11-14T22:13:20.120000000Z", "2023-11-14T22:13:20.12Z");
        check("0001-01-01T00:00:00Z", "0001-01-01T00:00:00Z");
        check("2020-01-01T02:00:00+02:00", "2020-01-01T00:00:00Z");
        assert_eq!(Timestamp::from_seconds(0).to_string(), "1970-01-01T00:00:00Z");
        assert_eq!(Timestamp::from_seconds(1_200_000_000).seconds(), 1_200_000_000);
    }
}
