//! `RUN [--mount=…] [--network=…] [--security=…] [--device=…] command`.

use rbuild_solver::graph::{CacheSharing, Device, NetworkMode, SecurityMode};

use super::{CommandLine, Expander};
use crate::amount::bytes;
use crate::check::parse_bool;
use crate::diagnostic::{Diagnostic, Diagnostics, all, did_you_mean};
use crate::quote::Quoted;
use crate::source::{Span, Text};
use crate::syntax::flag::{Flags, Kind};
use crate::syntax::{BareInstruction, Heredoc, csv};

/// A command that is run while building.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// What to run.
    pub command: CommandLine,
    /// Here-documents that the command's line names. Their content is the shell's to expand.
    pub heredocs: Vec<Heredoc>,
    /// The values of `--mount`, as they were written; [`Self::mounts`] reads them.
    pub mount_flags: Vec<Text>,
    /// What the mounts are `from`, each once, as they were written: variables are refused in them.
    pub mount_sources: Vec<Text>,
    /// `--network`
    pub network: NetworkMode,
    /// `--security`
    pub security: SecurityMode,
    /// `--device`
    pub devices: Vec<Device>,
}

/// What kind of thing a [`Mount`] mounts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MountType {
    /// A path of the context, of a stage or of an image.
    #[default]
    Bind,
    /// A folder that outlives the build.
    Cache,
    /// Memory.
    Tmpfs,
    /// A secret of the caller.
    Secret,
    /// The caller's SSH agent.
    Ssh,
}

/// One `--mount`, with its variables expanded.
///
/// Which options go together is checked already; what an absent one stands for is not decided.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mount {
    /// `type`
    pub kind: MountType,
    /// `from`: a stage, an image or a named context.
    pub from: Option<String>,
    /// `source`
    pub source: Option<String>,
    /// `target`
    pub target: Option<String>,
    /// `readonly` or `readwrite`, or what is usual for the type.
    pub read_only: bool,
    /// `size` of a tmpfs, in bytes.
    pub size: Option<u64>,
    /// `id` of a cache, a secret or an agent.
    pub id: Option<String>,
    /// `sharing` of a cache.
    pub sharing: Option<CacheSharing>,
    /// `required`: without the secret or the agent the step fails.
    pub required: bool,
    /// `env`: the variable that a secret is put into; empty for a name derived from its id.
    pub env: Option<String>,
    /// `mode`
    pub mode: Option<u32>,
    /// `uid`
    pub uid: Option<u32>,
    /// `gid`
    pub gid: Option<u32>,
    /// The whole value of the flag.
    pub flag: Text,
}

impl Run {
    pub(super) fn parse(bare: &BareInstruction) -> Result<Self, Diagnostics> {
        let flags = Flags::check(
            &bare.flags,
            &[
                ("device", Kind::Repeated),
                ("mount", Kind::Repeated),
                ("network", Kind::Single),
                ("security", Kind::Single),
            ],
        )?;
        let mut wrong = Diagnostics::default();
        let devices = wrong.keep(all(flags.texts("device").iter().map(device)));
        let mount_flags = flags.texts("mount");
        let mut mount_sources: Vec<Text> = Vec::new();
        let sources = wrong.keep(all(mount_flags.iter().map(mount_source)));
        for source in sources.into_iter().flatten() {
            let known = |known: &Text| source.as_ref().is_none_or(|new| known.value == new.value);
            if !mount_sources.iter().any(known) {
                mount_sources.extend(source);
            }
        }
        let network = flags.single("network").map_or(Ok(NetworkMode::default()), network);
        let security = flags.single("security").map_or(Ok(SecurityMode::default()), security);
        let (network, security) = (wrong.keep(network), wrong.keep(security));
        let command = wrong.keep(CommandLine::read(bare.arguments()));
        let whole = |command| {
            Some(Self {
                command,
                heredocs: bare.heredocs.clone(),
                mount_flags,
                mount_sources,
                network: network?,
                security: security?,
                devices: devices?,
            })
        };
        wrong.unless_wrong(command.and_then(whole))
    }

    /// The mounts, with variables in their options expanded.
    pub fn mounts(&self, expander: &mut Expander<'_>) -> Result<Vec<Mount>, Diagnostic> {
        self.mount_flags.iter().map(|flag| Mount::parse(flag, expander)).collect()
    }
}

/// What the mount that `flag` asks for is `from`.
fn mount_source(flag: &Text) -> Result<Option<Text>, Diagnostic> {
    let mut source = None;
    for field in fields(flag, "mounts")? {
        let Some((key, value)) = field.value.split_once('=') else { continue };
        if !key.eq_ignore_ascii_case("from") {
            continue;
        }
        if value.find('$').is_some_and(|at| at + 1 != value.len()) {
            let message = "'from' doesn't support variable expansion, define alias stage instead";
            return Err(Diagnostic::error(message, field.span)
                .hint("`FROM $IMAGE AS name` before this stage, and `from=name` here"));
        }
        source = Some(Text::new(value.to_owned(), field.span)).filter(|_| !value.is_empty());
    }
    Ok(source)
}

fn network(flag: &Text) -> Result<NetworkMode, Diagnostic> {
    match flag.as_str() {
        "default" => Ok(NetworkMode::Default),
        "none" => Ok(NetworkMode::None),
        "host" => Ok(NetworkMode::Host),
        other => {
            let message = format!("invalid network mode {}", Quoted(other));
            Err(suggest(message, flag.span, other, &["default", "none", "host"]))
        }
    }
}

fn security(flag: &Text) -> Result<SecurityMode, Diagnostic> {
    match flag.as_str() {
        "sandbox" => Ok(SecurityMode::Sandbox),
        "insecure" => Ok(SecurityMode::Insecure),
        other => {
            let message = format!("security {} is not valid", Quoted(other));
            Err(suggest(message, flag.span, other, &["sandbox", "insecure"]))
        }
    }
}

/// The device that `flag` asks for: its name, `name=…` or alone, and `required`.
fn device(flag: &Text) -> Result<Device, Diagnostic> {
    let mut device = Device { name: String::new(), required: false };
    for Text { value: field, span } in fields(flag, "devices")? {
        let wrong = |message: String| Err(Diagnostic::error(message, span));
        let (key, value) = match field.split_once('=') {
            Some((key, value)) => (key.to_lowercase(), Some(value)),
            None => (field.to_lowercase(), None),
        };
        match (key.as_str(), value) {
            ("required", None) => device.required = true,
            ("required", Some(value)) => match parse_bool(value) {
                Some(required) => device.required = required,
                None => return wrong(format!("invalid value for required: {value}")),
            },
            ("name", Some(value)) if device.name.is_empty() => value.clone_into(&mut device.name),
            ("name", Some(_)) => {
                return wrong(format!("device name already set to {}", device.name));
            }
            _ if device.name.is_empty() => device.name = field,
            (_, None) => {
                return wrong(format!("invalid field '{field}' must be a key=value pair"));
            }
            (key, Some(_)) => {
                let message = format!("unexpected key '{key}' in '{field}'");
                return Err(suggest(message, span, key, &["name", "required"]));
            }
        }
    }
    Ok(device)
}

impl MountType {
    const ALL: [(&str, Self); 5] = [
        ("bind", Self::Bind),
        ("cache", Self::Cache),
        ("tmpfs", Self::Tmpfs),
        ("secret", Self::Secret),
        ("ssh", Self::Ssh),
    ];

    /// Its name, as it stands behind `type=`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Bind => "bind",
            Self::Cache => "cache",
            Self::Tmpfs => "tmpfs",
            Self::Secret => "secret",
            Self::Ssh => "ssh",
        }
    }
}

/// The options of a mount, as they are suggested for misspelt ones.
const MOUNT_KEYS: [&str; 19] = [
    "type",
    "from",
    "source",
    "target",
    "readonly",
    "id",
    "sharing",
    "required",
    "size",
    "mode",
    "uid",
    "gid",
    "src",
    "dst",
    "destination",
    "ro",
    "rw",
    "readwrite",
    "env",
];

impl Mount {
    fn parse(flag: &Text, expander: &mut Expander<'_>) -> Result<Self, Diagnostic> {
        let mut mount = Self { flag: flag.clone(), ..Self::default() };
        let mut read_only = None;
        for field in fields(flag, "mounts")? {
            mount.set(&field, &mut read_only, expander)?;
        }
        mount.read_only =
            read_only.unwrap_or(!matches!(mount.kind, MountType::Cache | MountType::Tmpfs));
        mount.check().map_err(|message| Diagnostic::error(message, flag.span))?;
        Ok(mount)
    }

    /// Sets the option that `field` is. What `required` and `size` mean hangs on the type, which
    /// must stand before them.
    fn set(
        &mut self,
        field: &Text,
        read_only: &mut Option<bool>,
        expander: &mut Expander<'_>,
    ) -> Result<(), Diagnostic> {
        let wrong = |message: String| Err(Diagnostic::error(message, field.span));
        let kind = self.kind.name();
        let misplaced =
            |key: &str| wrong(format!("unexpected key '{key}' for mount type '{kind}'"));
        let may_be_required = matches!(self.kind, MountType::Secret | MountType::Ssh);
        let Some((key, value)) = field.value.split_once('=') else {
            match field.value.to_lowercase().as_str() {
                "readonly" | "ro" => *read_only = Some(true),
                "readwrite" | "rw" => *read_only = Some(false),
                "required" if may_be_required => self.required = true,
                "required" => return misplaced("required"),
                _ => {
                    let field = field.as_str();
                    return wrong(format!("invalid field '{field}' must be a key=value pair"));
                }
            }
            return Ok(());
        };
        let key = key.to_lowercase();
        let value = expander(&field.with(value))?;
        let boolean = || parse_bool(&value).ok_or(format!("invalid value for {key}: {value}"));
        let number =
            |radix| number(&value, radix).ok_or(format!("invalid value {value} for {key}"));
        let outcome = match key.as_str() {
            "type" => return self.set_type(&value, field.span),
            "sharing" => return self.set_sharing(&value, field.span),
            "from" => set(&mut self.from, Ok(value)),
            "source" | "src" => set(&mut self.source, Ok(value)),
            "target" | "dst" | "destination" => set(&mut self.target, Ok(value)),
            "id" => set(&mut self.id, Ok(value)),
            "env" => set(&mut self.env, Ok(value)),
            "readonly" | "ro" => set(read_only, boolean()),
            "readwrite" | "rw" => set(read_only, boolean().map(|writable| !writable)),
            "required" if may_be_required => boolean().map(|required| self.required = required),
            "size" if self.kind == MountType::Tmpfs => {
                set(&mut self.size, bytes(&value).ok_or(format!("invalid value for size: {value}")))
            }
            "required" | "size" => return misplaced(&key),
            "mode" => set(&mut self.mode, number(8)),
            "uid" => set(&mut self.uid, number(10)),
            "gid" => set(&mut self.gid, number(10)),
            _ => {
                let message = format!("unexpected key '{key}' in '{}'", field.value);
                return Err(suggest(message, field.span, &key, &MOUNT_KEYS));
            }
        };
        outcome.map_err(|message| Diagnostic::error(message, field.span))
    }

    fn set_type(&mut self, value: &str, span: Span) -> Result<(), Diagnostic> {
        let lower = value.to_lowercase();
        let Some((_, kind)) = MountType::ALL.iter().find(|(name, _)| *name == lower) else {
            let message = format!("unsupported mount type {}", Quoted(value));
            return Err(suggest(message, span, value, &MountType::ALL.map(|(name, _)| name)));
        };
        self.kind = *kind;
        Ok(())
    }

    fn set_sharing(&mut self, value: &str, span: Span) -> Result<(), Diagnostic> {
        self.sharing = Some(match value.to_lowercase().as_str() {
            "shared" => CacheSharing::Shared,
            "private" => CacheSharing::Private,
            "locked" => CacheSharing::Locked,
            _ => {
                let message = format!("unsupported sharing value {}", Quoted(value));
                return Err(suggest(message, span, value, &["shared", "private", "locked"]));
            }
        });
        Ok(())
    }

    /// Says which options do not go together.
    fn check(&self) -> Result<(), String> {
        let kind = self.kind.name();
        if matches!(self.kind, MountType::Bind | MountType::Tmpfs) {
            let owned = [("mode", self.mode), ("uid", self.uid), ("gid", self.gid)];
            if let Some((key, _)) = owned.iter().find(|(_, value)| value.is_some()) {
                return Err(format!("{key} not allowed for {} type mounts", Quoted(kind)));
            }
        }
        let given = |option: &Option<String>| option.as_ref().is_some_and(|text| !text.is_empty());
        if self.kind == MountType::Secret {
            if given(&self.from) {
                return Err("secret mount should not have a from".to_owned());
            }
            if self.sharing.is_some() {
                return Err("secret mount should not define sharing".to_owned());
            }
            if !given(&self.source) && !given(&self.target) && !given(&self.id) {
                return Err("invalid secret mount. one of source, target required".to_owned());
            }
            if given(&self.source) && given(&self.id) {
                return Err("both source and id can't be set".to_owned());
            }
        }
        if self.sharing.is_some() && self.kind != MountType::Cache {
            return Err(format!("invalid cache sharing set for {kind} mount"));
        }
        Ok(())
    }
}

fn set<T>(option: &mut Option<T>, value: Result<T, String>) -> Result<(), String> {
    *option = Some(value?);
    Ok(())
}

/// The comma-separated fields of `flag`, each where it was written as far as that is known.
fn fields(flag: &Text, plural: &str) -> Result<Vec<Text>, Diagnostic> {
    let fields = csv::fields(flag.as_str()).map_err(|error| {
        Diagnostic::error(format!("failed to parse csv {plural}: {error}"), flag.span)
    })?;
    // Quotes or escapes in the flag move what stands behind them.
    let moved = flag.span.end - flag.span.start != flag.value.len();
    let place = |(start, field): (usize, String)| {
        let start = flag.span.start + start;
        let span = if moved { flag.span } else { Span::new(start, start + field.len()) };
        Text::new(field, span)
    };
    Ok(fields.into_iter().map(place).collect())
}

fn suggest(message: String, span: Span, word: &str, options: &[&str]) -> Diagnostic {
    let diagnostic = Diagnostic::error(message, span);
    match did_you_mean(word, options.iter().copied()) {
        Some(meant) => diagnostic.label(format!("did you mean `{meant}`?")),
        None => diagnostic,
    }
}

fn number(text: &str, radix: u32) -> Option<u32> {
    u32::from_str_radix(text, radix).ok().filter(|_| !text.starts_with('+'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(text: &str) -> Result<Mount, String> {
        let flag = Text::new(text.to_owned(), Span::default());
        let mut expander = |text: &Text| Ok(text.value.replace("$V", "value"));
        Mount::parse(&flag, &mut expander).map_err(|diagnostic| diagnostic.message)
    }

    #[test]
    fn options_are_read_by_type() {
        let check = |text: &str, expected: Mount| {
            let flag = Text::new(text.to_owned(), Span::default());
            assert_eq!(mount(text), Ok(Mount { flag, ..expected }), "{text}");
        };
        let some = |text: &str| Some(text.to_owned());
        let bind = Mount { read_only: true, target: some("/a"), ..Mount::default() };
        check("target=/a", bind.clone());
        check("TYPE=Bind,dst=/a", bind.clone());
        check(
            "type=bind,destination=/a,source=$V,rw",
            Mount { source: some("value"), read_only: false, ..bind.clone() },
        );
        check("\"target=/a\",ro=0", Mount { read_only: false, ..bind });
        check(
            "type=cache,id=x,sharing=locked,mode=0755,uid=1,gid=2,from=a,ro",
            Mount {
                kind: MountType::Cache,
                id: some("x"),
                sharing: Some(CacheSharing::Locked),
                mode: Some(0o755),
                uid: Some(1),
                gid: Some(2),
                from: some("a"),
                read_only: true,
                ..Mount::default()
            },
        );
        let tmpfs = Mount { kind: MountType::Tmpfs, ..Mount::default() };
        check("type=tmpfs,size=1.5k", Mount { size: Some(1536), ..tmpfs });
        let secret = Mount { kind: MountType::Secret, read_only: true, ..Mount::default() };
        check(
            "type=secret,id=a,required,env=",
            Mount { id: some("a"), required: true, env: some(""), ..secret },
        );
    }

    #[test]
    fn options_that_make_no_sense_are_refused() {
        let check = |text: &str, expected: &str| {
            assert_eq!(mount(text).unwrap_err(), expected, "{text}");
        };
        check("typ=tmpfs", "unexpected key 'typ' in 'typ=tmpfs'");
        check("type=tmp", "unsupported mount type \"tmp\"");
        check("required", "unexpected key 'required' for mount type 'bind'");
        check("size=1", "unexpected key 'size' for mount type 'bind'");
        check("target", "invalid field 'target' must be a key=value pair");
        check("mode=0755", "mode not allowed for \"bind\" type mounts");
        check("type=cache,mode=9", "invalid value 9 for mode");
        check("ro=maybe", "invalid value for ro: maybe");
        check("type=secret", "invalid secret mount. one of source, target required");
        check("type=secret,id=a,source=b", "both source and id can't be set");
        check("type=secret,id=a,from=b", "secret mount should not have a from");
        check("type=ssh,sharing=shared", "invalid cache sharing set for ssh mount");
        check("sharing=all", "unsupported sharing value \"all\"");
        check("", "failed to parse csv mounts: EOF");
    }

    #[test]
    fn devices_have_a_name_and_may_be_required() {
        let check = |text: &str, expected: Result<(&str, bool), &str>| {
            let flag = Text::new(text.to_owned(), Span::default());
            let device = device(&flag).map_err(|diagnostic| diagnostic.message);
            let device = device.as_ref().map(|device| (device.name.as_str(), device.required));
            assert_eq!(device.map_err(String::as_str), expected, "{text}");
        };
        check("vendor1.com/device=foo", Ok(("vendor1.com/device=foo", false)));
        check("vendor1.com/device", Ok(("vendor1.com/device", false)));
        check("vendor1.com/device=foo,required", Ok(("vendor1.com/device=foo", true)));
        check("name=a=b,required=false", Ok(("a=b", false)));
        check("a=b,name=c", Err("device name already set to a=b"));
        check("a=b,nam=c", Err("unexpected key 'nam' in 'nam=c'"));
    }
}
