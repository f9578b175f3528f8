//! Names of images: `[host/]repository[:tag][@digest]`, with Docker Hub's short forms.
//!
//! The grammar is that of distribution/reference; a test compares it with `oci_spec`'s. This type
//! adds what rbuild asks of a name, and keeps its familiar form for people.

use std::fmt;
use std::str::FromStr;

use oci_spec::distribution::Reference;

use crate::digest::{Digest, DigestError};

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
        parse(name).map_err(|reason| ReferenceError { name: name.to_owned(), reason })
    }
}

/// The most bytes of host and repository together (distribution/reference).
const LONGEST: usize = 255;
/// The most bytes of a tag.
const LONGEST_TAG: usize = 128;

/// Reads a name as distribution/reference has it. Its regular expression would do as well, but
/// compiling that takes longer than a build in which nothing changed.
fn parse(text: &str) -> Result<ImageRef, String> {
    let (rest, digest) = match text.split_once('@') {
        Some((rest, digest)) => (rest, Some(digest)),
        None => (text, None),
    };
    let digest: Option<Digest> =
        digest.map(str::parse).transpose().map_err(|e: DigestError| e.to_string())?;
    // A colon before a slash belongs to the host: its port.
    let (name, tag) = match rest.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
        Some(_) | None => (rest, None),
    };
    if tag == Some("") {
        return Err("its tag is empty".to_owned());
    }
    if let Some(tag) = tag.filter(|tag| !is_tag(tag)) {
        return Err(format!("`{tag}` is not a tag"));
    }
    let (host, repository) = split_host(name);
    if !is_host(&host) {
        return Err(format!("`{host}` is not the name of a host"));
    }
    if repository.chars().any(char::is_uppercase) {
        return Err("the name of a repository is in lower case".to_owned());
    }
    if !repository.split('/').all(is_component) {
        return Err(format!("`{repository}` is not the name of a repository"));
    }
    if host.len() + 1 + repository.len() > LONGEST {
        return Err(format!("it has more than {LONGEST} bytes"));
    }
    let reference = match (tag, digest) {
        (None, None) => Reference::with_tag(host, repository, "latest".to_owned()),
        (Some(tag), None) => Reference::with_tag(host, repository, tag.to_owned()),
        (None, Some(digest)) => Reference::with_digest(host, repository, digest.to_string()),
        (Some(tag), Some(digest)) => {
            Reference::with_tag_and_digest(host, repository, tag.to_owned(), digest.to_string())
        }
    };
    Ok(ImageRef { reference, digest })
}

/// Host and repository of a name, those of Docker Hub where they are left out.
fn split_host(name: &str) -> (String, String) {
    let (host, repository) = match name.split_once('/') {
        Some((host, rest))
            if host.contains(['.', ':'])
                || host == "localhost"
                || host.chars().any(char::is_uppercase) =>
        {
            (host, rest)
        }
        Some(_) | None => ("docker.io", name),
    };
    let host = if host == "index.docker.io" { "docker.io" } else { host };
    let official = host == "docker.io" && !repository.contains('/');
    let repository = if official { format!("library/{repository}") } else { repository.to_owned() };
    (host.to_owned(), repository)
}

fn is_host(host: &str) -> bool {
    let (name, port) = host.split_once(':').map_or((host, None), |(name, port)| (name, Some(port)));
    let label = |label: &str| {
        !label.is_empty()
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let is_port = |port: &str| !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit());
    name.split('.').all(label) && port.is_none_or(is_port)
}

/// Letters and digits, between which `.`, `_`, `__` or any number of `-` may stand.
fn is_component(component: &str) -> bool {
    let word = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = component.as_bytes();
    let ends = |end: Option<&u8>| end.is_some_and(|b| word(*b));
    let separated = |separator: &[u8]| {
        matches!(separator, b"" | b"." | b"_" | b"__") || separator.iter().all(|b| *b == b'-')
    };
    ends(bytes.first()) && ends(bytes.last()) && bytes.split(|b| word(*b)).all(separated)
}

fn is_tag(tag: &str) -> bool {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    tag.len() <= LONGEST_TAG
        && tag.bytes().next().is_some_and(word)
        && tag.bytes().all(|b| word(b) || matches!(b, b'.' | b'-'))
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

    #[test]
    fn reads_what_the_regular_expression_reads() {
        use proptest::prelude::*;
        // Of names with capitals, theirs takes a host for a folder of Docker Hub.
        let part = "[a-z0-9._-]{0,4}";
        let name = format!("({part}[/:]){{0,3}}{part}");
        proptest!(|(name in name.as_str())| {
            let theirs: Result<Reference, _> = name.parse();
            let ours: Result<ImageRef, _> = name.parse();
            prop_assert_eq!(ours.ok().map(|ours| ours.reference), theirs.ok());
        });
    }
}
