//! The network of steps that ask for none in particular, through each program that can connect it.

use std::path::Path;
use std::process::Command;

use crate::base::busybox;
use crate::needs::{Need, lacking};
use crate::rbuild::{Outcome, write};
use crate::user::{self, User, Users};

/// Makes programs that are not to be found no programs, and executes the rest.
const WITHOUT: &str =
    "for program in $1; do mount --bind /dev/null \"$program\"; done; shift; exec \"$@\"";

/// Builds as `user` on a machine that has only `program`; what the step says of its network.
fn network_by(users: &Users, user: User, base: &str, program: Option<&str>) -> Outcome {
    let hidden: Vec<String> = ["pasta", "slirp4netns"]
        .into_iter()
        .filter(|name| Some(*name) != program)
        .flat_map(|name| ["/usr/bin", "/bin", "/usr/local/bin"].map(|f| format!("{f}/{name}")))
        .filter(|path| Path::new(path).exists())
        .collect();
    let rbuild = users.rbuild(user);
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", WITHOUT, "sh"]).arg(hidden.join(" "));
    command.arg(rbuild.get_program()).args(rbuild.get_args()).env_clear();
    command.envs(rbuild.get_envs().filter_map(|(name, value)| Some((name, value?))));
    command.args(["build", "--progress", "plain", "--no-cache", base, "-o", "type=cacheonly"]);
    command.arg(users.path("context")).stdin(std::process::Stdio::null());
    let outcome = crate::rbuild::Run::of(command).run();
    assert!(outcome.status.success(), "as {user:?} with {program:?}: {outcome}");
    outcome
}

#[test]
fn pasta_and_slirp4netns_each_connect_steps() {
    let programs = ["busybox", "pasta", "slirp4netns"].map(Need::Program);
    if lacking(&[&user::NEEDED[..], &programs].concat()) {
        return;
    }
    let users = Users::new();
    let base = users.base("busybox", busybox());
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || listener.incoming().for_each(drop));
    // What listens on the host's loopback is reached neither there nor at the way out.
    let dockerfile = format!(
        "FROM busybox\nRUN cat /etc/resolv.conf; ip -o addr show | sed 's/^/has /'; \\\n\
         for a in 127.0.0.1 $(ip route | awk '/^default/ {{print $3}}'); do \\\n\
         echo x | nc -w 1 $a {port} && echo reached-$((40+2)); done; echo end\n"
    );
    write(users.path("context/Dockerfile"), &dockerfile);
    let reached = "reached-42";
    for user in User::ALL {
        for (program, name_server) in [("pasta", "169.254.1.53"), ("slirp4netns", "10.0.2.3")] {
            let outcome = network_by(&users, user, &base, Some(program));
            if outcome.stderr.contains("steps use the network of this machine") {
                // A machine that reaches nothing has nothing to be connected to.
                assert!(outcome.stderr.contains(&format!("{program} failed: ")), "{outcome}");
                continue;
            }
            outcome.assert_stderr_has(&[&format!("nameserver {name_server}"), "has "]);
            assert!(!outcome.stderr.contains(reached), "as {user:?} by {program}: {outcome}");
        }
    }
    let outcome = network_by(&users, User::Root, &base, None);
    let why = "neither pasta nor slirp4netns is installed: steps use the network of this machine";
    assert_eq!(outcome.stderr.matches(why).count(), 1, "{outcome}");
    outcome.assert_stderr_has(&[reached]);
}
