//! The solver on whole graphs, with a sandbox that writes files without running anything.

mod fake;
mod solving;
