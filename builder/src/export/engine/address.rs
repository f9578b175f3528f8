//! Where an engine listens: `DOCKER_HOST`, Docker's contexts, podman's sockets.

use std::fmt;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use rbuild_cache::digest::Digest;
use serde_json::Value;
use url::Url;

use crate::request::EngineSettings;

/// Where an engine listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::export) enum Address {
    /// `unix:///run/docker.sock`
    Unix(PathBuf),
    /// `tcp://host:2375`
    Tcp {
        /// `host:port`
        host: String,
        /// The folder of `ca.pem`, `cert.pem` and `key.pem`, where it speaks TLS.
        certificates: Option<PathBuf>,
    },
    /// `ssh://…`, which is left to the program `docker`.
    Ssh(String),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
            Self::Tcp { host, .. } => write!(f, "tcp://{host}"),
            Self::Ssh(url) => f.write_str(url),
        }
    }
}

/// The engine that somebody named: an output's `context=`, `DOCKER_HOST`, `DOCKER_CONTEXT`, the
/// current context of Docker's configuration, in this order.
pub(super) fn named(
    context: Option<&str>,
    settings: &EngineSettings,
) -> Result<Option<Address>, String> {
    let certificates = settings.certificates.clone().filter(|_| settings.tls);
    let context = context.map(str::to_owned);
    let context = match (context, &settings.host) {
        (Some(context), _) => Some(context),
        (None, Some(host)) => return parse(host, certificates).map(Some),
        (None, None) => match &settings.context {
            Some(context) => Some(context.clone()),
            None => current_context(settings)?,
        },
    };
    match context.as_deref() {
        None | Some("" | "default") => match &settings.host {
            Some(host) => parse(host, certificates).map(Some),
            None => Ok(None),
        },
        Some(name) => of_context(name, settings).map(Some),
    }
}

/// Where engines listen that nobody named.
pub(super) fn usual(settings: &EngineSettings) -> Vec<Address> {
    let mut addresses = vec![Address::Unix("/var/run/docker.sock".into())];
    let mut unix = |path: PathBuf| addresses.push(Address::Unix(path));
    if let Some(folder) = &settings.runtime_folder {
        unix(folder.join("docker.sock"));
        unix(folder.join("podman/podman.sock"));
    }
    if settings.root {
        unix("/run/podman/podman.sock".into());
    }
    // What podman's own clients are told comes before where it usually is.
    let podman = settings.podman_host.as_ref().and_then(|host| parse(host, None).ok());
    podman.into_iter().chain(addresses).collect()
}

fn parse(host: &str, certificates: Option<PathBuf>) -> Result<Address, String> {
    let unknown = || {
        format!(
            "`{host}` is no address of an engine: expected unix://, tcp://, http(s):// or ssh://"
        )
    };
    if let Some(path) = host.strip_prefix("unix://") {
        return Ok(Address::Unix(path.into()));
    }
    let url = Url::parse(host).map_err(|_| unknown())?;
    let name = || {
        let port = url.port().unwrap_or(if certificates.is_some() { 2376 } else { 2375 });
        url.host_str().map(|name| format!("{name}:{port}")).ok_or_else(unknown)
    };
    match url.scheme() {
        "tcp" | "http" => Ok(Address::Tcp { host: name()?, certificates }),
        "https" => {
            let certificates = Some(certificates.clone().unwrap_or_default());
            Ok(Address::Tcp { host: name()?, certificates })
        }
        "ssh" => Ok(Address::Ssh(host.to_owned())),
        _ => Err(unknown()),
    }
}

/// What `docker context use` wrote. Of a file that cannot be read it is not known which engine is meant:
/// another one would get the image.
fn current_context(settings: &EngineSettings) -> Result<Option<String>, String> {
    let Some(folder) = &settings.docker_config else { return Ok(None) };
    let path = folder.join("config.json");
    let wrong = |error: String| format!("cannot read `{}`: {error}", path.display());
    let bytes = match fs_err::read(&path) {
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        read => read.map_err(|error| wrong(error.kind().to_string()))?,
    };
    let config: Value = serde_json::from_slice(&bytes).map_err(|error| wrong(error.to_string()))?;
    Ok(config["currentContext"].as_str().map(str::to_owned))
}

/// A context as `docker context create` writes it.
fn of_context(name: &str, settings: &EngineSettings) -> Result<Address, String> {
    let missing = || format!("there is no docker context `{name}`: `docker context ls` lists them");
    let contexts = settings.docker_config.as_ref().ok_or_else(missing)?.join("contexts");
    let id = Digest::of(name).hex();
    let meta = fs_err::read(contexts.join("meta").join(&id).join("meta.json"));
    let meta: Value = serde_json::from_slice(&meta.map_err(|_| missing())?)
        .map_err(|error| format!("the docker context `{name}` cannot be read: {error}"))?;
    let host = meta["Endpoints"]["docker"]["Host"].as_str().ok_or_else(missing)?;
    let tls = contexts.join("tls").join(&id).join("docker");
    parse(host, has_certificates(&tls).then_some(tls))
}

fn has_certificates(folder: &Path) -> bool {
    folder.join("ca.pem").exists() || folder.join("cert.pem").exists()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        let check = |host: &str, expected: &str| {
            let parsed = parse(host, None).map(|address| address.to_string());
            assert_eq!(parsed.unwrap_or_else(|reason| reason), expected);
        };
        check("unix:///run/a.sock", "unix:///run/a.sock");
        check("tcp://localhost:1234", "tcp://localhost:1234");
        check("tcp://localhost", "tcp://localhost:2375");
        check("ssh://me@host", "ssh://me@host");
        let unknown = "`npipe://x` is no address of an engine: expected unix://, tcp://, http(s):// \
                       or ssh://";
        check("npipe://x", unknown);
        let tls = parse("tcp://h", Some("/c".into())).unwrap();
        assert_eq!(tls.to_string(), "tcp://h:2376");
    }

    #[test]
    fn the_environment_wins_over_the_configuration_and_an_output_over_both() {
        let folder = tempfile::tempdir().unwrap();
        let meta = folder.path().join("contexts/meta").join(Digest::of("far").hex());
        fs_err::create_dir_all(&meta).unwrap();
        let text = r#"{"Name":"far","Endpoints":{"docker":{"Host":"tcp://far:2375"}}}"#;
        fs_err::write(meta.join("meta.json"), text).unwrap();
        fs_err::write(folder.path().join("config.json"), r#"{"currentContext":"far"}"#).unwrap();
        let mut settings = EngineSettings {
            docker_config: Some(folder.path().into()),
            ..EngineSettings::default()
        };
        let check = |context: Option<&str>, settings: &EngineSettings, expected: Option<&str>| {
            let found = named(context, settings).map(|found| found.map(|one| one.to_string()));
            assert_eq!(found.unwrap().as_deref(), expected);
        };
        check(None, &settings, Some("tcp://far:2375"));
        check(Some("default"), &settings, None);
        settings.host = Some("unix:///d.sock".into());
        check(None, &settings, Some("unix:///d.sock"));
        check(Some("far"), &settings, Some("tcp://far:2375"));
        let unknown = named(Some("near"), &settings).unwrap_err();
        assert!(unknown.contains("there is no docker context `near`"), "{unknown}");
        settings.host = None;
        fs_err::write(folder.path().join("config.json"), r#"{"currentContext":"#).unwrap();
        let damaged = named(None, &settings).unwrap_err();
        assert!(damaged.contains("config.json`: EOF while parsing"), "{damaged}");
        fs_err::remove_file(folder.path().join("config.json")).unwrap();
        check(None, &settings, None);
    }
}
