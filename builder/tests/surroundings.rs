//! P35: odd surroundings. rbuild works in them, or refuses with a reason; it never panics.

use std::time::{Duration, SystemTime};

use crate::base;
use crate::figure::figure;
use crate::needs::{self, Need, lacking};
use crate::rbuild::{Outcome, Rbuild, context, run, scratch, write};
use crate::soak::Work;

/// Refused with a reason, or done.
#[track_caller]
fn check_sane(outcome: &Outcome, codes: &[i32]) {
    let code = outcome.status.code().unwrap_or(-1);
    assert!(codes.contains(&code), "exit code\n{outcome}");
    assert!(!outcome.stderr.contains("panicked"), "{outcome}");
    assert!(code == 0 || outcome.stderr.contains("error: "), "{outcome}");
}

#[test]
fn homes_and_temporary_folders_that_cannot_be_used() {
    if lacking(&needs::STEPS) {
        return;
    }
    let rbuild = Rbuild::new();
    let context = context(&[("Dockerfile", "FROM busybox\nRUN echo a > /a\n")]);
    for home in ["", "/nonexistent", "/proc", "/dev/null", "relative"] {
        check_sane(&rbuild.build(&context).env("HOME", home).run(), &[0]);
    }
    for temporary in ["/nonexistent", "/proc", "/dev/null"] {
        check_sane(&rbuild.build(&context).env("TMPDIR", temporary).run(), &[0, 3]);
    }
    for root in ["/proc/rbuild", "/dev/null/rbuild", "/sys/rbuild"] {
        let refused = rbuild.build(&context).args(["--root", root]).run();
        check_sane(&refused, &[3]);
        assert!(refused.stderr.contains(root.rsplit_once('/').unwrap().0), "{refused}");
    }
}

#[test]
fn standard_streams_that_are_closed_or_full() {
    if lacking(&needs::STEPS) {
        return;
    }
    let rbuild = Rbuild::new();
    let context = context(&[("Dockerfile", "FROM busybox\nRUN echo a > /a\n")]);
    let folder = context.path().display().to_string();
    for redirection in [">&-", "2>&-", "<&-", ">&- 2>&- <&-"] {
        for progress in ["plain", "quiet"] {
            let build = rbuild.command().args(["build", "-t", "a:1", "--progress", progress]);
            let build = build.base("busybox", base::busybox()).arg("--no-cache").arg(&folder);
            let script = format!("exec \"$@\" {redirection}");
            let outcome = build.under(&["sh", "-c", &script, "sh"]).run();
            assert_eq!(outcome.status.code(), Some(0), "{redirection} {progress}: {outcome}");
        }
    }
    let full = rbuild.command().arg("images").under(&["sh", "-c", "exec \"$@\" > /dev/full", "sh"]);
    check_sane(&full.run(), &[3]);
    let reader_gone = rbuild.command().arg("images").under(&["sh", "-c", "\"$@\" | true", "sh"]);
    check_sane(&reader_gone.run(), &[0]);
}

#[test]
fn times_that_cannot_be() {
    if lacking(&needs::STEPS) {
        return;
    }
    let work = Work::new();
    let rbuild = Rbuild::new();
    let expected = work.files(&rbuild, 0);
    let odd = [
        SystemTime::UNIX_EPOCH - Duration::from_secs(2_000_000_000),
        SystemTime::UNIX_EPOCH,
        SystemTime::UNIX_EPOCH + Duration::from_secs(u64::from(u32::MAX) + 10),
        SystemTime::UNIX_EPOCH + Duration::from_hours(2_500_000),
    ];
    for (n, time) in odd.iter().cycle().take(60).enumerate() {
        let path = work.context.path().join(format!("data/{n}"));
        let file = fs_err::OpenOptions::new().write(true).open(path).unwrap().into_parts().0;
        file.set_modified(*time).unwrap();
    }
    assert_eq!(work.files(&rbuild, 1), expected);
    let archive = scratch();
    Work::archive(work.build(&rbuild, 2), &archive.path().join("a.tar")).succeeds();
    // A store from a machine whose clock was wrong: all of it was last used in the future, or in 1970.
    for date in ["2200-01-01", "1970-01-01"] {
        let root = rbuild.root.display();
        let script = format!("touch -d {date} {root}/snapshots/*/meta {root}/blobs/sha256/*");
        run("sh", &["-c", &script]);
        for arguments in [&["du"][..], &["prune", "--filter", "until=1h"], &["cache", "verify"]] {
            check_sane(&rbuild.command().args(arguments).run(), &[0]);
        }
        assert_eq!(work.files(&rbuild, 0), expected, "{date}");
    }
    // A build dates its image by the clock; a wrong one is no reason to fail.
    for epoch in ["0", "1", "253402300799"] {
        check_sane(&work.build(&rbuild, 3).env("SOURCE_DATE_EPOCH", epoch).run(), &[0]);
    }
    write(work.context.path().join("data/new"), "new\n");
    assert_ne!(work.files(&rbuild, 0), expected);
    figure("P35 failed 0");
}

/// The clock goes wrong between builds, and during one it says whatever it likes.
#[test]
fn clocks_that_are_wrong() {
    if lacking(&needs::STEPS) || lacking(&[Need::Program("faketime")]) {
        return;
    }
    let (work, rbuild) = (Work::small(), Rbuild::new());
    let expected = work.files(&rbuild, 0);
    let mut tried = 0;
    for clock in
        ["1970-01-02", "2001-09-09", "2038-01-20", "2106-02-08", "2200-01-01", "400 days ago"]
    {
        let out = scratch();
        for (nonce, root) in [(tried, &rbuild), (0, &Rbuild::new())] {
            let build = work.build(root, nonce).output("type=local", out.path());
            check_sane(&build.under(&["faketime", clock]).run(), &[0]);
            assert_eq!(crate::archive::digest_of_tree(out.path()), expected, "{clock}");
        }
        for arguments in [&["du"][..], &["prune", "--filter", "until=24h", "-f"], &["images"]] {
            let run = rbuild.command().args(arguments).under(&["faketime", clock]).run();
            check_sane(&run, &[0]);
        }
        check_sane(&rbuild.command().args(["cache", "verify"]).run(), &[0]);
        assert_eq!(work.files(&rbuild, 0), expected, "after {clock}");
        tried += 1;
    }
    figure(&format!("P35 clocks: failed 0 of {tried}"));
}

/// A home and a folder for temporary files that can be read and not written to.
#[test]
fn homes_and_temporary_folders_that_are_read_only() {
    if lacking(&needs::STEPS) || lacking(&[Need::Program("unshare")]) {
        return;
    }
    let (work, rbuild, read_only) = (Work::small(), Rbuild::new(), scratch());
    let expected = work.files(&rbuild, 0);
    let script =
        "mount --bind \"$1\" \"$1\" && mount -o remount,bind,ro \"$1\" && shift && exec \"$@\"";
    let path = read_only.path().to_str().unwrap();
    for (n, name) in ["HOME", "TMPDIR", "XDG_CACHE_HOME", "XDG_CONFIG_HOME"].iter().enumerate() {
        let out = scratch();
        let build = work.build(&rbuild, n as u64).output("type=local", out.path()).env(name, path);
        let outcome = build.under(&["unshare", "-m", "sh", "-c", script, "sh", path]).run();
        check_sane(&outcome, &[0]);
        assert_eq!(crate::archive::digest_of_tree(out.path()), expected, "{name}");
    }
    assert_eq!(fs_err::read_dir(path).unwrap().count(), 0);
}
