//! One process per step that starts it, watches over it and tidies up after it.
//!
//! It is the first process of a pid namespace of its own, around the step's: when it dies, however
//! it dies, the kernel kills everything inside.

use std::convert::Infallible;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags};
use rustix::mount::MountAttrFlags;
use rustix::process::{Signal, WaitId, WaitIdOptions};
use rustix::thread::UnshareFlags;
use serde::{Deserialize, Serialize};

use super::cgroup::{Group, Places};
use super::message::{
    self, Failure, OrFail, Order, Report, Request, RequestDescriptors, World, read_from_memory,
    socket_pair,
};
use super::mount_point::{self, Stub};
use super::network::{self, Network};
use super::ownership::{self, Keeper, Ownership};
use super::syscalls::{self, Cloned};
use super::system_files::SystemFiles;
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

impl Listens {
    /// Gets what is needed to hear, before there is anything to be heard. `proc` is this process's, if
    /// it was made ahead.
    fn prepare(
        order: &Order,
        request: &OwnedFd,
        proc: Option<OwnedFd>,
    ) -> Result<Option<Self>, Failure> {
        let proc = || proc.map_or_else(fresh_proc, Ok);
        match (Ownership::of_this_process(), &order.watch) {
            (Ownership::Remembered, watch) => {
                let request: Request =
                    read_from_memory(request).or_fail(|| "cannot read the step's data")?;
                let user = &request.process.user;
                let keeper = Keeper::prepare(proc()?, user, watch.as_deref())?;
                Ok(Some(Self::Keeper(keeper)))
            }
            (Ownership::Set, Some(file)) => {
                Ok(Some(Self::Watcher(Watcher::prepare(proc()?, file)?)))
            }
            (Ownership::Set, None) => Ok(None),
        }
    }
}

/// A `/proc` by which who asks is found.
fn fresh_proc() -> Result<OwnedFd, Failure> {
    procfs::fresh(MountAttrFlags::empty())
}

/// What the server has made for all steps.
#[derive(Clone, Copy)]
pub(super) struct Lent<'a> {
    /// The filter of system calls.
    pub(super) filter: &'a [libc::sock_filter],
    /// The shared network, once there is one.
    pub(super) network: Option<&'a Network>,
    /// How many processes the kernel had killed for want of memory when the build began.
    pub(super) killed_before: u64,
    /// It is the first step of the build, which tells what is amiss with all of them.
    pub(super) is_first: bool,
}

impl<'a> Lent<'a> {
    /// The shared network, if that is what `mode` means.
    fn network_of(&self, mode: NetworkMode) -> Option<&'a network::Own> {
        match (mode, self.network) {
            (NetworkMode::Default, Some(Network::Own(network))) => Some(network),
            _ => None,
        }
    }
}

/// How a supervisor gets to its step.
pub(super) enum Arrival {
    /// It is here.
    Now(Order, RequestDescriptors),
    /// It comes in at this socket, unless the build ends before.
    Later(OwnedFd),
}

/// Runs one step in `world` to its end and reports on it. The world is made before the step is
/// there. `places` are where its control group is made, if it needs one.
pub(super) fn supervise(arrival: Arrival, world: &World, places: Option<&Places>, lent: &Lent<'_>) {
    let begun = Begun::in_world(world, places, lent);
    let (order, descriptors) = match arrival {
        Arrival::Now(order, descriptors) => (order, descriptors),
        Arrival::Later(socket) => match message::receive::<Order>(&socket) {
            Ok(Some((order, descriptors))) => match descriptors.try_into() {
                Ok(descriptors) => (order, descriptors),
                Err(_) => return,
            },
            // Nobody needs it. What was begun ends with this process.
            Ok(None) | Err(_) => return,
        },
    };
    let report = begun.and_then(|begun| begun.run(&order, &descriptors, lent));
    let report = report.unwrap_or_else(Report::Failed);
    // When nobody listens any more, nobody wants to know.
    let _ = message::send(descriptors.control.as_fd(), &report, &[]);
}

/// A step's first process, which waits for the step in its world.
struct Begun {
    step: OwnedFd,
    channel: OwnedFd,
    group: Option<Group>,
    /// For who answers about owners, where somebody does.
    proc: Option<OwnedFd>,
}

impl Begun {
    fn in_world(world: &World, places: Option<&Places>, lent: &Lent<'_>) -> Result<Self, Failure> {
        // The server's end takes this process with it, and so the step.
        rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
            .or_fail(|| "cannot tie the step to rbuild")?;
        syscalls::reset_signals();
        bounds::limit_tasks().or_fail(|| "cannot limit the number of processes")?;
        if let Some(network) = lent.network_of(world.network) {
            // The step's process comes after, and `/sys` shows the network of who mounts it.
            network.enter().or_fail(|| "cannot enter the network")?;
        }
        let (channel, channel_inside) = socket_pair().or_fail(|| "cannot make a socket")?;
        let asks = Ownership::of_this_process() == Ownership::Remembered;
        let proc = asks.then(fresh_proc).transpose()?;
        let group = places.map(Group::enter).transpose()?;
        let cloned = syscalls::clone_process(namespaces(world.network));
        if let (Some(group), Ok(Cloned::Parent(_)) | Err(_)) = (&group, &cloned) {
            group.come_out();
        }
        match cloned {
            Err(error) => {
                group.into_iter().for_each(Group::remove);
                Err(error).or_fail(|| "cannot make namespaces for a step")
            }
            Ok(Cloned::Child) => {
                drop(proc);
                let Err(failure) = inside(world, lent, channel_inside.as_fd());
                let _ = message::send(channel_inside.as_fd(), &Word::Failed(failure), &[]);
                std::process::exit(125);
            }
            Ok(Cloned::Parent(step)) => Ok(Self { step, channel, group, proc }),
        }
    }

    /// Lets the step run that `descriptors` tell of.
    fn run(
        self,
        order: &Order,
        descriptors: &RequestDescriptors,
        lent: &Lent<'_>,
    ) -> Result<Report, Failure> {
        let Self { step, channel, group, proc } = self;
        let RequestDescriptors { request, stdout, stderr, control } = descriptors;
        if lent.is_first
            && let Some(why) = procfs::obstacle()
        {
            // A step that cannot be told cannot tell either.
            let _ = rustix::io::write(stderr, format!("rbuild: {why}\n").as_bytes());
        }
        let listens = match Listens::prepare(order, request, proc) {
            Ok(listens) => listens,
            Err(failure) => {
                // The group cannot be removed before the process in it is gone.
                let _ = rustix::process::pidfd_send_signal(&step, Signal::KILL);
                let _ = rustix::process::waitid(WaitId::PidFd(step.as_fd()), WaitIdOptions::EXITED);
                group.into_iter().for_each(Group::remove);
                return Err(failure);
            }
        };
        // Should its first process be gone, it has said why.
        let given = [request, stdout, stderr].map(AsFd::as_fd);
        let _ = message::send(channel.as_fd(), &(), &given);
        // A group of the step's own tells; otherwise somebody on this machine was killed, and
        // if the command says that one of its children was, it was that.
        let killed = |by_signal| match &group {
            Some(group) if group.limits_memory() => group.killed_for_memory() > 0,
            Some(_) | None => by_signal && bounds::killed_for_memory() > lent.killed_before,
        };
        let report = watch(&step, channel, control.as_fd(), listens.as_ref(), killed);
        if let Some(group) = group {
            group.remove();
        }
        report
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
fn inside(world: &World, lent: &Lent<'_>, channel: BorrowedFd<'_>) -> Result<Infallible, Failure> {
    let system = SystemFiles::mount(world.security)?;
    let given = message::receive::<()>(channel).or_fail(|| "cannot hear of the step")?;
    let Some(Ok([request, stdout, stderr])) =
        given.map(|((), descriptors)| <[OwnedFd; 3]>::try_from(descriptors))
    else {
        return Err(Failure::refusal("there is no step"));
    };
    let mut request: Request =
        read_from_memory(request).or_fail(|| "cannot read the step's data")?;
    let process = &mut request.process;
    if let Some(network) = lent.network_of(process.network) {
        process.resolv_conf = network.resolv_conf(&process.resolv_conf);
    }
    let mut on_stub =
        |stub, folder: OwnedFd| message::send(channel, &Word::Stub(stub), &[folder.as_fd()]);
    let mut on_socket = |index, listener: OwnedFd| {
        message::send(channel, &Word::Socket(index), &[listener.as_fd()])
    };
    let lowest = tree::Lowest { stubs: request.stubs.as_deref(), empty: request.empty.as_deref() };
    tree::enter(&request.process, &system, lowest, &mut on_stub, &mut on_socket)?;
    drop(system);
    let mut on_listener =
        |listener: OwnedFd| message::send(channel, &Word::Questions, &[listener.as_fd()]);
    process::become_command(&request.process, lent.filter, stdout, stderr, &mut on_listener)
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
