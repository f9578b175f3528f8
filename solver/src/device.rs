//! What a device brings into a step: `containerEdits` of the Container Device Interface, as far as a
//! sandbox has them.
//!
//! Which devices there are, and what a name means, is the caller's to know. Follows
//! `pkg/cdi/container-edits.go` of the CDI library that BuildKit uses.

use crate::sandbox::{ProcessSpec, SandboxMount};

/// What one device brings along. In no cache key: a step's key holds the device's name.
#[derive(Clone, Debug, Default)]
pub struct DeviceEdits {
    /// `NAME=value`, in place of what the step has of that name.
    pub env: Vec<String>,
    /// Device files, folders and files.
    pub mounts: Vec<SandboxMount>,
    /// Supplementary groups, as numbers inside.
    pub groups: Vec<u32>,
}

impl DeviceEdits {
    /// Adds all of it to `process`. Of two mounts of devices at one place the later one holds, and
    /// `first` says where those of devices begin: they lie over the step's own.
    pub(crate) fn apply(&self, process: &mut ProcessSpec, first: usize) {
        for line in &self.env {
            let name = |line: &str| line.split('=').next().unwrap_or_default().to_owned();
            process.env.retain(|other| name(other) != name(line));
            process.env.push(line.clone());
        }
        for mount in &self.mounts {
            let same = |other: &SandboxMount| other.target == mount.target;
            if let Some(earlier) = process.mounts[first..].iter().position(same) {
                process.mounts.remove(first + earlier);
            }
            process.mounts.push(mount.clone());
        }
        // What lies deeper comes later, whatever the order of the devices.
        let depth =
            |mount: &SandboxMount| mount.target.split('/').filter(|s| !s.is_empty()).count();
        process.mounts[first..].sort_by_key(depth);
        for group in &self.groups {
            if !process.user.groups.contains(group) {
                process.user.groups.push(*group);
            }
        }
    }
}
