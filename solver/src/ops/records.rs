//! Results on their way into the index: written down beside the steps that follow, those of a moment
//! together. In a chain of small steps, a transaction for each would take as long as the steps, and
//! leave the index with a log that whoever opens it next has to read.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rbuild_cache::digest::{CacheKey, Digest};
use rbuild_cache::index::{CacheRecord, NewRecord};
use rbuild_cache::lock::LockGuard;
use rbuild_cache::state::StateFolder;
use tokio::sync::Notify;
use tokio::task::JoinSet;

use crate::error::{Cause, SolveError};
use crate::graph::{Span, Vertex};

/// So long results wait for others. Another process that wants the same one waits as well; what is
/// not written when this process is killed is done once more. A build that is given up writes what
/// waits.
const GATHERING: Duration = Duration::from_millis(20);

/// A result that is to be written down.
pub(super) struct Pending {
    pub(super) keys: Vec<CacheKey>,
    pub(super) marks: Vec<Digest>,
    pub(super) record: CacheRecord,
}

/// A result, of which step it is, and the lock that its key has until it is written down.
struct Waiting {
    pending: Pending,
    name: String,
    span: Option<Span>,
    _flight: LockGuard,
}

/// The results of a build that are not written down yet.
pub(super) struct Records {
    state: StateFolder,
    waiting: Arc<Mutex<Vec<Waiting>>>,
    writers: Mutex<JoinSet<Result<(), SolveError>>>,
    /// Nothing is waited for.
    now: Arc<Notify>,
}

impl Pending {
    /// Writes it down.
    pub(super) fn write(&self, state: &StateFolder) -> Result<(), Cause> {
        state.index().insert_all(&[self.as_new()]).map_err(Cause::state)
    }

    fn as_new(&self) -> NewRecord<'_> {
        NewRecord { keys: &self.keys, marks: &self.marks, record: &self.record }
    }
}

impl Records {
    /// None yet, to be written down in `state`.
    pub(super) fn new(state: StateFolder) -> Self {
        let (waiting, writers, now) = (Arc::default(), Mutex::default(), Arc::default());
        Self { state, waiting, writers, now }
    }

    /// Has `pending`, which `vertex` came to, written down soon; `flight` ends when it is.
    pub(super) fn add(&self, pending: Pending, vertex: &Vertex, flight: LockGuard) {
        let (name, span) = (vertex.name.clone(), vertex.span.clone());
        let mut waiting = lock(&self.waiting);
        waiting.push(Waiting { pending, name, span, _flight: flight });
        if waiting.len() > 1 {
            // Whoever was told of the first writes them all.
            return;
        }
        let (state, all, now) =
            (self.state.clone(), Arc::clone(&self.waiting), Arc::clone(&self.now));
        lock(&self.writers).spawn(async move {
            // Neither is an error, and what came before may have been meant for the batch before.
            let _ = tokio::time::timeout(GATHERING, now.notified()).await;
            match tokio::task::spawn_blocking(move || write(&state, &all)).await {
                Ok(written) => written,
                Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
                // The runtime ends, and with it the build.
                Err(_) => Ok(()),
            }
        });
    }

    /// Has what waits written down at once: somebody wants to know of it.
    pub(super) fn hurry(&self) {
        if !lock(&self.waiting).is_empty() {
            self.now.notify_one();
        }
    }

    /// Waits until all results are written down.
    pub(super) async fn keep(&self) -> Result<(), SolveError> {
        let mut writers = std::mem::take(&mut *lock(&self.writers));
        // At most one of them waits: the next one begins when it has taken what there was.
        self.hurry();
        let mut kept = Ok(());
        while let Some(written) = writers.join_next().await {
            match written {
                Ok(written) => kept = kept.and(written),
                Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
                Err(_) => {}
            }
        }
        kept
    }
}

impl Drop for Records {
    fn drop(&mut self) {
        if let Err(error) = write(&self.state, &self.waiting) {
            tracing::debug!(%error, "what was finished is not written down");
        }
    }
}

/// Writes all that is `waiting` down.
fn write(state: &StateFolder, waiting: &Mutex<Vec<Waiting>>) -> Result<(), SolveError> {
    let all = std::mem::take(&mut *lock(waiting));
    if all.is_empty() {
        return Ok(());
    }
    let new: Vec<NewRecord<'_>> = all.iter().map(|waiting| waiting.pending.as_new()).collect();
    state.index().insert_all(&new).map_err(|error| {
        // It is no step's fault; of several, the first one tells of it.
        let first = all.first();
        let name = first.map(|first| first.name.clone()).unwrap_or_default();
        let span = first.and_then(|first| first.span.clone());
        SolveError { name, span, cause: Arc::new(Cause::state(error)) }
    })
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use rbuild_cache::digest::TreeDigest;
    use rbuild_cache::snapshot::SnapshotId;

    use super::*;
    use crate::graph::Op;
    use crate::single_flight;

    /// A state folder, and results that were added one after the other, with their keys.
    async fn added(names: &[&str]) -> (tempfile::TempDir, StateFolder, Records, Vec<CacheKey>) {
        let folder = tempfile::tempdir().unwrap();
        let state = StateFolder::open(folder.path()).unwrap();
        let records = Records::new(state.clone());
        let vertex = Vertex::internal(Op::Scratch, "step");
        let mut all = Vec::new();
        for name in names {
            let key = CacheKey(Digest::of(name));
            let record = CacheRecord {
                snapshot: SnapshotId::random(),
                content: TreeDigest(Digest::of(name)),
                description: (*name).to_owned(),
                evidence: serde_json::Value::Null,
                created: 0,
            };
            let flight = single_flight::lock(state.locks(), &key).await.unwrap();
            let pending = Pending { keys: vec![key], marks: Vec::new(), record };
            records.add(pending, &vertex, flight);
            all.push(key);
        }
        (folder, state, records, all)
    }

    #[tokio::test]
    async fn what_is_kept_is_written_down_and_nobody_waits_for_it_any_more() {
        let (_folder, state, records, keys) = added(&["a", "b", "c"]).await;
        records.keep().await.unwrap();
        for key in &keys {
            assert!(state.index().lookup(key).unwrap().is_some());
            single_flight::lock(state.locks(), key).await.unwrap();
        }
        records.keep().await.unwrap();
    }

    #[tokio::test]
    async fn a_build_that_is_given_up_writes_what_waits() {
        let (_folder, state, records, keys) = added(&["a", "b"]).await;
        drop(records);
        for key in &keys {
            assert!(state.index().lookup(key).unwrap().is_some());
        }
    }

    #[tokio::test]
    async fn whoever_waits_for_a_result_finds_it() {
        let (_folder, state, records, keys) = added(&["a", "b"]).await;
        for key in &keys {
            let hurry = || records.hurry();
            single_flight::lock_hurrying(state.locks(), key, hurry).await.unwrap();
            assert!(state.index().lookup(key).unwrap().is_some());
        }
        records.keep().await.unwrap();
    }
}
