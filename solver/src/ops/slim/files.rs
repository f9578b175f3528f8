//! The tree that is slimmed, as a table: every path once, looked at before anything is decided.
//!
//! Links are followed here, in memory, as a process in the image would have them followed, and
//! every link that is crossed on the way is named: without it the path leads nowhere in the result.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{self, Read};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use rbuild_cache::view::{Entry, View, ViewError};

/// The most bytes of a file that is read whole: larger than any database of packages, any script. A
/// hole of gigabytes costs whoever made the image nothing.
const WHOLE_MOST: u64 = 64 << 20;

/// How many links one path may lead through; as many as Linux allows.
const LINKS_MAX: usize = 40;

/// Names a path of the tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct FileId(u32);

impl FileId {
    /// The root folder.
    pub(super) const ROOT: Self = Self(0);

    /// Its place in the table.
    pub(super) fn index(self) -> usize {
        self.0 as usize
    }
}

/// All paths of a tree.
#[derive(Debug)]
pub(super) struct Files {
    view: View,
    list: Vec<File>,
}

/// A path of the tree.
#[derive(Debug)]
pub(super) struct File {
    /// What is there.
    pub(super) entry: Entry,
    /// Where it leads, if it is a link.
    pub(super) target: Option<PathBuf>,
    /// The folder that it is in; the root is in itself.
    pub(super) parent: FileId,
    /// What is in it, sorted by name.
    pub(super) children: Vec<FileId>,
}

/// Where a path leads.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Found {
    /// What is there; never a link unless the link was not to be followed.
    pub(super) file: Option<FileId>,
    /// The links that were crossed, in order.
    pub(super) links: Vec<FileId>,
}

impl Files {
    /// Looks at everything in `view`.
    pub(super) fn read(view: &View) -> Result<Self, ViewError> {
        let root = view.root()?;
        let root = File { entry: root, target: None, parent: FileId::ROOT, children: Vec::new() };
        let mut files = Self { view: view.clone(), list: vec![root] };
        let mut open = vec![FileId::ROOT];
        // All folders of one depth side by side.
        while !open.is_empty() {
            let found: Vec<Vec<(Entry, Option<PathBuf>)>> = open
                .par_iter()
                .map(|folder| children(view, &files.get(*folder).entry))
                .collect::<Result<_, ViewError>>()?;
            let mut next = Vec::new();
            for (folder, found) in open.into_iter().zip(found) {
                for (entry, target) in found {
                    let id = u32::try_from(files.list.len()).expect("fewer than 2^32 paths");
                    let id = FileId(id);
                    if entry.metadata().is_directory() {
                        next.push(id);
                    }
                    let file = File { entry, target, parent: folder, children: Vec::new() };
                    files.list.push(file);
                    files.list[folder.index()].children.push(id);
                }
            }
            open = next;
        }
        Ok(files)
    }

    /// The tree.
    pub(super) fn view(&self) -> &View {
        &self.view
    }

    /// The file called `id`.
    pub(super) fn get(&self, id: FileId) -> &File {
        &self.list[id.index()]
    }

    /// How many paths there are.
    pub(super) fn len(&self) -> usize {
        self.list.len()
    }

    /// All paths; a folder comes before what is in it.
    pub(super) fn ids(&self) -> impl Iterator<Item = FileId> + use<> {
        (0..self.list.len()).map(|index| FileId(u32::try_from(index).expect("fewer than 2^32")))
    }

    /// Its path from `/`.
    pub(super) fn path(&self, id: FileId) -> PathBuf {
        self.get(id).entry.absolute_path()
    }

    /// Its path as text, for patterns and reports.
    pub(super) fn text(&self, id: FileId) -> String {
        self.path(id).to_string_lossy().into_owned()
    }

    /// Its name in its folder.
    pub(super) fn name(&self, id: FileId) -> &str {
        self.get(id).entry.name().to_str().unwrap_or_default()
    }

    /// Bytes of a regular file; 0 for all else.
    pub(super) fn size(&self, id: FileId) -> u64 {
        let metadata = self.get(id).entry.metadata();
        if metadata.is_file() { metadata.size } else { 0 }
    }

    /// Whether it is a directory.
    pub(super) fn is_directory(&self, id: FileId) -> bool {
        self.get(id).entry.metadata().is_directory()
    }

    /// Whether it is a regular file.
    pub(super) fn is_file(&self, id: FileId) -> bool {
        self.get(id).entry.metadata().is_file()
    }

    /// Whether somebody may run it.
    pub(super) fn is_executable(&self, id: FileId) -> bool {
        self.is_file(id) && self.get(id).entry.metadata().mode & 0o111 != 0
    }

    /// What is called `name` in `folder`.
    pub(super) fn child(&self, folder: FileId, name: &OsStr) -> Option<FileId> {
        let children = &self.get(folder).children;
        let found = children.binary_search_by(|child| self.get(*child).entry.name().cmp(name));
        found.ok().map(|position| children[position])
    }

    /// Where `path` leads, the last link followed too.
    pub(super) fn resolve(&self, path: &Path) -> Found {
        self.walk(FileId::ROOT, path, true)
    }

    /// Where `path` leads, seen from the folder `from` if it is relative.
    pub(super) fn resolve_from(&self, from: FileId, path: &Path) -> Found {
        self.walk(if path.is_absolute() { FileId::ROOT } else { from }, path, true)
    }

    /// What `path` is; a link in its last place is not followed.
    pub(super) fn lookup(&self, path: &Path) -> Found {
        self.walk(FileId::ROOT, path, false)
    }

    fn walk(&self, from: FileId, path: &Path, follow_last: bool) -> Found {
        let mut found = Found::default();
        let mut here = from;
        let mut open = components(path);
        open.reverse();
        while let Some(name) = open.pop() {
            if name == ".." {
                here = self.get(here).parent;
                continue;
            }
            let Some(child) = self.child(here, &name) else { return found };
            match &self.get(child).target {
                Some(target) if follow_last || !open.is_empty() => {
                    if found.links.len() >= LINKS_MAX {
                        return found;
                    }
                    found.links.push(child);
                    if target.is_absolute() {
                        here = FileId::ROOT;
                    }
                    open.extend(components(target).into_iter().rev());
                }
                _ => here = child,
            }
        }
        found.file = Some(here);
        found
    }

    /// Opens a regular file; `None` when it is something else.
    pub(super) fn open(&self, id: FileId) -> Result<Option<fs::File>, ViewError> {
        if self.is_file(id) { self.view.open(&self.get(id).entry).map(Some) } else { Ok(None) }
    }

    /// The bytes of a regular file; `None` when it is something else, or larger than [`WHOLE_MOST`].
    pub(super) fn read_file(&self, id: FileId) -> Result<Option<Vec<u8>>, ViewError> {
        if self.size(id) > WHOLE_MOST { Ok(None) } else { self.read_start(id, WHOLE_MOST) }
    }

    /// The first `limit` bytes of a regular file; `None` when it is something else.
    pub(super) fn read_start(&self, id: FileId, limit: u64) -> Result<Option<Vec<u8>>, ViewError> {
        let Some(file) = self.open(id)? else { return Ok(None) };
        let size = self.size(id).min(limit);
        let mut bytes = Vec::with_capacity(usize::try_from(size).unwrap_or(0));
        let read = file.take(limit).read_to_end(&mut bytes);
        read.map_err(|source| self.unreadable(id, source))?;
        Ok(Some(bytes))
    }

    /// That reading `id` failed.
    pub(super) fn unreadable(&self, id: FileId, source: io::Error) -> ViewError {
        ViewError::Io { path: self.path(id), source }
    }

    /// The text of the file at `path`, links followed; `None` when there is none, or one larger
    /// than [`WHOLE_MOST`].
    pub(super) fn read_text(&self, path: &str) -> Result<Option<String>, ViewError> {
        let Some(id) = self.resolve(Path::new(path)).file else { return Ok(None) };
        let bytes = self.read_file(id)?;
        Ok(bytes.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()))
    }

    /// Everything in `folder` and below, itself first.
    pub(super) fn below(&self, folder: FileId) -> Vec<FileId> {
        let mut all = vec![folder];
        let mut next = 0;
        while let Some(id) = all.get(next) {
            all.extend(&self.get(*id).children);
            next += 1;
        }
        all
    }
}

/// What is in `folder`, sorted by name, and where its links lead.
fn children(view: &View, folder: &Entry) -> Result<Vec<(Entry, Option<PathBuf>)>, ViewError> {
    let with_target = |entry: Entry| {
        let is_link = entry.metadata().is_symlink();
        let target = if is_link { Some(view.read_link(&entry)?) } else { None };
        Ok((entry, target))
    };
    view.children(folder)?.into_iter().map(with_target).collect()
}

fn components(path: &Path) -> Vec<OsString> {
    let parts = path.as_os_str().as_bytes().split(|byte| *byte == b'/');
    let parts = parts.filter(|part| !part.is_empty() && *part != b".");
    parts.map(|part| OsString::from_vec(part.to_vec())).collect()
}

#[cfg(test)]
pub(super) mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    /// A tree made for a test: `path` → text; `path -> target` is a link, `path/` a folder, and a
    /// leading `x:` makes a file executable.
    pub(in crate::ops::slim) struct TestTree {
        pub(in crate::ops::slim) folder: tempfile::TempDir,
    }

    impl TestTree {
        pub(in crate::ops::slim) fn new(files: &[(&str, &str)]) -> Self {
            let tree = Self { folder: tempfile::tempdir().unwrap() };
            for (path, text) in files {
                tree.add(path, text.as_bytes());
            }
            tree
        }

        pub(in crate::ops::slim) fn add(&self, path: &str, bytes: &[u8]) {
            let (executable, path) = match path.strip_prefix("x:") {
                Some(path) => (true, path),
                None => (false, path),
            };
            let (path, target) = match path.split_once(" -> ") {
                Some((path, target)) => (path, Some(target)),
                None => (path, None),
            };
            let full = self.folder.path().join(path.trim_start_matches('/'));
            if path.ends_with('/') {
                fs_err::create_dir_all(full).unwrap();
                return;
            }
            fs_err::create_dir_all(full.parent().unwrap()).unwrap();
            if let Some(target) = target {
                return symlink(target, full).unwrap();
            }
            fs_err::write(&full, bytes).unwrap();
            if executable {
                fs_err::set_permissions(full, PermissionsExt::from_mode(0o755)).unwrap();
            }
        }

        pub(in crate::ops::slim) fn files(&self) -> Files {
            Files::read(&View::layers(vec![self.folder.path().to_owned()])).unwrap()
        }
    }

    #[test]
    fn a_hole_is_not_read_whole() {
        let tree = TestTree::new(&[("text", "text")]);
        let hole = fs_err::File::create(tree.folder.path().join("hole")).unwrap();
        hole.set_len(100 << 30).unwrap();
        let files = tree.files();
        let id = |path: &str| files.lookup(Path::new(path)).file.unwrap();
        assert_eq!(files.read_file(id("text")).unwrap().as_deref(), Some(&b"text"[..]));
        assert_eq!(files.read_file(id("hole")).unwrap(), None);
        assert_eq!(files.read_text("/hole").unwrap(), None);
        assert_eq!(files.read_start(id("hole"), 3).unwrap().as_deref(), Some(&[0; 3][..]));
    }

    #[test]
    fn links_are_followed_inside_the_tree_and_named() {
        let tree = TestTree::new(&[
            ("usr/lib/libc.so.6 -> libc-2.36.so", ""),
            ("usr/lib/libc-2.36.so", "c"),
            ("lib -> usr/lib", ""),
            ("loop -> loop", ""),
            ("out -> ../../../etc", ""),
            ("etc/x -> /lib/libc.so.6", ""),
        ]);
        let files = tree.files();
        let check = |path: &str, expected: Option<&str>, links: &[&str]| {
            let found = files.resolve(Path::new(path));
            assert_eq!(found.file.map(|id| files.text(id)).as_deref(), expected, "{path}");
            let crossed: Vec<String> = found.links.iter().map(|id| files.text(*id)).collect();
            assert_eq!(crossed, links, "{path}");
        };
        let libc = Some("/usr/lib/libc-2.36.so");
        check("/lib/libc.so.6", libc, &["/lib", "/usr/lib/libc.so.6"]);
        check("out/x", libc, &["/out", "/etc/x", "/lib", "/usr/lib/libc.so.6"]);
        check("/usr/../lib/./libc.so.6", libc, &["/lib", "/usr/lib/libc.so.6"]);
        check("/", Some("/"), &[]);
        check("/lib/none", None, &["/lib"]);
        assert_eq!(files.resolve(Path::new("/loop")).file, None);
        let kept = files.lookup(Path::new("/lib/libc.so.6"));
        assert_eq!(files.text(kept.file.unwrap()), "/usr/lib/libc.so.6");
    }
}
