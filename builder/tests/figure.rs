//! Figures that tests print: how many modes of a promise were right, and what that took.

use std::io::Write as _;

/// Prints `line` although the test passes.
pub(crate) fn figure(line: &str) {
    // Not `eprintln!`, which the test runner hides when the test passes.
    std::io::stderr().write_all(format!("{line}\n").as_bytes()).unwrap();
}

/// What came of one mode of a promise.
pub(crate) struct Mode {
    what: String,
    wrong: Option<String>,
    /// How often the most wanted blob was asked for.
    requests: usize,
}

impl Mode {
    pub(crate) fn new(what: &str, outcome: Result<(), String>, requests: usize) -> Self {
        Self { what: what.to_owned(), wrong: outcome.err(), requests }
    }
}

/// Prints how many of `modes` were right; all must be.
#[track_caller]
pub(crate) fn all_right(promise: &str, modes: &[Mode]) {
    let wrong: Vec<String> = modes
        .iter()
        .filter_map(|mode| Some(format!("{}: {}", mode.what, mode.wrong.as_ref()?)))
        .collect();
    let most = modes.iter().map(|mode| mode.requests).max().unwrap_or(0);
    let (right, all) = (modes.len() - wrong.len(), modes.len());
    let requests =
        if most == 0 { String::new() } else { format!(", at most {most} requests a blob") };
    figure(&format!("{promise} right {right} / {all} modes{requests}"));
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
