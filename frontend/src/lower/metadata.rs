//! Instructions that change the image's config, or say what commands see, and make no layer; and
//! WORKDIR, which makes a directory.
//!
//! Follows `dispatchEnv` and its siblings in BuildKit's `dockerfile2llb/convert.go`. The texts that
//! go into the history are BuildKit's, to the letter.

use rbuild_solver::graph::{FileAction, FileOp, Mkdir, Op};

use super::state::{StageState, owner};
use super::{Lowering, NOT_IN_ENVIRONMENT, go_format, name, path, ports, report_undefined, signal};
use crate::check;
use crate::diagnostic::Diagnostic;
use crate::expand::Env as _;
use crate::image_config::HealthcheckConfig;
use crate::instruction::{Arg, CommandLine, Healthcheck, Onbuild, Pair};
use crate::source::Text;
use crate::syntax::Origin;

type Done = Result<(), Diagnostic>;

/// The command line that runs `line` in the image's shell.
pub(super) fn in_shell(state: &StageState, line: &str) -> Vec<String> {
    let shell = &state.image.config.shell;
    let mut args = match (shell.is_empty(), state.image.os.as_str()) {
        (false, _) => shell.clone(),
        (true, "windows") => vec!["cmd".into(), "/S".into(), "/C".into()],
        (true, _) => vec!["/bin/sh".into(), "-c".into()],
    };
    args.push(line.to_owned());
    args
}

fn values(texts: &[Text]) -> Vec<String> {
    texts.iter().map(|text| text.value.clone()).collect()
}

pub(super) fn maintainer(state: &mut StageState, name: &Text) {
    state.image.author.clone_from(&name.value);
    state.record(format!("MAINTAINER {}", name.value), false);
}

pub(super) fn onbuild(state: &mut StageState, onbuild: &Onbuild) {
    state.image.config.on_build.push(onbuild.expression.clone());
}

pub(super) fn shell(state: &mut StageState, words: &[Text]) {
    let words = values(words);
    state.record(format!("SHELL {}", go_format::list(&words)), false);
    state.image.config.shell = words;
}

pub(super) fn stop_signal(state: &mut StageState, text: &Text) -> Done {
    if !signal::is_signal(&text.value) {
        return Err(Diagnostic::error(format!("invalid signal: {}", text.value), text.span));
    }
    state.image.config.stop_signal.clone_from(&text.value);
    state.record(format!("STOPSIGNAL {}", text.value), false);
    Ok(())
}

pub(super) fn user(state: &mut StageState, user: &Text) {
    state.image.config.user.clone_from(&user.value);
    state.record(format!("USER {}", user.value), false);
}

pub(super) fn volume(state: &mut StageState, paths: &[Text]) -> Done {
    if let Some(empty) = paths.iter().find(|path| path.value.is_empty()) {
        let message = "VOLUME specified can not be an empty string";
        return Err(Diagnostic::error(message, empty.span));
    }
    let paths = values(paths);
    state.record(format!("VOLUME {}", go_format::list(&paths)), false);
    state.image.config.volumes.extend(paths);
    Ok(())
}

impl Lowering<'_> {
    pub(super) fn env(&mut self, state: &mut StageState, origin: &Origin, pairs: &[Pair]) {
        check::legacy_key_value_format(self.checks, origin, pairs);
        let mut words = vec![String::from("ENV")];
        for pair in pairs {
            let (name, value) = (pair.name.as_str(), pair.value.as_str());
            check::secrets_in_arg_or_env(self.checks, origin, "ENV", name);
            words.push(format!("{name}={value}"));
            // A variable that the commands do not know is not in the config either.
            if state.env.get(name).is_some() {
                state.image.config.set_env(name, value);
            } else {
                state.image.config.env.push(format!("{name}={value}"));
            }
            state.env.set(name, value);
        }
        state.record(words.join(" "), false);
    }

    pub(super) fn label(&mut self, state: &mut StageState, origin: &Origin, pairs: &[Pair]) {
        check::legacy_key_value_format(self.checks, origin, pairs);
        let mut words = vec![String::from("LABEL")];
        for pair in pairs {
            let (name, value) = (pair.name.value.clone(), pair.value.value.clone());
            words.push(format!("{name}={value}"));
            state.image.config.labels.insert(name, value);
        }
        state.record(words.join(" "), false);
    }

    /// The value of a build argument is the one that was given, otherwise the default, otherwise
    /// that of the argument before the first FROM.
    pub(super) fn arg(&mut self, state: &mut StageState, origin: &Origin, arg: &Arg) -> Done {
        let mut declared = Vec::new();
        for declaration in &arg.declarations {
            let name = declaration.name.as_str();
            check::secrets_in_arg_or_env(self.checks, origin, "ARG", name);
            let inherited = self.options.build_arg(name).is_none()
                && declaration.default.is_none()
                && self.plan.globals.get(name).is_some();
            let value = match (self.options.build_arg(name), &declaration.default) {
                (Some(given), _) => Some(given.to_owned()),
                (None, Some(default)) => {
                    let expansion = self.lexer.expand_text(default, &state.env)?;
                    for name in &expansion.unmatched {
                        report_undefined(self.checks, state, origin, name);
                    }
                    Some(expansion.result)
                }
                (None, None) => self.plan.globals.get(name).map(str::to_owned),
            };
            if let Some(value) = value.as_deref().filter(|_| !NOT_IN_ENVIRONMENT.contains(&name)) {
                state.env.set(name, value);
            }
            let outline = &mut self.outlines[state.index];
            outline.uses(name);
            if !inherited {
                outline.declare(declaration, value.as_deref(), origin.span);
            }
            declared.push(match &value {
                Some(value) => format!("{name}={value}"),
                None => name.to_owned(),
            });
            state.arguments.push((name.to_owned(), value));
        }
        state.record(format!("ARG {}", declared.join(" ")), false);
        Ok(())
    }

    pub(super) fn cmd(&mut self, state: &mut StageState, origin: &Origin, command: &CommandLine) {
        if let Some(earlier) = state.once.cmd.replace(origin.clone()) {
            check::multiple_instructions(self.checks, &earlier, origin);
        }
        let args = self.args(state, origin, command);
        state.record(format!("CMD {}", go_format::quoted_list(&args)), false);
        state.image.config.cmd = args;
        state.image.config.args_escaped = true;
    }

    /// ENTRYPOINT drops the base's CMD, which was meant for the base's ENTRYPOINT.
    pub(super) fn entrypoint(
        &mut self,
        state: &mut StageState,
        origin: &Origin,
        command: &CommandLine,
    ) {
        if let Some(earlier) = state.once.entrypoint.replace(origin.clone()) {
            check::multiple_instructions(self.checks, &earlier, origin);
        }
        let args = self.args(state, origin, command);
        state.record(format!("ENTRYPOINT {}", go_format::quoted_list(&args)), false);
        state.image.config.entrypoint = args;
        if state.once.cmd.is_none() {
            state.image.config.cmd.clear();
        }
    }

    fn args(&mut self, state: &StageState, origin: &Origin, command: &CommandLine) -> Vec<String> {
        match command {
            CommandLine::Exec(words) => values(words),
            CommandLine::Shell(line) => {
                if state.image.config.shell.is_empty() {
                    check::json_args_recommended(self.checks, origin);
                }
                in_shell(state, &line.value)
            }
        }
    }

    pub(super) fn healthcheck(
        &mut self,
        state: &mut StageState,
        origin: &Origin,
        check: &Healthcheck,
    ) {
        if let Some(earlier) = state.once.healthcheck.replace(origin.clone()) {
            check::multiple_instructions(self.checks, &earlier, origin);
        }
        let config = healthcheck_config(check);
        let what = format!(
            "HEALTHCHECK {{Test:{} Interval:{} Timeout:{} StartPeriod:{} StartInterval:{} Retries:{}}}",
            go_format::list(&config.test),
            go_format::duration(config.interval),
            go_format::duration(config.timeout),
            go_format::duration(config.start_period),
            go_format::duration(config.start_interval),
            config.retries,
        );
        state.record(what, false);
        state.image.config.healthcheck = Some(config);
    }

    pub(super) fn expose(
        &mut self,
        state: &mut StageState,
        origin: &Origin,
        words: &[Text],
    ) -> Done {
        let mut exposed = Vec::new();
        for text in words {
            let words = self.lexer.words(&text.value, &state.env);
            for word in words.map_err(|error| error.at(text.span))? {
                let protocol = word.split_once('/').map_or("", |(_, protocol)| protocol);
                if protocol != protocol.to_lowercase() {
                    check::expose_proto_casing(self.checks, origin, &word);
                }
                if ports::is_mapping(&word) {
                    check::expose_invalid_format(self.checks, origin, &word);
                }
                let wrong = |message| Diagnostic::error(message, text.span);
                exposed.extend(ports::parse(&word).map_err(wrong)?);
            }
        }
        state.record(format!("EXPOSE {}", go_format::list(&exposed)), false);
        state.image.config.exposed_ports.extend(exposed);
        Ok(())
    }

    /// The directory is made at once, for the current user; the root needs no making.
    pub(super) fn workdir(&mut self, state: &mut StageState, origin: &Origin, text: &Text) -> Done {
        if !state.has_workdir && !text.value.starts_with('/') {
            check::workdir_relative_path(self.checks, origin, &text.value);
        }
        state.has_workdir = true;
        let directory = state.enter(&text.value);
        let makes_it = directory != "/";
        if makes_it {
            let user = Some(state.image.config.user.as_str()).filter(|user| !user.is_empty());
            let owner = match user {
                Some(user) => Some(state.known_owner(owner(user), origin.span)?),
                None => None,
            };
            let action = FileAction::Mkdir(Mkdir {
                path: path::clean(&directory),
                mode: 0o755,
                parents: true,
                owner,
                time: self.epoch,
            });
            let text = name::shown(&origin.text, self.lexer, &state.env);
            let name = state.names.next(&text, &state.platform, &state.env);
            let op = Op::File(FileOp { actions: vec![action] });
            let vertex = self.add(op, name, origin, false, &[state.vertex]);
            state.advance(vertex);
        }
        state.record(format!("WORKDIR {directory}"), makes_it);
        Ok(())
    }
}

fn healthcheck_config(check: &Healthcheck) -> HealthcheckConfig {
    let Healthcheck::Command(check) = check else {
        return HealthcheckConfig { test: vec!["NONE".into()], ..HealthcheckConfig::default() };
    };
    let mut test = match &check.command {
        CommandLine::Shell(line) => vec!["CMD-SHELL".to_owned(), line.value.clone()],
        CommandLine::Exec(words) => values(words),
    };
    if matches!(check.command, CommandLine::Exec(_)) {
        test.insert(0, "CMD".into());
    }
    let nanoseconds = |time: Option<std::time::Duration>| {
        i64::try_from(time.unwrap_or_default().as_nanos()).unwrap_or(i64::MAX)
    };
    HealthcheckConfig {
        test,
        interval: nanoseconds(check.interval),
        timeout: nanoseconds(check.timeout),
        start_period: nanoseconds(check.start_period),
        start_interval: nanoseconds(check.start_interval),
        retries: i64::from(check.retries),
    }
}
