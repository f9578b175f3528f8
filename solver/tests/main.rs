//! The solver on whole graphs, with a sandbox that writes files without running anything.

#![expect(clippy::unwrap_used, reason = "a test that fails may panic")]

mod fake;
mod solving;
