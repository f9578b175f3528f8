//! The build context as a vertex: a folder of the caller, a commit, or what an archive unpacks to.

use rbuild_solver::graph::{
    ContextOp, CopyAction, CopySource, FileAction, FileOp, Graph, HttpOp, Op, Vertex, VertexId,
};

use super::source::{git_op, shown_address};
use crate::options::{BuildContext, BuildOptions};

/// The name of the context, and of the file in it that an archive is.
const CONTEXT: &str = "context";

/// Adds to `graph` what makes the tree that COPY and ADD copy from.
///
/// [`crate::lower`] adds the same vertex; this is for who wants to read the Dockerfile in it first.
pub fn context_vertex(options: &BuildOptions, graph: &mut Graph) -> VertexId {
    match &options.context {
        BuildContext::Folder { ignore } => {
            let op = ContextOp { name: CONTEXT.into(), ignore: ignore.clone() };
            graph.add(Vertex::internal(Op::Context(op), "[internal] load build context"), &[])
        }
        BuildContext::Git(address) => {
            let mut op = git_op(address);
            op.keep_git_dir |= options.keep_git_dir();
            let name = format!("[internal] load git source {}", shown_address(address));
            graph.add(Vertex::internal(Op::Git(op), &name), &[])
        }
        BuildContext::Archive(url) => {
            let name = format!("[internal] load remote build context {url}");
            let op = HttpOp { url: url.clone(), filename: CONTEXT.into(), checksum: None };
            let file = graph.add(Vertex::internal(Op::Http(op), &name), &[]);
            unpacked(file, graph)
        }
        BuildContext::Tar => {
            let op = ContextOp { name: CONTEXT.into(), ignore: Vec::new() };
            let vertex = Vertex::internal(Op::Context(op), "[internal] load build context");
            let file = graph.add(vertex, &[]);
            unpacked(file, graph)
        }
    }
}

/// What the archive `context` in the tree of `file` unpacks to.
fn unpacked(file: VertexId, graph: &mut Graph) -> VertexId {
    let scratch = graph.add(Vertex::internal(Op::Scratch, "scratch"), &[]);
    let archive = vec![format!("/{CONTEXT}")];
    let unpack = CopyAction { unpack: true, ..CopyAction::new(CopySource::Input(1), archive, "/") };
    let op = Op::File(FileOp { actions: vec![FileAction::Copy(unpack)] });
    graph.add(Vertex::internal(op, "[internal] unpack build context"), &[scratch, file])
}
