//! containerd with a store of its own, which is what Docker's newer image store is.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::needs::{Need, find};
use crate::rbuild::{run, scratch};

/// What every test with containerd needs.
pub(crate) const NEEDED: [Need; 3] =
    [Need::Root, Need::Program("containerd"), Need::Program("ctr")];

/// A running containerd; it ends with this value.
pub(crate) struct Containerd {
    server: Child,
    _data: TempDir,
    /// The socket, whose path has to be short.
    run: TempDir,
}

impl Containerd {
    pub(crate) fn start() -> Self {
        let (data, run) = (scratch(), tempfile::Builder::new().prefix("cd-").tempdir().unwrap());
        let config = data.path().join("config.toml");
        let socket = run.path().join("s");
        let (data_folder, run_folder) = (data.path().display(), run.path().display());
        let text = format!(
            "version = 2\nroot = \"{data_folder}/root\"\nstate = \"{run_folder}/state\"\n\
             disabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n\
             [grpc]\naddress = \"{}\"\n",
            socket.display()
        );
        fs_err::write(&config, text).unwrap();
        let log = fs_err::File::create(data.path().join("log")).unwrap();
        // setpriv lets the server end with the test, however that ends.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "TERM"]).arg(find("containerd").unwrap());
        command.arg("--config").arg(&config);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log.into_parts().0);
        let server = command.spawn().unwrap();
        let begun = Instant::now();
        while !socket.exists() {
            assert!(begun.elapsed() < Duration::from_secs(30), "containerd does not start");
            std::thread::sleep(Duration::from_millis(20));
        }
        Self { server, _data: data, run }
    }

    /// Runs `ctr ARGS`; gives its stdout; it must succeed.
    #[track_caller]
    pub(crate) fn ctr(&self, args: &[&str]) -> String {
        let socket = self.run.path().join("s");
        let own = ["--address", socket.to_str().unwrap(), "--namespace", "tests"];
        run("ctr", &[&own[..], args].concat())
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        let _ = Command::new("kill").arg(self.server.id().to_string()).status();
        let _ = self.server.wait();
    }
}
