//! Platforms: parsed from `os[/arch[/variant]]`, normalised as containerd does, matched best first.

use std::fmt;
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
}

/// Says what is wrong with a platform that was asked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a platform: expected `os/arch[/variant]`, such as `linux/amd64`")]
pub struct PlatformError(pub String);

impl Platform {
    /// A platform in its normal form: `x86_64` is `amd64`, `arm64/v8` is `arm64`, `arm` is `arm/v7`.
    pub fn new(os: &str, architecture: &str, variant: Option<&str>) -> Self {
        let (architecture, variant) = normal(architecture, variant.unwrap_or(""));
        let os = match os.to_ascii_lowercase().as_str() {
            "macos" => "darwin".to_owned(),
            os => os.to_owned(),
        };
        let variant = (!variant.is_empty()).then_some(variant);
        Self { os, architecture, variant, os_version: None }
    }

    /// The platform of the machine that rbuild runs on.
    pub fn host() -> Self {
        Self::new("linux", std::env::consts::ARCH, None)
    }

    /// How well an image for `self` serves somebody who asked for `wanted`: `None` not at all,
    /// otherwise lower is better. An ARM machine runs images for older ARM variants.
    pub fn serves(&self, wanted: &Self) -> Option<u32> {
        let (have, want) = (self.normalised(), wanted.normalised());
        if have.os != want.os {
            return None;
        }
        let rank = |platform: &Self| match (platform.architecture.as_str(), &platform.variant) {
            ("arm64", None) => Some(8_i32),
            ("arm", variant) => variant.as_deref().unwrap_or("v7").strip_prefix('v')?.parse().ok(),
            _ => None,
        };
        match (rank(&have), rank(&want)) {
            (Some(have), Some(want)) => u32::try_from(want - have).ok(),
            _ => (have.architecture == want.architecture
                && (have.variant == want.variant || have.variant.is_none()))
            .then_some(u32::from(have.variant != want.variant)),
        }
    }

    fn normalised(&self) -> Self {
        Self::new(&self.os, &self.architecture, self.variant.as_deref())
    }
}

fn normal(architecture: &str, variant: &str) -> (String, String) {
    let architecture = architecture.to_ascii_lowercase();
    let variant = variant.to_ascii_lowercase();
    let (architecture, variant) = match (architecture.as_str(), variant.as_str()) {
        ("i386" | "i686" | "x86", _) => ("386", ""),
        ("x86_64" | "x86-64" | "amd64", "v1") => ("amd64", ""),
        ("x86_64" | "x86-64", variant) => ("amd64", variant),
        ("aarch64" | "arm64", "8" | "v8") => ("arm64", ""),
        ("aarch64", variant) => ("arm64", variant),
        ("armhf", _) | ("arm", "" | "7") => ("arm", "v7"),
        ("armel", _) | ("arm", "6") => ("arm", "v6"),
        ("arm", "5") => ("arm", "v5"),
        ("arm", "8") => ("arm", "v8"),
        (architecture, variant) => (architecture, variant),
    };
    (architecture.to_owned(), variant.to_owned())
}

impl FromStr for Platform {
    type Err = PlatformError;

    fn from_str(text: &str) -> Result<Self, PlatformError> {
        let wrong = || PlatformError(text.to_owned());
        let parts: Vec<&str> = text.split('/').collect();
        let word = |part: &&str| {
            !part.is_empty()
                && part
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.'))
        };
        if !parts.iter().all(word) {
            return Err(wrong());
        }
        let host = Self::host();
        match parts[..] {
            ["local"] => Ok(host),
            [os] if matches!(os, "linux" | "windows" | "darwin" | "freebsd") => {
                Ok(Self::new(os, &host.architecture, host.variant.as_deref()))
            }
            [architecture] => Ok(Self::new("linux", architecture, None)),
            [os, architecture] => Ok(Self::new(os, architecture, None)),
            [os, architecture, variant] => Ok(Self::new(os, architecture, Some(variant))),
            _ => Err(wrong()),
        }
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
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
        check("linux/arm", "linux/arm/v7");
        check("linux/arm/v6", "linux/arm/v6");
        check("arm64", "linux/arm64");
        for wrong in ["", "linux/", "a/b/c/d", "linux/am d"] {
            assert!(wrong.parse::<Platform>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn an_arm_machine_runs_older_variants_but_not_newer() {
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
    }
}
