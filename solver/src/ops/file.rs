//! File ops: what COPY, ADD, WORKDIR and heredocs write, as one new layer folder.
//!
//! In two halves. [`plan`] looks at everything that the op reads and comes to a checksum, under
//! which the result may be known already; [`Plan::execute`] writes. Nothing is mounted: the
//! destination is looked up in a merged view of the layers below, and what is written goes into the
//! layer folder in overlayfs's form.
//!
//! Which files, under which names, modes, owners and times: as BuildKit's file backend and copier
//! have it (solver/llbsolver/file/backend.go, tonistiigi/fsutil/copy), down to the traps listed in
//! `testdata`. Other than there, a failed build says which path was meant.

mod archive;
mod content_key;
mod copy;
mod destination;
mod error;
mod mode;
pub mod owner;
mod quick;
mod reads;
mod reuse;
mod select;
mod source;
#[cfg(test)]
mod tests;
mod walks;

use std::path::Path;

use rbuild_cache::pattern::{self, PatternMatcher};
use rbuild_cache::snapshot::{Note, Snapshot, SnapshotId};
use rbuild_cache::state::StateFolder;
use rbuild_cache::view::View;

use self::archive::Archive;
use self::destination::{Destination, Written};
pub use self::error::FileError;
use self::mode::Chmod;
pub use self::quick::is_planned_quickly;
pub(in crate::ops) use self::reuse::Links;
pub use self::reuse::Sharing;
use self::select::{Item, Selection};
use self::source::{Learned, Memos};
pub use self::source::{SourceTree, checksum};
pub use self::walks::Walks;
use crate::evidence::Reads;
use crate::graph::{CopyAction, CopySource, FileAction, FileOp, ModeChange, Name, Owner};

/// What a file op is going to write: everything it reads has been looked at.
#[derive(Debug)]
pub struct Plan {
    /// What is written over; empty until [`Plan::over`] says.
    base: View,
    /// Each with the number of the action it belongs to.
    steps: Vec<(usize, Step)>,
    learned: Learned,
}

#[derive(Debug)]
enum Step {
    Mkdir { path: String, mode: u32, parents: bool, owner: (u32, u32), time: Option<i64> },
    WriteFile { path: String, mode: u32, owner: (u32, u32), data: Vec<u8> },
    Copy(CopyStep),
    Unpack(Box<Archive>),
}

/// Copies from one source, which may name several files.
#[derive(Debug)]
struct CopyStep {
    destination: String,
    owner: Option<(u32, u32)>,
    mode: Option<Chmod>,
    times: Option<i64>,
    replace_symlinks: bool,
    /// A directory's content is copied, not the directory.
    contents: bool,
    from: Origin,
}

#[derive(Debug)]
enum Origin {
    Selection(Selection),
    Inline { name: String, data: Vec<u8> },
}

/// Looks at what `op` reads.
///
/// Input 0 is `base`, which only ops that copy from it need ([`reads_base`]), and input n is the nth
/// of `sources`, counted from one. Owners that are names stay open until [`Plan::over`]. May read
/// many files: call it where blocking is fine.
///
/// # Panics
/// When `op` names an input that is not in `sources`.
pub fn plan(
    op: &FileOp,
    base: Option<&View>,
    sources: &[SourceTree],
    state: &StateFolder,
) -> Result<Plan, FileError> {
    let mut memos = Memos::new(state);
    let mut steps = Vec::new();
    let base = base.cloned().unwrap_or_else(|| View::layers(Vec::new()));
    for (number, action) in op.actions.iter().enumerate() {
        let mut of_action = Vec::new();
        match action {
            FileAction::Mkdir(mkdir) => of_action.push(Step::Mkdir {
                path: mkdir.path.clone(),
                mode: mkdir.mode & 0o777,
                parents: mkdir.parents,
                owner: numbered_owner(mkdir.owner.as_ref()).unwrap_or_default(),
                time: mkdir.time,
            }),
            FileAction::WriteFile(file) => of_action.push(Step::WriteFile {
                path: file.path.clone(),
                mode: file.mode & 0o777,
                owner: numbered_owner(file.owner.as_ref()).unwrap_or_default(),
                data: file.data.clone(),
            }),
            FileAction::Copy(copy) => {
                let from = match &copy.from {
                    CopySource::Input(0) => Some(&SourceTree::tree(base.clone())),
                    CopySource::Input(input) => Some(&sources[*input - 1]),
                    CopySource::Inline(_) => None,
                };
                plan_copy(copy, from, &mut memos, &mut of_action)?;
            }
        }
        steps.extend(of_action.into_iter().map(|step| (number, step)));
    }
    Ok(Plan { base, steps, learned: memos.learned() })
}

/// Whether `op` copies from what it writes over, so that it cannot be planned without.
pub fn reads_base(op: &FileOp) -> bool {
    op.actions.iter().any(|action| match action {
        FileAction::Copy(copy) => matches!(copy.from, CopySource::Input(0)),
        FileAction::Mkdir(_) | FileAction::WriteFile(_) => false,
    })
}

fn plan_copy(
    copy: &CopyAction,
    from: Option<&SourceTree>,
    memos: &mut Memos<'_>,
    steps: &mut Vec<Step>,
) -> Result<(), FileError> {
    let owner = numbered_owner(copy.owner.as_ref());
    let mode = copy.mode.as_ref().map(chmod).transpose()?;
    let step = |from, contents| CopyStep {
        destination: copy.destination.clone(),
        owner,
        mode: mode.clone(),
        times: copy.times,
        replace_symlinks: copy.replace_symlinks,
        contents,
        from,
    };
    if let CopySource::Inline(files) = &copy.from {
        for name in &copy.sources {
            let data = files.get(name).ok_or_else(|| FileError::NotFound(name.clone()))?;
            let from = Origin::Inline { name: name.clone(), data: data.clone() };
            steps.push(Step::Copy(step(from, false)));
        }
    }
    let Some(from) = from else { return Ok(()) };
    let options = select::Options {
        exclude: PatternMatcher::new(&copy.exclude)?,
        parents: copy.parents,
        wildcards: copy.wildcards,
    };
    let memo = memos.of(from)?;
    let limits = from.context.is_some().then(|| memos.state.limits());
    for source in &copy.sources {
        let matches = || {
            let found = select::matches(&from.view, source, &options);
            found.map_err(|error| from.explained(error))
        };
        let select = |found| select::select(&from.view, found, &options.exclude, &memo, limits);
        if !copy.unpack {
            let look = || matches()?.into_iter().map(select).collect();
            for selection in from.copied(source, copy, look)? {
                steps.push(Step::Copy(step(Origin::Selection(selection), copy.wildcards)));
            }
            continue;
        }
        for found in matches()? {
            if archive::is_archive(&from.view, &found.root)? {
                let (digest, metadata) = memo.digest(&from.view, &found.root)?;
                steps.push(Step::Unpack(Box::new(Archive {
                    destination: copy.destination.clone(),
                    owner,
                    time: copy.times,
                    view: from.view.clone(),
                    entry: found.root,
                    metadata,
                    digest,
                    limits: memos.state.limits().clone(),
                })));
                continue;
            }
            let selection = select(found)?;
            steps.push(Step::Copy(step(Origin::Selection(selection), copy.wildcards)));
        }
    }
    Ok(())
}

/// Plans to import all that is at `path` of `source` into a tree of its own, at the same path.
pub fn import(source: &SourceTree, path: &str, state: &StateFolder) -> Result<Plan, FileError> {
    let mut memos = Memos::new(state);
    let memo = memos.of(source)?;
    let limits = source.context.is_some().then(|| state.limits());
    let path = pattern::clean(&format!("/{path}"));
    let look = || {
        let (exclude, parents) = (PatternMatcher::default(), false);
        let options =
            select::Options { exclude, parents, wildcards: !pattern::has_wildcards(&path) };
        let found = if options.wildcards {
            select::matches(&source.view, &path, &options)
        } else {
            // What looks like a pattern is the name of something here.
            let entry = source.view.resolve(Path::new(&path))?.entry;
            let entry = entry.ok_or_else(|| FileError::NotFound(path.clone()));
            let there = entry.map(|entry| entry.absolute_path().to_string_lossy().into_owned());
            there.and_then(|there| select::matches(&source.view, &there, &options))
        };
        let select = |found| select::select(&source.view, found, &options.exclude, &memo, limits);
        found.map_err(|error| source.explained(error))?.into_iter().map(select).collect()
    };
    let step = |selection| CopyStep {
        destination: path.clone(),
        owner: None,
        mode: None,
        times: None,
        replace_symlinks: false,
        contents: false,
        from: Origin::Selection(selection),
    };
    let found = source.mounted(&path, look)?;
    let steps = found.into_iter().map(|selection| (0, Step::Copy(step(selection)))).collect();
    Ok(Plan { base: View::layers(Vec::new()), steps, learned: memos.learned() })
}

/// The owner as far as it is known without looking names up; a name is root until then. The op, which
/// is in every key, tells names apart.
fn numbered_owner(owner: Option<&Owner>) -> Option<(u32, u32)> {
    let number = |name: &Name| match name {
        Name::Id(id) => *id,
        Name::Name(_) => 0,
    };
    owner.map(|owner| {
        let uid = number(&owner.user);
        (uid, owner.group.as_ref().map_or(uid, number))
    })
}

fn chmod(change: &ModeChange) -> Result<Chmod, FileError> {
    Chmod::new(change).ok_or_else(|| match change {
        ModeChange::Octal(mode) => FileError::Mode(format!("{mode:o}")),
        ModeChange::Symbolic(text) => FileError::Mode(text.clone()),
    })
}

impl Plan {
    /// The plan, to be carried out over `base`, which says who the names of owners are. `op` is the
    /// one that was planned.
    pub fn over(mut self, op: &FileOp, base: View) -> Result<Self, FileError> {
        let owners = op.actions.iter().map(|action| {
            let owner = match action {
                FileAction::Mkdir(mkdir) => &mkdir.owner,
                FileAction::WriteFile(file) => &file.owner,
                FileAction::Copy(copy) => &copy.owner,
            };
            owner.as_ref().map(|owner| owner::file_owner(&base, owner)).transpose()
        });
        let owners = owners.collect::<Result<Vec<_>, _>>()?;
        for (number, step) in &mut self.steps {
            let resolved = owners[*number];
            match step {
                Step::Mkdir { owner, .. } | Step::WriteFile { owner, .. } => {
                    *owner = resolved.unwrap_or_default();
                }
                Step::Copy(copy) => copy.owner = resolved,
                Step::Unpack(archive) => archive.owner = resolved,
            }
        }
        self.base = base;
        Ok(self)
    }

    /// Writes down what was learned of contexts. Whoever neither commits nor executes the plan, since
    /// its result is known, calls this.
    pub fn remember(&self) {
        self.learned.save();
    }

    /// Writes everything into a new snapshot and commits it, `reads` beside it.
    ///
    /// Files that the store holds are linked, where `sharing` is allowed.
    ///
    /// # Errors
    /// [`FileError::Changed`] when a context is not any more what the checksum says.
    pub fn commit(
        mut self,
        state: &StateFolder,
        reads: &Reads,
        sharing: Sharing,
    ) -> Result<Snapshot, FileError> {
        let (files, bytes) = self.weight();
        let shared = sharing == Sharing::Allowed && reuse::is_worth_it(files, bytes);
        let draft = state.snapshots().draft()?;
        let links = shared.then(|| Links::open(state));
        let learned = std::mem::take(&mut self.learned);
        let written = learned.save_beside(|| self.write(&draft.folder(), links))?;
        if sharing == Sharing::Allowed {
            draft.set_sharing();
        }
        if written.linked {
            draft.set_linked().map_err(FileError::State)?;
        }
        if shared {
            let list = reuse::encoded(&written.plain);
            draft.add_note(Note::Files, &list).map_err(FileError::State)?;
        }
        draft.know_all(written.files);
        draft.add_note(Note::Reads, &reads.encoded()).map_err(FileError::State)?;
        Ok(state.snapshots().commit(&SnapshotId::random(), draft)?)
    }

    /// Whether giving its memory back takes a while.
    pub fn is_large(&self) -> bool {
        self.selections().map(Selection::number).sum::<usize>() > 1024
    }

    fn selections(&self) -> impl Iterator<Item = &Selection> {
        self.steps.iter().filter_map(|(_, step)| match step {
            Step::Copy(CopyStep { from: Origin::Selection(selection), .. }) => Some(selection),
            Step::Copy(_) | Step::Mkdir { .. } | Step::WriteFile { .. } | Step::Unpack(_) => None,
        })
    }

    /// How many files are copied, and their bytes.
    fn weight(&self) -> (usize, u64) {
        let files = self.selections().flat_map(Selection::items).map(Item::metadata);
        let files = files.filter(|metadata| metadata.is_file());
        files.fold((0, 0), |(files, bytes), metadata| (files + 1, bytes + metadata.size))
    }

    /// Writes everything into the folder `folder`, which is empty and may be written to later.
    ///
    /// # Errors
    /// [`FileError::Changed`] when a context is not any more what the checksum says.
    pub fn execute(self, folder: &Path) -> Result<(), FileError> {
        self.learned.save();
        self.write(folder, None).map(drop)
    }

    fn write(self, folder: &Path, links: Option<Links>) -> Result<Written, FileError> {
        let mut destination = Destination::new(&self.base, folder, links)?;
        let is_large = self.is_large();
        for (_, step) in &self.steps {
            match step {
                Step::Mkdir { path, mode, parents, owner, time } => {
                    let path = destination.resolve(Path::new(path))?;
                    let (mode, owner, time) = (*mode, *owner, *time);
                    let new = destination::NewDirectory { mode, owner, time };
                    if *parents {
                        destination.make_directories(&path, new)?;
                    } else {
                        destination.make_directory(&path, new)?;
                    }
                }
                Step::WriteFile { path, mode, owner, data } => {
                    let path = destination.resolve(Path::new(path))?;
                    copy::write_file(&mut destination, &path, *mode, *owner, None, data)?;
                }
                Step::Copy(step) => copy::copy(&mut destination, step)?,
                Step::Unpack(archive) => archive.unpack(&mut destination)?,
            }
        }
        if is_large {
            rayon::spawn(move || drop(self));
        }
        Ok(destination.finish())
    }
}
