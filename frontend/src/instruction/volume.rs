//! `VOLUME path …`.

use crate::diagnostic::{Diagnostic, Diagnostics, all, both};
use crate::source::Text;
use crate::syntax::BareInstruction;
use crate::syntax::flag::Flags;

pub(super) fn parse(bare: &BareInstruction) -> Result<Vec<Text>, Diagnostics> {
    let volumes = super::list(bare.arguments())?;
    if volumes.is_empty() {
        return Err(bare.error("VOLUME requires at least one argument").into());
    }
    let flags = Flags::check(&bare.flags, &[]);
    both(flags, all(volumes.iter().map(trimmed))).map(|(_, volumes)| volumes)
}

fn trimmed(volume: &Text) -> Result<Text, Diagnostic> {
    match volume.value.trim() {
        "" => {
            let message = "VOLUME specified can not be an empty string";
            Err(Diagnostic::error(message, volume.span))
        }
        path => Ok(volume.with(path)),
    }
}
