//! The way of bytes from the network, which waits, to the disk, which blocks: a bounded channel to
//! a thread that writes and hashes.

use std::io::Write;
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
use crate::layer_arrival::Watcher;

/// How many pieces wait to be written.
const WAITING: usize = 16;
/// How often progress is told.
const TELL_EVERY: Duration = Duration::from_millis(100);

/// Takes bytes in order and hands them to a writer on a thread of its own.
#[derive(Debug)]
pub struct Sink<W> {
    sender: mpsc::Sender<Bytes>,
    writer: Option<JoinHandle<Result<W, StoreError>>>,
    position: u64,
}

impl Sink<BlobWriter> {
    /// Starts a new blob in `store`, and shows it to `watcher`. Dropping it leaves nothing behind.
    pub fn blob(store: &ContentStore, watcher: Option<&Watcher>) -> Self {
        let (store, watcher) = (store.clone(), watcher.cloned());
        Self::start(move || {
            let mut writer = store.writer()?;
            if let Some(watcher) = watcher {
                // When nobody listens, it is only stored.
                let _ = watcher.send(writer.growing()?);
            }
            Ok(writer)
        })
    }

    /// Puts the blob into the store, if it is the one that `descriptor` names.
    pub async fn commit(&mut self, descriptor: &Descriptor) -> Result<(), Cause> {
        let writer = self.finish().await?;
        let expected = (descriptor.digest, descriptor.size);
        let committed = tokio::task::spawn_blocking(move || writer.commit(Some(expected)));
        match committed.await.map_err(std::io::Error::other)? {
            Ok(_) => Ok(()),
            Err(e @ (StoreError::Digest { .. } | StoreError::Size { .. })) => {
                Err(Cause::Damaged { what: descriptor.digest, detail: e.to_string() })
            }
            Err(e) => Err(e.into()),
        }
    }
}

impl<W: Write + Send + 'static> Sink<W> {
    /// Starts with the writer that `open` makes, on the thread.
    pub fn start(open: impl FnOnce() -> Result<W, StoreError> + Send + 'static) -> Self {
        let (sender, mut receiver) = mpsc::channel::<Bytes>(WAITING);
        let writer = tokio::task::spawn_blocking(move || {
            let mut writer = open()?;
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

    /// Waits until all is written; the writer, which may still hold some of it in a buffer.
    pub async fn finish(&mut self) -> Result<W, Cause> {
        // The thread ends when nobody can send any more.
        let (closed, _) = mpsc::channel(1);
        self.sender = closed;
        match self.writer.take() {
            Some(writer) => Ok(writer.await.map_err(std::io::Error::other)??),
            None => Err(std::io::Error::other("it was finished before").into()),
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
            None => std::io::Error::other("nothing more can be written").into(),
            Some(writer) => match writer.await {
                Ok(Err(e)) => e.into(),
                Ok(Ok(_)) => std::io::Error::other("writing ended early").into(),
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
    total: Option<u64>,
    told: Arc<Mutex<Instant>>,
}

impl Gauge {
    /// Tells `task` about the blob that `descriptor` names.
    pub fn new(task: &Task, descriptor: &Descriptor) -> Self {
        Self::of(task, descriptor.digest.to_string(), Some(descriptor.size))
    }

    /// Tells `task` about `part`, which has `total` bytes, if that is known.
    pub fn of(task: &Task, part: String, total: Option<u64>) -> Self {
        let told = Arc::new(Mutex::new(Instant::now()));
        let gauge = Self { task: task.clone(), part, total, told };
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

    /// It is done, with `size` bytes.
    pub fn done(&self, size: u64) {
        self.tell(size, true);
    }

    fn tell(&self, current: u64, done: bool) {
        let part = self.part.clone();
        self.task.tell(EventKind::Progress { part, current, total: self.total, done });
    }
}
