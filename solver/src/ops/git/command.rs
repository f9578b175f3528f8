//! Runs the `git` program for addresses that somebody else may have written.
//!
//! * Nothing is an option that should not be: addresses and references never begin with a dash
//!   (`git.rs` refuses them), and stand behind `--`.
//! * Only transports over a network are allowed, for submodules too: no `ext::`, which runs
//!   commands, and no `file://`, which reads other repositories of this machine.
//! * The machine's and the user's configuration is not read, no hook runs, no filter is known: a
//!   checkout is the same for everybody. Only what is needed to get in is taken over from the
//!   user: `credential.*` and `http.*`. It is handed on in the environment, which other users can't
//!   read, unlike arguments.
//! * Nobody is asked for a password; output that is kept is bounded; whoever waits no longer kills
//!   git with all its helpers.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::Command;

use super::GitError;

/// How much of what git writes is kept, in bytes.
const OUTPUT_MAX: u64 = 16 << 20;
/// How much of the end of its complaints is shown, in bytes.
const COMPLAINT: usize = 2000;
/// The transports that are allowed.
const PROTOCOLS: &str = "http:https:git:ssh";

/// Variables that would make git read or write something else.
const FOREIGN: [&str; 18] = [
    "GIT_DIR",
    "GIT_WORK_TREE",
    "GIT_INDEX_FILE",
    "GIT_COMMON_DIR",
    "GIT_OBJECT_DIRECTORY",
    "GIT_ALTERNATE_OBJECT_DIRECTORIES",
    "GIT_NAMESPACE",
    "GIT_PREFIX",
    "GIT_CONFIG",
    "GIT_CONFIG_PARAMETERS",
    "GIT_CONFIG_SYSTEM",
    "GIT_TEMPLATE_DIR",
    "GIT_ATTR_SOURCE",
    "GIT_EXTERNAL_DIFF",
    "GIT_QUARANTINE_PATH",
    "GIT_TRACE",
    "GIT_REDIRECT_STDIN",
    "GIT_SHALLOW_FILE",
];

/// What lets an http server give a repository out.
pub(super) enum Authorization {
    /// The value of the `Authorization` header.
    Header(Vec<u8>),
    /// A token, for the user `x-access-token`.
    Token(Vec<u8>),
}

/// Runs git for one remote.
#[derive(Clone)]
pub(super) struct Git {
    remote: String,
    protocols: &'static str,
    /// Configuration, in the order in which it is read.
    settings: Vec<(String, OsString)>,
    folder: PathBuf,
    repository: Option<PathBuf>,
    work_tree: Option<PathBuf>,
}

impl Git {
    /// Gets ready to talk to `remote`, from the existing folder `folder`.
    pub(super) async fn new(
        remote: &str,
        folder: &Path,
        authorization: Option<Authorization>,
    ) -> Result<Self, GitError> {
        let mut git = Self {
            remote: remote.to_owned(),
            protocols: PROTOCOLS,
            settings: Vec::new(),
            folder: folder.to_owned(),
            repository: None,
            work_tree: None,
        };
        git.settings = git.users_settings().await?;
        for (name, value) in [
            ("core.hooksPath", "/dev/null"),
            ("core.attributesFile", "/dev/null"),
            ("core.excludesFile", "/dev/null"),
            ("core.askPass", ""),
            // Gives way to the user's `GIT_SSH_COMMAND`.
            ("core.sshCommand", "ssh -o BatchMode=yes"),
            ("core.autocrlf", "false"),
            ("core.symlinks", "true"),
            ("core.fileMode", "true"),
            ("core.fsmonitor", "false"),
            ("init.defaultBranch", "master"),
            ("advice.detachedHead", "false"),
            ("gc.auto", "0"),
            ("maintenance.auto", "false"),
        ] {
            git.settings.push((name.to_owned(), value.into()));
        }
        if let Some(authorization) = authorization {
            git.settings.push(header(remote, authorization));
        }
        Ok(git)
    }

    /// The same for commands that work in a repository.
    pub(super) fn with_repository(&self, repository: &Path, work_tree: &Path) -> Self {
        let (repository, work_tree) = (Some(repository.to_owned()), Some(work_tree.to_owned()));
        Self { repository, work_tree, ..self.clone() }
    }

    /// Allows repositories of this machine, which a test has nothing but.
    #[cfg(test)]
    pub(super) fn allowing_files(self) -> Self {
        Self { protocols: "file", ..self }
    }

    /// The remote without its password.
    pub(super) fn shown_remote(&self) -> String {
        without_credentials(&self.remote)
    }

    /// What the user's configuration says about getting in.
    async fn users_settings(&self) -> Result<Vec<(String, OsString)>, GitError> {
        let mut command = Command::new("git");
        let pattern = r"^(credential|http)\.";
        command.args(["config", "--global", "--includes", "--null", "--get-regexp", pattern]);
        command.current_dir(&self.folder);
        for name in FOREIGN {
            command.env_remove(name);
        }
        // It fails where nothing of the kind is said.
        let output = run(command).await.map_err(GitError::Run)?;
        let listed = String::from_utf8_lossy(&output.stdout).into_owned();
        let lines = listed.split('\0').filter(|line| !line.is_empty());
        Ok(lines
            .map(|line| {
                // A name alone means true.
                let (name, value) = line.split_once('\n').unwrap_or((line, "true"));
                (name.to_owned(), value.into())
            })
            .collect())
    }

    /// Runs git with `arguments`; returns what it wrote to standard output.
    pub(super) async fn run(
        &self,
        action: &'static str,
        arguments: &[&str],
    ) -> Result<String, GitError> {
        let output = run(self.command(arguments)).await.map_err(GitError::Run)?;
        if output.success {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        let complaint =
            String::from_utf8_lossy(&output.stderr).replace(&self.remote, &self.shown_remote());
        let start = complaint.len().saturating_sub(COMPLAINT);
        let start = (start..=complaint.len()).find(|at| complaint.is_char_boundary(*at));
        let message = complaint[start.unwrap_or_default()..].trim().to_owned();
        Err(GitError::Failed { action, remote: self.shown_remote(), message })
    }

    /// Like [`Git::run`], and once more with all of the history where the server or the transport
    /// cannot leave it out (`--depth`).
    pub(super) async fn run_or_deep(
        &self,
        action: &'static str,
        arguments: &[&str],
    ) -> Result<String, GitError> {
        match self.run(action, arguments).await {
            Err(GitError::Failed { message, .. })
                if message.contains("--depth") || message.contains("shallow") =>
            {
                let deep: Vec<&str> =
                    arguments.iter().copied().filter(|a| !a.starts_with("--depth")).collect();
                self.run(action, &deep).await
            }
            other => other,
        }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("git");
        command.args(arguments);
        for name in FOREIGN {
            command.env_remove(name);
        }
        command
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .env("GIT_ATTR_NOSYSTEM", "1")
            .env("GIT_TERMINAL_PROMPT", "0")
            .env("GIT_ASKPASS", "")
            .env("SSH_ASKPASS", "")
            .env("GIT_ALLOW_PROTOCOL", self.protocols)
            .env("GIT_LFS_SKIP_SMUDGE", "1")
            .env("LC_ALL", "C")
            .env("GIT_CONFIG_COUNT", self.settings.len().to_string());
        for (number, (name, value)) in self.settings.iter().enumerate() {
            command.env(format!("GIT_CONFIG_KEY_{number}"), name);
            command.env(format!("GIT_CONFIG_VALUE_{number}"), value);
        }
        if let Some(repository) = &self.repository {
            command.env("GIT_DIR", repository);
        }
        match &self.work_tree {
            Some(work_tree) => {
                command.env("GIT_WORK_TREE", work_tree).current_dir(work_tree);
            }
            None => _ = command.current_dir(&self.folder),
        }
        command
    }
}

/// What came of a program.
struct Output {
    success: bool,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
}

/// Runs `command` to its end; if nobody waits for that any more, kills it and its children.
async fn run(mut command: Command) -> std::io::Result<Output> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.process_group(0).kill_on_drop(true);
    let mut child = command.spawn()?;
    let group = Group(child.id().and_then(|id| Pid::from_raw(id.cast_signed())));
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let (stdout, stderr) = tokio::try_join!(bounded(stdout), bounded(stderr))?;
    let status = child.wait().await?;
    std::mem::forget(group);
    Ok(Output { success: status.success(), stdout, stderr })
}

/// Reads all of `pipe`, and keeps as much as may be kept.
async fn bounded(pipe: Option<impl AsyncRead + Unpin>) -> std::io::Result<Vec<u8>> {
    let mut kept = Vec::new();
    let Some(mut pipe) = pipe else { return Ok(kept) };
    (&mut pipe).take(OUTPUT_MAX).read_to_end(&mut kept).await?;
    tokio::io::copy(&mut pipe, &mut tokio::io::sink()).await?;
    Ok(kept)
}

/// Kills a group of processes when it is dropped.
struct Group(Option<Pid>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(group) = self.0 {
            // It may have ended by itself.
            let _ = kill_process_group(group, Signal::KILL);
        }
    }
}

/// The setting that sends a header to the server of `remote`, and to no other.
fn header(remote: &str, authorization: Authorization) -> (String, OsString) {
    let scheme_end = remote.find("://").map_or(0, |at| at + 3);
    let host_end = remote[scheme_end..].find('/').map_or(remote.len(), |at| scheme_end + at);
    let server = without_credentials(&remote[..host_end]);
    let value = match authorization {
        Authorization::Header(header) => String::from_utf8_lossy(&header).trim().to_owned(),
        Authorization::Token(token) => {
            let token = String::from_utf8_lossy(&token).trim().to_owned();
            format!("basic {}", base64(format!("x-access-token:{token}").as_bytes()))
        }
    };
    (format!("http.{server}/.extraheader"), format!("Authorization: {value}").into())
}

/// RFC 4648, section 4.
fn base64(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for piece in bytes.chunks(3) {
        let number = piece.iter().fold(0_u32, |number, byte| number << 8 | u32::from(*byte))
            << (8 * (3 - piece.len()));
        for position in 0..4 {
            let letter = LETTERS[(number >> (18 - 6 * position)) as usize & 63];
            text.push(if position > piece.len() { '=' } else { char::from(letter) });
        }
    }
    text
}

/// `address` without what stands before an `@` in its authority.
fn without_credentials(address: &str) -> String {
    let Some((scheme, rest)) = address.split_once("://") else { return address.to_owned() };
    let end = rest.find('/').unwrap_or(rest.len());
    match rest[..end].rsplit_once('@') {
        // ssh's user is part of the address, and no secret.
        Some((user, host)) if scheme != "ssh" || user.contains(':') => {
            format!("{scheme}://{host}{}", &rest[end..])
        }
        Some(_) | None => address.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_that_of_the_rfc() {
        let check = |text: &str, expected: &str| assert_eq!(base64(text.as_bytes()), expected);
        check("", "");
        check("f", "Zg==");
        check("fo", "Zm8=");
        check("foo", "Zm9v");
        check("foobar", "Zm9vYmFy");
    }

    #[test]
    fn passwords_are_not_shown() {
        let check = |address: &str, expected: &str| {
            assert_eq!(without_credentials(address), expected);
        };
        check("https://user:secret@host/r.git", "https://host/r.git");
        check("https://token@host/r.git", "https://host/r.git");
        check("https://host/a@b", "https://host/a@b");
        check("ssh://git@host/r.git", "ssh://git@host/r.git");
        check("git@host:r.git", "git@host:r.git");
    }

    #[test]
    fn a_header_goes_to_its_server_only() {
        let token = Authorization::Token(b"secret\n".to_vec());
        let (name, value) = header("https://user@host:8443/a/b.git", token);
        assert_eq!(name, "http.https://host:8443/.extraheader");
        assert_eq!(value, "Authorization: basic eC1hY2Nlc3MtdG9rZW46c2VjcmV0");
    }
}
