//! Files that describe devices: the Container Device Interface's JSON
//! (`github.com/cncf-tags/container-device-interface`, SPEC.md).
//!
//! What a device brings along that a step cannot have (hooks, network devices, cache allocation) is
//! read, so that its other devices can be used, and refused by name once somebody asks for it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use rbuild_solver::device::DeviceEdits;
use rbuild_solver::sandbox::{SandboxMount, SandboxMountSource};
use rustix::fs::{FileType, major, minor};
use serde::Deserialize;
use serde_json::Value;

/// One file.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct Spec {
    cdi_version: String,
    /// `vendor/class`
    pub(super) kind: String,
    #[serde(default)]
    pub(super) annotations: BTreeMap<String, String>,
    pub(super) devices: Vec<SpecDevice>,
    /// What each of the devices brings along.
    #[serde(default)]
    pub(super) container_edits: Edits,
}

/// One device of a file.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct SpecDevice {
    pub(super) name: String,
    #[serde(default)]
    pub(super) annotations: BTreeMap<String, String>,
    #[serde(default)]
    pub(super) container_edits: Edits,
}

/// What a device changes about a container.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct Edits {
    env: Vec<String>,
    device_nodes: Vec<DeviceNode>,
    mounts: Vec<Mount>,
    additional_gids: Vec<u32>,
    hooks: Vec<Value>,
    net_devices: Vec<Value>,
    intel_rdt: Option<Value>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct DeviceNode {
    path: String,
    host_path: Option<String>,
    #[serde(rename = "type")]
    kind: Option<String>,
    major: Option<u32>,
    minor: Option<u32>,
    file_mode: Option<u32>,
    permissions: Option<String>,
    uid: Option<u32>,
    gid: Option<u32>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Mount {
    host_path: String,
    container_path: String,
    #[serde(default)]
    options: Vec<String>,
    #[serde(rename = "type")]
    kind: Option<String>,
}

impl Spec {
    /// Reads the text of a file; the error says what is wrong with it.
    pub(super) fn parse(text: &[u8]) -> Result<Self, String> {
        let spec: Self = serde_json::from_slice(text).map_err(|error| error.to_string())?;
        let known = |version: &str| {
            let version = version.strip_prefix('v').unwrap_or(version);
            version.starts_with("0.") || version.starts_with("1.")
        };
        if !known(&spec.cdi_version) {
            return Err(format!("`{}` is no known version of CDI", spec.cdi_version));
        }
        if !is_kind(&spec.kind) {
            return Err(format!("`{}` is no kind of device (`vendor/class`)", spec.kind));
        }
        match spec.devices.iter().find(|device| !is_name(&device.name, "_-.:")) {
            Some(device) => Err(format!("`{}` is no name of a device", device.name)),
            None => Ok(spec),
        }
    }
}

/// Whether `text` is `vendor/class`.
pub(super) fn is_kind(text: &str) -> bool {
    let letter = |part: &str| part.starts_with(|c: char| c.is_ascii_alphabetic());
    text.split_once('/').is_some_and(|(vendor, class)| {
        letter(vendor) && letter(class) && is_name(vendor, "_-.") && is_name(class, "_-")
    })
}

/// Letters and digits, and between them what is in `others`.
fn is_name(text: &str, others: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric();
    text.starts_with(plain)
        && text.ends_with(plain)
        && text.chars().all(|c| plain(c) || others.contains(c))
}

impl Edits {
    /// Adds all of it to `edits`. The error says what a step cannot have.
    pub(super) fn add_to(&self, edits: &mut DeviceEdits) -> Result<(), String> {
        let unsupported = [
            ("hooks", !self.hooks.is_empty()),
            ("network devices", !self.net_devices.is_empty()),
            ("cache allocation (`intelRdt`)", self.intel_rdt.is_some()),
        ];
        if let Some((what, _)) = unsupported.iter().find(|(_, there)| *there) {
            return Err(format!("it comes with {what}, which steps of rbuild do not have"));
        }
        for line in &self.env {
            if line.split_once('=').is_none_or(|(name, _)| name.is_empty()) {
                return Err(format!("`{line}` is no variable with a value"));
            }
            edits.env.push(line.clone());
        }
        for node in &self.device_nodes {
            edits.mounts.push(node.mount()?);
        }
        for mount in &self.mounts {
            edits.mounts.push(mount.mount()?);
        }
        edits.groups.extend(&self.additional_gids);
        Ok(())
    }
}

impl DeviceNode {
    /// The host's file, mounted. A mount shows it as it is: what the node is said to be otherwise is
    /// refused, since nothing would come of it.
    fn mount(&self) -> Result<SandboxMount, String> {
        let host = self.host_path.as_ref().unwrap_or(&self.path);
        absolute(host)?;
        absolute(&self.path)?;
        let status =
            rustix::fs::stat(host.as_str()).map_err(|error| format!("`{host}`: {error}"))?;
        let (is_device, letters) = match FileType::from_raw_mode(status.st_mode) {
            FileType::CharacterDevice => (true, ["", "c", "u"]),
            FileType::BlockDevice => (true, ["", "b", "b"]),
            _ => (false, [""; 3]),
        };
        if !is_device {
            return Err(format!("`{host}` is no device file"));
        }
        let same = |wanted: Option<u32>, found: u32| wanted.is_none_or(|wanted| wanted == found);
        let number = (major(status.st_rdev), minor(status.st_rdev));
        // Numbers of nought are none, to the CDI library.
        let given = self.major.unwrap_or(0) != 0 || self.minor.unwrap_or(0) != 0;
        if !letters.contains(&self.kind.as_deref().unwrap_or_default())
            || (given && !(same(self.major, number.0) && same(self.minor, number.1)))
        {
            return Err(format!("`{host}` is another device than the file says"));
        }
        if !same(self.file_mode.map(|mode| mode & 0o7777), status.st_mode & 0o7777)
            || !same(self.uid, status.st_uid)
            || !same(self.gid, status.st_gid)
        {
            return Err(format!(
                "`{}` shall have another mode or owner than `{host}`: steps get device files as \
                 they are",
                self.path
            ));
        }
        if let Some(permissions) = self.permissions.as_deref().filter(|given| !given.is_empty())
            && !(permissions.contains('r') && permissions.contains('w'))
        {
            return Err(format!(
                "`{}` shall be for `{permissions}` only: steps get device files as they are",
                self.path
            ));
        }
        Ok(SandboxMount {
            target: self.path.clone(),
            source: SandboxMountSource::Device { path: PathBuf::from(host) },
            read_only: false,
        })
    }
}

impl Mount {
    fn mount(&self) -> Result<SandboxMount, String> {
        absolute(&self.host_path)?;
        absolute(&self.container_path)?;
        if let Some(kind) = self.kind.as_deref().filter(|kind| !["", "none", "bind"].contains(kind))
        {
            return Err(format!("`{}` is a mount of type `{kind}`", self.container_path));
        }
        if !Path::new(&self.host_path).exists() {
            return Err(format!("`{}` is not there", self.host_path));
        }
        let (mut read_only, mut recursive, mut no_suid, mut no_exec) = (false, false, false, false);
        for option in &self.options {
            match option.as_str() {
                "ro" => read_only = true,
                "rw" => read_only = false,
                "rbind" => recursive = true,
                "nosuid" => no_suid = true,
                "suid" => no_suid = false,
                "noexec" => no_exec = true,
                "exec" => no_exec = false,
                // No device file in it can be opened, whatever is said, and no mount made in a step
                // is seen outside of it.
                "bind" | "nodev" | "private" | "rprivate" | "slave" | "rslave" => {}
                other => {
                    let path = &self.container_path;
                    return Err(format!("`{path}` is mounted with the option `{other}`"));
                }
            }
        }
        let path = PathBuf::from(&self.host_path);
        Ok(SandboxMount {
            target: self.container_path.clone(),
            source: SandboxMountSource::Host { path, recursive, no_suid, no_exec },
            read_only,
        })
    }
}

fn absolute(path: &str) -> Result<(), String> {
    if path.starts_with('/') { Ok(()) } else { Err(format!("`{path}` is no absolute path")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn edits(json: &str) -> Result<DeviceEdits, String> {
        let spec = format!(
            r#"{{"cdiVersion":"0.6.0","kind":"a.com/b","devices":[{{"name":"c","containerEdits":{json}}}]}}"#
        );
        let mut edits = DeviceEdits::default();
        Spec::parse(spec.as_bytes())?.devices[0].container_edits.add_to(&mut edits)?;
        Ok(edits)
    }

    #[test]
    fn what_a_device_brings_along() {
        let edits = edits(
            r#"{"env":["A=b"],"additionalGids":[44],
                "deviceNodes":[{"path":"/dev/demo","hostPath":"/dev/zero","type":"c","major":1,"minor":5,"permissions":"rw"}],
                "mounts":[{"hostPath":"/etc","containerPath":"/opt","options":["ro","nosuid","nodev","rbind"]}]}"#,
        )
        .unwrap();
        assert_eq!((&*edits.env, &*edits.groups), (&["A=b".to_owned()][..], &[44][..]));
        assert_eq!(edits.mounts[0].target, "/dev/demo");
        assert_eq!(format!("{:?}", edits.mounts[0].source), r#"Device { path: "/dev/zero" }"#);
        assert!(edits.mounts[1].read_only);
        assert_eq!(
            format!("{:?}", edits.mounts[1].source),
            r#"Host { path: "/etc", recursive: true, no_suid: true, no_exec: false }"#
        );
    }

    #[test]
    fn what_a_step_cannot_have_is_refused_by_name() {
        let check = |json: &str, expected: &str| {
            let error = edits(json).unwrap_err();
            assert!(error.contains(expected), "{json}: {error}");
        };
        check(r#"{"hooks":[{"hookName":"createContainer","path":"/bin/x"}]}"#, "hooks");
        check(r#"{"netDevices":[{}]}"#, "network devices");
        check(r#"{"intelRdt":{}}"#, "intelRdt");
        check(r#"{"env":["A"]}"#, "`A` is no variable");
        check(r#"{"deviceNodes":[{"path":"/dev/none-such"}]}"#, "`/dev/none-such`");
        check(r#"{"deviceNodes":[{"path":"/etc/passwd"}]}"#, "no device file");
        check(r#"{"deviceNodes":[{"path":"/dev/zero","type":"b"}]}"#, "another device");
        check(r#"{"deviceNodes":[{"path":"/dev/zero","major":9,"minor":5}]}"#, "another device");
        check(r#"{"deviceNodes":[{"path":"/dev/zero","uid":77}]}"#, "another mode or owner");
        check(r#"{"deviceNodes":[{"path":"/dev/zero","permissions":"r"}]}"#, "`r` only");
        check(r#"{"mounts":[{"hostPath":"/no/such","containerPath":"/x"}]}"#, "not there");
        check(r#"{"mounts":[{"hostPath":"etc","containerPath":"/x"}]}"#, "no absolute path");
        let options =
            r#"{"mounts":[{"hostPath":"/etc","containerPath":"/x","options":["shared"]}]}"#;
        check(options, "option `shared`");
        check(r#"{"more":1}"#, "unknown field `more`");
    }

    #[test]
    fn names_are_checked() {
        for (kind, expected) in [
            ("vendor.com/gpu", true),
            ("v/c", true),
            ("vendor", false),
            ("/gpu", false),
            ("vendor/", false),
            ("vendor/g.pu", false),
            ("1v/c", false),
            ("v-/c", false),
        ] {
            assert_eq!(is_kind(kind), expected, "{kind}");
        }
        let check = |text: &str, expected: &str| {
            let error = Spec::parse(text.as_bytes()).unwrap_err();
            assert!(error.contains(expected), "{error}");
        };
        check(r#"{"cdiVersion":"7","kind":"a/b","devices":[]}"#, "no known version");
        check(r#"{"cdiVersion":"0.6.0","kind":"a","devices":[]}"#, "no kind of device");
        let name =
            r#"{"cdiVersion":"0.6.0","kind":"a/b","devices":[{"name":"=x","containerEdits":{}}]}"#;
        check(name, "no name of a device");
    }
}
