//! Input that is made to hurt ends soon, in a build or in one clear message.

use std::time::Duration;

use rbuild_frontend::check::Checks;
use rbuild_frontend::expand::{Lexer, NoEnv};
use rbuild_frontend::parse;
use rbuild_frontend::source::Source;

use crate::cpu_time;
use crate::figure::figure;

/// Far more than it takes without optimisation, and far less than what grows with the square of the
/// input.
const SOON: Duration = Duration::from_secs(10);

/// Reads, checks and draws `text`; returns how many stages and instructions it has, and the first
/// thing that is wrong.
fn read(text: &str) -> (usize, usize, Option<String>) {
    let start = cpu_time::spent();
    let (dockerfile, diagnostics) = parse(Source::new("Dockerfile", text));
    let first = diagnostics.0.first().map(|diagnostic| diagnostic.message.clone());
    diagnostics.render(&dockerfile.source);
    Checks::default().dockerfile(&dockerfile);
    let took = cpu_time::since(start);
    assert!(took < SOON, "{took:?}");
    let instructions = dockerfile.stages.iter().map(|stage| stage.statements.len()).sum();
    (dockerfile.stages.len(), instructions, first)
}

fn check(text: &str, stages: usize, instructions: usize) {
    assert_eq!(read(text), (stages, instructions, None));
}

fn check_refused(text: &str, message: &str) {
    assert_eq!(read(text).2.as_deref(), Some(message));
}

#[test]
fn many_stages_and_many_instructions() {
    let stage = |i: usize| format!("FROM base AS stage{i}\nCOPY --from=stage0 /a /b\n");
    let stages: String = (0..10_000).map(stage).collect();
    let start = cpu_time::spent();
    check(&stages, 10_000, 10_000);
    let took = cpu_time::since(start).as_secs_f64();
    figure(&format!("P9 10,000 stages read, checked and drawn in {took:.2} s"));
    check(&("FROM a\n".to_owned() + &"RUN true\n".repeat(100_000)), 1, 100_000);
    check(&("FROM a\n".to_owned() + &"# check=skip=all\nmaintainer a\n".repeat(20_000)), 1, 20_000);
}

#[test]
fn long_lines() {
    let refused = "dockerfile line greater than max allowed size of 65535";
    check_refused(&format!("FROM a\nRUN {}", "a".repeat(1 << 20)), refused);
    check_refused(&format!("FROM a\nRUN <<EOF\n{}\nEOF\n", "a".repeat(1 << 20)), refused);
    check(&format!("FROM a\nRUN {}\nRUN b", "a".repeat(65_531)), 1, 2);
    let continued = "a b=c 'd' \\\n".repeat(100_000);
    check(&format!("FROM a\nRUN {continued}"), 1, 1);
    check(&format!("FROM a\nENV A=b {}", "A=b \\\n".repeat(100_000)), 1, 1);
    check(&format!("FROM a\nCOPY {} /x", "a \\\n".repeat(100_000)), 1, 1);
    check(&format!("FROM a\nCMD [\"a\" {}]", ",\\\n\"\\u0041\"".repeat(100_000)), 1, 1);
    check(&format!("FROM a\nRUN {} b", "--mount=target=/a \\\n".repeat(50_000)), 1, 1);
}

#[test]
fn many_heredocs() {
    let list = |count: usize, item: fn(usize) -> String| (0..count).map(item).collect::<Vec<_>>();
    let names = |count| list(count, |i| format!("<<E{i} \\\n")).concat();
    let documents = |count| list(count, |i| format!("a\nE{i}\n")).concat();
    check(&format!("FROM a\nRUN {}b\n{}", names(20_000), documents(20_000)), 1, 1);
    check(&format!("FROM a\nCOPY {}b\n{}", names(2_000), documents(2_000)), 1, 1);
    check_refused(&format!("FROM a\nRUN {}\n", names(20_000)), "unterminated heredoc");
}

#[test]
fn deep_nesting() {
    check(&format!("FROM a\nCMD {}", "[".repeat(60_000)), 1, 1);
    let refused = "Chaining ONBUILD via `ONBUILD ONBUILD` isn't allowed";
    check_refused(&format!("FROM a\n{}", "ONBUILD ".repeat(8_000)), refused);
    let start = cpu_time::spent();
    let nested = "${a:-".repeat(50_000) + "x" + &"}".repeat(50_000);
    let expanded = Lexer::new('\\').expand(&nested, &NoEnv).map(|expansion| expansion.result);
    assert_eq!(expanded, Ok("x".to_owned()));
    assert!(cpu_time::since(start) < SOON);
}

#[test]
fn everything_wrong() {
    let (_, _, first) = read(&"NO\n".repeat(20_000));
    assert_eq!(first.as_deref(), Some("unknown instruction: NO"));
    read(&"FROM a AS 1\nRUN --no\nENV a\n".repeat(20_000));
}
