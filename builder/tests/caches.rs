//! `RUN --mount=type=cache`: shared, locked and private between stages and between processes; and
//! P13, that none of it leads anywhere else.

use crate::needs::{self, lacking};
use crate::promise::tell;
use crate::rbuild::{Outcome, Rbuild, context, scratch, write};
use crate::soak::rounds;

/// A Dockerfile with two stages that run `script` with a cache mount of this `sharing`, and a third
/// that has both.
fn two_stages(sharing: &str, script: &str) -> String {
    let step = |n: u32| {
        format!(
            "FROM busybox AS s{n}\nARG WHO\n\
             RUN --mount=type=cache,target=/c,id=two,sharing={sharing} N={n}$WHO; {script}\n"
        )
    };
    format!(
        "{}{}FROM busybox\nCOPY --from=s1 /made /s1\nCOPY --from=s2 /made /s2\n",
        step(1),
        step(2)
    )
}

/// Marks that it is there, waits, and says whom else it saw meanwhile.
const MEET: &str = "echo > /c/$N; sleep 1; ls /c > /made; rm /c/$N";

/// Marks that it is there, and waits until there are two.
const WAIT: &str = "echo > /c/$N; i=0; \
    while [ $(ls /c | wc -l) -lt 2 ] && [ $i -lt 300 ]; do sleep 0.1; i=$((i+1)); done; \
    ls /c > /made";

/// What the two stages said.
fn build(sharing: &str, script: &str) -> [String; 2] {
    let (rbuild, out) = (Rbuild::new(), scratch());
    let context = context(&[("Dockerfile", &two_stages(sharing, script))]);
    rbuild.build(&context).args(["--jobs", "4"]).output("type=local", out.path()).succeeds();
    ["s1", "s2"].map(|name| fs_err::read_to_string(out.path().join(name)).unwrap())
}

#[test]
fn shared_caches_are_used_at_once() {
    if lacking(&needs::STEPS) {
        return;
    }
    assert_eq!(build("shared", WAIT), ["1\n2\n", "1\n2\n"]);
}

#[test]
fn locked_caches_are_used_one_after_the_other() {
    if lacking(&needs::STEPS) {
        return;
    }
    assert_eq!(build("locked", MEET), ["1\n", "2\n"]);
}

#[test]
fn private_caches_are_each_ones_own() {
    if lacking(&needs::STEPS) {
        return;
    }
    assert_eq!(build("private", MEET), ["1\n", "2\n"]);
}

/// Two processes at once, with steps that differ by an argument.
#[test]
fn caches_are_shared_or_locked_between_processes() {
    if lacking(&needs::STEPS) {
        return;
    }
    for (sharing, both) in [("shared", true), ("locked", false), ("private", false)] {
        let rbuild = Rbuild::new();
        let script = if both { WAIT } else { MEET };
        let file = format!(
            "FROM busybox\nARG WHO\nRUN --mount=type=cache,target=/c,sharing={sharing} \
             N=$WHO; {script}\n"
        );
        let context = context(&[("Dockerfile", &file)]);
        let out = scratch();
        let start = |who: &str| {
            let run = rbuild.build(&context).args(["--build-arg", &format!("WHO={who}")]);
            run.output("type=local", &out.path().join(who)).start()
        };
        let children = ["a", "b"].map(start);
        for child in children {
            let outcome = Outcome::of(child);
            assert!(outcome.status.success(), "{outcome}");
        }
        let seen = ["a", "b"]
            .map(|who| fs_err::read_to_string(out.path().join(who).join("made")).unwrap());
        if both {
            assert_eq!(seen, ["a\nb\n", "a\nb\n"], "{sharing}");
        } else {
            assert_eq!(seen, ["a\n", "b\n"], "{sharing}");
        }
    }
}

/// As with BuildKit: another beginning is another folder, so that what the step came to is stale.
#[test]
fn a_cache_that_begins_otherwise_runs_the_step_again() {
    if lacking(&needs::STEPS) {
        return;
    }
    let rbuild = Rbuild::new();
    let run = "RUN --mount=type=cache,target=/c,from=seed,source=/seed cat /c/f > /made";
    let file =
        format!("FROM busybox AS seed\nCOPY seed /seed/\nCOPY other /\nFROM busybox\n{run}\n");
    let context = context(&[("Dockerfile", &file), ("seed/f", "1"), ("other", "1")]);
    let check = |expected: &str, is_cached: bool| {
        let out = scratch();
        let outcome = rbuild.build(&context).output("type=local", out.path()).succeeds();
        assert_eq!(fs_err::read_to_string(out.path().join("made")).unwrap(), expected);
        assert_eq!(outcome.step(run).cached, is_cached, "{outcome}");
    };
    check("1", false);
    write(context.path().join("other"), "2");
    check("1", true);
    write(context.path().join("seed/f"), "2");
    check("2", false);
}

#[test]
fn a_cache_survives_builds_and_enters_no_layer() {
    if lacking(&needs::STEPS) {
        return;
    }
    let (rbuild, out) = (Rbuild::new(), scratch());
    let file = "FROM busybox\nARG N\nRUN --mount=type=cache,target=/c,mode=0750,uid=5,gid=6 \
                stat -c '%a %u %g' /c > /made; echo $N >> /c/list; cat /c/list >> /made\n";
    let context = context(&[("Dockerfile", file)]);
    for n in ["1", "2"] {
        let run = rbuild.build(&context).args(["--build-arg", &format!("N={n}")]);
        run.output("type=local", out.path()).succeeds();
    }
    assert_eq!(fs_err::read_to_string(out.path().join("made")).unwrap(), "750 5 6\n1\n2\n");
    let left = fs_err::read_dir(out.path().join("c"));
    assert!(left.is_err() || left.unwrap().count() == 0);
}

#[test]
fn p13_caches_lead_nowhere_else() {
    if lacking(&needs::STEPS) {
        return;
    }
    let rbuild = Rbuild::new();
    let top = rbuild.root.parent().unwrap().to_owned();
    write(top.join("canary"), "canary");
    let canary = top.join("canary").display().to_string();
    let mut leaks = 0;
    let mut mounts = 0;
    // Ids are names, whatever they look like.
    for id in [
        "../..",
        "/",
        ".",
        "..",
        "../../canary",
        "a/b/../../../..",
        "%2e%2e",
        "x\\\\..\\\\y",
        &canary,
    ] {
        let (out, file) = (
            scratch(),
            format!(
                "FROM busybox\nRUN --mount=type=cache,target=/c,id={id} ls -a /c > /made; echo 1 > /c/mark\n"
            ),
        );
        let context = context(&[("Dockerfile", &file)]);
        rbuild.build(&context).output("type=local", out.path()).succeeds();
        let seen = fs_err::read_to_string(out.path().join("made")).unwrap();
        leaks += usize::from(seen != ".\n..\n");
        mounts += 1;
    }
    assert!(!top.join("mark").exists());
    // A source in the cache that was made a link by an earlier step.
    for target in [&canary, "/", "../../../../../..", "/proc/self/root", &format!("..{canary}")] {
        let file = format!(
            "FROM busybox\nARG N\nRUN --mount=type=cache,target=/c,id=links rm -rf /c/l; ln -s {target} /c/l\n\
             RUN --mount=type=cache,target=/d,id=links,source=l (cat /d; ls -R /d) 2>/dev/null | grep -c canary > /made; true\n"
        );
        let (out, context) = (scratch(), context(&[("Dockerfile", &file)]));
        let run = rbuild.build(&context).args(["--build-arg", &format!("N={mounts}")]);
        let outcome = run.arg("--no-cache").output("type=local", out.path()).run();
        // Where it leads inside is nowhere, or a folder; outside is not seen in any case.
        if outcome.status.success() {
            let seen = fs_err::read_to_string(out.path().join("made")).unwrap();
            leaks += usize::from(seen != "0\n");
        } else {
            assert!(crate::promise::is_refusal(&outcome), "{outcome}");
        }
        mounts += 1;
    }
    // One step exchanges a folder of the cache for a link and back, while eight others mount it.
    let turns = rounds(3);
    for turn in 0..turns {
        let flip = "FROM busybox AS flip\nARG N\nRUN --mount=type=cache,target=/c,id=flip mkdir -p /c/d && ln -sfn TARGET /c/l && \
                    i=0; while [ $i -lt 1500 ]; do mv -T /c/d /c/t && mv -T /c/l /c/d && mv -T /c/d /c/l && mv -T /c/t /c/d; i=$((i+1)); done; true > /made\n"
            .replace("TARGET", &canary);
        let looks: Vec<String> = (0..8)
            .map(|n| {
                format!(
                    "FROM busybox AS look{n}\nARG N\nRUN --mount=type=cache,target=/c,id=flip mkdir -p /c/d; true\n\
                     RUN --mount=type=cache,target=/d,id=flip,source=d (cat /d; ls -a /d; true) > /made 2>&1\n"
                )
            })
            .collect();
        let collect: Vec<String> =
            (0..8).map(|n| format!("COPY --from=look{n} /made /{n}\n")).collect();
        let (looks, collect) = (looks.concat(), collect.concat());
        let file = format!("{flip}{looks}FROM busybox\nCOPY --from=flip /made /flip\n{collect}");
        let (out, context) = (scratch(), context(&[("Dockerfile", &file)]));
        let run =
            rbuild.build(&context).args(["--jobs", "10", "--build-arg", &format!("N=t{turn}")]);
        let outcome = run.output("type=local", out.path()).run();
        if outcome.status.success() {
            for n in 0..8 {
                let seen = fs_err::read(out.path().join(n.to_string())).unwrap();
                leaks += usize::from(String::from_utf8_lossy(&seen).contains("canary"));
            }
        } else {
            // It was a link just then, and led to nothing.
            assert!(crate::promise::is_refusal(&outcome), "{outcome}");
        }
        mounts += 8;
    }
    tell(13, &format!("leaks {leaks} / {mounts} mounts"));
    assert_eq!(leaks, 0);
    assert_eq!(fs_err::read_to_string(top.join("canary")).unwrap(), "canary");
}
