//! The network of steps that ask for none in particular: one namespace a build, which `pasta` or
//! `slirp4netns` connects to the world.
//!
//! It is made when the first such step runs, and shared by all of them: it takes tens of
//! milliseconds. What listens on the host's loopback cannot be reached from it. Where neither
//! program is installed, or it cannot start (without a route to anywhere, say), steps use the
//! host's network, and the first one of them says so.
//!
//! A keeper process holds the namespace. It is the first process of a pid namespace that the
//! program runs in, so that the kernel ends the program when rbuild, or the keeper, ends.

use std::convert::Infallible;
use std::ffi::CString;
use std::fs::File;
use std::io::{self, Read, Seek};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{MemfdFlags, Mode, OFlags};
use rustix::pipe::PipeFlags;
use rustix::process::{Signal, WaitId, WaitIdOptions};
use rustix::thread::{CapabilitySet, CapabilitySets, UnshareFlags};

use super::syscalls::{self, Cloned};

/// Where the programs forward what is sent to them for a name server of the host's loopback.
const PASTA_NAME_SERVER: &str = "169.254.1.53";
const SLIRP_NAME_SERVER: &str = "10.0.2.3";
/// How long a program may take to be ready.
const PATIENCE: Timespec = Timespec { tv_sec: 10, tv_nsec: 0 };
/// Where programs are looked for: the server has no `PATH`.
const FOLDERS: [&str; 6] =
    ["/usr/local/bin", "/usr/local/sbin", "/usr/bin", "/usr/sbin", "/bin", "/sbin"];

/// The shared network, or the reason why there is none.
pub(super) enum Network {
    /// A namespace that reaches the world.
    Own(Own),
    /// Steps use the host's; why.
    Host(String),
}

/// A namespace of our own.
pub(super) struct Own {
    namespace: OwnedFd,
    keeper: OwnedFd,
    name_server: &'static str,
}

impl Network {
    /// Makes the network with what is installed.
    pub(super) fn start() -> Self {
        let mut reasons = Vec::new();
        for program in [Program::Pasta, Program::Slirp4netns] {
            let Some(path) = program.path() else { continue };
            match Own::start(program, &path) {
                Ok(own) => return Self::Own(own),
                Err(error) => reasons.push(format!("{} failed: {error}", program.name())),
            }
        }
        if reasons.is_empty() {
            reasons.push("neither pasta nor slirp4netns is installed".to_owned());
        }
        Self::Host(reasons.join("; "))
    }

    /// Ends it.
    pub(super) fn stop(self) {
        if let Self::Own(own) = self {
            // It may be gone already.
            let _ = rustix::process::pidfd_send_signal(&own.keeper, Signal::KILL);
        }
    }

    /// Whether it still works.
    pub(super) fn is_alive(&self) -> bool {
        match self {
            Self::Host(_) => true,
            Self::Own(own) => {
                let mut polled = [PollFd::new(&own.keeper, PollFlags::IN)];
                let now = Timespec { tv_sec: 0, tv_nsec: 0 };
                rustix::event::poll(&mut polled, Some(&now)) == Ok(0)
            }
        }
    }
}

impl Own {
    /// Moves the calling process into it.
    pub(super) fn enter(&self) -> io::Result<()> {
        let kind = rustix::thread::LinkNameSpaceType::Network;
        Ok(rustix::thread::move_into_link_name_space(self.namespace.as_fd(), Some(kind))?)
    }

    /// Returns `resolv_conf` with name servers on the host's loopback replaced by one that can be
    /// reached from here.
    pub(super) fn resolv_conf(&self, resolv_conf: &[u8]) -> Vec<u8> {
        reachable(resolv_conf, self.name_server)
    }

    fn start(program: Program, path: &str) -> io::Result<Self> {
        let (ready, ready_inside) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
        let (opened, opened_inside) = super::message::socket_pair()?;
        let messages = rustix::fs::memfd_create(c"messages", MemfdFlags::CLOEXEC)?;
        let keeper = match syscalls::clone_process(UnshareFlags::NEWPID)? {
            Cloned::Child => {
                drop((ready, opened));
                // Whatever goes wrong in here is in the messages, or is seen as an early end.
                let _ = keep(program, path, &ready_inside, &opened_inside, &messages);
                std::process::exit(1)
            }
            Cloned::Parent(keeper) => keeper,
        };
        drop((ready_inside, opened_inside));
        let received = super::message::receive::<()>(&opened)?;
        let namespace = received.and_then(|((), descriptors)| descriptors.into_iter().next());
        let mut polled = [PollFd::new(&ready, PollFlags::IN)];
        rustix::io::retry_on_intr(|| rustix::event::poll(&mut polled, Some(&PATIENCE)))?;
        // It is closed without a word when the program dies.
        let mut word = [0; 32];
        let is_ready =
            polled[0].revents().contains(PollFlags::IN) && rustix::io::read(&ready, &mut word)? > 0;
        match namespace {
            Some(namespace) if is_ready => {
                Ok(Self { namespace, keeper, name_server: program.name_server() })
            }
            _ => {
                // It may be gone already.
                let _ = rustix::process::pidfd_send_signal(&keeper, Signal::KILL);
                Err(io::Error::other(last_message(messages)))
            }
        }
    }
}

/// The keeper: starts `program` outside of a new network namespace and for it, and stays until it
/// ends.
fn keep(
    program: Program,
    path: &str,
    ready: &OwnedFd,
    opened: &OwnedFd,
    messages: &OwnedFd,
) -> io::Result<Infallible> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    syscalls::reset_signals();
    let (go, go_inside) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
    // `/proc` is that of the host, which knows this process by another number.
    let own = fs_err::read_link("/proc/self")?.to_string_lossy().into_owned();
    let arguments = program.arguments(&own, ready.as_raw_fd());
    let connector = match syscalls::clone_process(UnshareFlags::empty())? {
        Cloned::Child => {
            drop(go_inside);
            rustix::io::read(&go, &mut [0; 1])?;
            let arguments: Vec<_> = [path.to_owned()]
                .into_iter()
                .chain(arguments)
                .map(|argument| CString::new(argument).expect("no argument has a null byte"))
                .collect();
            // Descriptors that are inherited by number.
            rustix::io::fcntl_setfd(ready, rustix::io::FdFlags::empty())?;
            rustix::stdio::dup2_stdout(messages)?;
            rustix::stdio::dup2_stderr(messages)?;
            let program = arguments[0].clone();
            let Err(error) = syscalls::execute(&program, &arguments, &[]);
            return Err(error);
        }
        Cloned::Parent(connector) => connector,
    };
    drop(go);
    syscalls::unshare(UnshareFlags::NEWNET)?;
    syscalls::bring_loopback_up()?;
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let namespace = rustix::fs::open(c"/proc/self/ns/net", flags, Mode::empty())?;
    super::message::send(opened.as_fd(), &(), &[namespace.as_fd()])?;
    // The program gives its own capabilities up and must then still be allowed to look into
    // `/proc` for this process: so it must not have more than the program.
    let none = CapabilitySet::empty();
    let sets = CapabilitySets { effective: none, permitted: none, inheritable: none };
    rustix::thread::set_capabilities(None, sets)?;
    drop(go_inside);
    rustix::io::retry_on_intr(|| {
        rustix::process::waitid(WaitId::PidFd(connector.as_fd()), WaitIdOptions::EXITED)
    })?;
    Err(io::ErrorKind::BrokenPipe.into())
}

/// A program that connects a network namespace.
#[derive(Clone, Copy)]
enum Program {
    Pasta,
    Slirp4netns,
}

impl Program {
    fn name(self) -> &'static str {
        match self {
            Self::Pasta => "pasta",
            Self::Slirp4netns => "slirp4netns",
        }
    }

    fn path(self) -> Option<String> {
        let paths = FOLDERS.map(|folder| format!("{folder}/{}", self.name()));
        let can_run =
            |path: &String| rustix::fs::access(&**path, rustix::fs::Access::EXEC_OK).is_ok();
        paths.into_iter().find(can_run)
    }

    fn name_server(self) -> &'static str {
        match self {
            Self::Pasta => PASTA_NAME_SERVER,
            Self::Slirp4netns => SLIRP_NAME_SERVER,
        }
    }

    /// Returns what connects the namespace of process `keeper`, and writes to its descriptor
    /// `ready` when that is done. Nothing is forwarded into the namespace, and the host's loopback
    /// stays out of reach.
    fn arguments(self, keeper: &str, ready: i32) -> Vec<String> {
        let namespace = format!("/proc/{keeper}/ns/net");
        let words: Vec<&str> = match self {
            Self::Pasta => vec![
                "--foreground",
                "--config-net",
                "--no-map-gw",
                "--runas",
                "0",
                "--tcp-ports",
                "none",
                "--udp-ports",
                "none",
                "--tcp-ns",
                "none",
                "--udp-ns",
                "none",
                "--dns-forward",
                PASTA_NAME_SERVER,
                "--no-netns-quit",
                "--netns",
                &namespace,
            ],
            Self::Slirp4netns => {
                vec!["--configure", "--mtu=65520", "--disable-host-loopback", "--netns-type=path"]
            }
        };
        let mut arguments: Vec<String> = words.into_iter().map(ToOwned::to_owned).collect();
        match self {
            // It writes its process id when it is ready.
            Self::Pasta => {
                arguments.extend(["--pid".to_owned(), format!("/proc/{keeper}/fd/{ready}")]);
            }
            Self::Slirp4netns => {
                arguments.extend([
                    format!("--ready-fd={ready}"),
                    namespace.clone(),
                    "eth0".to_owned(),
                ]);
            }
        }
        arguments
    }
}

/// Returns the last line that a program wrote.
fn last_message(messages: OwnedFd) -> String {
    let mut file = File::from(messages);
    let mut text = String::new();
    // What cannot be read cannot be told.
    let _ = file.rewind().and_then(|()| file.read_to_string(&mut text));
    let last = text
        .lines()
        .map(str::trim)
        .rfind(|line| !line.is_empty() && !line.starts_with("Failed to send"));
    last.unwrap_or("it ended at once").to_owned()
}

/// The host's `resolv.conf` with the connecting program as the only name server.
///
/// One on the host's loopback is out of reach inside; and pasta sends on what it forwards from an
/// address of its own, also the answers of a server that was asked directly, so that these would
/// never be taken for answers.
fn reachable(resolv_conf: &[u8], name_server: &str) -> Vec<u8> {
    let text = String::from_utf8_lossy(resolv_conf);
    let mut lines: Vec<String> = Vec::new();
    for line in text.lines() {
        let is_server = line.split_whitespace().next() == Some("nameserver");
        let line = if is_server { format!("nameserver {name_server}") } else { line.to_owned() };
        if !is_server || !lines.contains(&line) {
            lines.push(line);
        }
    }
    lines.iter().flat_map(|line| [line.as_bytes(), b"\n"].concat()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(resolv_conf: &str, expected: &str) {
        let result = reachable(resolv_conf.as_bytes(), "192.0.2.53");
        assert_eq!(String::from_utf8(result).unwrap(), expected);
    }

    #[test]
    fn name_servers_are_replaced() {
        check("nameserver 10.0.0.1\nsearch a b\n", "nameserver 192.0.2.53\nsearch a b\n");
        check("nameserver 127.0.0.53\noptions edns0\n", "nameserver 192.0.2.53\noptions edns0\n");
        check("nameserver ::1\nnameserver 127.0.0.1\n", "nameserver 192.0.2.53\n");
        check("# nameserver 127.0.0.1\n", "# nameserver 127.0.0.1\n");
        check("", "");
    }
}
