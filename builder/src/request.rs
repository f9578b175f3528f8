//! What was asked for: flags, environment and defaults, put together and checked once.
//!
//! This is the border. Everything behind it works with the types here, and nothing behind it reads
//! the environment, the clock or the command line. Values are read as `docker buildx build` reads
//! them (buildx `commands/build.go` and `util/buildflags/`).

mod attestation;
mod cache;
mod csv;
mod device;
mod engine;
mod environment;
mod limits;
mod output;
mod place;
mod resources;
mod slim;
mod source;
mod step;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use rbuild_cache::limits::Limits;
use rbuild_cache::oci::{ImageRef, Platform};
use rbuild_cache::snapshot::SnapshotterKind;
use rbuild_frontend::NoCache;
use rbuild_solver::Jobs;
use rbuild_solver::graph::{NetworkMode, Ulimit};
use rbuild_solver::mount::{Secret, SshAgent};
use rbuild_solver::sandbox::resources::Resources;

use crate::cli::{BuildArgs, GlobalArgs};
use crate::config::{Config, ConfigError};
use crate::registry::RegistrySettings;

pub use attestation::{ProvenanceMode, ProvenanceRequest};
pub use cache::{CacheFrom, CacheMode, CachePlace, CacheTo};
pub use device::DeviceLeave;
pub use engine::EngineSettings;
pub use environment::Environment;
pub(crate) use limits::limits;
pub use output::{Destination, OutputKind, OutputSpec};
pub use slim::{PROBE_TIMEOUT, SlimRequest, SlimSettings, SlimSwitch};
pub use source::{ContextSpec, DockerfileSpec, NamedContextSpec};
pub use step::Entitlement;

/// One build, completely.
#[derive(Clone, Debug)]
pub struct BuildRequest {
    /// What every command knows.
    pub settings: Settings,
    /// The build context.
    pub context: ContextSpec,
    /// Where the Dockerfile is.
    pub dockerfile: DockerfileSpec,
    /// `--build-context`, by name in its familiar form (`debian:bookworm`; `:latest` is left out).
    pub named_contexts: BTreeMap<String, NamedContextSpec>,
    /// `--target`; the last stage when absent.
    pub target: Option<String>,
    /// `--build-arg`, the proxies of Docker's configuration and `SOURCE_DATE_EPOCH`.
    pub build_args: BTreeMap<String, String>,
    /// `--platform`; never empty, without duplicates, in the order given.
    pub platforms: Vec<Platform>,
    /// Whether `--platform` was given: then several platforms, or one, become an index as buildx
    /// has it.
    pub platforms_given: bool,
    /// `--label`
    pub labels: BTreeMap<String, String>,
    /// `--annotation`
    pub annotations: Vec<Annotation>,
    /// `--tag`, without duplicates.
    pub tags: Vec<ImageRef>,
    /// `--output`, `--push`, `--load`; never empty.
    pub outputs: Vec<OutputSpec>,
    /// `--metadata-file`
    pub metadata_file: Option<PathBuf>,
    /// `--iidfile`
    pub image_id_file: Option<PathBuf>,
    /// `--secret`, by id.
    pub secrets: BTreeMap<String, Secret>,
    /// `--ssh`, by id.
    pub ssh: BTreeMap<String, SshAgent>,
    /// `--network`
    pub network: NetworkMode,
    /// `--add-host`: (name, address), in order.
    pub extra_hosts: Vec<(String, String)>,
    /// `--ulimit`
    pub ulimits: Vec<Ulimit>,
    /// `--shm-size` in bytes.
    pub shm_size: Option<u64>,
    /// `--cgroup-parent`
    pub cgroup_parent: Option<String>,
    /// `--memory`, `--cpus` and the like.
    pub resources: Resources,
    /// `--limit`: how much is taken in from outside.
    pub limits: Limits,
    /// `--timeout`: how long a step may take.
    pub timeout: Option<Duration>,
    /// `--allow`
    pub allow: BTreeSet<Entitlement>,
    /// `--allow device`
    pub allow_devices: DeviceLeave,
    /// `--no-cache`, `--no-cache-filter`
    pub no_cache: NoCache,
    /// `--pull`: names are resolved anew.
    pub pull: bool,
    /// `--cache-from`
    pub cache_from: Vec<CacheFrom>,
    /// `--cache-to`
    pub cache_to: Vec<CacheTo>,
    /// `--provenance`, `--attest type=provenance`
    pub provenance: Option<ProvenanceRequest>,
    /// `--call`, `--check`
    pub call: Call,
    /// `--slim` and the flags around it.
    pub slim: SlimRequest,
    /// How many RUN steps compute at once.
    pub jobs: Jobs,
}

/// What every command knows.
#[derive(Clone, Debug)]
#[allow(clippy::struct_excessive_bools, reason = "each says something of its own")]
pub struct Settings {
    /// The state folder; it need not exist.
    pub state_folder: PathBuf,
    /// How trees are put together for steps: by overlayfs, unless the machine cannot.
    pub snapshotter: SnapshotterKind,
    /// Where the registry client finds what the user configured.
    pub registry: RegistrySettings,
    /// Where container engines listen.
    pub engine: EngineSettings,
    /// `$TMPDIR`, or `/tmp`.
    pub temporary: PathBuf,
    /// How progress is shown; never [`ProgressMode::Auto`].
    pub progress: ProgressMode,
    /// Whether stderr shows colours.
    pub colors: bool,
    /// Whether stderr shows more than ASCII, as far as the locale says.
    pub unicode: bool,
    /// What `config.toml` says.
    pub config: Config,
    /// When rbuild began.
    pub now: SystemTime,
    /// Whether rbuild runs as root.
    pub root: bool,
    /// Developers are told what happens: `--debug`.
    pub debug: bool,
}

/// How progress is shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ProgressMode {
    /// `tty` on a terminal, otherwise `plain`.
    #[default]
    Auto,
    /// A line per event.
    Plain,
    /// A live view.
    Tty,
    /// JSON, an event a line.
    RawJson,
    /// Nothing but the image's ID.
    Quiet,
}

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

/// One `--annotation`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Annotation {
    /// On what.
    pub subject: AnnotationSubject,
    /// Only for this platform's manifest, or its descriptor.
    pub platform: Option<Platform>,
    /// Its name.
    pub key: String,
    /// Its value.
    pub value: String,
}

/// What an annotation is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum AnnotationSubject {
    /// The index.
    Index,
    /// The index's descriptor in an OCI layout.
    IndexDescriptor,
    /// The manifest.
    Manifest,
    /// The manifest's descriptor in the index.
    ManifestDescriptor,
}

/// Says what is wrong with what was asked for. All of it is wrong usage.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UsageError {
    /// A flag's value is no value for it.
    #[error("invalid value `{value}` for `{flag}`: {reason}")]
    Value {
        /// The flag.
        flag: &'static str,
        /// What was given.
        value: String,
        /// What is wrong with it.
        reason: String,
    },
    /// An environment variable's value is no value for it.
    #[error("invalid value `{value}` of the environment variable `{name}`: {reason}")]
    Variable {
        /// The variable.
        name: &'static str,
        /// What it holds.
        value: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Two flags exclude each other.
    #[error("`{one}` and `{other}` cannot be used together")]
    Conflict {
        /// The one.
        one: String,
        /// The other.
        other: String,
        /// What can be done.
        instead: String,
    },
    /// A flag about slim images where none is made.
    #[error("`{flag}` says something about slim images, and nothing is slimmed")]
    NeedsSlim {
        /// The flag.
        flag: &'static str,
    },
    /// A push of an image without a name.
    #[error("a name is needed to push the image")]
    NoName,
    /// A flag that rbuild is going to have.
    #[error("{0} is not there yet in this version of rbuild")]
    NotYet(String),
    /// A bill of materials.
    #[error("{0} asks for a scanner of images, and rbuild has none")]
    NoScanner(String),
    /// A flag of buildx that means nothing here.
    #[error("`{flag}` means nothing to rbuild: {reason}")]
    Meaningless {
        /// The flag.
        flag: &'static str,
        /// Why.
        reason: &'static str,
    },
    /// A file that a flag names cannot be used.
    #[error("cannot use {what}: {reason}")]
    File {
        /// What it is: a secret of some name.
        what: String,
        /// What is wrong with it.
        reason: String,
    },
    /// `config.toml` cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// No folder to keep the state in.
    #[error("there is no place for the state folder: neither HOME nor XDG_DATA_HOME is set")]
    NoStateFolder,
}

impl UsageError {
    /// A flag's value is no value for it.
    pub fn value(flag: &'static str, value: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Value { flag, value: value.into(), reason: reason.into() }
    }

    /// What the user can do.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Conflict { instead, .. } => Some(instead.clone()),
            Self::NoName => Some("give it one with `-t NAME`".into()),
            Self::NeedsSlim { .. } => Some("give `--slim` too".into()),
            Self::NoScanner(_) => Some(
                "scan what was built: `-o type=oci,dest=FILE.tar`, then \
                 `syft scan oci-archive:FILE.tar -o spdx-json`"
                    .into(),
            ),
            Self::NoStateFolder => Some("name one with `--root DIR` or RBUILD_ROOT".into()),
            Self::Value { .. }
            | Self::Variable { .. }
            | Self::NotYet(_)
            | Self::Meaningless { .. }
            | Self::File { .. }
            | Self::Config(_) => None,
        }
    }
}

impl Settings {
    /// What `global` and `environment` say; `progress` is a build's `--progress`.
    pub fn new(
        global: &GlobalArgs,
        progress: Option<&str>,
        environment: &Environment,
    ) -> Result<Self, UsageError> {
        let home = environment.path("HOME");
        let state_folder = global
            .root
            .clone()
            .or_else(|| environment.path("RBUILD_ROOT"))
            .or_else(|| environment.root.then(|| PathBuf::from("/var/lib/rbuild")))
            .or_else(|| Some(environment.path("XDG_DATA_HOME")?.join("rbuild")))
            .or_else(|| Some(home?.join(".local/share/rbuild")))
            .ok_or(UsageError::NoStateFolder)?;
        Ok(Self {
            state_folder,
            snapshotter: SnapshotterKind::default(),
            registry: RegistrySettings::from_environment(|name| {
                environment.variables.get(std::ffi::OsStr::new(name)).cloned()
            }),
            engine: EngineSettings::new(environment),
            temporary: environment.path("TMPDIR").unwrap_or_else(|| "/tmp".into()),
            progress: progress_mode(progress, environment)?,
            colors: environment.shows_colors(),
            unicode: ["LC_ALL", "LC_CTYPE", "LANG"]
                .iter()
                .find_map(|name| environment.text(name).filter(|value| !value.is_empty()))
                .is_none_or(|locale| locale.to_ascii_lowercase().replace('-', "").contains("utf8"))
                && environment.text("TERM") != Some("linux"),
            config: Config::read(environment)?,
            now: environment.now,
            root: environment.root,
            debug: global.debug,
        })
    }
}

fn progress_mode(
    flag: Option<&str>,
    environment: &Environment,
) -> Result<ProgressMode, UsageError> {
    const REASON: &str = "expected auto, plain, tty, rawjson or quiet";
    let mode = |name: &str| match name {
        "" | "auto" => Some(ProgressMode::Auto),
        "plain" => Some(ProgressMode::Plain),
        "tty" => Some(ProgressMode::Tty),
        "rawjson" => Some(ProgressMode::RawJson),
        "quiet" | "none" => Some(ProgressMode::Quiet),
        _ => None,
    };
    let flag = flag.unwrap_or_default();
    let asked = mode(flag).ok_or_else(|| UsageError::value("--progress", flag, REASON))?;
    let variable = environment.text("BUILDKIT_PROGRESS").unwrap_or_default();
    let asked = match asked {
        ProgressMode::Auto => mode(variable).ok_or_else(|| UsageError::Variable {
            name: "BUILDKIT_PROGRESS",
            value: variable.to_owned(),
            reason: REASON.into(),
        })?,
        named => named,
    };
    let live = environment.stderr_is_terminal && environment.text("TERM") != Some("dumb");
    match asked {
        ProgressMode::Auto if live => Ok(ProgressMode::Tty),
        ProgressMode::Auto => Ok(ProgressMode::Plain),
        ProgressMode::Tty if !environment.stderr_is_terminal => {
            Err(UsageError::value("--progress", "tty", "stderr is not a terminal"))
        }
        named => Ok(named),
    }
}

impl BuildRequest {
    /// What `arguments` ask for in `environment`.
    pub fn new(
        global: &GlobalArgs,
        arguments: &BuildArgs,
        environment: &Environment,
    ) -> Result<Self, UsageError> {
        refuse_what_is_not_there(arguments)?;
        let (allow_devices, allow) = device::devices(&arguments.allow)?;
        let progress = if arguments.quiet { Some("quiet") } else { arguments.progress.as_deref() };
        let settings = Settings::new(global, progress, environment)?;
        let build_args = build_args(arguments, &settings, environment)?;
        let call = call(arguments)?;
        let outputs = output::outputs(&arguments.output, arguments.push, arguments.load)?;
        outputs.iter().try_for_each(|output| place::output(output, environment))?;
        let places = [
            ("--metadata-file", &arguments.metadata_file),
            ("--iidfile", &arguments.iidfile),
            ("--slim-report", &arguments.slim_report),
        ];
        for (flag, path) in places {
            path.iter().try_for_each(|path| place::file(flag, path))?;
        }
        let tags = tags(&arguments.tag)?;
        let named = |output: &OutputSpec| output.attributes.contains_key("name");
        if tags.is_empty() && outputs.iter().any(|output| output.pushes() && !named(output)) {
            return Err(UsageError::NoName);
        }
        Ok(Self {
            context: source::context(&arguments.context)?,
            dockerfile: source::dockerfile(arguments.file.as_deref(), &arguments.context)?,
            named_contexts: source::named_contexts(&arguments.build_context)?,
            target: arguments.target.clone().filter(|target| !target.is_empty()),
            platforms: platforms(&arguments.platform)?,
            platforms_given: !arguments.platform.is_empty(),
            labels: labels(&arguments.label)?,
            annotations: annotations(&arguments.annotation)?,
            tags,
            outputs,
            metadata_file: arguments.metadata_file.clone(),
            image_id_file: arguments.iidfile.clone(),
            secrets: step::secrets(&arguments.secret, environment)?,
            ssh: step::ssh(&arguments.ssh, environment)?,
            network: step::network(arguments.network.as_deref())?,
            extra_hosts: step::extra_hosts(&arguments.add_host)?,
            ulimits: step::ulimits(&arguments.ulimit)?,
            shm_size: arguments.shm_size.as_deref().map(step::shm_size).transpose()?,
            cgroup_parent: arguments.cgroup_parent.clone().filter(|path| !path.is_empty()),
            resources: resources::resources(arguments)?,
            limits: limits(&arguments.limit)?,
            timeout: arguments.timeout.as_deref().map(resources::timeout).transpose()?,
            allow: step::entitlements(&allow)?,
            allow_devices,
            no_cache: no_cache(arguments)?,
            pull: arguments.pull,
            cache_from: cache::sources(&arguments.cache_from)?,
            cache_to: cache::targets(&arguments.cache_to, &build_args)?,
            provenance: attestation::provenance(arguments)?,
            call,
            slim: SlimRequest::new(arguments)?,
            jobs: match arguments.jobs {
                Some(limit) => Jobs::Limit(limit.get()),
                None => Jobs::Cores(environment.processors.get()),
            },
            build_args,
            settings,
        })
    }
}

/// Refuses by name what rbuild does not do yet, so that nothing is ignored in silence.
fn refuse_what_is_not_there(arguments: &BuildArgs) -> Result<(), UsageError> {
    let meaningless = [
        (
            arguments.builder.is_some(),
            "--builder",
            "there are no builder instances, rbuild itself builds",
        ),
        (arguments.isolation.is_some(), "--isolation", "it is about Windows containers"),
        (
            !arguments.security_opt.is_empty(),
            "--security-opt",
            "steps run under Docker's default filter; `RUN --security=insecure` with `--allow \
             security.insecure` runs without it",
        ),
        (
            arguments.squash,
            "--squash",
            "a last stage that copies what it needs has one layer of it, and `--slim` makes two",
        ),
        (arguments.detach, "--detach", "there is no daemon that would go on building"),
        (arguments.print.is_some(), "--print", "it is called `--call`"),
    ];
    if let Some((_, flag, reason)) = meaningless.into_iter().find(|(given, ..)| *given) {
        return Err(UsageError::Meaningless { flag, reason });
    }
    let later = [
        (arguments.on_error.is_some(), "`--on-error`"),
        (arguments.report.is_some(), "`--report`"),
        (arguments.invoke.is_some(), "`--invoke`"),
        (!arguments.policy.is_empty(), "`--policy`"),
    ];
    match later.into_iter().find(|(given, _)| *given) {
        Some((_, flag)) => Err(UsageError::NotYet(flag.to_owned())),
        None => Ok(()),
    }
}

/// A truth value as Go's `strconv.ParseBool` reads it.
pub(crate) fn boolean(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

/// `KEY=VALUE`; a key alone has an empty value.
fn labels(given: &[String]) -> Result<BTreeMap<String, String>, UsageError> {
    let label = |text: &String| match text.split_once('=').unwrap_or((text, "")) {
        ("", _) => Err(UsageError::value("--label", text, "its key is empty")),
        (key, value) => Ok((key.to_owned(), value.to_owned())),
    };
    given.iter().map(label).collect()
}

fn build_args(
    arguments: &BuildArgs,
    settings: &Settings,
    environment: &Environment,
) -> Result<BTreeMap<String, String>, UsageError> {
    let mut build_args = source::proxies(settings);
    if let Some(epoch) = environment.text("SOURCE_DATE_EPOCH").filter(|epoch| !epoch.is_empty()) {
        build_args.insert("SOURCE_DATE_EPOCH".into(), epoch.to_owned());
    }
    for argument in &arguments.build_arg {
        let (name, value) = match argument.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            // As docker has it: one that the environment lacks is as if it were not given.
            None => (argument.as_str(), environment.text(argument)),
        };
        if name.is_empty() {
            return Err(UsageError::value("--build-arg", argument, "its key is empty"));
        }
        if let Some(value) = value {
            build_args.insert(name.to_owned(), value.to_owned());
        }
    }
    Ok(build_args)
}

fn tags(tags: &[String]) -> Result<Vec<ImageRef>, UsageError> {
    let mut parsed: Vec<ImageRef> = Vec::new();
    for tag in tags {
        let name: ImageRef = tag.parse().map_err(|error: rbuild_cache::oci::ReferenceError| {
            UsageError::value("--tag", tag, error.reason)
        })?;
        if name.digest().is_some() {
            return Err(UsageError::value("--tag", tag, "a name that is given holds no digest"));
        }
        if !parsed.contains(&name) {
            parsed.push(name);
        }
    }
    Ok(parsed)
}

fn platforms(named: &[String]) -> Result<Vec<Platform>, UsageError> {
    let mut platforms: Vec<Platform> = Vec::new();
    for name in named.iter().flat_map(|names| names.split(',')) {
        let platform = match name.trim() {
            "local" => Platform::host(),
            name => name.parse().map_err(|_| {
                let reason = "expected os/arch[/variant], such as linux/amd64";
                UsageError::value("--platform", name, reason)
            })?,
        };
        if !platforms.contains(&platform) {
            platforms.push(platform);
        }
    }
    if platforms.is_empty() {
        platforms.push(Platform::host());
    }
    Ok(platforms)
}

/// `[TYPE[PLATFORM],…:]KEY=VALUE` (buildx `util/buildflags/export.go`, `ParseAnnotations`).
fn annotations(given: &[String]) -> Result<Vec<Annotation>, UsageError> {
    const FLAG: &str = "--annotation";
    let mut annotations = Vec::new();
    for text in given {
        let wrong = |reason: String| UsageError::value(FLAG, text, reason);
        let (name, value) =
            text.split_once('=').ok_or_else(|| wrong("expected KEY=VALUE".into()))?;
        // A colon may be in the key itself when what is before it names no type.
        let (subjects, key) = match name.split_once(':') {
            Some((types, key)) if types.split(',').all(names_a_subject) => (types, key),
            _ => ("manifest", name),
        };
        if key.is_empty() {
            return Err(wrong("its key is empty".into()));
        }
        for subject in subjects.split(',') {
            let (name, platform) = match subject.split_once('[') {
                Some((name, platform)) => (name, platform.strip_suffix(']')),
                None => (subject, None),
            };
            let platform = platform.map(str::parse).transpose();
            annotations.push(Annotation {
                subject: subject_named(name)
                    .ok_or_else(|| wrong(format!("`{name}` takes no annotations")))?,
                platform: platform
                    .map_err(|error: rbuild_cache::oci::PlatformError| wrong(error.to_string()))?,
                key: key.to_owned(),
                value: value.to_owned(),
            });
        }
    }
    Ok(annotations)
}

fn names_a_subject(text: &str) -> bool {
    subject_named(text.split('[').next().unwrap_or(text)).is_some()
}

fn subject_named(name: &str) -> Option<AnnotationSubject> {
    match name {
        "index" => Some(AnnotationSubject::Index),
        "index-descriptor" => Some(AnnotationSubject::IndexDescriptor),
        "manifest" => Some(AnnotationSubject::Manifest),
        "manifest-descriptor" => Some(AnnotationSubject::ManifestDescriptor),
        _ => None,
    }
}

fn no_cache(arguments: &BuildArgs) -> Result<NoCache, UsageError> {
    let stages = arguments.no_cache_filter.clone();
    match (arguments.no_cache, stages.is_empty()) {
        (true, false) => Err(UsageError::Conflict {
            one: "--no-cache".into(),
            other: "--no-cache-filter".into(),
            instead: "`--no-cache` alone runs every stage anew".into(),
        }),
        (true, true) => Ok(NoCache::All),
        (false, true) => Ok(NoCache::None),
        (false, false) => Ok(NoCache::Stages(stages)),
    }
}

/// `--call=METHOD[,format=json]`, `--check` (buildx `util/buildflags/call.go`).
fn call(arguments: &BuildArgs) -> Result<Call, UsageError> {
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
    use clap::Parser;

    use super::*;
    use crate::cli::{Cli, Command};

    fn request(typed: &str, variables: &[(&str, &str)]) -> Result<BuildRequest, UsageError> {
        let words = typed.split(' ').filter(|word| !word.is_empty());
        let arguments = ["rbuild", "build", "--root", "/r", "/"].into_iter().chain(words);
        let cli = Cli::try_parse_from(arguments).unwrap();
        let Command::Build(arguments) = &cli.command else { unreachable!("it says build") };
        BuildRequest::new(&cli.global, arguments, &Environment::with_variables(variables))
    }

    #[test]
    fn build_args_come_from_flags_the_environment_and_the_epoch() {
        let variables = [("FROM_ENV", "e"), ("SOURCE_DATE_EPOCH", "7")];
        let request = request(
            "--build-arg A=1 --build-arg A=2 --build-arg FROM_ENV --build-arg UNSET --build-arg E=",
            &variables,
        )
        .unwrap();
        let args: Vec<_> = request.build_args.iter().map(|(k, v)| format!("{k}={v}")).collect();
        assert_eq!(args, ["A=2", "E=", "FROM_ENV=e", "SOURCE_DATE_EPOCH=7"]);
    }

    #[test]
    fn keys_are_not_empty() {
        for wrong in ["--build-arg =x", "--label =x"] {
            assert!(request(wrong, &[]).is_err(), "{wrong}");
        }
        let labels = request("--label a=b=c --label d", &[]).unwrap().labels;
        assert_eq!(
            labels,
            BTreeMap::from([("a".into(), "b=c".into()), ("d".into(), String::new())])
        );
    }

    #[test]
    fn an_epoch_on_the_command_line_wins() {
        let given = request("--build-arg SOURCE_DATE_EPOCH=9", &[("SOURCE_DATE_EPOCH", "7")]);
        assert_eq!(given.unwrap().build_args["SOURCE_DATE_EPOCH"], "9");
    }

    #[test]
    fn platforms_are_normalised_and_unique() {
        let platforms = |typed: &str| -> Vec<String> {
            request(typed, &[]).unwrap().platforms.iter().map(ToString::to_string).collect()
        };
        let two = ["linux/amd64", "linux/arm64"];
        assert_eq!(platforms("--platform linux/x86_64,linux/arm64 --platform linux/amd64"), two);
        assert_eq!(platforms("").len(), 1);
        assert_eq!(platforms("--platform local"), [Platform::host().to_string()]);
    }

    #[test]
    fn annotations_say_on_what_they_are() {
        let check = |typed: &str, expected: &[&str]| {
            let shown: Vec<String> = annotations(&[typed.to_owned()])
                .unwrap()
                .iter()
                .map(|a| {
                    let platform = a.platform.as_ref().map(ToString::to_string);
                    format!("{:?}{platform:?} {}={}", a.subject, a.key, a.value)
                })
                .collect();
            assert_eq!(shown, expected, "{typed}");
        };
        check("k=v", &["ManifestNone k=v"]);
        check("a:b=v", &["ManifestNone a:b=v"]);
        check("index:k=v=w", &["IndexNone k=v=w"]);
        check("index,manifest:k=v", &["IndexNone k=v", "ManifestNone k=v"]);
        check(
            "manifest-descriptor[linux/arm64]:k=v",
            &[r#"ManifestDescriptorSome("linux/arm64") k=v"#],
        );
        assert!(annotations(&["k".into()]).is_err());
        assert!(annotations(&["index:=v".into()]).is_err());
    }

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

    #[test]
    fn what_is_not_there_yet_is_refused_by_name() {
        let check = |typed: &str, expected: &str| {
            assert_eq!(request(typed, &[]).unwrap_err().to_string(), expected);
        };
        let later = " is not there yet in this version of rbuild";
        check("--sbom", &format!("`--sbom`{later}"));
        check("--attest type=sbom", &format!("`--attest type=sbom`{later}"));
        check("--on-error shell", &format!("`--on-error`{later}"));
        check("--report a.html", &format!("`--report`{later}"));
        check(
            "--builder b",
            "`--builder` means nothing to rbuild: there are no builder instances, rbuild itself builds",
        );
        for flag in ["--isolation=default", "--security-opt a", "--squash", "--detach", "--print x"]
        {
            let error = request(flag, &[]).unwrap_err();
            assert!(matches!(error, UsageError::Meaningless { .. }), "{error}");
        }
        check("--invoke sh", &format!("`--invoke`{later}"));
        check("--policy a", &format!("`--policy`{later}"));
        assert!(request("--sbom=false --provenance=0", &[]).is_ok());
        assert!(request("--rm --force-rm --compress", &[]).is_ok());
    }

    #[test]
    fn of_a_flag_that_is_given_twice_the_last_counts() {
        let request = request("--target a --pull --target b --pull --label x=1 --label y=2", &[]);
        let request = request.unwrap();
        assert_eq!(request.target.as_deref(), Some("b"));
        assert!(request.pull);
        assert_eq!(request.labels.len(), 2);
    }

    #[test]
    fn a_push_needs_a_name() {
        assert_eq!(request("--push", &[]).unwrap_err(), UsageError::NoName);
        assert!(request("--push -t me/app", &[]).is_ok());
        assert!(request("-o type=registry,name=me/app", &[]).is_ok());
        assert!(request("-t a@sha256:1", &[]).is_err());
        assert!(request("-t UPPER", &[]).is_err());
        assert_eq!(request("-t a -t a:latest -t b", &[]).unwrap().tags.len(), 2);
    }

    #[test]
    fn progress_follows_flag_then_environment_then_terminal() {
        let mode = |typed: &str, variables: &[(&str, &str)], terminal: bool| {
            let mut environment = Environment::with_variables(variables);
            environment.stderr_is_terminal = terminal;
            let flag = (!typed.is_empty()).then_some(typed);
            progress_mode(flag, &environment)
        };
        assert_eq!(mode("", &[], false), Ok(ProgressMode::Plain));
        assert_eq!(mode("", &[], true), Ok(ProgressMode::Tty));
        assert_eq!(mode("", &[("TERM", "dumb")], true), Ok(ProgressMode::Plain));
        assert_eq!(mode("", &[("BUILDKIT_PROGRESS", "rawjson")], true), Ok(ProgressMode::RawJson));
        assert_eq!(mode("plain", &[("BUILDKIT_PROGRESS", "tty")], true), Ok(ProgressMode::Plain));
        assert!(mode("tty", &[], false).is_err());
        assert!(mode("fancy", &[], false).is_err());
        assert!(mode("", &[("BUILDKIT_PROGRESS", "fancy")], false).is_err());
    }

    #[test]
    fn the_state_folder_follows_root_then_the_environment() {
        let folder = |variables: &[(&str, &str)], root: bool| {
            let mut environment = Environment::with_variables(variables);
            environment.root = root;
            let settings = Settings::new(&GlobalArgs::default(), None, &environment);
            settings.map(|settings| settings.state_folder.display().to_string())
        };
        assert_eq!(folder(&[("HOME", "/h")], false).unwrap(), "/h/.local/share/rbuild");
        assert_eq!(folder(&[("HOME", "/h"), ("XDG_DATA_HOME", "/d")], false).unwrap(), "/d/rbuild");
        assert_eq!(folder(&[("HOME", "/h")], true).unwrap(), "/var/lib/rbuild");
        assert_eq!(folder(&[("RBUILD_ROOT", "/s")], true).unwrap(), "/s");
        assert_eq!(folder(&[], false), Err(UsageError::NoStateFolder));
    }
}
