//! `--load`: only what an engine lacks travels to it.

use std::process::{Command, Stdio};

use crate::containerd::{self, Containerd};
use crate::docker::{self, Docker};
use crate::faulty_registry::{FaultyRegistry, Reply};
use crate::needs::{self, Need, lacking};
use crate::podman::{self, Podman};
use crate::rbuild::{Outcome, Rbuild, context, scratch};

/// What an engine was sent: bytes in all, and how many layers were left out.
#[track_caller]
fn sent(outcome: &Outcome) -> (f64, usize) {
    let line = outcome.stderr.lines().find(|line| line.contains("loaded into"));
    let line = line.unwrap_or_else(|| panic!("nothing was loaded\n{outcome}"));
    let (_, said) = line.split_once("sent ").unwrap();
    let mut words = said.split([' ', ',']).filter(|word| !word.is_empty());
    let number: f64 = words.next().unwrap().parse().unwrap();
    let unit = match words.next().unwrap() {
        "B" => 1.0,
        "kB" => 1e3,
        "MB" => 1e6,
        other => panic!("{other}"),
    };
    (number * unit, words.next().unwrap().parse().unwrap())
}

/// More than half a megabyte that does not compress, in a layer of its own, below a small one.
fn sample(text: &str) -> tempfile::TempDir {
    let dockerfile = "FROM busybox\nRUN head -c 600000 /dev/urandom > /large\nCOPY small /small\n";
    context(&[("Dockerfile", dockerfile), ("small", text)])
}

#[test]
fn docker_is_sent_the_layers_that_it_lacks() {
    if lacking(&[&needs::STEPS[..], &docker::NEEDED, &[Need::Program("curl")]].concat()) {
        return;
    }
    let (rbuild, docker, one) = (Rbuild::new(), Docker::start(), sample("one"));
    let load = |host: &str, name: &str, folder: &tempfile::TempDir| {
        let run = rbuild.build(folder).args(["--load", "-t", name]).env("DOCKER_HOST", host);
        run.succeeds()
    };
    let first = load(&docker.unix(), "app:one", &one);
    let (bytes, layers) = sent(&first);
    assert!(bytes > 1_500_000.0 && layers == 0, "{first}");
    assert_eq!(docker.image("app:one")["RootFS"]["Layers"].as_array().unwrap().len(), 3);

    // All of it is there: just its documents travel. So over TCP.
    for host in [docker.unix(), docker.tcp()] {
        let again = load(&host, "app:again", &one);
        let (bytes, layers) = sent(&again);
        assert!(bytes < 20_000.0 && layers == 3, "{again}");
        again.assert_stderr_has(&[&format!("docker at {host}"), "3 of 3 layers were there"]);
    }
    assert_eq!(docker.image("app:again")["Id"], docker.image("app:one")["Id"]);

    // One small layer is new.
    fs_err::write(one.path().join("small"), "two").unwrap();
    let second = load(&docker.unix(), "app:two", &one);
    let (bytes, layers) = sent(&second);
    assert!(bytes < 40_000.0 && layers == 2, "{second}");
    let (old, new) = (docker.image("app:one"), docker.image("app:two"));
    assert_eq!(old["RootFS"]["Layers"][1], new["RootFS"]["Layers"][1]);
    assert_ne!(old["RootFS"]["Layers"][2], new["RootFS"]["Layers"][2]);

    // What is gone is sent again.
    for name in ["app:one", "app:again", "app:two"] {
        docker.remove(name);
    }
    let third = load(&docker.unix(), "app:two", &one);
    assert_eq!(sent(&third).1, 0, "{third}");

    // A context names an engine as well; and what docker saves is loaded.
    let tar = scratch();
    let file = tar.path().join("saved.tar");
    docker.save("app:two", file.to_str().unwrap());
    let other = Rbuild::new();
    let loaded = other.command().args(["load", "-i"]).arg(&file).succeeds();
    assert_eq!(loaded.stdout, "Loaded image: app:two\n");
    let id = other.command().args(["inspect", "-f", "{{.Id}}", "app:two"]).succeeds().stdout;
    assert_eq!(docker.image("app:two")["Id"], id.trim());
}

#[test]
fn podman_is_sent_the_layers_that_it_lacks() {
    if lacking(&[&needs::STEPS[..], &podman::NEEDED].concat()) {
        return;
    }
    let (rbuild, podman, folder) = (Rbuild::new(), Podman::new(), sample("one"));
    let run = tempfile::Builder::new().prefix("pm-").tempdir().unwrap();
    let socket = format!("unix://{}", run.path().join("s").display());
    let mut service = podman.command();
    service.args(["system", "service", "--time=0", &socket]);
    let mut service = service.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    while !run.path().join("s").exists() {
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    let load = |tags: &[&str]| {
        let run = rbuild.build(&folder).arg("--load").args(tags).env("DOCKER_HOST", &socket);
        run.run()
    };
    let first = load(&["-t", "app:one", "-t", "example.org/me/app:two"]);
    fs_err::write(folder.path().join("small"), "two").unwrap();
    let second = load(&["-t", "app:two"]);
    let names = podman.run(&["images", "--format", "{{.Repository}}:{{.Tag}}"]);
    // The service knows no other end.
    let _ = Command::new("kill").arg(service.id().to_string()).status();
    let _ = service.wait();
    assert!(first.status.success() && second.status.success(), "{first}\n{second}");
    assert_eq!(sent(&first).1, 0, "{first}");
    let (bytes, layers) = sent(&second);
    assert!(bytes < 40_000.0 && layers == 2, "{second}");
    second.assert_stderr_has(&["loaded into podman at unix://"]);
    for name in ["app:one", "app:two", "example.org/me/app:two"] {
        assert!(names.lines().any(|line| line.ends_with(name)), "{names}");
    }
    assert_eq!(podman.run_image("app:two", &["cat", "/small"]), "two");
}

/// Docker's engine as far as loading sees it, where it keeps images in containerd's store.
fn containerd_store(answer: &'static str) -> FaultyRegistry {
    FaultyRegistry::start(move |asked| {
        let body = match asked.path.as_str() {
            "/version" => r#"{"Components":[{"Name":"Engine"}]}"#,
            "/info" => r#"{"DriverStatus":[["driver-type","io.containerd.snapshotter.v1"]]}"#,
            "/images/load?quiet=1" => answer,
            _ => return None,
        };
        Some(Reply::Answer { status: 200, headers: Vec::new(), body: body.into() })
    })
}

#[test]
fn a_store_that_keeps_blobs_is_sent_all_of_them_at_once() {
    if lacking(&needs::STEPS) {
        return;
    }
    let (rbuild, folder) = (Rbuild::new(), sample("one"));
    let load = |engine: &FaultyRegistry| {
        let host = format!("tcp://{}", engine.host);
        rbuild.build(&folder).args(["--load", "-t", "app:one"]).env("DOCKER_HOST", host).run()
    };
    let engine = containerd_store("{\"stream\":\"Loaded image: app:one\\n\"}\r\n");
    let loaded = load(&engine);
    assert!(loaded.status.success(), "{loaded}");
    let (bytes, layers) = sent(&loaded);
    assert!(bytes > 500_000.0 && layers == 0, "{loaded}");
    let asked = engine.asked();
    let loads = asked.iter().filter(|asked| asked.method == "POST").count();
    assert_eq!(loads, 1, "nothing is asked by sending");
    // An answer that breaks off says nothing of success.
    let torn = load(&containerd_store("{\"stream\":\"Loa"));
    assert!(!torn.status.success());
    torn.assert_stderr_has(&["its answer cannot be read"]);
}

#[test]
fn a_damaged_layer_is_named_and_not_what_the_engine_makes_of_it() {
    if lacking(&needs::STEPS) {
        return;
    }
    let (rbuild, folder) = (Rbuild::new(), sample("one"));
    let engine = containerd_store("{\"stream\":\"Loaded image\"}\r\n");
    let load = || {
        let host = format!("tcp://{}", engine.host);
        rbuild.build(&folder).args(["--load", "-t", "app:one"]).env("DOCKER_HOST", host).run()
    };
    assert!(load().status.success());
    let blobs = fs_err::read_dir(rbuild.root.join("blobs/sha256")).unwrap();
    let mut blobs = blobs.map(|blob| blob.unwrap().path());
    let layer =
        blobs.find(|blob| (600_000..700_000).contains(&fs_err::metadata(blob).unwrap().len()));
    let layer = layer.unwrap();
    let mut bytes = fs_err::read(&layer).unwrap();
    bytes[400_000] ^= 1;
    fs_err::write(&layer, bytes).unwrap();
    let damaged = load();
    assert!(!damaged.status.success(), "{damaged}");
    damaged.assert_stderr_has(&["is damaged", layer.file_name().unwrap().to_str().unwrap()]);
}

#[test]
fn an_engine_that_dies_while_it_is_sent_to_is_named() {
    if lacking(&needs::STEPS) {
        return;
    }
    let (rbuild, folder) = (Rbuild::new(), sample("one"));
    let engine = FaultyRegistry::start(|asked| {
        let body = match asked.path.as_str() {
            "/version" => r#"{"Components":[{"Name":"Engine"}]}"#,
            "/info" => r#"{"DriverStatus":[["Backing Filesystem","extfs"]]}"#,
            "/images/json" => r#"[{"Id":"sha256:one"},{"Id":"sha256:two"}]"#,
            "/images/load?quiet=1" => return Some(Reply::TakesOnly(100_000)),
            // Of the images it says nothing: the connection breaks.
            _ => return Some(Reply::Reset),
        };
        Some(Reply::Answer { status: 200, headers: Vec::new(), body: body.into() })
    });
    let host = format!("tcp://{}", engine.host);
    let run = rbuild.build(&folder).args(["--debug", "--load", "-t", "app:one"]);
    let died = run.env("DOCKER_HOST", &host).run();
    assert!(!died.status.success(), "{died}");
    let said = ["the engine says nothing of this image", "sha256:two"];
    died.assert_stderr_has(&[&format!("docker at {host}: "), said[0], said[1]]);
    assert!(!died.stderr.contains("loaded into"), "{died}");
}

#[test]
fn what_a_containerd_store_is_sent_containerd_imports_under_its_names() {
    if lacking(&[&needs::STEPS[..], &containerd::NEEDED].concat()) {
        return;
    }
    let (rbuild, folder) = (Rbuild::new(), sample("one"));
    let containerd = Containerd::start();
    let engine = containerd_store("{\"stream\":\"Loaded image\"}\r\n");
    let send = |flags: &[&str], how: &[&str]| {
        let host = format!("tcp://{}", engine.host);
        let run = rbuild.build(&folder).arg("--load").args(flags).env("DOCKER_HOST", host);
        run.succeeds();
        let tar = scratch();
        let path = tar.path().join("sent.tar");
        fs_err::write(&path, engine.taken("/images/load?quiet=1").pop().unwrap()).unwrap();
        // It unpacks the layers, and so compares them with their digests.
        let import = ["images", "import", "--snapshotter", "native"];
        containerd.ctr(&[&import[..], how, &[path.to_str().unwrap()]].concat())
    };
    send(&["-t", "app:one", "-t", "example.org/me/app:two"], &[]);
    let names = containerd.ctr(&["images", "ls", "-q"]);
    let names: Vec<&str> = names.lines().collect();
    assert_eq!(names, ["docker.io/library/app:one", "example.org/me/app:two"]);
    // Without a name it is an image all the same.
    let said = send(&["--label", "other=1"], &["--base-name", "sent", "--digests"]);
    assert!(said.contains("sha256:"), "{said}");
}

#[test]
fn an_engine_that_is_not_there_is_named() {
    let rbuild = Rbuild::new();
    let folder = context(&[("Dockerfile", "FROM scratch\nLABEL a=b\n")]);
    let load = |host: &str| {
        let run = rbuild.command().args(["build", "--load", "-t", "app"]).arg(folder.path());
        run.env("DOCKER_HOST", host).run()
    };
    let gone = load("unix:///no/such/socket");
    assert!(!gone.status.success());
    gone.assert_stderr_has(&[
        "unix:///no/such/socket",
        "cannot be reached",
        "type=docker,dest=FILE",
    ]);
    load("nothing").assert_stderr_has(&["`nothing` is no address of an engine"]);
    // Some server that speaks HTTP, and is none.
    let hello = Reply::Answer { status: 200, headers: Vec::new(), body: b"hello".into() };
    let other = FaultyRegistry::start(move |_| Some(hello.clone()));
    let answered = load(&format!("tcp://{}", other.host));
    assert!(!answered.status.success());
    answered.assert_stderr_has(&[&other.host, "`/version`: no container engine answers so"]);
    // Over ssh goes what `docker` makes of it; without it, or without a host there, that is said.
    let far = load("ssh://nobody@127.0.0.1:9");
    assert!(!far.status.success());
    far.assert_stderr_has(&["ssh://nobody@127.0.0.1:9", "docker"]);
    let context = rbuild.command().args(["build", "-o", "type=docker,context=far"]);
    let context = context.arg(folder.path()).run();
    context.assert_stderr_has(&["there is no docker context `far`"]);
}
