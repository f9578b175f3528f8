//! A parsed Dockerfile: arguments before the first FROM, then stages.

use std::collections::BTreeSet;

use crate::diagnostic::{Diagnostic, Diagnostics};
use crate::instruction::{self, From, Instruction, Parsed, Statement, description};
use crate::source::{Source, Span, Text};
use crate::syntax::{self, BareInstruction, Origin, Syntax, directive};

/// What a Dockerfile says.
#[derive(Clone, Debug)]
pub struct Dockerfile {
    /// Its text.
    pub source: Source,
    /// What `# check=` says, if it is there: which build checks run.
    pub check: Option<Text>,
    /// Where lines are empty that continue an instruction.
    pub empty_continuations: Vec<Span>,
    /// The escape character: backslash, or what `# escape=` says.
    pub escape: char,
    /// The ARGs before the first FROM.
    pub arguments: Vec<Statement>,
    /// The stages in order; at least one, unless there were errors.
    pub stages: Vec<Stage>,
}

/// A FROM and what follows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stage {
    /// Where it begins.
    pub from: From,
    /// Where that was written, and how.
    pub origin: Origin,
    /// What the comment above it says: `# name description`.
    pub description: Option<String>,
    /// What follows.
    pub statements: Vec<Statement>,
}

impl Dockerfile {
    /// The names of all ARGs, wherever they stand.
    pub fn argument_names(&self) -> BTreeSet<String> {
        let statements = self.stages.iter().flat_map(|stage| &stage.statements);
        let arguments = self.arguments.iter().chain(statements);
        let declarations = arguments.filter_map(|statement| match &statement.instruction {
            Instruction::Arg(arg) => Some(&arg.declarations),
            _ => None,
        });
        declarations.flatten().map(|declared| declared.name.as_str().to_owned()).collect()
    }
}

/// Reads a Dockerfile: what it says, as far as it can be understood, and all that is wrong with it.
///
/// An instruction with a mistake is left out, and reading goes on behind it.
pub fn parse(source: Source) -> (Dockerfile, Diagnostics) {
    parse_as(source, None)
}

/// The same, where the build argument `BUILDKIT_SYNTAX` says `syntax`: then that is the frontend,
/// and no directive.
pub fn parse_as(source: Source, syntax: Option<&str>) -> (Dockerfile, Diagnostics) {
    let mut diagnostics = Diagnostics::default();
    let start = Span::new(0, 0);
    let given = syntax.and_then(|syntax| syntax.split_whitespace().next());
    let (frontend, span) = match given {
        Some(given) => (Some(given.to_owned()), None),
        None => directive::frontend(&source)
            .map_or((None, None), |written| (Some(written.value), Some(written.span))),
    };
    if let Some(frontend) = frontend.filter(|frontend| !directive::is_ours(frontend)) {
        diagnostics.push(Diagnostic { span, ..foreign_frontend(&frontend) });
        return (empty(source), diagnostics);
    }
    let Syntax { escape, instructions, empty_continuations } =
        syntax::read(&source, None, &mut diagnostics);
    let mut dockerfile = Dockerfile { empty_continuations, escape, ..empty(source) };
    if instructions.is_empty() && !diagnostics.has_errors() {
        let nothing = dockerfile.source.text().is_empty();
        let message =
            if nothing { "the Dockerfile cannot be empty" } else { "file with no instructions" };
        diagnostics.push(Diagnostic::error(message, start).hint("it must begin with `FROM image`"));
        return (dockerfile, diagnostics);
    }
    // Of the instructions before the first FROM, only one is told of.
    let mut misplaced = false;
    for bare in instructions {
        match diagnostics.keep(instruction::parse(&bare)) {
            Some(parsed) => {
                dockerfile.add(parsed, bare.origin, &mut misplaced, &mut diagnostics);
            }
            // What follows a wrong FROM is not before the first one.
            None if is_from(&bare) => misplaced = true,
            None => {}
        }
    }
    if dockerfile.stages.is_empty() && !diagnostics.has_errors() {
        diagnostics.push(Diagnostic::error("dockerfile contains no stages to build", start));
    }
    (dockerfile, diagnostics)
}

/// Reads the trigger of an ONBUILD instruction that came with a base image. Its places are all
/// `from`: the FROM that brought it.
pub fn parse_trigger(expression: &str, from: Span) -> Result<Statement, Diagnostics> {
    let mut diagnostics = Diagnostics::default();
    let syntax = syntax::read(&Source::new("ONBUILD", expression), Some(from), &mut diagnostics);
    let [bare] = syntax.instructions.as_slice() else {
        let message = "onbuild trigger should be a single expression";
        diagnostics.push(Diagnostic::error(message, from));
        return Err(diagnostics);
    };
    match diagnostics.keep(instruction::parse(bare)) {
        Some(Parsed::Instruction(instruction)) if !diagnostics.has_errors() => {
            Ok(Statement { instruction, origin: bare.origin.clone() })
        }
        Some(Parsed::From(_)) => {
            let message = "FROM isn't allowed as an ONBUILD trigger";
            diagnostics.push(Diagnostic::error(message, from));
            Err(diagnostics)
        }
        Some(Parsed::Instruction(_)) | None => Err(diagnostics),
    }
}

fn empty(source: Source) -> Dockerfile {
    Dockerfile {
        check: directive::find(&source, "check"),
        source,
        empty_continuations: Vec::new(),
        escape: '\\',
        arguments: Vec::new(),
        stages: Vec::new(),
    }
}

fn foreign_frontend(name: &str) -> Diagnostic {
    let message = format!("the frontend `{name}` is not supported");
    Diagnostic::error(message, Span::default()).hint(
        "rbuild reads the language of `docker/dockerfile` itself, and runs no frontend images: \
         name that one, or leave the line out",
    )
}

fn is_from(bare: &BareInstruction) -> bool {
    let keyword = bare.origin.keyword.value.to_uppercase();
    keyword == "FROM" || instruction::meant(&keyword) == Some("FROM")
}

impl Dockerfile {
    /// The place among the stages of the one called `name`, whatever its case.
    pub fn stage_index(&self, name: &str) -> Option<usize> {
        let lower = name.to_lowercase();
        self.stages
            .iter()
            .position(|stage| stage.from.name.as_ref().is_some_and(|name| name.as_str() == lower))
    }

    /// Adds an instruction where it belongs. One that belongs nowhere is told of unless `misplaced`.
    fn add(
        &mut self,
        parsed: Parsed,
        origin: Origin,
        misplaced: &mut bool,
        diagnostics: &mut Diagnostics,
    ) {
        match (parsed, self.stages.last_mut()) {
            (Parsed::From(from), _) => {
                let description = from
                    .name
                    .as_ref()
                    .and_then(|name| description(&origin.comments, name.as_str()));
                self.stages.push(Stage { from, origin, description, statements: Vec::new() });
            }
            (Parsed::Instruction(instruction), Some(stage)) => {
                stage.statements.push(Statement { instruction, origin });
            }
            (Parsed::Instruction(instruction @ Instruction::Arg(_)), None) => {
                self.arguments.push(Statement { instruction, origin });
            }
            (Parsed::Instruction(_), None) => {
                if !std::mem::replace(misplaced, true) {
                    let message = "no build stage in current context";
                    let diagnostic = Diagnostic::error(message, origin.keyword.span)
                        .hint("only ARG may stand before the first FROM");
                    diagnostics.push(diagnostic);
                }
            }
        }
    }
}
