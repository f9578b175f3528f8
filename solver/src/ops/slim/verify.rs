//! Slimming with proof: the full image is run and asked, then the slim one; what the slim run looked
//! for and only the full image has is put back, and it is asked again.
//!
//! Absence from one run is never taken as proof of no use: in `auto` a run only adds to the closure.
//! In `trace` it decides, and so what comes of it must pass.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::compare;
use super::files::FileId;
use super::probe::ProbeRun;
use super::report::{Outcome, Verification};
use super::{Observed, SlimError, Slimmed, Subject};
use crate::error::Cause;
use crate::graph::{SlimMode, SlimOp, SlimProbe};
use crate::ops::file::Sharing;
use crate::ops::{Work, Worker, blocking};
use crate::tree::Tree;

/// How often paths are put back.
const ROUNDS_MAX: usize = 3;

/// Where paths are no files of the image.
const NOT_FILES: &[&str] = &["/dev", "/proc", "/run", "/sys", "/tmp", "/var/run", "/var/tmp"];

impl Worker {
    /// Slims `full` and compares what its program answers before and after.
    ///
    /// # Errors
    /// [`SlimError::ProbeFails`] when the full image does not answer either.
    pub(super) async fn slim_verified(
        &self,
        work: &Work<'_>,
        op: &SlimOp,
        full: &Tree,
        subject: Subject,
    ) -> Result<Slimmed, Cause> {
        let subject = Arc::new(subject);
        // A command that is no program is said to be so, not that it does not answer.
        let (looked_at, of_op) = (Arc::clone(&subject), op.clone());
        blocking(move || Ok(looked_at.select(&of_op, &Observed::default()).map(drop)?)).await?;
        let first = self.probe(work, op, full, full).await?;
        let again = self.probe(work, op, full, full).await?;
        if let Some(failure) = first.failed.clone().or(again.failed.clone()) {
            return Err(SlimError::ProbeFails { reason: failure.reason }.into());
        }
        let mut observed = Observed::default();
        for run in [&first, &again] {
            let used = run.asked.iter().filter(|asked| asked.opens || op.mode == SlimMode::Trace);
            observed.opened.extend(used.map(|asked| source(&asked.path)));
        }
        observed.opened.retain(|path| subject.is_worth_keeping(path));
        observed.opened.sort();
        observed.opened.dedup();
        let mut rounds = 0;
        loop {
            let mut slimmed = self.slim_once(op, &subject, &observed).await?;
            let tree =
                Tree::default().with(slimmed.runtime.clone()).with(slimmed.application.clone());
            let run = self.probe(work, op, &tree, full).await?;
            let missing = subject.missing(&run, &slimmed);
            if !missing.is_empty() && rounds < ROUNDS_MAX {
                rounds += 1;
                observed.put_back.extend(missing);
                continue;
            }
            judge(&mut slimmed, op, [&first, &again, &run], rounds, &observed);
            return Ok(slimmed);
        }
    }

    async fn slim_once(
        &self,
        op: &SlimOp,
        subject: &Arc<Subject>,
        observed: &Observed,
    ) -> Result<Slimmed, Cause> {
        let (subject, op, observed) = (Arc::clone(subject), op.clone(), observed.clone());
        let state = self.surroundings.state.clone();
        // It is run.
        let slim = move || Ok(subject.slim(&op, &observed, &state, Sharing::Forbidden)?);
        blocking(slim).await
    }
}

impl Subject {
    /// Whether `path`, which a run asked for, is a file of the image that cannot be had otherwise.
    fn is_worth_keeping(&self, path: &Path) -> bool {
        if NOT_FILES.iter().any(|folder| path.starts_with(folder)) {
            return false;
        }
        let Some(id) = self.files.resolve(path).file else { return false };
        if id == FileId::ROOT || self.files.text(id) == super::ldconfig::CACHE {
            return false;
        }
        // What Python compiled it compiles again.
        !matches!(self.files.name(id).rsplit_once('.'), Some((_, "pyc")))
    }

    /// What the run of a slim image looked for, and the full image has.
    fn missing(&self, run: &ProbeRun, slimmed: &Slimmed) -> Vec<PathBuf> {
        let asked = run.asked.iter().map(|asked| &asked.path);
        let is_missing = |path: &&PathBuf| {
            let found = self.files.resolve(path);
            let all = found.links.iter().chain(&found.file);
            self.is_worth_keeping(path)
                && all.clone().any(|id| {
                    let text = self.files.text(*id);
                    let place = slimmed.report.files.binary_search_by(|file| file.path.cmp(&text));
                    // Folders are there with what is in them.
                    place.is_err() && !self.is_folder_of_kept(*id, slimmed)
                })
        };
        asked.filter(is_missing).cloned().collect()
    }

    fn is_folder_of_kept(&self, id: FileId, slimmed: &Slimmed) -> bool {
        let prefix = format!("{}/", self.files.text(id));
        let next = slimmed.report.files.partition_point(|file| file.path < prefix);
        slimmed.report.files.get(next).is_some_and(|file| file.path.starts_with(&prefix))
    }
}

/// The module that Python compiled to `path`; any other path is its own. Python compiles it again, so
/// the module is what has to be there.
fn source(path: &Path) -> PathBuf {
    let of_cache = || {
        let (folder, name) = (path.parent()?, path.file_name()?.to_str()?);
        let is_compiled = name.rsplit_once('.')?.1 == "pyc" && folder.ends_with("__pycache__");
        let module = name.split('.').next()?;
        is_compiled.then(|| folder.with_file_name(format!("{module}.py")))
    };
    of_cache().unwrap_or_else(|| path.to_owned())
}

/// Says whether the slim image passed; what did not pass is not exported.
fn judge(
    slimmed: &mut Slimmed,
    op: &SlimOp,
    [first, again, run]: [&ProbeRun; 3],
    rounds: usize,
    observed: &Observed,
) {
    let steps = compare::steps(first, again, run);
    let complaints = compare::complaints(first, again, run);
    let reason = match (&run.failed, steps.iter().find(|step| !step.same)) {
        (Some(failure), _) => Some(failure.reason.clone()),
        (None, Some(step)) => {
            Some(format!("`{}` answers `{}` instead of `{}`", step.name, step.slim, step.full))
        }
        (None, None) => complaints.first().map(|line| format!("it complains: {line}")),
    };
    slimmed.report.verification = Some(Verification {
        passed: reason.is_none(),
        probe: shown(&op.probe),
        rounds,
        put_back: observed.put_back.iter().map(|path| path.display().to_string()).collect(),
        steps,
    });
    if let Some(reason) = reason {
        let late = run.failed.as_ref().is_some_and(|failure| failure.late);
        slimmed.report.outcome = Outcome::Full { reason, late };
    }
}

fn shown(probe: &SlimProbe) -> String {
    match probe {
        SlimProbe::Alive => "starts and stays up, or ends as before".to_owned(),
        SlimProbe::Command(command) => command.join(" "),
        SlimProbe::Http { port, paths } => format!("http:{port}{}", paths.join(",")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_stand_for_what_they_compile_to() {
        let check = |path: &str, expected: &str| {
            assert_eq!(source(Path::new(path)), Path::new(expected));
        };
        check("/lib/a/__pycache__/b.cpython-311.pyc", "/lib/a/b.py");
        check("/lib/a/b.pyc", "/lib/a/b.pyc");
        check("/lib/a/b.so", "/lib/a/b.so");
    }
}
