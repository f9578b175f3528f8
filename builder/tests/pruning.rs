//! `du`, `prune` and the budget: what is counted, what goes and what stays.

use std::path::Path;
use std::sync::Once;

use serde_json::Value;

use crate::faulty_registry::FaultyRegistry;
use crate::needs::{self, lacking};
use crate::rbuild::{Outcome, Rbuild, context, run, scratch, write};

/// What du(1) says the state folder takes, in bytes.
fn disk_usage(root: &Path) -> u64 {
    let text = run("du", &["-s", "-B1", root.to_str().unwrap()]);
    text.split_whitespace().next().unwrap().parse().unwrap()
}

fn entries(rbuild: &Rbuild, arguments: &[&str]) -> Vec<Value> {
    let listed = rbuild.command().args(["du", "--json"]).args(arguments).succeeds().stdout;
    listed.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn descriptions(rbuild: &Rbuild, arguments: &[&str]) -> String {
    let texts: Vec<String> = entries(rbuild, arguments)
        .iter()
        .map(|entry| entry["description"].as_str().unwrap().to_owned())
        .collect();
    texts.join("\n")
}

/// The bytes after `Total:` in the output of `du`, to one decimal.
fn total(outcome: &Outcome) -> f64 {
    let line = outcome.stdout.lines().find(|line| line.starts_with("Total:")).unwrap();
    let mut words = line.split_whitespace().skip(1);
    let number: f64 = words.next().unwrap().parse().unwrap();
    let unit = words.next().unwrap();
    let factor = ["B", "kB", "MB", "GB"].iter().position(|name| *name == unit).unwrap();
    number * 1000_f64.powi(i32::try_from(factor).unwrap())
}

const DOCKERFILE: &str = "\
FROM busybox
COPY data /data
RUN --mount=type=cache,id=things,target=/c head -c 3000000 /dev/urandom > /c/thing
RUN head -c 2000000 /dev/urandom > /big
";

fn built() -> (Rbuild, tempfile::TempDir) {
    let rbuild = Rbuild::new();
    let context = context(&[("Dockerfile", DOCKERFILE), ("data/a", "one\n"), ("data/b", "two\n")]);
    rbuild.build(&context).args(["-t", "sample:v1"]).succeeds();
    (rbuild, context)
}

#[test]
fn du_agrees_with_the_disk() {
    if lacking(&needs::STEPS) {
        return;
    }
    let (rbuild, context) = built();
    write(context.path().join("data/c"), "three\n");
    // Links files of the first COPY's result.
    rbuild.build(&context).succeeds();
    let said = total(&rbuild.command().arg("du").succeeds());
    #[allow(clippy::cast_precision_loss, reason = "to a percent")]
    let is = disk_usage(&rbuild.root) as f64;
    assert!((said - is).abs() <= is / 100.0, "du {said}, disk {is}");

    let mounts = entries(&rbuild, &["--filter", "type=exec.cachemount"]);
    assert_eq!(mounts.len(), 1);
    assert_eq!(mounts[0]["id"], "/things");
    assert!(mounts[0]["size"].as_u64().unwrap() > 2_900_000, "{mounts:?}");
    let verbose = rbuild.command().args(["du", "-v", "--filter", "description~=urandom"]);
    assert!(verbose.succeeds().stdout.contains("Type:        regular\n"));
    rbuild.command().args(["du", "--filter", "colour=red"]).exits(2);
}

#[test]
fn prune_removes_what_no_image_is_made_of() {
    if lacking(&needs::STEPS) {
        return;
    }
    let (rbuild, context) = built();
    let id = rbuild.command().args(["images", "-q"]).succeeds().stdout;
    let other = "FROM busybox\nRUN head -c 1000000 /dev/urandom > /other\n";
    write(context.path().join("Dockerfile"), other);
    rbuild.build(&context).succeeds();
    let before = disk_usage(&rbuild.root);

    let dry = rbuild.command().args(["prune", "--dry-run"]).succeeds();
    assert!(dry.stdout.contains("/other"), "{dry}");
    assert!(!dry.stdout.contains("/big"), "{dry}");
    assert_eq!(disk_usage(&rbuild.root), before, "a dry run removes nothing");

    rbuild.command().args(["prune", "--filter", "until=1h"]).succeeds();
    assert!(descriptions(&rbuild, &[]).contains("/other"), "it was used just now");

    rbuild.command().args(["prune", "--filter", "id=^/things$"]).succeeds();
    assert_eq!(entries(&rbuild, &["--filter", "type=exec.cachemount"]).len(), 0);

    let pruned = rbuild.command().arg("prune").succeeds();
    assert!(pruned.stdout.contains("/other") && pruned.stdout.contains(" freed"), "{pruned}");
    let left = descriptions(&rbuild, &[]);
    assert!(left.contains("/big") && !left.contains("/other"), "{left}");
    assert!(disk_usage(&rbuild.root) + 4_000_000 < before);

    write(context.path().join("Dockerfile"), DOCKERFILE);
    let again = rbuild.build(&context).args(["-t", "sample:v2"]).succeeds();
    assert!(again.step("> /big").cached, "it belongs to an image\n{again}");
    assert_eq!(rbuild.command().args(["images", "-q"]).succeeds().stdout, id.repeat(2));

    rbuild.command().args(["prune", "--all", "-f"]).succeeds();
    assert!(!descriptions(&rbuild, &[]).contains("/big"));
    let inspect = rbuild.command().args(["inspect", "sample:v1"]).succeeds().stdout;
    assert!(inspect.contains(id.trim()), "images stay");
    rbuild.command().args(["cache", "verify"]).succeeds();
    let rebuilt = rbuild.build(&context).succeeds();
    let step = rebuilt.step("> /big");
    assert!(!step.cached && step.lines[0] == "not cached: no record: pruned", "{rebuilt}");
    assert_eq!(rbuild.leftovers(), Vec::<std::path::PathBuf>::new());
}

#[test]
fn what_is_being_pushed_stays_until_it_is() {
    let rbuild = Rbuild::new();
    let context = context(&[("Dockerfile", "FROM scratch\nCOPY file /\n"), ("file", "text\n")]);
    rbuild.command().args(["build", "-t", "sample:v1"]).arg(context.path()).succeeds();
    let (root, once) = (rbuild.root.clone(), Once::new());
    // Before the first question to the registry is answered, the image is gone.
    let registry = FaultyRegistry::start(move |_| {
        once.call_once(|| {
            let other = Rbuild::at(&root);
            let names =
                other.command().arg("images").args(["--format", "{{.Repository}}:{{.Tag}}"]);
            let names = names.succeeds().stdout;
            other.command().arg("rmi").args(names.lines()).succeeds();
            other.command().args(["prune", "--all", "--force"]).succeeds();
        });
        None
    });
    let name = format!("{}/sample:v1", registry.host);
    rbuild.command().args(["tag", "sample:v1", &name]).succeeds();
    rbuild.command().args(["push", &name]).succeeds();
    assert_eq!(rbuild.command().args(["images", "-q"]).succeeds().stdout, "");
    rbuild.command().args(["pull", &name]).succeeds();
}

#[test]
fn a_limit_keeps_what_was_used_last() {
    if lacking(&needs::STEPS) {
        return;
    }
    let rbuild = Rbuild::new();
    let dockerfile =
        |n: u32| format!("FROM busybox\nRUN head -c 4000000 /dev/urandom > /file && echo {n}\n");
    let context = context(&[("Dockerfile", "")]);
    for n in 0..3 {
        write(context.path().join("Dockerfile"), &dockerfile(n));
        rbuild.build(&context).args(["-o", "type=cacheonly"]).succeeds();
        age(&rbuild.root, 1000 - n * 100);
    }
    rbuild.command().args(["prune", "--max-used-space", "13MB"]).succeeds();
    let left = descriptions(&rbuild, &["--filter", "description~=echo"]);
    assert!(
        !left.contains("echo 0") && left.contains("echo 1") && left.contains("echo 2"),
        "{left}"
    );
    rbuild.command().args(["prune", "--max-used-space", "1", "--keep-storage", "9MB"]).succeeds();
    let left = descriptions(&rbuild, &["--filter", "description~=echo"]);
    assert!(!left.contains("echo 1") && left.contains("echo 2"), "{left}");
    rbuild.command().args(["prune", "--max-used-space", "plenty"]).exits(2);
}

/// Makes everything seem to be used so many seconds earlier.
fn age(root: &Path, seconds: u32) {
    let script = format!(
        "for m in snapshots/*/meta blobs/sha256/*; do \
         touch -d \"@$(($(stat -c %Y $m) - {seconds}))\" $m; done"
    );
    let status =
        std::process::Command::new("sh").args(["-euc", &script]).current_dir(root).status();
    assert!(status.unwrap().success());
}

#[test]
fn the_budget_is_kept_at_the_end_of_each_build() {
    if lacking(&needs::STEPS) {
        return;
    }
    let rbuild = Rbuild::new();
    write(
        rbuild.home.path().join(".config/rbuild/config.toml"),
        "[cache]\nmax-size = \"12MB\"\nage = \"30d\"\n",
    );
    let context = context(&[("Dockerfile", "FROM busybox\nRUN echo named > /named\n")]);
    rbuild.build(&context).args(["-t", "named:1"]).succeeds();
    for n in 0..4 {
        let text = format!("FROM busybox\nRUN head -c 4000000 /dev/urandom > /file && echo {n}\n");
        write(context.path().join("Dockerfile"), &text);
        let outcome = rbuild.build(&context).args(["-o", "type=cacheonly"]).succeeds();
        let budget = outcome.has_step("[internal] keep the cache within its budget");
        // What this build made itself is in use until it ends.
        assert_eq!(budget, n >= 2, "{outcome}");
        assert!(disk_usage(&rbuild.root) < 13_000_000, "{n}");
        age(&rbuild.root, 100);
    }
    let left = descriptions(&rbuild, &["--filter", "description~=echo"]);
    assert!(left.contains("echo 3") && !left.contains("echo 0"), "{left}");
    rbuild.command().args(["inspect", "named:1"]).succeeds();
    rbuild.command().args(["cache", "verify"]).succeeds();

    let out = scratch();
    write(rbuild.home.path().join(".config/rbuild/config.toml"), "[cache]\nmax-size = \"big\"\n");
    let wrong = rbuild.build(&context).output("type=local", out.path()).exits(2);
    wrong.assert_stderr_has(&["config.toml", "`big` is no size"]);
}
