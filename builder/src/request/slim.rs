//! `--slim` and the flags around it, and the same settings where the image says them: directives at
//! the top of the Dockerfile and labels. What was typed counts more than a directive, and that more
//! than a label.

use std::collections::BTreeMap;
use std::path::PathBuf;

use rbuild_solver::graph::{SlimBase, SlimMode, SlimProbe};

use super::{UsageError, step};
use crate::cli::BuildArgs;

/// How long a probe may take unless it is said, in seconds.
pub const PROBE_TIMEOUT: u64 = 30;

/// What is asked of slimming. What is absent was not said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SlimSettings {
    /// Whether to slim, and how.
    pub mode: Option<SlimSwitch>,
    /// `--slim-probe`
    pub probe: Option<SlimProbe>,
    /// `--slim-probe-timeout` in seconds.
    pub probe_timeout: Option<u64>,
    /// `--slim-keep`
    pub keep: Vec<String>,
    /// `--slim-drop`
    pub drop: Vec<String>,
    /// `--slim-base`
    pub base: Option<SlimBase>,
    /// `--slim-user=nonroot`
    pub nonroot: Option<bool>,
}

/// `--slim`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SlimSwitch {
    /// Slim, as the image says.
    On,
    /// Slim, this way.
    Mode(SlimMode),
    /// Do not slim.
    Off,
}

/// What is asked of slimming on the command line.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SlimRequest {
    /// What an image can say too.
    pub settings: SlimSettings,
    /// `--slim-report`
    pub report: Option<PathBuf>,
    /// `--slim-strict`
    pub strict: bool,
    /// `--slim-max-size` in bytes.
    pub max_size: Option<u64>,
    /// `--slim-debug-image`
    pub debug_image: bool,
}

impl SlimRequest {
    /// What `arguments` ask for.
    pub(super) fn new(arguments: &BuildArgs) -> Result<Self, UsageError> {
        let mut settings = SlimSettings::default();
        let mut set = |flag, value: Option<&str>, name| match value {
            Some(value) => settings.set(flag, name, value),
            None => Ok(()),
        };
        set("--slim", arguments.slim.as_deref(), "slim")?;
        set("--slim-probe", arguments.slim_probe.as_deref(), "slim-probe")?;
        let timeout = arguments.slim_probe_timeout.as_deref();
        set("--slim-probe-timeout", timeout, "slim-probe-timeout")?;
        set("--slim-base", arguments.slim_base.as_deref(), "slim-base")?;
        set("--slim-user", arguments.slim_user.as_deref(), "slim-user")?;
        settings.keep.clone_from(&arguments.slim_keep);
        settings.drop.clone_from(&arguments.slim_drop);
        let max_size = arguments.slim_max_size.as_deref();
        Ok(Self {
            settings,
            report: arguments.slim_report.clone(),
            strict: arguments.slim_strict,
            max_size: max_size.map(|text| step::bytes("--slim-max-size", text)).transpose()?,
            debug_image: arguments.slim_debug_image,
        })
    }

    /// A flag that was given and says nothing unless something is slimmed.
    pub fn needs_slim(&self) -> Option<&'static str> {
        let settings = &self.settings;
        let given = [
            (settings.probe.is_some(), "--slim-probe"),
            (settings.probe_timeout.is_some(), "--slim-probe-timeout"),
            (!settings.keep.is_empty(), "--slim-keep"),
            (!settings.drop.is_empty(), "--slim-drop"),
            (settings.base.is_some(), "--slim-base"),
            (settings.nonroot.is_some(), "--slim-user"),
            (self.report.is_some(), "--slim-report"),
            (self.strict, "--slim-strict"),
            (self.max_size.is_some(), "--slim-max-size"),
            (self.debug_image, "--slim-debug-image"),
        ];
        given.into_iter().find(|(given, _)| *given).map(|(_, flag)| flag)
    }
}

impl SlimSettings {
    /// Takes the setting `name`, which is called so in directives; `said` is how it was said.
    pub fn set(&mut self, said: &'static str, name: &str, value: &str) -> Result<(), UsageError> {
        let wrong = |reason: &str| UsageError::value(said, value, reason);
        match name {
            "slim" => {
                self.mode = Some(
                    switch(value).ok_or_else(|| wrong("expected auto, closure, trace or off"))?,
                );
            }
            "slim-probe" => self.probe = Some(probe(value).map_err(|reason| wrong(&reason))?),
            "slim-probe-timeout" => {
                let seconds =
                    seconds(value).ok_or_else(|| wrong("expected a time, such as 30s"))?;
                self.probe_timeout = Some(seconds);
            }
            "slim-keep" => self.keep.extend(words(value)),
            "slim-drop" => self.drop.extend(words(value)),
            "slim-base" => {
                self.base = Some(match value {
                    "none" => SlimBase::None,
                    "certs" => SlimBase::Certs,
                    "full" => SlimBase::Full,
                    _ => return Err(wrong("expected none, certs or full")),
                });
            }
            "slim-user" => match value {
                "nonroot" => self.nonroot = Some(true),
                "" | "keep" => self.nonroot = Some(false),
                _ => return Err(wrong("expected nonroot")),
            },
            _ => return Err(UsageError::value(said, name, "there is no such setting")),
        }
        Ok(())
    }

    /// What the labels of an image say: `rbuild.slim=off`, `rbuild.slim.keep=/opt/**`, ….
    pub fn of_labels(labels: &BTreeMap<String, String>) -> Result<Self, UsageError> {
        let mut settings = Self::default();
        for (label, value) in labels {
            let name = match label.strip_prefix("rbuild.slim") {
                Some("") => "slim".to_owned(),
                Some(rest) if rest.starts_with('.') => format!("slim-{}", &rest[1..]),
                _ => continue,
            };
            settings.set("LABEL rbuild.slim", &name, value)?;
        }
        Ok(settings)
    }

    /// These settings, and where they say nothing those of `other`. Patterns of both count.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        Self {
            mode: match (self.mode, other.mode) {
                (Some(SlimSwitch::On), Some(theirs)) => Some(theirs),
                (ours, theirs) => ours.or(theirs),
            },
            probe: self.probe.or(other.probe),
            probe_timeout: self.probe_timeout.or(other.probe_timeout),
            keep: [self.keep, other.keep].concat(),
            drop: [self.drop, other.drop].concat(),
            base: self.base.or(other.base),
            nonroot: self.nonroot.or(other.nonroot),
        }
    }
}

fn switch(text: &str) -> Option<SlimSwitch> {
    Some(match text {
        "" | "true" | "on" => SlimSwitch::On,
        "auto" => SlimSwitch::Mode(SlimMode::Auto),
        "closure" => SlimSwitch::Mode(SlimMode::Closure),
        "trace" => SlimSwitch::Mode(SlimMode::Trace),
        "off" | "false" => SlimSwitch::Off,
        _ => return None,
    })
}

/// `http:8080/health,/login`, or a command for the shell.
fn probe(text: &str) -> Result<SlimProbe, String> {
    let Some(rest) = text.strip_prefix("http:") else {
        if text.trim().is_empty() {
            return Err("expected a command, or http:PORT/PATH,/PATH".into());
        }
        return Ok(SlimProbe::Command(vec!["/bin/sh".into(), "-c".into(), text.to_owned()]));
    };
    let (port, paths) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let port: u16 = port
        .parse()
        .ok()
        .filter(|port| *port != 0)
        .ok_or_else(|| format!("`{port}` is no port; expected http:PORT/PATH,/PATH"))?;
    let mut all = Vec::new();
    for path in paths.split(',').filter(|path| !path.is_empty()) {
        if !path.starts_with('/') || path.contains(|c: char| c.is_ascii_control() || c == ' ') {
            return Err(format!("`{path}` is no path; expected http:PORT/PATH,/PATH"));
        }
        all.push(path.to_owned());
    }
    if all.is_empty() {
        all.push("/".into());
    }
    Ok(SlimProbe::Http { port, paths: all })
}

/// `30s`, `2m`, `45`: whole seconds, at least one.
fn seconds(text: &str) -> Option<u64> {
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit())?);
    let factor = match unit {
        "s" => 1,
        "m" => 60,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(factor)
}

/// Patterns in one text: separated by commas or white space.
fn words(text: &str) -> impl Iterator<Item = String> {
    text.split([',', ' ', '\t', '\n']).filter(|word| !word.is_empty()).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probes() {
        let check = |text: &str, expected: Option<SlimProbe>| {
            assert_eq!(probe(text).ok(), expected, "{text}");
        };
        let http = |port, paths: &[&str]| {
            let paths = paths.iter().map(|path| (*path).to_owned()).collect();
            Some(SlimProbe::Http { port, paths })
        };
        check("http:8080/health,/login", http(8080, &["/health", "/login"]));
        check("http:80", http(80, &["/"]));
        check("http:no/x", None);
        check("http:0/", None);
        check("http:80/a,b", None);
        let command = vec!["/bin/sh".into(), "-c".into(), "curl -f localhost".into()];
        check("curl -f localhost", Some(SlimProbe::Command(command)));
        check(" ", None);
    }

    #[test]
    fn times() {
        let check = |text: &str, expected: Option<u64>| assert_eq!(seconds(text), expected);
        check("30s", Some(30));
        check("2m", Some(120));
        check("x", None);
        check("1h30", None);
    }

    #[test]
    fn what_was_typed_counts_more_than_what_the_image_says() {
        let labels = [
            ("rbuild.slim", "off"),
            ("rbuild.slim.keep", "/opt/plugins/**, /srv/x"),
            ("rbuild.slim.base", "none"),
            ("rbuild.slimmer", "x"),
        ];
        let labels = labels.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        let of_labels = SlimSettings::of_labels(&labels).unwrap();
        assert_eq!(of_labels.keep, ["/opt/plugins/**", "/srv/x"]);
        let typed = |mode| SlimSettings {
            mode: Some(mode),
            keep: vec!["/a".into()],
            base: Some(SlimBase::Full),
            ..SlimSettings::default()
        };
        let both = typed(SlimSwitch::On).or(of_labels.clone());
        assert_eq!(both.mode, Some(SlimSwitch::Off), "`--slim` alone is as the image says");
        assert_eq!(both.keep, ["/a", "/opt/plugins/**", "/srv/x"]);
        assert_eq!(both.base, Some(SlimBase::Full));
        let both = typed(SlimSwitch::Mode(SlimMode::Closure)).or(of_labels);
        assert_eq!(both.mode, Some(SlimSwitch::Mode(SlimMode::Closure)));
        let wrong = [("rbuild.slim.colour".to_owned(), "red".to_owned())].into();
        assert!(SlimSettings::of_labels(&wrong).is_err());
    }
}
