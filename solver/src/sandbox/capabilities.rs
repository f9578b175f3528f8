//! Which capabilities a step has.
//!
//! The set is Docker's and BuildKit's default one (containerd's `defaultUnixCaps`). It bounds
//! whatever the step executes; root gets it effective, any other user starts with none, as with
//! BuildKit. Nothing is inheritable or ambient.

use rustix::thread::CapabilitySet;

use crate::graph::SecurityMode;

/// Docker's fourteen: `a80425fb` in `/proc/self/status`.
pub const DEFAULT: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::FSETID)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::MKNOD)
    .union(CapabilitySet::NET_RAW)
    .union(CapabilitySet::SETGID)
    .union(CapabilitySet::SETUID)
    .union(CapabilitySet::SETFCAP)
    .union(CapabilitySet::SETPCAP)
    .union(CapabilitySet::NET_BIND_SERVICE)
    .union(CapabilitySet::SYS_CHROOT)
    .union(CapabilitySet::KILL)
    .union(CapabilitySet::AUDIT_WRITE);

/// Returns the bounding set of a step, given what rbuild itself has: a step never gets more.
pub fn bounding(security: SecurityMode, own: CapabilitySet) -> CapabilitySet {
    match security {
        SecurityMode::Sandbox => DEFAULT & own,
        SecurityMode::Insecure => own,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_set_is_dockers() {
        assert_eq!(DEFAULT.bits(), 0xa804_25fb);
    }

    #[test]
    fn a_step_gets_no_more_than_rbuild_has() {
        let own = CapabilitySet::CHOWN | CapabilitySet::SYS_ADMIN;
        assert_eq!(bounding(SecurityMode::Sandbox, own), CapabilitySet::CHOWN);
        assert_eq!(bounding(SecurityMode::Insecure, own), own);
    }
}
