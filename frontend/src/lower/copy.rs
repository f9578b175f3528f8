//! COPY and ADD: files from the context, a stage, an image, a repository, an address, or from the
//! Dockerfile itself, as one layer.
//!
//! Follows BuildKit's `dockerfile2llb/convert_copy.go`.

use std::collections::BTreeMap;

use rbuild_cache::digest::Digest;
use rbuild_solver::graph::{
    CopyAction, CopySource, FileAction, FileOp, HttpOp, ModeChange, Op, Owner, VertexId,
};

use super::source::{file_name, git_op};
use super::state::{StageState, numbered, owner};
use super::{Lowering, name, path};
use crate::check;
use crate::diagnostic::Diagnostic;
use crate::git_address::GitAddress;
use crate::instruction::{Add, Copy, InlineFile, Instruction, Sources};
use crate::quote::Quoted;
use crate::source::Text;
use crate::stage::Command;

/// What COPY and ADD have in common, and what one of them alone can say.
struct Request<'a> {
    keyword: &'static str,
    sources: &'a Sources,
    /// The tree that paths are of; the context when absent.
    tree: Option<VertexId>,
    chown: Option<&'a Text>,
    chmod: Option<&'a Text>,
    link: bool,
    parents: bool,
    exclude: &'a [Text],
    add: Option<&'a Add>,
}

/// The actions of one instruction, and the trees they copy from.
struct Copying {
    inputs: Vec<VertexId>,
    actions: Vec<FileAction>,
    /// What all actions have in common.
    template: CopyAction,
}

impl Lowering<'_> {
    pub(super) fn copy_files(
        &mut self,
        state: &mut StageState,
        command: &Command,
        instruction: &Instruction,
        copy: &Copy,
    ) -> Result<(), Diagnostic> {
        let from = copy.from.as_ref();
        let tree = match from.and_then(|from| command.source(from.as_str())) {
            None => None,
            Some(source) => Some(self.source(source)?.ok_or_else(|| {
                let message = format!(
                    "cannot copy from stage {}, it needs to be defined before current stage {}",
                    Quoted(from.map_or("", |from| from.as_str())),
                    Quoted(&state.names.stage),
                );
                Diagnostic::error(message, from.map_or(command.statement.origin.span, |f| f.span))
            })?),
        };
        let request = Request {
            keyword: "COPY",
            sources: &copy.sources,
            tree,
            chown: copy.chown.as_ref(),
            chmod: copy.chmod.as_ref(),
            link: copy.link,
            parents: copy.parents,
            exclude: &copy.exclude,
            add: None,
        };
        self.copy_request(state, command, instruction, &request)
    }

    pub(super) fn add_files(
        &mut self,
        state: &mut StageState,
        command: &Command,
        instruction: &Instruction,
        add: &Add,
    ) -> Result<(), Diagnostic> {
        let request = Request {
            keyword: "ADD",
            sources: &add.sources,
            tree: None,
            chown: add.chown.as_ref(),
            chmod: add.chmod.as_ref(),
            link: add.link,
            parents: false,
            exclude: &add.exclude,
            add: Some(add),
        };
        self.copy_request(state, command, instruction, &request)
    }

    fn copy_request(
        &mut self,
        state: &mut StageState,
        command: &Command,
        instruction: &Instruction,
        request: &Request<'_>,
    ) -> Result<(), Diagnostic> {
        let origin = &command.statement.origin;
        let mode = request.chmod.filter(|chmod| !chmod.value.is_empty());
        // With --chmod BuildKit copies in the ordinary way: its merge cannot carry one.
        let link = request.link && mode.is_none();
        let mode = mode.map(mode_change).transpose()?;
        request.check_checksum()?;
        let owner = request.owner(state, link)?;
        let destination = match state.platform.os.as_str() {
            "windows" => path::from_windows(&request.sources.destination.value),
            _ => request.sources.destination.value.clone(),
        };
        let destination = path::destination(&state.directory, &destination);
        let template = CopyAction {
            owner,
            mode,
            exclude: request.exclude.iter().map(|pattern| pattern.value.clone()).collect(),
            replace_symlinks: link,
            ..CopyAction::new(CopySource::Input(0), Vec::new(), destination)
        };
        let text = name::shown(&origin.text, self.lexer, &state.env);
        let step = state.names.next(&text, &state.platform, &state.env);
        let base = if link { self.scratch() } else { state.vertex };
        let mut copying = Copying { inputs: vec![base], actions: Vec::new(), template };
        for source in &request.sources.paths {
            self.path_source(&mut copying, command, instruction, request, source, &step)?;
        }
        for file in &request.sources.inline {
            copying.inline(file)?;
        }
        let op = Op::File(FileOp { actions: copying.actions });
        let files = self.add(op, step.clone(), origin, state.ignore_cache, &copying.inputs);
        let vertex = if link {
            let name = linked_name(&step, &text);
            self.add(Op::Merge, name, origin, state.ignore_cache, &[state.vertex, files])
        } else {
            files
        };
        state.advance(vertex);
        state.record(request.history_text(), true);
        Ok(())
    }

    fn path_source(
        &mut self,
        copying: &mut Copying,
        command: &Command,
        instruction: &Instruction,
        request: &Request<'_>,
        source: &Text,
        step: &str,
    ) -> Result<(), Diagnostic> {
        let origin = &command.statement.origin;
        let refuse = |message: &str| Err(Diagnostic::error(message, source.span));
        if let Some(address) = GitAddress::parse(&source.value) {
            let wrong = |error: crate::git_address::GitAddressError| {
                Diagnostic::error(error.to_string(), source.span)
            };
            let address = address.map_err(wrong)?;
            let Some(add) = request.add else {
                return refuse("source can't be a git ref for COPY");
            };
            let op = git_of_add(add, &address)
                .map_err(|message| Diagnostic::error(message, source.span))?;
            let tree = self.add(Op::Git(op), step.to_owned(), origin, false, &[]);
            copying.whole(tree, "/", false);
        } else if is_http(&source.value) {
            let Some(add) = request.add else {
                return refuse("source can't be a URL for COPY");
            };
            let checksum = match add.checksum.as_ref().filter(|checksum| !checksum.value.is_empty())
            {
                Some(checksum) => Some(digest(checksum)?),
                None => None,
            };
            let (url, filename) = (source.value.clone(), file_name(&source.value));
            let file = format!("/{filename}");
            let op = Op::Http(HttpOp { url, filename, checksum });
            let tree = self.add(op, step.to_owned(), origin, false, &[]);
            copying.whole(tree, &file, add.unpack.unwrap_or(false));
        } else {
            let tree = if let Some(tree) = request.tree {
                tree
            } else {
                if let Some(ignored) = &self.ignored {
                    let checks = &mut *self.checks;
                    check::copy_ignored_file(checks, origin, instruction, &source.value, ignored);
                }
                self.context()
            };
            let unpack = request.add.is_some_and(|add| add.unpack.unwrap_or(true));
            copying.paths(tree, request.path(source)?, request.parents, unpack);
        }
        Ok(())
    }
}

impl Request<'_> {
    fn check_checksum(&self) -> Result<(), Diagnostic> {
        let checksum = self.add.and_then(|add| add.checksum.as_ref());
        let Some(checksum) = checksum.filter(|checksum| !checksum.value.is_empty()) else {
            return Ok(());
        };
        let [source] = self.sources.paths.as_slice() else {
            let message = "checksum can't be specified for multiple sources";
            return Err(Diagnostic::error(message, checksum.span));
        };
        if !is_http(&source.value) && GitAddress::parse(&source.value).is_none() {
            let message = "checksum requires HTTP(S) or Git sources";
            return Err(Diagnostic::error(message, checksum.span));
        }
        Ok(())
    }

    fn owner(&self, state: &StageState, link: bool) -> Result<Option<Owner>, Diagnostic> {
        let Some(chown) = self.chown.filter(|chown| !chown.value.is_empty()) else {
            return Ok(None);
        };
        let owner = owner(&chown.value);
        // With --link the copy knows nothing of the stage below.
        let known =
            if link { numbered(owner, chown.span) } else { state.known_owner(owner, chown.span) };
        known.map(Some)
    }

    /// A path to copy: absolute and clean, and with --parents with the pivot in it.
    fn path(&self, source: &Text) -> Result<String, Diagnostic> {
        let whole = |text: &str| path::clean(&path::absolute("/", text));
        if !self.parents {
            return Ok(whole(&source.value));
        }
        let (pivot, kept) = source.value.split_once("/./").unwrap_or(("/", &source.value));
        let (pivot, kept) = (whole(pivot), whole(kept));
        if kept == "/" {
            let message = format!("{}: not found", Quoted(&source.value));
            let hint = "--parents needs the name of something in the context";
            return Err(Diagnostic::error(message, source.span).hint(hint));
        }
        Ok(format!("{}/.{kept}", pivot.trim_end_matches('/')))
    }

    fn history_text(&self) -> String {
        let mut words = vec![self.keyword.to_owned()];
        if self.parents {
            words.push("--parents".to_owned());
        }
        for (name, flag) in [("chown", self.chown), ("chmod", self.chmod)] {
            let flag = flag.filter(|flag| !flag.value.is_empty());
            words.extend(flag.map(|flag| format!("--{name}={}", flag.value)));
        }
        words.extend(self.sources.paths.iter().map(|path| path.value.clone()));
        words.extend(self.sources.inline.iter().map(|file| format!("<<{}", file.name.value)));
        words.push(self.sources.destination.value.clone());
        words.push("# buildkit".to_owned());
        words.join(" ")
    }
}

impl Copying {
    /// The position of `tree` among the inputs; the first input is what is copied onto.
    fn input(&mut self, tree: VertexId) -> CopySource {
        if let Some(position) = self.inputs.iter().skip(1).position(|known| *known == tree) {
            return CopySource::Input(position + 1);
        }
        self.inputs.push(tree);
        CopySource::Input(self.inputs.len() - 1)
    }

    /// Copies one path of `tree`, in which wildcards mean nothing.
    fn whole(&mut self, tree: VertexId, path: &str, unpack: bool) {
        let from = self.input(tree);
        let sources = vec![path.to_owned()];
        self.push(CopyAction { from, sources, unpack, ..self.template.clone() });
    }

    /// Copies what `path` matches in `tree`; together with the paths before, if they are of it too.
    fn paths(&mut self, tree: VertexId, path: String, parents: bool, unpack: bool) {
        let from = self.input(tree);
        if let Some(FileAction::Copy(last)) = self.actions.last_mut()
            && last.from == from
            && last.wildcards
        {
            last.sources.push(path);
            return;
        }
        let sources = vec![path];
        self.push(CopyAction {
            from,
            sources,
            parents,
            unpack,
            wildcards: true,
            ..self.template.clone()
        });
    }

    fn inline(&mut self, file: &InlineFile) -> Result<(), Diagnostic> {
        let name = &file.name.value;
        if name.contains('/') || matches!(name.as_str(), "" | "." | "..") {
            let message = format!("{} is not the name of a file", Quoted(name));
            return Err(Diagnostic::error(message, file.name.span));
        }
        let files = BTreeMap::from([(name.clone(), file.data.value.clone().into_bytes())]);
        let from = CopySource::Inline(files);
        let sources = vec![name.clone()];
        self.push(CopyAction { from, sources, ..self.template.clone() });
        Ok(())
    }

    fn push(&mut self, action: CopyAction) {
        self.actions.push(FileAction::Copy(action));
    }
}

/// What ADD fetches from a repository: what its flags say and what the address says must agree.
fn git_of_add(add: &Add, address: &GitAddress) -> Result<rbuild_solver::graph::GitOp, String> {
    let mut op = git_op(address);
    // BuildKit's ADD takes no notice of `mtime`.
    op.commit_times = false;
    match (add.keep_git_dir, address.keep_git_dir) {
        (Some(flag), Some(query)) if flag != query => {
            return Err("inconsistent keep-git-dir configuration".to_owned());
        }
        (Some(flag), None) => op.keep_git_dir = flag,
        (Some(_) | None, _) => {}
    }
    let checksum = add.checksum.as_ref().map_or("", |checksum| checksum.as_str());
    match &address.checksum {
        _ if checksum.is_empty() => {}
        Some(query) if query != checksum => {
            return Err(format!("checksum mismatch {} != {}", Quoted(checksum), Quoted(query)));
        }
        Some(_) | None => op.checksum = Some(checksum.to_owned()),
    }
    Ok(op)
}

pub(super) fn is_http(source: &str) -> bool {
    source.starts_with("http://") || source.starts_with("https://")
}

pub(super) fn digest(text: &Text) -> Result<Digest, Diagnostic> {
    text.value.parse().map_err(|error: rbuild_cache::digest::DigestError| {
        Diagnostic::error(error.to_string(), text.span)
    })
}

/// Reads `--chmod`: octal digits, or what chmod(1) takes.
fn mode_change(chmod: &Text) -> Result<ModeChange, Diagnostic> {
    let text = chmod.value.as_str();
    let octal = u32::from_str_radix(text, 8).ok().filter(|_| !text.starts_with('+'));
    let wrong = || {
        let message = format!(
            "invalid chmod parameter: '{text}'. it should be octal string and between 0 and 07777"
        );
        Err(Diagnostic::error(message, chmod.span))
    };
    match octal {
        Some(mode) if mode <= 0o7777 => Ok(ModeChange::Octal(mode)),
        None if is_symbolic(text) => Ok(ModeChange::Symbolic(text.to_owned())),
        Some(_) | None => wrong(),
    }
}

/// `u=rwX,go-w`: clauses of whom, and then how and what, as often as one likes.
fn is_symbolic(text: &str) -> bool {
    text.split(',').all(|clause| {
        let changes = clause.trim_start_matches(['u', 'g', 'o', 'a']);
        changes.starts_with(['+', '-', '=']) && changes.chars().all(|c| "+-=rwxXstugo".contains(c))
    })
}

/// The name of the vertex that puts a linked copy on top of the stage.
fn linked_name(step: &str, text: &str) -> String {
    match step.strip_suffix(text) {
        Some(prefix) => format!("{prefix}LINK {text}"),
        None => format!("LINK {text}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::Span;

    #[test]
    fn modes() {
        let mode = |text: &str| mode_change(&Text::new(text.to_owned(), Span::default()));
        assert_eq!(mode("0755").unwrap(), ModeChange::Octal(0o755));
        for good in ["u=rwX,go=rX", "+x", "a-w", "g=u", "u+s,+t"] {
            assert_eq!(mode(good).unwrap(), ModeChange::Symbolic(good.to_owned()));
        }
        for bad in ["10000", "9", "", "u", "x", "u=rwz", "+755"] {
            assert!(mode(bad).is_err(), "{bad}");
        }
    }
}
