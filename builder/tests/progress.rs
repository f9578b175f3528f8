//! What a build shows while it runs, in every mode.

use std::process::Command;

use crate::needs::{self, Need, lacking};
use crate::rbuild::{Rbuild, context};

const DOCKERFILE: &str = "\
FROM busybox AS build
RUN echo to stdout && echo to stderr >&2
FROM busybox
COPY --from=build /etc/passwd /copied
RUN true
";

#[test]
fn plain_numbers_every_step_and_says_how_it_ended() {
    if lacking(&needs::STEPS) {
        return;
    }
    let rbuild = Rbuild::new();
    let context = context(&[("Dockerfile", DOCKERFILE)]);
    let first = rbuild.build(&context).succeeds();
    for step in first.steps() {
        let ends = step.lines.iter().filter(|line| line.starts_with("DONE ")).count();
        assert_eq!(ends + usize::from(step.cached), 1, "{step:?}\n{first}");
    }
    let step = first.step("RUN echo to stdout && echo to stderr >&2");
    assert!(step.name.starts_with("[build "), "{step:?}");
    let said = |text: &str| {
        // BuildKit's lines: seconds since the step began, then what it said.
        step.lines.iter().any(|line| {
            line.split_once(' ')
                .is_some_and(|(time, rest)| time.parse::<f64>().is_ok() && rest == text)
        })
    };
    assert!(said("to stdout") && said("to stderr"), "{step:?}");
    let copy = first.step("COPY --from=build /etc/passwd /copied");
    assert!(copy.name.starts_with("[stage-1 "), "{copy:?}");
    assert_eq!(first.stdout, "");

    let second = rbuild.build(&context).succeeds();
    let step = second.step("RUN echo to stdout && echo to stderr >&2");
    assert!(step.cached && !second.stderr.contains("#1 0.0"), "{second}");
}

#[test]
fn plain_shows_a_failed_step_as_an_error() {
    if lacking(&needs::STEPS) {
        return;
    }
    let rbuild = Rbuild::new();
    let context = context(&[("Dockerfile", "FROM busybox\nRUN echo no; exit 7\n")]);
    let outcome = rbuild.build(&context).exits(1);
    let step = outcome.step("RUN echo no; exit 7");
    assert!(step.lines.iter().any(|line| line.starts_with("ERROR: ")), "{step:?}");
}

#[test]
fn rawjson_is_one_event_a_line() {
    if lacking(&needs::STEPS) {
        return;
    }
    let rbuild = Rbuild::new();
    let context = context(&[("Dockerfile", DOCKERFILE)]);
    let outcome = rbuild
        .command()
        .args(["build", "--progress", "rawjson"])
        .base("busybox", crate::base::busybox())
        .arg(context.path())
        .succeeds();
    let events: Vec<serde_json::Value> = outcome
        .stderr
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")))
        .collect();
    assert!(events.len() > 5, "{outcome}");
    assert!(outcome.stderr.contains("COPY --from=build"), "{outcome}");
}

#[test]
fn a_terminal_gets_a_view_with_times_and_cached_marks() {
    if lacking(&[&needs::STEPS[..], &[Need::Program("script")]].concat()) {
        return;
    }
    let rbuild = Rbuild::new();
    let context = context(&[("Dockerfile", DOCKERFILE)]);
    let layout = crate::base::busybox().display();
    let on_terminal = |flags: &str| {
        let line = format!(
            "stty cols 100 rows 40; exec {} build {flags} --build-context \
             busybox=oci-layout://{layout} {}",
            env!("CARGO_BIN_EXE_rbuild"),
            context.path().display()
        );
        let output = Command::new("script")
            .args(["--quiet", "--return", "--command", &line, "/dev/null"])
            .env("RBUILD_ROOT", &rbuild.root)
            .env("HOME", rbuild.home.path())
            .env("TERM", "xterm")
            .env_remove("NO_COLOR")
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{text}");
        text
    };
    let first = on_terminal("");
    assert!(first.contains("RUN true") && !first.contains("#1 "), "{first}");
    assert!(first.contains("0.0s") || first.contains("0.1s"), "{first}");
    let second = on_terminal("");
    assert!(second.contains("CACHED"), "{second}");
    // It can be had without a view, too.
    assert!(on_terminal("--progress plain").contains("#1 "));
}
