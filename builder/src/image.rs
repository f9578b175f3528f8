//! An image out of what was built: layers become blobs, and config, manifest and index say which.
//!
//! Follows BuildKit's `exporter/containerimage/writer.go`: the same documents with the same fields
//! in the same order, so that a tool that reads its images reads these. Layers of base images stay
//! the blobs that they are, and need not even be here; the layers of steps are packed and
//! compressed once, however many exporters ask.

mod annotation;
mod attestation;
mod fetch;
mod layer;
mod options;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use bytes::Bytes;
use rbuild_cache::digest::{DiffId, Digest};
use rbuild_cache::index::IndexError;
use rbuild_cache::layer::LayerError;
use rbuild_cache::oci::{Descriptor, Index, Manifest, MediaType, Platform};
use rbuild_cache::state::StateFolder;
use rbuild_cache::store::StoreError;
use rbuild_frontend::image_config::{ExportedLayer, ImageConfig, Timestamp};
use rbuild_solver::image_source::{ImageSourceError, UnpackError};
use rbuild_solver::progress::{EventKind, Task};
use rbuild_solver::remote_cache::RemoteError;
use rbuild_solver::tree::Tree;
use serde::Serialize;

use crate::image_source::Images;
use crate::provenance::Provenance;
use crate::remote_cache::inline::{self, InlineKeys};
use crate::request::AnnotationSubject;

pub use attestation::{Attestation, AttestationPlace};
pub(crate) use fetch::bring_ready;
pub use fetch::{fetch_layers, snapshots};
pub use layer::{ComingBlob, ComingLayer, LayerWatcher, ReadyLayer};
pub(crate) use layer::{LayerDescription, StepBlob, pack_last, step_blob};
pub use options::ImageOptions;

use annotation::annotated;
use layer::Layers;

/// What was built for one platform.
#[derive(Clone, Debug)]
pub struct BuiltImage {
    /// For which.
    pub platform: Platform,
    /// Its config, without digests of layers and times of steps.
    pub config: ImageConfig,
    /// The config of the image that it was made from.
    pub base: Option<ImageConfig>,
    /// `SOURCE_DATE_EPOCH`, in seconds.
    pub epoch: Option<i64>,
    /// Its files.
    pub tree: Tree,
    /// How it was built, if that is to be said.
    pub provenance: Option<Provenance>,
    /// What its config says of the steps that made its layers (`--cache-to type=inline`).
    pub inline: Option<Arc<InlineKeys>>,
    /// What its manifest says of it, where manifests can. What the user says counts more.
    pub annotations: BTreeMap<String, String>,
}

/// An image that was written: its documents are in the content store, and so are new layers.
#[derive(Clone, Debug, PartialEq)]
pub struct WrittenImage {
    /// The manifest, or the index of several platforms, with the annotations and the platform that
    /// an index that names it should give.
    pub root: Descriptor,
    /// The config's digest, if it is for one platform.
    pub config: Option<Digest>,
    /// All configs and layers, each once.
    pub blobs: Vec<Descriptor>,
    /// All manifests with their bytes; an index stands behind what it names.
    pub manifests: Vec<(Descriptor, Bytes)>,
    /// Where layers that may not be here can be fetched: the location of their image.
    pub locations: HashMap<Digest, String>,
    /// Results of elsewhere that nobody has unpacked yet.
    pub unchecked: HashMap<Digest, DiffId>,
    /// Statements about it that are in no index.
    pub referrers: Vec<Attestation>,
}

/// Says why an image could not be written.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// A layer could not be packed.
    #[error("cannot export a layer of the image")]
    Layer(#[from] LayerError),
    /// A layer of a base image could not be fetched.
    #[error(transparent)]
    Source(#[from] ImageSourceError),
    /// A layer of a base image could not be fetched or unpacked.
    #[error(transparent)]
    Unpack(#[from] UnpackError),
    /// A result of elsewhere is none.
    #[error(transparent)]
    Remote(#[from] RemoteError),
    /// A document could not be stored.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The index could not be asked.
    #[error(transparent)]
    Index(#[from] IndexError),
    /// An annotation is on something that the image does not have.
    #[error("annotation `{key}` cannot be set: {reason}")]
    Annotation {
        /// Its key.
        key: String,
        /// What is missing.
        reason: &'static str,
    },
    /// Docker's media types have no place for statements.
    #[error("provenance cannot be kept with `oci-mediatypes=false`")]
    Provenance,
    /// A thread ended without a result.
    #[error("a thread that exported a layer panicked")]
    Panicked,
}

/// Writes the image that `built` is: for one platform a manifest, for several an index.
///
/// # Errors
/// [`ImageError::Annotation`] when an annotation has nothing to be on.
pub async fn write(
    images: &Images,
    built: &[BuiltImage],
    options: &ImageOptions,
    task: &Task,
) -> Result<WrittenImage, ImageError> {
    write_watched(images, built, options, None, task).await
}

/// Like [`write()`]; layers that have to be compressed are shown to `watcher` as they begin.
pub async fn write_watched(
    images: &Images,
    built: &[BuiltImage],
    options: &ImageOptions,
    watcher: Option<LayerWatcher>,
    task: &Task,
) -> Result<WrittenImage, ImageError> {
    annotation::check(built, options)?;
    let mut written = Vec::with_capacity(built.len());
    for (number, image) in built.iter().enumerate() {
        let watcher = watcher.as_ref().map(|watcher| (watcher, number));
        written.push(write_one(images, image, options, watcher, task).await?);
    }
    let mut attestations = attestations(images.state(), built, &written, options, task)?;
    let referrers = match options.attestations {
        AttestationPlace::Index => Vec::new(),
        AttestationPlace::Referrer => std::mem::take(&mut attestations),
    };
    let mut written = if built.len() == 1 && attestations.is_empty() {
        written.remove(0)
    } else {
        combine(images.state(), written, attestations, options, task)?
    };
    written.referrers = referrers;
    Ok(written)
}

/// What is said of each image.
fn attestations(
    state: &StateFolder,
    built: &[BuiltImage],
    written: &[WrittenImage],
    options: &ImageOptions,
    task: &Task,
) -> Result<Vec<Attestation>, ImageError> {
    let mut attestations = Vec::new();
    for (built, written) in built.iter().zip(written) {
        let Some(provenance) = said(built, options) else { continue };
        let attestation = attestation::write(state, provenance, written, &built.platform, options)?;
        let digest = attestation.descriptor.digest;
        task.tell(EventKind::Result { what: "attestation manifest".into(), digest });
        attestations.push(attestation);
    }
    Ok(attestations)
}

/// The provenance that goes into an image.
fn said<'a>(built: &'a BuiltImage, options: &ImageOptions) -> Option<&'a Provenance> {
    built.provenance.as_ref().filter(|one| options.inline_attestations || !one.inline_only)
}

async fn write_one(
    images: &Images,
    built: &BuiltImage,
    options: &ImageOptions,
    watcher: Option<(&LayerWatcher, usize)>,
    task: &Task,
) -> Result<WrittenImage, ImageError> {
    let epoch = options.epoch.or(built.epoch);
    let layers = Layers::new(images, options, task).with(options.latest(built.epoch), watcher);
    let layers = layers.all(&built.tree).await?;
    let mut config = built.config.clone();
    let described: Vec<ExportedLayer> = layers.iter().map(|layer| layer.exported.clone()).collect();
    config.finish(&described, built.base.as_ref(), epoch.map(Timestamp::from_seconds));
    if let Some(keys) = &built.inline {
        let described = layers.iter().map(|layer| LayerDescription {
            diff_id: layer.exported.diff_id,
            created: layer.created,
        });
        config.inline_cache =
            Some(inline::records(keys, built.tree.layers.iter().zip(described), epoch));
    }
    let config = config.to_json();
    let types = if options.docker_types {
        (MediaType::DockerManifest, MediaType::DockerConfig)
    } else {
        (MediaType::OciManifest, MediaType::OciConfig)
    };
    let config_descriptor = Descriptor::of(types.1, &config);
    let own = if options.docker_types { BTreeMap::new() } else { built.annotations.clone() };
    let given = annotated(options, AnnotationSubject::Manifest, Some(&built.platform));
    let manifest = Manifest {
        schema_version: 2,
        media_type: Some(types.0.clone()),
        config: config_descriptor.clone(),
        layers: layers.iter().map(|layer| layer.descriptor.clone()).collect(),
        annotations: own.into_iter().chain(given).collect(),
    };
    let manifest = manifest_bytes(&manifest);
    let state = images.state();
    state.blobs().put(&config)?;
    state.blobs().put(&manifest)?;
    let mut root = Descriptor::of(types.0, &manifest);
    root.platform = Some(built.platform.clone());
    root.annotations =
        annotated(options, AnnotationSubject::ManifestDescriptor, Some(&built.platform));
    task.tell(EventKind::Result { what: "manifest".into(), digest: root.digest });
    task.tell(EventKind::Result { what: "config".into(), digest: config_descriptor.digest });
    let mut blobs = vec![config_descriptor.clone()];
    let (mut locations, mut unchecked) = (HashMap::new(), HashMap::new());
    for layer in layers {
        if layer.unchecked {
            unchecked.insert(layer.descriptor.digest, layer.exported.diff_id);
        }
        if let Some(location) = layer.location {
            locations.insert(layer.descriptor.digest, location);
        }
        if blobs.iter().all(|known| known.digest != layer.descriptor.digest) {
            blobs.push(layer.descriptor);
        }
    }
    Ok(WrittenImage {
        manifests: vec![(root.clone(), manifest.into())],
        config: Some(config_descriptor.digest),
        root,
        blobs,
        locations,
        unchecked,
        referrers: Vec::new(),
    })
}

/// The images of several platforms as one index, with what is said of them.
fn combine(
    state: &StateFolder,
    written: Vec<WrittenImage>,
    attestations: Vec<Attestation>,
    options: &ImageOptions,
    task: &Task,
) -> Result<WrittenImage, ImageError> {
    let media_type = if options.docker_types { MediaType::DockerList } else { MediaType::OciIndex };
    let index = Index {
        schema_version: 2,
        media_type: Some(media_type.clone()),
        manifests: (written.iter().map(|image| &image.root))
            .chain(attestations.iter().map(|attestation| &attestation.descriptor))
            .cloned()
            .collect(),
        annotations: annotated(options, AnnotationSubject::Index, None),
    };
    let bytes = pretty(&index);
    state.blobs().put(&bytes)?;
    let mut root = Descriptor::of(media_type, &bytes);
    root.annotations = annotated(options, AnnotationSubject::IndexDescriptor, None);
    task.tell(EventKind::Result { what: "manifest list".into(), digest: root.digest });
    let mut all = WrittenImage {
        root: root.clone(),
        config: None,
        blobs: Vec::new(),
        manifests: Vec::new(),
        locations: HashMap::new(),
        unchecked: HashMap::new(),
        referrers: Vec::new(),
    };
    for image in written {
        let known = |blob: &Descriptor| all.blobs.iter().any(|known| known.digest == blob.digest);
        let new: Vec<Descriptor> = image.blobs.into_iter().filter(|blob| !known(blob)).collect();
        all.blobs.extend(new);
        all.manifests.extend(image.manifests);
        all.locations.extend(image.locations);
        all.unchecked.extend(image.unchecked);
    }
    for attestation in attestations {
        all.blobs.extend(attestation.blobs);
        all.manifests.push((attestation.descriptor, attestation.bytes));
    }
    all.manifests.push((root, bytes.into()));
    Ok(all)
}

/// A manifest as BuildKit writes it; its list of layers is `null` when there is none.
fn manifest_bytes(manifest: &Manifest) -> Vec<u8> {
    let mut value = serde_json::to_value(manifest).expect("a manifest has string keys only");
    if manifest.layers.is_empty() {
        value["layers"] = serde_json::Value::Null;
    }
    pretty(&value)
}

fn pretty(document: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec_pretty(document).expect("documents of images have string keys only")
}

/// Runs what computes or waits for the disk on a thread of its own.
async fn blocking<T: Send + 'static, E: Send + 'static>(
    work: impl FnOnce() -> Result<T, E> + Send + 'static,
) -> Result<T, ImageError>
where
    ImageError: From<E>,
{
    let done = tokio::task::spawn_blocking(work).await.map_err(|_| ImageError::Panicked)?;
    Ok(done?)
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;

    use rbuild_cache::snapshot::{Snapshot, SnapshotId};
    use rbuild_solver::progress::{Reporter, Silent};

    use super::*;
    use crate::registry::{Registry, RegistrySettings};
    use crate::request::Annotation;

    struct Store {
        images: Images,
        _folder: tempfile::TempDir,
    }

    fn store() -> Store {
        let folder = tempfile::tempdir().unwrap();
        let state = StateFolder::open(folder.path()).unwrap();
        let images = Images::new(Registry::new(RegistrySettings::default()), state);
        Store { images, _folder: folder }
    }

    impl Store {
        fn step(&self, fill: impl FnOnce(&Path)) -> Snapshot {
            let snapshots = self.images.state().snapshots();
            let draft = snapshots.draft().unwrap();
            fill(&draft.folder());
            snapshots.commit(&SnapshotId::random(), draft).unwrap()
        }

        async fn write(
            &self,
            built: &[BuiltImage],
            options: &ImageOptions,
        ) -> Result<(WrittenImage, serde_json::Value), ImageError> {
            let task = Reporter::new(Arc::new(Silent)).start("export");
            let written = write(&self.images, built, options, &task).await?;
            let (last, bytes) = written.manifests.last().unwrap();
            assert_eq!(self.images.state().blobs().read(last).unwrap(), *bytes);
            let document = serde_json::from_slice(bytes).unwrap();
            Ok((written, document))
        }
    }

    fn built(platform: &str, steps: &[Snapshot]) -> BuiltImage {
        let platform: Platform = platform.parse().unwrap();
        BuiltImage {
            config: ImageConfig::empty(&platform),
            platform,
            base: None,
            epoch: None,
            tree: steps.iter().cloned().fold(Tree::default(), Tree::with),
            inline: None,
            annotations: BTreeMap::new(),
            provenance: None,
        }
    }

    fn annotation(subject: AnnotationSubject, platform: Option<&str>) -> ImageOptions {
        let platform = platform.map(|platform| platform.parse().unwrap());
        let (key, value) = ("k".to_owned(), "v".to_owned());
        let annotations = vec![Annotation { subject, platform, key, value }];
        ImageOptions { annotations, ..ImageOptions::default() }
    }

    #[tokio::test]
    async fn an_image_without_layers_is_written_as_buildkit_writes_it() {
        let store = store();
        let image = built("linux/amd64", &[]);
        let (written, manifest) = store.write(&[image], &ImageOptions::default()).await.unwrap();
        assert_eq!(manifest["layers"], serde_json::Value::Null);
        assert_eq!(manifest["mediaType"], "application/vnd.oci.image.manifest.v1+json");
        assert_eq!(written.root.platform.unwrap().to_string(), "linux/amd64");
        assert_eq!(written.blobs.len(), 1);
    }

    #[tokio::test]
    async fn layers_are_written_once_and_in_the_wanted_form() {
        let store = store();
        let step = store.step(|folder| fs_err::write(folder.join("a"), "text").unwrap());
        let image = built("linux/amd64", &[step.clone(), step]);
        let options = ImageOptions { now: 7, ..ImageOptions::default() };
        let (written, manifest) =
            store.write(std::slice::from_ref(&image), &options).await.unwrap();
        assert_eq!(manifest["layers"].as_array().unwrap().len(), 2);
        assert_eq!(written.blobs.len(), 2, "a config, and one blob for both layers");
        let (again, _) = store.write(std::slice::from_ref(&image), &options).await.unwrap();
        assert_eq!(again, written);
        let docker = ImageOptions { docker_types: true, ..options };
        let (_, manifest) = store.write(&[image], &docker).await.unwrap();
        assert_eq!(
            manifest["layers"][0]["mediaType"],
            "application/vnd.docker.image.rootfs.diff.tar.gzip"
        );
    }

    #[tokio::test]
    async fn several_platforms_are_an_index() {
        let store = store();
        let images = [built("linux/amd64", &[]), built("linux/arm64", &[])];
        let options = annotation(AnnotationSubject::ManifestDescriptor, Some("linux/arm64"));
        let (written, index) = store.write(&images, &options).await.unwrap();
        assert_eq!(written.manifests.len(), 3);
        assert_eq!(written.config, None);
        assert_eq!(index["manifests"][1]["platform"]["architecture"], "arm64");
        assert_eq!(index["manifests"][1]["annotations"]["k"], "v");
        assert_eq!(index["manifests"][0]["annotations"], serde_json::Value::Null);
    }

    #[tokio::test]
    async fn annotations_need_something_to_be_on() {
        let store = store();
        let image = [built("linux/amd64", &[])];
        let check = async |options: ImageOptions, reason: &str| {
            let error = store.write(&image, &options).await.unwrap_err().to_string();
            assert!(error.contains(reason), "{error}");
        };
        check(annotation(AnnotationSubject::Index, None), "has no index").await;
        let other = annotation(AnnotationSubject::Manifest, Some("linux/arm64"));
        check(other, "not built for that platform").await;
        let docker = annotation(AnnotationSubject::ManifestDescriptor, None);
        check(ImageOptions { docker_types: true, ..docker }, "leaves no place").await;
    }
}
