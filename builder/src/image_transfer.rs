//! `rbuild pull` and `rbuild push`: whole images between registries and the local images.

use std::collections::{HashMap, HashSet};
use std::io::Read;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::TryStreamExt as _;
use futures::stream::FuturesUnordered;
use rbuild_cache::digest::Digest;
use rbuild_cache::oci::{Descriptor, ImageRef, Platform};
use rbuild_solver::image_source::{ImageSourceError, ResolvedImage};
use rbuild_solver::progress::Task;

use crate::image_document::{self, Document, DocumentError};
use crate::image_source::{Images, ResolveMode};
use crate::local_image::{self, LocalPlatform};
use crate::registry::push::{BlobSource, Naming, PushContent, Pushed};

/// Brings the image that `name` stands for at its registry here, with all its layers, and makes it
/// the local image of that name. One that is an index becomes its image for `wanted`, otherwise for
/// this machine.
///
/// # Errors
/// Also when an image that is no index is for another platform than the one that is `wanted`.
pub async fn pull(
    images: &Images,
    name: &str,
    wanted: Option<&Platform>,
    task: &Task,
) -> Result<ResolvedImage, ImageSourceError> {
    let image: ImageRef = name.parse().map_err(plain)?;
    let platform = wanted.cloned().unwrap_or_else(Platform::host);
    let resolved = images.resolve(name, &platform, ResolveMode::Pull, task).await?;
    if wanted.is_some_and(|wanted| resolved.platform.serves(wanted).is_none()) {
        let (image, found) = (image.familiar(), &resolved.platform);
        return Err(ImageSourceError {
            message: format!("`{image}` is not for `{platform}`, only for `{found}`"),
            hint: Some("leave out `--platform` to pull it all the same".to_owned()),
            source: None,
        });
    }
    let fetched = resolved.layers.iter().map(|layer| async {
        images.fetch_blob(&resolved.location, &layer.descriptor, task).await?;
        bring_to_disk(images, layer.descriptor.digest).await
    });
    let mut fetched: FuturesUnordered<_> = fetched.collect();
    while fetched.try_next().await?.is_some() {}
    drop(fetched);
    let manifest = images.stored(&resolved.manifest).ok_or_else(|| ImageSourceError {
        message: format!("manifest `{}` of `{image}` was removed meanwhile", resolved.manifest),
        hint: Some("pull it again".to_owned()),
        source: None,
    })?;
    let mut descriptor = Descriptor::of(image_document::media_type(&manifest), &manifest);
    descriptor.platform = Some(resolved.platform.clone());
    images.state().layout().set(&[image.to_string()], &descriptor).map_err(plain)?;
    Ok(resolved)
}

/// Brings all that `name` stands for at its registry here: every platform, and what is said of them.
/// Returns the digest of it.
pub async fn pull_all(
    images: &Images,
    name: &str,
    task: &Task,
) -> Result<Digest, ImageSourceError> {
    let image: ImageRef = name.parse().map_err(plain)?;
    let (puller, store) = (images.registry().puller(), images.state().blobs());
    let (root, bytes) = puller.manifest(&image).await?;
    store.put(&bytes).map_err(plain)?;
    let (mut open, mut blobs) = (vec![(root.clone(), bytes, 0)], Vec::new());
    // An index may name another one as often as it likes.
    let mut seen = HashSet::from([root.digest]);
    while let Some((descriptor, bytes, depth)) = open.pop() {
        if depth > image_document::DEEPEST {
            return Err(plain(image_document::DocumentError::Deep));
        }
        match image_document::parse(&descriptor, &bytes).map_err(plain)? {
            Document::Index(index) => {
                for child in index.manifests {
                    if !seen.insert(child.digest) {
                        continue;
                    }
                    if seen.len() > image_document::MOST_DOCUMENTS {
                        return Err(plain(image_document::DocumentError::Wide));
                    }
                    let (found, bytes) = puller.manifest(&image.with_digest(child.digest)).await?;
                    if found.size != child.size {
                        return Err(wrong_size(&image, &child, found.size));
                    }
                    store.put(&bytes).map_err(plain)?;
                    open.push((child, bytes, depth + 1));
                }
            }
            Document::Manifest(manifest) => {
                blobs.extend(manifest.layers.into_iter().chain([manifest.config]));
            }
        }
    }
    let mut known = HashSet::new();
    blobs.retain(|blob| known.insert(blob.digest));
    let fetched = blobs.iter().map(|blob| async {
        puller.fetch(&image, blob, store, None, task).await?;
        bring_to_disk(images, blob.digest).await
    });
    let mut fetched: FuturesUnordered<_> = fetched.collect();
    while fetched.try_next().await?.is_some() {}
    drop(fetched);
    for blob in &blobs {
        images.note_origin(&blob.digest, &image);
    }
    images.state().layout().set(&[image.to_string()], &root).map_err(plain)?;
    Ok(root.digest)
}

/// Waits until a blob is on the disk, while others are on their way: before the image gets its name,
/// all of them are.
async fn bring_to_disk(images: &Images, digest: Digest) -> Result<(), ImageSourceError> {
    let store = images.state().blobs().clone();
    let synced = tokio::task::spawn_blocking(move || store.sync_bytes(&digest)).await;
    synced.map_err(plain)?.map_err(plain)
}

/// Sends the local image called `name` to its registry; of an index just what is for `platform`, if
/// one is given. Returns what it came to, and the digest that the name stands for there.
pub async fn push(
    images: &Images,
    name: &str,
    platform: Option<&Platform>,
    task: &Task,
) -> Result<(Pushed, Digest), ImageSourceError> {
    let image: ImageRef = name.parse().map_err(plain)?;
    let root = images.state().layout().get(&image.to_string()).map_err(plain)?;
    let root = root.ok_or_else(|| ImageSourceError {
        message: format!("there is no local image `{}`", image.familiar()),
        hint: Some("`rbuild images` lists them".to_owned()),
        source: None,
    })?;
    let root = match platform {
        None => root,
        Some(platform) => for_platform(images, &image, &root, platform)?,
    };
    let content = content(images, &root)?;
    let source: Arc<dyn BlobSource> = Arc::new(StoredBlobs::new(images.clone(), HashMap::new()));
    let pusher = images.registry().pusher();
    Ok((pusher.push(&image, Naming::Tag, &content, &source, task).await?, root.digest))
}

/// The manifest in `root`, which is called `image`, that is for `platform`.
fn for_platform(
    images: &Images,
    image: &ImageRef,
    root: &Descriptor,
    platform: &Platform,
) -> Result<Descriptor, ImageSourceError> {
    let wrong = |error| image_document::of(&image.familiar(), &error);
    let mut found = root.clone();
    for _ in 0..=image_document::DEEPEST {
        let bytes = images.state().blobs().read(&found).map_err(plain)?;
        match image_document::parse(&found, &bytes).map_err(plain)? {
            Document::Manifest(_) => {
                // An index has chosen by what it says of its images; a manifest alone says nothing.
                let name = image.to_string();
                let local = local_image::read(images.state(), &name, &found).map_err(plain)?;
                let is: Vec<_> = local.platforms.iter().map(LocalPlatform::platform).collect();
                if found == *root && !is.iter().any(|is| is.serves(platform).is_some()) {
                    return Err(wrong(DocumentError::Platform {
                        wanted: Box::new(platform.clone()),
                        found: is.iter().map(|is| format!("`{is}`")).collect(),
                    }));
                }
                return Ok(found);
            }
            Document::Index(index) => {
                let chosen = image_document::choose(&index.manifests, platform);
                found = chosen.map_err(wrong)?.clone();
            }
        }
    }
    Err(plain(DocumentError::Deep))
}

/// Everything that the local image `root` consists of. What is here of it stays as long as this process
/// runs, also when the image is removed meanwhile.
pub fn content(images: &Images, root: &Descriptor) -> Result<PushContent, ImageSourceError> {
    let mut content = PushContent { blobs: Vec::new(), manifests: Vec::new() };
    collect(images, root, &mut content, &mut HashSet::new(), 0)?;
    Ok(content)
}

fn collect(
    images: &Images,
    descriptor: &Descriptor,
    content: &mut PushContent,
    seen: &mut HashSet<Digest>,
    depth: usize,
) -> Result<(), ImageSourceError> {
    if !seen.insert(descriptor.digest) {
        return Ok(());
    }
    if depth > image_document::DEEPEST {
        return Err(plain(image_document::DocumentError::Deep));
    }
    let bytes = images.state().blobs().read(descriptor).map_err(plain)?;
    match image_document::parse(descriptor, &bytes).map_err(plain)? {
        Document::Index(index) => {
            for child in &index.manifests {
                collect(images, child, content, seen, depth + 1)?;
            }
        }
        Document::Manifest(manifest) => {
            for blob in std::iter::once(manifest.config).chain(manifest.layers) {
                images.state().blobs().contains(&blob.digest).map_err(plain)?;
                content.blobs.push(blob);
            }
        }
    }
    content.manifests.push((descriptor.clone(), Bytes::from(bytes)));
    Ok(())
}

/// The blobs of the state folder, and those that can still be fetched into it: a push of an image
/// whose base was never unpacked moves the base's layers only where the registry cannot mount them.
#[derive(Debug)]
pub struct StoredBlobs {
    images: Images,
    /// Where blobs that are not here can be had.
    locations: HashMap<Digest, String>,
}

impl StoredBlobs {
    /// The blobs of the state folder of `images`. `locations` says of blobs that may not be here
    /// where they are: the [`ResolvedImage::location`] of their image.
    pub fn new(images: Images, locations: HashMap<Digest, String>) -> Self {
        Self { images, locations }
    }
}

#[async_trait]
impl BlobSource for StoredBlobs {
    async fn ensure(&self, descriptor: &Descriptor, task: &Task) -> Result<(), ImageSourceError> {
        let location = self.locations.get(&descriptor.digest).map_or("", String::as_str);
        self.images.fetch_blob(location, descriptor, task).await
    }

    fn open(&self, descriptor: &Descriptor) -> std::io::Result<Box<dyn Read + Send>> {
        let reader = self.images.state().blobs().leaving(descriptor);
        Ok(Box::new(reader.map_err(std::io::Error::other)?))
    }

    fn origin(&self, digest: &Digest, registry: &str) -> Option<ImageRef> {
        let location = self.locations.get(digest).and_then(|location| Images::image_at(location));
        let here = location.filter(|image| image.registry() == registry);
        here.or_else(|| self.images.origin_at(digest, registry))
    }

    fn arrived(&self, digest: &Digest, image: &ImageRef) {
        self.images.note_origin(digest, image);
    }
}

fn wrong_size(image: &ImageRef, manifest: &Descriptor, found: u64) -> ImageSourceError {
    let Descriptor { digest, size, .. } = manifest;
    ImageSourceError {
        message: format!("manifest `{digest}` of `{image}` has {found} bytes instead of {size}"),
        hint: None,
        source: None,
    }
}

fn plain(error: impl std::error::Error + Send + Sync + 'static) -> ImageSourceError {
    ImageSourceError { message: error.to_string(), hint: None, source: None }
}
