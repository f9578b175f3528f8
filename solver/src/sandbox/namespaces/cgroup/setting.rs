//! From limits to what is written into the files of a control group.

use super::hierarchy::Version;
use crate::sandbox::resources::{MemorySwap, Resources};

/// The part of the kernel that keeps a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Controller {
    Memory,
    Cpu,
    Cpuset,
    Pids,
}

impl Controller {
    pub(super) const ALL: [Self; 4] = [Self::Memory, Self::Cpu, Self::Cpuset, Self::Pids];

    /// The kernel's name for it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Cpu => "cpu",
            Self::Cpuset => "cpuset",
            Self::Pids => "pids",
        }
    }

    /// What is written into the groups of `version` so that they keep `resources`, in order.
    pub(super) fn settings(self, resources: &Resources, version: &Version) -> Vec<Setting> {
        match (self, version) {
            (Self::Memory, Version::One(_)) => memory_one(resources),
            (Self::Memory, Version::Two) => memory_two(resources),
            (Self::Cpu, Version::One(_)) => cpu_one(resources),
            (Self::Cpu, Version::Two) => cpu_two(resources),
            // The files of these two are the same in both.
            (Self::Cpuset, _) => [
                Setting::of("--cpuset-cpus", "cpuset.cpus", resources.cpuset_cpus.as_ref()),
                Setting::of("--cpuset-mems", "cpuset.mems", resources.cpuset_mems.as_ref()),
            ]
            .into_iter()
            .flatten()
            .collect(),
            (Self::Pids, _) => {
                Setting::of("--pids-limit", "pids.max", resources.pids).into_iter().collect()
            }
        }
    }

    /// The flag by which a limit of this part was asked for, if one was.
    pub(super) fn flag(self, resources: &Resources) -> Option<&'static str> {
        let settings = self.settings(resources, &Version::Two);
        settings.iter().find(|setting| setting.asked).map(|setting| setting.flag)
    }
}

/// One line in one file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Setting {
    /// The flag that asked for it.
    pub(super) flag: &'static str,
    pub(super) file: &'static str,
    pub(super) value: String,
    /// Whether it was asked for, rather than follows from what was: then the kernel may lack it.
    pub(super) asked: bool,
}

impl Setting {
    fn asked(flag: &'static str, file: &'static str, value: String) -> Self {
        Self { flag, file, value, asked: true }
    }

    fn of<T: ToString>(flag: &'static str, file: &'static str, value: Option<T>) -> Option<Self> {
        value.map(|value| Self::asked(flag, file, value.to_string()))
    }
}

/// Without `--memory-swap`, a step has as much swap as memory, as with Docker.
fn memory_one(resources: &Resources) -> Vec<Setting> {
    let Some(memory) = resources.memory else { return Vec::new() };
    let total = match resources.memory_swap {
        None => memory.saturating_mul(2).to_string(),
        Some(MemorySwap::Unlimited) => "-1".to_owned(),
        Some(MemorySwap::Bytes(total)) => total.to_string(),
    };
    vec![
        Setting::asked("--memory", "memory.limit_in_bytes", memory.to_string()),
        swap(resources, "memory.memsw.limit_in_bytes", total),
    ]
}

/// Version 2 counts swap apart from memory.
fn memory_two(resources: &Resources) -> Vec<Setting> {
    let Some(memory) = resources.memory else { return Vec::new() };
    let beside = match resources.memory_swap {
        None => memory.to_string(),
        Some(MemorySwap::Unlimited) => "max".to_owned(),
        Some(MemorySwap::Bytes(total)) => total.saturating_sub(memory).to_string(),
    };
    vec![
        Setting::asked("--memory", "memory.max", memory.to_string()),
        swap(resources, "memory.swap.max", beside),
    ]
}

/// Not every kernel counts swap; then there is none to be limited unless somebody asks.
fn swap(resources: &Resources, file: &'static str, value: String) -> Setting {
    let asked = matches!(resources.memory_swap, Some(MemorySwap::Bytes(_)));
    Setting { flag: "--memory-swap", file, value, asked }
}

fn cpu_one(resources: &Resources) -> Vec<Setting> {
    [
        Setting::of("--cpu-period", "cpu.cfs_period_us", resources.cpu_period),
        Setting::of("--cpus", "cpu.cfs_quota_us", resources.cpu_quota),
        Setting::of("--cpu-shares", "cpu.shares", resources.cpu_shares),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn cpu_two(resources: &Resources) -> Vec<Setting> {
    /// The kernel's own period, in microseconds.
    const PERIOD: u64 = 100_000;
    let period = resources.cpu_period.unwrap_or(PERIOD);
    let bandwidth = match (resources.cpu_quota, resources.cpu_period) {
        (None, None) => None,
        (None, Some(_)) => Some(format!("max {period}")),
        (Some(quota), _) => Some(format!("{quota} {period}")),
    };
    let weight = resources.cpu_shares.map(weight);
    [Setting::of("--cpus", "cpu.max", bandwidth), Setting::of("--cpu-shares", "cpu.weight", weight)]
        .into_iter()
        .flatten()
        .collect()
}

/// From version 1's 2..=262144 to version 2's 1..=10000, as runc converts (`ConvertCPUSharesToCgroupV2Value`).
fn weight(shares: u64) -> u64 {
    1 + (shares.clamp(2, 262_144) - 2) * 9999 / 262_142
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(resources: &Resources, one: &[&str], two: &[&str]) {
        let lines = |version: &Version| -> Vec<String> {
            let settings = Controller::ALL.iter().flat_map(|c| c.settings(resources, version));
            let line = |setting: Setting| {
                let mark = if setting.asked { "" } else { "?" };
                format!("{}={}{mark}", setting.file, setting.value)
            };
            settings.map(line).collect()
        };
        assert_eq!(lines(&Version::One(Vec::new())), one);
        assert_eq!(lines(&Version::Two), two);
    }

    #[test]
    fn limits_become_files() {
        let none = Resources::default();
        check(&none, &[], &[]);
        check(
            &Resources { memory: Some(100), ..none.clone() },
            &["memory.limit_in_bytes=100", "memory.memsw.limit_in_bytes=200?"],
            &["memory.max=100", "memory.swap.max=100?"],
        );
        let swap = Some(MemorySwap::Bytes(150));
        check(
            &Resources { memory: Some(100), memory_swap: swap, ..none.clone() },
            &["memory.limit_in_bytes=100", "memory.memsw.limit_in_bytes=150"],
            &["memory.max=100", "memory.swap.max=50"],
        );
        let swap = Some(MemorySwap::Unlimited);
        check(
            &Resources { memory: Some(100), memory_swap: swap, ..none.clone() },
            &["memory.limit_in_bytes=100", "memory.memsw.limit_in_bytes=-1?"],
            &["memory.max=100", "memory.swap.max=max?"],
        );
        check(
            &Resources { cpu_quota: Some(50_000), cpu_shares: Some(1024), ..none.clone() },
            &["cpu.cfs_quota_us=50000", "cpu.shares=1024"],
            &["cpu.max=50000 100000", "cpu.weight=39"],
        );
        check(
            &Resources { cpu_period: Some(10_000), ..none.clone() },
            &["cpu.cfs_period_us=10000"],
            &["cpu.max=max 10000"],
        );
        let both = ["cpuset.cpus=0-1", "pids.max=9"];
        check(&Resources { cpuset_cpus: Some("0-1".into()), pids: Some(9), ..none }, &both, &both);
    }

    #[test]
    fn shares_become_weights() {
        assert_eq!([2, 1024, 262_144].map(weight), [1, 39, 10_000]);
        assert_eq!([0, u64::MAX].map(weight), [1, 10_000]);
    }
}
