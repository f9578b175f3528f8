//! The bytes that a cache key is the hash of, and their version.
//!
//! A key is the hash of the version, the kind of key, the op as JSON (its fields in the order of
//! their declaration in `graph/op.rs`), and one digest for each input. Names, spans, secrets,
//! proxies and the clock are in none of these. Whoever changes what an op means, or how it is
//! written, changes [`VERSION`]: old records are then never found again.

use rbuild_cache::digest::{CacheKey, Digest, Hasher, TreeDigest};

use crate::graph::Op;

/// The version of everything below.
pub const VERSION: u32 = 1;

/// What an input contributes to a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InputDigest {
    /// All of a tree.
    Tree(TreeDigest),
    /// Just the paths that the op reads.
    Content(Digest),
}

/// The key of `op` over whole trees: known before anything is read.
pub fn definition(op: &Op, inputs: &[TreeDigest]) -> CacheKey {
    let inputs: Vec<InputDigest> = inputs.iter().copied().map(InputDigest::Tree).collect();
    key("definition", op, &inputs)
}

/// The key of `op` over what it reads of its inputs.
pub fn content(op: &Op, inputs: &[InputDigest]) -> CacheKey {
    key("content", op, inputs)
}

fn key(kind: &str, op: &Op, inputs: &[InputDigest]) -> CacheKey {
    let mut hasher = Hasher::new();
    hasher.field(VERSION.to_le_bytes());
    hasher.field(kind);
    hasher.field(op.to_json());
    for input in inputs {
        match input {
            InputDigest::Tree(TreeDigest(digest)) => {
                hasher.field("tree");
                hasher.field(digest.as_bytes());
            }
            InputDigest::Content(digest) => {
                hasher.field("content");
                hasher.field(digest.as_bytes());
            }
        }
    }
    CacheKey(hasher.digest())
}

/// The key of one of the layers of a result that consists of several.
pub fn part(whole: &CacheKey, name: &str) -> CacheKey {
    let mut hasher = Hasher::new();
    hasher.field("part");
    hasher.field(whole.0.as_bytes());
    hasher.field(name);
    CacheKey(hasher.digest())
}

/// The key of a tree that is imported as one snapshot: a folder mounted into a step.
pub fn imported(content: Digest) -> CacheKey {
    let mut hasher = Hasher::new();
    hasher.field(VERSION.to_le_bytes());
    hasher.field("imported");
    hasher.field(content.as_bytes());
    CacheKey(hasher.digest())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::{FileAction, FileOp, Mkdir};

    #[test]
    fn ops_kinds_and_inputs_tell_keys_apart() {
        let op = |path: &str| {
            let mkdir =
                Mkdir { path: path.into(), mode: 0o755, parents: true, owner: None, time: None };
            Op::File(FileOp { actions: vec![FileAction::Mkdir(mkdir)] })
        };
        let tree = |text: &str| TreeDigest(Digest::of(text));
        let one = definition(&op("/a"), &[tree("x")]);
        assert_eq!(one, definition(&op("/a"), &[tree("x")]));
        assert_ne!(one, definition(&op("/b"), &[tree("x")]));
        assert_ne!(one, definition(&op("/a"), &[tree("y")]));
        assert_ne!(one, definition(&op("/a"), &[tree("x"), tree("x")]));
        assert_ne!(one, content(&op("/a"), &[InputDigest::Tree(tree("x"))]));
        let content_of = content(&op("/a"), &[InputDigest::Content(Digest::of("x"))]);
        assert_ne!(content_of, content(&op("/a"), &[InputDigest::Tree(tree("x"))]));
    }
}
