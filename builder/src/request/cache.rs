//! `--cache-from` and `--cache-to`: where results of other machines are found, and where those of
//! this one are put for them. Follows buildx's `util/buildflags/cache.go`; what attributes mean, as
//! BuildKit's `cache/remotecache/{registry,local,inline}` have it.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use rbuild_cache::digest::Digest;
use rbuild_cache::layer::Compression;
use rbuild_cache::oci::ImageRef;

use super::{UsageError, boolean, csv};

/// One `--cache-from`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CacheFrom {
    /// A cache, or an image with records in its config, at a registry.
    Registry(ImageRef),
    /// An OCI layout on disk.
    Local {
        /// The folder.
        folder: PathBuf,
        /// Which of its caches, by digest; stronger than the tag.
        digest: Option<Digest>,
        /// Which of its caches.
        tag: String,
    },
}

/// One `--cache-to`.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "each is an attribute of its own")]
pub struct CacheTo {
    /// Where to.
    pub place: CachePlace,
    /// Which results.
    pub mode: CacheMode,
    /// How layers are compressed.
    pub compression: Compression,
    /// Layers that were found elsewhere are compressed so as well.
    pub force_compression: bool,
    /// Docker's media types instead of the OCI's.
    pub docker_types: bool,
    /// `image-manifest=false`: the manifest stands in an index.
    pub in_index: bool,
    /// A failure is a warning.
    pub ignore_error: bool,
}

/// Where results are put.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CachePlace {
    /// In a registry, under this name.
    Registry(ImageRef),
    /// In an OCI layout on disk.
    Local {
        /// The folder.
        folder: PathBuf,
        /// What the cache is called in it.
        tag: String,
        /// What the folder's index does not name stays.
        keep: bool,
    },
    /// In the config of the image that is built.
    Inline,
}

/// `mode=`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CacheMode {
    /// The results of which the image consists.
    Min,
    /// All results of the build.
    #[default]
    Max,
}

const FROM: &str = "--cache-from";
const TO: &str = "--cache-to";
/// Attributes that are true when they stand alone.
const SWITCHES: [&str; 5] =
    ["keep", "oci-mediatypes", "image-manifest", "force-compression", "ignore-error"];

impl fmt::Display for CacheFrom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Registry(image) => write!(f, "{image}"),
            Self::Local { folder, digest: Some(digest), .. } => {
                write!(f, "{}@{digest}", folder.display())
            }
            Self::Local { folder, digest: None, tag } => write!(f, "{}:{tag}", folder.display()),
        }
    }
}

impl fmt::Display for CachePlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Registry(image) => write!(f, "{image}"),
            Self::Local { folder, tag, .. } => write!(f, "{}:{tag}", folder.display()),
            Self::Inline => f.write_str("the image"),
        }
    }
}

/// All `--cache-from`.
pub(super) fn sources(given: &[String]) -> Result<Vec<CacheFrom>, UsageError> {
    given.iter().filter(|text| !text.is_empty()).map(|text| source(text)).collect()
}

/// All `--cache-to`, and what the build argument `BUILDKIT_INLINE_CACHE` adds to them.
pub(super) fn targets(
    given: &[String],
    build_args: &BTreeMap<String, String>,
) -> Result<Vec<CacheTo>, UsageError> {
    let given = given.iter().filter(|text| !text.is_empty());
    let mut targets = given.map(|text| target(text)).collect::<Result<Vec<_>, _>>()?;
    let asked = build_args.get("BUILDKIT_INLINE_CACHE").and_then(|value| boolean(value));
    if asked == Some(true) && targets.iter().all(|target| target.place != CachePlace::Inline) {
        targets.push(target("type=inline")?);
    }
    Ok(targets)
}

fn source(text: &str) -> Result<CacheFrom, UsageError> {
    let mut attributes = Attributes::read(FROM, text)?;
    let from = match attributes.kind.as_str() {
        "registry" => CacheFrom::Registry(attributes.image()?),
        "local" => CacheFrom::Local {
            folder: attributes.required("src")?.into(),
            digest: attributes.parsed("digest", "it is no digest")?,
            tag: attributes.take("tag").unwrap_or_else(|| "latest".into()),
        },
        "inline" => {
            return Err(attributes.wrong("records in an image are found by `type=registry,ref=`"));
        }
        _ => return Err(attributes.unknown()),
    };
    attributes.finish()?;
    Ok(from)
}

fn target(text: &str) -> Result<CacheTo, UsageError> {
    let mut attributes = Attributes::read(TO, text)?;
    let place = match attributes.kind.as_str() {
        "registry" => CachePlace::Registry(attributes.image()?),
        "local" => CachePlace::Local {
            folder: attributes.required("dest")?.into(),
            tag: attributes.take("tag").unwrap_or_else(|| "latest".into()),
            keep: attributes.boolean("keep", false)?,
        },
        "inline" => CachePlace::Inline,
        _ => return Err(attributes.unknown()),
    };
    let mode = match attributes.take("mode").as_deref() {
        None | Some("max") => CacheMode::Max,
        Some("min") => CacheMode::Min,
        Some(_) => return Err(attributes.wrong("`mode` is `min` or `max`")),
    };
    let level = attributes.parsed("compression-level", "`compression-level` is no number")?;
    let compression = attributes.take("compression").unwrap_or_else(|| "gzip".into());
    let compression = Compression::named(&compression, level)
        .map_err(|error| attributes.wrong(&error.to_string()))?;
    let docker_types = !attributes.boolean("oci-mediatypes", true)?;
    if docker_types && matches!(compression, Compression::Zstd { .. }) {
        return Err(attributes.wrong("Docker's media types (`oci-mediatypes=false`) have no zstd"));
    }
    let target = CacheTo {
        place,
        mode,
        compression,
        force_compression: attributes.boolean("force-compression", false)?,
        docker_types,
        in_index: !attributes.boolean("image-manifest", true)?,
        ignore_error: attributes.boolean("ignore-error", true)?,
    };
    attributes.finish()?;
    Ok(target)
}

/// The attributes of one value; what nobody takes is refused by name.
struct Attributes<'a> {
    flag: &'static str,
    text: &'a str,
    kind: String,
    left: BTreeMap<String, String>,
}

impl<'a> Attributes<'a> {
    /// A name alone is `type=registry,ref=NAME`.
    fn read(flag: &'static str, text: &'a str) -> Result<Self, UsageError> {
        if !text.contains('=') {
            let left = BTreeMap::from([("ref".to_owned(), text.to_owned())]);
            return Ok(Self { flag, text, kind: "registry".into(), left });
        }
        let mut left = BTreeMap::new();
        for field in csv::fields(flag, text)? {
            let (key, value) = match field.split_once('=') {
                Some((key, value)) => (key.trim().to_lowercase(), value.to_owned()),
                None if SWITCHES.contains(&field.as_str()) => (field, String::new()),
                None => {
                    let reason = format!("field `{field}` is no `key=value` pair");
                    return Err(UsageError::value(flag, text, reason));
                }
            };
            left.insert(key, value);
        }
        match left.remove("type").filter(|kind| !kind.is_empty()) {
            Some(kind) => Ok(Self { flag, text, kind, left }),
            None => Err(UsageError::value(flag, text, "`type=` is missing")),
        }
    }

    fn wrong(&self, reason: &str) -> UsageError {
        UsageError::value(self.flag, self.text, reason)
    }

    fn unknown(&self) -> UsageError {
        self.wrong(&format!(
            "rbuild has no cache of type `{}`, only registry, local and inline",
            self.kind
        ))
    }

    fn take(&mut self, key: &str) -> Option<String> {
        self.left.remove(key).filter(|value| !value.is_empty())
    }

    fn required(&mut self, key: &str) -> Result<String, UsageError> {
        self.take(key).ok_or_else(|| self.wrong(&format!("`{key}=` is missing")))
    }

    fn image(&mut self) -> Result<ImageRef, UsageError> {
        let name = self.required("ref")?;
        name.parse().map_err(|error: rbuild_cache::oci::ReferenceError| self.wrong(&error.reason))
    }

    fn parsed<T: std::str::FromStr>(
        &mut self,
        key: &str,
        reason: &str,
    ) -> Result<Option<T>, UsageError> {
        let value = self.take(key);
        value.map(|value| value.parse().map_err(|_| self.wrong(reason))).transpose()
    }

    fn boolean(&mut self, key: &str, default: bool) -> Result<bool, UsageError> {
        let Some(value) = self.left.remove(key) else { return Ok(default) };
        let value = if value.is_empty() { Some(true) } else { boolean(&value) };
        value.ok_or_else(|| self.wrong(&format!("`{key}` is neither `true` nor `false`")))
    }

    fn finish(self) -> Result<(), UsageError> {
        match self.left.keys().next() {
            None => Ok(()),
            Some(key) => {
                Err(self.wrong(&format!("cache type `{}` has no attribute `{key}`", self.kind)))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_where_to_look() {
        let check = |text: &str, expected: &str| {
            assert_eq!(source(text).unwrap().to_string(), expected, "{text}");
        };
        check("me/app:c", "docker.io/me/app:c");
        check("type=registry,ref=localhost:5000/c", "localhost:5000/c:latest");
        check("type=local,SRC=/c", "/c:latest");
        check("type=local,src=/c,tag=main", "/c:main");
        let digest = Digest::of("x");
        check(&format!("type=local,src=/c,digest={digest}"), &format!("/c@{digest}"));
    }

    #[test]
    fn reads_where_to_put() {
        let all = target(
            "type=registry,ref=me/c,mode=min,compression=zstd,compression-level=5,\
             oci-mediatypes=true,image-manifest=false,force-compression=true,ignore-error=false",
        )
        .unwrap();
        assert_eq!(all.mode, CacheMode::Min);
        assert_eq!(all.compression, Compression::Zstd { level: 5 });
        assert!(all.in_index && all.force_compression && !all.ignore_error && !all.docker_types);
        let local = target("type=local,dest=/c,tag=t,keep").unwrap();
        let place = CachePlace::Local { folder: "/c".into(), tag: "t".into(), keep: true };
        assert_eq!((local.place, local.mode, local.ignore_error), (place, CacheMode::Max, true));
        assert_eq!(target("me/c").unwrap().place.to_string(), "docker.io/me/c:latest");
    }

    #[test]
    fn the_build_argument_asks_for_inline_records() {
        let count = |given: &[&str], value: &str| {
            let given: Vec<String> = given.iter().map(ToString::to_string).collect();
            let argument = ("BUILDKIT_INLINE_CACHE".to_owned(), value.to_owned());
            targets(&given, &BTreeMap::from([argument])).unwrap().len()
        };
        assert_eq!(count(&[], "1"), 1);
        assert_eq!(count(&["type=inline"], "true"), 1);
        assert_eq!(count(&["type=local,dest=/c"], "1"), 2);
        assert_eq!(count(&[], "0"), 0);
    }

    #[test]
    fn what_is_not_there_is_refused_by_name() {
        let check = |result: Result<String, UsageError>, expected: &str| {
            let error = result.unwrap_err().to_string();
            assert!(error.ends_with(expected), "{error}");
        };
        let from = |text: &str| source(text).map(|from| from.to_string());
        let to = |text: &str| target(text).map(|to| to.place.to_string());
        for kind in ["gha", "s3", "azblob"] {
            let expected =
                format!("rbuild has no cache of type `{kind}`, only registry, local and inline");
            check(from(&format!("type={kind},url=x")), &expected);
            check(to(&format!("type={kind},url=x")), &expected);
        }
        check(to("type=local,dest"), "field `dest` is no `key=value` pair");
        check(from("src=/c"), "`type=` is missing");
        check(from("type=local"), "`src=` is missing");
        check(to("type=local"), "`dest=` is missing");
        check(to("type=registry"), "`ref=` is missing");
        check(from("type=inline"), "records in an image are found by `type=registry,ref=`");
        check(to("type=local,dest=/c,mode=all"), "`mode` is `min` or `max`");
        check(to("type=inline,dest=/c"), "cache type `inline` has no attribute `dest`");
        check(to("type=inline,compression=xz"), "is not one of `uncompressed`, `gzip`, `zstd`");
        check(to("type=inline,compression=zstd,oci-mediatypes=false"), "have no zstd");
    }
}
