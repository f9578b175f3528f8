//! `ENV name=value …` and `LABEL name=value …`, and their old form `ENV name value`.

use super::{Expander, expand_text};
use crate::diagnostic::Diagnostic;
use crate::source::Text;

/// A name and its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pair {
    /// The name.
    pub name: Text,
    /// The value.
    pub value: Text,
    /// The old form without `=`.
    pub legacy: bool,
}

impl Pair {
    pub(super) fn expand(&mut self, expander: &mut Expander<'_>) -> Result<(), Diagnostic> {
        expand_text(&mut self.name, expander)?;
        expand_text(&mut self.value, expander)
    }
}
