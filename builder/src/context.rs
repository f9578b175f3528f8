//! What a build reads: the context, the Dockerfile and its ignore file, named contexts.
//!
//! A folder stays where it is: steps read it there. What comes from elsewhere (git, http, a tar on
//! stdin) is a vertex of the graph like any other; when the Dockerfile is in it, that vertex is
//! solved first. The ignore file is `NAME.dockerignore` beside the Dockerfile `NAME`, otherwise
//! `.dockerignore` in the context; as with BuildKit (`frontend/dockerui/context.go`), only folders
//! have one.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use rbuild_cache::layer::compress::Format;
use rbuild_cache::oci::Platform;
use rbuild_cache::session::Temporary;
use rbuild_cache::view::{View, ViewError};
use rbuild_frontend::source::Source;
use rbuild_frontend::{BuildContext, BuildOptions, NamedContext, context_vertex, ignore};
use rbuild_solver::graph::{Graph, HttpOp, Op, Vertex};
use url::Url;

use crate::build::Session;
use crate::error::BuildError;
use crate::request::{ContextSpec, DockerfileSpec, NamedContextSpec};

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
    temporary: Vec<Temporary>,
    /// There is a Dockerfile and nothing else.
    empty: bool,
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
    #[error("the Dockerfile cannot be empty: `{0}`")]
    Empty(String),
    /// The ignore file cannot be understood.
    #[error("`{}`: {reason}", path.display())]
    Ignore {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// `target:` where there are no other targets.
    #[error("unsupported context source target for {0}")]
    Target(String),
    /// A context that was fetched cannot be read.
    #[error(transparent)]
    View(#[from] ViewError),
    /// It could not be read.
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl ContextError {
    /// What the user can do.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::NoDockerfile(_) => Some("`-f FILE` names a Dockerfile that is called otherwise"),
            Self::Target(_) => Some(
                "`target:` names another target of a bake file; a stage of the same Dockerfile is \
                 named by FROM and `--from` without it",
            ),
            Self::NotADockerfile { .. }
            | Self::Empty(_)
            | Self::Ignore { .. }
            | Self::View(_)
            | Self::Io(_) => None,
        }
    }
}

impl From<ContextError> for BuildError {
    fn from(error: ContextError) -> Self {
        let hint = error.hint();
        hint.into_iter().fold(Self::failed(&error), Self::hint)
    }
}

/// Where the files of the build context are.
enum Place {
    /// In a folder of the caller.
    Folder(PathBuf),
    /// In a tree that a vertex makes.
    Tree(View),
    /// Nowhere: instead of a context, a Dockerfile was given.
    Dockerfile(Vec<u8>),
}

impl Contexts {
    /// Opens what the request of `session` names.
    pub async fn open(session: &Session<'_>) -> Result<Self, BuildError> {
        let request = session.request;
        let mut contexts = Self {
            dockerfile: Source::new("Dockerfile", ""),
            context: BuildContext::Folder { ignore: Vec::new() },
            named: BTreeMap::new(),
            folders: BTreeMap::new(),
            temporary: Vec::new(),
            empty: false,
        };
        let place = contexts.place(session).await?;
        let (dockerfile, beside) = match (&request.dockerfile, &place) {
            (DockerfileSpec::Default, Place::Dockerfile(text)) => {
                (source("Dockerfile", text)?, None)
            }
            (DockerfileSpec::Default, Place::Folder(root)) => {
                let path = default_dockerfile(root);
                (local(&path)?, Some(path))
            }
            (DockerfileSpec::Default, Place::Tree(view)) => {
                let usual = view.lookup(Path::new("Dockerfile")).map_err(ContextError::from)?;
                let name = if usual.is_some() { "Dockerfile" } else { "dockerfile" };
                (in_tree(view, name)?, None)
            }
            (DockerfileSpec::Stdin, _) => (source("Dockerfile", &dockerfile_on_stdin()?)?, None),
            (DockerfileSpec::Local(path), Place::Folder(root)) => {
                let in_context = root.join(path);
                let path = if path.exists() || !in_context.exists() { path } else { &in_context };
                (local(path)?, Some(path.clone()))
            }
            (DockerfileSpec::Local(path), _) => (local(path)?, None),
            (DockerfileSpec::InContext(path), Place::Tree(view)) => (in_tree(view, path)?, None),
            (DockerfileSpec::InContext(path), _) => (local(Path::new(path))?, None),
            (DockerfileSpec::Http(url), _) => {
                let view = session.view(&http_file(url), &contexts.folders).await?;
                (in_tree(&view, FETCHED)?, None)
            }
        };
        contexts.dockerfile = dockerfile;
        contexts.empty = matches!(place, Place::Dockerfile(_));
        if let Place::Folder(root) = &place {
            contexts.context = BuildContext::Folder { ignore: ignored(root, beside.as_deref())? };
            contexts.folders.insert(CONTEXT.to_owned(), root.clone());
        }
        for (name, spec) in &request.named_contexts {
            let context = named_context(name, spec, &mut contexts.folders)?;
            contexts.named.insert(name.clone(), context);
        }
        Ok(contexts)
    }

    /// Whether a Dockerfile was given in the place of a context.
    pub fn is_empty(&self) -> bool {
        self.empty
    }

    /// Finds the context; what is not a folder becomes [`Contexts::context`] at once.
    async fn place(&mut self, session: &Session<'_>) -> Result<Place, BuildError> {
        match &session.request.context {
            ContextSpec::Folder(root) => return Ok(Place::Folder(root.clone())),
            ContextSpec::Stdin => {
                let folder = session.state.temporary().map_err(ContextError::from)?;
                self.folders.insert(CONTEXT.to_owned(), folder.path().to_owned());
                let dockerfile = stdin_into(&folder.path().join(CONTEXT))?;
                self.temporary.push(folder);
                if let Some(text) = dockerfile {
                    return Ok(Place::Dockerfile(text));
                }
                self.context = BuildContext::Tar;
            }
            ContextSpec::Git(address) => self.context = BuildContext::Git(address.clone()),
            ContextSpec::Http(url) => {
                let fetched = session.view(&http_file(url), &self.folders).await?;
                if let Some(text) = no_archive(&fetched)? {
                    return Ok(Place::Dockerfile(text));
                }
                self.context = BuildContext::Archive(url.to_string());
            }
        }
        let options = BuildOptions {
            context: self.context.clone(),
            build_args: session.request.build_args.clone(),
            ..BuildOptions::new(Platform::host())
        };
        let mut graph = Graph::new();
        context_vertex(&options, &mut graph);
        Ok(Place::Tree(session.view(&graph, &self.folders).await?))
    }
}

/// The name of a fetched file in its tree.
const FETCHED: &str = "context";

/// A graph that fetches `url`.
fn http_file(url: &Url) -> Graph {
    let op = HttpOp { url: url.to_string(), filename: FETCHED.into(), checksum: None };
    let mut graph = Graph::new();
    graph.add(
        Vertex::internal(Op::Http(op), &format!("[internal] load remote build context {url}")),
        &[],
    );
    graph
}

/// How many bytes tell an archive: up to the magic in a tar's first header.
const HEAD: usize = 262;

/// Whether a file that begins with `head` is an archive.
fn is_archive(head: &[u8]) -> bool {
    Format::of(head).is_some() || head.get(257..262) == Some(b"ustar")
}

/// The bytes of the fetched file, unless it is an archive.
fn no_archive(view: &View) -> Result<Option<Vec<u8>>, ContextError> {
    let Some(entry) = view.lookup(Path::new(FETCHED))? else { return Ok(Some(Vec::new())) };
    let mut head = Vec::new();
    view.open(&entry)?.take(HEAD as u64).read_to_end(&mut head)?;
    if is_archive(&head) {
        return Ok(None);
    }
    Ok(Some(bounded(view.open(&entry)?, FETCHED)?))
}

/// Reads stdin: an archive goes to `archive`, anything else is a Dockerfile and returned.
fn stdin_into(archive: &Path) -> Result<Option<Vec<u8>>, ContextError> {
    let mut stdin = io::stdin().lock();
    let mut head = Vec::new();
    (&mut stdin).take(HEAD as u64).read_to_end(&mut head)?;
    if !is_archive(&head) {
        return Ok(Some(bounded(head.as_slice().chain(stdin), "stdin")?));
    }
    let mut file = fs_err::File::create(archive)?;
    file.write_all(&head)?;
    io::copy(&mut stdin, &mut file)?;
    Ok(None)
}

/// All bytes of a Dockerfile, unless there are too many.
fn bounded(reader: impl Read, name: &str) -> Result<Vec<u8>, ContextError> {
    let mut bytes = Vec::new();
    reader.take(MAX_DOCKERFILE + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_DOCKERFILE {
        let reason = "it is longer than 16 MiB".to_owned();
        return Err(ContextError::NotADockerfile { name: name.to_owned(), reason });
    }
    Ok(bytes)
}

/// The Dockerfile at `path` of a tree.
fn in_tree(view: &View, path: &str) -> Result<Source, ContextError> {
    let found = view.resolve(Path::new(path))?;
    let Some(entry) = &found.entry else {
        return Err(ContextError::NoDockerfile(path.into()));
    };
    let name = Path::new(path).file_name().unwrap_or_default().to_string_lossy();
    source(&name, &bounded(view.open(entry)?, path)?)
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
        NamedContextSpec::Target(_) => return Err(ContextError::Target(name.to_owned())),
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
    source(&name, &bounded(fs_err::File::open(path)?, &path.display().to_string())?)
}

fn dockerfile_on_stdin() -> Result<Vec<u8>, ContextError> {
    bounded(io::stdin().lock(), "stdin")
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
        match fs_err::metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error.into()),
            Ok(metadata) if !metadata.is_file() => {
                let reason = "it is not a regular file".to_owned();
                return Err(ContextError::Ignore { path, reason });
            }
            Ok(_) => {
                let name = path.display().to_string();
                let bytes = bounded(fs_err::File::open(&path)?, &name)?;
                return ignore::read(&bytes)
                    .map_err(|error| ContextError::Ignore { path, reason: error.to_string() });
            }
        }
    }
    Ok(Vec::new())
}
