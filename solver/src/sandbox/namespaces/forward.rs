//! Passing on what a step says to a socket of the caller, as `RUN --mount=type=ssh` does.
//!
//! The step connects to a socket of its own, with the owner and mode that were asked for; rbuild
//! connects to the agent's. So nothing but that one socket can be reached, and only while the step
//! runs.

use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinSet;

use crate::sandbox::{SandboxMount, SandboxMountSource};

/// The most connections of one socket at once.
const CONNECTIONS: usize = 64;

/// The sockets of one step. Dropped, they end.
pub(super) struct Forwards {
    sockets: Vec<Option<PathBuf>>,
    tasks: JoinSet<()>,
}

impl Forwards {
    /// Makes ready to forward to every socket among `mounts`.
    pub(super) fn to_sockets_of(mounts: &[SandboxMount]) -> Self {
        let socket = |mount: &SandboxMount| match &mount.source {
            SandboxMountSource::Socket { path, .. } => Some(path.clone()),
            SandboxMountSource::Bind { .. }
            | SandboxMountSource::Overlay { .. }
            | SandboxMountSource::Device { .. }
            | SandboxMountSource::Host { .. }
            | SandboxMountSource::Tmpfs { .. }
            | SandboxMountSource::File { .. } => None,
        };
        Self { sockets: mounts.iter().map(socket).collect(), tasks: JoinSet::new() }
    }

    /// Forwards what comes in at a listening socket to that of the mount at `index`.
    pub(super) fn start(&mut self, index: usize, listeners: Vec<OwnedFd>) -> io::Result<()> {
        let path = self.sockets.get(index).cloned().flatten();
        let (Some(path), Some(listener)) = (path, listeners.into_iter().next()) else {
            return Err(io::ErrorKind::InvalidData.into());
        };
        let listener = std::os::unix::net::UnixListener::from(listener);
        listener.set_nonblocking(true)?;
        self.tasks.spawn(forward(UnixListener::from_std(listener)?, path));
        Ok(())
    }
}

async fn forward(listener: UnixListener, path: PathBuf) {
    let mut connections = JoinSet::new();
    while let Ok((mut inside, _)) = listener.accept().await {
        while connections.try_join_next().is_some() {}
        if connections.len() >= CONNECTIONS {
            connections.join_next().await;
        }
        let path = path.clone();
        connections.spawn(async move {
            // An agent that is not there looks to the step like one that hangs up.
            if let Ok(mut outside) = UnixStream::connect(path).await {
                let _ = tokio::io::copy_bidirectional(&mut inside, &mut outside).await;
            }
        });
    }
}
