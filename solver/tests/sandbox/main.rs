//! Runs commands in the real sandbox and looks at them from inside and outside.
//!
//! Not run by libtest: the sandbox starts this very program anew, which must then become the
//! sandbox server before anything else happens. Run as root it tests the sandbox of root; as a user,
//! that of a user with ranges of ids, or with one id, whichever it has. Needs busybox, and a kernel
//! that allows namespaces; says what it lacks, and passes, where they are missing.
#![allow(clippy::print_stdout, clippy::unwrap_used, reason = "a test runner reports and panics")]

mod fixture;
mod isolation;
mod life;
mod limits;
mod mounts;
mod probe;
mod reach;
mod steps;

use std::process::ExitCode;
use std::time::Instant;

/// A test: its name, and what it does. It panics when it fails.
type Test = (&'static str, fn());

fn main() -> ExitCode {
    rbuild_solver::sandbox::namespaces::serve_when_asked();
    probe::run_when_asked();
    let words: Vec<_> = std::env::args().skip(1).filter(|word| !word.starts_with('-')).collect();
    let identity = match fixture::identity() {
        Ok(identity) => identity,
        Err(missing) => {
            println!("sandbox tests are skipped: {missing}");
            return ExitCode::SUCCESS;
        }
    };
    println!("sandbox tests as {identity:?}");
    if std::env::args().nth(1).as_deref() == Some(life::SLEEP) {
        life::sleep(&words[0]);
    }
    if std::env::args().nth(1).as_deref() == Some(limits::SLEEP) {
        limits::sleep(&words[0]);
    }
    let mut failed = 0;
    let tests =
        [isolation::TESTS, life::TESTS, limits::TESTS, mounts::TESTS, reach::TESTS, steps::TESTS]
            .concat();
    let chosen: Vec<&Test> = tests
        .iter()
        .filter(|(name, _)| words.is_empty() || words.iter().any(|word| name.contains(word)))
        .collect();
    for (name, test) in &chosen {
        let start = Instant::now();
        let passed = std::panic::catch_unwind(test).is_ok();
        let verdict = if passed { "ok" } else { "FAILED" };
        println!("test {name} ... {verdict} ({} ms)", start.elapsed().as_millis());
        failed += usize::from(!passed);
    }
    println!("test result: {} passed, {failed} failed", chosen.len() - failed);
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
