//! Why a step was not cached: one line beside it, and `rbuild explain`.

use crate::base;
use crate::needs::{self, lacking};
use crate::rbuild::{Outcome, Rbuild, context, run, scratch, write};

/// What is said of the step whose name ends with `instruction`; none when it was cached.
#[track_caller]
fn reason(outcome: &Outcome, instruction: &str) -> Option<String> {
    let step = outcome.step(instruction);
    let line = step.lines.iter().find_map(|line| line.strip_prefix("not cached: "));
    assert_eq!(line.is_none(), step.cached, "{outcome}");
    line.map(str::to_owned)
}

const DOCKERFILE: &str = "\
FROM busybox
ARG VERSION=1
COPY src /src
RUN cat /src/* > /all
RUN echo version $VERSION > /version
";

#[test]
fn each_kind_of_change_is_named() {
    if lacking(&needs::STEPS) {
        return;
    }
    let rbuild = Rbuild::new();
    let context = context(&[("Dockerfile", DOCKERFILE), ("src/a", "1\n"), ("src/b", "1\n")]);
    let steps = ["COPY src /src", "RUN cat /src/* > /all", "RUN echo version 1 > /version"];
    let check = |expected: [Option<&str>; 3]| {
        let outcome = rbuild.build(&context).succeeds();
        for (step, expected) in steps.iter().zip(expected) {
            assert_eq!(reason(&outcome, step).as_deref(), expected, "{step}\n{outcome}");
        }
    };
    check([Some("first build"); 3]);
    check([None, None, None]);
    write(context.path().join("src/a"), "2\n");
    let step_of = |n: usize| format!("input step `[{n}/4] {}` changed", steps[n - 1]);
    check([Some("`src/a` changed"), Some(&step_of(1)), Some(&step_of(2))]);
    write(context.path().join("src/c"), "3\n");
    fs_err::remove_file(context.path().join("src/b")).unwrap();
    check([Some("`src/b` removed, `src/c` added"), Some(&step_of(1)), Some(&step_of(2))]);

    let version = rbuild.build(&context).args(["--build-arg", "VERSION=2"]).succeeds();
    let said = reason(&version, "RUN echo version 2 > /version");
    assert_eq!(said.as_deref(), Some("ARG VERSION 1 → 2"), "{version}");

    let explained = rbuild.command().args(["explain", "echo version"]).succeeds().stdout;
    let expected = ["ARG VERSION 1 → 2", "compared with the result of `[3/4] RUN echo version 1 >"];
    for text in expected.iter().chain(&["ARG VERSION:\n       - 1\n       + 2\n"]) {
        assert!(explained.contains(text), "{text}\n{explained}");
    }
    let cached = rbuild.command().args(["explain", "COPY src"]).exits(1);
    cached.assert_stderr_has(&["was found in the cache"]);

    let text = DOCKERFILE.replace("cat /src/*", "cat /src/a");
    write(context.path().join("Dockerfile"), &text);
    let command = rbuild.build(&context).succeeds();
    assert_eq!(reason(&command, "RUN cat /src/a > /all").as_deref(), Some("command changed"));
    write(context.path().join("Dockerfile"), &text.replace("COPY src /src", "COPY src /src/"));
    let copied = rbuild.build(&context).succeeds();
    let said = reason(&copied, "COPY src /src/");
    assert_eq!(said.as_deref(), Some("destination changed: /src → /src/"), "{copied}");

    let again = rbuild.build(&context).arg("--no-cache").succeeds();
    let said = reason(&again, "RUN cat /src/a > /all");
    assert_eq!(said.as_deref(), Some("asked for by --no-cache"));
    let listed = rbuild.command().arg("explain").succeeds().stdout;
    assert!(listed.contains("asked for by --no-cache"), "{listed}");

    // An index that is gone costs work, no more.
    fs_err::remove_file(rbuild.root.join("index.db")).unwrap();
    let fresh = rbuild.build(&context).succeeds();
    assert_eq!(reason(&fresh, "RUN cat /src/a > /all").as_deref(), Some("first build"));
}

#[test]
fn an_image_that_moved_is_named() {
    if lacking(&needs::STEPS) {
        return;
    }
    let rbuild = Rbuild::new();
    let other = scratch();
    let layout = other.path().join("layout");
    let base = context(&[("Dockerfile", "FROM busybox\nRUN echo new > /new\n")]);
    rbuild.build(&base).output("type=oci,tar=false", &layout).succeeds();
    let context = context(&[("Dockerfile", "FROM moving\nRUN echo hello > /hello\n")]);
    let build =
        |layout: &std::path::Path| rbuild.build(context.path()).base("moving", layout).succeeds();
    build(base::busybox());
    let moved = build(&layout);
    let said = reason(&moved, "RUN echo hello > /hello").unwrap();
    assert!(said.starts_with("base image ") && said.contains(" moved to sha256:"), "{said}");
}

#[test]
fn reasons_are_in_json_too() {
    if lacking(&needs::STEPS) {
        return;
    }
    let rbuild = Rbuild::new();
    let context = context(&[("Dockerfile", "FROM busybox\nRUN true\n")]);
    let build = || {
        let run = rbuild.command().args(["build", "--progress", "rawjson"]);
        run.base("busybox", base::busybox()).arg(context.path()).succeeds().stderr
    };
    assert!(build().contains(r#""missed":"first build""#));
    assert!(!build().contains("missed"));
}

#[test]
fn files_of_a_snapshot_that_somebody_changed_are_not_used() {
    if lacking(&needs::STEPS) {
        return;
    }
    let rbuild = Rbuild::new();
    let text = "FROM busybox\nRUN echo secret-free > /first\nRUN cat /first > /second\n";
    let context = context(&[("Dockerfile", text)]);
    rbuild.build(&context).succeeds();
    let pattern = rbuild.root.join("snapshots").display().to_string();
    let found = run("grep", &["-rl", "secret-free", &pattern, "--include=first"]);
    fs_err::write(found.trim(), "spoilt-free\n").unwrap();
    let out = scratch();
    write(context.path().join("Dockerfile"), &format!("{text}RUN cp /first /third\n"));
    let outcome = rbuild.build(&context).output("type=local", out.path()).succeeds();
    outcome.assert_stderr_has(&["was damaged, and is removed"]);
    for file in ["first", "second", "third"] {
        let text = fs_err::read_to_string(out.path().join(file)).unwrap();
        assert_eq!(text, "secret-free\n", "{file}\n{outcome}");
    }
    rbuild.command().args(["cache", "verify"]).succeeds();
}
