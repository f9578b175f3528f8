//! File ops: what COPY, ADD, WORKDIR and heredocs write, as one new layer folder.
//!
//! In two halves. [`plan`] looks at everything that the op reads and comes to a checksum, under
//! which the result may be known already; [`Plan::execute`] writes. Nothing is mounted: the
//! destination is looked up in a merged view of the layers below, and what is written goes into the
//! layer folder in overlayfs's form.
//!
//! Which files, under which names, modes, owners and times: as BuildKit's file backend and copier
//! have it (solver/llbsolver/file/backend.go, tonistiigi/fsutil/copy), down to the traps listed in
//! `testdata`. Other than there, a failed build says which path was meant.

mod archive;
mod copy;
mod destination;
mod mode;
pub mod owner;
mod reuse;
mod select;

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rayon::prelude::*;
use rbuild_cache::checksum::{self, ChecksumError, FileMemo};
use rbuild_cache::digest::{Digest, Hasher};
use rbuild_cache::layer::tar_reader::TarError;
use rbuild_cache::limits::Exceeded;
use rbuild_cache::pattern::{PatternError, PatternMatcher};
use rbuild_cache::snapshot::{Snapshot, SnapshotError, SnapshotId};
use rbuild_cache::state::StateFolder;
use rbuild_cache::view::{View, ViewError};

use self::archive::Archive;
use self::destination::Destination;
use self::mode::Chmod;
use self::reuse::{Identity, Last};
use self::select::{Content, Selection};
use crate::evidence::Reads;
use crate::graph::{CopyAction, CopySource, FileAction, FileOp, ModeChange, Name, Owner};
use crate::tree::Folder;

/// Says why files could not be written.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// A source that does not exist.
    #[error("{0:?}: not found")]
    NotFound(String),
    /// A source that `.dockerignore` hides.
    #[error("{0:?}: not found")]
    Ignored(String),
    /// A destination that leads through something that is no directory.
    #[error("mkdir {}: not a directory", .0.display())]
    NotADirectory(PathBuf),
    /// A directory is to be copied where something else is.
    #[error("cannot copy to non-directory: {}", .0.display())]
    CopyToNonDirectory(PathBuf),
    /// A file is to be copied where a directory is.
    #[error("cannot replace to directory {} with file", .0.display())]
    ReplaceDirectory(PathBuf),
    /// A user by name where there is no `/etc/passwd` to know it from.
    #[error("invalid user index: -1 (`{0}` cannot be looked up in an empty tree)")]
    NoUserFile(String),
    /// `USER` that `/etc/passwd` does not know.
    #[error("unable to find user {0}: no matching entries in passwd file")]
    UnknownUser(String),
    /// `USER name:group` that `/etc/group` does not know.
    #[error("unable to find group {0}: no matching entries in group file")]
    UnknownGroup(String),
    /// A number in `/etc/passwd` or `/etc/group` is none.
    #[error("`{0}` is not a user or group number")]
    BadId(String),
    /// A file of the image that rbuild reads is larger than it may be.
    #[error("`{path}` exceeds {limit} bytes")]
    TooLarge {
        /// Which.
        path: String,
        /// How large it may be.
        limit: u64,
    },
    /// `--chmod` with a mode that makes no sense.
    #[error("invalid mode `{0}`")]
    Mode(String),
    /// The context is not what it was when it was hashed.
    #[error("`{}` changed during the build", .0.display())]
    Changed(PathBuf),
    /// A character device 0:0, which in a layer means that a file was deleted.
    #[error("cannot copy `{}`: a layer cannot hold a device 0:0", .0.display())]
    Whiteout(PathBuf),
    /// An archive that cannot be read to its end.
    #[error("cannot unpack `{}`", path.display())]
    Tar {
        /// Its path in the source.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: TarError,
    },
    /// An entry of an archive that cannot be made.
    #[error("cannot unpack the entry `{entry}`: it {why}")]
    Entry {
        /// The entry's path in the archive.
        entry: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// There is more in the context than one COPY may take.
    #[error("the context has {0}")]
    Context(Exceeded),
    /// There is more in an archive than may be.
    #[error("the archive `{}` has {exceeded}", path.display())]
    Archive {
        /// Its path in the source.
        path: PathBuf,
        /// Of what.
        exceeded: Exceeded,
    },
    /// A pattern that makes no sense.
    #[error(transparent)]
    Pattern(#[from] PatternError),
    /// A tree could not be read.
    #[error(transparent)]
    View(#[from] ViewError),
    /// The system refused.
    #[error("cannot write `{}`", path.display())]
    Io {
        /// The path in the tree.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A source could not be hashed.
    #[error(transparent)]
    Checksum(ChecksumError),
    /// The state folder failed.
    #[error("cannot use the state folder")]
    State(#[source] io::Error),
    /// The result could not be kept.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
}

impl FileError {
    pub(crate) fn io(path: &Path, source: io::Error) -> Self {
        Self::Io { path: Path::new("/").join(path), source }
    }
}

impl From<ChecksumError> for FileError {
    fn from(error: ChecksumError) -> Self {
        match error {
            ChecksumError::NotFound { path } => Self::NotFound(path),
            ChecksumError::View(error) => Self::View(error),
            error @ (ChecksumError::Changing(_) | ChecksumError::Read { .. }) => {
                Self::Checksum(error)
            }
        }
    }
}

/// A tree that files are copied from.
#[derive(Clone, Debug)]
pub struct SourceTree {
    view: View,
    /// The name of the context, for its memo of digests; none for trees of the state folder.
    context: Option<String>,
    /// What there is besides, but ignored.
    ignored: Option<View>,
}

impl SourceTree {
    /// A tree of the state folder.
    pub fn tree(view: View) -> Self {
        Self { view, context: None, ignored: None }
    }

    /// A folder of the caller's.
    pub fn context(folder: &Folder) -> Result<Self, FileError> {
        let ignore = PatternMatcher::new(&folder.ignore)?;
        // The same context name means another folder in another build.
        let root = folder.root.as_os_str().as_encoded_bytes();
        let context = Digest::of(root).hex();
        let all = || View::folder(folder.root.clone(), PatternMatcher::default());
        Ok(Self {
            ignored: (!folder.ignore.is_empty()).then(all),
            view: View::folder(folder.root.clone(), ignore),
            context: Some(context),
        })
    }

    /// `error`, or that the source which was not found is there, but ignored.
    fn explained(&self, error: FileError) -> FileError {
        match (&self.ignored, error) {
            (Some(all), FileError::NotFound(path))
                if all.lookup(Path::new(&path)).is_ok_and(|entry| entry.is_some()) =>
            {
                FileError::Ignored(path)
            }
            (_, error) => error,
        }
    }

    fn memo(&self, state: &StateFolder) -> Result<FileMemo, FileError> {
        let Some(context) = &self.context else { return Ok(FileMemo::none()) };
        let folder = state.folder("context").map_err(FileError::State)?;
        Ok(FileMemo::open(folder.join(context)))
    }
}

/// What a file op is going to write: everything it reads has been looked at.
#[derive(Debug)]
pub struct Plan {
    /// What is written over; empty until [`Plan::over`] says.
    base: View,
    /// Each with the number of the action it belongs to.
    steps: Vec<(usize, Step)>,
    /// Names what the same op writes in another build: the op and the folders it reads.
    line: Digest,
}

#[derive(Debug)]
enum Step {
    Mkdir { path: String, mode: u32, parents: bool, owner: (u32, u32), time: Option<i64> },
    WriteFile { path: String, mode: u32, owner: (u32, u32), data: Vec<u8> },
    Copy(CopyStep),
    Unpack(Box<Archive>),
}

/// Copies from one source, which may name several files.
#[derive(Debug)]
struct CopyStep {
    destination: String,
    owner: Option<(u32, u32)>,
    mode: Option<Chmod>,
    times: Option<i64>,
    replace_symlinks: bool,
    /// A directory's content is copied, not the directory.
    contents: bool,
    from: Origin,
}

#[derive(Debug)]
enum Origin {
    Selection(Selection),
    Inline { name: String, data: Vec<u8> },
}

/// Looks at what `op` reads.
///
/// Input 0 is `base`, which only ops that copy from it need ([`reads_base`]), and input n is the nth
/// of `sources`, counted from one. Owners that are names stay open until [`Plan::over`]. May read
/// many files: call it where blocking is fine.
///
/// # Panics
/// When `op` names an input that is not in `sources`.
pub fn plan(
    op: &FileOp,
    base: Option<&View>,
    sources: &[SourceTree],
    state: &StateFolder,
) -> Result<Plan, FileError> {
    let mut memos = Memos { state, open: Vec::new() };
    let mut steps = Vec::new();
    let base = base.cloned().unwrap_or_else(|| View::layers(Vec::new()));
    for (number, action) in op.actions.iter().enumerate() {
        let mut of_action = Vec::new();
        match action {
            FileAction::Mkdir(mkdir) => of_action.push(Step::Mkdir {
                path: mkdir.path.clone(),
                mode: mkdir.mode & 0o777,
                parents: mkdir.parents,
                owner: numbered_owner(mkdir.owner.as_ref()).unwrap_or_default(),
                time: mkdir.time,
            }),
            FileAction::WriteFile(file) => of_action.push(Step::WriteFile {
                path: file.path.clone(),
                mode: file.mode & 0o777,
                owner: numbered_owner(file.owner.as_ref()).unwrap_or_default(),
                data: file.data.clone(),
            }),
            FileAction::Copy(copy) => {
                let from = match &copy.from {
                    CopySource::Input(0) => Some(&SourceTree::tree(base.clone())),
                    CopySource::Input(input) => Some(&sources[*input - 1]),
                    CopySource::Inline(_) => None,
                };
                plan_copy(copy, from, &mut memos, &mut of_action)?;
            }
        }
        steps.extend(of_action.into_iter().map(|step| (number, step)));
    }
    memos.save();
    let mut line = Hasher::new();
    line.field(serde_json::to_vec(op).expect("ops are plain data with string keys"));
    for source in sources {
        line.field(source.context.as_deref().unwrap_or_default());
    }
    Ok(Plan { base, steps, line: line.digest() })
}

/// Whether `op` copies from what it writes over, so that it cannot be planned without.
pub fn reads_base(op: &FileOp) -> bool {
    op.actions.iter().any(|action| match action {
        FileAction::Copy(copy) => matches!(copy.from, CopySource::Input(0)),
        FileAction::Mkdir(_) | FileAction::WriteFile(_) => false,
    })
}

fn plan_copy(
    copy: &CopyAction,
    from: Option<&SourceTree>,
    memos: &mut Memos<'_>,
    steps: &mut Vec<Step>,
) -> Result<(), FileError> {
    let owner = numbered_owner(copy.owner.as_ref());
    let mode = copy.mode.as_ref().map(chmod).transpose()?;
    let step = |from, contents| CopyStep {
        destination: copy.destination.clone(),
        owner,
        mode: mode.clone(),
        times: copy.times,
        replace_symlinks: copy.replace_symlinks,
        contents,
        from,
    };
    if let CopySource::Inline(files) = &copy.from {
        for name in &copy.sources {
            let data = files.get(name).ok_or_else(|| FileError::NotFound(name.clone()))?;
            let from = Origin::Inline { name: name.clone(), data: data.clone() };
            steps.push(Step::Copy(step(from, false)));
        }
    }
    let Some(from) = from else { return Ok(()) };
    let options = select::Options {
        exclude: PatternMatcher::new(&copy.exclude)?,
        parents: copy.parents,
        wildcards: copy.wildcards,
    };
    let memo = memos.of(from)?;
    for source in &copy.sources {
        let found = select::matches(&from.view, source, &options);
        for found in found.map_err(|error| from.explained(error))? {
            if copy.unpack && archive::is_archive(&from.view, &found.root)? {
                let (digest, metadata) = memo.digest(&from.view, &found.root)?;
                steps.push(Step::Unpack(Box::new(Archive {
                    destination: copy.destination.clone(),
                    owner,
                    time: copy.times,
                    view: from.view.clone(),
                    entry: found.root,
                    metadata,
                    digest,
                    limits: memos.state.limits().clone(),
                })));
                continue;
            }
            let limits = from.context.is_some().then(|| memos.state.limits());
            let selection = select::select(&from.view, found, &options.exclude, &memo, limits)?;
            steps.push(Step::Copy(step(Origin::Selection(selection), copy.wildcards)));
        }
    }
    Ok(())
}

/// Plans to import all that is at `path` of `source` into a tree of its own, at the same path.
pub fn import(source: &SourceTree, path: &str, state: &StateFolder) -> Result<Plan, FileError> {
    let mut memos = Memos { state, open: Vec::new() };
    let options =
        select::Options { exclude: PatternMatcher::default(), parents: false, wildcards: false };
    let Some(entry) = source.view.resolve(Path::new(path))?.entry else {
        let path = rbuild_cache::pattern::clean(&format!("/{path}"));
        return Err(source.explained(FileError::NotFound(path)));
    };
    let memo = memos.of(source)?;
    let resolved = entry.absolute_path().to_string_lossy().into_owned();
    let mut steps = Vec::new();
    for found in select::matches(&source.view, &resolved, &options)? {
        let limits = source.context.is_some().then(|| state.limits());
        let selection = select::select(&source.view, found, &options.exclude, &memo, limits)?;
        let step = CopyStep {
            destination: rbuild_cache::pattern::clean(&format!("/{path}")),
            owner: None,
            mode: None,
            times: None,
            replace_symlinks: false,
            contents: false,
            from: Origin::Selection(selection),
        };
        steps.push((0, Step::Copy(step)));
    }
    memos.save();
    let mut line = Hasher::new();
    line.field(source.context.as_deref().unwrap_or_default());
    line.field(path);
    Ok(Plan { base: View::layers(Vec::new()), steps, line: line.digest() })
}

/// The checksum of all that is at `path` of `source`, without times.
pub fn checksum(source: &SourceTree, path: &str, state: &StateFolder) -> Result<Digest, FileError> {
    let memo = source.memo(state)?;
    let digest = checksum::of_path(&source.view, Path::new(path), &memo);
    let digest = digest.map_err(|error| source.explained(error.into()))?;
    save(&memo);
    Ok(digest)
}

/// The owner as far as it is known without looking names up; a name is root until then. The op, which
/// is in every key, tells names apart.
fn numbered_owner(owner: Option<&Owner>) -> Option<(u32, u32)> {
    let number = |name: &Name| match name {
        Name::Id(id) => *id,
        Name::Name(_) => 0,
    };
    owner.map(|owner| {
        let uid = number(&owner.user);
        (uid, owner.group.as_ref().map_or(uid, number))
    })
}

fn chmod(change: &ModeChange) -> Result<Chmod, FileError> {
    Chmod::new(change).ok_or_else(|| match change {
        ModeChange::Octal(mode) => FileError::Mode(format!("{mode:o}")),
        ModeChange::Symbolic(text) => FileError::Mode(text.clone()),
    })
}

/// The digests of the files that were written, and those that later layers can link.
type Written = (HashMap<PathBuf, Digest>, HashMap<PathBuf, Identity>);

/// The memos of the contexts that an op reads, each opened once.
struct Memos<'a> {
    state: &'a StateFolder,
    open: Vec<(Option<String>, Arc<FileMemo>)>,
}

impl Memos<'_> {
    fn of(&mut self, source: &SourceTree) -> Result<Arc<FileMemo>, FileError> {
        if let Some((_, memo)) = self.open.iter().find(|(context, _)| *context == source.context) {
            return Ok(Arc::clone(memo));
        }
        let memo = Arc::new(source.memo(self.state)?);
        self.open.push((source.context.clone(), Arc::clone(&memo)));
        Ok(memo)
    }

    fn save(&self) {
        self.open.iter().for_each(|(_, memo)| save(memo));
    }
}

/// A memo that cannot be saved costs time in the next build, no more.
fn save(memo: &FileMemo) {
    if let Err(error) = memo.save() {
        tracing::warn!(%error, "cannot remember what files hashed to");
    }
}

impl Plan {
    /// The plan, to be carried out over `base`, which says who the names of owners are. `op` is the
    /// one that was planned.
    pub fn over(mut self, op: &FileOp, base: View) -> Result<Self, FileError> {
        let owners = op.actions.iter().map(|action| {
            let owner = match action {
                FileAction::Mkdir(mkdir) => &mkdir.owner,
                FileAction::WriteFile(file) => &file.owner,
                FileAction::Copy(copy) => &copy.owner,
            };
            owner.as_ref().map(|owner| owner::file_owner(&base, owner)).transpose()
        });
        let owners = owners.collect::<Result<Vec<_>, _>>()?;
        for (number, step) in &mut self.steps {
            let resolved = owners[*number];
            match step {
                Step::Mkdir { owner, .. } | Step::WriteFile { owner, .. } => {
                    *owner = resolved.unwrap_or_default();
                }
                Step::Copy(copy) => copy.owner = resolved,
                Step::Unpack(archive) => archive.owner = resolved,
            }
        }
        self.base = base;
        Ok(self)
    }

    /// The checksum of all that will be written but where the layers below lead it: paths, types,
    /// modes, owners, bytes; not times.
    pub fn checksum(&self) -> Result<Digest, FileError> {
        let mut hasher = Hasher::new();
        hasher.field("rbuild file op 1");
        for (_, step) in &self.steps {
            match step {
                Step::Mkdir { path, mode, parents, owner, time: _ } => {
                    hasher.field("mkdir");
                    hasher.field(path);
                    add_numbers(&mut hasher, &[*mode, u32::from(*parents), owner.0, owner.1]);
                }
                Step::WriteFile { path, mode, owner, data } => {
                    hasher.field("write");
                    hasher.field(path);
                    add_numbers(&mut hasher, &[*mode, owner.0, owner.1]);
                    hasher.field(data);
                }
                Step::Copy(copy) => copy.add(&mut hasher),
                Step::Unpack(archive) => {
                    hasher.field("unpack");
                    hasher.field(&archive.destination);
                    let (uid, gid) = archive.owner.unwrap_or_default();
                    add_numbers(&mut hasher, &[u32::from(archive.owner.is_some()), uid, gid]);
                    hasher.field(archive.digest.as_bytes());
                }
            }
        }
        Ok(hasher.digest())
    }

    /// What is read, path by path.
    pub fn reads(&self) -> Reads {
        let mut paths = Vec::new();
        for (_, step) in &self.steps {
            match step {
                Step::Copy(CopyStep { from: Origin::Selection(selection), .. }) => {
                    paths.par_extend(selection.items.par_iter().filter_map(read));
                }
                Step::Unpack(archive) => {
                    let path = archive.entry.path().as_os_str().as_encoded_bytes().to_vec();
                    paths.push((path, short(archive.digest)));
                }
                Step::Copy(_) | Step::Mkdir { .. } | Step::WriteFile { .. } => {}
            }
        }
        Reads::new(paths)
    }

    /// Writes everything into a new snapshot and commits it, `reads` beside it.
    ///
    /// Files that the last snapshot of the same op holds are linked from there.
    ///
    /// # Errors
    /// [`FileError::Changed`] when a context is not any more what the checksum says.
    pub fn commit(self, state: &StateFolder, reads: &Reads) -> Result<Snapshot, FileError> {
        let file = self.reads_a_context().then(|| {
            let folder = state.folder("context").map_err(FileError::State)?;
            Ok::<_, FileError>(folder.join(format!("{}.layer", self.line.hex())))
        });
        let file = file.transpose()?;
        let last = file.as_ref().and_then(|file| Last::open(file, state));
        let draft = state.snapshots().draft()?;
        let (written, plain) = self.write(&draft.folder(), last)?;
        for (path, digest) in written {
            draft.know(path, digest);
        }
        draft.set_reads(reads.encoded());
        let snapshot = state.snapshots().commit(&SnapshotId::random(), draft)?;
        if let Some(file) = file
            && let Err(error) = reuse::save(&file, &snapshot.id, &plain)
        {
            // The next build copies what it could have linked, no more.
            tracing::warn!(%error, "cannot remember what a layer holds");
        }
        Ok(snapshot)
    }

    fn reads_a_context(&self) -> bool {
        self.steps.iter().any(|(_, step)| match step {
            Step::Copy(CopyStep { from: Origin::Selection(selection), .. }) => {
                selection.view.may_change()
            }
            Step::Copy(_) | Step::Mkdir { .. } | Step::WriteFile { .. } | Step::Unpack(_) => false,
        })
    }

    /// Writes everything into the folder `folder`, which is empty and may be written to later.
    ///
    /// # Errors
    /// [`FileError::Changed`] when a context is not any more what the checksum says.
    pub fn execute(self, folder: &Path) -> Result<(), FileError> {
        self.write(folder, None).map(drop)
    }

    fn write(self, folder: &Path, last: Option<Last>) -> Result<Written, FileError> {
        let mut destination = Destination::new(&self.base, folder, last)?;
        for (_, step) in self.steps {
            match step {
                Step::Mkdir { path, mode, parents, owner, time } => {
                    let path = destination.resolve(Path::new(&path))?;
                    let made = destination::NewDirectory { mode, owner, time };
                    if parents {
                        destination.make_directories(&path, made)?;
                    } else {
                        destination.make_directory(&path, made)?;
                    }
                }
                Step::WriteFile { path, mode, owner, data } => {
                    let path = destination.resolve(Path::new(&path))?;
                    copy::write_file(&mut destination, &path, mode, owner, None, &data)?;
                }
                Step::Copy(step) => copy::copy(&mut destination, &step)?,
                Step::Unpack(archive) => archive.unpack(&mut destination)?,
            }
        }
        Ok(destination.finish())
    }
}

impl CopyStep {
    fn add(&self, hasher: &mut Hasher) {
        hasher.field("copy");
        hasher.field(&self.destination);
        let flags = [u32::from(self.replace_symlinks), u32::from(self.contents)];
        add_numbers(hasher, &flags);
        add_numbers(hasher, &[Chmod::of_parents(self.mode.as_ref())]);
        let (uid, gid) = self.owner.unwrap_or_default();
        add_numbers(hasher, &[uid, gid]);
        match &self.from {
            Origin::Inline { name, data } => {
                hasher.field("inline");
                hasher.field(name);
                hasher.field(data);
            }
            Origin::Selection(selection) => {
                let root = &selection.items[0];
                hasher.field(if root.metadata.is_directory() {
                    b""
                } else {
                    selection.name.as_encoded_bytes()
                });
                hasher.field(selection.items.len().to_le_bytes());
                for item in &selection.items {
                    let metadata = copy::effective(self, &item.metadata);
                    let (content, target) = match &item.content {
                        Content::File(digest) => (Some(*digest), None),
                        Content::Symlink(target) => (None, Some(target.as_path())),
                        Content::Directory | Content::Parent | Content::Special => (None, None),
                    };
                    hasher.field([u8::from(matches!(item.content, Content::Parent))]);
                    checksum::add_entry(hasher, &item.path, &metadata, content, target);
                    hasher.field(item.xattrs.len().to_le_bytes());
                    for (name, value) in &item.xattrs {
                        hasher.field(name.to_bytes());
                        hasher.field(value);
                    }
                    hasher.field(item.same_as.map_or([0; 8], |first| (first + 1).to_le_bytes()));
                }
            }
        }
    }
}

/// A path that is read, and the beginning of the digest of what it is; none for a folder that is only
/// on the way to one.
fn read(item: &select::Item) -> Option<(Vec<u8>, [u8; 8])> {
    let (content, target) = match &item.content {
        Content::File(digest) => (Some(*digest), None),
        Content::Symlink(target) => (None, Some(target.as_path())),
        Content::Directory | Content::Special => (None, None),
        Content::Parent => return None,
    };
    let mut hasher = Hasher::new();
    checksum::add_entry(&mut hasher, Path::new(""), &item.metadata, content, target);
    Some((item.entry.path().as_os_str().as_encoded_bytes().to_vec(), short(hasher.digest())))
}

fn short(digest: Digest) -> [u8; 8] {
    *digest.as_bytes().first_chunk().expect("digests have 32 bytes")
}

fn add_numbers(hasher: &mut Hasher, numbers: &[u32]) {
    for number in numbers {
        hasher.field(number.to_le_bytes());
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use fs_err as fs;
    use rbuild_cache::metadata::{FileType, Metadata};
    use rbuild_cache::view::Entry;

    use super::*;
    use crate::graph::{Mkdir, Name, Owner, WriteFile};

    /// Makes a tree: `dir/`, `file=bytes`, `link->target`, `name*other` (the same file), each with
    /// a mode after `@`.
    fn make(spec: &[&str]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for line in spec {
            let (line, mode) = match line.split_once('@') {
                Some((line, mode)) => (line, Some(u32::from_str_radix(mode, 8).unwrap())),
                None => (*line, None),
            };
            let at = |name: &str| {
                let path = folder.path().join(name);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                path
            };
            let (name, default) = if let Some((link, target)) = line.split_once("->") {
                symlink(target, at(link)).unwrap();
                continue;
            } else if let Some((file, bytes)) = line.split_once('=') {
                fs::write(at(file), bytes).unwrap();
                (file, 0o644)
            } else if let Some((name, other)) = line.split_once('*') {
                fs::hard_link(at(other), at(name)).unwrap();
                continue;
            } else {
                fs::create_dir_all(at(line)).unwrap();
                (line, 0o755)
            };
            let mode = PermissionsExt::from_mode(mode.unwrap_or(default));
            fs::set_permissions(at(name), mode).unwrap();
        }
        folder
    }

    /// The tree, one entry each: what it is, its mode and owner where they are not the usual.
    fn show(view: &View) -> String {
        fn add(view: &View, directory: &Entry, out: &mut Vec<String>) {
            for entry in view.children(directory).unwrap() {
                let path = entry.path().display();
                let Metadata { file_type, mode, uid, gid, .. } = *entry.metadata();
                let (text, usual) = match file_type {
                    FileType::Directory => (format!("{path}/"), 0o755),
                    FileType::Symlink => {
                        (format!("{path}->{}", view.read_link(&entry).unwrap().display()), mode)
                    }
                    FileType::File => {
                        let bytes = io::read_to_string(view.open(&entry).unwrap()).unwrap();
                        (format!("{path}={bytes}"), 0o644)
                    }
                    other => (format!("{path}:{other:?}"), 0o644),
                };
                let mode = if mode == usual { String::new() } else { format!("@{mode:o}") };
                let owner =
                    if (uid, gid) == (0, 0) { String::new() } else { format!("@{uid}:{gid}") };
                out.push(text + &mode + &owner);
                if file_type == FileType::Directory {
                    add(view, &entry, out);
                }
            }
        }
        let mut out = Vec::new();
        add(view, &view.root().unwrap(), &mut out);
        out.join(" ")
    }

    /// Trees to copy from and to, as root: all of this sets owners.
    struct Place {
        _state_folder: tempfile::TempDir,
        state: StateFolder,
        base: Option<tempfile::TempDir>,
        context: tempfile::TempDir,
        layer: tempfile::TempDir,
        ignore: Vec<String>,
    }

    impl Place {
        fn new(base: &[&str], context: &[&str]) -> Option<Self> {
            if !rustix::process::geteuid().is_root() {
                // What needs a user who may give files away is tested where there is one.
                return None;
            }
            let state_folder = tempfile::tempdir().unwrap();
            let layer = tempfile::tempdir().unwrap();
            fs::set_permissions(layer.path(), PermissionsExt::from_mode(0o755)).unwrap();
            Some(Self {
                state: StateFolder::open(state_folder.path().join("state")).unwrap(),
                _state_folder: state_folder,
                base: (!base.is_empty()).then(|| make(base)),
                context: make(context),
                layer,
                ignore: Vec::new(),
            })
        }

        fn base(&self) -> View {
            View::layers(self.base.iter().map(|base| base.path().to_owned()).collect())
        }

        fn source(&self) -> SourceTree {
            let folder = Folder {
                name: "context".into(),
                root: self.context.path().to_owned(),
                ignore: self.ignore.clone(),
            };
            SourceTree::context(&folder).unwrap()
        }

        fn plan(&self, actions: Vec<FileAction>) -> Result<Plan, FileError> {
            let (op, base) = (FileOp { actions }, self.base());
            plan(&op, Some(&base), &[self.source()], &self.state)?.over(&op, base)
        }

        fn run(&self, actions: Vec<FileAction>) -> Result<(), FileError> {
            let plan = self.plan(actions)?;
            for (path, digest) in plan.write(self.layer.path(), None)?.0 {
                let path = self.layer.path().join(path);
                if fs::symlink_metadata(&path).unwrap().is_file() {
                    assert_eq!(Digest::of(fs::read(path).unwrap()), digest);
                }
            }
            Ok(())
        }

        fn layer(&self) -> View {
            View::layers(vec![self.layer.path().to_owned()])
        }

        fn result(&self) -> View {
            self.base().with_layer(self.layer.path().to_owned())
        }
    }

    fn copy(sources: &[&str], destination: &str) -> CopyAction {
        CopyAction {
            from: CopySource::Input(1),
            sources: sources.iter().map(|&source| source.to_owned()).collect(),
            destination: destination.into(),
            owner: None,
            mode: None,
            exclude: Vec::new(),
            parents: false,
            unpack: false,
            wildcards: true,
            replace_symlinks: false,
            times: None,
        }
    }

    /// What the new layer holds after `action`, or the error.
    fn outcome(base: &[&str], context: &[&str], action: CopyAction) -> Option<String> {
        let place = Place::new(base, context)?;
        Some(match place.run(vec![FileAction::Copy(action)]) {
            Ok(()) => show(&place.layer()),
            Err(error) => error.to_string(),
        })
    }

    #[track_caller]
    fn check(base: &[&str], context: &[&str], action: CopyAction, expected: &str) {
        if let Some(found) = outcome(base, context, action) {
            assert_eq!(found, expected);
        }
    }

    #[test]
    fn names_of_destinations() {
        let context = ["f=1", "d/a=2", "d/e/b=3"];
        check(&[], &context, copy(&["f"], "/x"), "x=1");
        check(&[], &context, copy(&["f"], "/x/"), "x/ x/f=1");
        check(&[], &context, copy(&["f"], "/x/."), "x/ x/f=1");
        check(&[], &context, copy(&["f"], "/p/q/x"), "p/ p/q/ p/q/x=1");
        check(&["x/"], &context, copy(&["f"], "/x"), "x/ x/f=1");
        check(&[], &context, copy(&["d"], "/x"), "x/ x/a=2 x/e/ x/e/b=3");
        check(&["x/"], &context, copy(&["d"], "/x"), "x/ x/a=2 x/e/ x/e/b=3");
        check(&[], &context, copy(&["d/"], "/"), "a=2 e/ e/b=3");
        check(&[], &context, copy(&["."], "/"), "d/ d/a=2 d/e/ d/e/b=3 f=1");
        check(&[], &context, copy(&["f", "d"], "/x/"), "x/ x/a=2 x/e/ x/e/b=3 x/f=1");
        check(&[], &context, copy(&["f", "d/a"], "/x"), "x=2");
        check(&[], &context, copy(&["../../f", "/d/../f"], "/x"), "x=1");
    }

    #[test]
    fn wildcards() {
        let context = ["a1=1", "a2=2", "b=3", "d/a3=4", "e/a4=5", "l->b", "ld->d"];
        check(&[], &context, copy(&["a*"], "/x/"), "x/ x/a1=1 x/a2=2");
        check(&[], &context, copy(&["?"], "/x/"), "x/ x/a3=4 x/a4=5 x/b=3 x/l=3");
        check(&[], &context, copy(&["*/a*"], "/x/"), "x/ x/a3=4 x/a4=5");
        check(&[], &context, copy(&["l*"], "/x/"), "x/ x/a3=4 x/l=3");
        check(&[], &context, copy(&["nothing*"], "/x/"), "");
        check(&[], &context, copy(&["a[1-"], "/x/"), "syntax error in pattern `a[1-`");
        check(&[], &context, copy(&["no/*"], "/x/"), "\"/no\": not found");
        check(&[], &["a*=1"], copy(&["a\\*"], "/x/"), "\"/a\\\\*\": not found");
    }

    #[test]
    fn what_is_there_already() {
        let check =
            |base: &[&str], context: &[&str], sources: &[&str], to: &str, expected: &str| {
                check(base, context, copy(sources, to), expected);
            };
        check(&["x=old"], &["f=1"], &["f"], "/x", "x=1");
        check(&["x->y", "y=old"], &["f=1"], &["f"], "/x", "y=1");
        check(&["x->no/where"], &["f=1"], &["f"], "/x", "no/ no/where=1");
        check(&["x->../../d", "d/"], &["f=1"], &["f"], "/x/", "d/ d/f=1");
        check(&["x/f->y"], &["f=1"], &["f"], "/x/", "x/ x/f=1");
        check(
            &["d@700", "d/e@2770", "d/e/old=1"],
            &["f=1"],
            &["f"],
            "/d/e/",
            "d/@700 d/e/@2770 d/e/f=1",
        );
        check(&["x=file"], &["f=1"], &["f"], "/x/", "mkdir /x: not a directory");
        check(&["x=file"], &["f=1"], &["f"], "/x/y/z", "mkdir /x: not a directory");
        check(&["x/e=file"], &["d/e/f=1"], &["d"], "/x", "cannot copy to non-directory: /x/e");
        check(&["x/e->d"], &["d/e/f=1"], &["d"], "/x", "cannot copy to non-directory: /x/e");
        check(&["x/e/"], &["d/e=1"], &["d"], "/x", "cannot replace to directory /x/e with file");
        check(&["x/e@700"], &["d/e@2750", "d/e/f=1"], &["d"], "/x", "x/ x/e/@2750 x/e/f=1");
    }

    #[test]
    fn linked_copies_replace_what_is_in_the_destination_not_the_destination() {
        let check = |sources: &[&str], expected: &str| {
            let action = CopyAction { replace_symlinks: true, ..copy(sources, "/x") };
            check(&[], &["f=1", "d/e/a=2", "g/e=3"], action, expected);
        };
        check(&["f", "d"], "cannot copy to non-directory: /x");
        check(&["g", "d"], "x/ x/e/ x/e/a=2");
    }

    #[test]
    fn sources_that_are_not_there() {
        let context = ["f=1", "out->../../../etc/passwd", "loop->loop"];
        check(&[], &context, copy(&["x"], "/"), "\"/x\": not found");
        check(&[], &context, copy(&["./x/../y/"], "/"), "\"/y\": not found");
        check(&[], &context, copy(&["out"], "/"), "\"/out\": not found");
        check(&[], &context, copy(&["f/x"], "/"), "\"/f/x\": not found");
        check(&[], &context, copy(&["loop"], "/"), "too many symbolic links in `/loop`");
    }

    #[test]
    fn links_are_copied_as_links_inside_of_directories_only() {
        let context = ["d/l->../f", "f=1", "dl->d"];
        check(&[], &context, copy(&["d"], "/x"), "x/ x/l->../f");
        check(&[], &context, copy(&["d/l"], "/x"), "x=1");
        check(&[], &context, copy(&["dl"], "/x"), "x/ x/l->../f");
    }

    #[test]
    fn modes_and_owners() {
        let context = ["f=1@4755", "d@1777", "d/a=2@600"];
        let owned = |action: CopyAction| CopyAction {
            owner: Some(Owner { user: Name::Id(5), group: Some(Name::Id(6)) }),
            ..action
        };
        let moded = |text: &str, action: CopyAction| {
            let mode = match u32::from_str_radix(text, 8) {
                Ok(mode) => ModeChange::Octal(mode),
                Err(_) => ModeChange::Symbolic(text.into()),
            };
            CopyAction { mode: Some(mode), ..action }
        };
        check(&[], &context, copy(&["f"], "/x"), "x=1@4755");
        check(&[], &context, copy(&["."], "/x"), "x/ x/d/@1777 x/d/a=2@600 x/f=1@4755");
        check(&[], &context, owned(copy(&["f"], "/p/x")), "p/@5:6 p/x=1@4755@5:6");
        check(&["p/"], &context, owned(copy(&["f"], "/p/x")), "p/ p/x=1@4755@5:6");
        check(
            &[],
            &context,
            moded("700", copy(&["."], "/p")),
            "p/@700 p/d/@700 p/d/a=2@700 p/f=1@700",
        );
        check(&[], &context, moded("2750", copy(&["f"], "/p/x")), "p/@750 p/x=1@2750");
        check(
            &[],
            &context,
            moded("a=rX", copy(&["."], "/p/q")),
            "p/ p/q/ p/q/d/@1555 p/q/d/a=2@444 p/q/f=1@555",
        );
    }

    #[test]
    fn parents_keep_the_path() {
        let parents =
            |sources: &[&str], to: &str| CopyAction { parents: true, ..copy(sources, to) };
        let context = ["a.txt=1", "d@700", "d/c.txt=2", "d/e/f.txt=3", "d/e/g=4"];
        check(
            &[],
            &context,
            parents(&["d/e/g", "a.txt"], "/p/"),
            "p/ p/a.txt=1 p/d/@700 p/d/e/ p/d/e/g=4",
        );
        check(&[], &context, parents(&["./d/./e"], "/q/"), "q/ q/e/ q/e/f.txt=3 q/e/g=4");
        check(
            &[],
            &context,
            parents(&["d/**/*.txt"], "/r/"),
            "r/ r/d/@700 r/d/c.txt=2 r/d/e/ r/d/e/f.txt=3",
        );
        check(
            &[],
            &context,
            parents(&["*/e/"], "/s/"),
            "s/ s/d/@700 s/d/e/ s/d/e/f.txt=3 s/d/e/g=4",
        );
        check(&[], &context, parents(&["d/nothing"], "/s/"), "\"/d/nothing\": not found");
        check(&[], &context, parents(&["no*/x"], "/s/"), "s/");
        let linked = ["d/f=1", "l->d"];
        check(&[], &linked, parents(&["l/f"], "/s/"), "\"/l/f\": not found");
        check(&[], &linked, parents(&["l/./f"], "/s/"), "\"/l/f\": not found");
        check(&[], &linked, parents(&["l"], "/s/"), "s/ s/l->d");
    }

    #[test]
    fn excluded_paths_are_left_out() {
        let exclude = |patterns: &[&str], sources: &[&str]| CopyAction {
            exclude: patterns.iter().map(|&p| p.to_owned()).collect(),
            ..copy(sources, "/x/")
        };
        let context = ["a.txt=1", "d/c.txt=2", "d/e/f.txt=3", "d/e/g=4"];
        check(
            &[],
            &context,
            exclude(&["*.txt"], &["."]),
            "x/ x/d/ x/d/c.txt=2 x/d/e/ x/d/e/f.txt=3 x/d/e/g=4",
        );
        check(&[], &context, exclude(&["**/*.txt"], &["."]), "x/ x/d/ x/d/e/ x/d/e/g=4");
        check(&[], &context, exclude(&["e"], &["d"]), "x/ x/c.txt=2");
        check(&[], &context, exclude(&["e/*"], &["d"]), "x/ x/c.txt=2 x/e/");
        check(
            &[],
            &context,
            exclude(&["d", "!d/e/g"], &["."]),
            "x/ x/a.txt=1 x/d/ x/d/e/ x/d/e/g=4",
        );
        check(&[], &context, exclude(&["a.txt"], &["a.txt"]), "x/ x/a.txt=1");
    }

    #[test]
    fn attributes_of_users_are_lost_and_those_of_the_kernel_stay() {
        let Some(place) = Place::new(&["d/f=1"], &[]) else { return };
        let file = place.base.as_ref().unwrap().path().join("d/f");
        // Version 2, no capability at all: the shortest that the kernel takes.
        let capability = [1, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        let set = |name: &str, value: &[u8]| {
            rustix::fs::setxattr(&file, name, value, rustix::fs::XattrFlags::empty()).unwrap();
        };
        set("user.note", b"1");
        set("security.capability", &capability);
        let within = CopyAction { from: CopySource::Input(0), ..copy(&["d"], "/x") };
        place.run(vec![FileAction::Copy(within)]).unwrap();
        let entry = place.layer().lookup(Path::new("x/f")).unwrap().unwrap();
        let xattrs = place.layer().xattrs(&entry).unwrap();
        assert_eq!(xattrs, [(c"security.capability".to_owned(), capability.to_vec())]);
    }

    #[test]
    fn hard_links_stay_hard_links() {
        let Some(place) = Place::new(&["d/b=old"], &["d/a=1", "d/b*d/a", "d/e/c*d/a"]) else {
            return;
        };
        place.run(vec![FileAction::Copy(copy(&["d"], "/d"))]).unwrap();
        assert_eq!(show(&place.result()), "d/ d/a=1 d/b=1 d/e/ d/e/c=1");
        let inode =
            |path: &str| place.layer().lookup(Path::new(path)).unwrap().unwrap().metadata().inode;
        assert_eq!(inode("d/a"), inode("d/b"));
        assert_eq!(inode("d/a"), inode("d/e/c"));
    }

    #[test]
    fn actions_see_each_others_files() {
        let Some(place) = Place::new(&["l->real"], &["f=1", "d/g=2"]) else { return };
        let owner = Some(Owner { user: Name::Id(7), group: None });
        place
            .run(vec![
                FileAction::Mkdir(Mkdir {
                    path: "/l/w".into(),
                    mode: 0o755,
                    parents: true,
                    owner,
                    time: None,
                }),
                FileAction::Copy(copy(&["f"], "/l/w")),
                FileAction::WriteFile(WriteFile {
                    path: "/real/w/h".into(),
                    mode: 0o600,
                    owner: None,
                    data: b"3".into(),
                }),
                FileAction::Copy(copy(&["d/g"], "/real/w/f")),
            ])
            .unwrap();
        assert_eq!(show(&place.layer()), "real/@7:7 real/w/@7:7 real/w/f=2 real/w/h=3@600");
    }

    #[test]
    fn a_directory_that_exists_makes_an_empty_layer() {
        let Some(place) = Place::new(&["w@700"], &[]) else { return };
        let mkdir =
            Mkdir { path: "/w".into(), mode: 0o755, parents: true, owner: None, time: None };
        place.run(vec![FileAction::Mkdir(mkdir)]).unwrap();
        assert_eq!(show(&place.layer()), "");
    }

    #[test]
    fn times_stay_to_the_nanosecond_unless_given() {
        let Some(place) = Place::new(&[], &["d/f=1", "d/e/", "d/l->f"]) else { return };
        let old = rbuild_cache::metadata::Timestamp { seconds: 1_000_000_001, nanoseconds: 7 };
        let context = fs::File::open(place.context.path()).unwrap();
        for path in ["d/f", "d/l", "d/e", "d"] {
            rbuild_cache::metadata::set_modified_at(&context, path.as_ref(), old).unwrap();
        }
        place.run(vec![FileAction::Copy(copy(&["d"], "/p/x"))]).unwrap();
        let time = |path: &str| {
            place.layer().lookup(Path::new(path)).unwrap().unwrap().metadata().modified
        };
        for path in ["p/x", "p/x/f", "p/x/e", "p/x/l"] {
            assert_eq!(time(path), old, "{path}");
        }
        assert_ne!(time("p"), old);
        let times = CopyAction { times: Some(5), ..copy(&["d"], "/p/x") };
        place.run(vec![FileAction::Copy(times)]).unwrap_err();
    }

    /// As with overlayfs: only the directory that gets a new name changes.
    #[test]
    fn directories_on_the_way_keep_their_times() {
        let Some(place) = Place::new(&["a/b/c/"], &["f=1"]) else { return };
        let old = rbuild_cache::metadata::Timestamp { seconds: 1_000_000_001, nanoseconds: 7 };
        let base = fs::File::open(place.base.as_ref().unwrap().path()).unwrap();
        for path in ["a/b/c", "a/b", "a", "."] {
            rbuild_cache::metadata::set_modified_at(&base, path.as_ref(), old).unwrap();
        }
        place.run(vec![FileAction::Copy(copy(&["f"], "/a/b/c/"))]).unwrap();
        let time = |path: &str| {
            place.layer().lookup(Path::new(path)).unwrap().unwrap().metadata().modified
        };
        assert_eq!((time(""), time("a"), time("a/b")), (old, old, old));
        assert_ne!(time("a/b/c"), old);
    }

    #[test]
    fn given_times_are_those_of_everything_that_is_made() {
        let Some(place) = Place::new(&["old/"], &["d/f=1", "d/e/", "d/l->f"]) else { return };
        let times = CopyAction { times: Some(5), ..copy(&["d"], "/old/p/x") };
        place.run(vec![FileAction::Copy(times)]).unwrap();
        for path in ["old/p", "old/p/x", "old/p/x/f", "old/p/x/e", "old/p/x/l"] {
            let entry = place.layer().lookup(Path::new(path)).unwrap().unwrap();
            assert_eq!(entry.metadata().modified.seconds, 5, "{path}");
        }
    }

    #[test]
    fn special_files() {
        let Some(place) = Place::new(&[], &["d/"]) else { return };
        let at = |name: &str| place.context.path().join("d").join(name);
        let _socket = std::os::unix::net::UnixListener::bind(at("socket")).unwrap();
        let node = |name: &str, kind, device| {
            let mode = rustix::fs::Mode::from_raw_mode(0o640);
            rustix::fs::mknodat(rustix::fs::CWD, at(name), kind, mode, device).unwrap();
        };
        node("fifo", rustix::fs::FileType::Fifo, 0);
        node("null", rustix::fs::FileType::CharacterDevice, rustix::fs::makedev(1, 3));
        place.run(vec![FileAction::Copy(copy(&["d"], "/"))]).unwrap();
        assert_eq!(show(&place.layer()), "fifo:Fifo@640 null:CharDevice@640 socket=@755");
        node("gone", rustix::fs::FileType::CharacterDevice, 0);
        let again = Place::new(&[], &[]).unwrap();
        let plan = place.plan(vec![FileAction::Copy(copy(&["d"], "/"))]).unwrap();
        assert!(matches!(plan.execute(again.layer.path()), Err(FileError::Whiteout(_))));
    }

    #[test]
    fn ignored_files_are_not_found() {
        let Some(mut place) = Place::new(&[], &["a.txt=1", "d/b.txt=2", "d/c=3"]) else { return };
        place.ignore = vec!["**/*.txt".into()];
        let error = place.run(vec![FileAction::Copy(copy(&["a.txt"], "/"))]).unwrap_err();
        assert_eq!(error.to_string(), "\"/a.txt\": not found");
        assert!(matches!(error, FileError::Ignored(_)));
        place.run(vec![FileAction::Copy(copy(&["*.txt", "d"], "/x/"))]).unwrap();
        assert_eq!(show(&place.layer()), "x/ x/c=3");
    }

    #[test]
    fn inline_files() {
        let files = [("a".to_owned(), b"1".to_vec()), ("b".to_owned(), b"2".to_vec())];
        let inline = |to: &str| CopyAction {
            from: CopySource::Inline(files.clone().into()),
            ..copy(&["a", "b"], to)
        };
        check(&[], &[], inline("/x/"), "x/ x/a=1 x/b=2");
        check(&["x/"], &[], inline("/x"), "x/ x/a=1 x/b=2");
        check(&[], &[], inline("/x"), "x=2");
    }

    #[test]
    fn link_replaces_links_at_the_destination() {
        let link = |to: &str| CopyAction { replace_symlinks: true, ..copy(&["f"], to) };
        check(&[], &["f=1"], link("/x/y"), "x/ x/y=1");
        check(&["l->d", "d/"], &["f=1"], link("/l/"), "l/ l/f=1");
        check(&["l->d", "d/"], &["f=1"], copy(&["f"], "/l/"), "d/ d/f=1");
    }

    /// Equal checksums exactly where the copied files would be equal.
    #[test]
    fn the_checksum_is_of_what_is_read() {
        let sum = |context: &[&str], action: CopyAction| {
            let place = Place::new(&[], context)?;
            Some(place.plan(vec![FileAction::Copy(action)]).unwrap().checksum().unwrap())
        };
        let same = |a: (&[&str], CopyAction), b: (&[&str], CopyAction), expected| {
            assert_eq!(sum(a.0, a.1) == sum(b.0, b.1), expected);
        };
        let Some(_) = sum(&["f=1"], copy(&["f"], "/x")) else { return };
        let d = || copy(&["d"], "/x");
        same((&["d/f=1"], d()), (&["d/f=1", "g=2"], d()), true);
        same((&["d/f=1"], d()), (&["d/f=2"], d()), false);
        same((&["d/f=1"], d()), (&["d/g=1"], d()), false);
        same((&["d/f=1"], d()), (&["d/f=1@600"], d()), false);
        same((&["d/f=1"], d()), (&["e/f=1"], copy(&["e"], "/x")), true);
        same((&["d/f=1"], d()), (&["d/f=1", "d/e/"], d()), false);
        same((&["f=1"], copy(&["f"], "/x")), (&["g=1"], copy(&["g"], "/x")), false);
        same((&["d/f=1", "d/g=1"], d()), (&["d/f=1", "d/g*d/f"], d()), false);
        let moded = || CopyAction { mode: Some(ModeChange::Octal(0o600)), ..d() };
        same((&["d/f=1"], moded()), (&["d/f=1@600"], moded()), true);
        let excluding = || CopyAction { exclude: vec!["g".into()], ..d() };
        same((&["d/f=1", "d/g=1"], excluding()), (&["d/f=1", "d/g=2"], excluding()), true);
    }

    #[test]
    fn what_changed_since_it_was_hashed_is_not_copied() {
        let Some(place) = Place::new(&[], &["d/f=1"]) else { return };
        let plan = |place: &Place| place.plan(vec![FileAction::Copy(copy(&["d"], "/x"))]).unwrap();
        let changed = plan(&place);
        fs::write(place.context.path().join("d/f"), "2").unwrap();
        let error = changed.execute(place.layer.path()).unwrap_err();
        assert_eq!(error.to_string(), "`/d/f` changed during the build");
        let touched = plan(&place);
        let file = fs::File::options().append(true).open(place.context.path().join("d/f")).unwrap();
        rbuild_cache::metadata::set_modified(&file, rbuild_cache::metadata::Timestamp::default())
            .unwrap();
        let layer = Place::new(&[], &[]).unwrap();
        touched.execute(layer.layer.path()).unwrap();
        assert_eq!(show(&layer.layer()), "x/ x/f=2");
    }

    #[test]
    fn imports_keep_the_path() {
        let Some(place) = Place::new(&[], &["d@700", "d/e@750", "d/e/f=1", "l->d/e"]) else {
            return;
        };
        let check = |path: &str, expected: &str| {
            let other = Place::new(&[], &[]).unwrap();
            let plan = import(&place.source(), path, &place.state).unwrap();
            plan.execute(other.layer.path()).unwrap();
            assert_eq!(show(&other.layer()), expected, "{path}");
        };
        check("/", "d/@700 d/e/@750 d/e/f=1 l->d/e");
        check("/d/e", "d/ d/e/@750 d/e/f=1");
        check("l", "l/@750 l/f=1");
        check("/d/e/f", "d/ d/e/ d/e/f=1");
    }

    /// A tar of `dir/`, `file=bytes`, `link->target`, `name*other` (a hard link), each with a mode
    /// after `@`; all belong to 11:22.
    fn tar(entries: &[&str]) -> Vec<u8> {
        let mut tar = Vec::new();
        for line in entries {
            let (line, mode) = line.split_once('@').unwrap_or((line, ""));
            let mut header = tar::Header::new_ustar();
            let (name, kind, bytes) = if let Some((name, target)) = line.split_once("->") {
                header.as_ustar_mut().unwrap().linkname[..target.len()]
                    .copy_from_slice(target.as_bytes());
                (name, tar::EntryType::Symlink, "")
            } else if let Some((name, target)) = line.split_once('*') {
                header.as_ustar_mut().unwrap().linkname[..target.len()]
                    .copy_from_slice(target.as_bytes());
                (name, tar::EntryType::Link, "")
            } else if let Some((name, bytes)) = line.split_once('=') {
                (name, tar::EntryType::Regular, bytes)
            } else {
                (line, tar::EntryType::Directory, "")
            };
            header.as_ustar_mut().unwrap().name[..name.len()].copy_from_slice(name.as_bytes());
            header.set_entry_type(kind);
            let usual = if kind.is_dir() { 0o755 } else { 0o644 };
            header.set_mode(u32::from_str_radix(mode, 8).unwrap_or(usual));
            header.set_size(bytes.len() as u64);
            header.set_uid(11);
            header.set_gid(22);
            header.set_mtime(1_400_000_000);
            header.set_cksum();
            tar.extend(header.as_bytes());
            tar.extend(bytes.as_bytes());
            tar.resize(tar.len().next_multiple_of(512), 0);
        }
        tar.resize(tar.len() + 1024, 0);
        tar
    }

    fn unpacked(base: &[&str], entries: &[&str], to: &str) -> Option<String> {
        let place = Place::new(base, &[])?;
        fs::write(place.context.path().join("a.tar"), tar(entries)).unwrap();
        let add = CopyAction { unpack: true, ..copy(&["a.tar"], to) };
        Some(match place.run(vec![FileAction::Copy(add)]) {
            Ok(()) => show(&place.layer()).replace("@11:22", ""),
            Err(error) => error.to_string(),
        })
    }

    #[test]
    fn archives_are_unpacked() {
        let check = |base: &[&str], entries: &[&str], expected: &str| {
            if let Some(found) = unpacked(base, entries, "/x/") {
                assert_eq!(found, expected, "{entries:?} over {base:?}");
            }
        };
        check(
            &[],
            &["f=1", "d/@700", "d/g=2@4755", "l->f", "h*f"],
            "x/ x/d/@700 x/d/g=2@4755 x/f=1 x/h=1 x/l->f",
        );
        check(&[], &["p/q/f=1"], "x/ x/p/ x/p/q/ x/p/q/f=1");
        check(&["x/f=old"], &["f=1"], "x/ x/f=1");
        check(&["x/d/old=1"], &["d=file"], "x/ x/d=file");
        check(&["x/d->e", "x/e/"], &["d/"], "x/ x/d/");
        check(&["x/d->/e", "x/e/"], &["d/f=1"], "x/ x/e/ x/e/f=1");
        check(&["x/old=1@600"], &["h*old"], "x/ x/h=1 x/old=1");
        check(&["x/d/old=1"], &["d=file", "d/", "d/f=1"], "x/ x/d/ x/d/f=1");
        check(&[], &["./", "./f=1"], "x/ x/f=1");
        check(&["x@700"], &["=", "./@777", "f=1"], "x/@700 x/f=1");
        check(&[], &["f=1@600", "h*f@755"], "x/ x/f=1@755 x/h=1@755");
        check(&[], &[".wh.f=1"], "x/ x/.wh.f=1");
    }

    /// Whatever the archive says, everything ends up below the destination.
    #[test]
    fn archives_stay_where_they_are_unpacked() {
        let check = |base: &[&str], entries: &[&str], expected: &str| {
            if let Some(found) = unpacked(base, entries, "/x/") {
                assert_eq!(found, expected, "{entries:?} over {base:?}");
            }
        };
        check(&[], &["../../evil=1"], "x/ x/evil=1");
        check(&[], &["/abs=1"], "x/ x/abs=1");
        check(&[], &["l->/", "l/evil=1"], "x/ x/evil=1 x/l->/");
        check(&[], &["l->../..", "l/evil=1"], "x/ x/evil=1 x/l->../..");
        check(
            &[],
            &["a/", "a/l->..", "a/l/l2->..", "a/l/l2/evil=1"],
            "x/ x/a/ x/a/l->.. x/evil=1 x/l2->..",
        );
        check(
            &["secret=1"],
            &["h*../secret"],
            "cannot unpack the entry `h`: it is a hard link to what is not there",
        );
        check(&["secret=1"], &["l->/secret", "l=2"], "x/ x/l=2");
        check(&["secret=1"], &["l->../secret", "h*l", "h=2"], "x/ x/h=2 x/l->../secret");
        check(&[], &["l->l", "l/f=1"], "too many symbolic links in `/l`");
        check(&[], &["d/", "h*d"], "cannot unpack the entry `h`: it is a hard link to a directory");
        check(&[], &["f=1", "f/g=2"], "mkdir /x/f: not a directory");
        check(&["y/", "x->y"], &["f=1"], "y/ y/f=1");
    }

    #[test]
    fn what_is_no_archive_is_copied() {
        let Some(place) = Place::new(&[], &["a.tar=text", "empty.tar="]) else { return };
        let add = CopyAction { unpack: true, ..copy(&["*.tar"], "/x/") };
        place.run(vec![FileAction::Copy(add)]).unwrap();
        assert_eq!(show(&place.layer()), "x/ x/a.tar=text x/empty.tar=");
    }

    #[test]
    fn an_archive_cut_short_is_an_error() {
        let Some(place) = Place::new(&[], &[]) else { return };
        let whole = tar(&["a=1", "f=12345"]);
        fs::write(place.context.path().join("a.tar"), &whole[..1538]).unwrap();
        let add = CopyAction { unpack: true, ..copy(&["a.tar"], "/x/") };
        let error = place.run(vec![FileAction::Copy(add)]).unwrap_err();
        assert_eq!(error.to_string(), "cannot unpack `/a.tar`");
    }

    #[test]
    fn chown_is_for_archives_too_and_times_stay() {
        let Some(place) = Place::new(&[], &[]) else { return };
        fs::write(place.context.path().join("a.tar"), tar(&["d/", "d/f=1"])).unwrap();
        let add = CopyAction {
            unpack: true,
            owner: Some(Owner { user: Name::Id(5), group: None }),
            mode: Some(ModeChange::Octal(0o600)),
            ..copy(&["a.tar"], "/x/")
        };
        place.run(vec![FileAction::Copy(add)]).unwrap();
        assert_eq!(show(&place.layer()), "x/@5:5 x/d/@5:5 x/d/f=1@5:5");
        for path in ["x/d", "x/d/f"] {
            let entry = place.layer().lookup(Path::new(path)).unwrap().unwrap();
            assert_eq!(entry.metadata().modified.seconds, 1_400_000_000, "{path}");
        }
    }

    #[test]
    fn what_did_not_change_is_linked_from_the_last_result() {
        let names: Vec<String> = (0..60).map(|number| format!("d/f{number}={number}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let Some(place) = Place::new(&[], &names) else { return };
        fs::hard_link(place.context.path().join("d/f1"), place.context.path().join("d/same"))
            .unwrap();
        let commit = || {
            let plan = place.plan(vec![FileAction::Copy(copy(&["d"], "/x"))]).unwrap();
            let folder = place
                .state
                .snapshots()
                .folder(&plan.commit(&place.state, &Reads::default()).unwrap().id);
            View::layers(vec![folder])
        };
        let file = |view: &View, name: &str| {
            let path = Path::new("x").join(name);
            *view.lookup(&path).unwrap().unwrap().metadata()
        };
        let first = commit();
        fs::write(place.context.path().join("d/f2"), "changed").unwrap();
        let mode = PermissionsExt::from_mode(0o600);
        fs::set_permissions(place.context.path().join("d/f3"), mode).unwrap();
        let second = commit();
        for name in ["f0", "f4", "f59"] {
            assert_eq!(file(&first, name).inode, file(&second, name).inode, "{name}");
        }
        for name in ["f2", "f3", "f1", "same"] {
            assert_ne!(file(&first, name).inode, file(&second, name).inode, "{name}");
        }
        assert_eq!(file(&second, "f1").inode, file(&second, "same").inode);
        assert_eq!(file(&second, "f3").mode, 0o600);
        assert_eq!(file(&first, "f3").mode, 0o644);
        // What may be written to later has files of its own.
        let plan = place.plan(vec![FileAction::Copy(copy(&["d"], "/x"))]).unwrap();
        plan.execute(place.layer.path()).unwrap();
        assert_ne!(file(&place.layer(), "f0").inode, file(&second, "f0").inode);
    }

    /// Folders, files and names of the context that somebody swaps for links to elsewhere all the
    /// while: whatever comes of a build, nothing from elsewhere is in it.
    #[test]
    fn a_racing_swap_of_the_context_leaks_nothing() {
        use std::sync::atomic::{AtomicBool, Ordering};
        let outside = make(&["f=secret", "g=secret"]);
        let Some(place) = Place::new(&[], &["d/e/f=public", "d/e/g=public", "file=public"]) else {
            return;
        };
        symlink(outside.path(), place.context.path().join("d/link")).unwrap();
        symlink(outside.path().join("f"), place.context.path().join("file-link")).unwrap();
        let context = fs::File::open(place.context.path()).unwrap();
        let done = AtomicBool::new(false);
        let (mut copied, mut refused) = (0, 0);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let exchange = |a: &str, b: &str| {
                    let flags = rustix::fs::RenameFlags::EXCHANGE;
                    rustix::fs::renameat_with(&context, a, &context, b, flags).unwrap();
                };
                while !done.load(Ordering::Relaxed) {
                    exchange("d/e", "d/link");
                    exchange("file", "file-link");
                }
            });
            let sources: [&[&str]; 5] =
                [&["."], &["d/e"], &["d/e/*"], &["d/e/f", "d/e/g"], &["file", "d"]];
            for number in 0..200 {
                let layer = tempfile::tempdir().unwrap();
                let action = CopyAction {
                    parents: number % 7 == 0 && sources[number % 5] != ["."],
                    ..copy(sources[number % 5], "/x/")
                };
                let result = place
                    .plan(vec![FileAction::Copy(action)])
                    .and_then(|plan| plan.execute(layer.path()));
                match result {
                    Ok(()) => copied += 1,
                    Err(_) => refused += 1,
                }
                let shown = show(&View::layers(vec![layer.path().to_owned()]));
                assert!(!shown.contains("secret"), "{shown}");
            }
            done.store(true, Ordering::Relaxed);
        });
        assert!(copied > 0, "{refused} refused");
    }
}
