//! A root file system with busybox, and what it takes to run a command in it.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock};

use rbuild_solver::graph::{NetworkMode, SecurityMode};
use rbuild_solver::sandbox::namespaces::{Identity, Namespaces, become_root};
use rbuild_solver::sandbox::resources::Resources;
use rbuild_solver::sandbox::{
    Credentials, ExitStatus, ProcessSpec, RootFs, Sandbox, SandboxError, SandboxMount,
    SandboxMountSource,
};

static IDENTITY: OnceLock<Identity> = OnceLock::new();

/// Enters a user namespace if need be, or says what keeps the tests from running here.
pub(crate) fn identity() -> Result<Identity, String> {
    if busybox().is_none() {
        return Err("they need a static busybox in /usr/bin or /bin".to_owned());
    }
    let identity = become_root()
        .map_err(|error| format!("{error}: {}", error.hint.as_deref().unwrap_or("no hint")))?;
    Ok(*IDENTITY.get_or_init(|| identity))
}

/// Whether device files can be made, ids given away, and limits raised.
pub(crate) fn is_real_root() -> bool {
    IDENTITY.get() == Some(&Identity::Root)
}

/// Whether there are users besides root.
pub(crate) fn has_users() -> bool {
    IDENTITY.get() != Some(&Identity::Single)
}

fn busybox() -> Option<PathBuf> {
    ["/usr/bin/busybox", "/bin/busybox"].iter().map(PathBuf::from).find(|path| path.exists())
}

/// Layers, a sandbox, and commands to run.
pub(crate) struct Fixture {
    pub(crate) folder: tempfile::TempDir,
    pub(crate) sandbox: Namespaces,
}

/// What came of a command.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) status: ExitStatus,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    /// The folder that took what the command wrote.
    pub(crate) upper: PathBuf,
}

impl Fixture {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let layer = folder.path().join("layer");
        for name in ["bin", "etc", "tmp", "root"] {
            fs_err::create_dir_all(layer.join(name)).unwrap();
        }
        fs_err::copy(busybox().unwrap(), layer.join("bin/busybox")).unwrap();
        for name in [
            "awk", "cat", "chmod", "chown", "cut", "dd", "df", "echo", "env", "find", "grep",
            "head", "hostname", "id", "ip", "kill", "ln", "ls", "mkdir", "mknod", "mount", "mv",
            "nc", "ps", "pwd", "readlink", "rm", "rmdir", "sed", "seq", "setsid", "sh", "sleep",
            "sort", "stat", "su", "tail", "touch", "tr", "true", "umask", "unshare", "wc", "yes",
        ] {
            std::os::unix::fs::symlink("busybox", layer.join("bin").join(name)).unwrap();
        }
        fs_err::write(layer.join("etc/passwd"), "root:x:0:0::/root:/bin/sh\n").unwrap();
        let sandbox = Namespaces::new(folder.path().join("stubs"));
        Self { folder, sandbox }
    }

    /// The image's layer, to put more into it.
    pub(crate) fn layer(&self) -> PathBuf {
        self.folder.path().join("layer")
    }

    /// A command that `/bin/sh` runs, as root, over the image's layer.
    pub(crate) fn shell(&self, script: &str) -> ProcessSpec {
        self.command(&["/bin/sh", "-c", script])
    }

    pub(crate) fn command(&self, args: &[&str]) -> ProcessSpec {
        let step = tempfile::tempdir_in(self.folder.path()).unwrap().keep();
        let (upper, work) = (step.join("upper"), step.join("work"));
        fs_err::create_dir(&upper).unwrap();
        fs_err::create_dir(&work).unwrap();
        ProcessSpec {
            root: RootFs::Overlay { lower: vec![self.layer()], upper, work },
            mounts: Vec::new(),
            args: args.iter().map(ToString::to_string).collect(),
            env: vec!["PATH=/bin".to_owned(), "A=b c".to_owned()],
            cwd: "/".to_owned(),
            user: Credentials::default(),
            hostname: "buildkitsandbox".to_owned(),
            hosts: b"127.0.0.1\tlocalhost buildkitsandbox\n".to_vec(),
            resolv_conf: b"nameserver 192.0.2.1\n".to_vec(),
            network: NetworkMode::Host,
            security: SecurityMode::Sandbox,
            shm_size: 64 << 20,
            ulimits: Vec::new(),
            watch: None,
            cgroup_parent: None,
            resources: Resources::default(),
        }
    }

    pub(crate) fn run(&self, process: ProcessSpec) -> Outcome {
        self.try_run(process).unwrap()
    }

    pub(crate) fn try_run(&self, process: ProcessSpec) -> Result<Outcome, SandboxError> {
        let upper = upper(&process).to_owned();
        let written = Arc::new(Mutex::new([Vec::new(), Vec::new()]));
        let sink = Arc::clone(&written);
        let output = Box::new(move |stream: u8, bytes: bytes::Bytes| {
            sink.lock().unwrap()[usize::from(stream - 1)].extend_from_slice(&bytes);
        });
        let status = runtime().block_on(self.sandbox.run(process, output))?;
        let [stdout, stderr] = written.lock().unwrap().clone();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Ok(Outcome { status, stdout: text(stdout), stderr: text(stderr), upper })
    }

    /// Runs `script` and returns what it printed, without the last line's end.
    pub(crate) fn output(&self, script: &str) -> String {
        self.run(self.shell(script)).success()
    }
}

impl Outcome {
    /// Returns the output of a command that must have succeeded.
    pub(crate) fn success(self) -> String {
        assert_eq!(self.status, ExitStatus::Code(0), "{} {}", self.stdout, self.stderr);
        self.stdout.trim_end().to_owned()
    }

    /// Returns what is in the layer that the command made, sorted.
    pub(crate) fn layer(&self) -> Vec<String> {
        let mut paths = Vec::new();
        list(&self.upper, &self.upper, &mut paths);
        paths.sort();
        paths
    }
}

fn list(root: &Path, folder: &Path, paths: &mut Vec<String>) {
    for entry in fs_err::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        paths.push(path.strip_prefix(root).unwrap().to_str().unwrap().to_owned());
        if path.is_dir() && !path.is_symlink() {
            list(root, &path, paths);
        }
    }
}

fn upper(process: &ProcessSpec) -> &Path {
    match &process.root {
        RootFs::Overlay { upper, .. } => upper,
        RootFs::Folder(folder) => folder,
    }
}

/// A mount of `source` at `target`, writable.
pub(crate) fn mount(target: &str, source: SandboxMountSource) -> SandboxMount {
    SandboxMount { target: target.to_owned(), source, read_only: false }
}

pub(crate) fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}
