//! `--progress=tty`: a live view. What has ended stands above, a line each, and stays; what runs
//! stands below with its time, its last lines and its transfers, and is drawn again on each tick.
//!
//! [`live_lines`] and [`ended_line`] say what stands in the lines, and know nothing of terminals;
//! [`Screen`] puts them there. It is not indicatif, since that fills lines up to the edge and counts
//! on the terminal's wrapping: the `^C` that the terminal writes when the user interrupts then
//! shifts everything, and a line of the old picture stays.

use std::io::Write;
use std::time::Duration;

use console::{Term, measure_text_width, truncate_str};
use rbuild_solver::progress::Event;

use super::board::{Board, Ended, How, Part, Task};
use super::{End, Renderer, bytes, seconds};

/// Draws a live view on stderr.
pub(super) struct Tty {
    board: Board,
    screen: Screen,
    style: Style,
    frame: usize,
}

/// How lines look.
#[derive(Clone, Copy, Debug)]
struct Style {
    colors: bool,
    unicode: bool,
}

/// What the terminal holds.
#[derive(Clone, Copy, Debug)]
struct Size {
    columns: usize,
    rows: usize,
}

impl Tty {
    /// Draws in colours, and with signs that ASCII lacks, or without.
    pub(super) fn new(out: Box<dyn Write + Send>, colors: bool, unicode: bool) -> Self {
        let screen = Screen { out, live: Vec::new() };
        Self { board: Board::default(), screen, style: Style { colors, unicode }, frame: 0 }
    }

    fn ended_lines(&mut self, columns: usize) -> Vec<String> {
        let ended = self.board.take_ended();
        ended.iter().map(|ended| ended_line(ended, columns, self.style)).collect()
    }
}

impl Renderer for Tty {
    fn event(&mut self, event: &Event) {
        self.board.event(event);
    }

    fn tick(&mut self, now: Duration) {
        let size = Size::of_terminal();
        self.frame += 1;
        let ended = self.ended_lines(size.columns);
        let live = live_lines(&self.board, now, size, self.frame, self.style);
        self.screen.draw(&ended, live, size);
    }

    fn finish(&mut self, end: End, now: Duration) {
        let size = Size::of_terminal();
        let mut ended = self.ended_lines(size.columns);
        ended.push(total_line(&self.board, now, Some(end), self.style));
        self.screen.draw(&ended, Vec::new(), size);
    }
}

/// The terminal: lines that stay, and below them lines that are drawn over. The cursor always
/// stands at the beginning of the line behind the last one, where the terminal's own `^C` does no
/// harm.
struct Screen {
    out: Box<dyn Write + Send>,
    /// What stands there to be drawn over.
    live: Vec<String>,
}

impl Screen {
    /// Draws in one piece, so that nothing flickers.
    fn draw(&mut self, stay: &[String], live: Vec<String>, size: Size) {
        // A terminal that became narrower has wrapped what stood there.
        let rows = |line: &String| measure_text_width(line).div_ceil(size.columns.max(1)).max(1);
        let above: usize = self.live.iter().map(rows).sum();
        let up = if above > 0 { format!("\x1b[{above}A") } else { String::new() };
        let mut text = format!("\r{up}\x1b[J");
        for line in stay.iter().chain(&live) {
            text.push_str(line);
            text.push('\n');
        }
        self.live = live;
        // A terminal that went away is no reason to stop; SIGHUP tells when it is meant so.
        let _ = self.out.write_all(text.as_bytes()).and_then(|()| self.out.flush());
    }
}

impl Size {
    fn of_terminal() -> Self {
        let (rows, columns) = Term::stderr().size();
        Self { columns: columns.into(), rows: rows.into() }
    }
}

impl Style {
    fn paint(self, code: &str, text: &str) -> String {
        if self.colors && !text.is_empty() {
            format!("\x1b[{code}m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }

    fn dim(self, text: &str) -> String {
        self.paint("2", text)
    }

    fn green(self, text: &str) -> String {
        self.paint("32", text)
    }

    fn red(self, text: &str) -> String {
        self.paint("31", text)
    }

    fn yellow(self, text: &str) -> String {
        self.paint("33", text)
    }

    fn cyan(self, text: &str) -> String {
        self.paint("36", text)
    }

    /// `unicode`, or `ascii` where the terminal has only that.
    fn sign(self, unicode: &'static str, ascii: &'static str) -> &'static str {
        if self.unicode { unicode } else { ascii }
    }

    fn spinner(self, frame: usize) -> &'static str {
        const UNICODE: [&str; 8] = ["⠋", "⠙", "⠹", "⠸", "⠼", "⠴", "⠦", "⠧"];
        const ASCII: [&str; 4] = ["-", "\\", "|", "/"];
        if self.unicode { UNICODE[frame % 8] } else { ASCII[frame % 4] }
    }
}

/// The line of something that ended.
fn ended_line(ended: &Ended, columns: usize, style: Style) -> String {
    let name = &ended.name;
    match &ended.how {
        How::Done { took, miss } => {
            let why = miss.as_ref().map_or(String::new(), |why| format!("  ({why})"));
            let left = format!("{} {name}{}", style.green(style.sign("✔", "+")), style.dim(&why));
            between(&left, &style.dim(&seconds(*took)), columns, style)
        }
        How::Cached => {
            let left = style.dim(&format!("{} {name}", style.sign("∙", "=")));
            between(&left, &style.cyan("CACHED"), columns, style)
        }
        How::Failed { took } => {
            let left = style.red(&format!("{} {name}", style.sign("✘", "x")));
            between(&left, &style.red(&seconds(*took)), columns, style)
        }
        How::Canceled => {
            let left = style.dim(&format!("{} {name}", style.sign("∙", "-")));
            between(&left, &style.dim("CANCELED"), columns, style)
        }
        How::Warned => style.yellow(&format!("! {name}")),
    }
}

/// `left` and, at the right edge, `right`; `left` is cut to fit, and on a very narrow terminal
/// stands alone. The last column stays empty: some terminals wrap when it is written.
fn between(left: &str, right: &str, columns: usize, style: Style) -> String {
    let width = columns.saturating_sub(1);
    let right_width = measure_text_width(right);
    if width < right_width + 16 {
        return cut(left, width, style);
    }
    let left = cut(left, width - right_width - 1, style);
    let gap = width - right_width - measure_text_width(&left);
    format!("{left}{}{right}", " ".repeat(gap))
}

fn cut(text: &str, width: usize, style: Style) -> String {
    truncate_str(text, width, style.sign("…", "~")).into_owned()
}

/// What runs: at most as many lines as the terminal has, but two.
fn live_lines(board: &Board, now: Duration, size: Size, frame: usize, style: Style) -> Vec<String> {
    let room = size.rows.saturating_sub(3).max(1);
    let mut tasks: Vec<&Task> = board.running.values().collect();
    let hidden = tasks.len().saturating_sub(room);
    if hidden > 0 {
        // One line says how many are not shown.
        tasks.truncate(room.saturating_sub(1));
    }
    let details = details(&tasks, room - tasks.len().min(room));
    let mut lines = Vec::new();
    for (task, count) in tasks.iter().zip(details) {
        let left = format!("{} {}", style.cyan(style.spinner(frame)), task.name);
        let time = seconds(now.saturating_sub(task.started));
        lines.push(between(&left, &time, size.columns, style));
        lines.extend(detail_lines(task, count, now, size.columns, style));
    }
    if hidden > 0 {
        let more = board.running.len() - tasks.len();
        lines.push(style.dim(&format!("  and {more} more")));
    }
    let total = total_line(board, now, None, style);
    lines.push(cut(&total, size.columns.saturating_sub(1), style));
    lines
}

/// How many lines each task gets below its own, of `room`: whoever spoke last is served first.
fn details(tasks: &[&Task], mut room: usize) -> Vec<usize> {
    /// So many lines tell what a step is doing.
    const MOST: usize = 6;
    let mut order: Vec<usize> = (0..tasks.len()).collect();
    order.sort_by_key(|index| std::cmp::Reverse(tasks[*index].active));
    let mut given = vec![0; tasks.len()];
    for index in order {
        let task = tasks[index];
        let parts = task.parts.iter().filter(|part| !part.done).count();
        let wanted = task.lines.len() + parts + usize::from(task.miss.is_some());
        given[index] = wanted.min(MOST).min(room);
        room -= given[index];
    }
    given
}

/// At most `count` lines about what a task does: its transfers, then the last it said.
fn detail_lines(
    task: &Task,
    count: usize,
    now: Duration,
    columns: usize,
    style: Style,
) -> Vec<String> {
    let width = columns.saturating_sub(1);
    let open = task.parts.iter().filter(|part| !part.done);
    let mut lines: Vec<String> =
        open.take(count).map(|part| part_line(part, now, width, style)).collect();
    let mut left = count - lines.len();
    if let Some(why) = &task.miss
        && left > task.lines.len().min(1)
    {
        let why = format!("  {} not cached: {why}", style.sign("↳", ">"));
        lines.push(style.dim(&cut(&why, width, style)));
        left -= 1;
    }
    let skipped = task.lines.len().saturating_sub(left);
    let bar = style.sign("│", "|");
    lines.extend(
        task.lines
            .iter()
            .skip(skipped)
            .map(|line| style.dim(&cut(&format!("  {bar} {line}"), width, style))),
    );
    lines
}

/// `  ━━━━━╸──── sha256:0f3e…  24.1 MB / 48.5 MB  11.2 MB/s`
fn part_line(part: &Part, now: Duration, width: usize, style: Style) -> String {
    const BAR: usize = 20;
    let name = short_name(&part.name);
    let rate = part.rate(now).map_or(String::new(), |rate| format!("  {}/s", bytes(rate)));
    let amount = match part.total {
        Some(total) => format!("{:>8} / {:>8}", bytes(part.current), bytes(total)),
        None => bytes(part.current),
    };
    let filled = match part.total {
        Some(total) if total > 0 => {
            let filled = u128::from(part.current.min(total)) * BAR as u128 / u128::from(total);
            usize::try_from(filled).unwrap_or(BAR)
        }
        _ => 0,
    };
    let (full, empty) = (style.sign("━", "="), style.sign("─", "-"));
    let bar =
        format!("{}{}", style.green(&full.repeat(filled)), style.dim(&empty.repeat(BAR - filled)));
    let text = format!("{name}  {amount}{}", style.dim(&rate));
    // The bar is the first to go where there is no room.
    let line = if width >= BAR + 3 + measure_text_width(&text) {
        format!("  {bar} {text}")
    } else {
        format!("  {text}")
    };
    cut(&line, width, style)
}

/// A digest is shown by its first twelve digits; everything else as it is.
fn short_name(name: &str) -> String {
    match name.find("sha256:") {
        Some(at) if name.len() >= at + 19 && name.is_char_boundary(at + 19) => {
            let rest = name.get(at + 71..).unwrap_or("");
            format!("{}{rest}", &name[..at + 19])
        }
        _ => name.to_owned(),
    }
}

/// The line of totals: while it builds, and how it ended.
fn total_line(board: &Board, now: Duration, end: Option<End>, style: Style) -> String {
    let dot = style.sign(" · ", ", ");
    let time = seconds(now);
    let mut counts = vec![format!("{} done", board.done)];
    if board.cached > 0 {
        counts.push(format!("{} cached", board.cached));
    }
    match end {
        None => {
            counts.push(format!("{} running", board.running.len()));
            style.dim(&format!("  {time}{dot}{}", counts.join(dot)))
        }
        Some(End::Done) => {
            let head = style.green(&format!("{} built in {time}", style.sign("✔", "+")));
            format!("{head}{}", style.dim(&format!("{dot}{}", counts.join(dot))))
        }
        Some(End::Failed) => {
            let head = style.red(&format!("{} failed after {time}", style.sign("✘", "x")));
            format!("{head}{}", style.dim(&format!("{dot}{}", counts.join(dot))))
        }
        Some(End::Interrupted) => {
            let head = style.yellow(&format!("{} canceled after {time}", style.sign("∙", "-")));
            format!("{head}{}", style.dim(&format!("{dot}{}", counts.join(dot))))
        }
    }
}

#[cfg(test)]
mod tests {
    use rbuild_solver::progress::EventKind;

    use super::super::tests::{event, output, part, started};
    use super::*;

    const PLAIN: Style = Style { colors: false, unicode: true };

    fn busy_board() -> Board {
        let mut board = Board::default();
        let blob = format!("sha256:{}", "0f3e12ab".repeat(8));
        let events = [
            event(1, 0, started("[internal] load build definition from Dockerfile")),
            event(1, 10, EventKind::Finished),
            event(2, 10, started("[build 1/4] FROM docker.io/library/debian:bookworm")),
            event(2, 20, EventKind::Cached),
            event(
                3,
                20,
                started("[build 2/4] RUN apt-get update && apt-get install -y golang-go git make"),
            ),
            event(3, 21, EventKind::Miss { reason: "the command changed".into() }),
            event(3, 1000, EventKind::Finished),
            event(3, 1000, started("[build 3/4] RUN go build -o /out/calculator .")),
            event(3, 1001, EventKind::Miss { reason: "main.go changed".into() }),
            event(4, 1000, started("[web 1/2] FROM docker.io/library/python:3.12")),
        ];
        for event in &events {
            board.event(event);
        }
        for n in 1..=12 {
            board.event(&event(3, 1000 + n, output(&format!("\x1b[1mcompiling\x1b[0m {n}\n"))));
        }
        for n in 0..20 {
            board.event(&event(4, 1000 + n * 100, part(&blob, n * 1_200_000, 48_500_000, false)));
        }
        board.event(&event(4, 2900, part("config", 10, 10, true)));
        board.event(&event(
            4,
            2901,
            EventKind::Warning { message: "a mirror does not answer".into() },
        ));
        board
    }

    fn drawn(size: Size, style: Style) -> String {
        let mut board = busy_board();
        let now = Duration::from_millis(3200);
        let mut lines: Vec<String> =
            board.take_ended().iter().map(|ended| ended_line(ended, size.columns, style)).collect();
        lines.extend(live_lines(&board, now, size, 0, style));
        lines.push(total_line(&board, now, Some(End::Done), style));
        for line in &lines {
            assert!(measure_text_width(line) < size.columns.max(40), "{line}");
        }
        lines.join("\n")
    }

    #[test]
    fn a_build_on_80_columns() {
        insta::assert_snapshot!(drawn(Size { columns: 80, rows: 24 }, PLAIN), @r#"
        ✔ [internal] load build definition from Dockerfile                         0.0s
        ∙ [build 1/4] FROM docker.io/library/debian:bookworm                     CACHED
        ✔ [build 2/4] RUN apt-get update && apt-get install -y golang-go git make… 1.0s
        ! a mirror does not answer
        ⠋ [build 3/4] RUN go build -o /out/calculator .                            2.2s
          ↳ not cached: main.go changed
          │ compiling 8
          │ compiling 9
          │ compiling 10
          │ compiling 11
          │ compiling 12
        ⠋ [web 1/2] FROM docker.io/library/python:3.12                             2.2s
          ━━━━━━━━━─────────── sha256:0f3e12ab0f3e   22.8 MB /  48.5 MB  10.4 MB/s
          3.2s · 3 done · 1 cached · 2 running
        ✔ built in 3.2s · 3 done · 1 cached
        "#);
    }

    #[test]
    fn a_build_on_a_narrow_terminal() {
        insta::assert_snapshot!(drawn(Size { columns: 40, rows: 8 }, PLAIN), @r#"
        ✔ [internal] load build definitio… 0.0s
        ∙ [build 1/4] FROM docker.io/li… CACHED
        ✔ [build 2/4] RUN apt-get update … 1.0s
        ! a mirror does not answer
        ⠋ [build 3/4] RUN go build -o /ou… 2.2s
          ↳ not cached: main.go changed
          │ compiling 12
        ⠋ [web 1/2] FROM docker.io/librar… 2.2s
          sha256:0f3e12ab0f3e   22.8 MB /  48.…
          3.2s · 3 done · 1 cached · 2 running
        ✔ built in 3.2s · 3 done · 1 cached
        "#);
    }

    #[test]
    fn only_what_is_live_is_drawn_over() {
        let paper = super::super::tests::Paper::default();
        let mut screen = Screen { out: Box::new(paper.clone()), live: Vec::new() };
        let size = Size { columns: 10, rows: 24 };
        screen.draw(&["stays".into()], vec!["one".into(), "two".into()], size);
        // The second line has meanwhile been wrapped.
        screen.draw(&[], vec!["three".into()], Size { columns: 2, rows: 24 });
        screen.draw(&["ends".into()], Vec::new(), size);
        let expected = "\r\x1b[Jstays\none\ntwo\n\r\x1b[4A\x1b[Jthree\n\r\x1b[1A\x1b[Jends\n";
        assert_eq!(paper.text(), expected);
    }

    #[test]
    fn a_build_in_ascii() {
        let style = Style { colors: false, unicode: false };
        let text = drawn(Size { columns: 80, rows: 24 }, style);
        assert!(text.is_ascii(), "{text}");
    }

    #[test]
    fn any_size_is_drawn_and_held() {
        for columns in 0..100 {
            for rows in 0..12 {
                let board = busy_board();
                let size = Size { columns, rows };
                let lines = live_lines(&board, Duration::from_secs(9), size, 1, PLAIN);
                assert!(lines.len() <= rows.max(4), "{columns}x{rows}: {lines:#?}");
            }
        }
    }

    #[test]
    fn more_tasks_than_lines_are_counted() {
        let mut board = Board::default();
        (0..50).for_each(|n| board.event(&event(n, 0, started(&format!("[{n}] RUN sleep 1")))));
        let lines =
            live_lines(&board, Duration::from_secs(1), Size { columns: 40, rows: 8 }, 0, PLAIN);
        insta::assert_snapshot!(lines.join("\n"), @r#"
        ⠋ [0] RUN sleep 1                  1.0s
        ⠋ [1] RUN sleep 1                  1.0s
        ⠋ [2] RUN sleep 1                  1.0s
        ⠋ [3] RUN sleep 1                  1.0s
          and 46 more
          1.0s · 0 done · 50 running
        "#);
    }

    #[test]
    fn colours_do_not_count_as_columns() {
        let style = Style { colors: true, unicode: true };
        let text = drawn(Size { columns: 80, rows: 24 }, style);
        assert!(text.contains("\x1b[32m✔\x1b[0m"), "{text:?}");
    }
}
