//! Instructions whose only argument is the rest of the line: `MAINTAINER name`, `STOPSIGNAL signal`,
//! `USER user`, `WORKDIR path`.

use crate::diagnostic::{Diagnostic, Diagnostics, both};
use crate::source::Text;
use crate::syntax::BareInstruction;
use crate::syntax::flag::Flags;

/// The argument of `keyword`, which has no flags.
pub(super) fn parse(bare: &BareInstruction, keyword: &str) -> Result<Text, Diagnostics> {
    let flags = Flags::check(&bare.flags, &[]);
    both(parse_any_flags(bare, keyword), flags).map(|(text, _)| text)
}

/// The argument of `keyword`, whose flags nobody looks at, as in BuildKit.
pub(super) fn parse_any_flags(bare: &BareInstruction, keyword: &str) -> Result<Text, Diagnostic> {
    if bare.arguments().is_empty() {
        return Err(bare.error(format!("{keyword} requires exactly one argument")));
    }
    Ok(bare.arguments().text())
}
