//! The images by name: `index.json` of the OCI layout that the state folder is.
//!
//! A name is kept whole in `org.opencontainers.image.ref.name`, and in `io.containerd.image.name`
//! for tools that look there. Changing the file is reading, changing and replacing it under a lock.

use std::collections::{BTreeMap, HashSet};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::digest::Digest;
use crate::lock::Locks;
use crate::oci::{Descriptor, Index, Manifest, MediaType};
use crate::session::Session;
use crate::store::{ContentStore, StoreError};

/// The annotation in which an OCI layout keeps names (image-spec, annotations.md).
pub const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// The annotation in which containerd keeps whole names.
pub const CONTAINERD_NAME: &str = "io.containerd.image.name";

/// The images by name.
#[derive(Clone, Debug)]
pub struct Layout {
    path: PathBuf,
    blobs: ContentStore,
    locks: Locks,
    session: Arc<Session>,
}

/// Says why the images cannot be listed or changed.
#[derive(Debug, thiserror::Error)]
pub enum LayoutError {
    /// It is not an OCI index.
    #[error("`{path}` is not an OCI index")]
    Parse {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
    /// The blobs could not be brought to the disk.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The disk failed.
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl LayoutError {
    /// What the user can do.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Parse { .. } => Some(
                "`rbuild cache verify --repair` forgets the names of images; building or pulling \
                 them again brings them back",
            ),
            Self::Store(_) | Self::Io(_) => None,
        }
    }
}

impl Layout {
    /// The images of the layout in the folder `root`, whose blobs are `blobs`.
    pub fn new(root: &Path, blobs: ContentStore, locks: Locks, session: Arc<Session>) -> Self {
        Self { path: root.join("index.json"), blobs, locks, session }
    }

    /// All images: name and descriptor, sorted by name. What has no name is left out.
    pub fn images(&self) -> Result<BTreeMap<String, Descriptor>, LayoutError> {
        let named = |mut image: Descriptor| {
            let name = image.annotations.remove(REF_NAME)?;
            image.annotations.remove(CONTAINERD_NAME);
            Some((name, image))
        };
        Ok(self.read()?.manifests.into_iter().filter_map(named).collect())
    }

    /// The image called `name`.
    pub fn get(&self, name: &str) -> Result<Option<Descriptor>, LayoutError> {
        Ok(self.images()?.remove(name))
    }

    /// What is wrong with the list, if anything is.
    pub fn check(&self) -> Result<Option<String>, LayoutError> {
        match self.read() {
            Err(LayoutError::Parse { source, .. }) => Ok(Some(source.to_string())),
            read => read.map(|_| None),
        }
    }

    /// Removes a list that cannot be read, with all names.
    pub fn start_afresh(&self) -> Result<(), LayoutError> {
        let _lock = self.locks.exclusive("index-json")?;
        if self.check()?.is_some() {
            fs_err::remove_file(&self.path)?;
        }
        Ok(())
    }

    /// Calls `image` by all of `names`, and takes them from what they named before. When this
    /// returns, a power loss takes neither the names nor what this process wrote of the image.
    pub fn set(&self, names: &[String], image: &Descriptor) -> Result<(), LayoutError> {
        let mut parts = HashSet::new();
        if self.parts(image, &mut parts) {
            self.blobs.sync_those(|digest| parts.contains(digest))?;
        } else {
            self.blobs.sync()?;
        }
        self.change(|index| {
            index.manifests.retain(|old| !names.iter().any(|name| is_called(old, name)));
            index.manifests.extend(names.iter().map(|name| called(image, name)));
        })
    }

    /// Calls `image`, which has a name, by another one as well. `false` when it has none by now: nothing
    /// keeps it from being removed then.
    pub fn add_name(&self, name: &str, image: &Descriptor) -> Result<bool, LayoutError> {
        let mut is_named = false;
        self.change(|index| {
            let is_it = |other: &Descriptor| {
                other.digest == image.digest && other.annotations.contains_key(REF_NAME)
            };
            is_named = index.manifests.iter().any(is_it);
            if is_named {
                index.manifests.retain(|old| !is_called(old, name));
                index.manifests.push(called(image, name));
            }
        })?;
        Ok(is_named)
    }

    /// Takes the name from an image; returns what it named.
    pub fn remove(&self, name: &str) -> Result<Option<Descriptor>, LayoutError> {
        let mut removed = None;
        self.change(|index| {
            let found = index.manifests.iter().position(|image| is_called(image, name));
            removed = found.map(|position| index.manifests.remove(position));
        })?;
        Ok(removed)
    }

    /// Collects the blobs that `image` consists of. `false` when its documents do not say.
    fn parts(&self, image: &Descriptor, parts: &mut HashSet<Digest>) -> bool {
        if !parts.insert(image.digest) {
            return true;
        }
        let Ok(bytes) = self.blobs.read(image) else { return false };
        if image.media_type.is_index() {
            let Ok(index) = serde_json::from_slice::<Index>(&bytes) else { return false };
            return index.manifests.iter().all(|inner| self.parts(inner, parts));
        }
        let Ok(manifest) = serde_json::from_slice::<Manifest>(&bytes) else { return false };
        parts.extend(manifest.layers.iter().chain([&manifest.config]).map(|blob| blob.digest));
        true
    }

    fn read(&self) -> Result<Index, LayoutError> {
        let bytes = match fs_err::read(&self.path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(empty()),
            read => read?,
        };
        serde_json::from_slice(&bytes)
            .map_err(|source| LayoutError::Parse { path: self.path.clone(), source })
    }

    fn change(&self, change: impl FnOnce(&mut Index)) -> Result<(), LayoutError> {
        let _lock = self.locks.exclusive("index-json")?;
        let before = self.read()?;
        let mut index = before.clone();
        change(&mut index);
        if index == before {
            return Ok(());
        }
        let bytes = serde_json::to_vec(&index).expect("an index has string keys only");
        let aside = self.session.unused_path();
        let mut file = fs_err::File::create(&aside)?;
        file.write_all(&bytes)?;
        file.sync_all()?;
        fs_err::rename(&aside, &self.path)?;
        let folder = self.path.parent().unwrap_or(&self.path);
        Ok(fs_err::File::open(folder)?.sync_all()?)
    }
}

fn empty() -> Index {
    Index {
        schema_version: 2,
        media_type: Some(MediaType::OciIndex),
        manifests: Vec::new(),
        annotations: BTreeMap::new(),
    }
}

fn is_called(image: &Descriptor, name: &str) -> bool {
    image.annotations.get(REF_NAME).is_some_and(|called| called == name)
}

fn called(image: &Descriptor, name: &str) -> Descriptor {
    let mut image = image.clone();
    image.annotations.insert(REF_NAME.into(), name.into());
    image.annotations.insert(CONTAINERD_NAME.into(), name.into());
    image
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::StateFolder;

    #[test]
    fn a_name_names_one_image() {
        let top = tempfile::tempdir().unwrap();
        let state = StateFolder::open(top.path()).unwrap();
        let layout = state.layout();
        let image = |text: &str| Descriptor::of(MediaType::OciManifest, text.as_bytes());
        layout.set(&["a:1".into(), "a:latest".into()], &image("one")).unwrap();
        layout.set(&["a:latest".into()], &image("two")).unwrap();
        assert_eq!(layout.get("a:1").unwrap(), Some(image("one")));
        assert_eq!(layout.get("a:latest").unwrap(), Some(image("two")));
        assert!(layout.add_name("b:1", &image("two")).unwrap());
        assert!(layout.remove("a:latest").unwrap().is_some());
        assert!(layout.remove("a:latest").unwrap().is_none());
        assert!(layout.remove("b:1").unwrap().is_some());
        assert!(!layout.add_name("b:1", &image("two")).unwrap(), "nothing keeps it any more");
        assert_eq!(layout.images().unwrap().into_keys().collect::<Vec<_>>(), ["a:1"]);
    }

    #[test]
    fn an_image_is_what_its_documents_name() {
        let top = tempfile::tempdir().unwrap();
        let state = StateFolder::open(top.path()).unwrap();
        let blob = |text: &str| Descriptor::of(MediaType::OciLayer, text.as_bytes());
        let manifest = serde_json::json!({
            "schemaVersion": 2, "config": blob("config"), "layers": [blob("one"), blob("two")],
        });
        let put = |media_type: MediaType, value: &serde_json::Value| {
            state.blobs().put(value.to_string().as_bytes()).unwrap();
            Descriptor::of(media_type, value.to_string().as_bytes())
        };
        let manifest = put(MediaType::OciManifest, &manifest);
        let index = serde_json::json!({"schemaVersion": 2, "manifests": [manifest]});
        let index = put(MediaType::OciIndex, &index);
        let mut parts = HashSet::new();
        assert!(state.layout().parts(&index, &mut parts));
        let all = [&index, &manifest, &blob("config"), &blob("one"), &blob("two")];
        assert_eq!(parts, all.iter().map(|part| part.digest).collect());
        let absent = Descriptor::of(MediaType::OciManifest, b"absent");
        assert!(!state.layout().parts(&absent, &mut HashSet::new()));
    }

    #[test]
    fn names_given_at_once_are_all_kept() {
        let top = tempfile::tempdir().unwrap();
        std::thread::scope(|scope| {
            for n in 0..8 {
                let root = top.path();
                scope.spawn(move || {
                    let state = StateFolder::open(root).unwrap();
                    let image = Descriptor::of(MediaType::OciManifest, b"{}");
                    state.layout().set(&[format!("image:{n}")], &image).unwrap();
                });
            }
        });
        let state = StateFolder::open(top.path()).unwrap();
        assert_eq!(state.layout().images().unwrap().len(), 8);
    }
}
