//! The system calls about owners and users, which are answered by rbuild where a step has but one
//! id (`namespaces/ownership.rs`).

use super::Rule;
use super::table::{self, Numbers};

/// A call that is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// `chown`: links are followed.
    Chown,
    /// `lchown`: links are not followed.
    Lchown,
    /// `fchown`
    Fchown,
    /// `fchownat`
    Fchownat,
    /// `stat`: links are followed.
    Stat,
    /// `lstat`: links are not followed.
    Lstat,
    /// `fstat`
    Fstat,
    /// `newfstatat`
    Newfstatat,
    /// `statx`
    Statx,
    /// `setuid`
    Setuid,
    /// `setgid`
    Setgid,
    /// `setreuid`
    Setreuid,
    /// `setregid`
    Setregid,
    /// `setresuid`
    Setresuid,
    /// `setresgid`
    Setresgid,
    /// `setfsuid`
    Setfsuid,
    /// `setfsgid`
    Setfsgid,
    /// `setgroups`
    Setgroups,
    /// `getuid`
    Getuid,
    /// `geteuid`
    Geteuid,
    /// `getgid`
    Getgid,
    /// `getegid`
    Getegid,
    /// `getresuid`
    Getresuid,
    /// `getresgid`
    Getresgid,
    /// `getgroups`
    Getgroups,
    /// `open`, when it may make a file.
    Open,
    /// `openat`, when it may make a file.
    Openat,
    /// `openat2`: its flags are in memory, where no filter sees them.
    Openat2,
    /// `creat`
    Creat,
    /// `mkdir`
    Mkdir,
    /// `mkdirat`
    Mkdirat,
    /// `mknod`
    Mknod,
    /// `mknodat`
    Mknodat,
    /// `symlink`
    Symlink,
    /// `symlinkat`
    Symlinkat,
    /// `execve`: programs can be setuid.
    Execve,
    /// `execveat`
    Execveat,
    /// `chroot`: other files are meant by names from then on.
    Chroot,
}

/// A call, its name on 64-bit architectures, and on 32-bit ones. There, where ids have 16 bits in
/// the call of the same name, it is another; and `stat`'s many forms are left alone but for the
/// newest.
type Row = (Call, &'static str, &'static str);

#[rustfmt::skip]
const ASKED: &[Row] = &[
    (Call::Chown, "chown", "chown32"),
    (Call::Lchown, "lchown", "lchown32"),
    (Call::Fchown, "fchown", "fchown32"),
    (Call::Fchownat, "fchownat", "fchownat"),
    (Call::Stat, "stat", ""),
    (Call::Lstat, "lstat", ""),
    (Call::Fstat, "fstat", ""),
    (Call::Newfstatat, "newfstatat", ""),
    (Call::Statx, "statx", "statx"),
    (Call::Setuid, "setuid", "setuid32"),
    (Call::Setgid, "setgid", "setgid32"),
    (Call::Setreuid, "setreuid", "setreuid32"),
    (Call::Setregid, "setregid", "setregid32"),
    (Call::Setresuid, "setresuid", "setresuid32"),
    (Call::Setresgid, "setresgid", "setresgid32"),
    (Call::Setfsuid, "setfsuid", "setfsuid32"),
    (Call::Setfsgid, "setfsgid", "setfsgid32"),
    (Call::Setgroups, "setgroups", "setgroups32"),
    (Call::Getuid, "getuid", "getuid32"),
    (Call::Geteuid, "geteuid", "geteuid32"),
    (Call::Getgid, "getgid", "getgid32"),
    (Call::Getegid, "getegid", "getegid32"),
    (Call::Getresuid, "getresuid", "getresuid32"),
    (Call::Getresgid, "getresgid", "getresgid32"),
    (Call::Getgroups, "getgroups", "getgroups32"),
    (Call::Open, "open", "open"),
    (Call::Openat, "openat", "openat"),
    (Call::Openat2, "openat2", "openat2"),
    (Call::Creat, "creat", "creat"),
    (Call::Mkdir, "mkdir", "mkdir"),
    (Call::Mkdirat, "mkdirat", "mkdirat"),
    (Call::Mknod, "mknod", "mknod"),
    (Call::Mknodat, "mknodat", "mknodat"),
    (Call::Symlink, "symlink", "symlink"),
    (Call::Symlinkat, "symlinkat", "symlinkat"),
    (Call::Execve, "execve", "execve"),
    (Call::Execveat, "execveat", "execveat"),
    (Call::Chroot, "chroot", "chroot"),
];

/// The calls with their numbers.
pub(super) fn asked(numbers: Numbers) -> impl Iterator<Item = (u32, Call)> {
    ASKED.iter().filter_map(move |(call, name, name_32)| {
        let name = match numbers {
            Numbers::X86_64 | Numbers::Aarch64 => name,
            Numbers::X86 | Numbers::Arm => name_32,
        };
        Some((table::number_of(name, numbers)?, *call))
    })
}

/// What the filter does about a call.
pub(super) fn rule(call: Call) -> Rule {
    match call {
        Call::Open => Rule::AskIfCreating { flags: 1 },
        Call::Openat => Rule::AskIfCreating { flags: 2 },
        _ => Rule::Verdict(super::Verdict::Ask),
    }
}
