//! `rbuild completion SHELL`: a script for the shell that completes commands and flags.

use clap::CommandFactory;
use clap_complete::generate;

use crate::cli::{Cli, CompletionArgs, Shell};
use crate::error::BuildError;

/// Writes the script to stdout.
pub(super) fn run(arguments: &CompletionArgs) -> Result<(), BuildError> {
    let shell = match arguments.shell {
        Shell::Bash => clap_complete::Shell::Bash,
        Shell::Elvish => clap_complete::Shell::Elvish,
        Shell::Fish => clap_complete::Shell::Fish,
        Shell::Powershell => clap_complete::Shell::PowerShell,
        Shell::Zsh => clap_complete::Shell::Zsh,
    };
    let mut script = Vec::new();
    generate(shell, &mut Cli::command(), "rbuild", &mut script);
    super::print(&String::from_utf8_lossy(&script))
}
