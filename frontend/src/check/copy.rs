//! `CopyIgnoredFile`: COPY or ADD of what `.dockerignore` leaves out.

use rbuild_cache::pattern::{PatternMatcher, clean};

use super::{Checks, Rule};
use crate::instruction::Instruction;
use crate::syntax::Origin;

/// `instruction` copies `source` from the context, of which `ignored` leaves out some.
///
/// Where there are exceptions, nothing is said: what is in an ignored folder may be seen after all.
pub fn copy_ignored_file(
    checks: &mut Checks,
    origin: &Origin,
    instruction: &Instruction,
    source: &str,
    ignored: &PatternMatcher,
) {
    let source = clean(source);
    let root = source == "." || source == "/";
    if ignored.has_exceptions() || root && !leaves_out_all(ignored) {
        return;
    }
    if ignored.matches_or_parent_matches(&source) {
        let verb = if matches!(instruction, Instruction::Add(_)) { "Add" } else { "Copy" };
        let message =
            format!("Attempting to {verb} file {source:?} that is excluded by .dockerignore");
        checks.warn_in(Rule::CopyIgnoredFile, origin, message);
    }
}

fn leaves_out_all(ignored: &PatternMatcher) -> bool {
    ignored.patterns().iter().any(|pattern| matches!(pattern.as_str(), "*" | "**" | "**/*"))
}
