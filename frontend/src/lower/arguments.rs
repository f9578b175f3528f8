//! Arguments that hold for the whole Dockerfile: the predefined platform ones and the ARGs before
//! the first FROM.
//!
//! Follows `defaultArgs` and `buildMetaArgs` in BuildKit's `dockerfile2llb`.

use rbuild_cache::oci::Platform;

use super::environment::Environment;
use crate::Dockerfile;
use crate::diagnostic::Diagnostic;
use crate::expand::Lexer;
use crate::instruction::{ArgDeclaration, Instruction, StageName};
use crate::options::BuildOptions;
use crate::source::Span;

/// The arguments that FROM can use, and that an ARG without a default takes its value from.
///
/// # Errors
/// When a default cannot be expanded.
pub(crate) fn globals(
    dockerfile: &Dockerfile,
    options: &BuildOptions,
) -> Result<Environment, Diagnostic> {
    with_declared(dockerfile, predefined(dockerfile, options), |name| options.build_arg(name))
}

/// The same as if no build argument were given, but for those that stand for platforms.
pub(crate) fn default_globals(
    dockerfile: &Dockerfile,
    options: &BuildOptions,
) -> Result<Environment, Diagnostic> {
    with_declared(dockerfile, predefined(dockerfile, options), |_| None)
}

/// Where a variable of the arguments before the first FROM is declared.
pub(crate) fn declarations(
    dockerfile: &Dockerfile,
) -> impl Iterator<Item = (&ArgDeclaration, Span)> {
    dockerfile.arguments.iter().flat_map(|statement| {
        let declarations = match &statement.instruction {
            Instruction::Arg(arg) => arg.declarations.as_slice(),
            _ => &[],
        };
        declarations.iter().map(|declaration| (declaration, statement.origin.span))
    })
}

fn predefined(dockerfile: &Dockerfile, options: &BuildOptions) -> Environment {
    let (build, target) = (&options.build_platform, options.target_platform());
    let last = dockerfile.stages.last().and_then(|stage| stage.from.name.as_ref());
    let stage = options.target.as_deref().filter(|target| !target.is_empty());
    let stage = stage.or(last.map(StageName::as_str)).unwrap_or("default");
    let variant = |platform: &Platform| platform.variant.clone().unwrap_or_default();
    let version = |platform: &Platform| platform.os_version.clone().unwrap_or_default();
    let values = [
        ("BUILDPLATFORM", build.to_string()),
        ("BUILDOS", build.os.clone()),
        ("BUILDOSVERSION", version(build)),
        ("BUILDARCH", build.architecture.clone()),
        ("BUILDVARIANT", variant(build)),
        ("TARGETPLATFORM", target.to_string()),
        ("TARGETOS", target.os.clone()),
        ("TARGETOSVERSION", version(target)),
        ("TARGETARCH", target.architecture.clone()),
        ("TARGETVARIANT", variant(target)),
        ("TARGETSTAGE", stage.to_owned()),
    ];
    let mut environment = Environment::default();
    for (name, value) in &values {
        environment.set(name, options.build_arg(name).unwrap_or(value));
    }
    environment
}

fn with_declared<'a>(
    dockerfile: &Dockerfile,
    mut environment: Environment,
    given: impl Fn(&str) -> Option<&'a str>,
) -> Result<Environment, Diagnostic> {
    let lexer = Lexer::new(dockerfile.escape);
    for (declaration, _) in declarations(dockerfile) {
        let name = declaration.name.as_str();
        let value = match (given(name), &declaration.default) {
            (Some(value), _) => Some(value.to_owned()),
            (None, Some(default)) => Some(lexer.expand_text(default, &environment)?.result),
            (None, None) => None,
        };
        if let Some(value) = value {
            environment.set(name, &value);
        }
    }
    Ok(environment)
}
