//! A step's world that is made while another step runs.
//!
//! Making namespaces, `/proc`, `/sys` and `/dev` takes longer than all the rest of starting a step,
//! and depends on little of it. Steps mostly follow one another, and leave a core idle meanwhile.

use std::os::fd::{AsFd, OwnedFd};

use rustix::process::Signal;

use super::message::{self, Order, RequestDescriptors, World};

/// A supervisor that waits for a step. Dropped, it is killed, and what it has made ends with it.
#[derive(Debug)]
pub(super) struct Spare {
    world: World,
    /// Where it hears of its step.
    socket: OwnedFd,
    /// What is to be killed: nothing any more when it has a step.
    process: Option<OwnedFd>,
}

impl Spare {
    /// The supervisor that `process` is, which hears what is sent to `socket`.
    pub(super) fn new(world: World, socket: OwnedFd, process: OwnedFd) -> Self {
        Self { world, socket, process: Some(process) }
    }

    /// Hands it a step, and tells whether it took it: not one of another world, nor when it is gone.
    pub(super) fn takes(
        mut self,
        world: &World,
        order: &Order,
        descriptors: &RequestDescriptors,
    ) -> bool {
        let taken = self.world == *world
            && message::send(self.socket.as_fd(), order, &descriptors.borrowed()).is_ok();
        if taken {
            self.process = None;
        }
        taken
    }
}

impl Drop for Spare {
    fn drop(&mut self) {
        if let Some(process) = &self.process {
            // It may be gone already.
            let _ = rustix::process::pidfd_send_signal(process, Signal::KILL);
        }
    }
}
