//! Builds container images from Dockerfiles.

pub mod amount;
pub mod answer;
pub mod budget;
pub mod build;
pub mod cli;
pub mod command;
pub mod config;
pub mod context;
mod devices;
pub mod epoch;
pub mod error;
pub mod export;
mod file_place;
mod foreign;
pub mod http;
pub mod image;
pub mod image_archive;
pub mod image_document;
pub mod image_source;
pub mod image_transfer;
pub mod layer_arrival;
mod layout_folder;
pub mod local_image;
mod metadata;
pub mod oci_layout;
mod packing;
pub mod progress;
pub mod provenance;
pub mod registry;
pub mod remote_cache;
pub mod reproduce;
pub mod request;
mod signals;
pub mod slim;
mod stage_size;

use std::sync::Arc;

use rbuild_cache::digest::Digest;
use rbuild_cache::oci::{Descriptor, ImageRef};
use rbuild_solver::progress::{EventKind, Reporter};

pub use stage_size::StageSize;

use crate::answer::Answer;
use crate::build::{Built, Loaded, Session};
use crate::error::{BuildError, Problem};
use crate::export::{Around, Exported, Exporter};
use crate::image::BuiltImage;
use crate::packing::Packing;
use crate::request::{BuildRequest, OutputKind, UsageError};

/// What came of a build.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// What is wrong with the Dockerfile but no obstacle.
    pub warnings: Vec<Problem>,
    /// How large the stages became, and last the images.
    pub sizes: Vec<StageSize>,
    /// The image's manifest or index, if one was made.
    pub image: Option<Descriptor>,
    /// The image's config, if it is for one platform.
    pub config: Option<Digest>,
    /// What the image is called.
    pub names: Vec<ImageRef>,
    /// What exporters add to the metadata file.
    pub metadata: serde_json::Map<String, serde_json::Value>,
    /// What was slimmed, for each platform.
    pub slim: Vec<slim::SlimResult>,
    /// The answer to a `--call`; nothing was built then.
    pub answer: Option<Answer>,
}

impl Outcome {
    /// The image's ID: the digest of its config, or of its index if it is for several platforms.
    pub fn image_id(&self) -> Option<Digest> {
        self.config.or_else(|| self.image.as_ref().map(|image| image.digest))
    }
}

/// Builds what `request` asks for.
pub async fn build(request: &BuildRequest, reporter: &Reporter) -> Result<Outcome, BuildError> {
    let exporters = exporters(request)?;
    let session = Session::open(request, reporter.clone())?;
    let loaded = session.load().await?;
    if let Some(answer) = answer::answer(&session, &loaded).await? {
        return Ok(Outcome { answer: Some(answer), ..Outcome::default() });
    }
    let outcome = loop {
        match attempt(&session, &loaded, &exporters).await {
            // What was damaged is removed: what needs it runs now.
            Err(error) if session.state.snapshots().found_damage() => {
                tracing::debug!(%error, "once more, without what was damaged");
                let task = session.reporter.start("[internal] look at the cache");
                let message = format!("{error}; once more without it");
                task.tell(EventKind::Warning { message });
                task.tell(EventKind::Finished);
            }
            // Without what others built, which was of no use.
            Ok(None) => {}
            Ok(Some(outcome)) => break outcome,
            Err(error) => return Err(error),
        }
    };
    keep_budget(&session);
    Ok(outcome)
}

/// Builds and exports; `None` when that failed for what others built, which is rejected from now on.
async fn attempt(
    session: &Session<'_>,
    loaded: &Loaded,
    exporters: &[Box<dyn Exporter>],
) -> Result<Option<Outcome>, BuildError> {
    let packed = exporters.iter().find_map(|exporter| exporter.layers());
    let built = session.build(loaded, packed).await?;
    let exported = export_all(session, exporters, &built).await;
    let Some(remote) = &session.remote else { return exported.map(Some) };
    match exported {
        Err(_) if remote.reject_unusable(&built.images).await => Ok(None),
        Err(error) => Err(error),
        Ok(outcome) => {
            remote.finish(&built.images).await.map_err(|error| BuildError::failed(&error))?;
            Ok(Some(outcome))
        }
    }
}

/// Exports what was built wherever that is asked for.
async fn export_all(
    session: &Session<'_>,
    exporters: &[Box<dyn Exporter>],
    built: &Built,
) -> Result<Outcome, BuildError> {
    let (warnings, sizes) = (built.warnings.clone(), built.sizes.clone());
    let slim = built.slim.clone();
    let mut outcome = Outcome { warnings, sizes, slim, ..Outcome::default() };
    for exporter in exporters {
        let exported = export(session, &**exporter, &built.images, built.packing.as_ref()).await?;
        outcome.image = exported.image.or(outcome.image);
        outcome.config = exported.config.or(outcome.config);
        // In the order of `-t`, as buildx has them.
        let new: Vec<ImageRef> =
            exported.names.into_iter().filter(|name| !outcome.names.contains(name)).collect();
        outcome.names.extend(new);
    }
    let request = session.request;
    if request.slim.debug_image && !built.full.is_empty() {
        for exporter in debug_exporters(request)? {
            let exported = export(session, &*exporter, &built.full, None).await?;
            outcome.names.extend(exported.names);
        }
    }
    if let Some(path) = request.slim.report.as_ref().filter(|_| !outcome.slim.is_empty()) {
        slim::write_report(path, &outcome.slim)?;
    }
    for result in &outcome.slim {
        slim::remember(&session.state, outcome.image_id(), result)?;
    }
    Ok(outcome)
}

/// Keeps the cache within what `config.toml` allows. The build is done: that this fails is no reason
/// to call it failed.
fn keep_budget(session: &Session<'_>) {
    let settings = &session.request.settings;
    let now = build::seconds(settings.now);
    match budget::keep(&session.state, &settings.config.cache, now) {
        Ok(pruned) if pruned.entries == 0 => {}
        Ok(budget::Pruned { entries, bytes }) => {
            let task = session.reporter.start("[internal] keep the cache within its budget");
            let entries = progress::count(entries, "entry", "entries");
            let message = format!("removed {entries}, {} freed\n", progress::bytes(bytes));
            task.tell(EventKind::Output { stream: 1, bytes: message.into() });
            task.tell(EventKind::Finished);
        }
        Err(error) => {
            let task = session.reporter.start("[internal] keep the cache within its budget");
            let message = format!("the cache may exceed its budget: {error}");
            task.tell(EventKind::Warning { message });
            task.tell(EventKind::Finished);
        }
    }
}

/// The exporters that `request` asks for, their attributes checked.
fn exporters(request: &BuildRequest) -> Result<Vec<Box<dyn Exporter>>, UsageError> {
    let exporters = request.outputs.iter().map(|output| export::exporter(output, request));
    exporters.filter_map(Result::transpose).collect()
}

/// The exporters of the full image beside a slim one: those that send images by name, the tag being
/// `debug`, or ending in `-debug`.
fn debug_exporters(request: &BuildRequest) -> Result<Vec<Box<dyn Exporter>>, BuildError> {
    let mut request = request.clone();
    request.outputs.retain(|output| {
        let is_named = !output.attributes.contains_key("dest");
        is_named && matches!(output.kind, OutputKind::Image | OutputKind::Docker)
    });
    let names: Vec<ImageRef> = request.tags.iter().filter_map(slim::debug_name).collect();
    if request.outputs.is_empty() || names.is_empty() {
        return Err(UsageError::value(
            "--slim-debug-image",
            "true",
            "it needs an image with a name: `-t NAME`, into the local store or a registry",
        )
        .into());
    }
    request.tags = names;
    Ok(exporters(&request)?)
}

async fn export(
    session: &Session<'_>,
    exporter: &dyn Exporter,
    built: &[BuiltImage],
    packing: Option<&Arc<Packing>>,
) -> Result<Exported, BuildError> {
    let task = session.reporter.start(exporter.title());
    let around = Around {
        images: session.images.clone(),
        task: task.clone(),
        reporter: session.reporter.clone(),
        packing: packing.cloned(),
    };
    match exporter.export(built, &around).await {
        Ok(done) => {
            task.tell(EventKind::Finished);
            Ok(done)
        }
        Err(error) => {
            task.tell(EventKind::Failed { message: error.to_string() });
            let told = if error.is_damage() { BuildError::fault } else { BuildError::failed };
            Err(error.hint().into_iter().fold(told(&error), BuildError::hint))
        }
    }
}
