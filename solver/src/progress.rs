//! What a build tells while it goes on: events, in the order in which things happen.
//!
//! The solver and everything below it send [`Event`]s; one renderer draws them. Nobody else writes
//! to the terminal.

use std::sync::Arc;
use std::time::Duration;

use rbuild_cache::digest::Digest;

use crate::graph::VertexId;

/// Names one line of progress: a vertex, or a task around the graph (resolving an image, exporting).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TaskId {
    /// A vertex of the graph.
    Vertex(VertexId),
    /// Work outside the graph, numbered as it is started.
    Other(u64),
}

/// Something that happened. Times are since the build began.
#[derive(Clone, Debug)]
pub struct Event {
    /// To which line of progress.
    pub task: TaskId,
    /// When, since the build began.
    pub at: Duration,
    /// What.
    pub kind: EventKind,
}

/// What can happen to a task.
#[derive(Clone, Debug)]
pub enum EventKind {
    /// It begins, under this name.
    Started {
        /// How it is shown: `[build 3/7] RUN go build`.
        name: String,
    },
    /// It says something: bytes of standard output (1) or standard error (2).
    Output {
        /// 1 or 2.
        stream: u8,
        /// What was written, as it came.
        bytes: bytes::Bytes,
    },
    /// Part of it went on: a blob that is fetched, a layer that is compressed.
    Progress {
        /// Which part: `sha256:0f3e…`.
        part: String,
        /// How many bytes are through.
        current: u64,
        /// Of how many, where that is known.
        total: Option<u64>,
        /// The part is done.
        done: bool,
    },
    /// It has something to say that is no failure (`--network default` became the host's).
    Warning {
        /// What.
        message: String,
    },
    /// Why its result was not found: "`src/main.rs` changed".
    Miss {
        /// The reason.
        reason: String,
    },
    /// Its result was known.
    Cached,
    /// It is done.
    Finished,
    /// It failed.
    Failed {
        /// Why, in one line.
        message: String,
    },
    /// It was given up, since something else failed or the user interrupted.
    Canceled,
    /// A digest worth showing came of it (a manifest, a config).
    Result {
        /// What it is: `manifest`, `config`.
        what: String,
        /// Its digest.
        digest: Digest,
    },
}

/// Takes events. Cheap to call from anywhere; never blocks for long.
pub trait Progress: Send + Sync {
    /// Takes one event.
    fn send(&self, event: Event);
}

/// A clock that began with the build, and where its events go.
#[derive(Clone)]
pub struct Reporter {
    begun: std::time::Instant,
    sink: Arc<dyn Progress>,
    next: Arc<std::sync::atomic::AtomicU64>,
}

impl Reporter {
    /// Starts the clock; events go to `sink`.
    pub fn new(sink: Arc<dyn Progress>) -> Self {
        Self { begun: std::time::Instant::now(), sink, next: Arc::default() }
    }

    /// Tells that `kind` happened to `task`, now.
    pub fn tell(&self, task: TaskId, kind: EventKind) {
        self.sink.send(Event { task, at: self.begun.elapsed(), kind });
    }

    /// Starts a task outside the graph.
    pub fn start(&self, name: impl Into<String>) -> Task {
        let number = self.next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let task = Task { id: TaskId::Other(number), reporter: self.clone() };
        task.tell(EventKind::Started { name: name.into() });
        task
    }

    /// The task of a vertex.
    pub fn vertex(&self, id: VertexId) -> Task {
        Task { id: TaskId::Vertex(id), reporter: self.clone() }
    }
}

impl std::fmt::Debug for Reporter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reporter").field("begun", &self.begun).finish_non_exhaustive()
    }
}

/// One line of progress, to be told about.
#[derive(Clone, Debug)]
pub struct Task {
    id: TaskId,
    reporter: Reporter,
}

impl Task {
    /// Tells that `kind` happened to it, now.
    pub fn tell(&self, kind: EventKind) {
        self.reporter.tell(self.id, kind);
    }
}

/// Takes events and does nothing with them (`--progress=quiet` below its last line, and tests).
#[derive(Clone, Copy, Debug, Default)]
pub struct Silent;

impl Progress for Silent {
    fn send(&self, _event: Event) {}
}
