//! P30 and P31: rbuild killed at any moment. The next build is right, a check of the cache finds
//! nothing, outputs are whole or not there.

use std::path::Path;
use std::process::Child;
use std::time::{Duration, Instant};

use crate::figure::figure;
use crate::needs::{self, lacking};
use crate::rbuild::{Outcome, Rbuild, Run, run, scratch};
use crate::registry::{self, TestRegistry};
use crate::soak::{Chance, Work, rounds};

/// Runs it, and kills it at a random moment of the first `most` that it takes; whether it was still
/// running then.
fn kill_sometime(run: Run, chance: &mut Chance, most: Duration) -> bool {
    let mut child: Child = run.start();
    let millis = u64::try_from(most.as_millis()).unwrap().max(2);
    std::thread::sleep(Duration::from_millis(chance.below(millis)));
    let killed = child.try_wait().unwrap().is_none();
    // It may have ended in between.
    let _ = child.kill();
    let _ = child.wait_with_output();
    killed
}

fn checksum(path: &Path) -> String {
    run("sha256sum", &[path.to_str().unwrap()])[..64].to_owned()
}

/// Kills builds that write an archive, as often as `rounds` says, each from another beginning.
#[test]
fn builds_and_exports_that_are_killed() {
    if lacking(&needs::STEPS) {
        return;
    }
    let (work, mut chance) = (Work::new(), Chance::new());
    let out = scratch();
    let undisturbed = Rbuild::new();
    let expected = out.path().join("expected.tar");
    let begun = Instant::now();
    Work::archive(work.build(&undisturbed, 0), &expected).succeeds();
    let took = begun.elapsed();
    let expected = checksum(&expected);

    let rbuild = Rbuild::new();
    let (mut killed, mut wrong, mut partial) = (0, 0, 0);
    let n = rounds(6);
    for round in 0..n {
        match chance.below(4) {
            // From nothing.
            0 => _ = fs_err::remove_dir_all(&rbuild.root),
            1 => _ = rbuild.command().args(["prune", "--all", "-f"]).succeeds(),
            _ => {}
        }
        let archive = out.path().join(format!("{round}.tar"));
        let nonce = chance.below(1000);
        let running = Work::archive(work.build(&rbuild, nonce), &archive);
        killed += usize::from(kill_sometime(running, &mut chance, took));
        if archive.exists() && !Outcome::of(tar_list(&archive)).status.success() {
            partial += 1;
        }
        Work::archive(work.build(&rbuild, 0), &archive).succeeds();
        wrong += usize::from(checksum(&archive) != expected);
        fs_err::remove_file(archive).unwrap();
        let verified = rbuild.command().args(["cache", "verify"]).run();
        if !verified.status.success() {
            figure(&format!("round {round}: {verified}"));
            wrong += 1;
        }
        assert_eq!(rbuild.leftovers(), Vec::<std::path::PathBuf>::new(), "round {round}");
    }
    figure(&format!("P30 build and export: wrong {wrong} of {n} ({killed} killed)"));
    figure(&format!("P31 partial files {partial} of {n}"));
    assert_eq!((wrong, partial), (0, 0));
}

fn tar_list(archive: &Path) -> Child {
    std::process::Command::new("tar")
        .arg("-tf")
        .arg(archive)
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap()
}

#[test]
fn prunes_that_are_killed() {
    if lacking(&needs::STEPS) {
        return;
    }
    let (work, mut chance) = (Work::new(), Chance::new());
    let rbuild = Rbuild::new();
    let expected = work.files(&rbuild, 0);
    let (mut killed, mut wrong) = (0, 0);
    let n = rounds(4);
    for round in 0..n {
        for nonce in 0..3 {
            work.build(&rbuild, round as u64 * 3 + nonce).args(["-t", "sample:v1"]).succeeds();
        }
        let prune = rbuild.command().args(["prune", "--all", "-f"]);
        killed += usize::from(kill_sometime(prune, &mut chance, Duration::from_millis(150)));
        let verified = rbuild.command().args(["cache", "verify"]).run();
        wrong += usize::from(!verified.status.success());
        wrong += usize::from(work.files(&rbuild, 0) != expected);
        rbuild.command().args(["inspect", "sample:v1"]).succeeds();
        assert_eq!(rbuild.leftovers(), Vec::<std::path::PathBuf>::new(), "round {round}");
    }
    figure(&format!("P30 prune: wrong {wrong} of {n} ({killed} killed)"));
    assert_eq!(wrong, 0);
}

#[test]
fn pulls_that_are_killed() {
    if lacking(&needs::STEPS) || lacking(&registry::NEEDED) {
        return;
    }
    let (work, mut chance) = (Work::new(), Chance::new());
    let registry = TestRegistry::open();
    let image = registry.image("crash/sample:v1");
    let maker = Rbuild::new();
    work.build(&maker, 0).args(["-t", &image, "--push"]).succeeds();
    let text = format!("FROM {image}\nRUN cat /sum > /again\n");
    let context = crate::rbuild::context(&[("Dockerfile", &text)]);
    let files = |rbuild: &Rbuild| {
        let out = scratch();
        rbuild.build(&context).output("type=local", out.path()).succeeds();
        crate::archive::digest_of_tree(out.path())
    };
    let expected = files(&Rbuild::new());
    let begun = Instant::now();
    Rbuild::new().command().args(["pull", &image]).succeeds();
    let took = begun.elapsed();
    let (mut killed, mut wrong) = (0, 0);
    let n = rounds(4);
    for round in 0..n {
        let rbuild = Rbuild::new();
        let pull = match chance.below(2) {
            0 => rbuild.command().args(["pull", &image]),
            _ => rbuild.build(&context),
        };
        killed += usize::from(kill_sometime(pull, &mut chance, took));
        wrong += usize::from(files(&rbuild) != expected);
        let verified = rbuild.command().args(["cache", "verify"]).run();
        wrong += usize::from(!verified.status.success());
        assert_eq!(rbuild.leftovers(), Vec::<std::path::PathBuf>::new(), "round {round}");
    }
    figure(&format!("P30 pull: wrong {wrong} of {n} ({killed} killed)"));
    assert_eq!(wrong, 0);
}
