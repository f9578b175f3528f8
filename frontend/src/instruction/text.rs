//! Instructions whose only argument is the rest of the line: `MAINTAINER name`, `STOPSIGNAL signal`,
//! `USER user`, `WORKDIR path`.

use crate::diagnostic::Diagnostic;
use crate::source::Text;
use crate::syntax::BareInstruction;
use crate::syntax::flag::Flags;

/// The argument of `keyword`, which has no flags.
pub(super) fn parse(bare: &BareInstruction, keyword: &str) -> Result<Text, Diagnostic> {
    let text = parse_any_flags(bare, keyword)?;
    Flags::check(&bare.flags, &[])?;
    Ok(text)
}

/// The argument of `keyword`, whose flags nobody looks at, as in BuildKit.
pub(super) fn parse_any_flags(bare: &BareInstruction, keyword: &str) -> Result<Text, Diagnostic> {
    if bare.arguments().is_empty() {
        return Err(bare.error(format!("{keyword} requires exactly one argument")));
    }
    Ok(bare.arguments().text())
}
