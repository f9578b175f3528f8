//! Running rbuild as the three kinds of users there are: root, a user with ranges of ids, and a
//! user with one.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tempfile::TempDir;

use crate::base::busybox;
use crate::needs::{Need, lacking};
use crate::rbuild::{Outcome, run};

/// What tests need that run rbuild as every kind of user.
pub(crate) const NEEDED: [Need; 6] = [
    Need::Root,
    Need::Program("python3"),
    Need::Program("setpriv"),
    Need::Program("unshare"),
    Need::Program("newuidmap"),
    Need::UserNamespaces,
];

/// A kind of user.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum User {
    Root,
    /// With ranges in `/etc/subuid` and `/etc/subgid`.
    Ranges,
    /// Without.
    Single,
}

impl User {
    pub(crate) const ALL: [Self; 3] = [Self::Root, Self::Ranges, Self::Single];
}

/// `nobody`: `newuidmap` wants a user that has a name.
const UID: &str = "--reuid=65534";
const GID: &str = "--regid=65534";

/// Shows the caller's ranges in place of the machine's, and executes the rest.
const WITH_RANGES: &str = "mount --bind \"$1\" /etc/subuid && mount --bind \"$1\" /etc/subgid && \
                           shift && exec \"$@\"";

/// A folder that all users can use, with the program: the target folder may be out of their reach.
pub(crate) struct Users {
    pub(crate) folder: TempDir,
}

impl Users {
    pub(crate) fn new() -> Self {
        let folder = tempfile::Builder::new().prefix("rbuild-users-").tempdir().unwrap();
        let everyone = std::fs::Permissions::from_mode(0o777);
        fs_err::set_permissions(folder.path(), everyone).unwrap();
        fs_err::copy(env!("CARGO_BIN_EXE_rbuild"), folder.path().join("rbuild")).unwrap();
        fs_err::write(folder.path().join("none"), "").unwrap();
        fs_err::write(folder.path().join("ranges"), "nobody:2000000:65536\n").unwrap();
        Self { folder }
    }

    /// Users, and the argument that names the busybox base; `None` where something is lacking.
    pub(crate) fn of_busybox() -> Option<(Self, String)> {
        if lacking(&[&NEEDED[..], &[Need::Program("busybox")]].concat()) {
            return None;
        }
        let users = Self::new();
        let base = users.base("busybox", busybox());
        Some((users, base))
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The argument that makes a copy of the image in `layout` known as `name`.
    pub(crate) fn base(&self, name: &str, layout: &Path) -> String {
        let copy = self.path(&format!("base-{name}"));
        if !copy.exists() {
            run("cp", &["-r", layout.to_str().unwrap(), copy.to_str().unwrap()]);
            run("chmod", &["-R", "a+rX", copy.to_str().unwrap()]);
        }
        format!("--build-context={name}=oci-layout://{}", copy.display())
    }

    /// `rbuild`, without arguments, with a state folder of that user's.
    pub(crate) fn rbuild(&self, user: User) -> Command {
        let mut command = Command::new("unshare");
        let ranges = self.path(if user == User::Ranges { "ranges" } else { "none" });
        command.args(["--mount", "sh", "-c", WITH_RANGES, "sh"]).arg(ranges);
        if user != User::Root {
            command.args(["setpriv", UID, GID, "--clear-groups"]);
        }
        let kept = ["PATH", "http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY"];
        command.env_clear().envs(std::env::vars().filter(|(name, _)| kept.contains(&&**name)));
        command.env("HOME", self.folder.path());
        command.env("RBUILD_ROOT", self.path(&format!("root-{user:?}")));
        command.arg(self.path("rbuild")).stdin(Stdio::null());
        command
    }

    /// Builds `context` as `user`; must succeed.
    #[track_caller]
    pub(crate) fn build(&self, user: User, context: &Path, args: &[String]) -> Outcome {
        let mut command = self.rbuild(user);
        command.args(["build", "--progress", "plain"]).args(args).arg(context);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let outcome = Outcome::of(command.spawn().unwrap());
        assert!(outcome.status.success(), "as {user:?}: {outcome}");
        outcome
    }
}
