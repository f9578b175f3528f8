//! What people get wrong, and what surroundings do wrong: one clear message, the right exit code,
//! and nothing half-written.

use std::process::Command;

use crate::needs::{self, lacking};
use crate::rbuild::{Outcome, Rbuild, context, run, scratch};

/// Builds a context with that Dockerfile; the build must end with `code`, and say `texts`.
#[track_caller]
fn check(dockerfile: &str, code: i32, texts: &[&str]) {
    if lacking(&needs::STEPS) {
        return;
    }
    let rbuild = Rbuild::new();
    let context = context(&[("Dockerfile", dockerfile), ("file", "text\n")]);
    let outcome = rbuild.build(&context).exits(code);
    check_refusal(&rbuild, &outcome, texts);
}

/// What holds for every refusal: it says what it should, once, and leaves nothing behind.
#[track_caller]
fn check_refusal(rbuild: &Rbuild, outcome: &Outcome, texts: &[&str]) {
    outcome.assert_stderr_has(texts);
    assert_eq!(outcome.stderr.matches("error: ").count(), 1, "one message\n{outcome}");
    assert!(!outcome.stderr.contains("panicked"), "{outcome}");
    assert_eq!(rbuild.leftovers(), Vec::<std::path::PathBuf>::new());
    let images = rbuild.command().arg("images").run();
    assert!(images.stdout.lines().count() <= 1, "no image but the heading\n{images}");
}

#[test]
fn a_failing_step_shows_its_line_command_code_and_output() {
    check(
        "FROM busybox\nRUN true\nRUN echo before the end && exit 3\nRUN true\n",
        1,
        &["Dockerfile:3", "echo before the end && exit 3", "exit code: 3", "before the end"],
    );
}

#[test]
fn a_step_killed_by_a_signal_says_so() {
    check(
        "FROM busybox\nRUN sh -c 'kill -9 $$'; exit $?\n",
        1,
        &["Dockerfile:2", "kill -9 $$", "exit code: 137"],
    );
}

#[test]
fn a_command_that_is_not_there_is_named() {
    check("FROM busybox\nRUN [\"/no/such/program\"]\n", 1, &["Dockerfile:2", "/no/such/program"]);
    check("FROM busybox\nRUN nosuchprogram --flag\n", 1, &["nosuchprogram", "exit code: 127"]);
}

#[test]
fn an_empty_dockerfile_is_refused() {
    check("", 1, &["the Dockerfile cannot be empty: `Dockerfile`"]);
    check("# only a comment\n", 1, &["Dockerfile", "no instructions"]);
}

#[test]
fn an_unknown_instruction_is_refused_with_its_place() {
    check("FROM busybox\nCOPPY a b\n", 1, &["Dockerfile:2:1", "COPPY", "COPY"]);
}

#[test]
fn an_unknown_flag_is_refused_with_its_place() {
    check("FROM busybox\nCOPY --form=build a b\n", 1, &["Dockerfile:2:6", "--form", "--from"]);
}

#[test]
fn every_mistake_is_reported_at_once() {
    if lacking(&needs::STEPS) {
        return;
    }
    let rbuild = Rbuild::new();
    let context = context(&[("Dockerfile", "FROM busybox\nCOPPY a b\nRUM true\n")]);
    rbuild.build(&context).exits(1).assert_stderr_has(&["COPPY", "RUM", "Dockerfile:3"]);
}

#[test]
fn an_instruction_before_from_is_refused() {
    check("RUN true\nFROM busybox\n", 1, &["Dockerfile:1", "FROM"]);
}

#[test]
fn a_stage_that_does_not_exist_is_refused() {
    // A name that is no stage may be an image, which an unreachable registry cannot give.
    check("FROM busybox\nCOPY --from=3 /a /b\n", 1, &["Dockerfile:2", "3"]);
    if lacking(&needs::STEPS) {
        return;
    }
    let rbuild = Rbuild::new();
    let context = context(&[("Dockerfile", "FROM busybox AS build\n")]);
    let target = |name: &str| rbuild.build(&context).args(["--target", name]).exits(1);
    check_refusal(&rbuild, &target("buidl"), &["buidl", "did you mean `build`?"]);
    check_refusal(&rbuild, &target("other"), &["other", "the stages are `build`"]);
}

#[test]
fn a_misspelt_from_is_one_mistake() {
    check("FORM busybox\nRUN true\n", 1, &["Dockerfile:1", "did you mean `FROM`?"]);
}

#[test]
fn a_dockerfile_on_stdin_has_no_files_beside_it() {
    if lacking(&needs::STEPS) {
        return;
    }
    let rbuild = Rbuild::new();
    let build = |dockerfile: &str| rbuild.build("-").stdin(dockerfile).exits(1);
    let outcome = build("FROM busybox\nCOPY file /\n");
    check_refusal(&rbuild, &outcome, &["/file", "not found", "no files beside it"]);
    let outcome = build("FROM busybox AS a\nFROM busybox\nCOPY --from=a /file /\n");
    check_refusal(&rbuild, &outcome, &["/file", "not found"]);
    assert!(!outcome.stderr.contains("beside it"), "{outcome}");
}

#[test]
fn a_file_that_is_not_in_the_context_is_refused() {
    check("FROM busybox\nCOPY missing /x\n", 1, &["Dockerfile:2", "missing", "not found"]);
    check("FROM busybox\nCOPY file missing /x/\n", 1, &["Dockerfile:2", "missing", "not found"]);
    check("FROM busybox\nCOPY --from=0 /missing /x\nFROM busybox\n", 1, &["Dockerfile:2"]);
    check(
        "FROM busybox AS a\nFROM busybox\nCOPY --from=a /missing /x\n",
        1,
        &["Dockerfile:3", "missing", "not found"],
    );
}

#[test]
fn an_ignored_file_is_not_there() {
    if lacking(&needs::STEPS) {
        return;
    }
    let rbuild = Rbuild::new();
    let context = context(&[
        ("Dockerfile", "FROM busybox\nCOPY file /x\n"),
        ("file", "text\n"),
        (".dockerignore", "f*\n"),
    ]);
    let outcome = rbuild.build(&context).exits(1);
    check_refusal(&rbuild, &outcome, &["Dockerfile:2", "file", "not found"]);
}

#[test]
fn a_registry_that_is_not_there_is_refused() {
    // Port 1 of this machine: nothing listens there.
    check("FROM 127.0.0.1:1/team/app:v1\n", 1, &["Dockerfile:1", "127.0.0.1:1"]);
}

#[test]
fn a_missing_dockerfile_is_refused() {
    let rbuild = Rbuild::new();
    let context = context(&[("file", "text\n")]);
    let outcome = rbuild.build(&context).exits(1);
    outcome.assert_stderr_has(&["Dockerfile"]);
    rbuild.build(&context).args(["-f", "other"]).exits(1).assert_stderr_has(&["other"]);
}

#[test]
fn a_missing_context_is_refused() {
    let rbuild = Rbuild::new();
    rbuild
        .build("/no/such/folder")
        .exits(2)
        .assert_stderr_has(&["/no/such/folder", "no such folder"]);
    rbuild.build("/dev/null/folder").exits(2).assert_stderr_has(&["Not a directory"]);
}

#[test]
fn wrong_usage_is_refused() {
    let rbuild = Rbuild::new();
    let context = context(&[("Dockerfile", "FROM scratch\nLABEL a=b\n")]);
    let check = |args: &[&str], texts: &[&str]| {
        rbuild.build(&context).args(args).exits(2).assert_stderr_has(texts);
    };
    check(&["--no-such-flag"], &["--no-such-flag"]);
    check(&["-o", "type=floppy"], &["floppy", "oci"]);
    check(&["-o", "type=oci,dest=x,speed=9"], &["speed"]);
    check(&["-t", "Not A Name"], &["Not A Name"]);
    check(&["--build-arg", "=x"], &["--build-arg"]);
    check(&["--platform", "linux/"], &["linux/"]);
    check(&["--push"], &["-t"]);
    check(&["-t", "app:"], &["its tag is empty"]);
    check(&["--secret", "id=x,src=/no/file"], &["`/no/file`: No such file"]);
    rbuild.command().arg("imagse").exits(2).assert_stderr_has(&["images"]);
    rbuild.command().args(["biuld", "."]).exits(2).assert_stderr_has(&["build"]);
    let loud = rbuild.command().args(["build", "--progress", "loud"]).arg(context.path());
    loud.exits(2).assert_stderr_has(&["loud", "plain"]);
    rbuild.command().arg("build").exits(2);
    rbuild.command().arg("no-such-command").arg("x").exits(2);
}

#[test]
fn a_full_disk_is_named() {
    if lacking(&needs::STEPS) {
        return;
    }
    let disk = SmallDisk::of_megabytes(8);
    let rbuild = Rbuild::at(&disk.0.path().join("root"));
    let context =
        context(&[("Dockerfile", "FROM busybox\nRUN dd if=/dev/zero of=/big bs=1M count=32\n")]);
    let outcome = rbuild.build(&context).run();
    assert!(matches!(outcome.status.code(), Some(1 | 3)), "{outcome}");
    outcome.assert_stderr_has(&["o space left on device"]);
    assert_eq!(rbuild.leftovers(), Vec::<std::path::PathBuf>::new());

    // A context that does not fit fails in rbuild itself, not in a step.
    let file = context.path().join("file");
    fs_err::write(&file, vec![7; 32_000_000]).unwrap();
    fs_err::write(context.path().join("Dockerfile"), "FROM busybox\nCOPY file /\n").unwrap();
    let outcome = rbuild.build(&context).exits(3);
    outcome.assert_stderr_has(&["o space left on device", disk.0.path().to_str().unwrap()]);
    assert_eq!(rbuild.leftovers(), Vec::<std::path::PathBuf>::new());

    // With room again the same command passes.
    disk.resize(128);
    rbuild.build(&context).succeeds();
}

/// A tmpfs, gone with this value.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn of_megabytes(megabytes: u32) -> Self {
        let disk = Self(scratch());
        let options = format!("size={megabytes}m");
        run(
            "mount",
            &["-t", "tmpfs", "-o", &options, "rbuild-test", disk.0.path().to_str().unwrap()],
        );
        disk
    }

    fn resize(&self, megabytes: u32) {
        let options = format!("remount,size={megabytes}m");
        run("mount", &["-o", &options, self.0.path().to_str().unwrap()]);
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // The folder's own removal shows a failure.
        let _ = Command::new("umount").arg("--lazy").arg(self.0.path()).status();
    }
}
