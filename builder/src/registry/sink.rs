//! The way of a blob from the network, which waits, into the content store, which blocks: a bounded
//! channel to a thread that writes and hashes.

use std::io::Write as _;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use rbuild_cache::oci::Descriptor;
use rbuild_cache::store::{BlobWriter, ContentStore, StoreError};
use rbuild_solver::progress::{EventKind, Task};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::error::Cause;

/// How many pieces wait to be written.
const WAITING: usize = 16;
/// How often progress is told.
const TELL_EVERY: Duration = Duration::from_millis(100);

/// Takes a blob's bytes in order.
#[derive(Debug)]
pub struct Sink {
    sender: mpsc::Sender<Bytes>,
    writer: Option<JoinHandle<Result<BlobWriter, StoreError>>>,
    position: u64,
}

impl Sink {
    /// Starts a new blob in `store`. Dropping it leaves nothing behind.
    pub fn start(store: &ContentStore) -> Self {
        let (sender, mut receiver) = mpsc::channel::<Bytes>(WAITING);
        let store = store.clone();
        let writer = tokio::task::spawn_blocking(move || {
            let mut writer = store.writer()?;
            while let Some(piece) = receiver.blocking_recv() {
                writer.write_all(&piece)?;
            }
            Ok(writer)
        });
        Self { sender, writer: Some(writer), position: 0 }
    }

    /// How many bytes were taken.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// Takes the next bytes; waits while the disk is behind.
    pub async fn write(&mut self, piece: Bytes) -> Result<(), Cause> {
        let length = piece.len() as u64;
        if self.sender.send(piece).await.is_err() {
            return Err(self.writers_fault().await);
        }
        self.position += length;
        Ok(())
    }

    /// Whether its thread ended, so that it takes nothing more.
    pub fn is_closed(&self) -> bool {
        self.writer.is_none() || self.sender.is_closed()
    }

    /// Puts the blob into the store, if it is the one that `descriptor` names.
    pub async fn commit(&mut self, descriptor: &Descriptor) -> Result<(), Cause> {
        let (closed, _) = mpsc::channel(1);
        self.sender = closed;
        let Some(writer) = self.writer.take() else {
            return Err(std::io::Error::other("the blob was committed before").into());
        };
        let expected = (descriptor.digest, descriptor.size);
        let writer = writer.await.map_err(std::io::Error::other)??;
        let committed = tokio::task::spawn_blocking(move || writer.commit(Some(expected)));
        match committed.await.map_err(std::io::Error::other)? {
            Ok(_) => Ok(()),
            Err(e @ (StoreError::Digest { .. } | StoreError::Size { .. })) => {
                Err(Cause::Damaged { what: descriptor.digest, detail: e.to_string() })
            }
            Err(e) => Err(e.into()),
        }
    }

    /// `cause`, unless writing failed, which is then the true one.
    pub async fn cause(&mut self, cause: Cause) -> Cause {
        if self.writer.is_some() && self.sender.is_closed() {
            return self.writers_fault().await;
        }
        cause
    }

    async fn writers_fault(&mut self) -> Cause {
        match self.writer.take() {
            None => std::io::Error::other("the blob can no longer be written").into(),
            Some(writer) => match writer.await {
                Ok(Err(e)) => e.into(),
                Ok(Ok(_)) => std::io::Error::other("writing the blob ended early").into(),
                Err(e) => std::io::Error::other(e).into(),
            },
        }
    }
}

/// Tells how far a blob is, not too often.
#[derive(Clone, Debug)]
pub struct Gauge {
    task: Task,
    part: String,
    total: u64,
    told: Arc<Mutex<Instant>>,
}

impl Gauge {
    /// Tells `task` about the blob that `descriptor` names.
    pub fn new(task: &Task, descriptor: &Descriptor) -> Self {
        let gauge = Self {
            task: task.clone(),
            part: descriptor.digest.to_string(),
            total: descriptor.size,
            told: Arc::new(Mutex::new(Instant::now())),
        };
        gauge.tell(0, false);
        gauge
    }

    /// It is at `current` bytes.
    pub fn at(&self, current: u64) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if told.elapsed() >= TELL_EVERY {
            *told = Instant::now();
            self.tell(current, false);
        }
    }

    /// It is done.
    pub fn done(&self) {
        self.tell(self.total, true);
    }

    fn tell(&self, current: u64, done: bool) {
        let part = self.part.clone();
        self.task.tell(EventKind::Progress { part, current, total: Some(self.total), done });
    }
}
