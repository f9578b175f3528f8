//! `--slim`: of a tree, what its program needs, as two layers.
//!
//! The principle: prune the distribution, never the user. A file that a package of the distribution
//! brought, and that nobody changed, is kept if something leads to it; all else is kept anyway. What
//! leads to a file is found without running anything:
//!
//! 1. `files` reads the tree, `package` its database, `partition` says whose each file is.
//! 2. `roots` keeps the program, what the image names, and the user's files.
//! 3. `closure` follows all that is kept to what it needs, until nothing new comes: links, loaders,
//!    libraries (`elf`, `libraries`, `ldconfig`), scripts (`shebang`, `shell`), functions that need
//!    files (`charset`, `locale`, `certificates`, …), whole runtimes (`python`, `java`, …).
//! 4. `base`, `licenses` and `metadata` add what every image has, what has to be handed on, and what
//!    scanners read.
//! 5. `layers` writes the result; `report` says why, and is kept as a third layer: it is found,
//!    shared and pruned with the result.
//!
//! With `--slim=auto` and `--slim=trace` the image is run as well, full and slim, and asked (`probe`,
//! `compare`, `verify`).
//!
//! Nothing here changes the tree that is given. Nothing depends on the machine: a tree for another
//! platform is slimmed the same way, but not run.

pub mod report;

mod authentication;
mod base;
mod certificates;
mod charset;
mod closure;
mod compare;
mod elf;
mod files;
mod java;
mod layers;
mod ldconfig;
mod libraries;
mod licenses;
mod locale;
mod metadata;
mod name_service;
mod node;
mod package;
mod partition;
mod perl;
mod php;
mod probe;
mod python;
mod reason;
mod roots;
mod ruby;
mod shebang;
mod shell;
mod terminal;
mod verify;

use std::io;
use std::path::{Path, PathBuf};

use rbuild_cache::digest::{CacheKey, Digest, TreeDigest};
use rbuild_cache::oci::Platform;
use rbuild_cache::pattern::PatternError;
use rbuild_cache::snapshot::{Snapshot, SnapshotError};
use rbuild_cache::state::StateFolder;
use rbuild_cache::view::{View, ViewError};

use self::closure::{Closure, Kept};
use self::files::{FileId, Files};
pub use self::layers::Part;
pub use self::reason::Why;

use self::layers::{Layers, Made, MadeKind};
use self::package::Packages;
use self::partition::Partition;
use self::report::SlimReport;
use crate::error::Cause;
use crate::graph::{SlimMode, SlimOp};
use crate::key::{self, InputDigest};
use crate::ops::{Work, Worker, blocking, tree};
use crate::progress::EventKind;
use crate::single_flight;
use crate::tree::{Output, Tree, TreeLayer};

/// Says why a tree could not be slimmed.
#[derive(Debug, thiserror::Error)]
pub enum SlimError {
    /// There is nothing to begin with.
    #[error("the image has neither ENTRYPOINT nor CMD: what it needs cannot be told")]
    NoCommand,
    /// The program is not in the image.
    #[error("the image runs `{name}`, which is no program in it")]
    MissingProgram {
        /// The first word of what it runs.
        name: String,
        /// The image's PATH.
        path: String,
    },
    /// The program is left out.
    #[error("`--slim-drop` leaves out `{}`, which the image runs", path.display())]
    DroppedProgram {
        /// The program, or what it cannot start without.
        path: PathBuf,
    },
    /// The program cannot be read.
    #[error("cannot say what the program `{}` needs: {reason}", path.display())]
    BrokenProgram {
        /// The program.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The full image does not pass its own probe.
    #[error("the probe fails on the full image already: {reason}")]
    ProbeFails {
        /// What it said.
        reason: String,
    },
    /// A pattern makes no sense.
    #[error(transparent)]
    Pattern(#[from] PatternError),
    /// The tree could not be read.
    #[error(transparent)]
    View(#[from] ViewError),
    /// The result could not be written.
    #[error("cannot write `{}`", path.display())]
    Io {
        /// The path in the tree.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The result could not be kept.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
}

impl SlimError {
    fn io(path: &Path, source: io::Error) -> Self {
        Self::Io { path: Path::new("/").join(path), source }
    }

    /// What the user can do.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::NoCommand => Some("give the image an ENTRYPOINT or a CMD".into()),
            Self::MissingProgram { name, path } if !name.contains('/') && !path.is_empty() => {
                Some(format!("it was looked for in `{path}`"))
            }
            Self::ProbeFails { .. } => Some(
                "mend it, give it more time with `--slim-probe-timeout`, or slim without running \
                 anything: `--slim=closure`"
                    .into(),
            ),
            Self::DroppedProgram { .. } => Some("leave it out of `--slim-drop`".into()),
            Self::BrokenProgram { .. }
            | Self::MissingProgram { .. }
            | Self::Pattern(_)
            | Self::View(_)
            | Self::Io { .. }
            | Self::Snapshot(_) => None,
        }
    }
}

/// What runs of the image showed; paths as they were asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Observed {
    /// What a run of the full image opened.
    pub(crate) opened: Vec<PathBuf>,
    /// What a run of the slim image looked for in vain although the full image has it.
    pub(crate) put_back: Vec<PathBuf>,
}

/// A tree, read: what is decided of it can be decided again with more [`Observed`].
pub(crate) struct Subject {
    files: Files,
    packages: Packages,
    partition: Partition,
    from: TreeDigest,
}

/// A slim tree that was written.
#[derive(Clone, Debug)]
pub(crate) struct Slimmed {
    /// The lower layer.
    pub(crate) runtime: Snapshot,
    /// The upper layer.
    pub(crate) application: Snapshot,
    /// What is in them and why.
    pub(crate) report: SlimReport,
}

impl Subject {
    /// Reads the tree `view`, whose digest is `from`.
    pub(crate) fn read(view: &View, from: TreeDigest) -> Result<Self, SlimError> {
        let files = Files::read(view)?;
        let packages = Packages::read(&files)?;
        let partition = Partition::of(&files, &packages)?;
        Ok(Self { files, packages, partition, from })
    }

    /// Decides what is kept and writes it.
    pub(crate) fn slim(
        &self,
        op: &SlimOp,
        observed: &Observed,
        state: &StateFolder,
    ) -> Result<Slimmed, SlimError> {
        let (kept, made) = self.select(op, observed)?;
        let Self { files, packages, partition, from } = self;
        let is_kept = |id: &FileId| kept.reasons[id.index()].is_some();
        let layers =
            Layers::new(files, partition, files.ids().skip(1).filter(is_kept), made.clone());
        let (runtime, application) = rayon::join(
            || layers.commit(Part::Runtime, state),
            || layers.commit(Part::Application, state),
        );
        let (kept, made) = (&kept, &made[..]);
        let subject = report::Subject { op, from: *from, files, packages, partition, kept, made };
        let report = SlimReport::of(&subject);
        Ok(Slimmed { runtime: runtime?, application: application?, report })
    }

    /// Decides what is kept, and what is written besides.
    fn select(&self, op: &SlimOp, observed: &Observed) -> Result<(Kept, Vec<Made>), SlimError> {
        let Self { files, packages, partition, .. } = self;
        let mut closure = Closure::new(files, packages, partition, op)?;
        let program = roots::keep(&mut closure)?;
        base::keep(&mut closure);
        closure.complete()?;
        roots::keep_observed(&mut closure, observed);
        closure.complete()?;
        if let Some(reason) = closure.broken(program) {
            let (path, reason) = (files.path(program), reason.to_owned());
            return Err(SlimError::BrokenProgram { path, reason });
        }
        licenses::keep(&mut closure)?;
        closure.complete()?;
        let mut made = base::made(files, op.base)?;
        made.extend(metadata::made(files, packages, |id| closure.is_kept(id)));
        let is_kept = |id| closure.is_kept(id);
        if let Some(cache) = closure.libraries().folders().pruned_cache(files, is_kept) {
            let metadata = files.resolve(Path::new(ldconfig::CACHE)).file;
            let time = metadata.map(|id| files.get(id).entry.metadata().modified);
            made.push(Made {
                path: ldconfig::CACHE.trim_start_matches('/').into(),
                kind: MadeKind::File(cache),
                mode: 0o644,
                uid: 0,
                gid: 0,
                time: time.unwrap_or_default(),
            });
        }
        let mut kept = closure.finish();
        self.judge_left_out(program, &mut kept)?;
        Ok((kept, made))
    }

    /// Says what `--slim-drop` leaves out although something kept needs it.
    ///
    /// # Errors
    /// When the program itself cannot start without.
    fn judge_left_out(&self, program: FileId, kept: &mut Kept) -> Result<(), SlimError> {
        for (id, reason) in &kept.left_out {
            let Some(from) = reason.from else { continue };
            let is_vital = matches!(reason.why, Why::Loader | Why::Library(_) | Why::Interpreter);
            if !is_vital {
                continue;
            }
            if from == program {
                return Err(SlimError::DroppedProgram { path: self.files.path(*id) });
            }
            let (path, by) = (self.files.text(*id), self.files.text(from));
            kept.notes.push(format!("`--slim-drop` leaves out `{path}`, which `{by}` needs"));
        }
        Ok(())
    }
}

impl Worker {
    /// What of input 0 its program needs: a tree of two layers.
    pub(crate) async fn slim(
        &self,
        work: &Work<'_>,
        op: &SlimOp,
        mut inputs: Vec<Output>,
    ) -> Result<Tree, Cause> {
        let full = tree(inputs.remove(0))?;
        let digests = [InputDigest::Tree(full.digest())];
        let key = key::definition(&work.vertex.op, &[full.digest()]);
        if let Some(known) = self.known_slim(work, &key, &full).await? {
            Self::hit(work);
            return Ok(known);
        }
        let _flight = single_flight::lock(self.surroundings.state.locks(), &key).await?;
        if let Some(known) = self.known_slim(work, &key, &full).await? {
            Self::hit(work);
            return Ok(known);
        }
        self.miss(work, &part_keys(&key), &digests, None);
        let view = self.view(&full, &work.task).await?;
        let from = full.digest();
        let (state, slim_op) = (self.surroundings.state.clone(), op.clone());
        let can_run = can_run(op);
        let subject = blocking(move || Ok(Subject::read(&view, from)?)).await?;
        let mut slimmed = if can_run {
            self.slim_verified(work, op, &full, subject).await?
        } else {
            blocking(move || Ok(subject.slim(&slim_op, &Observed::default(), &state)?)).await?
        };
        if !can_run && op.mode != SlimMode::Closure {
            let note = format!("nothing of an image for {} can be run here", op.platform);
            slimmed.report.notes.push(format!("{note}: its answers were not compared"));
        }
        for note in &slimmed.report.notes {
            work.task.tell(EventKind::Warning { message: note.clone() });
        }
        self.record_slim(work, &key, full, slimmed, &digests).await
    }

    /// The result under `key` for the tree `full`; there is none if a layer of it or its report is
    /// gone.
    async fn known_slim(
        &self,
        work: &Work<'_>,
        key: &CacheKey,
        full: &Tree,
    ) -> Result<Option<Tree>, Cause> {
        let [report_key, runtime_key, application_key] = part_keys(key);
        let Some(layer) = self.known(work, &report_key).await? else { return Ok(None) };
        // What others say of their result is only a result if it can be read.
        let of_report = Tree::default().with_layer(layer.clone());
        let ids = self.realize(&of_report, &work.task).await?;
        let state = self.surroundings.state.clone();
        let report = blocking(move || SlimReport::read(&state, &ids).map_err(Cause::state)).await?;
        let result = match report.map(|report| report.outcome) {
            None | Some(report::Outcome::Full { late: true, .. }) => return Ok(None),
            Some(report::Outcome::Full { .. }) => full.clone(),
            Some(report::Outcome::Slim) => {
                let runtime = self.known(work, &runtime_key).await?;
                let application = self.known(work, &application_key).await?;
                let Some((runtime, application)) = runtime.zip(application) else {
                    return Ok(None);
                };
                let below = self.came_to(vec![runtime_key], Tree::default(), runtime);
                self.came_to(vec![application_key], below, application)
            }
        };
        self.came_to(vec![report_key], Tree::default(), layer);
        Ok(Some(result))
    }

    /// Writes down what `full` was slimmed to, and returns the result: itself, when what came of it
    /// does not work.
    async fn record_slim(
        &self,
        work: &Work<'_>,
        key: &CacheKey,
        full: Tree,
        slimmed: Slimmed,
        digests: &[InputDigest],
    ) -> Result<Tree, Cause> {
        let Slimmed { runtime, application, report } = slimmed;
        let [report_key, runtime_key, application_key] = part_keys(key);
        let mut result = full;
        if report.outcome == report::Outcome::Slim {
            result = Tree::default();
            for (key, layer) in [(runtime_key, runtime), (application_key, application)] {
                let layer = TreeLayer::Snapshot(layer);
                self.record(work, vec![key], &layer, digests).await?;
                result = self.came_to(vec![key], result, layer);
            }
        }
        // The report comes last: with it the result is there.
        let is_final = !matches!(report.outcome, report::Outcome::Full { late: true, .. });
        let state = self.surroundings.state.clone();
        let layer = blocking(move || report.commit(&state).map_err(Cause::state)).await?;
        let layer = TreeLayer::Snapshot(layer);
        self.record(work, vec![report_key], &layer, digests).await?;
        if is_final {
            self.came_to(vec![report_key], Tree::default(), layer);
        }
        Ok(result)
    }
}

/// Whether the program is to be run, and can be.
fn can_run(op: &SlimOp) -> bool {
    let (host, of_image) = (Platform::host(), &op.platform);
    let is_ours = (&of_image.os, &of_image.architecture) == (&host.os, &host.architecture);
    op.mode != SlimMode::Closure && is_ours
}

/// The keys of what the result under `key` consists of: report, runtime, application.
fn part_keys(key: &CacheKey) -> [CacheKey; 3] {
    [report::key(key), key::part(key, "runtime"), key::part(key, "application")]
}

/// What the report of `op` over the tree `from` is called.
pub fn report_name(op: &crate::graph::Op, from: TreeDigest) -> Digest {
    report::name(op, from)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::os::unix::fs::MetadataExt;

    use super::elf::tests::Program;
    use super::files::tests::TestTree;
    use super::report::Answer;
    use super::*;
    use crate::graph::{SlimBase, SlimProbe};

    const LIBC: &str = "usr/lib/x86_64-linux-gnu/libc.so.6";
    const LOADER: &str = "/lib64/ld-linux-x86-64.so.2";

    fn op(command: &[&str]) -> SlimOp {
        SlimOp {
            rules: SlimOp::RULES,
            mode: SlimMode::Closure,
            command: command.iter().map(|word| (*word).to_owned()).collect(),
            env: vec!["PATH=/usr/local/bin:/usr/bin:/bin".into()],
            cwd: "/".into(),
            user: None,
            healthcheck: Vec::new(),
            volumes: Vec::new(),
            probe: SlimProbe::Alive,
            probe_timeout: 0,
            keep: Vec::new(),
            drop: Vec::new(),
            base: SlimBase::None,
            platform: Platform::new("linux", "amd64", None),
        }
    }

    /// A Debian whose packages own everything in `files` but what is below `/app`, `/opt`,
    /// `/usr/local` and `/etc/alternatives`; with a C library, a loader and merged folders.
    fn debian(files: &[(&str, &str)], programs: &[(&str, Program<'_>)]) -> TestTree {
        let tree = TestTree::new(&[
            ("bin -> usr/bin", ""),
            ("lib -> usr/lib", ""),
            ("lib64 -> usr/lib64", ""),
            ("usr/share/doc/libc6/copyright", "see /usr/share/common-licenses/LGPL-2.1"),
            ("usr/share/common-licenses/LGPL-2.1", "LGPL"),
        ]);
        let libc = Program::default();
        let loader = ("x:usr/lib64/ld-linux-x86-64.so.2", Program::default());
        let of_libc = [loader.0.trim_start_matches("x:"), LIBC, "usr/share/doc/libc6/copyright"];
        if programs.iter().all(|(path, _)| *path != LIBC) {
            tree.add(LIBC, &libc.bytes());
        }
        tree.add(loader.0, &loader.1.bytes());
        let mut list: Vec<String> = Vec::new();
        for (path, text) in files {
            tree.add(path, text.as_bytes());
            list.push((*path).to_owned());
        }
        for (path, program) in programs {
            tree.add(path, &program.bytes());
            list.push((*path).to_owned());
        }
        let is_users = |path: &str| {
            ["app/", "opt/", "usr/local/", "etc/alternatives/"]
                .iter()
                .any(|at| path.starts_with(at))
        };
        let plain = |path: &String| {
            let path = path.trim_start_matches("x:").split(" -> ").next().unwrap().to_owned();
            format!("/{path}\n")
        };
        let others: String = list
            .iter()
            .filter(|path| !is_users(path.trim_start_matches("x:")))
            .map(plain)
            .filter(|path| !path.contains("libc.so.6"))
            .collect();
        let of_libc: Vec<String> = of_libc.iter().map(|path| format!("/{path}\n")).collect();
        let paragraph = |name: &str| {
            format!(
                "Package: {name}\nStatus: install ok installed\nArchitecture: amd64\nVersion: 1\n\n"
            )
        };
        let status = [paragraph("libc6"), paragraph("others"), paragraph("unused")].concat();
        tree.add("var/lib/dpkg/status", status.as_bytes());
        tree.add("var/lib/dpkg/info/libc6.list", of_libc.concat().as_bytes());
        tree.add("var/lib/dpkg/info/others.list", others.as_bytes());
        tree.add("usr/bin/unused", b"");
        tree.add("var/lib/dpkg/info/unused.list", b"/usr/bin/unused\n");
        tree
    }

    /// A program that the C library loads.
    fn program<'a>() -> Program<'a> {
        Program { interpreter: LOADER, needed: &["libc.so.6"], ..Program::default() }
    }

    struct Result {
        slimmed: Slimmed,
        state: StateFolder,
        _folder: tempfile::TempDir,
    }

    fn slim(tree: &TestTree, op: &SlimOp) -> std::result::Result<Result, SlimError> {
        let folder = tempfile::tempdir().unwrap();
        let state = StateFolder::open(folder.path()).unwrap();
        let view = View::layers(vec![tree.folder.path().to_owned()]);
        let subject = Subject::read(&view, TreeDigest(Digest::of("x")))?;
        let slimmed = subject.slim(op, &Observed::default(), &state)?;
        Ok(Result { slimmed, state, _folder: folder })
    }

    impl Result {
        fn has(&self, path: &str) -> bool {
            matches!(self.slimmed.report.why(path), Answer::Kept(_))
        }

        fn text(&self, path: &str) -> String {
            let snapshots = self.state.snapshots();
            let ids = [self.slimmed.runtime.id.clone(), self.slimmed.application.id.clone()];
            let view = View::layers(snapshots.lower(&ids).unwrap());
            Files::read(&view).unwrap().read_text(path).unwrap().unwrap_or_default()
        }
    }

    /// Slims a tree whose program is `/app/run`; `kept` must be kept then, and `dropped` not.
    #[track_caller]
    fn check(tree: &TestTree, op: &SlimOp, kept: &[&str], dropped: &[&str]) -> Result {
        let result = slim(tree, op).unwrap();
        for path in kept {
            assert!(result.has(path), "{path} is not kept");
        }
        for path in dropped {
            assert!(!result.has(path), "{path} is kept: {:?}", result.slimmed.report.why(path));
        }
        result
    }

    #[test]
    fn a_program_has_its_loader_and_libraries_through_merged_folders() {
        let tree = debian(&[("x:usr/bin/sh", "sh")], &[("x:app/run", program())]);
        let kept = ["/app/run", "/lib64", "/usr/lib64/ld-linux-x86-64.so.2", "/bin", "/lib"];
        let licenses = ["/usr/share/doc/libc6/copyright", "/usr/share/common-licenses/LGPL-2.1"];
        let libc = format!("/{LIBC}");
        let kept = [&kept[..], &[&libc], &licenses].concat();
        let result = check(&tree, &op(&["/app/run"]), &kept, &["/usr/bin/sh", "/usr/bin/unused"]);
        let packages: Vec<String> = ["libc6", "others", "unused"]
            .map(|name| format!("/var/lib/dpkg/status.d/{name}"))
            .into();
        assert!(result.has(&packages[0]) && !result.has(&packages[2]));
        assert!(result.text(&packages[0]).starts_with("Package: libc6\n"));
    }

    #[test]
    fn libraries_that_are_loaded_by_name_are_kept() {
        let libc = Program { data: &["libgcc_s.so.1"], ..Program::default() };
        let folder = "usr/lib/x86_64-linux-gnu";
        let libraries = [
            (LIBC, libc),
            ("usr/lib/x86_64-linux-gnu/libgcc_s.so.1", Program::default()),
            ("usr/lib/x86_64-linux-gnu/libplugin.so.1", Program::default()),
            ("usr/lib/x86_64-linux-gnu/libother.so.1", Program::default()),
            ("x:app/run", Program { imports: &["dlopen"], data: &["libplugin.so.1"], ..program() }),
        ];
        let tree = debian(&[], &libraries);
        let path = |name: &str| format!("/{folder}/{name}");
        let kept = [path("libgcc_s.so.1"), path("libplugin.so.1")];
        let kept: Vec<&str> = kept.iter().map(String::as_str).collect();
        check(&tree, &op(&["/app/run"]), &kept, &[&path("libother.so.1")]);
    }

    #[test]
    fn character_sets_are_kept_for_those_who_convert_and_not_for_libraries_that_could() {
        let module = "usr/lib/x86_64-linux-gnu/gconv/ISO8859-15.so";
        let converts = Program { imports: &["iconv_open"], ..program() };
        let idn = "usr/lib/x86_64-linux-gnu/libidn2.so.0";
        let needs_idn = Program { needed: &["libidn2.so.0", "libc.so.6"], ..program() };
        let hint = Program { data: &["/usr/lib/x86_64-linux-gnu/gconv"], ..Program::default() };
        let tree =
            debian(&[(module, "")], &[("x:app/run", needs_idn), (idn, converts), (LIBC, hint)]);
        let module = format!("/{module}");
        check(&tree, &op(&["/app/run"]), &[], &[&module]);
        let tree = debian(&[(&module[1..], "")], &[("x:app/run", converts)]);
        check(&tree, &op(&["/app/run"]), &[&module], &[]);
    }

    #[test]
    fn paths_in_programs_are_kept_but_no_programs_for_them() {
        let files = [
            ("usr/lib/ssl/openssl.cnf -> /etc/ssl/openssl.cnf", ""),
            ("etc/ssl/openssl.cnf", "settings"),
            ("x:usr/lib/ssl/misc/CA.pl", "#!/usr/bin/perl\n"),
            ("x:usr/bin/perl", "perl"),
            ("x:usr/bin/mail", "mail"),
            ("usr/share/big/a", "a"),
        ];
        let data = ["/usr/lib/ssl", "/usr/bin/mail", "/usr/share", "/usr"];
        let tree = debian(&files, &[("x:app/run", Program { data: &data, ..program() })]);
        let kept = ["/usr/lib/ssl/openssl.cnf", "/etc/ssl/openssl.cnf", "/usr/lib/ssl/misc/CA.pl"];
        let dropped = ["/usr/bin/perl", "/usr/bin/mail", "/usr/share/big/a"];
        let result = check(&tree, &op(&["/app/run"]), &kept, &dropped);
        let notes = result.slimmed.report.notes.join("\n");
        assert!(notes.contains("/usr/bin/mail"), "the user is told: {notes}");
    }

    #[test]
    fn an_interpreter_is_kept_with_its_library_and_without_its_tests() {
        let files = [
            ("x:app/run", "#!/usr/bin/env python3\n"),
            ("usr/bin/python3 -> python3.11", ""),
            ("usr/lib/python3.11/os.py", ""),
            ("usr/lib/python3.11/test/test_os.py", ""),
            ("usr/share/doc/others/copyright", "free"),
        ];
        let env = ("x:usr/bin/env", program());
        let tree = debian(&files, &[env, ("x:usr/bin/python3.11", program())]);
        // The library is a package of its own.
        let status =
            fs_err::read_to_string(tree.folder.path().join("var/lib/dpkg/status")).unwrap();
        let paragraph =
            "Package: libpython3.11-stdlib\nStatus: install ok installed\nVersion: 3\n\n";
        tree.add("var/lib/dpkg/status", (paragraph.to_owned() + &status).as_bytes());
        tree.add(
            "var/lib/dpkg/info/libpython3.11-stdlib.list",
            b"/usr/lib/python3.11/os.py\n/usr/lib/python3.11/test/test_os.py\n",
        );
        let kept = [
            "/usr/bin/env",
            "/usr/bin/python3",
            "/usr/bin/python3.11",
            "/usr/lib/python3.11/os.py",
        ];
        let result =
            check(&tree, &op(&["/app/run"]), &kept, &["/usr/lib/python3.11/test/test_os.py"]);
        let Answer::Kept(chain) = result.slimmed.report.why("/usr/lib/python3.11/os.py") else {
            panic!("it is kept");
        };
        let chain: Vec<&str> = chain.iter().map(|file| &*file.path).collect();
        assert_eq!(chain, ["/usr/lib/python3.11/os.py", "/usr/bin/python3.11", "/app/run"]);
    }

    #[test]
    fn a_java_runtime_is_kept_whole_with_one_of_its_programs() {
        let home = "usr/lib/jvm/java-17-openjdk-amd64";
        let files = [
            ("usr/bin/java -> /etc/alternatives/java", ""),
            ("etc/alternatives/java -> /usr/lib/jvm/java-17-openjdk-amd64/bin/java", ""),
            ("usr/lib/jvm/java-17-openjdk-amd64/lib/modules", "classes"),
            ("x:usr/lib/jvm/java-17-openjdk-amd64/bin/keytool", ""),
            ("etc/java-17-openjdk/security/java.security", ""),
            ("usr/lib/jvm/java-17-openjdk-amd64/conf -> /etc/java-17-openjdk", ""),
        ];
        let java = format!("x:{home}/bin/java");
        let libjava = format!("{home}/lib/libjava.so");
        let tree = debian(&files, &[(&java, program()), (&libjava, Program::default())]);
        let modules = format!("/{home}/lib/modules");
        let kept = [
            "/usr/bin/java",
            "/etc/alternatives/java",
            "/etc/java-17-openjdk/security/java.security",
            &modules,
        ];
        check(&tree, &op(&["java", "Main"]), &kept, &[&format!("/{home}/bin/keytool")]);
    }

    #[test]
    fn shells_come_in_for_scripts_that_are_run_and_for_no_others() {
        let files = [
            ("x:usr/bin/dash", "sh"),
            ("usr/bin/sh -> dash", ""),
            ("usr/bin/awk -> /etc/alternatives/awk", ""),
            ("etc/alternatives/awk -> /usr/bin/mawk", ""),
            ("x:usr/bin/mawk", "mawk"),
            ("x:usr/bin/date", "date"),
            ("x:app/node_modules/x/build.sh", "#!/bin/sh\nmake\n"),
            ("app/notes.sh", "#!/bin/sh\n"),
        ];
        let tree = debian(&files, &[("x:app/run", program())]);
        let none = ["/usr/bin/dash", "/usr/bin/mawk", "/usr/bin/awk", "/etc/alternatives/awk"];
        check(&tree, &op(&["/app/run"]), &["/app/notes.sh"], &none);
        let shell_form = op(&["/bin/sh", "-c", "date && exec /app/run"]);
        let result =
            check(&tree, &shell_form, &["/usr/bin/dash", "/usr/bin/date"], &["/usr/bin/mawk"]);
        assert_eq!(result.slimmed.report.shells_kept, ["/usr/bin/dash"]);
        tree.add("x:app/entry", b"#!/bin/sh\nawk x\nexec \"$@\"\n");
        let entry = op(&["/app/entry", "date"]);
        check(&tree, &entry, &["/usr/bin/mawk", "/usr/bin/awk", "/usr/bin/date"], &[]);
    }

    #[test]
    fn what_is_asked_for_is_kept_and_left_out() {
        let files =
            [("usr/share/plugins/a", "a"), ("usr/share/plugins/b", "b"), ("app/big", "big")];
        let tree = debian(&files, &[("x:app/run", program())]);
        let asked = SlimOp {
            keep: vec!["/usr/share/plugins/**".into()],
            drop: vec!["/usr/share/plugins/b".into(), "/app/big".into()],
            ..op(&["/app/run"])
        };
        check(&tree, &asked, &["/usr/share/plugins/a"], &["/usr/share/plugins/b", "/app/big"]);
    }

    #[test]
    fn bad_images_are_refused_by_name() {
        let tree = debian(&[("app/broken", "")], &[("x:app/run", program())]);
        tree.add("x:app/broken", b"\x7fELF\x02\x01\x01");
        let refused = |op: &SlimOp, expected: &str| {
            let error = slim(&tree, op).err().unwrap().to_string();
            assert!(error.contains(expected), "{error}");
        };
        refused(&op(&[]), "neither ENTRYPOINT nor CMD");
        refused(&op(&["nothing"]), "`nothing`, which is no program");
        refused(&op(&["/app/broken"]), "cannot say what the program `/app/broken` needs");
        let drop = |path: &str| SlimOp { drop: vec![path.into()], ..op(&["/app/run"]) };
        refused(&drop("/app/run"), "leaves out `/app/run`");
        refused(&drop("/usr/lib/**"), &format!("leaves out `/{LIBC}`"));
        refused(&drop("/usr/lib64"), "leaves out `/usr/lib64/ld-linux-x86-64.so.2`");
    }

    #[test]
    fn an_unknown_distribution_is_kept_and_the_user_is_told() {
        let tree = TestTree::new(&[("etc/os-release", "ID=x"), ("usr/share/x", ""), ("tmp/y", "")]);
        tree.add("x:usr/bin/run", &Program::default().bytes());
        let result = check(&tree, &op(&["run"]), &["/usr/share/x"], &["/tmp/y"]);
        let notes = result.slimmed.report.notes.join("\n");
        assert!(notes.contains("no database of packages"), "{notes}");
    }

    #[test]
    fn all_about_a_kept_file_survives_and_the_tree_stays() {
        let files = [("app/one", "text"), ("x:usr/bin/other", "other")];
        let tree = debian(&files, &[("x:app/run", program())]);
        let at = |path: &str| tree.folder.path().join(path);
        fs_err::hard_link(at("app/one"), at("app/two")).unwrap();
        let sparse = fs_err::File::create(at("app/sparse")).unwrap();
        sparse.set_len(1 << 20).unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o4750);
        fs_err::set_permissions(at("app/run"), mode).unwrap();
        let before = listing(tree.folder.path());
        let result = slim(&tree, &op(&["/app/run"])).unwrap();
        assert_eq!(listing(tree.folder.path()), before, "the tree given does not change");
        let layer = result.state.snapshots().folder(&result.slimmed.application.id);
        let of = |path: &str| fs_err::symlink_metadata(layer.join(path)).unwrap();
        assert_eq!(of("app/one").ino(), of("app/two").ino());
        assert_eq!((of("app/sparse").len(), of("app/sparse").blocks()), (1 << 20, 0));
        assert_eq!(of("app/run").mode() & 0o7777, 0o4750);
        let source = fs_err::metadata(at("app/run")).unwrap();
        assert_eq!((of("app/run").mtime(), of("app/run").uid()), (source.mtime(), source.uid()));
        assert_eq!(result.slimmed.report.setuid_kept, ["/app/run"]);
    }

    /// Paths with what a layer keeps of them.
    fn listing(folder: &Path) -> BTreeMap<String, (u32, i64, u64)> {
        let view = View::layers(vec![folder.to_owned()]);
        let files = Files::read(&view).unwrap();
        let ids = files.ids().filter(|id| !files.is_directory(*id));
        ids.map(|id| {
            let metadata = files.get(id).entry.metadata();
            (files.text(id), (metadata.mode, metadata.modified.seconds, metadata.size))
        })
        .collect()
    }

    #[test]
    fn the_runtime_stays_when_only_the_application_changes() {
        let tree = debian(&[("usr/share/x", "")], &[("x:app/run", program())]);
        let full = SlimOp { base: SlimBase::Full, ..op(&["/app/run"]) };
        let one = slim(&tree, &full).unwrap();
        let again = slim(&tree, &full).unwrap();
        assert_eq!(one.slimmed.application.content, again.slimmed.application.content);
        tree.add("app/more", b"more");
        tree.add("usr/local/lib/more", b"more");
        let two = slim(&tree, &full).unwrap();
        assert_eq!(one.slimmed.runtime.content, two.slimmed.runtime.content);
        assert_ne!(one.slimmed.application.content, two.slimmed.application.content);
        // Times are in no digest, but in the layer's tar.
        let time = |result: &Result, path: &str| {
            let folder = result.state.snapshots().folder(&result.slimmed.runtime.id);
            fs_err::metadata(folder.join(path)).unwrap().mtime()
        };
        for folder in ["", "usr", "usr/lib", "etc", "var"] {
            assert_eq!(time(&one, folder), time(&two, folder), "{folder}");
        }
    }

    #[test]
    fn the_base_is_there_unless_it_is_not_wanted() {
        let files = [("etc/passwd", "root:x:0:0::/root:/bin/sh\n"), ("usr/share/zoneinfo/UTC", "")];
        let tree = debian(&files, &[("x:app/run", program())]);
        let full = SlimOp { base: SlimBase::Full, ..op(&["/app/run"]) };
        let kept = ["/etc/passwd", "/usr/share/zoneinfo/UTC", "/tmp", "/home/nonroot", "/proc"];
        let result = check(&tree, &full, &kept, &[]);
        assert!(result.text("/etc/passwd").ends_with("/sbin/nologin\n"));
        check(&tree, &op(&["/app/run"]), &[], &kept);
    }
}
