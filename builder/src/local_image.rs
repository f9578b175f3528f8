//! The images of the local store, read: what a name stands for, for which platforms, how large.
//!
//! Manifests and configs are read as the store holds them, each checked against its digest.

use std::collections::{BTreeMap, BTreeSet};

use rbuild_cache::digest::Digest;
use rbuild_cache::layout::LayoutError;
use rbuild_cache::oci::{Descriptor, ImageRef, Index, Manifest, Platform, ReferenceError};
use rbuild_cache::state::{StateError, StateFolder};
use rbuild_cache::store::StoreError;
use serde_json::Value;

use crate::error::{BuildError, ErrorKind, Problem};
use crate::provenance::STATEMENT;
use crate::request::Settings;

/// An image of the local store.
#[derive(Clone, Debug)]
pub struct LocalImage {
    /// What it is called, as the store has it.
    pub name: String,
    /// Its manifest or index.
    pub root: Descriptor,
    /// One for each platform; those of an index that are no images (attestations) are left out.
    pub platforms: Vec<LocalPlatform>,
}

/// An image for one platform.
#[derive(Clone, Debug)]
pub struct LocalPlatform {
    /// Its manifest's descriptor.
    pub descriptor: Descriptor,
    /// Its manifest.
    pub manifest: Manifest,
    /// Its config.
    pub config: Value,
}

/// Says why an image of the local store cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LocalImageError {
    /// There is none of that name.
    #[error("there is no image `{0}` in the local store")]
    Missing(String),
    /// Several images have an ID that begins so.
    #[error("`{0}` is the beginning of several IDs: {list}", list = listed(.1))]
    Ambiguous(String, Vec<Digest>),
    /// Its names are in several repositories.
    #[error("the image `{0}` has names in several repositories: {list}", list = .1.join(", "))]
    SeveralRepositories(String, Vec<String>),
    /// The name is none.
    #[error(transparent)]
    Name(#[from] ReferenceError),
    /// The state folder cannot be used.
    #[error(transparent)]
    State(#[from] StateError),
    /// The images cannot be listed or changed.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// One of its blobs is missing or damaged.
    #[error("the image `{name}` is damaged: {source}")]
    Blob {
        /// The image.
        name: String,
        /// What is wrong.
        source: StoreError,
    },
    /// One of its documents is not what its media type says.
    #[error("the image `{name}` is damaged: {digest} cannot be read: {source}")]
    Document {
        /// The image.
        name: String,
        /// The document.
        digest: Digest,
        /// What is wrong.
        source: serde_json::Error,
    },
}

impl From<LocalImageError> for BuildError {
    fn from(error: LocalImageError) -> Self {
        let kind = match &error {
            LocalImageError::Missing(_)
            | LocalImageError::Ambiguous(..)
            | LocalImageError::SeveralRepositories(..) => ErrorKind::Failed,
            LocalImageError::Name(_) => ErrorKind::Usage,
            LocalImageError::State(_)
            | LocalImageError::Layout(_)
            | LocalImageError::Blob { .. }
            | LocalImageError::Document { .. } => ErrorKind::Fault,
        };
        let hint = match &error {
            LocalImageError::Missing(_) => Some("`rbuild images` lists them"),
            LocalImageError::Ambiguous(..) => Some("give more of its digits"),
            LocalImageError::SeveralRepositories(..) => {
                Some("name those that are to go, or give `--force` to take all of them")
            }
            LocalImageError::Blob { .. } | LocalImageError::Document { .. } => {
                Some("`rbuild rmi` removes it; building or pulling it again makes it whole")
            }
            LocalImageError::Layout(error) => error.hint(),
            LocalImageError::Name(_) | LocalImageError::State(_) => None,
        };
        let error = Self::new(kind, Problem::of(&error));
        match hint {
            Some(hint) => error.hint(hint),
            None => error,
        }
    }
}

fn listed(ids: &[Digest]) -> String {
    ids.iter().map(Digest::short).collect::<Vec<_>>().join(", ")
}

/// Opens the state folder of `settings`.
pub fn open(settings: &Settings) -> Result<StateFolder, LocalImageError> {
    Ok(StateFolder::open(&settings.state_folder)?)
}

/// The names in the store and what each stands for, sorted.
pub fn names(state: &StateFolder) -> Result<BTreeMap<String, Descriptor>, LocalImageError> {
    Ok(state.layout().images()?)
}

/// A name as people write it: `debian:bookworm`, not `docker.io/library/debian:bookworm`.
pub fn familiar(name: &str) -> String {
    let parsed: Result<ImageRef, _> = name.parse();
    parsed.map_or_else(|_| name.to_owned(), |name| name.familiar())
}

/// Reads a name that an image is to get. It holds no digest: who asks for one by digest relies on
/// getting that and nothing else.
pub fn new_name(text: &str) -> Result<ImageRef, ReferenceError> {
    let name: ImageRef = text.parse()?;
    match name.digest() {
        None => Ok(name),
        Some(_) => Err(ReferenceError {
            name: text.to_owned(),
            reason: "a name that is given holds no digest".to_owned(),
        }),
    }
}

/// A name in its two parts. A digest behind it is left out.
pub fn repository_and_tag(name: &str) -> (String, Option<String>) {
    let name = name.split('@').next().unwrap_or_default();
    // A colon before a slash belongs to the host: its port.
    match name.rsplit_once(':') {
        Some((repository, tag)) if !tag.contains('/') => {
            (repository.to_owned(), Some(tag.to_owned()))
        }
        Some(_) | None => (name.to_owned(), None),
    }
}

/// All names of `image`, sorted; names that are none are left out.
pub fn names_of(state: &StateFolder, image: &LocalImage) -> Result<Vec<ImageRef>, LocalImageError> {
    let same = names(state)?.into_iter().filter(|(_, root)| root.digest == image.root.digest);
    Ok(same.filter_map(|(name, _)| name.parse().ok()).collect())
}

/// What `text` stands for in the store: an image's name, its repository with its digest, or the
/// beginning (at least four digits) of its ID or digest.
pub fn find(state: &StateFolder, text: &str) -> Result<LocalImage, LocalImageError> {
    let names = names(state)?;
    let found = meant(state, &names, text)?;
    let name = &found.names[0];
    read(state, name, &names[name])
}

/// The names that a text stands for, at least one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Meant {
    /// The names, sorted: one that was given as such, or all that an image has.
    pub names: Vec<String>,
    /// Whether the text was the image's ID.
    pub by_id: bool,
}

/// The names among `names` that `text` stands for.
///
/// # Errors
/// Also when it is how the IDs of several images begin.
pub fn meant(
    state: &StateFolder,
    names: &BTreeMap<String, Descriptor>,
    text: &str,
) -> Result<Meant, LocalImageError> {
    let parsed: Result<ImageRef, _> = text.parse();
    for name in parsed.iter().map(ToString::to_string).chain([text.to_owned()]) {
        if names.contains_key(&name) {
            return Ok(Meant { names: vec![name], by_id: false });
        }
    }
    // What `RepoDigests` and `push` show.
    if let Some((name, digest)) = parsed.iter().find_map(|name| Some((name, name.digest()?))) {
        let is_meant = |other: &ImageRef| {
            (other.registry(), other.repository()) == (name.registry(), name.repository())
                && (name.tag().is_none() || name.tag() == other.tag())
        };
        let same = names.iter().filter(|(_, root)| root.digest == digest);
        let names: Vec<String> = same
            .filter(|(name, _)| name.parse().is_ok_and(|name| is_meant(&name)))
            .map(|(name, _)| name.clone())
            .collect();
        if !names.is_empty() {
            return Ok(Meant { names, by_id: false });
        }
    }
    let digits = text.strip_prefix("sha256:").unwrap_or(text);
    if digits.len() >= 4 && digits.bytes().all(|b| b.is_ascii_hexdigit()) {
        return with_id(state, names, text, digits);
    }
    parsed?;
    Err(LocalImageError::Missing(text.to_owned()))
}

/// All names of the image whose ID or digest begins with `digits`. One that is damaged does not hide
/// the others.
fn with_id(
    state: &StateFolder,
    names: &BTreeMap<String, Descriptor>,
    text: &str,
    digits: &str,
) -> Result<Meant, LocalImageError> {
    let (mut found, mut ids, mut damaged) = (Vec::new(), BTreeSet::new(), None);
    for (name, root) in names {
        match read(state, name, root) {
            Ok(image) => {
                let digests = [image.id(), root.digest];
                if digests.iter().any(|digest| digest.hex().starts_with(digits)) {
                    ids.insert(image.id());
                    found.push(name.clone());
                }
            }
            Err(error) => damaged = damaged.or(Some(error)),
        }
    }
    match (found.is_empty(), ids.len()) {
        (true, _) => Err(damaged.unwrap_or_else(|| LocalImageError::Missing(text.to_owned()))),
        (false, 1) => Ok(Meant { names: found, by_id: true }),
        (false, _) => Err(LocalImageError::Ambiguous(text.to_owned(), ids.into_iter().collect())),
    }
}

/// Reads the image `root`, which is called `name`.
pub fn read(
    state: &StateFolder,
    name: &str,
    root: &Descriptor,
) -> Result<LocalImage, LocalImageError> {
    let bytes = |descriptor: &Descriptor| {
        let read = state.blobs().read(descriptor);
        read.map_err(|source| LocalImageError::Blob { name: name.to_owned(), source })
    };
    let broken = |digest: Digest| {
        let name = name.to_owned();
        move |source| LocalImageError::Document { name, digest, source }
    };
    let manifests = if root.media_type.is_index() {
        let index: Index = serde_json::from_slice(&bytes(root)?).map_err(broken(root.digest))?;
        let is_image = |manifest: &Descriptor| {
            manifest.media_type.is_manifest()
                && manifest.platform.as_ref().is_none_or(|platform| platform.os != "unknown")
        };
        index.manifests.into_iter().filter(is_image).collect()
    } else {
        vec![root.clone()]
    };
    let platform = |descriptor: Descriptor| {
        let manifest: Manifest =
            serde_json::from_slice(&bytes(&descriptor)?).map_err(broken(descriptor.digest))?;
        let config: Value = serde_json::from_slice(&bytes(&manifest.config)?)
            .map_err(broken(manifest.config.digest))?;
        Ok(LocalPlatform { descriptor, manifest, config })
    };
    let platforms = manifests.into_iter().map(platform).collect::<Result<_, LocalImageError>>()?;
    Ok(LocalImage { name: name.to_owned(), root: root.clone(), platforms })
}

/// Something that is said of an image.
#[derive(Clone, Debug)]
pub struct Statement {
    /// The manifest of the image.
    pub subject: Digest,
    /// What is said: an in-toto statement.
    pub statement: Value,
}

/// All provenance that stands in the index of `image`.
pub fn statements(
    state: &StateFolder,
    image: &LocalImage,
) -> Result<Vec<Statement>, LocalImageError> {
    if !image.root.media_type.is_index() {
        return Ok(Vec::new());
    }
    let name = &image.name;
    let bytes = |descriptor: &Descriptor| {
        let read = state.blobs().read(descriptor);
        read.map_err(|source| LocalImageError::Blob { name: name.clone(), source })
    };
    let broken = |digest: Digest| {
        let name = name.clone();
        move |source| LocalImageError::Document { name, digest, source }
    };
    let index: Index =
        serde_json::from_slice(&bytes(&image.root)?).map_err(broken(image.root.digest))?;
    let mut statements = Vec::new();
    for descriptor in &index.manifests {
        let about = descriptor.annotations.get("vnd.docker.reference.digest");
        let Some(subject) = about.and_then(|digest| digest.parse().ok()) else { continue };
        let manifest: Manifest =
            serde_json::from_slice(&bytes(descriptor)?).map_err(broken(descriptor.digest))?;
        for layer in manifest.layers.iter().filter(|layer| layer.media_type.as_str() == STATEMENT) {
            let statement: Value =
                serde_json::from_slice(&bytes(layer)?).map_err(broken(layer.digest))?;
            let says = statement["predicateType"].as_str().unwrap_or_default();
            if says.starts_with("https://slsa.dev/provenance/") {
                statements.push(Statement { subject, statement });
            }
        }
    }
    Ok(statements)
}

impl LocalImage {
    /// Its ID: the digest of its config, or of its index if it is for several platforms.
    pub fn id(&self) -> Digest {
        match &self.platforms[..] {
            [only] => only.manifest.config.digest,
            _ => self.root.digest,
        }
    }

    /// The bytes of its layers and configs, as they are stored; what two platforms share is counted
    /// once.
    pub fn size(&self) -> u64 {
        let blobs = self.platforms.iter().flat_map(|platform| {
            platform.manifest.layers.iter().chain([&platform.manifest.config])
        });
        blobs.map(|blob| (blob.digest, blob.size)).collect::<BTreeMap<_, _>>().values().sum()
    }

    /// The name as people write it.
    pub fn familiar(&self) -> String {
        familiar(&self.name)
    }

    /// The name as people write it, in its two parts.
    pub fn repository_and_tag(&self) -> (String, Option<String>) {
        repository_and_tag(&self.familiar())
    }
}

impl LocalPlatform {
    /// The platform, as its config says.
    pub fn platform(&self) -> Platform {
        let text = |key: &str| self.config[key].as_str().filter(|text| !text.is_empty());
        Platform::new(
            text("os").unwrap_or("linux"),
            text("architecture").unwrap_or("unknown"),
            text("variant"),
        )
    }

    /// When it was made.
    pub fn created(&self) -> Option<jiff::Timestamp> {
        self.config["created"].as_str()?.parse().ok()
    }
}

#[cfg(test)]
mod tests {
    use rbuild_cache::oci::MediaType;

    use super::*;

    /// The IDs of these two begin with the same four digits.
    const FIRST: u32 = 85;
    const SECOND: u32 = 543;

    /// An image without layers whose config, and so its ID, depends on `number` alone.
    fn put(state: &StateFolder, names: &[&str], number: u32) -> Descriptor {
        let stored = |media_type, bytes: &[u8]| {
            state.blobs().put(bytes).unwrap();
            Descriptor::of(media_type, bytes)
        };
        let config = format!(r#"{{"os":"linux","n":{number}}}"#);
        let manifest = Manifest {
            schema_version: 2,
            media_type: None,
            config: stored(MediaType::OciConfig, config.as_bytes()),
            layers: Vec::new(),
            annotations: BTreeMap::new(),
        };
        let manifest = serde_json::to_vec(&manifest).unwrap();
        let root = stored(MediaType::OciManifest, &manifest);
        let names: Vec<String> =
            names.iter().map(|name| name.parse::<ImageRef>().unwrap().to_string()).collect();
        state.layout().set(&names, &root).unwrap();
        root
    }

    #[test]
    fn what_a_text_stands_for() {
        let folder = tempfile::tempdir().unwrap();
        let state = StateFolder::open(folder.path().join("state")).unwrap();
        let one = put(&state, &["a:1", "a:2", "h:5000/b:1"], FIRST);
        put(&state, &["c"], SECOND);
        let damaged = put(&state, &["damaged"], 0);
        fs_err::remove_file(state.blobs().path(&damaged.digest)).unwrap();
        let check = |text: &str, expected: &str| {
            let names = names(&state).unwrap();
            let found = match meant(&state, &names, text) {
                Ok(meant) => {
                    let names: Vec<_> = meant.names.iter().map(|name| familiar(name)).collect();
                    format!("{}{}", if meant.by_id { "ID of " } else { "" }, names.join(" "))
                }
                Err(error) => error.to_string(),
            };
            assert_eq!(found, expected, "{text}");
        };
        let digest = one.digest;
        check("docker.io/library/a:1", "a:1");
        check(&format!("a@{digest}"), "a:1 a:2");
        check(&format!("a:2@{digest}"), "a:2");
        check(&format!("h:5000/b@{digest}"), "h:5000/b:1");
        check(
            &format!("c@{digest}"),
            &format!("there is no image `c@{digest}` in the local store"),
        );
        let first = read(&state, "a:1", &one).unwrap().id();
        for text in [first.to_string(), first.short(), digest.to_string(), digest.short()] {
            check(&text, "ID of a:1 a:2 h:5000/b:1");
        }
        let start = &first.hex()[..4];
        let second = find(&state, "c").unwrap().id();
        let mut ids = [first, second];
        ids.sort();
        let ids = ids.map(|id| id.short()).join(", ");
        check(start, &format!("`{start}` is the beginning of several IDs: {ids}"));
    }
}
