//! The commands: one file each, and what they share.

mod build;
mod cache;
mod completion;
mod du;
mod explain;
mod filter;
mod go_template;
mod history;
mod images;
mod inspect;
mod list_format;
mod load;
mod login;
mod prune;
mod reproduce;
mod save;
mod slim;
pub(crate) mod table;
mod transfer;

use std::fmt::{Display, Write as _};
use std::future::Future;
use std::io::{self, Write};

use rbuild_solver::sandbox::namespaces::{self, Identity};

use crate::cli::{Cli, Command, GlobalArgs};
use crate::error::BuildError;
use crate::request::{Environment, Settings};
use crate::signals;

/// Does what `cli` says.
pub fn run(cli: &Cli, environment: &Environment) -> Result<(), BuildError> {
    match &cli.command {
        Command::Build(arguments) => build::run(&cli.global, arguments, environment),
        Command::Check(arguments) => build::check(&cli.global, arguments, environment),
        Command::Images(arguments) => images::list(&cli.global, arguments, environment),
        Command::Inspect(arguments) => inspect::inspect(&cli.global, arguments, environment),
        Command::History(arguments) => history::run(&cli.global, arguments, environment),
        Command::Tag(arguments) => images::tag(&cli.global, arguments, environment),
        Command::Rmi(arguments) => images::remove(&cli.global, arguments, environment),
        Command::Push(arguments) => transfer::push(&cli.global, arguments, environment),
        Command::Pull(arguments) => transfer::pull(&cli.global, arguments, environment),
        Command::Reproduce(arguments) => reproduce::run(&cli.global, arguments, environment),
        Command::Save(arguments) => save::run(&cli.global, arguments, environment),
        Command::Load(arguments) => load::run(&cli.global, arguments, environment),
        Command::Login(arguments) => login::login(&cli.global, arguments, environment),
        Command::Logout(arguments) => login::logout(&cli.global, arguments, environment),
        Command::Slim(arguments) => slim::run(&cli.global, arguments, environment),
        Command::Du(arguments) => du::run(&cli.global, arguments, environment),
        Command::Prune(arguments) => prune::run(&cli.global, arguments, environment),
        Command::Explain(arguments) => explain::run(&cli.global, arguments, environment),
        Command::Cache(arguments) => cache::run(&cli.global, &arguments.command, environment),
        Command::Completion(arguments) => completion::run(arguments),
    }
}

/// The settings of a command that builds nothing.
fn settings(global: &GlobalArgs, environment: &Environment) -> Result<Settings, BuildError> {
    Ok(Settings::new(global, None, environment)?)
}

/// Lets ordinary users look into and remove what steps made as other users. Comes before there is a
/// second thread.
fn become_root() -> Result<Identity, BuildError> {
    namespaces::become_root().map_err(|error| {
        let fault = BuildError::fault(&error);
        match error.hint {
            Some(hint) => fault.hint(hint),
            None => fault,
        }
    })
}

/// Tells developers on stderr what happens inside, if they asked for it with `--debug`.
pub fn log(debug: bool) {
    if debug {
        tracing_subscriber::fmt()
            .with_env_filter(
                "rbuild=debug,rbuild_frontend=debug,rbuild_solver=debug,rbuild_cache=debug",
            )
            .with_writer(io::stderr)
            .init();
    }
}

/// Runs `work` to its end, or until a signal ends it: then it is dropped, which cleans up.
fn run_async<T>(work: impl Future<Output = Result<T, BuildError>>) -> Result<T, BuildError> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_name("rbuild")
        .build()
        .map_err(|error| BuildError::fault(&error).hint("too many processes may be running"))?;
    runtime.block_on(async {
        tokio::select! {
            signal = signals::first() => Err(BuildError::interrupted(signal)),
            result = work => result,
        }
    })
}

/// Writes a result to stdout. A reader that went away has seen enough.
fn print(text: &str) -> Result<(), BuildError> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(BuildError::fault(&error).hint("stdout cannot be written"))
        }
        _ => Ok(()),
    }
}

/// A line for each item.
fn lines(items: impl Iterator<Item = impl Display>) -> String {
    items.fold(String::new(), |mut text, item| {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{item}");
        text
    })
}

/// Tells something on stderr that is neither progress nor an error. Without stderr nobody listens.
fn tell(text: &str) {
    let _ = io::stderr().write_all(text.as_bytes());
}
