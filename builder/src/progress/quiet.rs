//! `--quiet`: nothing while it builds. The image's ID goes to stdout at the end, and errors to
//! stderr; neither is a renderer's.

use std::time::Duration;

use rbuild_solver::progress::Event;

use super::{End, Renderer};

/// Draws nothing.
#[derive(Clone, Copy, Debug)]
pub(super) struct Quiet;

impl Renderer for Quiet {
    fn event(&mut self, _event: &Event) {}

    fn tick(&mut self, _now: Duration) {}

    fn finish(&mut self, _end: End, _now: Duration) {}
}
