//! P33: several builds and prunes share one state folder.

use std::path::PathBuf;

use crate::archive::digest_of_tree;
use crate::figure::figure;
use crate::needs::{self, lacking};
use crate::rbuild::{Outcome, Rbuild, run, scratch};
use crate::soak::{BesidePrunes, Work, rounds};

#[test]
fn builds_during_prunes() {
    if lacking(&needs::STEPS) {
        return;
    }
    let work = Work::new();
    let expected = work.files(&Rbuild::new(), 0);
    let rbuild = Rbuild::new();
    let mut found = BesidePrunes::default();
    let n = rounds(2);
    for round in 0..n as u64 {
        // Two of them do the same.
        let nonces = [0, 0, round + 1, 1000 + round];
        let builds = nonces.map(|nonce| work.build(&rbuild, nonce)).into();
        let prune = || drop(rbuild.command().args(["prune", "--all", "-f"]).succeeds());
        found.run(&rbuild, builds, prune, &expected);
    }
    figure(&format!("P33 wrong {} of {} ({} prunes)", found.wrong, n * 4, found.prunes));
    assert_eq!(found.wrong, 0);
    assert_eq!(rbuild.leftovers(), Vec::<std::path::PathBuf>::new());
}

/// Each of them removes what is damaged and makes it anew, unless another one did.
#[test]
fn builds_that_find_the_same_damage() {
    if lacking(&needs::STEPS) {
        return;
    }
    let work = Work::small();
    let rbuild = Rbuild::new();
    let expected = work.files(&rbuild, 0);
    let snapshots = rbuild.root.join("snapshots").display().to_string();
    let (n, mut wrong) = (rounds(3), 0);
    for round in 0..n as u64 {
        // One file of each tree that has any.
        let files = run("find", &[&snapshots, "-path", "*/fs/*", "-type", "f", "-size", "+0"]);
        let mut damaged: Vec<PathBuf> = files.lines().map(PathBuf::from).collect();
        let tree = |path: &PathBuf| path.to_str().unwrap().split("/fs/").next().unwrap().to_owned();
        damaged.sort();
        damaged.dedup_by_key(|path| tree(path));
        assert!(damaged.len() > 4, "{damaged:?}");
        for file in &damaged {
            fs_err::write(file, "damaged").unwrap();
        }
        let builds = [0, 1, 2].map(|nonce| {
            let out = scratch();
            let nonce = 1 + round * 3 + nonce;
            (work.build(&rbuild, nonce).output("type=local", out.path()).start(), out)
        });
        for (build, out) in builds {
            let outcome = Outcome::of(build);
            if !outcome.status.success() || digest_of_tree(out.path()) != expected {
                figure(&outcome.to_string());
                wrong += 1;
            }
        }
        // What none of them needed is still as it was.
        rbuild.command().args(["cache", "verify", "--repair"]).succeeds();
    }
    figure(&format!("P33 damage: wrong {wrong} of {}", n * 3));
    assert_eq!(wrong, 0);
    assert_eq!(rbuild.leftovers(), Vec::<PathBuf>::new());
}
