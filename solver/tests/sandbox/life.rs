//! That a step's processes end: with the step, with the future, with rbuild.

use std::collections::BTreeSet;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rbuild_solver::graph::{NetworkMode, SecurityMode};
use rbuild_solver::sandbox::{ExitStatus, Sandbox};

use crate::Test;
use crate::fixture::{Fixture, runtime};

pub(crate) const TESTS: &[Test] = &[
    ("background_processes_end_with_the_step", background_processes_end_with_the_step),
    ("a_dropped_step_is_gone_at_once", a_dropped_step_is_gone_at_once),
    ("killing_rbuild_kills_its_steps", killing_rbuild_kills_its_steps),
    ("a_signal_is_told_from_a_code", a_signal_is_told_from_a_code),
    ("floods_of_output_pass_through", floods_of_output_pass_through),
    ("fork_bombs_are_bounded", fork_bombs_are_bounded),
    ("steps_run_side_by_side", steps_run_side_by_side),
    ("a_dead_server_is_an_error_and_then_replaced", a_dead_server_is_an_error),
    ("only_the_server_hears_requests", only_the_server_hears_requests),
    ("what_is_made_ahead_fits_or_is_made_anew", what_is_made_ahead_fits),
    ("a_dead_spare_is_replaced", a_dead_spare_is_replaced),
];

/// Returns how long a step sleeps, in seconds: a number by which its processes are known, other
/// than those of the same test that runs elsewhere on the machine.
fn sleep_of(test: u32) -> String {
    format!("{test}{:07}", std::process::id())
}

/// Returns how many processes on this machine have `word` in their command line.
pub(crate) fn count(word: &str) -> usize {
    let entries = fs_err::read_dir("/proc").unwrap().filter_map(Result::ok);
    let lines = entries.filter_map(|entry| fs_err::read(entry.path().join("cmdline")).ok());
    lines.filter(|line| String::from_utf8_lossy(line).contains(word)).count()
}

pub(crate) fn wait_for(what: &str, condition: impl Fn() -> bool) -> Duration {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < Duration::from_secs(20), "{what}");
        std::thread::sleep(Duration::from_millis(2));
    }
    start.elapsed()
}

fn background_processes_end_with_the_step() {
    let fixture = Fixture::new();
    let script = "setsid sleep N & (sleep N &) ; nc -l -p 1 & sleep 0.1; ps | grep -c ' sleep N$'";
    let seconds = sleep_of(1);
    let script = &script.replace('N', &seconds);
    assert_eq!(fixture.output(script), "2");
    assert_eq!(count(&seconds), 0);
}

fn a_dropped_step_is_gone_at_once() {
    let fixture = Fixture::new();
    let seconds = sleep_of(2);
    let process = fixture.shell(&format!("setsid sleep {seconds} & sleep {seconds}"));
    runtime().block_on(async {
        let run = fixture.sandbox.run(process, Box::new(|_, _| ()));
        assert!(tokio::time::timeout(Duration::from_millis(300), run).await.is_err());
    });
    assert_eq!(count(&seconds), 0);
}

/// This program as another rbuild, which is then killed in every way.
fn killing_rbuild_kills_its_steps() {
    let seconds = sleep_of(5);
    // Whatever loses its parent becomes this process's child, so that nothing is overlooked.
    rustix::process::set_child_subreaper(Some(rustix::process::getpid())).unwrap();
    let mut slowest = Duration::ZERO;
    for signal in [libc::SIGKILL, libc::SIGTERM, libc::SIGINT, libc::SIGHUP] {
        // What a shell runs in the background has Ctrl-C ignored, and so have these tests.
        let mut rbuild = Command::new("env")
            .arg("--default-signal")
            .arg(std::env::current_exe().unwrap())
            .args([SLEEP, &seconds])
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        wait_for("the step starts", || count(&format!("sleep\0{seconds}")) == 2);
        let pid = rustix::process::Pid::from_child(&rbuild);
        let signal_type = rustix::process::Signal::from_named_raw(signal).unwrap();
        rustix::process::kill_process(pid, signal_type).unwrap();
        assert_eq!(rbuild.wait().unwrap().signal(), Some(signal));
        let start = Instant::now();
        wait_for("the step ends", || count(&seconds) == 0);
        wait_for("all of rbuild's processes end", || left_behind() == 0);
        println!("    signal {signal}: gone after {} ms", start.elapsed().as_millis());
        slowest = slowest.max(start.elapsed());
    }
    rustix::process::set_child_subreaper(None).unwrap();
    println!("P24 left behind 0, gone after at most {} ms / 4 signals", slowest.as_millis());
}

/// How many children this process has that still run; those that have ended are forgotten.
fn left_behind() -> usize {
    use rustix::process::{WaitId, WaitIdOptions, waitid};
    let ended = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
    while let Ok(Some(_)) = waitid(WaitId::All, ended) {}
    children(std::process::id()).len()
}

/// The argument that makes this program run a step that does not end.
pub(crate) const SLEEP: &str = "--run-a-step-that-sleeps";

pub(crate) fn sleep(seconds: &str) {
    let fixture = Fixture::new();
    fixture
        .output(&format!("trap '' HUP INT TERM; setsid sleep {seconds} & sleep {seconds}; true"));
}

fn a_signal_is_told_from_a_code() {
    let fixture = Fixture::new();
    // The first process of a namespace is immune to its own signals, as with BuildKit.
    let outcome = fixture.run(fixture.shell("kill -9 $$; echo alive; sh -c 'kill -9 $$'; exit $?"));
    assert_eq!((outcome.stdout.as_str(), outcome.status), ("alive\n", ExitStatus::Code(137)));
}

fn floods_of_output_pass_through() {
    let fixture = Fixture::new();
    let process = fixture.shell("yes 0123456789 | head -c 100000000; yes e | head -c 1000 >&2");
    let counts = Arc::new([const { std::sync::atomic::AtomicUsize::new(0) }; 2]);
    let sink = Arc::clone(&counts);
    let output = move |stream: u8, bytes: bytes::Bytes| {
        assert!(bytes.len() <= 128 * 1024);
        let count = &sink[usize::from(stream - 1)];
        count.fetch_add(bytes.len(), std::sync::atomic::Ordering::Relaxed);
    };
    let status = runtime().block_on(fixture.sandbox.run(process, Box::new(output))).unwrap();
    assert_eq!(status, ExitStatus::Code(0));
    assert_eq!(
        counts.each_ref().map(|count| count.load(std::sync::atomic::Ordering::Relaxed)),
        [100_000_000, 1000]
    );
}

/// The bomb goes on until it may not any more, or has 3000 processes; then it ends as any step.
fn fork_bombs_are_bounded() {
    let fixture = Fixture::new();
    let limit = fixture.output("cat /proc/sys/kernel/pid_max");
    println!("    at most {limit} processes here");
    let seconds = sleep_of(4);
    let script = format!("for i in $(seq 3000); do sleep {seconds} & done; echo forked");
    let mut process = fixture.shell(&script);
    process.network = NetworkMode::None;
    let start = Instant::now();
    assert_eq!(fixture.run(process).success(), "forked");
    println!("P25 3000 forks ended after {} ms", start.elapsed().as_millis());
    assert_eq!(count(&seconds), 0);
    assert_eq!(fixture.output("echo fine"), "fine");
}

fn steps_run_side_by_side() {
    let fixture = Fixture::new();
    let start = Instant::now();
    runtime().block_on(async {
        let steps = (0..20).map(|_| {
            let process = fixture.shell("sleep 2");
            fixture.sandbox.run(process, Box::new(|_, _| ()))
        });
        for status in futures::future::join_all(steps).await {
            assert_eq!(status.unwrap(), ExitStatus::Code(0));
        }
    });
    // One after another they take twice that; an emulator has time enough.
    assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
}

/// The process that steps are cloned from.
fn server() -> i32 {
    let is_server = |pid: &i32| {
        let line = fs_err::read(format!("/proc/{pid}/cmdline")).unwrap();
        String::from_utf8_lossy(&line).contains("__sandbox")
    };
    children(std::process::id()).into_iter().find(is_server).unwrap()
}

/// Steps that follow one another get what was made while the one before ran, if it is theirs.
fn what_is_made_ahead_fits() {
    let fixture = Fixture::new();
    let host = fs_err::read_link("/proc/self/ns/net").unwrap();
    let same = |inside: &str| host.to_str() == Some(inside);
    let script = "readlink /proc/self/ns/net; df -k /dev/shm | tail -1 | awk '{print $2}'
        mount -t tmpfs x /tmp 2>/dev/null && echo mounts || echo refused
        echo $$ $(ls /dev/shm | wc -l) $(ls /dev/left /tmp/left 2>/dev/null | wc -l)
        touch /dev/shm/left /dev/left /tmp/left; sleep 0.05";
    let (none, insecure) = (NetworkMode::None, SecurityMode::Insecure);
    let (shared, confined) = (NetworkMode::Host, SecurityMode::Sandbox);
    let steps = [
        (shared, confined, 64),
        (shared, confined, 1),
        (none, confined, 64),
        (none, confined, 2),
        (shared, confined, 64),
        (shared, insecure, 64),
        (shared, insecure, 3),
        (shared, confined, 64),
    ];
    for (network, security, megabytes) in steps {
        let mut process = fixture.shell(script);
        (process.network, process.security) = (network, security);
        process.shm_size = megabytes << 20;
        let output = fixture.run(process).success();
        let lines: Vec<&str> = output.lines().collect();
        assert_eq!(same(lines[0]), network == shared, "{output}");
        let mounts = if security == insecure { "mounts" } else { "refused" };
        let size = (megabytes << 10).to_string();
        assert_eq!(lines[1..], [&size, mounts, "1 0 0"]);
    }
}

fn a_dead_spare_is_replaced() {
    let fixture = Fixture::new();
    fixture.output("true");
    let server = server().cast_unsigned();
    for _ in 0..3 {
        // The supervisor of the step before may be one of them.
        wait_for("no more than a spare is left", || children(server).len() <= 1);
        let Some(spare) = children(server).first().copied() else {
            println!("    each step is in a control group here: there are no spares");
            return;
        };
        let spare = rustix::process::Pid::from_raw(spare).unwrap();
        rustix::process::kill_process(spare, rustix::process::Signal::KILL).unwrap();
        wait_for("it ends", || children(server).is_empty());
        assert_eq!(fixture.output("echo again"), "again");
    }
    drop(fixture);
    assert!(!Path::new(&format!("/proc/{server}")).exists());
}

/// Requests to a dead server cannot be sent, whatever else still ends: who sends one starts another.
fn only_the_server_hears_requests() {
    let fixture = Fixture::new();
    fixture.output("true");
    let server = server().cast_unsigned();
    let hears = sockets(server);
    assert!(!hears.is_empty());
    for child in children(server) {
        let both: Vec<_> = sockets(child.cast_unsigned()).intersection(&hears).cloned().collect();
        assert_eq!(both, Vec::<PathBuf>::new());
    }
}

/// The sockets that `process` has open.
fn sockets(process: u32) -> BTreeSet<PathBuf> {
    fs_err::read_dir(format!("/proc/{process}/fd"))
        .unwrap()
        .map(|entry| fs_err::read_link(entry.unwrap().path()).unwrap())
        .filter(|link| link.to_string_lossy().starts_with("socket:"))
        .collect()
}

fn a_dead_server_is_an_error() {
    let fixture = Fixture::new();
    fixture.output("true");
    let server = server();
    let seconds = sleep_of(3);
    let process = fixture.shell(&format!("sleep {seconds}"));
    runtime().block_on(async {
        let run = fixture.sandbox.run(process, Box::new(|_, _| ()));
        let kill = async {
            tokio::time::sleep(Duration::from_millis(300)).await;
            let pid = rustix::process::Pid::from_raw(server).unwrap();
            rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
        };
        let (result, ()) = tokio::join!(run, kill);
        assert!(result.unwrap_err().message.contains("ended unexpectedly"));
    });
    wait_for("the step ends", || count(&seconds) == 0);
    assert_eq!(fixture.output("echo again"), "again");
}

pub(crate) fn children(parent: u32) -> Vec<i32> {
    fs_err::read_to_string(format!("/proc/{parent}/task/{parent}/children"))
        .unwrap()
        .split_whitespace()
        .map(|pid| pid.parse().unwrap())
        .collect()
}
