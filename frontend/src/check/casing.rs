//! `ConsistentInstructionCasing`: keywords in upper or in lower case, whichever most are in.

use super::{Checks, Rule};
use crate::Stage;
use crate::syntax::Origin;

/// Checks the keywords of all stages. ARGs before the first FROM neither count nor are checked.
pub(super) fn keywords(checks: &mut Checks, stages: &[Stage]) {
    let lower = origins(stages).filter(|origin| is_lower(origin.keyword.as_str())).count();
    let upper = origins(stages).filter(|origin| is_upper(origin.keyword.as_str())).count();
    for origin in origins(stages) {
        let keyword = origin.keyword.as_str();
        let majority = if lower > upper { "lowercase" } else { "uppercase" };
        let follows = if lower > upper { is_lower(keyword) } else { is_upper(keyword) };
        if !follows {
            let message = format!(
                "Command '{keyword}' should match the case of the command majority ({majority})"
            );
            checks.warn(Rule::ConsistentInstructionCasing, origin.span, message);
        }
    }
}

fn origins(stages: &[Stage]) -> impl Iterator<Item = &Origin> {
    stages.iter().flat_map(|stage| {
        let statements = stage.statements.iter().map(|statement| &statement.origin);
        std::iter::once(&stage.origin).chain(statements)
    })
}

pub(super) fn is_lower(keyword: &str) -> bool {
    !keyword.contains(char::is_uppercase)
}

pub(super) fn is_upper(keyword: &str) -> bool {
    !keyword.contains(char::is_lowercase)
}
