//! One process per step that starts it, watches over it and tidies up after it.
//!
//! It is the first process of a pid namespace of its own, around the step's: when it dies, however
//! it dies, the kernel kills everything inside.

use std::convert::Infallible;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags};
use rustix::process::{Signal, WaitId, WaitIdOptions};
use rustix::thread::UnshareFlags;
use serde::{Deserialize, Serialize};

use super::cgroup::{Group, Places};
use super::message::{
    self, Failure, OrFail, Report, Request, RequestDescriptors, read_from_memory, socket_pair,
};
use super::mount_point::{self, Stub};
use super::network::Network;
use super::ownership::{self, Keeper, Ownership};
use super::syscalls::{self, Cloned};
use super::watch::Watcher;
use super::{bounds, process, procfs, tree};
use crate::graph::NetworkMode;
use crate::sandbox::ExitStatus;

/// What the process inside tells before it becomes the command.
#[derive(Debug, Serialize, Deserialize)]
enum Word {
    /// A mount point was made, in the folder whose descriptor goes with it.
    Stub(Stub),
    /// The socket that goes with this listens in place of that of the mount at this position.
    Socket(usize),
    /// Questions about owners, or news of paths, come in at what goes with this.
    Questions,
    /// It cannot become the command.
    Failed(Failure),
}

/// Who hears what the step's filter asks.
enum Listens {
    Keeper(Keeper),
    Watcher(Watcher),
}

/// What the server has made for all steps.
pub(super) struct Lent<'a> {
    /// The filter of system calls.
    pub(super) filter: &'a [libc::sock_filter],
    /// The shared network, once there is one.
    pub(super) network: Option<&'a Network>,
    /// Where this step's control group is made, if it needs one.
    pub(super) groups: Option<&'a Places>,
    /// How many processes the kernel had killed for want of memory when the build began.
    pub(super) killed_before: u64,
    /// It is the first step of the build, which tells what is amiss with all of them.
    pub(super) is_first: bool,
}

/// Runs one step to its end and reports on it.
pub(super) fn supervise(descriptors: RequestDescriptors, lent: &Lent<'_>) {
    let RequestDescriptors { request, stdout, stderr, control } = descriptors;
    let report = run(request, stdout, stderr, control.as_fd(), lent).unwrap_or_else(Report::Failed);
    // When nobody listens any more, nobody wants to know.
    let _ = message::send(control.as_fd(), &report, &[]);
}

fn run(
    request: OwnedFd,
    stdout: OwnedFd,
    stderr: OwnedFd,
    control: BorrowedFd<'_>,
    lent: &Lent<'_>,
) -> Result<Report, Failure> {
    // The server's end takes this process with it, and so the step.
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
        .or_fail(|| "cannot tie the step to rbuild")?;
    syscalls::reset_signals();
    bounds::limit_tasks().or_fail(|| "cannot limit the number of processes")?;
    let mut request: Request =
        read_from_memory(request).or_fail(|| "cannot read the step's data")?;
    if let Some(Network::Own(network)) = lent.network
        && request.process.network == NetworkMode::Default
    {
        // The step's process comes after, and `/sys` shows the network of who mounts it.
        network.enter().or_fail(|| "cannot enter the network")?;
        request.process.resolv_conf = network.resolv_conf(&request.process.resolv_conf);
    }
    if lent.is_first
        && let Some(why) = procfs::obstacle()
    {
        // A step that cannot be told cannot tell either.
        let _ = rustix::io::write(&stderr, format!("rbuild: {why}\n").as_bytes());
    }
    let listens = match (Ownership::of_this_process(), &request.process.watch) {
        (Ownership::Remembered, _) => {
            Some(Listens::Keeper(Keeper::prepare(&request.process.user)?))
        }
        (Ownership::Set, Some(file)) => Some(Listens::Watcher(Watcher::prepare(file)?)),
        (Ownership::Set, None) => None,
    };
    let (word, word_inside) = socket_pair().or_fail(|| "cannot make a socket")?;
    let namespaces = namespaces(request.process.network);
    let group = lent.groups.map(Group::enter).transpose()?;
    let cloned = syscalls::clone_process(namespaces);
    if let (Some(group), Ok(Cloned::Parent(_)) | Err(_)) = (&group, &cloned) {
        group.come_out();
    }
    match cloned {
        Err(error) => {
            group.into_iter().for_each(Group::remove);
            Err(error).or_fail(|| "cannot make namespaces for a step")
        }
        Ok(Cloned::Child) => {
            let Err(failure) = inside(&request, lent.filter, stdout, stderr, word_inside.as_fd());
            let _ = message::send(word_inside.as_fd(), &Word::Failed(failure), &[]);
            std::process::exit(125);
        }
        Ok(Cloned::Parent(step)) => {
            drop((request, stdout, stderr, word_inside));
            // A group of the step's own tells; otherwise somebody on this machine was killed, and
            // if the command says that one of its children was, it was that.
            let killed = |by_signal| match &group {
                Some(group) if group.limits_memory() => group.killed_for_memory() > 0,
                Some(_) | None => by_signal && bounds::killed_for_memory() > lent.killed_before,
            };
            let report = watch(&step, word, control, listens.as_ref(), killed);
            if let Some(group) = group {
                group.remove();
            }
            report
        }
    }
}

fn namespaces(network: NetworkMode) -> UnshareFlags {
    let always = UnshareFlags::NEWNS
        | UnshareFlags::NEWPID
        | UnshareFlags::NEWIPC
        | UnshareFlags::NEWUTS
        | UnshareFlags::NEWCGROUP;
    match network {
        NetworkMode::None => always | UnshareFlags::NEWNET,
        NetworkMode::Default | NetworkMode::Host => always,
    }
}

/// The step's first process, until it is the command.
fn inside(
    request: &Request,
    filter: &[libc::sock_filter],
    stdout: OwnedFd,
    stderr: OwnedFd,
    word: BorrowedFd<'_>,
) -> Result<Infallible, Failure> {
    let mut on_stub =
        |stub, folder: OwnedFd| message::send(word, &Word::Stub(stub), &[folder.as_fd()]);
    let mut on_socket =
        |index, listener: OwnedFd| message::send(word, &Word::Socket(index), &[listener.as_fd()]);
    let lowest = tree::Lowest { stubs: request.stubs.as_deref(), empty: request.empty.as_deref() };
    tree::enter(&request.process, lowest, &mut on_stub, &mut on_socket)?;
    let mut on_listener =
        |listener: OwnedFd| message::send(word, &Word::Questions, &[listener.as_fd()]);
    process::become_command(&request.process, filter, stdout, stderr, &mut on_listener)
}

/// Waits for the step to end, or for the caller to lose interest, which ends it.
fn watch(
    step: &OwnedFd,
    word: OwnedFd,
    control: BorrowedFd<'_>,
    listens: Option<&Listens>,
    killed_for_memory: impl FnOnce(bool) -> bool,
) -> Result<Report, Failure> {
    let mut stubs = Vec::new();
    let mut keeping = None;
    let mut failure = None;
    let mut word = Some(word);
    let mut killed = false;
    loop {
        let mut polled = vec![PollFd::new(step, PollFlags::IN)];
        if !killed {
            polled.push(PollFd::from_borrowed_fd(control, PollFlags::IN));
        }
        if let Some(word) = &word {
            polled.push(PollFd::new(word, PollFlags::IN));
        }
        rustix::io::retry_on_intr(|| rustix::event::poll(&mut polled, None))
            .or_fail(|| "cannot wait for a step")?;
        let mut ready = polled.iter().map(|polled| !polled.revents().is_empty());
        let ended = ready.next() == Some(true);
        let hung_up = !killed && ready.next() == Some(true);
        let spoke = ready.next() == Some(true);
        drop(polled);
        if let Some(socket) = word.as_ref().filter(|_| spoke) {
            match message::receive(socket) {
                Ok(Some((Word::Stub(stub), folders))) => {
                    stubs.extend(folders.into_iter().next().map(|folder| (stub, folder)));
                }
                Ok(Some((Word::Socket(index), sockets))) => {
                    let sockets: Vec<_> = sockets.iter().map(AsFd::as_fd).collect();
                    message::send(control, &Report::Socket(index), &sockets)
                        .or_fail(|| "cannot reach rbuild")?;
                }
                Ok(Some((Word::Questions, listeners))) => {
                    if let (Some(listens), Some(listener)) = (listens, listeners.into_iter().next())
                    {
                        let started = match listens {
                            Listens::Keeper(keeper) => keeper.start(listener),
                            Listens::Watcher(watcher) => watcher.start(listener),
                        };
                        keeping = Some(started.or_fail(|| "cannot start a process")?);
                    }
                }
                Ok(Some((Word::Failed(told), _))) => failure = Some(told),
                // The command has taken over, or the process is gone.
                Ok(None) | Err(_) => word = None,
            }
            // All that it said is heard before its end is looked at.
            continue;
        }
        if hung_up {
            // It cannot be gone before it is waited for.
            let _ = rustix::process::pidfd_send_signal(step, Signal::KILL);
            killed = true;
        }
        if ended {
            break;
        }
    }
    let status = rustix::io::retry_on_intr(|| {
        rustix::process::waitid(WaitId::PidFd(step.as_fd()), WaitIdOptions::EXITED)
    })
    .or_fail(|| "cannot wait for a step")?;
    if let Some(keeper) = &keeping {
        ownership::end(keeper)?;
    }
    for (stub, folder) in stubs.iter().rev() {
        mount_point::remove(stub, folder.as_fd())
            .or_fail(|| format!("cannot remove the mount point `{}`", stub.name()))?;
    }
    match (failure, status) {
        (Some(failure), _) => Ok(Report::Failed(failure)),
        (None, Some(status)) => Ok(Report::Ended(exit_status(status, killed_for_memory))),
        (None, None) => Err(Failure::refusal("the step vanished")),
    }
}

/// What a failed command failed of. `killed_for_memory` is told whether the command was killed, or
/// says that one of its children was.
fn exit_status(
    status: rustix::process::WaitIdStatus,
    killed_for_memory: impl FnOnce(bool) -> bool,
) -> ExitStatus {
    let by_signal = status.terminating_signal() == Some(Signal::KILL.as_raw())
        || status.exit_status() == Some(128 + Signal::KILL.as_raw());
    if status.exit_status() != Some(0) && killed_for_memory(by_signal) {
        return ExitStatus::OutOfMemory;
    }
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => ExitStatus::Code(code),
        (None, Some(signal)) => ExitStatus::Signal(signal),
        (None, None) => ExitStatus::Signal(Signal::KILL.as_raw()),
    }
}
