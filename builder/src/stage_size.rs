//! How large each stage of a build became, and what of it is in the image: what stages are for.

use std::collections::BTreeMap;

use rbuild_cache::snapshot::SnapshotId;
use rbuild_cache::state::StateFolder;
use rbuild_solver::graph::{Graph, VertexId};
use rbuild_solver::tree::{Tree, TreeLayer};

/// A stage and the bytes of its files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StageSize {
    /// Its name, as progress shows it; with its platform where there are several.
    pub name: String,
    /// The bytes of the files of all its layers.
    pub size: u64,
    /// How many layers.
    pub layers: usize,
}

impl StageSize {
    /// The size of a stage whose tree is `tree`.
    pub(crate) fn of(name: String, tree: &Tree, state: &StateFolder) -> Self {
        let size = tree.layers.iter().map(|layer| layer_size(layer, state)).sum();
        Self { name, size, layers: tree.layers.len() }
    }
}

/// A layer of a base that nobody read is not unpacked: then it is as large as what is fetched of it.
fn layer_size(layer: &TreeLayer, state: &StateFolder) -> u64 {
    match layer {
        TreeLayer::Snapshot(snapshot) => snapshot.size,
        TreeLayer::Remote(remote) => remote.result.size,
        TreeLayer::Image { layer, .. } => {
            let unpacked = state.snapshots().get(&SnapshotId::of_layer(&layer.diff_id));
            unpacked.ok().flatten().map_or(layer.descriptor.size, |snapshot| snapshot.size)
        }
    }
}

/// The last step of each stage that `targets` need, but for those that are targets: name and
/// vertex, in the order of names.
pub(crate) fn last_steps(graph: &Graph, targets: &[VertexId]) -> Vec<(String, VertexId)> {
    let mut last: BTreeMap<String, (usize, VertexId)> = BTreeMap::new();
    for id in graph.reachable(targets) {
        let Some((stage, number)) = stage_of(&graph.vertex(id).name) else { continue };
        let known = last.entry(stage.to_owned()).or_insert((number, id));
        if known.0 <= number {
            *known = (number, id);
        }
    }
    let steps = last.into_iter().map(|(stage, (_, id))| (stage, id));
    steps.filter(|(_, id)| !targets.contains(id)).collect()
}

/// The stage and the number of the step in `[build 2/7] RUN make`.
fn stage_of(name: &str) -> Option<(&str, usize)> {
    let (inside, _) = name.strip_prefix('[')?.split_once(']')?;
    let (stage, number) = inside.rsplit_once(' ')?;
    let (number, _of) = number.split_once('/')?;
    Some((stage, number.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use rbuild_solver::graph::{Op, Vertex};

    use super::*;

    #[test]
    fn names_tell_the_stage() {
        assert_eq!(stage_of("[build 2/7] RUN make"), Some(("build", 2)));
        assert_eq!(stage_of("[linux/arm64 build 10/12] RUN make"), Some(("linux/arm64 build", 10)));
        assert_eq!(stage_of("[2/7] RUN make"), None);
        assert_eq!(stage_of("[internal] load metadata"), None);
        assert_eq!(stage_of("[context base] OCI load"), None);
    }

    #[test]
    fn each_stage_is_its_last_step_and_the_target_is_left_out() {
        let mut graph = Graph::new();
        let mut add = |name: &str, ignore_cache, inputs: &[VertexId]| {
            let name = name.to_owned();
            graph.add(Vertex { op: Op::Merge, name, span: None, ignore_cache }, inputs)
        };
        let one = add("[build 1/2] FROM a", false, &[]);
        let two = add("[build 2/2] RUN b", false, &[one]);
        let target = add("[stage-1 1/1] COPY c", false, &[two, one]);
        let unused = add("[unused 1/1] RUN d", true, &[]);
        assert_ne!(unused, target);
        assert_eq!(last_steps(&graph, &[target]), [("build".to_owned(), two)]);
    }
}
