//! Limits of memory, processors, processes and time: a step that goes beyond them fails at its line
//! and harms nothing else.

use std::time::{Duration, Instant};

use crate::needs::{self, lacking};
use crate::rbuild::{Rbuild, Run, write};

/// Builds busybox with `script` as the third line, limited by `flags`.
fn build(rbuild: &Rbuild, flags: &[&str], script: &str) -> Run {
    let text = format!("FROM busybox\nRUN echo fine\nRUN {script}\n");
    write(rbuild.home.path().join("context/Dockerfile"), &text);
    let run = rbuild.build(rbuild.home.path().join("context"));
    run.args(flags).args(["-o", "type=cacheonly"])
}

#[test]
fn a_step_without_memory_left_is_told_so_with_its_line() {
    if lacking(&needs::STEPS) {
        return;
    }
    let rbuild = Rbuild::new();
    let outcome = build(&rbuild, &["-m", "32m"], "tail -c 200000000 /dev/zero").exits(1);
    outcome.assert_stderr_has(&[
        "was killed for want of memory (its limit, `--memory`, is 33554432 bytes)",
        "Dockerfile:3:1",
    ]);
    assert_eq!(rbuild.leftovers(), Vec::<std::path::PathBuf>::new());
    // Limits are in no key: the step that succeeded is known without them, too.
    let next = build(&rbuild, &[], "true").succeeds();
    assert!(next.step("RUN echo fine").cached, "{next}");
}

#[test]
fn a_step_that_takes_too_long_ends_with_its_line() {
    if lacking(&needs::STEPS) {
        return;
    }
    let rbuild = Rbuild::new();
    let start = Instant::now();
    let outcome =
        build(&rbuild, &["--timeout", "1s"], "echo so far; (setsid sleep 600 &); sleep 600");
    let outcome = outcome.exits(1);
    assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
    outcome.assert_stderr_has(&["was still running after 1 s", "Dockerfile:3:1", "\nso far\n"]);
    assert_eq!(rbuild.leftovers(), Vec::<std::path::PathBuf>::new());
}

#[test]
fn processes_and_processors_are_limited() {
    if lacking(&needs::STEPS) {
        return;
    }
    let rbuild = Rbuild::new();
    let flags = ["--pids-limit", "20", "--cpus", "0.5", "--cpuset-cpus", "0"];
    let bomb = "grep -qx 'Cpus_allowed_list:\t0' /proc/self/status && for i in $(seq 100); do sleep 9 & done";
    build(&rbuild, &flags, bomb).exits(1).assert_stderr_has(&["can't fork", "Dockerfile:3:1"]);
    build(&rbuild, &["--cpuset-cpus", "4000"], "true")
        .exits(3)
        .assert_stderr_has(&["`--cpuset-cpus` cannot be kept", "Dockerfile:3:1"]);
    build(&rbuild, &["--memory-swap", "1g"], "true")
        .exits(2)
        .assert_stderr_has(&["it needs `--memory`"]);
}
