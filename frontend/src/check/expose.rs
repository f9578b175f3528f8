//! `ExposeProtoCasing` and `ExposeInvalidFormat`.

use super::{Checks, Rule};
use crate::syntax::Origin;

/// The protocol of `port` is not in lower case.
pub fn expose_proto_casing(checks: &mut Checks, origin: &Origin, port: &str) {
    let message = format!("Defined protocol '{port}' in EXPOSE instruction should be lowercase");
    checks.warn_in(Rule::ExposeProtoCasing, origin, message);
}

/// `port` says more than a port of the container: an address, or a port of the host.
pub fn expose_invalid_format(checks: &mut Checks, origin: &Origin, port: &str) {
    let message = format!(
        "EXPOSE instruction should not define an IP address or host-port mapping, found '{port}'"
    );
    checks.warn_in(Rule::ExposeInvalidFormat, origin, message);
}
