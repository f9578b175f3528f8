//! Why rbuild ended without having done what it was asked: kinds, exit codes, and the drawing.
//!
//! Every error that reaches the user passes through [`BuildError`]. Its kind decides the exit code;
//! its problems are drawn one below the other, each with the lines of the Dockerfile it is about,
//! the end of the failed step's output, and what the user can do.

use std::error::Error;
use std::fmt;
use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use annotate_snippets::{AnnotationKind, Group, Level, Renderer, Snippet};
use rbuild_cache::snapshot::SnapshotError;
use rbuild_frontend::diagnostic::{Diagnostic, Severity};
use rbuild_frontend::source::{Source, Span};
use rbuild_solver::error::{Cause, SolveError};
use rbuild_solver::image_source::ImageSourceError;
use rbuild_solver::ops::file::FileError;

use crate::progress::harmless;
use crate::registry::RegistryError;
use crate::request::UsageError;

/// Why rbuild ended without having done what it was asked.
#[derive(Clone, Debug)]
pub struct BuildError {
    /// What kind of end it is.
    pub kind: ErrorKind,
    /// What went wrong; at least one, unless it was interrupted.
    pub problems: Vec<Problem>,
}

/// Whose fault it is, as the exit code says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// The build failed: the Dockerfile, a step, a source.
    Failed,
    /// Wrong usage.
    Usage,
    /// A fault in rbuild or around it.
    Fault,
    /// A signal of this number ended it.
    Interrupted(u8),
}

impl ErrorKind {
    /// The exit code; for signals as shells have it, so 130 for Ctrl-C.
    pub const fn exit_code(self) -> u8 {
        match self {
            Self::Failed => 1,
            Self::Usage => 2,
            Self::Fault => 3,
            Self::Interrupted(signal) => 128 + signal,
        }
    }
}

/// One thing that went wrong, or that is worth a warning.
#[derive(Clone, Debug, Default)]
pub struct Problem {
    /// It is only worth a warning.
    pub warning: bool,
    /// What.
    pub message: String,
    /// What lies behind, nearest first.
    pub causes: Vec<String>,
    /// Where in a Dockerfile.
    pub excerpt: Option<Excerpt>,
    /// The step that failed and the end of what it wrote.
    pub output: Option<(String, Vec<u8>)>,
    /// What the user can do.
    pub hints: Vec<String>,
}

/// A place in a text, to be drawn with carets below it.
#[derive(Clone, Debug)]
pub struct Excerpt {
    /// The file's name.
    pub name: Arc<str>,
    /// All of its text.
    pub text: Arc<str>,
    /// The bytes meant.
    pub span: Range<usize>,
    /// What is said behind the carets.
    pub label: Option<String>,
}

impl BuildError {
    /// One problem of a kind.
    pub fn new(kind: ErrorKind, problem: Problem) -> Self {
        Self { kind, problems: vec![problem] }
    }

    /// The build failed because of `error`.
    pub fn failed(error: &(dyn Error + 'static)) -> Self {
        Self::new(ErrorKind::Failed, Problem::of(error))
    }

    /// Something around rbuild, or in it, failed with `error`.
    pub fn fault(error: &(dyn Error + 'static)) -> Self {
        Self::new(ErrorKind::Fault, Problem::of(error))
    }

    /// The user interrupted, with this signal.
    pub fn interrupted(signal: u8) -> Self {
        Self { kind: ErrorKind::Interrupted(signal), problems: Vec::new() }
    }

    /// All of `errors`, if there are any, as one of the first one's kind.
    pub fn all(errors: Vec<Self>) -> Result<(), Self> {
        let Some(kind) = errors.first().map(|error| error.kind) else { return Ok(()) };
        Err(Self { kind, problems: errors.into_iter().flat_map(|error| error.problems).collect() })
    }

    /// The Dockerfile cannot be built; all that is wrong with it.
    pub fn dockerfile(diagnostics: &[Diagnostic], source: &Source) -> Self {
        let problems = diagnostics.iter().map(|one| Problem::diagnostic(one, source)).collect();
        Self { kind: ErrorKind::Failed, problems }
    }

    /// A vertex of the graph failed; `source` is the Dockerfile it came from.
    pub fn solve(error: &SolveError, source: &Source) -> Self {
        let mut problem = Problem::of(&*error.cause);
        problem.excerpt = error.span.as_ref().map(|span| Excerpt {
            name: Arc::clone(&span.file),
            text: source.text().into(),
            span: span.start..span.end,
            label: None,
        });
        let mut kind = ErrorKind::Failed;
        match &*error.cause {
            Cause::Exit { tail, .. }
            | Cause::Timeout { tail, .. }
            | Cause::OutOfMemory { tail, .. } => {
                problem.output = Some((error.name.clone(), tail.clone()));
            }
            Cause::Image(error) => problem.hints.extend(error.hint.clone()),
            Cause::Slim(error) => problem.hints.extend(error.hint()),
            Cause::Sandbox(error) => {
                kind = ErrorKind::Fault;
                problem.hints.extend(error.hint.clone());
            }
            Cause::State(error) if is_too_long(&**error) => {
                let hint = "the step made folders in one another whose path, with that of the state \
                            folder, is longer than the kernel takes (4096 bytes)";
                problem.hints.push(hint.to_owned());
            }
            // A rejected result is solved again without.
            Cause::State(_) | Cause::Canceled | Cause::Rejected { .. } => kind = ErrorKind::Fault,
            Cause::File(FileError::Ignored(_)) => {
                problem.hints.push("it is there, but `.dockerignore` leaves it out".to_owned());
            }
            Cause::File(error) if is_unreadable(error) => {
                let hint = "what the build does not need is left out by a line in `.dockerignore`";
                problem.hints.push(hint.to_owned());
            }
            Cause::SecretMissing { id } => {
                problem.hints.push(format!("`--secret id={id},src=FILE` lends it to the build"));
            }
            Cause::SshMissing { id } => {
                problem.hints.push(format!("`--ssh {id}` lends it to the build"));
            }
            Cause::DiffId { .. }
            | Cause::File(_)
            | Cause::Http(_)
            | Cause::Git(_)
            | Cause::NotAllowed { .. }
            | Cause::Unsupported(_) => {}
        }
        if lacks_room(&error.cause) {
            kind = ErrorKind::Fault;
        }
        Self::new(kind, problem)
    }

    /// Says which disk is full, if that is what lies behind.
    #[must_use]
    pub fn on_full_disk(self, error: &SolveError, state_folder: &Path) -> Self {
        if !lacks_room(&error.cause) {
            return self;
        }
        let folder = state_folder.display();
        self.hint(format!(
            "there is no room left for the state folder `{folder}`: make some, or name another \
             folder with `--root DIR` or RBUILD_ROOT"
        ))
    }

    /// Says that there is no context, if what lies behind is that a file is not in it.
    #[must_use]
    pub fn without_context(self, error: &SolveError) -> Self {
        let line = self.problems.last().and_then(|problem| problem.excerpt.as_ref());
        let of_stage = line.is_some_and(|line| {
            line.text.get(line.span.clone()).is_some_and(|line| line.contains("--from"))
        });
        match &*error.cause {
            Cause::File(FileError::NotFound(_)) if !of_stage => self.hint(
                "a Dockerfile without a folder has no files beside it: `-f - DIR` reads it from \
                 stdin and takes the files of DIR",
            ),
            _ => self,
        }
    }

    /// Adds what the user can do to the last problem.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        if let Some(problem) = self.problems.last_mut() {
            problem.hints.push(hint.into());
        }
        self
    }

    /// All of it, as text with a line break at the end.
    pub fn draw(&self, colors: bool) -> String {
        if let ErrorKind::Interrupted(signal) = self.kind {
            let by = match signal {
                1 => "the terminal went away (SIGHUP)",
                15 => "SIGTERM came",
                _ => "interrupted",
            };
            return format!("canceled: {by}\n");
        }
        let problems: Vec<String> =
            self.problems.iter().map(|problem| problem.draw(colors)).collect();
        problems.join("\n")
    }
}

impl fmt::Display for BuildError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.problems.first() {
            Some(problem) => f.write_str(&problem.message),
            None => f.write_str("canceled"),
        }
    }
}

impl Error for BuildError {}

impl From<UsageError> for BuildError {
    fn from(error: UsageError) -> Self {
        let problem = Problem {
            message: error.to_string(),
            hints: error.hint().into_iter().collect(),
            ..Problem::default()
        };
        Self::new(ErrorKind::Usage, problem)
    }
}

impl From<ImageSourceError> for BuildError {
    fn from(error: ImageSourceError) -> Self {
        let mut problem = Problem::of(&error);
        problem.hints.extend(error.hint);
        Self::new(ErrorKind::Failed, problem)
    }
}

impl From<RegistryError> for BuildError {
    fn from(error: RegistryError) -> Self {
        let mut problem = Problem::of(&error);
        problem.hints.extend(error.hint());
        Self::new(ErrorKind::Failed, problem)
    }
}

impl Problem {
    /// What `error` says, and the causes behind it that say something more.
    pub fn of(error: &(dyn Error + 'static)) -> Self {
        let message = error.to_string();
        let mut causes: Vec<String> = Vec::new();
        let mut source = error.source();
        while let Some(cause) = source {
            let text = cause.to_string();
            let said = |earlier: &String| earlier.contains(&text);
            if !said(&message) && !causes.iter().any(said) {
                causes.push(text);
            }
            source = cause.source();
        }
        Self { message, causes, ..Self::default() }
    }

    /// A diagnostic of the frontend.
    pub fn diagnostic(diagnostic: &Diagnostic, source: &Source) -> Self {
        Self {
            warning: diagnostic.severity == Severity::Warning,
            message: diagnostic.message.clone(),
            excerpt: diagnostic.span.map(|span| Excerpt {
                name: source.name().into(),
                text: source.text().into(),
                span: span.start..span.end,
                label: diagnostic.label.clone(),
            }),
            hints: diagnostic.hints.clone(),
            ..Self::default()
        }
    }

    /// The drawing, with a line break at the end.
    pub fn draw(&self, colors: bool) -> String {
        let level = if self.warning { Level::WARNING } else { Level::ERROR };
        let title = harmless::message(&self.message);
        let mut group: Group<'_> = Group::with_title(level.primary_title(&title));
        if let Some(excerpt) = &self.excerpt {
            group = group.element(excerpt.snippet());
        }
        for cause in self.causes.iter().filter(|_| self.excerpt.is_some()) {
            let cause = harmless::message(cause);
            group = group.element(Level::NOTE.with_name("cause").message(cause));
        }
        // Below nothing that is drawn, the ruled lines would hang in the air.
        let ruled = self.excerpt.is_some();
        for hint in self.hints.iter().filter(|_| ruled) {
            group = group.element(Level::HELP.with_name("hint").message(harmless::line(hint)));
        }
        let renderer = if colors { Renderer::styled() } else { Renderer::plain() };
        let mut drawing = renderer.render(&[group]);
        drawing.push('\n');
        if !ruled {
            let plain =
                |name: &str, text: &String| format!("{name}: {}\n", harmless::message(text));
            drawing.extend(self.causes.iter().map(|cause| plain("cause", cause)));
            drawing.extend(self.hints.iter().map(|hint| plain("hint", hint)));
        }
        if let Some((step, output)) = &self.output {
            drawing.push_str(&last_lines(step, output));
        }
        drawing
    }
}

/// How many of the last lines of a failed step are shown.
const SHOWN_LINES: usize = 20;

/// The end of a step's output between rules, as BuildKit shows it; nothing if it wrote nothing.
fn last_lines(step: &str, output: &[u8]) -> String {
    let text = String::from_utf8_lossy(output);
    let lines: Vec<String> = text.lines().map(harmless::line).collect();
    let end = lines.iter().rposition(|line| !line.trim().is_empty()).map_or(0, |last| last + 1);
    if end == 0 {
        return String::new();
    }
    let start = end.saturating_sub(SHOWN_LINES);
    let mut shown = format!("------\n > {}:\n", harmless::line(step));
    lines[start..end].iter().for_each(|line| {
        shown.push_str(line);
        shown.push('\n');
    });
    shown.push_str("------\n");
    shown
}

/// How many bytes of a line stand before and behind what is meant, at most.
const BEFORE: usize = 60;
const BEHIND: usize = 160;

impl Excerpt {
    /// The place `span` of a Dockerfile.
    pub fn of(source: &Source, span: Span) -> Self {
        let (name, text) = (source.name().into(), source.text().into());
        Self { name, text, span: span.start..span.end, label: None }
    }

    /// The lines around the span. A line of megabytes is cut to what surrounds the span, since it
    /// would be drawn whole; and control characters cannot reach the terminal.
    fn snippet(&self) -> Snippet<'static, annotate_snippets::Annotation<'static>> {
        let text = &*self.text;
        let boundary = |mut at: usize| {
            at = at.min(text.len());
            while !text.is_char_boundary(at) {
                at -= 1;
            }
            at
        };
        let start = boundary(self.span.start);
        let end = boundary(self.span.end).max(start);
        let line_start = text[..start].rfind('\n').map_or(0, |before| before + 1);
        let line_end = text[start..].find('\n').map_or(text.len(), |behind| start + behind);
        let end = end.min(line_end);
        let from = if start - line_start > BEHIND { boundary(start - BEFORE) } else { line_start };
        let to = if line_end - start > BEHIND { boundary(start + BEHIND) } else { line_end };
        let shown = |range: Range<usize>| -> String {
            // One character for one, so that the carets stay below what they point at.
            let plain = |c: char| match c {
                '\t' => ' ',
                c if harmless::is_harmful(c) => '\u{fffd}',
                c => c,
            };
            text[range].trim_end_matches('\r').chars().map(plain).collect()
        };
        let before = shown(from..start);
        let meant = shown(start..end.min(to));
        let behind = shown(end.min(to)..to);
        let span = before.len()..(before.len() + meant.len());
        let line = text[..start].matches('\n').count() + 1;
        let annotation = AnnotationKind::Primary.span(span).label(self.label.clone());
        Snippet::source(format!("{before}{meant}{behind}"))
            .line_start(line)
            .path(self.name.to_string())
            .annotation(annotation)
    }
}

/// Whether it failed for want of room: rbuild's own writing, or a command's.
fn lacks_room(cause: &Cause) -> bool {
    let full = [io::ErrorKind::StorageFull, io::ErrorKind::QuotaExceeded];
    matches!(cause, Cause::Exit { no_room: true, .. }) || lies_in(cause, &full)
}

/// Whether a file may not be read.
fn is_unreadable(error: &FileError) -> bool {
    let reads = matches!(error, FileError::View(_) | FileError::Checksum(_));
    reads && lies_in(error, &[io::ErrorKind::PermissionDenied])
}

/// Whether a path is longer than the kernel takes.
fn is_too_long(error: &(dyn Error + 'static)) -> bool {
    lies_in(error, &[io::ErrorKind::InvalidFilename])
}

/// Whether `error`, or something behind it, is the system's and of one of `kinds`.
fn lies_in(error: &(dyn Error + 'static), kinds: &[io::ErrorKind]) -> bool {
    let mut behind = Some(error);
    while let Some(error) = behind {
        if of_system(error).is_some_and(|error| kinds.contains(&error.kind())) {
            return true;
        }
        behind = error.source();
    }
    false
}

/// The system's error that `error` is. One that passes it on under its own name has what lies behind
/// it for source, and not it.
fn of_system<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a io::Error> {
    let passed_on = || match error.downcast_ref() {
        Some(SnapshotError::Io(error)) => Some(error),
        _ => None,
    };
    error.downcast_ref().or_else(passed_on)
}

#[cfg(test)]
mod tests {
    use rbuild_cache::view::ViewError;

    use super::*;

    #[test]
    fn what_may_not_be_read_can_be_left_out() {
        let check = |kind: io::ErrorKind, expected: usize| {
            let unread = ViewError::Io { path: "/secret".into(), source: kind.into() };
            let cause = Arc::new(Cause::File(FileError::View(unread)));
            let error = SolveError { name: "COPY . /".into(), span: None, cause };
            let error = BuildError::solve(&error, &Source::new("Dockerfile", ""));
            let hints = &error.problems[0].hints;
            assert_eq!(
                hints.iter().filter(|hint| hint.contains(".dockerignore")).count(),
                expected
            );
        };
        check(io::ErrorKind::PermissionDenied, 1);
        check(io::ErrorKind::NotFound, 0);
    }

    fn excerpt(text: &str, meant: &str, label: Option<&str>) -> Excerpt {
        let start = text.find(meant).unwrap();
        Excerpt {
            name: "Dockerfile".into(),
            text: text.into(),
            span: start..start + meant.len(),
            label: label.map(str::to_owned),
        }
    }

    #[test]
    fn a_mistake_is_drawn_below_its_line() {
        let text = "FROM busybox\n\nRUN true\nCOPY --form=build /out /out\n";
        let problem = Problem {
            message: "unknown flag `--form` for COPY".into(),
            excerpt: Some(excerpt(text, "--form", Some("did you mean `--from`?"))),
            hints: vec!["COPY has --from, --chown".into()],
            ..Problem::default()
        };
        insta::assert_snapshot!(problem.draw(false), @r#"
        error: unknown flag `--form` for COPY
         --> Dockerfile:4:6
          |
        4 | COPY --form=build /out /out
          |      ^^^^^^ did you mean `--from`?
          |
          = hint: COPY has --from, --chown
        "#);
    }

    #[test]
    fn a_failed_step_shows_the_end_of_its_output() {
        let text = "FROM busybox\nRUN make\n";
        let lines: Vec<String> = (1..=30).map(|n| format!("line {n}")).collect();
        let written = lines.join("\n") + "\n";
        let problem = Problem {
            message: "process \"/bin/sh -c make\" did not complete successfully: exit code: 2"
                .into(),
            excerpt: Some(excerpt(text, "RUN make", None)),
            output: Some(("[2/2] RUN make".into(), (written + "\x1b]0;evil\x07last\r\n").into())),
            ..Problem::default()
        };
        insta::assert_snapshot!(problem.draw(false), @r#"
        error: process "/bin/sh -c make" did not complete successfully: exit code: 2
         --> Dockerfile:2:1
          |
        2 | RUN make
          | ^^^^^^^^
        ------
         > [2/2] RUN make:
        line 12
        line 13
        line 14
        line 15
        line 16
        line 17
        line 18
        line 19
        line 20
        line 21
        line 22
        line 23
        line 24
        line 25
        line 26
        line 27
        line 28
        line 29
        line 30
        last
        ------
        "#);
    }

    #[test]
    fn without_a_place_there_are_no_rules() {
        let problem = Problem {
            message: "no".into(),
            causes: vec!["the disk is full".into()],
            hints: vec!["make room".into()],
            ..Problem::default()
        };
        assert_eq!(problem.draw(false), "error: no\ncause: the disk is full\nhint: make room\n");
    }

    #[test]
    fn causes_that_repeat_are_left_out() {
        #[derive(Debug, thiserror::Error)]
        #[error("cannot read it: {0}")]
        struct Outer(#[source] std::io::Error);
        let error = Outer(std::io::Error::other("the disk is gone"));
        assert_eq!(Problem::of(&error).causes, Vec::<String>::new());
    }

    #[test]
    fn several_mistakes_are_all_drawn() {
        let source = Source::new("Dockerfile", "FRM a\nRUM b\n");
        let diagnostics = [
            Diagnostic::error("unknown instruction: FRM", Span::new(0, 3)),
            Diagnostic::warning("odd", Span::new(6, 9)).label("here"),
        ];
        let error = BuildError::dockerfile(&diagnostics, &source);
        insta::assert_snapshot!(error.draw(false), @r#"
        error: unknown instruction: FRM
         --> Dockerfile:1:1
          |
        1 | FRM a
          | ^^^

        warning: odd
         --> Dockerfile:2:1
          |
        2 | RUM b
          | ^^^ here
        "#);
    }

    #[test]
    fn a_huge_line_with_control_characters_is_cut_and_harmless() {
        let text = format!("RUN {}\x1b[2J --x {}", "a".repeat(1 << 20), "b".repeat(1 << 20));
        let problem = Problem {
            message: "no".into(),
            excerpt: Some(excerpt(&text, "--x", None)),
            ..Problem::default()
        };
        let drawing = problem.draw(false);
        assert!(drawing.len() < 1000, "{}", drawing.len());
        assert!(!drawing.contains('\x1b'));
        // Any span is drawn, also one outside of the text or inside a character.
        for (start, end) in [(0, 0), (3, 1), (99, 100), (1, 2)] {
            let span = Range { start, end };
            let excerpt = Excerpt { name: "D".into(), text: "é\nx".into(), span, label: None };
            let problem = Problem { excerpt: Some(excerpt), ..Problem::default() };
            assert!(!problem.draw(false).is_empty());
        }
    }

    #[test]
    fn exit_codes() {
        assert_eq!(ErrorKind::Failed.exit_code(), 1);
        assert_eq!(ErrorKind::Usage.exit_code(), 2);
        assert_eq!(ErrorKind::Fault.exit_code(), 3);
        assert_eq!(ErrorKind::Interrupted(2).exit_code(), 130);
        assert_eq!(ErrorKind::Interrupted(15).exit_code(), 143);
    }
}
