//! What others have put where rbuild writes, and what they get to see of it: a state folder in a
//! place that everybody can write to, or that is somebody else's.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::figure::figure;
use crate::needs::{self, Need, lacking};
use crate::promise::is_refusal;
use crate::rbuild::{Outcome, Rbuild, context, run, scratch};
use crate::user::{User, Users};

/// Runs a shell script as somebody whose account on this machine is of no use.
fn as_nobody(script: &str) -> std::process::Output {
    Command::new("setpriv")
        .args(["--reuid=65534", "--regid=65534", "--clear-groups", "sh", "-c", script])
        .output()
        .unwrap()
}

fn set_mode(path: &Path, mode: u32) {
    fs_err::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

/// Somebody was there first. Whatever it is, rbuild says so at once, and neither reads it nor writes
/// through it.
#[test]
fn what_somebody_else_planted_is_refused() {
    if lacking(&needs::STEPS) || lacking(&[Need::Program("setpriv")]) {
        return;
    }
    let victim = scratch();
    fs_err::write(victim.path().join("file"), "precious").unwrap();
    let target = victim.path().display().to_string();
    let folders = ["blobs", "context", "locks", "mounts", "snapshots", "stubs", "tmp"];
    let files = ["oci-layout", "index.json", "index.db", "index.db-wal", "overlay"];
    let mut plants: Vec<String> = Vec::new();
    for name in folders {
        plants.push(format!("mkdir -m 777 {name}"));
        plants.push(format!("ln -s {target} {name}"));
        plants.push(format!("mkfifo -m 666 {name}"));
    }
    for name in files {
        plants.push(format!("touch {name}; chmod 666 {name}"));
        plants.push(format!("ln -s {target}/file {name}"));
        plants.push(format!("ln -s {target}/new {name}"));
        plants.push(format!("mkfifo -m 666 {name}"));
    }
    let context = context(&[("Dockerfile", "FROM busybox\nRUN echo a > /a\n")]);
    let (mut refused, count) = (0, plants.len());
    for plant in plants {
        let shared = scratch();
        set_mode(shared.path(), 0o1777);
        let planted = as_nobody(&format!("cd {} && {plant}", shared.path().display()));
        assert!(planted.status.success(), "{plant}: {planted:?}");
        let rbuild = Rbuild::new();
        let start = Instant::now();
        let outcome = rbuild.build(&context).arg("--root").arg(shared.path()).run();
        assert!(start.elapsed() < Duration::from_secs(20), "{plant}: {:?}", start.elapsed());
        let told = outcome.stderr.contains("belongs to another user");
        assert!(outcome.status.code() == Some(3) && told, "{plant}: {outcome}");
        refused += 1;
        let left: Vec<_> = fs_err::read_dir(victim.path()).unwrap().collect();
        assert_eq!(left.len(), 1, "{plant}");
        assert_eq!(fs_err::read_to_string(victim.path().join("file")).unwrap(), "precious");
    }
    figure(&format!("planted: refused {refused} / {count}"));
}

/// Pipes and links of one's own, as a careless script leaves them: a reason, or nothing at all, but
/// no wait.
#[test]
fn what_is_no_file_is_not_waited_for() {
    if lacking(&needs::STEPS) {
        return;
    }
    let context = context(&[("Dockerfile", "FROM busybox\nRUN echo a > /a\n")]);
    let victim = scratch();
    let link = format!("ln -s {}/new", victim.path().display());
    for (plant, is_fine) in [
        ("rm -f locks/index-json; mkfifo locks/index-json", false),
        (&*format!("rm -f locks/index-json; {link} locks/index-json"), false),
        ("mkfifo tmp/pipe", true),
        (&*format!("{link} tmp/link"), true),
        ("rm index.db; mkfifo index.db", false),
        ("rm -rf stubs; mkfifo stubs", false),
        ("rm oci-layout; mkfifo oci-layout", false),
    ] {
        let rbuild = Rbuild::new();
        rbuild.build(&context).succeeds();
        let script = format!("cd {} && {plant}", rbuild.root.display());
        run("sh", &["-c", &script]);
        let start = Instant::now();
        let outcome = rbuild.build(&context).args(["--no-cache", "-t", "sample:v1"]).run();
        assert!(start.elapsed() < Duration::from_secs(20), "{plant}: {:?}", start.elapsed());
        assert!(outcome.status.success() || is_refusal(&outcome), "{plant}: {outcome}");
        assert_eq!(outcome.status.success(), is_fine, "{plant}: {outcome}");
        assert_eq!(fs_err::read_dir(victim.path()).unwrap().count(), 0, "{plant}");
    }
}

/// A state folder that is somebody else's, or that everybody may change, is not built in.
#[test]
fn folders_of_others_are_refused() {
    let Some((users, base)) = Users::of_busybox() else { return };
    let context = users.path("context");
    crate::rbuild::write(context.join("Dockerfile"), "FROM busybox\nRUN echo a > /a\n");
    for user in User::ALL {
        let build = |root: &Path| {
            let mut command = users.rbuild(user);
            command.env("RBUILD_ROOT", root).args(["build", &base]).arg(&context);
            command.stdout(Stdio::piped()).stderr(Stdio::piped());
            Outcome::of(command.spawn().unwrap())
        };
        // Somebody who is neither root nor the user that builds.
        let foreign = users.path(&format!("foreign-{user:?}"));
        fs_err::create_dir(&foreign).unwrap();
        set_mode(&foreign, 0o777);
        run("chown", &["1:1", foreign.to_str().unwrap()]);
        let outcome = build(&foreign);
        assert_eq!(outcome.status.code(), Some(3), "as {user:?}: {outcome}");
        outcome.assert_stderr_has(&["belongs to another user", "--root"]);
        assert_eq!(fs_err::read_dir(&foreign).unwrap().count(), 0);
        // A folder in it is one's own.
        let own = foreign.join("own");
        assert!(build(&own).status.success());
        assert!(build(&own).status.success());
        set_mode(&own, 0o777);
        let outcome = build(&own);
        assert_eq!(outcome.status.code(), Some(3), "as {user:?}: {outcome}");
        outcome.assert_stderr_has(&["everybody may write to", "--root"]);
    }
}

/// A layer can hold a setuid shell: nobody else on the machine gets to it, nor to what is private.
#[test]
fn layers_are_closed_to_others() {
    let Some((users, base)) = Users::of_busybox() else { return };
    let context = users.path("context");
    crate::rbuild::write(
        context.join("Dockerfile"),
        "FROM busybox\nRUN cp /bin/busybox /evil && chmod 6755 /evil && mkdir -m 777 /open\n\
         RUN --mount=type=cache,target=/c echo private > /c/file && echo private > /private\n",
    );
    for user in [User::Root, User::Ranges] {
        let root = users.path(&format!("root-{user:?}"));
        // Also one that an older rbuild has left open.
        for is_old in [false, true] {
            if is_old {
                let folders = "chmod 755 . snapshots mounts tmp blobs stubs context locks; true";
                let script = format!("cd {} && {folders} 2>/dev/null", root.display());
                run("sh", &["-c", &script]);
            }
            users.build(user, &context, &[base.clone(), "-t".into(), "sample:v1".into()]);
            let others = "setpriv --reuid=1 --regid=1 --clear-groups";
            let script = format!(
                "{others} find {root} -name evil -o -name open -o -name private -o -name file \
                 -o -path '*/blobs/sha256/*' 2>/dev/null; {others} cat {root}/index.db 2>/dev/null \
                 | head -c 1; true",
                root = root.display()
            );
            assert_eq!(run("sh", &["-c", &script]), "", "as {user:?}, old {is_old}");
        }
    }
}
