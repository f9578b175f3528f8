//! Pulling from and pushing to a real registry: open, with a password, over TLS.

use base64::Engine as _;

use crate::base::busybox;
use crate::needs::{self, Need, lacking};
use crate::rbuild::{Rbuild, context, write};
use crate::registry::{self, PASSWORD, TestRegistry, USER};

fn lacks() -> bool {
    lacking(&[&needs::STEPS[..], &registry::NEEDED].concat())
}

#[test]
fn a_base_comes_from_a_registry_and_the_image_goes_there() {
    if lacks() {
        return;
    }
    let (registry, rbuild) = (TestRegistry::open(), Rbuild::new());
    registry.put(busybox(), "team/base:v1");
    let base = registry.image("team/base:v1");
    let context =
        context(&[("Dockerfile", &format!("FROM {base}\nRUN echo hello > /said\nLABEL a=b\n"))]);
    let image = registry.image("app:v1");
    rbuild.build(&context).args(["-t", &image, "--push"]).succeeds();
    let inspected = registry.inspect("app:v1");
    assert_eq!(inspected["Labels"]["a"], "b");
    let base_layer = &registry.inspect("team/base:v1")["Layers"][0];
    assert_eq!(&inspected["Layers"][0], base_layer, "a base's layers are passed on as they are");

    // A build of the pushed image, by somebody who has nothing yet.
    let context =
        self::context(&[("Dockerfile", &format!("FROM {image}\nRUN grep hello /said\n"))]);
    Rbuild::new().build(&context).succeeds();
}

#[test]
fn a_name_without_a_registry_comes_from_its_mirror() {
    if lacks() {
        return;
    }
    let (registry, rbuild) = (TestRegistry::open(), Rbuild::new());
    registry.put(busybox(), "library/mirrored:latest");
    write(
        rbuild.home.path().join(".config/rbuild/registries.toml"),
        &format!("[registry.\"docker.io\"]\nmirrors = [\"http://{}\"]\n", registry.host),
    );
    let context = context(&[("Dockerfile", "FROM mirrored\nRUN true\n")]);
    rbuild.build(&context).succeeds();
}

#[test]
fn a_push_without_names_or_to_nowhere_fails() {
    if lacks() {
        return;
    }
    let rbuild = Rbuild::new();
    let context = context(&[("Dockerfile", "FROM scratch\nLABEL a=b\n")]);
    let outcome = rbuild.build(&context).args(["-t", "127.0.0.1:1/app:v1", "--push"]).exits(1);
    outcome.assert_stderr_has(&["127.0.0.1:1"]);
}

/// Writes docker's configuration as `docker login` does.
fn log_in(rbuild: &Rbuild, host: &str, password: &str) {
    let login = base64::prelude::BASE64_STANDARD.encode(format!("{USER}:{password}"));
    let config = serde_json::json!({"auths": {host: {"auth": login}}});
    write(rbuild.home.path().join(".docker/config.json"), &config.to_string());
}

#[test]
fn a_password_is_taken_from_dockers_configuration() {
    if lacks() {
        return;
    }
    let (registry, rbuild) = (TestRegistry::with_password(), Rbuild::new());
    registry.put(busybox(), "private/base:v1");
    let base = registry.image("private/base:v1");
    let context = context(&[("Dockerfile", &format!("FROM {base}\nRUN true\n"))]);
    let image = registry.image("private/app:v1");
    let build = || rbuild.build(&context).args(["-t", &image, "--push"]);

    build().exits(1).assert_stderr_has(&[&registry.host, "private/base"]);

    log_in(&rbuild, &registry.host, "wrong");
    let wrong = build().exits(1);
    assert!(!wrong.stderr.contains("wrong"), "a password is shown\n{wrong}");

    log_in(&rbuild, &registry.host, PASSWORD);
    let right = build().succeeds();
    assert!(!right.stderr.contains(PASSWORD), "a password is shown\n{right}");
    assert_eq!(registry.repositories(), ["private"]);
}

#[test]
fn a_certificate_must_be_vouched_for() {
    if lacks() || lacking(&[Need::Program("openssl")]) {
        return;
    }
    let (registry, rbuild) = (TestRegistry::with_tls(), Rbuild::new());
    registry.put(busybox(), "base:v1");
    let base = registry.image("base:v1");
    let context = context(&[("Dockerfile", &format!("FROM {base}\nRUN true\n"))]);
    let image = registry.image("app:v1");
    let build = || rbuild.build(&context).args(["-t", &image, "--push"]);
    build().exits(1).assert_stderr_has(&[&registry.host, "certificate"]);
    build().env("SSL_CERT_FILE", registry.certificate()).succeeds();
    assert_eq!(registry.repositories(), ["app", "base"]);
}

#[test]
fn tokens_are_asked_for_once_and_pushing_needs_a_login() {
    if lacks() || lacking(&[Need::Program("openssl")]) {
        return;
    }
    let (registry, rbuild) = (TestRegistry::with_tokens(), Rbuild::new());
    registry.put(busybox(), "public/base:v1");
    let base = registry.image("public/base:v1");
    let context = context(&[("Dockerfile", &format!("FROM {base}\nRUN true\nRUN true > /x\n"))]);
    let asked = registry.token_requests().len();
    rbuild.build(&context).succeeds();
    let pulling = &registry.token_requests()[asked..];
    assert_eq!(pulling.len(), 1, "one token for one repository: {pulling:?}");

    let image = registry.image("public/app:v1");
    let push = || rbuild.build(&context).args(["-t", &image, "--push"]);
    push().exits(1).assert_stderr_has(&[&registry.host, "public/app"]);
    log_in(&rbuild, &registry.host, PASSWORD);
    push().succeeds();
    assert_eq!(fs_err::read_dir(registry.repository("public")).unwrap().count(), 2);
}

#[test]
fn others_can_use_the_test_registries() {
    if lacks() || lacking(&[Need::Program("openssl")]) {
        return;
    }
    for registry in [
        TestRegistry::open(),
        TestRegistry::with_password(),
        TestRegistry::with_tls(),
        TestRegistry::with_tokens(),
    ] {
        registry.put(busybox(), "base:v1");
        assert_eq!(registry.repositories(), ["base"]);
    }
}
