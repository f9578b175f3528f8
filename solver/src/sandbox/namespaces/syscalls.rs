//! The system calls that rustix has no safe form of; all `unsafe` of rbuild is in here.
//!
//! Callers are single-threaded: the server that is started anew for the sandbox and what it
//! clones.

use std::convert::Infallible;
use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;

use rustix::mount::MountAttrFlags;
use rustix::thread::UnshareFlags;

/// Where [`clone_process`] returned.
pub(super) enum Cloned {
    /// In the caller; the descriptor is the new process.
    Parent(OwnedFd),
    /// In the new process.
    Child,
}

/// Clones the calling process into new namespaces (`CLONE_NEW*` of `namespaces`), like `fork`.
///
/// `clone` and not `clone3`: Docker's filter answers the latter with `ENOSYS`, and rbuild should
/// run inside of containers.
pub(super) fn clone_process(namespaces: UnshareFlags) -> io::Result<Cloned> {
    let mut pidfd: RawFd = -1;
    let flags = u64::from(namespaces.bits())
        | u64::try_from(libc::CLONE_PIDFD | libc::SIGCHLD).expect("both are positive");
    // SAFETY: no stack is given and no memory is shared, so the child goes on with a copy of
    // this process; the process is single-threaded, so no lock is held by a thread that the copy
    // lacks. `pidfd` outlives the call. The first three arguments are the same everywhere.
    let pid = unsafe { libc::syscall(libc::SYS_clone, flags, 0, &raw mut pidfd, 0, 0) };
    match pid {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(Cloned::Child),
        _ => {
            // SAFETY: the kernel has just made it for us alone.
            Ok(Cloned::Parent(unsafe { OwnedFd::from_raw_fd(pidfd) }))
        }
    }
}

/// Leaves the caller's namespaces for new ones.
pub(super) fn unshare(namespaces: UnshareFlags) -> rustix::io::Result<()> {
    // SAFETY: unsafe for the sake of `UnshareFlags::FILES` in threaded processes only; this one
    // has a single thread.
    unsafe { rustix::thread::unshare_unsafe(namespaces) }
}

/// Becomes another program. Returns only when that failed.
pub(super) fn execute(
    program: &CStr,
    arguments: &[CString],
    environment: &[CString],
) -> Result<Infallible, io::Error> {
    let (arguments, environment) = (pointers(arguments), pointers(environment));
    // SAFETY: all three point to null-terminated strings, the lists end with a null pointer, and
    // all of it outlives the call.
    unsafe { libc::execve(program.as_ptr(), arguments.as_ptr(), environment.as_ptr()) };
    Err(io::Error::last_os_error())
}

/// Becomes the program that `file` is, without an environment. Returns only when that failed.
pub(super) fn execute_file(
    file: BorrowedFd<'_>,
    arguments: &[CString],
) -> Result<Infallible, io::Error> {
    let arguments = pointers(arguments);
    let environment = [ptr::null::<libc::c_char>()];
    // SAFETY: the path is null-terminated, the lists end with a null pointer, and all of it
    // outlives the call.
    unsafe {
        libc::syscall(
            libc::SYS_execveat,
            file.as_raw_fd(),
            c"".as_ptr(),
            arguments.as_ptr(),
            environment.as_ptr(),
            libc::AT_EMPTY_PATH,
        )
    };
    Err(io::Error::last_os_error())
}

/// Returns pointers to `strings`, and a null pointer at the end.
fn pointers(strings: &[CString]) -> Vec<*const libc::c_char> {
    strings.iter().map(|string| string.as_ptr()).chain([ptr::null()]).collect()
}

/// Filters all further system calls of this process through `program`, without setting
/// `no_new_privs`: `sudo` works in a step. Needs `CAP_SYS_ADMIN`.
pub(super) fn install_filter(program: &[libc::sock_filter]) -> io::Result<()> {
    let program = libc::sock_fprog {
        len: u16::try_from(program.len())
            .map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?,
        filter: program.as_ptr().cast_mut(),
    };
    // SAFETY: `program` describes memory that outlives the call; the kernel copies and checks it.
    let result = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW,
            &raw const program,
        )
    };
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Starts a session keyring that holds nothing of the caller's keys.
pub(super) fn join_new_keyring() -> io::Result<()> {
    // SAFETY: a null name asks for an anonymous keyring; no memory is passed.
    let result = unsafe {
        libc::syscall(libc::SYS_keyctl, libc::KEYCTL_JOIN_SESSION_KEYRING, ptr::null::<u8>())
    };
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Gives every signal its default action and blocks none.
pub(super) fn reset_signals() {
    // SAFETY: both are plain data for which zeroes are valid; the calls only read them. Errors
    // concern signals that cannot be changed, which have their default action anyway.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = libc::SIG_DFL;
        for signal in 1..=64 {
            libc::sigaction(signal, &raw const action, ptr::null_mut());
        }
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, ptr::null_mut());
    }
}

/// Lets the kernel forget children that end, instead of keeping them to be waited for.
pub(super) fn forget_children() {
    // SAFETY: sets a disposition, runs no handler.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_IGN) };
}

/// Waits until every child has ended, having called [`forget_children`].
pub(super) fn wait_for_children() {
    // SAFETY: no memory is passed. Where children are forgotten it returns when none is left.
    while unsafe { libc::waitpid(-1, ptr::null_mut(), 0) } > 0 {}
}

/// Closes all descriptors from `first` on, but for those named, which are sorted.
pub(super) fn close_all_from(first: u32) -> io::Result<()> {
    // SAFETY: nothing in this process owns a descriptor from `first` on.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, 0) };
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Sets attributes of a mount, and of those below it when `recursive`.
pub(super) fn set_mount_attributes(
    mount: BorrowedFd<'_>,
    attributes: MountAttrFlags,
    recursive: bool,
) -> io::Result<()> {
    let attributes = libc::mount_attr {
        attr_set: u64::from(attributes.bits()),
        attr_clr: 0,
        propagation: 0,
        userns_fd: 0,
    };
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the path is null-terminated, and `attributes` is of the size that is given.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attributes,
            size_of_val(&attributes),
        )
    };
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Brings the loopback interface of this network namespace up.
pub(super) fn bring_loopback_up() -> io::Result<()> {
    // SAFETY: plain data for which zeroes are valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        // A `char` of C has a sign on some processors only.
        *to = libc::c_char::from_ne_bytes([*from]);
    }
    request.ifr_ifru.ifru_flags =
        libc::c_short::try_from(libc::IFF_UP | libc::IFF_RUNNING).expect("both are small");
    let socket = rustix::net::socket_with(
        rustix::net::AddressFamily::INET,
        rustix::net::SocketType::DGRAM,
        rustix::net::SocketFlags::CLOEXEC,
        None,
    )?;
    // SAFETY: the request's name and flags are set, which is what this call reads.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) };
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
