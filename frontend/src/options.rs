//! What the caller asks of a build, as far as the graph hangs on it.
//!
//! Environment, clock and command line end before this: everything here is plain data, so that
//! the same options and the same Dockerfile always give the same graph. BuildKit reads these from
//! the options of its `frontend/dockerui/config.go`; the `BUILDKIT_*` build arguments that it gives
//! a meaning to are methods of [`BuildOptions`].

use std::collections::{BTreeMap, HashMap};

use rbuild_cache::oci::{ImageRef, Platform};
use rbuild_solver::graph::{NetworkMode, Ulimit, VertexId};
use rbuild_solver::image_source::ResolvedImage;

use crate::git_address::GitAddress;
use crate::image_config::ImageConfig;
use crate::source::Span;

/// What the caller asks of a build.
#[derive(Clone, Debug)]
pub struct BuildOptions {
    /// Where COPY and ADD copy from.
    pub context: BuildContext,
    /// `--build-arg`
    pub build_args: BTreeMap<String, String>,
    /// `--target`: a stage's name; the last stage when absent.
    pub target: Option<String>,
    /// The platform to build for; when absent, the build platform, and the image keeps the
    /// platform of its base.
    pub platform: Option<Platform>,
    /// The platform that commands can run on without emulation.
    pub build_platform: Platform,
    /// Several platforms are built at once: names of vertices say for which one.
    pub several_platforms: bool,
    /// `--label`, set over those of the Dockerfile.
    pub labels: BTreeMap<String, String>,
    /// `--build-context`, by [`context_name`].
    pub contexts: BTreeMap<String, NamedContext>,
    /// `--network`: what a RUN without `--network` may reach.
    pub network: NetworkMode,
    /// `--add-host`: (name, address).
    pub extra_hosts: Vec<(String, String)>,
    /// `--shm-size` in bytes.
    pub shm_size: Option<u64>,
    /// `--ulimit`
    pub ulimits: Vec<Ulimit>,
    /// `--cgroup-parent`
    pub cgroup_parent: Option<String>,
    /// `--no-cache` and `--no-cache-filter`.
    pub no_cache: NoCache,
    /// `--allow`
    pub allow: Allowed,
    /// All stages are lowered, not only those that the target needs: `--check` without `--target`.
    pub all_stages: bool,
}

impl BuildOptions {
    /// Options that ask for nothing special: the context is a folder without `.dockerignore`, both
    /// platforms are `platform`.
    pub fn new(platform: Platform) -> Self {
        Self {
            context: BuildContext::Folder { ignore: Vec::new() },
            build_args: BTreeMap::new(),
            target: None,
            platform: None,
            build_platform: platform,
            several_platforms: false,
            labels: BTreeMap::new(),
            contexts: BTreeMap::new(),
            network: NetworkMode::Default,
            extra_hosts: Vec::new(),
            shm_size: None,
            ulimits: Vec::new(),
            cgroup_parent: None,
            no_cache: NoCache::None,
            allow: Allowed::default(),
            all_stages: false,
        }
    }

    /// The value of a build argument.
    pub fn build_arg(&self, name: &str) -> Option<&str> {
        self.build_args.get(name).map(String::as_str)
    }

    /// The platform that is built for.
    pub fn target_platform(&self) -> &Platform {
        self.platform.as_ref().unwrap_or(&self.build_platform)
    }

    /// The prefix of cache mounts' ids: `BUILDKIT_CACHE_MOUNT_NS`.
    pub fn cache_mount_namespace(&self) -> &str {
        self.build_arg("BUILDKIT_CACHE_MOUNT_NS").unwrap_or_default()
    }

    /// The host name that commands see: `BUILDKIT_SANDBOX_HOSTNAME`.
    pub fn hostname(&self) -> &str {
        let name = self.build_arg("BUILDKIT_SANDBOX_HOSTNAME").unwrap_or_default();
        if name.is_empty() { "buildkitsandbox" } else { name }
    }

    /// Whether the image holds what another build needs to take results from it:
    /// `BUILDKIT_INLINE_CACHE`.
    pub fn inline_cache(&self) -> bool {
        self.flag("BUILDKIT_INLINE_CACHE").unwrap_or(false)
    }

    /// Whether one platform is exported as an index too: `BUILDKIT_MULTI_PLATFORM`.
    pub fn multi_platform(&self) -> Option<bool> {
        self.flag("BUILDKIT_MULTI_PLATFORM")
    }

    /// Whether a git context keeps its `.git`: `BUILDKIT_CONTEXT_KEEP_GIT_DIR`.
    pub fn keep_git_dir(&self) -> bool {
        self.flag("BUILDKIT_CONTEXT_KEEP_GIT_DIR").unwrap_or(false)
    }

    /// What replaces the `# check=` line: `BUILDKIT_DOCKERFILE_CHECK`.
    pub fn check(&self) -> Option<&str> {
        self.build_arg("BUILDKIT_DOCKERFILE_CHECK")
    }

    /// Variables for commands that reach out through a proxy: those of the predefined proxy
    /// arguments that were given, in upper and in lower case.
    ///
    /// They are part of no key and of no image, so the graph does not hold them; the caller hands
    /// them to the solver (BuildKit: `proxyEnvList` in `solver/llbsolver/ops/exec.go`).
    pub fn proxies(&self) -> Vec<String> {
        let mut variables = Vec::new();
        for name in ["HTTP_PROXY", "HTTPS_PROXY", "FTP_PROXY", "NO_PROXY", "ALL_PROXY"] {
            // Of `HTTP_PROXY` and `http_proxy`, the last in the order of their bytes counts.
            let mut given =
                self.build_args.iter().filter(|(key, _)| key.eq_ignore_ascii_case(name));
            let value = given.next_back().map(|(_, value)| value.as_str());
            if let Some(value) = value.filter(|value| !value.is_empty()) {
                variables.push(format!("{name}={value}"));
                variables.push(format!("{}={value}", name.to_ascii_lowercase()));
            }
        }
        variables
    }

    /// Whether the steps of a stage run although their results are known. `stage` is its name,
    /// empty when it has none.
    pub fn ignores_cache(&self, stage: &str) -> bool {
        match &self.no_cache {
            NoCache::None => false,
            NoCache::All => true,
            NoCache::Stages(names) => names.iter().any(|name| name.eq_ignore_ascii_case(stage)),
        }
    }

    /// The named context that stands for `name`, be it the name of a stage or of an image.
    ///
    /// One that was given for just `platform` (`name::linux/arm64`) comes first.
    pub fn named_context(&self, name: &str, platform: &Platform) -> Option<(&str, &NamedContext)> {
        if name.eq_ignore_ascii_case("scratch") || name.eq_ignore_ascii_case("context") {
            return None;
        }
        let name = context_name(name);
        let exact = self.contexts.get_key_value(&format!("{name}::{platform}"));
        let found = exact.or_else(|| self.contexts.get_key_value(&name));
        found.map(|(key, context)| (key.as_str(), context))
    }

    fn flag(&self, name: &str) -> Option<bool> {
        self.build_arg(name).and_then(parse_bool)
    }
}

/// Where COPY and ADD copy from.
#[derive(Clone, Debug, PartialEq)]
pub enum BuildContext {
    /// A folder of the caller.
    Folder {
        /// The patterns of its `.dockerignore`.
        ignore: Vec<String>,
    },
    /// A git repository.
    Git(GitAddress),
    /// An archive fetched over http(s), by address.
    Archive(String),
    /// An archive of the caller: the file `context` in a folder that holds nothing else.
    Tar,
}

/// What stands in for an image or a stage (`--build-context`).
#[derive(Clone, Debug)]
pub enum NamedContext {
    /// A folder of the caller; the graph calls it by the context's name.
    Folder {
        /// The patterns of its `.dockerignore`.
        ignore: Vec<String>,
    },
    /// `docker-image://NAME`
    Image(ImageRef),
    /// `docker-image://scratch`
    Scratch,
    /// An image in an OCI layout; the caller knows where.
    OciLayout,
    /// A git repository.
    Git(GitAddress),
    /// A file fetched over http(s), by address; it is called `context`.
    Http(String),
    /// What another build in the same graph makes (`target:NAME`).
    Built {
        /// The vertex that makes it.
        vertex: VertexId,
        /// Its image config.
        config: Box<ImageConfig>,
    },
}

/// The form of a name under which [`BuildOptions::contexts`] holds it: familiar, and without
/// `:latest`. `::PLATFORM` behind it is kept.
pub fn context_name(name: &str) -> String {
    let (name, platform) = match name.split_once("::") {
        Some((name, platform)) => (name, Some(platform)),
        None => (name, None),
    };
    let familiar = match name.parse::<ImageRef>() {
        Ok(image) => image.familiar(),
        Err(_) => name.to_owned(),
    };
    let familiar = familiar.strip_suffix(":latest").unwrap_or(&familiar);
    match platform.map(str::parse::<Platform>) {
        None => familiar.to_owned(),
        Some(Ok(platform)) => format!("{familiar}::{platform}"),
        Some(Err(_)) => format!("{familiar}::{}", platform.unwrap_or_default()),
    }
}

/// Which steps run although their results are known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum NoCache {
    /// None.
    #[default]
    None,
    /// All (`--no-cache`).
    All,
    /// Those of the named stages (`--no-cache-filter`).
    Stages(Vec<String>),
}

/// What steps may ask for beyond the usual (`--allow`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Allowed {
    /// `network.host`
    pub host_network: bool,
    /// `security.insecure`
    pub insecure: bool,
}

/// Where an image is looked for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum ImageName {
    /// In the local store or a registry.
    Registry(ImageRef),
    /// In the OCI layout that is the named context of this name.
    OciLayout(String),
}

impl std::fmt::Display for ImageName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Registry(image) => image.fmt(f),
            Self::OciLayout(context) => context.fmt(f),
        }
    }
}

/// An image that a build needs to know before it can be lowered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BaseImage {
    /// Which one.
    pub name: ImageName,
    /// For which platform.
    pub platform: Platform,
    /// The line that asks for it.
    pub span: Span,
}

/// What was found out before lowering: images by name and platform, and the epoch.
#[derive(Clone, Debug, Default)]
pub struct Resolved {
    images: HashMap<(ImageName, Platform), ResolvedImage>,
    /// What the source that `SOURCE_DATE_EPOCH` names ([`crate::EpochSource`]) says, in
    /// seconds; absent when it says nothing.
    pub epoch: Option<i64>,
}

impl Resolved {
    /// Notes what was found for an image that [`crate::base_images`] asked for.
    pub fn insert(&mut self, name: ImageName, platform: Platform, image: ResolvedImage) {
        self.images.insert((name, platform), image);
    }

    /// All that was found, in no order.
    pub fn images(&self) -> impl Iterator<Item = &ResolvedImage> {
        self.images.values()
    }

    /// What was found for an image.
    pub fn image(&self, name: &ImageName, platform: &Platform) -> Option<&ResolvedImage> {
        self.images.get(&(name.clone(), platform.clone()))
    }
}

/// Reads a truth value as Go's `strconv.ParseBool` does.
pub(crate) fn parse_bool(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(args: &[(&str, &str)]) -> BuildOptions {
        let build_args = args.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        BuildOptions { build_args, ..BuildOptions::new(Platform::new("linux", "amd64", None)) }
    }

    #[test]
    fn arguments_with_a_meaning_of_their_own() {
        assert_eq!(options(&[]).hostname(), "buildkitsandbox");
        assert_eq!(options(&[("BUILDKIT_SANDBOX_HOSTNAME", "h")]).hostname(), "h");
        assert_eq!(options(&[("BUILDKIT_CACHE_MOUNT_NS", "n")]).cache_mount_namespace(), "n");
        assert!(options(&[("BUILDKIT_INLINE_CACHE", "1")]).inline_cache());
        assert_eq!(options(&[("BUILDKIT_MULTI_PLATFORM", "x")]).multi_platform(), None);
    }

    #[test]
    fn proxies_are_set_in_both_cases() {
        let options =
            options(&[("http_proxy", "b"), ("HTTP_PROXY", "a"), ("No_Proxy", "n"), ("X", "")]);
        assert_eq!(options.proxies(), ["HTTP_PROXY=b", "http_proxy=b", "NO_PROXY=n", "no_proxy=n"]);
    }

    #[test]
    fn contexts_are_found_by_familiar_name_and_platform() {
        let check = |name: &str, expected: &str| assert_eq!(context_name(name), expected);
        check("docker.io/library/busybox:latest", "busybox");
        check("busybox:1", "busybox:1");
        check("Base", "Base");
        check("busybox::linux/aarch64", "busybox::linux/arm64");
        let mut options = options(&[]);
        options.contexts.insert("a".into(), NamedContext::Scratch);
        options.contexts.insert("a::linux/arm64".into(), NamedContext::Http("u".into()));
        let found = |platform: &str| {
            let found =
                options.named_context("docker.io/library/a:latest", &platform.parse().unwrap());
            found.unwrap().0.to_owned()
        };
        assert_eq!(
            (found("linux/amd64").as_str(), found("linux/arm64").as_str()),
            ("a", "a::linux/arm64")
        );
        assert!(options.named_context("scratch", options.target_platform()).is_none());
    }

    #[test]
    fn stages_without_cache_are_named_in_any_case() {
        let mut options = options(&[]);
        options.no_cache = NoCache::Stages(vec!["Build".into()]);
        assert!(options.ignores_cache("build") && !options.ignores_cache(""));
    }
}
