//! A tree that is slimmed: it is read once, and what is kept of it is decided as often as its runs show
//! more.

use std::path::{Path, PathBuf};

use rbuild_cache::digest::TreeDigest;
use rbuild_cache::snapshot::Snapshot;
use rbuild_cache::state::StateFolder;
use rbuild_cache::view::View;

use super::closure::{Closure, Kept};
use super::files::{FileId, Files};
use super::layers::{Layers, Made, MadeKind, Part};
use super::package::Packages;
use super::partition::Partition;
use super::reason::Why;
use super::report::{self, SlimReport};
use super::{SlimError, base, ldconfig, licenses, metadata, roots};
use crate::graph::SlimOp;
use crate::ops::file::Sharing;

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
    pub(super) files: Files,
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

    /// Decides what is kept and writes it; as links where `sharing` is allowed.
    pub(crate) fn slim(
        &self,
        op: &SlimOp,
        observed: &Observed,
        state: &StateFolder,
        sharing: Sharing,
    ) -> Result<Slimmed, SlimError> {
        let (kept, made) = self.select(op, observed)?;
        let Self { files, packages, partition, from } = self;
        let is_kept = |id: &FileId| kept.reasons[id.index()].is_some();
        let layers =
            Layers::new(files, partition, files.ids().skip(1).filter(is_kept), made.clone());
        let (runtime, application) = rayon::join(
            || layers.commit(Part::Runtime, state, sharing),
            || layers.commit(Part::Application, state, sharing),
        );
        let (kept, made) = (&kept, &made[..]);
        let subject = report::Subject { op, from: *from, files, packages, partition, kept, made };
        let report = SlimReport::of(&subject);
        Ok(Slimmed { runtime: runtime?, application: application?, report })
    }

    /// Decides what is kept, and what is written besides.
    pub(super) fn select(
        &self,
        op: &SlimOp,
        observed: &Observed,
    ) -> Result<(Kept, Vec<Made>), SlimError> {
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::os::unix::fs::MetadataExt;

    use rbuild_cache::digest::Digest;
    use rbuild_cache::oci::Platform;

    use super::super::elf::tests::Program;
    use super::super::files::tests::TestTree;
    use super::super::report::Answer;
    use super::*;
    use crate::graph::{SlimBase, SlimMode, SlimProbe};

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
        let slimmed = subject.slim(op, &Observed::default(), &state, Sharing::Forbidden)?;
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
