//! The names of snapshots.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::digest::DiffId;
use crate::session::random_name;

/// Names a snapshot: `layer-<hex of its diff id>` or `step-<random hex>`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SnapshotId(String);

/// The text is not the name of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not the name of a snapshot")]
pub struct SnapshotIdError(String);

impl SnapshotId {
    /// The snapshot to which the layer with this diff id unpacks.
    pub fn of_layer(diff_id: &DiffId) -> Self {
        Self(format!("layer-{}", diff_id.0.hex()))
    }

    /// A name that nothing has yet, for what a step makes.
    pub fn random() -> Self {
        Self(format!("step-{}", random_name()))
    }

    /// The name, which is safe as a component of a path.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for SnapshotId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for SnapshotId {
    type Err = SnapshotIdError;

    fn from_str(text: &str) -> Result<Self, SnapshotIdError> {
        let (hex, length) = match text.split_once('-') {
            Some(("layer", hex)) => (hex, 64),
            Some(("step", hex)) => (hex, 32),
            _ => ("", 1),
        };
        let digits = hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        if digits && hex.len() == length {
            Ok(Self(text.to_owned()))
        } else {
            Err(SnapshotIdError(text.to_owned()))
        }
    }
}

impl TryFrom<String> for SnapshotId {
    type Error = SnapshotIdError;

    fn try_from(text: String) -> Result<Self, SnapshotIdError> {
        text.parse()
    }
}

impl From<SnapshotId> for String {
    fn from(id: SnapshotId) -> Self {
        id.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::Digest;

    #[test]
    fn names_are_not_paths() {
        for wrong in ["", "step-", "step-../../x", "layer-00", "other-0123"] {
            assert!(wrong.parse::<SnapshotId>().is_err(), "{wrong}");
        }
        let id = SnapshotId::random();
        assert_eq!(id.as_str().parse(), Ok(id));
        let layer = SnapshotId::of_layer(&DiffId(Digest::of("")));
        assert_eq!(layer.as_str().parse(), Ok(layer));
    }
}
