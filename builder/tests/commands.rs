//! The commands around a build: what they print, and how they exit.

use serde_json::Value;

use crate::needs::{self, lacking};
use crate::rbuild::{Rbuild, context, json, scratch};

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
    assert_eq!(run(&["images", "-q", "--no-trunc"]), id);
    assert_eq!(run(&["images", "-q"]).trim(), &id["sha256:".len()..][..12]);
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
    assert!(lines[0].starts_with("IMAGE "), "{history}");
    assert!(lines[1].starts_with(id.trim()) && lines[1].contains(" ENV A=b "), "{history}");
    assert!(lines[2].contains(" RUN /bin/sh -c echo one > /one # buildkit "), "{history}");
    assert!(run(&["du"]).contains("RUN echo one > /one"));

    run(&["tag", "sample:v1", "example.org/other:v2"]);
    let all = ["images", "-q", "--no-trunc"];
    assert_eq!(run(&all), id.repeat(2));
    assert_eq!(run(&["rmi", "sample:v1"]), "Untagged: sample:v1\n");
    assert_eq!(run(&all), id);
    rbuild.command().args(["inspect", "sample:v1"]).exits(1).assert_stderr_has(&["sample:v1"]);
    rbuild.command().args(["rmi", "sample:v1"]).exits(1);
    run(&["rmi", short]);
    assert_eq!(run(&["images", "-q"]), "");
}

#[test]
fn lists_have_dockers_columns_filters_and_templates() {
    let rbuild = Rbuild::new();
    let context = context(&[("Dockerfile", "FROM scratch\nLABEL a=b\nENV X=y\n")]);
    let build = rbuild.command().args(["build", "-q", "-t", "one:v1", "-t", "me/two:v2"]);
    build.arg(context.path()).succeeds();
    let run = |arguments: &[&str]| rbuild.command().args(arguments).succeeds().stdout;
    let heading = run(&["images"]).lines().next().unwrap().to_owned();
    assert_eq!(
        heading.split_whitespace().collect::<Vec<_>>(),
        ["REPOSITORY", "TAG", "IMAGE", "ID", "CREATED", "SIZE"]
    );
    let names = |filter: &[&str]| {
        let format = ["images", "--format", "{{.Repository}}:{{.Tag}}"];
        run(&[&format[..], filter].concat())
    };
    assert_eq!(names(&["one"]), "one:v1\n");
    assert_eq!(names(&["-f", "reference=me/*:v*"]), "me/two:v2\n");
    assert_eq!(names(&["-f", "label=a=c"]), "");
    assert_eq!(names(&["-f", "label=a=b", "-f", "reference=one"]), "one:v1\n");
    assert_eq!(names(&["-f", "dangling=true"]), "");
    rbuild.command().args(["images", "-f", "colour=red"]).exits(2).assert_stderr_has(&[
        "invalid value `colour=red` for `--filter`",
        "reference, label, dangling",
    ]);
    let row: Value =
        serde_json::from_str(run(&["images", "--format", "json", "one"]).trim()).unwrap();
    assert_eq!((&row["Repository"], &row["Tag"]), (&"one".into(), &"v1".into()));
    assert_eq!(
        run(&["inspect", "-f", "{{json .RepoTags}}", "one:v1"]),
        "[\"one:v1\",\"me/two:v2\"]\n"
    );
    assert_eq!(run(&["inspect", "-f", "{{index .Config.Labels \"a\"}}", "one:v1"]), "b\n");
    rbuild
        .command()
        .args(["inspect", "-f", "{{.Nope}}", "one:v1"])
        .exits(2)
        .assert_stderr_has(&["there is no field `Nope`; fields are: Id, RepoTags"]);
    let table = run(&["history", "--format", "table {{.CreatedBy}}\\t{{.Size}}", "one:v1"]);
    assert!(table.starts_with("CREATED BY"), "{table}");
}

/// Removing by an ID that has names elsewhere is what docker and podman ask `--force` for, too.
#[test]
fn an_image_of_several_repositories_loses_its_names_by_force_only() {
    let rbuild = Rbuild::new();
    let context = context(&[("Dockerfile", "FROM scratch\nLABEL a=b\n")]);
    let build = rbuild.command().args(["build", "-q", "-t", "one:v1", "-t", "one:v2", "-t", "two"]);
    let id = build.arg(context.path()).succeeds().stdout;
    let id = id.trim();
    let refused = rbuild.command().args(["rmi", id, "none"]).exits(1);
    refused.assert_stderr_has(&[
        "names in several repositories: one:v1, one:v2, two:latest",
        "`--force`",
        "there is no image `none`",
    ]);
    let run = |arguments: &[&str]| rbuild.command().args(arguments).succeeds().stdout;
    let digest = run(&["inspect", "-f", "{{index .RepoDigests 1}}", "one:v1"]);
    assert!(digest.starts_with("two@sha256:"), "{digest}");
    assert_eq!(run(&["inspect", "-f", "{{.Id}}", digest.trim()]).trim(), id);
    assert_eq!(run(&["rmi", digest.trim()]), "Untagged: two:latest\n");
    run(&["tag", "one:v1", "two"]);
    run(&["rmi", "-f", "none", id]);
    assert_eq!(run(&["images", "-q"]), "");
}

#[test]
fn images_that_are_there_are_inspected_beside_one_that_is_not() {
    let rbuild = Rbuild::new();
    let context = context(&[("Dockerfile", "FROM scratch\nLABEL a=b\n")]);
    rbuild.build(&context).args(["-t", "one:v1", "-t", "two:v1"]).succeeds();
    let inspect = ["inspect", "-f", "{{index .Config.Labels \"a\"}}", "one:v1", "none", "two:v1"];
    let outcome = rbuild.command().args(inspect).exits(1);
    assert_eq!(outcome.stdout, "b\nb\n");
    outcome.assert_stderr_has(&["there is no image `none`"]);
    assert_eq!(rbuild.command().args(["inspect", "none"]).exits(1).stdout, "[]\n");
}

/// A build that names its base by digest takes a local image of that name for it.
#[test]
fn no_image_is_called_by_the_digest_of_another() {
    let (rbuild, out) = (Rbuild::new(), scratch());
    let context = context(&[("Dockerfile", "FROM scratch\nLABEL a=b\n")]);
    let layout = out.path().join("layout");
    let build = rbuild.build(&context).args(["-t", "one:v1"]);
    build.arg("-o").arg("type=image").output("type=oci,tar=false", &layout).succeeds();
    let other = format!("docker.io/library/two@sha256:{}", "0".repeat(64));
    let said = "a name that is given holds no digest";
    rbuild.command().args(["tag", "one:v1", &other]).exits(2).assert_stderr_has(&[said]);

    let output = format!("type=image,name={other}");
    rbuild.build(&context).args(["-o", &output]).exits(2).assert_stderr_has(&[said]);

    let index = layout.join("index.json");
    let mut json = json(&index);
    for key in ["org.opencontainers.image.ref.name", "io.containerd.image.name"] {
        json["manifests"][0]["annotations"][key] = other.as_str().into();
    }
    fs_err::remove_file(&index).unwrap();
    fs_err::write(&index, json.to_string()).unwrap();
    let tar = out.path().join("image.tar");
    let (tar, layout) = (tar.to_str().unwrap(), layout.to_str().unwrap());
    crate::rbuild::run("tar", &["-C", layout, "-cf", tar, "."]);
    let load = |name: &str| rbuild.command().args(["load", "-i", tar, "-t", name]);
    load(&other).exits(2).assert_stderr_has(&[said]);
    assert_eq!(load("three").succeeds().stdout, "Loaded image: three:latest\n");
    rbuild.command().args(["inspect", &other]).exits(1);
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
    for flag in ["--sbom", "--attest=type=sbom"] {
        let outcome = rbuild.command().arg(flag).arg(context.path()).exits(2);
        outcome.assert_stderr_has(&["asks for a scanner", "type=oci,dest=FILE.tar"]);
    }
    for flag in ["--sbom=false", "--sbom=", "--attest=type=sbom,disabled=true"] {
        rbuild.command().args(["-q", flag, "-o", "type=cacheonly"]).arg(context.path()).succeeds();
    }
    rbuild.command().arg("--version").succeeds();
    rbuild.command().arg("--help").succeeds();
    rbuild.command().exits(2);
    assert!(rbuild.command().args(["completion", "zsh"]).succeeds().stdout.contains("#compdef"));
}
