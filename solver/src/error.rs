//! Why a build did not succeed: which vertex, which line, and what happened there.

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use crate::graph::{Span, Vertex};
use crate::image_source::ImageSourceError;
use crate::sandbox::{ExitStatus, SandboxError};

/// A vertex whose work could not be done.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{name}: {cause}")]
pub struct SolveError {
    /// The vertex, as progress shows it.
    pub name: String,
    /// The Dockerfile line it came from.
    pub span: Option<Span>,
    /// What happened.
    #[source]
    pub cause: Arc<Cause>,
}

impl SolveError {
    /// Says that `cause` happened to `vertex`.
    pub fn new(vertex: &Vertex, cause: Cause) -> Self {
        Self { name: vertex.name.clone(), span: vertex.span.clone(), cause: Arc::new(cause) }
    }
}

/// What can happen to a vertex.
#[derive(Debug, thiserror::Error)]
pub enum Cause {
    /// The command ran, and did not succeed.
    #[error("process {command:?} {}", ended(*status))]
    Exit {
        /// The command, as a shell would be given it.
        command: String,
        /// How it ended.
        status: ExitStatus,
        /// The end of what it wrote.
        tail: Vec<u8>,
        /// There was no room left on the disk of the state folder when it ended.
        no_room: bool,
    },
    /// The command could not be started.
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    /// It ran longer than `--timeout` allows.
    #[error("process {command:?} was still running after {} s", limit.as_secs_f64())]
    Timeout {
        /// The command.
        command: String,
        /// The limit.
        limit: Duration,
        /// The end of what it wrote.
        tail: Vec<u8>,
    },
    /// The kernel killed it, or one of its children, for want of memory.
    #[error("process {command:?} was killed for want of memory{}", memory_limit(*limit))]
    OutOfMemory {
        /// The command.
        command: String,
        /// `--memory`, in bytes.
        limit: Option<u64>,
        /// The end of what it wrote.
        tail: Vec<u8>,
    },
    /// An image or one of its layers could not be had.
    #[error(transparent)]
    Image(#[from] ImageSourceError),
    /// A layer does not unpack to what its image's config says.
    #[error("layer {blob} unpacks to {found}, but the image's config says {expected}")]
    DiffId {
        /// The layer's blob.
        blob: rbuild_cache::digest::Digest,
        /// What it unpacked to.
        found: rbuild_cache::digest::DiffId,
        /// What the config says.
        expected: rbuild_cache::digest::DiffId,
    },
    /// Files could not be copied or written.
    #[error(transparent)]
    File(#[from] crate::ops::file::FileError),
    /// A file could not be fetched.
    #[error(transparent)]
    Http(#[from] crate::ops::http::HttpError),
    /// A commit could not be checked out.
    #[error(transparent)]
    Git(#[from] crate::ops::git::GitError),
    /// The image could not be slimmed.
    #[error(transparent)]
    Slim(#[from] crate::ops::slim::SlimError),
    /// A secret that the step cannot do without was not given.
    #[error("secret {id}: not found")]
    SecretMissing {
        /// Its id.
        id: String,
    },
    /// An SSH agent that the step cannot do without was not given.
    #[error("ssh agent `{id}`: not found")]
    SshMissing {
        /// Its id.
        id: String,
    },
    /// The step needs a permission that the caller did not give.
    #[error("{what} is not allowed: pass `--allow {entitlement}` to permit it")]
    NotAllowed {
        /// What the step asks for.
        what: String,
        /// What the flag has to name.
        entitlement: String,
    },
    /// What a cache of others says of a step does not hold, or cannot be had. Its record is dropped:
    /// solving again does without.
    #[error("the result of `{step}` that was found elsewhere cannot be used: {reason}")]
    Rejected {
        /// The step.
        step: String,
        /// What is wrong.
        reason: String,
    },
    /// Something is asked for that rbuild does not do.
    #[error("{0}")]
    Unsupported(String),
    /// The state folder gave an error.
    #[error(transparent)]
    State(Box<dyn Error + Send + Sync>),
    /// The work was given up because something else failed.
    #[error("canceled")]
    Canceled,
}

impl Cause {
    /// Wraps an error of the state folder.
    pub fn state(error: impl Error + Send + Sync + 'static) -> Self {
        Self::State(Box::new(error))
    }
}

fn memory_limit(limit: Option<u64>) -> String {
    limit.map_or(String::new(), |bytes| format!(" (its limit, `--memory`, is {bytes} bytes)"))
}

fn ended(status: ExitStatus) -> String {
    match status {
        ExitStatus::Code(code) => format!("did not complete successfully: exit code: {code}"),
        ExitStatus::Signal(signal) => format!("was killed by signal {signal}"),
        ExitStatus::OutOfMemory => "was killed for want of memory".to_owned(),
    }
}
