//! Ways to be let in, against Debian's registry: tokens that end soon, tokens instead of passwords,
//! helpers, mirrors of other tools' files, proxies.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rbuild::registry::RegistrySettings;

use crate::base::busybox;
use crate::needs::{Need, lacking};
use crate::rbuild::{Rbuild, Run, context, json, write};
use crate::registry::{self, PASSWORD, TestRegistry, USER};
use crate::registry_client::{Side, noise};
use crate::token_server::Tokens;

fn lacks() -> bool {
    lacking(
        &[&registry::NEEDED[..], &[Need::Program("setpriv"), Need::Program("openssl")]].concat(),
    )
}

fn login(rbuild: &Rbuild, registry: &TestRegistry) -> Run {
    let login = rbuild.command().args(["login", "-u", USER, "--password-stdin"]);
    login.arg(&registry.host).stdin(PASSWORD)
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_of_two_seconds_are_renewed_between_requests() {
    if lacks() {
        return;
    }
    let registry = TestRegistry::with_such_tokens(Tokens { lifetime: 2, identity: false });
    let side = Side::new();
    side.log_in(&registry.host).await;
    // One client from here on, as in one build.
    let side = Side { images: side.again().images, folder: Arc::clone(&side.folder) };
    let name = registry.image("team/app:v1");
    for round in 0..3 {
        side.make(&name, &[noise(round, 100_000)]);
        let pushed = side.push(&name).await.unwrap();
        assert_eq!(pushed.sent, 2, "round {round}");
        tokio::time::sleep(Duration::from_millis(2100)).await;
        side.pull(&name).await.unwrap();
    }
    let writing = |asked: &&String| asked.contains("push");
    let asked = registry.token_requests();
    assert!(asked.iter().filter(writing).count() >= 3, "{asked:?}");
    assert!(asked.len() <= 8, "no more than one a round and scope: {asked:?}");
}

#[test]
fn an_identity_token_is_kept_instead_of_the_password() {
    if lacks() {
        return;
    }
    let registry = TestRegistry::with_such_tokens(Tokens { lifetime: 300, identity: true });
    let rbuild = Rbuild::new();
    login(&rbuild, &registry).succeeds();
    let config = json(rbuild.home.path().join(".docker/config.json"));
    assert_eq!(config["auths"][&registry.host]["identitytoken"], "identity-of-builder");
    assert!(
        !config.to_string().contains(PASSWORD) && config["auths"].as_object().unwrap().len() == 1
    );

    let files = context(&[("Dockerfile", "FROM scratch\nCOPY file /\n"), ("file", "text")]);
    let name = registry.image("team/app:v1");
    rbuild.command().args(["build", "--push", "-t", &name]).arg(files.path()).succeeds();
    let asked = registry.token_requests();
    let last = asked.last().unwrap();
    assert!(last.starts_with("POST /token?grant_type=refresh_token"), "{asked:?}");
}

#[test]
fn a_credential_store_is_asked_and_told() {
    if lacks() {
        return;
    }
    let (registry, rbuild) = (TestRegistry::with_password(), Rbuild::new());
    let helper = rbuild.home.path().join("bin/docker-credential-rbuild-test");
    write(
        &helper,
        "#!/bin/sh\nkept=$HOME/kept\ncase $1 in\nstore) cat > \"$kept\" ;;\n\
         get) cat > /dev/null; cat \"$kept\" 2>/dev/null && exit\n\
         echo 'credentials not found in native keychain'; exit 1 ;;\n\
         erase) cat > /dev/null; rm \"$kept\" ;;\nesac\n",
    );
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs_err::set_permissions(&helper, mode).unwrap();
    let config = rbuild.home.path().join(".docker/config.json");
    write(&config, r#"{"credsStore": "rbuild-test"}"#);
    let path = format!(
        "{}:{}",
        helper.parent().unwrap().display(),
        std::env::var("PATH").unwrap_or_default()
    );
    let files = context(&[("Dockerfile", "FROM scratch\nCOPY file /\n"), ("file", "text")]);
    let name = registry.image("team/app:v1");
    let push = || {
        let build = rbuild.command().args(["build", "--push", "-t", &name]).env("PATH", &path);
        build.arg(files.path())
    };
    push().exits(1).assert_stderr_has(&["rbuild login"]);
    login(&rbuild, &registry).env("PATH", &path).succeeds();
    assert!(!fs_err::read_to_string(&config).unwrap().contains("auth\""), "only the helper has it");
    push().succeeds();
    rbuild.command().args(["logout", &registry.host]).env("PATH", &path).succeeds();
    assert!(!rbuild.home.path().join("kept").exists());
}

#[test]
fn mirrors_of_podmans_and_dockers_files_are_used() {
    if lacks() {
        return;
    }
    let registry = TestRegistry::open();
    registry.put(busybox(), "library/mirrored:v1");
    let host = &registry.host;
    for (file, text, name) in [
        (
            ".config/containers/registries.conf",
            format!(
                "[[registry]]\nprefix = \"example.invalid/team\"\nlocation = \"{host}/library\"\n\
                 insecure = true\n"
            ),
            "example.invalid/team/mirrored:v1",
        ),
        (
            ".config/containers/registries.conf.d/mirror.conf",
            format!(
                "[[registry]]\nlocation = \"example.invalid\"\n[[registry.mirror]]\n\
                 location = \"{host}\"\ninsecure = true\n"
            ),
            "example.invalid/library/mirrored:v1",
        ),
        (
            ".config/docker/daemon.json",
            format!(r#"{{"registry-mirrors": ["http://{host}"]}}"#),
            "mirrored:v1",
        ),
    ] {
        let rbuild = Rbuild::new();
        let config = rbuild.home.path().join(".config/containers/registries.conf");
        write(&config, "");
        write(rbuild.home.path().join(file), &text);
        rbuild.command().args(["pull", name]).succeeds();
    }
}

/// A proxy that takes everybody to `target`, whomever they want: what it was asked.
fn proxy(target: &str) -> (String, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let (asked, target) = (Arc::new(Mutex::new(Vec::new())), target.to_owned());
    let noted = Arc::clone(&asked);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (mut client, server) = (stream.unwrap(), TcpStream::connect(&target).unwrap());
            let mut reader = BufReader::new(client.try_clone().unwrap());
            let mut line = String::new();
            reader.read_line(&mut line).unwrap();
            noted.lock().unwrap().push(line.trim_end().to_owned());
            while !line.trim_end().is_empty() {
                line.clear();
                reader.read_line(&mut line).unwrap();
            }
            client.write_all(b"HTTP/1.1 200 OK\r\n\r\n").unwrap();
            let (mut up, mut down) = (server.try_clone().unwrap(), server);
            // Either end may be gone first.
            std::thread::spawn(move || drop(std::io::copy(&mut reader, &mut up)));
            std::thread::spawn(move || drop(std::io::copy(&mut down, &mut client)));
        }
    });
    (address, asked)
}

#[test]
fn a_registry_behind_a_proxy_is_reached_through_it() {
    if lacks() {
        return;
    }
    let (registry, rbuild) = (TestRegistry::with_tls(), Rbuild::new());
    registry.put(busybox(), "team/app:v1");
    let (address, asked) = proxy(&registry.host);
    write(
        rbuild.home.path().join(".config/rbuild/registries.toml"),
        "[registry.\"registry.invalid\"]\ninsecure = true\n",
    );
    let pull = || {
        let pull = rbuild.command().args(["pull", "registry.invalid/team/app:v1"]);
        pull.env("HTTPS_PROXY", &address).env("https_proxy", &address)
    };
    pull().env("NO_PROXY", "").env("no_proxy", "").succeeds();
    let requests = asked.lock().unwrap().clone();
    assert!(requests.iter().all(|line| line == "CONNECT registry.invalid:443 HTTP/1.1"));
    assert!(!requests.is_empty());
    let past = pull().env("NO_PROXY", ".invalid").env("no_proxy", ".invalid").exits(1);
    past.assert_stderr_has(&["registry.invalid", "team/app:v1"]);
    assert_eq!(*asked.lock().unwrap(), requests, "it is not asked for what NO_PROXY names");
}

#[tokio::test]
async fn settings_of_a_user_are_read_from_the_usual_places() {
    let home = tempfile::tempdir().unwrap();
    let settings = RegistrySettings::from_environment(|name| {
        (name == "HOME").then(|| home.path().as_os_str().to_owned())
    });
    assert_eq!(settings.docker_config, Some(home.path().join(".docker")));
    assert!(settings.certificates.contains(&home.path().join(".config/rbuild/certs.d")));
    assert!(settings.docker_daemon.contains(&home.path().join(".config/docker/daemon.json")));
}
