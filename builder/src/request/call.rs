//! `--call` and `--check`: what is done with a Dockerfile instead of building it.

use super::{UsageError, csv};
use crate::cli::BuildArgs;

/// What is done with a Dockerfile.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Call {
    /// It is built.
    #[default]
    Build,
    /// What is wrong with it is listed.
    Check(CallFormat),
    /// What the target can be given (ARGs, secrets, ssh, caches) is listed.
    Outline(CallFormat),
    /// Its stages are listed.
    Targets(CallFormat),
}

/// How the answer to a `--call` is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CallFormat {
    /// For people.
    #[default]
    Text,
    /// For programs.
    Json,
}

/// `--call=METHOD[,format=json]`, `--check` (buildx `util/buildflags/call.go`).
pub(super) fn call(arguments: &BuildArgs) -> Result<Call, UsageError> {
    const FLAG: &str = "--call";
    let text = match (&arguments.call, arguments.check) {
        (None, false) => return Ok(Call::Build),
        (None, true) => "check",
        (Some(call), _) => call.as_str(),
    };
    let wrong = |reason: String| UsageError::value(FLAG, text, reason);
    let (mut method, mut format) = (None, CallFormat::Text);
    for field in csv::fields(FLAG, text)? {
        match field.split_once('=') {
            Some(("format", "json")) => format = CallFormat::Json,
            Some(("format", "text")) => format = CallFormat::Text,
            Some(("format", other)) => return Err(wrong(format!("format `{other}` is unknown"))),
            Some((key, _)) => return Err(wrong(format!("`{key}` is unknown"))),
            None if method.is_some() => return Err(wrong("it names two methods".into())),
            None => method = Some(field),
        }
    }
    let call = match method.as_deref() {
        Some("build") | None => Call::Build,
        Some("check" | "lint") => Call::Check(format),
        Some("outline") => Call::Outline(format),
        Some("targets") => Call::Targets(format),
        Some(other) => {
            return Err(wrong(format!("`{other}` is none of build, check, outline, targets")));
        }
    };
    if arguments.check && !matches!(call, Call::Check(_)) {
        return Err(UsageError::Conflict {
            one: "--check".into(),
            other: format!("--call={text}"),
            instead: "`--check` is `--call=check`".into(),
        });
    }
    Ok(call)
}

#[cfg(test)]
mod tests {
    use super::super::tests::request;
    use super::*;

    #[test]
    fn calls() {
        let check = |typed: &str, expected: Call| {
            assert_eq!(request(typed, &[]).unwrap().call, expected, "{typed}");
        };
        check("", Call::Build);
        check("--check", Call::Check(CallFormat::Text));
        check("--call=lint", Call::Check(CallFormat::Text));
        check("--call=check,format=json --check", Call::Check(CallFormat::Json));
        check("--call=outline,format=text", Call::Outline(CallFormat::Text));
        check("--call format=json,targets", Call::Targets(CallFormat::Json));
        check("--call build", Call::Build);
        for wrong in
            ["--call=x", "--call=check,outline", "--call=check,a=b", "--check --call=targets"]
        {
            assert!(request(wrong, &[]).is_err(), "{wrong}");
        }
    }
}
