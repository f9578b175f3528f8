//! Loading through the programs `podman` and `docker`, where there is no socket to speak to.

use std::collections::BTreeSet;
use std::io::{self, Read, Write};
use std::process::{Command, Stdio};

use rbuild_cache::oci::ImageRef;
use serde_json::Value;

use super::address::Address;
use super::{Sent, Writing};
use crate::export::{ExportError, blocking};

/// Whether podman is installed.
pub(super) fn has_podman() -> bool {
    let asked = Command::new("podman").arg("--version").stdin(Stdio::null()).output();
    !asked.is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
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

/// What podman says of its images.
pub(super) async fn podman_images(root: bool) -> Result<Vec<Value>, ExportError> {
    blocking(move || {
        let listed = podman(root, &["images", "--quiet", "--no-trunc"]).output()?;
        let ids = String::from_utf8_lossy(&listed.stdout).into_owned();
        let ids: BTreeSet<&str> = ids.lines().collect();
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        let shown = podman(root, &["image", "inspect"]).args(&ids).output()?;
        // Without an answer nothing is left out.
        Ok(serde_json::from_slice(&shown.stdout).unwrap_or_default())
    })
    .await
}

/// Loads an archive into podman.
pub(super) async fn podman_load(root: bool, writing: Writing) -> Result<Sent, ExportError> {
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
pub(super) async fn docker_load(address: &Address, writing: Writing) -> Result<Sent, ExportError> {
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

/// Writes an archive into a program.
fn pipe(mut command: Command, writing: Writing) -> Result<Sent, ExportError> {
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut engine = command.spawn()?;
    let stdin = engine.stdin.take().expect("it is piped");
    let mut stderr = engine.stderr.take().expect("it is piped");
    // Read beside, so that a talkative engine is never stuck.
    let said = std::thread::spawn(move || {
        let mut said = String::new();
        // What cannot be read cannot be shown; the exit code says enough.
        let _ = stderr.read_to_string(&mut said);
        said
    });
    let mut out = Counted { out: io::BufWriter::with_capacity(256 << 10, stdin), sent: 0 };
    let written = writing(&mut out).and_then(|()| Ok(out.flush()?));
    let bytes = out.sent;
    // Closing the pipe at the end tells the engine that it has all.
    drop(out);
    let status = engine.wait()?;
    let said = said.join().unwrap_or_default();
    if !status.success() {
        return Ok(Sent { bytes, answer: Err(said.trim().to_owned()) });
    }
    written?;
    Ok(Sent { bytes, answer: Ok(()) })
}

struct Counted<W> {
    out: W,
    sent: u64,
}

impl<W: Write> Write for Counted<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.out.write(bytes)?;
        self.sent += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}
