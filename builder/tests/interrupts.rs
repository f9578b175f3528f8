//! Stopping rbuild in the middle: every process of the build ends, and the next build is right.

use std::process::Child;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::archive::OciArchive;
use crate::needs::{self, lacking};
use crate::rbuild::{Outcome, Rbuild, context, scratch};

#[test]
fn ctrl_c_ends_every_process() {
    check(Signal::INT, Some(130));
}

#[test]
fn sigterm_ends_every_process() {
    check(Signal::TERM, Some(143));
}

#[test]
fn sigkill_ends_every_process() {
    check(Signal::KILL, None);
}

/// Stops a build whose step sleeps, with children of its own; rbuild ends with `code`.
#[track_caller]
fn check(signal: Signal, code: Option<i32>) {
    if lacking(&needs::STEPS) {
        return;
    }
    let rbuild = Rbuild::new();
    // Seconds that no other process on this machine sleeps.
    let seconds = format!("9{}.{}", std::process::id(), signal.as_raw());
    let context = context(&[(
        "Dockerfile",
        &format!(
            "FROM busybox AS kept\nRUN echo kept > /kept\n\
             FROM kept\nRUN (trap '' INT TERM HUP; setsid sleep {seconds}) & sleep {seconds}\n"
        ),
    )]);
    let mut child = rbuild.build(&context).on_terminal().start();
    wait_until("both sleep", || sleeping(&seconds) == 2, &mut child);
    if code.is_none() {
        // What was finished a moment ago may not be written down. Who wants to have it waits for that.
        let kept = rbuild.build(&context).args(["--target", "kept"]).succeeds();
        assert!(kept.step("RUN echo kept > /kept").cached, "{kept}");
    }
    kill_process(Pid::from_child(&child), signal).unwrap();
    let start = Instant::now();
    let outcome = Outcome::of(child);
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}\n{outcome}", start.elapsed());
    assert_eq!(outcome.status.code(), code, "{outcome}");
    // rbuild waits for them where it can; the kernel ends them where it cannot.
    let start = Instant::now();
    while sleeping(&seconds) > 0 {
        assert!(start.elapsed() < Duration::from_secs(5), "a process is left behind\n{outcome}");
        std::thread::sleep(Duration::from_millis(10));
    }

    // The next build in the same state folder is right, and uses what was finished.
    let text = fs_err::read_to_string(context.path().join("Dockerfile")).unwrap();
    let quick = text.replace(&seconds, "0.01");
    fs_err::write(context.path().join("Dockerfile"), quick).unwrap();
    let out = scratch();
    let next = rbuild.build(&context).output("type=local", out.path()).succeeds();
    assert!(next.step("RUN echo kept > /kept").cached, "{next}");
    assert_eq!(fs_err::read_to_string(out.path().join("kept")).unwrap(), "kept\n");
    assert_eq!(rbuild.leftovers(), Vec::<std::path::PathBuf>::new());
    let mounts = fs_err::read_to_string("/proc/self/mounts").unwrap();
    assert!(!mounts.contains(rbuild.root.to_str().unwrap()), "{mounts}");
}

#[track_caller]
fn wait_until(what: &str, mut reached: impl FnMut() -> bool, child: &mut Child) {
    let start = Instant::now();
    while !reached() {
        if let Some(status) = child.try_wait().unwrap() {
            let mut said = String::new();
            std::io::Read::read_to_string(child.stderr.as_mut().unwrap(), &mut said).unwrap();
            panic!("ended ({status}) before {what}\n{said}");
        }
        assert!(start.elapsed() < Duration::from_mins(1), "not within a minute: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// How many processes on this machine sleep so long.
fn sleeping(seconds: &str) -> usize {
    fs_err::read_dir("/proc")
        .unwrap()
        // A process may be gone before it is looked at.
        .filter_map(|entry| fs_err::read(entry.ok()?.path().join("cmdline")).ok())
        .filter(|line| {
            let mut words = line.split(|byte| *byte == 0);
            words.next() == Some(b"sleep") && words.next() == Some(seconds.as_bytes())
        })
        .count()
}

#[test]
fn killed_at_any_moment_the_next_build_is_right() {
    if lacking(&needs::STEPS) {
        return;
    }
    let context = context(&[
        (
            "Dockerfile",
            "FROM busybox AS a\nCOPY files /files\nRUN ls /files > /list\nRUN wc /list > /count\n\
          FROM busybox\nCOPY --from=a /list /count /\nRUN cat /list /count > /both\n",
        ),
        ("files/one", "1\n"),
        ("files/two", "2\n"),
    ]);
    let build = |rbuild: &Rbuild| {
        let tar = rbuild.home.path().join("image.tar");
        let run = rbuild.build(&context).env("SOURCE_DATE_EPOCH", "1700000000");
        (run.output("type=oci,rewrite-timestamp=true", &tar), tar)
    };
    let undisturbed = Rbuild::new();
    let (run, tar) = build(&undisturbed);
    let start = Instant::now();
    run.succeeds();
    let whole = start.elapsed();
    let expected = OciArchive::open(&tar).digest;

    for moment in 0..40_u32 {
        let rbuild = Rbuild::new();
        let mut child = build(&rbuild).0.start();
        std::thread::sleep(whole * moment / 40);
        // Both may have happened already: the build may be done.
        let _ = child.kill();
        let _ = Outcome::of(child);
        let (run, tar) = build(&rbuild);
        run.succeeds();
        assert_eq!(
            OciArchive::open(&tar).digest,
            expected,
            "killed after {:?}",
            whole * moment / 40
        );
        assert_eq!(rbuild.leftovers(), Vec::<std::path::PathBuf>::new());
    }
}
