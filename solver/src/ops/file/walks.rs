//! What was found in a context, kept for who copies the same of it: the stages of other platforms, and
//! stages that begin alike. So one build looks at a file of a context once.
//!
//! Of a large context that is much. It is kept only where the graph says that somebody else is going to
//! ask, and until the last of them has.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::FileError;
use super::select::Selection;
use crate::graph::{ContextOp, CopyAction, CopySource, FileAction, Graph, Op};

/// What was found for the file ops of one graph.
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
    pub(super) fn new(context: &str, ignore: &[String], source: &str, copy: &CopyAction) -> Self {
        Self {
            context: context.to_owned(),
            ignore: ignore.to_vec(),
            source: source.to_owned(),
            exclude: copy.exclude.clone(),
            parents: copy.parents,
            wildcards: copy.wildcards,
        }
    }
}

impl Walks {
    /// For all that is copied from contexts in `graph`. Archives to be unpacked are looked at anew.
    pub fn of(graph: &Graph) -> Self {
        let mut places: HashMap<Asked, Mutex<Place>> = HashMap::new();
        for id in graph.ids() {
            let Op::File(op) = &graph.vertex(id).op else { continue };
            let inputs = graph.inputs(id);
            for action in &op.actions {
                let FileAction::Copy(copy) = action else { continue };
                let CopySource::Input(input) = copy.from else { continue };
                let Op::Context(ContextOp { name, ignore }) = &graph.vertex(inputs[input]).op
                else {
                    continue;
                };
                for source in copy.sources.iter().filter(|_| !copy.unpack) {
                    let asked = Asked::new(name, ignore, source, copy);
                    lock(places.entry(asked).or_default()).asking += 1;
                }
            }
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

fn lock(place: &Mutex<Place>) -> MutexGuard<'_, Place> {
    place.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::{FileOp, Vertex};

    fn copy(destination: &str) -> CopyAction {
        CopyAction::new(CopySource::Input(1), vec!["src".into()], destination)
    }

    /// A graph in which each of `copies` is a step of its own over another tree.
    fn graph(copies: &[CopyAction]) -> Graph {
        let mut graph = Graph::new();
        let op = ContextOp { name: "context".into(), ignore: Vec::new() };
        let context = graph.add(Vertex::internal(Op::Context(op), "context"), &[]);
        let mut base = graph.add(Vertex::internal(Op::Scratch, "scratch"), &[]);
        for copy in copies {
            let op = Op::File(FileOp { actions: vec![FileAction::Copy(copy.clone())] });
            base = graph.add(Vertex::internal(op, "COPY"), &[base, context]);
        }
        graph
    }

    /// How often a context is looked at when all of `copies` are made.
    fn looks(copies: &[CopyAction], forgetting: bool) -> usize {
        let (walks, mut looks) = (Walks::of(&graph(copies)), 0);
        for copy in copies {
            let asked = Asked::new("context", &[], "src", copy);
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
        assert_eq!(looks(&[copy("/a")], false), 1);
        assert_eq!(looks(&[copy("/a"), copy("/b"), copy("/c")], false), 1);
        assert_eq!(looks(&[copy("/a"), excluding], false), 2);
        assert_eq!(looks(&[copy("/a"), copy("/b")], true), 2);
    }
}
