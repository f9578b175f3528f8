//! Why a step was not cached: one line beside it, and `rbuild explain`.

use std::sync::{Arc, Mutex};

use rbuild_cache::digest::Digest;

use crate::base;
use crate::faulty_registry::{FaultyRegistry, Reply, status};
use crate::git_repository::GitRepository;
use crate::needs::{self, Need, lacking};
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
fn files_that_a_mount_shows_are_named() {
    if lacking(&needs::STEPS) {
        return;
    }
    let rbuild = Rbuild::new();
    let step = "RUN --mount=type=bind,source=src,target=/src cat /src/a > /a";
    let dockerfile = format!("FROM busybox\n{step}\n");
    let context = context(&[("Dockerfile", &dockerfile), ("src/a", "1"), ("src/d/b", "1")]);
    let said = || reason(&rbuild.build(&context).succeeds(), step);
    assert_eq!(said().as_deref(), Some("first build"));
    assert_eq!(said(), None);
    write(context.path().join("src/d/b"), "2");
    assert_eq!(said().as_deref(), Some("`src/d/b` changed"));
    write(context.path().join("other"), "1");
    assert_eq!(said(), None);
}

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

/// The digest of a file or a commit in a reason is shortened, and whole in `rbuild explain`.
#[test]
fn a_source_elsewhere_that_moved_is_named() {
    if lacking(&[Need::Root, Need::Program("git")]) {
        return;
    }
    let rbuild = Rbuild::new();
    let text = Arc::new(Mutex::new("one"));
    let serving = Arc::clone(&text);
    let server = FaultyRegistry::start(move |asked| {
        let body = serving.lock().unwrap().as_bytes();
        let etag = format!("\"{}\"", Digest::of(body));
        if asked.headers.get("if-none-match").is_some_and(|known| *known == etag) {
            return Some(status(304));
        }
        let headers = vec![("etag".to_owned(), etag)];
        Some(Reply::Answer { status: 200, headers, body: body.to_vec() })
    });
    let repository = GitRepository::serve();
    let adds = [
        format!("ADD http://{}/file /file", server.host),
        format!("ADD {} /app", repository.url()),
    ];
    let dockerfile = format!("FROM scratch\n{}\nCOPY local /\n", adds.join("\n"));
    let context = context(&[("Dockerfile", &dockerfile), ("local", "1")]);
    // What an ADD is made of: fetching it, and copying it.
    let reasons = |outcome: &Outcome, add: &str| -> Vec<String> {
        let steps = outcome.steps().into_iter().filter(|step| step.name.ends_with(add));
        let lines = steps.flat_map(|step| step.lines);
        lines.filter_map(|line| Some(line.strip_prefix("not cached: ")?.to_owned())).collect()
    };
    let check = |expected: [&[&str]; 2]| {
        let outcome = rbuild.build(&context).succeeds();
        for (add, expected) in adds.iter().zip(expected) {
            let found = reasons(&outcome, add);
            assert_eq!(found.len(), expected.len(), "{found:?}\n{outcome}");
            for (found, expected) in found.iter().zip(expected) {
                assert!(found.starts_with(expected), "{found:?}\n{outcome}");
            }
        }
    };
    let of_file = |text: &str| format!("the source is {}", &Digest::of(text).to_string()[..20]);
    check([&["first build"; 2]; 2]);
    check([&[]; 2]);
    *text.lock().unwrap() = "two";
    check([&[&of_file("two"), "`file` changed"], &["input step `[1/3] ADD http"]]);
    let explained = rbuild.command().args(["explain", "1"]).succeeds().stdout;
    for text in [format!("- {}", Digest::of("one")), format!("+ {}", Digest::of("two"))] {
        assert!(explained.contains(&text), "{text}\n{explained}");
    }
    repository.commit("2");
    check([&[], &["the source is ", "`f` changed"]]);
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
fn a_result_that_was_damaged_is_named() {
    if lacking(&needs::STEPS) {
        return;
    }
    let rbuild = Rbuild::new();
    let text = "FROM busybox\nRUN echo fragile > /first\nRUN cat /first > /second\n";
    let context = context(&[("Dockerfile", text)]);
    let steps = ["RUN echo fragile > /first", "RUN cat /first > /second"];
    let build = || {
        let outcome = rbuild.build(&context).succeeds();
        steps.map(|step| reason(&outcome, step))
    };
    build();
    let pattern = rbuild.root.join("snapshots").display().to_string();
    let found = run("grep", &["-rl", "fragile", &pattern, "--include=first"]);
    fs_err::write(found.trim(), "broken!\n").unwrap();
    rbuild.command().args(["cache", "verify", "--repair"]).succeeds();
    let gone = "the files of its result are gone or were damaged";
    assert_eq!(build(), [Some(gone.to_owned()), None]);
    assert_eq!(build(), [None, None]);

    fs_err::write(run("grep", &["-rl", "fragile", &pattern, "--include=first"]).trim(), "")
        .unwrap();
    rbuild.command().args(["cache", "verify", "--repair"]).succeeds();
    rbuild.command().args(["prune", "--filter", "id=none"]).succeeds();
    assert_eq!(build(), [Some("no record: pruned".to_owned()), None]);
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
