//! Annotations that the user gives: on manifests, on the index, and on what names them.

use std::collections::BTreeMap;

use rbuild_cache::oci::Platform;

use super::{AttestationPlace, BuiltImage, ImageError, ImageOptions, said};
use crate::request::{Annotation, AnnotationSubject};

/// Refuses annotations that the image that `built` becomes has no place for.
pub(super) fn check(built: &[BuiltImage], options: &ImageOptions) -> Result<(), ImageError> {
    let says = built.iter().any(|built| said(built, options).is_some());
    if says && options.docker_types {
        return Err(ImageError::Provenance);
    }
    let is_index = built.len() > 1 || (says && options.attestations == AttestationPlace::Index);
    for annotation in &options.annotations {
        let wrong = |reason| Err(ImageError::Annotation { key: annotation.key.clone(), reason });
        let of_index = matches!(
            annotation.subject,
            AnnotationSubject::Index | AnnotationSubject::IndexDescriptor
        );
        if of_index && !is_index {
            return wrong("an image for a single platform has no index");
        }
        if options.docker_types && annotation.subject != AnnotationSubject::Manifest {
            return wrong("`oci-mediatypes=false` leaves no place for it");
        }
        let platform = annotation.platform.as_ref();
        if platform.is_some_and(|platform| built.iter().all(|one| one.platform != *platform)) {
            return wrong("the image is not built for that platform");
        }
    }
    Ok(())
}

/// What the user says of `subject`, in an image for `platform` or of all platforms.
pub(super) fn annotated(
    options: &ImageOptions,
    subject: AnnotationSubject,
    platform: Option<&Platform>,
) -> BTreeMap<String, String> {
    let meant = |annotation: &&Annotation| {
        annotation.subject == subject
            && (annotation.platform.is_none() || annotation.platform.as_ref() == platform)
    };
    let annotations = options.annotations.iter().filter(meant);
    annotations.map(|one| (one.key.clone(), one.value.clone())).collect()
}
