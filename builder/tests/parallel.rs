//! P33: several builds and prunes share one state folder.

use std::sync::atomic::{AtomicBool, Ordering};

use crate::archive::digest_of_tree;
use crate::figure::figure;
use crate::needs::{self, lacking};
use crate::rbuild::{Outcome, Rbuild, scratch};
use crate::soak::{Work, rounds};

#[test]
fn builds_during_prunes() {
    if lacking(&needs::STEPS) {
        return;
    }
    let work = Work::new();
    let expected = work.files(&Rbuild::new(), 0);
    let rbuild = Rbuild::new();
    let (mut wrong, mut prunes) = (0, 0);
    let n = rounds(2);
    for round in 0..n as u64 {
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let pruning = scope.spawn(|| {
                let mut count = 0;
                while !done.load(Ordering::Relaxed) {
                    rbuild.command().args(["prune", "--all", "-f"]).succeeds();
                    count += 1;
                }
                count
            });
            let outs: Vec<_> = (0..4).map(|_| scratch()).collect();
            // Two of them do the same.
            let builds: Vec<_> = outs
                .iter()
                .zip([0, 0, round + 1, 1000 + round])
                .map(|(out, nonce)| {
                    work.build(&rbuild, nonce).output("type=local", out.path()).start()
                })
                .collect();
            for (build, out) in builds.into_iter().zip(&outs) {
                let outcome = Outcome::of(build);
                if !outcome.status.success() || digest_of_tree(out.path()) != expected {
                    figure(&format!("round {round}: {outcome}"));
                    wrong += 1;
                }
            }
            done.store(true, Ordering::Relaxed);
            prunes += pruning.join().unwrap();
        });
        let verified = rbuild.command().args(["cache", "verify"]).run();
        if !verified.status.success() {
            figure(&format!("round {round}: {verified}"));
            wrong += 1;
        }
    }
    figure(&format!("P33 wrong {wrong} of {} ({prunes} prunes)", n * 4));
    assert_eq!(wrong, 0);
    assert_eq!(rbuild.leftovers(), Vec::<std::path::PathBuf>::new());
}
