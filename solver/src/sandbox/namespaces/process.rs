//! Becoming the step's command: the last that runs of rbuild inside the sandbox.
//!
//! The order follows runc's `libcontainer/standard_init_linux.go`, and mostly cannot be another:
//! limits are raised while that is still allowed, the filter is installed while there is
//! `CAP_SYS_ADMIN` (there is no `no_new_privs`, as with BuildKit, so that `sudo` works), and user
//! and capabilities go last.

use std::convert::Infallible;
use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::process::{Resource, Rlimit};
use rustix::thread::{CapabilitySet, CapabilitySets};

use super::message::{Failure, OrFail};
use super::ownership::{self, Ownership};
use super::syscalls;
use crate::graph::{NetworkMode, SecurityMode, Ulimit};
use crate::sandbox::seccomp::{self, Profile};
use crate::sandbox::{Credentials, ProcessSpec, capabilities};

/// The exit code of a step whose program cannot be executed; BuildKit's.
const CANNOT_EXECUTE: i32 = 1;

/// One argument or variable is shorter, with its end (`MAX_ARG_STRLEN`).
const MOST_OF_ONE: usize = 128 << 10;

/// Is given the descriptor at which questions about owners come in.
pub(super) type OnListener<'a> = &'a mut dyn FnMut(OwnedFd) -> io::Result<()>;

/// Turns this process, which is alone in its new namespaces and sees its file tree, into the
/// command of `process`.
pub(super) fn become_command(
    process: &ProcessSpec,
    filter: &[libc::sock_filter],
    stdout: OwnedFd,
    stderr: OwnedFd,
    on_listener: OnListener<'_>,
) -> Result<Infallible, Failure> {
    // There are kernels without keyrings, and users with too many: the session keyring of the
    // caller then stays joined, but its keys are not ours to read under another user.
    let _ = syscalls::join_new_keyring();
    rustix::process::setsid().or_fail(|| "cannot start a session")?;
    set_host_name(&process.hostname, stderr.as_fd())?;
    if process.network == NetworkMode::None {
        syscalls::bring_loopback_up().or_fail(|| "cannot bring the loopback interface up")?;
    }
    for ulimit in &process.ulimits {
        set_limit(ulimit)?;
    }
    rustix::process::chdir(process.cwd.as_str())
        .or_fail(|| format!("cannot enter the working directory `{}`", process.cwd))?;
    if process.user.uid != 0 {
        // So that `/dev/stderr` can be opened, as with BuildKit (runc, `fixStdioPermissions`). Where
        // there is no such user, becoming it fails; where users are pretended, there is no need.
        for stream in [&stdout, &stderr] {
            let user = rustix::fs::Uid::from_raw(process.user.uid);
            let _ = rustix::fs::fchown(stream, Some(user), None);
        }
    }
    connect_streams(stdout, stderr)?;
    rustix::process::umask(Mode::from_raw_mode(0o022));
    confine(process, filter, on_listener)?;
    execute(process)
}

/// Sets the host name. The filter of a container may forbid that to all but root of the machine:
/// no reason not to run the step, but to tell, since the name can come out in the image.
fn set_host_name(name: &str, stderr: BorrowedFd<'_>) -> Result<(), Failure> {
    match rustix::system::sethostname(name.as_bytes()) {
        Err(rustix::io::Errno::PERM) => {
            let line = "rbuild: this container forbids `sethostname`: the step has its host name; \
                        `--security-opt seccomp=unconfined` allows it\n";
            // A step that cannot be told cannot tell either.
            let _ = rustix::io::write(stderr, line.as_bytes());
            Ok(())
        }
        result => result.or_fail(|| "cannot set the host name"),
    }
}

/// Sets one `--ulimit`.
fn set_limit(ulimit: &Ulimit) -> Result<(), Failure> {
    let resource = match ulimit.name.as_str() {
        "as" => Resource::As,
        "core" => Resource::Core,
        "cpu" => Resource::Cpu,
        "data" => Resource::Data,
        "fsize" => Resource::Fsize,
        "locks" => Resource::Locks,
        "memlock" => Resource::Memlock,
        "msgqueue" => Resource::Msgqueue,
        "nice" => Resource::Nice,
        "nofile" => Resource::Nofile,
        "nproc" => Resource::Nproc,
        "rss" => Resource::Rss,
        "rtprio" => Resource::Rtprio,
        "rttime" => Resource::Rttime,
        "sigpending" => Resource::Sigpending,
        "stack" => Resource::Stack,
        name => return Err(Failure::refusal(format!("there is no limit named `{name}`"))),
    };
    // Every negative number is no limit.
    let limit = |value: i64| u64::try_from(value).ok();
    let limits = Rlimit { current: limit(ulimit.soft), maximum: limit(ulimit.hard) };
    rustix::process::setrlimit(resource, limits)
        .or_fail(|| format!("cannot set the limit `{}`", ulimit.name))
}

/// Nothing to read, and the step's pipes to write to.
fn connect_streams(stdout: OwnedFd, stderr: OwnedFd) -> Result<(), Failure> {
    let null = rustix::fs::open(c"/dev/null", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .or_fail(|| "cannot open `/dev/null` as standard input")
        .map_err(|failure| {
            failure.with_hint("a mount over `/dev` hides the devices of a step: mount below it")
        })?;
    let connect = || -> rustix::io::Result<()> {
        rustix::stdio::dup2_stdin(null)?;
        rustix::stdio::dup2_stdout(stdout)?;
        rustix::stdio::dup2_stderr(stderr)
    };
    connect().or_fail(|| "cannot connect standard input and output")
}

/// Gives up everything that the command shall not have.
fn confine(
    process: &ProcessSpec,
    filter: &[libc::sock_filter],
    on_listener: OnListener<'_>,
) -> Result<(), Failure> {
    let (security, user) = (process.security, &process.user);
    let own = rustix::thread::capabilities(None).or_fail(|| "cannot read the capabilities")?;
    let bounding = capabilities::bounding(security, own.permitted);
    drop_from_bounding_set(bounding).or_fail(|| "cannot give up capabilities")?;
    if Ownership::of_this_process() == Ownership::Remembered {
        let watching = process.watch.is_some();
        let watching = watching.then(|| seccomp::filter(Profile::DockerAskingWatching));
        install_asking_filter(security, watching.as_deref().unwrap_or(filter), on_listener)?;
        // Whoever it believes to be, it is root to the kernel.
        let set = match security {
            SecurityMode::Sandbox => set_all(bounding, CapabilitySet::empty()),
            SecurityMode::Insecure => keep_all(bounding),
        };
        return set.or_fail(|| "cannot set the capabilities");
    }
    if process.watch.is_some() {
        let listener = ownership::install_filter(&seccomp::filter(Profile::Watching))
            .or_fail(|| "cannot watch which files a step looks for")?;
        on_listener(listener).or_fail(|| "cannot reach the step's supervisor")?;
    }
    if security == SecurityMode::Sandbox && !filter.is_empty() {
        syscalls::install_filter(filter).or_fail(|| "cannot install the filter of system calls")?;
    }
    if security == SecurityMode::Insecure {
        rustix::thread::set_keep_capabilities(true).or_fail(|| "cannot keep capabilities")?;
    }
    set_user(user)?;
    match security {
        // Root gets the bounding set by executing; another user is left with nothing.
        SecurityMode::Sandbox if user.uid != 0 => Ok(()),
        SecurityMode::Sandbox => set_all(bounding, CapabilitySet::empty()),
        SecurityMode::Insecure => keep_all(bounding),
    }
    .or_fail(|| "cannot set the capabilities")
}

/// Lets rbuild answer about owners and users from here on.
fn install_asking_filter(
    security: SecurityMode,
    filter: &[libc::sock_filter],
    on_listener: OnListener<'_>,
) -> Result<(), Failure> {
    ownership::mark_first()?;
    let listener = match security {
        SecurityMode::Sandbox => ownership::install_filter(filter),
        SecurityMode::Insecure => ownership::install_filter(&seccomp::filter(Profile::Asking)),
    };
    let listener =
        listener.or_fail(|| "cannot install the filter of system calls").map_err(|failure| {
            match failure.errno {
            Some(libc::EBUSY) => failure.with_hint(
                "this container's own filter asks somebody about system calls, and no second one \
                 can: run it with `--security-opt seccomp=unconfined`, or give this user ranges in \
                 /etc/subuid and /etc/subgid",
            ),
            _ => failure,
        }
        })?;
    on_listener(listener).or_fail(|| "cannot reach the step's supervisor")
}

fn drop_from_bounding_set(keep: CapabilitySet) -> rustix::io::Result<()> {
    for number in 0..64 {
        let capability = CapabilitySet::from_bits_retain(1 << number);
        match rustix::thread::capability_is_in_bounding_set(capability) {
            Ok(true) if !keep.contains(capability) => {
                rustix::thread::remove_capability_from_bounding_set(capability)?;
            }
            Ok(_) => {}
            // The kernel knows none from here on.
            Err(rustix::io::Errno::INVAL) => break,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn set_all(all: CapabilitySet, inheritable: CapabilitySet) -> rustix::io::Result<()> {
    let sets = CapabilitySets { effective: all, permitted: all, inheritable };
    rustix::thread::set_capabilities(None, sets)
}

/// Passes all capabilities on, whoever the user is, as BuildKit does for `security.insecure`.
fn keep_all(all: CapabilitySet) -> rustix::io::Result<()> {
    set_all(all, all)?;
    for number in 0..64 {
        let capability = CapabilitySet::from_bits_retain(1 << number);
        if all.contains(capability) {
            rustix::thread::configure_capability_in_ambient_set(capability, true)?;
        }
    }
    Ok(())
}

fn set_user(user: &Credentials) -> Result<(), Failure> {
    let groups: Vec<_> =
        user.groups.iter().map(|group| rustix::thread::Gid::from_raw(*group)).collect();
    match rustix::thread::set_thread_groups(&groups) {
        // A user without ranges may not give up groups; there is nobody else in the namespace.
        Err(rustix::io::Errno::PERM) if is_alone() => {}
        result => result.or_fail(|| "cannot set the supplementary groups")?,
    }
    rustix::thread::set_thread_gid(rustix::thread::Gid::from_raw(user.gid))
        .or_fail(|| format!("cannot become group {}", user.gid))
        .map_err(hint_at_ranges)?;
    rustix::thread::set_thread_uid(rustix::thread::Uid::from_raw(user.uid))
        .or_fail(|| format!("cannot become user {}", user.uid))
        .map_err(hint_at_ranges)
}

/// The kernel's answer for an id that the user namespace does not have is `EINVAL`.
fn hint_at_ranges(failure: Failure) -> Failure {
    if failure.errno == Some(libc::EINVAL) {
        return failure.with_hint(
            "rbuild has no such id: install `newuidmap` (package uidmap) and give this user ranges \
             in /etc/subuid and /etc/subgid, or run rbuild as root",
        );
    }
    failure
}

/// Whether groups may not be set in this user namespace.
fn is_alone() -> bool {
    fs_err::read_to_string("/proc/self/setgroups").is_ok_and(|answer| answer.trim() == "deny")
}

/// Executes the program, looked up in the `PATH` that it is given. Whoever wrote the Dockerfile is
/// told on the step's standard error when there is no such program.
fn execute(process: &ProcessSpec) -> Result<Infallible, Failure> {
    let strings = |strings: &[String], what: &str| {
        strings
            .iter()
            .map(|string| CString::new(string.as_str()))
            .collect::<Result<Vec<_>, _>>()
            .map_err(|_| Failure::refusal(format!("{what} holds a null byte")))
    };
    let arguments = strings(&process.args, "the command")?;
    let environment = strings(&process.env, "the environment")?;
    let Some(name) = process.args.first() else {
        return Err(Failure::refusal("the command is empty"));
    };
    let mut denied = None;
    for candidate in candidates(name, &process.env) {
        let program = CString::new(candidate)
            .map_err(|_| Failure::refusal("the search path holds a null byte"))?;
        let Err(error) = syscalls::execute(&program, &arguments, &environment);
        match error.raw_os_error() {
            Some(libc::ENOENT | libc::ENOTDIR) => {}
            Some(libc::EACCES) => denied = Some(error),
            Some(libc::E2BIG) => give_up(name, &too_long(&process.args, &process.env)),
            _ => give_up(name, &error.to_string()),
        }
    }
    match denied {
        Some(error) => give_up(name, &error.to_string()),
        None if name.contains('/') => {
            give_up(name, "it is not in the image, or its interpreter is not")
        }
        None => give_up(name, "executable file not found in $PATH"),
    }
}

fn candidates(name: &str, environment: &[String]) -> Vec<String> {
    if name.contains('/') {
        return vec![name.to_owned()];
    }
    let path = environment.iter().rev().find_map(|variable| variable.strip_prefix("PATH="));
    path.unwrap_or_default()
        .split(':')
        .filter(|folder| !folder.is_empty())
        .map(|folder| format!("{folder}/{name}"))
        .collect()
}

/// What is longer than the kernel takes.
fn too_long(arguments: &[String], environment: &[String]) -> String {
    let is_long = |string: &&String| string.len() >= MOST_OF_ONE;
    if let Some(variable) = environment.iter().find(is_long) {
        let (name, value) = variable.split_once('=').unwrap_or((variable, ""));
        let length = value.len();
        return format!("the variable `{name}` has {length} bytes, and the kernel takes 128 KiB");
    }
    if let Some(argument) = arguments.iter().find(is_long) {
        let length = argument.len();
        return format!("an argument has {length} bytes, and the kernel takes 128 KiB");
    }
    let length: usize = arguments.iter().chain(environment).map(|string| string.len() + 1).sum();
    format!("arguments and environment have {length} bytes, which is more than the kernel takes")
}

fn give_up(name: &str, why: &str) -> ! {
    let message = format!("cannot execute `{name}`: {why}\n");
    // Nobody else can be told when even this fails.
    let _ = rustix::io::write(rustix::stdio::stderr().as_fd(), message.as_bytes());
    std::process::exit(CANNOT_EXECUTE)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(name: &str, path: Option<&str>, expected: &[&str]) {
        let environment: Vec<_> = path.map(|path| format!("PATH={path}")).into_iter().collect();
        assert_eq!(candidates(name, &environment), expected);
    }

    #[test]
    fn programs_are_looked_up_in_the_path_they_are_given() {
        check("sh", Some("/usr/bin:/bin"), &["/usr/bin/sh", "/bin/sh"]);
        check("sh", Some(":/bin:"), &["/bin/sh"]);
        check("sh", None, &[]);
        check("./sh", Some("/bin"), &["./sh"]);
        check("/bin/sh", None, &["/bin/sh"]);
    }
}
