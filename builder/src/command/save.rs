//! `rbuild save`: local images as one archive, which `docker load`, `podman load`, skopeo and
//! `rbuild load` read.

use std::sync::Arc;

use rbuild_cache::oci::{Descriptor, ImageRef, Platform};
use rbuild_solver::progress::{Reporter, Silent};

use super::inspect::{chosen, platform};
use super::{run_async, settings};
use crate::cli::{GlobalArgs, SaveArgs};
use crate::error::BuildError;
use crate::export::{self, ImageArchive};
use crate::image_source::Images;
use crate::image_transfer;
use crate::local_image::{self, LocalImage, LocalImageError};
use crate::registry::Registry;
use crate::request::{Destination, Environment, UsageError};

/// Writes an archive; a file appears whole or not at all.
pub(super) fn run(
    global: &GlobalArgs,
    arguments: &SaveArgs,
    environment: &Environment,
) -> Result<(), BuildError> {
    let destination = match &arguments.output {
        Some(path) if path.as_os_str() != "-" => Destination::File(path.clone()),
        _ if environment.stdout_is_terminal => {
            let reason = "stdout is a terminal: name a file, or pipe it somewhere";
            return Err(UsageError::value("--output", "-", reason).into());
        }
        _ => Destination::Stdout,
    };
    let settings = settings(global, environment)?;
    let wanted = platform(arguments.platform.as_deref())?;
    let state = local_image::open(&settings)?;
    let images = Images::new(Registry::new(settings.registry.clone()), state.clone());
    let mut archive = ImageArchive::default();
    let mut blobs = Vec::new();
    for text in &arguments.images {
        let image = local_image::find(&state, text)?;
        blobs.extend(add(&mut archive, &images, text, &image, wanted.as_ref())?);
    }
    run_async(async {
        // Layers of an image that was pushed without being kept may still be at their registry.
        let task = Reporter::new(Arc::new(Silent)).start("save");
        for blob in blobs.iter().filter(|blob| blob.urls.is_empty()) {
            images.fetch_blob("", blob, &task).await?;
        }
        Ok(())
    })?;
    export::save(&archive, &state, &destination)
        .map_err(|error| error.hint().into_iter().fold(BuildError::fault(&error), BuildError::hint))
}

/// Adds what `text` names; returns the configs and layers that it needs.
fn add(
    archive: &mut ImageArchive,
    images: &Images,
    text: &str,
    image: &LocalImage,
    wanted: Option<&Platform>,
) -> Result<Vec<Descriptor>, BuildError> {
    let platforms = chosen(image, wanted)?;
    let root = match (wanted, &platforms[..]) {
        (Some(_), [only, ..]) => only.descriptor.clone(),
        _ => image.root.clone(),
    };
    // An image that is named by its ID is saved without a name, as docker does it.
    let name = text.parse::<ImageRef>().ok().filter(|name| name.to_string() == image.name);
    let content = image_transfer::content(images, &root)?;
    let manifests = content.manifests.iter().map(|(descriptor, _)| descriptor);
    let entry = match &name {
        Some(name) => export::called(&root, name),
        None => root.clone(),
    };
    archive.add(content.blobs.iter().chain(manifests), [entry]);
    // Readers of `manifest.json` see one platform: this machine's if it is there.
    let host = Platform::host();
    let listed = platforms.iter().find(|platform| platform.platform().serves(&host).is_some());
    if let Some(listed) = listed.or(platforms.first()) {
        let config = images.state().blobs().read(&listed.manifest.config);
        let config = config.map_err(|source| {
            let name = image.name.clone();
            LocalImageError::Blob { name, source }
        })?;
        archive.list(&listed.manifest, &config, name.as_slice());
    }
    Ok(content.blobs)
}
