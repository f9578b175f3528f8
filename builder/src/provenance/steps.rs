//! What every step did, in the words of BuildKit's graph (solver/pb/ops.proto as JSON): whoever reads
//! its provenance reads this.

use std::collections::HashMap;

use rbuild_cache::digest::Hasher;
use rbuild_cache::oci::{ImageRef, Platform};
use rbuild_frontend::source::Source;
use rbuild_solver::graph::{
    CacheSharing, CopyAction, CopySource, FileAction, FileOp, GitOp, Graph, ModeChange, Mount,
    MountSource, Name, NetworkMode, Op, Owner, RunOp, SecurityMode, SlimOp, VertexId,
};
use serde_json::{Map, Value, json};

use super::dependency::{git_url, without_password};
use crate::image_source::Images;

/// The steps of a graph.
pub(super) struct Steps {
    /// `buildConfig`
    pub(super) config: Value,
    /// Which lines each step comes from.
    pub(super) locations: Map<String, Value>,
    /// The step that made the target; none if that is empty.
    pub(super) target: Option<String>,
}

/// The steps of `vertices`, each after those it reads. An empty tree is no step.
pub(super) fn of(
    graph: &Graph,
    vertices: &[VertexId],
    target: VertexId,
    dockerfile: &Source,
) -> Steps {
    let mut numbers: HashMap<VertexId, usize> = HashMap::new();
    let (mut definition, mut mapping, mut locations) = (Vec::new(), Map::new(), Map::new());
    for id in vertices {
        let vertex = graph.vertex(*id);
        if vertex.op == Op::Scratch {
            continue;
        }
        let number = numbers.len();
        numbers.insert(*id, number);
        let name = format!("step{number}");
        let inputs = Inputs::of(graph, *id, &numbers);
        let step = op(&vertex.op, &inputs);
        mapping.insert(digest(&step, &inputs.names), name.clone().into());
        let mut entry = json!({ "id": name, "op": step });
        if !inputs.names.is_empty() {
            entry["inputs"] = inputs.names.clone().into();
        }
        definition.push(entry);
        locations.insert(name, location(vertex.span.as_ref(), dockerfile));
    }
    let target = numbers.get(&target).map(|number| format!("step{number}"));
    if let Some(target) = &target {
        let last = format!("step{}", numbers.len());
        let inputs = vec![format!("{target}:0")];
        let step = json!({ "Op": {} });
        mapping.insert(digest(&step, &inputs), last.clone().into());
        definition.push(json!({ "id": last, "op": step, "inputs": inputs }));
    }
    let config = json!({ "digestMapping": mapping, "llbDefinition": definition });
    Steps { config, locations, target }
}

/// The two steps that read a local source, and their digests.
pub(super) fn of_local(name: &str) -> (Value, Value) {
    let source = json!({ "Op": { "source": { "identifier": format!("local://{name}") } }, "constraints": {} });
    let last = json!({ "Op": {} });
    let inputs = vec!["step0:0".to_owned()];
    let mapping = json!({ digest(&source, &[]): "step0", digest(&last, &inputs): "step1" });
    let definition = json!([
        { "id": "step0", "op": source },
        { "id": "step1", "op": last, "inputs": inputs },
    ]);
    (definition, mapping)
}

fn digest(step: &Value, inputs: &[String]) -> String {
    let mut hasher = Hasher::new();
    hasher.field(step.to_string());
    for input in inputs {
        hasher.field(input);
    }
    hasher.digest().to_string()
}

/// What a vertex reads, without empty trees.
struct Inputs {
    names: Vec<String>,
    /// Where the input of the graph is among `names`; -1 for an empty tree.
    places: Vec<i64>,
}

impl Inputs {
    fn of(graph: &Graph, id: VertexId, numbers: &HashMap<VertexId, usize>) -> Self {
        let mut inputs = Self { names: Vec::new(), places: Vec::new() };
        for input in graph.inputs(id) {
            let Some(number) = numbers.get(&input) else {
                inputs.places.push(-1);
                continue;
            };
            let name = format!("step{number}:0");
            let place = inputs.names.iter().position(|known| *known == name).unwrap_or_else(|| {
                inputs.names.push(name);
                inputs.names.len() - 1
            });
            inputs.places.push(i64::try_from(place).unwrap_or(-1));
        }
        inputs
    }

    fn place(&self, input: usize) -> i64 {
        self.places.get(input).copied().unwrap_or(-1)
    }
}

fn location(span: Option<&rbuild_solver::graph::Span>, dockerfile: &Source) -> Value {
    let Some(span) = span else { return json!({}) };
    let text = dockerfile.text().get(span.start..span.end).unwrap_or_default();
    let end = span.line + text.trim_end().matches('\n').count();
    json!({ "locations": [{
        "ranges": [{ "start": { "line": span.line }, "end": { "line": end } }],
    }] })
}

fn op(op: &Op, inputs: &Inputs) -> Value {
    let (kind, platform) = match op {
        Op::Scratch => (json!({}), None),
        Op::Image(image) => {
            let layout = Images::is_layout(&image.location);
            let scheme = if layout { "oci-layout" } else { "docker-image" };
            let name: Option<ImageRef> = image.name.parse().ok();
            let name = name.map_or_else(|| image.name.clone(), |name| name.to_string());
            let identifier = format!("{scheme}://{name}@{}", image.manifest);
            (json!({ "source": { "identifier": identifier } }), Some(&image.platform))
        }
        Op::Context(context) => {
            let identifier = format!("local://{}", context.name);
            let mut source = json!({ "identifier": identifier });
            if !context.ignore.is_empty() {
                let ignore = json!(context.ignore).to_string();
                source["attrs"] = json!({ "local.excludepatterns": ignore });
            }
            (json!({ "source": source }), None)
        }
        Op::Http(file) => {
            let mut attrs = json!({ "http.filename": file.filename });
            if let Some(checksum) = &file.checksum {
                attrs["http.checksum"] = checksum.to_string().into();
            }
            let identifier = without_password(&file.url);
            (json!({ "source": { "identifier": identifier, "attrs": attrs } }), None)
        }
        Op::Git(git) => (json!({ "source": git_source(git) }), None),
        Op::Run(run) => (json!({ "exec": exec(run, inputs) }), Some(&run.platform)),
        Op::File(file) => (json!({ "file": { "actions": actions(file, inputs) } }), None),
        // BuildKit has no word for it.
        Op::Slim(op) => (json!({ "slim": slim(op) }), Some(&op.platform)),
        Op::Merge => {
            let inputs = inputs.places.iter().filter(|place| **place >= 0);
            let inputs: Vec<Value> = inputs.map(|place| json!({ "input": place })).collect();
            (json!({ "merge": { "inputs": inputs } }), None)
        }
    };
    let mut step = json!({ "Op": kind, "constraints": {} });
    if let Some(platform) = platform {
        step["platform"] = platform_object(platform);
    }
    step
}

/// How an image was slimmed. What it runs, its config says.
pub(super) fn slim(op: &SlimOp) -> Value {
    let SlimOp { rules, mode, probe, probe_timeout, keep, drop, base, .. } = op;
    json!({
        "rules": rules,
        "mode": mode,
        "probe": probe,
        "probeTimeout": probe_timeout,
        "keep": keep,
        "drop": drop,
        "base": base,
    })
}

fn platform_object(platform: &Platform) -> Value {
    let mut object = json!({ "Architecture": platform.architecture, "OS": platform.os });
    if let Some(variant) = &platform.variant {
        object["Variant"] = variant.clone().into();
    }
    object
}

fn git_source(git: &GitOp) -> Value {
    let url = git_url(&git.remote, git.reference.as_deref());
    let bare = url.split_once("://").map_or(&*url, |(_, rest)| rest);
    let mut attrs = json!({ "git.fullurl": without_password(&git.remote) });
    if git.keep_git_dir {
        attrs["git.keepgitdir"] = "true".into();
    }
    if !git.submodules {
        attrs["git.skipsubmodules"] = "true".into();
    }
    if let Some(checksum) = &git.checksum {
        attrs["git.checksum"] = checksum.clone().into();
    }
    if let Some(subdir) = &git.subdir {
        attrs["git.subdir"] = subdir.clone().into();
    }
    json!({ "identifier": format!("git://{bare}"), "attrs": attrs })
}

fn exec(run: &RunOp, inputs: &Inputs) -> Value {
    let mut meta = json!({ "args": run.args, "env": run.env, "cwd": run.cwd });
    if let Some(user) = &run.user {
        meta["user"] = user.clone().into();
    }
    if !run.extra_hosts.is_empty() {
        let host = |(name, address): &(String, String)| json!({ "Host": name, "IP": address });
        meta["extraHosts"] = run.extra_hosts.iter().map(host).collect::<Vec<_>>().into();
    }
    if !run.ulimits.is_empty() {
        let limit = |limit: &rbuild_solver::graph::Ulimit| json!({ "Name": limit.name, "Soft": limit.soft, "Hard": limit.hard });
        meta["ulimit"] = run.ulimits.iter().map(limit).collect::<Vec<_>>().into();
    }
    let mut root = json!({ "dest": "/" });
    set(&mut root, "input", inputs.place(0));
    let mut mounts = vec![root];
    let mut variables = Vec::new();
    for one in &run.mounts {
        match &one.source {
            MountSource::SecretEnv { id, required, variable } => {
                let mut secret = json!({ "ID": id, "name": variable });
                set(&mut secret, "optional", !required);
                variables.push(secret);
            }
            source => mounts.push(mount(one, source, inputs)),
        }
    }
    let mut exec = json!({ "meta": meta, "mounts": mounts });
    match run.network {
        NetworkMode::Default => {}
        NetworkMode::Host => exec["network"] = 1.into(),
        NetworkMode::None => exec["network"] = 2.into(),
    }
    if run.security == SecurityMode::Insecure {
        exec["security"] = 1.into();
    }
    if !variables.is_empty() {
        exec["secretenv"] = variables.into();
    }
    exec
}

/// Sets a field that is left out where it has its default.
fn set<T: PartialEq + Default + Into<Value>>(object: &mut Value, key: &str, value: T) {
    if value != T::default() {
        object[key] = value.into();
    }
}

fn mount(mount: &Mount, source: &MountSource, inputs: &Inputs) -> Value {
    let mut object = json!({ "dest": mount.target });
    let from = |object: &mut Value, input: i64, path: &str| {
        set(object, "readonly", mount.read_only);
        set(object, "input", input);
        set(object, "selector", path.trim_start_matches('/').to_owned());
    };
    match source {
        MountSource::Bind { input, path } => from(&mut object, inputs.place(*input), path),
        MountSource::Cache { id, sharing, from: seed, path, .. } => {
            from(&mut object, seed.map_or(-1, |seed| inputs.place(seed)), path);
            object["mountType"] = 3.into();
            let mut cache = json!({ "ID": id });
            let sharing = match sharing {
                CacheSharing::Shared => 0,
                CacheSharing::Private => 1,
                CacheSharing::Locked => 2,
            };
            set(&mut cache, "sharing", sharing);
            object["cacheOpt"] = cache;
        }
        MountSource::Tmpfs { size } => {
            object["input"] = (-1).into();
            object["mountType"] = 4.into();
            object["TmpfsOpt"] = size.map_or(json!({}), |size| json!({ "size": size }));
        }
        MountSource::Secret { id, required, mode, uid, gid } => {
            object["input"] = (-1).into();
            object["mountType"] = 1.into();
            object["secretOpt"] = lent(id, *required, *mode, *uid, *gid);
        }
        MountSource::Ssh { id, required, mode, uid, gid } => {
            object["input"] = (-1).into();
            object["mountType"] = 2.into();
            object["SSHOpt"] = lent(id, *required, *mode, *uid, *gid);
        }
        // It is no mount there.
        MountSource::SecretEnv { .. } => {}
    }
    object
}

fn lent(id: &str, required: bool, mode: u32, uid: u32, gid: u32) -> Value {
    let mut object = json!({ "ID": id });
    set(&mut object, "uid", uid);
    set(&mut object, "gid", gid);
    set(&mut object, "mode", mode);
    set(&mut object, "optional", !required);
    object
}

/// Each action changes what the one before made.
fn actions(file: &FileOp, inputs: &Inputs) -> Vec<Value> {
    let mut actions: Vec<(Value, Option<i64>)> = Vec::new();
    for action in &file.actions {
        match action {
            FileAction::Mkdir(mkdir) => {
                let mut object = json!({ "path": mkdir.path, "mode": mkdir.mode });
                set(&mut object, "makeParents", mkdir.parents);
                with_owner(&mut object, mkdir.owner.as_ref());
                object["timestamp"] = mkdir.time.unwrap_or(-1).into();
                actions.push((json!({ "mkdir": object }), None));
            }
            FileAction::WriteFile(write) => {
                let object =
                    file_object(&write.path, write.mode, &write.data, write.owner.as_ref());
                actions.push((json!({ "mkfile": object }), None));
            }
            FileAction::Copy(copy) => match &copy.from {
                CopySource::Input(input) => {
                    let place = inputs.place(*input);
                    let copies = copy.sources.iter().map(|source| copy_object(copy, source));
                    actions.extend(copies.map(|copy| (json!({ "copy": copy }), Some(place))));
                }
                CopySource::Inline(files) => {
                    for (name, data) in files {
                        let path = if copy.destination.ends_with('/') {
                            format!("{}{name}", copy.destination)
                        } else {
                            copy.destination.clone()
                        };
                        let object = file_object(&path, 0o644, data, copy.owner.as_ref());
                        actions.push((json!({ "mkfile": object }), None));
                    }
                }
            },
        }
    }
    let count = i64::try_from(inputs.names.len()).unwrap_or(0);
    let last = actions.len().saturating_sub(1);
    let numbered = actions.into_iter().enumerate().map(|(number, (action, second))| {
        let before = count + i64::try_from(number).unwrap_or(0) - 1;
        json!({
            "Action": action,
            "input": if number == 0 { inputs.place(0) } else { before },
            "secondaryInput": second.unwrap_or(-1),
            "output": if number == last { 0 } else { -1 },
        })
    });
    numbered.collect()
}

fn file_object(path: &str, mode: u32, data: &[u8], owner: Option<&Owner>) -> Value {
    use base64::Engine as _;
    let data = base64::prelude::BASE64_STANDARD.encode(data);
    let mut object = json!({ "path": path, "mode": mode, "data": data, "timestamp": -1 });
    with_owner(&mut object, owner);
    object
}

fn copy_object(copy: &CopyAction, source: &str) -> Value {
    let mut object = json!({
        "src": source, "dest": copy.destination, "mode": -1, "followSymlink": true,
        "dirCopyContents": true, "createDestPath": true,
        "timestamp": copy.times.unwrap_or(-1),
    });
    match &copy.mode {
        Some(ModeChange::Octal(mode)) => object["mode"] = (*mode).into(),
        Some(ModeChange::Symbolic(mode)) => object["modeStr"] = mode.clone().into(),
        None => {}
    }
    set(&mut object, "attemptUnpackDockerCompatibility", copy.unpack);
    set(&mut object, "allowWildcard", copy.wildcards);
    set(&mut object, "allowEmptyWildcard", copy.wildcards);
    set(&mut object, "alwaysReplaceExistingDestPaths", copy.replace_symlinks);
    if !copy.exclude.is_empty() {
        object["excludePatterns"] = copy.exclude.clone().into();
    }
    with_owner(&mut object, copy.owner.as_ref());
    object
}

fn with_owner(object: &mut Value, owner: Option<&Owner>) {
    let Some(owner) = owner else { return };
    let name = |name: &Name| match name {
        Name::Id(id) => json!({ "User": { "byID": id } }),
        Name::Name(name) => json!({ "User": { "byName": { "name": name } } }),
    };
    object["owner"] = json!({ "user": name(&owner.user) });
    if let Some(group) = &owner.group {
        object["owner"]["group"] = name(group);
    }
}
