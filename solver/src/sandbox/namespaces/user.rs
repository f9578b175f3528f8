//! Becoming root without being root: a user namespace around the whole of rbuild.
//!
//! Layers hold files of many owners. As an ordinary user, rbuild can make, read and remove them
//! only where it has a range of ids of its own (`/etc/subuid`, handed out by `newuidmap`), and only
//! from inside the namespace in which they are mapped. So it is rbuild as a whole that enters the
//! namespace, once and before it has a second thread, and not each step: all that comes later is
//! root in there, and steps cost no more than as root.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Command, Stdio};

use rustix::process::{WaitId, WaitIdOptions};
use rustix::thread::{CapabilitySet, UnshareFlags};

use super::message::{self, Failure, OrFail};
use super::syscalls::{self, Cloned};
use crate::sandbox::SandboxError;

/// Which ids this process has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Identity {
    /// It is root, or as much of it as it was given: nothing was done.
    Root,
    /// It is root of a user namespace with ranges of ids.
    Ranges,
    /// It is root of a user namespace in which there is nobody else.
    Single,
}

/// Makes this process root of a user namespace, unless it may mount as it is.
///
/// Must be called before the process has a second thread. What was `euid` outside is 0 afterwards.
///
/// # Errors
/// When the kernel lets this user have no namespace, and when ids that the user has cannot be
/// mapped. The hint says what would help.
pub fn become_root() -> Result<Identity, SandboxError> {
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    let able = rustix::thread::capabilities(None)
        .is_ok_and(|sets| sets.effective.contains(CapabilitySet::SYS_ADMIN));
    if able {
        return Ok(Identity::Root);
    }
    let plan = if uid == 0 { Plan::Copy } else { Plan::of_user(uid, gid)? };
    Ok(enter(&plan)?)
}

/// How ids are mapped.
#[derive(Debug)]
enum Plan {
    /// Root without the right to mount, as in a container: all ids that it has.
    Copy,
    /// With `newuidmap` and `newgidmap`.
    Ranges { users: Vec<Range>, groups: Vec<Range> },
    /// The user's own id as root, and nothing else.
    Single { uid: u32, gid: u32 },
}

/// Ids `inside..inside + count` are `outside..` to the rest of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Range {
    inside: u32,
    outside: u32,
    count: u32,
}

impl Plan {
    fn of_user(uid: u32, gid: u32) -> Result<Self, Failure> {
        let name = user_name(uid).or_fail(|| "cannot read `/etc/passwd`")?;
        let ranges = |path: &str, own: u32| -> Result<Vec<Range>, Failure> {
            let text = read_if_there(path).or_fail(|| format!("cannot read `{path}`"))?;
            Ok(with_own_first(own, &subordinate(&text, uid, name.as_deref())))
        };
        let (users, groups) = (ranges("/etc/subuid", uid)?, ranges("/etc/subgid", gid)?);
        if users.len() > 1 && groups.len() > 1 && has_mapping_tools() {
            Ok(Self::Ranges { users, groups })
        } else {
            Ok(Self::Single { uid, gid })
        }
    }
}

/// Enters a user namespace. A copy of this process stays outside to write the maps, which only
/// works from there.
fn enter(plan: &Plan) -> Result<Identity, Failure> {
    let (here, there) = message::socket_pair().or_fail(|| "cannot make a socket")?;
    let pid = rustix::process::getpid().as_raw_nonzero().to_string();
    match syscalls::clone_process(UnshareFlags::empty()).or_fail(|| "cannot start a process")? {
        Cloned::Child => {
            drop(here);
            // When the caller gave up, nobody wants to know.
            let _ = map_from_outside(plan, &pid, &there);
            std::process::exit(0)
        }
        Cloned::Parent(helper) => {
            drop(there);
            let result = enter_with_help(plan, &here);
            drop(here);
            let waited = rustix::io::retry_on_intr(|| {
                rustix::process::waitid(WaitId::PidFd(helper.as_fd()), WaitIdOptions::EXITED)
            });
            waited.or_fail(|| "cannot wait for a process")?;
            result
        }
    }
}

fn enter_with_help(plan: &Plan, helper: &OwnedFd) -> Result<Identity, Failure> {
    syscalls::unshare(UnshareFlags::NEWUSER)
        .or_fail(|| "cannot make a user namespace")
        .map_err(hint_at_namespaces)?;
    if let Plan::Single { uid, gid } = plan {
        let write = |file: &str, text: String| {
            fs_err::write(format!("/proc/self/{file}"), text)
                .or_fail(|| "cannot map this user to root")
                .map_err(hint_at_namespaces)
        };
        write("setgroups", "deny".to_owned())?;
        write("uid_map", format!("0 {uid} 1"))?;
        write("gid_map", format!("0 {gid} 1"))?;
        return Ok(Identity::Single);
    }
    message::send(helper.as_fd(), &(), &[]).or_fail(|| "cannot reach a process")?;
    match message::receive::<Option<Failure>>(helper).or_fail(|| "cannot hear from a process")? {
        Some((None, _)) => Ok(Identity::Ranges),
        Some((Some(failure), _)) => Err(failure),
        None => Err(Failure::refusal("the process that maps ids died")),
    }
}

fn map_from_outside(plan: &Plan, pid: &str, caller: &OwnedFd) -> io::Result<()> {
    if message::receive::<()>(caller)?.is_none() {
        return Ok(());
    }
    let failure = match plan {
        Plan::Single { .. } => None,
        Plan::Copy => copy_maps(pid).err(),
        Plan::Ranges { users, groups } => map_with("newuidmap", pid, users)
            .and_then(|()| map_with("newgidmap", pid, groups))
            .err(),
    };
    message::send(caller.as_fd(), &failure, &[])
}

/// Maps all ids of this namespace to themselves.
fn copy_maps(pid: &str) -> Result<(), Failure> {
    for file in ["uid_map", "gid_map"] {
        let own = fs_err::read_to_string(format!("/proc/self/{file}"))
            .or_fail(|| "cannot read the map of ids")?;
        fs_err::write(format!("/proc/{pid}/{file}"), identity_map(&own))
            .or_fail(|| "cannot map the ids of this container")
            .map_err(hint_at_namespaces)?;
    }
    Ok(())
}

fn map_with(program: &str, pid: &str, ranges: &[Range]) -> Result<(), Failure> {
    let mut command = Command::new(program);
    command.arg(pid).stdin(Stdio::null());
    for Range { inside, outside, count } in ranges {
        command.args([inside.to_string(), outside.to_string(), count.to_string()]);
    }
    let output = command.output().or_fail(|| format!("cannot execute `{program}`"))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(Failure::refusal(format!("`{program}` failed: {}", said.trim())).with_hint(
        "it needs to be setuid root (or have the capability to set ids), and ranges for this user \
         in /etc/subuid and /etc/subgid",
    ))
}

fn has_mapping_tools() -> bool {
    let found = |program: &str| {
        let folders =
            ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"];
        folders.iter().any(|folder| std::path::Path::new(folder).join(program).exists())
    };
    found("newuidmap") && found("newgidmap")
}

fn user_name(uid: u32) -> io::Result<Option<String>> {
    let users = read_if_there("/etc/passwd")?;
    Ok(users.lines().find_map(|line| {
        let mut fields = line.split(':');
        let (name, id) = (fields.next()?, fields.nth(1)?);
        (id.parse() == Ok(uid)).then(|| name.to_owned())
    }))
}

fn read_if_there(path: &str) -> io::Result<String> {
    match fs_err::read_to_string(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        result => result,
    }
}

/// Returns the ranges (first id, how many) that a file like `/etc/subuid` gives to a user, who is
/// in it by name or by number (subuid(5)).
fn subordinate(text: &str, uid: u32, name: Option<&str>) -> Vec<(u32, u32)> {
    let is_user = |user: &str| Some(user) == name || user.parse() == Ok(uid);
    text.lines()
        .filter_map(|line| {
            let mut fields = line.trim().split(':');
            let (user, start, count) = (fields.next()?, fields.next()?, fields.next()?);
            is_user(user).then_some((start.parse().ok()?, count.parse().ok()?))
        })
        .filter(|(_, count)| *count > 0)
        .collect()
}

/// The user is root; the ranges follow from 1 on.
fn with_own_first(own: u32, ranges: &[(u32, u32)]) -> Vec<Range> {
    let mut map = vec![Range { inside: 0, outside: own, count: 1 }];
    for (outside, count) in ranges {
        let inside = map.last().map_or(0, |last| last.inside + last.count);
        // No more than there are ids.
        let count = (*count).min(u32::MAX - 1 - inside);
        map.push(Range { inside, outside: *outside, count });
    }
    map
}

fn identity_map(own: &str) -> String {
    own.lines()
        .filter_map(|line| {
            let mut fields = line.split_ascii_whitespace();
            let (inside, count) = (fields.next()?, fields.nth(1)?);
            Some(format!("{inside} {inside} {count}\n"))
        })
        .collect()
}

fn hint_at_namespaces(failure: Failure) -> Failure {
    let hint = match failure.errno {
        Some(libc::EPERM | libc::EACCES) => {
            "this kernel does not let users have namespaces: it takes root to allow it \
             (`sysctl kernel.unprivileged_userns_clone=1`, \
             `sysctl kernel.apparmor_restrict_unprivileged_userns=0`); in a container, \
             `--security-opt seccomp=unconfined --security-opt apparmor=unconfined`"
        }
        Some(libc::ENOSPC | libc::EUSERS) => {
            "there are too many namespaces (`sysctl user.max_user_namespaces`)"
        }
        _ => return failure,
    };
    failure.with_hint(hint)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SUBUID: &str = "ann:100000:65536\n1001:300000:10\nbob:200000:65536\nann:500000:0\nbad\n";

    fn check(uid: u32, name: Option<&str>, expected: &[(u32, u32)]) {
        assert_eq!(subordinate(SUBUID, uid, name), expected);
    }

    #[test]
    fn ranges_belong_to_names_and_numbers() {
        check(1000, Some("ann"), &[(100_000, 65536)]);
        check(1001, Some("bob"), &[(300_000, 10), (200_000, 65536)]);
        check(1002, None, &[]);
    }

    #[test]
    fn the_user_is_root_and_ranges_follow() {
        let map = with_own_first(1000, &[(100_000, 10), (200_000, u32::MAX)]);
        let map: Vec<_> =
            map.iter().map(|range| (range.inside, range.outside, range.count)).collect();
        assert_eq!(map, [(0, 1000, 1), (1, 100_000, 10), (11, 200_000, u32::MAX - 12)]);
    }

    #[test]
    fn a_container_keeps_the_ids_it_has() {
        assert_eq!(identity_map("0 1000 1\n1 100000 65536\n"), "0 0 1\n1 1 65536\n");
    }
}
