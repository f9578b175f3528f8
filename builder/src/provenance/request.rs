//! What was asked for, as BuildKit's frontend is asked for it: `externalParameters`.

use rbuild_cache::state::StateFolder;
use rbuild_frontend::NoCache;
use rbuild_solver::graph::{NetworkMode, Op};
use serde_json::{Map, Value, json};

use super::dependency::{digest_of_git, git_url, without_password};
use super::{Subject, agents, secrets};
use crate::request::{ContextSpec, DockerfileSpec, NamedContextSpec};

/// Build arguments that are no input of a build: they say how it reaches the network.
const PROXIES: [&str; 5] = ["HTTP_PROXY", "HTTPS_PROXY", "FTP_PROXY", "NO_PROXY", "ALL_PROXY"];

/// The frontend's arguments, and the ids of what steps were lent.
pub(super) fn parameters<'a>(
    build: &Subject<'_>,
    ops: impl Iterator<Item = &'a Op> + Clone,
    locals: &[String],
) -> Value {
    let request = build.request;
    let mut args: Map<String, Value> = Map::new();
    for (name, value) in &request.build_args {
        if !PROXIES.iter().any(|proxy| name.eq_ignore_ascii_case(proxy)) {
            args.insert(format!("build-arg:{name}"), value.clone().into());
        }
    }
    for (name, context) in &request.named_contexts {
        args.insert(format!("context:{name}"), named_context(name, context).into());
    }
    for (name, value) in &request.labels {
        args.insert(format!("label:{name}"), value.clone().into());
    }
    if let Some(target) = &request.target {
        args.insert("target".into(), target.clone().into());
    }
    match &request.no_cache {
        NoCache::None => {}
        NoCache::All => drop(args.insert("no-cache".into(), "".into())),
        NoCache::Stages(stages) => drop(args.insert("no-cache".into(), stages.join(",").into())),
    }
    let network = match request.network {
        NetworkMode::Default => None,
        NetworkMode::None => Some("none"),
        NetworkMode::Host => Some("host"),
    };
    args.extend(network.map(|network| ("force-network-mode".to_owned(), network.into())));
    if !request.extra_hosts.is_empty() {
        let hosts = request.extra_hosts.iter().map(|(name, address)| format!("{name}={address}"));
        args.insert("add-hosts".into(), hosts.collect::<Vec<_>>().join(",").into());
    }
    if let Some(size) = request.shm_size {
        args.insert("shm-size".into(), size.to_string().into());
    }
    if !request.ulimits.is_empty() {
        let limits = request.ulimits.iter();
        let limits = limits.map(|limit| format!("{}={}:{}", limit.name, limit.soft, limit.hard));
        args.insert("ulimit".into(), limits.collect::<Vec<_>>().join(",").into());
    }
    let mut parameters = json!({ "frontend": "dockerfile.v0" });
    if !args.is_empty() {
        parameters["args"] = args.into();
    }
    let lent = |ids: std::collections::BTreeMap<String, bool>| {
        let entry = |(id, optional): (String, bool)| {
            if optional { json!({ "id": id, "optional": true }) } else { json!({ "id": id }) }
        };
        ids.into_iter().map(entry).collect::<Vec<Value>>()
    };
    for (name, ids) in [("secrets", secrets(ops.clone())), ("ssh", agents(ops))] {
        if !ids.is_empty() {
            parameters[name] = lent(ids).into();
        }
    }
    if !locals.is_empty() {
        parameters["locals"] =
            locals.iter().map(|name| json!({ "name": name })).collect::<Vec<_>>().into();
    }
    parameters
}

/// Takes away what `mode=min` does not say; returns whether anything was.
pub(super) fn scrub(parameters: &mut Value) -> bool {
    let Some(parameters) = parameters.as_object_mut() else { return false };
    parameters.remove("secrets");
    parameters.remove("ssh");
    let Some(args) = parameters.get_mut("args").and_then(Value::as_object_mut) else {
        return false;
    };
    let before = args.len();
    args.retain(|name, _| !name.starts_with("build-arg:") && !name.starts_with("label:"));
    let scrubbed = args.len() < before;
    if args.is_empty() {
        parameters.remove("args");
    }
    scrubbed
}

/// Where the Dockerfile came from.
pub(super) fn config_source(build: &Subject<'_>, state: &StateFolder) -> Value {
    let mut source = Map::new();
    match &build.request.context {
        ContextSpec::Stdin | ContextSpec::Folder(_) => {}
        ContextSpec::Git(address) => {
            let mut url = git_url(&address.remote, address.reference.as_deref());
            if let Some(subdir) = &address.subdir {
                let separator = if address.reference.is_some() { ":" } else { "#:" };
                url = format!("{url}{separator}{subdir}");
            }
            source.insert("uri".into(), url.into());
            let found = digest_of_git(build, state, address);
            source.extend(found.map(|digest| ("digest".to_owned(), digest)));
        }
        ContextSpec::Http(url) => {
            source.insert("uri".into(), without_password(url.as_str()).into());
        }
    }
    let path = match &build.request.dockerfile {
        DockerfileSpec::InContext(path) => Some(path.clone()),
        DockerfileSpec::Http(url) => Some(without_password(url.as_str())),
        // A path of this machine says nothing elsewhere.
        DockerfileSpec::Local(path) => {
            path.file_name().map(|name| name.to_string_lossy().into_owned())
        }
        DockerfileSpec::Default | DockerfileSpec::Stdin => None,
    };
    let path = path.unwrap_or_else(|| "Dockerfile".into());
    source.insert("path".into(), path.into());
    source.into()
}

fn named_context(name: &str, context: &NamedContextSpec) -> String {
    match context {
        NamedContextSpec::Folder(_) => format!("local:{name}"),
        NamedContextSpec::Image(image) => format!("docker-image://{image}"),
        NamedContextSpec::OciLayout(layout) => match &layout.digest {
            Some(digest) => format!("oci-layout://{name}@{digest}"),
            None => format!("oci-layout://{name}"),
        },
        NamedContextSpec::Target(stage) => format!("target:{stage}"),
        NamedContextSpec::Git(address) => git_url(&address.remote, address.reference.as_deref()),
        NamedContextSpec::Http(url) => without_password(url.as_str()),
    }
}
