//! The result as two layers: what the distribution contributes below, what is the user's above.
//!
//! Files are those of the layers that were slimmed (`transfer`). Folders are made anew. The time of a
//! folder of the distribution is that of the newest file that is kept in it: its own tells when
//! something was last put beside them, and the lower layer would change with the application.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::OsStr;
use std::io::{self, Write as _};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use rbuild_cache::layer::content::KnownFile;
use rbuild_cache::metadata::{self, Metadata, Timestamp};
use rbuild_cache::snapshot::{Snapshot, SnapshotError, SnapshotId};
use rbuild_cache::state::StateFolder;
use rustix::fs::{Mode, OFlags};

use super::SlimError;
use super::files::{FileId, Files};
use super::partition::{Origin, Partition};
use super::transfer::Transfer;
use crate::ops::file::{Links, Sharing};

/// Something that the result has and the tree has not, or not so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Made {
    /// Where, relative to the root; no component is a link.
    pub(super) path: PathBuf,
    /// What.
    pub(super) kind: MadeKind,
    /// Its mode.
    pub(super) mode: u32,
    /// Its owner.
    pub(super) uid: u32,
    /// Its group.
    pub(super) gid: u32,
    /// Its time.
    pub(super) time: Timestamp,
}

/// What is made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum MadeKind {
    /// A file with these bytes.
    File(Vec<u8>),
    /// An empty folder.
    Folder,
}

impl Made {
    /// A folder of the user and group `owner`.
    pub(super) fn folder(path: &str, mode: u32, owner: u32) -> Self {
        let time = Timestamp::default();
        Self { path: path.into(), kind: MadeKind::Folder, mode, uid: owner, gid: owner, time }
    }
}

/// Which of the two layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Part {
    /// What the distribution contributes.
    Runtime,
    /// What is the user's.
    Application,
}

/// What goes into the two layers.
pub(super) struct Layers<'a> {
    files: &'a Files,
    partition: &'a Partition,
    runtime: BTreeMap<PathBuf, Item>,
    application: BTreeMap<PathBuf, Item>,
    /// When folders of the distribution changed, as far as the result shows.
    times: BTreeMap<PathBuf, Timestamp>,
}

enum Item {
    Kept(FileId),
    Made(Made),
}

impl<'a> Layers<'a> {
    /// Divides what is `kept`, and what is `made`, into the two layers.
    pub(super) fn new(
        files: &'a Files,
        partition: &'a Partition,
        kept: impl Iterator<Item = FileId>,
        made: Vec<Made>,
    ) -> Self {
        let (mut runtime, mut application) = (BTreeMap::new(), BTreeMap::new());
        for id in kept {
            let items = match part(partition, id) {
                Part::Runtime => &mut runtime,
                Part::Application => &mut application,
            };
            items.insert(files.get(id).entry.path().to_owned(), Item::Kept(id));
        }
        for made in made {
            application.remove(&made.path);
            runtime.insert(made.path.clone(), Item::Made(made));
        }
        let mut layers = Self { files, partition, runtime, application, times: BTreeMap::new() };
        layers.find_times();
        layers
    }

    /// Writes a layer and commits it. Its files are links where `sharing` is allowed.
    pub(super) fn commit(
        &self,
        part: Part,
        state: &StateFolder,
        sharing: Sharing,
    ) -> Result<Snapshot, SlimError> {
        let draft = state.snapshots().draft()?;
        let links = (sharing == Sharing::Allowed).then(|| Links::between_layers(state));
        let known = self.write(part, &draft.folder(), links.as_ref())?;
        if links.is_some_and(|links| links.any()) {
            draft.set_linked().map_err(SnapshotError::from)?;
        }
        draft.know_all(known);
        Ok(state.snapshots().commit(&SnapshotId::random(), draft)?)
    }

    fn items(&self, part: Part) -> &BTreeMap<PathBuf, Item> {
        match part {
            Part::Runtime => &self.runtime,
            Part::Application => &self.application,
        }
    }

    /// Writes a layer into the empty folder `folder`; returns what is known of its files.
    fn write(
        &self,
        part: Part,
        folder: &Path,
        links: Option<&Links>,
    ) -> Result<HashMap<PathBuf, KnownFile>, SlimError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let target = rustix::fs::open(folder, flags, Mode::empty())
            .map_err(|error| SlimError::io(Path::new(""), error.into()))?;
        let items = self.items(part);
        let mut folders: BTreeSet<PathBuf> = BTreeSet::from([PathBuf::new()]);
        for path in items.keys() {
            folders.extend(path.ancestors().skip(1).map(Path::to_owned));
        }
        let mut kept = Vec::new();
        for (path, item) in items {
            match item {
                Item::Kept(id) if !self.files.is_directory(*id) => kept.push(*id),
                Item::Made(Made { kind: MadeKind::File(_), .. }) => {}
                Item::Kept(_) | Item::Made(_) => _ = folders.insert(path.clone()),
            }
        }
        for folder in folders.iter().filter(|folder| !folder.as_os_str().is_empty()) {
            rustix::fs::mkdirat(&target, folder, Mode::RWXU)
                .map_err(|error| SlimError::io(folder, error.into()))?;
        }
        let hands_on_access = metadata::hands_on_access(folder);
        let transfer =
            Transfer { files: self.files, target: target.as_fd(), links, hands_on_access };
        let known = transfer.write(&kept)?;
        for (path, item) in items {
            if let Item::Made(made) = item {
                write_made(made, target.as_fd()).map_err(|error| SlimError::io(path, error))?;
            }
        }
        // The innermost first: what is written into a folder changes its time, and its mode may be
        // such that nothing can be reached through it.
        for folder in folders.iter().rev() {
            let dressed = self.dress(folder, items.get(folder), target.as_fd());
            dressed.map_err(|error| SlimError::io(folder, error))?;
        }
        Ok(known)
    }

    /// Gives the folder at `path` its owner, mode, attributes and time.
    fn dress(&self, path: &Path, item: Option<&Item>, target: BorrowedFd<'_>) -> io::Result<()> {
        let here = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        let folder = rustix::fs::openat(
            target,
            here,
            OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
            Mode::empty(),
        )?;
        let time = self.time(path);
        let made = match item {
            Some(Item::Made(made)) => Some(made),
            _ => match self.runtime.get(path) {
                Some(Item::Made(made)) => Some(made),
                _ => None,
            },
        };
        if let Some(made) = made {
            metadata::set_owner_and_mode(&folder, made.uid, made.gid, made.mode)?;
        } else if let Some(id) = self.files.lookup(path).file {
            let entry = &self.files.get(id).entry;
            let xattrs = self.files.view().xattrs(entry).map_err(io::Error::other)?;
            metadata::set_xattrs_at(&folder, OsStr::new(""), &xattrs)?;
            let Metadata { uid, gid, mode, .. } = *entry.metadata();
            metadata::set_owner_and_mode(&folder, uid, gid, mode)?;
        } else {
            metadata::set_owner_and_mode(&folder, 0, 0, 0o755)?;
        }
        metadata::set_modified(&folder, time)
    }

    /// The time of the folder at `path`.
    fn time(&self, path: &Path) -> Timestamp {
        if let Some(id) = self.files.lookup(path).file
            && self.partition.origin(id) == Origin::User
        {
            return self.files.get(id).entry.metadata().modified;
        }
        self.times.get(path).or(self.times.get(Path::new(""))).copied().unwrap_or_default()
    }

    fn find_times(&mut self) {
        for (path, item) in &self.runtime {
            let time = match item {
                Item::Kept(id) if self.files.is_directory(*id) => continue,
                Item::Kept(id) => self.files.get(*id).entry.metadata().modified,
                Item::Made(Made { kind: MadeKind::Folder, .. }) => continue,
                Item::Made(made) => made.time,
            };
            for folder in path.ancestors().skip(1) {
                let known = self.times.entry(folder.to_owned()).or_insert(time);
                *known = time.max(*known);
            }
        }
    }
}

/// In which layer a file is.
pub(super) fn part(partition: &Partition, id: FileId) -> Part {
    if partition.is_users(id) { Part::Application } else { Part::Runtime }
}

fn write_made(made: &Made, target: BorrowedFd<'_>) -> io::Result<()> {
    let MadeKind::File(bytes) = &made.kind else { return Ok(()) };
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let file = rustix::fs::openat(target, &made.path, flags, Mode::RUSR | Mode::WUSR)?;
    let mut file = std::fs::File::from(file);
    file.write_all(bytes)?;
    metadata::set_owner_and_mode(&file, made.uid, made.gid, made.mode)?;
    metadata::set_modified(&file, made.time)
}
