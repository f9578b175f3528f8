//! What of `/proc` and `/sys` a step does not see, and what it sees but cannot write.
//!
//! The lists are those of containerd's default spec and of Docker, together. Paths are relative to
//! the root of the file system they are in; those that a kernel lacks are passed over.

/// Hidden in `/proc`: they tell of the host, its keys or its memory.
pub const MASKED_PROC: &[&str] = &[
    "acpi",
    "asound",
    "interrupts",
    "kcore",
    "keys",
    "latency_stats",
    "sched_debug",
    "scsi",
    "timer_list",
    "timer_stats",
];

/// Hidden in `/sys`.
pub const MASKED_SYS: &[&str] = &["firmware", "devices/virtual/powercap"];

/// In `/proc`, readable only: they set what holds for the whole machine.
pub const READ_ONLY_PROC: &[&str] = &["bus", "fs", "irq", "sys", "sysrq-trigger"];
