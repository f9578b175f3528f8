//! The commands around a build: what they print, and how they exit.

use serde_json::Value;

use crate::needs::{self, lacking};
use crate::rbuild::{Rbuild, context};

#[test]
fn an_image_is_listed_shown_named_and_unnamed() {
    if lacking(&needs::STEPS) {
        return;
    }
    let rbuild = Rbuild::new();
    let context = context(&[("Dockerfile", "FROM busybox\nRUN echo one > /one\nENV A=b\n")]);
    let built = rbuild.build(&context).args(["-t", "sample:v1"]).succeeds();
    assert!(built.stderr.contains("\nimage "), "the size of the image\n{built}");

    let run = |arguments: &[&str]| rbuild.command().args(arguments).succeeds().stdout;
    let id = rbuild.build(&context).args(["-q", "-t", "sample:v1"]).succeeds().stdout;
    assert_eq!(run(&["images", "-q"]), id);
    let listed: Value = serde_json::from_str(&run(&["images", "--json"])).unwrap();
    assert_eq!(listed["name"], "docker.io/library/sample:v1");

    let short = &id["sha256:".len()..][..12];
    for name in ["sample:v1", short] {
        let shown: Value = serde_json::from_str(&run(&["inspect", name])).unwrap();
        assert_eq!(shown[0]["Id"], id.trim());
        assert_eq!(shown[0]["Config"]["Env"][1], "A=b", "{shown}");
    }
    let history = run(&["history", "--no-trunc", "sample:v1"]);
    let lines: Vec<&str> = history.lines().collect();
    assert!(lines[1].ends_with("ENV A=b"), "{history}");
    assert!(lines[2].ends_with("RUN /bin/sh -c echo one > /one # buildkit"), "{history}");
    assert!(run(&["du"]).contains("RUN echo one > /one"));

    run(&["tag", "sample:v1", "example.org/other:v2"]);
    assert_eq!(run(&["images", "-q"]), id.repeat(2));
    run(&["rmi", "sample:v1"]);
    assert_eq!(run(&["images", "-q"]), id);
    rbuild.command().args(["inspect", "sample:v1"]).exits(1).assert_stderr_has(&["sample:v1"]);
    rbuild.command().args(["rmi", "sample:v1"]).exits(1);
    run(&["rmi", short]);
    assert_eq!(run(&["images", "-q"]), "");
}

#[test]
fn a_dockerfile_is_checked_without_being_built() {
    let rbuild = Rbuild::new();
    let good = context(&[("Dockerfile", "FROM scratch\nLABEL a=b\n")]);
    let check = || rbuild.command().arg("check");
    let outcome = check().arg(good.path()).succeeds();
    assert_eq!(outcome.stdout, "Check complete, no warnings found.\n");

    let odd = context(&[("Dockerfile", "FROM scratch AS Odd\nLABEL a=b\n")]);
    let outcome = check().arg(odd.path()).exits(1);
    assert!(outcome.stdout.contains("WARNING: StageNameCasing - https://"), "{outcome}");
    assert_eq!(outcome.stderr, "");
    let json = rbuild.command().args(["--call=check,format=json"]).arg(odd.path()).exits(1).stdout;
    let json: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["warnings"][0]["ruleName"], "StageNameCasing");

    let broken = context(&[("Dockerfile", "FROM scratch\nCOPPY a b\n")]);
    check().arg(broken.path()).exits(1).assert_stderr_has(&["Dockerfile:2:1", "COPPY"]);

    let targets = rbuild.command().arg("--call=targets").arg(odd.path()).succeeds();
    assert!(targets.stdout.starts_with("TARGET"), "{targets}");
}

#[test]
fn what_rbuild_cannot_do_yet_is_refused() {
    let rbuild = Rbuild::new();
    let context = context(&[("Dockerfile", "FROM scratch\nLABEL a=b\n")]);
    for flag in ["--sbom", "--provenance=max", "--cache-to=type=inline", "--slim"] {
        let outcome = rbuild.command().arg(flag).arg(context.path()).exits(2);
        outcome.assert_stderr_has(&["is not there yet"]);
    }
    rbuild.command().arg("--version").succeeds();
    rbuild.command().arg("--help").succeeds();
    rbuild.command().exits(2);
    assert!(rbuild.command().args(["completion", "zsh"]).succeeds().stdout.contains("#compdef"));
}
