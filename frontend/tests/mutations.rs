//! Dockerfiles that were damaged at random are understood or refused, and nothing else happens.
//!
//! For more than the few inputs of a usual run:
//! `RBUILD_FUZZ_INPUTS=1000000 cargo test -p rbuild-frontend --release --test main mutations`

use std::path::Path;

use rbuild_cache::oci::Platform;
use rbuild_cache::pattern::PatternMatcher;
use rbuild_frontend::check::Checks;
use rbuild_frontend::expand::{Lexer, NoEnv, Quotes};
use rbuild_frontend::source::Source;
use rbuild_frontend::{BuildOptions, Resolved, base_images, check, ignore, lower, parse, targets};
use rbuild_solver::graph::Graph;

use crate::figure::figure;

/// How many inputs a usual run has.
const USUAL: usize = 1_500;

/// What is put into files: words and characters that mean something somewhere.
const FRAGMENTS: [&str; 60] = [
    "\\\n",
    "\n",
    "\r\n",
    "#",
    "# ",
    "# escape=`\n",
    "# check=error=true\n",
    "`",
    "\\",
    " ",
    "\t",
    "\x0b",
    "\"",
    "'",
    "[",
    "]",
    ",",
    "*",
    "**/",
    "!",
    "?",
    "<<EOF",
    "<<-'E'",
    "\nEOF\n",
    "--",
    "--from=",
    "--mount=type=cache,target=",
    "--chown=a:b",
    "=",
    "$",
    "${",
    "}",
    ":-",
    "//",
    "#*",
    "ONBUILD ",
    "RUN ",
    "COPY ",
    "ADD ",
    "FROM scratch AS ",
    "FROM ",
    "ENV ",
    "ARG ",
    "LABEL ",
    "HEALTHCHECK CMD ",
    "EXPOSE 1-2/udp ",
    "WORKDIR ",
    "VOLUME ",
    "USER ",
    "STOPSIGNAL 9 ",
    "SHELL [\"a\"]",
    "CMD [\"a\",\"\\u00e9\"]",
    "https://a/b.git#c:d ",
    "\0",
    "\u{feff}",
    "é",
    "\u{a0}",
    "日本",
    "9999999999999999999",
    "-1",
];

/// Numbers that look random and are the same each time (xorshift64*).
struct Random(u64);

impl Random {
    /// A number below `limit`; 0 where that is 0.
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let number = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33;
        usize::try_from(number).unwrap_or(0) % limit.max(1)
    }

    fn pick<'a, T: ?Sized>(&mut self, items: &[&'a T]) -> &'a T {
        items[self.below(items.len())]
    }

    /// A place between two characters of `text`.
    fn place(&mut self, text: &str) -> usize {
        let at = self.below(text.len() + 1);
        (at..=text.len()).find(|at| text.is_char_boundary(*at)).unwrap_or(text.len())
    }

    /// `text` with something put in, taken out, or repeated.
    fn mutated(&mut self, text: &str, others: &[&str]) -> String {
        let (first, second) = (self.place(text), self.place(text));
        let (from, to) = (first.min(second), first.max(second));
        let near = (to - from).min(40) + from;
        let near = (near..=to).find(|at| text.is_char_boundary(*at)).unwrap_or(to);
        match self.below(10) {
            0 => format!("{}{}", &text[..from], &text[near..]),
            1 => format!("{}{}{}", &text[..near], &text[from..near], &text[near..]),
            2 => {
                let other = self.pick(others);
                let place = self.place(other);
                format!("{}{}", &text[..from], &other[place..])
            }
            _ => format!("{}{}{}", &text[..from], self.pick(&FRAGMENTS), &text[from..]),
        }
    }
}

/// Does with `text` all that is ever done with texts.
fn read(text: &str) {
    let (dockerfile, diagnostics) = parse(Source::new("Dockerfile", text));
    diagnostics.render(&dockerfile.source);
    Checks::default().dockerfile(&dockerfile);
    targets(&dockerfile);
    for quotes in [Quotes::Remove, Quotes::Keep, Quotes::Ignore] {
        let _ = Lexer { quotes, ..Lexer::new(dockerfile.escape) }.expand(text, &NoEnv);
    }
    let _ = Lexer::for_display('\\').words(text, &NoEnv);
    if let Ok(matcher) = ignore::read(text.as_bytes()).and_then(PatternMatcher::new) {
        matcher.matches_or_parent_matches("a/b.c");
        matcher.covers("a");
    }
    let mut options = BuildOptions::new(Platform::new("linux", "amd64", None));
    options.all_stages = true;
    let resolved = Resolved::default();
    let complete =
        base_images(&dockerfile, &options, &resolved).is_ok_and(|images| images.is_empty());
    if diagnostics.0.is_empty() && complete {
        let _ = check(&dockerfile, &options, &resolved);
        if let Err(diagnostics) = lower(&dockerfile, &options, &resolved, &mut Graph::new()) {
            diagnostics.render(&dockerfile.source);
        }
    }
}

fn dockerfiles() -> Vec<String> {
    let testdata = Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata");
    let mut texts = Vec::new();
    for kind in ["parse", "lower"] {
        let mut folders: Vec<_> = fs_err::read_dir(testdata.join(kind))
            .unwrap()
            .map(|folder| folder.unwrap().path().join("Dockerfile"))
            .collect();
        folders.sort();
        texts.extend(folders.iter().filter_map(|file| fs_err::read_to_string(file).ok()));
    }
    texts
}

#[test]
fn damaged_dockerfiles() {
    let inputs = option_env!("RBUILD_FUZZ_INPUTS").and_then(|inputs| inputs.parse().ok());
    let inputs: usize = inputs.unwrap_or(USUAL);
    let texts = dockerfiles();
    let others: Vec<&str> = texts.iter().map(String::as_str).collect();
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let mut crashes = Vec::new();
    for _ in 0..inputs {
        let mut text = random.pick(&others).to_owned();
        if random.below(2) == 0 {
            // A base that needs nobody to resolve it, so that lowering takes part.
            text = text.replace("FROM ", "FROM scratch\nFROM ").replace("busybox", "scratch");
        }
        for _ in 0..=random.below(5) {
            text = random.mutated(&text, &others);
        }
        if std::panic::catch_unwind(|| read(&text)).is_err() {
            crashes.push(text);
        }
    }
    figure(&format!("P9 crashes {} / {inputs} damaged Dockerfiles", crashes.len()));
    assert!(crashes.is_empty(), "{:?}", crashes[0]);
}
