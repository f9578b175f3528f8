//! RUN: a command in a sandbox over the layers of input 0; what it writes is one new layer.

pub(crate) mod accounts;

use std::path::Path;
use std::sync::{Arc, Mutex};

use rbuild_cache::digest::CacheKey;
use rbuild_cache::snapshot::{ActiveRoot, Note, SnapshotId, SnapshotterKind};

use crate::error::{Cause, SolveError};
use crate::evidence::Reads;
use crate::graph::{Graph, NetworkMode, Op, RunOp, SecurityMode, VertexId};
use crate::key::{self, InputDigest};
use crate::mount::Mounts;
use crate::mount::sources::Found;
use crate::ops::file::owner::Account;
use crate::ops::{Work, Worker, blocking, definition_key, tree};
use crate::progress::{EventKind, Task};
use crate::sandbox::{ExitStatus, OutputSink, ProcessSpec, RootFs};
use crate::solve::Entitlements;
use crate::tree::{Output, Tree, TreeLayer};

/// Docker's size of `/dev/shm`, in bytes.
const SHM_SIZE: u64 = 64 * 1024 * 1024;
/// How much of the end of a failed command's output its error shows, in bytes.
const TAIL: usize = 8 * 1024;

/// Refuses, before anything runs, every vertex of `order` that asks for more than `allowed`.
pub(crate) fn check_entitlements(
    graph: &Graph,
    order: &[VertexId],
    allowed: &Entitlements,
) -> Result<(), SolveError> {
    for id in order {
        let vertex = graph.vertex(*id);
        let Op::Run(run) = &vertex.op else { continue };
        let missing = if run.network == NetworkMode::Host && !allowed.network_host {
            Some(("`--network=host`".to_owned(), "network.host".to_owned()))
        } else if run.security == SecurityMode::Insecure && !allowed.security_insecure {
            Some(("`--security=insecure`".to_owned(), "security.insecure".to_owned()))
        } else {
            let refused = |device: &&crate::graph::Device| {
                allowed.devices.as_ref().is_some_and(|names| !names.contains(&device.name))
            };
            run.devices.iter().find(refused).map(|device| {
                let what = format!("`--device={}`", device.name);
                (what, format!("device={}", device.name))
            })
        };
        if let Some((what, entitlement)) = missing {
            return Err(SolveError::new(vertex, Cause::NotAllowed { what, entitlement }));
        }
    }
    Ok(())
}

impl Worker {
    /// The tree of input 0 with one more layer: what the command wrote. Once more from the start when
    /// a context changed after it was looked at: a step sees what its key says.
    pub(crate) async fn run(
        &self,
        work: &Work<'_>,
        op: &RunOp,
        inputs: Vec<Output>,
    ) -> Result<Tree, Cause> {
        self.unchanging(|| self.run_once(work, op, inputs.clone())).await
    }

    async fn run_once(
        &self,
        work: &Work<'_>,
        op: &RunOp,
        mut inputs: Vec<Output>,
    ) -> Result<Tree, Cause> {
        let base = tree(inputs.remove(0))?;
        let definition = definition_key(&work.vertex.op, &base, &inputs);
        if let Some(key) = definition
            && let Some(layer) = self.known(work, &key).await?
        {
            Self::hit(work);
            return Ok(self.came_to(vec![key], base, layer));
        }
        let found = self.mounted(work, op, inputs).await?;
        let mut digests = vec![InputDigest::Tree(base.digest())];
        digests.extend(&found.digests);
        let content = key::content(&work.vertex.op, &digests);
        let keys: Vec<CacheKey> = definition.into_iter().chain([content]).collect();
        let flight = self.flight(&content).await?;
        if let Some(layer) = self.known(work, &content).await? {
            found.remember();
            Self::hit(work);
            self.record_beside(work, keys.clone(), &layer, &digests, flight).await?;
            return Ok(self.came_to(keys, base, layer));
        }
        let reads = found.reads();
        self.miss(work, &keys, &digests, reads.as_ref());
        let layer = TreeLayer::Snapshot(self.execute(work, op, &base, (found, reads)).await?);
        self.record_beside(work, keys.clone(), &layer, &digests, flight).await?;
        Ok(self.came_to(keys, base, layer))
    }

    async fn execute(
        &self,
        work: &Work<'_>,
        op: &RunOp,
        base: &Tree,
        (found, reads): (Found, Option<Reads>),
    ) -> Result<rbuild_cache::snapshot::Snapshot, Cause> {
        let ids = self.realize(base, &work.task).await?;
        let sources = self.imported(work, found).await?;
        let mounts = self.mounts(work, &op.mounts, &sources).await?;
        let _place = self.surroundings.gate.enter().await;
        let state = &self.surroundings.state;
        let snapshots = state.snapshots().clone();
        let layers = snapshots.lower(&ids).map_err(Cause::state)?;
        let active = match snapshots.kind() {
            SnapshotterKind::Overlay => snapshots.prepare(&ids).map_err(Cause::state)?,
            SnapshotterKind::Copy => {
                blocking(move || snapshots.prepare(&ids).map_err(Cause::state)).await?
            }
        };
        if work.sharing {
            active.set_sharing();
        }
        if let Some(reads) = reads {
            active.add_note(Note::Reads, &reads.encoded()).map_err(Cause::state)?;
        }
        let user = op.user.as_deref().unwrap_or("0");
        let account = self.accounts.of(&layers, user)?;
        let root = match active.root() {
            ActiveRoot::Overlay { lower, upper, work } => RootFs::Overlay { lower, upper, work },
            ActiveRoot::Folder(folder) => RootFs::Folder(folder),
        };
        let process = self.process(op, root, account, &mounts)?;
        let output = Captured::new(work.task.clone());
        let running = self.surroundings.sandbox.run(process, output.sink());
        let status = match self.surroundings.run.timeout {
            None => running.await?,
            Some(limit) => tokio::time::timeout(limit, running).await.map_err(|_| {
                Cause::Timeout { command: shown(&op.args), limit, tail: output.tail() }
            })??,
        };
        drop(mounts);
        if status == ExitStatus::OutOfMemory {
            let limit = self.surroundings.run.resources.memory;
            let command = shown(&op.args);
            return Err(Cause::OutOfMemory { command, limit, tail: output.tail() });
        }
        if status != ExitStatus::Code(0) {
            // Asked while what it wrote is still there.
            let no_room = is_full(state.root());
            let (command, tail) = (shown(&op.args), output.tail());
            return Err(Cause::Exit { command, status, tail, no_room });
        }
        let state = state.clone();
        blocking(move || {
            state.snapshots().commit_active(&SnapshotId::random(), active).map_err(Cause::state)
        })
        .await
    }

    fn process(
        &self,
        op: &RunOp,
        root: RootFs,
        account: Account,
        mounts: &Mounts,
    ) -> Result<ProcessSpec, Cause> {
        let mut env = op.env.clone();
        env.extend(self.surroundings.run.proxies.iter().cloned());
        env.extend(mounts.env.iter().cloned());
        let has = |env: &[String], name: &str| {
            env.iter().any(|line| line.split_once('=').is_some_and(|(key, _)| key == name))
        };
        if !has(&env, "PATH") {
            env.push(format!("PATH={DEFAULT_PATH}"));
        }
        if !has(&env, "HOME") {
            env.push(format!("HOME={}", account.home));
        }
        let mut process = ProcessSpec {
            root,
            mounts: mounts.list.clone(),
            args: op.args.clone(),
            env,
            cwd: op.cwd.clone(),
            user: account.credentials,
            hostname: op.hostname.clone(),
            hosts: hosts(&op.hostname, &op.extra_hosts),
            resolv_conf: self.surroundings.run.resolv_conf.clone(),
            network: op.network,
            security: op.security,
            shm_size: op.shm_size.unwrap_or(SHM_SIZE),
            ulimits: op.ulimits.clone(),
            cgroup_parent: op.cgroup_parent.clone(),
            watch: None,
            resources: self.surroundings.run.resources.clone(),
        };
        let own = process.mounts.len();
        for device in &op.devices {
            match self.surroundings.run.devices.get(&device.name) {
                Some(edits) => edits.apply(&mut process, own),
                None if device.required => {
                    let name = &device.name;
                    return Err(Cause::Unsupported(format!("no CDI device `{name}` is known")));
                }
                None => {}
            }
        }
        Ok(process)
    }
}

/// Less room than this, in bytes, is none.
const NO_ROOM: u64 = 256 * 1024;

/// Whether the disk that `folder` is on is full. A command that finds it so says it in its own words.
fn is_full(folder: &Path) -> bool {
    rustix::fs::statvfs(folder).is_ok_and(|disk| {
        let no_bytes = disk.f_bavail * disk.f_frsize < NO_ROOM;
        let no_inodes = disk.f_files > 0 && disk.f_favail == 0;
        no_bytes || no_inodes
    })
}

/// Where programs are looked up when the image does not say (Docker's default).
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The bytes of `/etc/hosts`, as BuildKit's `executor/oci/hosts.go` lays them out.
fn hosts(hostname: &str, extra: &[(String, String)]) -> Vec<u8> {
    let mut lines = vec![
        format!("127.0.0.1\tlocalhost {hostname}\n"),
        "::1\tlocalhost ip6-localhost ip6-loopback\n".to_owned(),
    ];
    lines.extend(extra.iter().map(|(name, address)| format!("{address}\t{name}\n")));
    lines.concat().into_bytes()
}

/// The command as an error shows it.
fn shown(args: &[String]) -> String {
    args.join(" ")
}

/// What a command writes: told at once, and its end kept for the error.
struct Captured {
    task: Task,
    tail: Arc<Mutex<Vec<u8>>>,
}

impl Captured {
    fn new(task: Task) -> Self {
        Self { task, tail: Arc::default() }
    }

    fn sink(&self) -> OutputSink {
        let (task, tail) = (self.task.clone(), Arc::clone(&self.tail));
        Box::new(move |stream, bytes| {
            let mut tail = tail.lock().expect("nobody panics with it");
            tail.extend_from_slice(&bytes);
            if tail.len() > 2 * TAIL {
                let surplus = tail.len() - TAIL;
                tail.drain(..surplus);
            }
            drop(tail);
            task.tell(EventKind::Output { stream, bytes });
        })
    }

    fn tail(&self) -> Vec<u8> {
        let tail = self.tail.lock().expect("nobody panics with it");
        tail[tail.len().saturating_sub(TAIL)..].to_vec()
    }
}
