//! `RUN --device`: which devices this machine has, what a name of a Dockerfile means among them, and
//! whether a step may have it.
//!
//! Devices are described in folders of files, as the Container Device Interface has them; the files
//! themselves are `devices/spec.rs`'s. Names and leave follow BuildKit's
//! `solver/llbsolver/cdidevices/manager.go` and `ValidateEntitlements` in `solver/llbsolver/vertex.go`:
//! as there, a step's key holds the names that were found, and nothing of what they bring along.

mod spec;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};

use rbuild_solver::device::DeviceEdits;
use rbuild_solver::error::{Cause, SolveError};
use rbuild_solver::graph::{Device, Graph, Op, VertexId};
use rbuild_solver::progress::{EventKind, Reporter};

use self::spec::Spec;
use crate::request::DeviceLeave;

/// Devices that are asked for by this annotation's value too.
const CLASS: &str = "org.mobyproject.buildkit.device.class";
/// Devices with this annotation need no leave.
const AUTO_ALLOW: &str = "org.mobyproject.buildkit.device.autoallow";

/// Where files are looked for, the later folder's devices hiding those of the earlier one.
const FOLDERS: [&str; 2] = ["/etc/cdi", "/var/run/cdi"];

/// What this machine has.
#[derive(Debug, Default)]
struct Registry {
    folders: Vec<PathBuf>,
    /// By fully qualified name.
    devices: BTreeMap<String, Registered>,
    /// Files that were not read, and why.
    unread: Vec<(PathBuf, String)>,
}

#[derive(Debug)]
struct Registered {
    /// The position of its folder.
    folder: usize,
    annotations: BTreeMap<String, String>,
    /// What it brings along, or why a step cannot have that.
    edits: Result<DeviceEdits, String>,
}

/// What a step asked for is not to be had.
#[derive(Debug, PartialEq, Eq)]
enum Refusal {
    NotThere(String),
    /// The fully qualified name of what needs leave.
    NotAllowed(String),
    Unusable(String),
}

/// Gives every step that `targets` need the names of the devices it gets, and returns what those
/// bring along. Steps that can do without a device that is not there do, and `reporter` is told.
pub(crate) fn resolve(
    graph: &mut Graph,
    targets: &[VertexId],
    folders: Option<&[PathBuf]>,
    leave: &DeviceLeave,
    reporter: &Reporter,
) -> Result<BTreeMap<String, DeviceEdits>, SolveError> {
    let mut registry = None;
    let mut used = BTreeMap::new();
    for id in graph.reachable(targets) {
        let vertex = graph.vertex(id);
        let Op::Run(run) = &vertex.op else { continue };
        if run.devices.is_empty() {
            continue;
        }
        let registry = registry.get_or_insert_with(|| match folders {
            Some(folders) => Registry::read(folders),
            None => Registry::read(&FOLDERS.map(PathBuf::from)),
        });
        let mut names = Vec::new();
        for device in &run.devices {
            let found = registry
                .names(device, leave)
                .map_err(|refusal| SolveError::new(vertex, registry.cause(device, refusal)))?;
            if found.is_empty() {
                let task = reporter.start(format!("[internal] find device {}", device.name));
                let message = format!(
                    "there is no device `{}`, which {} can do without: it runs without",
                    device.name, vertex.name
                );
                task.tell(EventKind::Warning { message });
                task.tell(EventKind::Finished);
            }
            for (name, edits) in found {
                used.insert(name.clone(), edits);
                if !names.contains(&name) {
                    names.push(name);
                }
            }
        }
        let devices = names.into_iter().map(|name| Device { name, required: true });
        graph.set_devices(id, devices.collect());
    }
    Ok(used)
}

impl Registry {
    /// Reads all files of `folders`. One that cannot be read hides nothing of the others; it is
    /// told of when a device is missing.
    fn read(folders: &[PathBuf]) -> Self {
        let mut registry = Self { folders: folders.to_vec(), ..Self::default() };
        let mut twice = BTreeSet::new();
        for (position, folder) in folders.iter().enumerate() {
            let files = match files(folder) {
                Ok(files) => files,
                Err(error) => {
                    registry.unread.push((folder.clone(), error.to_string()));
                    continue;
                }
            };
            for path in files {
                match spec(&path) {
                    Ok(spec) => registry.add(position, &spec, &mut twice),
                    Err(reason) => registry.unread.push((path, reason)),
                }
            }
        }
        // Two files of one folder that describe the same device mean neither, as in the CDI library.
        for (position, name) in twice {
            if registry.devices.get(&name).is_some_and(|device| device.folder == position) {
                registry.devices.remove(&name);
                let reason = format!("`{name}` is described twice");
                registry.unread.push((registry.folders[position].clone(), reason));
            }
        }
        registry
    }

    fn add(&mut self, folder: usize, spec: &Spec, twice: &mut BTreeSet<(usize, String)>) {
        for device in &spec.devices {
            let name = format!("{}={}", spec.kind, device.name);
            let mut annotations = spec.annotations.clone();
            annotations.extend(device.annotations.clone());
            let mut edits = DeviceEdits::default();
            let added = spec.container_edits.add_to(&mut edits);
            let added = added.and_then(|()| device.container_edits.add_to(&mut edits));
            let registered = Registered { folder, annotations, edits: added.map(|()| edits) };
            let earlier = self.devices.insert(name.clone(), registered);
            if earlier.is_some_and(|earlier| earlier.folder == folder) {
                twice.insert((folder, name));
            }
        }
    }

    /// The devices that `asked` means, by fully qualified name: one of that name, the first of a
    /// kind, all of a kind (`=*`), or all of a class.
    fn find(&self, asked: &str) -> Vec<&str> {
        let (kind, name) = asked.split_once('=').unwrap_or((asked, ""));
        let of_kind = |device: &str| device.split_once('=').is_some_and(|(of, _)| of == kind);
        let mut all = self.devices.keys().map(String::as_str);
        let found: Vec<&str> = match name {
            _ if !spec::is_kind(kind) => Vec::new(),
            "" => all.find(|device| of_kind(device)).into_iter().collect(),
            "*" => all.filter(|device| of_kind(device)).collect(),
            _ => all.find(|device| *device == asked).into_iter().collect(),
        };
        if !found.is_empty() {
            return found;
        }
        let of_class =
            |device: &Registered| device.annotations.get(CLASS).is_some_and(|c| c == asked);
        let all = self.devices.iter();
        all.filter(|(_, device)| of_class(device)).map(|(name, _)| name.as_str()).collect()
    }

    /// What `device` means, and what that brings along; nothing when it is not there and the step
    /// can do without.
    fn names(
        &self,
        device: &Device,
        leave: &DeviceLeave,
    ) -> Result<Vec<(String, DeviceEdits)>, Refusal> {
        let alias = leave.aliases.get(&device.name);
        let found = self.find(alias.unwrap_or(&device.name));
        if found.is_empty() && device.required {
            return Err(Refusal::NotThere(alias.unwrap_or(&device.name).clone()));
        }
        let granted: BTreeSet<&str> = leave.names.iter().flat_map(|name| self.find(name)).collect();
        let allowed = |name: &str| {
            let auto = self.devices[name].annotations.get(AUTO_ALLOW);
            alias.is_some()
                || leave.all
                || granted.contains(name)
                || auto.is_some_and(|value| is_true(value))
        };
        if let Some(name) = found.iter().find(|name| !allowed(name)) {
            return Err(Refusal::NotAllowed((*name).to_owned()));
        }
        let with_edits = |name: &str| match &self.devices[name].edits {
            Ok(edits) => Ok((name.to_owned(), edits.clone())),
            Err(reason) => Err(Refusal::Unusable(format!("device `{name}`: {reason}"))),
        };
        found.into_iter().map(with_edits).collect()
    }

    fn cause(&self, device: &Device, refusal: Refusal) -> Cause {
        match refusal {
            Refusal::NotAllowed(name) => Cause::NotAllowed {
                what: format!("`--device={}`", device.name),
                entitlement: format!("device={name}"),
            },
            Refusal::Unusable(reason) => Cause::Unsupported(reason),
            Refusal::NotThere(name) => {
                let folders: Vec<_> =
                    self.folders.iter().map(|f| f.display().to_string()).collect();
                let folders = folders.join(", ");
                let unread = |(path, reason): &(PathBuf, String)| {
                    format!("; `{}` was not read: {reason}", path.display())
                };
                let unread: String = self.unread.iter().map(unread).collect();
                let text =
                    format!("required device `{name}` is not registered in {folders}{unread}");
                Cause::Unsupported(text)
            }
        }
    }
}

/// The files of `folder` that describe devices, sorted.
fn files(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match fs_err::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut files = Vec::new();
    for entry in entries {
        let path = entry?.path();
        if path.extension().is_some_and(|end| end == "json" || end == "yaml") && !path.is_dir() {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

fn spec(path: &Path) -> Result<Spec, String> {
    if path.extension().is_some_and(|end| end == "yaml") {
        let reason = "it is YAML, and rbuild reads CDI files that are JSON";
        return Err(reason.to_owned());
    }
    let text = fs_err::read(path).map_err(|error| error.to_string())?;
    Spec::parse(&text)
}

/// Whether Go's `strconv.ParseBool` says so.
fn is_true(text: &str) -> bool {
    ["1", "t", "T", "TRUE", "true", "True"].contains(&text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn registry(files: &[(&str, &str)]) -> (tempfile::TempDir, Registry) {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = folder.path().join(name);
            fs_err::create_dir_all(path.parent().unwrap()).unwrap();
            fs_err::write(path, text).unwrap();
        }
        let folders = ["low", "high"].map(|name| folder.path().join(name));
        let registry = Registry::read(&folders);
        (folder, registry)
    }

    fn spec(kind: &str, devices: &str) -> String {
        format!(r#"{{"cdiVersion":"0.6.0","kind":"{kind}","devices":[{devices}]}}"#)
    }

    const A: &str = r#"{"name":"a","containerEdits":{"env":["A=1"]}}"#;
    const B: &str = r#"{"name":"b","annotations":{"org.mobyproject.buildkit.device.class":"fast",
        "org.mobyproject.buildkit.device.autoallow":"true"},"containerEdits":{"env":["B=1"]}}"#;
    const HOOKED: &str = r#"{"name":"h","containerEdits":{"hooks":[{}]}}"#;

    fn asked(name: &str, required: bool) -> Device {
        Device { name: name.to_owned(), required }
    }

    #[test]
    fn names_kinds_and_classes_mean_devices() {
        let (_folder, registry) = registry(&[
            ("low/one.json", &spec("v.com/gpu", &format!("{A},{B}"))),
            ("low/two.json", &spec("v.com/gpu2", A)),
        ]);
        let check =
            |text: &str, expected: &[&str]| assert_eq!(registry.find(text), expected, "{text}");
        check("v.com/gpu=b", &["v.com/gpu=b"]);
        check("v.com/gpu", &["v.com/gpu=a"]);
        check("v.com/gpu=*", &["v.com/gpu=a", "v.com/gpu=b"]);
        check("fast", &["v.com/gpu=b"]);
        check("v.com/gpu=c", &[]);
        check("v.com", &[]);
        check("", &[]);
    }

    #[test]
    fn later_folders_hide_earlier_ones_and_doubles_mean_neither() {
        let other = A.replace("A=1", "A=2");
        let (_folder, registry) = registry(&[
            ("low/one.json", &spec("v.com/x", A)),
            ("high/one.json", &spec("v.com/x", &other)),
            ("low/two.json", &spec("v.com/y", A)),
            ("low/three.json", &spec("v.com/y", A)),
            ("low/broken.json", "{"),
            ("low/four.yaml", "cdiVersion: 0.6.0"),
            ("low/readme.txt", "no"),
        ]);
        assert_eq!(registry.devices["v.com/x=a"].edits.as_ref().unwrap().env, ["A=2"]);
        assert_eq!(registry.find("v.com/y=a"), [""; 0]);
        let Cause::Unsupported(text) =
            registry.cause(&asked("v.com/y=a", true), Refusal::NotThere("v.com/y=a".into()))
        else {
            panic!("another cause")
        };
        for part in ["required device `v.com/y=a` is not", "broken.json", "four.yaml", "twice"] {
            assert!(text.contains(part), "{text}");
        }
        assert!(!text.contains("readme"), "{text}");
    }

    #[test]
    fn leave_is_needed() {
        let devices = format!("{A},{B},{HOOKED}");
        let (_folder, registry) = registry(&[("low/one.json", &spec("v.com/gpu", &devices))]);
        let check = |allow: &[&str], device: &Device, expected: Result<&[&str], Refusal>| {
            let leave = DeviceLeave {
                all: allow.contains(&"device"),
                names: allow
                    .iter()
                    .filter(|name| !name.contains('>'))
                    .map(|s| (*s).into())
                    .collect(),
                aliases: allow
                    .iter()
                    .filter_map(|text| text.split_once('>'))
                    .map(|(alias, name)| (alias.into(), name.into()))
                    .collect(),
            };
            let found = registry.names(device, &leave);
            let found =
                found.map(|found| found.into_iter().map(|(name, _)| name).collect::<Vec<_>>());
            let expected = expected.map(|names| names.iter().map(|s| (*s).to_owned()).collect());
            assert_eq!(found, expected, "{allow:?} {device:?}");
        };
        let (a, b) = (asked("v.com/gpu=a", true), asked("v.com/gpu=b", false));
        check(&[], &a, Err(Refusal::NotAllowed("v.com/gpu=a".into())));
        check(&["v.com/gpu=b"], &a, Err(Refusal::NotAllowed("v.com/gpu=a".into())));
        check(&["device"], &a, Ok(&["v.com/gpu=a"]));
        check(&["v.com/gpu=a"], &a, Ok(&["v.com/gpu=a"]));
        check(&["v.com/gpu=*"], &a, Ok(&["v.com/gpu=a"]));
        check(&[], &b, Ok(&["v.com/gpu=b"]));
        check(&["mine>v.com/gpu=a"], &asked("mine", true), Ok(&["v.com/gpu=a"]));
        check(&["mine>v.com/gpu=a"], &a, Err(Refusal::NotAllowed("v.com/gpu=a".into())));
        check(&["device"], &asked("v.com/none", false), Ok(&[]));
        check(&["device"], &asked("v.com/none", true), Err(Refusal::NotThere("v.com/none".into())));
        let hooks = "device `v.com/gpu=h`: it comes with hooks, which steps of rbuild do not have";
        check(&["device"], &asked("v.com/gpu=h", true), Err(Refusal::Unusable(hooks.into())));
    }
}
