//! What was typed: every flag of rbuild, as clap reads it. What it means is `request.rs`'s.
//!
//! With no subcommand rbuild builds; [`parse`] puts the word in before clap looks.

mod build;
mod image;
mod login;
mod slim;
mod state;
mod switch;

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};
use rbuild_frontend::diagnostic::did_you_mean;

pub use self::build::BuildArgs;
pub use self::image::{
    HistoryArgs, ImagesArgs, InspectArgs, LoadArgs, PullArgs, PushArgs, RmiArgs, SaveArgs, TagArgs,
};
pub use self::login::{LoginArgs, LogoutArgs};
pub use self::slim::{SlimArgs, SlimCommand};
pub use self::state::{CacheArgs, CacheCommand, CacheVerifyArgs, DuArgs, ExplainArgs, PruneArgs};

/// The command line of rbuild.
#[derive(Clone, Debug, Parser)]
#[command(
    name = "rbuild",
    version,
    about = "Builds container images from Dockerfiles: no daemon, no root needed.",
    long_about = None,
    override_usage = "rbuild [build] [OPTIONS] PATH | URL | -\n       rbuild COMMAND …",
    after_help = EXAMPLES,
    subcommand_required = true,
    arg_required_else_help = true,
    args_override_self = true,
    max_term_width = 100
)]
pub struct Cli {
    /// Flags of every command.
    #[command(flatten)]
    pub global: GlobalArgs,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

const EXAMPLES: &str = "\
Examples:
  rbuild .                             build the folder, keep the image in the local store
  rbuild -t me/app:1 --push .          build and push
  rbuild -o type=oci,dest=app.tar .    write an OCI archive, touch no store
  rbuild -o out --target bin .         put a stage's files into the folder out
  rbuild --check .                     read the Dockerfile and say what is wrong with it

`rbuild build --help` explains every flag of a build; `rbuild COMMAND --help` those of a command.
Exit codes: 0 built, 1 the build failed, 2 wrong usage, 3 a fault in or around rbuild, 130 interrupted.";

/// Flags that every command has.
#[derive(Clone, Debug, Default, Args)]
pub struct GlobalArgs {
    /// State folder [default: `$RBUILD_ROOT`, or rbuild in `$XDG_DATA_HOME`, or for root /var/lib/rbuild]
    #[arg(long, global = true, value_name = "DIR", help_heading = "rbuild's own")]
    pub root: Option<PathBuf>,
    /// Log what happens inside to stderr
    #[arg(short = 'D', long, global = true, help_heading = "rbuild's own")]
    pub debug: bool,
}

/// The commands.
#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// Build an image (the default when no command is named)
    #[command(visible_alias = "b")]
    Build(Box<BuildArgs>),
    /// Read a Dockerfile and say what is wrong with it, building nothing
    Check(Box<BuildArgs>),
    /// Build twice from nothing, and show what is different first if the images are not the same
    Reproduce(Box<BuildArgs>),
    /// List the images in the local store
    Images(ImagesArgs),
    /// Show what images in the local store consist of, as JSON
    Inspect(InspectArgs),
    /// Show how an image in the local store came about
    History(HistoryArgs),
    /// Give an image in the local store one more name
    Tag(TagArgs),
    /// Take names from images in the local store
    Rmi(RmiArgs),
    /// Send images in the local store to their registries
    Push(PushArgs),
    /// Bring images from their registries into the local store
    Pull(PullArgs),
    /// Write images in the local store to an archive
    Save(SaveArgs),
    /// Bring the images of an archive into the local store
    Load(LoadArgs),
    /// Log in at a registry
    Login(LoginArgs),
    /// Log out at a registry
    Logout(LogoutArgs),
    /// Say why a slim image has a file, or has it not
    Slim(SlimArgs),
    /// Show what the state folder holds
    Du(DuArgs),
    /// Remove from the state folder what nobody needs
    Prune(PruneArgs),
    /// Look after the state folder
    Cache(CacheArgs),
    /// Say why the last build did not find steps in the cache
    Explain(ExplainArgs),
    /// Write a completion script for a shell to stdout
    Completion(CompletionArgs),
}

/// `rbuild completion`
#[derive(Clone, Debug, Args)]
pub struct CompletionArgs {
    /// For which shell
    pub shell: Shell,
}

/// A shell that has completions.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Shell {
    /// bash
    Bash,
    /// elvish
    Elvish,
    /// fish
    Fish,
    /// powershell
    Powershell,
    /// zsh
    Zsh,
}

/// Reads the arguments, the program's name first.
///
/// # Errors
/// What is wrong with them; or the help or the version that they ask for.
pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Cli, clap::Error> {
    let mut cli = Cli::command();
    let arguments = for_clap(&cli, arguments.into_iter().collect());
    let mut matches = cli.try_get_matches_from_mut(arguments)?;
    Cli::from_arg_matches_mut(&mut matches).map_err(|error| error.format(&mut cli))
}

/// The arguments as clap is to read them: with `build` put in where no command is named, and
/// switches without truth values.
fn for_clap(cli: &clap::Command, arguments: Vec<OsString>) -> Vec<OsString> {
    let (arguments, position) = with_build(cli, arguments);
    let named = arguments.get(position).and_then(|name| name.to_str());
    match named.and_then(|name| cli.find_subcommand(name)) {
        Some(command) => switch::bare(&[cli, command], arguments),
        None => arguments,
    }
}

/// `arguments` with `build` put in where no command is named; and where the command's name is.
///
/// The first word that is not one of the global flags decides: the name of a command stays, and so
/// do `--help` and `--version`; everything else is a build. A folder that is called like a command
/// is built as `./images`. A word that is no folder and almost a command stays as well: clap says
/// which one was meant.
fn with_build(cli: &clap::Command, mut arguments: Vec<OsString>) -> (Vec<OsString>, usize) {
    let mut position = 1;
    while let Some(argument) = arguments.get(position) {
        match argument.to_str() {
            Some("--root") => position += 2,
            Some("-D" | "--debug") => position += 1,
            Some(flag) if flag.starts_with("--root=") || flag.starts_with("--debug=") => {
                position += 1;
            }
            _ => break,
        }
    }
    if arguments.get(position).is_some_and(|word| !is_command(cli, word)) {
        arguments.insert(position, "build".into());
    }
    (arguments, position)
}

fn is_command(cli: &clap::Command, word: &OsStr) -> bool {
    let Some(text) = word.to_str() else { return false };
    matches!(text, "-h" | "--help" | "-V" | "--version" | "help")
        || cli.find_subcommand(text).is_some()
        || (is_almost_a_command(cli, text) && !Path::new(word).exists())
}

/// Short words are almost anything, and neither flags nor paths are commands.
fn is_almost_a_command(cli: &clap::Command, word: &str) -> bool {
    let names = cli.get_subcommands().map(clap::Command::get_name);
    word.len() > 3 && !word.starts_with(['-', '.', '/']) && did_you_mean(word, names).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn help() {
        let shown = |arguments: &[&str]| {
            let command = Cli::command().term_width(100);
            let answer = command.try_get_matches_from(arguments).unwrap_err();
            answer.render().to_string()
        };
        insta::assert_snapshot!("help", shown(&["rbuild", "--help"]));
        insta::assert_snapshot!("help-build", shown(&["rbuild", "build", "--help"]));
    }

    #[test]
    fn without_a_command_it_builds() {
        let check = |typed: &str, expected: &str| {
            let typed = typed.split(' ').map(OsString::from).collect();
            let arguments = for_clap(&Cli::command(), typed);
            let arguments: Vec<String> =
                arguments.into_iter().map(|a| a.into_string().unwrap()).collect();
            assert_eq!(arguments.join(" "), expected);
        };
        check("rbuild", "rbuild");
        check("rbuild .", "rbuild build .");
        check("rbuild -t x build", "rbuild build -t x build");
        check("rbuild build .", "rbuild build .");
        check("rbuild b .", "rbuild b .");
        check("rbuild --root /r .", "rbuild --root /r build .");
        check("rbuild --root=/r -D check .", "rbuild --root=/r -D check .");
        check("rbuild ./check", "rbuild build ./check");
        check("rbuild --version", "rbuild --version");
        check("rbuild --debug=true --pull=true .", "rbuild --debug build --pull .");
        check("rbuild imagse", "rbuild imagse");
        check("rbuild biuld .", "rbuild biuld .");
        check("rbuild nowhere", "rbuild build nowhere");
        check("rbuild --push", "rbuild build --push");
        check("rbuild help", "rbuild help");
        check("rbuild images --quiet=true", "rbuild images --quiet");
    }
}
