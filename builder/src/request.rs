//! What was asked for: flags, environment and defaults, put together and checked once.
//!
//! This is the border. Everything behind it works with the types here, and nothing behind it reads
//! the environment, the clock or the command line. Values are read as `docker buildx build` reads
//! them (buildx `commands/build.go` and `util/buildflags/`).

mod annotation;
mod attestation;
mod cache;
mod call;
mod csv;
mod device;
mod engine;
mod environment;
mod error;
mod limits;
mod output;
mod place;
mod resources;
mod settings;
mod slim;
mod source;
mod step;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;

use rbuild_cache::limits::Limits;
use rbuild_cache::oci::{ImageRef, Platform};
use rbuild_frontend::NoCache;
use rbuild_solver::Jobs;
use rbuild_solver::graph::{NetworkMode, Ulimit};
use rbuild_solver::mount::{Secret, SshAgent};
use rbuild_solver::sandbox::resources::Resources;

use crate::cli::{BuildArgs, GlobalArgs};

pub use annotation::{Annotation, AnnotationSubject};
pub use attestation::{ProvenanceMode, ProvenanceRequest};
pub use cache::{CacheFrom, CacheMode, CachePlace, CacheTo};
pub use call::{Call, CallFormat};
pub use device::DeviceLeave;
pub use engine::EngineSettings;
pub use environment::Environment;
pub use error::UsageError;
pub(crate) use limits::limits;
pub use output::{Destination, OutputKind, OutputSpec};
pub use settings::{ProgressMode, Settings};
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
        let call = call::call(arguments)?;
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
            annotations: annotation::annotations(&arguments.annotation)?,
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
        let name = crate::local_image::new_name(tag)
            .map_err(|error| UsageError::value("--tag", tag, error.reason))?;
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

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::{Cli, Command};

    pub(super) fn request(
        typed: &str,
        variables: &[(&str, &str)],
    ) -> Result<BuildRequest, UsageError> {
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
    fn what_is_not_there_yet_is_refused_by_name() {
        let check = |typed: &str, expected: &str| {
            assert_eq!(request(typed, &[]).unwrap_err().to_string(), expected);
        };
        let later = " is not there yet in this version of rbuild";
        let no_scanner = " asks for a scanner of images, and rbuild has none";
        check("--sbom", &format!("`--sbom`{no_scanner}"));
        check("--attest type=sbom", &format!("`--attest type=sbom`{no_scanner}"));
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
}
