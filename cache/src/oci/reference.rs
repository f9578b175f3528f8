//! Names of images: `[host/]repository[:tag][@digest]`, with Docker Hub's short forms.
//!
//! The grammar is `oci_spec`'s (distribution/reference); this type adds what rbuild asks of a
//! name, and keeps its familiar form for people.

use std::fmt;
use std::str::FromStr;

use oci_spec::distribution::Reference;

use crate::digest::Digest;

/// The name of an image in a registry.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ImageRef {
    reference: Reference,
    digest: Option<Digest>,
}

/// Says what is wrong with an image name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{name}` is not an image name: {reason}")]
pub struct ReferenceError {
    /// The name as it was given.
    pub name: String,
    /// What the grammar says of it.
    pub reason: String,
}

impl ImageRef {
    /// The registry's host, `docker.io` for Docker Hub.
    pub fn registry(&self) -> &str {
        self.reference.registry()
    }

    /// The repository below the host: `library/debian`.
    pub fn repository(&self) -> &str {
        self.reference.repository()
    }

    /// The tag; `latest` when the name has neither tag nor digest.
    pub fn tag(&self) -> Option<&str> {
        self.reference.tag()
    }

    /// The digest behind `@`.
    pub fn digest(&self) -> Option<Digest> {
        self.digest
    }

    /// What a registry is asked for: the digest if there is one, otherwise the tag.
    pub fn manifest_name(&self) -> String {
        match self.digest {
            Some(digest) => digest.to_string(),
            None => self.tag().unwrap_or("latest").to_owned(),
        }
    }

    /// The name as people write it: `debian:bookworm`, not `docker.io/library/debian:bookworm`.
    pub fn familiar(&self) -> String {
        let full = self.to_string();
        let short = full.strip_prefix("docker.io/").unwrap_or(&full);
        let official = short.strip_prefix("library/").filter(|rest| !rest.contains('/'));
        official.unwrap_or(short).to_owned()
    }

    /// The parsed name, for the registry client.
    pub fn reference(&self) -> &Reference {
        &self.reference
    }

    /// The same repository, asked for by `digest`.
    #[must_use]
    pub fn with_digest(&self, digest: Digest) -> Self {
        Self {
            reference: self.reference.clone_with_digest(digest.to_string()),
            digest: Some(digest),
        }
    }
}

impl FromStr for ImageRef {
    type Err = ReferenceError;

    fn from_str(name: &str) -> Result<Self, ReferenceError> {
        let wrong = |reason: String| ReferenceError { name: name.to_owned(), reason };
        let reference: Reference =
            name.parse().map_err(|e: oci_spec::distribution::ParseError| wrong(e.to_string()))?;
        let digest = match reference.digest() {
            Some(digest) => {
                Some(digest.parse().map_err(|e: crate::digest::DigestError| wrong(e.to_string()))?)
            }
            None => None,
        };
        Ok(Self { reference, digest })
    }
}

impl fmt::Display for ImageRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reference.whole())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn full_and_familiar_names() {
        let check = |name: &str, full: &str, familiar: &str| {
            let image: ImageRef = name.parse().unwrap();
            assert_eq!((image.to_string().as_str(), image.familiar().as_str()), (full, familiar));
        };
        check("debian:bookworm", "docker.io/library/debian:bookworm", "debian:bookworm");
        check("busybox", "docker.io/library/busybox:latest", "busybox:latest");
        check("me/app:1", "docker.io/me/app:1", "me/app:1");
        check("localhost:5000/a/b:c", "localhost:5000/a/b:c", "localhost:5000/a/b:c");
        for wrong in ["", "UPPER", "a b", "a@sha256:12", "-x", "a:"] {
            assert!(wrong.parse::<ImageRef>().is_err(), "{wrong}");
        }
    }
}
