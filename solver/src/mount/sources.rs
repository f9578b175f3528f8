//! What the mounts of a step show of its inputs: trees of other vertices, and folders of the caller's.
//! A folder is looked at for the step's key and imported as a snapshot just as it was found then, so
//! that a step sees what was hashed, whatever happens to the folder meanwhile.

use std::collections::HashMap;

use rbuild_cache::digest::{Digest, Hasher};
use rbuild_cache::index::CacheRecord;
use rbuild_cache::state::StateFolder;

use crate::error::Cause;
use crate::evidence::Reads;
use crate::graph::RunOp;
use crate::key::{self, InputDigest};
use crate::ops::file::{self, Plan, Sharing, SourceTree};
use crate::ops::{Work, Worker, blocking};
use crate::tree::{Output, Tree};

/// The number of an input, and a path in it.
type Place = (usize, String);

/// What mounts show, looked at.
#[derive(Default)]
pub(crate) struct Found {
    /// For each input that may be mounted, the checksum of what is seen of it.
    pub(crate) digests: Vec<InputDigest>,
    trees: HashMap<Place, Tree>,
    imports: Vec<(Place, Plan)>,
}

/// What mounts show, in the state folder.
pub(crate) struct Sources(HashMap<Place, Tree>);

impl Found {
    /// Which paths of folders are seen; `None` where there is no folder.
    pub(crate) fn reads(&self) -> Option<Reads> {
        self.imports.iter().map(|(_, plan)| plan.reads()).reduce(Reads::and)
    }

    /// Writes down what was learned of contexts. Whoever does not import them calls this.
    pub(crate) fn remember(&self) {
        self.imports.iter().for_each(|(_, plan)| plan.remember());
    }
}

impl Sources {
    /// The tree that a mount of `path` of an input shows.
    ///
    /// # Panics
    /// When it is not among what [`RunOp::mounted`] names.
    pub(crate) fn tree(&self, input: usize, path: &str) -> &Tree {
        &self.0[&(input, path.to_owned())]
    }
}

impl Worker {
    /// Looks at what the mounts of `op` show of `inputs`, which are all inputs of its vertex but the
    /// first.
    pub(crate) async fn mounted(
        &self,
        work: &Work<'_>,
        op: &RunOp,
        inputs: Vec<Output>,
    ) -> Result<Found, Cause> {
        let mut found = Found::default();
        for (before, input) in inputs.into_iter().enumerate() {
            let number = before + 1;
            let seen = op.mounted().into_iter().filter(|(input, _)| *input == number);
            let paths: Vec<String> = seen.map(|(_, path)| path.to_owned()).collect();
            let source = self.source(&input, &work.task).await?;
            let mut hasher = Hasher::new();
            match input {
                Output::Tree(tree) => {
                    for (path, checksum) in blocking(move || checksums(&source, paths)).await? {
                        hasher.field(checksum.as_bytes());
                        found.trees.insert((number, path), tree.clone());
                    }
                }
                Output::Folder(_) => {
                    let state = self.surroundings.state.clone();
                    for (path, plan, checksum) in
                        blocking(move || imports(&source, paths, &state)).await?
                    {
                        hasher.field(checksum.as_bytes());
                        found.imports.push(((number, path), plan));
                    }
                }
            }
            found.digests.push(InputDigest::Content(hasher.digest()));
        }
        Ok(found)
    }

    /// Brings what was found into the state folder.
    ///
    /// # Errors
    /// [`FileError::Changed`](file::FileError::Changed) when a context is not any more what was found.
    pub(crate) async fn imported(&self, work: &Work<'_>, found: Found) -> Result<Sources, Cause> {
        let Found { mut trees, imports, .. } = found;
        for (place, plan) in imports {
            let (state, now) = (self.surroundings.state.clone(), self.surroundings.now);
            let description =
                format!("{} of the build context, mounted by {}", place.1, work.vertex.name);
            let import = move || committed(plan, description, now, &state);
            trees.insert(place, blocking(import).await?);
        }
        Ok(Sources(trees))
    }
}

/// The checksums of all that is at `paths` of a tree, without times.
fn checksums(source: &SourceTree, paths: Vec<String>) -> Result<Vec<(String, Digest)>, Cause> {
    let checksum = |path: String| {
        let checksum = file::checksum(source, &path)?;
        Ok((path, checksum))
    };
    paths.into_iter().map(checksum).collect()
}

/// How `paths` of a folder are imported, each with its checksum.
fn imports(
    source: &SourceTree,
    paths: Vec<String>,
    state: &StateFolder,
) -> Result<Vec<(String, Plan, Digest)>, Cause> {
    let import = |path: String| {
        let plan = file::import(source, &path, state)?;
        let checksum = plan.checksum()?;
        Ok((path, plan, checksum))
    };
    paths.into_iter().map(import).collect()
}

/// The tree that `plan` imports: the one of an earlier step, if that saw the same.
fn committed(
    plan: Plan,
    description: String,
    now: i64,
    state: &StateFolder,
) -> Result<Tree, Cause> {
    let key = key::imported(plan.checksum()?);
    if let Some(record) = state.index().lookup(&key).map_err(Cause::state)?
        && let Some(snapshot) = state.snapshots().get(&record.snapshot).map_err(Cause::state)?
    {
        plan.remember();
        return Ok(Tree::default().with(snapshot));
    }
    let snapshot = plan.commit(state, &Reads::default(), Sharing::Forbidden)?;
    let record = CacheRecord {
        snapshot: snapshot.id.clone(),
        content: snapshot.content,
        description,
        evidence: serde_json::Value::Null,
        created: now,
    };
    state.index().insert(&[key], &record).map_err(Cause::state)?;
    Ok(Tree::default().with(snapshot))
}
