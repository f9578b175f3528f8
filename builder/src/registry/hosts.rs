//! Where the images of a registry name are really asked for: mirrors, plain HTTP, unverified TLS.
//!
//! Read, strongest first: rbuild's `registries.toml` (the `[registry]` table of BuildKit's
//! `buildkitd.toml`, so that one can be copied over), podman's `registries.conf` (version 2,
//! containers-registries.conf(5)), docker's `daemon.json`. The first file that names a registry's
//! mirrors decides about its mirrors.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use rbuild_cache::oci::ImageRef;
use serde::Deserialize;

use super::proxy;
use super::settings::RegistrySettings;

/// One place where a repository is asked for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Endpoint {
    /// Host and port as they stand in an address.
    pub host: String,
    /// The repository's name there; a mirror may put a prefix before it.
    pub repository: String,
    /// How to speak to it: tried in order until one is understood.
    pub schemes: Vec<Scheme>,
    /// Whether it stands in for another host.
    pub mirror: bool,
}

/// How a host is spoken to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scheme {
    /// TLS, the certificate verified.
    Https,
    /// TLS with whatever certificate comes.
    HttpsUnverified,
    /// No TLS.
    Http,
}

/// What the configuration files say about registries.
#[derive(Clone, Debug, Default)]
pub struct Hosts {
    own: BTreeMap<String, OwnRegistry>,
    podman: Vec<PodmanRegistry>,
    docker_mirrors: Vec<String>,
    docker_insecure: Vec<String>,
}

/// Says what is wrong with a file that configures registries.
#[derive(Debug, thiserror::Error)]
pub enum HostsError {
    /// It could not be read.
    #[error(transparent)]
    Read(#[from] std::io::Error),
    /// It is not TOML, or says something that is not known.
    #[error("`{path}` is not a list of registries: {reason}")]
    Syntax {
        /// Which file.
        path: PathBuf,
        /// What the parser says.
        reason: String,
    },
    /// `blocked = true` in podman's `registries.conf`.
    #[error("`{prefix}` is blocked in registries.conf")]
    Blocked {
        /// The rule's prefix.
        prefix: String,
    },
}

/// One `[registry."HOST"]` of `registries.toml`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OwnRegistry {
    /// Hosts that are asked first, with an optional scheme before and path behind.
    #[serde(default)]
    pub mirrors: Vec<String>,
    /// The host speaks plain HTTP (`false`: never, not even on loopback).
    pub http: Option<bool>,
    /// The host's certificate is not verified.
    #[serde(default)]
    pub insecure: bool,
    /// PEM files with the authorities that sign the host's certificate.
    #[serde(default)]
    pub ca: Vec<PathBuf>,
    /// Certificates that rbuild shows to the host.
    #[serde(default)]
    pub keypair: Vec<KeyPair>,
}

/// A client certificate and its key, as PEM files.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyPair {
    /// The private key.
    pub key: PathBuf,
    /// The certificate.
    pub cert: PathBuf,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct OwnFile {
    #[serde(default)]
    registry: BTreeMap<String, OwnRegistry>,
}

#[derive(Clone, Debug, Deserialize)]
struct PodmanRegistry {
    prefix: Option<String>,
    location: Option<String>,
    #[serde(default)]
    insecure: bool,
    #[serde(default)]
    blocked: bool,
    #[serde(default, rename = "mirror-by-digest-only")]
    mirror_by_digest_only: bool,
    #[serde(default)]
    mirror: Vec<PodmanMirror>,
}

#[derive(Clone, Debug, Deserialize)]
struct PodmanMirror {
    location: String,
    #[serde(default)]
    insecure: bool,
    #[serde(rename = "pull-from-mirror")]
    pull_from_mirror: Option<String>,
}

#[derive(Deserialize)]
struct PodmanFile {
    #[serde(default)]
    registry: Vec<PodmanRegistry>,
}

#[derive(Deserialize)]
struct DockerFile {
    #[serde(default, rename = "registry-mirrors")]
    mirrors: Vec<String>,
    #[serde(default, rename = "insecure-registries")]
    insecure: Vec<String>,
}

impl Hosts {
    /// Reads the files that `settings` names; those that do not exist say nothing.
    pub fn load(settings: &RegistrySettings) -> Result<Self, HostsError> {
        let mut hosts = Self::default();
        for path in &settings.registries {
            let Some(text) = read(path, settings.registries_named)? else { continue };
            for (host, registry) in hosts_of_own_file(path, &text)? {
                hosts.own.entry(host).or_insert(registry);
            }
        }
        for path in &settings.podman_registries {
            if let Some(text) = read(path, false)? {
                hosts.podman = podman_rules(path, &text)?;
                break;
            }
        }
        // Those of the user come last, and hold; those of the machine count beside a file of the
        // user's, too.
        for path in settings.podman_registries.iter().rev() {
            add_drop_ins(path, &mut hosts.podman)?;
        }
        for path in &settings.docker_daemon {
            let Some(text) = read(path, false)? else { continue };
            let file: DockerFile = serde_json::from_str(&text).map_err(|e| syntax(path, &e))?;
            hosts.docker_mirrors.extend(file.mirrors);
            hosts.docker_insecure.extend(file.insecure);
        }
        Ok(hosts)
    }

    /// Where `image` is pulled from: mirrors first, the registry itself last.
    ///
    /// # Errors
    /// When podman's configuration blocks it.
    pub fn pull_endpoints(&self, image: &ImageRef) -> Result<Vec<Endpoint>, HostsError> {
        let itself = self.push_endpoint(image)?;
        let mut endpoints = self.mirrors(image);
        endpoints.push(itself);
        Ok(endpoints)
    }

    /// Where `image` is pushed to: the registry itself, never a mirror.
    ///
    /// # Errors
    /// When podman's configuration blocks it.
    pub fn push_endpoint(&self, image: &ImageRef) -> Result<Endpoint, HostsError> {
        let name = image.registry();
        if let Some(rule) = self.podman_rule(image) {
            if rule.blocked {
                return Err(HostsError::Blocked { prefix: rule.name().to_owned() });
            }
            if let Some(location) = rule.location.as_deref().filter(|l| *l != rule.name()) {
                let location = rewrite(rule.name(), location, image);
                return Ok(self.endpoint(&location, rule.insecure, false));
            }
        }
        let insecure = self.podman_rule(image).is_some_and(|rule| rule.insecure);
        let host = if name == "docker.io" { "registry-1.docker.io" } else { name };
        let schemes = match self.own.get(name).and_then(OwnRegistry::schemes) {
            Some(schemes) => schemes,
            None => self.schemes(host, insecure),
        };
        Ok(Endpoint {
            host: host.to_owned(),
            repository: image.repository().to_owned(),
            schemes,
            mirror: false,
        })
    }

    /// What `registries.toml` says of the certificates of `host`.
    pub fn own(&self, host: &str) -> Option<&OwnRegistry> {
        let name = if host == "registry-1.docker.io" { "docker.io" } else { host };
        self.own.get(host).or_else(|| self.own.get(name))
    }

    fn mirrors(&self, image: &ImageRef) -> Vec<Endpoint> {
        let name = image.registry();
        if let Some(own) = self.own.get(name).filter(|own| !own.mirrors.is_empty()) {
            let below = |mirror: &String| format!("{mirror}/{}", image.repository());
            return own.mirrors.iter().map(|m| self.endpoint(&below(m), false, true)).collect();
        }
        if let Some(rule) = self.podman_rule(image).filter(|rule| !rule.mirror.is_empty()) {
            let by_digest = image.digest().is_some();
            let used = |mirror: &&PodmanMirror| match mirror.pull_from_mirror.as_deref() {
                Some("digest-only") => by_digest,
                Some("tag-only") => !by_digest,
                _ => by_digest || !rule.mirror_by_digest_only,
            };
            return rule
                .mirror
                .iter()
                .filter(used)
                .map(|m| self.endpoint(&rewrite(rule.name(), &m.location, image), m.insecure, true))
                .collect();
        }
        if name != "docker.io" {
            return Vec::new();
        }
        let below =
            |mirror: &String| format!("{}/{}", mirror.trim_end_matches('/'), image.repository());
        self.docker_mirrors.iter().map(|m| self.endpoint(&below(m), false, true)).collect()
    }

    /// The endpoint at `address`: `[scheme://]host[:port]/repository`.
    fn endpoint(&self, address: &str, insecure: bool, mirror: bool) -> Endpoint {
        let (scheme, rest) = match address.split_once("://") {
            Some((scheme, rest)) => (Some(scheme), rest),
            None => (None, address),
        };
        let (host, repository) = rest.split_once('/').unwrap_or((rest, ""));
        let host = if host == "docker.io" { "registry-1.docker.io" } else { host };
        let configured = self.own.get(host).and_then(OwnRegistry::schemes);
        let schemes = match (scheme, configured) {
            (Some("http"), _) => vec![Scheme::Http],
            (_, Some(configured)) => configured,
            (Some("https"), None) => {
                let mut schemes = self.schemes(host, insecure);
                schemes.retain(|scheme| *scheme != Scheme::Http);
                if schemes.is_empty() { vec![Scheme::Https] } else { schemes }
            }
            _ => self.schemes(host, insecure),
        };
        Endpoint { host: host.to_owned(), repository: repository.to_owned(), schemes, mirror }
    }

    /// How to speak to a host about which `registries.toml` says nothing. This machine may speak
    /// plain HTTP without being asked, like with docker.
    fn schemes(&self, host: &str, insecure: bool) -> Vec<Scheme> {
        let name = host_name(host);
        let insecure = insecure || self.docker_insecure.iter().any(|entry| matches(entry, host));
        match (proxy::is_loopback(name), insecure) {
            (true, false) => vec![Scheme::Http, Scheme::Https],
            (true, true) => vec![Scheme::Http, Scheme::HttpsUnverified],
            (false, true) => vec![Scheme::HttpsUnverified, Scheme::Http],
            (false, false) => vec![Scheme::Https],
        }
    }

    /// The rule with the longest prefix that `image` has.
    fn podman_rule(&self, image: &ImageRef) -> Option<&PodmanRegistry> {
        let full = format!("{}/{}", image.registry(), image.repository());
        self.podman
            .iter()
            .filter(|rule| has_prefix(rule.name(), image.registry(), &full))
            .max_by_key(|rule| rule.name().len())
    }
}

impl OwnRegistry {
    fn schemes(&self) -> Option<Vec<Scheme>> {
        match (self.http, self.insecure) {
            (Some(true), _) => Some(vec![Scheme::Http]),
            (_, true) => Some(vec![Scheme::HttpsUnverified]),
            (Some(false), false) => Some(vec![Scheme::Https]),
            (None, false) if !self.ca.is_empty() || !self.keypair.is_empty() => {
                Some(vec![Scheme::Https])
            }
            (None, false) => None,
        }
    }
}

impl PodmanRegistry {
    fn name(&self) -> &str {
        self.prefix.as_deref().or(self.location.as_deref()).unwrap_or("")
    }
}

/// The host without its port.
pub fn host_name(host: &str) -> &str {
    if host.starts_with('[') {
        return host.split_inclusive(']').next().unwrap_or(host);
    }
    host.split(':').next().unwrap_or(host)
}

/// Whether `entry` of docker's `insecure-registries` (a host, or a network) covers `host`.
fn matches(entry: &str, host: &str) -> bool {
    if let (Some((network, bits)), Ok(address)) =
        (entry.split_once('/'), host_name(host).trim_matches(['[', ']']).parse::<IpAddr>())
    {
        return proxy::contains(network, bits, address);
    }
    entry == host || entry == host_name(host)
}

/// containers-registries.conf(5), "prefix": whole path components, or `*.example.com`.
fn has_prefix(prefix: &str, registry: &str, full: &str) -> bool {
    if let Some(domain) = prefix.strip_prefix('*') {
        return domain.starts_with('.') && host_name(registry).ends_with(domain);
    }
    !prefix.is_empty()
        && full.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// `image` with `prefix` replaced by `location`.
fn rewrite(prefix: &str, location: &str, image: &ImageRef) -> String {
    let full = format!("{}/{}", image.registry(), image.repository());
    if prefix.starts_with('*') {
        return format!("{location}/{}", image.repository());
    }
    format!("{location}{}", full.strip_prefix(prefix).unwrap_or(""))
}

fn hosts_of_own_file(path: &Path, text: &str) -> Result<BTreeMap<String, OwnRegistry>, HostsError> {
    let file: OwnFile = toml::from_str(text).map_err(|e| syntax(path, &e))?;
    Ok(file.registry)
}

fn podman_rules(path: &Path, text: &str) -> Result<Vec<PodmanRegistry>, HostsError> {
    let file: PodmanFile = toml::from_str(text).map_err(|e| syntax(path, &e))?;
    Ok(file.registry)
}

/// Adds what stands in the folder beside `path`, whether that file exists or not. A rule replaces an
/// earlier one for the same.
fn add_drop_ins(path: &Path, rules: &mut Vec<PodmanRegistry>) -> Result<(), HostsError> {
    let mut folder = path.as_os_str().to_owned();
    folder.push(".d");
    let entries = match fs_err::read_dir(PathBuf::from(folder)) {
        Err(error) if absent(&error) => return Ok(()),
        entries => entries?,
    };
    let files: io::Result<Vec<PathBuf>> = entries.map(|entry| Ok(entry?.path())).collect();
    let mut files = files?;
    files.retain(|file| file.extension().is_some_and(|e| e == "conf"));
    files.sort();
    for file in files {
        let Some(text) = read(&file, false)? else { continue };
        for rule in podman_rules(&file, &text)? {
            rules.retain(|old| old.name() != rule.name());
            rules.push(rule);
        }
    }
    Ok(())
}

/// The text of `path`; nothing when it does not exist and need not.
fn read(path: &Path, must_exist: bool) -> Result<Option<String>, HostsError> {
    match fs_err::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(e) if !must_exist && absent(&e) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

/// Whether a file that need not exist is not there for us (a root-only `/etc/docker` counts).
fn absent(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{NotADirectory, NotFound, PermissionDenied};
    matches!(error.kind(), NotFound | NotADirectory | PermissionDenied)
}

fn syntax(path: &Path, reason: &impl ToString) -> HostsError {
    HostsError::Syntax { path: path.to_owned(), reason: reason.to_string().trim_end().to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hosts(own: &str, podman: &str, docker: &str) -> Hosts {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = folder.path().join(name);
            fs_err::write(&path, text).unwrap();
            vec![path]
        };
        Hosts::load(&RegistrySettings {
            registries: write("registries.toml", own),
            podman_registries: write("registries.conf", podman),
            docker_daemon: write("daemon.json", docker),
            ..RegistrySettings::default()
        })
        .unwrap()
    }

    fn show(endpoints: &[Endpoint]) -> String {
        let one = |e: &Endpoint| format!("{:?} {}/{}", e.schemes, e.host, e.repository);
        endpoints.iter().map(one).collect::<Vec<_>>().join("; ")
    }

    #[test]
    fn where_images_are_pulled_from() {
        let check = |own: &str, podman: &str, docker: &str, image: &str, expected: &str| {
            let docker = if docker.is_empty() { "{}" } else { docker };
            let endpoints = hosts(own, podman, docker).pull_endpoints(&image.parse().unwrap());
            assert_eq!(show(&endpoints.unwrap()), expected);
        };
        check("", "", "", "debian", "[Https] registry-1.docker.io/library/debian");
        check("", "", "", "127.0.0.1:5000/a", "[Http, Https] 127.0.0.1:5000/a");
        check("", "", "", "localhost:5000/a", "[Http, Https] localhost:5000/a");
        check(
            "[registry.'docker.io']\nmirrors = ['http://m:5000', 'n/cache']",
            "",
            r#"{"registry-mirrors": ["https://unused"]}"#,
            "debian",
            "[Http] m:5000/library/debian; [Https] n/cache/library/debian; \
             [Https] registry-1.docker.io/library/debian",
        );
        check("[registry.a]\nhttp = true", "", "", "a:80/b", "[Https] a:80/b");
        check("[registry.'a:80']\nhttp = true", "", "", "a:80/b", "[Http] a:80/b");
        check("[registry.'a.b']\ninsecure = true", "", "", "a.b/c", "[HttpsUnverified] a.b/c");
        check(
            "[registry.'localhost:1']\nca = ['/x.pem']",
            "",
            "",
            "localhost:1/b",
            "[Https] localhost:1/b",
        );
        check(
            "",
            "",
            r#"{"registry-mirrors": ["https://m/"], "insecure-registries": ["10.0.0.0/8"]}"#,
            "busybox",
            "[Https] m/library/busybox; [Https] registry-1.docker.io/library/busybox",
        );
        check(
            "",
            "",
            r#"{"insecure-registries": ["10.0.0.0/8"]}"#,
            "10.1.1.1:5000/b",
            "[HttpsUnverified, Http] 10.1.1.1:5000/b",
        );
        let podman = "[[registry]]\nprefix = 'a.b/c'\nlocation = 'x.y/z'\n\
                      [[registry.mirror]]\nlocation = 'm.n'\ninsecure = true";
        check("", podman, "", "a.b/c/d", "[HttpsUnverified, Http] m.n/d; [Https] x.y/z/d");
        check("", podman, "", "a.b/cc", "[Https] a.b/cc");
    }

    #[test]
    fn podmans_drop_ins_of_machine_and_user_are_read_beside_either_file() {
        let folder = tempfile::tempdir().unwrap();
        let files: Vec<PathBuf> =
            ["user/r.conf", "machine/r.conf"].iter().map(|name| folder.path().join(name)).collect();
        let rule =
            |from: &str, to: &str| format!("[[registry]]\nprefix = '{from}'\nlocation = '{to}'\n");
        let write = |name: &str, text: &str| {
            let path = folder.path().join(name);
            fs_err::create_dir_all(path.parent().unwrap()).unwrap();
            fs_err::write(path, text).unwrap();
        };
        let check = |image: &str, expected: &str| {
            let podman_registries = files.clone();
            let settings = RegistrySettings { podman_registries, ..RegistrySettings::default() };
            let hosts = Hosts::load(&settings).unwrap();
            assert_eq!(show(&hosts.pull_endpoints(&image.parse().unwrap()).unwrap()), expected);
        };
        write("machine/r.conf.d/1.conf", &rule("a.b", "machine.d"));
        write("machine/r.conf.d/2.txt", "this is none");
        check("a.b/x", "[Https] machine.d/x");
        write("user/r.conf", &rule("a.b", "user"));
        check("a.b/x", "[Https] machine.d/x");
        write("user/r.conf.d/1.conf", &rule("a.b", "user.d"));
        check("a.b/x", "[Https] user.d/x");
        write("machine/r.conf.d/0.conf", &rule("c.d", "machine.d"));
        check("c.d/x", "[Https] machine.d/x");
        // What is there and cannot be read may forbid something.
        let settings = RegistrySettings {
            podman_registries: vec![folder.path().join("loop")],
            ..RegistrySettings::default()
        };
        assert!(Hosts::load(&settings).is_ok());
        std::os::unix::fs::symlink("loop.d", folder.path().join("loop.d")).unwrap();
        let unreadable = Hosts::load(&settings).unwrap_err().to_string();
        assert!(unreadable.contains("loop.d"), "{unreadable}");
    }

    #[test]
    fn blocked_registries_are_refused() {
        let hosts = hosts("", "[[registry]]\nprefix = '*.evil'\nblocked = true", "{}");
        let error = hosts.pull_endpoints(&"a.evil/b".parse().unwrap()).unwrap_err();
        assert_eq!(error.to_string(), "`*.evil` is blocked in registries.conf");
        assert!(hosts.pull_endpoints(&"a.good/b".parse().unwrap()).is_ok());
    }

    #[test]
    fn a_misspelt_key_is_refused_by_name() {
        let path = Path::new("registries.toml");
        let error = hosts_of_own_file(path, "[registry.a]\nmirors = ['b']").unwrap_err();
        assert!(error.to_string().contains("mirors"), "{error}");
    }
}
