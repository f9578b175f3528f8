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
    let meant = did_you_mean(name, known);
    let meant = meant.map_or(String::new(), |meant| format!(" (did you mean ${meant}?)"));
    let message = format!("Usage of undefined variable '${name}'{meant}");
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
    let meant = did_you_mean(name, declared);
    let meant = meant.map_or(String::new(), |meant| format!(" (did you mean {meant}?)"));
    let message = format!("FROM argument '{name}' is not declared{meant}");
    checks.warn_in(Rule::UndefinedArgInFrom, origin, message);
}
