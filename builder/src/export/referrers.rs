//! Telling a registry what is said of an image: each statement is a manifest with the image as its
//! subject. A registry with an interface for such lists it by itself; at others it is listed under
//! the tag by which clients find it there (distribution-spec, "Referrers Tag Schema").
//!
//! The list is everybody's. What others wrote into it stays as they wrote it, fields that rbuild does
//! not know included, and a list that cannot be read is an error: it is never begun anew.

use std::sync::Arc;

use bytes::Bytes;
use rbuild_cache::digest::Digest;
use rbuild_cache::oci::{Descriptor, ImageRef, MediaType};
use serde_json::{Value, json};

use super::Around;
use crate::image::WrittenImage;
use crate::image_document::{self, Document};
use crate::registry::RegistryError;
use crate::registry::error::Cause;
use crate::registry::push::{BlobSource, Naming, PushContent};

/// Pushes what is said of the image called `name`, which is there already.
pub(super) async fn push(
    name: &ImageRef,
    written: &WrittenImage,
    source: &Arc<dyn BlobSource>,
    around: &Around,
) -> Result<(), RegistryError> {
    let registry = around.images.registry();
    for referrer in &written.referrers {
        let manifest = (referrer.descriptor.clone(), referrer.bytes.clone());
        let mut content = PushContent { blobs: referrer.blobs.clone(), manifests: vec![manifest] };
        registry.pusher().push(name, Naming::Digest, &content, source, &around.task).await?;
        let (subject, digest) = (&referrer.subject.digest, &referrer.descriptor.digest);
        if registry.puller().lists_referrer(name, subject, digest).await {
            continue;
        }
        let Some(tag) = tag(name, subject) else { continue };
        // Where nothing was said of the image yet there is no such tag.
        let known = registry.puller().current(&tag).await?;
        let list = with(known, &referrer.descriptor).map_err(|reason| {
            let action = format!("listing a statement about `{name}`");
            let cause =
                Cause::Protocol(format!("`{tag}` there is no list of statements: {reason}"));
            RegistryError::new(action, name.registry(), cause)
        })?;
        let Some(list) = list else { continue };
        content.manifests.push(list);
        registry.pusher().push(&tag, Naming::Tag, &content, source, &around.task).await?;
    }
    Ok(())
}

/// `sha256-…` in the repository of `name`.
fn tag(name: &ImageRef, subject: &Digest) -> Option<ImageRef> {
    let (registry, repository) = (name.registry(), name.repository());
    format!("{registry}/{repository}:sha256-{}", subject.hex()).parse().ok()
}

/// The list with one entry more; `None` when it has that one already.
fn with(
    known: Option<(Descriptor, Bytes)>,
    referrer: &Descriptor,
) -> Result<Option<(Descriptor, Bytes)>, String> {
    let mut list = match known {
        None => json!({"schemaVersion": 2, "mediaType": MediaType::OciIndex, "manifests": []}),
        Some((descriptor, bytes)) => {
            let parsed = image_document::parse(&descriptor, &bytes).map_err(|e| e.to_string())?;
            let Document::Index(index) = parsed else { return Err("it is a manifest".into()) };
            if index.manifests.iter().any(|there| there.digest == referrer.digest) {
                return Ok(None);
            }
            serde_json::from_slice(&bytes).map_err(|e| e.to_string())?
        }
    };
    if list["manifests"].is_null() {
        list["manifests"] = json!([]);
    }
    let Some(Value::Array(entries)) = list.get_mut("manifests") else {
        return Err("it has no entries".into());
    };
    entries.push(serde_json::to_value(referrer).expect("it has string keys only"));
    let bytes = serde_json::to_vec_pretty(&list).expect("it has string keys only");
    Ok(Some((Descriptor::of(MediaType::OciIndex, &bytes), bytes.into())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn referrer(text: &str) -> Descriptor {
        Descriptor::of(MediaType::OciManifest, text.as_bytes())
    }

    fn check(known: &str, expected: Result<usize, &str>) -> Option<Value> {
        let known = (Descriptor::of(MediaType::OciIndex, known.as_bytes()), known.to_owned());
        let found = with(Some((known.0, known.1.into())), &referrer("ours"));
        let list = found.map(|list| list.map(|(_, bytes)| serde_json::from_slice(&bytes).unwrap()));
        let entries = |list: &Option<Value>| {
            list.as_ref().map_or(0, |list: &Value| list["manifests"].as_array().unwrap().len())
        };
        match (&list, expected) {
            (Ok(list), Ok(expected)) => assert_eq!(entries(list), expected),
            (Err(error), Err(expected)) => assert!(error.contains(expected), "{error}"),
            other => panic!("{other:?}"),
        }
        list.ok().flatten()
    }

    #[test]
    fn what_others_wrote_stays_and_what_cannot_be_read_is_refused() {
        let theirs = serde_json::to_value(referrer("theirs")).unwrap();
        let mut odd = theirs.clone();
        odd["data"] = "e30=".into();
        odd["x"] = json!({"b": 1, "a": 2});
        let list = json!({"schemaVersion": 2, "y": [1.50], "manifests": [odd]});
        let list = check(&list.to_string(), Ok(2)).unwrap();
        assert_eq!(list["manifests"][0], odd);
        assert_eq!(list["y"], json!([1.5]));
        let ours = serde_json::to_value(referrer("ours")).unwrap();
        assert_eq!(list["manifests"][1], ours);
        check(&json!({"schemaVersion": 2, "manifests": [ours]}).to_string(), Ok(0));
        check(r#"{"schemaVersion": 2, "manifests": null}"#, Ok(1));
        check("{", Err("is not a valid"));
        check(r#"{"schemaVersion": 2, "manifests": [3]}"#, Err("is not a valid"));
        check(r#"{"schemaVersion": 2, "manifests": [], "layers": []}"#, Err("both an index"));
        let manifest = json!({"schemaVersion": 2, "config": theirs, "layers": []}).to_string();
        let known = Descriptor::of(MediaType::OciManifest, manifest.as_bytes());
        let error = with(Some((known, manifest.into())), &referrer("ours")).unwrap_err();
        assert_eq!(error, "it is a manifest");
    }

    #[test]
    fn the_first_entry_begins_a_list() {
        let (descriptor, bytes) = with(None, &referrer("ours")).unwrap().unwrap();
        let parsed = image_document::parse(&descriptor, &bytes).unwrap();
        let Document::Index(index) = parsed else { panic!("{parsed:?}") };
        assert_eq!(index.manifests, [referrer("ours")]);
    }
}
