//! What is run, what is not, and how it ends.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rbuild_cache::digest::{CacheKey, Digest, TreeDigest};
use rbuild_cache::index::{CacheRecord, CacheSource, IndexError};
use rbuild_cache::snapshot::SnapshotId;
use rbuild_solver::Jobs;
use rbuild_solver::error::{Cause, SolveError};
use rbuild_solver::graph::{Graph, NetworkMode, Op, VertexId};
use rbuild_solver::solve::solve;
use rbuild_solver::tree::Tree;

use crate::fake::{World, run, run_op, scratch, vertex};

const JOBS: Jobs = Jobs::Limit(2);

async fn solved(world: &World, graph: &Graph, target: VertexId) -> Result<Tree, SolveError> {
    let trees = solve(Arc::new(graph.clone()), &[target], Arc::clone(&world.surroundings)).await;
    trees.map(|mut trees| trees.remove(0))
}

/// `write a`, `write b` over it.
fn two_steps(graph: &mut Graph, first: &str) -> VertexId {
    let base = scratch(graph);
    let one = run(graph, base, &["write", "a", first]);
    run(graph, one, &["write", "b", "same"])
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_build_runs_nothing_and_an_edit_only_what_depends_on_it() {
    let folder = tempfile::tempdir().unwrap();
    let mut graph = Graph::new();
    let target = two_steps(&mut graph, "one");
    let world = World::new(folder.path(), JOBS);
    let tree = solved(&world, &graph, target).await.unwrap();
    assert_eq!((world.runs(), tree.layers.len()), (2, 2));

    let again = World::new(folder.path(), JOBS);
    assert_eq!(solved(&again, &graph, target).await.unwrap(), tree);
    assert_eq!((again.runs(), again.told.cached()), (0, 2));

    let mut edited = Graph::new();
    let target = two_steps(&mut edited, "two");
    let world = World::new(folder.path(), JOBS);
    solved(&world, &edited, target).await.unwrap();
    assert_eq!(world.runs(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_that_makes_the_same_tree_again_changes_nothing_below_it() {
    let folder = tempfile::tempdir().unwrap();
    let build = async |ignore_cache| {
        let mut graph = Graph::new();
        let base = scratch(&mut graph);
        let mut first = vertex(Op::Run(Box::new(run_op(&["write", "a", "x"]))));
        first.ignore_cache = ignore_cache;
        let first = graph.add(first, &[base]);
        let target = run(&mut graph, first, &["write", "b", "y"]);
        let world = World::new(folder.path(), JOBS);
        solved(&world, &graph, target).await.unwrap();
        world.runs()
    };
    assert_eq!(build(false).await, 2);
    assert_eq!(build(true).await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn only_what_the_target_needs_is_run() {
    let folder = tempfile::tempdir().unwrap();
    let mut graph = Graph::new();
    let target = two_steps(&mut graph, "x");
    run(&mut graph, target, &["exit", "1"]);
    let world = World::new(folder.path(), JOBS);
    solved(&world, &graph, target).await.unwrap();
    assert_eq!(world.runs(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failure_ends_the_rest_at_once_and_is_not_cached() {
    let folder = tempfile::tempdir().unwrap();
    let mut graph = Graph::new();
    let base = scratch(&mut graph);
    let slow = run(&mut graph, base, &["sleep", "60000"]);
    let failing = run(&mut graph, base, &["exit", "3"]);
    let both = graph.add(vertex(Op::Merge), &[slow, failing]);
    for _ in 0..2 {
        let begun = Instant::now();
        let world = World::new(folder.path(), JOBS);
        let error = solved(&world, &graph, both).await.unwrap_err();
        assert!(begun.elapsed() < Duration::from_secs(10));
        let Cause::Exit { command, tail, .. } = &*error.cause else { panic!("{error}") };
        assert_eq!(command, "exit 3");
        assert_eq!(tail, b"it went wrong\n");
        assert!(error.to_string().ends_with("exit code: 3"), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_builds_at_once_run_a_step_once() {
    let folder = tempfile::tempdir().unwrap();
    let mut graph = Graph::new();
    let base = scratch(&mut graph);
    let target = run(&mut graph, base, &["sleep", "300"]);
    let (one, two) = (World::new(folder.path(), JOBS), World::new(folder.path(), JOBS));
    let (first, second) = tokio::join!(solved(&one, &graph, target), solved(&two, &graph, target));
    assert_eq!(first.unwrap(), second.unwrap());
    assert_eq!(one.runs() + two.runs(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_more_commands_than_asked_for_run_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let mut graph = Graph::new();
    let base = scratch(&mut graph);
    let stages: Vec<VertexId> = ["100", "101", "102"]
        .iter()
        .map(|milliseconds| run(&mut graph, base, &["sleep", milliseconds]))
        .collect();
    let target = graph.add(vertex(Op::Merge), &stages);
    let world = World::new(folder.path(), Jobs::Limit(1));
    let begun = Instant::now();
    solved(&world, &graph, target).await.unwrap();
    assert!(begun.elapsed() >= Duration::from_millis(303));
}

/// Says of every step that it came to a tree that nobody has.
#[derive(Debug)]
struct Liar;

impl CacheSource for Liar {
    fn find(&self, _key: &CacheKey) -> Result<Option<CacheRecord>, IndexError> {
        Ok(Some(CacheRecord {
            snapshot: SnapshotId::random(),
            content: TreeDigest(Digest::of("nothing")),
            description: String::new(),
            evidence: serde_json::Value::Null,
            created: 0,
        }))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_lies_costs_time_only() {
    let folder = tempfile::tempdir().unwrap();
    let mut graph = Graph::new();
    let target = two_steps(&mut graph, "x");
    for runs in [2, 0] {
        let mut world = World::new(folder.path(), JOBS);
        world.ask_first(Arc::new(Liar));
        assert_eq!(solved(&world, &graph, target).await.unwrap().layers.len(), 2);
        assert_eq!(world.runs(), runs);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_allowed_is_refused_before_anything_runs() {
    let folder = tempfile::tempdir().unwrap();
    let mut graph = Graph::new();
    let first = two_steps(&mut graph, "x");
    let mut op = run_op(&["write", "c", "c"]);
    op.network = NetworkMode::Host;
    let target = graph.add(vertex(Op::Run(Box::new(op))), &[first]);
    let world = World::new(folder.path(), JOBS);
    let error = solved(&world, &graph, target).await.unwrap_err();
    assert!(error.to_string().contains("--allow network.host"), "{error}");
    assert_eq!(world.runs(), 0);
}
