//! Where the registry client finds what the user configured: plain data, filled in from the
//! environment by `request.rs`. Nothing here is read before a registry is contacted.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use super::proxy::Proxies;

/// What the registry client takes from its surroundings.
#[derive(Clone, Debug)]
pub struct RegistrySettings {
    /// The folder of docker's `config.json`: `DOCKER_CONFIG`, otherwise `~/.docker`.
    pub docker_config: Option<PathBuf>,
    /// Podman's `auth.json` files, strongest first. They are asked after docker's.
    pub auth_files: Vec<PathBuf>,
    /// rbuild's `registries.toml` files, strongest first.
    pub registries: Vec<PathBuf>,
    /// Whether the first of `registries` was named by the user and so must exist.
    pub registries_named: bool,
    /// Podman's `registries.conf` (its `registries.conf.d` beside it is read too), strongest first;
    /// only the first that exists counts, as with podman.
    pub podman_registries: Vec<PathBuf>,
    /// Docker's `daemon.json` files.
    pub docker_daemon: Vec<PathBuf>,
    /// Folders of `certs.d` form: `HOST[:PORT]/{*.crt,*.cert,*.key}`.
    pub certificates: Vec<PathBuf>,
    /// The proxies for http and https.
    pub proxies: Proxies,
    /// For how long an operation goes on without any progress before it is given up.
    pub patience: Duration,
    /// How many blobs, or parts of blobs, are on their way at once.
    pub transfers: usize,
    /// A blob of at least twice this length, in bytes, is fetched as several ranges of this length.
    pub range: u64,
    /// Where credential helpers are; by the search path when absent.
    pub helper_folder: Option<PathBuf>,
    /// For how long a credential helper may run.
    pub helper_patience: Duration,
}

impl Default for RegistrySettings {
    fn default() -> Self {
        Self {
            docker_config: None,
            auth_files: Vec::new(),
            registries: Vec::new(),
            registries_named: false,
            podman_registries: Vec::new(),
            docker_daemon: Vec::new(),
            certificates: Vec::new(),
            proxies: Proxies::default(),
            patience: Duration::from_secs(40),
            transfers: 6,
            range: 4 << 20,
            helper_folder: None,
            helper_patience: Duration::from_secs(15),
        }
    }
}

impl RegistrySettings {
    /// The settings of the environment whose variables `variable` gives.
    ///
    /// `RBUILD_REGISTRIES` names a `registries.toml` to read instead of the two usual ones.
    pub fn from_environment(variable: impl Fn(&str) -> Option<OsString>) -> Self {
        let path = |name: &str| variable(name).filter(|v| !v.is_empty()).map(PathBuf::from);
        let home = path("HOME");
        let in_home = |below: &str| home.as_ref().map(|home| home.join(below));
        let config = path("XDG_CONFIG_HOME").or_else(|| in_home(".config"));
        let in_config = |below: &str| config.as_ref().map(|config| config.join(below));
        let runtime = path("XDG_RUNTIME_DIR").map(|folder| folder.join("containers/auth.json"));
        let named = path("RBUILD_REGISTRIES");
        let docker_config = path("DOCKER_CONFIG").or_else(|| in_home(".docker"));

        let list = |paths: [Option<PathBuf>; 3]| paths.into_iter().flatten().collect::<Vec<_>>();
        let etc = |file: &str| Some(PathBuf::from(file));
        Self {
            auth_files: list([
                path("REGISTRY_AUTH_FILE"),
                runtime,
                in_config("containers/auth.json"),
            ]),
            registries_named: named.is_some(),
            registries: match named {
                Some(file) => vec![file],
                None => list([
                    in_config("rbuild/registries.toml"),
                    etc("/etc/rbuild/registries.toml"),
                    None,
                ]),
            },
            podman_registries: list([
                path("CONTAINERS_REGISTRIES_CONF"),
                in_config("containers/registries.conf"),
                etc("/etc/containers/registries.conf"),
            ]),
            docker_daemon: list([
                in_config("docker/daemon.json"),
                etc("/etc/docker/daemon.json"),
                None,
            ]),
            certificates: [
                in_config("rbuild/certs.d"),
                docker_config.as_ref().map(|folder| folder.join("certs.d")),
                in_config("docker/certs.d"),
                in_config("containers/certs.d"),
                etc("/etc/rbuild/certs.d"),
                etc("/etc/docker/certs.d"),
                etc("/etc/containers/certs.d"),
            ]
            .into_iter()
            .flatten()
            .collect(),
            docker_config,
            proxies: Proxies::from_environment(&variable),
            ..Self::default()
        }
    }
}
