//! Images from an OCI layout, a folder as `skopeo copy … oci:` and `buildah push … oci:` write it
//! (image-spec, image-layout.md): `oci-layout://PATH[:TAG][@DIGEST]`.
//!
//! The folder is somebody else's: each blob is compared with digest and size as it is copied, and
//! only plain files are read.

use std::io::Read;
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use bytes::Bytes;
use fs_err::File;
use fs_err::os::unix::fs::OpenOptionsExt as _;
use rbuild_cache::digest::{Digest, DigestError};
use rbuild_cache::layout::{CONTAINERD_NAME, REF_NAME};
use rbuild_cache::oci::{Descriptor, Index};
use rbuild_cache::store::{ContentStore, StoreError};
use rbuild_solver::image_source::ImageSourceError;
use rustix::fs::OFlags;

use crate::image_document::DocumentSource;

/// No document of a layout may be longer, in bytes.
const LONGEST_DOCUMENT: u64 = 8 << 20;

/// Names an image in an OCI layout.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayoutReference {
    /// The folder.
    pub path: PathBuf,
    /// Which image in it, by name.
    pub tag: Option<String>,
    /// Which image in it, by digest; stronger than the name.
    pub digest: Option<Digest>,
}

/// An OCI layout that is read.
#[derive(Clone, Debug)]
pub struct OciLayout {
    path: PathBuf,
}

/// Says why an image cannot be had from an OCI layout.
#[derive(Debug, thiserror::Error)]
pub enum OciLayoutError {
    /// What stands behind `@` is no digest.
    #[error("`oci-layout://{reference}`: {source}")]
    Reference {
        /// The whole reference.
        reference: String,
        /// What is wrong with the digest.
        source: DigestError,
    },
    /// The folder is something else.
    #[error("`{path}` is not an OCI layout: {reason}")]
    NotALayout {
        /// The folder.
        path: PathBuf,
        /// What is missing or wrong.
        reason: String,
    },
    /// It holds no such image.
    #[error("the OCI layout `{path}` has no image `{wanted}`; it has {found}")]
    NoImage {
        /// The folder.
        path: PathBuf,
        /// What was asked for.
        wanted: String,
        /// What there is.
        found: String,
    },
    /// A blob is not what its descriptor says.
    #[error("blob `{digest}` of the OCI layout `{path}` {reason}")]
    Blob {
        /// Which blob.
        digest: Digest,
        /// The folder.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The blob could not be stored.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The disk failed.
    #[error(transparent)]
    Io(#[from] std::io::Error),
}

impl LayoutReference {
    /// Reads `PATH[:TAG][@DIGEST]`. A colon before the last slash belongs to the path.
    pub fn parse(text: &str) -> Result<Self, OciLayoutError> {
        let (rest, digest) = match text.rsplit_once('@') {
            Some((rest, digest)) if !digest.contains('/') => {
                let parsed = digest.parse().map_err(|source| OciLayoutError::Reference {
                    reference: text.to_owned(),
                    source,
                })?;
                (rest, Some(parsed))
            }
            _ => (text, None),
        };
        let (path, tag) = match rest.rsplit_once(':') {
            Some((path, tag)) if !tag.contains('/') && !path.is_empty() => (path, Some(tag)),
            _ => (rest, None),
        };
        Ok(Self { path: path.into(), tag: tag.map(str::to_owned), digest })
    }
}

impl OciLayout {
    /// Opens the layout in `path`.
    pub fn open(path: &Path) -> Result<Self, OciLayoutError> {
        let wrong = |reason: &str| OciLayoutError::NotALayout {
            path: path.to_owned(),
            reason: reason.to_owned(),
        };
        let marker = match read_file(&path.join("oci-layout"), 4096) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                return Err(wrong("it has no file `oci-layout`"));
            }
            read => read?,
        };
        let marker: serde_json::Value = serde_json::from_slice(&marker).unwrap_or_default();
        match marker["imageLayoutVersion"].as_str() {
            Some(version) if version.starts_with("1.") => Ok(Self { path: path.to_owned() }),
            _ => Err(wrong("its file `oci-layout` does not say version 1")),
        }
    }

    /// The image that `reference` names: by digest, otherwise by name; without either it is
    /// `latest`, or the only one.
    pub fn find(&self, reference: &LayoutReference) -> Result<Descriptor, OciLayoutError> {
        let index = self.index()?;
        if let Some(digest) = reference.digest {
            if let Some(found) = index.manifests.iter().find(|d| d.digest == digest) {
                return Ok(found.clone());
            }
            return self.unlisted(&digest);
        }
        let tag = reference.tag.as_deref().unwrap_or("latest");
        if let Some(found) = index.manifests.iter().find(|d| is_called(d, tag)) {
            return Ok(found.clone());
        }
        match &index.manifests[..] {
            [only] if reference.tag.is_none() => Ok(only.clone()),
            _ => Err(OciLayoutError::NoImage {
                path: self.path.clone(),
                wanted: tag.to_owned(),
                found: names(&index.manifests),
            }),
        }
    }

    /// Copies the blob that `descriptor` names into `store`, unless it is there.
    pub fn fetch(
        &self,
        descriptor: &Descriptor,
        store: &ContentStore,
    ) -> Result<(), OciLayoutError> {
        if store.contains_whole(descriptor)? {
            return Ok(());
        }
        let mut file = self.open_blob(descriptor)?;
        match store.ingest(&mut file, Some((descriptor.digest, descriptor.size))) {
            Ok(_) => Ok(()),
            Err(e @ (StoreError::Digest { .. } | StoreError::Size { .. })) => {
                Err(self.wrong(&descriptor.digest, &format!("is damaged: {e}")))
            }
            Err(e) => Err(e.into()),
        }
    }

    /// The bytes of a small blob.
    pub fn read(&self, descriptor: &Descriptor) -> Result<Vec<u8>, OciLayoutError> {
        let wrong = |reason: &str| self.wrong(&descriptor.digest, reason);
        if descriptor.size > LONGEST_DOCUMENT {
            return Err(wrong("is too long for a document"));
        }
        let mut bytes = Vec::new();
        self.open_blob(descriptor)?.take(descriptor.size + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 != descriptor.size || Digest::of(&bytes) != descriptor.digest {
            return Err(wrong("is damaged: its bytes have another digest"));
        }
        Ok(bytes)
    }

    fn index(&self) -> Result<Index, OciLayoutError> {
        let path = self.path.join("index.json");
        let wrong = |reason: String| OciLayoutError::NotALayout { path: self.path.clone(), reason };
        let bytes = match read_file(&path, LONGEST_DOCUMENT) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                return Err(wrong("it has no file `index.json`".to_owned()));
            }
            read => read?,
        };
        serde_json::from_slice(&bytes).map_err(|e| wrong(format!("its `index.json`: {e}")))
    }

    /// An image that `index.json` does not list itself, but something that it lists does.
    fn unlisted(&self, digest: &Digest) -> Result<Descriptor, OciLayoutError> {
        let path = self.blob_path(digest);
        let bytes = match read_file(&path, LONGEST_DOCUMENT) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                return Err(OciLayoutError::NoImage {
                    path: self.path.clone(),
                    wanted: digest.to_string(),
                    found: names(&self.index()?.manifests),
                });
            }
            read => read?,
        };
        if Digest::of(&bytes) != *digest {
            return Err(self.wrong(digest, "is damaged: its bytes have another digest"));
        }
        Ok(Descriptor::of(crate::image_document::media_type(&bytes), &bytes))
    }

    fn open_blob(&self, descriptor: &Descriptor) -> Result<File, OciLayoutError> {
        let digest = &descriptor.digest;
        let file = match open_plain(&self.blob_path(digest)) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                return Err(self.wrong(digest, "is missing"));
            }
            opened => opened?,
        };
        let size = file.metadata()?.len();
        if size != descriptor.size {
            let reason = format!("has {size} bytes instead of {}", descriptor.size);
            return Err(self.wrong(digest, &reason));
        }
        Ok(file)
    }

    fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.path.join("blobs/sha256").join(digest.hex())
    }

    fn wrong(&self, digest: &Digest, reason: &str) -> OciLayoutError {
        let (digest, path) = (*digest, self.path.clone());
        OciLayoutError::Blob { digest, path, reason: reason.to_owned() }
    }
}

#[async_trait]
impl DocumentSource for OciLayout {
    async fn document(&self, descriptor: &Descriptor) -> Result<Bytes, ImageSourceError> {
        Ok(self.read(descriptor)?.into())
    }
}

impl From<OciLayoutError> for ImageSourceError {
    fn from(error: OciLayoutError) -> Self {
        let hint = match &error {
            OciLayoutError::NotALayout { .. } => {
                Some("`skopeo copy SOURCE oci:PATH:TAG` writes one".to_owned())
            }
            OciLayoutError::NoImage { .. } => {
                Some("name one of them: `oci-layout://PATH:NAME` or `…@DIGEST`".to_owned())
            }
            OciLayoutError::Reference { .. }
            | OciLayoutError::Blob { .. }
            | OciLayoutError::Store(_)
            | OciLayoutError::Io(_) => None,
        };
        Self { message: error.to_string(), hint, source: None }
    }
}

/// Whether `descriptor` is called `tag`: writers put the tag alone or the whole name into the one
/// annotation, or the whole name into containerd's.
fn is_called(descriptor: &Descriptor, tag: &str) -> bool {
    let named = |key: &str| descriptor.annotations.get(key).map(String::as_str);
    [REF_NAME, CONTAINERD_NAME].iter().filter_map(|key| named(key)).any(|name| {
        let last = name.rsplit('/').next().unwrap_or(name);
        name == tag || last.split_once(':').is_some_and(|(_, of_name)| of_name == tag)
    })
}

fn names(manifests: &[Descriptor]) -> String {
    let name = |d: &Descriptor| {
        let called = d.annotations.get(REF_NAME).cloned();
        format!("`{}`", called.unwrap_or_else(|| d.digest.to_string()))
    };
    match manifests {
        [] => "none".to_owned(),
        some => some.iter().take(20).map(name).collect::<Vec<_>>().join(", "),
    }
}

/// Reads a plain file of at most `limit` bytes.
fn read_file(path: &Path, limit: u64) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    open_plain(path)?.take(limit + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        let message = format!("`{}` is longer than {limit} bytes", path.display());
        return Err(std::io::Error::new(std::io::ErrorKind::FileTooLarge, message));
    }
    Ok(bytes)
}

/// Opens a plain file, through links (some build systems make layouts of links); a pipe would hang,
/// a device never end.
pub(crate) fn open_plain(path: &Path) -> std::io::Result<File> {
    let flags = i32::try_from(OFlags::NONBLOCK.bits()).expect("a single low bit");
    let file = fs_err::OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    if file.metadata()?.is_file() {
        return Ok(file);
    }
    let message = format!("`{}` is not a plain file", path.display());
    Err(std::io::Error::new(std::io::ErrorKind::InvalidInput, message))
}

#[cfg(test)]
mod tests {
    use rbuild_cache::oci::{MediaType, Platform};
    use rbuild_cache::state::StateFolder;

    use super::*;
    use crate::image_document;

    /// A layout with one image of one layer, and that image's descriptor.
    fn layout(folder: &Path) -> Descriptor {
        let blobs = folder.join("blobs/sha256");
        fs_err::create_dir_all(&blobs).unwrap();
        let put = |media_type: MediaType, bytes: &[u8]| {
            let descriptor = Descriptor::of(media_type, bytes);
            fs_err::write(blobs.join(descriptor.digest.hex()), bytes).unwrap();
            descriptor
        };
        let layer = put(MediaType::OciLayer, b"layer");
        let config = serde_json::json!({
            "os": "linux", "architecture": "amd64",
            "rootfs": {"type": "layers", "diff_ids": [layer.digest]},
        });
        let config = put(MediaType::OciConfig, config.to_string().as_bytes());
        let manifest = serde_json::json!({"schemaVersion": 2, "config": config, "layers": [layer]});
        let mut manifest = put(MediaType::OciManifest, manifest.to_string().as_bytes());
        manifest.annotations.insert(REF_NAME.into(), "v1".into());
        let index = serde_json::json!({"schemaVersion": 2, "manifests": [manifest]});
        fs_err::write(folder.join("index.json"), index.to_string()).unwrap();
        fs_err::write(folder.join("oci-layout"), r#"{"imageLayoutVersion": "1.0.0"}"#).unwrap();
        manifest
    }

    fn find(folder: &Path, below: &str) -> Result<Descriptor, String> {
        let reference = LayoutReference::parse(&format!("{}{below}", folder.display()));
        let layout = OciLayout::open(folder).map_err(|e| e.to_string())?;
        layout.find(&reference.unwrap()).map_err(|e| e.to_string())
    }

    #[test]
    fn reads_references() {
        let check = |text: &str, path: &str, tag: Option<&str>, digest: bool| {
            let reference = LayoutReference::parse(text).unwrap();
            assert_eq!(reference.path, Path::new(path), "{text}");
            assert_eq!(reference.tag.as_deref(), tag, "{text}");
            assert_eq!(reference.digest.is_some(), digest, "{text}");
        };
        let digest = Digest::of("");
        check("/a/b", "/a/b", None, false);
        check("/a/b:v1", "/a/b", Some("v1"), false);
        check("/a:1/b", "/a:1/b", None, false);
        check(&format!("a:v1@{digest}"), "a", Some("v1"), true);
        check(&format!("/a@b/c@{digest}"), "/a@b/c", None, true);
        check("/a@b/c", "/a@b/c", None, false);
        assert!(LayoutReference::parse("a@sha256:12").is_err());
    }

    #[test]
    fn finds_by_name_by_digest_and_the_only_one() {
        let folder = tempfile::tempdir().unwrap();
        let image = layout(folder.path());
        for below in [":v1", "", &format!("@{}", image.digest)] {
            assert_eq!(find(folder.path(), below).unwrap().digest, image.digest, "{below}");
        }
        let error = find(folder.path(), ":v2").unwrap_err();
        assert!(error.ends_with("has no image `v2`; it has `v1`"), "{error}");
        let error = find(Path::new("/usr"), "").unwrap_err();
        assert_eq!(error, "`/usr` is not an OCI layout: it has no file `oci-layout`");
    }

    /// Breaks each blob in turn, in several ways; each must be refused, without hanging.
    #[tokio::test]
    async fn damaged_blobs_are_refused() {
        type Damage = fn(&Path);
        let damages: [(&str, Damage); 6] = [
            ("flipped", |blob| {
                let mut bytes = fs_err::read(blob).unwrap();
                bytes[0] ^= 1;
                fs_err::write(blob, bytes).unwrap();
            }),
            ("cut", |blob| {
                let bytes = fs_err::read(blob).unwrap();
                fs_err::write(blob, &bytes[1..]).unwrap();
            }),
            ("longer", |blob| {
                let bytes = fs_err::read(blob).unwrap();
                fs_err::write(blob, [&bytes[..], b"x"].concat()).unwrap();
            }),
            ("missing", |blob| fs_err::remove_file(blob).unwrap()),
            ("a pipe", |blob| {
                fs_err::remove_file(blob).unwrap();
                rustix::fs::mkfifoat(rustix::fs::CWD, blob, 0o600.into()).unwrap();
            }),
            ("endless", |blob| {
                fs_err::remove_file(blob).unwrap();
                std::os::unix::fs::symlink("/dev/zero", blob).unwrap();
            }),
        ];
        let pristine = tempfile::tempdir().unwrap();
        layout(pristine.path());
        let blobs = fs_err::read_dir(pristine.path().join("blobs/sha256")).unwrap();
        let names: Vec<_> = blobs.map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names.len(), 3);
        for (what, damage) in damages {
            for name in &names {
                let folder = tempfile::tempdir().unwrap();
                layout(folder.path());
                damage(&folder.path().join("blobs/sha256").join(name));
                assert!(use_it(folder.path()).await.is_err(), "{what} {}", name.display());
            }
        }
        use_it(pristine.path()).await.unwrap();
    }

    /// Resolves the image and copies its layers; also checks that nothing wrong was stored.
    async fn use_it(folder: &Path) -> Result<(), ImageSourceError> {
        let top = tempfile::tempdir().unwrap();
        let state = StateFolder::open(top.path()).unwrap();
        let opened = OciLayout::open(folder)?;
        let reference = LayoutReference::parse(&folder.display().to_string())?;
        let root = opened.find(&reference)?;
        let platform: Platform = "linux/amd64".parse().unwrap();
        let image =
            image_document::resolve(&opened, "x", "", &root, &platform, state.limits()).await?;
        let outcome =
            image.layers.iter().try_for_each(|l| opened.fetch(&l.descriptor, state.blobs()));
        let stored = state.blobs().list().unwrap();
        assert_eq!(stored.len(), if outcome.is_ok() { image.layers.len() } else { 0 });
        Ok(outcome?)
    }
}
