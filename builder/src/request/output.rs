//! `--output`: where the result goes. Follows buildx's `util/buildflags/export.go` and
//! `build/opt.go`; what an exporter's attributes mean is the exporter's.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use super::{UsageError, csv};

/// One output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutputSpec {
    /// What is written.
    pub kind: OutputKind,
    /// Where to, for the kinds that write files; `docker` without one goes to the Docker engine.
    pub destination: Option<Destination>,
    /// The other attributes, by lower-case name; checked by the exporter.
    pub attributes: BTreeMap<String, String>,
}

/// What an output is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum OutputKind {
    /// An image in the local store; pushed as well with `push=true`, which is also what
    /// `type=registry` means.
    Image,
    /// An OCI layout, in a tar or (`tar=false`) a folder.
    Oci,
    /// What `docker load` reads, in a tar or a folder, or loaded at once.
    Docker,
    /// The files of the target's tree, as a tar.
    Tar,
    /// The files of the target's tree, in a folder.
    Local,
    /// Nothing: only the cache is filled.
    CacheOnly,
}

/// Where an output that writes files writes them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Destination {
    /// `-`
    Stdout,
    /// A file, which is replaced.
    File(PathBuf),
    /// A folder, which is made if it is missing.
    Folder(PathBuf),
}

const KINDS: [(&str, OutputKind); 7] = [
    ("image", OutputKind::Image),
    ("registry", OutputKind::Image),
    ("oci", OutputKind::Oci),
    ("docker", OutputKind::Docker),
    ("tar", OutputKind::Tar),
    ("local", OutputKind::Local),
    ("cacheonly", OutputKind::CacheOnly),
];

const FLAG: &str = "--output";

impl fmt::Display for OutputKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = KINDS.iter().find_map(|(name, kind)| (kind == self).then_some(*name));
        f.write_str(name.expect("every kind has a name"))
    }
}

impl OutputSpec {
    /// An output without attributes.
    pub fn new(kind: OutputKind) -> Self {
        Self { kind, destination: None, attributes: BTreeMap::new() }
    }

    /// Reads one `--output`: `DIR`, `-` or CSV.
    pub(super) fn parse(text: &str) -> Result<Self, UsageError> {
        let wrong = |reason: String| UsageError::value(FLAG, text, reason);
        let fields = csv::fields(FLAG, text)?;
        if let [only] = &fields[..]
            && only == text
            && !text.starts_with("type=")
        {
            return Ok(match text {
                "-" => {
                    Self { destination: Some(Destination::Stdout), ..Self::new(OutputKind::Tar) }
                }
                folder => Self {
                    destination: Some(Destination::Folder(folder.into())),
                    ..Self::new(OutputKind::Local)
                },
            });
        }
        let mut attributes: BTreeMap<String, String> =
            csv::pairs(FLAG, text)?.into_iter().collect();
        let name = attributes.remove("type").unwrap_or_default();
        if name.is_empty() {
            return Err(wrong("`type=` is missing".into()));
        }
        let kind = KINDS.iter().find_map(|(known, kind)| (*known == name).then_some(*kind));
        let kind = kind.ok_or_else(|| {
            let known = KINDS.map(|(name, _)| name).join(", ");
            wrong(format!("output type `{name}` is none of {known}"))
        })?;
        if name == "registry" {
            attributes.entry("push".into()).or_insert_with(|| "true".into());
        }
        let destination = attributes.remove("dest");
        let destination = destination_of(kind, destination, &attributes).map_err(wrong)?;
        Ok(Self { kind, destination, attributes })
    }

    /// Whether `push=true`.
    pub fn pushes(&self) -> bool {
        self.attributes.get("push").is_some_and(|value| super::boolean(value) == Some(true))
    }
}

/// What `dest` means for `kind`.
fn destination_of(
    kind: OutputKind,
    dest: Option<String>,
    attributes: &BTreeMap<String, String>,
) -> Result<Option<Destination>, String> {
    let tar = attributes.get("tar").and_then(|value| super::boolean(value)).unwrap_or(true);
    let dest = dest.filter(|dest| !dest.is_empty());
    match (kind, dest) {
        (OutputKind::Image | OutputKind::CacheOnly, Some(_)) => {
            Err(format!("output type `{kind}` has no `dest=`"))
        }
        (OutputKind::Image | OutputKind::CacheOnly | OutputKind::Docker, None) => Ok(None),
        (OutputKind::Local, None) => Err("`dest=` is missing".into()),
        (OutputKind::Oci, None) if !tar => Err("`dest=` is missing".into()),
        (OutputKind::Tar | OutputKind::Oci, None) => Ok(Some(Destination::Stdout)),
        (OutputKind::Local, Some(dest)) => folder(dest),
        (OutputKind::Oci | OutputKind::Docker, Some(dest)) if !tar => folder(dest),
        (OutputKind::Tar | OutputKind::Oci | OutputKind::Docker, Some(dest)) => {
            Ok(Some(if dest == "-" { Destination::Stdout } else { Destination::File(dest.into()) }))
        }
    }
}

fn folder(dest: String) -> Result<Option<Destination>, String> {
    if dest == "-" {
        return Err("a folder cannot be written to stdout".into());
    }
    Ok(Some(Destination::Folder(dest.into())))
}

/// All outputs of a build: those named, with what `--push` and `--load` add; the local store when
/// there are none.
pub(super) fn outputs(
    named: &[String],
    push: bool,
    load: bool,
) -> Result<Vec<OutputSpec>, UsageError> {
    let mut outputs =
        named.iter().map(|text| OutputSpec::parse(text)).collect::<Result<Vec<_>, _>>()?;
    if push && load {
        return Err(UsageError::Conflict {
            one: "--push".into(),
            other: "--load".into(),
            instead: "name both with `-o type=registry -o type=docker`".into(),
        });
    }
    if push {
        let mut images = outputs.iter_mut().filter(|output| output.kind == OutputKind::Image);
        let mut found = false;
        images.by_ref().for_each(|image| {
            image.attributes.insert("push".into(), "true".into());
            found = true;
        });
        if !found {
            let mut image = OutputSpec::new(OutputKind::Image);
            image.attributes.insert("push".into(), "true".into());
            outputs.push(image);
        }
    }
    let loads =
        |output: &OutputSpec| output.kind == OutputKind::Docker && output.destination.is_none();
    if load && !outputs.iter().any(loads) {
        outputs.push(OutputSpec::new(OutputKind::Docker));
    }
    if outputs.is_empty() {
        outputs.push(OutputSpec::new(OutputKind::Image));
    }
    let to_stdout =
        outputs.iter().filter(|output| output.destination == Some(Destination::Stdout)).count();
    if to_stdout > 1 {
        return Err(UsageError::value(FLAG, "-", "only one output can go to stdout"));
    }
    Ok(outputs)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(output: &OutputSpec) -> String {
        let destination = match &output.destination {
            None => String::new(),
            Some(Destination::Stdout) => " to stdout".into(),
            Some(Destination::File(path)) => format!(" to file {}", path.display()),
            Some(Destination::Folder(path)) => format!(" to folder {}", path.display()),
        };
        let attributes = output.attributes.iter().map(|(key, value)| format!(" {key}={value}"));
        format!("{}{destination}{}", output.kind, attributes.collect::<Vec<_>>().concat())
    }

    #[test]
    fn reads_outputs() {
        let check = |text: &str, expected: &str| {
            assert_eq!(shown(&OutputSpec::parse(text).unwrap()), expected, "{text}");
        };
        check("out", "local to folder out");
        check("-", "tar to stdout");
        check("a=b", "local to folder a=b");
        check("type=local,dest=out", "local to folder out");
        check("type=tar", "tar to stdout");
        check("type=tar,dest=-", "tar to stdout");
        check("type=oci,dest=a.tar", "oci to file a.tar");
        check("type=oci,dest=a,tar=false", "oci to folder a tar=false");
        check("type=docker", "docker");
        check("type=docker,dest=a.tar", "docker to file a.tar");
        check("type=registry", "image push=true");
        check("type=registry,push=false", "image push=false");
        check(r#"type=image,"name=a,b",push=true"#, "image name=a,b push=true");
        check("type=image,Compression=zstd", "image compression=zstd");
        check("type=cacheonly", "cacheonly");
    }

    #[test]
    fn refuses_what_no_exporter_writes() {
        let check = |text: &str, expected: &str| {
            assert_eq!(OutputSpec::parse(text).unwrap_err().to_string(), expected);
        };
        check(
            "type=zip,dest=a",
            "invalid value `type=zip,dest=a` for `--output`: output type `zip` is none of \
             image, registry, oci, docker, tar, local, cacheonly",
        );
        check("type=local", "invalid value `type=local` for `--output`: `dest=` is missing");
        check(
            "type=local,dest=-",
            "invalid value `type=local,dest=-` for `--output`: a folder cannot be written to stdout",
        );
        check("dest=a,x=y", "invalid value `dest=a,x=y` for `--output`: `type=` is missing");
        check(
            "type=image,dest=a",
            "invalid value `type=image,dest=a` for `--output`: output type `image` has no `dest=`",
        );
    }

    #[test]
    fn push_and_load_add_what_is_not_named() {
        let check = |named: &[&str], push, load, expected: &[&str]| {
            let named: Vec<String> = named.iter().map(ToString::to_string).collect();
            let outputs = outputs(&named, push, load).unwrap();
            assert_eq!(outputs.iter().map(shown).collect::<Vec<_>>(), expected);
        };
        check(&[], false, false, &["image"]);
        check(&[], true, false, &["image push=true"]);
        check(&["type=image,compression=zstd"], true, false, &["image compression=zstd push=true"]);
        check(&["out"], true, false, &["local to folder out", "image push=true"]);
        check(&[], false, true, &["docker"]);
        check(&["type=docker"], false, true, &["docker"]);
        check(&["type=docker,dest=a"], false, true, &["docker to file a", "docker"]);
        assert!(outputs(&[], true, true).is_err());
        assert!(outputs(&["-".into(), "type=oci".into()], false, false).is_err());
    }
}
