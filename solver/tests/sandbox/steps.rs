//! What a step sees and what it leaves.

use rbuild_solver::graph::NetworkMode;
use rbuild_solver::sandbox::{ExitStatus, Sandbox};

use crate::Test;
use crate::fixture::{Fixture, has_users, runtime};

pub(crate) const TESTS: &[Test] = &[
    ("output_and_exit_code_come_back", output_and_exit_code_come_back),
    ("a_missing_program_fails_the_step", a_missing_program_fails_the_step),
    ("the_environment_is_what_is_given", the_environment_is_what_is_given),
    ("devices_are_those_of_every_machine", devices_are_those_of_every_machine),
    ("only_proc_and_sys_are_left_behind", only_proc_and_sys_are_left_behind),
    ("no_network_is_loopback_only", no_network_is_loopback_only),
    ("the_default_network_is_its_own", the_default_network_is_its_own),
    ("steps_are_fast", steps_are_fast),
];

fn output_and_exit_code_come_back() {
    let fixture = Fixture::new();
    let outcome = fixture.run(fixture.shell("echo out; echo err >&2; exit 3"));
    assert_eq!(outcome.status, ExitStatus::Code(3));
    assert_eq!((outcome.stdout.as_str(), outcome.stderr.as_str()), ("out\n", "err\n"));
}

fn a_missing_program_fails_the_step() {
    let fixture = Fixture::new();
    let outcome = fixture.run(fixture.command(&["nosuch", "x"]));
    assert_eq!(outcome.status, ExitStatus::Code(1));
    assert!(outcome.stderr.contains("`nosuch`"), "{}", outcome.stderr);
}

fn the_environment_is_what_is_given() {
    let fixture = Fixture::new();
    assert_eq!(fixture.run(fixture.command(&["env"])).success(), "PATH=/bin\nA=b c");
    assert_eq!(
        fixture.output("echo $$; pwd; hostname; umask; cat /etc/hosts; cat /etc/resolv.conf"),
        "1\n/\nbuildkitsandbox\n0022\n127.0.0.1\tlocalhost buildkitsandbox\nnameserver 192.0.2.1"
    );
    assert_eq!(
        fixture.output(
            "test $(ls /proc | grep -c '^[0-9]') -lt 6 && echo few; readlink /proc/self/fd/0; ls /proc/self/fd | wc -l"
        ),
        "few\n/dev/null\n4"
    );
}

fn devices_are_those_of_every_machine() {
    let fixture = Fixture::new();
    assert_eq!(
        fixture.output("ls /dev | tr '\\n' ' '; echo x > /dev/null; head -c 3 /dev/zero | wc -c; df -k /dev/shm | tail -1 | awk '{print $2}'"),
        "core fd full mqueue null ptmx pts random shm stderr stdin stdout tty urandom zero 3\n65536"
    );
}

fn only_proc_and_sys_are_left_behind() {
    let fixture = Fixture::new();
    let outcome = fixture.run(fixture.shell("true"));
    assert_eq!(outcome.layer(), ["dev", "proc", "sys"]);
    let mut process = fixture.shell("touch x");
    process.cwd = "/new/folder".into();
    process.user.uid = if has_users() { 5 } else { 0 };
    let outcome = fixture.run(process);
    assert_eq!(outcome.layer(), ["dev", "new", "new/folder", "new/folder/x", "proc", "sys"]);
}

fn no_network_is_loopback_only() {
    let fixture = Fixture::new();
    let mut process = fixture
        .shell("ip -o link | cut -d: -f2 | head -1; ip -o addr show dev lo | grep -c 127.0.0.1");
    process.network = NetworkMode::None;
    assert_eq!(fixture.run(process).success(), " lo\n1");
}

/// A server on the host's loopback cannot be reached, one name server can, and steps share the
/// network.
fn the_default_network_is_its_own() {
    if !["/usr/bin/pasta", "/usr/bin/slirp4netns"].iter().any(|path| fs_err::exists(path).unwrap())
    {
        println!("    neither pasta nor slirp4netns is installed");
        return;
    }
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let fixture = Fixture::new();
    let run = |script: &str| {
        let mut process = fixture.shell(script);
        process.network = NetworkMode::Default;
        process.resolv_conf = b"nameserver 127.0.0.53\n".to_vec();
        let start = std::time::Instant::now();
        let outcome = fixture.run(process);
        println!("    {} ms {}", start.elapsed().as_millis(), outcome.stderr.trim());
        outcome
    };
    let outcome =
        run("readlink /proc/self/ns/net; ip -o link show eth0 | grep -c UP; cat /etc/resolv.conf");
    if outcome.stderr.contains("steps use the network of this machine") {
        println!("    this machine reaches nothing");
        return;
    }
    let lines: Vec<_> = outcome.stdout.lines().map(ToOwned::to_owned).collect();
    let host = fs_err::read_link("/proc/self/ns/net").unwrap();
    assert_ne!(lines[0], host.to_str().unwrap());
    assert_eq!(lines[1], "1");
    assert!(
        ["nameserver 169.254.1.53", "nameserver 10.0.2.3"].contains(&lines[2].as_str()),
        "{lines:?}"
    );
    assert_eq!(run("readlink /proc/self/ns/net").success(), lines[0]);
    let gateway = "$(ip route | awk '/^default/ {print $3}')";
    let script = format!(
        "for a in 127.0.0.1 {gateway}; do echo x | nc -w 1 $a {port} && echo reached $a; done; true"
    );
    assert_eq!(run(&script).success(), "");
}

/// Prints what a step costs besides its command. The figure to compare it with is that of
/// `bench/sandbox`.
fn steps_are_fast() {
    let fixture = Fixture::new();
    fixture.output("true");
    let runtime = runtime();
    let mut times: Vec<_> = (0..100)
        .map(|_| {
            let process = fixture.command(&["/bin/true"]);
            let start = std::time::Instant::now();
            let status = runtime.block_on(fixture.sandbox.run(process, Box::new(|_, _| ())));
            assert_eq!(status.unwrap(), ExitStatus::Code(0));
            start.elapsed().as_micros()
        })
        .collect();
    times.sort_unstable();
    println!("    {} us a step at best, {} us in the middle", times[0], times[50]);
    // Where owners are remembered, one more process is asked about every file that is opened.
    let most = if has_users() { 20_000 } else { 60_000 };
    assert!(times[0] < if is_emulated() { 50 * most } else { most });
}

/// Whether `testdata/kernel.sh` runs this on a machine on which everything takes long.
#[allow(clippy::disallowed_methods, reason = "a test is asked by its environment")]
fn is_emulated() -> bool {
    std::env::var_os("RBUILD_EMULATED").is_some()
}
