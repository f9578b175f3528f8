//! What each op does with its inputs: first its keys, then, if nobody has its result, its work.
//!
//! | op | found under | work |
//! |---|---|---|
//! | image | nothing: its layers name it | none until somebody reads a layer (`ops/image.rs`) |
//! | context | nothing: its readers hash what they read | none |
//! | http, git | validators, the commit | fetch (`ops/http.rs`, `ops/git.rs`) |
//! | run | definition key, content key of its bind mounts | the sandbox (`ops/run.rs`) |
//! | file | definition key, content key of the paths it reads | write one layer (`ops/file.rs`) |
//! | slim | definition key | what the program needs, as two layers (`ops/slim.rs`) |
//! | merge | nothing | none: the layers one on top of the other |

pub mod file;
pub mod git;
pub mod http;
pub mod image;
mod records;
pub mod run;
pub mod slim;

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use rbuild_cache::digest::{CacheKey, TreeDigest};
use rbuild_cache::index::CacheRecord;
use rbuild_cache::lock::LockGuard;
use rbuild_cache::view::View;

use self::file::Sharing;
use self::records::{Pending, Records};
use crate::error::{Cause, SolveError};
use crate::evidence::{self, Evidence, History, Miss, Missed, Origin, Reads};
use crate::graph::{FileOp, Graph, Op, Vertex, VertexId};
use crate::key::{self, InputDigest};
use crate::ops::run::accounts::Accounts;
use crate::progress::{EventKind, Task};
use crate::remote_cache::{RemoteLayer, StepResult};
use crate::single_flight;
use crate::solve::Surroundings;
use crate::tree::{Folder, Output, Tree, TreeLayer};

/// How often a context that keeps changing is read.
const READS_MAX: usize = 3;

/// Does the work of vertices.
pub struct Worker {
    graph: Arc<Graph>,
    pub(crate) surroundings: Arc<Surroundings>,
    /// Where the Dockerfile's steps are, for telling them from those of others.
    place: String,
    /// There was no record at all when the build began.
    first: bool,
    history: Mutex<History>,
    records: Records,
    /// The vertices whose results steps of this build see.
    seen: HashSet<VertexId>,
    /// What was found in contexts.
    walks: Arc<file::Walks>,
    accounts: Accounts,
}

/// One vertex at work: what it is, and who is told.
pub(crate) struct Work<'a> {
    pub(crate) vertex: &'a Vertex,
    pub(crate) task: Task,
    /// Where its inputs come from.
    origins: Vec<Origin>,
    /// Its result was known: that is how its line of progress ends.
    hit: AtomicBool,
    /// What was found where it gets its files from, for sources elsewhere.
    pub(crate) revision: OnceLock<String>,
    /// No step of this build sees its result: files of it may be linked elsewhere.
    pub(crate) sharing: bool,
}

impl Work<'_> {
    fn evidence(&self, inputs: &[InputDigest]) -> Evidence {
        match self.revision.get() {
            Some(revision) => Evidence::of(self.vertex, inputs, &[Origin::of_source(revision)]),
            None => Evidence::of(self.vertex, inputs, &self.origins),
        }
    }
}

impl Worker {
    /// Works on vertices of `graph`.
    pub fn new(graph: Arc<Graph>, surroundings: Arc<Surroundings>) -> Self {
        let context = surroundings.folders.get("context");
        let place = context.map_or(String::new(), |folder| folder.display().to_string());
        let history = History { at: surroundings.now, ..History::default() };
        // An index that cannot be asked is told of by who needs an answer.
        let first = surroundings.state.index().is_empty().unwrap_or(false);
        let seen = graph.seen_by_steps();
        let (history, accounts) = (Mutex::new(history), Accounts::default());
        let records = Records::new(surroundings.state.clone());
        let walks = Arc::new(file::Walks::of(&graph));
        Self { graph, surroundings, place, first, history, records, seen, walks, accounts }
    }

    /// Waits until all results are written down.
    pub async fn keep_records(&self) -> Result<(), SolveError> {
        self.records.keep().await
    }

    /// Writes down why steps had to run, if any had to, for who asks later.
    pub fn keep_history(&self) {
        let history = self.history();
        if history.missed.is_empty() {
            return;
        }
        if let Err(error) = history.save(self.surroundings.state.index()) {
            tracing::debug!(%error, "it cannot be told later why steps ran");
        }
    }

    /// The result of `id`, whose inputs resulted in `inputs`. Tells of its beginning and its end.
    pub async fn work(&self, id: VertexId, inputs: Vec<Output>) -> Result<Output, SolveError> {
        let vertex = self.graph.vertex(id);
        let task = self.surroundings.reporter.vertex(id);
        let origins = Origin::of_inputs(&self.graph, id);
        let sharing = !self.seen.contains(&id);
        let (hit, revision) = (AtomicBool::new(false), OnceLock::new());
        let work = Work { vertex, task, origins, hit, revision, sharing };
        let shown = !matches!(vertex.op, Op::Scratch | Op::Merge);
        if shown {
            work.task.tell(EventKind::Started { name: vertex.name.clone() });
        }
        let unfinished = shown.then(|| Unfinished(&work.task));
        let result = self.dispatch(&work, inputs).await;
        std::mem::forget(unfinished);
        match result {
            Ok(output) => {
                if work.hit.into_inner() {
                    self.history().cached.push(vertex.name.clone());
                    return Ok(output);
                }
                if shown {
                    work.task.tell(EventKind::Finished);
                }
                if let (Some(made), Output::Tree(tree)) = (&self.surroundings.made, &output) {
                    made(id, tree);
                }
                Ok(output)
            }
            Err(cause) => {
                work.task.tell(match &cause {
                    // It is not the step's fault, and not the end.
                    Cause::Rejected { .. } => EventKind::Canceled,
                    cause => EventKind::Failed { message: cause.to_string() },
                });
                Err(SolveError::new(vertex, cause))
            }
        }
    }

    async fn dispatch(&self, work: &Work<'_>, inputs: Vec<Output>) -> Result<Output, Cause> {
        match &work.vertex.op {
            Op::Scratch => Ok(Output::Tree(Tree::default())),
            Op::Image(image) => Ok(Output::Tree(image::tree(image))),
            Op::Context(context) => Ok(Output::Folder(Folder {
                name: context.name.clone(),
                root: self.folder(&context.name)?,
                ignore: context.ignore.clone(),
            })),
            Op::Merge => merge(inputs).map(Output::Tree),
            Op::File(file) => self.file(work, file, inputs).await.map(Output::Tree),
            Op::Run(run) => self.run(work, run, inputs).await.map(Output::Tree),
            Op::Http(http) => self.http(work, http).await.map(Output::Tree),
            Op::Git(git) => self.git(work, git).await.map(Output::Tree),
            Op::Slim(slim) => self.slim(work, slim, inputs).await.map(Output::Tree),
        }
    }

    fn folder(&self, name: &str) -> Result<std::path::PathBuf, Cause> {
        let folder = self.surroundings.folders.get(name).cloned();
        folder.ok_or_else(|| Cause::Unsupported(format!("there is no build context `{name}`")))
    }

    /// Looks for a result under `key`: here, where a record whose snapshot is gone counts as none,
    /// and then elsewhere.
    pub(crate) async fn known(
        &self,
        work: &Work<'_>,
        key: &CacheKey,
    ) -> Result<Option<TreeLayer>, Cause> {
        if work.vertex.ignore_cache {
            return Ok(None);
        }
        let snapshots = self.surroundings.state.snapshots();
        for source in &self.surroundings.sources {
            if let Some(record) = source.find(key).map_err(Cause::state)?
                && let Some(snapshot) = snapshots.get(&record.snapshot).map_err(Cause::state)?
            {
                return Ok(Some(TreeLayer::Snapshot(snapshot)));
            }
        }
        let Some(remote) = &self.surroundings.remote else { return Ok(None) };
        let Some(result) = remote.find(key).await else { return Ok(None) };
        let (key, name) = (*key, work.vertex.name.clone());
        Ok(Some(TreeLayer::Remote(Arc::new(RemoteLayer { result, key, name }))))
    }

    /// Tells that the result was known.
    pub(crate) fn hit(work: &Work<'_>) {
        work.hit.store(true, Ordering::Relaxed);
        work.task.tell(EventKind::Cached);
    }

    /// Finds out why nothing was known under `keys`, and tells it.
    pub(crate) fn miss(
        &self,
        work: &Work<'_>,
        keys: &[CacheKey],
        inputs: &[InputDigest],
        reads: Option<&Reads>,
    ) {
        let evidence = work.evidence(inputs);
        let missed = Missed {
            vertex: work.vertex,
            keys,
            marks: &evidence::marks(work.vertex, &self.place),
            evidence: &evidence,
            reads,
            names: &self.surroundings.arguments,
            first: self.first,
        };
        match missed.explain(&self.surroundings.state) {
            Ok(miss) => {
                work.task.tell(EventKind::Miss { reason: miss.reason.clone() });
                self.history().missed.push(miss);
            }
            // The step runs all the same.
            Err(error) => tracing::debug!(%error, "it cannot be told why a step runs"),
        }
    }

    /// Tells why a step's work is done although its result is as before.
    pub(crate) fn again(&self, work: &Work<'_>, reason: &str) {
        work.task.tell(EventKind::Miss { reason: reason.to_owned() });
        let step = work.vertex.name.clone();
        self.history().missed.push(Miss { step, reason: reason.to_owned(), ..Miss::default() });
    }

    fn history(&self) -> MutexGuard<'_, History> {
        self.history.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells those who share results that a step, over `base`, came to `layer`; returns the tree.
    pub(crate) fn came_to(&self, keys: Vec<CacheKey>, base: Tree, layer: TreeLayer) -> Tree {
        let result = StepResult { keys, layer, base, source: None };
        self.tell_result(result)
    }

    /// Tells those who share results of `result`; returns the tree.
    pub(crate) fn tell_result(&self, result: StepResult) -> Tree {
        if let Some(remote) = &self.surroundings.remote {
            remote.came_to(result.clone());
        }
        result.base.with_layer(result.layer)
    }

    /// Waits until nobody else works on `key`, and works on it.
    pub(crate) async fn flight(&self, key: &CacheKey) -> Result<LockGuard, Cause> {
        let locks = self.surroundings.state.locks();
        single_flight::lock_hurrying(locks, key, || self.records.hurry()).await
    }

    /// Writes down that `layer` is the result of `work` under `keys`. What is elsewhere is written
    /// down when it was fetched.
    pub(crate) async fn record(
        &self,
        work: &Work<'_>,
        keys: Vec<CacheKey>,
        layer: &TreeLayer,
        inputs: &[InputDigest],
    ) -> Result<(), Cause> {
        let Some(pending) = self.pending(work, keys, layer, inputs) else { return Ok(()) };
        let state = self.surroundings.state.clone();
        blocking(move || pending.write(&state)).await
    }

    /// Like [`Self::record`], but the steps after this one need not wait for it: whoever asks for the
    /// same result waits for `flight`, which ends when the record is there.
    pub(crate) async fn record_beside(
        &self,
        work: &Work<'_>,
        keys: Vec<CacheKey>,
        layer: &TreeLayer,
        inputs: &[InputDigest],
        flight: LockGuard,
    ) -> Result<(), Cause> {
        if self.surroundings.remote.is_some() {
            // Who shares results looks records up.
            return self.record(work, keys, layer, inputs).await;
        }
        if let Some(pending) = self.pending(work, keys, layer, inputs) {
            self.records.add(pending, work.vertex, flight);
        }
        Ok(())
    }

    /// What is to be written down; nothing for what is elsewhere.
    fn pending(
        &self,
        work: &Work<'_>,
        keys: Vec<CacheKey>,
        layer: &TreeLayer,
        inputs: &[InputDigest],
    ) -> Option<Pending> {
        let TreeLayer::Snapshot(snapshot) = layer else { return None };
        let record = CacheRecord {
            snapshot: snapshot.id.clone(),
            content: snapshot.content,
            description: work.vertex.name.clone(),
            evidence: work.evidence(inputs).to_json(),
            created: self.surroundings.now,
        };
        Some(Pending { keys, marks: evidence::marks(work.vertex, &self.place).into(), record })
    }

    /// A file op; once more from the start when a context changed while it was read.
    async fn file(&self, work: &Work<'_>, op: &FileOp, inputs: Vec<Output>) -> Result<Tree, Cause> {
        self.unchanging(|| self.file_once(work, op, inputs.clone())).await
    }

    /// What `attempt` comes to; another one when a context changed while it was read.
    pub(crate) async fn unchanging<F: Future<Output = Result<Tree, Cause>>>(
        &self,
        attempt: impl Fn() -> F,
    ) -> Result<Tree, Cause> {
        for _ in 1..READS_MAX {
            match attempt().await {
                Err(Cause::File(file::FileError::Changed(path))) => {
                    tracing::debug!(path = %path.display(), "changed after it was looked at");
                    self.walks.forget();
                }
                result => return result,
            }
        }
        attempt().await
    }

    /// Definition key, content key, then the files.
    async fn file_once(
        &self,
        work: &Work<'_>,
        op: &FileOp,
        mut inputs: Vec<Output>,
    ) -> Result<Tree, Cause> {
        let base = tree(inputs.remove(0))?;
        let base_digest = InputDigest::Tree(base.digest());
        let definition = definition_key(&work.vertex.op, &base, &inputs);
        if let Some(key) = definition
            && let Some(layer) = self.known(work, &key).await?
        {
            Self::hit(work);
            return Ok(self.came_to(vec![key], base, layer));
        }
        // The layers below are fetched only when it is certain that something is written over them.
        let reads_base = file::reads_base(op);
        let mut base_view = None;
        if reads_base {
            base_view = Some(self.view(&base, &work.task).await?);
        }
        let mut sources = Vec::with_capacity(inputs.len());
        for input in &inputs {
            sources.push(self.source(input, &work.task).await?);
        }
        let state = self.surroundings.state.clone();
        let (of_op, of_view) = (op.clone(), base_view.clone());
        let is_quick = file::is_planned_quickly(op, &sources);
        let planned = move || {
            let plan = file::plan(&of_op, of_view.as_ref(), &sources, &state)?;
            let checksum = plan.checksum()?;
            Ok::<_, Cause>((plan, checksum))
        };
        let (plan, checksum) = blocking_unless(is_quick, planned).await?;
        let digests = [base_digest, InputDigest::Content(checksum)];
        let content = key::content(&work.vertex.op, &digests);
        let keys: Vec<CacheKey> = definition.into_iter().chain([content]).collect();
        let flight = self.flight(&content).await?;
        if let Some(layer) = self.known(work, &content).await? {
            plan.remember();
            // Of a large context it is much; who waits for the result need not wait for that.
            if plan.is_large() {
                rayon::spawn(move || drop(plan));
            }
            Self::hit(work);
            self.record_beside(work, keys.clone(), &layer, &digests, flight).await?;
            return Ok(self.came_to(keys, base, layer));
        }
        let base_view = match base_view {
            Some(view) => view,
            None => self.view(&base, &work.task).await?,
        };
        let reads = plan.reads();
        self.miss(work, &keys, &digests, Some(&reads));
        let (state, op) = (self.surroundings.state.clone(), op.clone());
        let sharing = if work.sharing { Sharing::Allowed } else { Sharing::Forbidden };
        let is_quick = plan.is_quick(&base_view);
        let written = move || Ok(plan.over(&op, base_view)?.commit(&state, &reads, sharing)?);
        let layer = TreeLayer::Snapshot(blocking_unless(is_quick, written).await?);
        self.record_beside(work, keys.clone(), &layer, &digests, flight).await?;
        Ok(self.came_to(keys, base, layer))
    }

    /// A view of `tree`, whose layers are fetched and unpacked first.
    pub(crate) async fn view(&self, tree: &Tree, task: &Task) -> Result<View, Cause> {
        let ids = self.realize(tree, task).await?;
        let snapshots = self.surroundings.state.snapshots();
        let folders = snapshots.lower(&ids).map_err(Cause::state)?;
        Ok(View::layers(folders))
    }

    /// What a step can read of `output`.
    pub(crate) async fn source(
        &self,
        output: &Output,
        task: &Task,
    ) -> Result<file::SourceTree, Cause> {
        Ok(match output {
            Output::Tree(tree) => file::SourceTree::tree(self.view(tree, task).await?),
            Output::Folder(folder) => {
                file::SourceTree::context(folder)?.shared(folder, &self.walks)
            }
        })
    }
}

/// The definition key of `op`, when all it reads are trees.
pub(crate) fn definition_key(op: &Op, base: &Tree, inputs: &[Output]) -> Option<CacheKey> {
    let mut digests: Vec<TreeDigest> = vec![base.digest()];
    for input in inputs {
        match input {
            Output::Tree(tree) => digests.push(tree.digest()),
            Output::Folder(_) => return None,
        }
    }
    Some(key::definition(op, &digests))
}

/// The tree of an input that cannot be a folder of the caller.
pub(crate) fn tree(output: Output) -> Result<Tree, Cause> {
    match output {
        Output::Tree(tree) => Ok(tree),
        Output::Folder(folder) => Err(Cause::Unsupported(format!(
            "build context `{}` cannot serve as a root file system",
            folder.name
        ))),
    }
}

fn merge(inputs: Vec<Output>) -> Result<Tree, Cause> {
    let mut layers = Vec::new();
    for input in inputs {
        layers.extend(tree(input)?.layers);
    }
    Ok(Tree { layers })
}

/// Leads from waiting to computing: runs `work` on a thread that may block.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Cause> + Send + 'static,
) -> Result<T, Cause> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        Err(_) => Err(Cause::Canceled),
    }
}

/// Like [`blocking`], but here if it is over sooner than another thread is woken.
pub(crate) async fn blocking_unless<T: Send + 'static>(
    is_quick: bool,
    work: impl FnOnce() -> Result<T, Cause> + Send + 'static,
) -> Result<T, Cause> {
    if is_quick { work() } else { blocking(work).await }
}

/// Tells, when it is dropped, that a task was given up.
struct Unfinished<'a>(&'a Task);

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        self.0.tell(EventKind::Canceled);
    }
}
