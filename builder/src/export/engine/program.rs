//! Loading through the programs `podman` and `docker`, where there is no socket to speak to.

use std::collections::BTreeSet;
use std::io::{self, Read, Write};
use std::process::{Command, Stdio};

use rbuild_cache::state::StateFolder;
use serde_json::Value;

use super::super::{ExportError, ImageArchive, blocking};
use super::address::Address;
use super::{Loading, Report, podman as podman_engine};
use crate::request::EngineSettings;

/// Loads into podman, of which only the layers travel that it lacks; nothing if it is not installed.
pub(super) async fn podman(
    image: &Loading,
    settings: &EngineSettings,
) -> Result<Option<Report>, ExportError> {
    let (image, root) = (image.clone(), settings.root);
    blocking(move || load_podman(&image, root)).await
}

fn load_podman(image: &Loading, root: bool) -> Result<Option<Report>, ExportError> {
    let podman = |arguments: &[&str]| {
        let mut command = Command::new("podman");
        command.args(arguments);
        if !root {
            // rbuild has entered the user's namespace already; podman is not to enter another.
            command.env("_CONTAINERS_USERNS_CONFIGURED", "done");
        }
        command
    };
    let listed = podman(&["images", "--quiet", "--no-trunc"]).stdin(Stdio::null()).output();
    let listed = match listed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        listed => listed?,
    };
    let ids = String::from_utf8_lossy(&listed.stdout).into_owned();
    let ids: BTreeSet<&str> = ids.lines().collect();
    let mut known = BTreeSet::new();
    if !ids.is_empty() {
        let mut inspect = podman(&["image", "inspect"]);
        let shown = inspect.args(&ids).stdin(Stdio::null()).output()?;
        let images: Value = serde_json::from_slice(&shown.stdout).unwrap_or_default();
        for image in images.as_array().map_or(&[][..], Vec::as_slice) {
            known.extend(podman_engine::of_image(image));
        }
    }
    let known: Vec<String> = known
        .into_iter()
        .map(|id| if id.contains(':') { id } else { format!("sha256:{id}") })
        .collect();
    let left_out = podman_engine::left_out(image, &known.into_iter().collect());
    let mut archive = image.oci_archive();
    archive.leave_out(&left_out);
    let load = || podman(&["load", "--quiet"]);
    let (mut sent, mut answer) = pipe(load(), &archive, &image.state)?;
    let mut count = left_out.len();
    if answer.is_err() && count > 0 {
        let (more, second) = pipe(load(), &image.oci_archive(), &image.state)?;
        (sent, answer, count) = (sent + more, second, 0);
    }
    answer.map_err(|reason| ExportError::Load(format!("podman: {reason}")))?;
    if let Some((first, others)) = image.names.split_first() {
        for name in others {
            let mut tag = podman(&["tag", &first.to_string(), &name.to_string()]);
            let tagged = tag.stdin(Stdio::null()).output()?;
            if !tagged.status.success() {
                let reason = String::from_utf8_lossy(&tagged.stderr).trim().to_owned();
                return Err(ExportError::Load(format!("podman: {reason}")));
            }
        }
    }
    Ok(Some(Report { sent, left_out: count }))
}

/// Loads all of it with `docker load`, which knows how to get to `address`.
pub(super) async fn docker(image: &Loading, address: &Address) -> Result<Report, ExportError> {
    let (image, host) = (image.clone(), address.to_string());
    blocking(move || {
        let mut command = Command::new("docker");
        command.args(["--host", &host, "load", "--quiet"]);
        let piped = pipe(command, &image.docker_archive(), &image.state);
        let (sent, answer) = piped.map_err(|error| match error {
            ExportError::Io(error) if error.kind() == io::ErrorKind::NotFound => {
                ExportError::Load(format!("{host} needs the program `docker`, which is not here"))
            }
            other => other,
        })?;
        answer.map_err(|reason| ExportError::Load(format!("docker at {host}: {reason}")))?;
        Ok(Report { sent, left_out: 0 })
    })
    .await
}

/// Writes the archive into a program. Gives how many bytes that were, and what the program said when
/// it failed.
fn pipe(
    mut command: Command,
    archive: &ImageArchive,
    state: &StateFolder,
) -> Result<(u64, Result<(), String>), ExportError> {
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
    let written = archive.write(state, &mut out).and_then(|out| Ok(out.flush()?));
    let sent = out.sent;
    // Closing the pipe at the end tells the engine that it has all.
    drop(out);
    let status = engine.wait()?;
    let said = said.join().unwrap_or_default();
    if !status.success() {
        return Ok((sent, Err(said.trim().to_owned())));
    }
    written?;
    Ok((sent, Ok(())))
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
