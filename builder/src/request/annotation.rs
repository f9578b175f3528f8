//! `--annotation`: what a manifest, an index or their descriptors say besides.

use rbuild_cache::oci::Platform;

use super::UsageError;

/// One `--annotation`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Annotation {
    /// On what.
    pub subject: AnnotationSubject,
    /// Only for this platform's manifest, or its descriptor.
    pub platform: Option<Platform>,
    /// Its name.
    pub key: String,
    /// Its value.
    pub value: String,
}

/// What an annotation is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum AnnotationSubject {
    /// The index.
    Index,
    /// The index's descriptor in an OCI layout.
    IndexDescriptor,
    /// The manifest.
    Manifest,
    /// The manifest's descriptor in the index.
    ManifestDescriptor,
}

/// `[TYPE[PLATFORM],…:]KEY=VALUE` (buildx `util/buildflags/export.go`, `ParseAnnotations`).
pub(super) fn annotations(given: &[String]) -> Result<Vec<Annotation>, UsageError> {
    const FLAG: &str = "--annotation";
    let mut annotations = Vec::new();
    for text in given {
        let wrong = |reason: String| UsageError::value(FLAG, text, reason);
        let (name, value) =
            text.split_once('=').ok_or_else(|| wrong("expected KEY=VALUE".into()))?;
        let (subjects, key) = name.split_once(':').unwrap_or(("manifest", name));
        if key.is_empty() {
            return Err(wrong("its key is empty".into()));
        }
        for subject in subjects.split(',') {
            let (name, platform) = match subject.split_once('[') {
                Some((name, platform)) => {
                    let platform = platform.strip_suffix(']');
                    (name, Some(platform.ok_or_else(|| wrong("`]` is missing".into()))?))
                }
                None => (subject, None),
            };
            let platform = platform.map(str::parse).transpose();
            annotations.push(Annotation {
                subject: subject_named(name).ok_or_else(|| {
                    wrong(format!(
                        "`{name}` is none of index, index-descriptor, manifest and \
                         manifest-descriptor; a key with a colon has one of them before it"
                    ))
                })?,
                platform: platform
                    .map_err(|error: rbuild_cache::oci::PlatformError| wrong(error.to_string()))?,
                key: key.to_owned(),
                value: value.to_owned(),
            });
        }
    }
    Ok(annotations)
}

fn subject_named(name: &str) -> Option<AnnotationSubject> {
    match name {
        "index" => Some(AnnotationSubject::Index),
        "index-descriptor" => Some(AnnotationSubject::IndexDescriptor),
        "manifest" => Some(AnnotationSubject::Manifest),
        "manifest-descriptor" => Some(AnnotationSubject::ManifestDescriptor),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn annotations_say_on_what_they_are() {
        let check = |typed: &str, expected: &[&str]| {
            let shown: Vec<String> = annotations(&[typed.to_owned()])
                .unwrap()
                .iter()
                .map(|a| {
                    let platform = a.platform.as_ref().map(ToString::to_string);
                    format!("{:?}{platform:?} {}={}", a.subject, a.key, a.value)
                })
                .collect();
            assert_eq!(shown, expected, "{typed}");
        };
        check("k=v", &["ManifestNone k=v"]);
        check("manifest:a:b=v", &["ManifestNone a:b=v"]);
        check("index:k=v=w", &["IndexNone k=v=w"]);
        check("index,manifest:k=v", &["IndexNone k=v", "ManifestNone k=v"]);
        check(
            "manifest-descriptor[linux/arm64]:k=v",
            &[r#"ManifestDescriptorSome("linux/arm64") k=v"#],
        );
        assert!(annotations(&["k".into()]).is_err());
        assert!(annotations(&["index:=v".into()]).is_err());
        assert!(annotations(&["manifest[linux/arm64:k=v".into()]).is_err());
        for misspelt in ["idnex:k=v", "index,manifst:k=v", "a:b=v", ":k=v"] {
            let error = annotations(&[misspelt.into()]).unwrap_err().to_string();
            assert!(error.contains("is none of index,"), "{error}");
        }
    }
}
