//! Running the built program, each test with a state folder and a home of its own.

use std::ffi::OsStr;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

use serde_json::Value;
use tempfile::TempDir;

use crate::base;

/// A state folder and a home; every run shares them.
pub(crate) struct Rbuild {
    pub(crate) root: PathBuf,
    pub(crate) home: TempDir,
    /// Removes the state folder at the end, where it is this test's own.
    _scratch: Option<TempDir>,
}

impl Rbuild {
    /// Starts from an empty state folder.
    pub(crate) fn new() -> Self {
        let scratch = scratch();
        Self { root: scratch.path().join("root"), home: scratch_home(), _scratch: Some(scratch) }
    }

    /// Uses the state folder at `root`, which stays.
    pub(crate) fn at(root: &Path) -> Self {
        Self { root: root.to_owned(), home: scratch_home(), _scratch: None }
    }

    /// `rbuild` with no arguments yet, and with an environment that holds nothing of this machine
    /// but the way to the network.
    pub(crate) fn command(&self) -> Run {
        let mut command = Command::new(env!("CARGO_BIN_EXE_rbuild"));
        let kept = ["PATH", "http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY"];
        command.env_clear().envs(std::env::vars().filter(|(name, _)| kept.contains(&&**name)));
        command.env("HOME", self.home.path()).env("RBUILD_ROOT", &self.root);
        command.current_dir(self.home.path()).stdin(Stdio::null());
        Run { command, stdin: None }
    }

    /// `rbuild build --progress plain CONTEXT`, knowing `busybox`.
    pub(crate) fn build(&self, context: impl AsRef<Path>) -> Run {
        self.command()
            .args(["build", "--progress", "plain"])
            .base("busybox", base::busybox())
            .arg(context.as_ref())
    }

    /// What the state folder's `tmp` still holds: nothing, once no build runs.
    pub(crate) fn leftovers(&self) -> Vec<PathBuf> {
        let Ok(entries) = fs_err::read_dir(self.root.join("tmp")) else { return Vec::new() };
        entries.map(|entry| entry.unwrap().path()).collect()
    }
}

/// A temporary folder on the disk that the build's target folder is on, which is a real one.
pub(crate) fn scratch() -> TempDir {
    tempfile::Builder::new().prefix("rbuild-").tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

fn scratch_home() -> TempDir {
    scratch()
}

/// A folder with these files; names may hold folders.
pub(crate) fn context(files: &[(&str, &str)]) -> TempDir {
    let folder = scratch();
    for (name, text) in files {
        write(folder.path().join(name), text);
    }
    folder
}

/// Writes a file, and the folders it is in.
pub(crate) fn write(path: impl AsRef<Path>, text: &str) {
    fs_err::create_dir_all(path.as_ref().parent().unwrap()).unwrap();
    fs_err::write(path.as_ref(), text).unwrap();
}

/// One run of the program, being put together.
pub(crate) struct Run {
    pub(crate) command: Command,
    stdin: Option<Vec<u8>>,
}

impl Run {
    /// Another command, such as one around `rbuild`.
    pub(crate) fn of(mut command: Command) -> Self {
        command.stdin(Stdio::null());
        Self { command, stdin: None }
    }

    pub(crate) fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.command.arg(arg);
        self
    }

    pub(crate) fn args<A: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        self.command.args(args);
        self
    }

    pub(crate) fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    pub(crate) fn stdin(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.stdin = Some(bytes.into());
        self
    }

    /// Makes the image in `layout` known as `name`.
    pub(crate) fn base(self, name: &str, layout: &Path) -> Self {
        let named = format!("{name}=oci-layout://{}", layout.display());
        self.arg("--build-context").arg(named)
    }

    /// `-o SPEC`, with `dest` added to the specification.
    pub(crate) fn output(self, spec: &str, dest: &Path) -> Self {
        self.arg("-o").arg(format!("{spec},dest={}", dest.display()))
    }

    /// Runs it and waits for its end.
    pub(crate) fn run(mut self) -> Outcome {
        self.command.stdout(Stdio::piped()).stderr(Stdio::piped());
        if self.stdin.is_some() {
            self.command.stdin(Stdio::piped());
        }
        let mut child = self.command.spawn().unwrap();
        if let Some(bytes) = self.stdin {
            // A program that stops before it has read everything closes the pipe: its exit code
            // is what the test looks at.
            let _ = child.stdin.take().unwrap().write_all(&bytes);
        }
        Outcome::of(child)
    }

    /// The same by another program, which is given the whole command as its last arguments.
    pub(crate) fn under(mut self, program: &[&str]) -> Self {
        let mut command = Command::new(program[0]);
        command.args(&program[1..]).arg(self.command.get_program());
        command.args(self.command.get_args()).env_clear();
        command.envs(self.command.get_envs().filter_map(|(name, value)| Some((name, value?))));
        command.current_dir(self.command.get_current_dir().unwrap()).stdin(Stdio::null());
        self.command = command;
        self
    }

    /// As started from a terminal: what a shell runs in the background has Ctrl-C ignored, which
    /// the tests, and then rbuild, would inherit.
    pub(crate) fn on_terminal(self) -> Self {
        self.under(&["env", "--default-signal"])
    }

    /// Starts it and gives it back running.
    pub(crate) fn start(mut self) -> Child {
        self.command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }

    /// Runs it; it must succeed.
    #[track_caller]
    pub(crate) fn succeeds(self) -> Outcome {
        self.exits(0)
    }

    /// Runs it; it must end with that exit code.
    #[track_caller]
    pub(crate) fn exits(self, code: i32) -> Outcome {
        let outcome = self.run();
        assert_eq!(outcome.status.code(), Some(code), "exit code\n{outcome}");
        outcome
    }
}

/// What a run said, and how it ended.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) status: ExitStatus,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}\n-- stdout\n{}\n-- stderr\n{}", self.status, self.stdout, self.stderr)
    }
}

impl Outcome {
    pub(crate) fn of(child: Child) -> Self {
        let output = child.wait_with_output().unwrap();
        Self {
            status: output.status,
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// The steps of a plain progress log, in the order of their numbers.
    pub(crate) fn steps(&self) -> Vec<Step> {
        let mut steps: Vec<Step> = Vec::new();
        for line in self.stderr.lines() {
            let Some((number, text)) = line.strip_prefix('#').and_then(|line| line.split_once(' '))
            else {
                continue;
            };
            let Ok(number) = number.parse::<usize>() else { continue };
            match steps.iter_mut().find(|step| step.number == number) {
                Some(step) if text == "CACHED" => step.cached = true,
                Some(step) => step.lines.push(text.to_owned()),
                None => steps.push(Step {
                    number,
                    name: text.to_owned(),
                    cached: false,
                    lines: Vec::new(),
                }),
            }
        }
        steps.sort_by_key(|step| step.number);
        steps
    }

    /// The step whose name ends with `instruction`, as the Dockerfile has it.
    #[track_caller]
    pub(crate) fn step(&self, instruction: &str) -> Step {
        let found = self.steps().into_iter().find(|step| step.name.ends_with(instruction));
        found.unwrap_or_else(|| panic!("no step `{instruction}`\n{self}"))
    }

    /// Whether a step of that name was shown at all.
    pub(crate) fn has_step(&self, instruction: &str) -> bool {
        self.steps().iter().any(|step| step.name.ends_with(instruction))
    }

    #[track_caller]
    pub(crate) fn assert_stderr_has(&self, texts: &[&str]) {
        for text in texts {
            assert!(self.stderr.contains(text), "`{text}` is not on stderr\n{self}");
        }
    }
}

/// One numbered step of a plain progress log.
#[derive(Debug)]
pub(crate) struct Step {
    pub(crate) number: usize,
    /// Such as `[build 2/6] RUN make`.
    pub(crate) name: String,
    pub(crate) cached: bool,
    /// Everything after its name but the word `CACHED`.
    pub(crate) lines: Vec<String>,
}

/// Runs a program of others; gives its stdout; it must succeed.
#[track_caller]
pub(crate) fn run(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).stdin(Stdio::null()).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {args:?}: {}\n{stderr}", output.status);
    String::from_utf8(output.stdout).unwrap()
}

/// Reads a file of JSON.
#[track_caller]
pub(crate) fn json(path: impl AsRef<Path>) -> Value {
    serde_json::from_slice(&fs_err::read(path.as_ref()).unwrap()).unwrap()
}
