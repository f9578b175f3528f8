//! What a test needs of the machine, and what becomes of it where that is missing.

use std::io::Write as _;
use std::path::Path;
use std::process::Command;

/// Something that not every machine has.
#[derive(Clone, Copy)]
pub(crate) enum Need {
    Root,
    /// A program in `PATH`.
    Program(&'static str),
    /// A kernel that lets ordinary users have user namespaces.
    UserNamespaces,
    /// Debian's package mirror, which the base image comes from.
    Network,
}

/// What a test needs that runs steps on busybox.
pub(crate) const STEPS: [Need; 3] =
    [Need::Root, Need::Program("busybox"), Need::Program("python3")];

/// Tells on stderr what of `needs` is missing, if anything is; the test is to return then.
///
/// With `RBUILD_TESTS=complete` the test fails instead, so that CI cannot lose tests silently.
pub(crate) fn lacking(needs: &[Need]) -> bool {
    let missing: Vec<String> = needs.iter().filter_map(|need| missing(*need)).collect();
    if missing.is_empty() {
        return false;
    }
    let test = std::thread::current().name().unwrap_or("a test").to_owned();
    let message = format!("skipped: {test} lacks {}\n", missing.join(", "));
    assert!(std::env::var("RBUILD_TESTS").as_deref() != Ok("complete"), "{message}");
    // Not `eprintln!`, which the test runner hides when the test passes.
    std::io::stderr().write_all(message.as_bytes()).unwrap();
    true
}

fn missing(need: Need) -> Option<String> {
    match need {
        Need::Root => (!rustix::process::geteuid().is_root()).then(|| "root".to_owned()),
        Need::Program(name) => find(name).is_none().then(|| format!("the program `{name}`")),
        Need::UserNamespaces => {
            let tried = Command::new("setpriv")
                .args(["--reuid=65534", "--regid=65534", "--clear-groups", "unshare", "-U", "true"])
                .output();
            let allowed = tried.is_ok_and(|output| output.status.success());
            (!allowed).then(|| "user namespaces of ordinary users".to_owned())
        }
        Need::Network => {
            let reachable = Command::new("getent").args(["hosts", "deb.debian.org"]).output();
            let reachable = reachable.is_ok_and(|output| output.status.success());
            (!reachable).then(|| "the network (deb.debian.org)".to_owned())
        }
    }
}

/// The first program of that name in `PATH` or where Debian keeps programs of root.
pub(crate) fn find(name: &str) -> Option<std::path::PathBuf> {
    let path = std::env::var("PATH").unwrap_or_default();
    path.split(':')
        .chain(["/usr/sbin", "/sbin"])
        .map(|folder| Path::new(folder).join(name))
        .find(|program| program.is_file())
}
