//! What a RUN step sees and may do, looked at from its inside.

use std::path::Path;

use crate::archive::OciArchive;
use crate::needs::{self, lacking};
use crate::rbuild::{Outcome, Rbuild, context, scratch};

/// Runs `script` as a step; gives what it wrote to `/said`.
#[track_caller]
fn said(flags: &[&str], script: &str) -> String {
    let (rbuild, out) = (Rbuild::new(), scratch());
    let context = context(&[
        ("Dockerfile", "FROM busybox\nCOPY probe /probe\nRUN sh /probe > /said 2>&1\n"),
        ("probe", script),
    ]);
    rbuild
        .build(&context)
        .args(flags)
        .env("LEAK_PROBE", "of the caller")
        .output("type=local", out.path())
        .succeeds();
    fs_err::read_to_string(out.path().join("said")).unwrap()
}

#[test]
fn capabilities_and_seccomp_are_dockers() {
    if lacking(&needs::STEPS) {
        return;
    }
    let status = said(&[], "grep -E '^(Cap|Seccomp:)' /proc/self/status");
    assert_eq!(
        status,
        "CapInh:\t0000000000000000\n\
         CapPrm:\t00000000a80425fb\n\
         CapEff:\t00000000a80425fb\n\
         CapBnd:\t00000000a80425fb\n\
         CapAmb:\t0000000000000000\n\
         Seccomp:\t2\n"
    );
}

#[test]
fn namespaces_are_its_own() {
    if lacking(&needs::STEPS) {
        return;
    }
    let kinds = ["pid", "mnt", "ipc", "uts", "cgroup"];
    let inside = said(&[], "for ns in pid mnt ipc uts cgroup; do readlink /proc/self/ns/$ns; done");
    assert_eq!(inside.lines().count(), kinds.len(), "{inside}");
    for (kind, inside) in kinds.iter().zip(inside.lines()) {
        let outside = fs_err::read_link(Path::new("/proc/self/ns").join(kind)).unwrap();
        assert_ne!(outside.to_str(), Some(inside));
    }
    let processes = said(&[], "ls -d /proc/[0-9]* | wc -l").trim().parse::<u32>().unwrap();
    assert!(processes < 10, "{processes} processes");
}

#[test]
fn environment_and_descriptors_are_not_the_callers() {
    if lacking(&needs::STEPS) {
        return;
    }
    assert_eq!(said(&[], "env | grep -c LEAK_PROBE || true"), "0\n");
    assert_eq!(said(&[], "tr '\\0' '\\n' < /proc/1/environ | grep -c LEAK_PROBE || true"), "0\n");
    // 3 is the folder that ls reads.
    assert_eq!(said(&[], "ls /proc/self/fd | tr '\\n' ' '"), "0 1 2 3 ");
}

#[test]
fn no_network_means_only_the_loopback() {
    if lacking(&needs::STEPS) {
        return;
    }
    let interfaces = "sed -n 's/^ *\\([^ ]*\\):.*/\\1/p' /proc/net/dev";
    assert_eq!(said(&["--network", "none"], interfaces), "lo\n");
}

#[test]
fn the_kernel_is_out_of_reach() {
    if lacking(&needs::STEPS) {
        return;
    }
    let probes = "\
try() { \"$@\" > /dev/null 2>&1 && echo \"allowed: $*\"; }
try mount -t tmpfs none /mnt
try unshare -U true
try unshare -m true
try mknod /tmp/disk b 8 0 && try head -c1 /tmp/disk
try dd if=/proc/kcore of=/dev/null bs=1 count=1
[ \"$(head -c1 /proc/kcore 2> /dev/null | wc -c)\" = 0 ] || echo readable: kcore
[ \"$(head -c1 /proc/timer_list 2> /dev/null | wc -c)\" = 0 ] || echo readable: timer_list
try sh -c 'echo h > /proc/sysrq-trigger'
try sh -c 'echo x > /proc/sys/kernel/hostname'
try touch /sys/probe
date -s \"@$(date +%s)\" 2>&1 | grep -q set || echo allowed: date -s
try sh -c 'echo 1 > /sys/fs/cgroup/cgroup.procs'
ls /dev | tr '\\n' ' '
";
    // mknod is allowed, as in Docker; opening the device is not.
    let expected_devices = [
        "console", "core", "fd", "full", "mqueue", "null", "ptmx", "pts", "random", "shm",
        "stderr", "stdin", "stdout", "tty", "urandom", "zero",
    ];
    let said = said(&[], probes);
    let (refused, devices) = said.rsplit_once('\n').unwrap_or(("", &said));
    let surprises: Vec<_> = refused
        .lines()
        .filter(|line| !line.contains("mknod") && !line.contains("if=/proc/kcore"))
        .collect();
    assert_eq!(surprises, Vec::<&str>::new());
    let unknown: Vec<_> =
        devices.split_whitespace().filter(|name| !expected_devices.contains(name)).collect();
    assert_eq!(unknown, Vec::<&str>::new());
}

#[test]
fn devices_and_folders_that_programs_expect_are_there() {
    if lacking(&needs::STEPS) {
        return;
    }
    let script = "\
echo x > /dev/null && head -c4 /dev/zero | wc -c && head -c4 /dev/urandom | wc -c
[ -c /dev/tty ] && [ -d /dev/pts ] && [ -d /dev/shm ] && touch /dev/shm/x && echo shm
readlink /dev/fd && grep -c nameserver /etc/resolv.conf | sed 's/[1-9][0-9]*/some/'
grep -c localhost /etc/hosts | sed 's/[1-9][0-9]*/some/'
stat -c %a /tmp
";
    assert_eq!(said(&[], script), "4\n4\nshm\n/proc/self/fd\nsome\nsome\n1777\n");
}

#[test]
fn mounted_files_stay_out_of_the_layer() {
    if lacking(&needs::STEPS) {
        return;
    }
    let (rbuild, out) = (Rbuild::new(), scratch());
    let tar = out.path().join("image.tar");
    let context = context(&[(
        "Dockerfile",
        "FROM busybox\nRUN cat /etc/hosts /etc/resolv.conf && touch /new /dev/shm/x\n",
    )]);
    rbuild.build(&context).output("type=oci", &tar).succeeds();
    let names = OciArchive::open(&tar).names_in_last_layer();
    let names: Vec<_> = names.iter().map(|name| name.trim_end_matches('/')).collect();
    assert!(names.contains(&"new"), "{names:?}");
    for mounted in ["etc/hosts", "etc/resolv.conf", "dev/null", "dev/shm/x", "proc/1"] {
        assert!(!names.contains(&mounted), "{mounted} in {names:?}");
    }
}

#[test]
fn a_step_ends_with_its_command() {
    if lacking(&needs::STEPS) {
        return;
    }
    let start = std::time::Instant::now();
    said(&[], "sleep 600 & setsid sleep 600 & echo started");
    assert!(start.elapsed() < std::time::Duration::from_mins(1), "{:?}", start.elapsed());
}

#[test]
fn user_and_working_directory_hold_in_a_step() {
    if lacking(&needs::STEPS) {
        return;
    }
    let (rbuild, out) = (Rbuild::new(), scratch());
    let context = context(&[(
        "Dockerfile",
        "FROM busybox\nRUN mkdir -m 1777 /open\nUSER nobody\nWORKDIR /open/deep\n\
         RUN (id -un; pwd; echo $HOME) > /open/said; touch /etc/x 2>> /dev/null; [ ! -e /etc/x ]\n",
    )]);
    rbuild.build(&context).output("type=local", out.path()).succeeds();
    let said = fs_err::read_to_string(out.path().join("open/said")).unwrap();
    assert_eq!(said, "nobody\n/open/deep\n/home\n");
}

#[test]
fn rbuild_opens_many_files_and_steps_as_many_as_the_caller_may() {
    if lacking(&needs::STEPS) {
        return;
    }
    let rbuild = Rbuild::new();
    let text = "FROM busybox\nRUN echo soft $(ulimit -Sn) hard $(ulimit -Hn) && sleep 1\n";
    let context = context(&[("Dockerfile", text)]);
    let limited = rbuild.build(&context).under(&["prlimit", "--nofile=300:5000"]);
    let child = limited.start();
    let limits = format!("/proc/{}/limits", child.id());
    let mut raised = false;
    while let Ok(text) = fs_err::read_to_string(&limits) {
        let line = text.lines().find(|line| line.starts_with("Max open files"));
        raised |= line.is_some_and(|line| line.split_whitespace().nth(3) == Some("5000"));
        if raised || line.is_none() {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    let outcome = Outcome::of(child);
    assert!(raised, "{outcome}");
    assert!(outcome.status.success(), "{outcome}");
    outcome.assert_stderr_has(&["soft 300 hard 5000"]);
}
