//! A run of an image and what it answers: the program is started in the sandbox, with a network of
//! its own, and asked as the probe says. Nothing of what it writes stays.

use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rbuild_cache::snapshot::{Active, ActiveRoot, SnapshotId};
use rbuild_cache::state::StateFolder;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::error::Cause;
use crate::graph::{NetworkMode, SecurityMode, SlimOp, SlimProbe};
use crate::ops::file::owner;
use crate::ops::{Work, Worker, blocking};
use crate::sandbox::namespaces::Namespaces;
use crate::sandbox::resources::Resources;
use crate::sandbox::{AskedPath, ExitStatus, OutputSink, ProcessSpec, RootFs, Sandbox};
use crate::tree::Tree;

/// How long a program without a probe has to stay up.
const ALIVE: Duration = Duration::from_secs(3);
/// Between two tries.
const PAUSE: Duration = Duration::from_millis(100);
/// The most that is read of an answer, in bytes.
const ANSWER_MAX: u64 = 4 << 20;
/// The variable by which the program is found among all processes.
const MARK: &str = "RBUILD_PROBE";
/// Docker's size of `/dev/shm`, in bytes.
const SHM_SIZE: u64 = 64 * 1024 * 1024;

/// What came of a run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct ProbeRun {
    /// What was asked, and the answers.
    pub(super) steps: Vec<(String, String)>,
    /// Why there is no answer.
    pub(super) failed: Option<Failure>,
    /// What the program wrote to its standard error.
    pub(super) errors: String,
    /// The paths that it asked for.
    pub(super) asked: Vec<AskedPath>,
}

/// Why a program did not answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Failure {
    /// What happened.
    pub(super) reason: String,
    /// With more time it might have.
    pub(super) late: bool,
}

impl ProbeRun {
    /// There is no answer, and will be none.
    fn failed(reason: String) -> Self {
        Self { failed: Some(Failure { reason, late: false }), ..Self::default() }
    }

    /// There is no answer yet.
    fn late(reason: String) -> Self {
        Self { failed: Some(Failure { reason, late: true }), ..Self::default() }
    }
}

/// What the program wrote so far: standard output and standard error.
type Written = Arc<Mutex<[Vec<u8>; 2]>>;

impl Worker {
    /// Runs the program of `op` over `tree` and asks it. A command that asks is run over `full`.
    pub(super) async fn probe(
        &self,
        work: &Work<'_>,
        op: &SlimOp,
        tree: &Tree,
        full: &Tree,
    ) -> Result<ProbeRun, Cause> {
        let folder = self.surroundings.state.temporary().map_err(Cause::state)?;
        let watch = folder.path().join("asked");
        let mark = format!("{MARK}={}", SnapshotId::random());
        let container = self.container(work, op, tree, &op.command).await?;
        let (active, mut process) = container.start()?;
        process.env.push(mark.clone());
        process.network = NetworkMode::None;
        process.watch = Some(watch.clone());
        let written: Written = Arc::default();
        let running = self.surroundings.sandbox.run(process, sink(&written));
        let mut run = match &op.probe {
            SlimProbe::Alive => self.probe_alive(running, &written).await?,
            SlimProbe::Http { port, paths } => {
                let (port, paths, seconds) = (*port, paths.clone(), op.probe_timeout);
                let ask = move |deadline: &Deadline| {
                    in_network(&mark, deadline, |deadline| get_all(port, &paths, deadline))
                };
                ask_while(running, seconds, ask).await?
            }
            SlimProbe::Command(command) => {
                let container = self.container(work, op, full, command).await?;
                let stubs = self.surroundings.state.folder("stubs").map_err(Cause::state)?;
                let ask = move |deadline: &Deadline| {
                    in_network(&mark, deadline, |deadline| {
                        run_until_well(&container, &stubs, deadline)
                    })
                };
                ask_while(running, op.probe_timeout, ask).await?
            }
        };
        drop(active);
        let [_, errors] = &*written.lock().unwrap_or_else(PoisonError::into_inner);
        run.errors = String::from_utf8_lossy(errors).into_owned();
        let asked = match fs_err::read(&watch) {
            // Where nothing could be watched there is no file.
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            read => read.map_err(Cause::state)?,
        };
        run.asked = crate::sandbox::asked_paths(&asked);
        Ok(run)
    }

    /// A command over `tree`, as a container of the image would run it.
    async fn container(
        &self,
        work: &Work<'_>,
        op: &SlimOp,
        tree: &Tree,
        command: &[String],
    ) -> Result<Container, Cause> {
        let layers = self.realize(tree, &work.task).await?;
        let view = self.view(tree, &work.task).await?;
        let account = owner::account(&view, op.user.as_deref().unwrap_or("0"))?;
        let mut env = op.env.clone();
        if !env.iter().any(|line| line.starts_with("HOME=")) {
            env.push(format!("HOME={}", account.home));
        }
        let hostname = "slim".to_owned();
        let hosts = format!("127.0.0.1\tlocalhost {hostname}\n::1\tlocalhost\n").into_bytes();
        let process = ProcessSpec {
            root: RootFs::Folder(PathBuf::new()),
            mounts: Vec::new(),
            args: command.to_vec(),
            env,
            cwd: op.cwd.clone(),
            user: account.credentials,
            hostname,
            hosts,
            resolv_conf: self.surroundings.run.resolv_conf.clone(),
            network: NetworkMode::Host,
            security: SecurityMode::Sandbox,
            shm_size: SHM_SIZE,
            ulimits: Vec::new(),
            cgroup_parent: None,
            watch: None,
            resources: Resources::default(),
        };
        Ok(Container { state: self.surroundings.state.clone(), layers, process })
    }

    /// Whether the program stays up, or how it ends.
    async fn probe_alive(
        &self,
        running: impl Future<Output = Result<ExitStatus, crate::sandbox::SandboxError>>,
        written: &Written,
    ) -> Result<ProbeRun, Cause> {
        let answer = match tokio::time::timeout(ALIVE, running).await {
            Err(_) => format!("stays up for {} s", ALIVE.as_secs()),
            Ok(status) => {
                let [output, _] = &*written.lock().unwrap_or_else(PoisonError::into_inner);
                format!("{}\n{}", ended(status?), String::from_utf8_lossy(output))
            }
        };
        Ok(ProbeRun { steps: vec![("start".into(), answer)], ..ProbeRun::default() })
    }
}

/// What is run: layers and a process over them.
struct Container {
    state: StateFolder,
    layers: Vec<SnapshotId>,
    process: ProcessSpec,
}

impl Container {
    /// A root of its own, which goes with the first value, and the process in it. A root is used
    /// once: a second process would find what the first one wrote, if overlayfs let it.
    fn start(&self) -> Result<(Active, ProcessSpec), Cause> {
        let active = self.state.snapshots().prepare(&self.layers).map_err(Cause::state)?;
        let root = match active.root() {
            ActiveRoot::Overlay { lower, upper, work } => RootFs::Overlay { lower, upper, work },
            ActiveRoot::Folder(folder) => RootFs::Folder(folder),
        };
        Ok((active, ProcessSpec { root, ..self.process.clone() }))
    }
}

/// When asking has to be over, and whether it is already.
struct Deadline {
    at: Instant,
    over: AtomicBool,
}

impl Deadline {
    /// The time that is left; none when there is no sense in asking any more.
    fn left(&self) -> Option<Duration> {
        let left = self.at.checked_duration_since(Instant::now())?;
        (!self.over.load(Ordering::Relaxed) && !left.is_zero()).then_some(left)
    }
}

/// Asks while the program runs.
async fn ask_while(
    running: impl Future<Output = Result<ExitStatus, crate::sandbox::SandboxError>>,
    seconds: u64,
    ask: impl FnOnce(&Deadline) -> ProbeRun + Send + 'static,
) -> Result<ProbeRun, Cause> {
    let at = Instant::now() + Duration::from_secs(seconds);
    let deadline = Arc::new(Deadline { at, over: AtomicBool::new(false) });
    let of_thread = Arc::clone(&deadline);
    let asking = blocking(move || Ok(ask(&of_thread)));
    tokio::pin!(running, asking);
    tokio::select! {
        run = &mut asking => run,
        status = &mut running => {
            deadline.over.store(true, Ordering::Relaxed);
            let mut run = asking.await?;
            let failure = format!("the program ended while it was asked: {}", ended(status?));
            run.failed = Some(Failure { reason: failure, late: false });
            Ok(run)
        }
    }
}

fn ended(status: ExitStatus) -> String {
    match status {
        ExitStatus::Code(code) => format!("exit code {code}"),
        ExitStatus::Signal(signal) => format!("killed by signal {signal}"),
        ExitStatus::OutOfMemory => "killed for want of memory".to_owned(),
    }
}

fn sink(written: &Written) -> OutputSink {
    let written = Arc::clone(written);
    Box::new(move |stream, bytes| {
        let mut written = written.lock().unwrap_or_else(PoisonError::into_inner);
        let stream = &mut written[usize::from(stream == 2)];
        if (stream.len() as u64) < ANSWER_MAX {
            stream.extend_from_slice(&bytes);
        }
    })
}

/// Does `work` in the network of the process that has `mark` in its environment, as soon as there
/// is one.
fn in_network(
    mark: &str,
    deadline: &Deadline,
    work: impl FnOnce(&Deadline) -> ProbeRun + Send,
) -> ProbeRun {
    let network = loop {
        if let Some(network) = network_of(mark) {
            break network;
        }
        if deadline.left().is_none() {
            return ProbeRun::late("the program did not start in time".into());
        }
        std::thread::sleep(PAUSE);
    };
    // Only a thread can be in a network of its own; it ends there.
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            let entered = move_into_link_name_space(
                std::os::fd::AsFd::as_fd(network.file()),
                Some(LinkNameSpaceType::Network),
            );
            match entered {
                Ok(()) => work(deadline),
                Err(error) => ProbeRun::failed(format!("cannot enter its network: {error}")),
            }
        });
        let panicked = || ProbeRun::failed("the thread that asked it panicked".into());
        thread.join().unwrap_or_else(|_| panicked())
    })
}

/// The network of the first process with `mark` in its environment.
fn network_of(mark: &str) -> Option<fs_err::File> {
    for process in fs_err::read_dir("/proc").ok()?.filter_map(Result::ok) {
        let path = process.path();
        // Most are others', or gone by now.
        let Ok(environment) = fs_err::read(path.join("environ")) else { continue };
        if environment.split(|byte| *byte == 0).any(|variable| variable == mark.as_bytes()) {
            return fs_err::File::open(path.join("ns/net")).ok();
        }
    }
    None
}

/// Asks for `paths` on `port`, one after the other, from when it first answers.
fn get_all(port: u16, paths: &[String], deadline: &Deadline) -> ProbeRun {
    let mut run = ProbeRun::default();
    for path in paths {
        let name = format!("GET {path}");
        match get(port, path, deadline) {
            Ok(answer) => run.steps.push((name, answer)),
            Err(error) => {
                let late = error.kind() == io::ErrorKind::TimedOut;
                let reason = format!("{name} on port {port}: {error}");
                run.failed = Some(Failure { reason, late });
                break;
            }
        }
    }
    run
}

/// The status, type and body that `path` is answered with.
fn get(port: u16, path: &str, deadline: &Deadline) -> io::Result<String> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let late = || io::Error::new(io::ErrorKind::TimedOut, "no answer in time");
    let mut stream = loop {
        let left = deadline.left().ok_or_else(late)?;
        match TcpStream::connect_timeout(&address, left) {
            Ok(stream) => break stream,
            // It is not ready yet.
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                std::thread::sleep(PAUSE);
            }
            Err(error) => return Err(error),
        }
    };
    stream.set_read_timeout(Some(deadline.left().ok_or_else(late)?))?;
    stream.write_all(
        format!("GET {path} HTTP/1.0\r\nHost: localhost:{port}\r\nAccept: */*\r\n\r\n").as_bytes(),
    )?;
    let mut answer = Vec::new();
    stream.take(ANSWER_MAX).read_to_end(&mut answer).map_err(|error| match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => late(),
        _ => error,
    })?;
    let answer = String::from_utf8_lossy(&answer);
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    let status = head.lines().next().unwrap_or_default();
    let status = status.split_once(' ').map_or(status, |(_, status)| status);
    let kind = head.lines().find(|line| line.to_ascii_lowercase().starts_with("content-type:"));
    Ok(format!("{status}\n{}\n{body}", kind.unwrap_or_default()))
}

/// Runs a command until it succeeds; called in the network where it is to run.
fn run_until_well(container: &Container, stubs: &Path, deadline: &Deadline) -> ProbeRun {
    let name = container.process.args.join(" ");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => return ProbeRun::failed(format!("cannot run `{name}`: {error}")),
    };
    runtime.block_on(async {
        // What this sandbox starts is in the network of this thread.
        let sandbox = Namespaces::new(stubs.to_owned());
        let mut last = "it was not run".to_owned();
        let mut tries = 0;
        while let Some(left) = deadline.left() {
            let written: Written = Arc::default();
            let (_root, process) = match container.start() {
                Ok(started) => started,
                Err(error) => return ProbeRun::failed(format!("cannot run `{name}`: {error}")),
            };
            let running = sandbox.run(process, sink(&written));
            match tokio::time::timeout(left, running).await {
                Err(_) => last = "it hangs".into(),
                Ok(Err(error)) => {
                    return ProbeRun::failed(format!("cannot run `{name}`: {error}"));
                }
                Ok(Ok(status)) => {
                    let [output, _] = &*written.lock().unwrap_or_else(PoisonError::into_inner);
                    let answer = format!("{}\n{}", ended(status), String::from_utf8_lossy(output));
                    if status == ExitStatus::Code(0) {
                        return ProbeRun { steps: vec![(name, answer)], ..ProbeRun::default() };
                    }
                    last = ended(status);
                    tries += 1;
                    std::thread::sleep(PAUSE);
                }
            }
        }
        // A command that fails until the time is over has said so often enough.
        let reason = format!("`{name}` did not succeed in time: {last}");
        if tries > 0 { ProbeRun::failed(reason) } else { ProbeRun::late(reason) }
    })
}
