//! What every command knows: where the state is, how progress is shown, what the user configured.

use std::path::PathBuf;
use std::time::SystemTime;

use rbuild_cache::snapshot::SnapshotterKind;

use super::{EngineSettings, Environment, UsageError};
use crate::cli::GlobalArgs;
use crate::config::Config;
use crate::registry::RegistrySettings;

/// What every command knows.
#[derive(Clone, Debug)]
#[allow(clippy::struct_excessive_bools, reason = "each says something of its own")]
pub struct Settings {
    /// The state folder; it need not exist.
    pub state_folder: PathBuf,
    /// How trees are put together for steps: by overlayfs, unless the machine cannot.
    pub snapshotter: SnapshotterKind,
    /// Where the registry client finds what the user configured.
    pub registry: RegistrySettings,
    /// Where container engines listen.
    pub engine: EngineSettings,
    /// `$TMPDIR`, or `/tmp`.
    pub temporary: PathBuf,
    /// How progress is shown; never [`ProgressMode::Auto`].
    pub progress: ProgressMode,
    /// Whether stderr shows colours.
    pub colors: bool,
    /// Whether stderr shows more than ASCII, as far as the locale says.
    pub unicode: bool,
    /// What `config.toml` says.
    pub config: Config,
    /// When rbuild began.
    pub now: SystemTime,
    /// Whether rbuild runs as root.
    pub root: bool,
    /// Developers are told what happens: `--debug`.
    pub debug: bool,
}

/// How progress is shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ProgressMode {
    /// `tty` on a terminal, otherwise `plain`.
    #[default]
    Auto,
    /// A line per event.
    Plain,
    /// A live view.
    Tty,
    /// JSON, an event a line.
    RawJson,
    /// Nothing but the image's ID.
    Quiet,
}

impl Settings {
    /// What `global` and `environment` say; `progress` is a build's `--progress`.
    pub fn new(
        global: &GlobalArgs,
        progress: Option<&str>,
        environment: &Environment,
    ) -> Result<Self, UsageError> {
        let home = environment.path("HOME");
        let state_folder = global
            .root
            .clone()
            .or_else(|| environment.path("RBUILD_ROOT"))
            .or_else(|| environment.root.then(|| PathBuf::from("/var/lib/rbuild")))
            .or_else(|| Some(environment.path("XDG_DATA_HOME")?.join("rbuild")))
            .or_else(|| Some(home?.join(".local/share/rbuild")))
            .ok_or(UsageError::NoStateFolder)?;
        Ok(Self {
            state_folder,
            snapshotter: SnapshotterKind::default(),
            registry: RegistrySettings::from_environment(|name| {
                environment.variables.get(std::ffi::OsStr::new(name)).cloned()
            }),
            engine: EngineSettings::new(environment),
            temporary: environment.path("TMPDIR").unwrap_or_else(|| "/tmp".into()),
            progress: progress_mode(progress, environment)?,
            colors: environment.shows_colors(),
            unicode: ["LC_ALL", "LC_CTYPE", "LANG"]
                .iter()
                .find_map(|name| environment.text(name).filter(|value| !value.is_empty()))
                .is_none_or(|locale| locale.to_ascii_lowercase().replace('-', "").contains("utf8"))
                && environment.text("TERM") != Some("linux"),
            config: Config::read(environment)?,
            now: environment.now,
            root: environment.root,
            debug: global.debug,
        })
    }
}

fn progress_mode(
    flag: Option<&str>,
    environment: &Environment,
) -> Result<ProgressMode, UsageError> {
    const REASON: &str = "expected auto, plain, tty, rawjson or quiet";
    let mode = |name: &str| match name {
        "" | "auto" => Some(ProgressMode::Auto),
        "plain" => Some(ProgressMode::Plain),
        "tty" => Some(ProgressMode::Tty),
        "rawjson" => Some(ProgressMode::RawJson),
        "quiet" | "none" => Some(ProgressMode::Quiet),
        _ => None,
    };
    let flag = flag.unwrap_or_default();
    let asked = mode(flag).ok_or_else(|| UsageError::value("--progress", flag, REASON))?;
    let variable = environment.text("BUILDKIT_PROGRESS").unwrap_or_default();
    let asked = match asked {
        ProgressMode::Auto => mode(variable).ok_or_else(|| UsageError::Variable {
            name: "BUILDKIT_PROGRESS",
            value: variable.to_owned(),
            reason: REASON.into(),
        })?,
        named => named,
    };
    let live = environment.stderr_is_terminal && environment.text("TERM") != Some("dumb");
    match asked {
        ProgressMode::Auto if live => Ok(ProgressMode::Tty),
        ProgressMode::Auto => Ok(ProgressMode::Plain),
        ProgressMode::Tty if !environment.stderr_is_terminal => {
            Err(UsageError::value("--progress", "tty", "stderr is not a terminal"))
        }
        named => Ok(named),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_follows_flag_then_environment_then_terminal() {
        let mode = |typed: &str, variables: &[(&str, &str)], terminal: bool| {
            let mut environment = Environment::with_variables(variables);
            environment.stderr_is_terminal = terminal;
            let flag = (!typed.is_empty()).then_some(typed);
            progress_mode(flag, &environment)
        };
        assert_eq!(mode("", &[], false), Ok(ProgressMode::Plain));
        assert_eq!(mode("", &[], true), Ok(ProgressMode::Tty));
        assert_eq!(mode("", &[("TERM", "dumb")], true), Ok(ProgressMode::Plain));
        assert_eq!(mode("", &[("BUILDKIT_PROGRESS", "rawjson")], true), Ok(ProgressMode::RawJson));
        assert_eq!(mode("plain", &[("BUILDKIT_PROGRESS", "tty")], true), Ok(ProgressMode::Plain));
        assert!(mode("tty", &[], false).is_err());
        assert!(mode("fancy", &[], false).is_err());
        assert!(mode("", &[("BUILDKIT_PROGRESS", "fancy")], false).is_err());
    }

    #[test]
    fn the_state_folder_follows_root_then_the_environment() {
        let folder = |variables: &[(&str, &str)], root: bool| {
            let mut environment = Environment::with_variables(variables);
            environment.root = root;
            let settings = Settings::new(&GlobalArgs::default(), None, &environment);
            settings.map(|settings| settings.state_folder.display().to_string())
        };
        assert_eq!(folder(&[("HOME", "/h")], false).unwrap(), "/h/.local/share/rbuild");
        assert_eq!(folder(&[("HOME", "/h"), ("XDG_DATA_HOME", "/d")], false).unwrap(), "/d/rbuild");
        assert_eq!(folder(&[("HOME", "/h")], true).unwrap(), "/var/lib/rbuild");
        assert_eq!(folder(&[("RBUILD_ROOT", "/s")], true).unwrap(), "/s");
        assert_eq!(folder(&[], false), Err(UsageError::NoStateFolder));
    }
}
