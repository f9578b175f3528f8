//! What was typed: every flag of rbuild, as clap reads it. What it means is `request.rs`'s.
//!
//! The flags of `rbuild build` are spelled and described as `docker buildx build` has them
//! (`docs/reference/buildx_build.md`), so that scripts move over unchanged. With no subcommand rbuild
//! builds; [`with_build`] puts the word in before clap looks.

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;

use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};

/// The command line of rbuild.
#[derive(Clone, Debug, Parser)]
#[command(
    name = "rbuild",
    version,
    about = "Builds container images from Dockerfiles: no daemon, no root needed.",
    long_about = None,
    override_usage = "rbuild [build] [OPTIONS] PATH | URL | -\n       rbuild COMMAND …",
    after_help = EXAMPLES,
    subcommand_required = true,
    arg_required_else_help = true,
    max_term_width = 100
)]
pub struct Cli {
    /// Flags of every command.
    #[command(flatten)]
    pub global: GlobalArgs,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

const EXAMPLES: &str = "\
Examples:
  rbuild .                             build the folder, keep the image in the local store
  rbuild -t me/app:1 --push .          build and push
  rbuild -o type=oci,dest=app.tar .    write an OCI archive, touch no store
  rbuild -o out --target bin .         put a stage's files into the folder out
  rbuild --check .                     read the Dockerfile and say what is wrong with it

`rbuild build --help` explains every flag of a build; `rbuild COMMAND --help` those of a command.
Exit codes: 0 built, 1 the build failed, 2 wrong usage, 3 a fault in or around rbuild, 130 interrupted.";

/// Flags that every command has.
#[derive(Clone, Debug, Default, Args)]
pub struct GlobalArgs {
    /// State folder [default: `$RBUILD_ROOT`, or rbuild in `$XDG_DATA_HOME`, or for root /var/lib/rbuild]
    #[arg(long, global = true, value_name = "DIR", help_heading = "rbuild's own")]
    pub root: Option<PathBuf>,
    /// Log what happens inside to stderr
    #[arg(short = 'D', long, global = true, help_heading = "rbuild's own")]
    pub debug: bool,
}

/// The commands.
#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// Build an image (the default when no command is named)
    #[command(visible_alias = "b")]
    Build(Box<BuildArgs>),
    /// Read a Dockerfile and say what is wrong with it, building nothing
    Check(Box<BuildArgs>),
    /// Build twice from nothing, and show what is different first if the images are not the same
    Reproduce(Box<BuildArgs>),
    /// List the images in the local store
    Images(ImagesArgs),
    /// Show what images in the local store consist of, as JSON
    Inspect(InspectArgs),
    /// Show how an image in the local store came about
    History(HistoryArgs),
    /// Give an image in the local store one more name
    Tag(TagArgs),
    /// Take names from images in the local store
    Rmi(RmiArgs),
    /// Send images in the local store to their registries
    Push(PushArgs),
    /// Bring images from their registries into the local store
    Pull(PullArgs),
    /// Write images in the local store to an archive
    Save(SaveArgs),
    /// Bring the images of an archive into the local store
    Load(LoadArgs),
    /// Log in at a registry
    Login(LoginArgs),
    /// Log out at a registry
    Logout(LogoutArgs),
    /// Say why a slim image has a file, or has it not
    Slim(SlimArgs),
    /// Show what the state folder holds
    Du(DuArgs),
    /// Remove from the state folder what nobody needs
    Prune(PruneArgs),
    /// Look after the state folder
    Cache(CacheArgs),
    /// Say why the last build did not find steps in the cache
    Explain(ExplainArgs),
    /// Write a completion script for a shell to stdout
    Completion(CompletionArgs),
}

/// `rbuild images`
#[derive(Clone, Debug, Args)]
#[allow(clippy::struct_excessive_bools, reason = "flags are what was typed")]
pub struct ImagesArgs {
    /// Only images of this name; `*` stands for anything but a slash
    #[arg(value_name = "REPOSITORY[:TAG]")]
    pub image: Option<String>,
    /// Print IDs only
    #[arg(short, long)]
    pub quiet: bool,
    /// Show digests too
    #[arg(long)]
    pub digests: bool,
    /// Show IDs whole
    #[arg(long)]
    pub no_trunc: bool,
    /// Only those: reference=NAME, label=KEY[=VALUE], before=IMAGE, since=IMAGE, until=TIME
    #[arg(short, long, value_name = "KEY=VALUE")]
    pub filter: Vec<String>,
    /// `table`, `table TEMPLATE`, `json`, or a Go template: `{{.Repository}}:{{.Tag}} {{.ID}}`
    #[arg(long, value_name = "FORMAT")]
    pub format: Option<String>,
    /// Docker lists intermediate images so; rbuild has none.
    #[arg(short, long, hide = true)]
    pub all: bool,
    /// Print a JSON object a line, with keys of rbuild's own
    #[arg(long, conflicts_with_all = ["quiet", "format"])]
    pub json: bool,
}

/// `rbuild inspect`
#[derive(Clone, Debug, Args)]
pub struct InspectArgs {
    /// Names or IDs
    #[arg(value_name = "IMAGE", required = true)]
    pub images: Vec<String>,
    /// Only this platform of each
    #[arg(long, value_name = "OS/ARCH")]
    pub platform: Option<String>,
    /// `json`, or a Go template: `{{json .Config.Env}}`
    #[arg(short, long, value_name = "FORMAT")]
    pub format: Option<String>,
    /// Show instead how they were built, as far as they say so
    #[arg(long)]
    pub provenance: bool,
}

/// `rbuild history`
#[derive(Clone, Debug, Args)]
pub struct HistoryArgs {
    /// Name or ID
    #[arg(value_name = "IMAGE")]
    pub image: String,
    /// This platform [default: the first]
    #[arg(long, value_name = "OS/ARCH")]
    pub platform: Option<String>,
    /// Show commands and IDs whole
    #[arg(long)]
    pub no_trunc: bool,
    /// Print IDs only
    #[arg(short, long)]
    pub quiet: bool,
    /// Sizes and times for people; `--human=false` shows bytes and dates
    #[arg(
        short = 'H',
        long,
        default_value_t = true,
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true",
        action = clap::ArgAction::Set,
        value_name = "BOOL"
    )]
    pub human: bool,
    /// `table`, `table TEMPLATE`, `json`, or a Go template
    #[arg(long, value_name = "FORMAT")]
    pub format: Option<String>,
}

/// `rbuild tag`
#[derive(Clone, Debug, Args)]
pub struct TagArgs {
    /// Name or ID
    #[arg(value_name = "IMAGE")]
    pub image: String,
    /// What it is to be called too
    #[arg(value_name = "NAME")]
    pub name: String,
}

/// `rbuild rmi`
#[derive(Clone, Debug, Args)]
pub struct RmiArgs {
    /// Names, or IDs of images that lose all their names
    #[arg(value_name = "IMAGE", required = true)]
    pub images: Vec<String>,
    /// A name that is not there is no error
    #[arg(short, long)]
    pub force: bool,
}

/// `rbuild push`
#[derive(Clone, Debug, Args)]
pub struct PushArgs {
    /// Names of images in the local store
    #[arg(value_name = "IMAGE", required = true)]
    pub images: Vec<String>,
    /// Only this platform of each
    #[arg(long, value_name = "OS/ARCH")]
    pub platform: Option<String>,
    /// Show no progress
    #[arg(short, long)]
    pub quiet: bool,
}

/// `rbuild pull`
#[derive(Clone, Debug, Args)]
pub struct PullArgs {
    /// Names of images
    #[arg(value_name = "IMAGE", required = true)]
    pub images: Vec<String>,
    /// This platform [default: this machine's]
    #[arg(long, value_name = "OS/ARCH")]
    pub platform: Option<String>,
    /// All platforms, with what the image says of itself: the whole index
    #[arg(short, long, conflicts_with = "platform")]
    pub all_platforms: bool,
    /// Show no progress
    #[arg(short, long)]
    pub quiet: bool,
}

/// `rbuild save`
#[derive(Clone, Debug, Args)]
pub struct SaveArgs {
    /// Names or IDs
    #[arg(value_name = "IMAGE", required = true)]
    pub images: Vec<String>,
    /// File to write [default: stdout]
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Only this platform of each
    #[arg(long, value_name = "OS/ARCH")]
    pub platform: Option<String>,
}

/// `rbuild load`
#[derive(Clone, Debug, Args)]
pub struct LoadArgs {
    /// Archive of `docker save`, `podman save`, skopeo or rbuild, compressed or not [default: stdin]
    #[arg(short, long, value_name = "FILE")]
    pub input: Option<PathBuf>,
    /// Name for an image that has none in the archive
    #[arg(short, long, value_name = "NAME")]
    pub tag: Option<String>,
    /// Only this platform of each
    #[arg(long, value_name = "OS/ARCH")]
    pub platform: Option<String>,
    /// Print nothing
    #[arg(short, long)]
    pub quiet: bool,
}

/// `rbuild login`
#[derive(Clone, Debug, Args)]
pub struct LoginArgs {
    /// Host of the registry [default: docker.io]
    #[arg(value_name = "REGISTRY")]
    pub registry: Option<String>,
    /// Who logs in; asked for when it is not given
    #[arg(short, long)]
    pub username: Option<String>,
    /// The password; others can see it while rbuild runs
    #[arg(short, long, conflicts_with = "password_stdin")]
    pub password: Option<String>,
    /// Read the password from stdin
    #[arg(long)]
    pub password_stdin: bool,
}

/// `rbuild logout`
#[derive(Clone, Debug, Args)]
pub struct LogoutArgs {
    /// Host of the registry [default: docker.io]
    #[arg(value_name = "REGISTRY")]
    pub registry: Option<String>,
}

/// `rbuild slim`
#[derive(Clone, Debug, Args)]
pub struct SlimArgs {
    /// What to say
    #[command(subcommand)]
    pub command: SlimCommand,
}

/// What `rbuild slim` can say.
#[derive(Clone, Debug, Subcommand)]
pub enum SlimCommand {
    /// Say why a path is in the image, or is not
    Why {
        /// The path in the image
        #[arg(value_name = "PATH")]
        path: String,
        /// Name or ID of the image [default: the one that was slimmed last]
        #[arg(long, value_name = "IMAGE")]
        image: Option<String>,
    },
    /// Show what was kept and what was not
    Report {
        /// Name or ID of the image [default: the one that was slimmed last]
        #[arg(value_name = "IMAGE")]
        image: Option<String>,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
}

/// `rbuild du`
#[derive(Clone, Debug, Args)]
pub struct DuArgs {
    /// Print a JSON object for each entry
    #[arg(long, conflicts_with = "verbose")]
    pub json: bool,
    /// Print all that is known of each entry
    #[arg(short, long)]
    pub verbose: bool,
    /// Only entries for which this holds: `type=exec.cachemount`, `until=24h`, `id=REGEX`, `shared`
    #[arg(long, value_name = "FILTER")]
    pub filter: Vec<String>,
}

/// `rbuild prune`, whose flags are those of `docker buildx prune`.
#[derive(Clone, Debug, Default, Args)]
#[command(after_help = PRUNE_EXAMPLES)]
#[allow(clippy::struct_excessive_bools, reason = "flags are what was typed")]
pub struct PruneArgs {
    /// Remove also results that images in the local store were made of
    #[arg(short, long)]
    pub all: bool,
    /// Only entries for which this holds: until=TIME, id=REGEX, type=TYPE, description=TEXT, inuse,
    /// mutable, immutable, shared, private; `!=` and `~=` (a regular expression) too
    #[arg(long, value_name = "FILTER")]
    pub filter: Vec<String>,
    /// Do not ask
    #[arg(short, long)]
    pub force: bool,
    /// Say what would be removed, and remove nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Print all that is known of each entry
    #[arg(long)]
    pub verbose: bool,
    /// Keep at most so much: `20GB`, or `10%` of the disk
    #[arg(long, value_name = "SIZE")]
    pub max_used_space: Option<String>,
    /// Remove until so much of the disk is free
    #[arg(long, value_name = "SIZE")]
    pub min_free_space: Option<String>,
    /// Keep so much in any case
    #[arg(long, value_name = "SIZE")]
    pub reserved_space: Option<String>,
    /// The older name of --reserved-space
    #[arg(long, value_name = "SIZE", conflicts_with = "reserved_space")]
    pub keep_storage: Option<String>,
}

const PRUNE_EXAMPLES: &str = "\
Examples:
  rbuild prune                                         what no image in the local store was made of
  rbuild prune --filter until=72h                      what nobody used for three days
  rbuild prune --filter type=exec.cachemount --filter id=/root/.cache
                                                       one cache mount
  rbuild prune --all --max-used-space 20GB             the longest unused, until 20 GB are left

Images in the local store stay: `rbuild rmi` removes those. What a running build uses stays too.
`max-size`, `min-free` and `age` in config.toml do the same at the end of each build.";

/// `rbuild explain`
#[derive(Clone, Debug, Args)]
pub struct ExplainArgs {
    /// A step: its number in the answer without one, or part of its name
    #[arg(value_name = "STEP")]
    pub step: Option<String>,
    /// Print a JSON object for each step
    #[arg(long)]
    pub json: bool,
}

/// `rbuild cache`
#[derive(Clone, Debug, Args)]
pub struct CacheArgs {
    /// What to do.
    #[command(subcommand)]
    pub command: CacheCommand,
}

/// What `rbuild cache` can do.
#[derive(Clone, Debug, Subcommand)]
pub enum CacheCommand {
    /// Compare everything in the state folder with its digest
    Verify(CacheVerifyArgs),
}

/// `rbuild cache verify`
#[derive(Clone, Debug, Args)]
#[command(after_help = "Exit codes: 0 all is well or was repaired, 1 something is damaged.")]
pub struct CacheVerifyArgs {
    /// Remove what is damaged, so that the next build makes it again
    #[arg(long)]
    pub repair: bool,
}

/// `rbuild completion`
#[derive(Clone, Debug, Args)]
pub struct CompletionArgs {
    /// For which shell
    pub shell: Shell,
}

/// A shell that has completions.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Shell {
    /// bash
    Bash,
    /// elvish
    Elvish,
    /// fish
    Fish,
    /// powershell
    Powershell,
    /// zsh
    Zsh,
}

/// `docker buildx build`'s flags, and rbuild's own.
#[derive(Clone, Debug, Default, Args)]
#[command(after_help = BUILD_EXAMPLES)]
#[allow(clippy::struct_excessive_bools, reason = "flags are what was typed")]
pub struct BuildArgs {
    /// Build context: a folder, `-` (a tar or a Dockerfile on stdin), a git or an http(s) address
    #[arg(value_name = "PATH | URL | -", required = true)]
    pub context: String,

    /// Dockerfile [default: PATH/Dockerfile]; `-` reads it from stdin
    #[arg(short, long, value_name = "PATH", help_heading = "What to build")]
    pub file: Option<String>,
    /// Stage to build [default: the last one]
    #[arg(long, value_name = "STAGE", help_heading = "What to build")]
    pub target: Option<String>,
    /// Value of an ARG; without `=VALUE` it is taken from the environment
    #[arg(long, value_name = "KEY[=VALUE]", help_heading = "What to build")]
    pub build_arg: Vec<String>,
    /// Another context: a folder, docker-image://, oci-layout://, target:, a git or http(s) address
    #[arg(long, value_name = "NAME=VALUE", help_heading = "What to build")]
    pub build_context: Vec<String>,
    /// Platforms of the image [default: this machine's]
    #[arg(long, value_name = "OS/ARCH,…", value_delimiter = ',', help_heading = "What to build")]
    pub platform: Vec<String>,
    /// Label of the image
    #[arg(long, value_name = "KEY=VALUE", help_heading = "What to build")]
    pub label: Vec<String>,
    /// Annotation, of the manifest unless a type is named: `index:KEY=VALUE`
    #[arg(long, value_name = "[TYPE:]KEY=VALUE", help_heading = "What to build")]
    pub annotation: Vec<String>,

    /// Name of the image: `me/app:1`
    #[arg(short, long, value_name = "NAME", help_heading = "Where it goes")]
    pub tag: Vec<String>,
    /// Output: a folder, `-` (a tar on stdout) or type=registry|image|oci|docker|tar|local|cacheonly
    #[arg(short, long, value_name = "OUTPUT", help_heading = "Where it goes")]
    pub output: Vec<String>,
    /// Push the image to its registry: -o type=registry
    #[arg(long, help_heading = "Where it goes")]
    pub push: bool,
    /// Load the image into Docker or podman, sending what is missing there
    #[arg(long, help_heading = "Where it goes")]
    pub load: bool,
    /// Write what was built (digests, names) as JSON into this file
    #[arg(long, value_name = "FILE", help_heading = "Where it goes")]
    pub metadata_file: Option<PathBuf>,
    /// Write the image's ID into this file
    #[arg(long, value_name = "FILE", help_heading = "Where it goes")]
    pub iidfile: Option<PathBuf>,

    /// Secret for RUN --mount=type=secret: id=ID[,src=FILE|env=VARIABLE]
    #[arg(long, value_name = "SECRET", help_heading = "What steps may use")]
    pub secret: Vec<String>,
    /// SSH agent for RUN --mount=type=ssh: default, or ID=SOCKET
    #[arg(long, value_name = "ID[=SOCKET]", help_heading = "What steps may use")]
    pub ssh: Vec<String>,
    /// Network of RUN steps: default, none or host
    #[arg(long, value_name = "MODE", help_heading = "What steps may use")]
    pub network: Option<String>,
    /// Line for /etc/hosts of RUN steps
    #[arg(long, value_name = "HOST:IP", help_heading = "What steps may use")]
    pub add_host: Vec<String>,
    /// Limit for RUN steps: `nofile=1024[:2048]`
    #[arg(long, value_name = "NAME=SOFT[:HARD]", help_heading = "What steps may use")]
    pub ulimit: Vec<String>,
    /// Size of /dev/shm of RUN steps: 64m, 1g
    #[arg(long, value_name = "BYTES", help_heading = "What steps may use")]
    pub shm_size: Option<String>,
    /// Memory of each RUN step: 512m, 2g
    #[arg(short, long, value_name = "BYTES", help_heading = "What steps may use")]
    pub memory: Option<String>,
    /// Memory and swap of each RUN step together, or -1 [default: twice the memory]
    #[arg(
        long,
        value_name = "BYTES",
        allow_hyphen_values = true,
        help_heading = "What steps may use"
    )]
    pub memory_swap: Option<String>,
    /// Processors of each RUN step: 1.5
    #[arg(long, value_name = "N", help_heading = "What steps may use")]
    pub cpus: Option<String>,
    /// Microseconds of processor in a period
    #[arg(long, value_name = "N", allow_hyphen_values = true, help_heading = "What steps may use")]
    pub cpu_quota: Option<i64>,
    /// Microseconds of such a period [default: 100000]
    #[arg(long, value_name = "N", help_heading = "What steps may use")]
    pub cpu_period: Option<u64>,
    /// Weight of RUN steps among others [default: 1024]
    #[arg(short, long, value_name = "N", help_heading = "What steps may use")]
    pub cpu_shares: Option<u64>,
    /// Processors that RUN steps run on: 0-3, 0,1
    #[arg(long, value_name = "LIST", help_heading = "What steps may use")]
    pub cpuset_cpus: Option<String>,
    /// Memory nodes that RUN steps use: 0-3, 0,1
    #[arg(long, value_name = "LIST", help_heading = "What steps may use")]
    pub cpuset_mems: Option<String>,
    /// Processes and threads of each RUN step at once, or -1
    #[arg(long, value_name = "N", allow_hyphen_values = true, help_heading = "What steps may use")]
    pub pids_limit: Option<i64>,
    /// How long each RUN step may take: 90, 30s, 1h30m
    #[arg(long, value_name = "DURATION", help_heading = "What steps may use")]
    pub timeout: Option<String>,
    /// Control group above those of RUN steps
    #[arg(long, value_name = "PATH", help_heading = "What steps may use")]
    pub cgroup_parent: Option<String>,
    /// Let steps have: network.host, security.insecure, device[=NAME]
    #[arg(
        long,
        value_name = "ENTITLEMENT",
        value_delimiter = ',',
        help_heading = "What steps may use"
    )]
    pub allow: Vec<String>,

    /// Keep only what the program needs: auto, closure, trace or off [default without MODE: auto]
    #[arg(
        long,
        value_name = "MODE",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "",
        help_heading = "Slim images"
    )]
    pub slim: Option<String>,
    /// What shows that the image works: a command, or `http:PORT/PATH,/PATH` [default: HEALTHCHECK]
    #[arg(long, value_name = "PROBE", help_heading = "Slim images")]
    pub slim_probe: Option<String>,
    /// How long the probe may take [default: 30s]
    #[arg(long, value_name = "TIME", help_heading = "Slim images")]
    pub slim_probe_timeout: Option<String>,
    /// Keep these paths: `/opt/plugins/**`
    #[arg(long, value_name = "PATTERN", help_heading = "Slim images")]
    pub slim_keep: Vec<String>,
    /// Leave these paths out, whatever needs them
    #[arg(long, value_name = "PATTERN", help_heading = "Slim images")]
    pub slim_drop: Vec<String>,
    /// What is kept of the system whoever needs it: none, certs or full [default: full]
    #[arg(long, value_name = "BASE", help_heading = "Slim images")]
    pub slim_base: Option<String>,
    /// The image's user: nonroot (65532)
    #[arg(long, value_name = "USER", help_heading = "Slim images")]
    pub slim_user: Option<String>,
    /// Write what was kept, and why, into this file: JSON if it ends in .json, otherwise a table
    #[arg(long, value_name = "FILE", help_heading = "Slim images")]
    pub slim_report: Option<PathBuf>,
    /// Fail when the slim image does not pass, instead of exporting the full one
    #[arg(long, help_heading = "Slim images")]
    pub slim_strict: bool,
    /// Fail when the slim image is larger: 100m
    #[arg(long, value_name = "BYTES", help_heading = "Slim images")]
    pub slim_max_size: Option<String>,
    /// Export the full image too, tagged `debug`
    #[arg(long, help_heading = "Slim images")]
    pub slim_debug_image: bool,

    /// Run every step anew
    #[arg(long, help_heading = "Cache")]
    pub no_cache: bool,
    /// Run the steps of these stages anew
    #[arg(long, value_name = "STAGE", value_delimiter = ',', help_heading = "Cache")]
    pub no_cache_filter: Vec<String>,
    /// Ask the registry again for images that are known already
    #[arg(long, help_heading = "Cache")]
    pub pull: bool,
    /// Look for results there too: NAME, type=registry,ref=NAME or type=local,src=DIR
    #[arg(long, value_name = "CACHE", help_heading = "Cache")]
    pub cache_from: Vec<String>,
    /// Put results there: type=registry,ref=NAME, type=local,dest=DIR or type=inline
    #[arg(long, value_name = "CACHE", help_heading = "Cache")]
    pub cache_to: Vec<String>,

    /// How progress is shown: auto, plain, tty, rawjson, quiet [default: `$BUILDKIT_PROGRESS`, or auto]
    #[arg(long, value_name = "MODE", help_heading = "What is shown")]
    pub progress: Option<String>,
    /// Print the image's ID only
    #[arg(short, long, help_heading = "What is shown")]
    pub quiet: bool,
    /// Say what is wrong with the Dockerfile, building nothing: --call=check
    #[arg(long, help_heading = "What is shown")]
    pub check: bool,
    /// Instead of building: check, outline or targets, with [,format=json]
    #[arg(long, value_name = "METHOD", help_heading = "What is shown")]
    pub call: Option<String>,

    /// Statement about the build, kept with the image: type=provenance[,mode=min|max]
    #[arg(long, value_name = "ATTESTATION", help_heading = "Where it goes")]
    pub attest: Vec<String>,
    /// Say with the image how it was built: mode=min, mode=max, true or false [default: false]
    #[arg(
        long,
        value_name = "mode=…",
        help_heading = "Where it goes",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true"
    )]
    pub provenance: Option<String>,
    /// Bill of materials: --attest=type=sbom
    #[arg(
        long,
        hide = true,
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true"
    )]
    pub sbom: Option<String>,

    /// Take in at most so much before it is refused: `layer-size=10g`, `context-files=100000`; see
    /// the documentation for all names
    #[arg(long, value_name = "NAME=N", help_heading = "rbuild's own")]
    pub limit: Vec<String>,
    /// How many RUN steps compute at once [default: the cores]
    #[arg(long, value_name = "N", help_heading = "rbuild's own")]
    pub jobs: Option<std::num::NonZeroUsize>,

    /// buildx's builder instance; rbuild has none.
    #[arg(long, hide = true)]
    pub builder: Option<String>,
    /// Later: a shell in the failed step.
    #[arg(long, hide = true)]
    pub on_error: Option<String>,
    /// Later: a page about the build.
    #[arg(long, hide = true)]
    pub report: Option<PathBuf>,
}

const BUILD_EXAMPLES: &str = "\
Examples:
  rbuild -t app:1 .                                    the folder's Dockerfile
  rbuild -f docker/app.Dockerfile --target test .      another file, an earlier stage
  rbuild --build-arg VERSION=1.2 .                     a value for ARG VERSION
  rbuild --secret id=token,env=TOKEN .                 for RUN --mount=type=secret,id=token
  rbuild --build-context debian:bookworm=oci-layout://bases/debian .
                                                       FROM debian:bookworm from a folder
  rbuild --cache-from me/cache --cache-to me/cache .   results shared with other machines
  rbuild https://example.com/app.git#v1:server         tag v1, folder server
  tar -c . | rbuild -                                  a context on stdin
  rbuild --platform linux/amd64,linux/arm64 -t me/app --push .";

/// The arguments, with `build` put in where no command is named.
///
/// The first word that is not one of the global flags decides: the name of a command stays, and so
/// do `--help` and `--version`; everything else is a build. A folder that is called like a command
/// is built as `./images`.
pub fn with_build(arguments: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let mut arguments: Vec<OsString> = arguments.into_iter().collect();
    let mut position = 1;
    while let Some(argument) = arguments.get(position) {
        match argument.to_str() {
            Some("--root") => position += 2,
            Some("-D" | "--debug") => position += 1,
            Some(flag) if flag.starts_with("--root=") => position += 1,
            _ => break,
        }
    }
    let decides = arguments.get(position).map(OsString::as_os_str);
    if decides.is_some_and(|word| !is_command(word)) {
        arguments.insert(position, "build".into());
    }
    arguments
}

fn is_command(word: &OsStr) -> bool {
    let Some(word) = word.to_str() else { return false };
    matches!(word, "-h" | "--help" | "-V" | "--version" | "help")
        || Cli::command().get_subcommands().any(|command| {
            command.get_name() == word || command.get_all_aliases().any(|alias| alias == word)
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn help() {
        let shown = |arguments: &[&str]| {
            let command = Cli::command().term_width(100);
            let answer = command.try_get_matches_from(arguments).unwrap_err();
            answer.render().to_string()
        };
        insta::assert_snapshot!("help", shown(&["rbuild", "--help"]));
        insta::assert_snapshot!("help-build", shown(&["rbuild", "build", "--help"]));
    }

    #[test]
    fn without_a_command_it_builds() {
        let check = |typed: &str, expected: &str| {
            let arguments = typed.split(' ').map(OsString::from);
            let arguments: Vec<String> =
                with_build(arguments).into_iter().map(|a| a.into_string().unwrap()).collect();
            assert_eq!(arguments.join(" "), expected);
        };
        check("rbuild", "rbuild");
        check("rbuild .", "rbuild build .");
        check("rbuild -t x build", "rbuild build -t x build");
        check("rbuild build .", "rbuild build .");
        check("rbuild b .", "rbuild b .");
        check("rbuild --root /r .", "rbuild --root /r build .");
        check("rbuild --root=/r -D check .", "rbuild --root=/r -D check .");
        check("rbuild ./check", "rbuild build ./check");
        check("rbuild --version", "rbuild --version");
    }
}
