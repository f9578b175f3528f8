//! What a step cannot reach of the processes that run it, and of the machine, by force or by speed.

use rbuild_solver::graph::{NetworkMode, SecurityMode};
use rbuild_solver::sandbox::{ExitStatus, SandboxMountSource};

use crate::Test;
use crate::fixture::{Fixture, mount};
use crate::isolation::probe;

pub(crate) const TESTS: &[Test] = &[
    ("helpers_are_out_of_reach", helpers_are_out_of_reach),
    (
        "sockets_without_a_path_need_the_hosts_network",
        sockets_without_a_path_need_the_hosts_network,
    ),
    ("terminals_and_groups_are_out_of_reach", terminals_and_groups_are_out_of_reach),
    ("races_on_paths_lead_nowhere", races_on_paths_lead_nowhere),
    ("what_is_made_at_once_has_its_owner", what_is_made_at_once_has_its_owner),
    ("mounts_of_insecure_steps_stay_inside", mounts_of_insecure_steps_stay_inside),
    ("environments_beyond_the_kernels_are_told", environments_beyond_the_kernels_are_told),
];

/// The server, the supervisor, the keeper, and descriptors of any of them.
fn helpers_are_out_of_reach() {
    let fixture = Fixture::new();
    for security in [SecurityMode::Sandbox, SecurityMode::Insecure] {
        let mut process = probe(&fixture, crate::probe::HELPERS);
        process.security = security;
        let output = fixture.run(process).success();
        println!("P22 {output}");
        let expected = "its own child in 4 / 4 ways, reached 0 / 65536 processes and 0 descriptors";
        assert_eq!(output, expected);
    }
}

/// What listens on the machine by a name that is no path, as desktops do, is out of reach like its
/// loopback.
fn sockets_without_a_path_need_the_hosts_network() {
    use std::os::linux::net::SocketAddrExt as _;
    use std::os::unix::net::{SocketAddr, UnixListener};
    let fixture = Fixture::new();
    let name = format!("rbuild-test-{}", std::process::id());
    let address = SocketAddr::from_abstract_name(&name).unwrap();
    let _listener = UnixListener::bind_addr(&address).unwrap();
    for (network, expected) in
        [(NetworkMode::None, "ConnectionRefused"), (NetworkMode::Host, "connected")]
    {
        let mut process = probe(&fixture, crate::probe::ABSTRACT);
        process.args.push(name.clone());
        process.network = network;
        assert_eq!(fixture.run(process).success(), expected, "{network:?}");
    }
}

fn terminals_and_groups_are_out_of_reach() {
    let fixture = Fixture::new();
    let output = fixture.run(probe(&fixture, crate::probe::TERMINAL)).success();
    assert_eq!(output, "typed nothing");
    // What stops all that it can stops neither what is outside nor the step's first process, which
    // waits without help of others.
    let script = "(echo -1000 > /proc/self/oom_score_adj) 2>/dev/null && echo spared
        nice -n -5 true 2>/dev/null && echo hastened
        (kill -STOP 0; kill -STOP -1) & kill -STOP 1; kill -STOP 0
        i=0; while [ $i -lt 300000 ]; do i=$((i+1)); done; echo alive";
    let output = fixture.run(fixture.shell(script)).stdout;
    assert_eq!(output, "alive\n");
    assert_eq!(fixture.output("echo next"), "next");
}

/// Where rbuild answers calls about files, the name in memory and what it leads to change between
/// question and answer.
fn races_on_paths_lead_nowhere() {
    let fixture = Fixture::new();
    let marker = format!("raced-{}", std::process::id());
    let mut process = probe(&fixture, crate::probe::RACE);
    process.args.push(marker.clone());
    let output = fixture.run(process).success();
    let outside = fixture.folder.path().join("layer").join(&marker);
    for path in [outside, format!("/{marker}").into(), format!("/proc/{marker}").into()] {
        assert!(fs_err::symlink_metadata(&path).is_err(), "{}", path.display());
    }
    assert!(!output.starts_with("0 "), "nothing was raced for: {output}");
    println!("P22 escapes 0 / {output}");
}

/// Where rbuild makes the files of users: also while the folder that they are made in is made.
fn what_is_made_at_once_has_its_owner() {
    let fixture = Fixture::new();
    let output = fixture.run(probe(&fixture, crate::probe::FOLDERS)).success();
    assert_eq!(output, "wrong owners 0 / 900");
}

/// Such a step may mount what it likes; not even a shared mount takes that outside.
fn mounts_of_insecure_steps_stay_inside() {
    let fixture = Fixture::new();
    let folder = fixture.folder.path().join("bound");
    fs_err::create_dir(&folder).unwrap();
    let script = "mount -o rshared none / 2>/dev/null; mount --make-rshared / 2>/dev/null
        mount -t tmpfs x /bound && mkdir /bound/sub && mount -t tmpfs y /bound/sub && echo mounted
        touch /bound/sub/made";
    let mut process = fixture.shell(script);
    process.security = SecurityMode::Insecure;
    process.network = NetworkMode::Host;
    let source = SandboxMountSource::Bind { root: folder.clone(), path: String::new() };
    process.mounts.push(mount("/bound", source));
    let mounts = || {
        let mounts = fs_err::read_to_string("/proc/self/mountinfo").unwrap();
        let name = fixture.folder.path().to_str().unwrap();
        mounts.lines().filter(|line| line.contains(name)).count()
    };
    let before = mounts();
    assert_eq!(fixture.run(process).success(), "mounted");
    assert_eq!((mounts(), fs_err::read_dir(&folder).unwrap().count()), (before, 0));
}

/// The kernel takes 128 KiB for one variable, and a quarter of the stack's limit for all.
fn environments_beyond_the_kernels_are_told() {
    let fixture = Fixture::new();
    let long = vec![format!("V={}", "x".repeat(200_000))];
    let many = (0..80).map(|number| format!("V{number}={}", "x".repeat(100_000))).collect();
    for (environment, told) in
        [(long, "the variable `V` has 200000 bytes"), (many, "arguments and environment have 8000")]
    {
        let mut process = fixture.shell("echo ran");
        process.env.extend(environment);
        let outcome = fixture.run(process);
        assert_eq!((&*outcome.stdout, outcome.status), ("", ExitStatus::Code(1)));
        assert!(outcome.stderr.contains(told), "{}", outcome.stderr);
    }
    let mut process = fixture.shell("echo ${#V}");
    process.env.push(format!("V={}", "x".repeat(120_000)));
    assert_eq!(fixture.run(process).success(), "120000");
}
