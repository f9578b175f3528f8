//! The process that steps are cloned from.
//!
//! rbuild is threaded, and a threaded process must not fork and go on; so it starts itself anew,
//! once, as this server: single-threaded, small, in a session of its own so that no key pressed at
//! the terminal reaches the steps. Cloning it takes a fraction of the time of starting a program.
//! It ends, and all steps with it, when rbuild does: its socket is closed then.
//!
//! The server executes itself a second time, from a read-only mount of the program's file: a step
//! that makes its own process execute `/proc/self/exe`, or keeps a descriptor of it, must not be
//! able to write to the file that the user will run as rbuild next (CVE-2019-5736).

use std::convert::Infallible;
use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{CWD, MemfdFlags, Mode, OFlags, SealFlags};
use rustix::mount::{MountAttrFlags, MountPropagationFlags};
use rustix::thread::UnshareFlags;

use super::cgroup::{Places, Wanted};
use super::message::{self, Failure, OrFail, Report, RequestDescriptors, Start};
use super::network::Network;
use super::ownership::Ownership;
use super::spare::Spare;
use super::supervisor::{Arrival, Lent, supervise};
use super::syscalls::{self, Cloned};
use super::{bounds, file_system};
use crate::graph::NetworkMode;
use crate::sandbox::resources::Resources;
use crate::sandbox::seccomp::{self, Profile};

/// The first argument that makes rbuild a sandbox server.
pub(super) const ARGUMENT: &str = "__sandbox";

/// The first argument of a sandbox server whose program cannot be written to.
const PROTECTED: &str = "__sandbox-protected";

/// Becomes a sandbox server when this process was started as one; otherwise returns at once.
///
/// To be called first in `main`, before there is a second thread.
pub fn serve_when_asked() {
    let Some(argument) = std::env::args_os().nth(1) else { return };
    if argument == ARGUMENT || argument == PROTECTED {
        // Mount points that are made in a step's tree are part of its layer: their modes must not
        // depend on the caller's mask.
        rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    }
    let served = if argument == ARGUMENT {
        let Err(failure) = prepare();
        serve(Some(&failure))
    } else if argument == PROTECTED {
        serve(None)
    } else {
        return;
    };
    std::process::exit(if served.is_ok() { 0 } else { 3 })
}

/// Makes a mount namespace into which the host's mounts come, and from which none go back, and
/// executes this program again.
fn prepare() -> Result<Infallible, Failure> {
    // Only the socket, as standard input, and standard error were meant for us.
    syscalls::close_all_from(3).or_fail(|| "cannot close what the caller left open")?;
    rustix::process::chdir(c"/").or_fail(|| "cannot enter `/`")?;
    rustix::process::setsid().or_fail(|| "cannot start a session")?;
    syscalls::unshare(UnshareFlags::NEWNS)
        .or_fail(|| "cannot make a mount namespace")
        .map_err(hint_at_privileges)?;
    let propagation = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
    rustix::mount::mount_change(c"/", propagation).or_fail(|| "cannot separate the mounts")?;
    let program = mounted_program()
        .or_else(|_| copied_program())
        .or_fail(|| "cannot protect rbuild's program file")?;
    let arguments = [c"rbuild".to_owned(), CString::new(PROTECTED).expect("it has no null byte")];
    syscalls::execute_file(program.as_fd(), &arguments).or_fail(|| "cannot execute rbuild again")
}

/// Mounts this program's file read-only.
fn mounted_program() -> io::Result<OwnedFd> {
    let path = fs_err::read_link("/proc/self/exe")?;
    let path = path.to_str().ok_or(io::ErrorKind::InvalidFilename)?;
    let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY | MountAttrFlags::MOUNT_ATTR_NODEV;
    let mount = file_system::clone(CWD, path, attributes)?;
    // The file may have been replaced since it was started.
    let (ours, mounted) = (rustix::fs::stat(c"/proc/self/exe")?, rustix::fs::fstat(&mount)?);
    let same = (ours.st_dev, ours.st_ino) == (mounted.st_dev, mounted.st_ino);
    if same { Ok(mount) } else { Err(io::ErrorKind::NotFound.into()) }
}

/// Copies this program's file into memory and seals it.
fn copied_program() -> io::Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let mut copy = File::from(rustix::fs::memfd_create(c"rbuild", flags)?);
    io::copy(&mut fs_err::File::open("/proc/self/exe")?, &mut copy)?;
    let seals = SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE;
    rustix::fs::fcntl_add_seals(&copy, seals)?;
    Ok(copy.into())
}

/// Starts a supervisor for every request that comes in, until the socket is closed; or answers
/// with what went wrong before.
fn serve(obstacle: Option<&Failure>) -> io::Result<()> {
    let socket = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3)?;
    // Who is cloned from this process would keep the socket open as its standard input: requests to a
    // server that was killed could still be sent then, and nobody would hear them.
    rustix::stdio::dup2_stdin(rustix::fs::open(c"/dev/null", OFlags::RDONLY, Mode::empty())?)?;
    syscalls::forget_children();
    let filter = seccomp::filter(match Ownership::of_this_process() {
        Ownership::Set => Profile::Docker,
        Ownership::Remembered => Profile::DockerAsking,
    });
    let killed_before = bounds::killed_for_memory();
    let mut network = None;
    let mut groups = Groups::default();
    let mut told = false;
    let mut is_first = true;
    let mut spare: Option<Spare> = None;
    while let Some((Start { world, order }, descriptors)) = message::receive::<Start>(&socket)? {
        let descriptors = RequestDescriptors::try_from(descriptors)?;
        if world.network == NetworkMode::Default
            && obstacle.is_none()
            && !network.as_ref().is_some_and(Network::is_alive)
        {
            spare = None;
            network = Some(Network::start());
        }
        if let Some(Network::Host(why)) = &network
            && world.network == NetworkMode::Default
            && !std::mem::replace(&mut told, true)
        {
            let line = format!("rbuild: {why}: steps use the network of this machine\n");
            // A step that cannot be told cannot tell either.
            let _ = rustix::io::write(&descriptors.stderr, line.as_bytes());
        }
        let lent = Lent { filter: &filter, network: network.as_ref(), killed_before, is_first };
        if !spare.take().is_some_and(|spare| spare.takes(&world, &order, &descriptors)) {
            let ready = match obstacle {
                Some(failure) => Err(failure.clone()),
                None => groups.places(world.groups.clone()),
            };
            let started = ready.and_then(|places| Ok((start_supervisor()?, places)));
            match started {
                Ok((Cloned::Child, places)) => {
                    drop(socket);
                    supervise(Arrival::Now(order, descriptors), &world, places, &lent);
                    std::process::exit(0)
                }
                Ok((Cloned::Parent(_), None)) => is_first = false,
                // A group is made for one step.
                Ok((Cloned::Parent(_), Some(_))) => {
                    is_first = false;
                    continue;
                }
                Err(failure) => {
                    // When nobody listens any more, nobody wants to know.
                    let report = Report::Failed(failure);
                    let _ = message::send(descriptors.control.as_fd(), &report, &[]);
                    continue;
                }
            }
        }
        // The step has all of this from here on; what it ends with must not hang on this process.
        drop(descriptors);
        let lent = Lent { is_first: false, ..lent };
        // Where there can be none, the next step starts its own, and says why it fails.
        let Ok((order, order_inside)) = message::socket_pair() else { continue };
        match start_supervisor() {
            Ok(Cloned::Child) => {
                drop((socket, order));
                supervise(Arrival::Later(order_inside), &world, None, &lent);
                std::process::exit(0)
            }
            Ok(Cloned::Parent(process)) => spare = Some(Spare::new(world, order, process)),
            Err(_) => {}
        }
    }
    // Supervisors hear of rbuild's end as this process does. It waits for them, since they would
    // die with it, and what they tidy up would stay.
    drop(spare);
    if let Some(network) = network {
        network.stop();
    }
    syscalls::wait_for_children();
    groups.leave();
    Ok(())
}

/// Clones this process into a pid namespace.
fn start_supervisor() -> Result<Cloned, Failure> {
    syscalls::clone_process(UnshareFlags::NEWPID)
        .or_fail(|| "cannot start a step")
        .map_err(hint_at_privileges)
}

/// Where control groups are made, found when a step first needs them.
#[derive(Default)]
struct Groups(Vec<Places>);

impl Groups {
    fn places(&mut self, mut wanted: Wanted) -> Result<Option<&Places>, Failure> {
        if wanted.resources.pids.is_none() && !bounds::has_own_limit() {
            let bounded = Resources { pids: Some(bounds::TASKS), ..wanted.resources.clone() };
            let bounded = Wanted { resources: bounded, ..wanted.clone() };
            // Nobody asked for this one: where it cannot be, the machine's own holds.
            if self.find(&bounded).is_ok() {
                wanted = bounded;
            }
        }
        if wanted.is_nothing() {
            return Ok(None);
        }
        self.find(&wanted)?;
        Ok(self.0.iter().find(|places| *places.wanted() == wanted))
    }

    fn find(&mut self, wanted: &Wanted) -> Result<(), Failure> {
        if !self.0.iter().any(|places| places.wanted() == wanted) {
            self.0.push(Places::find(wanted.clone())?);
        }
        Ok(())
    }

    fn leave(self) {
        self.0.into_iter().for_each(Places::leave);
    }
}

fn hint_at_privileges(failure: Failure) -> Failure {
    if failure.errno == Some(libc::EPERM) {
        return failure.with_hint(
            "run rbuild as root; in a container, it needs the capability SYS_ADMIN \
             (`--cap-add SYS_ADMIN --security-opt seccomp=unconfined`)",
        );
    }
    failure
}
