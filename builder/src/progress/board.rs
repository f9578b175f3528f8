//! What the live view knows of each task: what runs, since when, what it said last, and how far
//! its transfers are. Data only; `tty.rs` lays it out.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::Duration;

use rbuild_solver::progress::{Event, EventKind, TaskId};

use super::harmless;

/// So many of the last lines of a running step are kept.
const KEPT_LINES: usize = 8;

/// More than this of a line without end is not kept.
const KEPT_BYTES: usize = 4096;

/// A transfer's rate is that of the last seconds.
const RATE_OVER: Duration = Duration::from_secs(3);

/// All tasks of a build.
#[derive(Debug, Default)]
pub(super) struct Board {
    /// What runs, in the order in which it began.
    pub(super) running: BTreeMap<u64, Task>,
    /// What ended and has not been taken yet.
    ended: Vec<Ended>,
    order: HashMap<TaskId, u64>,
    began: u64,
    /// How many tasks were done, and how many of these were known.
    pub(super) done: usize,
    pub(super) cached: usize,
}

/// A task that runs.
#[derive(Debug)]
pub(super) struct Task {
    pub(super) name: String,
    pub(super) started: Duration,
    /// When it last said something.
    pub(super) active: Duration,
    /// The last lines it wrote, oldest first.
    pub(super) lines: VecDeque<String>,
    partial: [Vec<u8>; 2],
    /// Its transfers, in the order in which they began.
    pub(super) parts: Vec<Part>,
    /// Why it was not found in the cache.
    pub(super) miss: Option<String>,
}

/// Part of a task: a blob on its way.
#[derive(Debug)]
pub(super) struct Part {
    pub(super) name: String,
    pub(super) current: u64,
    pub(super) total: Option<u64>,
    pub(super) done: bool,
    /// (when, how much), the oldest not much older than [`RATE_OVER`].
    samples: VecDeque<(Duration, u64)>,
}

/// A line that stays.
#[derive(Debug)]
pub(super) struct Ended {
    pub(super) name: String,
    pub(super) how: How,
}

/// How a task ended, or what else is worth a line that stays.
#[derive(Debug)]
pub(super) enum How {
    Done {
        took: Duration,
        miss: Option<String>,
    },
    Cached,
    Failed {
        took: Duration,
    },
    Canceled,
    /// Not an end: a warning.
    Warned,
}

impl Board {
    pub(super) fn event(&mut self, event: &Event) {
        if let EventKind::Started { name } = &event.kind {
            return self.start(event.task, harmless::line(name), event.at);
        }
        let Some(number) = self.order.get(&event.task).copied() else { return };
        let Some(task) = self.running.get_mut(&number) else { return };
        task.active = event.at;
        let took = event.at.saturating_sub(task.started);
        let how = match &event.kind {
            EventKind::Started { .. } | EventKind::Result { .. } => return,
            EventKind::Output { stream, bytes } => {
                return task.output(usize::from(*stream == 2), bytes);
            }
            EventKind::Progress { part, current, total, done } => {
                return task.part(part, *current, *total, *done, event.at);
            }
            EventKind::Miss { reason } => {
                task.miss = Some(harmless::line(reason));
                return;
            }
            EventKind::Warning { message } => {
                self.ended.push(Ended { name: harmless::line(message), how: How::Warned });
                return;
            }
            EventKind::Cached => How::Cached,
            EventKind::Finished => How::Done { took, miss: task.miss.take() },
            EventKind::Failed { .. } => How::Failed { took },
            EventKind::Canceled => How::Canceled,
        };
        self.end(event.task, number, how);
    }

    fn start(&mut self, id: TaskId, name: String, at: Duration) {
        self.began += 1;
        self.order.insert(id, self.began);
        let task = Task {
            name,
            started: at,
            active: at,
            lines: VecDeque::new(),
            partial: Default::default(),
            parts: Vec::new(),
            miss: None,
        };
        self.running.insert(self.began, task);
    }

    fn end(&mut self, id: TaskId, number: u64, how: How) {
        self.order.remove(&id);
        let Some(task) = self.running.remove(&number) else { return };
        match how {
            How::Cached => {
                self.done += 1;
                self.cached += 1;
            }
            How::Done { .. } => self.done += 1,
            How::Failed { .. } | How::Canceled | How::Warned => {}
        }
        self.ended.push(Ended { name: task.name, how });
    }

    /// What ended since this was last asked.
    pub(super) fn take_ended(&mut self) -> Vec<Ended> {
        std::mem::take(&mut self.ended)
    }
}

impl Task {
    fn output(&mut self, stream: usize, written: &[u8]) {
        let partial = &mut self.partial[stream];
        for piece in written.split_inclusive(|byte| *byte == b'\n') {
            // The beginning of a line that goes on for ever is enough.
            let room = KEPT_BYTES.saturating_sub(partial.len());
            partial.extend_from_slice(&piece[..piece.len().min(room)]);
            if piece.ends_with(b"\n") {
                let line = harmless::line(&String::from_utf8_lossy(partial));
                partial.clear();
                if line.trim().is_empty() {
                    continue;
                }
                if self.lines.len() == KEPT_LINES {
                    self.lines.pop_front();
                }
                self.lines.push_back(line);
            }
        }
    }

    fn part(&mut self, name: &str, current: u64, total: Option<u64>, done: bool, at: Duration) {
        let position = self.parts.iter().position(|part| part.name == name);
        let position = position.unwrap_or_else(|| {
            let part = Part {
                name: harmless::line(name),
                current: 0,
                total: None,
                done: false,
                samples: VecDeque::from([(at, current)]),
            };
            self.parts.push(part);
            self.parts.len() - 1
        });
        let part = &mut self.parts[position];
        (part.current, part.total, part.done) = (current, total, done);
        let oldest = part.samples.front().map_or(at, |(when, _)| *when);
        let newest = part.samples.back().map_or(at, |(when, _)| *when);
        if at.saturating_sub(newest) >= Duration::from_millis(100) {
            part.samples.push_back((at, current));
            if at.saturating_sub(oldest) > RATE_OVER && part.samples.len() > 2 {
                part.samples.pop_front();
            }
        }
    }
}

impl Part {
    /// Bytes a second, once there is something to go by.
    pub(super) fn rate(&self, now: Duration) -> Option<u64> {
        let (since, then) = self.samples.front()?;
        let time = now.saturating_sub(*since).as_millis();
        let moved = u128::from(self.current.saturating_sub(*then));
        (time >= 200).then(|| u64::try_from(moved * 1000 / time).unwrap_or(u64::MAX))
    }
}
