//! Figures of the promises in `docs/security.md`, which tests print although they pass.

use std::io::Write as _;

/// Prints `line`.
pub(crate) fn figure(line: &str) {
    // Not `eprintln!`, which the test runner hides when the test passes.
    std::io::stderr().write_all(format!("{line}\n").as_bytes()).unwrap();
}
