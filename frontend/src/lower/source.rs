//! Where trees come from: base images, contexts, git repositories, files fetched over http.
//!
//! Follows `resolveBaseImage` in BuildKit's `dockerfile2llb/convert.go` and
//! `frontend/dockerui/{context,namedcontext}.go`.

use rbuild_cache::digest::Digest;
use rbuild_cache::oci::Platform;
use rbuild_solver::graph::{ContextOp, GitOp, HttpOp, ImageOp, Op, Vertex, VertexId};

use super::context::context_vertex;
use super::environment::Environment;
use super::name::Names;
use super::state::{Once, StageState};
use super::{Lowering, path};
use crate::check;
use crate::git_address::GitAddress;
use crate::image_config::ImageConfig;
use crate::options::NamedContext;
use crate::stage::{Base, BaseName, StageIndex};

impl Lowering<'_> {
    /// A stage that begins with something else than a stage.
    pub(super) fn base_state(
        &mut self,
        index: StageIndex,
        names: Names,
        ignore_cache: bool,
    ) -> StageState {
        let stage = &self.plan.stages[index];
        let wanted = stage.platform.as_ref().unwrap_or(self.options.target_platform()).clone();
        let mut names = names;
        let mut base_image = None;
        let (vertex, platform, image) = match &stage.base {
            Base::Image(base) if base.config.is_some() => {
                let config = base.config.as_deref().cloned().unwrap_or_default();
                let replaced = stage.replaced;
                let vertex = self.image(index, &config, &wanted, &mut names);
                let mut image = config.clone();
                base_image = Some(config);
                image.created = None;
                image.config.on_build.clear();
                let platform =
                    if replaced && !image.os.is_empty() { image.platform() } else { wanted };
                (vertex, platform, image)
            }
            Base::Context { name, context } => {
                let (name, context) = (name.clone(), context.clone());
                let image = match &context {
                    NamedContext::Built { config, .. } => (**config).clone(),
                    _ if stage.replaced => ImageConfig::without_config(&wanted),
                    _ => ImageConfig::empty(&wanted),
                };
                (Some(self.named_context(&name, &context)), wanted, image)
            }
            // An image without config is one that is not needed: only `all_stages` leads here.
            Base::Scratch | Base::Stage(_) | Base::Named { .. } | Base::Image(_) => {
                let target = self.options.target_platform().clone();
                (None, target.clone(), ImageConfig::empty(&target))
            }
        };
        StageState {
            index,
            is_scratch: vertex.is_none(),
            vertex: vertex.unwrap_or_else(|| self.scratch()),
            env: Environment::default(),
            directory: "/".to_owned(),
            image,
            base_image,
            platform,
            arguments: Vec::new(),
            has_workdir: false,
            once: Once::default(),
            names,
            ignore_cache,
            epoch: self.epoch,
        }
    }

    /// The tree of a stage's image; `None` for an image without layers.
    fn image(
        &mut self,
        index: StageIndex,
        config: &ImageConfig,
        wanted: &Platform,
        names: &mut Names,
    ) -> Option<VertexId> {
        let stage = &self.plan.stages[index];
        let Base::Image(base) = &stage.base else { return None };
        let found = self.resolved.image(&base.name, &base.platform)?;
        if found.layers.is_empty() {
            return None;
        }
        let name = image_name(base, &found.digest);
        let name = match &base.context {
            Some(_) => name,
            None => names.next(&format!("FROM {name}"), wanted, &Environment::default()),
        };
        if let Some(stage) = stage.stage.filter(|_| base.context.is_none()) {
            let written = stage.from.base.as_str();
            let platform = config.platform();
            check::base_image_platform(self.checks, stage, written, wanted, &platform);
        }
        let op = Op::Image(ImageOp {
            name: base.full.clone(),
            location: found.location.clone(),
            manifest: found.manifest,
            platform: found.platform.clone(),
            layers: found.layers.clone(),
        });
        let span = Some(self.locate(stage.base_span()));
        Some(self.graph.add(Vertex { op, name, span, ignore_cache: false }, &[]))
    }

    /// The empty tree.
    pub(super) fn scratch(&mut self) -> VertexId {
        self.internal(Op::Scratch, "scratch", &[])
    }

    /// A vertex that no line asks for.
    pub(super) fn internal(&mut self, op: Op, name: &str, inputs: &[VertexId]) -> VertexId {
        self.graph.add(Vertex::internal(op, name), inputs)
    }

    /// The tree that COPY and ADD copy from.
    pub(super) fn context(&mut self) -> VertexId {
        context_vertex(self.options, self.graph)
    }

    fn named_context(&mut self, name: &str, context: &NamedContext) -> VertexId {
        match context {
            NamedContext::Folder { ignore } => {
                let op = ContextOp { name: name.to_owned(), ignore: ignore.clone() };
                let name = format!("[context {name}] load from client");
                self.internal(Op::Context(op), &name, &[])
            }
            NamedContext::Git(address) => {
                let shown = format!("[context {name}] {}", shown_address(address));
                self.internal(Op::Git(git_op(address)), &shown, &[])
            }
            NamedContext::Http(url) => {
                let op = HttpOp { url: url.clone(), filename: "context".into(), checksum: None };
                self.internal(Op::Http(op), &format!("[context {name}] {url}"), &[])
            }
            NamedContext::Built { vertex, .. } => *vertex,
            // These are images, and nothing.
            NamedContext::Scratch | NamedContext::Image(_) | NamedContext::OciLayout => {
                self.scratch()
            }
        }
    }
}

/// How progress shows an image: with its digest, or as the context that it came from.
fn image_name(base: &BaseName, digest: &Digest) -> String {
    match &base.context {
        Some(context) if *context == base.full => {
            format!("[context {context}] OCI load from client")
        }
        Some(context) => format!("[context {context}] {}", base.full),
        None if base.full.contains('@') => base.full.clone(),
        None => format!("{}@{digest}", base.full),
    }
}

/// The work of fetching a repository.
pub(super) fn git_op(address: &GitAddress) -> GitOp {
    GitOp {
        remote: address.remote.clone(),
        reference: address.reference.clone(),
        subdir: address.subdir.clone(),
        keep_git_dir: address.keep_git_dir.unwrap_or(false),
        checksum: address.checksum.clone(),
        submodules: address.submodules.unwrap_or(true),
        commit_times: address.commit_times,
    }
}

pub(super) fn shown_address(address: &GitAddress) -> String {
    let reference = address.reference.as_deref().unwrap_or_default();
    match &address.subdir {
        None if reference.is_empty() => address.remote.clone(),
        None => format!("{}#{reference}", address.remote),
        Some(subdir) => format!("{}#{reference}:{subdir}", address.remote),
    }
}

/// What a file behind an address is called: the last part of its path.
pub(super) fn file_name(url: &str) -> String {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let rest = rest.split(['?', '#']).next().unwrap_or_default();
    let path = rest.split_once('/').map_or("", |(_, path)| path);
    let path = percent_decoded(path);
    match path::base(&path) {
        "" | "." | ".." | "/" => "__unnamed__".to_owned(),
        name => name.to_owned(),
    }
}

/// `%20` is a blank; what is no such escape stays as it is.
fn percent_decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, behind @ ..] = rest {
        let hex = behind.get(..2).and_then(|hex| std::str::from_utf8(hex).ok());
        let byte = hex.filter(|_| *first == b'%').and_then(|hex| u8::from_str_radix(hex, 16).ok());
        bytes.push(byte.unwrap_or(*first));
        rest = if byte.is_some() { &behind[2..] } else { behind };
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_called_after_the_path() {
        let check = |url: &str, expected: &str| assert_eq!(file_name(url), expected, "{url}");
        check("http://h/a/b.tar?x=/y#z", "b.tar");
        check("http://h/a/", "a");
        check("http://h/", "__unnamed__");
        check("http://h", "__unnamed__");
        check("http://h/a%20b", "a b");
        check("http://h/x/%2e%2e", "__unnamed__");
        check("http://h/a%2Fb%zz", "b%zz");
    }
}
