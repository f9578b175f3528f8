//! Where container engines listen, as far as the environment says (docker/cli,
//! `cli/context/docker/load.go`; podman-system-service(1)). Nothing here is read before an image is
//! loaded.

use std::path::PathBuf;

use super::Environment;

/// What the environment says of container engines.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EngineSettings {
    /// `DOCKER_HOST`
    pub host: Option<String>,
    /// `DOCKER_CONTEXT`
    pub context: Option<String>,
    /// The folder of `config.json` and `contexts/`.
    pub docker_config: Option<PathBuf>,
    /// `DOCKER_TLS_VERIFY`, `DOCKER_TLS`: TCP hosts speak TLS.
    pub tls: bool,
    /// `DOCKER_CERT_PATH`
    pub certificates: Option<PathBuf>,
    /// `CONTAINER_HOST`, which is podman's.
    pub podman_host: Option<String>,
    /// `XDG_RUNTIME_DIR`
    pub runtime_folder: Option<PathBuf>,
    /// Whether rbuild was started by root.
    pub root: bool,
}

impl EngineSettings {
    /// What `environment` says.
    pub(super) fn new(environment: &Environment) -> Self {
        let text = |name: &str| {
            environment.text(name).filter(|value| !value.is_empty()).map(str::to_owned)
        };
        let docker_config = environment
            .path("DOCKER_CONFIG")
            .or_else(|| Some(environment.path("HOME")?.join(".docker")));
        Self {
            host: text("DOCKER_HOST"),
            context: text("DOCKER_CONTEXT"),
            certificates: environment.path("DOCKER_CERT_PATH").or_else(|| docker_config.clone()),
            docker_config,
            tls: text("DOCKER_TLS_VERIFY").is_some() || text("DOCKER_TLS").is_some(),
            podman_host: text("CONTAINER_HOST"),
            runtime_folder: environment.path("XDG_RUNTIME_DIR"),
            root: environment.root,
        }
    }
}
