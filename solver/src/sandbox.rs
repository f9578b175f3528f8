//! Where commands run: what a sandbox is given, and what comes of it.
//!
//! A [`ProcessSpec`] is complete: a sandbox adds nothing of the caller's surroundings to it.
//! [`namespaces::Namespaces`] is the sandbox that builds run in.

pub mod capabilities;
pub mod fake;
pub mod namespaces;
pub mod proc_masks;
pub mod resources;
pub mod seccomp;

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use self::resources::Resources;
use crate::graph::{NetworkMode, SecurityMode, Ulimit};

/// A command and everything it sees.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ProcessSpec {
    /// Its root file system.
    pub root: RootFs,
    /// Mounted over it, in order.
    pub mounts: Vec<SandboxMount>,
    /// The program (looked up in `PATH` of `env` inside the root) and its arguments.
    pub args: Vec<String>,
    /// `NAME=value`, in order; all of its environment.
    pub env: Vec<String>,
    /// The working directory; made when missing.
    pub cwd: String,
    /// Who it is: numbers inside the sandbox.
    pub user: Credentials,
    /// Its host name.
    pub hostname: String,
    /// The bytes of `/etc/hosts`.
    pub hosts: Vec<u8>,
    /// The bytes of `/etc/resolv.conf`.
    pub resolv_conf: Vec<u8>,
    /// What it may reach.
    pub network: NetworkMode,
    /// How far it is confined.
    pub security: SecurityMode,
    /// Bytes of `/dev/shm`.
    pub shm_size: u64,
    /// Limits.
    pub ulimits: Vec<Ulimit>,
    /// The cgroup under which its own is made, where cgroups are writable.
    pub cgroup_parent: Option<String>,
    /// How much of the machine it may take.
    pub resources: Resources,
    /// A file of the host's into which the paths are written that its processes ask for, as
    /// [`asked_paths`] reads it. Where owners are remembered instead of set, nothing is written.
    pub watch: Option<PathBuf>,
}

/// A path that a process asked for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct AskedPath {
    /// From the root of the process, as it was named.
    pub path: PathBuf,
    /// Whether it was to be opened or executed, not just looked at.
    pub opens: bool,
}

/// The paths in the file that [`ProcessSpec::watch`] named: sorted, each once.
pub fn asked_paths(bytes: &[u8]) -> Vec<AskedPath> {
    let lines = bytes.split(|byte| *byte == 0).filter_map(|line| line.split_first());
    let path = |(kind, path): (&u8, &[u8])| AskedPath {
        path: PathBuf::from(OsStr::from_bytes(path)),
        opens: *kind == namespaces::OPENED,
    };
    lines.map(path).collect::<BTreeSet<_>>().into_iter().collect()
}

/// How the root file system is put together.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum RootFs {
    /// overlayfs: what is written lands in `upper`.
    Overlay {
        /// The layers' folders, lowest first. Empty for scratch.
        lower: Vec<PathBuf>,
        /// Takes what is written.
        upper: PathBuf,
        /// overlayfs's own; on the same file system as `upper`.
        work: PathBuf,
    },
    /// A plain folder that is written to.
    Folder(PathBuf),
}

/// User, group and supplementary groups.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Credentials {
    /// The user.
    pub uid: u32,
    /// The group.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
}

/// One mount inside the sandbox.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SandboxMount {
    /// Where, absolute; resolved inside the root. Missing mount points are made, and removed
    /// afterwards.
    pub target: String,
    /// What.
    pub source: SandboxMountSource,
    /// Writing is refused.
    pub read_only: bool,
}

/// What a [`SandboxMount`] shows.
#[derive(Clone, Serialize, Deserialize)]
pub enum SandboxMountSource {
    /// A folder or file of the host; `path` below `root` is resolved inside `root` at mount time.
    Bind {
        /// The folder (or file) that confines `path`.
        root: PathBuf,
        /// The path in it; empty for `root` itself.
        path: String,
    },
    /// The merged view of layers; what is written goes to `upper` and is thrown away.
    Overlay {
        /// The layers' folders, lowest first.
        lower: Vec<PathBuf>,
        /// The path in the merged view.
        path: String,
        /// Takes what is written, where writing is allowed: (upper, work).
        upper: Option<(PathBuf, PathBuf)>,
    },
    /// A device file of the host's, as it is.
    Device {
        /// The device file; links on the way are followed.
        path: PathBuf,
    },
    /// A folder or file of the host's that belongs to a device.
    Host {
        /// The folder or file; links on the way are followed.
        path: PathBuf,
        /// With what is mounted below it.
        recursive: bool,
        /// Set-id bits mean nothing.
        no_suid: bool,
        /// Nothing in it can be executed.
        no_exec: bool,
    },
    /// Memory.
    Tmpfs {
        /// Its size in bytes.
        size: Option<u64>,
        /// The mode of its root.
        mode: u32,
    },
    /// A file in memory (a secret).
    File {
        /// Its bytes.
        data: Vec<u8>,
        /// Its mode.
        mode: u32,
        /// Its owner.
        uid: u32,
        /// Its group.
        gid: u32,
    },
    /// A unix socket of the host.
    Socket {
        /// The socket.
        path: PathBuf,
        /// Its mode inside.
        mode: u32,
        /// Its owner inside.
        uid: u32,
        /// Its group inside.
        gid: u32,
    },
}

impl std::fmt::Debug for SandboxMountSource {
    /// Shows everything but the bytes of a file: they are a secret.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Bind { root, path } => {
                f.debug_struct("Bind").field("root", root).field("path", path).finish()
            }
            Self::Overlay { lower, path, upper } => f
                .debug_struct("Overlay")
                .field("lower", lower)
                .field("path", path)
                .field("upper", upper)
                .finish(),
            Self::Device { path } => f.debug_struct("Device").field("path", path).finish(),
            Self::Host { path, recursive, no_suid, no_exec } => f
                .debug_struct("Host")
                .field("path", path)
                .field("recursive", recursive)
                .field("no_suid", no_suid)
                .field("no_exec", no_exec)
                .finish(),
            Self::Tmpfs { size, mode } => {
                f.debug_struct("Tmpfs").field("size", size).field("mode", mode).finish()
            }
            Self::File { data, mode, uid, gid } => f
                .debug_struct("File")
                .field("bytes", &data.len())
                .field("mode", mode)
                .field("uid", uid)
                .field("gid", gid)
                .finish(),
            Self::Socket { path, mode, uid, gid } => f
                .debug_struct("Socket")
                .field("path", path)
                .field("mode", mode)
                .field("uid", uid)
                .field("gid", gid)
                .finish(),
        }
    }
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ExitStatus {
    /// It returned this code.
    Code(i32),
    /// This signal killed it.
    Signal(i32),
    /// The kernel killed it for want of memory.
    OutOfMemory,
}

/// Takes what a process writes, as it comes: stream 1 or 2, and bytes.
pub type OutputSink = Box<dyn Fn(u8, bytes::Bytes) + Send + Sync>;

/// Runs commands. Dropping the future ends the command and everything it started.
#[async_trait]
pub trait Sandbox: Send + Sync {
    /// Runs `process` to its end; all its processes are gone when this returns.
    async fn run(
        &self,
        process: ProcessSpec,
        output: OutputSink,
    ) -> Result<ExitStatus, SandboxError>;
}

/// Says why a command could not be started at all.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct SandboxError {
    /// What could not be done, and what the kernel said.
    pub message: String,
    /// The permission that is missing and the flag that grants it, or what else helps.
    pub hint: Option<String>,
    /// What lies behind.
    #[source]
    pub source: Option<std::io::Error>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_not_shown() {
        let source =
            SandboxMountSource::File { data: b"s3cr3t".to_vec(), mode: 0o400, uid: 0, gid: 0 };
        assert_eq!(format!("{source:?}"), "File { bytes: 6, mode: 256, uid: 0, gid: 0 }");
    }
}
