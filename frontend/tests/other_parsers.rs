//! Comparison with two other parsers: where either accepts a Dockerfile, we find the same
//! instructions in it.
//!
//! Neither reads all of the language, and both let pass what must be refused; so what they refuse
//! says nothing, and neither does a file that we refuse.

use std::path::{Path, PathBuf};

use dockerfile_parser::Instruction as Theirs;
use rbuild_frontend::source::Source;
use rbuild_frontend::{Dockerfile, parse};

/// The keywords of `dockerfile` in lower case, in order.
fn ours(dockerfile: &Dockerfile) -> Vec<String> {
    let arguments = dockerfile.arguments.iter().map(|argument| &argument.origin);
    let stages = dockerfile.stages.iter().flat_map(|stage| {
        let statements = stage.statements.iter().map(|statement| &statement.origin);
        std::iter::once(&stage.origin).chain(statements)
    });
    arguments.chain(stages).map(|origin| origin.keyword.value.to_lowercase()).collect()
}

/// The keywords that `dockerfile-parser` finds.
fn dockerfile_parser(text: &str) -> Option<Vec<String>> {
    let dockerfile = dockerfile_parser::Dockerfile::parse(text).ok()?;
    let keyword = |instruction: &Theirs| match instruction {
        Theirs::From(_) => "from".to_owned(),
        Theirs::Arg(_) => "arg".to_owned(),
        Theirs::Label(_) => "label".to_owned(),
        Theirs::Run(_) => "run".to_owned(),
        Theirs::Entrypoint(_) => "entrypoint".to_owned(),
        Theirs::Cmd(_) => "cmd".to_owned(),
        Theirs::Copy(_) => "copy".to_owned(),
        Theirs::Env(_) => "env".to_owned(),
        Theirs::Misc(misc) => misc.instruction.content.to_lowercase(),
    };
    Some(dockerfile.instructions.iter().map(keyword).collect())
}

/// The keywords that `parse-dockerfile` finds.
fn parse_dockerfile(text: &str) -> Option<Vec<String>> {
    let dockerfile = parse_dockerfile::parse(text).ok()?;
    // Its variants are called after the keywords.
    let keyword = |instruction: &parse_dockerfile::Instruction<'_>| {
        let shown = format!("{instruction:?}").to_lowercase();
        shown.split('(').next().unwrap_or_default().to_owned()
    };
    Some(dockerfile.instructions.iter().map(keyword).collect())
}

/// What they get wrong: a parser, and the folder of a file that it reads otherwise than BuildKit.
const WRONG: [(&str, &str); 1] = [
    // A backslash that is escaped continues nothing.
    ("parse-dockerfile", "escaped-continuation"),
];

fn dockerfiles(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs_err::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if path.is_dir() && name != "target" && !name.starts_with('.') {
            dockerfiles(&path, found);
        } else if name.ends_with("Dockerfile") || name.starts_with("Dockerfile") {
            found.push(path);
        }
    }
}

#[test]
fn other_parsers_find_the_same_instructions() {
    let mut files = Vec::new();
    for folder in ["testdata", "examples", "bench"] {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(folder);
        if folder.is_dir() {
            dockerfiles(&folder, &mut files);
        }
    }
    files.sort();
    let (mut compared, mut differ) = (0, Vec::new());
    for file in files {
        let Ok(text) = fs_err::read_to_string(&file) else { continue };
        let (dockerfile, diagnostics) = parse(Source::new("Dockerfile", text.as_str()));
        if !diagnostics.0.is_empty() {
            continue;
        }
        let ours = ours(&dockerfile);
        for (parser, theirs) in [
            // It knows one escape character only.
            ("dockerfile-parser", dockerfile_parser(&text).filter(|_| dockerfile.escape == '\\')),
            ("parse-dockerfile", parse_dockerfile(&text)),
        ] {
            compared += usize::from(theirs.is_some());
            let folder = file.parent().and_then(Path::file_name).unwrap_or_default();
            let wrong = WRONG.iter().any(|known| known.0 == parser && known.1 == folder);
            if theirs.as_ref().is_some_and(|theirs| *theirs != ours) != wrong {
                differ.push(format!("{parser} {}: {theirs:?}, not {ours:?}", file.display()));
            }
        }
    }
    assert!(compared > 20, "{compared}");
    assert!(differ.is_empty(), "{}", differ.join("\n"));
}
