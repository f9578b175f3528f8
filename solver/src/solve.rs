//! Runs a graph: each vertex once, as soon as what it reads is there, and only if its result is not
//! known already.
//!
//! For every vertex that the targets need there is one task. It waits for the tasks of its inputs,
//! asks the cache, and works only when the cache has nothing (`ops.rs`). The first failure ends all
//! other tasks; what they hold (processes, mounts, folders, locks) is cleaned up by its guards
//! before the error is returned.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use rbuild_cache::index::CacheSource;
use rbuild_cache::state::StateFolder;
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;

use crate::device::DeviceEdits;
use crate::error::{Cause, SolveError};
use crate::graph::{Graph, VertexId};
use crate::http_source::HttpSource;
use crate::image_source::ImageSource;
use crate::jobs::Gate;
use crate::mount::{Secret, SshAgent};
use crate::ops::Worker;
use crate::progress::Reporter;
use crate::remote_cache::RemoteCache;
use crate::sandbox::Sandbox;
use crate::sandbox::resources::Resources;
use crate::tree::{Output, Tree};

/// Everything around the graph: where results are kept, who does the work, what the caller lends.
pub struct Surroundings {
    /// Results and their records.
    pub state: StateFolder,
    /// Who is asked for results before work is done, in this order.
    pub sources: Vec<Arc<dyn CacheSource>>,
    /// Who knows results of other machines, and is told of those of this one.
    pub remote: Option<Arc<dyn RemoteCache>>,
    /// Runs commands.
    pub sandbox: Arc<dyn Sandbox>,
    /// Fetches layers of base images.
    pub images: Arc<dyn ImageSource>,
    /// Fetches files.
    pub http: Arc<dyn HttpSource>,
    /// The caller's folders, by the name of their context.
    pub folders: BTreeMap<String, PathBuf>,
    /// The caller's secrets, by id.
    pub secrets: BTreeMap<String, Secret>,
    /// The caller's SSH agents, by id.
    pub ssh: BTreeMap<String, SshAgent>,
    /// What steps may ask for beyond the sandbox.
    pub allow: Entitlements,
    /// What the caller's machine lends to every step.
    pub run: RunSettings,
    /// How many commands run at once.
    pub gate: Gate,
    /// Who is told.
    pub reporter: Reporter,
    /// The names of the Dockerfile's ARGs, for who is told which variable changed.
    pub arguments: BTreeSet<String>,
    /// The time of the request, in seconds since the epoch; written into records, in no key.
    pub now: i64,
    /// Is told of each tree that had to be made, as soon as it is there.
    pub made: Option<MadeWatcher>,
}

/// Is told of a vertex and of the tree that was made for it. It is called between steps, so it may
/// not take its time.
pub type MadeWatcher = Arc<dyn Fn(VertexId, &Tree) + Send + Sync>;

/// `--allow`
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Entitlements {
    /// `network.host`
    pub network_host: bool,
    /// `security.insecure`
    pub security_insecure: bool,
    /// `device`, and `device=NAME`: an empty list allows none, `None` allows all.
    pub devices: Option<Vec<String>>,
}

/// What the caller's machine lends to every step; in no cache key.
#[derive(Clone, Debug, Default)]
pub struct RunSettings {
    /// The bytes of the host's `/etc/resolv.conf`.
    pub resolv_conf: Vec<u8>,
    /// `HTTP_PROXY=…` and its like, for steps only.
    pub proxies: Vec<String>,
    /// `--timeout`: how long a step may run.
    pub timeout: Option<Duration>,
    /// How much of the machine a step may take.
    pub resources: Resources,
    /// What the machine's devices bring along, by fully qualified name.
    pub devices: BTreeMap<String, DeviceEdits>,
}

/// The result of a vertex, once it is there.
type Pending = watch::Receiver<Option<Output>>;

/// Makes the trees of `targets`, in that order.
///
/// Dropping the future ends all work. On failure the first error is returned, after everything else
/// has ended.
pub async fn solve(
    graph: Arc<Graph>,
    targets: &[VertexId],
    surroundings: Arc<Surroundings>,
) -> Result<Vec<Tree>, SolveError> {
    let order = graph.reachable(targets);
    crate::ops::run::check_entitlements(&graph, &order, &surroundings.allow)?;
    let worker = Arc::new(Worker::new(Arc::clone(&graph), surroundings));
    let result = run(&graph, order, targets, &worker).await;
    let kept = worker.keep_records().await;
    worker.keep_history();
    let trees = result?;
    kept?;
    Ok(trees)
}

async fn run(
    graph: &Graph,
    order: Vec<VertexId>,
    targets: &[VertexId],
    worker: &Arc<Worker>,
) -> Result<Vec<Tree>, SolveError> {
    let mut pending: HashMap<VertexId, Pending> = HashMap::new();
    let mut tasks = JoinSet::new();
    let end = Arc::new(End { open: AtomicUsize::new(order.len()), reached: Notify::new() });
    for id in order {
        let (sender, receiver) = watch::channel(None);
        let inputs: Vec<Pending> =
            graph.inputs(id).iter().map(|input| pending[input].clone()).collect();
        let worker = Arc::clone(worker);
        let unfinished = Unfinished(Some(Arc::clone(&end)));
        tasks.spawn(async move {
            let inputs = received(inputs).await.ok_or(None)?;
            let output = worker.work(id, inputs).await.map_err(Some)?;
            sender.send_replace(Some(output));
            unfinished.finish();
            Ok::<(), Option<SolveError>>(())
        });
        pending.insert(id, receiver);
    }
    if !pending.is_empty() {
        end.reached.notified().await;
    }
    while let Some(ended) = tasks.join_next().await {
        let failure = match ended {
            // Of two tasks that end because an input failed, the input's own says why.
            Ok(Ok(()) | Err(None)) => continue,
            Ok(Err(Some(error))) => Ok(error),
            Err(panic) => Err(panic),
        };
        tasks.shutdown().await;
        return match failure {
            Ok(error) => Err(error),
            Err(panic) if panic.is_panic() => std::panic::resume_unwind(panic.into_panic()),
            Err(_) => Err(SolveError {
                name: "build".into(),
                span: None,
                cause: Arc::new(Cause::Canceled),
            }),
        };
    }
    targets.iter().map(|target| tree_of(graph, *target, &pending[target])).collect()
}

/// Tells when all tasks are done, or one of them ended without: whoever waits is woken once, not for
/// each of many small steps.
struct End {
    /// How many are not done.
    open: AtomicUsize,
    reached: Notify,
}

/// A task's part in the [`End`]. Dropped, it tells that the task ended without being done.
struct Unfinished(Option<Arc<End>>);

impl Unfinished {
    fn finish(mut self) {
        if let Some(end) = self.0.take()
            && end.open.fetch_sub(1, Ordering::AcqRel) == 1
        {
            end.reached.notify_one();
        }
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if let Some(end) = self.0.take() {
            end.reached.notify_one();
        }
    }
}

/// The outputs of `inputs`, or `None` when the task of one of them ended without.
async fn received(inputs: Vec<Pending>) -> Option<Vec<Output>> {
    let mut outputs = Vec::with_capacity(inputs.len());
    for mut input in inputs {
        let output = input.wait_for(Option::is_some).await.ok()?;
        outputs.push(output.clone().expect("it was waited for"));
    }
    Some(outputs)
}

fn tree_of(graph: &Graph, target: VertexId, pending: &Pending) -> Result<Tree, SolveError> {
    match pending.borrow().as_ref() {
        Some(Output::Tree(tree)) => Ok(tree.clone()),
        Some(Output::Folder(_)) | None => Err(SolveError::new(
            graph.vertex(target),
            Cause::Unsupported("a folder of the caller is not an image".into()),
        )),
    }
}
