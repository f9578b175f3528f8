//! `--slim` end to end on a small Debian: what is left of it, that it still works, what is said.

use crate::base::debian;
use crate::linked_copies::inodes;
use crate::needs::{Need, lacking};
use crate::rbuild::{Rbuild, context, scratch, write};

const DOCKERFILE: &str = "\
FROM debian:bookworm
COPY words /app/words
ENV LANG=C.UTF-8
CMD [\"sort\", \"/app/words\"]
";

fn lacks() -> bool {
    lacking(&[Need::Root, Need::Network, Need::Program("mmdebstrap")])
}

/// The digests of the layers of the image `name`.
fn layers(rbuild: &Rbuild, name: &str) -> Vec<String> {
    let inspected = rbuild.command().args(["inspect", name]).succeeds().stdout;
    let inspected: serde_json::Value = serde_json::from_str(&inspected).unwrap();
    let layers = inspected[0]["RootFS"]["Layers"].as_array().unwrap().clone();
    layers.iter().map(|layer| layer.as_str().unwrap().to_owned()).collect()
}

#[test]
fn an_image_is_slimmed_proven_and_explained() {
    if lacks() {
        return;
    }
    let (rbuild, out) = (Rbuild::new(), scratch());
    let folder = context(&[("Dockerfile", DOCKERFILE), ("words", "b\na\n")]);
    let report = out.path().join("report.json");
    let build = |mode: &str| {
        rbuild.build(&folder).base("debian:bookworm", debian()).arg(mode).args(["-t", "words"])
    };
    let tree = out.path().join("tree");
    let first = build("--slim").arg("--slim-report").arg(&report).output("type=local", &tree);
    let first = first.args(["-o", "type=image"]).succeeds();
    first.assert_stderr_has(&["its answers were compared", "shells"]);
    for (path, expected) in [
        ("usr/bin/sort", true),
        ("app/words", true),
        ("bin", true),
        ("var/lib/dpkg/status.d/coreutils", true),
        ("usr/bin/dash", false),
        ("usr/bin/apt", false),
        ("var/lib/dpkg/status", false),
        ("var/lib/dpkg/status.d/bash", false),
    ] {
        assert_eq!(tree.join(path).symlink_metadata().is_ok(), expected, "{path}");
    }
    let told = crate::rbuild::json(&report);
    assert_eq!(told["outcome"], "slim");
    assert_eq!(told["verification"]["passed"], true);
    assert_eq!((&told["slim"]["shells"], &told["slim"]["setuid"]), (&0.into(), &0.into()));

    let why = |path: &str| rbuild.command().args(["slim", "why", path]);
    let chain = why("/usr/lib/x86_64-linux-gnu/libc.so.6").run();
    if cfg!(target_arch = "x86_64") {
        assert!(chain.stdout.contains("is linked as libc.so.6:\n  /usr/bin/sort"), "{chain}");
    }
    assert!(why("/usr/bin/dash").succeeds().stdout.contains("is not kept"));
    why("/nothing").exits(1);

    let before = layers(&rbuild, "words");
    let again = build("--slim").succeeds();
    assert!(again.step("keep what `sort` needs").cached, "{again}");
    write(folder.path().join("words"), "d\nc\n");
    build("--slim").succeeds();
    let after = layers(&rbuild, "words");
    assert_eq!((before.len(), &before[0]), (2, &after[0]), "the runtime stays");
    assert_ne!(before[1], after[1]);
}

/// Files of the store that steps see get no second names by slimming: `gzip` and others refuse files
/// that have two.
#[test]
fn steps_see_nothing_of_what_was_slimmed_before() {
    if lacks() {
        return;
    }
    let rbuild = Rbuild::new();
    let folder = context(&[("Dockerfile", DOCKERFILE), ("words", "b\na\n")]);
    let build = || rbuild.build(&folder).base("debian:bookworm", debian());
    build().args(["--slim=closure", "-t", "words"]).succeeds();
    let words = inodes(&rbuild.root, "app/words");
    assert_eq!(words, [words[0]; 2], "what no step sees is linked");
    let sort = inodes(&rbuild.root, "usr/bin/sort");
    assert!(sort.len() == 2 && sort[0] != sort[1], "a base image is not: {sort:?}");
    let step = "RUN test $(stat -c %h /usr/bin/sort /app/words | sort -u) = 1\n";
    write(folder.path().join("Dockerfile"), &format!("{DOCKERFILE}{step}"));
    build().succeeds();
}

#[test]
fn what_cannot_work_is_said() {
    if lacks() {
        return;
    }
    let rbuild = Rbuild::new();
    let folder = context(&[("Dockerfile", DOCKERFILE), ("words", "b\na\n")]);
    let build = |arguments: &[&str]| {
        rbuild.build(&folder).base("debian:bookworm", debian()).args(arguments)
    };
    let refused = |arguments: &[&str], code: i32, said: &str| {
        build(arguments).exits(code).assert_stderr_has(&[said]);
    };
    let nothing = ["--slim=auto", "--slim-probe=http:9/", "--slim-probe-timeout=1s"];
    refused(&nothing, 1, "the probe fails on the full image already");
    refused(&["--slim=closure", "--slim-drop=/usr/bin/sort"], 1, "which the image runs");
    refused(&["--slim=closure", "--slim-max-size=1m"], 1, "more than `--slim-max-size` allows");
    refused(&["--slim-keep=/x"], 2, "nothing is slimmed");
    refused(&["--slim=thin"], 2, "expected auto, closure, trace or off");

    // What the program reads is left out: the full image is exported, unless that is an error.
    let broken = ["--slim=auto", "--slim-drop=/app/words"];
    build(&broken).succeeds().assert_stderr_has(&["THE IMAGE IS NOT SLIM"]);
    refused(&[&broken[..], &["--slim-strict"]].concat(), 1, "does not work as the full one");
}
