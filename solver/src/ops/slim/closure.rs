//! What is needed, from the roots to a fixpoint: each kept file is read once, and what it needs is
//! kept for it.
//!
//! What is general is here: links, loaders, libraries, names and paths in programs, interpreters,
//! commands of scripts. What a single function, language or package needs beyond that is in the
//! module named after it. Files are read side by side and then followed in the order in which they
//! were found, so that reasons, and with them reports, are the same each time.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::io::Read as _;
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use rbuild_cache::pattern::PatternMatcher;
use rbuild_cache::view::ViewError;

use super::elf::{self, Elf, ElfError, Machine};
use super::files::{FileId, Files};
use super::libraries::Libraries;
use super::package::Packages;
use super::partition::{Origin, Partition};
use super::reason::{Reason, Why};
use super::shebang::{self, Shebang};
use super::{
    SlimError, authentication, certificates, charset, java, locale, name_service, node, perl, php,
    python, ruby, shell, terminal,
};
use crate::graph::{SlimMode, SlimOp};

/// A folder whose path stands in a program is kept if it holds no more files than this.
const FOLDER_FILES_MAX: usize = 400;
/// And no more bytes.
const FOLDER_BYTES_MAX: u64 = 6_000_000;

/// Where programs are looked up when the image does not say (Docker's default).
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Folders with packages of others than the user: their scripts are run by their tools alone.
const THIRD_PARTY: &[&str] =
    &["node_modules", "site-packages", "dist-packages", "gems", "vendor", "bower_components"];

/// Endings of files that are neither programs nor libraries.
const DATA: &[&str] = &[
    "c", "cfg", "class", "cpp", "crt", "css", "csv", "d.ts", "gif", "h", "hpp", "html", "ico",
    "jpg", "js", "json", "less", "map", "md", "mjs", "mo", "pem", "pl", "pm", "png", "po", "pod",
    "pot", "py", "pyc", "pyi", "rb", "rst", "scss", "sql", "svg", "toml", "ts", "ttf", "txt",
    "woff", "woff2", "xml", "yaml", "yml",
];

/// The files that are kept so far, and why.
pub(super) struct Closure<'a> {
    /// The tree.
    pub(super) files: &'a Files,
    /// Its packages.
    pub(super) packages: &'a Packages,
    /// Whose each file is.
    pub(super) partition: &'a Partition,
    /// What is asked for.
    pub(super) op: &'a SlimOp,
    libraries: Libraries<'a>,
    dropped: PatternMatcher,
    reasons: Vec<Option<Reason>>,
    /// Files to look at.
    open: Vec<FileId>,
    /// Files that are run, not just read.
    programs: HashSet<FileId>,
    /// Files that are there for somebody to read: nothing is followed from them.
    data: HashSet<FileId>,
    rules: HashSet<&'static str>,
    left_out: BTreeMap<FileId, Reason>,
    unresolved: BTreeSet<(String, String)>,
    notes: BTreeSet<String>,
    broken: Vec<(FileId, String)>,
}

/// What the closure came to.
pub(super) struct Kept {
    /// Why each file is kept; `None` for those that are not.
    pub(super) reasons: Vec<Option<Reason>>,
    /// What the user should know.
    pub(super) notes: Vec<String>,
    /// Libraries that are asked for and are not in the tree: by whom, and their names.
    pub(super) unresolved: Vec<(String, String)>,
    /// What would have been kept but for `--slim-drop`.
    pub(super) left_out: Vec<(FileId, Reason)>,
}

/// What a file holds, as far as that leads to others.
enum Content {
    Elf(Box<Elf>),
    Broken(String),
    Script {
        shebang: Shebang,
        text: Option<String>,
    },
    /// A script whose commands are not looked for.
    TooLong(Shebang),
    Other,
}

impl<'a> Closure<'a> {
    /// Nothing kept yet.
    pub(super) fn new(
        files: &'a Files,
        packages: &'a Packages,
        partition: &'a Partition,
        op: &'a SlimOp,
    ) -> Result<Self, SlimError> {
        let relative = |pattern: &String| pattern.trim_start_matches('/').to_owned();
        Ok(Self {
            files,
            packages,
            partition,
            op,
            libraries: Libraries::new(files, &op.env)?,
            dropped: PatternMatcher::new(op.drop.iter().map(relative))?,
            reasons: vec![None; files.len()],
            open: Vec::new(),
            programs: HashSet::new(),
            data: HashSet::new(),
            rules: HashSet::new(),
            left_out: BTreeMap::new(),
            unresolved: BTreeSet::new(),
            notes: BTreeSet::new(),
            broken: Vec::new(),
        })
    }

    /// Where libraries are.
    pub(super) fn libraries(&self) -> &Libraries<'a> {
        &self.libraries
    }

    /// Whether `id` is kept.
    pub(super) fn is_kept(&self, id: FileId) -> bool {
        self.reasons[id.index()].is_some()
    }

    /// Whether `--slim-drop` leaves `id` out.
    pub(super) fn is_dropped(&self, id: FileId) -> bool {
        if self.dropped.patterns().is_empty() {
            return false;
        }
        let path = self.files.text(id);
        self.dropped.matches_or_parent_matches(path.trim_start_matches('/'))
    }

    /// Keeps a file or link, or a folder without what is in it. The first reason stays.
    pub(super) fn keep(&mut self, id: FileId, why: Why, from: Option<FileId>) {
        if self.is_kept(id) {
            return;
        }
        if self.is_dropped(id) {
            self.left_out.entry(id).or_insert(Reason { why, from });
            return;
        }
        self.reasons[id.index()] = Some(Reason { why, from });
        self.open.push(id);
    }

    /// Keeps what is at `path`, links followed, and all links on the way; returns what it is.
    pub(super) fn keep_path(
        &mut self,
        path: &Path,
        why: Why,
        from: Option<FileId>,
    ) -> Option<FileId> {
        self.keep_path_in(FileId::ROOT, path, why, from)
    }

    fn keep_path_in(
        &mut self,
        folder: FileId,
        path: &Path,
        why: Why,
        from: Option<FileId>,
    ) -> Option<FileId> {
        let found = self.files.resolve_from(folder, path);
        let file = found.file?;
        for link in found.links {
            self.keep(link, Why::Link, from);
        }
        self.keep(file, why, from);
        Some(file)
    }

    /// Keeps what is at `path` as a program: what its text runs is followed too.
    pub(super) fn keep_program(
        &mut self,
        path: &Path,
        why: Why,
        from: Option<FileId>,
    ) -> Option<FileId> {
        let file = self.keep_path(path, why, from)?;
        if self.is_kept(file) && self.programs.insert(file) {
            self.data.remove(&file);
            self.open.push(file);
        }
        Some(file)
    }

    /// Keeps everything in the folder at `path` but what nobody needs in an image.
    pub(super) fn keep_folder(&mut self, path: &Path, why: &Why, from: Option<FileId>) {
        self.keep_folder_where(path, why, from, |_| true);
    }

    /// Keeps what `is_meant` accepts of the folder at `path`.
    pub(super) fn keep_folder_where(
        &mut self,
        path: &Path,
        why: &Why,
        from: Option<FileId>,
        is_meant: impl Fn(&str) -> bool,
    ) {
        let Some(folder) = self.keep_path(path, why.clone(), from) else { return };
        for id in self.files.below(folder) {
            if self.partition.origin(id) != Origin::Junk && is_meant(&self.files.text(id)) {
                self.keep(id, why.clone(), from);
            }
        }
    }

    /// Keeps the library that a program like `elf` gets when it asks for `name`; returns whether
    /// there is one.
    pub(super) fn keep_library(
        &mut self,
        program: FileId,
        elf: &Elf,
        name: &str,
        why: &Why,
    ) -> Result<bool, ViewError> {
        let Some(library) = self.libraries.find(program, elf, name)? else { return Ok(false) };
        self.keep_path(&library.path, why.clone(), Some(program));
        for variant in library.variants {
            self.keep_path(&variant, Why::LibraryVariant, Some(program));
        }
        Ok(true)
    }

    /// Whether this is the first time that `rule` is asked for.
    pub(super) fn is_first(&mut self, rule: &'static str) -> bool {
        self.rules.insert(rule)
    }

    /// Tells the user something.
    pub(super) fn note(&mut self, note: String) {
        self.notes.insert(note);
    }

    /// The value of a variable of the image's environment.
    pub(super) fn variable(&self, name: &str) -> Option<&'a str> {
        let values = self.op.env.iter().rev();
        values.filter_map(|line| line.split_once('=')).find(|(key, _)| *key == name).map(|(_, v)| v)
    }

    /// The program that `word` names where a container of the image runs.
    pub(super) fn which(&self, word: &str) -> Option<PathBuf> {
        let is_program = |path: &Path| {
            self.files.resolve(path).file.is_some_and(|id| self.files.is_executable(id))
        };
        if word.contains('/') {
            let path = Path::new("/").join(self.op.cwd.trim_start_matches('/')).join(word);
            return is_program(&path).then_some(path);
        }
        let path = self.variable("PATH").unwrap_or(DEFAULT_PATH);
        path.split(':')
            .filter(|folder| folder.starts_with('/'))
            .map(|folder| Path::new(folder).join(word))
            .find(|path| is_program(path))
    }

    /// Keeps what everything that is kept needs.
    pub(super) fn complete(&mut self) -> Result<(), SlimError> {
        while !self.open.is_empty() {
            let wave = std::mem::take(&mut self.open);
            let contents: Vec<Content> =
                wave.par_iter().map(|id| self.content(*id)).collect::<Result<_, ViewError>>()?;
            for (id, content) in wave.into_iter().zip(contents) {
                self.follow(id, content)?;
            }
        }
        Ok(())
    }

    /// What was kept.
    pub(super) fn finish(self) -> Kept {
        Kept {
            reasons: self.reasons,
            notes: self.notes.into_iter().collect(),
            unresolved: self.unresolved.into_iter().collect(),
            left_out: self.left_out.into_iter().collect(),
        }
    }

    /// What is wrong with the ELF file `id`, if it is a broken one that was looked at.
    pub(super) fn broken(&self, id: FileId) -> Option<&str> {
        self.broken.iter().find(|(broken, _)| *broken == id).map(|(_, reason)| &**reason)
    }

    fn content(&self, id: FileId) -> Result<Content, ViewError> {
        if !self.files.is_file(id) || self.data.contains(&id) {
            return Ok(Content::Other);
        }
        let runs = self.files.is_executable(id) || self.programs.contains(&id);
        let ending = self.files.name(id).rsplit_once('.').map_or("", |(_, ending)| ending);
        if !runs && DATA.binary_search(&ending).is_ok() {
            return Ok(Content::Other);
        }
        let Some(mut file) = self.files.open(id)? else { return Ok(Content::Other) };
        let mut start = Vec::with_capacity(shebang::LENGTH);
        let limit = u64::try_from(shebang::LENGTH).expect("a small number");
        let read = (&mut file).take(limit).read_to_end(&mut start);
        read.map_err(|source| self.files.unreadable(id, source))?;
        if start.starts_with(elf::MAGIC) {
            return match elf::parse(&mut file) {
                Ok(elf) => Ok(Content::Elf(Box::new(elf))),
                Err(error @ ElfError::Broken(_)) => Ok(Content::Broken(error.to_string())),
                Err(ElfError::Io(source)) => Err(self.files.unreadable(id, source)),
            };
        }
        let Some(shebang) = Shebang::of(&start).filter(|_| runs) else { return Ok(Content::Other) };
        let is_shell = shebang::is_shell(shebang.command.as_ref().unwrap_or(&shebang.interpreter));
        if !is_shell || !self.programs.contains(&id) {
            return Ok(Content::Script { shebang, text: None });
        }
        let Some(text) = self.files.read_file(id)? else { return Ok(Content::TooLong(shebang)) };
        let text = Some(String::from_utf8_lossy(&text).into_owned());
        Ok(Content::Script { shebang, text })
    }

    fn follow(&mut self, id: FileId, content: Content) -> Result<(), SlimError> {
        if let Some(target) = self.files.get(id).target.clone() {
            self.follow_link(id, &target);
        }
        match content {
            Content::Elf(elf) => self.follow_elf(id, &elf)?,
            Content::Broken(reason) => {
                let path = self.files.text(id);
                self.note(format!("cannot say what `{path}` needs: {reason}; it is kept as it is"));
                self.broken.push((id, reason));
            }
            Content::Script { shebang, text } if self.is_run(id) => {
                self.follow_script(id, &shebang, text.as_deref());
            }
            Content::TooLong(shebang) => {
                let path = self.files.text(id);
                self.note(format!("the script `{path}` is too long to say which programs it runs"));
                self.follow_script(id, &shebang, None);
            }
            Content::Script { .. } | Content::Other => {}
        }
        if self.op.mode == SlimMode::Trace {
            return Ok(());
        }
        python::follow(self, id)?;
        node::follow(self, id)?;
        java::follow(self, id);
        ruby::follow(self, id);
        perl::follow(self, id);
        php::follow(self, id);
        Ok(())
    }

    fn follow_link(&mut self, link: FileId, target: &Path) {
        let parent = self.files.get(link).parent;
        let found = self.files.resolve_from(parent, target);
        let Some(file) = found.file else { return };
        if self.files.is_directory(file) {
            let path = self.files.path(file);
            for crossed in found.links {
                self.keep(crossed, Why::Link, Some(link));
            }
            // The links of a merged /usr are kept by themselves.
            if self.partition.is_users(link) && self.is_small(file) {
                self.keep_folder(&path, &Why::Link, Some(link));
            }
            return;
        }
        self.keep_path_in(parent, target, Why::Link, Some(link));
    }

    /// Whether a script is run, as far as its place tells.
    fn is_run(&self, id: FileId) -> bool {
        if self.programs.contains(&id) {
            return true;
        }
        let path = self.files.path(id);
        let in_package = path.iter().any(|part| THIRD_PARTY.iter().any(|name| part == *name));
        self.partition.is_users(id) && self.files.is_executable(id) && !in_package
    }

    fn follow_script(&mut self, id: FileId, shebang: &Shebang, text: Option<&str>) {
        self.keep_program(Path::new(&shebang.interpreter), Why::Interpreter, Some(id));
        if let Some(command) = &shebang.command
            && let Some(path) = self.which(command)
        {
            self.keep_program(&path, Why::Interpreter, Some(id));
        }
        if let Some(text) = text {
            self.keep_commands(text, Some(id));
        }
    }

    /// Keeps the commands of the shell script `text` that there are.
    pub(super) fn keep_commands(&mut self, text: &str, from: Option<FileId>) {
        for word in shell::commands(text) {
            if let Some(path) = self.which(&word) {
                self.keep_program(&path, Why::Command(word), from);
            }
        }
    }

    fn follow_elf(&mut self, id: FileId, elf: &Elf) -> Result<(), SlimError> {
        if let Some(interpreter) = &elf.interpreter {
            self.keep_path(Path::new(interpreter), Why::Loader, Some(id));
        }
        for name in &elf.needed {
            let why = Why::Library(name.clone());
            if !self.keep_library(id, elf, name, &why)? {
                self.look_everywhere(id, elf.machine, name, &why)?;
            }
        }
        if self.op.mode == SlimMode::Trace {
            // What the program did not open it is not given.
            return Ok(());
        }
        if elf.is_cut {
            let path = self.files.text(id);
            self.note(format!("not all of the data of `{path}` was looked through for names"));
        }
        let name = self.files.name(id);
        let is_libc = name.starts_with("libc.so") || name.starts_with("libc-2");
        if is_libc || elf.imports.contains("dlopen") || elf.imports.contains("dlmopen") {
            for name in &elf.library_names {
                let why = Why::LoadedByName(name.clone());
                self.keep_library(id, elf, name, &why)?;
            }
        }
        for path in &elf.paths {
            self.keep_named(id, path);
        }
        self.follow_functions(id, elf)
    }

    /// A library that the loader does not find by itself: the program knows where it is.
    fn look_everywhere(
        &mut self,
        id: FileId,
        machine: Machine,
        name: &str,
        why: &Why,
    ) -> Result<(), ViewError> {
        let places = self.libraries.find_anywhere(id, machine, name)?;
        if places.is_empty() {
            self.unresolved.insert((self.files.text(id), name.to_owned()));
        }
        for place in places {
            self.keep_path(&place, why.clone(), Some(id));
        }
        Ok(())
    }

    /// Keeps what is at `path`, which stands among the data of the program `id`, unless that is a
    /// program itself, or more than a program is likely to need.
    fn keep_named(&mut self, id: FileId, path: &str) {
        let found = self.files.resolve(Path::new(path));
        let Some(file) = found.file else { return };
        let is_known = self.is_kept(file) && !self.files.is_directory(file);
        if is_known || self.partition.origin(file) == Origin::Junk {
            return;
        }
        if is_never_named(&self.files.text(file)) {
            let is_program = self.files.is_executable(file) && self.partition.is_users(id);
            if is_program && !shebang::is_shell(path) {
                let by = self.files.text(id);
                self.note(format!(
                    "`{by}` names the program `{path}`, which is not kept: if it runs it, \
                     `--slim-keep {path}` keeps it"
                ));
            }
            return;
        }
        let why = Why::PathInProgram(path.to_owned());
        if !self.files.is_directory(file) {
            self.keep_as_data(file);
            self.keep_path(Path::new(path), why, Some(id));
        } else if self.is_small(file) {
            for inside in self.files.below(file) {
                let is_program =
                    self.files.is_executable(inside) && is_never_named(&self.files.text(inside));
                if self.partition.origin(inside) != Origin::Junk && !is_program {
                    self.keep_as_data(inside);
                    self.keep(inside, why.clone(), Some(id));
                }
            }
            self.keep_path(Path::new(path), why, Some(id));
        }
    }

    /// Scripts that are only named are not run: their interpreters are not kept for them.
    fn keep_as_data(&mut self, id: FileId) {
        let is_library = self.files.name(id).contains(".so");
        if !self.is_kept(id) && !is_library {
            self.data.insert(id);
        }
    }

    fn is_small(&self, folder: FileId) -> bool {
        let mut bytes = 0;
        let mut count = 0;
        for id in self.files.below(folder) {
            count += 1;
            bytes += self.files.size(id);
            if count > FOLDER_FILES_MAX || bytes > FOLDER_BYTES_MAX {
                return false;
            }
        }
        true
    }

    fn follow_functions(&mut self, id: FileId, elf: &Elf) -> Result<(), SlimError> {
        for function in &elf.imports {
            match *function {
                "iconv_open" => charset::keep(self, id),
                "setlocale" | "newlocale" => locale::keep(self, id),
                "SSL_CTX_set_default_verify_paths" | "X509_STORE_set_default_paths" => {
                    certificates::keep(self, id);
                }
                "setupterm" | "initscr" | "newterm" | "tgetent" => terminal::keep(self, id),
                "pam_start" => authentication::keep(self, id),
                function if function.starts_with("get") => name_service::keep(self, id, elf)?,
                _ => {}
            }
        }
        Ok(())
    }
}

/// Folders that are never kept because a path to them stands in a program: they hold what everybody
/// has, and what of it is needed is found otherwise.
fn is_never_named(path: &str) -> bool {
    const FOLDERS: &[&str] = &[
        "/",
        "/usr",
        "/usr/lib",
        "/usr/lib64",
        "/usr/share",
        "/usr/local",
        "/usr/local/lib",
        "/usr/local/share",
        "/usr/include",
        "/usr/src",
        "/usr/libexec",
        "/var",
        "/var/lib",
        "/var/spool",
        "/etc",
        "/lib",
        "/lib64",
        "/opt",
        "/home",
        "/root",
        "/srv",
        "/mnt",
        "/media",
        "/tmp",
        "/usr/share/locale",
        "/usr/share/doc",
        "/usr/share/man",
        "/usr/share/zoneinfo",
    ];
    const PROGRAMS: &[&str] = &[
        "/bin",
        "/sbin",
        "/usr/bin",
        "/usr/sbin",
        "/usr/games",
        "/usr/local/bin",
        "/usr/local/sbin",
        "/usr/libexec",
    ];
    let is_inside = |folder: &str| {
        path.strip_prefix(folder).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    let name = path.rsplit('/').next().unwrap_or_default();
    FOLDERS.contains(&path)
        || PROGRAMS.iter().any(|folder| is_inside(folder))
        || name == "gconv"
        || path.contains("/gconv/")
        || name.contains("-linux-gnu")
        || name.contains("-linux-musl")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_endings_are_sorted() {
        assert!(DATA.is_sorted());
    }

    #[test]
    fn what_everybody_has_is_not_kept_because_it_is_named() {
        let check =
            |path: &str, expected: bool| assert_eq!(is_never_named(path), expected, "{path}");
        check("/bin/sh", true);
        check("/usr/bin/perl", true);
        check("/usr/lib/x86_64-linux-gnu", true);
        check("/usr/lib/x86_64-linux-gnu/gconv", true);
        check("/usr/share/zoneinfo", true);
        check("/usr/lib/ssl", false);
        check("/usr/share/nodejs/acorn/dist/acorn.js", false);
        check("/etc/ssl/openssl.cnf", false);
        check("/usr/bingo", false);
    }
}
