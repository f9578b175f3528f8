//! Wrong input and wrong answers of registries: each message names the reference, the host, what was
//! tried and what to do.

use rbuild_cache::digest::Digest;

use crate::faulty_registry::{Asked, FaultyRegistry, Reply, status, with_header};
use crate::figure::{Mode, all_right};
use crate::needs::{Need, lacking};
use crate::rbuild::{Rbuild, Run, context, write};
use crate::registry::{self, TestRegistry, USER};

/// Whether `run` ends with `code` and says all of `words` without a panic.
fn says(what: &str, run: Run, code: i32, words: &[&str]) -> Mode {
    let outcome = run.run();
    let missing: Vec<_> = words.iter().filter(|word| !outcome.stderr.contains(**word)).collect();
    let right = outcome.status.code() == Some(code) && missing.is_empty();
    let wrong = format!("lacks {missing:?} or ends otherwise:\n{outcome}");
    Mode::new(what, if right { Ok(()) } else { Err(wrong) }, 0)
}

fn alone(run: Run) -> Run {
    run.env("NO_PROXY", "*").env("no_proxy", "*")
}

#[test]
fn what_cannot_be_pulled_is_explained() {
    let rbuild = Rbuild::new();
    let pull = |name: &str| alone(rbuild.command().args(["pull", name]));
    let empty = FaultyRegistry::start(|_| None);
    let answering = |fault: fn(&Asked) -> Option<Reply>| {
        let registry = FaultyRegistry::start(fault);
        registry.put("team/app:v1", &[b"layer".to_vec()]);
        registry
    };
    let odd = answering(|asked| {
        let headers = vec![("content-type".to_owned(), "application/x-odd+json".to_owned())];
        let body = br#"{"schemaVersion": 2, "mediaType": "application/x-odd+json"}"#.to_vec();
        asked.path.contains("/manifests/").then_some(Reply::Answer { status: 200, headers, body })
    });
    let old = answering(|asked| {
        let kind = "application/vnd.docker.distribution.manifest.v1+prettyjws";
        let headers = vec![("content-type".to_owned(), kind.to_owned())];
        let body = br#"{"schemaVersion": 1, "name": "team/app"}"#.to_vec();
        asked.path.contains("/manifests/").then_some(Reply::Answer { status: 200, headers, body })
    });
    let html = answering(|asked| {
        let headers = vec![("content-type".to_owned(), "text/html".to_owned())];
        let body = b"<html>log in here</html>".to_vec();
        asked.path.contains("/manifests/").then_some(Reply::Answer { status: 200, headers, body })
    });
    let forbidden = answering(|_| Some(status(403)));
    let closed = answering(|_| Some(with_header(401, "www-authenticate", "Basic realm=\"x\"")));
    let whole = answering(|_| None);
    let app = |registry: &FaultyRegistry| registry.image("team/app:v1");
    let missing = empty.image("team/app:v1");
    let foreign =
        |name: &str| alone(rbuild.command().args(["pull", "--platform", "linux/riscv64", name]));
    let mut modes = vec![
        says(
            "an unknown registry",
            pull("registry.invalid/team/app:v1"),
            1,
            &["registry.invalid/team/app:v1", "`registry.invalid`", "check the name"],
        ),
        says(
            "nobody listens",
            pull("127.0.0.1:1/team/app:v1"),
            1,
            &["127.0.0.1:1/team/app:v1", "`127.0.0.1:1`", "check the name"],
        ),
        says("404", pull(&missing), 1, &[&missing, &empty.host, "not found", "check the name"]),
        says("a manifest of an unknown type", pull(&app(&odd)), 1, &[&app(&odd), "x-odd"]),
        says("schema 1", pull(&app(&old)), 1, &[&app(&old)]),
        says("a page instead of a manifest", pull(&app(&html)), 1, &[&app(&html)]),
        says("403", pull(&app(&forbidden)), 1, &[&app(&forbidden), "403", "rbuild login"]),
        says(
            "a login is needed",
            pull(&app(&closed)),
            1,
            &[&app(&closed), &closed.host, "no credentials", "rbuild login"],
        ),
        says(
            "a platform that is not there",
            foreign(&app(&whole)),
            1,
            &[&app(&whole), "linux/riscv64", "linux/amd64"],
        ),
    ];
    for name in ["team/UPPER", "a b", "x@sha256:123", "host:port/x:y:z", "-", ""] {
        let mode = says(&format!("the name `{name}`"), pull(name), 2, &[name]);
        modes.push(mode);
    }
    let from = context(&[("Dockerfile", &format!("FROM {missing}\nLABEL a=b\n"))]);
    let build = alone(rbuild.command().arg("build").arg(from.path()));
    modes.push(says("FROM what is not there", build, 1, &["Dockerfile:1", &missing, "not found"]));
    let bad = context(&[("Dockerfile", "FROM team/UPPER\nLABEL a=b\n")]);
    let build = alone(rbuild.command().arg("build").arg(bad.path()));
    modes.push(says("FROM a bad name", build, 1, &["Dockerfile:1", "team/UPPER"]));
    all_right("bad input, pull:", &modes);
}

#[test]
fn what_cannot_be_pushed_or_trusted_is_explained() {
    let needs = [Need::Program("setpriv"), Need::Program("openssl")];
    if lacking(&[&registry::NEEDED[..], &needs].concat()) {
        return;
    }
    let (tls, password) = (TestRegistry::with_tls(), TestRegistry::with_password());
    let files = context(&[("Dockerfile", "FROM scratch\nCOPY file /\n"), ("file", "text")]);
    let rbuild = Rbuild::new();
    let push = |name: &str| {
        alone(rbuild.command().args(["build", "--push", "-t", name]).arg(files.path()))
    };
    // An authority that is not the registry's.
    let other = TestRegistry::with_tls();
    let trusted = rbuild.home.path().join(".config/rbuild/certs.d").join(&tls.host);
    fs_err::create_dir_all(&trusted).unwrap();
    fs_err::copy(other.certificate(), trusted.join("ca.crt")).unwrap();
    let (secure, private) = (tls.image("team/app:v1"), password.image("team/app:v1"));
    let login = |word: &str| {
        let login = rbuild.command().args(["login", "-u", USER, "--password-stdin"]);
        alone(login.arg(&password.host).stdin(word))
    };
    let mut modes = vec![
        says("a wrong CA", push(&secure), 1, &[&secure, &tls.host, "certificate", "certs.d"]),
        says("no login", push(&private), 1, &[&private, &password.host, "rbuild login"]),
        says("a wrong password", login("wrong"), 1, &[&password.host, USER]),
        says(
            "nobody to push to",
            push("127.0.0.1:1/a:v1"),
            1,
            &["127.0.0.1:1/a:v1", "rbuild push"],
        ),
        says(
            "push of what is not here",
            alone(rbuild.command().args(["push", "absent:v1"])),
            1,
            &["absent:v1", "rbuild images"],
        ),
    ];
    write(
        rbuild.home.path().join(".docker/config.json"),
        &format!(r#"{{"auths": {{"{}": {{"auth": "???"}}}}}}"#, password.host),
    );
    modes.push(says("a damaged login", push(&private), 1, &[&password.host]));
    write(rbuild.home.path().join(".docker/config.json"), "{");
    modes.push(says("a damaged config.json", push(&private), 1, &["config.json"]));
    all_right("bad input, push:", &modes);
}

#[test]
fn one_name_that_fails_does_not_keep_the_others_from_being_moved() {
    let rbuild = Rbuild::new();
    let good = FaultyRegistry::start(|_| None);
    let bad = FaultyRegistry::start(|_| Some(status(403)));
    let names = [good.image("a:v1"), bad.image("b:v1"), good.image("c:v1")];
    let dockerfile = context(&[("Dockerfile", "FROM scratch\nLABEL a=b\n")]);
    let tags = names.iter().flat_map(|name| ["-t", name]);
    rbuild.build(&dockerfile).args(tags).succeeds();

    let pushed = alone(rbuild.command().arg("push").args(&names)).exits(1);
    let digest = good.tag("a:v1").unwrap();
    assert_eq!(good.tag("c:v1"), Some(digest));
    assert_eq!(pushed.stdout, format!("{}@{digest}\n{}@{digest}\n", names[0], names[2]));
    pushed.assert_stderr_has(&[&names[1], "access denied"]);

    let exact = format!("{}@{digest}", names[2]);
    let pulled = alone(rbuild.command().args(["pull", &names[1], &exact])).exits(1);
    assert_eq!(pulled.stdout, format!("{exact}\n"), "which is a name");
}

#[test]
fn an_artifact_is_not_taken_for_an_image() {
    let rbuild = Rbuild::new();
    let registry = FaultyRegistry::start(|_| None);
    registry.put_blob(b"{}");
    let config = serde_json::json!({
        "mediaType": "application/vnd.cncf.helm.config.v1+json",
        "digest": Digest::of("{}"),
        "size": 2,
    });
    let chart = serde_json::json!({"schemaVersion": 2, "config": config, "layers": [config]});
    let media_type = "application/vnd.oci.image.manifest.v1+json";
    registry.put_document("chart:v1", media_type, chart.to_string().as_bytes());
    let name = registry.image("chart:v1");
    alone(rbuild.command().args(["pull", &name])).exits(1).assert_stderr_has(&[
        &name,
        "not an image, but an artifact of type `application/vnd.cncf.helm.config.v1+json`",
    ]);
}

#[test]
fn a_local_image_that_cannot_be_pushed_is_explained() {
    let rbuild = Rbuild::new();
    let registry = FaultyRegistry::start(|_| None);
    let name = registry.image("app:v1");
    let files = context(&[("Dockerfile", "FROM scratch\nCOPY file /\n"), ("file", "text\n")]);
    rbuild.build(&files).args(["-t", &name]).succeeds();
    let push = |flags: &[&str]| alone(rbuild.command().args(["push", &name]).args(flags)).exits(1);
    push(&["--platform", "linux/s390x"])
        .assert_stderr_has(&[&name, "there is no image for `linux/s390x` in it, only for `linux/"]);

    let format = ["inspect", "-f", "{{(index .Layers 0).digest}}", &name];
    let layer = rbuild.command().args(format).succeeds().stdout;
    let hex = layer.trim().strip_prefix("sha256:").unwrap();
    let path = rbuild.root.join("blobs/sha256").join(hex);
    let mut bytes = fs_err::read(&path).unwrap();
    bytes[20] ^= 1;
    fs_err::write(&path, bytes).unwrap();
    push(&[]).assert_stderr_has(&[&name, "is damaged", "`rbuild cache verify --repair`"]);
    assert_eq!(registry.tag("app:v1"), None);
}
