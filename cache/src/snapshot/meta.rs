//! What is kept of a snapshot beside its tree.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::digest::{Digest, TreeDigest};
use crate::layer::content::Content;
use crate::layer::whiteout::at;
use crate::sighting::Sighting;

/// A digest in hex and a line break: what `meta` begins with.
const META_CHECK: usize = 65;

/// What `meta` holds, behind a line with the digest of it.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Meta {
    pub(crate) content: TreeDigest,
    pub(crate) size: u64,
    /// The bytes on the disk, links to other snapshots' files included.
    pub(crate) disk: u64,
    /// What the files look like: [`content::stamp`].
    pub(super) stamp: Digest,
    /// The boot in which the tree was written, or last found whole.
    pub(super) boot: Box<str>,
    /// [`super::Draft::set_implied`]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) implied: Vec<PathBuf>,
    /// [`super::Draft::set_sharing`]
    #[serde(default)]
    pub(super) sharing: bool,
}

impl Meta {
    /// That of a tree in which `found` is, written in the boot `boot`.
    pub(super) fn new(found: &Content, boot: &str) -> Self {
        let Content { digest, size, disk, stamp } = *found;
        let (implied, sharing) = (Vec::new(), false);
        Self { content: digest, size, disk, stamp, boot: boot.into(), implied, sharing }
    }

    /// That of the snapshot whose folder was `seen`; `None` when there is none, or it is not whole.
    pub(crate) fn read(seen: &Sighting) -> io::Result<Option<Self>> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let mut file = match rustix::fs::openat(seen.folder(), "meta", flags, Mode::empty()) {
            Ok(file) => File::from(file),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(None),
            Err(error) => return Err(at(Path::new("meta"), error)),
        };
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(Self::parse(&bytes))
    }

    /// Reads what [`Meta::write`] wrote; `None` for anything else.
    pub(crate) fn parse(bytes: &[u8]) -> Option<Self> {
        let (check, json) = bytes.split_at_checked(META_CHECK)?;
        let is_whole = check[..META_CHECK - 1] == *Digest::of(json).hex().as_bytes();
        is_whole.then(|| serde_json::from_slice(json).ok()).flatten()
    }
    /// Writes it to `path`.
    pub(super) fn write(&self, path: &Path) -> io::Result<()> {
        let json = serde_json::to_vec(self).expect("meta has string keys only");
        let mut bytes = Digest::of(&json).hex().into_bytes();
        bytes.push(b'\n');
        bytes.extend(json);
        fs_err::write(path, bytes)
    }
}
