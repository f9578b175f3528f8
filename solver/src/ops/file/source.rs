//! The trees that files are copied from, and what their files are known to hash to.

use std::path::Path;
use std::sync::Arc;

use rbuild_cache::checksum::{self, FileMemo};
use rbuild_cache::digest::Digest;
use rbuild_cache::pattern::PatternMatcher;
use rbuild_cache::state::StateFolder;
use rbuild_cache::view::View;

use super::FileError;
use super::select::Selection;
use super::walks::{Asked, Walks};
use crate::graph::CopyAction;
use crate::tree::Folder;

/// A tree that files are copied from.
#[derive(Clone, Debug)]
pub struct SourceTree {
    pub(super) view: View,
    /// The name of the context, for its memo of digests; none for trees of the state folder.
    pub(super) context: Option<String>,
    /// What there is besides, but ignored.
    ignored: Option<View>,
    /// Where others find what was found here, with what the context is called there.
    walks: Option<(Arc<Walks>, Folder)>,
}

impl SourceTree {
    /// A tree of the state folder.
    pub fn tree(view: View) -> Self {
        Self { view, context: None, ignored: None, walks: None }
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
            walks: None,
        })
    }

    /// The same of which each file is looked at once by all that have `walks`.
    #[must_use]
    pub fn shared(self, folder: &Folder, walks: &Arc<Walks>) -> Self {
        Self { walks: Some((Arc::clone(walks), folder.clone())), ..self }
    }

    /// What `look` finds for `source` of `copy`, or found before.
    pub(super) fn copied(
        &self,
        source: &str,
        copy: &CopyAction,
        look: impl FnOnce() -> Result<Vec<Selection>, FileError>,
    ) -> Result<Vec<Selection>, FileError> {
        let Some((walks, folder)) = &self.walks else { return look() };
        walks.look(&Asked::copied(&folder.name, &folder.ignore, source, copy), look)
    }

    /// What `look` finds at `path`, a clean one, or found before.
    pub(super) fn mounted(
        &self,
        path: &str,
        look: impl FnOnce() -> Result<Vec<Selection>, FileError>,
    ) -> Result<Vec<Selection>, FileError> {
        let Some((walks, folder)) = &self.walks else { return look() };
        walks.look(&Asked::mounted(&folder.name, &folder.ignore, path), look)
    }

    /// `error`, or that the source which was not found is there, but ignored.
    pub(super) fn explained(&self, error: FileError) -> FileError {
        match (&self.ignored, error) {
            (Some(all), FileError::NotFound(path))
                if all.lookup(Path::new(&path)).is_ok_and(|entry| entry.is_some()) =>
            {
                FileError::Ignored(path)
            }
            (_, error) => error,
        }
    }

    fn memo(&self, state: &StateFolder) -> Result<Arc<FileMemo>, FileError> {
        let Some(context) = &self.context else { return Ok(Arc::new(FileMemo::none())) };
        state.file_memo(context).map_err(FileError::State)
    }
}

/// The checksum of all that is at `path` of `source`, a tree of the state folder, without times.
pub fn checksum(source: &SourceTree, path: &str) -> Result<Digest, FileError> {
    Ok(checksum::of_path(&source.view, Path::new(path), &FileMemo::none())?)
}

/// The memos of the contexts that an op reads, each opened once.
pub(super) struct Memos<'a> {
    pub(super) state: &'a StateFolder,
    open: Vec<(Option<String>, Arc<FileMemo>)>,
}

impl<'a> Memos<'a> {
    pub(super) fn new(state: &'a StateFolder) -> Self {
        Self { state, open: Vec::new() }
    }

    pub(super) fn of(&mut self, source: &SourceTree) -> Result<Arc<FileMemo>, FileError> {
        if let Some((_, memo)) = self.open.iter().find(|(context, _)| *context == source.context) {
            return Ok(Arc::clone(memo));
        }
        let memo = source.memo(self.state)?;
        self.open.push((source.context.clone(), Arc::clone(&memo)));
        Ok(memo)
    }

    /// What was learned by them.
    pub(super) fn learned(self) -> Learned {
        Learned(self.open.into_iter().map(|(_, memo)| memo).collect())
    }
}

/// What a plan learned of the files of contexts, for later builds.
#[derive(Debug, Default)]
pub(super) struct Learned(Vec<Arc<FileMemo>>);

impl Learned {
    /// Writes it down.
    pub(super) fn save(&self) {
        self.0.iter().for_each(|memo| save(memo));
    }

    /// Whether there is anything to write down.
    pub(super) fn has_news(&self) -> bool {
        self.0.iter().any(|memo| memo.has_news())
    }

    /// Writes it down while `work` is done.
    pub(super) fn save_beside<T>(&self, work: impl FnOnce() -> T) -> T {
        if !self.has_news() {
            return work();
        }
        std::thread::scope(|scope| {
            scope.spawn(|| self.save());
            work()
        })
    }
}

/// A memo that cannot be saved costs time in the next build, no more.
fn save(memo: &FileMemo) {
    if let Err(error) = memo.save() {
        tracing::warn!(%error, "cannot remember what files hashed to");
    }
}
