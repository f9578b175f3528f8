//! Loading through the programs `podman` and `docker`, where there is no socket to speak to.

use std::collections::BTreeSet;
use std::io::{self, Read, Write};
use std::process::{Command, Stdio};

use rbuild_cache::oci::ImageRef;
use serde_json::Value;

use super::address::Address;
use super::{Answer, Writing};
use crate::export::{ExportError, blocking};
use crate::image::ImageError;

/// Whether podman is installed.
pub(super) async fn has_podman() -> Result<bool, ExportError> {
    blocking(|| {
        let asked = Command::new("podman").arg("--version").stdin(Stdio::null()).output();
        Ok(!asked.is_err_and(|error| error.kind() == io::ErrorKind::NotFound))
    })
    .await
}

fn podman(root: bool, arguments: &[&str]) -> Command {
    let mut command = Command::new("podman");
    command.args(arguments).stdin(Stdio::null());
    if !root {
        // rbuild has entered the user's namespace already; podman is not to enter another.
        command.env("_CONTAINERS_USERNS_CONFIGURED", "done");
    }
    command
}

/// What podman says of its `newest` images. Without an answer nothing is known of them: loading into
/// it tells what is wrong with it.
pub(super) async fn podman_images(root: bool, newest: usize) -> Result<Vec<Value>, ExportError> {
    blocking(move || {
        let listed = podman(root, &["images", "--quiet", "--no-trunc"]).output()?;
        let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
        // One with several names is listed as often.
        let (mut seen, mut ids) = (BTreeSet::new(), listed.lines().collect::<Vec<_>>());
        ids.retain(|id| seen.insert(*id));
        ids.truncate(newest);
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        let shown = podman(root, &["image", "inspect"]).args(&ids).output()?;
        Ok(serde_json::from_slice(&shown.stdout).unwrap_or_else(|error| {
            let said = String::from_utf8_lossy(&shown.stderr);
            tracing::debug!(%error, %said, "podman says nothing of its images");
            Vec::new()
        }))
    })
    .await
}

/// Loads an archive into podman.
pub(super) async fn podman_load(root: bool, writing: Writing) -> Result<Answer, ExportError> {
    blocking(move || pipe(podman(root, &["load", "--quiet"]), writing)).await
}

/// Gives podman's image `name` the name `other` too.
pub(super) async fn podman_tag(
    root: bool,
    name: &ImageRef,
    other: &ImageRef,
) -> Result<(), ExportError> {
    let (name, other) = (name.to_string(), other.to_string());
    blocking(move || {
        let tagged = podman(root, &["tag", &name, &other]).output()?;
        if tagged.status.success() {
            return Ok(());
        }
        let reason = String::from_utf8_lossy(&tagged.stderr).trim().to_owned();
        Err(ExportError::Load(format!("podman: {reason}")))
    })
    .await
}

/// Loads an archive with `docker load`, which knows how to get to `address`.
pub(super) async fn docker_load(
    address: &Address,
    writing: Writing,
) -> Result<Answer, ExportError> {
    let host = address.to_string();
    blocking(move || {
        let mut command = Command::new("docker");
        command.args(["--host", &host, "load", "--quiet"]);
        pipe(command, writing).map_err(|error| match error {
            ExportError::Io(error) if error.kind() == io::ErrorKind::NotFound => {
                ExportError::Load(format!("{host} needs the program `docker`, which is not here"))
            }
            other => other,
        })
    })
    .await
}

/// Writes an archive into a program. Gives what the program says of it, at once where it failed: what
/// is left to write ends when it notices that nobody listens.
fn pipe(mut command: Command, writing: Writing) -> Result<Answer, ExportError> {
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut engine = command.spawn()?;
    let stdin = engine.stdin.take().expect("it is piped");
    let mut stderr = engine.stderr.take().expect("it is piped");
    let written = std::thread::spawn(move || {
        let mut out = io::BufWriter::with_capacity(256 << 10, stdin);
        // Closing the pipe at the end tells the engine that it has all.
        writing(&mut out).and_then(|()| Ok(out.flush()?))
    });
    let mut said = String::new();
    // What cannot be read cannot be shown; the exit code says enough.
    let _ = stderr.read_to_string(&mut said);
    if !engine.wait()?.success() {
        return Ok(Err(said.trim().to_owned()));
    }
    written.join().map_err(|_| ExportError::Image(ImageError::Panicked))??;
    Ok(Ok(()))
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    /// More than a pipe holds.
    fn large() -> Writing {
        Box::new(|out| Ok(out.write_all(&vec![0; 1 << 20])?))
    }

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn a_program_says_what_is_wrong() {
        let check = |script: &str, expected: Result<(), &str>| {
            let answer = pipe(shell(script), large()).unwrap();
            assert_eq!(answer, expected.map_err(str::to_owned), "{script}");
        };
        check("cat > /dev/null", Ok(()));
        check("cat > /dev/null; echo no >&2; exit 1", Err("no"));
        check("echo gone >&2; exit 125", Err("gone"));
        assert!(pipe(shell("exit 0"), large()).is_err(), "it has not read all of it");
    }

    #[test]
    fn a_program_that_dies_is_not_written_to_the_end() {
        let (next, layers) = mpsc::channel::<()>();
        let writing: Writing = Box::new(move |out| {
            out.write_all(b"the first layer")?;
            // The second one takes a while.
            while layers.recv().is_ok() {}
            Ok(())
        });
        let answer = pipe(shell("echo killed >&2; exit 1"), writing).unwrap();
        assert_eq!(answer, Err("killed".to_owned()));
        drop(next);
    }
}
