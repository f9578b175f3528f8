//! The config of an image: image-spec's `config.md` with Docker's additional fields.
//!
//! A base's config is read into [`ImageConfig`], changed by instructions, and written again. What
//! has no field here is not kept, as BuildKit doesn't: it reads into a struct of the same fields
//! (moby's `docker-image-spec`). Written are the bytes that BuildKit's exporter writes: top-level
//! keys sorted, the rest in the order of Go's fields, and `<`, `>` and `&` escaped.

mod history;
mod timestamp;

use std::collections::{BTreeMap, BTreeSet};

use rbuild_cache::digest::DiffId;
use rbuild_cache::oci::Platform;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

pub use history::{ExportedLayer, History};
pub use timestamp::Timestamp;

/// What the search path of a Linux image is when it names none.
pub const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The config of an image. Fields stand in the order in which they are written.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ImageConfig {
    /// GOARCH: `amd64`.
    #[serde(default, deserialize_with = "null_is_default")]
    pub architecture: String,
    /// `MAINTAINER`
    #[serde(
        default,
        deserialize_with = "null_is_default",
        skip_serializing_if = "String::is_empty"
    )]
    pub author: String,
    /// How a container runs.
    #[serde(default, deserialize_with = "null_is_default")]
    pub config: ContainerConfig,
    /// When the image was made.
    #[serde(default)]
    pub created: Option<Timestamp>,
    /// What was done, oldest first.
    #[serde(default, deserialize_with = "null_is_default", serialize_with = "empty_is_null")]
    pub history: Vec<History>,
    /// `linux`
    #[serde(default, deserialize_with = "null_is_default")]
    pub os: String,
    /// Windows only.
    #[serde(
        default,
        rename = "os.features",
        deserialize_with = "null_is_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub os_features: Vec<String>,
    /// Windows only.
    #[serde(
        default,
        rename = "os.version",
        deserialize_with = "null_is_default",
        skip_serializing_if = "String::is_empty"
    )]
    pub os_version: String,
    /// What the image's layers are the results of, for `--cache-from` (`type=inline`); that of a base
    /// image is not taken over.
    #[serde(
        default,
        rename = "rbuild.cache.v1",
        skip_deserializing,
        skip_serializing_if = "Option::is_none"
    )]
    pub inline_cache: Option<serde_json::Value>,
    /// The digests of the layers' tars, lowest first.
    #[serde(default, deserialize_with = "null_is_default")]
    pub rootfs: RootFs,
    /// `v7`
    #[serde(
        default,
        deserialize_with = "null_is_default",
        skip_serializing_if = "String::is_empty"
    )]
    pub variant: String,
}

/// How a container runs.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ContainerConfig {
    /// `USER`
    #[serde(deserialize_with = "null_is_default", skip_serializing_if = "String::is_empty")]
    pub user: String,
    /// `EXPOSE`: `80/tcp`.
    #[serde(with = "set", skip_serializing_if = "BTreeSet::is_empty")]
    pub exposed_ports: BTreeSet<String>,
    /// `ENV`: `NAME=value`.
    #[serde(deserialize_with = "null_is_default", skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<String>,
    /// `ENTRYPOINT`
    #[serde(deserialize_with = "null_is_default", skip_serializing_if = "Vec::is_empty")]
    pub entrypoint: Vec<String>,
    /// `CMD`
    #[serde(deserialize_with = "null_is_default", skip_serializing_if = "Vec::is_empty")]
    pub cmd: Vec<String>,
    /// `VOLUME`
    #[serde(with = "set", skip_serializing_if = "BTreeSet::is_empty")]
    pub volumes: BTreeSet<String>,
    /// `WORKDIR`
    #[serde(deserialize_with = "null_is_default", skip_serializing_if = "String::is_empty")]
    pub working_dir: String,
    /// `LABEL`
    #[serde(deserialize_with = "null_is_default", skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// `STOPSIGNAL`
    #[serde(deserialize_with = "null_is_default", skip_serializing_if = "String::is_empty")]
    pub stop_signal: String,
    /// Says nothing on Linux; BuildKit sets it together with `cmd`.
    #[serde(deserialize_with = "null_is_default", skip_serializing_if = "std::ops::Not::not")]
    pub args_escaped: bool,
    /// `HEALTHCHECK`
    #[serde(skip_serializing_if = "Option::is_none")]
    pub healthcheck: Option<HealthcheckConfig>,
    /// `ONBUILD`
    #[serde(deserialize_with = "null_is_default", skip_serializing_if = "Vec::is_empty")]
    pub on_build: Vec<String>,
    /// `SHELL`
    #[serde(deserialize_with = "null_is_default", skip_serializing_if = "Vec::is_empty")]
    pub shell: Vec<String>,
}

/// How to tell whether a container is well. Times are nanoseconds, 0 is the runtime's default.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct HealthcheckConfig {
    /// `NONE`, or `CMD` or `CMD-SHELL` and what to run.
    #[serde(deserialize_with = "null_is_default", skip_serializing_if = "Vec::is_empty")]
    pub test: Vec<String>,
    /// `--interval`
    #[serde(skip_serializing_if = "is_zero")]
    pub interval: i64,
    /// `--timeout`
    #[serde(skip_serializing_if = "is_zero")]
    pub timeout: i64,
    /// `--start-period`
    #[serde(skip_serializing_if = "is_zero")]
    pub start_period: i64,
    /// `--start-interval`
    #[serde(skip_serializing_if = "is_zero")]
    pub start_interval: i64,
    /// `--retries`
    #[serde(skip_serializing_if = "is_zero")]
    pub retries: i64,
}

/// The digests of an image's layers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootFs {
    /// Always `layers`.
    #[serde(rename = "type", default)]
    pub kind: String,
    /// The digests of the uncompressed tars, lowest first; `null` when there is none.
    #[serde(default, deserialize_with = "null_is_default", serialize_with = "empty_is_null")]
    pub diff_ids: Vec<DiffId>,
}

impl Default for RootFs {
    fn default() -> Self {
        Self { kind: "layers".into(), diff_ids: Vec::new() }
    }
}

impl ImageConfig {
    /// The config of an image that nothing was done to: `FROM scratch`. Windows itself knows a
    /// search path.
    pub fn empty(platform: &Platform) -> Self {
        let mut config = Self::without_config(platform);
        config.config.working_dir = "/".into();
        if platform.os != "windows" {
            config.config.env.push(format!("PATH={DEFAULT_PATH}"));
        }
        config
    }

    /// The config of a tree that is no image.
    pub(crate) fn without_config(platform: &Platform) -> Self {
        let mut config = Self::default();
        config.set_platform(platform);
        config
    }

    /// Reads the config of an image.
    ///
    /// # Errors
    /// When it is no JSON, or a field is of another type.
    pub fn from_json(bytes: &[u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(bytes)
    }

    /// The bytes of the config blob, as BuildKit writes them.
    ///
    /// # Panics
    /// Never: strings, numbers and string keys can all be written.
    pub fn to_json(&self) -> Vec<u8> {
        let text = serde_json::to_string(self).expect("strings, numbers and string keys");
        escape_html(&text).into_bytes()
    }

    /// The platform that the image is for.
    pub fn platform(&self) -> Platform {
        let variant = (!self.variant.is_empty()).then_some(self.variant.as_str());
        let mut platform = Platform::new(&self.os, &self.architecture, variant);
        platform.os_version = (!self.os_version.is_empty()).then(|| self.os_version.clone());
        platform.with_features(self.os_features.clone())
    }

    /// Says that the image is for `platform`.
    pub fn set_platform(&mut self, platform: &Platform) {
        self.os.clone_from(&platform.os);
        self.architecture.clone_from(&platform.architecture);
        self.variant = platform.variant.clone().unwrap_or_default();
        self.os_version = platform.os_version.clone().unwrap_or_default();
        self.os_features.clone_from(&platform.os_features);
    }
}

impl ContainerConfig {
    /// Sets a variable; an existing one keeps its place.
    pub(crate) fn set_env(&mut self, name: &str, value: &str) {
        let pair = format!("{name}={value}");
        let same = |old: &str| old.strip_prefix(name).is_some_and(|rest| rest.starts_with('='));
        match self.env.iter_mut().find(|old| same(old) || *old == name) {
            Some(old) => *old = pair,
            None => self.env.push(pair),
        }
    }
}

/// Name and value of `NAME=value`.
pub(crate) fn split_variable(pair: &str) -> (&str, &str) {
    pair.split_once('=').unwrap_or((pair, ""))
}

/// Go's encoder escapes what could end a `<script>`; these characters occur in strings only.
fn escape_html(json: &str) -> String {
    let mut out = String::with_capacity(json.len());
    for c in json.chars() {
        match c {
            '<' => out.push_str("\\u003c"),
            '>' => out.push_str("\\u003e"),
            '&' => out.push_str("\\u0026"),
            '\u{2028}' => out.push_str("\\u2028"),
            '\u{2029}' => out.push_str("\\u2029"),
            c => out.push(c),
        }
    }
    out
}

/// Go's encoder writes `null` for many an empty value, and reads it as one.
fn null_is_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

fn empty_is_null<S: Serializer, T: Serialize>(
    list: &[T],
    serializer: S,
) -> Result<S::Ok, S::Error> {
    if list.is_empty() { serializer.serialize_none() } else { list.serialize(serializer) }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
fn is_zero(number: &i64) -> bool {
    *number == 0
}

/// A set is written as an object whose values are empty objects.
mod set {
    use std::collections::{BTreeMap, BTreeSet};

    use serde::ser::SerializeMap;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(
        set: &BTreeSet<String>,
        s: S,
    ) -> Result<S::Ok, S::Error> {
        let empty: BTreeMap<String, String> = BTreeMap::new();
        let mut map = s.serialize_map(Some(set.len()))?;
        for key in set {
            map.serialize_entry(key, &empty)?;
        }
        map.end()
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        d: D,
    ) -> Result<BTreeSet<String>, D::Error> {
        let map: Option<serde_json::Map<String, serde_json::Value>> = Option::deserialize(d)?;
        Ok(map.unwrap_or_default().into_iter().map(|(key, _)| key).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check_round_trip(json: &str, expected: &str) {
        let config = ImageConfig::from_json(json.as_bytes()).unwrap();
        assert_eq!(String::from_utf8(config.to_json()).unwrap(), expected);
    }

    #[test]
    fn an_image_from_nothing() {
        let config = ImageConfig::empty(&"linux/arm/v7".parse().unwrap());
        assert_eq!(
            String::from_utf8(config.to_json()).unwrap(),
            r#"{"architecture":"arm","config":{"Env":["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],"WorkingDir":"/"},"created":null,"history":null,"os":"linux","rootfs":{"type":"layers","diff_ids":null},"variant":"v7"}"#
        );
    }

    #[test]
    fn keeps_what_has_a_field_and_nothing_else() {
        check_round_trip(
            r#"{"os":"linux","architecture":"amd64","container":"x","config":{
                "Hostname":"h","Env":null,"Labels":{"b":"<2>","a":"1"},"Volumes":{"/v":{}},
                "ExposedPorts":{"80/tcp":{},"53/udp":{}},"Cmd":["a&b"],"ArgsEscaped":true,
                "Healthcheck":{"Test":["NONE"],"Interval":5,"Timeout":0},"OnBuild":[],"User":""},
                "rootfs":{"type":"layers","diff_ids":null},
                "history":[{"created":"2023-11-14T22:13:20Z","created_by":"x","empty_layer":true}]}"#,
            concat!(
                r#"{"architecture":"amd64","config":{"ExposedPorts":{"53/udp":{},"80/tcp":{}},"#,
                r#""Cmd":["a\u0026b"],"Volumes":{"/v":{}},"Labels":{"a":"1","b":"\u003c2\u003e"},"#,
                r#""ArgsEscaped":true,"Healthcheck":{"Test":["NONE"],"Interval":5}},"#,
                r#""created":null,"history":[{"created":"2023-11-14T22:13:20Z","created_by":"x","#,
                r#""empty_layer":true}],"os":"linux","rootfs":{"type":"layers","diff_ids":null}}"#
            ),
        );
    }

    #[test]
    fn a_variable_keeps_its_place() {
        let mut config =
            ContainerConfig { env: vec!["A=1".into(), "B".into()], ..Default::default() };
        config.set_env("B", "2");
        config.set_env("A", "3=4");
        config.set_env("C", "");
        assert_eq!(config.env, ["A=3=4", "B=2", "C="]);
    }
}
