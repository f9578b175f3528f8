//! Finding libraries by name, as the loader of a program would: the program's own path,
//! `LD_LIBRARY_PATH`, the cache, the default folders; for the program's machine only.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use rbuild_cache::view::ViewError;

use super::elf::{self, Elf, Machine};
use super::files::{FileId, Files};
use super::ldconfig::LibraryFolders;

/// Finds libraries.
#[derive(Debug)]
pub(super) struct Libraries<'a> {
    files: &'a Files,
    folders: LibraryFolders,
    machines: HashMap<FileId, Option<Machine>>,
    /// Everything that is called like a library, for programs that look in places of their own.
    named: HashMap<String, Vec<FileId>>,
}

/// A library that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Library {
    /// Where it is, as the loader names it: through links.
    pub(super) path: PathBuf,
    /// Variants for newer processors (`glibc-hwcaps`).
    pub(super) variants: Vec<PathBuf>,
}

impl<'a> Libraries<'a> {
    /// Those of a tree whose programs run with `env`.
    pub(super) fn new(files: &'a Files, env: &[String]) -> Result<Self, ViewError> {
        let folders = LibraryFolders::of(files, env)?;
        let mut named: HashMap<String, Vec<FileId>> = HashMap::new();
        for id in files.ids() {
            let name = files.name(id);
            if name.contains(".so") && !files.is_directory(id) {
                named.entry(name.to_owned()).or_default().push(id);
            }
        }
        Ok(Self { files, folders, machines: HashMap::new(), named })
    }

    /// Where libraries are looked for.
    pub(super) fn folders(&self) -> &LibraryFolders {
        &self.folders
    }

    /// The library that `program`, which is `elf`, gets when it asks for `name`.
    pub(super) fn find(
        &mut self,
        program: FileId,
        elf: &Elf,
        name: &str,
    ) -> Result<Option<Library>, ViewError> {
        if name.contains('/') {
            let path = PathBuf::from(name);
            return Ok(self.is_for(&path, elf.machine)?.then(|| self.library(path)));
        }
        let origin = self.files.path(self.files.get(program).parent);
        let own = elf.library_path.iter().map(|folder| expanded(folder, &origin, elf.machine));
        let mut places: Vec<PathBuf> = own.map(|folder| folder.join(name)).collect();
        places.extend(self.folders.places(name).into_iter().map(PathBuf::from));
        for place in places {
            if self.is_for(&place, elf.machine)? {
                return Ok(Some(self.library(place)));
            }
        }
        Ok(None)
    }

    /// A library called `name` that the loader does not find by itself, wherever it is: beside
    /// `program`, otherwise the only ones there are. Programs that load by path do so.
    pub(super) fn find_anywhere(
        &mut self,
        program: FileId,
        machine: Machine,
        name: &str,
    ) -> Result<Vec<PathBuf>, ViewError> {
        let beside = self.files.path(self.files.get(program).parent).join(name);
        if self.is_for(&beside, machine)? {
            return Ok(vec![beside]);
        }
        let mut found = Vec::new();
        for id in self.named.get(name).cloned().unwrap_or_default() {
            let path = self.files.path(id);
            if self.is_for(&path, machine)? {
                found.push(path);
            }
        }
        Ok(found)
    }

    fn library(&self, path: PathBuf) -> Library {
        let mut variants = Vec::new();
        let (folder, name) = (path.parent(), path.file_name());
        let hwcaps = folder.map(|folder| folder.join("glibc-hwcaps"));
        let hwcaps = hwcaps.and_then(|hwcaps| self.files.resolve(&hwcaps).file);
        if let (Some(hwcaps), Some(name)) = (hwcaps, name) {
            for level in &self.files.get(hwcaps).children {
                if let Some(variant) = self.files.child(*level, name) {
                    variants.push(self.files.path(variant));
                }
            }
        }
        Library { path, variants }
    }

    /// Whether there is a library for `machine` at `path`.
    fn is_for(&mut self, path: &Path, machine: Machine) -> Result<bool, ViewError> {
        let Some(id) = self.files.resolve(path).file else { return Ok(false) };
        if let Some(known) = self.machines.get(&id) {
            return Ok(*known == Some(machine));
        }
        let start = self.files.read_start(id, 20)?.unwrap_or_default();
        let found = elf::machine(&start);
        self.machines.insert(id, found);
        Ok(found == Some(machine))
    }
}

/// A folder of a program's own path: `$ORIGIN`, `$LIB` and `$PLATFORM` have their values.
fn expanded(folder: &str, origin: &Path, machine: Machine) -> PathBuf {
    let origin = origin.to_string_lossy();
    let lib = if machine.is_64 { "lib64" } else { "lib" };
    let platform = match machine.machine {
        62 => "x86_64",
        183 => "aarch64",
        _ => "",
    };
    let values = [("ORIGIN", &*origin), ("LIB", lib), ("PLATFORM", platform)];
    let mut text = folder.to_owned();
    for (name, value) in values {
        text = text.replace(&format!("${{{name}}}"), value).replace(&format!("${name}"), value);
    }
    PathBuf::from(text)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::super::files::tests::TestTree;
    use super::*;

    /// The first bytes of an ELF file for x86-64, or for 64-bit ARM.
    fn head(machine: u8) -> Vec<u8> {
        let mut bytes = b"\x7fELF\x02\x01\x01".to_vec();
        bytes.resize(18, 0);
        bytes.extend([machine, 0]);
        bytes
    }

    #[test]
    fn libraries_are_found_where_the_loader_looks() {
        let tree = TestTree::new(&[("lib -> usr/lib", ""), ("usr/lib/text.so.1", "no library")]);
        for path in [
            "usr/lib/x86_64-linux-gnu/liba.so.1",
            "usr/lib/x86_64-linux-gnu/glibc-hwcaps/x86-64-v3/liba.so.1",
            "opt/app/bin/app",
            "opt/app/lib/libown.so",
            "opt/else/libdeep.so",
        ] {
            tree.add(path, &head(62));
        }
        tree.add("usr/local/lib/liba.so.1", &head(183));
        let files = tree.files();
        let env = ["LD_LIBRARY_PATH=/usr/local/lib".to_owned()];
        let mut libraries = Libraries::new(&files, &env).unwrap();
        let program = files.resolve(Path::new("/opt/app/bin/app")).file.unwrap();
        let elf = Elf {
            machine: Machine { machine: 62, is_64: true },
            interpreter: None,
            needed: Vec::new(),
            library_path: vec!["${ORIGIN}/../lib".into()],
            imports: BTreeSet::new(),
            library_names: BTreeSet::new(),
            paths: BTreeSet::new(),
            is_cut: false,
        };
        let mut find = |name: &str| libraries.find(program, &elf, name).unwrap();
        let found = find("liba.so.1").unwrap();
        assert_eq!(found.path, Path::new("/lib/x86_64-linux-gnu/liba.so.1"), "of its machine");
        assert_eq!(found.variants.len(), 1);
        assert_eq!(find("libown.so").unwrap().path, Path::new("/opt/app/bin/../lib/libown.so"));
        assert_eq!(find("text.so.1"), None);
        assert_eq!(find("libdeep.so"), None);
        let deep = libraries.find_anywhere(program, elf.machine, "libdeep.so").unwrap();
        assert_eq!(deep, [Path::new("/opt/else/libdeep.so")]);
    }
}
