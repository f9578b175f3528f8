//! Typed instructions → graph and image config.
//!
//! [`lower`] walks the stages that the target needs, in the order of the Dockerfile. Each stage is
//! a [`StageState`] that instructions change one after the other: some add a vertex, all but ONBUILD
//! add a line to the history. What an instruction means is in the module named after it; the short
//! ones are in [`metadata`]. Follows `dispatchStages` and `dispatch` in BuildKit's
//! `dockerfile2llb/convert.go`.

pub(crate) mod arguments;
mod context;
mod copy;
pub(crate) mod environment;
mod epoch;
mod go_format;
mod metadata;
mod mount;
mod name;
mod outline;
mod path;
mod ports;
mod run;
mod signal;
mod source;
mod state;

use rbuild_cache::pattern::PatternMatcher;
use rbuild_solver::graph::{self, Graph, Op, Vertex, VertexId};

pub use context::context_vertex;
pub use epoch::{EpochSource, epoch};
pub use outline::{Outline, OutlineArgument, OutlineInput, TargetDescription, targets};

use crate::Dockerfile;
use crate::check::{self, CheckOptions, Checks, Warning};
use crate::diagnostic::{Diagnostic, Diagnostics};
use crate::expand::Lexer;
use crate::image_config::ImageConfig;
use crate::instruction::{Expander, Instruction};
use crate::options::{BaseImage, BuildContext, BuildOptions, Resolved};
use crate::source::{Span, Text};
use crate::stage::{Base, Command, Plan, StageIndex};
use crate::syntax::Origin;
use name::Names;
use outline::StageOutline;
use state::{Once, StageState};

/// What a Dockerfile comes to for one platform.
#[derive(Clone, Debug)]
pub struct Lowered {
    /// The vertex that makes the image's tree.
    pub target: VertexId,
    /// The image's config. Digests of layers and times are missing still:
    /// [`ImageConfig::finish`].
    pub config: ImageConfig,
    /// The config of the image that this one was made from, as it was.
    pub base: Option<ImageConfig>,
    /// `SOURCE_DATE_EPOCH` in seconds.
    pub epoch: Option<i64>,
    /// The target's steps run although their results are known.
    pub ignore_cache: bool,
    /// What build checks found.
    pub warnings: Vec<Warning>,
}

/// The images that must be resolved before [`lower`] can do its work, and are not yet.
///
/// Called again once they are resolved, since their ONBUILD triggers may name further ones, until
/// there is none.
///
/// # Errors
/// What is wrong with the Dockerfile's stages.
pub fn base_images(
    dockerfile: &Dockerfile,
    options: &BuildOptions,
    resolved: &Resolved,
) -> Result<Vec<BaseImage>, Diagnostics> {
    let globals = arguments::globals(dockerfile, options)?;
    let plan = Plan::new(dockerfile, options, resolved, globals, &mut Checks::default())?;
    Ok(plan.missing)
}

/// Adds to `graph` what makes the image that `options` ask for.
///
/// All images of [`base_images`] must be in `resolved`. For several platforms, called once for
/// each, with the same graph: what they have in common is one vertex.
///
/// # Errors
/// What is wrong with the Dockerfile.
pub fn lower(
    dockerfile: &Dockerfile,
    options: &BuildOptions,
    resolved: &Resolved,
    graph: &mut Graph,
) -> Result<Lowered, Diagnostics> {
    let mut checks = Checks::new(check_options(dockerfile, options)?);
    checks.dockerfile(dockerfile);
    let (lowered, _) = lower_checked(dockerfile, options, resolved, graph, &mut checks)?;
    fatal_warnings(&checks)?;
    Ok(lowered)
}

/// What build checks find, and what is wrong besides.
#[derive(Clone, Debug, Default)]
pub struct CheckReport {
    /// What checks found.
    pub warnings: Vec<Warning>,
    /// What keeps the Dockerfile from being built, whatever the checks say.
    pub errors: Diagnostics,
}

/// Checks a Dockerfile without building it. All images of [`base_images`] must be in `resolved`.
///
/// # Errors
/// When it cannot be said which checks run.
pub fn check(
    dockerfile: &Dockerfile,
    options: &BuildOptions,
    resolved: &Resolved,
) -> Result<CheckReport, Diagnostics> {
    let mut checks = Checks::new(check_options(dockerfile, options)?);
    checks.dockerfile(dockerfile);
    let lowered = lower_checked(dockerfile, options, resolved, &mut Graph::new(), &mut checks);
    // That warnings are errors is for the caller to say.
    let errors = lowered.err().unwrap_or_default();
    Ok(CheckReport { warnings: checks.warnings().to_vec(), errors })
}

/// What the target can be given: `--call=outline`. All images of [`base_images`] must be in
/// `resolved`.
///
/// # Errors
/// What is wrong with the Dockerfile.
pub fn outline(
    dockerfile: &Dockerfile,
    options: &BuildOptions,
    resolved: &Resolved,
) -> Result<Outline, Diagnostics> {
    let mut checks = Checks::new(check_options(dockerfile, options)?);
    let (_, outline) =
        lower_checked(dockerfile, options, resolved, &mut Graph::new(), &mut checks)?;
    fatal_warnings(&checks)?;
    Ok(outline)
}

/// The warnings as an error, where the Dockerfile says that they are one.
fn fatal_warnings(checks: &Checks) -> Result<(), Diagnostics> {
    let Some(message) = checks.error() else { return Ok(()) };
    let warnings = checks.warnings().iter().map(Warning::diagnostic);
    Err(Diagnostics(warnings.chain([nowhere(message)]).collect()))
}

fn lower_checked(
    dockerfile: &Dockerfile,
    options: &BuildOptions,
    resolved: &Resolved,
    graph: &mut Graph,
    checks: &mut Checks,
) -> Result<(Lowered, Outline), Diagnostics> {
    let (epoch, options) = epoch::settled(dockerfile, options, resolved)?;
    let mut globals = arguments::globals(dockerfile, &options)?;
    epoch::settle_global(&mut globals, epoch);
    let plan = Plan::new(dockerfile, &options, resolved, globals, checks)?;
    let target = plan.target;
    let mut lowering = Lowering::new(dockerfile, &options, resolved, plan, graph, checks, epoch);
    lowering.run()?;
    let finished = lowering.stage(target)?;
    let mut config = finished.image;
    config.config.labels.extend(options.labels.clone());
    finish_platform(&mut config, &options);
    let outline = lowering.outline();
    let lowered = Lowered {
        target: finished.vertex,
        config,
        base: finished.base_image,
        epoch,
        ignore_cache: finished.ignore_cache,
        warnings: lowering.checks.warnings().to_vec(),
    };
    Ok((lowered, outline))
}

fn check_options(
    dockerfile: &Dockerfile,
    options: &BuildOptions,
) -> Result<CheckOptions, Diagnostic> {
    let given = options.check().map(|text| (text, None));
    let written = dockerfile.check.as_ref().map(|text| (text.as_str(), Some(text.span)));
    let Some((text, span)) = given.or(written) else { return Ok(CheckOptions::default()) };
    CheckOptions::parse(text).map_err(|error| {
        let mut diagnostic = nowhere(error.to_string());
        diagnostic.span = span;
        diagnostic
    })
}

/// The image is for the platform that was asked for; where none was, for that of its base.
fn finish_platform(config: &mut ImageConfig, options: &BuildOptions) {
    if let Some(wanted) = &options.platform {
        let same = (&wanted.os, &wanted.architecture) == (&config.os, &config.architecture);
        config.os.clone_from(&wanted.os);
        config.architecture.clone_from(&wanted.architecture);
        if wanted.variant.is_some() || !same {
            config.variant = wanted.variant.clone().unwrap_or_default();
        }
        if wanted.os_version.is_some() || !same {
            config.os_version = wanted.os_version.clone().unwrap_or_default();
        }
        if !wanted.os_features.is_empty() {
            config.os_features.clone_from(&wanted.os_features);
        }
    } else if config.os.is_empty() {
        config.set_platform(options.target_platform());
    }
    let normal = config.platform();
    config.set_platform(&normal);
}

/// An error at no place.
fn nowhere(message: String) -> Diagnostic {
    Diagnostic { span: None, ..Diagnostic::error(message, Span::default()) }
}

/// A Dockerfile on its way into the graph.
struct Lowering<'a> {
    dockerfile: &'a Dockerfile,
    options: &'a BuildOptions,
    resolved: &'a Resolved,
    plan: Plan<'a>,
    graph: &'a mut Graph,
    checks: &'a mut Checks,
    epoch: Option<i64>,
    lexer: Lexer,
    /// What `.dockerignore` leaves out of the context, where that is a folder.
    ignored: Option<PatternMatcher>,
    /// What each stage can be given.
    outlines: Vec<StageOutline>,
    /// How each stage that has been lowered ends, until the last stage that begins there has.
    done: Vec<Option<StageState>>,
    /// The tree of each stage that has been lowered.
    trees: Vec<Option<VertexId>>,
    /// How many stages that are needed still begin where a stage ends.
    heirs: Vec<usize>,
}

impl<'a> Lowering<'a> {
    fn new(
        dockerfile: &'a Dockerfile,
        options: &'a BuildOptions,
        resolved: &'a Resolved,
        plan: Plan<'a>,
        graph: &'a mut Graph,
        checks: &'a mut Checks,
        epoch: Option<i64>,
    ) -> Self {
        let ignored = match &options.context {
            // A pattern that is none is refused where the context is read.
            BuildContext::Folder { ignore } if !ignore.is_empty() => {
                PatternMatcher::new(ignore).ok()
            }
            BuildContext::Folder { .. }
            | BuildContext::Git(_)
            | BuildContext::Archive(_)
            | BuildContext::Tar => None,
        };
        let done = vec![None; plan.stages.len()];
        let trees = vec![None; plan.stages.len()];
        let heirs = heirs(&plan);
        let outlines = vec![StageOutline::default(); plan.stages.len()];
        let lexer = Lexer::new(dockerfile.escape);
        Self {
            dockerfile,
            options,
            resolved,
            plan,
            graph,
            checks,
            epoch,
            lexer,
            ignored,
            outlines,
            done,
            trees,
            heirs,
        }
    }

    /// Lowers all stages that are needed, in the order of the Dockerfile. An instruction with a
    /// mistake is left out, and the next one lowered, so that all mistakes are told.
    fn run(&mut self) -> Result<(), Diagnostics> {
        let mut wrong = Diagnostics::default();
        let reachable = self.plan.reachable.clone();
        for index in reachable.into_iter().filter(|index| *index < self.dockerfile.stages.len()) {
            if self.plan.stages[index].replaced {
                continue;
            }
            let mut state = self.begin(index)?;
            state.index = index;
            let commands = std::mem::take(&mut self.plan.stages[index].commands);
            for command in &commands {
                wrong.keep(self.statement(&mut state, command));
            }
            self.plan.stages[index].commands = commands;
            self.trees[index] = Some(state.vertex);
            self.done[index] = Some(state);
        }
        wrong.unless_wrong(Some(()))
    }

    /// How a stage ends: one that was lowered, or one that is a context or an image.
    fn stage(&mut self, index: StageIndex) -> Result<StageState, Diagnostic> {
        if self.done[index].is_none() {
            let state = self.begin(index)?;
            self.trees[index] = Some(state.vertex);
            self.done[index] = Some(state);
        }
        Ok(self.done[index].clone().expect("just lowered"))
    }

    /// The end of a stage, for one that begins there. A history as long as the chain of stages is
    /// passed on to the last of them, not copied to each.
    fn inherited(&mut self, base: StageIndex) -> Result<StageState, Diagnostic> {
        self.heirs[base] -= 1;
        match self.done[base].take_if(|_| self.heirs[base] == 0) {
            Some(state) => Ok(state),
            None => self.stage(base),
        }
    }

    /// The tree of a stage that `--from` names; `None` for one that comes later.
    fn source(&mut self, index: StageIndex) -> Result<Option<VertexId>, Diagnostic> {
        let stage = &self.plan.stages[index];
        if let Some(tree) = self.trees[index] {
            return Ok(Some(tree));
        }
        if stage.stage.is_some() && !stage.replaced {
            return Ok(None);
        }
        self.stage(index).map(|state| Some(state.vertex))
    }

    /// A stage before its first instruction.
    fn begin(&mut self, index: StageIndex) -> Result<StageState, Diagnostic> {
        let stage = &self.plan.stages[index];
        let name = stage.name().unwrap_or_default();
        let names = Names {
            stage: stage.shown.clone(),
            total: stage.steps(),
            with_platform: self.options.several_platforms,
            ..Names::default()
        };
        let ignore_cache = stage.stage.is_some() && self.options.ignores_cache(name);
        let mut begun = match stage.base {
            Base::Stage(base) => {
                let mut inherited = self.inherited(base)?;
                inherited.image.config.on_build.clear();
                StageState { once: Once::default(), names, ignore_cache, ..inherited }
            }
            Base::Scratch | Base::Named { .. } | Base::Image(_) | Base::Context { .. } => {
                self.base_state(index, names, ignore_cache)
            }
        };
        begun.begin();
        Ok(begun)
    }

    /// Lowers one instruction.
    fn statement(&mut self, state: &mut StageState, command: &Command) -> Result<(), Diagnostic> {
        state.names.trigger = command.trigger;
        let origin = &command.statement.origin;
        let mut instruction = command.statement.instruction.clone();
        instruction.expand(&mut self.expander(state, origin, self.lexer))?;
        instruction.expand_inline(&mut self.expander(state, origin, Lexer::for_heredocs()))?;
        self.instruction(state, command, &instruction)
    }

    /// Lowers an instruction whose words are expanded.
    fn instruction(
        &mut self,
        state: &mut StageState,
        command: &Command,
        instruction: &Instruction,
    ) -> Result<(), Diagnostic> {
        let origin = &command.statement.origin;
        match instruction {
            Instruction::Add(add) => return self.add_files(state, command, instruction, add),
            Instruction::Copy(copy) => return self.copy_files(state, command, instruction, copy),
            Instruction::Run(run) => return self.run_command(state, command, run),
            Instruction::Workdir(path) => return self.workdir(state, origin, path),
            Instruction::Arg(arg) => return self.arg(state, origin, arg),
            Instruction::Cmd(line) => self.cmd(state, origin, line),
            Instruction::Entrypoint(line) => self.entrypoint(state, origin, line),
            Instruction::Env(pairs) => self.env(state, origin, pairs),
            Instruction::Expose(ports) => return self.expose(state, origin, ports),
            Instruction::Healthcheck(check) => self.healthcheck(state, origin, check),
            Instruction::Label(pairs) => self.label(state, origin, pairs),
            Instruction::Maintainer(name) => metadata::maintainer(state, name),
            Instruction::Onbuild(onbuild) => metadata::onbuild(state, onbuild),
            Instruction::Shell(words) => metadata::shell(state, words),
            Instruction::StopSignal(signal) => return metadata::stop_signal(state, signal),
            Instruction::User(user) => metadata::user(state, user),
            Instruction::Volume(paths) => return metadata::volume(state, paths),
        }
        Ok(())
    }

    /// Expands words of an instruction, and says so where a variable is defined nowhere.
    fn expander<'b>(
        &'b mut self,
        state: &'b StageState,
        origin: &'b Origin,
        lexer: Lexer,
    ) -> Box<Expander<'b>> {
        Box::new(move |text: &Text| {
            let expansion = lexer.expand_text(text, &state.env)?;
            for name in &expansion.unmatched {
                report_undefined(self.checks, state, origin, name);
            }
            Ok(expansion.result)
        })
    }

    /// Adds a vertex that an instruction makes.
    fn add(
        &mut self,
        op: Op,
        name: String,
        origin: &Origin,
        ignore_cache: bool,
        inputs: &[VertexId],
    ) -> VertexId {
        let span = Some(self.locate(origin.span));
        self.graph.add(Vertex { op, name, span, ignore_cache }, inputs)
    }

    fn locate(&self, span: Span) -> graph::Span {
        self.dockerfile.source.locate(span)
    }
}

/// How many needed stages begin where each stage ends. The target's end is needed besides.
fn heirs(plan: &Plan<'_>) -> Vec<usize> {
    let mut heirs = vec![0; plan.stages.len()];
    heirs[plan.target] += 1;
    for index in &plan.reachable {
        if let Base::Stage(base) = plan.stages[*index].base {
            heirs[base] += 1;
        }
    }
    heirs
}

/// Arguments that are read but never put into the environment.
const NOT_IN_ENVIRONMENT: [&str; 2] = ["BUILDKIT_SBOM_SCAN_CONTEXT", "BUILDKIT_SBOM_SCAN_STAGE"];

/// Says that nothing defines the variable `name`, unless an ARG declares it without a value.
fn report_undefined(checks: &mut Checks, state: &StageState, origin: &Origin, name: &str) {
    let declared = state.arguments.iter().any(|(argument, _)| argument == name);
    if !declared && !NOT_IN_ENVIRONMENT.contains(&name) {
        check::undefined_var(checks, origin, name, state.env.names());
    }
}
