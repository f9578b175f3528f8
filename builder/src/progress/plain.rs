//! `--progress=plain`: a line per event, for logs. Follows BuildKit's
//! `util/progress/progressui/printer.go`: `#N NAME`, `#N 0.123 output`, `#N CACHED`,
//! `#N DONE 1.2s`, `#N ERROR: …`.
//!
//! One task at a time is shown; the lines of the others wait, so that a reader is not thrown to and
//! fro. What a task says belongs together until it ends, is silent while others talk, or has had
//! the page for some seconds.

use std::collections::{HashMap, VecDeque};
use std::io::Write;
use std::time::Duration;

use rbuild_solver::progress::{Event, EventKind, TaskId};

use super::{End, Renderer, bytes, harmless};

/// A task keeps the page so long while others wait.
const TURN: Duration = Duration::from_secs(3);

/// A part that moves is told about this often, or at each twentieth of it.
const PART_EVERY: Duration = Duration::from_secs(5);

/// The output of one task is cut behind so many bytes, as BuildKit cuts it.
const MOST_OUTPUT: usize = 2 << 20;

/// A line without end is ended at so many bytes.
const MOST_LINE: usize = 64 << 10;

/// Draws a line per event.
pub(super) struct Plain {
    out: Box<dyn Write + Send>,
    tasks: HashMap<TaskId, Task>,
    numbered: u64,
    /// Who has the page, and since when.
    current: Option<(TaskId, Duration)>,
    /// Tasks with waiting lines, in the order in which they began to wait.
    waiting: VecDeque<TaskId>,
    empty_page: bool,
}

#[derive(Default)]
struct Task {
    number: u64,
    name: String,
    started: Duration,
    lines: Vec<String>,
    /// What each stream wrote behind its last line break.
    partial: [Vec<u8>; 2],
    written: usize,
    parts: HashMap<String, Part>,
    ended: bool,
}

#[derive(Clone, Copy, Default)]
struct Part {
    begun: Duration,
    told_at: Duration,
    told: u64,
}

impl Plain {
    /// Writes to `out`.
    pub(super) fn new(out: Box<dyn Write + Send>) -> Self {
        Self {
            out,
            tasks: HashMap::new(),
            numbered: 0,
            current: None,
            waiting: VecDeque::new(),
            empty_page: true,
        }
    }

    fn task(&mut self, id: TaskId, at: Duration) -> &mut Task {
        let numbered = &mut self.numbered;
        self.tasks.entry(id).or_insert_with(|| {
            *numbered += 1;
            Task { number: *numbered, started: at, ..Task::default() }
        })
    }

    /// Writes what waits, as far as it is somebody's turn.
    fn write_out(&mut self, now: Duration) {
        if let Some((id, since)) = self.current {
            self.write_task(id);
            let ended = self.tasks.get(&id).is_none_or(|task| task.ended);
            let turn_over = now.saturating_sub(since) >= TURN && !self.waiting.is_empty();
            if ended {
                self.current = None;
            } else if turn_over {
                self.give_page_away(id);
            } else {
                return;
            }
        }
        // Those that ended are shown whole, one after the other; then the page is somebody's.
        let waiting = std::mem::take(&mut self.waiting);
        let (ended, running): (VecDeque<_>, VecDeque<_>) =
            waiting.into_iter().partition(|id| self.tasks.get(id).is_none_or(|task| task.ended));
        self.waiting = running;
        for id in ended {
            self.write_heading(id);
            self.write_task(id);
        }
        if let Some(id) = self.waiting.pop_front() {
            self.current = Some((id, now));
            self.write_heading(id);
            self.write_task(id);
        }
    }

    fn give_page_away(&mut self, id: TaskId) {
        if let Some(task) = self.tasks.get(&id) {
            let line = format!("#{} ...", task.number);
            self.line(&line);
        }
        self.current = None;
    }

    fn write_heading(&mut self, id: TaskId) {
        let Some(task) = self.tasks.get(&id) else { return };
        let heading = format!("#{} {}", task.number, harmless::line(&task.name));
        if !self.empty_page {
            self.line("");
        }
        self.empty_page = false;
        self.line(&heading);
    }

    fn write_task(&mut self, id: TaskId) {
        let Some(task) = self.tasks.get_mut(&id) else { return };
        let (number, lines) = (task.number, std::mem::take(&mut task.lines));
        if task.ended {
            self.tasks.remove(&id);
        }
        for line in lines {
            self.line(&format!("#{number} {line}"));
        }
    }

    /// A log whose reader is gone is no reason to stop a build.
    fn line(&mut self, line: &str) {
        let _ = writeln!(self.out, "{line}");
    }
}

impl Task {
    /// Takes what a stream wrote and makes lines of it.
    fn output(&mut self, stream: usize, written: &[u8], at: Duration) {
        let room = MOST_OUTPUT.saturating_sub(self.written);
        let clipped = written.len() > room && self.written <= MOST_OUTPUT;
        self.written = self.written.saturating_add(written.len());
        self.partial[stream].extend_from_slice(&written[..written.len().min(room)]);
        while let Some(end) = self.partial[stream].iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.partial[stream].drain(..=end).collect();
            self.push_output(&line, at);
        }
        if self.partial[stream].len() > MOST_LINE || (clipped && !self.partial[stream].is_empty()) {
            let line = std::mem::take(&mut self.partial[stream]);
            self.push_output(&line, at);
        }
        if clipped {
            // What comes after it is still counted, and dropped.
            self.written = MOST_OUTPUT + 1;
            let limit = MOST_OUTPUT >> 20;
            self.lines.push(format!("[output clipped, log limit {limit}MiB reached]"));
        }
    }

    fn push_output(&mut self, line: &[u8], at: Duration) {
        let time = at.saturating_sub(self.started).as_secs_f64();
        let text = harmless::colored_line(&String::from_utf8_lossy(line));
        self.lines.push(format!("{time:.3} {text}"));
    }

    fn part(&mut self, name: &str, current: u64, total: Option<u64>, done: bool, at: Duration) {
        let fresh = Part { begun: at, told_at: at, told: 0 };
        let known = self.parts.contains_key(name);
        let part = self.parts.entry(name.to_owned()).or_insert(fresh);
        let step = total.map_or(u64::MAX, |total| (total / 20).max(1));
        let moved = current.saturating_sub(part.told) >= step
            && at.saturating_sub(part.told_at) >= Duration::from_millis(200);
        if known && !done && !moved && at.saturating_sub(part.told_at) < PART_EVERY {
            return;
        }
        (part.told, part.told_at) = (current, at);
        let amount = match total {
            Some(total) => format!(" {} / {}", bytes(current), bytes(total)),
            None if current > 0 => format!(" {}", bytes(current)),
            None => String::new(),
        };
        let time = at.saturating_sub(part.begun).as_secs_f64();
        let time = if time > 0.01 { format!(" {time:.1}s") } else { String::new() };
        let done = if done { " done" } else { "" };
        self.lines.push(format!("{}{amount}{time}{done}", harmless::line(name)));
    }

    fn end(&mut self, last: String, at: Duration) {
        for stream in 0..2 {
            let rest = std::mem::take(&mut self.partial[stream]);
            if !rest.is_empty() {
                self.push_output(&rest, at);
            }
        }
        self.lines.push(last);
        self.ended = true;
    }
}

impl Renderer for Plain {
    fn event(&mut self, event: &Event) {
        let (id, at) = (event.task, event.at);
        let task = self.task(id, at);
        let time = at.saturating_sub(task.started).as_secs_f64();
        match &event.kind {
            EventKind::Started { name } => task.name.clone_from(name),
            EventKind::Output { stream, bytes } => {
                task.output(usize::from(*stream == 2), bytes, at);
            }
            EventKind::Progress { part, current, total, done } => {
                task.part(part, *current, *total, *done, at);
            }
            EventKind::Warning { message } => {
                task.lines.push(format!("WARN: {}", harmless::line(message)));
            }
            EventKind::Miss { reason } => {
                task.lines.push(format!("not cached: {}", harmless::line(reason)));
            }
            EventKind::Result { what, digest } => {
                task.lines.push(format!("{} {digest}", harmless::line(what)));
            }
            EventKind::Cached => task.end("CACHED".into(), at),
            EventKind::Finished => task.end(format!("DONE {time:.1}s"), at),
            EventKind::Failed { message } => {
                task.end(format!("ERROR: {}", harmless::message(message)), at);
            }
            EventKind::Canceled => task.end("CANCELED".into(), at),
        }
        let shown = self.current.is_some_and(|(current, _)| current == id);
        if !shown && !self.waiting.contains(&id) {
            self.waiting.push_back(id);
        }
        self.write_out(at);
    }

    fn pause(&mut self) {
        let _ = self.out.flush();
    }

    fn tick(&mut self, now: Duration) {
        self.write_out(now);
        let _ = self.out.flush();
    }

    fn finish(&mut self, _end: End, now: Duration) {
        self.write_out(now);
        let rest: Vec<TaskId> = self.waiting.drain(..).collect();
        for id in rest {
            self.write_heading(id);
            self.write_task(id);
        }
        let _ = self.out.flush();
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{Paper, event, output, part, started};
    use super::*;

    fn drawn(events: &[Event], end: End) -> String {
        let paper = Paper::default();
        let mut plain = Plain::new(Box::new(paper.clone()));
        let last = events.last().map_or(Duration::ZERO, |event| event.at);
        for event in events {
            plain.event(event);
        }
        plain.finish(end, last);
        paper.text()
    }

    #[test]
    fn a_build() {
        let digest = rbuild_cache::digest::Digest::of("");
        let events = vec![
            event(1, 0, started("[internal] load build definition from Dockerfile")),
            event(1, 10, EventKind::Finished),
            event(2, 20, started("[build 1/3] FROM busybox")),
            event(2, 30, EventKind::Cached),
            event(3, 40, started("[build 2/3] RUN make")),
            event(3, 41, EventKind::Miss { reason: "src/main.c changed".into() }),
            event(3, 140, output("cc main.c\nld")),
            event(3, 240, output(" main.o\n")),
            event(3, 1240, EventKind::Finished),
            event(4, 1250, started("exporting to image")),
            event(4, 1300, part("layer sha256:0f3e", 1_000_000, 2_000_000, false)),
            event(4, 1310, part("layer sha256:0f3e", 1_100_000, 2_000_000, false)),
            event(4, 1700, part("layer sha256:0f3e", 2_000_000, 2_000_000, true)),
            event(4, 1800, EventKind::Result { what: "manifest".into(), digest }),
            event(4, 1801, EventKind::Warning { message: "network is the host's".into() }),
            event(4, 1900, EventKind::Finished),
        ];
        insta::assert_snapshot!(drawn(&events, End::Done), @r#"
        #1 [internal] load build definition from Dockerfile
        #1 DONE 0.0s

        #2 [build 1/3] FROM busybox
        #2 CACHED

        #3 [build 2/3] RUN make
        #3 not cached: src/main.c changed
        #3 0.100 cc main.c
        #3 0.200 ld main.o
        #3 DONE 1.2s

        #4 exporting to image
        #4 layer sha256:0f3e 1.0 MB / 2.0 MB
        #4 layer sha256:0f3e 2.0 MB / 2.0 MB 0.4s done
        #4 manifest sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855
        #4 WARN: network is the host's
        #4 DONE 0.7s
        "#);
    }

    #[test]
    fn parallel_steps_take_turns() {
        let events = vec![
            event(1, 0, started("[a] RUN one")),
            event(2, 0, started("[b] RUN two")),
            event(1, 100, output("a1\n")),
            event(2, 200, output("b1\n")),
            event(1, 300, output("a2\n")),
            event(2, 4000, output("b2\n")),
            event(2, 4100, EventKind::Failed { message: "exit code: 1".into() }),
            event(1, 4200, output("unfinished")),
            event(1, 4300, EventKind::Canceled),
        ];
        insta::assert_snapshot!(drawn(&events, End::Failed), @r#"
        #1 [a] RUN one
        #1 0.100 a1
        #1 0.300 a2
        #1 ...

        #2 [b] RUN two
        #2 0.200 b1
        #2 4.000 b2
        #2 ERROR: exit code: 1

        #1 [a] RUN one
        #1 4.300 unfinished
        #1 CANCELED
        "#);
    }

    #[test]
    fn what_an_interrupted_step_said_is_not_lost() {
        let events = vec![
            event(1, 0, started("[a] RUN one")),
            event(2, 0, started("[b] RUN two")),
            event(2, 200, output("b1\n")),
        ];
        insta::assert_snapshot!(drawn(&events, End::Interrupted), @r#"
        #1 [a] RUN one

        #2 [b] RUN two
        #2 0.200 b1
        "#);
    }

    #[test]
    fn a_flood_is_clipped_once() {
        let mut events = vec![event(1, 0, started("RUN yes"))];
        let piece = "0123456789abcdef\n".repeat(4096);
        (0..100).for_each(|n| events.push(event(1, n, output(&piece))));
        events.push(event(1, 200, EventKind::Finished));
        let text = drawn(&events, End::Done);
        assert_eq!(text.matches("[output clipped, log limit 2MiB reached]").count(), 1);
        assert!(text.len() < 4 << 20, "{}", text.len());
        assert!(text.ends_with("#1 DONE 0.2s\n"));
    }

    #[test]
    fn hostile_output_stays_on_its_line() {
        let events = vec![
            event(1, 0, started("RUN evil\x1b[2J\nname")),
            event(1, 0, output("\x1b]0;title\x07\x1b[1;1Hx\x1b[31mred\n")),
            event(1, 1, EventKind::Finished),
        ];
        assert_eq!(
            drawn(&events, End::Done),
            "#1 RUN evil name\n#1 0.000 x\x1b[31mred\x1b[0m\n#1 DONE 0.0s\n"
        );
    }
}
