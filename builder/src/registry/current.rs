//! What a tag stands for where pushes go, and replacing it without losing what others put there
//! meanwhile: a registry that tells versions apart is asked to replace just the one that was read
//! (RFC 9110, 13.1). Most do not look at that; so who must be sure reads again afterwards.

use bytes::Bytes;
use rbuild_cache::digest::Digest;
use rbuild_cache::oci::{Descriptor, ImageRef};
use reqwest::StatusCode;
use reqwest::header::{HeaderName, HeaderValue, IF_MATCH, IF_NONE_MATCH};

use super::error::{Cause, RegistryError};
use super::pull::{Puller, Version};
use super::push::Pusher;
use super::upload::Uploads;

/// What a tag stood for when it was read.
#[derive(Clone, Debug)]
pub struct Current(Option<Version>);

/// What came of [`Pusher::replace`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Replaced {
    /// The registry took it.
    Done,
    /// The registry says that the tag stands for something else by now.
    Changed,
}

impl Current {
    /// The manifest or index; `None` where there is no such tag.
    pub fn document(&self) -> Option<&(Descriptor, Bytes)> {
        self.0.as_ref().map(|version| &version.document)
    }

    /// Its digest.
    pub fn digest(&self) -> Option<Digest> {
        self.document().map(|(descriptor, _)| descriptor.digest)
    }

    /// The header that asks to replace this and nothing else, where there is one.
    fn condition(&self) -> Option<(HeaderName, HeaderValue)> {
        match &self.0 {
            None => Some((IF_NONE_MATCH, HeaderValue::from_static("*"))),
            Some(version) => version.etag.clone().map(|etag| (IF_MATCH, etag)),
        }
    }
}

impl Puller {
    /// What `image` stands for where pushes of it go, and nothing else: what is to be replaced there
    /// is not read from a mirror, which may be behind. That there is no such thing only the registry
    /// can say.
    pub async fn current(&self, image: &ImageRef) -> Result<Current, RegistryError> {
        let endpoint = self.transport().hosts().and_then(|hosts| hosts.push_endpoint(image));
        let found = match endpoint {
            Ok(endpoint) => self.version_at(&endpoint, image).await,
            Err(error) => Err(error.into()),
        };
        match found {
            Ok(version) => Ok(Current(Some(version))),
            Err(Cause::NotFound(_)) => Ok(Current(None)),
            Err(cause) => {
                let action = format!("reading what `{image}` is now");
                Err(RegistryError::new(action, image.registry(), cause))
            }
        }
    }
}

impl Pusher {
    /// Puts `document` under the tag of `image`, whose parts are at the registry. With `known`, only
    /// if the tag still stands for that, as far as the registry looks at it.
    pub async fn replace(
        &self,
        image: &ImageRef,
        known: Option<&Current>,
        document: &(Descriptor, Bytes),
    ) -> Result<Replaced, RegistryError> {
        let endpoint = self.transport().hosts().and_then(|hosts| hosts.push_endpoint(image));
        let put = async {
            let uploads = Uploads { transport: self.transport(), endpoint: &endpoint? };
            let (descriptor, bytes) = document;
            let condition = known.and_then(Current::condition);
            let name = image.manifest_name();
            let put = uploads.put_manifest(&name, (descriptor, bytes), condition.clone());
            let response = put.await?;
            if condition.is_some() && response.status() == StatusCode::PRECONDITION_FAILED {
                return Ok(Replaced::Changed);
            }
            uploads.check_stored(response, descriptor).await?;
            Ok(Replaced::Done)
        };
        put.await.map_err(|cause| {
            RegistryError::new(format!("pushing `{image}`"), image.registry(), cause)
        })
    }
}
