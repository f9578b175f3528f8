//! Reading a cache: from its manifest to what it says of steps. Layers stay where they are.

use rbuild_cache::oci::{Descriptor, MediaType};
use rbuild_solver::image_source::ImageSourceError;
use rbuild_solver::remote_cache::RemoteResult;

use super::inline;
use super::record::{self, RecordError, Records};
use crate::image_document::{self, Document, DocumentError, DocumentSource};
use crate::registry::RegistryError;
use crate::registry::error::Cause;

/// An index with more entries is refused.
const MOST_MANIFESTS: usize = 64;

/// Says why a cache cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// There is nothing by that name.
    #[error("there is no cache yet")]
    Missing,
    /// The registry did not answer, or not well.
    #[error(transparent)]
    Registry(RegistryError),
    /// A document could not be had.
    #[error(transparent)]
    Source(#[from] ImageSourceError),
    /// A document is wrong.
    #[error(transparent)]
    Document(#[from] DocumentError),
    /// The records are wrong.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// It is of another builder.
    #[error(
        "it is a cache of BuildKit's, whose keys mean nothing to rbuild: `--cache-to` of rbuild writes one that it can read"
    )]
    BuildKit,
    /// It is an image, and no more.
    #[error(
        "it is an image without records: `--cache-to type=inline` puts them in when it is built"
    )]
    NoRecords,
    /// It has more images than anybody builds for.
    #[error("its index has {0} entries; at most {MOST_MANIFESTS} are read")]
    TooMany(usize),
}

impl From<RegistryError> for ImportError {
    fn from(error: RegistryError) -> Self {
        match *error.failure.cause {
            Cause::NotFound(_) => Self::Missing,
            _ => Self::Registry(error),
        }
    }
}

/// What the cache below `root` says. `location` is where its layers can be fetched.
pub(super) async fn results(
    documents: &dyn DocumentSource,
    root: &Descriptor,
    location: &str,
) -> Result<Vec<RemoteResult>, ImportError> {
    let bytes = documents.document(root).await?;
    match image_document::parse(root, &bytes)? {
        Document::Manifest(manifest) => {
            of_manifest(documents, &manifest.config, &manifest.layers, location).await
        }
        Document::Index(index) => {
            if index.manifests.len() > MOST_MANIFESTS {
                return Err(ImportError::TooMany(index.manifests.len()));
            }
            of_index(documents, &index.manifests, location).await
        }
    }
}

/// What all manifests of an index say: a cache with `image-manifest=false`, or an image for several
/// platforms. Those without records are passed over if others have some.
async fn of_index(
    documents: &dyn DocumentSource,
    manifests: &[Descriptor],
    location: &str,
) -> Result<Vec<RemoteResult>, ImportError> {
    if manifests.iter().any(|d| d.media_type.as_str() == record::BUILDKIT) {
        return Err(ImportError::BuildKit);
    }
    let (mut all, mut none) = (Vec::new(), None);
    for descriptor in manifests.iter().filter(|d| d.media_type.is_manifest()) {
        let bytes = documents.document(descriptor).await?;
        let Document::Manifest(manifest) = image_document::parse(descriptor, &bytes)? else {
            continue;
        };
        match of_manifest(documents, &manifest.config, &manifest.layers, location).await {
            Ok(results) => all.extend(results),
            Err(error @ (ImportError::NoRecords | ImportError::BuildKit)) => none = Some(error),
            Err(error) => return Err(error),
        }
    }
    match none {
        Some(error) if all.is_empty() => Err(error),
        _ => Ok(all),
    }
}

async fn of_manifest(
    documents: &dyn DocumentSource,
    config: &Descriptor,
    layers: &[Descriptor],
    location: &str,
) -> Result<Vec<RemoteResult>, ImportError> {
    let records = match &config.media_type {
        MediaType::Other(kind) if kind == record::MEDIA_TYPE => {
            Records::parse(&documents.document(config).await?)?
        }
        MediaType::Other(kind) if kind == record::BUILDKIT => return Err(ImportError::BuildKit),
        MediaType::OciConfig | MediaType::DockerConfig => {
            inline::records_in(&documents.document(config).await?)?
        }
        // Attestations and artifacts of others.
        _ => return Err(ImportError::NoRecords),
    };
    Ok(records.results(layers, location)?)
}
