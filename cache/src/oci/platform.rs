//! Platforms: parsed from `os[(version+feature)][/arch[/variant]]`, normalised and matched as
//! containerd's `platforms` does.

use std::fmt::{self, Write as _};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// What an image runs on (image-spec, image-index.md, "platform").
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Platform {
    /// `linux`
    pub os: String,
    /// GOARCH: `amd64`, `arm64`, …
    pub architecture: String,
    /// `v7` for 32-bit ARM; absent where there is just one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
    /// The system's version; Windows only.
    #[serde(default, rename = "os.version", skip_serializing_if = "Option::is_none")]
    pub os_version: Option<String>,
    /// What the system must be able to do, sorted: `win32k`.
    #[serde(default, rename = "os.features", skip_serializing_if = "Vec::is_empty")]
    pub os_features: Vec<String>,
}

/// Says what is wrong with a platform that was asked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlatformError {
    /// It does not have the form of one.
    #[error("`{0}` is not a platform: expected `os/arch[/variant]`, such as `linux/amd64`")]
    Form(String),
    /// It is a single word that is neither a system nor an architecture.
    #[error("{0:?}: unknown operating system or architecture")]
    Unknown(String),
}

impl Platform {
    /// A platform in its normal form: `x86_64` is `amd64`, `arm64/v8` is `arm64`, `arm` is `arm/v7`.
    pub fn new(os: &str, architecture: &str, variant: Option<&str>) -> Self {
        let (architecture, variant) = normal(architecture, variant.unwrap_or(""));
        let os = match os.to_ascii_lowercase().as_str() {
            "macos" => "darwin".to_owned(),
            os => os.to_owned(),
        };
        let variant = (!variant.is_empty()).then_some(variant);
        Self { os, architecture, variant, os_version: None, os_features: Vec::new() }
    }

    /// The same with the features of a system; order and repetitions don't count.
    #[must_use]
    pub fn with_features(mut self, mut features: Vec<String>) -> Self {
        features.retain(|feature| !feature.is_empty());
        features.sort_unstable();
        features.dedup();
        self.os_features = features;
        self
    }

    /// The platform of the machine that rbuild runs on.
    pub fn host() -> Self {
        Self::new("linux", std::env::consts::ARCH, None)
    }

    /// How well an image for `self` serves somebody who asked for `wanted`: `None` not at all,
    /// otherwise lower is better. A machine runs images for older variants, and a 64-bit one those
    /// of its 32-bit sister; an image must not need a feature that was not asked for.
    pub fn serves(&self, wanted: &Self) -> Option<u32> {
        let (have, want) = (self.normalised(), wanted.normalised());
        if have.os != want.os || !have.os_features.iter().all(|f| want.os_features.contains(f)) {
            return None;
        }
        let own = (have.architecture, have.variant.unwrap_or_default());
        let runnable = runnable(&want.architecture, want.variant.as_deref());
        let rank = runnable.iter().position(|(arch, variant)| normal(arch, variant) == own)?;
        u32::try_from(rank).ok()
    }

    fn normalised(&self) -> Self {
        let normal = Self::new(&self.os, &self.architecture, self.variant.as_deref());
        normal.with_features(self.os_features.clone())
    }
}

/// What a machine of this architecture and variant runs, best first. (containerd:
/// `platformVector`.)
fn runnable(architecture: &str, variant: Option<&str>) -> Vec<(String, String)> {
    let given = variant.unwrap_or("");
    let of = |architecture: &str, variants: Vec<String>| -> Vec<(String, String)> {
        variants.into_iter().map(|variant| (architecture.to_owned(), variant)).collect()
    };
    match architecture {
        "amd64" => [of("amd64", older(given, 1)), of("386", vec![String::new()])].concat(),
        "arm" => of("arm", older(given, 5)),
        "arm64" => {
            [of("arm64", arm64_versions(variant.unwrap_or("v8"))), of("arm", older("v8", 5))]
                .concat()
        }
        other => of(other, vec![given.to_owned()]),
    }
}

/// `variant` and those before it, down to number `first`.
fn older(variant: &str, first: u32) -> Vec<String> {
    let number = variant.strip_prefix('v').and_then(|number| number.parse().ok());
    let older = (first..number.unwrap_or(first)).rev().map(|number| format!("v{number}"));
    std::iter::once(variant.to_owned()).chain(older).collect()
}

/// The 64-bit ARM versions that a machine of one runs: v9.N has all of v8.(N+5).
fn arm64_versions(variant: &str) -> Vec<String> {
    let minors = |major: u32, last: u32| {
        (0..=last).rev().map(move |minor| match minor {
            0 => format!("v{major}"),
            minor => format!("v{major}.{minor}"),
        })
    };
    let version = variant.strip_prefix('v').unwrap_or(variant);
    let (major, minor) = version.split_once('.').unwrap_or((version, "0"));
    match (major, minor.parse::<u32>()) {
        ("8", Ok(minor)) if minor <= 9 => minors(8, minor).collect(),
        ("9", Ok(minor)) if minor <= 9 => {
            minors(9, minor).chain(minors(8, (minor + 5).min(9))).collect()
        }
        _ => vec![variant.to_owned()],
    }
}

fn normal(architecture: &str, variant: &str) -> (String, String) {
    let architecture = architecture.to_ascii_lowercase();
    let variant = variant.to_ascii_lowercase();
    let (architecture, variant) = match (architecture.as_str(), variant.as_str()) {
        ("i386" | "i686" | "x86", _) => ("386", ""),
        ("x86_64" | "x86-64" | "amd64", "v1") => ("amd64", ""),
        ("x86_64" | "x86-64", variant) => ("amd64", variant),
        ("aarch64" | "arm64", "8" | "v8" | "v8.0") => ("arm64", ""),
        ("aarch64" | "arm64", "9" | "9.0" | "v9.0") => ("arm64", "v9"),
        ("aarch64", variant) => ("arm64", variant),
        ("armhf", _) | ("arm", "" | "7") => ("arm", "v7"),
        ("armel", _) | ("arm", "6") => ("arm", "v6"),
        ("arm", "5") => ("arm", "v5"),
        ("arm", "8") => ("arm", "v8"),
        (architecture, variant) => (architecture, variant),
    };
    (architecture.to_owned(), variant.to_owned())
}

/// Systems that a single word can name (containerd: `isKnownOS`).
const SYSTEMS: [&str; 17] = [
    "aix",
    "android",
    "darwin",
    "dragonfly",
    "freebsd",
    "hurd",
    "illumos",
    "ios",
    "js",
    "linux",
    "nacl",
    "netbsd",
    "openbsd",
    "plan9",
    "solaris",
    "windows",
    "zos",
];

/// Architectures that a single word can name (containerd: `isKnownArch`).
const ARCHITECTURES: [&str; 24] = [
    "386",
    "amd64",
    "amd64p32",
    "arm",
    "armbe",
    "arm64",
    "arm64be",
    "ppc64",
    "ppc64le",
    "loong64",
    "mips",
    "mipsle",
    "mips64",
    "mips64le",
    "mips64p32",
    "mips64p32le",
    "ppc",
    "riscv",
    "riscv64",
    "s390",
    "s390x",
    "sparc",
    "sparc64",
    "wasm",
];

impl FromStr for Platform {
    type Err = PlatformError;

    fn from_str(text: &str) -> Result<Self, PlatformError> {
        let wrong = || PlatformError::Form(text.to_owned());
        let mut parts = text.split('/');
        let system = System::parse(parts.next().unwrap_or_default()).ok_or_else(wrong)?;
        let rest: Vec<&str> = parts.collect();
        let is_word = |part: &&str| {
            !part.is_empty()
                && part
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.'))
        };
        if !rest.iter().all(is_word) {
            return Err(wrong());
        }
        let host = Self::host();
        let platform = match rest[..] {
            [] => {
                let named = Self::new(system.name, &host.architecture, host.variant.as_deref());
                if SYSTEMS.contains(&named.os.as_str()) {
                    named
                } else {
                    let named = Self::new(&host.os, system.name, None);
                    if !ARCHITECTURES.contains(&named.architecture.as_str()) {
                        return Err(PlatformError::Unknown(text.to_owned()));
                    }
                    named
                }
            }
            [architecture] => Self::new(system.name, architecture, None),
            [architecture, variant] => Self::new(system.name, architecture, Some(variant)),
            _ => return Err(wrong()),
        };
        let platform = Self { os_version: system.version, ..platform };
        Ok(platform.with_features(system.features))
    }
}

/// The first part of a platform: `windows(10.0.17763+win32k)`.
struct System<'a> {
    name: &'a str,
    version: Option<String>,
    features: Vec<String>,
}

impl<'a> System<'a> {
    fn parse(text: &'a str) -> Option<Self> {
        let (name, options) = match text.split_once('(') {
            Some((name, options)) => (name, options.strip_suffix(')')?),
            None => (text, ""),
        };
        let is_name = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-');
        let is_option = |b: u8| is_name(b) || matches!(b, b'.' | b'%' | b'+');
        if name.is_empty() || !name.bytes().all(is_name) || !options.bytes().all(is_option) {
            return None;
        }
        let mut options = options.split('+');
        let version = decoded(options.next().unwrap_or_default())?;
        let features = options.map(|feature| decoded(feature).filter(|text| !text.is_empty()));
        Some(Self {
            name,
            version: (!version.is_empty()).then_some(version),
            features: features.collect::<Option<_>>()?,
        })
    }
}

/// The text that `%2B` and its like stand for; `None` where an escape is none.
fn decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let mut digit = || char::from(rest.next()?).to_digit(16);
        let (high, low) = (digit()?, digit()?);
        bytes.push(u8::try_from(high * 16 + low).ok()?);
    }
    String::from_utf8(bytes).ok()
}

/// What stands for itself in an option, and what must be escaped. (containerd: `osOptionReplacer`.)
fn encoded(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '%' | '+' | '(' | ')' | '/' => {
                // Writing to a string cannot fail.
                let _ = write!(out, "%{:02X}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.os)?;
        if self.os_version.is_some() || !self.os_features.is_empty() {
            write!(f, "({}", encoded(self.os_version.as_deref().unwrap_or_default()))?;
            self.os_features.iter().try_for_each(|feature| write!(f, "+{}", encoded(feature)))?;
            f.write_str(")")?;
        }
        write!(f, "/{}", self.architecture)?;
        self.variant.iter().try_for_each(|variant| write!(f, "/{variant}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn normalises() {
        let check = |text: &str, expected: &str| {
            assert_eq!(text.parse::<Platform>().unwrap().to_string(), expected, "{text}");
        };
        check("linux/x86_64", "linux/amd64");
        check("linux/aarch64", "linux/arm64");
        check("linux/arm64/v8", "linux/arm64");
        check("linux/arm64/9", "linux/arm64/v9");
        check("linux/arm", "linux/arm/v7");
        check("linux/arm/v6", "linux/arm/v6");
        check("arm64", "linux/arm64");
        check("freebsd", &format!("freebsd/{}", Platform::host().architecture));
        check("macOS/arm64", "darwin/arm64");
        check("windows(10.0.17763+win32k)/amd64", "windows(10.0.17763+win32k)/amd64");
        check("linux(+b+a+a)/amd64", "linux(+a+b)/amd64");
        check("linux(1%2B2)/amd64", "linux(1%2B2)/amd64");
    }

    #[test]
    fn says_what_is_no_platform() {
        let check = |text: &str, expected: &str| {
            assert_eq!(text.parse::<Platform>().unwrap_err().to_string(), expected, "{text}");
        };
        check("x", "\"x\": unknown operating system or architecture");
        for text in ["", "linux/", "a/b/c/d", "linux/am d", "linux(1/amd64", "linux(+)/a", "(1)/a"]
        {
            let shape = "is not a platform: expected `os/arch[/variant]`, such as `linux/amd64`";
            check(text, &format!("`{text}` {shape}"));
        }
    }

    #[test]
    fn a_machine_runs_older_variants_but_not_newer() {
        let serves = |have: &str, want: &str| {
            have.parse::<Platform>().unwrap().serves(&want.parse().unwrap())
        };
        assert_eq!(serves("linux/arm/v7", "linux/arm/v7"), Some(0));
        assert_eq!(serves("linux/arm/v6", "linux/arm/v7"), Some(1));
        assert_eq!(serves("linux/arm/v7", "linux/arm/v6"), None);
        assert_eq!(serves("linux/amd64", "linux/arm64"), None);
        assert_eq!(serves("linux/amd64", "linux/amd64"), Some(0));
        assert_eq!(serves("linux/amd64", "linux/amd64/v2"), Some(1));
        assert_eq!(serves("linux/amd64/v3", "linux/amd64"), None);
        assert_eq!(serves("linux/386", "linux/amd64"), Some(1));
        assert_eq!(serves("linux/arm/v7", "linux/arm64"), Some(2));
        assert_eq!(serves("linux/arm64", "linux/arm/v7"), None);
        assert_eq!(serves("linux/arm64/v8.5", "linux/arm64/v9"), Some(1));
        assert_eq!(serves("linux/riscv64", "linux/riscv64"), Some(0));
    }

    #[test]
    fn an_image_must_not_need_more_features_than_asked_for() {
        let serves = |have: &str, want: &str| {
            have.parse::<Platform>().unwrap().serves(&want.parse().unwrap())
        };
        assert_eq!(serves("linux/amd64", "linux(+a)/amd64"), Some(0));
        assert_eq!(serves("linux(+a)/amd64", "linux(+a+b)/amd64"), Some(0));
        assert_eq!(serves("linux(+a)/amd64", "linux/amd64"), None);
    }
}
