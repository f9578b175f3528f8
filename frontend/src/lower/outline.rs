//! What a Dockerfile can be asked for and given: `--call=targets` and `--call=outline`.
//!
//! Follows BuildKit's `dockerfile2llb/outline.go` and `ListTargets`.

use std::collections::{BTreeMap, BTreeSet};

use rbuild_solver::graph::{Mount, MountSource};

use super::{Lowering, arguments};
use crate::Dockerfile;
use crate::expand::{Env as _, Lexer, NoEnv};
use crate::instruction::ArgDeclaration;
use crate::source::Span;
use crate::stage::Base;

/// A stage, as somebody who looks for one to build wants to see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TargetDescription {
    /// Its name.
    pub name: Option<String>,
    /// What the comment above its FROM says.
    pub description: Option<String>,
    /// It is built when none is asked for.
    pub default: bool,
    /// What it begins with, as it is written.
    pub base: String,
    /// `--platform`, as it is written.
    pub platform: Option<String>,
    /// Its FROM.
    pub span: Span,
}

/// The stages of a Dockerfile, in its order.
pub fn targets(dockerfile: &Dockerfile) -> Vec<TargetDescription> {
    let last = dockerfile.stages.len().saturating_sub(1);
    let stages = dockerfile.stages.iter().enumerate();
    let describe = stages.map(|(index, stage)| TargetDescription {
        name: stage.from.name.as_ref().map(|name| name.as_str().to_owned()),
        description: stage.description.clone(),
        default: index == last,
        base: stage.from.base.value.clone(),
        platform: stage.from.platform.as_ref().map(|platform| platform.value.clone()),
        span: stage.origin.span,
    });
    describe.collect()
}

/// What a target can be given. All lists are in the order of the Dockerfile.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outline {
    /// The target's name.
    pub name: Option<String>,
    /// What the comment above its FROM says.
    pub description: Option<String>,
    /// Build arguments that it uses.
    pub arguments: Vec<OutlineArgument>,
    /// Secrets that it uses.
    pub secrets: Vec<OutlineInput>,
    /// SSH agents that it uses.
    pub ssh: Vec<OutlineInput>,
}

/// A build argument.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutlineArgument {
    /// Its name.
    pub name: String,
    /// What the comment above says of it.
    pub description: Option<String>,
    /// Its value in this build; empty when it has none.
    pub value: String,
    /// The ARG that declares it.
    pub span: Span,
}

/// A secret or an SSH agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutlineInput {
    /// Its id.
    pub name: String,
    /// Without it the build fails.
    pub required: bool,
    /// The first mount that asks for it.
    pub span: Span,
}

/// What one stage can be given.
#[derive(Clone, Debug, Default)]
pub(super) struct StageOutline {
    declared: BTreeMap<String, OutlineArgument>,
    used: BTreeSet<String>,
    secrets: BTreeMap<String, OutlineInput>,
    ssh: BTreeMap<String, OutlineInput>,
}

impl StageOutline {
    /// The stage uses an argument.
    pub(super) fn uses(&mut self, name: &str) {
        self.used.insert(name.to_owned());
    }

    /// The stage declares an argument.
    pub(super) fn declare(
        &mut self,
        declaration: &ArgDeclaration,
        value: Option<&str>,
        span: Span,
    ) {
        let argument = argument(declaration, value, span);
        self.declared.insert(argument.name.clone(), argument);
    }

    /// A RUN of the stage mounts secrets or agents.
    pub(super) fn mounts(&mut self, mounts: &[Mount], span: Span) {
        for mount in mounts {
            let (inputs, name, required) = match &mount.source {
                MountSource::Secret { id, required, .. }
                | MountSource::SecretEnv { id, required, .. } => (&mut self.secrets, id, required),
                MountSource::Ssh { id, required, .. } => (&mut self.ssh, id, required),
                MountSource::Bind { .. }
                | MountSource::Cache { .. }
                | MountSource::Tmpfs { .. } => continue,
            };
            let input = OutlineInput { name: name.clone(), required: *required, span };
            inputs.entry(name.clone()).or_insert(input);
        }
    }
}

fn argument(declaration: &ArgDeclaration, value: Option<&str>, span: Span) -> OutlineArgument {
    OutlineArgument {
        name: declaration.name.value.clone(),
        description: declaration.description.clone(),
        value: value.unwrap_or_default().to_owned(),
        span,
    }
}

impl Lowering<'_> {
    /// What the target can be given: what it, its bases and the stages that they read declare.
    pub(super) fn outline(&self) -> Outline {
        let target = &self.plan.stages[self.plan.target];
        let mut outline = Outline {
            name: target.name().map(str::to_owned),
            description: target.stage.and_then(|stage| stage.description.clone()),
            ..Outline::default()
        };
        let global = self.global_arguments();
        let (mut open, mut seen) = (vec![self.plan.target], BTreeSet::new());
        while let Some(index) = open.pop() {
            if !seen.insert(index) {
                continue;
            }
            let stage = &self.plan.stages[index];
            self.add_stage(index, &global, &mut outline);
            open.extend(stage.reads.iter().map(|(read, _)| *read));
            if let Base::Stage(base) = stage.base {
                open.push(base);
            }
        }
        outline.arguments.sort_by_key(|argument| argument.span);
        outline.secrets.sort_by_key(|secret| secret.span);
        outline.ssh.sort_by_key(|agent| agent.span);
        outline
    }

    fn add_stage(
        &self,
        index: usize,
        global: &BTreeMap<String, (OutlineArgument, BTreeSet<String>)>,
        outline: &mut Outline,
    ) {
        let stage = &self.outlines[index];
        let mut used: Vec<&String> =
            stage.used.iter().chain(&self.plan.stages[index].used).collect();
        let mut seen = BTreeSet::new();
        while let Some(name) = used.pop() {
            if !seen.insert(name) {
                continue;
            }
            let own = stage.declared.get(name);
            let declared = own.or(global.get(name).map(|(argument, _)| argument));
            if own.is_none() {
                used.extend(global.get(name).into_iter().flat_map(|(_, needs)| needs));
            }
            let known = outline.arguments.iter().any(|argument| argument.name == *name);
            outline.arguments.extend(declared.filter(|_| !known).cloned());
        }
        let add = |list: &mut Vec<OutlineInput>, inputs: &BTreeMap<String, OutlineInput>| {
            for input in inputs.values() {
                if !list.iter().any(|known| known.name == input.name) {
                    list.push(input.clone());
                }
            }
        };
        add(&mut outline.secrets, &stage.secrets);
        add(&mut outline.ssh, &stage.ssh);
    }

    /// The arguments before the first FROM, each with those that its default is made of.
    fn global_arguments(&self) -> BTreeMap<String, (OutlineArgument, BTreeSet<String>)> {
        let lexer = Lexer::new(self.dockerfile.escape);
        let mut arguments = BTreeMap::new();
        for (declaration, span) in arguments::declarations(self.dockerfile) {
            let name = declaration.name.as_str();
            let default = match self.options.build_arg(name) {
                Some(_) => None,
                None => declaration.default.as_ref(),
            };
            // What cannot be expanded was refused before.
            let needs = default.and_then(|default| lexer.expand_text(default, &NoEnv).ok());
            let mut needs = needs.map(|needs| needs.unmatched).unwrap_or_default();
            needs.retain(|needed| self.plan.globals.get(needed).is_some());
            // An ARG that adds to an earlier one of its name needs what that one needs.
            if needs.remove(name)
                && let Some((_, earlier)) = arguments.get(name)
            {
                needs.extend(BTreeSet::clone(earlier));
            }
            let value = self.plan.globals.get(name);
            arguments.insert(name.to_owned(), (argument(declaration, value, span), needs));
        }
        arguments
    }
}
