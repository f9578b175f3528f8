//! RUN: a command in a sandbox.
//!
//! Follows `dispatchRun` in BuildKit's `dockerfile2llb/convert.go`.

use rbuild_solver::graph::{
    FileAction, FileOp, Mount, MountSource, NetworkMode, Op, RunOp, SecurityMode, VertexId,
    WriteFile,
};

use super::metadata::in_shell;
use super::state::StageState;
use super::{Lowering, mount, name};
use crate::diagnostic::Diagnostic;
use crate::expand::{Env as _, Lexer};
use crate::instruction::{self, CommandLine, MountType, Run};
use crate::source::Span;
use crate::stage::Command;
use crate::syntax::{Heredoc, Origin};

/// Where a script is mounted that stands in the Dockerfile.
const SCRIPTS: &str = "/dev/pipes";

impl Lowering<'_> {
    pub(super) fn run_command(
        &mut self,
        state: &mut StageState,
        command: &Command,
        run: &Run,
    ) -> Result<(), Diagnostic> {
        let origin = &command.statement.origin;
        self.refuse_unless_allowed(run, origin)?;
        if matches!(&run.command, CommandLine::Exec(words) if words.is_empty()) {
            return Err(Diagnostic::error("arguments are required", origin.span));
        }
        let mounts = {
            let mut expander = self.expander(state, origin, self.lexer);
            run.mounts(&mut *expander)?
        };
        let mut inputs = vec![state.vertex];
        let mut lowered = Vec::new();
        let (args, summary) = self.args_of_run(state, run, &mut lowered, &mut inputs);
        self.mounts(state, command, &mounts, &mut lowered, &mut inputs)?;
        let name = self.name_of_run(state, origin, &mounts, summary.as_deref());
        let options = self.options;
        let user = &state.image.config.user;
        let op = RunOp {
            args: args.clone(),
            env: state.env.pairs(),
            cwd: state.directory.clone(),
            user: (!user.is_empty()).then(|| user.clone()),
            network: match run.network {
                NetworkMode::Default => options.network,
                network @ (NetworkMode::None | NetworkMode::Host) => network,
            },
            security: run.security,
            mounts: lowered,
            devices: run.devices.clone(),
            hostname: options.hostname().to_owned(),
            extra_hosts: options.extra_hosts.clone(),
            shm_size: mount::unless_zero(options.shm_size),
            ulimits: options.ulimits.clone(),
            cgroup_parent: options.cgroup_parent.clone(),
            platform: state.platform.clone(),
        };
        let vertex = self.add(Op::Run(Box::new(op)), name, origin, state.ignore_cache, &inputs);
        state.advance(vertex);
        state.record(format!("RUN {} # buildkit", history_text(state, &args)), true);
        Ok(())
    }

    /// Refuses what needs leave. Which devices do depends on the machine, so whoever knows it says.
    fn refuse_unless_allowed(&self, run: &Run, origin: &Origin) -> Result<(), Diagnostic> {
        let allow = self.options.allow;
        let wanted = [
            ("security.insecure", run.security == SecurityMode::Insecure, allow.insecure),
            ("network.host", run.network == NetworkMode::Host, allow.host_network),
        ];
        match wanted.iter().find(|(_, asked, allowed)| *asked && !allowed) {
            None => Ok(()),
            Some((name, ..)) => {
                let hint = format!("`--allow {name}` lets this build have it");
                Err(Diagnostic::error(format!("{name} is not allowed"), origin.span).hint(hint))
            }
        }
    }

    /// The program and its arguments, and the first line of the script that they are, if any.
    fn args_of_run(
        &mut self,
        state: &StageState,
        run: &Run,
        mounts: &mut Vec<Mount>,
        inputs: &mut Vec<VertexId>,
    ) -> (Vec<String>, Option<String>) {
        let line = match &run.command {
            CommandLine::Exec(words) => {
                return (words.iter().map(|word| word.value.clone()).collect(), None);
            }
            CommandLine::Shell(line) => &line.value,
        };
        match run.heredocs.as_slice() {
            [] => (in_shell(state, line), None),
            [script] if is_lone_heredoc(line) => {
                let summary = name::summary(&script.content.value);
                let text = script.text();
                if state.image.os == "windows" || !text.starts_with("#!") {
                    return (in_shell(state, &text), Some(summary));
                }
                inputs.push(self.script(&script.name.value, text));
                mounts.push(Mount {
                    target: SCRIPTS.to_owned(),
                    source: MountSource::Bind { input: inputs.len() - 1, path: "/".to_owned() },
                    read_only: true,
                });
                (in_shell(state, &format!("{SCRIPTS}/{}", script.name.value)), Some(summary))
            }
            documents => (in_shell(state, &with_documents(line, documents)), None),
        }
    }

    /// A tree that holds a script.
    fn script(&mut self, name: &str, text: String) -> VertexId {
        let file = WriteFile {
            path: format!("/{name}"),
            mode: 0o755,
            owner: None,
            data: text.into_bytes(),
        };
        let scratch = self.scratch();
        let op = Op::File(FileOp { actions: vec![FileAction::WriteFile(file)] });
        self.internal(op, "[internal] preparing inline document", &[scratch])
    }

    /// What progress calls the step. Secrets in its environment show as stars.
    fn name_of_run(
        &self,
        state: &mut StageState,
        origin: &Origin,
        mounts: &[instruction::Mount],
        summary: Option<&str>,
    ) -> String {
        let mut env = state.env.clone();
        for mount in mounts.iter().filter(|mount| mount.kind == MountType::Secret) {
            mount.env.iter().for_each(|variable| env.set(variable, "****"));
        }
        let summary = summary.map(|summary| format!(" ({summary})"));
        let text = format!("{}{}", origin.text, summary.unwrap_or_default());
        let lexer = Lexer::for_display(self.dockerfile.escape);
        let text = name::shown(&text, lexer, &env);
        state.names.next(&text, &state.platform, &state.env)
    }
}

/// Whether the line is nothing but `<<NAME`.
fn is_lone_heredoc(line: &str) -> bool {
    matches!(Heredoc::parse(line, Span::default()), Ok(Some(_)))
}

/// The line with its here-documents behind it, for the shell to read.
fn with_documents(line: &str, documents: &[Heredoc]) -> String {
    let mut whole = line.to_owned();
    for document in documents {
        whole.extend(["\n", &document.content.value, &document.name.value]);
    }
    whole
}

/// The command as history shows it: before it the build arguments, each with its last value.
fn history_text(state: &StageState, args: &[String]) -> String {
    let mut shown: Vec<(&str, &str)> = Vec::new();
    for (name, value) in &state.arguments {
        let value = state.env.get(name).or(value.as_deref()).unwrap_or_default();
        match shown.iter_mut().find(|(earlier, _)| earlier == name) {
            Some((_, earlier)) => *earlier = value,
            None => shown.push((name, value)),
        }
    }
    let mut words = Vec::new();
    if !shown.is_empty() {
        words.push(format!("|{}", shown.len()));
        words.extend(shown.iter().map(|(name, value)| format!("{name}={value}")));
    }
    words.extend(args.iter().cloned());
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_may_be_a_here_document_and_nothing_else() {
        for lone in ["<<EOF", "3<<-EOF", "<<\"E F\"", "<<'EOF'"] {
            assert!(is_lone_heredoc(lone), "{lone}");
        }
        for more in ["cat <<EOF", "<<EOF cat", "<<A <<B", "x", "<<"] {
            assert!(!is_lone_heredoc(more), "{more}");
        }
    }
}
