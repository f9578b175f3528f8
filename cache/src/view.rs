//! A read-only look at a tree, in this process, without mounting anything: layer folders merged as
//! overlayfs would merge them, or a plain folder of the caller's with what `.dockerignore` leaves
//! of it.
//!
//! Nothing outside the tree can be seen through a view. Symbolic links are followed component by
//! component, inside the tree, as if it were the root of a machine; the kernel is never asked to
//! follow one. Layer folders don't change and belong to rbuild, so a path in which no component is
//! a link stays one. A caller's folder may change at any moment: there every name is asked for in
//! an opened folder, and folders are opened with `openat2` and no links allowed, so that swapping
//! one for a link to elsewhere ends in an error.
//!
//! What the caller's folder loses on its way into a build is lost here: owners (all becomes 0:0)
//! and extended attributes, which BuildKit's context transfer drops too.

mod root;
mod walk;

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rayon::prelude::*;
use rustix::fs::{AtFlags, OFlags};
use rustix::io::Errno;

pub use self::root::open_beneath;
use self::root::{Root, read_names};
pub use self::walk::Resolved;

use crate::metadata::{self, FileType, Metadata, Xattrs};
use crate::pattern::{ParentMatches, PatternMatcher};

/// Names in one directory from which on several threads look at them.
const WORTH_SHARING: usize = 1024;

/// Says why a tree could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ViewError {
    /// The system refused.
    #[error("cannot read `{}`", path.display())]
    Io {
        /// The path, in the tree; or of the tree's own folder.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A path leads through more than 40 links, or in a circle.
    #[error("too many symbolic links in `{}`", .0.display())]
    TooManyLinks(PathBuf),
    /// Something that was a regular file is none any more.
    #[error("`{}` is not a regular file", .0.display())]
    NotAFile(PathBuf),
}

/// A tree to look at. Cheap to clone.
#[derive(Clone, Debug)]
pub struct View {
    /// Highest first.
    roots: Arc<[Arc<Root>]>,
    kind: Kind,
}

#[derive(Clone, Debug)]
enum Kind {
    Layers,
    Folder { ignore: Arc<PatternMatcher> },
}

/// Something in a tree, as it was when it was looked up.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Relative to the root, without links, `.` and `..`; empty for the root.
    path: PathBuf,
    /// The layer that shows it.
    layer: usize,
    /// Further layers, for a directory: those whose content shows through, highest first.
    below: Vec<usize>,
    metadata: Metadata,
    said: ParentMatches,
}

impl Entry {
    /// Its path, relative to the root; no component is a link. Empty for the root.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its path as people write it: from `/`.
    pub fn absolute_path(&self) -> PathBuf {
        Path::new("/").join(&self.path)
    }

    /// The last component of its path; empty for the root.
    pub fn name(&self) -> &OsStr {
        self.path.file_name().unwrap_or_default()
    }

    /// What it is besides its bytes.
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// Takes `metadata` for what it was found to be by now.
    pub fn set_metadata(&mut self, metadata: Metadata) {
        self.metadata = metadata;
    }

    /// The layer that shows it, counted from the highest.
    pub fn layer(&self) -> usize {
        self.layer
    }

    fn layers(&self) -> impl Iterator<Item = usize> {
        std::iter::once(self.layer).chain(self.below.iter().copied())
    }
}

impl View {
    /// Looks at layer folders, in overlayfs's form, lowest first.
    pub fn layers(folders: Vec<PathBuf>) -> Self {
        let roots = folders.into_iter().rev().map(|folder| Arc::new(Root::new(folder)));
        Self { roots: roots.collect(), kind: Kind::Layers }
    }

    /// Looks at a folder of the caller's, but not at what `ignore` matches (patterns for paths
    /// relative to `folder`). A folder that matches is seen nevertheless when something in it is
    /// excepted, as in BuildKit (tonistiigi/fsutil, filter.go).
    pub fn folder(folder: PathBuf, ignore: PatternMatcher) -> Self {
        let roots = [Arc::new(Root::new(folder))].into();
        Self { roots, kind: Kind::Folder { ignore: Arc::new(ignore) } }
    }

    /// The same layers with one more on top. It may still be written to: the view reads it anew
    /// each time.
    ///
    /// # Panics
    /// When this is a folder of the caller's.
    #[must_use]
    pub fn with_layer(&self, folder: PathBuf) -> Self {
        assert!(matches!(self.kind, Kind::Layers), "layers are laid over layers");
        let top = Arc::new(Root::new(folder));
        let roots = std::iter::once(top).chain(self.roots.iter().cloned()).collect();
        Self { roots, kind: Kind::Layers }
    }

    /// Whether there is no layer at all: the tree of `FROM scratch`.
    pub fn is_empty(&self) -> bool {
        self.roots.is_empty()
    }

    /// How many layers there are.
    pub fn number_of_layers(&self) -> usize {
        self.roots.len()
    }

    /// Whether this is a folder of the caller's, which may change while it is looked at.
    pub fn may_change(&self) -> bool {
        matches!(self.kind, Kind::Folder { .. })
    }

    /// The root directory. That of no layer at all is an empty one of mode 0755.
    pub fn root(&self) -> Result<Entry, ViewError> {
        let said = ParentMatches::default();
        let mut entry = Entry {
            path: PathBuf::new(),
            layer: 0,
            below: Vec::new(),
            metadata: empty_root(),
            said,
        };
        for (layer, root) in self.roots.iter().enumerate() {
            let of_root = |source| ViewError::Io { path: root.path.clone(), source };
            let folder = root.open().map_err(of_root)?;
            if layer == 0 {
                let metadata = Metadata::of(folder).map_err(of_root)?;
                entry.metadata = self.shown(metadata);
            } else {
                entry.below.push(layer);
            }
            let lowest = layer + 1 == self.roots.len();
            if !lowest && metadata::is_opaque(folder, OsStr::new("")).map_err(of_root)? {
                break;
            }
        }
        Ok(entry)
    }

    /// What is called `name` in `directory`.
    pub fn child(&self, directory: &Entry, name: &OsStr) -> Result<Option<Entry>, ViewError> {
        if self.roots.is_empty() || !directory.metadata.is_directory() {
            return Ok(None);
        }
        let path = directory.path.join(name);
        match &self.kind {
            Kind::Layers => {
                let places = directory.layers().map(|layer| (layer, path.as_os_str()));
                self.merged(&path, places, None)
            }
            Kind::Folder { ignore } => {
                let flags = OFlags::PATH | OFlags::DIRECTORY;
                let folder = self.open_at(directory.layer, &directory.path, flags)?;
                let Some(folder) = folder else { return Ok(None) };
                let places = std::iter::once((directory.layer, name));
                let found = self.merged(&path, places, Some(folder.as_fd()))?;
                self.unless_ignored(ignore, directory, found)
            }
        }
    }

    /// What is in `directory`, sorted by name.
    pub fn children(&self, directory: &Entry) -> Result<Vec<Entry>, ViewError> {
        if self.roots.is_empty() || !directory.metadata.is_directory() {
            return Ok(Vec::new());
        }
        let mut folders = Vec::new();
        let mut names = Names::default();
        for layer in directory.layers() {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY;
            let Some(folder) = self.open_at(layer, &directory.path, flags)? else { continue };
            read_names(&folder, |name| names.add(name, folders.len()))
                .map_err(|source| io_error(&directory.path, source))?;
            folders.push((layer, folder));
        }
        names.sort();
        let one = |same_name: &[Name]| -> Result<Option<Entry>, ViewError> {
            let name = names.text(&same_name[0]);
            let mut found = None;
            for (position, same) in same_name.iter().enumerate() {
                let (layer, folder) = (folders[same.folder].0, folders[same.folder].1.as_fd());
                let last = position + 1 == same_name.len();
                let path = || joined(&directory.path, name);
                if self.merge_one(&mut found, path, (layer, folder, name), last)? == Below::Hidden {
                    break;
                }
            }
            match &self.kind {
                Kind::Layers => Ok(found),
                Kind::Folder { ignore } => self.unless_ignored(ignore, directory, found),
            }
        };
        let mut entries = Vec::with_capacity(names.all.len());
        if names.all.len() < WORTH_SHARING {
            for same_name in names.same() {
                entries.extend(one(same_name)?);
            }
        } else {
            let all: Vec<&[Name]> = names.same().collect();
            let found: Vec<Result<Option<Entry>, ViewError>> =
                all.into_par_iter().map(one).collect();
            for entry in found {
                entries.extend(entry?);
            }
        }
        Ok(entries)
    }

    /// The folder of the layer that shows `entry`.
    pub fn layer_of(&self, entry: &Entry) -> &Path {
        &self.roots[entry.layer].path
    }

    /// Opens a regular file for reading.
    ///
    /// # Errors
    /// [`ViewError::NotAFile`] when `entry` is, or has become, something else: a FIFO that would
    /// block, a device.
    pub fn open(&self, entry: &Entry) -> Result<File, ViewError> {
        let not_a_file = || ViewError::NotAFile(entry.absolute_path());
        if !entry.metadata.is_file() {
            return Err(not_a_file());
        }
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let file = self.open_at(entry.layer, &entry.path, flags)?.ok_or_else(not_a_file)?;
        let metadata = Metadata::of(&file).map_err(|source| io_error(&entry.path, source))?;
        if metadata.is_file() { Ok(File::from(file)) } else { Err(not_a_file()) }
    }

    /// Makes `name` in `folder` one more name of what `entry` is, which must not be a directory.
    ///
    /// Everything about the file is the same then: layers do not change, so neither does what is
    /// linked from them.
    ///
    /// # Errors
    /// What the system says: [`io::ErrorKind::TooManyLinks`] and
    /// [`io::ErrorKind::CrossesDevices`] mean that it has to be copied.
    pub fn link(&self, entry: &Entry, folder: BorrowedFd<'_>, name: &OsStr) -> io::Result<()> {
        let root = self.roots[entry.layer].open()?;
        Ok(rustix::fs::linkat(root, &entry.path, folder, name, AtFlags::empty())?)
    }

    /// The target of a symbolic link, as it was written.
    pub fn read_link(&self, entry: &Entry) -> Result<PathBuf, ViewError> {
        let target = self.in_parent(entry, |folder, name| {
            rustix::fs::readlinkat(folder, name, Vec::new()).map_err(io::Error::from)
        })?;
        Ok(PathBuf::from(OsString::from_vec(target.into_bytes())))
    }

    /// The extended attributes of `entry`; a caller's folder shows none.
    pub fn xattrs(&self, entry: &Entry) -> Result<Xattrs, ViewError> {
        match self.kind {
            Kind::Folder { .. } => Ok(Xattrs::new()),
            Kind::Layers if self.roots.is_empty() => Ok(Xattrs::new()),
            Kind::Layers => self.in_parent(entry, |folder, name| metadata::xattrs_at(folder, name)),
        }
    }

    /// Does something with the name of `entry` in its folder. In layers the name may be a path: no
    /// component of it is a link, and nobody makes one of it.
    fn in_parent<T>(
        &self,
        entry: &Entry,
        act: impl FnOnce(BorrowedFd<'_>, &OsStr) -> io::Result<T>,
    ) -> Result<T, ViewError> {
        let result = match self.kind {
            Kind::Layers => {
                let root = &self.roots[entry.layer];
                root.open().and_then(|folder| act(folder, entry.path.as_os_str()))
            }
            Kind::Folder { .. } => {
                let parent = entry.path.parent().unwrap_or(Path::new(""));
                let flags = OFlags::PATH | OFlags::DIRECTORY;
                match self.open_at(entry.layer, parent, flags)? {
                    Some(folder) => act(folder.as_fd(), entry.name()),
                    None => Err(Errno::NOENT.into()),
                }
            }
        };
        result.map_err(|source| io_error(&entry.path, source))
    }

    /// Opens a directory for work of one's own with descriptors: the highest layer's folder for it.
    pub fn open_directory(&self, entry: &Entry) -> Result<Option<OwnedFd>, ViewError> {
        self.open_at(entry.layer, &entry.path, OFlags::RDONLY | OFlags::DIRECTORY)
    }

    fn open_at(
        &self,
        layer: usize,
        path: &Path,
        flags: OFlags,
    ) -> Result<Option<OwnedFd>, ViewError> {
        let root = &self.roots[layer];
        let opened = root.open().and_then(|folder| open_beneath(folder, path, flags));
        match opened {
            Ok(file) => Ok(Some(file)),
            Err(error) if error.kind() == io::ErrorKind::NotFound && self.may_change() => Ok(None),
            Err(source) => Err(io_error(path, source)),
        }
    }

    /// Merges `places`, highest first: layers, and what the path is called in the root of each, or
    /// in `folder`.
    fn merged<'a>(
        &self,
        path: &Path,
        places: impl Iterator<Item = (usize, &'a OsStr)>,
        folder: Option<BorrowedFd<'_>>,
    ) -> Result<Option<Entry>, ViewError> {
        let mut found = None;
        let mut places = places.peekable();
        while let Some((layer, name)) = places.next() {
            let folder = match folder {
                Some(folder) => folder,
                None => self.roots[layer].open().map_err(|source| io_error(path, source))?,
            };
            let last = places.peek().is_none();
            let path = || path.to_owned();
            if self.merge_one(&mut found, path, (layer, folder, name), last)? == Below::Hidden {
                break;
            }
        }
        Ok(found)
    }

    /// Adds to `found` what one more layer, lower than those before, has at `path`.
    fn merge_one(
        &self,
        found: &mut Option<Entry>,
        path: impl Fn() -> PathBuf,
        (layer, folder, name): (usize, BorrowedFd<'_>, &OsStr),
        last: bool,
    ) -> Result<Below, ViewError> {
        let failed = |source| io_error(&path(), source);
        let Some(metadata) = Metadata::at(folder, name).map_err(failed)? else {
            return Ok(Below::Shown);
        };
        let layers = matches!(self.kind, Kind::Layers);
        if layers && metadata.is_whiteout() {
            return Ok(Below::Hidden);
        }
        match found {
            Some(entry) if metadata.is_directory() => entry.below.push(layer),
            Some(_) => return Ok(Below::Hidden),
            None => {
                *found = Some(Entry {
                    path: path(),
                    layer,
                    below: Vec::new(),
                    metadata: self.shown(metadata),
                    said: ParentMatches::default(),
                });
            }
        }
        let hidden = !metadata.is_directory()
            || (!last && layers && metadata::is_opaque(folder, name).map_err(failed)?);
        Ok(if hidden { Below::Hidden } else { Below::Shown })
    }

    fn shown(&self, metadata: Metadata) -> Metadata {
        match self.kind {
            Kind::Layers => metadata,
            Kind::Folder { .. } => Metadata { uid: 0, gid: 0, ..metadata },
        }
    }

    fn unless_ignored(
        &self,
        ignore: &PatternMatcher,
        directory: &Entry,
        found: Option<Entry>,
    ) -> Result<Option<Entry>, ViewError> {
        let Some(mut entry) = found else { return Ok(None) };
        if ignore.patterns().is_empty() {
            return Ok(Some(entry));
        }
        let path = entry.path.to_string_lossy().into_owned();
        let (ignored, said) = ignore.matches(&path, &directory.said);
        if entry.metadata.is_directory() {
            entry.said = said;
        }
        let seen = !ignored
            || (entry.metadata.is_directory()
                && !ignore.covers(&path)
                && !self.children(&entry)?.is_empty());
        Ok(seen.then_some(entry))
    }
}

/// The names in one or several folders, side by side in one piece of memory: of a large tree, a piece
/// for each name would cost as much as asking for the files.
#[derive(Default)]
struct Names {
    bytes: Vec<u8>,
    all: Vec<Name>,
}

/// One of [`Names`].
#[derive(Clone, Copy)]
struct Name {
    start: usize,
    length: usize,
    /// The number of the folder it is in.
    folder: usize,
}

impl Names {
    fn add(&mut self, name: &[u8], folder: usize) {
        self.all.push(Name { start: self.bytes.len(), length: name.len(), folder });
        self.bytes.extend(name);
    }

    fn text(&self, name: &Name) -> &OsStr {
        OsStr::from_bytes(&self.bytes[name.start..][..name.length])
    }

    /// By name, then by folder.
    fn sort(&mut self) {
        let mut all = std::mem::take(&mut self.all);
        all.sort_unstable_by_key(|name| (self.text(name), name.folder));
        self.all = all;
    }

    /// Equal names together, once they are sorted.
    fn same(&self) -> impl Iterator<Item = &[Name]> {
        self.all.chunk_by(|a, b| self.text(a) == self.text(b))
    }
}

/// Whether lower layers show through.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Below {
    Shown,
    Hidden,
}

/// `name` in the folder at `path`, in memory that fits.
fn joined(path: &Path, name: &OsStr) -> PathBuf {
    let mut joined = Vec::with_capacity(path.as_os_str().len() + 1 + name.len());
    joined.extend(path.as_os_str().as_bytes());
    if !joined.is_empty() {
        joined.push(b'/');
    }
    joined.extend(name.as_bytes());
    PathBuf::from(OsString::from_vec(joined))
}

fn io_error(path: &Path, source: io::Error) -> ViewError {
    ViewError::Io { path: Path::new("/").join(path), source }
}

fn empty_root() -> Metadata {
    Metadata {
        file_type: FileType::Directory,
        mode: 0o755,
        uid: 0,
        gid: 0,
        size: 0,
        modified: crate::metadata::Timestamp::default(),
        changed: crate::metadata::Timestamp::default(),
        device: 0,
        file_system: 0,
        inode: 0,
        links: 2,
        disk: 0,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use fs_err as fs;

    use super::*;
    use crate::layer::whiteout;

    /// Makes a tree: `dir/`, `file=bytes`, `link->target`, `gone!` (a whiteout), `dir/ opaque`.
    pub(super) fn make(spec: &[&str]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for line in spec {
            let at = |name: &str| {
                let path = folder.path().join(name);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                path
            };
            if let Some((link, target)) = line.split_once("->") {
                symlink(target, at(link)).unwrap();
            } else if let Some((file, bytes)) = line.split_once('=') {
                fs::write(at(file), bytes).unwrap();
            } else if let Some(name) = line.strip_suffix('!') {
                whiteout::make_whiteout(&at(name)).unwrap();
            } else if let Some(name) = line.strip_suffix(" opaque") {
                fs::create_dir_all(at(name)).unwrap();
                metadata::mark_opaque(fs::File::open(at(name)).unwrap()).unwrap();
            } else {
                fs::create_dir_all(at(line)).unwrap();
            }
        }
        folder
    }

    pub(super) fn layers(specs: &[&[&str]]) -> (Vec<tempfile::TempDir>, View) {
        let folders: Vec<_> = specs.iter().map(|spec| make(spec)).collect();
        let view = View::layers(folders.iter().map(|f| f.path().to_owned()).collect());
        (folders, view)
    }

    /// The whole tree as text: `a/ a/f=bytes a/l->target`.
    fn show(view: &View) -> String {
        fn add(view: &View, directory: &Entry, out: &mut Vec<String>) {
            for entry in view.children(directory).unwrap() {
                // One by one and all at once must agree.
                let alone = view.child(directory, entry.name()).unwrap().unwrap();
                assert_eq!(alone.metadata, entry.metadata);
                assert_eq!((alone.layer, &alone.below), (entry.layer, &entry.below));
                let path = entry.path().display();
                match entry.metadata().file_type {
                    FileType::Directory => {
                        out.push(format!("{path}/"));
                        add(view, &entry, out);
                    }
                    FileType::Symlink => {
                        let target = view.read_link(&entry).unwrap();
                        out.push(format!("{path}->{}", target.display()));
                    }
                    FileType::File => {
                        let bytes = io::read_to_string(view.open(&entry).unwrap()).unwrap();
                        out.push(format!("{path}={bytes}"));
                    }
                    other => out.push(format!("{path} {other:?}")),
                }
            }
        }
        let mut out = Vec::new();
        add(view, &view.root().unwrap(), &mut out);
        out.join(" ")
    }

    #[test]
    fn layers_are_merged_as_overlayfs_does() {
        let check = |specs: &[&[&str]], expected: &str| {
            let (_folders, view) = layers(specs);
            assert_eq!(show(&view), expected, "{specs:?}");
        };
        check(&[], "");
        check(&[&["a=1", "d/b=2"], &["d/c=3"]], "a=1 d/ d/b=2 d/c=3");
        check(&[&["a=1"], &["a=2"]], "a=2");
        check(&[&["a=1", "b=1"], &["a!"]], "b=1");
        check(&[&["d/a=1"], &["d!"], &["d/b=2"]], "d/ d/b=2");
        check(&[&["d/a=1"], &["d/ opaque", "d/b=2"]], "d/ d/b=2");
        check(&[&["d/a=1"], &["d/ opaque"], &["d/c=3"]], "d/ d/c=3");
        check(&[&["d/e/a=1"], &["d/ opaque", "d/e/b=2"]], "d/ d/e/ d/e/b=2");
        check(&[&["d/a=1"], &["d=file"]], "d=file");
        check(&[&["d/a=1"], &["d=file"], &["d/b=2"]], "d/ d/b=2");
        check(&[&["d/a=1"], &["d->elsewhere"]], "d->elsewhere");
        check(&[&["a=1"], &[". opaque", "b=2"]], "b=2");
        check(&[&["gone!"]], "");
    }

    #[test]
    fn ignored_paths_are_not_there() {
        let check = |ignore: &[&str], expected: &str| {
            let folder = make(&["a.txt=1", "d/b.txt=2", "d/c=3", "d/e/f=4", "l->d/c"]);
            let matcher = PatternMatcher::new(ignore).unwrap();
            let view = View::folder(folder.path().to_owned(), matcher);
            assert_eq!(show(&view), expected, "{ignore:?}");
        };
        check(&[], "a.txt=1 d/ d/b.txt=2 d/c=3 d/e/ d/e/f=4 l->d/c");
        check(&["*.txt"], "d/ d/b.txt=2 d/c=3 d/e/ d/e/f=4 l->d/c");
        check(&["**/*.txt", "l"], "d/ d/c=3 d/e/ d/e/f=4");
        check(&["d"], "a.txt=1 l->d/c");
        check(&["d", "!d/c", "l"], "a.txt=1 d/ d/c=3");
        check(&["*", "!**/f"], "d/ d/e/ d/e/f=4");
        check(&["*", "!nothing"], "");
    }

    #[test]
    fn a_link_into_what_is_ignored_leads_nowhere() {
        let folder = make(&["secret/key=1", "l->secret/key"]);
        let ignore = PatternMatcher::new(["secret"]).unwrap();
        let view = View::folder(folder.path().to_owned(), ignore);
        assert!(view.resolve(Path::new("/l")).unwrap().entry.is_none());
    }

    #[test]
    fn a_context_belongs_to_root() {
        let folder = make(&["f=1"]);
        let view = View::folder(folder.path().to_owned(), PatternMatcher::default());
        let entry = view.lookup(Path::new("f")).unwrap().unwrap();
        assert_eq!((entry.metadata().uid, entry.metadata().gid), (0, 0));
    }

    #[test]
    fn what_became_a_link_or_a_pipe_since_is_not_opened() {
        let outside = make(&["secret=1"]);
        let folder = make(&["d/f=1"]);
        let view = View::folder(folder.path().to_owned(), PatternMatcher::default());
        let file = view.lookup(Path::new("d/f")).unwrap().unwrap();
        let path = folder.path().join("d/f");
        fs::remove_file(&path).unwrap();
        symlink(outside.path().join("secret"), &path).unwrap();
        assert!(view.open(&file).is_err());
        fs::remove_file(&path).unwrap();
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &path,
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR,
            0,
        )
        .unwrap();
        assert!(matches!(view.open(&file), Err(ViewError::NotAFile(_))));
        fs::remove_dir_all(folder.path().join("d")).unwrap();
        symlink(outside.path(), folder.path().join("d")).unwrap();
        fs::write(outside.path().join("f"), "secret").unwrap();
        assert!(view.open(&file).is_err());
    }

    /// A folder that another thread swaps for a link to elsewhere, again and again, while it is
    /// read: what lies elsewhere is never seen.
    #[test]
    fn a_racing_swap_leaks_nothing() {
        use std::sync::atomic::{AtomicBool, Ordering};
        let outside = make(&["f=secret"]);
        let folder = make(&["d/f=public"]);
        symlink(outside.path(), folder.path().join("swap")).unwrap();
        let parent = fs::File::open(folder.path()).unwrap();
        let done = AtomicBool::new(false);
        let view = View::folder(folder.path().to_owned(), PatternMatcher::default());
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    let exchange = rustix::fs::RenameFlags::EXCHANGE;
                    rustix::fs::renameat_with(&parent, "d", &parent, "swap", exchange).unwrap();
                }
            });
            for _ in 0..3000 {
                let Ok(Resolved { entry: Some(entry), .. }) = view.resolve(Path::new("/d/f"))
                else {
                    continue;
                };
                if let Ok(file) = view.open(&entry) {
                    assert_eq!(io::read_to_string(file).unwrap(), "public");
                }
            }
            done.store(true, Ordering::Relaxed);
        });
    }

    /// Paths that a made-up layer may have something at, each after the folder that it is in.
    const PATHS: [&str; 7] = ["a", "b", "a/a", "a/b", "a/a/a", "b/a", "b/a/b"];

    /// One layer: for each of [`PATHS`] nothing, a file, a link, a folder, an opaque folder or a
    /// whiteout. What is in something that is no folder is left out.
    fn layer() -> impl proptest::strategy::Strategy<Value = Vec<(&'static str, u8)>> {
        use proptest::prelude::*;
        proptest::collection::vec(0_u8..6, PATHS.len()).prop_map(|kinds| {
            let mut layer: Vec<(&str, u8)> = Vec::new();
            for (path, kind) in PATHS.into_iter().zip(kinds) {
                let folder = path.rsplit_once('/').map(|(folder, _)| folder);
                let in_folder = folder.is_none_or(|folder| {
                    layer.iter().any(|(other, kind)| *other == folder && matches!(kind, 3 | 4))
                });
                if kind > 0 && in_folder {
                    layer.push((path, kind));
                }
            }
            layer
        })
    }

    proptest::proptest! {
        #![proptest_config(proptest::prelude::ProptestConfig::with_cases(100))]

        /// Merging all at once gives what putting one layer over the other gives.
        #[test]
        fn merging_is_applying_one_after_the_other(
            layers_of_kinds in proptest::collection::vec(layer(), 0..5),
        ) {
            let mut expected = std::collections::BTreeMap::new();
            let mut folders = Vec::new();
            for (number, layer) in layers_of_kinds.iter().enumerate() {
                let folder = tempfile::tempdir().unwrap();
                for (path, kind) in layer {
                    let inside = format!("{path}/");
                    let at = folder.path().join(path);
                    let was_folder = expected.get(*path).is_some_and(|old: &String| old.ends_with('/'));
                    if !matches!(kind, 3) || !was_folder {
                        expected.retain(|old: &String, _| !old.starts_with(&inside));
                    }
                    match kind {
                        1 => {
                            fs::write(at, number.to_string()).unwrap();
                            expected.insert((*path).to_owned(), format!("{path}={number}"));
                        }
                        2 => {
                            symlink(number.to_string(), at).unwrap();
                            expected.insert((*path).to_owned(), format!("{path}->{number}"));
                        }
                        3 | 4 => {
                            fs::create_dir(&at).unwrap();
                            if *kind == 4 {
                                metadata::mark_opaque(fs::File::open(at).unwrap().file()).unwrap();
                            }
                            expected.insert((*path).to_owned(), format!("{path}/"));
                        }
                        _ => {
                            whiteout::make_whiteout(&at).unwrap();
                            expected.remove(*path);
                        }
                    }
                }
                folders.push(folder);
            }
            let view = View::layers(folders.iter().map(|f| f.path().to_owned()).collect());
            let expected: Vec<String> = expected.into_values().collect();
            proptest::prop_assert_eq!(show(&view), expected.join(" "));
        }
    }
}
