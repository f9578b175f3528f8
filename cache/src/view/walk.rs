//! Where paths lead in a tree: links followed component by component, inside the tree, as if it were
//! the root of a machine.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use super::{Entry, View, ViewError};

/// How many links one path may lead through; as many as Linux allows.
const LINKS_MAX: usize = 40;

/// Where a path leads.
#[derive(Clone, Debug)]
pub struct Resolved {
    /// The path without links, relative to the root. What does not exist is kept as it was written.
    pub path: PathBuf,
    /// What is there.
    pub entry: Option<Entry>,
}

impl View {
    /// Where `path` leads, links followed, the last one too. `path` is taken from the root whether
    /// or not it begins with a slash, and `..` does not lead out.
    pub fn resolve(&self, path: &Path) -> Result<Resolved, ViewError> {
        self.walk(self.root()?, path, LastLink::Followed)
    }

    /// Where `path` leads, links followed but for the last component.
    pub fn resolve_parent(&self, path: &Path) -> Result<Resolved, ViewError> {
        self.walk(self.root()?, path, LastLink::Kept)
    }

    /// Where `path` leads if `root`, a directory, is the root: neither `..` nor links lead out of
    /// it. The last link is followed.
    pub fn resolve_in(&self, root: &Entry, path: &Path) -> Result<Resolved, ViewError> {
        self.walk(root.clone(), path, LastLink::Followed)
    }

    /// What `path` is; a link in its last place is not followed.
    pub fn lookup(&self, path: &Path) -> Result<Option<Entry>, ViewError> {
        Ok(self.resolve_parent(path)?.entry)
    }

    fn walk(&self, root: Entry, path: &Path, last_link: LastLink) -> Result<Resolved, ViewError> {
        let mut open: VecDeque<OsString> = components(path).collect();
        let mut links = 0;
        let mut found = vec![root];
        let mut missing: Vec<OsString> = Vec::new();
        while let Some(name) = open.pop_front() {
            if name == ".." {
                if missing.pop().is_none() && found.len() > 1 {
                    found.pop();
                }
                continue;
            }
            if !missing.is_empty() {
                missing.push(name);
                continue;
            }
            let here = found.last().expect("the root stays");
            let Some(entry) = self.child(here, &name)? else {
                missing.push(name);
                continue;
            };
            let kept = open.is_empty() && last_link == LastLink::Kept;
            if !entry.metadata.is_symlink() || kept {
                found.push(entry);
                continue;
            }
            links += 1;
            if links > LINKS_MAX {
                return Err(ViewError::TooManyLinks(Path::new("/").join(path)));
            }
            let target = self.read_link(&entry)?;
            if target.is_absolute() {
                found.truncate(1);
            }
            for component in components(&target).rev() {
                open.push_front(component);
            }
        }
        let entry = found.pop().expect("the root stays");
        if missing.is_empty() {
            return Ok(Resolved { path: entry.path.clone(), entry: Some(entry) });
        }
        let path = entry.path.join(missing.iter().collect::<PathBuf>());
        Ok(Resolved { path, entry: None })
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum LastLink {
    Followed,
    Kept,
}

/// The components of a path but for `.` and the leading slash.
fn components(path: &Path) -> impl DoubleEndedIterator<Item = OsString> {
    let parts = path.as_os_str().as_bytes().split(|byte| *byte == b'/');
    let parts = parts.filter(|part| !part.is_empty() && *part != b".");
    parts.map(|part| OsString::from_vec(part.to_vec())).collect::<Vec<_>>().into_iter()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::tests::layers;

    #[test]
    fn links_are_followed_inside_the_root_only() {
        let (_folders, view) = layers(&[&[
            "d/f=1",
            "d/up->../d/f",
            "abs->/d",
            "out->../../../etc/passwd",
            "etc/passwd=inside",
            "a->b",
            "b->a",
            "dangling->/no/where",
            "d/self->.",
        ]]);
        let check = |path: &str, expected: &str| {
            let shown = match view.resolve(Path::new(path)) {
                Ok(Resolved { path, entry: Some(_) }) => path.display().to_string(),
                Ok(Resolved { path, entry: None }) => format!("no {}", path.display()),
                Err(error) => error.to_string(),
            };
            assert_eq!(shown, expected, "{path}");
        };
        check("/", "");
        check("/d/f", "d/f");
        check("d//./f/", "d/f");
        check("/d/up", "d/f");
        check("/abs/f", "d/f");
        check("/abs/../abs/up", "d/f");
        check("/out", "etc/passwd");
        check("/../../d", "d");
        check("/d/self/self/f", "d/f");
        check("/dangling", "no no/where");
        check("/dangling/x/../y", "no no/where/y");
        check("/nothing/../d", "d");
        check("/d/f/x", "no d/f/x");
        check("/a", "too many symbolic links in `/a`");
        let kept = view.lookup(Path::new("/abs")).unwrap().unwrap();
        assert!(kept.metadata().is_symlink());
    }

    #[test]
    fn a_folder_can_be_the_root() {
        let (_folders, view) = layers(&[&["r/d/f=1", "r/out->/d", "r/up->../../..", "f=2"]]);
        let root = view.lookup(Path::new("r")).unwrap().unwrap();
        let check = |path: &str, expected: &str| {
            let found = view.resolve_in(&root, Path::new(path)).unwrap();
            assert_eq!(found.path, Path::new(expected), "{path}");
        };
        check("out/f", "r/d/f");
        check("/d/../../f", "r/f");
        check("up/d", "r/d");
        check("", "r");
    }
}
