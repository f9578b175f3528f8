//! P33: several builds and prunes share one state folder.

use crate::figure::figure;
use crate::needs::{self, lacking};
use crate::rbuild::Rbuild;
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
