//! What a build reads: the context, the Dockerfile and its ignore file, named contexts.
//!
//! A folder stays where it is: steps read it there. What comes from elsewhere becomes part of the
//! graph, and only its Dockerfile is read here. The ignore file is `NAME.dockerignore` beside the
//! Dockerfile `NAME`, otherwise `.dockerignore` in the context (BuildKit:
//! `frontend/dockerui/context.go`).

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use rbuild_cache::session::Temporary;
use rbuild_cache::state::StateFolder;
use rbuild_frontend::ignore;
use rbuild_frontend::source::Source;
use rbuild_frontend::{BuildContext, NamedContext};

use crate::request::{BuildRequest, ContextSpec, DockerfileSpec, NamedContextSpec};

/// A Dockerfile larger than this is none, in bytes.
const MAX_DOCKERFILE: u64 = 16 * 1024 * 1024;
/// The name under which the solver knows the build context.
const CONTEXT: &str = "context";

/// Everything a build reads, opened.
#[derive(Debug)]
pub struct Contexts {
    /// The Dockerfile.
    pub dockerfile: Source,
    /// The build context.
    pub context: BuildContext,
    /// Named contexts, by the form of their names that the frontend looks for.
    pub named: BTreeMap<String, NamedContext>,
    /// Where the caller's folders are, by the name of their context.
    pub folders: BTreeMap<String, PathBuf>,
    /// Folders that last as long as the build.
    #[expect(dead_code, reason = "a guard: dropped with the rest")]
    temporary: Vec<Temporary>,
}

/// Says why a context cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ContextError {
    /// There is no Dockerfile.
    #[error("there is no Dockerfile: `{}` does not exist", .0.display())]
    NoDockerfile(PathBuf),
    /// The Dockerfile is a folder, or longer than any Dockerfile.
    #[error("`{name}` is no Dockerfile: {reason}")]
    NotADockerfile {
        /// The file.
        name: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The Dockerfile says nothing.
    #[error("the Dockerfile `{0}` is empty")]
    Empty(String),
    /// The ignore file cannot be understood.
    #[error("`{}`: {reason}", path.display())]
    Ignore {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A kind of context that rbuild is going to have.
    #[error("{0} is not there yet in this version of rbuild")]
    NotYet(&'static str),
    /// It could not be read.
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl ContextError {
    /// What the user can do.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::NoDockerfile(_) => Some("`-f FILE` names a Dockerfile that is called otherwise"),
            Self::NotADockerfile { .. }
            | Self::Empty(_)
            | Self::Ignore { .. }
            | Self::NotYet(_)
            | Self::Io(_) => None,
        }
    }
}

impl Contexts {
    /// Opens what `request` names.
    pub fn open(request: &BuildRequest, state: &StateFolder) -> Result<Self, ContextError> {
        let mut temporary = Vec::new();
        let mut folders = BTreeMap::new();
        let (root, stdin) = match &request.context {
            ContextSpec::Folder(root) => (root.clone(), None),
            ContextSpec::Stdin => {
                let empty = state.temporary()?;
                let root = empty.path().to_owned();
                temporary.push(empty);
                (root, Some(dockerfile_on_stdin()?))
            }
            ContextSpec::Git(_) => return Err(ContextError::NotYet("a git repository as context")),
            ContextSpec::Http(_) => return Err(ContextError::NotYet("an address as context")),
        };
        let (dockerfile, beside) = match (&request.dockerfile, stdin) {
            (DockerfileSpec::Default, Some(text)) => (source("Dockerfile", &text)?, None),
            (DockerfileSpec::Default, None) => {
                let path = default_dockerfile(&root);
                (local(&path)?, Some(path))
            }
            (DockerfileSpec::Stdin, _) => (source("Dockerfile", &dockerfile_on_stdin()?)?, None),
            (DockerfileSpec::Local(path), _) => {
                let in_context = root.join(path);
                let path = if path.exists() || !in_context.exists() { path } else { &in_context };
                (local(path)?, Some(path.clone()))
            }
            (DockerfileSpec::InContext(_), _) => {
                return Err(ContextError::NotYet("`-f` with a context on stdin"));
            }
            (DockerfileSpec::Http(_), _) => {
                return Err(ContextError::NotYet("a Dockerfile by address"));
            }
        };
        let context = BuildContext::Folder { ignore: ignored(&root, beside.as_deref())? };
        folders.insert(CONTEXT.to_owned(), root);
        let mut named = BTreeMap::new();
        for (name, spec) in &request.named_contexts {
            named.insert(name.clone(), named_context(name, spec, &mut folders)?);
        }
        Ok(Self { dockerfile, context, named, folders, temporary })
    }
}

fn named_context(
    name: &str,
    spec: &NamedContextSpec,
    folders: &mut BTreeMap<String, PathBuf>,
) -> Result<NamedContext, ContextError> {
    Ok(match spec {
        NamedContextSpec::Folder(root) => {
            folders.insert(name.to_owned(), root.clone());
            NamedContext::Folder { ignore: ignored(root, None)? }
        }
        NamedContextSpec::Image(image) if image.familiar() == "scratch:latest" => {
            NamedContext::Scratch
        }
        NamedContextSpec::Image(image) => NamedContext::Image(image.clone()),
        NamedContextSpec::OciLayout(_) => NamedContext::OciLayout,
        NamedContextSpec::Target(_) => return Err(ContextError::NotYet("`target:` as context")),
        NamedContextSpec::Git(git) => NamedContext::Git(git.clone()),
        NamedContextSpec::Http(url) => NamedContext::Http(url.to_string()),
    })
}

/// `Dockerfile`, or `dockerfile` where there is just that.
fn default_dockerfile(root: &Path) -> PathBuf {
    let usual = root.join("Dockerfile");
    let lower_case = root.join("dockerfile");
    if !usual.exists() && lower_case.exists() { lower_case } else { usual }
}

fn local(path: &Path) -> Result<Source, ContextError> {
    let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
    let metadata = match fs_err::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(ContextError::NoDockerfile(path.to_owned()));
        }
        metadata => metadata?,
    };
    let wrong = |reason: &str| ContextError::NotADockerfile {
        name: path.display().to_string(),
        reason: reason.to_owned(),
    };
    if !metadata.is_file() {
        return Err(wrong("it is not a regular file"));
    }
    if metadata.len() > MAX_DOCKERFILE {
        return Err(wrong("it is longer than 16 MiB"));
    }
    source(&name, &fs_err::read(path)?)
}

fn dockerfile_on_stdin() -> Result<Vec<u8>, ContextError> {
    let mut bytes = Vec::new();
    io::stdin().lock().take(MAX_DOCKERFILE + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_DOCKERFILE {
        return Err(ContextError::NotYet("a tar on stdin as context"));
    }
    Ok(bytes)
}

fn source(name: &str, bytes: &[u8]) -> Result<Source, ContextError> {
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return Err(ContextError::Empty(name.to_owned()));
    }
    Ok(Source::from_bytes(name, bytes))
}

/// The patterns that hold for the folder `root`, whose Dockerfile is `dockerfile`.
fn ignored(root: &Path, dockerfile: Option<&Path>) -> Result<Vec<String>, ContextError> {
    let beside = dockerfile.map(|path| {
        let mut name = path.as_os_str().to_owned();
        name.push(".dockerignore");
        PathBuf::from(name)
    });
    for path in beside.into_iter().chain([root.join(".dockerignore")]) {
        match fs_err::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error.into()),
            Ok(bytes) => {
                return ignore::read(&bytes)
                    .map_err(|error| ContextError::Ignore { path, reason: error.to_string() });
            }
        }
    }
    Ok(Vec::new())
}
