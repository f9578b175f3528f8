//! `RUN --mount`: from what the graph says to what the sandbox mounts, and what must be held
//! meanwhile.

pub(crate) mod cache;
pub(crate) mod sources;

use std::io::Read;
use std::path::PathBuf;

use rbuild_cache::lock::LockGuard;
use rbuild_cache::snapshot::{Active, ActiveRoot, Shown, SnapshotterKind};

use self::sources::Sources;
use crate::error::Cause;
use crate::graph::{Mount, MountSource};
use crate::ops::{Work, Worker, blocking};
use crate::sandbox::{SandboxMount, SandboxMountSource};

/// A secret of the caller, read only when a step asks for it.
#[derive(Clone, PartialEq, Eq)]
pub enum Secret {
    /// The bytes of a file.
    File(PathBuf),
    /// The value of a variable, taken from the caller's environment.
    Value(Vec<u8>),
}

impl std::fmt::Debug for Secret {
    /// Shows where the secret comes from, never what it is.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::File(path) => f.debug_tuple("File").field(path).finish(),
            Self::Value(_) => f.write_str("Value(…)"),
        }
    }
}

/// An SSH agent of the caller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SshAgent {
    /// Its socket.
    pub socket: PathBuf,
}

/// More bytes than this are no secret (BuildKit's limit).
const MAX_SECRET: u64 = 500 * 1024;

/// The mounts of one step, and what must live as long as they do.
#[derive(Default)]
pub(crate) struct Mounts {
    pub(crate) list: Vec<SandboxMount>,
    /// Variables that mounts bring along: secrets, `SSH_AUTH_SOCK`. In no key and no record.
    pub(crate) env: Vec<String>,
    held: Held,
}

/// Locks of cache folders, folders that take what steps write into bind mounts, and what keeps the
/// files of mounted trees from being linked elsewhere.
#[derive(Default)]
struct Held {
    locks: Vec<LockGuard>,
    scratch: Vec<Active>,
    shown: Vec<Shown>,
}

impl std::fmt::Debug for Mounts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} mounts, {} locks", self.list.len(), self.held.locks.len())
    }
}

impl Worker {
    /// Makes everything that `mounts` show ready to be mounted.
    pub(crate) async fn mounts(
        &self,
        work: &Work<'_>,
        mounts: &[Mount],
        sources: &Sources,
    ) -> Result<Mounts, Cause> {
        let mut ready = Mounts::default();
        let mut agents = 0;
        for mount in mounts {
            let source = match &mount.source {
                MountSource::Bind { input, path } => {
                    let tree = sources.tree(*input, path);
                    self.bind(work, tree, path, mount.read_only, &mut ready.held).await?
                }
                MountSource::Cache { .. } => {
                    let (source, lock) = self.cache_mount(work, &mount.source, sources).await?;
                    ready.held.locks.push(lock);
                    source
                }
                MountSource::Tmpfs { size } => {
                    SandboxMountSource::Tmpfs { size: *size, mode: 0o1777 }
                }
                MountSource::Secret { id, required, mode, uid, gid } => {
                    match self.secret(id, *required)? {
                        Some(data) => {
                            SandboxMountSource::File { data, mode: *mode, uid: *uid, gid: *gid }
                        }
                        None => continue,
                    }
                }
                MountSource::SecretEnv { id, required, variable } => {
                    if let Some(data) = self.secret(id, *required)? {
                        let value = String::from_utf8(data).map_err(|_| {
                            Cause::Unsupported(format!(
                                "secret `{id}` is not text, so it cannot be the variable `{variable}`"
                            ))
                        })?;
                        ready.env.push(format!("{variable}={value}"));
                    }
                    continue;
                }
                MountSource::Ssh { id, required, mode, uid, gid } => {
                    let Some(agent) = self.surroundings.ssh.get(id) else {
                        if *required {
                            return Err(Cause::SshMissing { id: id.clone() });
                        }
                        continue;
                    };
                    agents += 1;
                    if agents == 1 {
                        ready.env.push(format!("SSH_AUTH_SOCK={}", mount.target));
                    }
                    let path = agent.socket.clone();
                    SandboxMountSource::Socket { path, mode: *mode, uid: *uid, gid: *gid }
                }
            };
            ready.list.push(SandboxMount {
                target: mount.target.clone(),
                source,
                read_only: mount.read_only,
            });
        }
        Ok(ready)
    }

    /// The bytes of a secret, or `None` when it was not given and the step can do without.
    pub(crate) fn secret(&self, id: &str, required: bool) -> Result<Option<Vec<u8>>, Cause> {
        let missing =
            || if required { Err(Cause::SecretMissing { id: id.into() }) } else { Ok(None) };
        let data = match self.surroundings.secrets.get(id) {
            None => return missing(),
            Some(Secret::Value(data)) => data.clone(),
            Some(Secret::File(path)) => {
                // A pipe or a device says nothing of its length.
                let file = fs_err::File::open(path).map_err(Cause::state)?;
                let mut bytes = Vec::new();
                file.take(MAX_SECRET + 1).read_to_end(&mut bytes).map_err(Cause::state)?;
                if bytes.len() as u64 > MAX_SECRET {
                    return Err(Cause::Unsupported(format!(
                        "secret `{id}` has more than {MAX_SECRET} bytes, which is the most allowed"
                    )));
                }
                bytes
            }
        };
        Ok(Some(data))
    }

    async fn bind(
        &self,
        work: &Work<'_>,
        tree: &crate::tree::Tree,
        path: &str,
        read_only: bool,
        held: &mut Held,
    ) -> Result<SandboxMountSource, Cause> {
        let ids = self.realize(tree, &work.task).await?;
        let snapshots = self.surroundings.state.snapshots().clone();
        if snapshots.kind() == SnapshotterKind::Copy {
            let prepare = move || snapshots.prepare(&ids).map_err(Cause::state);
            let merged = blocking(prepare).await?;
            let source = match merged.root() {
                ActiveRoot::Folder(root) => SandboxMountSource::Bind { root, path: path.into() },
                ActiveRoot::Overlay { .. } => unreachable!("copies are folders"),
            };
            held.scratch.push(merged);
            return Ok(source);
        }
        let (lower, shown) = snapshots.shown(&ids).map_err(Cause::state)?;
        held.shown.extend(shown);
        let upper = if read_only {
            None
        } else {
            let scratch = snapshots.prepare(&[]).map_err(Cause::state)?;
            let ActiveRoot::Overlay { upper, work, .. } = scratch.root() else {
                unreachable!("it is not the kind that copies")
            };
            held.scratch.push(scratch);
            Some((upper, work))
        };
        Ok(SandboxMountSource::Overlay { lower, path: path.to_owned(), upper })
    }
}
