//! `EXPOSE port[/protocol] …`. What a port is, is known only once variables are expanded.

use crate::diagnostic::Diagnostics;
use crate::source::Text;
use crate::syntax::BareInstruction;
use crate::syntax::flag::Flags;
use crate::syntax::line::Slice;

/// The ports as they were written, sorted as texts: that is their order in the history.
pub(super) fn parse(bare: &BareInstruction) -> Result<Vec<Text>, Diagnostics> {
    let mut ports: Vec<Text> =
        super::words(bare.arguments()).into_iter().map(Slice::text).collect();
    if ports.is_empty() {
        return Err(bare.error("EXPOSE requires at least one argument").into());
    }
    Flags::check(&bare.flags, &[])?;
    ports.sort_by(|a, b| a.value.cmp(&b.value));
    Ok(ports)
}
