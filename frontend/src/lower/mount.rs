//! RUN --mount: what absent options stand for, and which trees are mounted.
//!
//! Follows BuildKit's `dockerfile2llb/convert_{runmount,secrets,ssh}.go`.

use rbuild_solver::graph::{Mount, MountSource, VertexId};

use super::state::StageState;
use super::{Lowering, path};
use crate::diagnostic::Diagnostic;
use crate::instruction::{self, MountType};
use crate::quote::Quoted;
use crate::source::Span;
use crate::stage::Command;

/// The mode of a cache that nothing is said about.
const CACHE_MODE: u32 = 0o755;

impl Lowering<'_> {
    /// Lowers the mounts of a RUN; the trees they show are added to `inputs`.
    pub(super) fn mounts(
        &mut self,
        state: &StageState,
        command: &Command,
        mounts: &[instruction::Mount],
        lowered: &mut Vec<Mount>,
        inputs: &mut Vec<VertexId>,
    ) -> Result<(), Diagnostic> {
        let mut agents = 0;
        for mount in mounts {
            let span = mount.flag.span;
            match mount.kind {
                MountType::Secret => {
                    let mounts = secret(mount, span)?;
                    self.outlines[state.index].mounts(&mounts, span);
                    lowered.extend(mounts);
                }
                MountType::Ssh => {
                    let mount = ssh(mount, agents, span)?;
                    self.outlines[state.index].mounts(std::slice::from_ref(&mount), span);
                    lowered.push(mount);
                    agents += 1;
                }
                MountType::Bind | MountType::Cache | MountType::Tmpfs => {
                    let source = mount.from.as_deref().and_then(|from| command.source(from));
                    let tree = match source.filter(|_| mount.kind != MountType::Tmpfs) {
                        None => None,
                        Some(source) => Some(self.mount_tree(source, mount, span)?),
                    };
                    let target = target(state, mount, span)?;
                    let source = match mount.kind {
                        MountType::Tmpfs => MountSource::Tmpfs { size: unless_zero(mount.size) },
                        MountType::Cache => self.cache(mount, tree, inputs),
                        MountType::Bind | MountType::Secret | MountType::Ssh => {
                            let tree = tree.unwrap_or_else(|| self.context());
                            MountSource::Bind {
                                input: input(inputs, tree),
                                path: source_path(mount),
                            }
                        }
                    };
                    lowered.push(Mount { target, source, read_only: mount.read_only });
                }
            }
        }
        Ok(())
    }

    fn mount_tree(
        &mut self,
        source: usize,
        mount: &instruction::Mount,
        span: Span,
    ) -> Result<VertexId, Diagnostic> {
        self.source(source)?.ok_or_else(|| {
            let message = format!(
                "cannot mount from stage {} to {}, stage needs to be defined before current command",
                Quoted(mount.from.as_deref().unwrap_or_default()),
                Quoted(mount.target.as_deref().unwrap_or_default()),
            );
            Diagnostic::error(message, span)
        })
    }

    fn cache(
        &self,
        mount: &instruction::Mount,
        tree: Option<VertexId>,
        inputs: &mut Vec<VertexId>,
    ) -> MountSource {
        let id = match mount.id.as_deref().filter(|id| !id.is_empty()) {
            Some(id) => id.to_owned(),
            None => path::clean(mount.target.as_deref().unwrap_or_default()),
        };
        let path = source_path(mount);
        // Where an owner or a mode is given, a new cache is an empty folder that has them.
        let owned = mount.uid.is_some() || mount.gid.is_some() || mount.mode.is_some();
        let tree = tree.filter(|_| !(owned && path == "/"));
        MountSource::Cache {
            id: format!("{}/{id}", self.options.cache_mount_namespace()),
            sharing: mount.sharing.unwrap_or_default(),
            from: tree.map(|tree| input(inputs, tree)),
            path,
            mode: mount.mode.unwrap_or(CACHE_MODE),
            uid: mount.uid.unwrap_or(0),
            gid: mount.gid.unwrap_or(0),
        }
    }
}

/// The size of a memory file system. BuildKit takes 0 for the usual size; to the kernel it would be no
/// limit at all.
pub(super) fn unless_zero(size: Option<u64>) -> Option<u64> {
    size.filter(|size| *size > 0)
}

/// The position of `tree` among `inputs`; it is added if it is not there. The first input is the
/// root, which commands change.
fn input(inputs: &mut Vec<VertexId>, tree: VertexId) -> usize {
    if let Some(position) = inputs.iter().skip(1).position(|known| *known == tree) {
        return position + 1;
    }
    inputs.push(tree);
    inputs.len() - 1
}

fn source_path(mount: &instruction::Mount) -> String {
    path::join("/", mount.source.as_deref().unwrap_or_default())
}

/// Where it is mounted: below the working directory when the target is relative.
fn target(
    state: &StageState,
    mount: &instruction::Mount,
    span: Span,
) -> Result<String, Diagnostic> {
    let written = mount.target.as_deref().unwrap_or_default();
    let target = if written.starts_with('/') {
        path::clean(written)
    } else {
        path::join("/", &path::join(&state.directory, written))
    };
    if target == "/" {
        return Err(Diagnostic::error("invalid mount target \"/\"", span));
    }
    Ok(target)
}

/// A secret as a file, or as a variable, or as both.
fn secret(mount: &instruction::Mount, span: Span) -> Result<Vec<Mount>, Diagnostic> {
    let filled = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
    let target = filled(&mount.target);
    let id = match filled(&mount.source).or(filled(&mount.id)) {
        Some(id) => id,
        None => match &target {
            Some(target) => path::base(target).to_owned(),
            None => return Err(Diagnostic::error("one of source, target required", span)),
        },
    };
    let required = mount.required;
    let mut lowered = Vec::new();
    if let Some(variable) = &mount.env {
        let variable = if variable.is_empty() { id.clone() } else { variable.clone() };
        lowered.push(Mount {
            target: String::new(),
            source: MountSource::SecretEnv { id: id.clone(), required, variable },
            read_only: true,
        });
    }
    let default = || format!("/run/secrets/{}", path::base(&id));
    let target = if mount.env.is_none() { Some(target.unwrap_or_else(default)) } else { target };
    if let Some(target) = target {
        lowered.push(Mount {
            target: path::join("/", &target),
            source: MountSource::Secret {
                required,
                mode: mount.mode.unwrap_or(0o400),
                uid: mount.uid.unwrap_or(0),
                gid: mount.gid.unwrap_or(0),
                id,
            },
            read_only: true,
        });
    }
    Ok(lowered)
}

/// The caller's SSH agent; `agents` are mounted before it.
fn ssh(mount: &instruction::Mount, agents: usize, span: Span) -> Result<Mount, Diagnostic> {
    if mount.source.as_deref().is_some_and(|source| !source.is_empty()) {
        return Err(Diagnostic::error("ssh does not support source", span));
    }
    let target = mount.target.clone().filter(|target| !target.is_empty());
    let id = mount.id.clone().filter(|id| !id.is_empty());
    Ok(Mount {
        target: match target {
            Some(target) => path::join("/", &target),
            None => format!("/run/buildkit/ssh_agent.{agents}"),
        },
        source: MountSource::Ssh {
            id: id.unwrap_or_else(|| "default".into()),
            required: mount.required,
            mode: mount.mode.unwrap_or(0o600),
            uid: mount.uid.unwrap_or(0),
            gid: mount.gid.unwrap_or(0),
        },
        read_only: true,
    })
}
