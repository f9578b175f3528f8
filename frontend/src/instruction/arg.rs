//! `ARG name[=default] …`.

use crate::source::Text;

/// Build arguments that are declared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Arg {
    /// In order.
    pub declarations: Vec<ArgDeclaration>,
}

/// One build argument.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ArgDeclaration {
    /// Its name.
    pub name: Text,
    /// Its default; absent is something else than empty.
    pub default: Option<Text>,
    /// What the comment above says of it: `# NAME description`.
    pub description: Option<String>,
}
