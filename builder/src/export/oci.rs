//! `type=oci`: the image as an OCI layout, in a tar or (`tar=false`) a folder.

use std::path::Path;

use async_trait::async_trait;
use rbuild_cache::oci::ImageRef;

use super::attributes::Attributes;
use super::layout::LayoutContent;
use super::{Around, ExportError, Exported, Exporter};
use super::{blocking, created, layout, write_into_tar, write_whole};
use crate::image::{BuiltImage, ImageOptions, WrittenImage};
use crate::request::{BuildRequest, Destination, UsageError};

/// Writes OCI layouts.
pub(super) struct OciExporter {
    destination: Destination,
    names: Vec<ImageRef>,
    options: ImageOptions,
}

impl OciExporter {
    pub(super) fn new(
        attributes: &mut Attributes,
        request: &BuildRequest,
    ) -> Result<Self, UsageError> {
        // Whether it is a tar, the destination says already.
        attributes.take("tar");
        let names = attributes.names(request)?;
        Ok(Self {
            destination: attributes.destination.clone().unwrap_or(Destination::Stdout),
            options: ImageOptions { names: names.clone(), ..attributes.image_options(request)? },
            names,
        })
    }
}

impl OciExporter {
    fn content(&self, written: &WrittenImage, built: &[BuiltImage]) -> LayoutContent {
        let names = layout::named(written, &self.names, created(built, &self.options));
        LayoutContent::of(written, names)
    }

    async fn write_folder(
        &self,
        folder: &Path,
        built: &[BuiltImage],
        around: &Around,
    ) -> Result<WrittenImage, ExportError> {
        let written = write_whole(built, &self.options, around).await?;
        let content = self.content(&written, built);
        let (state, folder) = (around.images.state().clone(), folder.to_owned());
        blocking(move || layout::write_folder(&state, &content, &folder)).await?;
        Ok(written)
    }

    async fn write_tar(
        &self,
        destination: &Destination,
        built: &[BuiltImage],
        around: &Around,
    ) -> Result<WrittenImage, ExportError> {
        let (written, tar) = write_into_tar(built, &self.options, destination, around).await?;
        let content = self.content(&written, built);
        let state = around.images.state().clone();
        blocking(move || Ok(layout::finish_tar(&state, &content, &[], tar)?.finish()?)).await?;
        Ok(written)
    }
}

#[async_trait]
impl Exporter for OciExporter {
    fn title(&self) -> String {
        "exporting to oci image format".into()
    }

    fn layers(&self) -> Option<&ImageOptions> {
        Some(&self.options)
    }

    async fn export(&self, built: &[BuiltImage], around: &Around) -> Result<Exported, ExportError> {
        let written = match &self.destination {
            Destination::Folder(folder) => self.write_folder(folder, built, around).await?,
            destination @ (Destination::File(_) | Destination::Stdout) => {
                self.write_tar(destination, built, around).await?
            }
        };
        Ok(Exported {
            image: Some(written.root),
            config: written.config,
            names: self.names.clone(),
        })
    }
}
