//! `type=tar`: the files of the result as a tar (BuildKit, exporter/tar/export.go).

use std::io::{self, Write};

use async_trait::async_trait;
use rbuild_cache::layer::tar_reader::TarKind;
use rbuild_cache::layer::tar_writer::TarWriter;

use super::attributes::Attributes;
use super::destination::DestinationWriter;
use super::filesystem::{FilesystemOptions, OutgoingFile, PlatformFiles};
use super::{Around, ExportError, Exported, Exporter, blocking};
use crate::image::{BuiltImage, ImageOptions};
use crate::request::{Destination, UsageError};

/// Writes tars of files.
pub(super) struct TarExporter {
    destination: Destination,
    options: FilesystemOptions,
}

impl TarExporter {
    pub(super) fn new(attributes: &mut Attributes) -> Result<Self, UsageError> {
        let destination = attributes.destination.clone().unwrap_or(Destination::Stdout);
        Ok(Self { destination, options: FilesystemOptions::new(attributes)? })
    }
}

#[async_trait]
impl Exporter for TarExporter {
    fn title(&self) -> String {
        "exporting to client tarball".into()
    }

    fn layers(&self) -> Option<&ImageOptions> {
        None
    }

    async fn export(&self, built: &[BuiltImage], around: &Around) -> Result<Exported, ExportError> {
        let files = self.options.files(built, around).await?;
        let destination = self.destination.clone();
        blocking(move || {
            let mut out = DestinationWriter::create(&destination)?;
            write(&files, &mut out)?;
            Ok(out.finish()?)
        })
        .await?;
        Ok(Exported::default())
    }
}

fn write(files: &[PlatformFiles], out: impl Write) -> Result<(), ExportError> {
    let mut tar = TarWriter::new(out);
    for files in files {
        if let Some(folder) = files.own_folder() {
            tar.entry(&folder)?;
        }
        files.walk(&mut |file| write_file(&mut tar, file))?;
        if let Some((entry, bytes)) = files.statement()? {
            tar.entry(&entry)?;
            tar.data(&mut &bytes[..], bytes.len() as u64)?;
        }
    }
    tar.finish()?;
    Ok(())
}

fn write_file(tar: &mut TarWriter<impl Write>, file: &OutgoingFile<'_>) -> Result<(), ExportError> {
    tar.entry(&file.tar)?;
    let TarKind::File { size } = file.tar.kind else { return Ok(()) };
    if size > 0 && tar.data(&mut file.open()?, size)? != size {
        let path = file.entry.absolute_path();
        return Err(io::Error::other(format!("`{}` is damaged", path.display())).into());
    }
    Ok(())
}
