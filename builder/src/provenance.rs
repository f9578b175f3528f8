//! How an image was built, as a statement that others can read: SLSA provenance v1 in an in-toto
//! statement, with BuildKit's fields (solver/llbsolver/provenance/predicate.go; docs/attestations/
//! slsa-definitions.md).
//!
//! `mode=min` says what the image was made from; `mode=max` also what was given to the build and
//! what every step did. Values of secrets are in neither: nothing here ever holds one. Proxies are
//! left out, since their addresses hold passwords, and so are passwords in addresses.

mod dependency;
mod request;
mod steps;

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use rbuild_cache::digest::{Digest, Hasher};
use rbuild_cache::oci::{Descriptor, ImageRef, Platform};
use rbuild_cache::state::StateFolder;
use rbuild_frontend::source::Source;
use rbuild_solver::graph::{Graph, MountSource, NetworkMode, Op, VertexId};
use serde_json::{Map, Value, json};

use crate::request::{BuildRequest, ProvenanceMode, ProvenanceRequest};

pub use dependency::purl;

/// What kind of build it is, in SLSA's terms: parameters and steps are those of BuildKit.
const BUILD_TYPE: &str =
    "https://github.com/moby/buildkit/blob/master/docs/attestations/slsa-definitions.md";
/// The media type of a statement.
pub const STATEMENT: &str = "application/vnd.in-toto+json";
/// What the statement says.
pub const PREDICATE: &str = "https://slsa.dev/provenance/v1";

/// How the image for one platform was built.
#[derive(Clone, Debug, PartialEq)]
pub struct Provenance {
    predicate: Value,
    /// The step that made the image's tree, in `max` mode.
    target: Option<String>,
    /// The name of the file that outputs without an image put it into.
    pub file_name: String,
    /// Outputs that are no images leave it out.
    pub inline_only: bool,
}

/// Says why there is no provenance.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProvenanceError {
    /// `complete-materials=true`, and something has no digest that others could check.
    #[error("provenance materials are incomplete: {} not known by a digest", .0.join(", "))]
    Incomplete(Vec<String>),
}

/// What a build was, for its provenance.
#[derive(Debug)]
pub struct Subject<'a> {
    /// What was asked for.
    pub request: &'a BuildRequest,
    /// The graph, and in it what made the image.
    pub graph: &'a Graph,
    /// The vertex whose tree the image is.
    pub target: VertexId,
    /// The Dockerfile.
    pub dockerfile: &'a Source,
    /// The digest that each image was asked for by, by that of its manifest: the index's, if there
    /// is one.
    pub images: &'a BTreeMap<Digest, Digest>,
    /// `SOURCE_DATE_EPOCH`, in seconds.
    pub epoch: Option<i64>,
    /// How long it took.
    pub elapsed: std::time::Duration,
}

impl Provenance {
    /// What there is to say of a build, as `wanted` asks for it.
    pub fn of(
        build: &Subject<'_>,
        wanted: &ProvenanceRequest,
        state: &StateFolder,
    ) -> Result<Self, ProvenanceError> {
        let vertices = build.graph.reachable(&[build.target]);
        let ops = || vertices.iter().map(|id| &build.graph.vertex(*id).op);
        let found = dependency::of(ops(), build, state);
        if wanted.complete && !found.incomplete.is_empty() {
            return Err(ProvenanceError::Incomplete(found.incomplete));
        }
        let is_complete = found.incomplete.is_empty();
        let is_max = wanted.mode == ProvenanceMode::Max;
        let mut definition = Map::new();
        definition.insert("buildType".into(), BUILD_TYPE.into());
        if !found.resolved.is_empty() {
            definition.insert("resolvedDependencies".into(), found.resolved.into());
        }
        let mut parameters = request::parameters(build, ops(), &found.locals);
        let mut scrubbed = false;
        if !is_max {
            scrubbed = request::scrub(&mut parameters);
        }
        let source = request::config_source(build, state);
        definition.insert(
            "externalParameters".into(),
            json!({ "configSource": source, "request": parameters }),
        );
        let mut internal = Map::new();
        let mut buildkit = Map::new();
        let mut target = None;
        if is_max {
            let steps = steps::of(build.graph, &vertices, build.target, build.dockerfile);
            internal.insert("buildConfig".into(), steps.config);
            buildkit.insert("source".into(), source_info(build, &steps.locations));
            target = steps.target;
        }
        internal.insert("builderPlatform".into(), Platform::host().to_string().into());
        if let Op::Slim(slim) = &build.graph.vertex(build.target).op {
            internal.insert("slim".into(), steps::slim(slim));
        }
        definition.insert("internalParameters".into(), internal.into());

        let networked = ops().any(|op| match op {
            Op::Run(run) => run.network != NetworkMode::None,
            _ => false,
        });
        let mut metadata = times(build, &definition);
        metadata.insert("buildkit_metadata".into(), buildkit.into());
        if is_complete && !networked {
            metadata.insert("buildkit_hermetic".into(), true.into());
        }
        metadata.insert(
            "buildkit_completeness".into(),
            json!({ "request": !scrubbed, "resolvedDependencies": is_complete }),
        );
        if wanted.reproducible {
            metadata.insert("buildkit_reproducible".into(), true.into());
        }
        let version = json!({ "rbuild": env!("CARGO_PKG_VERSION") });
        let predicate = json!({
            "buildDefinition": definition,
            "runDetails": {
                "builder": { "id": wanted.builder_id, "version": version },
                "metadata": metadata,
            },
        });
        Ok(Self {
            predicate,
            target,
            file_name: wanted.file_name.clone(),
            inline_only: wanted.inline_only,
        })
    }

    /// The statement about an image: its manifest, for `platform`, with `names` and `layers`.
    pub fn of_image(
        &self,
        manifest: &Digest,
        platform: &Platform,
        names: &[ImageRef],
        layers: &[Descriptor],
    ) -> Value {
        let digest = json!({ "sha256": manifest.hex() });
        let subject = |name: &ImageRef| json!({ "name": purl("docker", name, Some(platform)), "digest": digest });
        let mut subjects: Vec<Value> = names.iter().map(subject).collect();
        if subjects.is_empty() {
            // in-toto wants a name; this is what stands for none.
            subjects.push(json!({ "name": "_", "digest": digest }));
        }
        let mut predicate = self.predicate.clone();
        if let Some(step) = &self.target {
            let key = format!("{step}:0");
            predicate["runDetails"]["metadata"]["buildkit_metadata"]["layers"] =
                json!({ key: [layers] });
        }
        statement(&subjects, &predicate)
    }

    /// The statement about files: paths with their digests.
    pub fn of_files(&self, files: &[(String, Digest)]) -> Value {
        let subject = |(path, digest): &(String, Digest)| json!({ "name": path, "digest": { "sha256": digest.hex() } });
        statement(&files.iter().map(subject).collect::<Vec<_>>(), &self.predicate)
    }

    /// What is said, without of what.
    pub fn predicate(&self) -> &Value {
        &self.predicate
    }
}

fn statement(subjects: &[Value], predicate: &Value) -> Value {
    json!({
        "_type": "https://in-toto.io/Statement/v1",
        "predicateType": PREDICATE,
        "subject": subjects,
        "predicate": predicate,
    })
}

/// When it was built, and how that build is called. With `SOURCE_DATE_EPOCH` there are no times, and
/// the name is made of what was built: the same build says the same.
fn times(build: &Subject<'_>, definition: &Map<String, Value>) -> Map<String, Value> {
    let mut hasher = Hasher::new();
    hasher.field(serde_json::to_vec(definition).expect("it has string keys only"));
    let mut times = Map::new();
    if build.epoch.is_some() {
        times.insert("invocationId".into(), hasher.digest().hex()[..25].into());
        return times;
    }
    let started = jiff::Timestamp::try_from(build.request.settings.now).unwrap_or_default();
    let elapsed = jiff::SignedDuration::try_from(build.elapsed).unwrap_or_default();
    let finished = started.checked_add(elapsed).unwrap_or(started);
    hasher.field(started.to_string());
    times.insert("invocationId".into(), hasher.digest().hex()[..25].into());
    times.insert("startedOn".into(), started.to_string().into());
    times.insert("finishedOn".into(), finished.to_string().into());
    times
}

/// The Dockerfile, and which step comes of which lines.
fn source_info(build: &Subject<'_>, locations: &Map<String, Value>) -> Value {
    let dockerfile = build.dockerfile;
    let (definition, mapping) = steps::of_local("dockerfile");
    json!({
        "locations": locations,
        "infos": [{
            "filename": dockerfile.name(),
            "language": "Dockerfile",
            "data": BASE64_STANDARD.encode(dockerfile.text()),
            "llbDefinition": definition,
            "digestMapping": mapping,
        }],
    })
}

/// The ids of secrets that steps ask for, each with whether the step can do without.
fn secrets<'a>(ops: impl Iterator<Item = &'a Op>) -> BTreeMap<String, bool> {
    ids(ops, |source| match source {
        MountSource::Secret { id, required, .. } | MountSource::SecretEnv { id, required, .. } => {
            Some((id, *required))
        }
        _ => None,
    })
}

/// Like [`secrets`], of ssh agents.
fn agents<'a>(ops: impl Iterator<Item = &'a Op>) -> BTreeMap<String, bool> {
    ids(ops, |source| match source {
        MountSource::Ssh { id, required, .. } => Some((id, *required)),
        _ => None,
    })
}

fn ids<'a>(
    ops: impl Iterator<Item = &'a Op>,
    named: impl Fn(&MountSource) -> Option<(&String, bool)>,
) -> BTreeMap<String, bool> {
    let mut optional: BTreeMap<String, bool> = BTreeMap::new();
    for op in ops {
        let Op::Run(run) = op else { continue };
        for mount in &run.mounts {
            let Some((id, required)) = named(&mount.source) else { continue };
            let known = optional.entry(id.clone()).or_insert(true);
            *known &= !required;
        }
    }
    optional
}
