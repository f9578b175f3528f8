//! Docker's engine with a storage of its own, to load what rbuild built.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::needs::{Need, find};
use crate::rbuild::{run, scratch};

/// What every test with Docker needs.
pub(crate) const NEEDED: [Need; 2] = [Need::Root, Need::Program("dockerd")];

/// An engine; it ends with this value.
pub(crate) struct Docker {
    engine: Child,
    data: TempDir,
    /// Sockets, whose paths have to be short.
    run: TempDir,
    port: u16,
}

impl Docker {
    /// Starts an engine without a network of its own.
    pub(crate) fn start() -> Self {
        let (data, run) = (scratch(), tempfile::Builder::new().prefix("dk-").tempdir().unwrap());
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let folder = run.path();
        let mut command = Command::new(find("dockerd").unwrap());
        command.args(["--iptables=false", "--bridge=none", "--tls=false"]);
        command.arg("--data-root").arg(data.path().join("data"));
        command.arg("--exec-root").arg(folder.join("exec")).arg("-p").arg(folder.join("pid"));
        command.arg("-H").arg(format!("unix://{}", folder.join("s").display()));
        command.arg("-H").arg(format!("tcp://127.0.0.1:{port}"));
        let log = fs_err::File::create(data.path().join("log")).unwrap();
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log.into_parts().0);
        let engine = Self { engine: command.spawn().unwrap(), data, run, port };
        let begun = Instant::now();
        while !engine.curl(&["http://d/_ping"]).contains("OK") {
            assert!(begun.elapsed() < Duration::from_mins(1), "dockerd does not start");
            std::thread::sleep(Duration::from_millis(100));
        }
        engine
    }

    fn socket(&self) -> PathBuf {
        self.run.path().join("s")
    }

    /// `DOCKER_HOST` of its socket.
    pub(crate) fn unix(&self) -> String {
        format!("unix://{}", self.socket().display())
    }

    /// `DOCKER_HOST` over TCP.
    pub(crate) fn tcp(&self) -> String {
        format!("tcp://127.0.0.1:{}", self.port)
    }

    /// Asks the engine's API; empty when there is no answer.
    fn curl(&self, arguments: &[&str]) -> String {
        let output = Command::new("curl")
            .args(["-s", "--max-time", "30", "--unix-socket"])
            .arg(self.socket())
            .args(arguments)
            .output()
            .unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// What it says of an image.
    pub(crate) fn image(&self, name: &str) -> serde_json::Value {
        let url = format!("http://d/images/{name}/json");
        serde_json::from_str(&self.curl(&[&url])).unwrap_or_default()
    }

    /// Takes an image away, with the layers that no other has.
    pub(crate) fn remove(&self, name: &str) {
        self.curl(&["-X", "DELETE", &format!("http://d/images/{name}?force=1")]);
    }

    /// Its image as an archive.
    pub(crate) fn save(&self, name: &str, file: &str) {
        let url = format!("http://d/images/{name}/get");
        let socket = self.socket();
        run("curl", &["-sf", "--unix-socket", socket.to_str().unwrap(), "-o", file, &url]);
    }
}

impl Drop for Docker {
    fn drop(&mut self) {
        // It ends its containerd, and removes its mounts, when it is asked to.
        let _ = Command::new("kill").arg(self.engine.id().to_string()).status();
        let _ = self.engine.wait();
        let data = self.data.path().join("data");
        // On top of overlayfs it mounts nothing, and there is nothing to do.
        let _ = Command::new("umount").args(["-q", "--lazy"]).arg(data.join("overlay2")).output();
    }
}
