//! What sources turned out to be: the digest of a file that was fetched, the commit that a reference
//! named. For provenance; nothing of it reaches a key.

use rbuild_cache::digest::Digest;
use rbuild_cache::index::IndexError;
use rbuild_cache::state::StateFolder;
use serde::Deserialize;

use crate::graph::{GitOp, HttpOp};
use crate::ops::http::MEMO;

const COMMIT: &str = "git-commit";

/// The digest of the file that `op` last fetched.
pub fn of_http(state: &StateFolder, op: &HttpOp) -> Option<Digest> {
    #[derive(Deserialize)]
    struct Memo {
        digest: Digest,
    }
    if op.checksum.is_some() {
        return op.checksum;
    }
    // Without it, provenance says less; the build is as good.
    let memo = state.index().recall(MEMO, op.url.as_bytes()).ok()??;
    serde_json::from_slice::<Memo>(&memo).ok().map(|memo| memo.digest)
}

/// The commit that `op` last was.
pub fn of_git(state: &StateFolder, op: &GitOp) -> Option<String> {
    let memo = state.index().recall(COMMIT, &git_key(op)).ok()??;
    String::from_utf8(memo).ok()
}

/// Notes which commit `op` is.
pub(crate) fn note_git(state: &StateFolder, op: &GitOp, commit: &str) -> Result<(), IndexError> {
    state.index().remember(COMMIT, &git_key(op), commit.as_bytes())
}

fn git_key(op: &GitOp) -> Vec<u8> {
    format!("{}\n{}", op.remote, op.reference.as_deref().unwrap_or_default()).into_bytes()
}
