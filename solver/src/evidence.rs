//! Why a result was not known: what a step depends on now, compared with what the nearest earlier
//! result depended on.
//!
//! A record keeps as evidence the op, and for each input a digest and who made it ([`Evidence`]);
//! which paths a step read lies beside the result's tree ([`Reads`]). Further kinds of evidence
//! become further members: the index looks into none of them. It finds records by marks, which are
//! made here: same op, or same place in the same Dockerfile.
//!
//! All of this is looked at only when a step has to run.

mod compare;
mod history;
mod reads;

use rbuild_cache::digest::{CacheKey, Digest, Hasher};
use rbuild_cache::index::{CacheRecord, Index, IndexError};
use rbuild_cache::snapshot::Note;
use rbuild_cache::state::StateFolder;
use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use compare::{Difference, Names};
pub use history::History;
pub use reads::Reads;

use crate::graph::{Graph, Op, Vertex, VertexId};
use crate::key::InputDigest;

/// So many of the latest records of the same op are compared.
const NEAR: u32 = 8;

/// What a step depends on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Evidence {
    /// The op, as JSON.
    pub op: Value,
    /// Each input, in the op's order; those of a file op but the first are one.
    #[serde(default)]
    pub inputs: Vec<InputEvidence>,
}

/// What a step depends on of an input.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct InputEvidence {
    /// The digest of the whole tree, if that is what counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tree: Option<String>,
    /// The digest of the paths that are read, if that is what counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content: Option<String>,
    /// The step that made it, as progress shows it, or the image.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub from: String,
    /// The image's manifest, if it is an image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<Digest>,
    /// What of a source elsewhere it is: the commit of a repository, the digest of a file by http.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,
}

/// Where an input comes from.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Origin {
    /// The step that made it, as progress shows it, or the image.
    pub name: String,
    /// The image's manifest, if it is an image.
    pub image: Option<Digest>,
    /// [`InputEvidence::revision`]
    pub revision: Option<String>,
}

impl Origin {
    /// That of a source elsewhere.
    pub fn of_source(revision: &str) -> Self {
        Self { revision: Some(revision.to_owned()), ..Self::default() }
    }

    /// Those of the inputs of `id`.
    pub fn of_inputs(graph: &Graph, id: VertexId) -> Vec<Self> {
        graph.inputs(id).into_iter().map(|input| Self::of(graph, input)).collect()
    }

    fn of(graph: &Graph, id: VertexId) -> Self {
        let vertex = graph.vertex(id);
        match &vertex.op {
            Op::Image(image) => {
                Self { name: image.name.clone(), image: Some(image.manifest), ..Self::default() }
            }
            // What is on top has a name.
            Op::Merge => {
                graph.inputs(id).last().map_or_else(Self::default, |top| Self::of(graph, *top))
            }
            Op::Context(context) => Self { name: context.name.clone(), ..Self::default() },
            Op::Scratch | Op::Http(_) | Op::Git(_) | Op::Run(_) | Op::File(_) | Op::Slim(_) => {
                Self { name: vertex.name.clone(), ..Self::default() }
            }
        }
    }
}

impl Evidence {
    /// That of `vertex`, whose inputs have these digests.
    #[expect(clippy::missing_panics_doc, reason = "plain data with string keys can be written")]
    pub fn of(vertex: &Vertex, inputs: &[InputDigest], origins: &[Origin]) -> Self {
        let input = |(position, digest): (usize, &InputDigest)| {
            let origin = origins.get(position).cloned().unwrap_or_default();
            let (tree, content) = match digest {
                InputDigest::Tree(digest) => (Some(digest.0.to_string()), None),
                InputDigest::Content(digest) => (None, Some(digest.to_string())),
            };
            let Origin { name: from, image, revision } = origin;
            InputEvidence { tree, content, from, image, revision }
        };
        Self {
            op: serde_json::to_value(&vertex.op).expect("ops are plain data with string keys"),
            inputs: inputs.iter().enumerate().map(input).collect(),
        }
    }

    /// As a record keeps it.
    #[expect(clippy::missing_panics_doc, reason = "plain data with string keys can be written")]
    pub fn to_json(&self) -> serde_json::Value {
        serde_json::to_value(self).expect("evidence is plain data with string keys")
    }

    /// That of a record; `None` for one that was written in another form.
    fn of_record(record: &CacheRecord) -> Option<Self> {
        serde_json::from_value(record.evidence.clone()).ok()
    }
}

/// By what the record of `vertex` is found again: the op, and its place in the Dockerfile of the
/// context at `context`.
pub fn marks(vertex: &Vertex, context: &str) -> [Digest; 2] {
    let mut op = Hasher::new();
    op.field("op");
    op.field(vertex.op.to_json());
    let mut place = Hasher::new();
    place.field("place");
    place.field(context);
    place.field(vertex.span.as_ref().map_or("", |span| &span.file));
    place.field(place_of(&vertex.name));
    [op.digest(), place.digest()]
}

/// `[build 3/7] RUN make` is at `build 3` and a RUN, however many steps follow it.
fn place_of(name: &str) -> String {
    let (place, text) = name.split_once("] ").unwrap_or(("", name));
    let place = place.rsplit_once('/').map_or(place, |(place, _)| place);
    format!("{place} {}", text.split(' ').next().unwrap_or_default())
}

/// Why a step had to run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Miss {
    /// The step, as progress shows it.
    pub step: String,
    /// Why, in a line.
    pub reason: String,
    /// The result it was compared with: what made it, and when (seconds since 1970).
    pub compared_with: Option<(String, i64)>,
    /// All that differs.
    pub differences: Vec<Difference>,
}

/// A step that has to run.
pub struct Missed<'a> {
    /// The step.
    pub vertex: &'a Vertex,
    /// The keys under which nothing was found.
    pub keys: &'a [CacheKey],
    /// By what earlier records of it are found.
    pub marks: &'a [Digest],
    /// What it depends on.
    pub evidence: &'a Evidence,
    /// What it reads, where that is known.
    pub reads: Option<&'a Reads>,
    /// Which variables of the Dockerfile are ARGs.
    pub names: &'a Names,
    /// There was no record at all when the build began.
    pub first: bool,
}

impl Missed<'_> {
    /// Finds out why.
    pub fn explain(&self, state: &StateFolder) -> Result<Miss, IndexError> {
        let miss = |reason: &str| Miss {
            step: self.vertex.name.clone(),
            reason: reason.to_owned(),
            ..Miss::default()
        };
        if self.vertex.ignore_cache {
            return Ok(miss("asked for by --no-cache"));
        }
        let index = state.index();
        for key in self.keys {
            if index.was_pruned(key)? {
                return Ok(miss("no record: pruned"));
            }
            if index.lookup(key)?.is_some() {
                return Ok(miss("the files of its result are gone or were damaged"));
            }
        }
        let Some((record, evidence)) = self.nearest(index)? else {
            return Ok(miss(if self.first { "first build" } else { "not built before" }));
        };
        let reads = state.snapshots().note(&record.snapshot, Note::Reads).unwrap_or_default();
        let reads = reads.as_deref().and_then(Reads::parse);
        let differences =
            compare::differences(&evidence, self.evidence, reads.as_ref(), self.reads, self.names);
        let reason = compare::reason(&differences);
        Ok(Miss {
            compared_with: Some((record.description, record.created)),
            differences,
            ..miss(&reason)
        })
    }

    /// The record whose step is most like this one, the latest of equals.
    fn nearest(&self, index: &Index) -> Result<Option<(CacheRecord, Evidence)>, IndexError> {
        let mut best: Option<(usize, CacheRecord, Evidence)> = None;
        for mark in self.marks {
            for record in index.marked(mark, NEAR)? {
                let Some(evidence) = Evidence::of_record(&record) else { continue };
                // At the place of one ADD are a download and a copy.
                if kind(&evidence.op) != kind(&self.evidence.op) {
                    continue;
                }
                let pairs = self.evidence.inputs.iter().zip(&evidence.inputs);
                let alike = pairs.filter(|(new, old)| new == old).count()
                    + usize::from(record.description == self.vertex.name)
                    + equal_members(&self.evidence.op, &evidence.op);
                if best.as_ref().is_none_or(|(most, ..)| alike > *most) {
                    best = Some((alike, record, evidence));
                }
            }
            if best.is_some() {
                break;
            }
        }
        Ok(best.map(|(_, record, evidence)| (record, evidence)))
    }
}

/// Which op it is: a variant's name, with what it holds or alone.
fn kind(op: &Value) -> Option<&str> {
    match op {
        Value::Object(members) => members.keys().next().map(String::as_str),
        Value::String(name) => Some(name),
        _ => None,
    }
}

/// How many members of two ops are equal: the more, the less there is to tell apart.
fn equal_members(new: &Value, old: &Value) -> usize {
    let (Value::Object(new), Value::Object(old)) = (new, old) else { return 0 };
    let members = new.iter().filter_map(|(name, value)| Some((value, old.get(name)?)));
    members.map(|(new, old)| if new == old { 1 } else { equal_members(new, old) }).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_keeps_its_place_when_others_follow() {
        assert_eq!(place_of("[build 3/7] RUN make"), place_of("[build 3/9] RUN make all"));
        assert_ne!(place_of("[build 3/7] RUN make"), place_of("[build 2/7] RUN make"));
        assert_ne!(place_of("[build 3/7] RUN make"), place_of("[build 3/7] COPY a b"));
        assert_eq!(place_of("RUN make"), " RUN");
    }
}
