//! What the program, its sandbox server and a step's supervisor tell one another.
//!
//! Messages are JSON in packets of a unix socket, with descriptors beside them. A request can be
//! larger than a packet: it travels in a file in memory.

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use rustix::fs::MemfdFlags;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::cgroup::Wanted;
use crate::graph::{NetworkMode, SecurityMode};
use crate::sandbox::{ExitStatus, ProcessSpec, SandboxError};

/// What the server is told for each step, with [`RequestDescriptors`].
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Start {
    /// What is made for it before it is looked at.
    pub(super) world: World,
    /// The rest that its supervisor has to know.
    pub(super) order: Order,
}

/// What a step's namespaces and system files depend on. Steps with equal ones can have what was
/// made for another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct World {
    /// Which network it needs.
    pub(super) network: NetworkMode,
    /// Whether parts of the system are hidden.
    pub(super) security: SecurityMode,
    /// The control groups it needs.
    pub(super) groups: Wanted,
}

/// What a supervisor is told of a step, with [`RequestDescriptors`].
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Order {
    /// Where the paths are written that the step asks for.
    pub(super) watch: Option<PathBuf>,
}

/// What the step's first process reads.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Request {
    /// The command.
    pub(super) process: ProcessSpec,
    /// The lowest layer, with the mount points that the image may lack.
    pub(super) stubs: Option<PathBuf>,
    /// An empty layer, the lowest of trees that are mounted: overlayfs wants two.
    pub(super) empty: Option<PathBuf>,
}

/// The descriptors that go with [`Start`] and [`Order`].
pub(super) struct RequestDescriptors {
    /// Where the [`Request`] can be read.
    pub(super) request: OwnedFd,
    /// The command's standard output.
    pub(super) stdout: OwnedFd,
    /// Its standard error.
    pub(super) stderr: OwnedFd,
    /// Takes the [`Report`]; closing the other end ends the step.
    pub(super) control: OwnedFd,
}

impl TryFrom<Vec<OwnedFd>> for RequestDescriptors {
    type Error = io::Error;

    fn try_from(descriptors: Vec<OwnedFd>) -> Result<Self, io::Error> {
        let [request, stdout, stderr, control] = <[OwnedFd; 4]>::try_from(descriptors)
            .map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
        Ok(Self { request, stdout, stderr, control })
    }
}

impl RequestDescriptors {
    /// All of them, as they are sent.
    pub(super) fn borrowed(&self) -> [BorrowedFd<'_>; 4] {
        [&self.request, &self.stdout, &self.stderr, &self.control].map(AsFd::as_fd)
    }
}

/// What the program hears of a step. The last two are told once, when nothing of it runs any more.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Report {
    /// The socket that goes with this listens in place of that of the mount at this position.
    Socket(usize),
    /// The command ran to its end.
    Ended(ExitStatus),
    /// The command was never started.
    Failed(Failure),
}

/// Why a command could not be started.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Failure {
    /// What could not be done.
    pub(super) message: String,
    /// What helps.
    pub(super) hint: Option<String>,
    /// The kernel's answer.
    pub(super) errno: Option<i32>,
}

impl Failure {
    /// Says that `what` could not be done because of `error`.
    pub(super) fn new(what: impl Into<String>, error: impl Into<io::Error>) -> Self {
        Self { errno: errno(&error.into()), ..Self::refusal(what) }
    }

    /// Says what is wrong where no system call failed.
    pub(super) fn refusal(message: impl Into<String>) -> Self {
        let mut message = message.into();
        message.truncate(message.floor_char_boundary(LONGEST_TEXT));
        Self { message, hint: None, errno: None }
    }

    /// Adds what helps.
    pub(super) fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

/// The kernel's answer. Errors of `fs_err` keep only what kind of answer it was.
fn errno(error: &io::Error) -> Option<i32> {
    error.raw_os_error().or(match error.kind() {
        io::ErrorKind::PermissionDenied => Some(libc::EACCES),
        io::ErrorKind::ReadOnlyFilesystem => Some(libc::EROFS),
        io::ErrorKind::ResourceBusy => Some(libc::EBUSY),
        io::ErrorKind::NotFound => Some(libc::ENOENT),
        io::ErrorKind::AlreadyExists => Some(libc::EEXIST),
        io::ErrorKind::InvalidInput => Some(libc::EINVAL),
        io::ErrorKind::StorageFull => Some(libc::ENOSPC),
        _ => None,
    })
}

impl From<Failure> for SandboxError {
    fn from(failure: Failure) -> Self {
        Self {
            message: failure.message,
            hint: failure.hint,
            source: failure.errno.map(io::Error::from_raw_os_error),
        }
    }
}

/// Makes the name of a failed action out of an error: `open(x).or_fail(|| "cannot open x")`.
pub(super) trait OrFail<T> {
    /// Says that `what` could not be done.
    fn or_fail<S: Into<String>>(self, what: impl FnOnce() -> S) -> Result<T, Failure>;
}

impl<T, E: Into<io::Error>> OrFail<T> for Result<T, E> {
    fn or_fail<S: Into<String>>(self, what: impl FnOnce() -> S) -> Result<T, Failure> {
        self.map_err(|error| Failure::new(what(), error))
    }
}

/// The most bytes of a message. What is longer goes into memory; what could be is cut.
const LARGEST: usize = 16 * 1024;
/// The most bytes that a failure says, so that it fits a message however JSON writes it.
const LONGEST_TEXT: usize = 2 * 1024;

/// Makes two connected sockets that keep the borders of messages.
pub(super) fn socket_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let flags = SocketFlags::CLOEXEC;
    Ok(rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?)
}

/// Puts `value` into a file in memory.
pub(super) fn write_to_memory(value: &impl Serialize) -> io::Result<OwnedFd> {
    let mut file = File::from(rustix::fs::memfd_create(c"rbuild-step", MemfdFlags::CLOEXEC)?);
    file.write_all(&serde_json::to_vec(value)?)?;
    Ok(file.into())
}

/// Reads what [`write_to_memory`] wrote. Others can read it at the same time.
pub(super) fn read_from_memory<T: DeserializeOwned>(file: impl AsFd) -> io::Result<T> {
    let file = File::from(file.as_fd().try_clone_to_owned()?);
    let length = usize::try_from(file.metadata()?.len()).map_err(io::Error::other)?;
    let mut bytes = vec![0; length];
    file.read_exact_at(&mut bytes, 0)?;
    Ok(serde_json::from_slice(&bytes)?)
}

/// Sends `message` with `descriptors`, at most four.
pub(super) fn send(
    socket: BorrowedFd<'_>,
    message: &impl Serialize,
    descriptors: &[BorrowedFd<'_>],
) -> io::Result<()> {
    let bytes = serde_json::to_vec(message)?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let parts = [IoSlice::new(&bytes)];
    rustix::io::retry_on_intr(|| {
        rustix::net::sendmsg(socket, &parts, &mut control, SendFlags::NOSIGNAL)
    })?;
    Ok(())
}

/// Receives a message; `None` when the other end is closed.
pub(super) fn receive<T: DeserializeOwned>(
    socket: impl AsFd,
) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
    let mut bytes = [0; LARGEST];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = rustix::io::retry_on_intr(|| {
        let mut parts = [IoSliceMut::new(&mut bytes)];
        rustix::net::recvmsg(&socket, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC)
    })?;
    if received.bytes == 0 {
        return Ok(None);
    }
    let descriptors = control
        .drain()
        .filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
            _ => None,
        })
        .flatten()
        .collect();
    Ok(Some((serde_json::from_slice(&bytes[..received.bytes])?, descriptors)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_of_the_kernel_are_kept_whoever_tells_them() {
        let check = |error: io::Error, expected| {
            assert_eq!(Failure::new("x", error).errno, expected);
        };
        check(io::Error::from_raw_os_error(libc::EPERM), Some(libc::EPERM));
        check(fs_err::read("/nosuch").unwrap_err(), Some(libc::ENOENT));
        check(fs_err::create_dir("/").unwrap_err(), Some(libc::EEXIST));
        check(io::Error::other("x"), None);
    }
}
