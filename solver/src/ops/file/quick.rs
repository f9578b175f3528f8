//! Which file ops are over before another thread would have been woken for them: those that write a
//! few small files. They are done by the thread that would have waited.
//!
//! In a chain of such steps, handing them over took longer than doing them.

use std::path::Path;

use rbuild_cache::pattern;
use rbuild_cache::view::View;

use super::{CopyStep, Origin, Plan, SourceTree, Step};
use crate::graph::{CopyAction, CopySource, FileAction, FileOp};

/// At most so many files, and so many steps.
const FILES: usize = 4;
/// At most so many bytes in each.
const BYTES: u64 = 16 * 1024;
/// A path is looked for in at most so many layers.
const LAYERS: usize = 16;

/// Whether planning `op` is over at once.
pub fn is_planned_quickly(op: &FileOp, sources: &[SourceTree]) -> bool {
    op.actions.len() <= FILES
        && op.actions.iter().all(|action| match action {
            FileAction::Mkdir(_) | FileAction::WriteFile(_) => true,
            FileAction::Copy(copy) => match copy.from {
                CopySource::Inline(_) => true,
                // The base is not looked at before it is clear that something is written over it.
                CopySource::Input(0) => false,
                CopySource::Input(input) => names_small_files(copy, &sources[input - 1]),
            },
        })
}

/// Whether all that `copy` names are small files of `source`.
fn names_small_files(copy: &CopyAction, source: &SourceTree) -> bool {
    let is_small_file = |path: &String| {
        let found = source.view.resolve(Path::new(path)).ok().and_then(|found| found.entry);
        found.is_some_and(|entry| entry.metadata().is_file() && entry.metadata().size <= BYTES)
    };
    let is_plain = |path: &String| !copy.wildcards || !pattern::has_wildcards(path);
    // What is known of a context's files is read first, and can be much.
    source.context.is_none()
        && is_shallow(&source.view)
        && !copy.unpack
        && !copy.parents
        && copy.sources.len() <= FILES
        && copy.sources.iter().all(|path| is_plain(path) && is_small_file(path))
}

fn is_shallow(view: &View) -> bool {
    view.number_of_layers() <= LAYERS
}

impl Plan {
    /// Whether carrying it out over `base` is over at once.
    pub fn is_quick(&self, base: &View) -> bool {
        let is_small = |bytes: usize| bytes as u64 <= BYTES;
        is_shallow(base)
            && self.steps.len() <= FILES
            && !self.learned.has_news()
            && self.steps.iter().all(|(_, step)| match step {
                Step::Mkdir { .. } => true,
                Step::WriteFile { data, .. } => is_small(data.len()),
                Step::Copy(CopyStep { from: Origin::Inline { data, .. }, .. }) => {
                    is_small(data.len())
                }
                Step::Copy(CopyStep { from: Origin::Selection(selection), .. }) => {
                    selection.number() <= FILES
                        && selection.items().all(|item| item.metadata().size <= BYTES)
                }
                Step::Unpack(_) => false,
            })
    }
}
