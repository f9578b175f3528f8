//! `RUN [--mount=…] [--network=…] [--security=…] [--device=…] command`.

use rbuild_solver::graph::{CacheSharing, Device, NetworkMode, SecurityMode};

use super::CommandLine;
use crate::source::Text;
use crate::syntax::Heredoc;

/// A command that is run while building.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// What to run.
    pub command: CommandLine,
    /// Here-documents that the command's line names. Their content is the shell's to expand.
    pub heredocs: Vec<Heredoc>,
    /// The values of `--mount`, as they were written; [`Self::mounts`] reads them.
    pub mount_flags: Vec<Text>,
    /// `--network`
    pub network: NetworkMode,
    /// `--security`
    pub security: SecurityMode,
    /// `--device`
    pub devices: Vec<Device>,
}

/// What kind of thing a [`Mount`] mounts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MountType {
    /// A path of the context, of a stage or of an image.
    #[default]
    Bind,
    /// A folder that outlives the build.
    Cache,
    /// Memory.
    Tmpfs,
    /// A secret of the caller.
    Secret,
    /// The caller's SSH agent.
    Ssh,
}

/// One `--mount`, with its variables expanded.
///
/// Which options go together is checked already; what an absent one stands for is not decided.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mount {
    /// `type`
    pub kind: MountType,
    /// `from`: a stage, an image or a named context.
    pub from: Option<String>,
    /// `source`
    pub source: Option<String>,
    /// `target`
    pub target: Option<String>,
    /// `readonly` or `readwrite`, or what is usual for the type.
    pub read_only: bool,
    /// `size` of a tmpfs, in bytes.
    pub size: Option<u64>,
    /// `id` of a cache, a secret or an agent.
    pub id: Option<String>,
    /// `sharing` of a cache.
    pub sharing: Option<CacheSharing>,
    /// `required`: without the secret or the agent the step fails.
    pub required: bool,
    /// `env`: the variable that a secret is put into; empty for a name derived from its id.
    pub env: Option<String>,
    /// `mode`
    pub mode: Option<u32>,
    /// `uid`
    pub uid: Option<u32>,
    /// `gid`
    pub gid: Option<u32>,
    /// The whole value of the flag.
    pub flag: Option<Text>,
}
