//! `SHELL ["program", "argument", …]`: what runs commands in shell form.

use crate::diagnostic::{Diagnostic, Diagnostics, both};
use crate::source::Text;
use crate::syntax::BareInstruction;
use crate::syntax::flag::Flags;
use crate::syntax::json;

pub(super) fn parse(bare: &BareInstruction) -> Result<Vec<Text>, Diagnostics> {
    let arguments = bare.arguments();
    let (shell, _) = both(json::strings(arguments), Flags::check(&bare.flags, &[]))?;
    match shell {
        Some(shell) if !shell.is_empty() => Ok(shell),
        None if !arguments.is_empty() => {
            let message = "SHELL requires the arguments to be in JSON form";
            Err(Diagnostic::error(message, arguments.span())
                .label("expected `[\"program\", \"argument\"]`")
                .into())
        }
        Some(_) | None => Err(bare.error("SHELL requires at least one argument").into()),
    }
}
