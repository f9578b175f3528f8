//! Telling the user what happens: one thread takes the events of the build and draws them.
//!
//! The solver sends [`Event`]s into a bounded queue; [`Display`] hands them to one [`Renderer`] and
//! ticks it, so that a renderer never locks and never waits. What comes close together is drawn
//! together: waking this thread for each event, and a reader of stderr for each line, would cost a
//! build whose steps are all known as much as looking them up. Everything goes to stderr: stdout is
//! for results.

mod board;
pub mod harmless;
mod json;
mod plain;
mod quiet;
mod tty;

use std::io::{BufWriter, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread::{JoinHandle, Thread};
use std::time::{Duration, Instant};

use rbuild_solver::progress::{Event, Progress};

use crate::request::{ProgressMode, Settings};

/// Draws events. Times are those of the events: since the build began.
pub trait Renderer: Send {
    /// Takes one event.
    fn event(&mut self, event: &Event);

    /// Nothing follows for a moment: what the events came to is shown now, if it is not drawn in
    /// [`Renderer::tick`].
    fn pause(&mut self) {}

    /// Time has passed; what is drawn again and again is drawn now.
    fn tick(&mut self, now: Duration);

    /// The build has ended, well or not; nothing follows.
    fn finish(&mut self, end: End, now: Duration);
}

/// How a build ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Everything was done.
    Done,
    /// Something failed; what, is drawn after the renderer.
    Failed,
    /// The user interrupted.
    Interrupted,
}

/// Between two drawings: 8 in a second.
const TICK: Duration = Duration::from_millis(125);

/// What follows an event within this time is drawn together with what follows.
const TOGETHER: Duration = Duration::from_millis(10);

/// Events that wait to be drawn; a build that makes more waits for the terminal.
const QUEUE: usize = 1024;

enum Message {
    Event(Event),
    End(End),
}

/// A renderer at work.
#[derive(Debug)]
pub struct Display {
    queue: SyncSender<Message>,
    /// How many events are in the queue.
    waiting: Arc<AtomicUsize>,
    thread: Option<JoinHandle<()>>,
}

impl Display {
    /// Starts drawing as `settings` say, on stderr.
    pub fn new(settings: &Settings) -> Self {
        Self::with(renderer(settings, Box::new(BufWriter::new(std::io::stderr()))))
    }

    /// Starts drawing with `renderer`.
    ///
    /// # Panics
    /// When no thread can be started; nothing could be built then.
    pub fn with(renderer: Box<dyn Renderer>) -> Self {
        let (queue, messages) = sync_channel(QUEUE);
        let waiting = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&waiting);
        let thread = std::thread::Builder::new()
            .name("progress".into())
            .spawn(move || draw(renderer, &messages, &counted))
            .expect("a process that is about to build can start a thread");
        Self { queue, waiting, thread: Some(thread) }
    }

    /// Where events are sent to.
    pub fn sink(&self) -> Arc<dyn Progress> {
        let thread = self.thread.as_ref().map(|thread| thread.thread().clone());
        Arc::new(Sink { queue: self.queue.clone(), waiting: Arc::clone(&self.waiting), thread })
    }

    /// Draws what is left and the end. Events that are sent later are lost.
    pub fn finish(mut self, end: End) {
        self.end(end);
    }

    fn end(&mut self, end: End) {
        let Some(thread) = self.thread.take() else { return };
        // The thread is only gone when it panicked; what it would have drawn is lost then.
        let _ = self.queue.send(Message::End(end));
        thread.thread().unpark();
        let _ = thread.join();
    }
}

impl Drop for Display {
    fn drop(&mut self) {
        self.end(End::Interrupted);
    }
}

struct Sink {
    queue: SyncSender<Message>,
    waiting: Arc<AtomicUsize>,
    thread: Option<Thread>,
}

impl Progress for Sink {
    fn send(&self, event: Event) {
        // Before the queue is full, and who sends has to wait.
        if self.waiting.fetch_add(1, Ordering::Relaxed) == QUEUE / 2
            && let Some(thread) = &self.thread
        {
            thread.unpark();
        }
        // After the end nobody looks any more.
        let _ = self.queue.send(Message::Event(event));
    }
}

fn draw(mut renderer: Box<dyn Renderer>, messages: &Receiver<Message>, waiting: &AtomicUsize) {
    let begun = Instant::now();
    let mut next = TICK;
    loop {
        let now = begun.elapsed();
        if now >= next {
            renderer.tick(now);
            next = now + TICK;
        }
        let mut message = match messages.recv_timeout(next.saturating_sub(now)) {
            Ok(message) => Some(message),
            Err(RecvTimeoutError::Timeout) => continue,
            Err(RecvTimeoutError::Disconnected) => Some(Message::End(End::Interrupted)),
        };
        while let Some(this) = message {
            match this {
                Message::Event(event) => {
                    waiting.fetch_sub(1, Ordering::Relaxed);
                    renderer.event(&event);
                }
                Message::End(end) => return renderer.finish(end, begun.elapsed()),
            }
            message = messages.try_recv().ok();
        }
        renderer.pause();
        // The end does not wait for it, nor does a queue that fills up.
        std::thread::park_timeout(TOGETHER);
    }
}

/// The renderer that `settings` name, writing to `out`.
fn renderer(settings: &Settings, out: Box<dyn Write + Send>) -> Box<dyn Renderer> {
    match settings.progress {
        ProgressMode::Tty => Box::new(tty::Tty::new(out, settings.colors, settings.unicode)),
        ProgressMode::Auto | ProgressMode::Plain => Box::new(plain::Plain::new(out)),
        ProgressMode::RawJson => Box::new(json::RawJson::new(out, settings.now)),
        ProgressMode::Quiet => Box::new(quiet::Quiet),
    }
}

/// Bytes for people, in units of 1000: `12.3 MB`.
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["kB", "MB", "GB", "TB", "PB"];
    if count < 1000 {
        return format!("{count} B");
    }
    #[allow(clippy::cast_precision_loss, reason = "three digits of it are shown")]
    let mut value = count as f64 / 1000.0;
    let mut unit = 0;
    // 999.96 would be shown as 1000.0.
    while value >= 999.95 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

/// How many there are of something: `1 entry`, `2 entries`.
pub fn count(number: usize, one: &str, many: &str) -> String {
    format!("{number} {}", if number == 1 { one } else { many })
}

/// Time for people: `0.1s`, `12.3s`, `2m 05s`, `1h 02m`.
pub fn seconds(time: Duration) -> String {
    match time.as_secs() {
        0..60 => format!("{:.1}s", time.as_secs_f64()),
        whole @ 60..3600 => format!("{}m {:02}s", whole / 60, whole % 60),
        whole => format!("{}h {:02}m", whole / 3600, whole % 3600 / 60),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use rbuild_solver::progress::{EventKind, TaskId};

    use super::*;

    /// A writer whose text can be looked at.
    #[derive(Clone, Default)]
    pub(super) struct Paper(Arc<Mutex<Vec<u8>>>);

    impl Paper {
        pub(super) fn text(&self) -> String {
            String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
        }
    }

    impl Write for Paper {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    /// Something that happened to task `task`, `at` milliseconds after the beginning.
    pub(super) fn event(task: u64, at: u64, kind: EventKind) -> Event {
        Event { task: TaskId::Other(task), at: Duration::from_millis(at), kind }
    }

    pub(super) fn started(name: &str) -> EventKind {
        EventKind::Started { name: name.into() }
    }

    pub(super) fn output(text: &str) -> EventKind {
        EventKind::Output { stream: 1, bytes: bytes::Bytes::copy_from_slice(text.as_bytes()) }
    }

    pub(super) fn part(part: &str, current: u64, total: u64, done: bool) -> EventKind {
        EventKind::Progress { part: part.into(), current, total: Some(total), done }
    }

    #[test]
    fn events_arrive_before_the_end() {
        let paper = Paper::default();
        let display = Display::with(Box::new(plain::Plain::new(Box::new(paper.clone()))));
        let sink = display.sink();
        (0..5000).for_each(|n| sink.send(event(1, n, output("line\n"))));
        sink.send(event(1, 5000, EventKind::Finished));
        display.finish(End::Done);
        assert_eq!(paper.text().matches(" line\n").count(), 5000);
        sink.send(event(1, 6000, output("late\n")));
        assert!(!paper.text().contains("late"));
    }

    /// Counts how often somebody would have to be woken to read.
    struct Counting(Arc<AtomicUsize>);

    impl Write for Counting {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.fetch_add(1, Ordering::Relaxed);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn what_comes_close_together_is_written_at_once() {
        let writes = Arc::new(AtomicUsize::new(0));
        let out = BufWriter::new(Counting(Arc::clone(&writes)));
        let display = Display::with(Box::new(plain::Plain::new(Box::new(out))));
        let sink = display.sink();
        (0..400).for_each(|n| sink.send(event(1, n, output("line\n"))));
        display.finish(End::Done);
        let writes = writes.load(Ordering::Relaxed);
        assert!(writes < 40, "{writes}");
    }

    #[test]
    fn a_single_event_is_shown_at_once_and_the_end_waits_for_nothing() {
        let paper = Paper::default();
        let out = BufWriter::new(paper.clone());
        let display = Display::with(Box::new(plain::Plain::new(Box::new(out))));
        display.sink().send(event(1, 0, output("line\n")));
        let begun = Instant::now();
        while !paper.text().contains("line") {
            assert!(begun.elapsed() < Duration::from_mins(1));
            std::thread::yield_now();
        }
        display.finish(End::Done);
    }

    #[test]
    fn amounts() {
        let check = |count, expected: &str| assert_eq!(super::bytes(count), expected);
        check(0, "0 B");
        check(999, "999 B");
        check(1000, "1.0 kB");
        check(999_949, "999.9 kB");
        check(999_999, "1.0 MB");
        check(48_512_345, "48.5 MB");
        check(u64::MAX, "18446.7 PB");
        assert_eq!(
            [0, 1, 2].map(|n| count(n, "entry", "entries")),
            ["0 entries", "1 entry", "2 entries"]
        );
        assert_eq!(seconds(Duration::from_millis(40)), "0.0s");
        assert_eq!(seconds(Duration::from_millis(12_340)), "12.3s");
        assert_eq!(seconds(Duration::from_secs(125)), "2m 05s");
        assert_eq!(seconds(Duration::from_mins(62)), "1h 02m");
    }
}
