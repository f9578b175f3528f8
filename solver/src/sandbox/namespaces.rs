//! The sandbox that builds run in: namespaces, overlayfs and `pivot_root`, without a daemon and
//! without a runtime.
//!
//! Three kinds of processes take part, all of them this program:
//!
//! ```text
//! rbuild ──socket──▶ server ──clone──▶ supervisor ──clone──▶ the command, pid 1 of its own world
//!    │  (one a build,             (one a step; its death    (mounts, confines itself,
//!    │   single-threaded)          kills all inside)         executes)
//!    ◀────────── output: pipes; end: the supervisor's report ──────────┘
//! ```
//!
//! [`Namespaces`] is the side of it that is in rbuild. `unsafe` is confined to
//! [`syscalls`](self), a file below.

mod bounds;
mod cgroup;
mod devices;
mod file_system;
mod forward;
mod memory_files;
mod message;
mod mount_point;
mod network;
mod open_files;
mod overlay_probe;
mod ownership;
mod process;
mod procfs;
mod server;
mod spare;
mod stubs;
mod supervisor;
#[allow(unsafe_code, reason = "the system calls that rustix has no safe form of")]
mod syscalls;
mod system_files;
mod tree;
mod user;
mod watch;

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::net::Shutdown;
use rustix::pipe::PipeFlags;
use tokio::io::{AsyncReadExt, Interest};
use tokio::net::UnixDatagram;
use tokio::net::unix::pipe;

pub use self::open_files::raise_open_files;
pub use self::overlay_probe::overlay_obstacle;
pub use self::server::serve_when_asked;
pub use self::user::{Identity, become_root};
pub(crate) use self::watch::OPENED;

use self::cgroup::Wanted;
use self::forward::Forwards;
use self::message::{OrFail, Order, Report, Request, Start, World};
use self::stubs::Stubs;
use super::{ExitStatus, OutputSink, ProcessSpec, Sandbox, SandboxError};

/// How long a step may take to die when it is given up.
const PATIENCE: Duration = Duration::from_secs(10);

/// The most that is read of a step's output at once.
const OUTPUT_CHUNK: usize = 64 * 1024;

/// Runs commands in namespaces of their own.
///
/// The program must call [`serve_when_asked`] first in `main`.
#[derive(Debug)]
pub struct Namespaces {
    stubs: Stubs,
    server: Mutex<Option<Server>>,
}

impl Namespaces {
    /// Makes the sandbox; nothing is started before the first command.
    ///
    /// `stubs` is a folder for mount points that images lack, on the file system that holds the
    /// layers; it is made when missing, and several processes can share it.
    pub fn new(stubs: PathBuf) -> Self {
        Self { stubs: Stubs::new(stubs), server: Mutex::new(None) }
    }

    /// Sends a request to the server, which is started when this is the first.
    fn request(&self, start: &Start, descriptors: &[OwnedFd; 4]) -> Result<(), SandboxError> {
        let mut server = self.server.lock().unwrap_or_else(PoisonError::into_inner);
        let descriptors = descriptors.each_ref().map(AsFd::as_fd);
        if let Some(server) = &*server
            && message::send(server.socket.as_fd(), start, &descriptors).is_ok()
        {
            return Ok(());
        }
        // There is none yet, or somebody has killed it.
        let server = server.insert(Server::start().or_fail(|| "cannot start the sandbox")?);
        message::send(server.socket.as_fd(), start, &descriptors)
            .or_fail(|| "cannot reach the sandbox")?;
        Ok(())
    }
}

#[async_trait]
impl Sandbox for Namespaces {
    async fn run(
        &self,
        process: ProcessSpec,
        output: OutputSink,
    ) -> Result<ExitStatus, SandboxError> {
        let stubs = Some(self.stubs.folder_for(&process)?);
        let empty = Some(self.stubs.empty()?);
        let mut forwards = Forwards::to_sockets_of(&process.mounts);
        let groups = Wanted {
            parent: process.cgroup_parent.clone().filter(|parent| !parent.is_empty()),
            resources: process.resources.clone(),
        };
        let world = World { network: process.network, security: process.security, groups };
        let start = Start { world, order: Order { watch: process.watch.clone() } };
        let request = message::write_to_memory(&Request { process, stubs, empty })
            .or_fail(|| "cannot write the step's data")?;
        let pipe = || rustix::pipe::pipe_with(PipeFlags::CLOEXEC).or_fail(|| "cannot make a pipe");
        let (stdout, stdout_inside) = pipe()?;
        let (stderr, stderr_inside) = pipe()?;
        let (control, control_inside) =
            message::socket_pair().or_fail(|| "cannot make a socket")?;
        let mut running = Running::new(control).or_fail(|| "cannot wait for a step")?;
        self.request(&start, &[request, stdout_inside, stderr_inside, control_inside])?;
        let mut stdout = Stream::new(1, stdout).or_fail(|| "cannot read from a pipe")?;
        let mut stderr = Stream::new(2, stderr).or_fail(|| "cannot read from a pipe")?;
        let report = loop {
            tokio::select! {
                // What a step wrote is told before its end is.
                biased;
                read = stdout.read(), if stdout.open => stdout.pass_on(read, &output),
                read = stderr.read(), if stderr.open => stderr.pass_on(read, &output),
                report = running.report() => match report {
                    Ok(Some((Report::Socket(index), listeners))) => {
                        forwards.start(index, listeners).or_fail(|| "cannot forward a socket")?;
                    }
                    report => break report,
                },
            }
        };
        // Nothing that was in the sandbox holds the pipes any more. Were they handed out over the
        // network, the end would never come: so it is not waited for.
        stdout.drain(&output);
        stderr.drain(&output);
        match report.or_fail(|| "cannot hear from the sandbox")? {
            Some((Report::Ended(status), _)) => Ok(status),
            Some((Report::Failed(failure), _)) => Err(failure.into()),
            Some((Report::Socket(_), _)) | None => Err(SandboxError {
                message: "the sandbox ended unexpectedly".to_owned(),
                hint: Some("was it killed, or did the machine run out of memory?".to_owned()),
                source: None,
            }),
        }
    }
}

/// The process that steps are cloned from.
#[derive(Debug)]
struct Server {
    socket: OwnedFd,
    process: Child,
}

impl Server {
    fn start() -> io::Result<Self> {
        let (socket, inside) = message::socket_pair()?;
        let process = Command::new("/proc/self/exe")
            .arg(server::ARGUMENT)
            .env_clear()
            .stdin(Stdio::from(inside))
            .stdout(Stdio::null())
            .stderr(Stdio::inherit())
            .spawn()?;
        // Dropped, it is waited for: from here on errors leave no process.
        let server = Self { socket, process };
        open_files::restore(&server.process)?;
        Ok(server)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It ends when it sees the end of its socket; there is nothing to do about an error here.
        let _ = rustix::net::shutdown(&self.socket, Shutdown::Both);
        let _ = self.process.wait();
    }
}

/// A step that runs. Dropped before its end, it kills the step and waits until it is gone, so that
/// whoever owns the step's folders can remove them.
struct Running {
    /// A connected socket that keeps the borders of messages, like those of this type.
    control: UnixDatagram,
    ended: bool,
}

impl Running {
    fn new(control: OwnedFd) -> io::Result<Self> {
        let control = std::os::unix::net::UnixDatagram::from(control);
        control.set_nonblocking(true)?;
        let control = UnixDatagram::from_std(control)?;
        Ok(Self { control, ended: false })
    }

    /// Waits for news, and remembers when they are the last.
    async fn report(&mut self) -> io::Result<Option<(Report, Vec<OwnedFd>)>> {
        let control = &self.control;
        let received =
            control.async_io(Interest::READABLE, || message::receive::<Report>(control)).await?;
        self.ended = !matches!(received, Some((Report::Socket(_), _)));
        Ok(received)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.ended {
            return;
        }
        // Errors mean that the other end is gone, and the step with it.
        let _ = rustix::net::shutdown(&self.control, Shutdown::Write);
        let patience = Timespec { tv_sec: PATIENCE.as_secs().cast_signed(), tv_nsec: 0 };
        let mut polled = [PollFd::new(&self.control, PollFlags::IN)];
        let _ = rustix::event::poll(&mut polled, Some(&patience));
    }
}

/// One of a step's two streams of output.
struct Stream {
    number: u8,
    pipe: pipe::Receiver,
    buffer: BytesMut,
    open: bool,
}

impl Stream {
    fn new(number: u8, pipe: OwnedFd) -> io::Result<Self> {
        let pipe = pipe::Receiver::from_owned_fd(pipe)?;
        Ok(Self { number, pipe, buffer: BytesMut::new(), open: true })
    }

    async fn read(&mut self) -> io::Result<usize> {
        self.buffer.reserve(OUTPUT_CHUNK);
        self.pipe.read_buf(&mut self.buffer).await
    }

    fn pass_on(&mut self, read: io::Result<usize>, output: &OutputSink) {
        if !self.buffer.is_empty() {
            output(self.number, self.buffer.split().freeze());
        }
        self.open = read.is_ok_and(|count| count > 0);
    }

    /// Passes on what is in the pipe and no more: a pipe holds little.
    fn drain(&mut self, output: &OutputSink) {
        // The kernel is asked, not the runtime: that hears of a pipe from another thread, and maybe
        // not before it heard of the step's end.
        let mut bytes = [0; 8 * 1024];
        while self.open {
            match rustix::io::retry_on_intr(|| rustix::io::read(&self.pipe, &mut bytes)) {
                Ok(0) | Err(_) => self.open = false,
                Ok(count) => output(self.number, Bytes::copy_from_slice(&bytes[..count])),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[tokio::test]
    async fn nothing_is_lost_that_was_written_just_before_the_end() {
        let (reader, writer) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).unwrap();
        let mut stream = Stream::new(1, reader).unwrap();
        rustix::io::write(&writer, &vec![b'x'; 20_000]).unwrap();
        let written = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&written);
        let output: OutputSink =
            Box::new(move |_, bytes| sink.lock().unwrap().extend_from_slice(&bytes));
        // The runtime had no moment to look at the pipe.
        stream.drain(&output);
        assert_eq!(written.lock().unwrap().len(), 20_000);
    }
}
