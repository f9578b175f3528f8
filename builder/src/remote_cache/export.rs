//! Putting the results of a build where other machines find them.
//!
//! While steps go on, those that are done are packed already, and sent to where sending takes time;
//! when the build is done, only the records are missing. Layers that an image of the build has too
//! are the same blobs, packed once and sent once.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use bytes::Bytes;
use rbuild_cache::digest::{CacheKey, Digest, TreeDigest};
use rbuild_cache::index::IndexError;
use rbuild_cache::oci::{Descriptor, Manifest, MediaType};
use rbuild_cache::snapshot::SnapshotId;
use rbuild_solver::image_source::ImageSourceError;
use rbuild_solver::progress::{EventKind, Reporter, Task};
use rbuild_solver::remote_cache::StepResult;
use rbuild_solver::tree::TreeLayer;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::JoinHandle;

use super::inline::identity;
use super::local::{self, LocalError};
use super::record::{self, MOST_KEYS, Record, Records};
use super::registry::Upload;
use crate::image::{self, ImageError, ImageOptions, StepBlob};
use crate::image_document::LONGEST_DOCUMENT;
use crate::image_source::Images;
use crate::registry::RegistryError;
use crate::request::{CacheMode, CachePlace, CacheTo};

/// Says why results could not be put somewhere.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// A layer could not be made a blob.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// A registry did not take something.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// A layer could not be fetched from where it was found.
    #[error(transparent)]
    Source(#[from] ImageSourceError),
    /// A folder could not be written.
    #[error(transparent)]
    Local(#[from] LocalError),
    /// The index could not be asked.
    #[error(transparent)]
    Index(#[from] IndexError),
    /// There are more records than anybody would read.
    #[error("the records take {0} bytes; at most {LONGEST_DOCUMENT} are read")]
    TooLong(u64),
    /// A thread ended without a result.
    #[error("the export panicked")]
    Panicked,
}

/// A cache as it is sent: a manifest that names a config and layers.
#[derive(Clone, Debug)]
pub(super) struct CacheContent {
    /// The records.
    pub(super) config: (Descriptor, Bytes),
    /// The layers, each once.
    pub(super) layers: Vec<Descriptor>,
    /// The manifest, and behind it the index that it is in, if any.
    pub(super) manifests: Vec<(Descriptor, Bytes)>,
}

/// An export that goes on beside the build. Dropped, it ends, and nobody sees what it sent.
pub(super) struct Export {
    pub(super) target: CacheTo,
    images: Images,
    reporter: Reporter,
    steps: UnboundedSender<StepResult>,
    work: JoinHandle<Beside>,
}

impl Drop for Export {
    fn drop(&mut self) {
        self.work.abort();
    }
}

/// What came of working beside the build.
struct Beside {
    steps: Vec<Step>,
    upload: Option<Upload>,
    failure: Option<ExportError>,
}

/// A result, with all keys that it was told under.
struct Step {
    identity: String,
    keys: BTreeSet<CacheKey>,
    result: StepResult,
    /// Packed already.
    blob: Option<StepBlob>,
}

impl Export {
    /// Begins to take results.
    pub(super) fn start(target: CacheTo, images: Images, reporter: Reporter) -> Self {
        let (steps, received) = unbounded_channel();
        let work = beside(target.clone(), images.clone(), reporter.clone(), received);
        Self { target, images, reporter, steps, work: tokio::spawn(work) }
    }

    /// Takes a result.
    pub(super) fn came_to(&self, result: StepResult) {
        // Who does not listen any more has failed, and says so at the end.
        let _ = self.steps.send(result);
    }

    /// Sends what is missing. `wanted` are the results of which images consist; `rejected` are blobs
    /// that turned out to be none.
    pub(super) async fn finish(
        mut self,
        wanted: &HashSet<String>,
        rejected: &HashSet<Digest>,
    ) -> Result<(), ExportError> {
        // The worker ends when nobody can tell it anything any more.
        self.steps = unbounded_channel().0;
        let beside = (&mut self.work).await.map_err(|_| ExportError::Panicked)?;
        let task = self.reporter.start(format!("exporting cache to {}", self.target.place));
        let sent = match beside.failure {
            Some(failure) => Err(failure),
            None => self.send(beside.steps, beside.upload, wanted, rejected, &task).await,
        };
        match &sent {
            Ok(()) => task.tell(EventKind::Finished),
            Err(error) if self.target.ignore_error => {
                let message = format!("the cache is not exported: {error}");
                task.tell(EventKind::Warning { message });
                task.tell(EventKind::Finished);
                return Ok(());
            }
            Err(error) => task.tell(EventKind::Failed { message: error.to_string() }),
        }
        sent
    }

    async fn send(
        &self,
        mut steps: Vec<Step>,
        upload: Option<Upload>,
        wanted: &HashSet<String>,
        rejected: &HashSet<Digest>,
        task: &Task,
    ) -> Result<(), ExportError> {
        if self.target.mode == CacheMode::Min {
            steps.retain(|step| wanted.contains(&step.identity));
        }
        let mut blobs = Vec::new();
        for step in steps {
            let blob = match step.blob {
                Some(blob) => blob,
                None => pack(&self.images, &self.target, &step.result, task).await?,
            };
            if !rejected.contains(&blob.descriptor.digest) {
                blobs.push((step.keys, step.result, blob));
            }
        }
        let locations: HashMap<Digest, String> = blobs
            .iter()
            .filter_map(|(_, _, blob)| Some((blob.descriptor.digest, blob.location.clone()?)))
            .collect();
        let content = content(&self.images, &self.target, blobs)?;
        match &self.target.place {
            CachePlace::Registry(_) => {
                let upload = upload.expect("it was begun with the export");
                Ok(upload.finish(content, locations, task).await?)
            }
            CachePlace::Local { folder, tag, keep } => {
                local::fetch(&self.images, &content, &locations, task).await?;
                let (state, folder) = (self.images.state().clone(), folder.clone());
                let (tag, keep) = (tag.clone(), *keep);
                let written = tokio::task::spawn_blocking(move || {
                    local::write(&state, &folder, &tag, keep, &content)
                });
                Ok(written.await.map_err(|_| ExportError::Panicked)??)
            }
            CachePlace::Inline => Ok(()),
        }
    }
}

/// Takes results as they come; packs and sends each new one at once, where that is wanted whatever
/// the build comes to.
async fn beside(
    target: CacheTo,
    images: Images,
    reporter: Reporter,
    mut received: UnboundedReceiver<StepResult>,
) -> Beside {
    let mut upload = match &target.place {
        CachePlace::Registry(image) => Some(Upload::new(image.clone(), images.clone(), reporter)),
        CachePlace::Local { .. } | CachePlace::Inline => None,
    };
    let mut steps: Vec<Step> = Vec::new();
    let mut known: HashMap<String, usize> = HashMap::new();
    let mut failure = None;
    while let Some(result) = received.recv().await {
        let Some(identity) = identity(&result.layer) else { continue };
        if let Some(position) = known.get(&identity) {
            let step = &mut steps[*position];
            step.keys.extend(result.keys);
            step.result.source = step.result.source.take().or(result.source);
            continue;
        }
        known.insert(identity.clone(), steps.len());
        let keys = result.keys.iter().copied().collect();
        let mut step = Step { identity, keys, result, blob: None };
        if target.mode == CacheMode::Max && failure.is_none() {
            let silent = Reporter::new(Arc::new(rbuild_solver::progress::Silent)).start("pack");
            match pack(&images, &target, &step.result, &silent).await {
                Ok(blob) => {
                    if let Some(upload) = &mut upload {
                        upload.begin(&blob);
                    }
                    step.blob = Some(blob);
                }
                Err(error) => failure = Some(error),
            }
        }
        steps.push(step);
    }
    Beside { steps, upload, failure }
}

async fn pack(
    images: &Images,
    target: &CacheTo,
    step: &StepResult,
    task: &Task,
) -> Result<StepBlob, ExportError> {
    let options = ImageOptions {
        compression: target.compression,
        force_compression: target.force_compression,
        docker_types: target.docker_types,
        ..ImageOptions::default()
    };
    Ok(image::step_blob(images, &options, &step.base, &step.layer, task).await?)
}

/// The documents of a cache with these layers.
fn content(
    images: &Images,
    target: &CacheTo,
    blobs: Vec<(BTreeSet<CacheKey>, StepResult, StepBlob)>,
) -> Result<CacheContent, ExportError> {
    let layers: BTreeMap<Digest, Descriptor> =
        blobs.iter().map(|(.., blob)| (blob.descriptor.digest, blob.descriptor.clone())).collect();
    let positions: HashMap<Digest, usize> = layers.keys().copied().zip(0..).collect();
    let mut records = Vec::new();
    for (keys, result, blob) in blobs {
        let Some((content, size, known)) = claim(images, &result.layer)? else { continue };
        let all: BTreeSet<CacheKey> = keys.iter().copied().chain(known).collect();
        // Those of this build come first.
        let others = all.difference(&keys).copied();
        records.push(Record {
            keys: keys.iter().copied().chain(others).take(MOST_KEYS as usize).collect(),
            layer: positions[&blob.descriptor.digest],
            diff_id: blob.described.diff_id,
            content,
            size,
            created: blob.described.created,
            source: result.source.or_else(|| source(&result.layer)),
        });
    }
    let config = serde_json::to_vec(&Records::new(records).to_json())
        .expect("records have string keys only");
    if config.len() as u64 > LONGEST_DOCUMENT {
        return Err(ExportError::TooLong(config.len() as u64));
    }
    let of_config = Descriptor::of(MediaType::Other(record::MEDIA_TYPE.to_owned()), &config);
    let layers: Vec<Descriptor> = layers.into_values().collect();
    let kind = if target.docker_types { MediaType::DockerManifest } else { MediaType::OciManifest };
    let manifest = Manifest {
        schema_version: 2,
        media_type: Some(kind.clone()),
        config: of_config.clone(),
        layers: layers.clone(),
        annotations: BTreeMap::new(),
    };
    let manifest = serde_json::to_vec(&manifest).expect("a manifest has string keys only");
    let mut manifests = vec![(Descriptor::of(kind, &manifest), Bytes::from(manifest))];
    if target.in_index {
        let kind = if target.docker_types { MediaType::DockerList } else { MediaType::OciIndex };
        let index = rbuild_cache::oci::Index {
            schema_version: 2,
            media_type: Some(kind.clone()),
            manifests: vec![manifests[0].0.clone()],
            annotations: BTreeMap::new(),
        };
        let index = serde_json::to_vec(&index).expect("an index has string keys only");
        manifests.push((Descriptor::of(kind, &index), Bytes::from(index)));
    }
    Ok(CacheContent { config: (of_config, config.into()), layers, manifests })
}

/// What was said of a result of elsewhere, to be passed on.
fn source(layer: &TreeLayer) -> Option<serde_json::Value> {
    match layer {
        TreeLayer::Remote(remote) => remote.result.source.clone(),
        TreeLayer::Image { .. } | TreeLayer::Snapshot(_) => None,
    }
}

/// What is said of a result: its tree's digest and size, and all keys under which it is known.
fn claim(
    images: &Images,
    layer: &TreeLayer,
) -> Result<Option<(TreeDigest, u64, Vec<CacheKey>)>, ExportError> {
    let keys = |id: &SnapshotId| images.state().index().keys(id, MOST_KEYS);
    Ok(match layer {
        TreeLayer::Image { .. } => None,
        TreeLayer::Snapshot(snapshot) => {
            Some((snapshot.content, snapshot.size, keys(&snapshot.id)?))
        }
        TreeLayer::Remote(remote) => {
            let result = &remote.result;
            Some((result.content, result.size, result.keys.clone()))
        }
    })
}
