//! `--filter` of `rbuild prune` and `rbuild du`, as buildx reads it (commands/prune.go) and BuildKit
//! applies it (cache/manager.go, `adaptUsageInfo`).
//!
//! `KEY`, `KEY=VALUE`, `KEY!=VALUE` and `KEY~=REGEX`; all that are given must hold. `id` is always a
//! regular expression, as with buildx.

use std::time::Duration;

use rbuild_cache::usage::Entry;
use regex::Regex;

use crate::amount;
use crate::request::UsageError;

const FLAG: &str = "--filter";

/// All filters of a command.
#[derive(Debug, Default)]
pub(super) struct Filters {
    filters: Vec<Filter>,
    /// Entries that were used since so long ago are left out.
    unused_for: Option<Duration>,
}

#[derive(Debug)]
struct Filter {
    field: Field,
    test: Test,
}

#[derive(Clone, Copy, Debug)]
enum Field {
    Id,
    Type,
    Description,
    InUse,
    Mutable,
    Immutable,
    Shared,
    Private,
}

#[derive(Debug)]
enum Test {
    /// It is so.
    Holds,
    Is(String),
    IsNot(String),
    Matches(Regex),
}

impl Filters {
    /// Reads all that were given.
    pub(super) fn parse(given: &[String]) -> Result<Self, UsageError> {
        let mut filters = Self::default();
        for given in given {
            let (key, value) = match given.split_once('=') {
                Some((key, value)) => (key, Some(value.strip_prefix('=').unwrap_or(value))),
                None => (given.as_str(), None),
            };
            if let ("until" | "unused-for", Some(value)) = (key, value) {
                let time = amount::duration(value).ok_or_else(|| {
                    UsageError::value(FLAG, given, "expected a time like `24h`, `90m` or `30d`")
                })?;
                filters.unused_for = Some(time);
                continue;
            }
            filters.filters.push(Filter::parse(given, key, value)?);
        }
        Ok(filters)
    }

    /// Whether nothing was asked for.
    pub(super) fn are_none(&self) -> bool {
        self.filters.is_empty() && self.unused_for.is_none()
    }

    /// Whether all filters hold for `entry`; `now` is in seconds since 1970.
    pub(super) fn hold(&self, entry: &Entry, now: i64) -> bool {
        let is_old = self.unused_for.is_none_or(|time| {
            let seconds = i64::try_from(time.as_secs()).unwrap_or(i64::MAX);
            entry.last_used <= now.saturating_sub(seconds)
        });
        is_old && self.filters.iter().all(|filter| filter.holds(entry))
    }
}

impl Field {
    /// What the field says of `entry`, if it says text; for no entry, whether it does.
    fn text(self, entry: Option<&Entry>) -> Option<&str> {
        match self {
            Self::Id => Some(entry.map_or("", |entry| &entry.id)),
            Self::Type => Some(entry.map_or("", |entry| entry.kind.name())),
            Self::Description => Some(entry.map_or("", |entry| &entry.description)),
            Self::InUse | Self::Mutable | Self::Immutable | Self::Shared | Self::Private => None,
        }
    }
}

impl Filter {
    /// Reads one of `key` and `value`; it was `given` like this.
    fn parse(given: &str, key: &str, value: Option<&str>) -> Result<Self, UsageError> {
        const KEYS: &str =
            "id, type, description, inuse, mutable, immutable, shared, private, until, unused-for";
        if key.trim_end_matches(['!', '~']) == "parents" {
            return Err(UsageError::value(FLAG, given, "no entry has parents: each stands alone"));
        }
        let (name, operator) = match key.strip_suffix(['!', '~']) {
            Some(name) => (name, &key[name.len()..]),
            None => (key, ""),
        };
        let field = match name {
            "id" => Field::Id,
            "type" => Field::Type,
            "description" => Field::Description,
            "inuse" => Field::InUse,
            "mutable" => Field::Mutable,
            "immutable" => Field::Immutable,
            "shared" => Field::Shared,
            "private" => Field::Private,
            _ => return Err(UsageError::value(FLAG, given, format!("`{name}` is none of {KEYS}"))),
        };
        let test = match (operator, value) {
            (_, None) => Test::Holds,
            ("", Some("true")) if field.text(None).is_none() => Test::Holds,
            ("!", Some(value)) => Test::IsNot(value.to_owned()),
            ("", Some(value)) if !matches!(field, Field::Id) => Test::Is(value.to_owned()),
            (_, Some(value)) => Test::Matches(
                Regex::new(value)
                    .map_err(|error| UsageError::value(FLAG, given, error.to_string()))?,
            ),
        };
        if field.text(None).is_none() && !matches!(test, Test::Holds) {
            return Err(UsageError::value(FLAG, given, format!("`{name}` takes no value")));
        }
        Ok(Self { field, test })
    }

    fn holds(&self, entry: &Entry) -> bool {
        let flag = match self.field {
            Field::InUse => entry.in_use,
            Field::Mutable => entry.mutable,
            Field::Immutable => !entry.mutable,
            Field::Shared => entry.shared,
            Field::Private => !entry.shared,
            Field::Id | Field::Type | Field::Description => true,
        };
        let text = self.field.text(Some(entry)).unwrap_or_default();
        flag && match &self.test {
            Test::Holds => true,
            Test::Is(value) => text == value,
            Test::IsNot(value) => text != value,
            Test::Matches(pattern) => pattern.is_match(text),
        }
    }
}

#[cfg(test)]
mod tests {
    use rbuild_cache::index::CacheRecord;
    use rbuild_cache::snapshot::SnapshotId;
    use rbuild_cache::state::StateFolder;
    use rbuild_cache::usage::Usage;

    use super::*;

    #[test]
    fn filters_as_buildx_has_them() {
        let top = tempfile::tempdir().unwrap();
        let state = StateFolder::open(top.path()).unwrap();
        let draft = state.snapshots().draft().unwrap();
        let snapshot = state.snapshots().commit(&SnapshotId::random(), draft).unwrap();
        let record = CacheRecord {
            snapshot: snapshot.id.clone(),
            content: snapshot.content,
            description: "RUN make".into(),
            evidence: serde_json::json!({"op": {"run": {}}}),
            created: 1,
        };
        let key = rbuild_cache::digest::CacheKey(rbuild_cache::digest::Digest::of("key"));
        state.index().insert(&[key], &record).unwrap();
        let usage = Usage::of(&state).unwrap();
        let [entry] = &usage.entries[..] else { panic!("{usage:?}") };
        let check = |given: &[&str], expected: bool| {
            let given: Vec<String> = given.iter().map(ToString::to_string).collect();
            let filters = Filters::parse(&given).unwrap();
            assert_eq!(filters.hold(entry, entry.last_used + 100), expected, "{given:?}");
        };
        check(&[], true);
        check(&["type=regular"], true);
        check(&["type==regular"], true);
        check(&["type!=regular"], false);
        check(&["type=exec.cachemount"], false);
        check(&["description~=RUN.*make", "private"], true);
        check(&["description=make"], false);
        check(&["shared"], false);
        check(&["inuse"], true);
        check(&["mutable"], false);
        check(&["immutable=true"], true);
        check(&["id=^step-"], true);
        check(&["id=layer"], false);
        check(&["until=100s"], true);
        check(&["until=101s"], false);
        check(&["unused-for=1h"], false);
        for wrong in ["name=x", "until=soon", "id=(", "mutable=yes"] {
            Filters::parse(&[wrong.into()]).unwrap_err();
        }
    }
}
