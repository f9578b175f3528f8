//! The flags of commands about images in the local store.

use std::path::PathBuf;

use clap::Args;

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
    /// Names, or IDs of images that lose all their names; with names in several repositories, only
    /// with `--force`
    #[arg(value_name = "IMAGE", required = true)]
    pub images: Vec<String>,
    /// A name that is not there is no error, and an ID takes names in all repositories
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
    /// Take in at most so much before it is refused: `NAME=N`, such as `layers=100`; see the
    /// documentation for all names
    #[arg(long, value_name = "NAME=N")]
    pub limit: Vec<String>,
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
    /// Take in at most so much before it is refused: `NAME=N`, such as `archive-size=10g`; see the
    /// documentation for all names
    #[arg(long, value_name = "NAME=N")]
    pub limit: Vec<String>,
}
