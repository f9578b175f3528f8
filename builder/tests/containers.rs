//! rbuild inside containers that other programs made: it works with what it is allowed, and says
//! what it lacks and which flag grants that.

use std::process::{Command, Stdio};

use serde_json::json;

use crate::base::{busybox, debian};
use crate::needs::{Need, lacking};
use crate::podman::{self, Podman};
use crate::rbuild::{Outcome, write};
use crate::user::{self, User, Users};

const DOCKERFILE: &str = "FROM busybox\nRUN touch /a && chown 5:6 /a && stat -c 'owner %u:%g' /a\n";

/// Runs rbuild in a container of Debian with these flags.
fn build_in(podman: &Podman, image: &str, users: &Users, flags: &[&str]) -> Outcome {
    let shared = format!("{}:/shared:ro", users.folder.path().display());
    let mut args = vec!["run", "--rm", "--network=none", "--pull=never", "-v", &shared];
    args.extend(podman::LIMITS);
    args.extend(flags);
    args.extend([image, "/shared/rbuild", "--root", "/tmp/root", "build", "--progress", "plain"]);
    args.extend(["--build-context=busybox=oci-layout:///shared/base-busybox", "/shared/context"]);
    let mut command = podman.command();
    command.args(args).stdout(Stdio::piped()).stderr(Stdio::piped());
    Outcome::of(command.spawn().unwrap())
}

#[test]
fn containers_are_enough_or_their_flags_are_named() {
    let needed = [&podman::NEEDED[..], &user::NEEDED, &[Need::Network]].concat();
    if lacking(&[&needed[..], &[Need::Program("mmdebstrap"), Need::Program("busybox")]].concat()) {
        return;
    }
    let users = Users::new();
    users.base("busybox", busybox());
    write(users.path("context/Dockerfile"), DOCKERFILE);
    let podman = Podman::new();
    let image = podman.run(&["pull", "--quiet", &format!("oci:{}", debian().display())]);
    let check = |flags: &[&str], works: bool, told: &[&str]| {
        let outcome = build_in(&podman, image.trim(), &users, flags);
        assert_eq!(outcome.status.success(), works, "{flags:?}: {outcome}");
        outcome.assert_stderr_has(told);
        if works {
            outcome.assert_stderr_has(&["owner 5:6"]);
        }
    };
    let open = "--security-opt=seccomp=unconfined";
    let unmasked = "--security-opt=unmask=ALL";
    // As root of the container.
    check(&["--privileged"], true, &[]);
    check(&[open, unmasked], true, &[]);
    check(&[open], true, &["steps see this container's processes", "unmask=ALL"]);
    // As a user of it, who has one id.
    check(&["--user=1000", open, unmasked], true, &["owners of files are remembered"]);
    check(&["--user=1000", open], false, &["unmask=ALL", "systempaths=unconfined"]);
    // Where the filter lets nobody have a user namespace.
    let refusing = users.path("refusing.json");
    let errno =
        |names: &[&str]| json!({ "names": names, "action": "SCMP_ACT_ERRNO", "errnoRet": 1 });
    let profile = json!({ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [errno(&["unshare"])] });
    write(&refusing, &profile.to_string());
    let refusing = format!("--security-opt=seccomp={}", refusing.display());
    let hint = "--security-opt seccomp=unconfined";
    check(&[&refusing], false, &["cannot make a user namespace", hint]);
    // Where only the host name is refused.
    let nameless = users.path("nameless.json");
    let profile =
        json!({ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [errno(&["sethostname"])] });
    write(&nameless, &profile.to_string());
    let nameless = format!("--security-opt=seccomp={}", nameless.display());
    check(&[&nameless, unmasked], true, &["forbids `sethostname`", hint]);
}

/// Runs rbuild as a user with one id, inside what `script` makes before it executes its arguments.
fn build_after(users: &Users, script: &str) -> Outcome {
    let rbuild = users.rbuild(User::Single);
    let mut args: Vec<_> = rbuild.get_args().map(ToOwned::to_owned).collect();
    let program = args.pop().unwrap();
    let mut command = Command::new(rbuild.get_program());
    command.args(args).args(["unshare", "-Ur", "sh", "-c", script, "sh"]).arg(program);
    command.env_clear();
    command.envs(rbuild.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let base = users.base("busybox", busybox());
    command.args(["build", "--progress", "plain", &base]).arg(users.path("context"));
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    Outcome::of(command.spawn().unwrap())
}

#[test]
fn user_namespaces_can_be_nested_or_used_up() {
    if lacking(&[&user::NEEDED[..], &[Need::Program("busybox")]].concat()) {
        return;
    }
    let users = Users::new();
    write(users.path("context/Dockerfile"), DOCKERFILE);
    let nested = build_after(&users, "exec \"$@\"");
    assert!(nested.status.success(), "{nested}");
    nested.assert_stderr_has(&["owner 5:6"]);
    let capabilities = "setpriv --bounding-set=-all --inh-caps=-all";
    let used_up =
        format!("echo 0 > /proc/sys/user/max_user_namespaces && exec {capabilities} \"$@\"");
    let used_up = build_after(&users, &used_up);
    assert_eq!(used_up.status.code(), Some(3), "{used_up}");
    used_up.assert_stderr_has(&["cannot make a user namespace", "user.max_user_namespaces"]);
}
