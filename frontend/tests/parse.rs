//! Each folder of `testdata/parse` holds a Dockerfile and what must come of reading it
//! (`parsed.snap`): what it says in the form of `show.rs`, or what is wrong with it, and what the
//! build checks find in it.

use std::path::{Path, PathBuf};

use proptest::prelude::*;
use rbuild_frontend::check::{CheckOptions, Checks, Warning};
use rbuild_frontend::diagnostic::Diagnostics;
use rbuild_frontend::instruction::Instruction;
use rbuild_frontend::source::Source;
use rbuild_frontend::{Dockerfile, parse};

use crate::show;

#[test]
fn dockerfiles_are_understood() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata/parse");
    let mut cases: Vec<PathBuf> =
        fs_err::read_dir(&root).unwrap().map(|entry| entry.unwrap().path()).collect();
    cases.sort();
    assert!(!cases.is_empty());
    for folder in cases {
        let found = outcome(&fs_err::read(folder.join("Dockerfile")).unwrap());
        let mut settings = insta::Settings::clone_current();
        settings.set_snapshot_path(&folder);
        settings.set_prepend_module_to_snapshot(false);
        settings.set_omit_expression(true);
        settings.bind(|| insta::assert_snapshot!("parsed", found));
    }
}

fn outcome(bytes: &[u8]) -> String {
    let (dockerfile, diagnostics) = parse(Source::from_bytes("Dockerfile", bytes));
    if !diagnostics.0.is_empty() {
        return diagnostics.render(&dockerfile.source) + "\n";
    }
    let options = dockerfile.check.as_ref().map_or("", |check| check.as_str());
    let options = CheckOptions::parse(options.split(' ').next().unwrap_or_default()).unwrap();
    let mut checks = Checks::new(options);
    checks.dockerfile(&dockerfile);
    let warnings = checks.warnings().iter().map(Warning::diagnostic).collect();
    let warnings = Diagnostics(warnings).render(&dockerfile.source);
    show::dockerfile(&dockerfile) + &warnings
}

/// What `dockerfile` says, wherever it stands and however it is written.
fn meaning(dockerfile: &Dockerfile) -> String {
    let stages = dockerfile.stages.iter().map(|stage| {
        let name = stage.from.name.as_ref().map(ToString::to_string);
        let platform = stage.from.platform.as_ref().map(|platform| &platform.value);
        let from = (&stage.from.base.value, name, platform, &stage.description);
        let statements = stage.statements.iter().map(|statement| &statement.instruction);
        format!("{from:?} {:#?}", statements.collect::<Vec<_>>())
    });
    let arguments = dockerfile.arguments.iter().map(|argument| &argument.instruction);
    let all = format!("{:#?}\n{}", arguments.collect::<Vec<_>>(), stages.collect::<String>());
    let offset = |line: &str| {
        let line = line.trim_start();
        line.starts_with("start: ") || line.starts_with("end: ")
    };
    all.lines().filter(|line| !offset(line)).collect::<Vec<_>>().join("\n")
}

fn understood(text: &str) -> Option<Dockerfile> {
    let (dockerfile, diagnostics) = parse(Source::new("Dockerfile", text));
    let drawn = diagnostics.render(&dockerfile.source);
    assert_eq!(drawn.is_empty(), diagnostics.0.is_empty());
    diagnostics.0.is_empty().then_some(dockerfile)
}

/// Whether an ONBUILD has a trigger with an escape character at its end. A continuation can make
/// such a trigger, but its white space counts, so it cannot be shown on one line.
fn ends_in_escape(dockerfile: &Dockerfile) -> bool {
    let mut statements = dockerfile.stages.iter().flat_map(|stage| &stage.statements);
    statements.any(|statement| match &statement.instruction {
        Instruction::Onbuild(onbuild) => onbuild.expression.trim_end().ends_with('\\'),
        _ => false,
    })
}

/// Lines that are instructions, or nearly.
fn line() -> impl Strategy<Value = String> {
    let keyword = prop::sample::select(vec![
        "ADD",
        "ARG",
        "CMD",
        "COPY",
        "ENTRYPOINT",
        "ENV",
        "EXPOSE",
        "FROM",
        "HEALTHCHECK",
        "LABEL",
        "MAINTAINER",
        "ONBUILD COPY",
        "ONBUILD RUN",
        "RUN",
        "SHELL",
        "STOPSIGNAL",
        "USER",
        "VOLUME",
        "WORKDIR",
        "#",
        "run",
        "Copy",
    ]);
    let word = prop::sample::select(vec![
        "a",
        "b=c",
        "a=\"b c\"",
        "'d e'",
        "x\\ y",
        "$A",
        "${A:-b}",
        "[\"a\", \"b\"]",
        "[\"a\"]",
        "[1]",
        "<<EOF",
        "<<-'EF'",
        "--from=x",
        "--mount=target=/x",
        "--link",
        "--chown=\"a b\"",
        "--interval=1.5s",
        "--exclude=é",
        "--",
        "CMD",
        "NONE",
        "AS",
        "80/tcp",
        "\\",
        "\\\n",
        "\\\n# c\n",
        "\n",
        "\nEOF\n",
        "\nEF\n",
        "é",
        "\t",
        "",
    ]);
    (keyword, prop::collection::vec(word, 0..6))
        .prop_map(|(keyword, words)| format!("{keyword} {}\n", words.join(" ")))
}

/// The build argument counts, and the directive does not.
#[test]
fn the_frontend_can_be_given() {
    let check = |text: &str, syntax: Option<&str>, expected: Option<&str>| {
        let (_, wrong) = rbuild_frontend::parse_as(Source::new("Dockerfile", text), syntax);
        let first = wrong.0.first().map(|diagnostic| diagnostic.message.as_str());
        assert_eq!(first, expected, "{text} {syntax:?}");
    };
    check("FROM a\n", Some("docker/dockerfile:1.7-labs"), None);
    check("# syntax=other/frontend\nFROM a\n", Some(" docker.io/docker/dockerfile x "), None);
    let refused = Some("the frontend `other/frontend:1` is not supported");
    check("FROM a\n", Some("other/frontend:1 option"), refused);
    check("# syntax=other/frontend:1\nFROM a\n", None, refused);
    check("# syntax=other/frontend:1\nFROM a\n", Some(""), refused);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn what_is_shown_says_the_same(lines in prop::collection::vec(line(), 1..5)) {
        let text = format!("FROM scratch\n{}", lines.concat());
        if let Some(dockerfile) = understood(&text) {
            prop_assume!(!ends_in_escape(&dockerfile));
            let shown = show::dockerfile(&dockerfile);
            let again = understood(&shown);
            prop_assert!(again.is_some(), "{shown}");
            prop_assert_eq!(again.as_ref().map(meaning), Some(meaning(&dockerfile)), "{}", shown);
        }
    }

    #[test]
    fn any_text_is_understood_or_refused(text in any::<String>()) {
        understood(&text);
    }

    #[test]
    fn any_bytes_are_understood_or_refused(bytes in any::<Vec<u8>>()) {
        let (dockerfile, diagnostics) = parse(Source::from_bytes("Dockerfile", &bytes));
        diagnostics.render(&dockerfile.source);
    }
}
