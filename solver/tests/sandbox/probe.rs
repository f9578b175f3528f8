//! What this program does inside of a step: tries what it should not be able to.
#![allow(unsafe_code, reason = "calls are made by number, as an attacker would")]

use std::io;

pub(crate) const CALLS: &str = "--probe-calls";
pub(crate) const CALLS_32: &str = "--probe-32-bit-calls";
pub(crate) const DESCRIPTORS: &str = "--probe-descriptors";
pub(crate) const SOCKET: &str = "--probe-socket";
pub(crate) const USER: &str = "--probe-user";
pub(crate) const HELPERS: &str = "--probe-helpers";
pub(crate) const TERMINAL: &str = "--probe-terminal";
pub(crate) const RACE: &str = "--probe-race";
pub(crate) const FOLDERS: &str = "--probe-folders";
pub(crate) const ABSTRACT: &str = "--probe-abstract-socket";
pub(crate) const OVERWRITE: &str = "--probe-overwriting-rbuild";

/// Becomes a probe when this process was started as one.
pub(crate) fn run_when_asked() {
    match std::env::args().nth(1).as_deref() {
        Some(CALLS) => calls(),
        Some(CALLS_32) => calls_32(),
        Some(DESCRIPTORS) => descriptors(),
        Some(OVERWRITE) => overwrite(),
        Some(SOCKET) => socket(),
        Some(HELPERS) => helpers(),
        Some(TERMINAL) => terminal(),
        Some(FOLDERS) => folders(),
        Some(ABSTRACT) => abstract_socket(&std::env::args().nth(2).unwrap()),
        Some(RACE) => race(&std::env::args().nth(2).unwrap()),
        Some(USER) => {
            let (real, effective) = (rustix::process::getuid(), rustix::process::geteuid());
            println!("{} becomes {}", real.as_raw(), effective.as_raw());
        }
        _ => return,
    }
    std::process::exit(0)
}

/// Calls that Docker's profile refuses, with arguments that do no harm if they are not.
const REFUSED: &[(&str, libc::c_long, [libc::c_long; 3])] = &[
    ("acct", libc::SYS_acct, [0, 0, 0]),
    ("add_key", libc::SYS_add_key, [0, 0, 0]),
    ("bpf", libc::SYS_bpf, [0, 0, 0]),
    ("clock_settime", libc::SYS_clock_settime, [0, 0, 0]),
    ("clone(NEWUSER)", libc::SYS_clone, [0x1000_0000 | libc::SIGCHLD as libc::c_long, 0, 0]),
    ("clone(NEWNS)", libc::SYS_clone, [0x2_0000 | libc::SIGCHLD as libc::c_long, 0, 0]),
    ("clone3", libc::SYS_clone3, [0, 0, 0]),
    ("delete_module", libc::SYS_delete_module, [0, 0, 0]),
    ("fanotify_init", libc::SYS_fanotify_init, [0, 0, 0]),
    ("finit_module", libc::SYS_finit_module, [-1, 0, 0]),
    ("fsconfig", libc::SYS_fsconfig, [-1, 0, 0]),
    ("fsmount", libc::SYS_fsmount, [-1, 0, 0]),
    ("fsopen", libc::SYS_fsopen, [0, 0, 0]),
    ("fspick", libc::SYS_fspick, [-1, 0, 0]),
    ("get_mempolicy", libc::SYS_get_mempolicy, [0, 0, 0]),
    ("init_module", libc::SYS_init_module, [0, 0, 0]),
    ("io_uring_enter", libc::SYS_io_uring_enter, [-1, 0, 0]),
    ("io_uring_register", libc::SYS_io_uring_register, [-1, 0, 0]),
    ("io_uring_setup", libc::SYS_io_uring_setup, [0, 0, 0]),
    ("kcmp", libc::SYS_kcmp, [0, 0, 0]),
    ("kexec_load", libc::SYS_kexec_load, [0, 0, 0]),
    ("keyctl", libc::SYS_keyctl, [0, 0, 0]),
    ("lookup_dcookie", libc::SYS_lookup_dcookie, [0, 0, 0]),
    ("mbind", libc::SYS_mbind, [0, 0, 0]),
    ("mount", libc::SYS_mount, [0, 0, 0]),
    ("mount_setattr", libc::SYS_mount_setattr, [-1, 0, 0]),
    ("move_mount", libc::SYS_move_mount, [-1, 0, -1]),
    ("move_pages", libc::SYS_move_pages, [0, 0, 0]),
    ("open_by_handle_at", libc::SYS_open_by_handle_at, [-1, 0, 0]),
    ("open_tree", libc::SYS_open_tree, [-1, 0, 0]),
    ("perf_event_open", libc::SYS_perf_event_open, [0, 0, 0]),
    ("personality", libc::SYS_personality, [0x4_0000, 0, 0]),
    ("pidfd_getfd", libc::SYS_pidfd_getfd, [-1, 0, 0]),
    ("pivot_root", libc::SYS_pivot_root, [0, 0, 0]),
    ("quotactl", libc::SYS_quotactl, [0, 0, 0]),
    ("reboot", libc::SYS_reboot, [0, 0, 0]),
    ("request_key", libc::SYS_request_key, [0, 0, 0]),
    ("set_mempolicy", libc::SYS_set_mempolicy, [0, 0, 0]),
    ("setdomainname", libc::SYS_setdomainname, [0, 0, 0]),
    ("sethostname", libc::SYS_sethostname, [0, 0, 0]),
    ("setns", libc::SYS_setns, [-1, 0, 0]),
    ("settimeofday", libc::SYS_settimeofday, [0, 0, 0]),
    ("socket(AF_ALG)", libc::SYS_socket, [38, 5, 0]),
    ("socket(AF_VSOCK)", libc::SYS_socket, [40, 1, 0]),
    ("socket(AF_ALG + 2^32)", libc::SYS_socket, [0x1_0000_0026, 5, 0]),
    ("swapoff", libc::SYS_swapoff, [0, 0, 0]),
    ("swapon", libc::SYS_swapon, [0, 0, 0]),
    ("syslog", libc::SYS_syslog, [10, 0, 0]),
    ("umount2", libc::SYS_umount2, [0, 0, 0]),
    ("unshare(NEWUSER)", libc::SYS_unshare, [0x1000_0000, 0, 0]),
    ("userfaultfd", libc::SYS_userfaultfd, [0, 0, 0]),
    ("vhangup", libc::SYS_vhangup, [0, 0, 0]),
    ("x32 getpid", 0x4000_0027, [0, 0, 0]),
    ("a call of the future", 0x3ff, [0, 0, 0]),
];

fn calls() {
    let mut refused = 0;
    for (name, number, [first, second, third]) in REFUSED {
        // SAFETY: pointers are null and descriptors closed: at worst the call does what it says.
        let result = unsafe { libc::syscall(*number, *first, *second, *third, 0, 0) };
        let error = io::Error::last_os_error().raw_os_error();
        if result == -1 && matches!(error, Some(libc::EPERM | libc::ENOSYS)) {
            refused += 1;
        } else {
            println!("{name} is not refused: {result} {error:?}");
        }
    }
    println!("{refused} of {} calls are refused", REFUSED.len());
}

/// The same for 32-bit programs: calls by the numbers of 32-bit x86, with their first argument.
#[cfg(target_arch = "x86_64")]
const REFUSED_32: &[(&str, i64, i64)] = &[
    ("acct", 51, 0),
    ("add_key", 286, 0),
    ("bpf", 357, 0),
    ("clock_settime", 264, 0),
    ("clock_settime64", 404, 0),
    ("clone(NEWUSER)", 120, 0x1000_0000),
    ("clone3", 435, 0),
    ("delete_module", 129, 0),
    ("fanotify_init", 338, 0),
    ("finit_module", 350, -1),
    ("fsopen", 430, 0),
    ("init_module", 128, 0),
    ("io_uring_setup", 425, 0),
    ("ioperm", 101, 0),
    ("iopl", 110, 3),
    ("kexec_load", 283, 0),
    ("keyctl", 288, 0),
    ("lookup_dcookie", 253, 0),
    ("mount", 21, 0),
    ("mount_setattr", 442, -1),
    ("move_mount", 429, -1),
    ("open_by_handle_at", 342, -1),
    ("open_tree", 428, -1),
    ("perf_event_open", 336, 0),
    ("pivot_root", 217, 0),
    ("quotactl", 131, 0),
    ("reboot", 88, 0),
    ("request_key", 287, 0),
    ("sethostname", 74, 0),
    ("setns", 346, -1),
    ("settimeofday", 79, 0),
    ("stime", 25, 0),
    ("swapon", 87, 0),
    ("umount", 22, 0),
    ("umount2", 52, 0),
    ("unshare(NEWUSER)", 310, 0x1000_0000),
    ("uselib", 86, 0),
    ("userfaultfd", 374, 0),
    ("vm86", 166, 0),
    ("a call of the future", 0x3ff, 0),
];

#[cfg(target_arch = "x86_64")]
fn calls_32() {
    let mut refused = 0;
    for (name, number, argument) in REFUSED_32 {
        let result: i64;
        // SAFETY: the kernel clobbers only what is declared; no memory is passed. `rbx` is
        // reserved by the compiler, so it is exchanged around the call.
        unsafe {
            std::arch::asm!(
                "xchg rbx, {argument}",
                "int 0x80",
                "xchg rbx, {argument}",
                argument = inout(reg) *argument => _,
                inout("rax") *number => result,
                in("rcx") 0, in("rdx") 0, in("rsi") 0, in("rdi") 0,
                out("r8") _, out("r9") _, out("r10") _, out("r11") _,
            );
        }
        if [libc::EPERM, libc::ENOSYS].iter().any(|error| result == i64::from(-error)) {
            refused += 1;
        } else {
            println!("32-bit {name} is not refused: {result}");
        }
    }
    println!("{refused} of {} 32-bit calls are refused", REFUSED_32.len());
}

#[cfg(not(target_arch = "x86_64"))]
fn calls_32() {
    println!("0 of 0 32-bit calls are refused");
}

/// Descriptors that are none, among them the number that means the working directory elsewhere.
fn descriptors() {
    let mut status = std::mem::MaybeUninit::<libc::stat>::uninit();
    for descriptor in [libc::AT_FDCWD, -1, 1000] {
        // SAFETY: the structure is written to at most.
        let results = unsafe {
            [libc::fchown(descriptor, 0, 0), libc::fstat(descriptor, status.as_mut_ptr())]
        };
        let error = io::Error::last_os_error().raw_os_error();
        println!("{descriptor}: {results:?} {}", error == Some(libc::EBADF));
    }
}

/// Looks whether the program that this process runs, which is rbuild's, could be written to once
/// nobody runs it.
fn overwrite() {
    let status = rustix::fs::statvfs("/proc/self/exe").unwrap();
    let read_only = status.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY);
    println!("{}", if read_only { "refused" } else { "rbuild can be written to" });
}

/// Says something to the agent's socket.
fn socket() {
    use std::io::{Read, Write};
    use std::os::unix::fs::MetadataExt;
    let metadata = fs_err::metadata("/run/agent").unwrap();
    let mut stream = std::os::unix::net::UnixStream::connect("/run/agent").unwrap();
    stream.write_all(b"ping").unwrap();
    let mut answer = [0; 4];
    stream.read_exact(&mut answer).unwrap();
    let answer = String::from_utf8_lossy(&answer);
    println!("{:o} {} {answer}", metadata.mode() & 0o777, metadata.uid());
}

/// Looks for other processes by all numbers that they could have, in every way there is, and for
/// descriptors that lead to one.
fn helpers() {
    let mut reached = 0;
    let mut buffer = [0_u8; 8];
    let local = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    let remote = libc::iovec { iov_base: helpers as *mut libc::c_void, iov_len: buffer.len() };
    let reach = |pid| {
        // SAFETY: the only memory that is written to is `buffer`.
        unsafe {
            [
                i64::from(libc::kill(pid, 0)),
                libc::syscall(libc::SYS_pidfd_open, pid, 0),
                libc::ptrace(libc::PTRACE_SEIZE, pid, 0, 0),
                libc::process_vm_readv(pid, &raw const local, 1, &raw const remote, 1, 0) as i64,
            ]
        }
    };
    // SAFETY: there is one thread, and the child does nothing but wait.
    let child = unsafe { libc::fork() };
    if child == 0 {
        loop {
            // SAFETY: waits.
            unsafe { libc::pause() };
        }
    }
    // What reaches nobody shows nothing: one of its own it reaches in each way.
    let own = reach(child);
    for pid in (2..65_539).filter(|pid| *pid != child) {
        let results = reach(pid);
        if results.iter().any(|result| *result >= 0) {
            println!("process {pid}: {results:?}");
            reached += 1;
        }
    }
    // SAFETY: takes numbers; the descriptor is this function's own.
    unsafe {
        libc::kill(child, libc::SIGKILL);
        libc::close(i32::try_from(own[1]).unwrap());
    }
    reached += usize::from(rustix::process::getppid().is_some());
    let descriptors = fs_err::read_dir("/proc/self/fd").unwrap().filter_map(|entry| {
        let to = fs_err::read_link(entry.unwrap().path()).ok()?.to_string_lossy().into_owned();
        let leads = ["seccomp", "pidfd", "socket", "memfd", "mnt", "/proc"];
        // The one that lists the folder is among them.
        (to != format!("/proc/{}/fd", std::process::id())
            && leads.iter().any(|kind| to.contains(kind)))
        .then_some(to)
    });
    let descriptors: Vec<_> = descriptors.inspect(|to| println!("{to}")).collect();
    let ways = own.iter().filter(|result| **result >= 0).count();
    println!(
        "its own child in {ways} / 4 ways, reached {reached} / 65536 processes and {} descriptors",
        descriptors.len()
    );
}

/// Types into the caller's terminal (CVE-2016-2568), by every descriptor that could be one.
fn terminal() {
    let opened = ["/dev/tty", "/dev/console", "/dev/tty0", "/proc/1/fd/0"].map(|path| {
        // SAFETY: the path ends with a null byte.
        unsafe { libc::open(std::ffi::CString::new(path).unwrap().as_ptr(), libc::O_RDWR) }
    });
    let mut typed = false;
    for descriptor in [0, 1, 2].into_iter().chain(opened) {
        // SAFETY: both requests read a byte or two of what is pointed to.
        let results = unsafe {
            [
                libc::ioctl(descriptor, libc::TIOCSTI, c"x".as_ptr()),
                libc::ioctl(descriptor, libc::TIOCLINUX, c"\x02\x03".as_ptr()),
            ]
        };
        if results != [-1, -1] {
            println!("typed into {descriptor}: {results:?}");
            typed = true;
        }
    }
    if !typed {
        println!("typed nothing");
    }
}

/// Has files made by a name that another thread rewrites, and through a folder that another thread
/// exchanges with a link.
fn race(marker: &str) {
    use std::sync::atomic::{AtomicBool, Ordering};
    static STOP: AtomicBool = AtomicBool::new(false);
    rustix::fs::chmod("/tmp", rustix::fs::Mode::from_raw_mode(0o777)).unwrap();
    // Somebody for whom rbuild makes files, where users are pretended.
    // SAFETY: takes a number.
    unsafe { libc::setuid(1000) };
    let targets =
        ["/tmp/", "/proc/self/cwd/", "/proc/1/root/", "../../../../", "/dev/fd/3/", "/tmp/f/"];
    let names = targets.map(|folder| {
        let mut name = format!("{folder}{marker}").into_bytes();
        name.resize(64, 0);
        <[u8; 64]>::try_from(name).unwrap()
    });
    let memory = Box::leak(Box::new(names[0])).as_mut_ptr() as usize;
    let _ = fs_err::create_dir("/tmp/f");
    let _ = fs_err::os::unix::fs::symlink("/proc/self/cwd", "/tmp/l");
    let rewriting = std::thread::spawn(move || {
        for name in names.iter().cycle() {
            if STOP.load(Ordering::Relaxed) {
                return;
            }
            // SAFETY: both are 64 bytes; that the kernel reads meanwhile is what is tried.
            unsafe { std::ptr::copy_nonoverlapping(name.as_ptr(), memory as *mut u8, 64) };
        }
    });
    let exchanging = std::thread::spawn(|| {
        use rustix::fs::{CWD, RenameFlags, renameat_with};
        while !STOP.load(Ordering::Relaxed) {
            let _ = renameat_with(CWD, "/tmp/f", CWD, "/tmp/l", RenameFlags::EXCHANGE);
        }
    });
    let path = memory as *const libc::c_char;
    let mut made = 0;
    let start = std::time::Instant::now();
    let at_least = std::time::Duration::from_millis(500);
    // On a busy machine it may take longer until one name is whole.
    let at_most = std::time::Duration::from_secs(20);
    while start.elapsed() < if made == 0 { at_most } else { at_least } {
        // SAFETY: the memory is never freed, and ends with a null byte at any moment.
        let results = unsafe {
            let file = libc::open(path, libc::O_CREAT | libc::O_RDWR, 0o600);
            libc::fchown(file, 1000, 1000);
            libc::close(file);
            libc::chown(path, 1000, 1000);
            libc::unlink(path);
            let folder = libc::mkdir(path, 0o700);
            libc::rmdir(path);
            let link = libc::symlink(path, path);
            libc::unlink(path);
            [file, folder, link]
        };
        made += results.iter().filter(|result| **result >= 0).count();
    }
    STOP.store(true, Ordering::Relaxed);
    rewriting.join().unwrap();
    exchanging.join().unwrap();
    println!("{made} files made by names that change");
}

/// Makes folders in folders that another thread makes at the same time, as npm does.
fn folders() {
    use std::os::unix::fs::MetadataExt;
    rustix::fs::chmod("/tmp", rustix::fs::Mode::from_raw_mode(0o777)).unwrap();
    // SAFETY: takes a number.
    unsafe { libc::setuid(1000) };
    let (mut wrong, count) = (0, 300);
    for number in 0..count {
        let outer = format!("/tmp/outer-{number}");
        let (folder, file) = (format!("{outer}/folder"), format!("{outer}/file"));
        std::thread::scope(|scope| {
            scope.spawn(|| while fs_err::create_dir(&folder).is_err() {});
            scope.spawn(|| while fs_err::write(&file, "").is_err() {});
            fs_err::create_dir(&outer).unwrap();
        });
        let owners = [&outer, &folder, &file].map(|path| fs_err::metadata(path).unwrap().uid());
        wrong += owners.iter().filter(|owner| **owner != 1000).count();
    }
    println!("wrong owners {wrong} / {}", count * 3);
}

/// Connects to a socket that has no path: such names belong to a network, not to a tree.
fn abstract_socket(name: &str) {
    use std::os::linux::net::SocketAddrExt as _;
    use std::os::unix::net::{SocketAddr, UnixStream};
    let address = SocketAddr::from_abstract_name(name).unwrap();
    match UnixStream::connect_addr(&address) {
        Ok(_) => println!("connected"),
        Err(error) => println!("{:?}", error.kind()),
    }
}
