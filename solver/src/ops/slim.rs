//! `--slim`: of a tree, what its program needs, as two layers.
//!
//! The principle: prune the distribution, never the user. A file that a package of the distribution
//! brought, and that nobody changed, is kept if something leads to it; all else is kept anyway. What
//! leads to a file is found without running anything:
//!
//! 1. `files` reads the tree, `package` its database, `partition` says whose each file is.
//! 2. `roots` keeps the program, what the image names, and the user's files.
//! 3. `closure` follows all that is kept to what it needs, until nothing new comes: links, loaders,
//!    libraries (`elf`, `libraries`, `ldconfig`), scripts (`shebang`, `shell`), functions that need
//!    files (`charset`, `locale`, `certificates`, …), whole runtimes (`python`, `java`, …).
//! 4. `base`, `licenses` and `metadata` add what every image has, what has to be handed on, and what
//!    scanners read.
//! 5. `layers` and `transfer` write the result; `report` says why, and is kept as a third layer: it is found,
//!    shared and pruned with the result.
//!
//! With `--slim=auto` and `--slim=trace` the image is run as well, full and slim, and asked (`probe`,
//! `compare`, `verify`).
//!
//! Nothing here changes the tree that is given. Nothing depends on the machine: a tree for another
//! platform is slimmed the same way, but not run.

pub mod report;

mod authentication;
mod base;
mod certificates;
mod charset;
mod closure;
mod compare;
mod elf;
mod error;
mod files;
mod java;
mod layers;
mod ldconfig;
mod libraries;
mod licenses;
mod locale;
mod metadata;
mod name_service;
mod node;
mod package;
mod partition;
mod perl;
mod php;
mod probe;
mod python;
mod reason;
mod roots;
mod ruby;
mod shebang;
mod shell;
mod subject;
mod terminal;
mod transfer;
mod verify;

use rbuild_cache::digest::{CacheKey, Digest, TreeDigest};
use rbuild_cache::oci::Platform;

pub use self::error::SlimError;
pub use self::layers::Part;
pub use self::reason::Why;
pub(crate) use self::subject::{Observed, Slimmed, Subject};

use self::report::SlimReport;
use crate::error::Cause;
use crate::graph::{SlimMode, SlimOp};
use crate::key::{self, InputDigest};
use crate::ops::file::Sharing;
use crate::ops::{Work, Worker, blocking, tree};
use crate::progress::EventKind;
use crate::single_flight;
use crate::tree::{Output, Tree, TreeLayer};

impl Worker {
    /// What of input 0 its program needs: a tree of two layers.
    pub(crate) async fn slim(
        &self,
        work: &Work<'_>,
        op: &SlimOp,
        mut inputs: Vec<Output>,
    ) -> Result<Tree, Cause> {
        let full = tree(inputs.remove(0))?;
        let digests = [InputDigest::Tree(full.digest())];
        let key = key::definition(&work.vertex.op, &[full.digest()]);
        if let Some(known) = self.known_slim(work, &key, &full).await? {
            Self::hit(work);
            return Ok(known);
        }
        let _flight = single_flight::lock(self.surroundings.state.locks(), &key).await?;
        if let Some(known) = self.known_slim(work, &key, &full).await? {
            Self::hit(work);
            return Ok(known);
        }
        self.miss(work, &part_keys(&key), &digests, None);
        let view = self.view(&full, &work.task).await?;
        let from = full.digest();
        let (state, slim_op) = (self.surroundings.state.clone(), op.clone());
        let can_run = can_run(op);
        // What is run is seen by a step.
        let shares = work.sharing && !can_run;
        let sharing = if shares { Sharing::Allowed } else { Sharing::Forbidden };
        let subject = blocking(move || Ok(Subject::read(&view, from)?)).await?;
        let mut slimmed = if can_run {
            self.slim_verified(work, op, &full, subject).await?
        } else {
            let slim = move || Ok(subject.slim(&slim_op, &Observed::default(), &state, sharing)?);
            blocking(slim).await?
        };
        if !can_run && op.mode != SlimMode::Closure {
            let note = format!("nothing of an image for {} can be run here", op.platform);
            slimmed.report.notes.push(format!("{note}: its answers were not compared"));
        }
        for note in &slimmed.report.notes {
            work.task.tell(EventKind::Warning { message: note.clone() });
        }
        self.record_slim(work, &key, full, slimmed, &digests).await
    }

    /// The result under `key` for the tree `full`; there is none if a layer of it or its report is
    /// gone.
    async fn known_slim(
        &self,
        work: &Work<'_>,
        key: &CacheKey,
        full: &Tree,
    ) -> Result<Option<Tree>, Cause> {
        let [report_key, runtime_key, application_key] = part_keys(key);
        let Some(layer) = self.known(work, &report_key).await? else { return Ok(None) };
        // What others say of their result is only a result if it can be read.
        let of_report = Tree::default().with_layer(layer.clone());
        let ids = self.realize(&of_report, &work.task).await?;
        let state = self.surroundings.state.clone();
        let report = blocking(move || SlimReport::read(&state, &ids).map_err(Cause::state)).await?;
        let result = match report.map(|report| report.outcome) {
            None | Some(report::Outcome::Full { late: true, .. }) => return Ok(None),
            Some(report::Outcome::Full { .. }) => full.clone(),
            Some(report::Outcome::Slim) => {
                let runtime = self.known(work, &runtime_key).await?;
                let application = self.known(work, &application_key).await?;
                let Some((runtime, application)) = runtime.zip(application) else {
                    return Ok(None);
                };
                let below = self.came_to(vec![runtime_key], Tree::default(), runtime);
                self.came_to(vec![application_key], below, application)
            }
        };
        self.came_to(vec![report_key], Tree::default(), layer);
        Ok(Some(result))
    }

    /// Writes down what `full` was slimmed to, and returns the result: itself, when what came of it
    /// does not work.
    async fn record_slim(
        &self,
        work: &Work<'_>,
        key: &CacheKey,
        full: Tree,
        slimmed: Slimmed,
        digests: &[InputDigest],
    ) -> Result<Tree, Cause> {
        let Slimmed { runtime, application, report } = slimmed;
        let [report_key, runtime_key, application_key] = part_keys(key);
        let mut result = full;
        if report.outcome == report::Outcome::Slim {
            result = Tree::default();
            for (key, layer) in [(runtime_key, runtime), (application_key, application)] {
                let layer = TreeLayer::Snapshot(layer);
                self.record(work, vec![key], &layer, digests).await?;
                result = self.came_to(vec![key], result, layer);
            }
        }
        // The report comes last: with it the result is there.
        let is_final = !matches!(report.outcome, report::Outcome::Full { late: true, .. });
        let state = self.surroundings.state.clone();
        let layer = blocking(move || report.commit(&state).map_err(Cause::state)).await?;
        let layer = TreeLayer::Snapshot(layer);
        self.record(work, vec![report_key], &layer, digests).await?;
        if is_final {
            self.came_to(vec![report_key], Tree::default(), layer);
        }
        Ok(result)
    }
}

/// Whether the program is to be run, and can be.
fn can_run(op: &SlimOp) -> bool {
    let (host, of_image) = (Platform::host(), &op.platform);
    let is_ours = (&of_image.os, &of_image.architecture) == (&host.os, &host.architecture);
    op.mode != SlimMode::Closure && is_ours
}

/// The keys of what the result under `key` consists of: report, runtime, application.
fn part_keys(key: &CacheKey) -> [CacheKey; 3] {
    [report::key(key), key::part(key, "runtime"), key::part(key, "application")]
}

/// What the report of `op` over the tree `from` is called.
pub fn report_name(op: &crate::graph::Op, from: TreeDigest) -> Digest {
    report::name(op, from)
}
