//! Stands in for the world around a graph: needs no root, no kernel feature and no network.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use rbuild_cache::index::CacheSource;
use rbuild_cache::oci::Platform;
use rbuild_cache::snapshot::Snapshot;
use rbuild_cache::state::StateFolder;
use rbuild_solver::graph::{
    Graph, ImageLayer, NetworkMode, Op, RunOp, SecurityMode, Vertex, VertexId,
};
use rbuild_solver::http_source::{Fetched, HttpSource, HttpSourceError, Validators};
use rbuild_solver::image_source::{ImageSource, UnpackError};
use rbuild_solver::progress::{Event, EventKind, Progress, Reporter, Task};
use rbuild_solver::sandbox::{ExitStatus, OutputSink, ProcessSpec, RootFs, Sandbox, SandboxError};
use rbuild_solver::solve::{Entitlements, RunSettings, Surroundings};
use rbuild_solver::{Gate, Jobs};

/// Knows three commands: `write PATH TEXT`, `sleep MILLISECONDS` and `exit CODE`.
#[derive(Default)]
pub(crate) struct FakeSandbox {
    /// The arguments of all commands that were run.
    pub(crate) ran: Mutex<Vec<Vec<String>>>,
}

#[async_trait]
impl Sandbox for FakeSandbox {
    async fn run(
        &self,
        process: ProcessSpec,
        output: OutputSink,
    ) -> Result<ExitStatus, SandboxError> {
        self.ran.lock().unwrap().push(process.args.clone());
        let args: Vec<&str> = process.args.iter().map(String::as_str).collect();
        let (RootFs::Overlay { upper: root, .. } | RootFs::Folder(root)) = &process.root;
        match args[..] {
            ["write", path, text] => write(&root.join(path), text),
            ["sleep", milliseconds] => {
                tokio::time::sleep(Duration::from_millis(milliseconds.parse().unwrap())).await;
            }
            ["exit", code] => {
                output(2, bytes::Bytes::from_static(b"it went wrong\n"));
                return Ok(ExitStatus::Code(code.parse().unwrap()));
            }
            _ => panic!("{args:?}"),
        }
        Ok(ExitStatus::Code(0))
    }
}

fn write(path: &Path, text: &str) {
    fs_err::write(path, text).unwrap();
}

/// Has no images and no files.
struct Nowhere;

#[async_trait]
impl ImageSource for Nowhere {
    async fn unpack(&self, _: &str, _: &ImageLayer, _: &Task) -> Result<Snapshot, UnpackError> {
        unreachable!("these graphs have no images")
    }
}

#[async_trait]
impl HttpSource for Nowhere {
    async fn fetch(
        &self,
        _: &str,
        _: Option<&Validators>,
        _: &Path,
        _: &Task,
    ) -> Result<Fetched, HttpSourceError> {
        unreachable!("these graphs fetch no files")
    }
}

/// Remembers the names of vertices that were said to be cached.
#[derive(Default)]
pub(crate) struct Told(Mutex<Vec<Event>>);

impl Progress for Told {
    fn send(&self, event: Event) {
        self.0.lock().unwrap().push(event);
    }
}

impl Told {
    /// How many vertices were said to be cached.
    pub(crate) fn cached(&self) -> usize {
        let events = self.0.lock().unwrap();
        events.iter().filter(|event| matches!(event.kind, EventKind::Cached)).count()
    }
}

/// One build's world: a state folder that outlives it, and who is told.
pub(crate) struct World {
    pub(crate) sandbox: Arc<FakeSandbox>,
    pub(crate) told: Arc<Told>,
    pub(crate) surroundings: Arc<Surroundings>,
}

impl World {
    /// A new process on the state folder `state`.
    pub(crate) fn new(state: &Path, jobs: Jobs) -> Self {
        let (sandbox, told) = (Arc::new(FakeSandbox::default()), Arc::new(Told::default()));
        let state = StateFolder::open(state).unwrap();
        let surroundings = Surroundings {
            sources: vec![state.index().clone()],
            state,
            remote: None,
            sandbox: sandbox.clone(),
            images: Arc::new(Nowhere),
            http: Arc::new(Nowhere),
            folders: BTreeMap::new(),
            secrets: BTreeMap::new(),
            ssh: BTreeMap::new(),
            allow: Entitlements::default(),
            run: RunSettings::default(),
            gate: Gate::new(jobs),
            reporter: Reporter::new(told.clone()),
            arguments: std::collections::BTreeSet::new(),
            now: 0,
            made: None,
        };
        Self { sandbox, told, surroundings: Arc::new(surroundings) }
    }

    /// Asks `source` for results before anybody else.
    pub(crate) fn ask_first(&mut self, source: Arc<dyn CacheSource>) {
        let surroundings = Arc::get_mut(&mut self.surroundings).unwrap();
        surroundings.sources.insert(0, source);
    }

    /// How many commands were run.
    pub(crate) fn runs(&self) -> usize {
        self.sandbox.ran.lock().unwrap().len()
    }
}

/// The empty tree.
pub(crate) fn scratch(graph: &mut Graph) -> VertexId {
    graph.add(vertex(Op::Scratch), &[])
}

/// A command over `base`.
pub(crate) fn run(graph: &mut Graph, base: VertexId, args: &[&str]) -> VertexId {
    graph.add(vertex(Op::Run(Box::new(run_op(args)))), &[base])
}

/// A vertex of no stage.
pub(crate) fn vertex(op: Op) -> Vertex {
    Vertex { op, name: "step".into(), span: None, ignore_cache: false }
}

/// A command with nothing special about it.
pub(crate) fn run_op(args: &[&str]) -> RunOp {
    RunOp {
        args: args.iter().map(ToString::to_string).collect(),
        env: Vec::new(),
        cwd: "/".into(),
        user: None,
        network: NetworkMode::Default,
        security: SecurityMode::Sandbox,
        mounts: Vec::new(),
        devices: Vec::new(),
        hostname: "buildkitsandbox".into(),
        extra_hosts: Vec::new(),
        shm_size: None,
        ulimits: Vec::new(),
        cgroup_parent: None,
        platform: Platform::new("linux", "amd64", None),
    }
}
