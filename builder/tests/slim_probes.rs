//! What `--slim` asks a running image, and what comes of the answers: commands and health checks as
//! probes, the full image beside the slim one, images that do not work slim, results of others.

use std::path::Path;

use crate::base;
use crate::needs::{self, lacking};
use crate::rbuild::{Outcome, Rbuild, Run, context, run, scratch, write};
use crate::soak::rounds;
use crate::user::{self, User, Users};

/// A server on port 8000 that says what is in `/words`, in a shell.
const SERVER: &str = "\
FROM busybox
COPY words /words
CMD [\"sh\", \"-c\", \"cat /words && mkdir -p /tmp/www && cp /words /tmp/www/ && exec httpd -f -p 8000 -h /tmp/www\"]
";

const ASK: &str = "--slim-probe=wget -qO- http://127.0.0.1:8000/words";

fn server(more: &str) -> tempfile::TempDir {
    context(&[("Dockerfile", &format!("{SERVER}{more}")), ("words", "b\na\n")])
}

/// The step that slims.
fn step(outcome: &Outcome) -> crate::rbuild::Step {
    outcome.step("keep what `sh` needs")
}

fn report(rbuild: &Rbuild) -> serde_json::Value {
    let shown = rbuild.command().args(["slim", "report", "--json"]).succeeds();
    serde_json::from_str(&shown.stdout).unwrap()
}

#[test]
fn commands_and_health_checks_are_probes() {
    if lacking(&needs::STEPS) {
        return;
    }
    let check = |more: &str, arguments: &[&str], said: &str| {
        let (rbuild, folder) = (Rbuild::new(), server(more));
        let built = rbuild.build(&folder).args(["--slim=auto", "-t", "words"]).args(arguments);
        built.succeeds().assert_stderr_has(&["its answers were compared"]);
        let proof = &report(&rbuild)["verification"];
        assert_eq!(proof["passed"], true, "{proof}");
        assert_eq!(proof["steps"][0]["slim"], said, "{proof}");
        assert_eq!(proof["steps"][0]["same"], true, "{proof}");
    };
    check("", &[ASK], "exit code 0 b a");
    let health = "HEALTHCHECK CMD wget -qO- http://127.0.0.1:8000/words\n";
    check(health, &[], "exit code 0 b a");
    check("", &["--slim-probe=http:8000/words"], "200 OK b a");
    check("", &[], "stays up for 3 s");
    // The command is what decides, not the health check.
    check(health, &["--slim-probe=wget -qO- http://127.0.0.1:8000/words -S"], "exit code 0 b a");
}

#[test]
fn a_command_that_never_succeeds_is_a_probe_that_fails() {
    if lacking(&needs::STEPS) {
        return;
    }
    let (rbuild, folder) = (Rbuild::new(), server(""));
    let build = rbuild.build(&folder).args(["--slim=auto", "--slim-probe-timeout=2s"]);
    let refused = build.arg("--slim-probe=wget -qO- http://127.0.0.1:8000/none").exits(1);
    refused.assert_stderr_has(&["the probe fails on the full image already", "did not succeed"]);
    assert_eq!(rbuild.leftovers(), Vec::<std::path::PathBuf>::new());
}

#[test]
fn the_full_image_is_there_for_who_looks_into_it() {
    if lacking(&needs::STEPS) {
        return;
    }
    let (rbuild, folder) = (Rbuild::new(), server("RUN touch /tmp/left\n"));
    let build = rbuild.build(&folder).args(["--slim=closure", "--slim-debug-image"]);
    build.args(["-t", "words", "-t", "words:1"]).succeeds();
    let names = ["words:latest", "words:1", "words:debug", "words:1-debug"];
    let layers = names.map(|name| {
        let shown = rbuild.command().args(["inspect", name]).succeeds().stdout;
        let shown: serde_json::Value = serde_json::from_str(&shown).unwrap();
        shown[0]["RootFS"]["Layers"].as_array().unwrap().len()
    });
    assert_eq!(layers, [2, 2, 3, 3]);
    let archive = scratch();
    let path = archive.path().join("debug.tar");
    rbuild.command().args(["save", "-o"]).arg(&path).arg("words:debug").succeeds();
    assert!(path.exists());
}

/// The image works no more: what it reads is left out.
fn broken<'a>(rbuild: &Rbuild, folder: &Path, arguments: impl IntoIterator<Item = &'a str>) -> Run {
    let build = rbuild.build(folder).args(["--slim=auto", ASK, "--slim-drop=/words"]);
    build.args(arguments)
}

#[test]
fn what_does_not_work_slim_is_remembered_and_said_again() {
    if lacking(&needs::STEPS) {
        return;
    }
    let (rbuild, folder) = (Rbuild::new(), server(""));
    let warned = ["THE IMAGE IS NOT SLIM"];
    let first = broken(&rbuild, folder.path(), []).succeeds();
    first.assert_stderr_has(&warned);
    assert!(!step(&first).cached, "{first}");
    let again = broken(&rbuild, folder.path(), []).succeeds();
    again.assert_stderr_has(&warned);
    assert!(step(&again).cached, "{again}");
    let strict = broken(&rbuild, folder.path(), ["--slim-strict"]).exits(1);
    strict.assert_stderr_has(&["does not work as the full one"]);
    let anew = broken(&rbuild, folder.path(), ["--no-cache"]).succeeds();
    anew.assert_stderr_has(&warned);
    assert!(!step(&anew).cached, "{anew}");
}

#[test]
fn what_was_only_too_slow_is_tried_again() {
    if lacking(&needs::STEPS) {
        return;
    }
    // Without its words the server sleeps.
    let slow = "CMD [\"sh\", \"-c\", \"[ -f /words ] || sleep 60; exec httpd -f -p 8000 -h /\"]\n";
    let (rbuild, folder) = (Rbuild::new(), server(slow));
    let build = || {
        let build = rbuild.build(&folder).args(["--slim=auto", "--slim-drop=/words"]);
        build.args(["--slim-probe=http:8000/etc/group", "--slim-probe-timeout=2s"]).succeeds()
    };
    for _ in 0..2 {
        let outcome = build();
        outcome.assert_stderr_has(&["THE IMAGE IS NOT SLIM", "no answer in time"]);
        assert!(!step(&outcome).cached, "{outcome}");
    }
}

#[test]
fn slim_results_are_shared_with_their_reports_and_pruned_with_them() {
    if lacking(&needs::STEPS) {
        return;
    }
    let (here, there, folder, cache) = (Rbuild::new(), Rbuild::new(), server(""), scratch());
    let place = cache.path().display();
    let build = |rbuild: &Rbuild, arguments: &[&str]| {
        rbuild.build(&folder).args(["--slim=auto", ASK, "-t", "words"]).args(arguments).succeeds()
    };
    let first = build(&here, &["--cache-to", &format!("type=local,dest={place},mode=max")]);
    assert!(!step(&first).cached, "{first}");
    let second = build(&there, &["--cache-from", &format!("type=local,src={place}")]);
    assert!(step(&second).cached, "{second}");
    second.assert_stderr_has(&["its answers were compared"]);
    assert_eq!(report(&there), report(&here));
    let layers = [&here, &there].map(|rbuild| {
        let shown = rbuild.command().args(["inspect", "words"]).succeeds().stdout;
        let shown: serde_json::Value = serde_json::from_str(&shown).unwrap();
        shown[0]["RootFS"].to_string()
    });
    assert_eq!(layers[0], layers[1]);

    // The report is no more than the result it is of.
    here.command().args(["slim", "why", "/words"]).succeeds();
    here.command().args(["prune", "--all", "-f"]).succeeds();
    here.command().args(["slim", "why", "/words"]).exits(1);
    assert!(!step(&build(&here, &[])).cached);
}

#[test]
fn what_a_program_opens_is_seen_for_every_kind_of_user() {
    if lacking(&needs::STEPS) || lacking(&user::NEEDED) {
        return;
    }
    let users = Users::new();
    let text = "FROM busybox\nCOPY words other /data/\n\
                CMD [\"httpd\", \"-f\", \"-p\", \"8000\", \"-h\", \"/data\"]\n";
    for (name, text) in [("Dockerfile", text), ("words", "b\na\n"), ("other", "other\n")] {
        write(users.path("context").join(name), text);
    }
    for user in User::ALL {
        let tree = users.path(&format!("out-{user:?}"));
        let arguments = [
            users.base("busybox", base::busybox()),
            "--slim=trace".into(),
            "--slim-probe=http:8000/words".into(),
            format!("-otype=local,dest={}", tree.display()),
        ];
        users.build(user, &users.path("context"), &arguments);
        assert!(tree.join("data/words").exists(), "{user:?}");
        assert!(!tree.join("data/other").exists(), "{user:?}");
    }
}

#[test]
fn provenance_and_annotations_say_how_it_was_slimmed() {
    if lacking(&needs::STEPS) {
        return;
    }
    let (rbuild, folder, out) = (Rbuild::new(), server(""), scratch());
    for mode in ["min", "max"] {
        let layout = out.path().join(mode);
        let build = rbuild.build(&folder).args(["--slim=closure", "--slim-keep=/bin/env"]);
        let build = build.arg(format!("--provenance=mode={mode}"));
        build.output("type=oci,tar=false", &layout).succeeds();
        let all: Vec<serde_json::Value> = fs_err::read_dir(layout.join("blobs/sha256"))
            .unwrap()
            .filter_map(|blob| {
                serde_json::from_slice(&fs_err::read(blob.unwrap().path()).ok()?).ok()
            })
            .collect();
        let predicate = all.iter().find_map(|document| document.get("predicate"));
        let definition = &predicate.unwrap()["buildDefinition"];
        assert_eq!(definition["internalParameters"]["slim"]["mode"], "closure", "{definition}");
        assert_eq!(definition["internalParameters"]["slim"]["keep"][0], "/bin/env");
        let steps = definition["internalParameters"]["buildConfig"]["llbDefinition"].to_string();
        assert_eq!(steps.contains("\"slim\""), mode == "max", "{steps}");
        let mut annotations = all.iter().filter_map(|document| document.get("annotations"));
        let slim = annotations.find(|all| all.get("dev.rbuild.slim.mode").is_some());
        let slim = slim.unwrap();
        assert_eq!(slim["dev.rbuild.slim.mode"], "closure");
        assert_eq!(slim["dev.rbuild.slim.verified"], "false");
    }
}

#[test]
fn several_at_once_kills_and_a_full_disk() {
    if lacking(&needs::STEPS) {
        return;
    }
    let (rbuild, folder, out) = (Rbuild::new(), server(""), scratch());
    let build = |rbuild: &Rbuild, place: &str| {
        let build = rbuild.build(&folder).args(["--slim=auto", ASK]);
        build.output("type=local", &out.path().join(place))
    };
    build(&Rbuild::new(), "expected").succeeds();
    let digest = |place: &str| crate::archive::digest_of_tree(&out.path().join(place));
    let expected = digest("expected");

    // Two do the work once.
    let both = [build(&rbuild, "one").start(), build(&rbuild, "two").start()].map(Outcome::of);
    let cached = both.iter().filter(|outcome| step(outcome).cached).count();
    assert_eq!(cached, 1, "{}\n{}", both[0], both[1]);
    assert_eq!((digest("one"), digest("two")), (expected.clone(), expected.clone()));

    // Killed at any moment of it.
    for round in 0..rounds(2) as u64 {
        let millis = 300 + 700 * round;
        let rbuild = Rbuild::new();
        let mut child = build(&rbuild, "killed").start();
        std::thread::sleep(std::time::Duration::from_millis(millis));
        // It may be done by now.
        let _ = child.kill();
        let _ = child.wait_with_output();
        build(&rbuild, &millis.to_string()).succeeds();
        assert_eq!(digest(&millis.to_string()), expected, "{millis}");
        rbuild.command().args(["cache", "verify"]).succeeds();
        assert_eq!(rbuild.leftovers(), Vec::<std::path::PathBuf>::new(), "{millis}");
    }

    // A disk that is too small for the layers, for the slim ones, for what the program writes.
    let large = server(
        "CMD [\"sh\", \"-c\", \"head -c 9000000 /dev/zero > /large && exec httpd -f -p 8000 -h /\"]\n",
    );
    let disk = scratch();
    let place = disk.path().to_str().unwrap();
    run("mount", &["-t", "tmpfs", "-o", "size=3m", "tmpfs", place]);
    let on_disk = Rbuild::at(&disk.path().join("root"));
    let build = || {
        let build = on_disk.build(&large).args(["--slim=auto", ASK]);
        build.output("type=local", &out.path().join("large")).run()
    };
    let mut outcomes = Vec::new();
    for size in ["3m", "10m", "200m"] {
        run("mount", &["-o", &format!("remount,size={size}"), place]);
        outcomes.push(build());
    }
    let verified = on_disk.command().args(["cache", "verify"]).run();
    let leftovers = on_disk.leftovers();
    run("umount", &["-l", place]);
    for refused in &outcomes[..2] {
        assert!([1, 3].contains(&refused.status.code().unwrap()), "{refused}");
    }
    assert!(outcomes[2].status.success(), "{}", outcomes[2]);
    assert!(out.path().join("large/words").exists());
    assert!(verified.status.success(), "{verified}");
    assert_eq!(leftovers, Vec::<std::path::PathBuf>::new());
}
