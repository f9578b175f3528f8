//! What a build consists of: vertices that are plain data, each with the earlier vertices that it
//! reads.
//!
//! A vertex says what to do, never how. The same op on the same inputs is one vertex, however often
//! a frontend adds it, so two stages that begin alike share their beginning. Nothing here performs
//! work; `solve.rs` does.

mod op;
mod span;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use petgraph::Direction;
use petgraph::stable_graph::{NodeIndex, StableDiGraph};
use petgraph::visit::EdgeRef;
use rbuild_cache::digest::Digest;

pub use op::*;
pub use span::Span;

/// Names a vertex of one [`Graph`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VertexId(NodeIndex);

/// One unit of work.
#[derive(Clone, Debug)]
pub struct Vertex {
    /// What to do. Its inputs are named by their position in [`Graph::inputs`].
    pub op: Op,
    /// How progress shows it: `[build 3/7] RUN go build`.
    pub name: String,
    /// The Dockerfile line it came from.
    pub span: Option<Span>,
    /// Work is done although a result is known: `--no-cache`, `--no-cache-filter`.
    pub ignore_cache: bool,
}

impl Vertex {
    /// A vertex that no line of a Dockerfile asks for.
    pub fn internal(op: Op, name: &str) -> Self {
        Self { op, name: name.to_owned(), span: None, ignore_cache: false }
    }
}

/// Vertices and what each reads: a directed graph without cycles, since a vertex can only name
/// vertices that were there before it.
#[derive(Clone, Debug, Default)]
pub struct Graph {
    /// An edge leads from a vertex to one that reads it, and carries the input's position.
    dag: StableDiGraph<Vertex, usize>,
    known: HashMap<Digest, VertexId>,
}

impl Graph {
    /// A graph without vertices.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a vertex that reads `inputs`, or returns the one that does the same already.
    ///
    /// Names and spans do not tell vertices apart: the first one's are kept.
    pub fn add(&mut self, vertex: Vertex, inputs: &[VertexId]) -> VertexId {
        let mut identity = rbuild_cache::digest::Hasher::new();
        identity.field(vertex.op.to_json());
        identity.field([u8::from(vertex.ignore_cache)]);
        for input in inputs {
            identity.field(input.0.index().to_le_bytes());
        }
        let identity = identity.digest();
        if let Some(id) = self.known.get(&identity) {
            return *id;
        }
        let id = VertexId(self.dag.add_node(vertex));
        for (position, input) in inputs.iter().enumerate() {
            self.dag.add_edge(input.0, id.0, position);
        }
        self.known.insert(identity, id);
        id
    }

    /// Replaces the devices that the RUN `id` gets: names of a Dockerfile by those of this machine.
    /// What `id` reads, and who reads it, stays.
    ///
    /// # Panics
    /// When `id` is of another graph.
    pub fn set_devices(&mut self, id: VertexId, devices: Vec<Device>) {
        if let Op::Run(run) = &mut self.dag[id.0].op {
            run.devices = devices;
        }
    }

    /// The vertex called `id`.
    ///
    /// # Panics
    /// When `id` is of another graph.
    pub fn vertex(&self, id: VertexId) -> &Vertex {
        &self.dag[id.0]
    }

    /// What `id` reads, in the order in which its op counts them.
    pub fn inputs(&self, id: VertexId) -> Vec<VertexId> {
        let mut inputs: Vec<(usize, VertexId)> = self
            .dag
            .edges_directed(id.0, Direction::Incoming)
            .map(|edge| (*edge.weight(), VertexId(edge.source())))
            .collect();
        inputs.sort_unstable();
        inputs.into_iter().map(|(_, input)| input).collect()
    }

    /// All vertices, each after those it reads.
    pub fn ids(&self) -> impl Iterator<Item = VertexId> + '_ {
        self.dag.node_indices().map(VertexId)
    }

    /// The vertices whose results some step sees: as the tree that it runs in, or by a mount.
    pub fn seen_by_steps(&self) -> HashSet<VertexId> {
        let runs = |id: &VertexId| match &self.vertex(*id).op {
            Op::Run(_) => true,
            // Otherwise the image is run, full and slim.
            Op::Slim(op) => op.mode != SlimMode::Closure,
            Op::Scratch
            | Op::Image(_)
            | Op::Context(_)
            | Op::Http(_)
            | Op::Git(_)
            | Op::File(_)
            | Op::Merge => false,
        };
        let mut open: Vec<VertexId> =
            self.ids().filter(runs).flat_map(|id| self.inputs(id)).collect();
        let mut seen = HashSet::new();
        while let Some(id) = open.pop() {
            if !seen.insert(id) {
                continue;
            }
            match self.vertex(id).op {
                // What else they read is not in their trees.
                Op::File(_) | Op::Run(_) | Op::Slim(_) => {
                    open.extend(self.inputs(id).first());
                }
                Op::Merge => open.extend(self.inputs(id)),
                Op::Scratch | Op::Image(_) | Op::Context(_) | Op::Http(_) | Op::Git(_) => {}
            }
        }
        seen
    }

    /// The vertices that `targets` need, each after those it reads.
    pub fn reachable(&self, targets: &[VertexId]) -> Vec<VertexId> {
        let mut wanted = std::collections::BTreeSet::new();
        let mut open: Vec<VertexId> = targets.to_vec();
        while let Some(id) = open.pop() {
            if wanted.insert(id) {
                open.extend(self.inputs(id));
            }
        }
        wanted.into_iter().collect()
    }
}

/// A text that many vertices share.
pub type SharedText = Arc<str>;

#[cfg(test)]
mod tests {
    use super::*;

    fn scratch() -> Vertex {
        Vertex { op: Op::Scratch, name: "scratch".into(), span: None, ignore_cache: false }
    }

    fn mkdir(path: &str) -> Vertex {
        let action = FileAction::Mkdir(Mkdir {
            path: path.into(),
            mode: 0o755,
            parents: true,
            owner: None,
            time: None,
        });
        Vertex { op: Op::File(FileOp { actions: vec![action] }), ..scratch() }
    }

    #[test]
    fn equal_vertices_are_one() {
        let mut graph = Graph::new();
        let base = graph.add(scratch(), &[]);
        assert_eq!(base, graph.add(scratch(), &[]));
        let a = graph.add(mkdir("/a"), &[base]);
        assert_eq!(a, graph.add(Vertex { name: "again".into(), ..mkdir("/a") }, &[base]));
        assert_ne!(a, graph.add(mkdir("/b"), &[base]));
        assert_ne!(a, graph.add(mkdir("/a"), &[a]));
    }

    #[test]
    fn only_what_a_target_needs_is_reachable_inputs_first() {
        let mut graph = Graph::new();
        let base = graph.add(scratch(), &[]);
        let a = graph.add(mkdir("/a"), &[base]);
        let unused = graph.add(mkdir("/unused"), &[base]);
        let b = graph.add(mkdir("/b"), &[a, base]);
        assert_eq!(graph.reachable(&[b]), [base, a, b]);
        assert_eq!(graph.inputs(b), [a, base]);
        assert!(!graph.reachable(&[b]).contains(&unused));
    }

    #[test]
    fn what_is_slimmed_is_seen_where_it_is_run() {
        for (mode, expected) in
            [(SlimMode::Closure, false), (SlimMode::Auto, true), (SlimMode::Trace, true)]
        {
            let mut graph = Graph::new();
            let full = graph.add(scratch(), &[]);
            let op = SlimOp {
                rules: SlimOp::RULES,
                mode,
                command: vec!["run".into()],
                env: Vec::new(),
                cwd: "/".into(),
                user: None,
                healthcheck: Vec::new(),
                volumes: Vec::new(),
                probe: SlimProbe::default(),
                probe_timeout: 0,
                keep: Vec::new(),
                drop: Vec::new(),
                base: SlimBase::None,
                platform: rbuild_cache::oci::Platform::host(),
            };
            graph.add(Vertex { op: Op::Slim(Box::new(op)), ..scratch() }, &[full]);
            assert_eq!(graph.seen_by_steps().contains(&full), expected, "{mode:?}");
        }
    }

    #[test]
    fn steps_see_what_is_below_them_and_what_they_mount() {
        let mut graph = Graph::new();
        let base = graph.add(scratch(), &[]);
        let copied = graph.add(mkdir("/copied"), &[base]);
        let mounted = graph.add(mkdir("/mounted"), &[base]);
        let read = graph.add(mkdir("/read"), &[base]);
        let below = graph.add(mkdir("/below"), &[copied, read]);
        let op = RunOp::new(vec!["true".into()], rbuild_cache::oci::Platform::host());
        let run = Vertex { op: Op::Run(Box::new(op)), ..scratch() };
        let run = graph.add(run, &[below, mounted]);
        let last = graph.add(mkdir("/last"), &[run]);
        let seen = graph.seen_by_steps();
        for (id, expected) in [
            (base, true),
            (copied, true),
            (mounted, true),
            (below, true),
            (read, false),
            (run, false),
            (last, false),
        ] {
            assert_eq!(seen.contains(&id), expected, "{id:?}");
        }
    }
}
