//! `rbuild login` and `logout`: credentials for registries, where docker keeps them.

use std::io::{self, BufRead, IsTerminal, Read, Write};

use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};

use super::{print, run_async, settings};
use crate::cli::{GlobalArgs, LoginArgs, LogoutArgs};
use crate::error::{BuildError, ErrorKind, Problem};
use crate::registry::Registry;
use crate::registry::login::host_meant;
use crate::request::{Environment, UsageError};

/// Where docker logs in when no registry is named.
const DOCKER_HUB: &str = "docker.io";

/// A password longer than this is none, in bytes.
const LONGEST_PASSWORD: u64 = 64 * 1024;

/// Tries credentials at a registry, and keeps them.
pub(super) fn login(
    global: &GlobalArgs,
    arguments: &LoginArgs,
    environment: &Environment,
) -> Result<(), BuildError> {
    let settings = settings(global, environment)?;
    let host = arguments.registry.as_deref().map_or(DOCKER_HUB, host_meant);
    let username = match &arguments.username {
        Some(username) => username.clone(),
        None if arguments.password_stdin => {
            let reason = "--password-stdin needs it";
            return Err(UsageError::value("--username", "", reason).into());
        }
        None => ask("Username: ", Echo::On)?,
    };
    let password = match &arguments.password {
        Some(password) => password.clone(),
        None if arguments.password_stdin => password_on_stdin()?,
        None => ask("Password: ", Echo::Off)?,
    };
    if username.is_empty() || password.is_empty() {
        let reason = "a username and a password are needed";
        return Err(UsageError::value("--username", username, reason).into());
    }
    let registry = Registry::new(settings.registry);
    let kept = run_async(async {
        registry.login(host, &username, &password).await.map_err(BuildError::from)
    })?;
    print(&format!("logged in at {host}; kept in {kept}\n"))
}

/// Forgets the credentials for a registry.
pub(super) fn logout(
    global: &GlobalArgs,
    arguments: &LogoutArgs,
    environment: &Environment,
) -> Result<(), BuildError> {
    let settings = settings(global, environment)?;
    let host = arguments.registry.as_deref().map_or(DOCKER_HUB, host_meant);
    let registry = Registry::new(settings.registry);
    let erased =
        run_async(async { registry.logout(host).await.map_err(|e| BuildError::fault(&e)) })?;
    let said = if erased { "logged out" } else { "not logged in" };
    print(&format!("{said} at {host}\n"))
}

fn password_on_stdin() -> Result<String, BuildError> {
    let mut password = String::new();
    let read = io::stdin().lock().take(LONGEST_PASSWORD).read_to_string(&mut password);
    read.map_err(|error| BuildError::fault(&error))?;
    Ok(password.trim_end_matches(['\r', '\n']).to_owned())
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Echo {
    On,
    Off,
}

/// Asks the person at the terminal.
fn ask(question: &str, echo: Echo) -> Result<String, BuildError> {
    let stdin = io::stdin();
    if !stdin.is_terminal() {
        let problem = Problem {
            message: "there is no terminal to ask for the password".into(),
            hints: vec!["give `--username NAME --password-stdin`".into()],
            ..Problem::default()
        };
        return Err(BuildError::new(ErrorKind::Usage, problem));
    }
    let fault = |error: io::Error| BuildError::fault(&error);
    let mut terminal = io::stderr();
    terminal.write_all(question.as_bytes()).map_err(fault)?;
    let mut line = String::new();
    if echo == Echo::On {
        stdin.lock().read_line(&mut line).map_err(fault)?;
    } else {
        let before = tcgetattr(&stdin).map_err(|error| fault(error.into()))?;
        let mut hidden = before.clone();
        hidden.local_modes.remove(LocalModes::ECHO);
        tcsetattr(&stdin, OptionalActions::Flush, &hidden).map_err(|error| fault(error.into()))?;
        let read = stdin.lock().read_line(&mut line);
        // The terminal is put right whatever came of it.
        let restored = tcsetattr(&stdin, OptionalActions::Now, &before);
        let _ = terminal.write_all(b"\n");
        read.map_err(fault)?;
        restored.map_err(|error| fault(error.into()))?;
    }
    Ok(line.trim_end_matches(['\r', '\n']).to_owned())
}
