//! Which files of a source a COPY means: wildcards, `--parents`, `--exclude`.
//!
//! Follows BuildKit's copier (tonistiigi/fsutil, copy/copy.go) in what it selects, and its content
//! hash (cache/contenthash) in the errors: both look at every path, there one after the other, here
//! once.

use std::collections::{HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rayon::prelude::*;
use rbuild_cache::checksum::FileMemo;
use rbuild_cache::digest::Digest;
use rbuild_cache::limits::{Exceeded, Limit, Limits, depth};
use rbuild_cache::metadata::{FileType, Metadata, Xattrs};
use rbuild_cache::pattern::{self, ParentMatches, PatternMatcher};
use rbuild_cache::view::{Entry, View};

use super::FileError;

/// What of a tree is copied to one place. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Selection {
    pub(super) view: View,
    /// What the source is called: its name at the destination unless it is a directory.
    pub(super) name: OsString,
    /// The source itself first, with an empty path; each directory before what is in it. In pieces as
    /// they were found: of a large context, putting them together would cost as much as finding them.
    pieces: Arc<Pieces>,
}

impl Selection {
    /// The source itself.
    pub(super) fn root(&self) -> &Item {
        &self.pieces[0][0]
    }

    /// The source itself first, with an empty path; each directory before what is in it.
    pub(super) fn items(&self) -> impl Iterator<Item = &Item> {
        self.pieces.iter().flatten()
    }

    /// [`Selection::items`], to be taken by their numbers.
    pub(super) fn numbered(&self) -> Vec<&Item> {
        let mut all = Vec::with_capacity(self.number());
        all.extend(self.items());
        all
    }

    /// How many [`Selection::items`] there are.
    pub(super) fn number(&self) -> usize {
        self.pieces.iter().map(Vec::len).sum()
    }
}

/// Something to copy.
#[derive(Debug)]
pub(super) struct Item {
    /// Its metadata are those of when its bytes were hashed.
    pub(super) entry: Entry,
    /// How many bytes of the entry's path lead to the source.
    to_source: usize,
    pub(super) content: Content,
    pub(super) xattrs: Xattrs,
    /// It has attributes that are lost.
    pub(super) loses_xattrs: bool,
    /// The number of an earlier item that is the same file.
    pub(super) same_as: Option<usize>,
    /// Another item is the same file.
    pub(super) has_twin: bool,
}

impl Item {
    /// A file that is copied by itself.
    pub(super) fn alone(entry: Entry, content: Content, xattrs: Xattrs) -> Self {
        let to_source = entry.path().as_os_str().len();
        let (same_as, has_twin, loses_xattrs) = (None, false, false);
        Self { entry, to_source, content, xattrs, loses_xattrs, same_as, has_twin }
    }

    /// Relative to the source.
    pub(super) fn path(&self) -> &Path {
        relative(&self.entry, self.to_source)
    }

    fn be_read(&mut self, digest: Digest, metadata: Metadata) {
        self.content = Content::File(digest);
        self.entry.set_metadata(metadata);
    }

    /// As it was when its bytes were hashed.
    pub(super) fn metadata(&self) -> &Metadata {
        self.entry.metadata()
    }
}

/// The path of `entry` without its first `length` bytes, which lead to a directory above it.
fn relative(entry: &Entry, length: usize) -> &Path {
    let rest = &entry.path().as_os_str().as_bytes()[length..];
    Path::new(OsStr::from_bytes(rest.strip_prefix(b"/").unwrap_or(rest)))
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
    let mut taken = Taken::default();
    filter.check_depth(Path::new(""))?;
    taken.add(found.root.metadata());
    filter.take_in(taken)?;
    let to_source = found.root.path().as_os_str().len();
    let walk = Walk { view, memo, filter, to_source };
    let (mut source, seen) = walk.look(found.root, Matched::Copied)?;
    if seen == Seen::Unread {
        let (digest, metadata) = memo.digest(view, &source.entry)?;
        source.be_read(digest, metadata);
    }
    let mut pieces = Vec::new();
    if source.metadata().is_directory() {
        pieces = walk.below(&source.entry, &said)?;
    }
    pieces.insert(0, vec![source]);
    note_hard_links(&mut pieces);
    Ok(Selection { view: view.clone(), name: found.name, pieces: Arc::new(pieces) })
}

/// Two names are one file only inside one layer: the store may keep equal files of several layers
/// as one.
fn note_hard_links(pieces: &mut Pieces) {
    let mut first = HashMap::new();
    let mut twins = HashSet::new();
    for (number, item) in pieces.iter_mut().flatten().enumerate() {
        let metadata = item.metadata();
        if metadata.is_file() && metadata.links > 1 {
            let file = (item.entry.layer(), metadata.file_system, metadata.inode);
            let first = *first.entry(file).or_insert(number);
            if first != number {
                item.same_as = Some(first);
                item.has_twin = true;
                twins.insert(first);
            }
        }
    }
    if !twins.is_empty() {
        for (number, item) in pieces.iter_mut().flatten().enumerate() {
            item.has_twin |= twins.contains(&number);
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

    fn take_in(&self, taken: Taken) -> Result<(), Exceeded> {
        let add = |to: &AtomicU64, more| to.fetch_add(more, Ordering::Relaxed) + more;
        self.limits.check(Limit::ContextFiles, add(&self.files, taken.files))?;
        self.limits.check(Limit::ContextSize, add(&self.bytes, taken.bytes))
    }
}

/// Some of what was found. It is counted by the thread that found it and then added to what all of
/// them found: adding each file by itself would have them wait for each other.
#[derive(Clone, Copy, Default)]
struct Taken {
    files: u64,
    bytes: u64,
}

impl Taken {
    fn add(&mut self, metadata: &Metadata) {
        self.files += 1;
        self.bytes += if metadata.is_file() { metadata.size } else { 0 };
    }
}

/// What the patterns said about a directory.
#[derive(Clone, Default)]
struct Said {
    include: ParentMatches,
    exclude: ParentMatches,
}

impl Filter<'_> {
    fn check_depth(&self, path: &Path) -> Result<(), FileError> {
        let Some(room) = self.room else { return Ok(()) };
        let depth = depth(path.as_os_str().as_bytes());
        room.limits.check(Limit::PathDepth, depth).map_err(FileError::Context)
    }

    /// Counts what is looked at: a directory also if nothing of it is copied in the end.
    fn take_in(&self, taken: Taken) -> Result<(), FileError> {
        let Some(room) = self.room else { return Ok(()) };
        room.take_in(taken).map_err(FileError::Context)
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
    /// How many bytes of an entry's path lead to the source.
    to_source: usize,
}

/// What was found of one directory or of a part of it, in order: parts are never put together.
type Pieces = Vec<Vec<Item>>;

/// A directory that is looked into.
struct Inside {
    /// Its number among those beside it.
    number: usize,
    matched: Matched,
    /// What the patterns say about what is in it.
    said: Said,
}

impl Walk<'_> {
    /// What is copied of the content of `directory`.
    fn below(&self, directory: &Entry, said: &Said) -> Result<Pieces, FileError> {
        let children = self.view.children(directory)?;
        if children.len() <= TOGETHER {
            return self.beside(children, said);
        }
        let mut children = children.into_iter();
        let mut parts: Vec<Vec<Entry>> = Vec::with_capacity(children.len() / TOGETHER + 1);
        while children.len() > 0 {
            parts.push(children.by_ref().take(TOGETHER).collect());
        }
        let found: Vec<Pieces> =
            parts.into_par_iter().map(|part| self.beside(part, said)).collect::<Result<_, _>>()?;
        Ok(found.into_iter().flatten().collect())
    }

    /// What is copied of `entries`, some of a directory's, and below them.
    fn beside(&self, entries: Vec<Entry>, said: &Said) -> Result<Pieces, FileError> {
        let mut items = Vec::with_capacity(entries.len());
        let (mut unread, mut inside) = (Vec::new(), Vec::new());
        let mut taken = Taken::default();
        for entry in entries {
            let path = relative(&entry, self.to_source);
            let Some((matched, below)) = self.filter.matches(path, &entry, said) else { continue };
            self.filter.check_depth(path)?;
            taken.add(entry.metadata());
            let number = items.len();
            if entry.metadata().is_directory() {
                inside.push(Inside { number, matched, said: below });
            }
            let (item, seen) = self.look(entry, matched)?;
            items.push(item);
            if seen == Seen::Unread {
                unread.push(number);
            }
        }
        self.filter.take_in(taken)?;
        // For little, waking a second thread costs more than it does.
        let (read, below) = if inside.is_empty() || unread.is_empty() {
            (self.read(&items, &unread), self.below_each(&items, &inside))
        } else {
            rayon::join(|| self.read(&items, &unread), || self.below_each(&items, &inside))
        };
        for (number, (digest, metadata)) in unread.into_iter().zip(read?) {
            items[number].be_read(digest, metadata);
        }
        Ok(put_between(items, inside.into_iter().zip(below?)))
    }

    /// The bytes of those of `items` that are `unread`: each may be large.
    fn read(&self, items: &[Item], unread: &[usize]) -> Result<Vec<(Digest, Metadata)>, FileError> {
        let read = |number: &usize| Ok(self.memo.digest(self.view, &items[*number].entry)?);
        match unread {
            [] | [_] => unread.iter().map(read).collect(),
            unread => unread.par_iter().map(read).collect(),
        }
    }

    fn below_each(&self, items: &[Item], inside: &[Inside]) -> Result<Vec<Pieces>, FileError> {
        let below = |inside: &Inside| self.below(&items[inside.number].entry, &inside.said);
        match inside {
            [] | [_] => inside.iter().map(below).collect(),
            inside => inside.par_iter().map(below).collect(),
        }
    }

    /// What `entry` is; of a file that is not known, all but its bytes.
    fn look(&self, entry: Entry, matched: Matched) -> Result<(Item, Seen), FileError> {
        let mut seen = Seen::All;
        let content = match entry.metadata().file_type {
            FileType::Directory if matched == Matched::OnTheWay => Content::Parent,
            FileType::Directory => Content::Directory,
            FileType::File => {
                let known = self.memo.known(entry.metadata());
                if known.is_none() {
                    seen = Seen::Unread;
                }
                Content::File(known.unwrap_or(Digest::from_bytes([0; 32])))
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
        let to_source = self.to_source;
        let (same_as, has_twin) = (None, false);
        let item = Item { entry, to_source, content, xattrs, loses_xattrs, same_as, has_twin };
        Ok((item, seen))
    }
}

/// How much of a file was looked at.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Seen {
    All,
    /// Its bytes are yet to be read.
    Unread,
}

/// Puts what is below directories behind them, and leaves out those that are only on the way to
/// nothing.
fn put_between(items: Vec<Item>, below: impl Iterator<Item = (Inside, Pieces)>) -> Pieces {
    let mut below = below.peekable();
    if below.peek().is_none() {
        return vec![items];
    }
    let mut pieces: Pieces = vec![Vec::new()];
    for (number, item) in items.into_iter().enumerate() {
        let inside = below.next_if(|(directory, _)| directory.number == number);
        if inside.as_ref().is_some_and(|(directory, below)| {
            directory.matched == Matched::OnTheWay && below.iter().all(Vec::is_empty)
        }) {
            continue;
        }
        pieces.last_mut().expect("there is one").push(item);
        if let Some((_, below)) = inside {
            pieces.extend(below);
            pieces.push(Vec::new());
        }
    }
    pieces
}

/// So many files of a directory are looked at by one thread.
const TOGETHER: usize = 256;
