//! P32: no room on the disk, and errors of the disk at any write. The build is refused with a
//! reason, and with room again the same command passes.

use std::path::Path;

use crate::figure::figure;
use crate::needs::{self, Need, lacking};
use crate::rbuild::{Rbuild, run, scratch};
use crate::soak::{Work, each_or_few};

/// A file system in memory at a folder; it goes with this value.
struct Tmpfs(tempfile::TempDir);

impl Tmpfs {
    fn new(size: &str) -> Self {
        let folder = scratch();
        let path = folder.path().to_str().unwrap();
        run("mount", &["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs", path]);
        Self(folder)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn resize(&self, size: &str) {
        let options = format!("remount,size={size}");
        run("mount", &["-o", &options, self.path().to_str().unwrap()]);
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        // Lazily: whoever is still in there keeps nobody waiting.
        let _ = std::process::Command::new("umount").arg("-l").arg(self.path()).status();
    }
}

#[test]
fn a_full_disk_is_named_and_passes_with_room() {
    if lacking(&needs::STEPS) {
        return;
    }
    let work = Work::new();
    let expected = work.files(&Rbuild::new(), 0);
    let text = fs_err::read_to_string(work.context.path().join("Dockerfile")).unwrap();
    let large = format!("{text}RUN head -c 24000000 /dev/zero > /large && rm /large\n");
    fs_err::write(work.context.path().join("Dockerfile"), large).unwrap();
    let mut failures = 0;
    for size in ["6m", "12m", "20m"] {
        let disk = Tmpfs::new(size);
        let rbuild = Rbuild::at(&disk.path().join("root"));
        let out = scratch();
        let build = || work.build(&rbuild, 0).output("type=local", out.path());
        let refused = build().run();
        let says = refused.stderr.contains("no room") || refused.stderr.contains("No space left");
        if refused.status.success() || !says {
            figure(&format!("{size}: {refused}"));
            failures += 1;
        }
        disk.resize("200m");
        let passed = build().run();
        let verified = rbuild.command().args(["cache", "verify"]).run();
        let is_right = passed.status.success()
            && crate::archive::digest_of_tree(out.path()) == expected
            && verified.status.success();
        if !is_right {
            figure(&format!("{size}, with room: {passed}\n{verified}"));
            failures += 1;
        }
    }
    figure(&format!("P32 full disk: failures {failures} of 3"));
    assert_eq!(failures, 0);
}

/// What can meet a full or broken disk.
const WRITES: &str = "write,pwrite64,ftruncate,fsync,fdatasync,linkat,mkdirat,renameat,rename,\
                      copy_file_range,sendfile";

/// How often the thread that does so most makes one of the calls of [`WRITES`]: strace counts by
/// thread and call.
fn most_writes(work: &Work) -> usize {
    let rbuild = Rbuild::new();
    let log = rbuild.home.path().join("strace.log");
    let calls = format!("trace={WRITES}");
    let archive = rbuild.home.path().join("out.tar");
    let strace = ["strace", "-f", "-qq", "-o", log.to_str().unwrap(), "-e", &calls];
    Work::archive(work.build(&rbuild, 0), &archive).under(&strace).succeeds();
    let mut counts = std::collections::HashMap::<(String, String), usize>::new();
    for line in fs_err::read_to_string(log).unwrap().lines() {
        let (pid, call) = line.split_once(' ').unwrap();
        let call = call.trim_start().split('(').next().unwrap();
        if !call.starts_with('<') && !call.starts_with('+') && !call.starts_with('-') {
            *counts.entry((pid.to_owned(), call.to_owned())).or_default() += 1;
        }
    }
    counts.into_values().max().unwrap()
}

#[test]
fn errors_of_the_disk_at_the_kth_write() {
    if lacking(&needs::STEPS) || lacking(&[Need::Program("strace")]) {
        return;
    }
    let work = Work::small();
    let expected = work.files(&Rbuild::new(), 0);
    let most = most_writes(&work);
    // Of each k, one error; where there are rounds enough, both.
    let cases = each_or_few(2 * most, 6);
    let mut failures = 0;
    for case in &cases {
        let (k, error) = (case.div_ceil(2), ["ENOSPC", "EIO"][case % 2]);
        let rbuild = Rbuild::new();
        let archive = rbuild.home.path().join("out.tar");
        let inject = format!("inject={WRITES}:error={error}:when={k}");
        let strace = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", "trace=none", "-e", &inject];
        let outcome = Work::archive(work.build(&rbuild, 0), &archive).under(&strace).run();
        // A thread that panics, or a signal, is no way to refuse.
        let refused_well = matches!(outcome.status.code(), Some(0 | 1 | 3))
            && !outcome.stderr.contains("panicked");
        if outcome.status.success() && !archive.exists() {
            failures += 1;
        }
        let is_right = work.files(&rbuild, 0) == expected;
        let verified = rbuild.command().args(["cache", "verify"]).run();
        if !refused_well || !is_right || !verified.status.success() {
            figure(&format!("{error} at {k}: {outcome}\n{verified}"));
            failures += 1;
        }
        assert_eq!(rbuild.leftovers(), Vec::<std::path::PathBuf>::new(), "{error} at {k}");
    }
    figure(&format!(
        "P32 injected errors: failures {failures} of {} (k up to {most})",
        cases.len()
    ));
    assert_eq!(failures, 0);
}
