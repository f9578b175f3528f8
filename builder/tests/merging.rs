//! Chains of layers that are merged (`cache/src/snapshot/chain.rs`) while builds are killed, prunes
//! remove what they can, and several builds need the same pieces at once.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use crate::archive::digest_of_tree;
use crate::figure::figure;
use crate::needs::{self, lacking};
use crate::rbuild::{Rbuild, Run, context, scratch};
use crate::soak::{BesidePrunes, Chance, rounds};

/// A stage with more layers than are mounted at once, each cheap to make; the last step mounts them.
struct Chain(tempfile::TempDir);

impl Chain {
    fn new() -> Self {
        let mut text = "FROM busybox AS long\n".to_owned();
        for n in 0..135 {
            writeln!(text, "COPY file /folder-{}/copied-{n}", n % 7).unwrap();
        }
        text.push_str("ARG NONCE=0\nRUN ls -R /folder-* > /seen && rm -r /folder-3\n");
        Self(context(&[("Dockerfile", &text), ("file", "text\n")]))
    }

    /// The build; a `nonce` makes the last step a new one with the same result.
    fn build(&self, rbuild: &Rbuild, nonce: u64) -> Run {
        rbuild.build(&self.0).args(["--build-arg", &format!("NONCE={nonce}")])
    }
}

/// Removes the merged pieces and the result of the last step, so that the next build makes them.
fn forget_pieces(rbuild: &Rbuild) {
    for filter in ["description~=layer of an image", "description~=RUN"] {
        rbuild.command().args(["prune", "--all", "-f", "--filter", filter]).succeeds();
    }
}

#[test]
fn builds_that_are_killed_while_they_merge() {
    if lacking(&needs::STEPS) {
        return;
    }
    let (chain, rbuild, mut chance) = (Chain::new(), Rbuild::new(), Chance::new());
    let out = scratch();
    let built = |nonce| chain.build(&rbuild, nonce).output("type=local", out.path()).succeeds();
    built(0);
    let expected = digest_of_tree(out.path());
    forget_pieces(&rbuild);
    let begun = Instant::now();
    built(0);
    let took = u64::try_from(begun.elapsed().as_millis()).unwrap().max(2);
    let (mut killed, mut wrong) = (0, 0);
    let n = rounds(5);
    for round in 0..n as u64 {
        forget_pieces(&rbuild);
        let mut child = chain.build(&rbuild, 1 + round).start();
        std::thread::sleep(Duration::from_millis(chance.below(took)));
        killed += usize::from(child.try_wait().unwrap().is_none());
        let _ = child.kill();
        let _ = child.wait_with_output();
        built(1 + round);
        let verified = rbuild.command().args(["cache", "verify"]).run();
        if digest_of_tree(out.path()) != expected || !verified.status.success() {
            figure(&format!("round {round}: {verified}"));
            wrong += 1;
        }
    }
    figure(&format!("P30 merging: wrong {wrong} of {n} ({killed} killed)"));
    assert_eq!(wrong, 0);
    assert_eq!(rbuild.leftovers(), Vec::<std::path::PathBuf>::new());
}

#[test]
fn builds_that_merge_at_once_during_prunes() {
    if lacking(&needs::STEPS) {
        return;
    }
    let (chain, rbuild) = (Chain::new(), Rbuild::new());
    let out = scratch();
    chain.build(&rbuild, 0).output("type=local", out.path()).succeeds();
    let expected = digest_of_tree(out.path());
    let mut found = BesidePrunes::default();
    let n = rounds(2);
    for round in 0..n as u64 {
        forget_pieces(&rbuild);
        let builds = (1..=3).map(|number| chain.build(&rbuild, round * 3 + number)).collect();
        found.run(&rbuild, builds, || forget_pieces(&rbuild), &expected);
    }
    figure(&format!("P33 merging: wrong {} of {} ({} prunes)", found.wrong, n * 3, found.prunes));
    assert_eq!(found.wrong, 0);
    assert_eq!(rbuild.leftovers(), Vec::<std::path::PathBuf>::new());
}
