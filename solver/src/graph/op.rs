//! What a vertex can do. All of it is plain data: it can be hashed, written down and sent away.
//!
//! Inputs are numbers: positions in the list of inputs of the op's vertex. What must not enter a
//! cache key (secrets, proxies, the order of transfers) is not in here at all.

use std::collections::{BTreeMap, BTreeSet};

use rbuild_cache::digest::{DiffId, Digest};
use rbuild_cache::oci::{Descriptor, Platform};
use serde::{Deserialize, Serialize};

/// The position of an input of a vertex.
pub type InputIndex = usize;

/// One kind of work.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Op {
    /// The empty tree.
    Scratch,
    /// The tree of an image that was resolved before the graph was made.
    Image(ImageOp),
    /// A folder of the caller: the build context, or a named one.
    Context(ContextOp),
    /// A file fetched over http(s).
    Http(HttpOp),
    /// A commit of a git repository.
    Git(GitOp),
    /// A command in a sandbox. Input 0 is its root file system.
    Run(Box<RunOp>),
    /// Files written over input 0, as one new layer.
    File(FileOp),
    /// The layers of all inputs, one on top of the other (`COPY --link`).
    Merge,
    /// What of input 0 its program needs, as two layers: runtime and application (`--slim`).
    Slim(Box<SlimOp>),
}

impl Op {
    /// The op as JSON, its fields in the order of their declaration: the same bytes each time.
    #[expect(clippy::missing_panics_doc, reason = "plain data with string keys can be written")]
    pub fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("ops are plain data with string keys")
    }
}

/// An image, pinned: everything about it is known but its bytes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ImageOp {
    /// The name as progress shows it: `docker.io/library/debian:bookworm`.
    pub name: String,
    /// Where its blobs are, in the words of the [`crate::image_source::ImageSource`] that resolved
    /// it; not part of what the image is.
    pub location: String,
    /// The digest of its manifest.
    pub manifest: Digest,
    /// For which platform it is.
    pub platform: Platform,
    /// Its layers, lowest first.
    pub layers: Vec<ImageLayer>,
}

/// A layer of an image: the blob that holds it, and what that blob unpacks to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ImageLayer {
    /// The (compressed) blob.
    pub descriptor: Descriptor,
    /// The digest of the uncompressed tar.
    pub diff_id: DiffId,
}

/// A folder of the caller. Where it is, the request knows; here is what it is called.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ContextOp {
    /// `context` for the build context, otherwise the name of the named context.
    pub name: String,
    /// Patterns of `.dockerignore`, in order; they hold for every path that is read.
    pub ignore: Vec<String>,
}

/// A file fetched over http(s): a tree that holds just that file, mode 0600.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HttpOp {
    /// The address.
    pub url: String,
    /// The file's name in the tree.
    pub filename: String,
    /// What its digest must be (`--checksum`).
    pub checksum: Option<Digest>,
}

/// A commit of a git repository, checked out: a tree without `.git` unless it is to be kept.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GitOp {
    /// The repository's address, without fragment.
    pub remote: String,
    /// Branch, tag, full reference or commit; the remote's HEAD when absent.
    pub reference: Option<String>,
    /// The folder in the repository whose content is the tree.
    pub subdir: Option<String>,
    /// `--keep-git-dir`
    pub keep_git_dir: bool,
    /// What the commit's digest must begin with (`--checksum`).
    pub checksum: Option<String>,
    /// Submodules are checked out too; BuildKit does so unless `submodules=false`.
    pub submodules: bool,
    /// Files get the time of the commit (`mtime=commit`), not that of the checkout.
    pub commit_times: bool,
}

/// A command in a sandbox.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunOp {
    /// The program and its arguments, the shell included.
    pub args: Vec<String>,
    /// `NAME=value`, in order.
    pub env: Vec<String>,
    /// The working directory; it is made when it is missing.
    pub cwd: String,
    /// `user[:group]`, by name or number; root when absent.
    pub user: Option<String>,
    /// What the command may reach.
    pub network: NetworkMode,
    /// How far the command is confined.
    pub security: SecurityMode,
    /// `RUN --mount`, in order.
    pub mounts: Vec<Mount>,
    /// `RUN --device`: names of CDI devices, and whether the step can do without.
    pub devices: Vec<Device>,
    /// The host name inside; BuildKit's is `buildkitsandbox`.
    pub hostname: String,
    /// Lines for `/etc/hosts`: (name, address).
    pub extra_hosts: Vec<(String, String)>,
    /// Bytes of `/dev/shm`; 64 MiB when absent.
    pub shm_size: Option<u64>,
    /// `--ulimit`
    pub ulimits: Vec<Ulimit>,
    /// `--cgroup-parent`
    pub cgroup_parent: Option<String>,
    /// The platform that the command is for.
    pub platform: Platform,
}

impl RunOp {
    /// Runs `args` as root in `/`: no flag is given.
    pub fn new(args: Vec<String>, platform: Platform) -> Self {
        Self {
            args,
            env: Vec::new(),
            cwd: "/".to_owned(),
            user: None,
            network: NetworkMode::default(),
            security: SecurityMode::default(),
            mounts: Vec::new(),
            devices: Vec::new(),
            hostname: String::new(),
            extra_hosts: Vec::new(),
            shm_size: None,
            ulimits: Vec::new(),
            cgroup_parent: None,
            platform,
        }
    }

    /// What the mounts show of inputs: the number of the input, and the path in it.
    pub fn mounted(&self) -> BTreeSet<(usize, &str)> {
        let shown = self.mounts.iter().filter_map(|mount| match &mount.source {
            MountSource::Bind { input, path }
            // What a cache mount begins with, not what steps put there.
            | MountSource::Cache { from: Some(input), path, .. } => Some((*input, path.as_str())),
            MountSource::Cache { from: None, .. }
            | MountSource::Tmpfs { .. }
            | MountSource::Secret { .. }
            | MountSource::SecretEnv { .. }
            | MountSource::Ssh { .. } => None,
        });
        shown.collect()
    }
}

/// `RUN --network`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NetworkMode {
    /// A network of its own that reaches what the caller reaches.
    #[default]
    Default,
    /// Loopback only.
    None,
    /// The caller's network.
    Host,
}

/// `RUN --security`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SecurityMode {
    /// Docker's default capabilities and system calls.
    #[default]
    Sandbox,
    /// All capabilities, no filter; needs `--allow security.insecure`.
    Insecure,
}

/// `RUN --device`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    /// As a Dockerfile has it: a fully qualified CDI name, a kind or a class. Once it is known what
    /// that means on this machine, a fully qualified name.
    pub name: String,
    /// Without it the step fails.
    pub required: bool,
}

/// `--ulimit name=soft:hard`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ulimit {
    /// `nofile`, `nproc`, …
    pub name: String,
    /// The soft limit; -1 is none.
    pub soft: i64,
    /// The hard limit; -1 is none.
    pub hard: i64,
}

/// Something mounted for one RUN (`RUN --mount`).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Mount {
    /// Where, absolute.
    pub target: String,
    /// What.
    pub source: MountSource,
    /// Writing is refused.
    pub read_only: bool,
}

/// What a [`Mount`] shows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MountSource {
    /// A path of another vertex's tree; what is written is thrown away.
    Bind {
        /// Whose tree.
        input: InputIndex,
        /// The path in it.
        path: String,
    },
    /// A folder that outlives the build.
    Cache {
        /// Which one.
        id: String,
        /// Who else may use it meanwhile.
        sharing: CacheSharing,
        /// What it holds when it is new.
        from: Option<InputIndex>,
        /// The path in `from`.
        path: String,
        /// The mode of a new one.
        mode: u32,
        /// The owner of a new one.
        uid: u32,
        /// The group of a new one.
        gid: u32,
    },
    /// Memory.
    Tmpfs {
        /// Its size in bytes.
        size: Option<u64>,
    },
    /// A secret of the caller as a file.
    Secret {
        /// Which one.
        id: String,
        /// Without it the step fails.
        required: bool,
        /// The file's mode.
        mode: u32,
        /// The file's owner.
        uid: u32,
        /// The file's group.
        gid: u32,
    },
    /// A secret of the caller as an environment variable; the mount's target is empty.
    SecretEnv {
        /// Which one.
        id: String,
        /// Without it the step fails.
        required: bool,
        /// The variable.
        variable: String,
    },
    /// The caller's SSH agent; its socket's path is in `SSH_AUTH_SOCK`.
    Ssh {
        /// Which agent.
        id: String,
        /// Without it the step fails.
        required: bool,
        /// The socket's mode.
        mode: u32,
        /// The socket's owner.
        uid: u32,
        /// The socket's group.
        gid: u32,
    },
}

/// `sharing=` of a cache mount.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CacheSharing {
    /// Several steps write at once.
    #[default]
    Shared,
    /// A second step gets a folder of its own.
    Private,
    /// A second step waits.
    Locked,
}

/// Files written over input 0: together one layer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FileOp {
    /// What to write, in order.
    pub actions: Vec<FileAction>,
}

/// One writing of files.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FileAction {
    /// Makes a directory (`WORKDIR`).
    Mkdir(Mkdir),
    /// Writes a file whose bytes the graph holds (heredocs).
    WriteFile(WriteFile),
    /// Copies from another input (`COPY`, `ADD`).
    Copy(CopyAction),
}

/// Makes a directory. An existing one is left as it is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Mkdir {
    /// Which, absolute; symbolic links on the way are followed inside the root.
    pub path: String,
    /// Its mode.
    pub mode: u32,
    /// Missing parents are made with the same mode and owner.
    pub parents: bool,
    /// Its owner; 0:0 when absent.
    pub owner: Option<Owner>,
    /// The time of what is made, in seconds since the epoch (`SOURCE_DATE_EPOCH`).
    pub time: Option<i64>,
}

/// Writes a file whose bytes the graph holds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WriteFile {
    /// Which, absolute.
    pub path: String,
    /// Its mode.
    pub mode: u32,
    /// Its owner; 0:0 when absent.
    pub owner: Option<Owner>,
    /// Its bytes.
    pub data: Vec<u8>,
}

/// Copies from another input.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of its own in the language")]
pub struct CopyAction {
    /// From where.
    pub from: CopySource,
    /// The paths to copy, as they stand after expansion: wildcards are still in them.
    pub sources: Vec<String>,
    /// To where, absolute, with a trailing slash where one was written (or where there are several
    /// sources): then it is a directory.
    pub destination: String,
    /// `--chown`
    pub owner: Option<Owner>,
    /// `--chmod`
    pub mode: Option<ModeChange>,
    /// `--exclude`
    pub exclude: Vec<String>,
    /// `--parents`: the path below the context (or below the `/./` pivot) is kept.
    pub parents: bool,
    /// Local archives are unpacked (`ADD`, `--unpack`).
    pub unpack: bool,
    /// Wildcards in `sources` have their meaning.
    pub wildcards: bool,
    /// A directory at the destination that is a symbolic link is replaced, not followed
    /// (`--link`).
    pub replace_symlinks: bool,
    /// Times of all copied files, in seconds since the epoch (`SOURCE_DATE_EPOCH`); their own when
    /// absent.
    pub times: Option<i64>,
}

impl CopyAction {
    /// Copies `sources` by their names to `destination`: no flag is given, no wildcard means anything.
    pub fn new(from: CopySource, sources: Vec<String>, destination: impl Into<String>) -> Self {
        Self {
            from,
            sources,
            destination: destination.into(),
            owner: None,
            mode: None,
            exclude: Vec::new(),
            parents: false,
            unpack: false,
            wildcards: false,
            replace_symlinks: false,
            times: None,
        }
    }
}

/// From where a [`CopyAction`] copies.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CopySource {
    /// Another vertex.
    Input(InputIndex),
    /// Files that the graph holds, by name (heredocs); mode 0644.
    Inline(BTreeMap<String, Vec<u8>>),
}

/// `--chown=user[:group]`, and the owner of what WORKDIR makes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// The user.
    pub user: Name,
    /// The group; that of the user when absent.
    pub group: Option<Name>,
}

/// A user or group, by number or by a name that the stage's `/etc/passwd` or `/etc/group` knows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Name {
    /// By number.
    Id(u32),
    /// By name.
    Name(String),
}

/// `--chmod`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ModeChange {
    /// `0755`
    Octal(u32),
    /// `u=rwX,go=rX`, as chmod(1) reads it.
    Symbolic(String),
}

/// Keeps of input 0 what its program needs.
///
/// The result is a tree of its own, not a layer over input 0: what the distribution contributes is
/// its lower layer, what the user made the upper one, so that the lower one stays the same when
/// only the application changes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SlimOp {
    /// The version of the rules: [`SlimOp::RULES`].
    pub rules: u32,
    /// How it is found out what is needed.
    pub mode: SlimMode,
    /// What a container of the image runs: ENTRYPOINT and CMD.
    pub command: Vec<String>,
    /// `NAME=value`, in order.
    pub env: Vec<String>,
    /// WORKDIR
    pub cwd: String,
    /// USER; root when absent.
    pub user: Option<String>,
    /// What HEALTHCHECK runs, its shell included; empty when there is none.
    pub healthcheck: Vec<String>,
    /// Folders that are kept even if they are empty (VOLUME).
    pub volumes: Vec<String>,
    /// What shows that the program works; says nothing in [`SlimMode::Closure`].
    pub probe: SlimProbe,
    /// How many seconds the probe may take.
    pub probe_timeout: u64,
    /// Patterns of absolute paths that are kept (`--slim-keep`).
    pub keep: Vec<String>,
    /// Patterns of absolute paths that are left out (`--slim-drop`).
    pub drop: Vec<String>,
    /// What is kept of the system whoever needs it.
    pub base: SlimBase,
    /// The platform of the image.
    pub platform: Platform,
}

impl SlimOp {
    /// Changes whenever the rules by which files are kept do: results of others are not found then.
    pub const RULES: u32 = 2;
}

/// `--slim`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SlimMode {
    /// The static closure and what a run of the probe opened; the probe's answers must stay.
    #[default]
    Auto,
    /// The static closure; nothing is run.
    Closure,
    /// The closure of what a run of the probe opened, no more.
    Trace,
}

/// `--slim-probe`
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SlimProbe {
    /// The program starts and stays up, or ends as it did before.
    #[default]
    Alive,
    /// This command, run beside the program, answers as it did before.
    Command(Vec<String>),
    /// These paths, asked for over HTTP, answer as they did before.
    Http {
        /// The port on the loopback interface.
        port: u16,
        /// What is asked for, in order.
        paths: Vec<String>,
    },
}

/// `--slim-base`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SlimBase {
    /// Nothing.
    None,
    /// The certificates of authorities.
    Certs,
    /// Users, name services, certificates, time zones and the folders that programs expect.
    #[default]
    Full,
}
