//! What a second build runs again, and what it does not.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::needs::{self, Need, lacking};
use crate::rbuild::{Outcome, Rbuild, context, scratch, write};

/// Runs of two stages: the first makes `/out` from `source`, the second takes `/out` alone.
const TWO_STAGES: &str = "\
FROM busybox AS build
WORKDIR /src
COPY source .
RUN wc -c < source > /lines && echo made > /out
FROM busybox
COPY --from=build /out /out
RUN cp /out /copy
CMD [\"cat\", \"/copy\"]
";

const STEPS: [&str; 5] = [
    "WORKDIR /src",
    "COPY source .",
    "RUN wc -c < source > /lines && echo made > /out",
    "COPY --from=build /out /out",
    "RUN cp /out /copy",
];

#[track_caller]
fn check_cached(outcome: &Outcome, expected: [bool; 5]) {
    let cached = STEPS.map(|step| outcome.step(step).cached);
    assert_eq!(cached, expected, "{outcome}");
}

#[test]
fn a_second_build_runs_nothing() {
    if lacking(&needs::STEPS) {
        return;
    }
    let rbuild = Rbuild::new();
    let context = context(&[("Dockerfile", TWO_STAGES), ("source", "one\n")]);
    check_cached(&rbuild.build(&context).succeeds(), [false; 5]);
    check_cached(&rbuild.build(&context).succeeds(), [true; 5]);
}

#[test]
fn an_edit_runs_what_depends_on_it() {
    if lacking(&needs::STEPS) {
        return;
    }
    let rbuild = Rbuild::new();
    let context = context(&[("Dockerfile", TWO_STAGES), ("source", "one\n")]);
    rbuild.build(&context).succeeds();
    write(context.path().join("source"), "one and two\n");
    // `/out` came out as before, so that what copies it need not run.
    check_cached(&rbuild.build(&context).succeeds(), [true, false, false, true, true]);
    // And back: the first result is still known.
    write(context.path().join("source"), "one\n");
    check_cached(&rbuild.build(&context).succeeds(), [true; 5]);
}

#[test]
fn new_times_are_no_edit() {
    if lacking(&needs::STEPS) {
        return;
    }
    let rbuild = Rbuild::new();
    let context = context(&[("Dockerfile", TWO_STAGES), ("source", "one\n")]);
    rbuild.build(&context).succeeds();
    let source = context.path().join("source");
    let file = fs_err::OpenOptions::new().write(true).open(source).unwrap().into_parts().0;
    file.set_modified(std::time::UNIX_EPOCH + Duration::from_secs(1_000_000_000)).unwrap();
    check_cached(&rbuild.build(&context).succeeds(), [true; 5]);
}

#[test]
fn an_ignored_file_is_no_edit() {
    if lacking(&needs::STEPS) {
        return;
    }
    let rbuild = Rbuild::new();
    let context = context(&[
        ("Dockerfile", "FROM busybox\nCOPY . /all\nRUN ls /all > /names\n"),
        (".dockerignore", "notes\n"),
        ("source", "one\n"),
    ]);
    rbuild.build(&context).succeeds();
    write(context.path().join("notes"), "not part of it\n");
    let out = scratch();
    let second = rbuild.build(&context).output("type=local", out.path()).succeeds();
    assert!(second.step("COPY . /all").cached, "{second}");
    assert_eq!(
        fs_err::read_to_string(out.path().join("names")).unwrap(),
        "Dockerfile\nsource\n",
        "`.dockerignore` itself starts with a dot, which ls hides"
    );
}

#[test]
fn no_cache_runs_everything_again() {
    if lacking(&needs::STEPS) {
        return;
    }
    let rbuild = Rbuild::new();
    let context = context(&[("Dockerfile", TWO_STAGES), ("source", "one\n")]);
    rbuild.build(&context).succeeds();
    let again = rbuild.build(&context).arg("--no-cache").succeeds();
    // There is nothing in WORKDIR that could come out differently: BuildKit keeps it, too.
    check_cached(&again, [true, false, false, false, false]);
    check_cached(&rbuild.build(&context).succeeds(), [true; 5]);
}

#[test]
fn a_target_is_built_with_what_it_needs_and_nothing_else() {
    if lacking(&needs::STEPS) {
        return;
    }
    let rbuild = Rbuild::new();
    let context = context(&[(
        "Dockerfile",
        "FROM busybox AS one\nRUN echo one > /name\n\
         FROM busybox AS broken\nRUN exit 1\n\
         FROM one AS two\nRUN echo two >> /name\n\
         FROM two AS three\nRUN echo three >> /name\n",
    )]);
    let out = scratch();
    let outcome = rbuild
        .build(&context)
        .args(["--target", "two"])
        .output("type=local", out.path())
        .succeeds();
    assert_eq!(fs_err::read_to_string(out.path().join("name")).unwrap(), "one\ntwo\n");
    assert!(!outcome.has_step("RUN exit 1"), "{outcome}");
    assert!(!outcome.has_step("RUN echo three >> /name"), "{outcome}");
    // The last stage, which does not need the broken one either.
    rbuild.build(&context).succeeds();
    rbuild.build(&context).args(["--target", "broken"]).exits(1);
}

#[test]
fn a_build_argument_reaches_the_steps_after_it() {
    if lacking(&needs::STEPS) {
        return;
    }
    let rbuild = Rbuild::new();
    let context = context(&[(
        "Dockerfile",
        "ARG BASE=busybox\nFROM $BASE\nRUN echo first\nARG GREETING=hello\nRUN echo $GREETING > /said\n",
    )]);
    let said = |args: &[&str]| {
        let out = scratch();
        let outcome = rbuild.build(&context).args(args).output("type=local", out.path()).succeeds();
        (fs_err::read_to_string(out.path().join("said")).unwrap(), outcome)
    };
    assert_eq!(said(&[]).0, "hello\n");
    let (text, outcome) = said(&["--build-arg", "GREETING=good day"]);
    assert_eq!(text, "good day\n");
    assert!(outcome.step("RUN echo first").cached, "{outcome}");
    assert!(!outcome.step("RUN echo good day > /said").cached, "{outcome}");
    assert_eq!(said(&[]).0, "hello\n");
}

#[test]
fn equal_steps_of_two_stages_run_once() {
    if lacking(&needs::STEPS) {
        return;
    }
    let rbuild = Rbuild::new();
    let random = "RUN head -c 16 /dev/urandom | md5sum > /random";
    let context = context(&[(
        "Dockerfile",
        &format!(
            "FROM busybox AS a\n{random}\nFROM busybox AS b\n{random}\nFROM scratch\n\
             COPY --from=a /random /a\nCOPY --from=b /random /b\n"
        ),
    )]);
    let out = scratch();
    rbuild.build(&context).output("type=local", out.path()).succeeds();
    let read = |name| fs_err::read_to_string(out.path().join(name)).unwrap();
    assert_eq!(read("a"), read("b"));
}

#[test]
fn two_processes_run_a_step_once() {
    if lacking(&needs::STEPS) {
        return;
    }
    let rbuild = Rbuild::new();
    let context = context(&[(
        "Dockerfile",
        "FROM busybox\nRUN sleep 1 && head -c 16 /dev/urandom | md5sum > /random\n",
    )]);
    let (one, two) = (scratch(), scratch());
    let first = rbuild.build(&context).output("type=local", one.path()).start();
    let second = rbuild.build(&context).output("type=local", two.path()).start();
    for child in [first, second] {
        let outcome = Outcome::of(child);
        assert!(outcome.status.success(), "{outcome}");
    }
    let read = |folder: &std::path::Path| fs_err::read_to_string(folder.join("random")).unwrap();
    assert_eq!(read(one.path()), read(two.path()));
}

#[test]
fn stages_that_wait_do_so_at_the_same_time() {
    if lacking(&needs::STEPS) {
        return;
    }
    let rbuild = Rbuild::new();
    let stage = |n| format!("FROM busybox AS s{n}\nRUN sleep 2 && echo {n} > /out\n");
    let copy = |n| format!("COPY --from=s{n} /out /{n}\n");
    let stages: Vec<String> = (0..6).map(stage).collect();
    let copies: Vec<String> = (0..6).map(copy).collect();
    let dockerfile = format!("{}FROM scratch\n{}", stages.concat(), copies.concat());
    let context = context(&[("Dockerfile", &dockerfile)]);
    let start = Instant::now();
    rbuild.build(&context).succeeds();
    // One after another they take twelve seconds; two at a time, six.
    let elapsed = start.elapsed();
    assert!(elapsed < Duration::from_secs(10), "{elapsed:?}");
}

#[test]
fn a_step_sees_of_the_context_what_its_key_says() {
    if lacking(&needs::STEPS) {
        return;
    }
    let rbuild = Rbuild::new();
    let cache = "RUN --mount=type=cache,id=held,sharing=locked,target=/c";
    let holder = format!("FROM busybox\n{cache} sleep 3\n");
    let reader =
        format!("FROM busybox\n{cache} --mount=type=bind,source=text,target=/t cat /t > /out\n");
    let holder = context(&[("Dockerfile", &holder)]);
    let reader = context(&[("Dockerfile", &reader), ("text", "old")]);
    let read = || {
        let out = scratch();
        rbuild.build(&reader).output("type=local", out.path()).succeeds();
        fs_err::read_to_string(out.path().join("out")).unwrap()
    };
    let holding = rbuild.build(&holder).start();
    std::thread::sleep(Duration::from_millis(700));
    // It looks at the context, then waits for the folder of the cache mount.
    let waiting = rbuild.build(&reader).start();
    std::thread::sleep(Duration::from_millis(1200));
    write(reader.path().join("text"), "new");
    for child in [holding, waiting] {
        let outcome = Outcome::of(child);
        assert!(outcome.status.success(), "{outcome}");
    }
    assert_eq!(read(), "new");
    write(reader.path().join("text"), "old");
    assert_eq!(read(), "old");
}

/// Something mounted, until this value goes.
struct Mounted<'a>(&'a Path);

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(self.0).status();
    }
}

#[test]
fn files_of_images_that_are_mounted_one_after_the_other_are_told_apart() {
    let programs = [Need::Root, Need::Program("mksquashfs"), Need::Program("mount")];
    if lacking(&programs) {
        return;
    }
    let (rbuild, place, images) = (Rbuild::new(), scratch(), scratch());
    for text in ["one", "two"] {
        let files = context(&[("Dockerfile", "FROM scratch\nCOPY text /\n"), ("text", text)]);
        let image = images.path().join(text);
        // Names, lengths, and also inodes and times are the same.
        let options = ["-quiet", "-no-progress", "-all-root", "-all-time", "1000"];
        let made = Command::new("mksquashfs").arg(files.path()).arg(&image).args(options).output();
        assert!(made.unwrap().status.success());
        let mut mount = Command::new("mount");
        if !mount.args(["-o", "loop"]).arg(&image).arg(place.path()).status().unwrap().success() {
            // A container without loop devices, or a kernel without squashfs.
            return;
        }
        let _mounted = Mounted(place.path());
        let out = scratch();
        rbuild.build(place.path()).output("type=local", out.path()).succeeds();
        assert_eq!(fs_err::read_to_string(out.path().join("text")).unwrap(), text);
    }
}
