//! What a stage carries from instruction to instruction.

use rbuild_cache::oci::Platform;
use rbuild_solver::graph::{Name, Owner, VertexId};

use super::environment::Environment;
use super::name::Names;
use super::path;
use crate::diagnostic::Diagnostic;
use crate::image_config::{History, ImageConfig, Timestamp, split_variable};
use crate::source::Span;
use crate::stage::StageIndex;
use crate::syntax::Origin;

/// What history entries say of who made them.
const COMMENT: &str = "buildkit.dockerfile.v0";

/// A stage between two instructions.
#[derive(Clone, Debug)]
pub(crate) struct StageState {
    /// Which stage it is.
    pub(crate) index: StageIndex,
    /// Its tree.
    pub(crate) vertex: VertexId,
    /// Its tree is empty: there is no `/etc/passwd` to look names up in.
    pub(crate) is_scratch: bool,
    /// The variables that commands get: those of ENV and of ARG.
    pub(crate) env: Environment,
    /// The working directory.
    pub(crate) directory: String,
    /// Its image, so far.
    pub(crate) image: ImageConfig,
    /// The image that it was made from, as it was.
    pub(crate) base_image: Option<ImageConfig>,
    /// For which platform it is.
    pub(crate) platform: Platform,
    /// The build arguments that were declared, with their values.
    pub(crate) arguments: Vec<(String, Option<String>)>,
    /// There has been a WORKDIR in this Dockerfile.
    pub(crate) has_workdir: bool,
    /// The stage's CMD, ENTRYPOINT and HEALTHCHECK.
    pub(crate) once: Once,
    /// Names its vertices.
    pub(crate) names: Names,
    /// Its steps run although their results are known.
    pub(crate) ignore_cache: bool,
    /// The time of its history entries.
    pub(crate) epoch: Option<i64>,
}

/// Instructions of which only the last one of a stage counts: where the last one was.
#[derive(Clone, Debug, Default)]
pub(crate) struct Once {
    pub(crate) cmd: Option<Origin>,
    pub(crate) entrypoint: Option<Origin>,
    pub(crate) healthcheck: Option<Origin>,
}

impl StageState {
    /// Takes over from the image's config what commands of the stage see.
    pub(crate) fn begin(&mut self) {
        let config = &mut self.image.config;
        let has_path = config.env.iter().any(|pair| split_variable(pair).0 == "PATH");
        if !has_path && self.platform.os != "windows" {
            config.env.push(format!("PATH={}", crate::image_config::DEFAULT_PATH));
        }
        for pair in &config.env {
            let (name, value) = split_variable(pair);
            self.env.set(name, value);
        }
        if !config.working_dir.is_empty() {
            let current = config.working_dir.clone();
            self.enter(&current);
        }
    }

    /// Changes the working directory, and returns it, with slashes.
    pub(crate) fn enter(&mut self, directory: &str) -> String {
        let config = &mut self.image.config.working_dir;
        if self.platform.os == "windows" {
            let directory =
                path::absolute(&path::from_windows(config), &path::from_windows(directory));
            *config = directory.replace('/', "\\");
            self.directory = directory;
        } else {
            *config = path::absolute(config, directory);
            self.directory.clone_from(config);
        }
        self.directory.clone()
    }

    /// Notes in the image's history what was done.
    pub(crate) fn record(&mut self, what: String, with_layer: bool) {
        self.image.history.push(History {
            created: self.epoch.map(Timestamp::from_seconds),
            created_by: what,
            comment: COMMENT.into(),
            empty_layer: !with_layer,
            ..History::default()
        });
    }

    /// `owner`, unless it has a name and there is no file to look it up in.
    pub(crate) fn known_owner(&self, owner: Owner, span: Span) -> Result<Owner, Diagnostic> {
        if self.is_scratch { numbered(owner, span) } else { Ok(owner) }
    }

    /// The tree is now what `vertex` makes.
    pub(crate) fn advance(&mut self, vertex: VertexId) {
        self.vertex = vertex;
        self.is_scratch = false;
    }
}

/// Reads `user[:group]`. (BuildKit: `llb.WithUser`.)
pub(crate) fn owner(text: &str) -> Owner {
    let (user, group) = match text.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (text, None),
    };
    Owner { user: user_or_group(user), group: group.map(user_or_group) }
}

/// `owner`, unless it has a name: in an empty tree no file says what number that is.
pub(crate) fn numbered(owner: Owner, span: Span) -> Result<Owner, Diagnostic> {
    let is_name = |name: &Name| matches!(name, Name::Name(_));
    if is_name(&owner.user) || owner.group.as_ref().is_some_and(is_name) {
        let hint = "names are looked up in the stage's `/etc/passwd`; here there is none, so use a \
                    number";
        return Err(Diagnostic::error("invalid user index: -1", span).hint(hint));
    }
    Ok(owner)
}

fn user_or_group(text: &str) -> Name {
    match text.parse::<u32>() {
        _ if text == "root" => Name::Id(0),
        Ok(id) if i32::try_from(id).is_ok() => Name::Id(id),
        _ => Name::Name(text.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_owners() {
        let name = |name: &str| Name::Name(name.into());
        let check = |text: &str, user, group| assert_eq!(owner(text), Owner { user, group });
        check("1:2", Name::Id(1), Some(Name::Id(2)));
        check("root", Name::Id(0), None);
        check("daemon:", name("daemon"), Some(name("")));
        check("4294967295", name("4294967295"), None);
    }
}
