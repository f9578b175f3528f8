//! What was found in a context, kept for who copies or mounts the same of it: the stages of other
//! platforms, and stages that begin alike. So one build looks at a file of a context once.
//!
//! Of a large context that is much. It is kept only where the graph says that somebody else is going to
//! ask, and until the last of them has.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use rbuild_cache::pattern;

use super::FileError;
use super::select::Selection;
use crate::graph::{ContextOp, CopyAction, CopySource, FileAction, Graph, Op, VertexId};

/// What was found for the ops of one graph.
#[derive(Debug, Default)]
pub struct Walks {
    places: HashMap<Asked, Mutex<Place>>,
}

/// What of which context is asked for: all that decides what is found.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Asked {
    context: String,
    ignore: Vec<String>,
    source: String,
    exclude: Vec<String>,
    parents: bool,
    wildcards: bool,
}

#[derive(Debug, Default)]
struct Place {
    /// How many are still going to ask.
    asking: usize,
    found: Option<Vec<Selection>>,
}

impl Asked {
    /// For `source`, which is one of `copy`, in the context that `context` and `ignore` are.
    pub(super) fn copied(
        context: &str,
        ignore: &[String],
        source: &str,
        copy: &CopyAction,
    ) -> Self {
        Self {
            context: context.to_owned(),
            ignore: ignore.to_vec(),
            // Where paths are kept, `/./` has a meaning.
            source: if copy.parents {
                source.to_owned()
            } else {
                pattern::clean(&format!("/{source}"))
            },
            exclude: copy.exclude.clone(),
            parents: copy.parents,
            wildcards: copy.wildcards,
        }
    }

    /// For all that is at `path`, a clean one, in the context that `context` and `ignore` are: the
    /// same as for who copies it.
    pub(super) fn mounted(context: &str, ignore: &[String], path: &str) -> Self {
        Self {
            context: context.to_owned(),
            ignore: ignore.to_vec(),
            source: path.to_owned(),
            exclude: Vec::new(),
            parents: false,
            wildcards: !pattern::has_wildcards(path),
        }
    }
}

impl Walks {
    /// For all that is copied from contexts in `graph`, or mounted. Archives to be unpacked are looked
    /// at anew.
    pub fn of(graph: &Graph) -> Self {
        let mut places: HashMap<Asked, Mutex<Place>> = HashMap::new();
        for asked in graph.ids().flat_map(|id| asked_by(graph, id)) {
            lock(places.entry(asked).or_default()).asking += 1;
        }
        places.retain(|_, place| lock(place).asking > 1);
        Self { places }
    }

    /// What `look` finds; or what it found for who asked the same.
    pub(super) fn look(
        &self,
        asked: &Asked,
        look: impl FnOnce() -> Result<Vec<Selection>, FileError>,
    ) -> Result<Vec<Selection>, FileError> {
        let Some(place) = self.places.get(asked) else { return look() };
        // Who asks meanwhile waits: looking takes all cores by itself.
        let mut place = lock(place);
        place.asking = place.asking.saturating_sub(1);
        let found = match place.found.take() {
            Some(found) => found,
            None => look()?,
        };
        if place.asking > 0 {
            place.found = Some(found.clone());
        }
        Ok(found)
    }

    /// Lets everybody look anew: something is not as it was found.
    pub fn forget(&self) {
        self.places.values().for_each(|place| lock(place).found = None);
    }
}

/// What the vertex `id` asks for.
fn asked_by(graph: &Graph, id: VertexId) -> Vec<Asked> {
    let inputs = graph.inputs(id);
    let context = |input: usize| match &graph.vertex(inputs[input]).op {
        Op::Context(ContextOp { name, ignore }) => Some((name, ignore)),
        _ => None,
    };
    let mut all = Vec::new();
    match &graph.vertex(id).op {
        Op::File(op) => {
            for action in &op.actions {
                let FileAction::Copy(copy) = action else { continue };
                let CopySource::Input(input) = copy.from else { continue };
                let Some((name, ignore)) = context(input).filter(|_| !copy.unpack) else {
                    continue;
                };
                let asked = |source: &String| Asked::copied(name, ignore, source, copy);
                all.extend(copy.sources.iter().map(asked));
            }
        }
        Op::Run(op) => {
            for (input, path) in op.mounted() {
                let Some((name, ignore)) = context(input) else { continue };
                let path = pattern::clean(&format!("/{path}"));
                all.push(Asked::mounted(name, ignore, &path));
            }
        }
        _ => {}
    }
    all
}

fn lock(place: &Mutex<Place>) -> MutexGuard<'_, Place> {
    place.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use rbuild_cache::oci::Platform;

    use super::*;
    use crate::graph::{FileOp, Mount, MountSource, RunOp, Vertex};

    fn copy(destination: &str) -> CopyAction {
        let copy = CopyAction::new(CopySource::Input(1), vec!["src/".into()], destination);
        CopyAction { wildcards: true, ..copy }
    }

    /// A graph in which each of `copies` is a step of its own over another tree, and each of `mounts`
    /// is the path that a command mounts.
    fn graph(copies: &[CopyAction], mounts: &[&str]) -> Graph {
        let mut graph = Graph::new();
        let op = ContextOp { name: "context".into(), ignore: Vec::new() };
        let context = graph.add(Vertex::internal(Op::Context(op), "context"), &[]);
        let mut base = graph.add(Vertex::internal(Op::Scratch, "scratch"), &[]);
        let files = copies
            .iter()
            .map(|copy| Op::File(FileOp { actions: vec![FileAction::Copy(copy.clone())] }));
        let commands = mounts.iter().map(|path| {
            let source = MountSource::Bind { input: 1, path: (*path).to_owned() };
            let mount = Mount { target: "/m".into(), source, read_only: true };
            // Twice in one command is once.
            let run = RunOp::new(vec!["true".into()], Platform::host());
            Op::Run(Box::new(RunOp { mounts: vec![mount.clone(), mount], ..run }))
        });
        for op in files.chain(commands) {
            base = graph.add(Vertex::internal(op, "step"), &[base, context]);
        }
        graph
    }

    /// How often a context is looked at when all of `copies` and `mounts` are made.
    fn looks(copies: &[CopyAction], mounts: &[&str], forgetting: bool) -> usize {
        let (walks, mut looks) = (Walks::of(&graph(copies, mounts)), 0);
        let of_copies = copies.iter().map(|copy| Asked::copied("context", &[], "src/", copy));
        let of_mounts = mounts.iter().map(|path| Asked::mounted("context", &[], path));
        for asked in of_copies.chain(of_mounts) {
            let look = || {
                looks += 1;
                Ok(Vec::new())
            };
            walks.look(&asked, look).unwrap();
            if forgetting {
                walks.forget();
            }
        }
        assert!(walks.places.values().all(|place| lock(place).found.is_none()), "nothing is kept");
        looks
    }

    #[test]
    fn the_same_is_looked_at_once() {
        let excluding = CopyAction { exclude: vec!["x".into()], ..copy("/a") };
        assert_eq!(looks(&[copy("/a")], &[], false), 1);
        assert_eq!(looks(&[copy("/a"), copy("/b"), copy("/c")], &[], false), 1);
        assert_eq!(looks(&[copy("/a"), excluding], &[], false), 2);
        assert_eq!(looks(&[copy("/a"), copy("/b")], &[], true), 2);
        assert_eq!(looks(&[], &["/src", "/src"], false), 1);
        assert_eq!(looks(&[], &["/src", "/other"], false), 2);
        assert_eq!(
            looks(&[copy("/a"), copy("/b")], &["/src"], false),
            1,
            "who copies and who mounts"
        );
    }
}
