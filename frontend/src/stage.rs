//! Which stages a build needs, and in what order: names, bases, `--from`, ONBUILD triggers.
//!
//! A [`Plan`] is made from the Dockerfile, the options and what is known of images so far. Where an
//! image that is needed is not known yet, the plan lists it and is made again later: its ONBUILD
//! triggers may name further images. Follows `toDispatchState` and what it calls in BuildKit's
//! `dockerfile2llb/convert.go`.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use rbuild_cache::oci::{ImageRef, Platform};

use crate::check::{self, Checks};
use crate::diagnostic::{Diagnostic, Diagnostics, all, did_you_mean};
use crate::expand::{Env as _, Expansion, Lexer, NoEnv};
use crate::image_config::ImageConfig;
use crate::instruction::{Instruction, StageName, Statement};
use crate::lower::arguments;
use crate::lower::environment::Environment;
use crate::options::{BaseImage, BuildOptions, ImageName, NamedContext, Resolved};
use crate::quote::Quoted;
use crate::source::{Span, Text};
use crate::{Dockerfile, Stage, parse_trigger};

/// The position of a stage in [`Plan::stages`].
pub(crate) type StageIndex = usize;

/// The stages of a build.
#[derive(Debug)]
pub(crate) struct Plan<'a> {
    /// The stages of the Dockerfile in order, then one for each image or context that `--from`
    /// names.
    pub(crate) stages: Vec<PlannedStage<'a>>,
    /// The stage that is built.
    pub(crate) target: StageIndex,
    /// The stages that it needs, itself included.
    pub(crate) reachable: BTreeSet<StageIndex>,
    /// Arguments that hold for the whole Dockerfile.
    pub(crate) globals: Environment,
    /// Images that must be resolved before this plan is the last one.
    pub(crate) missing: Vec<BaseImage>,
}

/// A stage, or something that `--from` names and that is treated as one.
#[derive(Debug)]
pub(crate) struct PlannedStage<'a> {
    /// The stage in the Dockerfile; absent for what `--from` names.
    pub(crate) stage: Option<&'a Stage>,
    /// What vertices are named after: the stage's name, or `stage-0`; empty in a Dockerfile of one
    /// stage.
    pub(crate) shown: String,
    /// What it begins with.
    pub(crate) base: Base,
    /// The platform that it was asked to have.
    pub(crate) platform: Option<Platform>,
    /// A named context has taken the stage's place: its instructions don't count.
    pub(crate) replaced: bool,
    /// Its instructions, ONBUILD triggers first.
    pub(crate) commands: Vec<Command>,
    /// The arguments that its FROM uses.
    pub(crate) used: BTreeSet<String>,
    /// The stages that its instructions read, each with the line that says so.
    pub(crate) reads: Vec<(StageIndex, Span)>,
    /// How many ONBUILD triggers are among `commands`; not known while absent.
    triggers: Option<usize>,
    /// The line that brought it.
    pub(crate) span: Span,
}

/// What a stage begins with.
#[derive(Debug)]
pub(crate) enum Base {
    /// Nothing.
    Scratch,
    /// What an earlier stage ends with.
    Stage(StageIndex),
    /// What a name stands for that has not been looked at: an image or a named context.
    Named {
        /// The name as it was written.
        written: String,
        /// For which platform.
        platform: Platform,
    },
    /// An image.
    Image(BaseName),
    /// The files of a named context that is no image.
    Context {
        /// The context's name.
        name: String,
        /// Which one.
        context: NamedContext,
    },
}

/// The name of an image that a stage begins with.
#[derive(Debug)]
pub(crate) struct BaseName {
    /// Where it is looked for.
    pub(crate) name: ImageName,
    /// For which platform.
    pub(crate) platform: Platform,
    /// The full name as progress shows it: `docker.io/library/busybox:latest`.
    pub(crate) full: String,
    /// The named context that it came from.
    pub(crate) context: Option<String>,
    /// Its config, once it is resolved.
    pub(crate) config: Option<Arc<ImageConfig>>,
}

/// An instruction of a stage.
#[derive(Clone, Debug)]
pub(crate) struct Command {
    /// What it says, and where.
    pub(crate) statement: Statement,
    /// It is an ONBUILD trigger.
    pub(crate) trigger: bool,
    /// What COPY's `--from` or the `from` of RUN's mounts name, each once.
    pub(crate) sources: Vec<(String, StageIndex)>,
}

impl Command {
    /// What `--from` or `from` names, where it is written as `name`.
    pub(crate) fn source(&self, name: &str) -> Option<StageIndex> {
        self.sources.iter().find(|(written, _)| written == name).map(|(_, index)| *index)
    }
}

impl PlannedStage<'_> {
    /// The stage's own name.
    pub(crate) fn name(&self) -> Option<&str> {
        self.stage.and_then(|stage| stage.from.name.as_ref()).map(StageName::as_str)
    }

    /// How many vertices of it progress counts.
    pub(crate) fn steps(&self) -> usize {
        let own = self.stage.map_or(&[][..], |stage| stage.statements.as_slice());
        let own = own.iter().filter(|statement| makes_a_layer(&statement.instruction)).count();
        let base = match self.base {
            _ if self.stage.is_none() => return 0,
            Base::Scratch | Base::Stage(_) => 0,
            Base::Named { .. } | Base::Image(_) | Base::Context { .. } => 1,
        };
        base + own + self.triggers.unwrap_or(0)
    }
}

fn makes_a_layer(instruction: &Instruction) -> bool {
    use Instruction::{Add, Copy, Run, Workdir};
    matches!(instruction, Add(_) | Copy(_) | Run(_) | Workdir(_))
}

impl<'a> Plan<'a> {
    /// Finds out which stages a build needs.
    ///
    /// # Errors
    /// What is wrong with the stages, at the line that is to blame.
    pub(crate) fn new(
        dockerfile: &'a Dockerfile,
        options: &'a BuildOptions,
        resolved: &Resolved,
        globals: Environment,
        checks: &mut Checks,
    ) -> Result<Self, Diagnostics> {
        let mut planner = Planner {
            dockerfile,
            options,
            lexer: Lexer::new(dockerfile.escape),
            globals,
            stages: Vec::new(),
            by_name: HashMap::new(),
        };
        planner.check_default_bases(checks);
        let mut wrong = Diagnostics::default();
        for (index, stage) in dockerfile.stages.iter().enumerate() {
            wrong.keep(planner.add_stage(index, stage, checks));
        }
        // What is missing is missed by the stages after it.
        let mut planner = wrong.unless_wrong(Some(planner))?;
        let mut wrong = Diagnostics::default();
        let target = wrong.keep(planner.target());
        wrong.keep(planner.read_sources());
        let target = wrong.unless_wrong(target)?;
        planner.refuse_cycles()?;
        if let [only] = &mut planner.stages[..] {
            only.shown.clear();
        }
        planner.resolve_names()?;
        let (reachable, missing) = planner.resolve(target, resolved)?;
        let Planner { stages, globals, .. } = planner;
        Ok(Self { stages, target, reachable, globals, missing })
    }
}

struct Planner<'a> {
    dockerfile: &'a Dockerfile,
    options: &'a BuildOptions,
    lexer: Lexer,
    globals: Environment,
    stages: Vec<PlannedStage<'a>>,
    by_name: HashMap<String, StageIndex>,
}

impl<'a> Planner<'a> {
    /// Says so where a base has no valid name unless a build argument is given.
    fn check_default_bases(&self, checks: &mut Checks) {
        // What is wrong with a default is an error of its own.
        let Ok(defaults) = arguments::default_globals(self.dockerfile, self.options) else {
            return;
        };
        for stage in &self.dockerfile.stages {
            let Ok(base) = self.lexer.expand_text(&stage.from.base, &defaults) else { return };
            if base.result.parse::<ImageRef>().is_err() {
                check::invalid_default_arg(checks, stage);
            }
        }
    }

    fn add_stage(
        &mut self,
        index: usize,
        stage: &'a Stage,
        checks: &mut Checks,
    ) -> Result<(), Diagnostic> {
        let base = self.global_word(&stage.from.base, stage, checks)?;
        let (base, mut used) = (base.result, base.matched);
        if base.is_empty() {
            let message = format!("base name ({}) should not be blank", stage.from.base.value);
            return Err(Diagnostic::error(message, stage.from.base.span));
        }
        let platform = match &stage.from.platform {
            Some(flag) => Some(self.platform(flag, stage, &mut used, checks)?),
            None => None,
        };
        let name = stage.from.name.as_ref().map(|name| name.as_str().to_owned());
        let wanted = platform.as_ref().unwrap_or(self.options.target_platform());
        let context = name.as_deref().and_then(|name| self.options.named_context(name, wanted));
        let replaced = context.is_some();
        let base = match (context, self.by_name.get(&base)) {
            (Some((name, context)), _) => context_base(name, context, wanted),
            (None, Some(earlier)) => Base::Stage(*earlier),
            (None, None) => named_base(base, wanted),
        };
        let shown = name.clone().unwrap_or_else(|| format!("stage-{index}"));
        let statements = if replaced { &[][..] } else { &stage.statements };
        let commands = statements.iter().map(|statement| Command {
            statement: statement.clone(),
            trigger: false,
            sources: Vec::new(),
        });
        self.stages.push(PlannedStage {
            stage: Some(stage),
            shown,
            base,
            platform,
            replaced,
            commands: commands.collect(),
            used,
            reads: Vec::new(),
            triggers: replaced.then_some(0),
            span: stage.origin.span,
        });
        if let Some(name) = name {
            self.by_name.insert(name, index);
        }
        Ok(())
    }

    /// Expands a word of FROM, and says so where a variable of it is declared nowhere.
    fn global_word(
        &self,
        text: &Text,
        stage: &Stage,
        checks: &mut Checks,
    ) -> Result<Expansion, Diagnostic> {
        let word = self.lexer.expand_text(text, &self.globals)?;
        let declared: Vec<&str> = arguments::declarations(self.dockerfile)
            .map(|(declaration, _)| declaration.name.as_str())
            .chain(self.globals.names())
            .collect();
        for name in word.unmatched.iter().filter(|name| !declared.contains(&name.as_str())) {
            check::undefined_arg_in_from(checks, &stage.origin, name, declared.iter().copied());
        }
        Ok(word)
    }

    fn platform(
        &self,
        flag: &Text,
        stage: &Stage,
        used: &mut BTreeSet<String>,
        checks: &mut Checks,
    ) -> Result<Platform, Diagnostic> {
        let word = self.global_word(flag, stage, checks)?;
        used.extend(word.matched.iter().cloned());
        let target = self.globals.get("TARGETPLATFORM").unwrap_or_default();
        check::redundant_target_platform(checks, stage, flag, &word, target);
        let with_advice = |diagnostic: Diagnostic| {
            let meant =
                word.unmatched.iter().find_map(|name| did_you_mean(name, self.globals.names()));
            match meant {
                Some(meant) => diagnostic.label(format!("did you mean `{meant}`?")),
                None => diagnostic,
            }
        };
        if word.result.is_empty() {
            let message = format!("empty platform value from expression {}", flag.value);
            return Err(with_advice(Diagnostic::error(message, flag.span)));
        }
        let platform = word.result.parse().map_err(|error| {
            let message = format!("failed to parse platform {}: {error}", flag.value);
            with_advice(Diagnostic::error(message, flag.span))
        })?;
        check::const_platform_disallowed(checks, stage, &word, &platform);
        Ok(platform)
    }

    fn target(&self) -> Result<StageIndex, Diagnostic> {
        let Some(target) = self.options.target.as_deref().filter(|target| !target.is_empty())
        else {
            // There is a stage unless parsing found something wrong.
            let no_stage =
                || Diagnostic::error("dockerfile contains no stages to build", Span::default());
            return self.stages.len().checked_sub(1).ok_or_else(no_stage);
        };
        if let Some(index) = self.by_name.get(&target.to_lowercase()) {
            return Ok(*index);
        }
        let message = format!("target stage {} could not be found", Quoted(target));
        let mut diagnostic = Diagnostic::error(message, Span::default());
        diagnostic.span = None;
        match did_you_mean(target, self.stages.iter().map(|stage| stage.shown.as_str())) {
            Some(meant) => Err(diagnostic.hint(format!("did you mean `{meant}`?"))),
            None => Err(match self.named_stages() {
                Some(names) => diagnostic.hint(format!("the stages are {names}")),
                None => diagnostic,
            }),
        }
    }

    /// The names of stages, for people; none if there are none, or more than anybody reads.
    fn named_stages(&self) -> Option<String> {
        const MOST: usize = 10;
        let names: Vec<String> = self
            .stages
            .iter()
            .filter_map(PlannedStage::name)
            .take(MOST + 1)
            .map(|name| format!("`{name}`"))
            .collect();
        (1..=MOST).contains(&names.len()).then(|| names.join(", "))
    }

    /// Finds what each `--from` means, now that all stages are known.
    fn read_sources(&mut self) -> Result<(), Diagnostics> {
        let mut wrong = Diagnostics::default();
        for index in 0..self.stages.len() {
            let mut commands = std::mem::take(&mut self.stages[index].commands);
            for command in &mut commands {
                let sources = wrong.keep(self.sources(&command.statement));
                command.sources = sources.unwrap_or_default();
                self.note_reads(index, command);
            }
            self.stages[index].commands = commands;
        }
        wrong.unless_wrong(Some(()))
    }

    fn note_reads(&mut self, index: StageIndex, command: &Command) {
        let span = command.statement.origin.span;
        let sources = command.sources.iter().map(|(_, source)| (*source, span));
        self.stages[index].reads.extend(sources);
    }

    fn sources(&mut self, statement: &Statement) -> Result<Vec<(String, StageIndex)>, Diagnostic> {
        match &statement.instruction {
            Instruction::Copy(copy) => match &copy.from {
                Some(from) if !from.value.is_empty() => {
                    Ok(vec![(from.value.clone(), self.copy_source(from)?)])
                }
                _ => Ok(Vec::new()),
            },
            Instruction::Run(run) => {
                let sources = run.mount_sources.iter();
                Ok(sources.map(|from| (from.value.clone(), self.source(from))).collect())
            }
            _ => Ok(Vec::new()),
        }
    }

    fn copy_source(&mut self, from: &Text) -> Result<StageIndex, Diagnostic> {
        let expanded = self.lexer.expand_text(from, &NoEnv)?;
        if expanded.result != from.value {
            let message = "variable expansion is not supported for --from, define a new stage with \
                           FROM using ARG from global scope as a workaround";
            return Err(Diagnostic::error(message, from.span));
        }
        let Ok(number) = from.value.parse::<i64>() else { return Ok(self.source(from)) };
        let stages = self.dockerfile.stages.len();
        usize::try_from(number).ok().filter(|index| *index < stages).ok_or_else(|| {
            let message = format!("invalid stage index {number}");
            let hint = format!("stages are counted from 0 to {}", stages - 1);
            Diagnostic::error(message, from.span).hint(hint)
        })
    }

    /// The stage called `from`, or one that is made of the image or context of that name.
    fn source(&mut self, from: &Text) -> StageIndex {
        if let Some(index) = self.by_name.get(&from.value.to_lowercase()) {
            return *index;
        }
        let base = named_base(from.value.clone(), self.options.target_platform());
        self.stages.push(PlannedStage {
            stage: None,
            shown: String::new(),
            base,
            platform: None,
            replaced: false,
            commands: Vec::new(),
            used: BTreeSet::new(),
            reads: Vec::new(),
            triggers: Some(0),
            span: from.span,
        });
        self.stages.len() - 1
    }

    /// Refuses stages that read one another in a circle. (That a stage reads one behind it is
    /// noticed when it is lowered, and only if it is needed.)
    fn refuse_cycles(&self) -> Result<(), Diagnostic> {
        let mut done = HashSet::new();
        for start in 0..self.stages.len() {
            // Which stage is looked at, and how many of those it reads have been.
            let mut path: Vec<(StageIndex, usize)> = vec![(start, 0)];
            let mut on_path = HashSet::from([start]);
            while let Some((index, next)) = path.last_mut() {
                if *next == 0 && done.contains(index) {
                    on_path.remove(index);
                    path.pop();
                    continue;
                }
                let Some((read, span)) = self.stages[*index].reads.get(*next).copied() else {
                    done.insert(*index);
                    on_path.remove(index);
                    path.pop();
                    continue;
                };
                *next += 1;
                if on_path.contains(&read) {
                    let shown = &self.stages[start].shown;
                    let message = format!("circular dependency detected on stage: {shown}");
                    return Err(Diagnostic::error(message, span));
                }
                on_path.insert(read);
                path.push((read, 0));
            }
        }
        Ok(())
    }

    /// Checks the names of all images, also of those that are not needed.
    fn resolve_names(&mut self) -> Result<(), Diagnostics> {
        let options = self.options;
        all(self.stages.iter_mut().map(|stage| stage.resolve_name(options))).map(drop)
    }

    /// Looks up the images of all stages that are needed, and adds their ONBUILD triggers, until
    /// nothing new is needed.
    fn resolve(
        &mut self,
        target: StageIndex,
        resolved: &Resolved,
    ) -> Result<(BTreeSet<StageIndex>, Vec<BaseImage>), Diagnostics> {
        loop {
            let reachable = self.reachable(target);
            let mut missing: Vec<BaseImage> = Vec::new();
            for index in &reachable {
                if let Some(image) = self.stages[*index].look_up(resolved)? {
                    let known = |known: &BaseImage| {
                        (&known.name, &known.platform) == (&image.name, &image.platform)
                    };
                    if !missing.iter().any(known) {
                        missing.push(image);
                    }
                }
            }
            let mut new_sources = false;
            // As in BuildKit, checking all stages does not bring in the triggers of those that
            // the target does not need.
            for index in &self.needed(target) {
                new_sources |= self.add_triggers(*index)?;
            }
            if !new_sources {
                return Ok((reachable, missing));
            }
            self.refuse_cycles()?;
            self.resolve_names()?;
        }
    }

    fn reachable(&self, target: StageIndex) -> BTreeSet<StageIndex> {
        if self.options.all_stages {
            return (0..self.stages.len()).collect();
        }
        self.needed(target)
    }

    /// The stages that `target` needs, itself included.
    fn needed(&self, target: StageIndex) -> BTreeSet<StageIndex> {
        let mut reachable = BTreeSet::new();
        let mut open = vec![target];
        while let Some(index) = open.pop() {
            if reachable.insert(index) {
                let stage = &self.stages[index];
                if let Base::Stage(base) = stage.base {
                    open.push(base);
                }
                open.extend(stage.reads.iter().map(|(read, _)| *read));
            }
        }
        reachable
    }

    /// Puts the triggers of a stage's base before its instructions, once they are known. Returns
    /// whether they read other stages or images.
    fn add_triggers(&mut self, index: StageIndex) -> Result<bool, Diagnostics> {
        if self.stages[index].triggers.is_some() {
            return Ok(false);
        }
        let expressions = match &self.stages[index].base {
            Base::Scratch | Base::Named { .. } | Base::Context { .. } => Vec::new(),
            Base::Stage(base) => {
                let commands = self.stages[*base].commands.iter();
                let instructions = commands.map(|command| &command.statement.instruction);
                let triggers = instructions.filter_map(|instruction| match instruction {
                    Instruction::Onbuild(onbuild) => Some(onbuild.expression.clone()),
                    _ => None,
                });
                triggers.collect()
            }
            Base::Image(image) => match &image.config {
                Some(config) => config.config.on_build.clone(),
                None => return Ok(false),
            },
        };
        let mut triggers = Vec::new();
        for expression in &expressions {
            let span = self.stages[index].span;
            let statement = parse_trigger(expression, span)?;
            let sources = self.sources(&statement)?;
            let command = Command { statement, trigger: true, sources };
            self.note_reads(index, &command);
            triggers.push(command);
        }
        let new_sources = triggers.iter().any(|command| !command.sources.is_empty());
        let stage = &mut self.stages[index];
        stage.triggers = Some(triggers.len());
        stage.commands.splice(0..0, triggers);
        Ok(new_sources)
    }
}

impl PlannedStage<'_> {
    /// Finds out what the name of the stage's base stands for: a named context or an image.
    fn resolve_name(&mut self, options: &BuildOptions) -> Result<(), Diagnostic> {
        let Base::Named { written, platform } = &self.base else { return Ok(()) };
        let image: ImageRef = written.parse().map_err(|_| {
            let name = Quoted(written);
            let message = format!("failed to parse stage name {name}: invalid reference format");
            Diagnostic::error(message, self.base_span())
        })?;
        let full = image.to_string();
        self.base = match options.named_context(&full, platform) {
            Some((name, context)) => context_base(name, context, platform),
            None => Base::Image(BaseName {
                name: ImageName::Registry(image),
                platform: platform.clone(),
                full,
                context: None,
                config: None,
            }),
        };
        Ok(())
    }

    /// Where the name of the base is written.
    pub(crate) fn base_span(&self) -> Span {
        self.stage.map_or(self.span, |stage| stage.from.base.span)
    }

    /// Reads the config of the stage's image, or returns the image if it is not known yet.
    fn look_up(&mut self, resolved: &Resolved) -> Result<Option<BaseImage>, Diagnostic> {
        let span = self.base_span();
        let Base::Image(image) = &mut self.base else { return Ok(None) };
        if image.config.is_some() {
            return Ok(None);
        }
        let Some(found) = resolved.image(&image.name, &image.platform) else {
            let (name, platform) = (image.name.clone(), image.platform.clone());
            return Ok(Some(BaseImage { name, platform, span }));
        };
        let config = ImageConfig::from_json(&found.config).map_err(|error| {
            let message = format!("{}: failed to parse image config: {error}", image.name);
            Diagnostic::error(message, span)
        })?;
        image.config = Some(Arc::new(config));
        Ok(None)
    }
}

/// The base that FROM or `--from` names, where it is no stage.
fn named_base(written: String, platform: &Platform) -> Base {
    if written == "scratch" {
        return Base::Scratch;
    }
    Base::Named { written, platform: platform.clone() }
}

/// The base that a named context is.
fn context_base(name: &str, context: &NamedContext, platform: &Platform) -> Base {
    let (image, full) = match context {
        NamedContext::Scratch => return Base::Scratch,
        NamedContext::Image(image) => (ImageName::Registry(image.clone()), image.to_string()),
        NamedContext::OciLayout => (ImageName::OciLayout(name.to_owned()), name.to_owned()),
        NamedContext::Folder { .. }
        | NamedContext::Git(_)
        | NamedContext::Http(_)
        | NamedContext::Built { .. } => {
            return Base::Context { name: name.to_owned(), context: context.clone() };
        }
    };
    Base::Image(BaseName {
        name: image,
        platform: platform.clone(),
        full,
        context: Some(name.to_owned()),
        config: None,
    })
}
