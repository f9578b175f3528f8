//! Names of stages: `StageNameCasing`, `FromAsCasing`, `DuplicateStageName`, `ReservedStageName`.

use std::collections::HashSet;

use super::casing::{is_lower, is_upper};
use super::{Checks, Rule, instruction};
use crate::Stage;

/// Names that mean something of their own where an image is named.
const RESERVED: [&str; 2] = ["context", "scratch"];

/// Checks one FROM by itself.
pub(super) fn from(checks: &mut Checks, stage: &Stage) {
    let (Some(name), Some(as_keyword)) = (&stage.from.name, &stage.from.as_keyword) else { return };
    let written = name.written.as_str();
    if written != name.as_str() {
        let message = format!("Stage name '{written}' should be lowercase");
        checks.warn_in(Rule::StageNameCasing, &stage.origin, message);
    }
    let (keyword, as_keyword) = (stage.origin.keyword.as_str(), as_keyword.as_str());
    // `From` is neither: `ConsistentInstructionCasing` has something to say about that.
    let differ =
        is_lower(keyword) && !is_lower(as_keyword) || is_upper(keyword) && !is_upper(as_keyword);
    if differ {
        let message = format!("'{as_keyword}' and '{keyword}' keywords' casing do not match");
        checks.warn_in(Rule::FromAsCasing, &stage.origin, message);
    }
    instruction::description(checks, &stage.origin, "FROM", &[name.as_str()]);
}

/// Checks all stages against one another.
pub(super) fn names(checks: &mut Checks, stages: &[Stage]) {
    let mut known = HashSet::new();
    for stage in stages {
        let Some(name) = &stage.from.name else { continue };
        let name = name.as_str();
        if RESERVED.contains(&name) {
            let message =
                format!("Stage name should not use the same name as reserved stage {name:?}");
            checks.warn(Rule::ReservedStageName, stage.origin.span, message);
        }
        if !known.insert(name) {
            let message = format!("Duplicate stage name {name:?}, stage names should be unique");
            checks.warn(Rule::DuplicateStageName, stage.origin.span, message);
        }
    }
}
