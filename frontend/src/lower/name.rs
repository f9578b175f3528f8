//! What progress calls a vertex: `[build 3/7] RUN go build`.
//!
//! Follows `prefixCommand`, `uppercaseCmd` and `formatTargetPlatform` in BuildKit's
//! `dockerfile2llb/convert.go`.

use rbuild_cache::oci::Platform;

use super::environment::Environment;
use crate::expand::{Env as _, Lexer};

/// Counts and names the vertices of a stage.
#[derive(Clone, Debug, Default)]
pub(crate) struct Names {
    /// The stage's name; empty in a Dockerfile of one stage.
    pub(crate) stage: String,
    /// How many vertices there will be; with none, names have no prefix.
    pub(crate) total: usize,
    /// How many there are.
    pub(crate) count: usize,
    /// Names say for which platform they are.
    pub(crate) with_platform: bool,
    /// The instruction is an ONBUILD trigger.
    pub(crate) trigger: bool,
}

impl Names {
    /// The name of the stage's next vertex, which does `text`.
    pub(crate) fn next(&mut self, text: &str, platform: &Platform, env: &Environment) -> String {
        if self.total == 0 {
            return text.to_owned();
        }
        self.count += 1;
        let mut prefix = String::new();
        if self.with_platform {
            prefix.extend([&platform.to_string(), foreign_target(platform, env).as_str(), " "]);
        }
        if !self.stage.is_empty() {
            prefix.extend([self.stage.as_str(), " "]);
        }
        let width = self.total.ilog10() as usize + 1;
        let trigger = if self.trigger { "ONBUILD " } else { "" };
        format!("[{prefix}{:width$}/{}] {trigger}{text}", self.count, self.total)
    }
}

/// An instruction as progress shows it: its keyword in upper case, its variables expanded.
pub(crate) fn shown(text: &str, lexer: Lexer, env: &dyn crate::expand::Env) -> String {
    let expanded = lexer.expand(text, env).map(|expansion| expansion.result);
    let text = expanded.unwrap_or_else(|_| text.to_owned());
    match text.split_once(' ') {
        Some((keyword, rest)) => format!("{} {rest}", keyword.to_uppercase()),
        None => text.to_uppercase(),
    }
}

/// The first line of a here-document, with dots where there are more.
pub(crate) fn summary(document: &str) -> String {
    let document = document.trim();
    match document.split_once('\n') {
        Some((first, _)) => format!("{}...", first.trim_end_matches('\r')),
        None => document.to_owned(),
    }
}

/// Where a stage that runs on `platform` makes something for another one, which: `->arm64`.
fn foreign_target(platform: &Platform, env: &Environment) -> String {
    let whole = env.get("TARGETPLATFORM").and_then(|text| text.parse::<Platform>().ok());
    let target = whole.or_else(|| {
        let part = |name| env.get(name).filter(|value| !value.is_empty());
        let (os, architecture) = (part("TARGETOS"), part("TARGETARCH"));
        let variant = part("TARGETVARIANT");
        os.or(architecture).or(variant)?;
        let os = os.unwrap_or(&platform.os);
        let architecture = architecture.unwrap_or(&platform.architecture);
        Some(Platform::new(os, architecture, variant))
    });
    match target {
        Some(target) if target.os != platform.os => format!("->{target}"),
        Some(target) if target.architecture != platform.architecture => {
            let variant = target.variant.map(|variant| format!("/{variant}"));
            format!("->{}{}", target.architecture, variant.unwrap_or_default())
        }
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vertices_are_counted() {
        let platform = Platform::new("linux", "amd64", None);
        let env = Environment::default();
        let mut names = Names { stage: "build".into(), total: 12, ..Names::default() };
        assert_eq!(names.next("RUN x", &platform, &env), "[build  1/12] RUN x");
        names.trigger = true;
        assert_eq!(names.next("RUN x", &platform, &env), "[build  2/12] ONBUILD RUN x");
        assert_eq!(Names::default().next("FROM x", &platform, &env), "FROM x");
    }

    #[test]
    fn a_foreign_target_is_shown() {
        let platform = Platform::new("linux", "amd64", None);
        let check = |variables: &[(&str, &str)], expected: &str| {
            let mut env = Environment::default();
            for (name, value) in variables {
                env.set(name, value);
            }
            let mut names = Names { total: 1, with_platform: true, ..Names::default() };
            assert_eq!(names.next("RUN x", &platform, &env), expected);
        };
        check(&[], "[linux/amd64 1/1] RUN x");
        check(&[("TARGETARCH", "arm64")], "[linux/amd64->arm64 1/1] RUN x");
        check(&[("TARGETPLATFORM", "linux/arm/v6")], "[linux/amd64->arm/v6 1/1] RUN x");
        check(&[("TARGETOS", "windows")], "[linux/amd64->windows/amd64 1/1] RUN x");
    }

    #[test]
    fn summaries_are_one_line() {
        assert_eq!(summary("\n a\r\nb\n"), "a...");
        assert_eq!(summary("a\n"), "a");
    }
}
