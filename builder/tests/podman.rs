//! podman with a storage of its own, to run what rbuild built.

use std::process::{Command, Stdio};

use tempfile::TempDir;

use crate::needs::{Need, find};
use crate::rbuild::scratch;

/// What every test with podman needs.
pub(crate) const NEEDED: [Need; 2] = [Need::Root, Need::Program("podman")];

/// A storage; its images and containers end with this value.
pub(crate) struct Podman {
    storage: TempDir,
    /// Sockets and locks, whose paths podman wants short.
    run: TempDir,
    /// How layers are kept: overlayfs does not work on top of overlayfs.
    driver: &'static str,
}

impl Podman {
    pub(crate) fn new() -> Self {
        let overlay = Self::with_driver("overlay");
        if overlay.command().arg("info").output().unwrap().status.success() {
            return overlay;
        }
        Self::with_driver("vfs")
    }

    fn with_driver(driver: &'static str) -> Self {
        let run = tempfile::Builder::new().prefix("run-").tempdir().unwrap();
        Self { storage: scratch(), run, driver }
    }

    /// Runs `podman ARGS`; gives its stdout; it must succeed.
    #[track_caller]
    pub(crate) fn run(&self, args: &[&str]) -> String {
        let output = self.command().args(args).output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "podman {args:?}: {}\n{stderr}", output.status);
        String::from_utf8(output.stdout).unwrap()
    }

    /// Runs a command in a new container of `image`, without a network; gives its stdout.
    #[track_caller]
    pub(crate) fn run_image(&self, image: &str, args: &[&str]) -> String {
        let mut all = vec!["run", "--rm", "--network=none", "--pull=never"];
        all.extend(LIMITS);
        all.push(image);
        all.extend(args);
        self.run(&all)
    }

    /// Starts a container of `image` in the background.
    #[track_caller]
    pub(crate) fn start(&self, name: &str, image: &str) {
        let mut all = vec!["run", "--detach", "--network=none", "--pull=never", "--name", name];
        all.extend(LIMITS);
        all.push(image);
        self.run(&all);
    }

    /// `podman`, without arguments yet.
    pub(crate) fn command(&self) -> Command {
        let folder = self.storage.path();
        let mut command = Command::new("podman");
        command.arg("--root").arg(folder.join("storage"));
        command.arg("--runroot").arg(self.run.path().join("run"));
        command.arg("--tmpdir").arg(self.run.path().join("tmp"));
        command.args(["--storage-driver", self.driver, "--cgroup-manager=cgroupfs"]);
        // crun refuses machines with both versions of cgroups mounted.
        if find("runc").is_some() {
            command.args(["--runtime", "runc"]);
        }
        command.stdin(Stdio::null());
        command
    }
}

/// podman asks for more than a container may have that is itself limited.
pub(crate) const LIMITS: [&str; 4] =
    ["--ulimit", "nofile=1024:1024", "--ulimit", "nproc=4096:4096"];

impl Drop for Podman {
    fn drop(&mut self) {
        // What stays mounted keeps the folder from being removed; there may be nothing to do.
        let _ = self.command().args(["rm", "--all", "--force", "--time=0"]).output();
        let mount = self.storage.path().join("storage/overlay");
        let _ = Command::new("umount").arg("--lazy").arg(mount).output();
    }
}
