//! What a package manager says of the tree: which packages there are, and whose each file is.

pub(super) mod apk;
pub(super) mod dpkg;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use rbuild_cache::view::ViewError;

use super::files::{FileId, Files};

/// Names a package in [`Packages::list`].
pub(super) type PackageId = usize;

/// Which package manager.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Manager {
    /// Debian's; its database is in `/var/lib/dpkg`.
    Dpkg,
    /// Alpine's; its database is `/lib/apk/db/installed`.
    Apk,
}

/// What its package manager says of a tree.
#[derive(Debug, Default)]
pub(super) struct Packages {
    /// Who keeps the database; none when there is no database that is known.
    pub(super) manager: Option<Manager>,
    /// All packages, by name.
    pub(super) list: Vec<Package>,
    /// Whose a file (no folder) is.
    pub(super) owners: HashMap<FileId, PackageId>,
    /// Folders that a package brought.
    pub(super) folders: HashSet<FileId>,
    /// What files were when they were installed, where the database says.
    pub(super) sums: HashMap<FileId, Sum>,
}

/// The digest of a file when it was installed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sum {
    /// dpkg's.
    Md5([u8; 16]),
}

/// A package.
#[derive(Clone, Debug, Default)]
pub(super) struct Package {
    /// Its name, without its architecture.
    pub(super) name: String,
    /// Its version.
    pub(super) version: String,
    /// Its paragraph in the database.
    pub(super) stanza: String,
    /// Its files in the tree, in the order of the database.
    pub(super) files: Vec<FileId>,
    /// Its list of digests, as it stands in the database: (hexadecimal, path without slash).
    pub(super) md5sums: Vec<(String, String)>,
}

impl Packages {
    /// Reads the database that the tree has.
    pub(super) fn read(files: &Files) -> Result<Self, ViewError> {
        if let Some(packages) = dpkg::read(files)? {
            return Ok(packages);
        }
        Ok(apk::read(files)?.unwrap_or_default())
    }

    /// Whose `file` is.
    pub(super) fn owner(&self, file: FileId) -> Option<&Package> {
        self.owners.get(&file).map(|id| &self.list[*id])
    }

    /// The packages whose names `is_meant` accepts.
    pub(super) fn named(&self, is_meant: impl Fn(&str) -> bool) -> impl Iterator<Item = &Package> {
        self.list.iter().filter(move |package| is_meant(&package.name))
    }

    /// Adds a package with what is in the tree of `paths`.
    fn add(&mut self, files: &Files, mut package: Package, paths: &[String]) {
        let id = self.list.len();
        let mut places = Places { files, folders: BTreeMap::new() };
        for path in paths {
            let Some(file) = places.find(path) else { continue };
            if files.is_directory(file) || is_merged(files, file) {
                self.folders.insert(file);
            } else {
                self.owners.insert(file, id);
                package.files.push(file);
            }
        }
        self.list.push(package);
    }
}

/// Whether `id` is `/lib` or its like where it became a link: a folder to all packages.
fn is_merged(files: &Files, id: FileId) -> bool {
    files.get(id).parent == FileId::ROOT && files.get(id).target.is_some()
}

/// Finds the files of a list: databases name files by where they were before `/lib` and its like
/// became links.
struct Places<'a> {
    files: &'a Files,
    folders: BTreeMap<PathBuf, Option<FileId>>,
}

impl Places<'_> {
    fn find(&mut self, path: &str) -> Option<FileId> {
        let path = Path::new(path);
        let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else {
            return Some(FileId::ROOT);
        };
        let known = self.folders.get(folder).copied();
        let folder = known.unwrap_or_else(|| {
            let found = self.files.resolve(folder).file;
            self.folders.insert(folder.to_owned(), found);
            found
        });
        self.files.child(folder?, OsStr::new(name))
    }
}

/// The value of a field in a paragraph of a database; lines that continue it included.
pub(super) fn field<'a>(stanza: &'a str, name: &str) -> Option<&'a str> {
    let mut start = 0;
    for line in stanza.split_inclusive('\n') {
        let rest = line.strip_prefix(name).and_then(|rest| rest.strip_prefix(':'));
        if rest.is_some() {
            let value = start + name.len() + 1;
            let mut end = start + line.len();
            for next in stanza[end..].split_inclusive('\n') {
                if !next.starts_with([' ', '\t']) {
                    break;
                }
                end += next.len();
            }
            return Some(stanza[value..end].trim());
        }
        start += line.len();
    }
    None
}
