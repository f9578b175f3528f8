//! Each folder of `testdata/lower` holds a Dockerfile, what the caller asks (`case.json`), and what
//! must come of both: the graph and the image config, or what is wrong (`lowered.snap`).

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use rbuild_cache::digest::{DiffId, Digest};
use rbuild_cache::oci::{Descriptor, MediaType, Platform};
use rbuild_frontend::diagnostic::Diagnostics;
use rbuild_frontend::git_address::GitAddress;
use rbuild_frontend::source::Source;
use rbuild_frontend::{
    Allowed, BaseImage, BuildContext, BuildOptions, Dockerfile, NamedContext, NoCache, Resolved,
    base_images, context_name, lower, outline, parse, targets,
};
use rbuild_solver::graph::{Graph, ImageLayer, MountSource, Op, VertexId};
use rbuild_solver::image_source::ResolvedImage;
use serde::Deserialize;
use serde_json::Value;

use crate::cpu_time;

/// What the caller asks.
#[derive(Deserialize, Default)]
#[serde(default, deny_unknown_fields)]
struct Case {
    build_args: BTreeMap<String, String>,
    target: Option<String>,
    platforms: Vec<String>,
    labels: BTreeMap<String, String>,
    contexts: BTreeMap<String, String>,
    git_context: Option<String>,
    ignore: Vec<String>,
    no_cache: Option<Vec<String>>,
    allow: Vec<String>,
    /// `--call=outline`
    outline: bool,
    /// Configs of base images by familiar name; those that are not named have a plain one.
    images: BTreeMap<String, Value>,
}

#[test]
fn dockerfiles_come_to_graphs() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata/lower");
    let mut cases: Vec<PathBuf> =
        fs_err::read_dir(&root).unwrap().map(|entry| entry.unwrap().path()).collect();
    cases.sort();
    assert!(!cases.is_empty());
    for folder in cases {
        let found = outcome(&folder);
        let mut settings = insta::Settings::clone_current();
        settings.set_snapshot_path(&folder);
        settings.set_prepend_module_to_snapshot(false);
        settings.set_omit_expression(true);
        settings.bind(|| insta::assert_snapshot!("lowered", found));
    }
}

/// Long chains of stages and of reads cost time and memory in proportion.
#[test]
fn ten_thousand_stages() {
    let chain = |i: usize| match i {
        0 => "FROM scratch AS s0\nCOPY f /f0\n".to_owned(),
        i => format!("FROM s{} AS s{i}\nCOPY f /f{i}\n", i - 1),
    };
    let reads = |i: usize| match i {
        0 => "FROM scratch AS s0\nCOPY f /f\n".to_owned(),
        i => format!("FROM scratch AS s{i}\nCOPY --from=s{} /f /f\n", i - 1),
    };
    let backwards = |i: usize| format!("FROM scratch AS s{i}\nCOPY --from=s{} /f /f\n", i + 1);
    let lowered = |text: String| {
        let (dockerfile, _) = parse(Source::new("Dockerfile", text));
        let options = BuildOptions::new(Platform::new("linux", "amd64", None));
        let lowered = lower(&dockerfile, &options, &Resolved::default(), &mut Graph::new());
        lowered.map(|lowered| lowered.config.history.len())
    };
    let start = cpu_time::spent();
    assert_eq!(lowered((0..10_000).map(chain).collect()).unwrap(), 10_000);
    assert_eq!(lowered((0..10_000).map(reads).collect()).unwrap(), 1);
    let last = "FROM scratch AS s10000\n";
    let text = (0..10_000).map(backwards).collect::<String>() + last + "FROM s0\n";
    assert!(lowered(text).is_err());
    let took = cpu_time::since(start);
    assert!(took < std::time::Duration::from_mins(1), "{took:?}");
}

/// Many instructions in one stage cost time and memory in proportion, variables or none.
#[test]
fn a_hundred_thousand_instructions() {
    let lowered = |line: &str| {
        let text = "FROM scratch\nARG A=1\n".to_owned() + &line.repeat(100_000);
        let (dockerfile, _) = parse(Source::new("Dockerfile", text));
        let options = BuildOptions::new(Platform::new("linux", "amd64", None));
        let lowered = lower(&dockerfile, &options, &Resolved::default(), &mut Graph::new());
        lowered.unwrap().config.history.len()
    };
    let start = cpu_time::spent();
    for line in ["RUN true $A\n", "ENV A=$A\n", "COPY $A /$A/\n", "EXPOSE $A\n", "CMD $A\n"] {
        assert_eq!(lowered(line), 100_001, "{line}");
    }
    let took = cpu_time::since(start);
    assert!(took < std::time::Duration::from_mins(1), "{took:?}");
}

/// To the kernel, a size of 0 is no limit: a step could fill the machine's memory.
#[test]
fn memory_without_a_size_has_the_usual_one() {
    let text = "FROM scratch\nRUN --mount=type=tmpfs,target=/t,size=0 true\n";
    let (dockerfile, _) = parse(Source::new("Dockerfile", text.to_owned()));
    let mut options = BuildOptions::new(Platform::new("linux", "amd64", None));
    options.shm_size = Some(0);
    let mut graph = Graph::new();
    lower(&dockerfile, &options, &Resolved::default(), &mut graph).unwrap();
    let run = graph.ids().find_map(|id| match &graph.vertex(id).op {
        Op::Run(op) => Some(op),
        _ => None,
    });
    let run = run.unwrap();
    assert_eq!((&run.mounts[0].source, run.shm_size), (&MountSource::Tmpfs { size: None }, None));
}

fn outcome(folder: &Path) -> String {
    let text = fs_err::read_to_string(folder.join("Dockerfile")).unwrap();
    let case: Case = match fs_err::read_to_string(folder.join("case.json")) {
        Ok(json) => serde_json::from_str(&json).unwrap(),
        Err(_) => Case::default(),
    };
    let (dockerfile, diagnostics) = parse(Source::new("Dockerfile", text));
    if !diagnostics.0.is_empty() {
        return diagnostics.render(&dockerfile.source) + "\n";
    }
    let platforms: Vec<Option<Platform>> = match case.platforms.as_slice() {
        [] => vec![None],
        platforms => platforms.iter().map(|text| Some(text.parse().unwrap())).collect(),
    };
    let mut graph = Graph::new();
    let mut out = String::new();
    for platform in platforms {
        let options = options(&case, platform);
        match lowered(&dockerfile, &options, &case, &mut graph) {
            Ok(dump) => out += &dump,
            Err(diagnostics) => return diagnostics.render(&dockerfile.source) + "\n",
        }
    }
    out
}

fn options(case: &Case, platform: Option<Platform>) -> BuildOptions {
    let contexts = case.contexts.iter().map(|(name, value)| (context_name(name), context(value)));
    let has = |what: &str| case.allow.iter().any(|allowed| allowed == what);
    BuildOptions {
        context: match &case.git_context {
            Some(address) => BuildContext::Git(GitAddress::parse(address).unwrap().unwrap()),
            None => BuildContext::Folder { ignore: case.ignore.clone() },
        },
        build_args: case.build_args.clone(),
        target: case.target.clone(),
        several_platforms: case.platforms.len() > 1,
        platform,
        labels: case.labels.clone(),
        contexts: contexts.collect(),
        no_cache: match &case.no_cache {
            None => NoCache::None,
            Some(stages) if stages.is_empty() => NoCache::All,
            Some(stages) => NoCache::Stages(stages.clone()),
        },
        allow: Allowed { host_network: has("network.host"), insecure: has("security.insecure") },
        ..BuildOptions::new(Platform::new("linux", "amd64", None))
    }
}

fn context(value: &str) -> NamedContext {
    match value.split_once("://") {
        Some(("docker-image", "scratch")) => NamedContext::Scratch,
        Some(("docker-image", name)) => NamedContext::Image(name.parse().unwrap()),
        Some(("oci-layout", _)) => NamedContext::OciLayout,
        Some(_) => NamedContext::Http(value.to_owned()),
        None => NamedContext::Folder { ignore: vec!["*.tmp".into()] },
    }
}

fn lowered(
    dockerfile: &Dockerfile,
    options: &BuildOptions,
    case: &Case,
    graph: &mut Graph,
) -> Result<String, Diagnostics> {
    let mut resolved = Resolved::default();
    loop {
        let missing = base_images(dockerfile, options, &resolved)?;
        if missing.is_empty() {
            break;
        }
        for image in missing {
            let found = resolved_image(&image, case);
            resolved.insert(image.name, image.platform, found);
        }
    }
    let lowered = lower(dockerfile, options, &resolved, graph)?;
    let mut out = dump(graph, lowered.target);
    let mut config: Value = serde_json::from_slice(&lowered.config.to_json()).unwrap();
    let history = config.as_object_mut().unwrap().remove("history");
    out += "config\n";
    show(&mut out, "    ", &config);
    out += "history\n";
    for entry in history.as_ref().and_then(Value::as_array).into_iter().flatten() {
        let layer = if entry["empty_layer"] == true { "     " } else { "layer" };
        let created = entry["created"].as_str().map(|time| format!(" ({time})"));
        let text = entry["created_by"].as_str().unwrap_or_default().escape_debug().to_string();
        writeln!(out, "    {layer} {text}{}", created.unwrap_or_default()).unwrap();
    }
    if case.outline {
        let outline = outline(dockerfile, options, &resolved)?;
        writeln!(out, "{outline:#?}\n{:#?}", targets(dockerfile)).unwrap();
    }
    for warning in &lowered.warnings {
        writeln!(out, "\n{}", warning.diagnostic().render(&dockerfile.source)).unwrap();
    }
    Ok(out)
}

fn resolved_image(image: &BaseImage, case: &Case) -> ResolvedImage {
    let name = context_name(&image.name.to_string());
    let mut config = serde_json::json!({
        "os": image.platform.os, "architecture": image.platform.architecture,
        "config": {"Env": ["PATH=/bin"], "Cmd": ["sh"]},
        "rootfs": {"type": "layers", "diff_ids": []},
        "history": [{"created": "2023-11-14T22:13:20Z", "created_by": format!("make {name}")}],
    });
    if let Some(own) = case.images.get(&name) {
        config["config"] = own.clone();
    }
    let digest = Digest::of(&name);
    ResolvedImage {
        name: image.name.to_string(),
        location: "test".into(),
        manifest: digest,
        digest,
        config: serde_json::to_vec(&config).unwrap().into(),
        platform: image.platform.clone(),
        layers: vec![ImageLayer {
            descriptor: Descriptor::new(MediaType::OciLayer, digest, 1),
            diff_id: DiffId(digest),
        }],
    }
}

/// All vertices that the target needs: number, name, inputs, line, and what the op says beyond its
/// defaults.
fn dump(graph: &Graph, target: VertexId) -> String {
    let ids = graph.reachable(&[target]);
    let number = |id: &VertexId| ids.iter().position(|known| known == id).unwrap();
    let mut out = String::new();
    for id in &ids {
        let vertex = graph.vertex(*id);
        let inputs: Vec<usize> = graph.inputs(*id).iter().map(number).collect();
        let line = vertex.span.as_ref().map(|span| format!(" line {}", span.line));
        let anew = if vertex.ignore_cache { " without cache" } else { "" };
        let line = line.unwrap_or_default();
        writeln!(out, "{} {} <- {inputs:?}{line}{anew}", number(id), vertex.name).unwrap();
        match &vertex.op {
            Op::Image(image) => writeln!(out, "    {} for {}", image.name, image.platform).unwrap(),
            op => show(&mut out, "    ", &serde_json::to_value(op).unwrap()),
        }
    }
    out
}

fn show(out: &mut String, indent: &str, value: &Value) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields.iter().filter(|(_, value)| !is_default(value)) {
                match value {
                    Value::Object(_) => {
                        writeln!(out, "{indent}{name}:").unwrap();
                        show(out, &format!("{indent}  "), value);
                    }
                    Value::Array(items) if items.iter().any(Value::is_object) => {
                        writeln!(out, "{indent}{name}:").unwrap();
                        for item in items {
                            writeln!(out, "{indent}  -").unwrap();
                            show(out, &format!("{indent}    "), item);
                        }
                    }
                    value => writeln!(out, "{indent}{name}: {}", plain(value)).unwrap(),
                }
            }
        }
        value => writeln!(out, "{indent}{}", plain(value)).unwrap(),
    }
}

/// A value on one line; the bytes of files as text.
fn plain(value: &Value) -> String {
    if let Value::Array(items) = value {
        let bytes: Option<Vec<u8>> = items
            .iter()
            .map(|item| item.as_u64().and_then(|number| u8::try_from(number).ok()))
            .collect();
        if let Some(bytes) = bytes.filter(|bytes| !bytes.is_empty()) {
            return format!("{:?}", String::from_utf8_lossy(&bytes));
        }
    }
    value.to_string()
}

fn is_default(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.values().all(is_default) && fields.is_empty(),
        Value::String(text) => matches!(text.as_str(), "default" | "sandbox" | "buildkitsandbox"),
        Value::Bool(true) | Value::Number(_) => false,
    }
}
