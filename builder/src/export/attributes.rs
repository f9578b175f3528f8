//! The attributes of an output: taken one by one by the exporter; what is left over is refused.

use std::collections::BTreeMap;

use rbuild_cache::layer::Compression;
use rbuild_cache::oci::{ImageRef, Platform};

use crate::image::{AttestationPlace, ImageOptions};
use crate::local_image;
use crate::request::{
    Annotation, AnnotationSubject, BuildRequest, Destination, OutputKind, OutputSpec, UsageError,
};

const FLAG: &str = "--output";

/// What an output was given and nobody has taken yet.
pub(super) struct Attributes {
    pub(super) kind: OutputKind,
    pub(super) destination: Option<Destination>,
    left: BTreeMap<String, String>,
}

impl Attributes {
    pub(super) fn of(output: &OutputSpec) -> Self {
        let (kind, destination) = (output.kind, output.destination.clone());
        Self { kind, destination, left: output.attributes.clone() }
    }

    /// The value of `key`, if it was given.
    pub(super) fn take(&mut self, key: &str) -> Option<String> {
        self.left.remove(key)
    }

    /// The value of `key`, which is `true` or `false` in one of Go's spellings.
    pub(super) fn boolean(&mut self, key: &str, default: bool) -> Result<bool, UsageError> {
        Ok(self.optional_boolean(key)?.unwrap_or(default))
    }

    /// Like [`Attributes::boolean`], `None` when it was not given.
    pub(super) fn optional_boolean(&mut self, key: &str) -> Result<Option<bool>, UsageError> {
        let Some(text) = self.take(key) else { return Ok(None) };
        if text.is_empty() {
            return Ok(Some(true));
        }
        let value = crate::request::boolean(&text)
            .ok_or_else(|| wrong(key, &text, "it is neither `true` nor `false`"))?;
        Ok(Some(value))
    }

    fn integer<T: std::str::FromStr>(&mut self, key: &str) -> Result<Option<T>, UsageError> {
        let parse = |text: String| text.parse().map_err(|_| wrong(key, &text, "it is no number"));
        self.take(key).map(parse).transpose()
    }

    /// What `source-date-epoch` says, in seconds.
    pub(super) fn epoch(&mut self) -> Result<Option<i64>, UsageError> {
        self.integer("source-date-epoch")
    }

    /// The image's names: `name`, or the tags of the build.
    pub(super) fn names(&mut self, request: &BuildRequest) -> Result<Vec<ImageRef>, UsageError> {
        let Some(names) = self.take("name").filter(|names| !names.is_empty()) else {
            return Ok(request.tags.clone());
        };
        let parse = |name: &str| {
            local_image::new_name(name.trim()).map_err(|e| wrong("name", name, &format!("{e}")))
        };
        names.split(',').map(parse).collect()
    }

    /// What the exporters of images have in common.
    pub(super) fn image_options(
        &mut self,
        request: &BuildRequest,
    ) -> Result<ImageOptions, UsageError> {
        let level = self.integer("compression-level")?;
        let compression = self.take("compression").unwrap_or_else(|| "gzip".into());
        let compression = Compression::named(&compression, level)
            .map_err(|e| wrong("compression", &compression, &e.to_string()))?;
        let docker_types = !self.boolean("oci-mediatypes", true)?;
        if docker_types && matches!(compression, Compression::Zstd { .. }) {
            return Err(UsageError::Conflict {
                one: "compression=zstd".into(),
                other: "oci-mediatypes=false".into(),
                instead: "leave out `oci-mediatypes=false`: Docker's media types have no zstd"
                    .into(),
            });
        }
        if docker_types && request.provenance.is_some() {
            return Err(UsageError::Conflict {
                one: "--provenance".into(),
                other: "oci-mediatypes=false".into(),
                instead: "leave out one of them: Docker's media types have no place for provenance"
                    .into(),
            });
        }
        let oci_artifact = self.boolean("oci-artifact", !docker_types)?;
        if oci_artifact && docker_types {
            return Err(UsageError::Conflict {
                one: "oci-artifact=true".into(),
                other: "oci-mediatypes=false".into(),
                instead: "leave out `oci-artifact=true`: Docker's media types have no artifacts"
                    .into(),
            });
        }
        let attestations = match self.take("attestations").as_deref() {
            None | Some("" | "index") => AttestationPlace::Index,
            Some("referrer") => AttestationPlace::Referrer,
            Some(other) => {
                return Err(wrong("attestations", other, "it is neither `index` nor `referrer`"));
            }
        };
        let inline = self.kind == OutputKind::Image;
        let mut annotations = request.annotations.clone();
        annotations.extend(self.annotations()?);
        let since_1970 = request.settings.now.duration_since(std::time::UNIX_EPOCH);
        Ok(ImageOptions {
            compression,
            force_compression: self.boolean("force-compression", false)?,
            docker_types,
            // Where there is an epoch; otherwise there is nothing to rewrite times to.
            rewrite_timestamp: self.boolean("rewrite-timestamp", true)?,
            annotations,
            epoch: self.epoch()?,
            // A clock before 1970 is wrong; what it says is no use.
            now: since_1970.map_or(0, |since| since.as_secs().cast_signed()),
            names: Vec::new(),
            attestations,
            inline_attestations: self.boolean("attestation-inline", inline)?,
            oci_artifact,
            prefer_nondistributable: self.boolean("prefer-nondist-layers", false)?,
        })
    }

    /// `annotation[-SUBJECT][[PLATFORM]].KEY=VALUE`, as BuildKit reads it
    /// (exporter/containerimage/exptypes/annotations.go).
    fn annotations(&mut self) -> Result<Vec<Annotation>, UsageError> {
        let keys: Vec<String> =
            self.left.keys().filter(|key| key.starts_with("annotation")).cloned().collect();
        let mut annotations = Vec::new();
        for key in keys {
            let value = self.left.remove(&key).unwrap_or_default();
            let annotation = annotation(&key, &value)
                .ok_or_else(|| wrong(&key, &value, "that is not how annotations are named"))?;
            annotations.push(annotation);
        }
        Ok(annotations)
    }

    /// Refuses what nobody took.
    pub(super) fn finish(self) -> Result<(), UsageError> {
        match self.left.into_iter().next() {
            None => Ok(()),
            Some((key, value)) => {
                let reason = format!("output type `{}` has no attribute `{key}`", self.kind);
                Err(wrong(&key, &value, &reason))
            }
        }
    }
}

fn annotation(key: &str, value: &str) -> Option<Annotation> {
    let rest = key.strip_prefix("annotation")?;
    let (kind, platform, name) = match rest.split_once('[') {
        // A bracket behind the first dot belongs to the name.
        Some((kind, rest)) if !kind.contains('.') => {
            let (platform, rest) = rest.split_once("].")?;
            (kind, Some(platform.parse::<Platform>().ok()?), rest)
        }
        _ => {
            let (kind, name) = rest.split_once('.')?;
            (kind, None, name)
        }
    };
    let subject = match kind {
        "" | "-manifest" => AnnotationSubject::Manifest,
        "-index" => AnnotationSubject::Index,
        "-manifest-descriptor" => AnnotationSubject::ManifestDescriptor,
        "-index-descriptor" => AnnotationSubject::IndexDescriptor,
        _ => return None,
    };
    let (key, value) = (name.to_owned(), value.to_owned());
    (!key.is_empty()).then_some(Annotation { subject, platform, key, value })
}

/// An attribute's value is no value for it.
pub(super) fn wrong(key: &str, value: &str, reason: &str) -> UsageError {
    UsageError::value(FLAG, format!("{key}={value}"), reason)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn annotations_name_their_subject() {
        let check = |key: &str, expected: &str| {
            let shown = annotation(key, "v").map(|one| {
                let platform = one.platform.map(|platform| format!("[{platform}]"));
                format!("{:?}{} {}", one.subject, platform.unwrap_or_default(), one.key)
            });
            assert_eq!(shown.as_deref().unwrap_or("none"), expected, "{key}");
        };
        check("annotation.k", "Manifest k");
        check("annotation.org.example.k", "Manifest org.example.k");
        check("annotation.k[x].y", "Manifest k[x].y");
        check("annotation-index.k", "Index k");
        check("annotation-index-descriptor.k", "IndexDescriptor k");
        check("annotation-manifest[linux/arm64].k", "Manifest[linux/arm64] k");
        check("annotation[linux/arm64].k", "Manifest[linux/arm64] k");
        for wrong in ["annotation", "annotation.", "annotation-x.k", "annotation[].k"] {
            check(wrong, "none");
        }
    }

    #[test]
    fn what_nobody_takes_is_refused_by_name() {
        let mut output = OutputSpec::new(OutputKind::Oci);
        output.attributes.insert("compresion".into(), "zstd".into());
        let error = Attributes::of(&output).finish().unwrap_err();
        assert_eq!(
            error.to_string(),
            "invalid value `compresion=zstd` for `--output`: output type `oci` has no attribute \
             `compresion`"
        );
    }
}
