//! A real registry, Debian's `docker-registry`, on a free port of 127.0.0.1.

use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::needs::{Need, find};
use crate::rbuild::{run, scratch};
use crate::token_server::{ISSUER, TokenServer, Tokens, make_certificate};

/// What every test with a registry needs.
pub(crate) const NEEDED: [Need; 2] = [Need::Program("docker-registry"), Need::Program("skopeo")];

/// The user of a registry that asks for one.
pub(crate) const USER: &str = "builder";
/// That user's password; `HTPASSWD` holds its bcrypt hash.
pub(crate) const PASSWORD: &str = "correct horse";
const HTPASSWD: &str = "builder:$2y$05$iit7xmajbDlq9pNbBYI97eeh5m.U4UhJkRJUgfFc/wYu3ZKaycvEq\n";

/// A running registry; it ends with this value.
pub(crate) struct TestRegistry {
    /// `127.0.0.1:PORT`
    pub(crate) host: String,
    folder: TempDir,
    server: Child,
    tls: bool,
    tokens: Option<TokenServer>,
}

/// How a registry asks who is there.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Access {
    Anonymous,
    Password,
    Certificate,
    /// By tokens of a server of their own: pulling is open to everyone, pushing is not.
    Token,
}

impl TestRegistry {
    /// Plain HTTP, open to everyone.
    pub(crate) fn open() -> Self {
        Self::start(Access::Anonymous, false)
    }

    /// Plain HTTP, for `USER` alone.
    pub(crate) fn with_password() -> Self {
        Self::start(Access::Password, false)
    }

    /// HTTPS under a certificate that only `certificate()` vouches for.
    pub(crate) fn with_tls() -> Self {
        Self::start(Access::Anonymous, true)
    }

    /// HTTPS, for those who show the certificate that it shows itself.
    pub(crate) fn with_client_certificates() -> Self {
        Self::start(Access::Certificate, true)
    }

    /// Plain HTTP, with tokens: everyone may pull, `USER` may push.
    pub(crate) fn with_tokens() -> Self {
        Self::start(Access::Token, false)
    }

    /// Like [`Self::with_tokens`], with such tokens.
    pub(crate) fn with_such_tokens(tokens: Tokens) -> Self {
        Self::start_with(Access::Token, false, tokens)
    }

    /// With that access, over HTTPS or plain.
    pub(crate) fn start(access: Access, tls: bool) -> Self {
        Self::start_with(access, tls, Tokens { lifetime: 300, identity: false })
    }

    fn start_with(access: Access, tls: bool, tokens: Tokens) -> Self {
        let folder = scratch();
        if tls || access == Access::Token {
            make_certificate(folder.path());
        }
        let tokens = (access == Access::Token)
            .then(|| TokenServer::start(folder.path(), &format!("{USER}:{PASSWORD}"), tokens));
        let realm = tokens.as_ref().map_or("", |server| &server.realm).to_owned();
        // Between choosing a port and using it somebody else may take it.
        for _ in 0..5 {
            let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
            let host = format!("127.0.0.1:{port}");
            let config = folder.path().join("config.yml");
            fs_err::write(&config, configuration(folder.path(), &host, access, tls, &realm))
                .unwrap();
            let mut server = serve(&config);
            if answers(&host, &mut server) {
                return Self { host, folder, server, tls, tokens };
            }
            // It has ended by itself, or will be of no use: nothing is lost either way.
            let _ = server.kill();
            let _ = server.wait();
        }
        panic!("docker-registry does not start");
    }

    /// The name of an image in this registry.
    pub(crate) fn image(&self, name: &str) -> String {
        format!("{}/{name}", self.host)
    }

    /// Whether it speaks HTTPS.
    pub(crate) fn is_tls(&self) -> bool {
        self.tls
    }

    /// The registry's certificate, PEM.
    pub(crate) fn certificate(&self) -> PathBuf {
        assert!(self.tls, "this registry speaks plain HTTP");
        self.folder.path().join("certificate.pem")
    }

    /// The key of `certificate()`, PEM.
    pub(crate) fn key(&self) -> PathBuf {
        self.certificate().with_file_name("key.pem")
    }

    /// The requests that its token server got so far.
    pub(crate) fn token_requests(&self) -> Vec<String> {
        self.tokens.as_ref().map(|server| server.asked.lock().unwrap().clone()).unwrap_or_default()
    }

    /// What `skopeo inspect` says of an image in this registry.
    #[track_caller]
    pub(crate) fn inspect(&self, name: &str) -> serde_json::Value {
        let image = format!("docker://{}", self.image(name));
        serde_json::from_str(&run("skopeo", &["inspect", "--tls-verify=false", &image])).unwrap()
    }

    /// Puts the image of an OCI layout into this registry, by skopeo.
    #[track_caller]
    pub(crate) fn put(&self, layout: &Path, name: &str) {
        let source = format!("oci:{}:latest", layout.display());
        let target = format!("docker://{}", self.image(name));
        let credentials = format!("{USER}:{PASSWORD}");
        run(
            "skopeo",
            &[
                "copy",
                "-q",
                "--dest-tls-verify=false",
                "--dest-creds",
                &credentials,
                &source,
                &target,
            ],
        );
    }

    /// The folder of a repository, or of several with names below `name`.
    pub(crate) fn repository(&self, name: &str) -> PathBuf {
        self.folder.path().join("data/docker/registry/v2/repositories").join(name)
    }

    /// The first words of the names of all repositories.
    pub(crate) fn repositories(&self) -> Vec<String> {
        let Ok(entries) = fs_err::read_dir(self.repository("")) else { return Vec::new() };
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

impl Drop for TestRegistry {
    fn drop(&mut self) {
        // A server that is gone already is what is wanted.
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

fn configuration(folder: &Path, host: &str, access: Access, tls: bool, realm: &str) -> String {
    let folder = folder.display();
    let mut config = vec![format!(
        "version: 0.1\nlog: {{level: error}}\n\
         storage: {{filesystem: {{rootdirectory: {folder}/data}}}}\n\
         http:\n  addr: {host}\n"
    )];
    let clients = match access {
        Access::Certificate => format!(", clientcas: [{folder}/certificate.pem]"),
        Access::Anonymous | Access::Password | Access::Token => String::new(),
    };
    if tls {
        config.push(format!(
            "  tls: {{certificate: {folder}/certificate.pem, key: {folder}/key.pem{clients}}}\n"
        ));
    }
    match access {
        Access::Anonymous | Access::Certificate => {}
        Access::Password => {
            fs_err::write(format!("{folder}/htpasswd"), HTPASSWD).unwrap();
            let path = format!("{folder}/htpasswd");
            config.push(format!("auth: {{htpasswd: {{realm: tests, path: {path}}}}}\n"));
        }
        Access::Token => config.push(format!(
            "auth: {{token: {{realm: '{realm}', service: {ISSUER}, issuer: {ISSUER}, \
             rootcertbundle: {folder}/certificate.pem}}}}\n"
        )),
    }
    config.concat()
}

fn serve(config: &Path) -> Child {
    // setpriv lets the server end with the test, however that ends.
    Command::new("setpriv")
        .args(["--pdeathsig", "KILL"])
        .arg(find("docker-registry").unwrap())
        .arg("serve")
        .arg(config)
        .env("OTEL_TRACES_EXPORTER", "none")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

fn answers(host: &str, server: &mut Child) -> bool {
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(20) {
        if server.try_wait().unwrap().is_some() {
            return false;
        }
        if TcpStream::connect(host).is_ok() {
            return true;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    false
}
