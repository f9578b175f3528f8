//! What the tests of faults share: how often they go round, chance that can be repeated, and the work
//! whose result is known.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::archive::digest_of_tree;
use crate::figure::figure;
use crate::rbuild::{Outcome, Rbuild, Run, context, scratch, write};

/// How many rounds a loop makes: `few`, or `RBUILD_ROUNDS` where that is set (`just soak`).
pub(crate) fn rounds(few: usize) -> usize {
    std::env::var("RBUILD_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(few)
}

/// All numbers from 1 to `most`; or `few` of them, as far apart as can be. `RBUILD_ROUNDS` says how
/// many instead.
pub(crate) fn each_or_few(most: usize, few: usize) -> Vec<usize> {
    let wanted = rounds(few).clamp(1, most.max(1));
    (0..wanted).map(|n| 1 + n * most / wanted).collect()
}

/// Random numbers that are the same each time, unless `RBUILD_SEED` says otherwise.
pub(crate) struct Chance(u64);

impl Chance {
    pub(crate) fn new() -> Self {
        let seed = std::env::var("RBUILD_SEED").ok().and_then(|text| text.parse().ok());
        Self(seed.unwrap_or(0x9E37_79B9_7F4A_7C15))
    }

    /// A number below `below`.
    pub(crate) fn below(&mut self, below: u64) -> u64 {
        // xorshift64
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % below
    }
}

/// What came of builds beside prunes.
#[derive(Default)]
pub(crate) struct BesidePrunes {
    /// How many builds failed or made other files, and how often the state folder was damaged.
    pub(crate) wrong: usize,
    /// How many prunes there were.
    pub(crate) prunes: usize,
}

impl BesidePrunes {
    /// Runs all `builds` at once while `prune` is called again and again. Each must make files whose
    /// digest is `expected`.
    pub(crate) fn run(
        &mut self,
        rbuild: &Rbuild,
        builds: Vec<Run>,
        prune: impl Fn() + Sync,
        expected: &str,
    ) {
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let pruning = scope.spawn(|| {
                let mut count = 0;
                while !done.load(Ordering::Relaxed) {
                    prune();
                    count += 1;
                }
                count
            });
            let started: Vec<_> = builds
                .into_iter()
                .map(|build| {
                    let out = scratch();
                    (build.output("type=local", out.path()).start(), out)
                })
                .collect();
            for (build, out) in started {
                let outcome = Outcome::of(build);
                if !outcome.status.success() || digest_of_tree(out.path()) != expected {
                    figure(&outcome.to_string());
                    self.wrong += 1;
                }
            }
            done.store(true, Ordering::Relaxed);
            self.prunes += pruning.join().unwrap();
        });
        let verified = rbuild.command().args(["cache", "verify"]).run();
        if !verified.status.success() {
            figure(&verified.to_string());
            self.wrong += 1;
        }
    }
}

/// A context whose build has steps of several kinds, always with the same result.
pub(crate) struct Work {
    pub(crate) context: tempfile::TempDir,
}

const DOCKERFILE: &str = "\
FROM busybox AS made
COPY data /data
RUN mkdir /made && for n in 1 2 3 4; do cat /data/* /data/* > /made/$n; done
RUN --mount=type=cache,target=/c echo more >> /c/log && echo late > /made/late
FROM busybox
COPY --from=made /made /made
COPY data/0 /zero
ARG NONCE=0
RUN cat /made/* /zero | sha256sum > /sum
";

impl Work {
    pub(crate) fn new() -> Self {
        Self::of_files(60, 300)
    }

    /// The same with few files, for loops over all that a build does or leaves.
    pub(crate) fn small() -> Self {
        Self::of_files(2, 20)
    }

    fn of_files(files: u32, lines: u32) -> Self {
        let context = context(&[("Dockerfile", DOCKERFILE)]);
        for n in 0..files {
            let lines: Vec<String> =
                (0..lines).map(|line| format!("{n} {}\n", line * 7919 % 1009)).collect();
            write(context.path().join(format!("data/{n}")), &lines.concat());
        }
        Self { context }
    }

    /// The build, for which every layer and digest is the same on each machine. `nonce` makes the
    /// last step another one with the same result.
    pub(crate) fn build(&self, rbuild: &Rbuild, nonce: u64) -> Run {
        rbuild
            .build(&self.context)
            .args(["--build-arg", &format!("NONCE={nonce}")])
            .env("SOURCE_DATE_EPOCH", "1000000000")
    }

    /// Builds, which must succeed, and gives the digest of the files of the image.
    #[track_caller]
    pub(crate) fn files(&self, rbuild: &Rbuild, nonce: u64) -> String {
        let out = scratch();
        self.build(rbuild, nonce).output("type=local", out.path()).succeeds();
        digest_of_tree(out.path())
    }

    /// The arguments of an archive whose bytes are always the same.
    pub(crate) fn archive(run: Run, dest: &Path) -> Run {
        run.output("type=oci,name=sample:v1,rewrite-timestamp=true", dest)
    }
}
