//! Which files of a source a COPY means: wildcards, `--parents`, `--exclude`.
//!
//! Follows BuildKit's copier (tonistiigi/fsutil, copy/copy.go) in what it selects, and its content
//! hash (cache/contenthash) in the errors: both look at every path, there one after the other, here
//! once.

use std::collections::HashMap;
use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rayon::prelude::*;
use rbuild_cache::checksum::FileMemo;
use rbuild_cache::digest::Digest;
use rbuild_cache::limits::{Exceeded, Limit, Limits, depth};
use rbuild_cache::metadata::{FileType, Metadata, Xattrs};
use rbuild_cache::pattern::{self, ParentMatches, PatternMatcher};
use rbuild_cache::view::{Entry, View};

use super::FileError;

/// What of a tree is copied to one place.
#[derive(Debug)]
pub(super) struct Selection {
    pub(super) view: View,
    /// What the source is called: its name at the destination unless it is a directory.
    pub(super) name: OsString,
    /// The source itself first, with an empty path; each directory before what is in it.
    pub(super) items: Vec<Item>,
}

/// Something to copy.
#[derive(Debug)]
pub(super) struct Item {
    /// Relative to the source.
    pub(super) path: PathBuf,
    pub(super) entry: Entry,
    /// As it was when its bytes were hashed.
    pub(super) metadata: Metadata,
    pub(super) content: Content,
    pub(super) xattrs: Xattrs,
    /// It has attributes that are lost.
    pub(super) loses_xattrs: bool,
    /// An earlier item that is the same file.
    pub(super) same_as: Option<usize>,
    /// Another item is the same file.
    pub(super) has_twin: bool,
}

/// What an [`Item`] holds.
#[derive(Debug)]
pub(super) enum Content {
    /// A directory that is copied itself.
    Directory,
    /// A directory that is only on the way to something that is copied.
    Parent,
    File(Digest),
    Symlink(PathBuf),
    /// A device, a FIFO or a socket.
    Special,
}

/// How sources are read.
#[derive(Debug)]
pub(super) struct Options {
    pub(super) exclude: PatternMatcher,
    pub(super) parents: bool,
    /// Wildcards mean something, and a link in the last place is followed. Not so for sources that
    /// are no paths of the user's (files by http, git repositories).
    pub(super) wildcards: bool,
}

/// A source that was found.
pub(super) struct Match {
    pub(super) root: Entry,
    pub(super) name: OsString,
    include: Option<PatternMatcher>,
}

/// The places in `view` that `source` names, sorted. A pattern may match none.
///
/// # Errors
/// [`FileError::NotFound`] when a path without wildcards does not exist.
pub(super) fn matches(
    view: &View,
    source: &str,
    options: &Options,
) -> Result<Vec<Match>, FileError> {
    let (source, include) = if options.parents {
        let (parent, pattern) = source.split_once("/./").unwrap_or(("/", source));
        let pattern = pattern::clean(&format!("/{pattern}"));
        let pattern = pattern.trim_start_matches('/').to_owned();
        (parent.to_owned(), Some(pattern))
    } else {
        (source.to_owned(), None)
    };
    let source = pattern::clean(&format!("/{source}"));
    let required = include.as_ref().and_then(|include| {
        let path = pattern::clean(&format!("{source}/{include}"));
        (!pattern::has_wildcards(&path)).then_some(path)
    });
    let include = include.map(|include| PatternMatcher::new([include])).transpose()?;
    let (before, wildcards) =
        if options.wildcards { pattern::split_wildcards(&source) } else { (source, String::new()) };
    let resolved = if options.wildcards {
        view.resolve(Path::new(&before))?
    } else {
        view.resolve_parent(Path::new(&before))?
    };
    let Some(root) = resolved.entry else { return Err(FileError::NotFound(before)) };
    if let Some(required) = required {
        // What keeps its path is looked for along that path: no link on it is followed.
        let found = view.resolve_parent(Path::new(&required))?;
        if found.entry.is_none() || found.path != Path::new(required.trim_start_matches('/')) {
            return Err(FileError::NotFound(required));
        }
    }
    if wildcards.is_empty() {
        let name = Path::new(&before).file_name().unwrap_or_default().to_owned();
        return Ok(vec![Match { root, name, include }]);
    }
    // A pattern that makes no sense is an error also where nothing is there to match.
    pattern::glob_match(&wildcards, "")?;
    let mut found = Vec::new();
    let parts: Vec<&str> = wildcards.split('/').collect();
    expand(view, &root, &parts, &mut found)?;
    let mut matches = Vec::with_capacity(found.len());
    for entry in found {
        let name = entry.name().to_owned();
        let path = entry.absolute_path();
        let Some(root) = view.resolve(&path)?.entry else {
            return Err(FileError::NotFound(path.display().to_string()));
        };
        matches.push(Match { root, name, include: include.clone() });
    }
    Ok(matches)
}

/// What is below `directory` and matches `parts`, one for each component. Links in the middle are
/// not followed.
fn expand(
    view: &View,
    directory: &Entry,
    parts: &[&str],
    found: &mut Vec<Entry>,
) -> Result<(), FileError> {
    let (part, rest) = parts.split_first().expect("there is at least one component");
    for child in view.children(directory)? {
        if !pattern::glob_match(part, &child.name().to_string_lossy())? {
            continue;
        }
        if rest.is_empty() {
            found.push(child);
        } else {
            expand(view, &child, rest, found)?;
        }
    }
    Ok(())
}

/// Looks at everything that is copied of `found`, reads the bytes of what `memo` does not know, and
/// notes which files are one. `limits` are those of contexts, for one.
pub(super) fn select(
    view: &View,
    found: Match,
    exclude: &PatternMatcher,
    memo: &FileMemo,
    limits: Option<&Limits>,
) -> Result<Selection, FileError> {
    let room = limits.map(Room::new);
    let filter = Filter { include: found.include.as_ref(), exclude, room: room.as_ref() };
    let said = Said::default();
    filter.take_in(Path::new(""), &found.root)?;
    let walk = Walk { view, memo, filter };
    let mut pieces = Vec::new();
    if found.root.metadata().is_directory() {
        pieces = walk.below(Path::new(""), &found.root, &said)?;
    }
    let mut items = Vec::with_capacity(1 + pieces.iter().map(Vec::len).sum::<usize>());
    items.push(walk.item(PathBuf::new(), found.root.clone(), false)?);
    for piece in pieces {
        items.extend(piece);
    }
    note_hard_links(&mut items);
    Ok(Selection { view: view.clone(), name: found.name, items })
}

/// Two names are one file only inside one layer: the store may keep equal files of several layers
/// as one.
fn note_hard_links(items: &mut [Item]) {
    let mut first = HashMap::new();
    for index in 0..items.len() {
        let item = &mut items[index];
        if item.metadata.is_file() && item.metadata.links > 1 {
            let file = (item.entry.layer(), item.metadata.file_system, item.metadata.inode);
            let first = *first.entry(file).or_insert(index);
            if first != index {
                item.same_as = Some(first);
                item.has_twin = true;
                items[first].has_twin = true;
            }
        }
    }
}

/// `--parents` and `--exclude`.
struct Filter<'a> {
    include: Option<&'a PatternMatcher>,
    exclude: &'a PatternMatcher,
    room: Option<&'a Room<'a>>,
}

/// How much has been found of a context so far.
struct Room<'a> {
    limits: &'a Limits,
    files: AtomicU64,
    bytes: AtomicU64,
}

impl<'a> Room<'a> {
    fn new(limits: &'a Limits) -> Self {
        Self { limits, files: AtomicU64::new(0), bytes: AtomicU64::new(0) }
    }

    fn take_in(&self, path: &Path, metadata: &Metadata) -> Result<(), Exceeded> {
        let add = |to: &AtomicU64, more| to.fetch_add(more, Ordering::Relaxed) + more;
        self.limits.check(Limit::PathDepth, depth(path.as_os_str().as_bytes()))?;
        self.limits.check(Limit::ContextFiles, add(&self.files, 1))?;
        let size = if metadata.is_file() { metadata.size } else { 0 };
        self.limits.check(Limit::ContextSize, add(&self.bytes, size))
    }
}

/// What the patterns said about a directory.
#[derive(Clone, Default)]
struct Said {
    include: ParentMatches,
    exclude: ParentMatches,
}

impl Filter<'_> {
    /// Counts what is looked at: a directory also if nothing of it is copied in the end.
    fn take_in(&self, path: &Path, entry: &Entry) -> Result<(), FileError> {
        let taken = self.room.map(|room| room.take_in(path, entry.metadata()));
        taken.transpose().map(|_| ()).map_err(FileError::Context)
    }

    /// Whether what is at `path` is copied; `None` where nothing below it is, either.
    fn matches(&self, path: &Path, entry: &Entry, said: &Said) -> Option<(Matched, Said)> {
        let mut below = Said::default();
        if self.include.is_none() && self.exclude.patterns().is_empty() {
            return Some((Matched::Copied, below));
        }
        let directory = entry.metadata().is_directory();
        let mut included = true;
        let name = String::from_utf8_lossy(path.as_os_str().as_bytes()).into_owned();
        if let Some(include) = self.include {
            (included, below.include) = include.matches(&name, &said.include);
            let enter = directory && include.may_match_below(&name);
            if !included && !enter {
                return None;
            }
        }
        let excluded;
        (excluded, below.exclude) = self.exclude.matches(&name, &said.exclude);
        let enter = directory && !self.exclude.covers(&name);
        if excluded && !enter {
            return None;
        }
        let matched = if included && !excluded { Matched::Copied } else { Matched::OnTheWay };
        Some((matched, below))
    }
}

/// What the patterns say of a path.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Matched {
    /// It is copied.
    Copied,
    /// It is a directory that is only on the way to what is copied, if anything is.
    OnTheWay,
}

/// Looks at a tree: directories side by side, and what is in a large one as well.
struct Walk<'a> {
    view: &'a View,
    memo: &'a FileMemo,
    filter: Filter<'a>,
}

/// What was found of one directory or of a part of it, in order: the parts are put together only
/// once, at the end.
type Pieces = Vec<Vec<Item>>;

impl Walk<'_> {
    /// What is copied of the content of `directory`.
    fn below(&self, path: &Path, directory: &Entry, said: &Said) -> Result<Pieces, FileError> {
        let children = self.view.children(directory)?;
        let found: Vec<Result<Found, FileError>> = children
            .into_par_iter()
            .with_min_len(TOGETHER)
            .map(|child| self.one(path.join(child.name()), child, said))
            .collect();
        let mut pieces: Pieces = vec![Vec::with_capacity(found.len())];
        for found in found {
            let Found { item, below } = found?;
            pieces.last_mut().expect("there is one").extend(item);
            if !below.is_empty() {
                pieces.extend(below);
                pieces.push(Vec::new());
            }
        }
        Ok(pieces)
    }

    fn one(&self, path: PathBuf, entry: Entry, said: &Said) -> Result<Found, FileError> {
        let Some((matched, below)) = self.filter.matches(&path, &entry, said) else {
            return Ok(Found::default());
        };
        self.filter.take_in(&path, &entry)?;
        if !entry.metadata().is_directory() {
            let item = Some(self.item(path, entry, false)?);
            return Ok(Found { item, ..Found::default() });
        }
        let below = self.below(&path, &entry, &below)?;
        let parent = matched == Matched::OnTheWay;
        if parent && below.iter().all(Vec::is_empty) {
            return Ok(Found::default());
        }
        Ok(Found { item: Some(self.item(path, entry, parent)?), below })
    }

    fn item(&self, path: PathBuf, entry: Entry, parent: bool) -> Result<Item, FileError> {
        let mut metadata = *entry.metadata();
        let content = match metadata.file_type {
            FileType::Directory if parent => Content::Parent,
            FileType::Directory => Content::Directory,
            FileType::File => {
                let (digest, read) = self.memo.digest(self.view, &entry)?;
                metadata = read;
                Content::File(digest)
            }
            FileType::Symlink => Content::Symlink(self.view.read_link(&entry)?),
            FileType::CharDevice | FileType::BlockDevice | FileType::Fifo | FileType::Socket => {
                Content::Special
            }
        };
        // What users note on their files is lost, as in BuildKit; what the kernel goes by is not.
        let mut xattrs = self.view.xattrs(&entry)?;
        let all = xattrs.len();
        xattrs.retain(|(name, _)| !name.to_bytes().starts_with(b"user."));
        let loses_xattrs = xattrs.len() < all;
        Ok(Item {
            path,
            entry,
            metadata,
            content,
            xattrs,
            loses_xattrs,
            same_as: None,
            has_twin: false,
        })
    }
}

/// What there is to copy at a path, and below it.
#[derive(Default)]
struct Found {
    item: Option<Item>,
    below: Pieces,
}

/// So many files of a directory are looked at by one thread at least; each may be large.
const TOGETHER: usize = 4;
