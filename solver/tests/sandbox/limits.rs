//! Limits of memory, processors and processes, and the control groups that keep them.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rbuild_solver::sandbox::ExitStatus;
use rbuild_solver::sandbox::resources::Resources;

use crate::Test;
use crate::fixture::{Fixture, Outcome};
use crate::life::{count, wait_for};

pub(crate) const TESTS: &[Test] = &[
    ("memory_is_limited", memory_is_limited),
    ("a_killed_child_is_want_of_memory_too", a_killed_child_is_want_of_memory_too),
    ("processors_are_limited", processors_are_limited),
    ("processes_are_limited", processes_are_limited),
    ("a_group_of_the_callers_choice", a_group_of_the_callers_choice),
    ("what_cannot_be_kept_is_refused", what_cannot_be_kept_is_refused),
    ("no_group_stays", no_group_stays),
];

/// The folders of the groups that rbuild has made on this machine, wherever.
fn groups() -> Vec<PathBuf> {
    fn list(folder: &Path, depth: usize, found: &mut Vec<PathBuf>) {
        let Ok(entries) = fs_err::read_dir(folder) else { return };
        for entry in entries.filter_map(Result::ok) {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                if entry.file_name().to_string_lossy().starts_with("rbuild-") {
                    found.push(entry.path());
                }
                if depth > 0 {
                    list(&entry.path(), depth - 1, found);
                }
            }
        }
    }
    let mut found = Vec::new();
    list(Path::new("/sys/fs/cgroup"), 6, &mut found);
    found
}

/// The groups that have this process in them, or had: those of other tests that run on this machine
/// are no concern of ours.
fn with_own_groups(test: impl FnOnce()) {
    let before = groups();
    test();
    let stayed: Vec<_> = groups()
        .into_iter()
        .filter(|group| !before.contains(group))
        // A build of somebody else is going on.
        .filter(|group| {
            fs_err::read_to_string(group.join("cgroup.procs")).is_ok_and(|text| text.is_empty())
        })
        .filter(|group| {
            std::thread::sleep(std::time::Duration::from_millis(300));
            group.exists()
        })
        .collect();
    assert_eq!(stayed, Vec::<PathBuf>::new());
}

/// Runs `script` with these limits; nothing where this machine has no control groups for them.
fn limited(fixture: &Fixture, resources: Resources, script: &str) -> Option<Outcome> {
    let mut process = fixture.shell(script);
    process.resources = resources;
    match fixture.try_run(process) {
        Ok(outcome) => Some(outcome),
        Err(error) if error.message.contains("cannot be kept") => {
            println!("    {error}: {}", error.hint.as_deref().expect("it says what is missing"));
            None
        }
        Err(error) => panic!("{error}: {:?}", error.source),
    }
}

fn memory_is_limited() {
    let fixture = Fixture::new();
    let resources = Resources { memory: Some(32 << 20), ..Resources::default() };
    with_own_groups(|| {
        let fits = "head -c 8000000 /dev/zero | tail -c 8000000 | wc -c";
        let Some(outcome) = limited(&fixture, resources.clone(), fits) else { return };
        assert_eq!(outcome.success(), "8000000");
        // busybox's `tail` keeps what it shows.
        let script = "echo begin; exec tail -c 200000000 /dev/zero";
        let outcome = limited(&fixture, resources.clone(), script).unwrap();
        assert_eq!(outcome.status, ExitStatus::OutOfMemory);
        assert_eq!(outcome.stdout, "begin\n");
    });
}

fn a_killed_child_is_want_of_memory_too() {
    let fixture = Fixture::new();
    let resources = Resources { memory: Some(32 << 20), ..Resources::default() };
    let script = "sh -c 'exec tail -c 200000000 /dev/zero' || exit 2";
    let Some(outcome) = limited(&fixture, resources.clone(), script) else { return };
    assert_eq!(outcome.status, ExitStatus::OutOfMemory);
    // A step that lives with it is no failure.
    let script = "sh -c 'exec tail -c 200000000 /dev/zero'; echo $?";
    assert_eq!(limited(&fixture, resources, script).unwrap().success(), "137");
}

fn processors_are_limited() {
    let fixture = Fixture::new();
    let resources = Resources {
        cpu_quota: Some(20_000),
        cpu_period: Some(100_000),
        cpu_shares: Some(512),
        cpuset_cpus: Some("0".to_owned()),
        ..Resources::default()
    };
    let script = "grep Cpus_allowed_list /proc/self/status | cut -f2; i=0; while [ $i -lt 60000 ]; do i=$((i+1)); done; cat /proc/uptime; times";
    with_own_groups(|| {
        let start = std::time::Instant::now();
        let Some(outcome) = limited(&fixture, resources, script) else { return };
        let wall = start.elapsed().as_secs_f64();
        let output = outcome.success();
        assert_eq!(output.lines().next(), Some("0"));
        // `times` shows user and system time as `0m0.20s 0m0.01s`.
        let seconds = |text: &str| -> f64 {
            let (minutes, seconds) = text.trim_end_matches('s').split_once('m').unwrap();
            minutes.parse::<f64>().unwrap() * 60.0 + seconds.parse::<f64>().unwrap()
        };
        let shell = output.lines().nth(2).unwrap();
        let used: f64 = shell.split_whitespace().map(seconds).sum();
        println!("    {used:.2} s of processor in {wall:.2} s");
        assert!(used < 0.04 + 0.3 * wall, "{used} of {wall}");
    });
}

fn processes_are_limited() {
    let fixture = Fixture::new();
    let resources = Resources { pids: Some(20), ..Resources::default() };
    let script = "for i in $(seq 100); do sleep 5 & done 2>&1; echo unreached";
    with_own_groups(|| {
        let Some(outcome) = limited(&fixture, resources, script) else { return };
        assert_ne!(outcome.status, ExitStatus::Code(0));
        assert!(outcome.stdout.contains("can't fork"), "{outcome:?}");
    });
    assert_eq!(fixture.output("echo fine"), "fine");
}

fn a_group_of_the_callers_choice() {
    let fixture = Fixture::new();
    let parent = format!("test-of-rbuild-{}/below", std::process::id());
    let mut process = fixture.shell("cat /proc/self/cgroup | cut -d: -f3 | sort -u; echo done");
    process.cgroup_parent = Some(parent.clone());
    with_own_groups(|| match fixture.try_run(process) {
        // The step sees its own group as the root of all.
        Ok(outcome) => assert_eq!(outcome.success(), "/\ndone"),
        Err(error) => {
            assert!(error.message.contains("`--cgroup-parent` cannot be kept"), "{error}");
            println!("    {error}");
        }
    });
    drop(fixture);
    for hierarchy in fs_err::read_dir("/sys/fs/cgroup").unwrap() {
        let left = hierarchy.unwrap().path().join(parent.split('/').next().unwrap());
        assert!(!left.exists(), "{}", left.display());
    }
    let fixture = Fixture::new();
    let mut process = fixture.shell("true");
    process.cgroup_parent = Some("../outside".to_owned());
    let error = fixture.try_run(process).unwrap_err();
    assert_eq!(error.message, "`../outside` is not the path of a control group");
}

fn what_cannot_be_kept_is_refused() {
    let fixture = Fixture::new();
    let mut process = fixture.shell("true");
    process.resources = Resources { cpuset_cpus: Some("4000".to_owned()), ..Resources::default() };
    let error = fixture.try_run(process).unwrap_err();
    assert!(error.message.contains("`--cpuset-cpus` cannot be kept"), "{error}");
    // One that comes after is as if nothing had been.
    assert_eq!(fixture.output("echo fine"), "fine");
}

/// The argument that makes this program run a step in a group, which does not end.
pub(crate) const SLEEP: &str = "--run-a-limited-step-that-sleeps";

pub(crate) fn sleep(seconds: &str) {
    let fixture = Fixture::new();
    let resources = Resources { memory: Some(64 << 20), pids: Some(50), ..Resources::default() };
    limited(&fixture, resources, &format!("sleep {seconds}"));
}

/// However rbuild ends, and also if all that would have tidied up ends with it: the next one does.
fn no_group_stays() {
    let fixture = Fixture::new();
    let resources = Resources { memory: Some(64 << 20), pids: Some(50), ..Resources::default() };
    if limited(&fixture, resources.clone(), "true").is_none() {
        return;
    }
    let seconds = format!("6{:07}", std::process::id());
    for with_server in [false, true] {
        let before = groups();
        let mut rbuild = Command::new(std::env::current_exe().unwrap())
            .args([SLEEP, &seconds])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        wait_for("the step starts", || count(&format!("sleep\0{seconds}")) == 1);
        let made: Vec<_> = groups().into_iter().filter(|group| !before.contains(group)).collect();
        assert!(!made.is_empty());
        if with_server {
            let pid = rustix::process::Pid::from_child(&rbuild);
            for child in crate::life::children(pid.as_raw_nonzero().get().cast_unsigned()) {
                let child = rustix::process::Pid::from_raw(child).unwrap();
                rustix::process::kill_process(child, rustix::process::Signal::KILL).unwrap();
            }
        }
        rbuild.kill().unwrap();
        rbuild.wait().unwrap();
        wait_for("the step ends", || count(&seconds) == 0);
        if with_server {
            limited(&Fixture::new(), resources.clone(), "true");
        }
        wait_for("its groups go", || made.iter().all(|group| !group.exists()));
    }
}
