//! Checks of one instruction: `MaintainerDeprecated`, `InvalidDefinitionDescription`,
//! `JSONArgsRecommended`, `LegacyKeyValueFormat`, `MultipleInstructionsDisallowed`,
//! `WorkdirRelativePath`.

use super::{Checks, Rule};
use crate::instruction::{Instruction, Pair, Statement};
use crate::syntax::Origin;

/// Checks what an instruction shows by itself.
pub(super) fn statement(checks: &mut Checks, statement: &Statement) {
    match &statement.instruction {
        Instruction::Maintainer(_) => checks.warn_in(
            Rule::MaintainerDeprecated,
            &statement.origin,
            "Maintainer instruction is deprecated in favor of using label",
        ),
        Instruction::Arg(arg) => {
            let names: Vec<&str> =
                arg.declarations.iter().map(|declaration| declaration.name.as_str()).collect();
            description(checks, &statement.origin, "ARG", &names);
        }
        _ => {}
    }
}

/// Says so where the comment above describes none of `names`.
pub(super) fn description(checks: &mut Checks, origin: &Origin, keyword: &str, names: &[&str]) {
    let (Some(comment), Some(first)) = (origin.comments.last(), names.first()) else { return };
    let described = comment.as_str().split(' ').next().unwrap_or_default();
    if names.contains(&described) {
        return;
    }
    let example = if names.len() > 1 { "<arg_key>" } else { first };
    let message =
        format!("Comment for {keyword} should follow the format: `# {example} <description>`");
    checks.warn_in(Rule::InvalidDefinitionDescription, origin, message);
}

/// CMD or ENTRYPOINT is a shell line, and the Dockerfile chose no shell.
pub fn json_args_recommended(checks: &mut Checks, origin: &Origin) {
    let keyword = origin.keyword.as_str();
    let message = format!(
        "JSON arguments recommended for {keyword} to prevent unintended behavior related to OS \
         signals"
    );
    checks.warn_in(Rule::JsonArgsRecommended, origin, message);
}

/// Says so where one of `pairs` is in the old form.
pub fn legacy_key_value_format(checks: &mut Checks, origin: &Origin, pairs: &[Pair]) {
    if pairs.iter().any(|pair| pair.legacy) {
        let keyword = origin.keyword.as_str();
        let message = format!(
            "\"{keyword} key=value\" should be used instead of legacy \"{keyword} key value\" \
             format"
        );
        checks.warn_in(Rule::LegacyKeyValueFormat, origin, message);
    }
}

/// `again` makes `earlier` useless, of which it is another one in the same stage.
pub fn multiple_instructions(checks: &mut Checks, earlier: &Origin, again: &Origin) {
    let keyword = again.keyword.as_str();
    let message = format!(
        "Multiple {keyword} instructions should not be used in the same stage because only the \
         last one will be used"
    );
    checks.warn_at(Rule::MultipleInstructionsDisallowed, earlier.span, again, message);
}

/// The first WORKDIR of a stage is relative: `path`.
pub fn workdir_relative_path(checks: &mut Checks, origin: &Origin, path: &str) {
    let message =
        format!("Relative workdir {path:?} can have unexpected results if the base image changes");
    checks.warn_in(Rule::WorkdirRelativePath, origin, message);
}
