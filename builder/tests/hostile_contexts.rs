//! P10 to P12, P14, P23 and P25: contexts, Dockerfiles and images that try to read or write what is
//! not theirs, or to take more than their share.

use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rbuild_cache::state::StateFolder;
use rbuild_cache::view::View;
use rbuild_solver::evidence::Reads;
use rbuild_solver::graph::{CopyAction, CopySource, FileAction, FileOp};
use rbuild_solver::ops::file::{Sharing, SourceTree, plan};
use rbuild_solver::tree::Folder;
use rustix::fs::{CWD, RenameFlags, renameat_with};

use crate::figure::figure;
use crate::hostile_tar::{HostileImage, tar};
use crate::needs::{self, Need, lacking};
use crate::promise::{Cost, is_refusal, measured, tell};
use crate::rbuild::{Rbuild, context, scratch, write};
use crate::soak::rounds;

const SECRET: &str = "not of this context";

fn copy_of(source: &str, parents: bool) -> FileOp {
    let action = CopyAction::new(CopySource::Input(1), vec![source.to_owned()], "/");
    let action = CopyAction { parents, unpack: true, wildcards: true, ..action };
    FileOp { actions: vec![FileAction::Copy(action)] }
}

/// Whether a file below `folder` holds the secret.
fn holds_secret(folder: &Path) -> bool {
    fs_err::read_dir(folder).unwrap().any(|entry| {
        let path = entry.unwrap().path();
        let about = fs_err::symlink_metadata(&path).unwrap();
        if about.is_dir() {
            holds_secret(&path)
        } else {
            about.is_file() && fs_err::read(&path).unwrap() == SECRET.as_bytes()
        }
    })
}

/// While a folder of the context and a link to outside change places without end, what COPY does
/// (looking, hashing, writing, committing) goes on in this process, as in a build.
#[test]
fn p11_nothing_outside_is_copied_while_folders_become_links() {
    if lacking(&[Need::Root]) {
        return;
    }
    let (outside, context, state) = (scratch(), scratch(), scratch());
    write(outside.path().join("file"), SECRET);
    write(outside.path().join("deep/file"), SECRET);
    write(context.path().join("folder/file"), "inside");
    write(context.path().join("folder/deep/file"), "inside");
    symlink(outside.path(), context.path().join("link")).unwrap();
    write(context.path().join("single"), "inside");
    symlink(outside.path().join("file"), context.path().join("alias")).unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let swapping = {
        let (stop, root) = (Arc::clone(&stop), context.path().to_owned());
        std::thread::spawn(move || {
            let mut swaps = 0_u64;
            while !stop.load(Ordering::Relaxed) {
                for (one, other) in [("folder", "link"), ("single", "alias")] {
                    let (one, other) = (root.join(one), root.join(other));
                    renameat_with(CWD, &one, CWD, &other, RenameFlags::EXCHANGE).unwrap();
                }
                swaps += 1;
            }
            swaps
        })
    };
    let state = StateFolder::open(state.path().join("state")).unwrap();
    let folder =
        Folder { name: "context".into(), root: context.path().to_owned(), ignore: Vec::new() };
    let sources = ["/", "/folder", "/folder/file", "/fol*/deep", "/single", "/s*", "/folder/deep/"];
    let (mut leaks, mut built, mut refused) = (0, 0, 0);
    let builds = rounds(400);
    for turn in 0..builds {
        let source = sources[turn % sources.len()];
        let op = copy_of(source, turn % 5 == 0);
        let base = View::layers(Vec::new());
        let tree = SourceTree::context(&folder).unwrap();
        let made = plan(&op, Some(&base), &[tree], &state)
            .and_then(|plan| plan.commit(&state, &Reads::default(), Sharing::Forbidden));
        match made {
            Ok(snapshot) => {
                built += 1;
                leaks += u32::from(holds_secret(&state.snapshots().folder(&snapshot.id)));
            }
            // It changed while it was looked at, or led to nothing.
            Err(_) => refused += 1,
        }
    }
    stop.store(true, Ordering::Relaxed);
    let swaps = swapping.join().unwrap();
    tell(
        11,
        &format!(
            "leaks {leaks} / {builds} copies ({built} made, {refused} refused, {swaps} swaps)"
        ),
    );
    assert_eq!(leaks, 0);
    assert!(built > 0);
}

/// Links, `..` and names in a context that lead out of it.
#[test]
fn p11_nothing_outside_is_copied_by_links_and_names() {
    if lacking(&[Need::Root]) {
        return;
    }
    let outside = scratch();
    write(outside.path().join("file"), SECRET);
    let above = outside.path().display().to_string();
    let lines = [
        "COPY link /x",
        "COPY link/file /x",
        "COPY up/file /x",
        "COPY l*/file /",
        "COPY --parents link/file /",
        "COPY ../file /x",
        "COPY ../../../../../../../..OUT/file /x",
        "COPY OUT/file /x",
        "ADD file-link /x",
        "ADD ../file /x",
        "COPY file-link /x",
        "COPY --parents ./../file /x",
        "RUN --mount=type=bind,source=link,target=/m cp /m/file /x",
        "RUN --mount=type=bind,source=../,target=/m cp /m/file /x",
        "RUN --mount=type=bind,source=up,target=/m cp /m/file /x",
    ];
    let (mut leaks, count) = (0, lines.len());
    for line in lines {
        let (rbuild, out) = (Rbuild::new(), scratch());
        let text = format!("FROM busybox\n{}\n", line.replace("OUT", &above));
        let context = context(&[("Dockerfile", &text)]);
        symlink(outside.path(), context.path().join("link")).unwrap();
        symlink(format!("../../../../../../../../..{above}"), context.path().join("up")).unwrap();
        symlink(outside.path().join("file"), context.path().join("file-link")).unwrap();
        let outcome = rbuild.build(&context).output("type=local", out.path()).run();
        assert!(outcome.status.success() || is_refusal(&outcome), "{line}: {outcome}");
        leaks += usize::from(out.path().exists() && holds_secret(out.path()));
        leaks += usize::from(outcome.stderr.contains(SECRET));
    }
    tell(11, &format!("leaks {leaks} / {count} instructions"));
    assert_eq!(leaks, 0);
}

/// A stage whose folders are links to the host: copies, mounts, WORKDIR and destinations end in it.
#[test]
fn p12_paths_end_inside_of_their_stage() {
    if lacking(&needs::STEPS) {
        return;
    }
    let outside = scratch();
    write(outside.path().join("file"), SECRET);
    let out_path = outside.path().display().to_string();
    let lines = [
        "COPY --from=evil /link/file /x",
        "COPY --from=evil /link /x",
        "COPY --from=evil /up/file /x",
        "COPY here /link/new",
        "COPY here /up/new",
        "ADD here.tar /link/",
        "WORKDIR /link/new\nRUN echo 1 > made",
        "WORKDIR /up/new\nCOPY here .",
        "RUN --mount=type=bind,from=evil,source=/link,target=/m cp /m/file /x",
        "RUN --mount=type=tmpfs,target=/link/new true",
        "RUN --mount=type=tmpfs,target=/up/new/deep touch /up/new/deep/x",
        "RUN --mount=type=cache,target=/link/new touch /link/new/x",
        "RUN --mount=type=bind,target=/link/new/m,source=here cat /link/new/m",
        "RUN mkdir /a && mv /a /b && ln -s /link /a",
        "RUN --mount=type=tmpfs,target=/a/m mv /a /b && ln -s OUT /a",
        "RUN --mount=type=tmpfs,target=/a/b/m mv /a/b /a/c && ln -s OUT /a/b; true",
        "WORKDIR /proc/self/fd/3\nRUN pwd",
        "WORKDIR /proc/self/cwd\nRUN pwd",
        "WORKDIR /dev/fd/4/../..\nRUN ls",
    ];
    let (mut escapes, count) = (0, lines.len());
    for line in lines {
        let (rbuild, out) = (Rbuild::new(), scratch());
        let prepare = "RUN ln -s OUT /link && ln -s ../../../../../..OUT /up";
        let text = format!("FROM busybox AS evil\n{prepare}\nFROM evil\n{line}\n");
        let context = context(&[("Dockerfile", &text.replace("OUT", &out_path)), ("here", "1")]);
        fs_err::write(context.path().join("here.tar"), tar(&["new=1"])).unwrap();
        let outcome = rbuild.build(&context).output("type=local", out.path()).run();
        assert!(outcome.status.success() || is_refusal(&outcome), "{line}: {outcome}");
        let names = fs_err::read_dir(outside.path()).unwrap().count();
        escapes += usize::from(names != 1);
        escapes += usize::from(holds_secret(out.path()));
        assert_eq!(fs_err::read_to_string(outside.path().join("file")).unwrap(), SECRET);
        assert_eq!(rbuild.leftovers(), Vec::<std::path::PathBuf>::new(), "{line}");
    }
    tell(12, &format!("escapes {escapes} / {count} instructions"));
    assert_eq!(escapes, 0);
}

/// Archives given to ADD, as hostile as layers can be.
#[test]
fn p14_archives_end_inside_of_their_destination() {
    if lacking(&[Need::Root]) {
        return;
    }
    let outside = scratch();
    write(outside.path().join("file"), SECRET);
    let out_path = outside.path().display().to_string();
    let archives: &[&[&str]] = &[
        &["../x=1"],
        &["../../../../../x=1"],
        &["/x=1"],
        &["OUT/new=1"],
        &["l->OUT", "l/new=1"],
        &["l->../../../../../../../..OUT", "l/new=1"],
        &["l->OUT/file", "l=2"],
        &["h=>OUT/file"],
        &["h=>../../../../../../..OUT/file"],
        &["l->OUT", "h=>l/file"],
        &["l->OUT/file", "h=>l", "h=2"],
        &["l->l", "l/x=1"],
        &["d/", "d->OUT", "d/new=1"],
        &["@777:d/", "d->OUT"],
        &["p|", "p/x=1"],
        &["n%"],
        &[".wh.etc"],
        &[".wh..wh..opq", "x=1"],
        &["l->/proc/self/root", "lOUT/new=1"],
    ];
    let (mut escapes, count) = (0, archives.len());
    for entries in archives {
        let (rbuild, out) = (Rbuild::new(), scratch());
        let entries: Vec<String> = entries.iter().map(|e| e.replace("OUT", &out_path)).collect();
        let bytes = tar(&entries.iter().map(String::as_str).collect::<Vec<_>>());
        let context = context(&[("Dockerfile", "FROM scratch\nADD x.tar /to/\n")]);
        fs_err::write(context.path().join("x.tar"), bytes).unwrap();
        let (outcome, _) = measured(rbuild.build(&context).output("type=local", out.path()));
        assert!(outcome.status.success() || is_refusal(&outcome), "{entries:?}: {outcome}");
        escapes += usize::from(fs_err::read_dir(outside.path()).unwrap().count() != 1);
        escapes +=
            usize::from(fs_err::read_to_string(outside.path().join("file")).unwrap() != SECRET);
        // Everything is below the destination.
        let beside = fs_err::read_dir(out.path()).unwrap().filter_map(Result::ok);
        escapes += beside.filter(|entry| entry.file_name() != "to").count();
    }
    tell(14, &format!("escapes {escapes} / {count} archives"));
    assert_eq!(escapes, 0);
}

/// What the image has where rbuild reads or writes for a step.
#[test]
fn p23_files_of_an_image_do_not_steer_rbuild() {
    if lacking(&needs::STEPS) {
        return;
    }
    let outside = scratch();
    write(outside.path().join("file"), "root:x:4242:4242::/:/bin/sh\n");
    let out_path = outside.path().join("file").display().to_string();
    let busybox =
        fs_err::read("/bin/busybox").or_else(|_| fs_err::read("/usr/bin/busybox")).unwrap();
    let program = |name: &str| crate::hostile_tar::header(b'0', name, "", &busybox, 0o755);
    let image = |entries: &[String]| {
        let entries: Vec<&str> = entries.iter().map(String::as_str).collect();
        let mut bytes = program("bin/busybox");
        bytes.extend(crate::hostile_tar::entry("bin/sh->busybox"));
        bytes.extend(tar(&entries));
        let layout = scratch();
        HostileImage::new(vec![bytes]).write(layout.path());
        layout
    };
    let mut cases: Vec<(Vec<String>, &str)> = Vec::new();
    for name in ["resolv.conf", "hosts", "passwd", "group"] {
        let path = format!("etc/{name}");
        for entry in [
            format!("{path}->{out_path}"),
            format!("{path}->../../../../../../..{out_path}"),
            format!("{path}->/proc/self/environ"),
            format!("{path}->/dev/zero"),
            format!("{path}->{name}"),
            format!("{path}|"),
            format!("{path}%"),
            format!("{path}/"),
        ] {
            cases.push((vec![entry], "USER nobody\n"));
        }
    }
    cases.push((vec!["etc->/".to_owned()], ""));
    cases.push((vec![format!("etc->{}", outside.path().display())], "USER root\n"));
    cases.push((vec!["etc=file".to_owned()], ""));
    let huge = "x".repeat(700 << 20);
    cases.push((vec![format!("etc/passwd={huge}")], "USER nobody\n"));
    drop(huge);
    cases.push((vec![format!("etc/group={}", "x".repeat(40 << 20))], "USER 5:staff\n"));
    let (mut steered, count, mut worst) = (0, cases.len(), Cost::default());
    for (entries, user) in cases {
        let rbuild = Rbuild::new();
        let layout = image(&entries);
        let shown: String = entries[0].chars().take(60).collect();
        drop(entries);
        let text = format!("FROM hostile\n{user}RUN [\"/bin/busybox\", \"id\"]\n");
        let context = context(&[("Dockerfile", &text)]);
        let run = rbuild.build(&context).base("hostile", layout.path());
        let (outcome, cost) = measured(run.args(["-o", "type=cacheonly", "--network", "none"]));
        assert!(outcome.status.success() || is_refusal(&outcome), "{shown}: {outcome}");
        steered += usize::from(outcome.stderr.contains("4242"));
        let now = fs_err::read_to_string(outside.path().join("file")).unwrap();
        steered += usize::from(now != "root:x:4242:4242::/:/bin/sh\n");
        worst = worst.max(cost);
    }
    let (megabytes, seconds) = (worst.memory >> 20, worst.time.as_secs_f32());
    tell(
        23,
        &format!("steered {steered} / {count} images, most memory {megabytes} MB, {seconds:.1} s"),
    );
    assert_eq!(steered, 0);
    assert!(megabytes < 1024);
}

#[test]
fn p25_floods_are_bounded() {
    if lacking(&needs::STEPS) {
        return;
    }
    let flood = |script: &str, flags: &[&str]| {
        let rbuild = Rbuild::new();
        let context = context(&[("Dockerfile", &format!("FROM busybox\nRUN {script}\n"))]);
        let run = rbuild.build(&context).args(flags).args(["-o", "type=cacheonly"]);
        let (outcome, cost) = measured(run);
        assert_eq!(rbuild.leftovers(), Vec::<std::path::PathBuf>::new());
        (outcome, cost)
    };
    let (outcome, lines) = flood("yes 0123456789 | head -c 300000000", &[]);
    assert!(outcome.status.success(), "{}", outcome.status);
    let log = outcome.stderr.len();
    assert!(log < 8 << 20, "{log} bytes of log");
    let (outcome, line) = flood("tr '\\0' x < /dev/zero | head -c 300000000", &[]);
    assert!(outcome.status.success(), "{}", outcome.status);
    let one = outcome.stderr.len();
    assert!(one < 8 << 20, "{one} bytes of log");
    let forks = "for i in $(seq 3000); do sleep 987 & done; echo forked";
    let (outcome, forks) = flood(forks, &[]);
    assert!(outcome.status.success() && outcome.stderr.contains("forked"), "{outcome}");
    // One without end, up to where it may not go on.
    let bomb = "b() { b | b & }; b; sleep 5; echo over";
    let (outcome, endless) = flood(bomb, &["--pids-limit", "500", "--timeout", "20s"]);
    assert!(outcome.status.success() || is_refusal(&outcome), "{}", outcome.status);
    let worst = lines.max(line).max(forks).max(endless);
    let megabytes = worst.memory >> 20;
    tell(
        25,
        &format!("log {} MB and {} MB of 300, most memory {megabytes} MB", log >> 20, one >> 20),
    );
    assert!(megabytes < 512);
}

/// A file system that is unmounted when this is dropped.
struct Mounted(std::path::PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        crate::rbuild::run("umount", &["-l", self.0.to_str().unwrap()]);
    }
}

/// A small disk, full of what one step writes: the error says so, and the disk is empty again after.
#[test]
fn p25_a_step_that_fills_the_disk_harms_nothing_else() {
    if lacking(&needs::STEPS) {
        return;
    }
    let rbuild = Rbuild::new();
    let disk = rbuild.home.path().join("disk");
    fs_err::create_dir(&disk).unwrap();
    crate::rbuild::run(
        "mount",
        &["-t", "tmpfs", "-o", "size=64m", "rbuild-test", disk.to_str().unwrap()],
    );
    let _mounted = Mounted(disk.clone());
    let root = disk.join("state");
    let build = |script: &str| {
        let context = context(&[(
            "Dockerfile",
            &format!("FROM busybox\nRUN echo kept > /kept\nRUN {script}\n"),
        )]);
        let run = rbuild.build(&context).args(["-o", "type=cacheonly"]).arg("--root").arg(&root);
        (run.run(), context)
    };
    let (outcome, _) = build("cat /dev/zero > /full");
    assert!(is_refusal(&outcome), "{outcome}");
    outcome.assert_stderr_has(&["No space left on device", "Dockerfile:3"]);
    let (outcome, _) = build("echo little > /little");
    assert!(outcome.status.success(), "{outcome}");
    assert!(outcome.step("RUN echo kept > /kept").cached, "{outcome}");
    tell(25, "a full disk: refused with its line, and the next build passes");
}

#[test]
fn p10_circles_and_unknown_stages_are_refused_with_their_line() {
    let cases = [
        ("FROM a AS a\n", "1"),
        ("FROM b AS a\nFROM a AS b\n", "1"),
        ("FROM scratch AS a\nCOPY --from=a x /x\n", "2"),
        ("FROM scratch AS a\nCOPY --from=b x /x\nFROM scratch AS b\nCOPY --from=a x /x\n", "4"),
        ("FROM scratch\nCOPY --from=5 x /x\n", "2"),
        ("FROM scratch\nCOPY --from=0 x /x\n", "2"),
        ("FROM scratch\nCOPY --from= x /x\n", "2"),
        ("FROM scratch\nCOPY --from=../x x /x\n", "2"),
        ("FROM scratch\nRUN --mount=type=bind,from=9,target=/x true\n", "2"),
        ("FROM 127.0.0.1:1/a AS a\n", "1"),
    ];
    let (mut refused, count) = (0, cases.len());
    for (text, line) in cases {
        let rbuild = Rbuild::new();
        let context = context(&[("Dockerfile", text)]);
        let run = rbuild.command().args(["build", "--progress", "plain", "-o", "type=cacheonly"]);
        let run =
            run.env("HTTP_PROXY", "http://127.0.0.1:1").env("HTTPS_PROXY", "http://127.0.0.1:1");
        let (outcome, _) = measured(run.arg(context.path()));
        let right = is_refusal(&outcome) && outcome.stderr.contains(&format!("Dockerfile:{line}"));
        if !right {
            figure(&format!("{text}: {outcome}"));
        }
        refused += usize::from(right);
    }
    tell(10, &format!("refused with their line {refused} / {count}"));
    assert_eq!(refused, count);
}
