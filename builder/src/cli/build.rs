//! The flags of a build.
//!
//! Spelled and described as `docker buildx build` has them (`docs/reference/buildx_build.md`), so
//! that scripts move over unchanged.

use std::path::PathBuf;

use clap::Args;

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

    /// docker's: nothing is left of steps that succeed. That always holds here.
    #[arg(long, hide = true)]
    pub rm: bool,
    /// docker's: nothing is left of steps, not even of those that fail. That always holds here.
    #[arg(long, hide = true)]
    pub force_rm: bool,
    /// docker's: the context is compressed where it is sent, and here it is sent nowhere.
    #[arg(long, hide = true)]
    pub compress: bool,
    /// buildx's builder instance; rbuild has none.
    #[arg(long, hide = true)]
    pub builder: Option<String>,
    /// docker's isolation of Windows containers.
    #[arg(long, hide = true)]
    pub isolation: Option<String>,
    /// docker's security options.
    #[arg(long, hide = true)]
    pub security_opt: Vec<String>,
    /// docker's: all new layers as one.
    #[arg(long, hide = true)]
    pub squash: bool,
    /// buildx's: the build goes on behind one's back.
    #[arg(long, hide = true)]
    pub detach: bool,
    /// The earlier name of `--call`.
    #[arg(long, hide = true)]
    pub print: Option<String>,
    /// Later: a command in what was built.
    #[arg(long, hide = true)]
    pub invoke: Option<String>,
    /// Later: rules about sources.
    #[arg(long, hide = true)]
    pub policy: Vec<String>,
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
