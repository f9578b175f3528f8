//! `# check=skip=A,B;error=true;experimental=all`: which rules run, and whether they are fatal.

use std::collections::BTreeSet;

use super::Rule;
use crate::source::Text;
use crate::syntax::directive::Directive;

/// Which rules run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CheckOptions {
    skip: Names,
    experimental: Names,
    /// Warnings are errors.
    pub(super) error: bool,
}

/// Some rules, or all of them. A name of no rule is no mistake: it may be a later version's.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Names {
    All,
    Some(BTreeSet<String>),
}

impl Default for Names {
    fn default() -> Self {
        Self::Some(BTreeSet::new())
    }
}

impl Names {
    fn parse(text: &str) -> Self {
        match text.trim() {
            "all" => Self::All,
            names => Self::Some(names.split(',').map(|name| name.trim().to_owned()).collect()),
        }
    }

    fn contain(&self, rule: Rule) -> bool {
        match self {
            Self::All => true,
            Self::Some(names) => names.contains(rule.name()),
        }
    }

    fn and(&self, other: &Self) -> Self {
        match (self, other) {
            (Self::Some(names), Self::Some(more)) => Self::Some(names | more),
            (Self::All, _) | (_, Self::All) => Self::All,
        }
    }
}

/// Says what is wrong with the text of a `check` directive.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CheckOptionsError {
    /// Neither `skip`, `error` nor `experimental`, or no `=`.
    #[error("failed to parse check options: invalid check option {0:?}")]
    Unknown(String),
    /// `error` is neither true nor false.
    #[error("failed to parse check options: failed to parse check option {0:?}")]
    Bool(String),
}

impl CheckOptions {
    /// Reads the value of `# check=`, or of the build argument `BUILDKIT_DOCKERFILE_CHECK`, which
    /// takes its place.
    pub fn parse(text: &str) -> Result<Self, CheckOptionsError> {
        let mut options = Self::default();
        if text.trim().is_empty() {
            return Ok(options);
        }
        for option in text.trim().splitn(3, ';') {
            let unknown = |option: &str| CheckOptionsError::Unknown(option.to_owned());
            let (key, value) = option.split_once('=').ok_or_else(|| unknown(option))?;
            match key.trim() {
                "skip" => options.skip = Names::parse(value),
                "experimental" => options.experimental = Names::parse(value),
                "error" => {
                    options.error = parse_bool(value.trim())
                        .ok_or_else(|| CheckOptionsError::Bool(option.to_owned()))?;
                }
                key => return Err(unknown(key)),
            }
        }
        Ok(options)
    }

    /// Whether `rule` runs.
    pub(super) fn run(&self, rule: Rule) -> bool {
        if rule.is_experimental() {
            self.experimental.contain(rule)
        } else {
            !self.skip.contain(rule)
        }
    }

    /// These, and what `other` adds for one instruction. What is fatal, the file says.
    pub(super) fn merged(&self, other: &Self) -> Self {
        Self {
            skip: self.skip.and(&other.skip),
            experimental: self.experimental.and(&other.experimental),
            error: self.error,
        }
    }
}

/// What the first `check=` among `comments` says; a wrong one says nothing.
pub(super) fn from_comments(comments: &[Text]) -> Option<CheckOptions> {
    let (_, value) = comments
        .iter()
        .filter_map(|comment| Directive::from_comment(comment.as_str()))
        .find(|(name, _)| name == "check")?;
    CheckOptions::parse(value.split(' ').next().unwrap_or_default()).ok()
}

/// What Go's `strconv.ParseBool` takes.
pub(crate) fn parse_bool(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "TRUE" | "true" | "True" => Some(true),
        "0" | "f" | "F" | "FALSE" | "false" | "False" => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn skipped_rules_do_not_run() {
        let check = |text, rule, expected| {
            assert_eq!(CheckOptions::parse(text).unwrap().run(rule), expected, "{text:?}");
        };
        check("", Rule::UndefinedVar, true);
        check("skip=UndefinedVar", Rule::UndefinedVar, false);
        check("skip=StageNameCasing, UndefinedVar", Rule::UndefinedVar, false);
        check("skip=StageNameCasing", Rule::UndefinedVar, true);
        check("skip=all", Rule::UndefinedVar, false);
        check("error=true;skip=all", Rule::UndefinedVar, false);
        check("", Rule::InvalidDefinitionDescription, false);
        check("skip=all;experimental=all", Rule::InvalidDefinitionDescription, true);
        let named = "experimental=InvalidDefinitionDescription";
        check(named, Rule::InvalidDefinitionDescription, true);
    }

    #[test]
    fn wrong_options_are_refused() {
        let check = |text, expected: &str| {
            let error = CheckOptions::parse(text).unwrap_err().to_string();
            assert_eq!(error.strip_prefix("failed to parse check options: "), Some(expected));
        };
        check("skip", "invalid check option \"skip\"");
        check("skip=a;", "invalid check option \"\"");
        check("warn=true", "invalid check option \"warn\"");
        check("error=maybe", "failed to parse check option \"error=maybe\"");
    }
}
