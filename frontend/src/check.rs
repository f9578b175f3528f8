//! Build checks: what a Dockerfile may say but had better not.
//!
//! The rules, their names, messages and pages are BuildKit's (`frontend/dockerfile/linter`), so
//! that `# check=skip=…` lines go on working. [`Checks`] collects [`Warning`]s: parsing finds those
//! that the text alone shows ([`Checks::dockerfile`]), lowering calls the functions of the modules
//! below where it knows more.

mod casing;
mod copy;
mod expose;
mod from;
mod instruction;
mod options;
mod rule;
mod secret;
mod stage;
mod variable;

pub use copy::copy_ignored_file;
pub use expose::{expose_invalid_format, expose_proto_casing};
pub use from::{
    base_image_platform, const_platform_disallowed, invalid_default_arg, redundant_target_platform,
};
pub use instruction::{
    json_args_recommended, legacy_key_value_format, multiple_instructions, workdir_relative_path,
};
pub(crate) use options::parse_bool;
pub use options::{CheckOptions, CheckOptionsError};
pub use rule::Rule;
pub use secret::secrets_in_arg_or_env;
pub use variable::{undefined_arg_in_from, undefined_var};

use std::collections::HashSet;

use crate::Dockerfile;
use crate::diagnostic::Diagnostic;
use crate::source::Span;
use crate::syntax::Origin;

/// What a rule found at one place.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Warning {
    /// The rule.
    pub rule: Rule,
    /// What it found.
    pub message: String,
    /// Where.
    pub span: Span,
}

impl Warning {
    /// The warning as it is drawn: `warning: UndefinedVar: Usage of undefined variable '$x'`.
    pub fn diagnostic(&self) -> Diagnostic {
        let message = format!("{}: {}", self.rule.name(), self.message);
        let diagnostic = Diagnostic::warning(message, self.span);
        match self.rule.url() {
            Some(url) => diagnostic.hint(url),
            None => diagnostic,
        }
    }
}

/// Collects warnings, but for those that are switched off.
#[derive(Clone, Debug, Default)]
pub struct Checks {
    options: CheckOptions,
    warnings: Vec<Warning>,
    known: HashSet<Warning>,
}

impl Checks {
    /// Collects what `options` leave on.
    pub fn new(options: CheckOptions) -> Self {
        Self { options, ..Self::default() }
    }

    /// Says that `rule` found something, whatever comments above instructions switch off.
    pub fn warn(&mut self, rule: Rule, span: Span, message: impl Into<String>) {
        if self.options.run(rule) {
            self.push(rule, span, message.into());
        }
    }

    /// Says that `rule` found something in an instruction; a `# check=skip=…` comment right above
    /// that instruction counts too.
    pub fn warn_in(&mut self, rule: Rule, origin: &Origin, message: impl Into<String>) {
        self.warn_at(rule, origin.span, origin, message);
    }

    /// The same, for a place that is not the instruction's own.
    fn warn_at(&mut self, rule: Rule, span: Span, origin: &Origin, message: impl Into<String>) {
        let own = options::from_comments(&origin.comments);
        let runs = match own {
            Some(own) => self.options.merged(&own).run(rule),
            None => self.options.run(rule),
        };
        if runs {
            self.push(rule, span, message.into());
        }
    }

    /// A stage is lowered once for each platform, and says the same each time.
    fn push(&mut self, rule: Rule, span: Span, message: String) {
        let warning = Warning { rule, message, span };
        if self.known.insert(warning.clone()) {
            self.warnings.push(warning);
        }
    }

    /// Checks what the text alone shows.
    pub fn dockerfile(&mut self, dockerfile: &Dockerfile) {
        for span in &dockerfile.empty_continuations {
            self.warn(Rule::NoEmptyContinuation, *span, "Empty continuation line");
        }
        for arguments in &dockerfile.arguments {
            instruction::statement(self, arguments);
        }
        for stage in &dockerfile.stages {
            stage::from(self, stage);
            stage.statements.iter().for_each(|statement| instruction::statement(self, statement));
        }
        stage::names(self, &dockerfile.stages);
        casing::keywords(self, &dockerfile.stages);
    }

    /// What was found, in the order in which it was found.
    pub fn warnings(&self) -> &[Warning] {
        &self.warnings
    }

    /// The error that the warnings are where `# check=error=true` says so.
    pub fn error(&self) -> Option<String> {
        if !self.options.error || self.warnings.is_empty() {
            return None;
        }
        let mut rules: Vec<&str> =
            self.warnings.iter().map(|warning| warning.rule.name()).collect();
        rules.sort_unstable();
        rules.dedup();
        Some(format!("lint violation found for rules: {}", rules.join(", ")))
    }
}
