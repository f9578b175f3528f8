//! Telling a registry what is said of an image: each statement is a manifest with the image as its
//! subject. A registry with an interface for such lists it by itself; at others it is listed under
//! the tag by which clients find it there (distribution-spec, "Referrers Tag Schema").
//!
//! The list is everybody's. What others wrote into it stays as they wrote it, byte for byte, and a
//! list that cannot be read is an error: it is never begun anew.
//!
//! Several may add to a list at once. Those of one machine wait for one another. Those of others are
//! noticed by a registry that replaces only what was read; at one that does not look at that, an
//! entry is put again until the list has it when it is read some time after it was put, and after
//! all else was pushed.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rbuild_cache::digest::Digest;
use rbuild_cache::lock::{LockGuard, Locks};
use rbuild_cache::oci::{Descriptor, ImageRef, MediaType};
use serde::Deserialize;
use serde_json::json;
use serde_json::value::RawValue;
use tokio::time::{Instant, sleep_until};

use super::Around;
use crate::image::WrittenImage;
use crate::image_document::{self, Document};
use crate::registry::RegistryError;
use crate::registry::current::{Current, Replaced};
use crate::registry::error::Cause;
use crate::registry::push::{BlobSource, Naming, PushContent};
use crate::registry::retry::pause_after;

/// How often an entry is put into a list that others write at the same time.
const MOST_PUTS: u32 = 6;
/// How long to wait at least until a list is read that was put. Who read it before and writes it
/// later than that undoes what was put: no wait rules that out where a registry takes whatever comes,
/// but a machine that is busy should not be enough for it.
const SETTLING: Duration = Duration::from_millis(500);

/// Pushes what is said of the image called `name`, which is there already. Gives the entries that were
/// put into lists; they are there to stay when each has [`Entry::settle`]d.
pub(super) async fn push(
    name: &ImageRef,
    written: &WrittenImage,
    source: &Arc<dyn BlobSource>,
    around: &Around,
) -> Result<Vec<Entry>, RegistryError> {
    let registry = around.images.registry();
    let mut entries = Vec::new();
    for referrer in &written.referrers {
        let manifest = (referrer.descriptor.clone(), referrer.bytes.clone());
        let content = PushContent { blobs: referrer.blobs.clone(), manifests: vec![manifest] };
        registry.pusher().push(name, Naming::Digest, &content, source, &around.task).await?;
        let (subject, digest) = (&referrer.subject.digest, &referrer.descriptor.digest);
        if registry.puller().lists_referrer(name, subject, digest).await {
            continue;
        }
        let Some(tag) = tag(name, subject) else { continue };
        let mut entry = Entry::new(name.clone(), tag, referrer.descriptor.clone());
        if entry.put(around).await? {
            entries.push(entry);
        }
    }
    Ok(entries)
}

/// An entry of a list that others may write at the same time.
#[derive(Debug)]
pub(super) struct Entry {
    /// The image that something is said of.
    name: ImageRef,
    /// The list's.
    tag: ImageRef,
    /// What is listed.
    referrer: Descriptor,
    /// How often it was put.
    puts: u32,
    /// When the list can be read again.
    settled: Instant,
    /// The version that the registry did not want to replace although it was still there: something
    /// between changes the versions' names, and they are of no use.
    refused: Option<Current>,
}

impl Entry {
    fn new(name: ImageRef, tag: ImageRef, referrer: Descriptor) -> Self {
        Self { name, tag, referrer, puts: 0, settled: Instant::now(), refused: None }
    }

    /// Sees to it that the list has it when nobody is left who could have read the list before.
    pub(super) async fn settle(mut self, around: &Around) -> Result<(), RegistryError> {
        while self.put(around).await? {}
        Ok(())
    }

    /// Puts it into the list once that has settled. `false` when it is there.
    async fn put(&mut self, around: &Around) -> Result<bool, RegistryError> {
        sleep_until(self.settled).await;
        let registry = around.images.registry();
        let locked = lock(around.images.state().locks(), &self.tag).await;
        let _alone = locked.map_err(|error| self.failed(Cause::Local(error)))?;
        let begun = Instant::now();
        let current = registry.puller().current(&self.tag).await?;
        let list = with(current.document(), &self.referrer).map_err(|reason| {
            let tag = &self.tag;
            let reason = format!("`{tag}` there is no list of statements: {reason}");
            self.failed(Cause::Protocol(reason))
        })?;
        let Some(list) = list else { return Ok(false) };
        if self.puts == MOST_PUTS {
            let reason = format!(
                "others write the list `{}` at the same time: the statement was put into it \
                 {MOST_PUTS} times, and is not in it",
                self.tag
            );
            return Err(self.failed(Cause::Protocol(reason)));
        }
        let refused = self.refused.as_ref().map(Current::digest);
        let known = Some(&current).filter(|current| refused != Some(current.digest()));
        let replaced = registry.pusher().replace(&self.tag, known, &list).await?;
        self.refused = (replaced == Replaced::Changed).then_some(current);
        let pause = match replaced {
            // Others take as long as this took to put the list after they read it, more or less.
            Replaced::Done => SETTLING.max(begun.elapsed() * 4),
            Replaced::Changed => Duration::ZERO,
        };
        let collisions = self.puts.checked_sub(1).map_or(Duration::ZERO, pause_after);
        self.puts += 1;
        self.settled = Instant::now() + pause + collisions;
        Ok(true)
    }

    fn failed(&self, cause: Cause) -> RegistryError {
        let action = format!("listing a statement about `{}`", self.name);
        RegistryError::new(action, self.name.registry(), cause)
    }
}

/// Waits until nobody else on this machine adds to the list. The wait ends when the future is
/// dropped.
async fn lock(locks: &Locks, tag: &ImageRef) -> std::io::Result<LockGuard> {
    let name = format!("list-{}", Digest::of(tag.to_string()).hex());
    loop {
        if let Some(guard) = locks.try_exclusive(&name)? {
            return Ok(guard);
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// `sha256-…` in the repository of `name`.
fn tag(name: &ImageRef, subject: &Digest) -> Option<ImageRef> {
    let (registry, repository) = (name.registry(), name.repository());
    format!("{registry}/{repository}:sha256-{}", subject.hex()).parse().ok()
}

/// The list with one entry more; `None` when it has that one already.
fn with(
    known: Option<&(Descriptor, Bytes)>,
    referrer: &Descriptor,
) -> Result<Option<(Descriptor, Bytes)>, String> {
    let entry = serde_json::to_string(referrer).expect("it has string keys only");
    let text = match known {
        None => {
            let list = json!({
                "schemaVersion": 2,
                "mediaType": MediaType::OciIndex,
                "manifests": [referrer],
            });
            serde_json::to_string_pretty(&list).expect("it has string keys only")
        }
        Some((descriptor, bytes)) => {
            let parsed = image_document::parse(descriptor, bytes).map_err(|e| e.to_string())?;
            let Document::Index(index) = parsed else { return Err("it is a manifest".into()) };
            if index.manifests.iter().any(|there| there.digest == referrer.digest) {
                return Ok(None);
            }
            let text = std::str::from_utf8(bytes).map_err(|e| e.to_string())?;
            inserted(text, &entry, index.manifests.is_empty())?
        }
    };
    Ok(Some((Descriptor::of(MediaType::OciIndex, text.as_bytes()), text.into())))
}

/// Where a list has its entries.
#[derive(Deserialize)]
struct Entries<'a> {
    #[serde(borrow)]
    manifests: &'a RawValue,
}

/// The text of a list with an entry behind its others; all else in it stays what it is.
fn inserted(text: &str, entry: &str, first: bool) -> Result<String, String> {
    let entries: Entries = serde_json::from_str(text).map_err(|_| "it has no entries")?;
    let entries = entries.manifests.get();
    // It is a part of the text itself.
    let start = entries.as_ptr().addr() - text.as_ptr().addr();
    let (before, after) = (&text[..start], &text[start + entries.len()..]);
    let entries = match entries.strip_suffix(']') {
        Some(others) if first => format!("{others}{entry}]"),
        Some(others) => format!("{others},{entry}]"),
        // It is `null`.
        None => format!("[{entry}]"),
    };
    Ok(format!("{before}{entries}{after}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn referrer(text: &str) -> Descriptor {
        Descriptor::of(MediaType::OciManifest, text.as_bytes())
    }

    /// What becomes of the list `known` when `ours` is added.
    fn added(known: &str) -> Result<Option<String>, String> {
        let descriptor = Descriptor::of(MediaType::OciIndex, known.as_bytes());
        let list = with(Some(&(descriptor, known.to_owned().into())), &referrer("ours"))?;
        Ok(list.map(|(descriptor, bytes)| {
            assert_eq!(descriptor, Descriptor::of(MediaType::OciIndex, &bytes));
            String::from_utf8(bytes.to_vec()).unwrap()
        }))
    }

    #[test]
    fn what_others_wrote_stays_and_what_cannot_be_read_is_refused() {
        let entry = |text: &str| serde_json::to_string(&referrer(text)).unwrap();
        let (ours, theirs) = (entry("ours"), entry("theirs"));
        let odd = theirs.replacen('{', r#"{ "x":[1.50, 1e400,{"b":1,"a":2}],  "#, 1);
        let list = |entries: &str| {
            format!(
                "{{\n \"schemaVersion\":2, \"y\":[1.50], \"manifests\": {entries}, \"z\": \"\\u00e4\"\n}}\n"
            )
        };
        let check = |entries: String, expected: String| {
            assert_eq!(added(&list(&entries)), Ok(Some(list(&expected))));
        };
        check(format!("[ {odd} ]"), format!("[ {odd} ,{ours}]"));
        check(format!("[{odd},{theirs}]"), format!("[{odd},{theirs},{ours}]"));
        check("[]".into(), format!("[{ours}]"));
        check("[ \n ]".into(), format!("[ \n {ours}]"));
        check("null".into(), format!("[{ours}]"));
        assert_eq!(added(&list(&format!("[{odd}, {ours}]"))), Ok(None));
        let refused = |known: &str, expected: &str| {
            let error = added(known).unwrap_err();
            assert!(error.contains(expected), "{known}: {error}");
        };
        refused("{", "is not a valid");
        refused(r#"{"schemaVersion": 2, "manifests": [3]}"#, "is not a valid");
        refused(r#"{"schemaVersion": 2, "manifests": [], "layers": []}"#, "both an index");
        let manifest = json!({"schemaVersion": 2, "config": referrer("c"), "layers": []});
        let manifest = manifest.to_string();
        let known = Descriptor::of(MediaType::OciManifest, manifest.as_bytes());
        let error = with(Some(&(known, manifest.into())), &referrer("ours")).unwrap_err();
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
