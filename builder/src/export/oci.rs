//! `type=oci`: the image as an OCI layout, in a tar or (`tar=false`) a folder.

use async_trait::async_trait;
use rbuild_cache::oci::ImageRef;

use super::attributes::Attributes;
use super::destination::DestinationWriter;
use super::layout::LayoutContent;
use super::{Around, ExportError, Exported, Exporter, blocking, created, layout};
use crate::image::{self, BuiltImage, ImageOptions};
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

#[async_trait]
impl Exporter for OciExporter {
    fn title(&self) -> String {
        "exporting to oci image format".into()
    }

    async fn export(&self, built: &[BuiltImage], around: &Around) -> Result<Exported, ExportError> {
        let written = image::write(&around.images, built, &self.options, &around.task).await?;
        image::fetch_layers(&around.images, &written, &around.task).await?;
        let names = layout::named(&written, &self.names, created(built, &self.options));
        let exported = Exported {
            image: Some(written.root.clone()),
            config: written.config,
            names: self.names.clone(),
        };
        let (state, destination) = (around.images.state().clone(), self.destination.clone());
        let content = LayoutContent::of(&written, names);
        blocking(move || match &destination {
            Destination::Folder(folder) => layout::write_folder(&state, &content, folder),
            Destination::File(_) | Destination::Stdout => {
                let mut out = DestinationWriter::create(&destination)?;
                layout::write_tar(&state, &content, &[], &mut out)?;
                Ok(out.finish()?)
            }
        })
        .await?;
        Ok(exported)
    }
}
