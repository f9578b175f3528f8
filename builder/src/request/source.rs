//! Where a build's text and files come from: the context, the Dockerfile, named contexts. Only
//! their names are read here; `context.rs` opens them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use rbuild_cache::digest::Digest;
use rbuild_cache::oci::ImageRef;
use rbuild_frontend::git_address::GitAddress;
use url::Url;

use super::{Settings, UsageError};
use crate::oci_layout::LayoutReference;

/// The build context.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ContextSpec {
    /// `-`: a tar, or a Dockerfile without context, on stdin.
    Stdin,
    /// A folder.
    Folder(PathBuf),
    /// A git repository.
    Git(GitAddress),
    /// A tar or a Dockerfile behind an http(s) address.
    Http(Url),
}

/// Where the Dockerfile is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DockerfileSpec {
    /// `Dockerfile` (or `dockerfile`) in the context; with a context on stdin that is no tar, it is
    /// the Dockerfile.
    Default,
    /// `-f -`
    Stdin,
    /// A file of this machine, in the context or not.
    Local(PathBuf),
    /// A path in a context that is not on this machine.
    InContext(String),
    /// An http(s) address.
    Http(Url),
}

/// A `--build-context`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NamedContextSpec {
    /// A folder.
    Folder(PathBuf),
    /// `docker-image://NAME`
    Image(ImageRef),
    /// `oci-layout://DIR[:TAG][@DIGEST]`
    OciLayout(LayoutReference),
    /// `target:STAGE`
    Target(String),
    /// A git repository.
    Git(GitAddress),
    /// A tar or a file behind an http(s) address.
    Http(Url),
}

/// What PATH | URL | `-` means. A folder wins over an address that is spelled like it.
pub(super) fn context(text: &str) -> Result<ContextSpec, UsageError> {
    let wrong = |reason: String| UsageError::value("PATH | URL | -", text, reason);
    if text == "-" {
        return Ok(ContextSpec::Stdin);
    }
    let path = Path::new(text);
    if path.is_dir() {
        return Ok(ContextSpec::Folder(text.into()));
    }
    if let Some(git) = GitAddress::parse_context(text) {
        return git.map(ContextSpec::Git).map_err(|error| wrong(error.to_string()));
    }
    if let Some(address) = http_address(text) {
        return address.map(ContextSpec::Http).map_err(wrong);
    }
    Err(wrong(match path.try_exists() {
        Ok(false) => "there is no such folder".into(),
        Ok(true) => "it is a file; a context is a folder, and `-f` names the Dockerfile".into(),
        Err(error) => error.to_string(),
    }))
}

/// What `-f` means for `context`.
pub(super) fn dockerfile(file: Option<&str>, context: &str) -> Result<DockerfileSpec, UsageError> {
    let Some(file) = file.filter(|file| !file.is_empty()) else {
        return Ok(DockerfileSpec::Default);
    };
    if file == "-" {
        if context == "-" {
            return Err(UsageError::Conflict {
                one: "-f -".into(),
                other: "-".into(),
                instead: "stdin can hold the context or the Dockerfile, not both".into(),
            });
        }
        return Ok(DockerfileSpec::Stdin);
    }
    if let Some(address) = http_address(file) {
        let wrong = |reason| UsageError::value("--file", file, reason);
        return address.map(DockerfileSpec::Http).map_err(wrong);
    }
    let of_this_machine = Path::new(context).is_dir() || Path::new(file).is_absolute();
    if of_this_machine && context != "-" {
        return Ok(DockerfileSpec::Local(file.into()));
    }
    Ok(DockerfileSpec::InContext(file.to_owned()))
}

/// An http(s) address; `None` for everything else.
fn http_address(text: &str) -> Option<Result<Url, String>> {
    let lower = text.get(..8).unwrap_or(text).to_ascii_lowercase();
    (lower.starts_with("http://") || lower.starts_with("https://"))
        .then(|| text.parse().map_err(|error: url::ParseError| error.to_string()))
}

/// Reads all `--build-context`; the last one of a name holds.
pub(super) fn named_contexts(
    given: &[String],
) -> Result<BTreeMap<String, NamedContextSpec>, UsageError> {
    given.iter().map(|text| named_context(text)).collect()
}

fn named_context(text: &str) -> Result<(String, NamedContextSpec), UsageError> {
    let wrong = |reason: String| UsageError::value("--build-context", text, reason);
    let (name, value) = text.split_once('=').ok_or_else(|| wrong("expected NAME=VALUE".into()))?;
    let image = |name: &str| {
        let parsed: Result<ImageRef, _> = name.parse();
        parsed.map_err(|error| wrong(error.to_string()))
    };
    let familiar = image(&name.to_ascii_lowercase())?.familiar();
    let name = familiar.strip_suffix(":latest").unwrap_or(&familiar).to_owned();
    let context = if let Some(name) = value.strip_prefix("docker-image://") {
        NamedContextSpec::Image(image(name)?)
    } else if let Some(layout) = value.strip_prefix("oci-layout://") {
        NamedContextSpec::OciLayout(oci_layout(layout).map_err(wrong)?)
    } else if let Some(stage) = value.strip_prefix("target:") {
        NamedContextSpec::Target(stage.to_owned())
    } else if Path::new(value).is_dir() {
        NamedContextSpec::Folder(value.into())
    } else if let Some(git) = GitAddress::parse_context(value) {
        NamedContextSpec::Git(git.map_err(|error| wrong(error.to_string()))?)
    } else if let Some(address) = http_address(value) {
        NamedContextSpec::Http(address.map_err(wrong)?)
    } else {
        return Err(wrong(format!("there is no folder `{value}`")));
    };
    Ok((name, context))
}

fn oci_layout(text: &str) -> Result<LayoutReference, String> {
    let (text, digest) = match text.split_once('@') {
        Some((text, digest)) => {
            let digest: Result<Digest, _> = digest.parse();
            (text, Some(digest.map_err(|error| error.to_string())?))
        }
        None => (text, None),
    };
    // A colon in a folder's name is one that a slash follows.
    let (folder, tag) = match text.rsplit_once(':') {
        Some((folder, tag)) if !tag.contains('/') && !Path::new(text).is_dir() => {
            (folder, Some(tag.to_owned()))
        }
        _ => (text, None),
    };
    if folder.is_empty() {
        return Err("the layout's folder is missing".into());
    }
    if !Path::new(folder).is_dir() {
        return Err(format!("there is no folder `{folder}`"));
    }
    Ok(LayoutReference { path: folder.into(), tag, digest })
}

/// The proxies of Docker's configuration, as build args (docs.docker.com, "Use a proxy server with
/// the Docker CLI"). A configuration that cannot be read has none: the registry code says what is
/// wrong with it when it needs it.
pub(super) fn proxies(settings: &Settings) -> BTreeMap<String, String> {
    let read = || -> Option<serde_json::Value> {
        let folder = settings.registry.docker_config.as_ref()?;
        serde_json::from_slice(&fs_err::read(folder.join("config.json")).ok()?).ok()
    };
    let Some(config) = read() else { return BTreeMap::new() };
    let names = [
        ("httpProxy", "HTTP_PROXY"),
        ("httpsProxy", "HTTPS_PROXY"),
        ("ftpProxy", "FTP_PROXY"),
        ("noProxy", "NO_PROXY"),
        ("allProxy", "ALL_PROXY"),
    ];
    let set = names.iter().filter_map(|(key, variable)| {
        let value = config["proxies"]["default"][key].as_str().filter(|value| !value.is_empty())?;
        Some([variable.to_string(), variable.to_lowercase()].map(|name| (name, value.to_owned())))
    });
    set.flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contexts() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().to_str().unwrap();
        assert_eq!(context("-"), Ok(ContextSpec::Stdin));
        assert_eq!(context(path), Ok(ContextSpec::Folder(path.into())));
        let kind = |text: &str| match context(text) {
            Ok(ContextSpec::Git(git)) => format!("git {}", git.remote),
            Ok(ContextSpec::Http(url)) => format!("http {url}"),
            other => format!("{other:?}"),
        };
        assert_eq!(kind("https://h/a.git#v1:sub"), "git https://h/a.git");
        assert_eq!(kind("git@h:a.git"), "git git@h:a.git");
        assert_eq!(kind("github.com/me/app"), "git https://github.com/me/app");
        assert_eq!(kind("https://h/a.tar.gz"), "http https://h/a.tar.gz");
        let error = context("/no/such").unwrap_err();
        assert_eq!(
            error.to_string(),
            "invalid value `/no/such` for `PATH | URL | -`: there is no such folder"
        );
    }

    #[test]
    fn dockerfiles() {
        let folder = tempfile::tempdir().unwrap();
        let here = folder.path().to_str().unwrap();
        let check = |file: Option<&str>, context: &str, expected| {
            assert_eq!(dockerfile(file, context), Ok(expected));
        };
        check(None, here, DockerfileSpec::Default);
        check(Some("a/b"), here, DockerfileSpec::Local("a/b".into()));
        check(Some("-"), here, DockerfileSpec::Stdin);
        check(Some("a/b"), "-", DockerfileSpec::InContext("a/b".into()));
        check(Some("a/b"), "https://h/a.git", DockerfileSpec::InContext("a/b".into()));
        check(Some("/a"), "https://h/a.git", DockerfileSpec::Local("/a".into()));
        assert!(dockerfile(Some("-"), "-").is_err());
    }

    #[test]
    fn named_contexts_go_by_familiar_names() {
        let folder = tempfile::tempdir().unwrap();
        let here = folder.path().to_str().unwrap();
        let check = |name: &str, value: &str, familiar: &str, expected: NamedContextSpec| {
            let (name, context) = named_context(&format!("{name}={value}")).unwrap();
            assert_eq!((name.as_str(), context), (familiar, expected));
        };
        check("src", here, "src", NamedContextSpec::Folder(here.into()));
        let layout = |tag: Option<&str>, digest| {
            let tag = tag.map(str::to_owned);
            NamedContextSpec::OciLayout(LayoutReference { path: here.into(), tag, digest })
        };
        check(
            "debian:bookworm",
            &format!("oci-layout://{here}"),
            "debian:bookworm",
            layout(None, None),
        );
        check(
            "docker.io/library/busybox:latest",
            &format!("oci-layout://{here}:v1"),
            "busybox",
            layout(Some("v1"), None),
        );
        let digest = Digest::of("x");
        check("b", &format!("oci-layout://{here}@{digest}"), "b", layout(None, Some(digest)));
        check(
            "base",
            "docker-image://debian:12",
            "base",
            NamedContextSpec::Image("debian:12".parse().unwrap()),
        );
        check("base", "target:build", "base", NamedContextSpec::Target("build".into()));
        for wrong in
            ["a", "a=/no/such", "a=oci-layout:///no/such", "a=docker-image://UPPER", "a b=."]
        {
            assert!(named_context(wrong).is_err(), "{wrong}");
        }
    }
}
