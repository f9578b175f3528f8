//! How much of the machine a step may take: memory, processors, processes.
//!
//! Unlike `--ulimit` and `--shm-size`, which a command can see and which are part of its operation
//! as with BuildKit, these are the caller's and in no cache key: a step that had to do with less
//! memory made the same files, or none.

use serde::{Deserialize, Serialize};

/// Limits of each step, as `docker build` names them; none unless set. They hold by control groups.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resources {
    /// `--memory`, in bytes.
    pub memory: Option<u64>,
    /// `--memory-swap`.
    pub memory_swap: Option<MemorySwap>,
    /// `--cpu-period`, in microseconds.
    pub cpu_period: Option<u64>,
    /// `--cpu-quota`, or what `--cpus` comes to: microseconds of processor in a period.
    pub cpu_quota: Option<u64>,
    /// `--cpu-shares`: a weight, 1024 being everybody's.
    pub cpu_shares: Option<u64>,
    /// `--cpuset-cpus`: processors, as `0-3,6`.
    pub cpuset_cpus: Option<String>,
    /// `--cpuset-mems`: nodes of memory, as `0,1`.
    pub cpuset_mems: Option<String>,
    /// `--pids-limit`: processes and threads at once.
    pub pids: Option<u64>,
}

/// `--memory-swap`: memory and swap together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum MemorySwap {
    /// This many bytes.
    Bytes(u64),
    /// As much swap as there is.
    Unlimited,
}

impl Resources {
    /// Whether nothing is limited.
    pub fn is_unlimited(&self) -> bool {
        *self == Self::default()
    }
}
