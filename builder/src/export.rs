//! Where results go: exporters, each chosen by an `--output`.
//!
//! An exporter is made, and its attributes are checked, before anything is built. Names and meaning
//! of attributes are BuildKit's (exporter/containerimage/exptypes/keys.go, exporter/local/fs.go);
//! one that an exporter does not know is refused by name.

mod archive;
mod attributes;
mod destination;
mod docker;
mod engine;
mod filesystem;
mod image;
mod layout;
mod layout_tar;
mod local;
mod oci;
mod referrers;
mod tar;

use std::io;
use std::sync::Arc;

use async_trait::async_trait;
use rbuild_cache::digest::Digest;
use rbuild_cache::layout::LayoutError;
use rbuild_cache::oci::{Descriptor, ImageRef};
use rbuild_cache::snapshot::SnapshotError;
use rbuild_cache::state::StateFolder;
use rbuild_cache::store::StoreError;
use rbuild_cache::view::ViewError;
use rbuild_solver::image_source::{ImageSourceError, UnpackError};
use rbuild_solver::progress::{Reporter, Task};

use crate::image::{
    BuiltImage, ImageError, ImageOptions, LayerWatcher, WrittenImage, fetch_layers, write,
    write_watched,
};
use crate::image_source::Images;
use crate::packing::Packing;
use crate::request::{BuildRequest, Destination, OutputKind, OutputSpec, UsageError};

pub(crate) use archive::ImageArchive;
pub(crate) use layout::called;

use attributes::Attributes;
use destination::DestinationWriter;
use layout_tar::LayoutTar;

/// Sends a result somewhere.
#[async_trait]
pub trait Exporter: Send + Sync {
    /// What progress shows: `exporting to image`.
    fn title(&self) -> String;

    /// How it has layers packed, if it has.
    fn layers(&self) -> Option<&ImageOptions>;

    /// Sends what was built, for one platform or for several.
    async fn export(&self, built: &[BuiltImage], around: &Around) -> Result<Exported, ExportError>;
}

/// What exporters need besides what was built.
#[derive(Clone, Debug)]
pub struct Around {
    /// The store, and where layers of base images come from.
    pub images: Images,
    /// Told about the export.
    pub task: Task,
    /// For tasks of its own.
    pub reporter: Reporter,
    /// Who packs layers already, if anybody does.
    pub(crate) packing: Option<Arc<Packing>>,
}

/// What came of an export.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Exported {
    /// The image's manifest or index, if it is an image.
    pub image: Option<Descriptor>,
    /// The image's config, if it is for one platform.
    pub config: Option<Digest>,
    /// What the image is called.
    pub names: Vec<ImageRef>,
}

/// Says why a result could not be sent.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// The image could not be written.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// A registry did not take it.
    #[error(transparent)]
    Source(#[from] ImageSourceError),
    /// The local store could not take it.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// A blob is damaged.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A tree could not be put together.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// A tree could not be read.
    #[error(transparent)]
    View(#[from] ViewError),
    /// The destination could not be written.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The format has no place for it.
    #[error("{0}")]
    Format(&'static str),
    /// Two platforms have a file at the same path.
    #[error("`{path}` is there for `{one}` and for `{other}`")]
    Twice {
        /// The path.
        path: String,
        /// The one platform.
        one: String,
        /// The other.
        other: String,
    },
    /// No container engine took the image.
    #[error("cannot load the image: {0}")]
    Load(String),
}

impl ExportError {
    /// What the user can do.
    pub fn hint(&self) -> Option<String> {
        if self.is_damage() {
            return Some("`rbuild cache verify --repair` mends the store; then build again".into());
        }
        match self {
            Self::Image(
                ImageError::Source(error) | ImageError::Unpack(UnpackError::Source(error)),
            )
            | Self::Source(error) => error.hint.clone(),
            Self::Format(_) => Some("`-o type=oci` writes images for several platforms".into()),
            Self::Twice { .. } => Some("leave out `platform-split=false`".into()),
            Self::Load(_) => {
                Some("`-o type=docker,dest=FILE` writes an archive to load elsewhere".into())
            }
            Self::Layout(error) => error.hint().map(Into::into),
            Self::Image(_) | Self::Store(_) | Self::Snapshot(_) | Self::View(_) | Self::Io(_) => {
                None
            }
        }
    }

    /// Whether a blob of the store is not what it was.
    pub fn is_damage(&self) -> bool {
        let error = match self {
            Self::Store(error) | Self::Image(ImageError::Store(error)) => Some(error),
            Self::Io(error) => error.get_ref().and_then(|error| error.downcast_ref()),
            _ => None,
        };
        error.is_some_and(StoreError::is_damage)
    }
}

/// The exporter that `output` asks for; `None` for `cacheonly`.
pub fn exporter(
    output: &OutputSpec,
    request: &BuildRequest,
) -> Result<Option<Box<dyn Exporter>>, UsageError> {
    let mut attributes = Attributes::of(output);
    let exporter: Option<Box<dyn Exporter>> = match output.kind {
        OutputKind::Image => Some(Box::new(image::ImageExporter::new(&mut attributes, request)?)),
        OutputKind::Oci => Some(Box::new(oci::OciExporter::new(&mut attributes, request)?)),
        OutputKind::Docker => {
            Some(Box::new(docker::DockerExporter::new(&mut attributes, request)?))
        }
        OutputKind::Tar => Some(Box::new(tar::TarExporter::new(&mut attributes)?)),
        OutputKind::Local => Some(Box::new(local::LocalExporter::new(&mut attributes)?)),
        OutputKind::CacheOnly => None,
    };
    attributes.finish()?;
    Ok(exporter)
}

/// How the first output that is an image writes it; as by default if there is none.
pub(crate) fn image_options(request: &BuildRequest) -> Result<ImageOptions, UsageError> {
    let is_image = |output: &&OutputSpec| {
        matches!(output.kind, OutputKind::Image | OutputKind::Oci | OutputKind::Docker)
    };
    let output = request.outputs.iter().find(is_image).cloned();
    let output = output.unwrap_or_else(|| OutputSpec::new(OutputKind::Image));
    Attributes::of(&output).image_options(request)
}

/// Writes an archive of local images.
pub(crate) fn save(
    archive: &ImageArchive,
    state: &StateFolder,
    destination: &Destination,
) -> Result<(), ExportError> {
    let out = DestinationWriter::create(destination)?;
    Ok(archive.write(state, out)?.finish()?)
}

/// Writes an image of which all blobs are here then, also those of layers that no step has read.
async fn write_whole(
    built: &[BuiltImage],
    options: &ImageOptions,
    around: &Around,
) -> Result<WrittenImage, ExportError> {
    let (images, task) = (&around.images, &around.task);
    let written = write(images, built, options, task).await?;
    fetch_layers(images, &written, task).await?;
    Ok(written)
}

/// Writes an image, and its layers into the tar that `destination` becomes while they are compressed.
async fn write_into_tar(
    built: &[BuiltImage],
    options: &ImageOptions,
    destination: &Destination,
    around: &Around,
) -> Result<(WrittenImage, LayoutTar<DestinationWriter>), ExportError> {
    let (watcher, layers) = tokio::sync::mpsc::unbounded_channel();
    let (state, destination) = (around.images.state().clone(), destination.clone());
    let counts: Vec<usize> = built.iter().map(|image| image.tree.layers.len()).collect();
    let watcher = Some(LayerWatcher::All(watcher));
    let (images, task) = (&around.images, &around.task);
    let writing = write_watched(images, built, options, watcher, task);
    let taking = blocking(move || {
        let mut tar = LayoutTar::new(DestinationWriter::create(&destination)?)?;
        tar.layers(&state, &counts, layers)?;
        Ok(tar)
    });
    tokio::try_join!(async { Ok(writing.await?) }, taking)
}

/// When an image was made, for the annotation that says so.
fn created(built: &[BuiltImage], options: &ImageOptions) -> i64 {
    let epoch = built.iter().find_map(|image| image.epoch);
    options.epoch.or(epoch).unwrap_or(options.now)
}

/// Runs what waits for the disk on a thread of its own.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ExportError> + Send + 'static,
) -> Result<T, ExportError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|_| ExportError::Image(ImageError::Panicked))?
}
