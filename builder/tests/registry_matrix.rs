//! Registry × auth × operation: the program against Debian's registry in every way that it can be
//! asked, each cell once.

use std::path::Path;

use crate::figure::{Mode, all_right};
use crate::needs::{Need, lacking};
use crate::rbuild::{Outcome, Rbuild, Run, context, run};
use crate::registry::{self, Access, PASSWORD, TestRegistry, USER};

fn lacks() -> bool {
    lacking(
        &[&registry::NEEDED[..], &[Need::Program("setpriv"), Need::Program("openssl")]].concat(),
    )
}

/// One user of one registry.
struct User<'a> {
    registry: &'a TestRegistry,
    rbuild: Rbuild,
}

impl<'a> User<'a> {
    /// Somebody with an empty state folder, who trusts the registry.
    fn of(registry: &'a TestRegistry) -> Self {
        let rbuild = Rbuild::new();
        if registry.is_tls() {
            let folder = rbuild.home.path().join(".config/rbuild/certs.d").join(&registry.host);
            fs_err::create_dir_all(&folder).unwrap();
            fs_err::copy(registry.certificate(), folder.join("ca.crt")).unwrap();
            fs_err::copy(registry.certificate(), folder.join("me.cert")).unwrap();
            fs_err::copy(registry.key(), folder.join("me.key")).unwrap();
        }
        Self { registry, rbuild }
    }

    fn login(&self, password: &str) -> Run {
        let login = self.rbuild.command().args(["login", "-u", USER, "--password-stdin"]);
        login.arg(&self.registry.host).stdin(password)
    }

    fn run(&self, args: &[&str]) -> Run {
        self.rbuild.command().args(args)
    }

    fn build(&self, context: &Path, name: &str) -> Run {
        self.run(&["build", "--push", "-t", &self.registry.image(name)]).arg(context)
    }
}

/// Whether a run went as it should: `Ok` when it ended with `code` and said all of `words`.
fn ends(run: Run, code: i32, words: &[&str]) -> Result<(), String> {
    let outcome: Outcome = run.run();
    let all = format!("{}{}", outcome.stdout, outcome.stderr);
    let missing = words.iter().find(|word| !all.contains(**word));
    if outcome.status.code() == Some(code) && missing.is_none() && !all.contains(PASSWORD) {
        return Ok(());
    }
    Err(format!("should end with {code} and say {words:?}:\n{outcome}"))
}

/// All operations on one registry.
fn row(what: &str, registry: &TestRegistry, access: Access, modes: &mut Vec<Mode>) {
    let mut cell = |operation: &str, outcome| {
        modes.push(Mode::new(&format!("{what}, {operation}"), outcome, 0));
    };
    let host = registry.host.as_str();
    let files = context(&[("Dockerfile", "FROM scratch\nCOPY file /\n"), ("file", "text")]);
    let needs_login = matches!(access, Access::Password | Access::Token);
    let user = User::of(registry);
    if needs_login {
        let refused = user.build(files.path(), "team/app:v1");
        cell("push without a login", ends(refused, 1, &[host, "team/app", "rbuild login"]));
        cell("login, wrong password", ends(user.login("wrong"), 1, &[host, USER]));
        cell("login", ends(user.login(PASSWORD), 0, &[]));
    } else {
        // A registry that asks nobody takes any login.
        cell("login", ends(user.login(PASSWORD), 0, &[]));
    }
    cell("build --push", ends(user.build(files.path(), "team/app:v1"), 0, &[]));
    cell("the same again", ends(user.build(files.path(), "team/app:v1"), 0, &[]));

    let reader = User::of(registry);
    let name = registry.image("team/app:v1");
    if access == Access::Password {
        let refused = reader.run(&["pull", &name]);
        cell("pull without a login", ends(refused, 1, &[host, "team/app", "rbuild login"]));
        cell("login to pull", ends(reader.login(PASSWORD), 0, &[]));
    }
    cell("pull", ends(reader.run(&["pull", &name]), 0, &[&name]));
    let absent = registry.image("team/app:absent");
    cell("pull of what is not there", ends(reader.run(&["pull", &absent]), 1, &[host, ":absent"]));
    let other = registry.image("other/app:v1");
    cell("tag", ends(reader.run(&["tag", &name, &other]), 0, &[]));
    if access == Access::Token {
        cell("login to push", ends(reader.login(PASSWORD), 0, &[]));
    }
    cell("push to another repository", ends(reader.run(&["push", &other]), 0, &[&other]));
    let base =
        context(&[("Dockerfile", &format!("FROM {other}\nCOPY file /new\n")), ("file", "b")]);
    cell("FROM and push", ends(reader.build(base.path(), "other/app:v2"), 0, &[]));
    if needs_login {
        cell("logout", ends(reader.run(&["logout", host]), 0, &[]));
        let again = reader.build(files.path(), "team/app:v3");
        cell("push after logout", ends(again, 1, &[host, "rbuild login"]));
    }
    // A second client agrees on what is there.
    let mut skopeo = vec!["inspect", "--raw", "--tls-verify=false"];
    let credentials = format!("{USER}:{PASSWORD}");
    if needs_login {
        skopeo.extend(["--creds", &credentials]);
    }
    let certificates = user.rbuild.home.path().join(".config/rbuild/certs.d").join(host);
    let certificates = certificates.display().to_string();
    if registry.is_tls() {
        skopeo.extend(["--cert-dir", &certificates]);
    }
    let image = format!("docker://{}", registry.image("other/app:v2"));
    skopeo.push(&image);
    let manifest: serde_json::Value = serde_json::from_str(&run("skopeo", &skopeo)).unwrap();
    let layers = manifest["layers"].as_array().map_or(0, Vec::len);
    cell("skopeo", if layers == 2 { Ok(()) } else { Err(manifest.to_string()) });
}

#[test]
fn every_operation_on_every_registry_with_every_auth() {
    if lacks() {
        return;
    }
    let mut modes = Vec::new();
    for (what, access, tls) in [
        ("plain", Access::Anonymous, false),
        ("plain, password", Access::Password, false),
        ("plain, tokens", Access::Token, false),
        ("TLS", Access::Anonymous, true),
        ("TLS, password", Access::Password, true),
        ("TLS, tokens", Access::Token, true),
        ("TLS, client certificate", Access::Certificate, true),
    ] {
        row(what, &TestRegistry::start(access, tls), access, &mut modes);
    }
    all_right("registry x auth x operation:", &modes);
}
