//! `UndefinedVar` and `UndefinedArgInFrom`: variables that nothing defines.

use super::{Checks, Rule};
use crate::diagnostic::did_you_mean;
use crate::syntax::Origin;

/// An instruction uses the variable `name`, which is none of `known`.
pub fn undefined_var<'a>(
    checks: &mut Checks,
    origin: &Origin,
    name: &str,
    known: impl IntoIterator<Item = &'a str>,
) {
    let mut message = format!("Usage of undefined variable '${name}'");
    if let Some(meant) = did_you_mean(name, known) {
        message += &format!(" (did you mean ${meant}?)");
    }
    checks.warn_in(Rule::UndefinedVar, origin, message);
}

/// FROM uses the variable `name`, which is none of `declared`: the ARGs before the first FROM and
/// the predefined ones.
pub fn undefined_arg_in_from<'a>(
    checks: &mut Checks,
    origin: &Origin,
    name: &str,
    declared: impl IntoIterator<Item = &'a str>,
) {
    let mut message = format!("FROM argument '{name}' is not declared");
    if let Some(meant) = did_you_mean(name, declared) {
        message += &format!(" (did you mean {meant}?)");
    }
    checks.warn_in(Rule::UndefinedArgInFrom, origin, message);
}
