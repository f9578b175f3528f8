//! What the last build that ran anything ran, and why: kept for `rbuild explain`.

use rbuild_cache::index::{Index, IndexError};
use serde::{Deserialize, Serialize};

use super::Miss;

/// Of what kind the memo is.
const MEMO: &str = "history";
/// The memo's key.
const LAST: &[u8] = b"last";

/// So many differences of a step are kept.
const KEPT: usize = 1000;

/// What a build ran, and why.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct History {
    /// When it began, in seconds since 1970.
    pub at: i64,
    /// The steps that had to run, in the order in which they began.
    pub missed: Vec<Miss>,
    /// The steps whose results were known.
    pub cached: Vec<String>,
}

impl History {
    /// That of the last build that ran anything.
    pub fn last(index: &Index) -> Result<Option<Self>, IndexError> {
        let memo = index.recall(MEMO, LAST)?;
        Ok(memo.and_then(|memo| serde_json::from_slice(&memo).ok()))
    }

    /// Keeps it in the place of the last one.
    #[expect(clippy::missing_panics_doc, reason = "plain data can be written")]
    pub fn save(&self, index: &Index) -> Result<(), IndexError> {
        let mut kept = self.clone();
        kept.missed.iter_mut().for_each(|miss| miss.differences.truncate(KEPT));
        let bytes = serde_json::to_vec(&kept).expect("a history is plain data");
        index.remember(MEMO, LAST, &bytes)
    }
}
