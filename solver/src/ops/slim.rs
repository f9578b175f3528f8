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
//! 5. `layers` writes the result; `report` says why.
//!
//! Nothing here changes the tree that is given. Nothing depends on the machine: a tree for another
//! platform is slimmed the same way.

pub mod report;

mod authentication;
mod base;
mod certificates;
mod charset;
mod closure;
mod elf;
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
mod python;
mod reason;
mod roots;
mod ruby;
mod shebang;
mod shell;
mod terminal;

use std::io;
use std::path::{Path, PathBuf};

use rbuild_cache::digest::{CacheKey, Digest, TreeDigest};
use rbuild_cache::index::{CacheRecord, IndexError};
use rbuild_cache::pattern::PatternError;
use rbuild_cache::snapshot::{Snapshot, SnapshotError};
use rbuild_cache::state::StateFolder;
use rbuild_cache::view::{View, ViewError};

use self::closure::{Closure, Kept};
use self::files::{FileId, Files};
pub use self::layers::Part;
pub use self::reason::Why;

use self::layers::{Layers, Made, MadeKind};
use self::package::Packages;
use self::partition::Partition;
use self::report::SlimReport;
use crate::error::Cause;
use crate::graph::SlimOp;
use crate::key;
use crate::ops::{Work, Worker, blocking, tree};
use crate::progress::EventKind;
use crate::single_flight;
use crate::tree::{Output, Tree};

/// Says why a tree could not be slimmed.
#[derive(Debug, thiserror::Error)]
pub enum SlimError {
    /// There is nothing to begin with.
    #[error("the image has neither ENTRYPOINT nor CMD: what it needs cannot be told")]
    NoCommand,
    /// The program is not in the image.
    #[error("the image runs `{name}`, which is no program in it")]
    MissingProgram {
        /// The first word of what it runs.
        name: String,
        /// The image's PATH.
        path: String,
    },
    /// The program is left out.
    #[error("`--slim-drop` leaves out `{}`, which the image runs", path.display())]
    DroppedProgram {
        /// The program, or what it cannot start without.
        path: PathBuf,
    },
    /// The program cannot be read.
    #[error("cannot say what the program `{}` needs: {reason}", path.display())]
    BrokenProgram {
        /// The program.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A pattern makes no sense.
    #[error(transparent)]
    Pattern(#[from] PatternError),
    /// The tree could not be read.
    #[error(transparent)]
    View(#[from] ViewError),
    /// The result could not be written.
    #[error("cannot write `{}`", path.display())]
    Io {
        /// The path in the tree.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The result could not be kept.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// The report could not be kept.
    #[error(transparent)]
    Index(#[from] IndexError),
}

impl SlimError {
    fn io(path: &Path, source: io::Error) -> Self {
        Self::Io { path: Path::new("/").join(path), source }
    }

    /// What the user can do.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::NoCommand => Some("give the image an ENTRYPOINT or a CMD".into()),
            Self::MissingProgram { name, path } if !name.contains('/') && !path.is_empty() => {
                Some(format!("it was looked for in `{path}`"))
            }
            Self::DroppedProgram { .. } => Some("leave it out of `--slim-drop`".into()),
            Self::BrokenProgram { .. }
            | Self::MissingProgram { .. }
            | Self::Pattern(_)
            | Self::View(_)
            | Self::Io { .. }
            | Self::Snapshot(_)
            | Self::Index(_) => None,
        }
    }
}

/// What runs of the image showed; paths as they were asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Observed {
    /// What a run of the full image opened.
    pub(crate) opened: Vec<PathBuf>,
    /// What a run of the slim image looked for in vain although the full image has it.
    pub(crate) put_back: Vec<PathBuf>,
}

/// A tree, read: what is decided of it can be decided again with more [`Observed`].
pub(crate) struct Subject {
    files: Files,
    packages: Packages,
    partition: Partition,
    from: TreeDigest,
}

/// A slim tree that was written.
#[derive(Clone, Debug)]
pub(crate) struct Slimmed {
    /// The lower layer.
    pub(crate) runtime: Snapshot,
    /// The upper layer.
    pub(crate) application: Snapshot,
    /// What is in them and why.
    pub(crate) report: SlimReport,
}

impl Subject {
    /// Reads the tree `view`, whose digest is `from`.
    pub(crate) fn read(view: &View, from: TreeDigest) -> Result<Self, SlimError> {
        let files = Files::read(view)?;
        let packages = Packages::read(&files)?;
        let partition = Partition::of(&files, &packages)?;
        Ok(Self { files, packages, partition, from })
    }

    /// Decides what is kept and writes it.
    pub(crate) fn slim(
        &self,
        op: &SlimOp,
        observed: &Observed,
        state: &StateFolder,
    ) -> Result<Slimmed, SlimError> {
        let (kept, made) = self.select(op, observed)?;
        let Self { files, packages, partition, from } = self;
        let is_kept = |id: &FileId| kept.reasons[id.index()].is_some();
        let layers =
            Layers::new(files, partition, files.ids().skip(1).filter(is_kept), made.clone());
        let (runtime, application) = rayon::join(
            || layers.commit(Part::Runtime, state),
            || layers.commit(Part::Application, state),
        );
        let (kept, made) = (&kept, &made[..]);
        let subject = report::Subject { op, from: *from, files, packages, partition, kept, made };
        let report = SlimReport::of(&subject);
        Ok(Slimmed { runtime: runtime?, application: application?, report })
    }

    fn select(&self, op: &SlimOp, observed: &Observed) -> Result<(Kept, Vec<Made>), SlimError> {
        let Self { files, packages, partition, .. } = self;
        let mut closure = Closure::new(files, packages, partition, op)?;
        let program = roots::keep(&mut closure, observed)?;
        base::keep(&mut closure);
        closure.complete()?;
        if let Some(reason) = closure.broken(program) {
            let (path, reason) = (files.path(program), reason.to_owned());
            return Err(SlimError::BrokenProgram { path, reason });
        }
        licenses::keep(&mut closure)?;
        closure.complete()?;
        let mut made = base::made(files, op.base)?;
        made.extend(metadata::made(files, packages, |id| closure.is_kept(id)));
        let is_kept = |id| closure.is_kept(id);
        if let Some(cache) = closure.libraries().folders().pruned_cache(files, is_kept) {
            let metadata = files.resolve(Path::new(ldconfig::CACHE)).file;
            let time = metadata.map(|id| files.get(id).entry.metadata().modified);
            made.push(Made {
                path: ldconfig::CACHE.trim_start_matches('/').into(),
                kind: MadeKind::File(cache),
                mode: 0o644,
                uid: 0,
                gid: 0,
                time: time.unwrap_or_default(),
            });
        }
        let mut kept = closure.finish();
        self.judge_left_out(program, &mut kept)?;
        Ok((kept, made))
    }

    /// Says what `--slim-drop` leaves out although something kept needs it.
    ///
    /// # Errors
    /// When the program itself cannot start without.
    fn judge_left_out(&self, program: FileId, kept: &mut Kept) -> Result<(), SlimError> {
        for (id, reason) in &kept.left_out {
            let Some(from) = reason.from else { continue };
            let is_vital = matches!(reason.why, Why::Loader | Why::Library(_) | Why::Interpreter);
            if !is_vital {
                continue;
            }
            if from == program {
                return Err(SlimError::DroppedProgram { path: self.files.path(*id) });
            }
            let (path, by) = (self.files.text(*id), self.files.text(from));
            kept.notes.push(format!("`--slim-drop` leaves out `{path}`, which `{by}` needs"));
        }
        Ok(())
    }
}

impl Worker {
    /// What of input 0 its program needs: a tree of two layers.
    pub(crate) async fn slim(
        &self,
        work: &Work<'_>,
        op: &SlimOp,
        mut inputs: Vec<Output>,
    ) -> Result<Tree, Cause> {
        let full = tree(inputs.remove(0))?;
        let key = key::definition(&work.vertex.op, &[full.digest()]);
        if let Some(known) = self.known_slim(work, &key)? {
            Self::hit(work);
            return Ok(known);
        }
        let _flight = single_flight::lock(self.surroundings.state.locks(), &key).await?;
        if let Some(known) = self.known_slim(work, &key)? {
            Self::hit(work);
            return Ok(known);
        }
        let view = self.view(&full, &work.task).await?;
        let from = full.digest();
        let (state, slim_op) = (self.surroundings.state.clone(), op.clone());
        let slimmed = blocking(move || {
            let subject = Subject::read(&view, from)?;
            Ok(subject.slim(&slim_op, &Observed::default(), &state)?)
        })
        .await?;
        for note in &slimmed.report.notes {
            work.task.tell(EventKind::Warning { message: note.clone() });
        }
        self.record_slim(work, key, &slimmed).await?;
        Ok(Tree::default().with(slimmed.runtime).with(slimmed.application))
    }

    /// The result under `key`; there is none if a layer of it or its report is gone. Others are not
    /// asked: their results come without a report.
    fn known_slim(&self, work: &Work<'_>, key: &CacheKey) -> Result<Option<Tree>, Cause> {
        if work.vertex.ignore_cache {
            return Ok(None);
        }
        let state = &self.surroundings.state;
        if SlimReport::load(state, &key.0).map_err(Cause::state)?.is_none() {
            return Ok(None);
        }
        let mut known = Tree::default();
        for key in part_keys(key) {
            let record = state.index().lookup(&key).map_err(Cause::state)?;
            let Some(record) = record else { return Ok(None) };
            let snapshot = state.snapshots().get(&record.snapshot).map_err(Cause::state)?;
            let Some(snapshot) = snapshot else { return Ok(None) };
            known = known.with(snapshot);
        }
        Ok(Some(known))
    }

    async fn record_slim(
        &self,
        work: &Work<'_>,
        key: CacheKey,
        slimmed: &Slimmed,
    ) -> Result<(), Cause> {
        let [runtime, application] = part_keys(&key);
        let record = |snapshot: &Snapshot, what: &str| CacheRecord {
            snapshot: snapshot.id.clone(),
            content: snapshot.content,
            description: format!("rbuild --slim: {what}"),
            evidence: serde_json::json!({ "op": work.vertex.op, "from": slimmed.report.from }),
            created: self.surroundings.now,
        };
        let records = [
            (runtime, record(&slimmed.runtime, "runtime")),
            (application, record(&slimmed.application, "application")),
        ];
        let (state, report) = (self.surroundings.state.clone(), slimmed.report.clone());
        blocking(move || {
            report.save(&state, &key.0).map_err(Cause::state)?;
            for (key, record) in records {
                state.index().insert(&[key], &record).map_err(Cause::state)?;
            }
            Ok(())
        })
        .await
    }
}

/// The keys of the two layers of the result under `key`.
fn part_keys(key: &CacheKey) -> [CacheKey; 2] {
    [key::part(key, "runtime"), key::part(key, "application")]
}

/// What the report of `op` over the tree `from` is called.
pub fn report_name(op: &crate::graph::Op, from: TreeDigest) -> Digest {
    report::name(op, from)
}
