//! Unpacks a layer's tar into a folder in overlayfs form (image-spec, layer.md, "Applying
//! Changesets").
//!
//! The tar is hostile. No path of it is ever joined to one of the host's: each entry is made by its
//! name in an open folder, and that folder is found by the kernel with the layer's folder as its
//! root (openat2, `RESOLVE_IN_ROOT`), so that `..`, absolute paths and links end inside. What an
//! entry replaces is removed, never written through: a link in its place is not followed.
//!
//! Folders get their owners, modes and times at the end, since a folder that may not be written to
//! still has entries to come.

mod error;
mod place;

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;

use super::tar_reader::{FilePiece, TarEntry, TarKind, TarReader};
use super::whiteout::{self, is_mark};
use crate::digest::{DiffId, Hasher, Hashing};
use crate::limits::{Bounded, Limit, Limits, depth};
use crate::metadata::{self, Metadata, Timestamp, Xattrs};
use crate::remove::remove_tree;
use crate::snapshot::Draft;

pub use error::ApplyError;

use error::Failure;
use place::{
    Place, components, is_of_aufs, open_folder, open_in_root, open_in_root_unfollowed, parent_fd,
};

/// What came of a layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applied {
    /// The digest of the whole stream, including what follows the tar's end.
    pub diff_id: DiffId,
    /// The bytes of the stream.
    pub size: u64,
    /// Folders that entries are in but that the tar does not list. They were made with mode 0755
    /// for root, which hides what a layer below says of them.
    pub implied: Vec<PathBuf>,
}

/// Unpacks the uncompressed tar `stream` into `draft`. The stream is read to its end.
pub fn apply(stream: impl Read, draft: &Draft, limits: &Limits) -> Result<Applied, ApplyError> {
    let stream = Bounded::new(Hashing::new(stream), limits, Limit::LayerSize);
    let mut reader = TarReader::new(stream);
    let mut unpacker = Unpacker::new(draft)?;
    let mut entries = 0;
    while let Some(entry) = reader.next_entry()? {
        entries += 1;
        limits.check(Limit::LayerFiles, entries)?;
        limits.check(Limit::PathDepth, depth(&entry.path))?;
        unpacker.entry(&entry, &mut reader).map_err(|failure| failure.about(&entry.path))?;
    }
    let stream = reader.drain()?.into_inner();
    let implied = unpacker.finish().map_err(|(path, failure)| failure.about(&path))?;
    let (_, digest, size) = stream.finish();
    Ok(Applied { diff_id: DiffId(digest), size, implied })
}

/// What a folder gets at the end.
struct FolderEnd {
    mode: u32,
    uid: u32,
    gid: u32,
    mtime: Timestamp,
    xattrs: Xattrs,
    implied: bool,
}

struct Unpacker<'a> {
    draft: &'a Draft,
    root: Rc<OwnedFd>,
    /// The folder of the last entry: most entries are in the same.
    last: Option<(Vec<u8>, Rc<OwnedFd>)>,
    folders: BTreeMap<Vec<u8>, FolderEnd>,
    buffer: Vec<u8>,
}

impl<'a> Unpacker<'a> {
    fn new(draft: &'a Draft) -> Result<Self, ApplyError> {
        let folder = draft.folder();
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(&folder, flags, Mode::empty()).map_err(|e| {
            let path = folder.display().to_string();
            ApplyError::Unpack { path, source: e.into() }
        })?;
        Ok(Self {
            draft,
            root: Rc::new(root),
            last: None,
            folders: BTreeMap::new(),
            buffer: vec![0; 128 << 10],
        })
    }

    fn entry<R: Read>(
        &mut self,
        entry: &TarEntry,
        reader: &mut TarReader<R>,
    ) -> Result<(), Failure> {
        let components = components(&entry.path)?;
        let Some((name, parents)) = components.split_last() else {
            return match entry.kind {
                TarKind::Folder => self.end_folder(Vec::new(), entry, false),
                _ => Err(Failure::Why("is the root and not a folder")),
            };
        };
        if is_of_aufs(&components) {
            return Ok(());
        }
        if parents.iter().any(|parent| parent.starts_with(whiteout::PREFIX)) {
            return Err(Failure::Why("is in a whiteout"));
        }
        if let Some(hidden) = name.strip_prefix(whiteout::PREFIX) {
            return self.whiteout(parents, name, hidden);
        }
        let parent = self.parent(parents)?;
        let place =
            Place { parent: &parent, name: OsStr::from_bytes(name), components: &components };
        match &entry.kind {
            TarKind::Folder => self.folder(&place, entry),
            TarKind::File { size } => self.file(&place, entry, *size, reader),
            TarKind::HardLink(target) => self.hard_link(&place, target),
            TarKind::Link(target) => {
                let target = OsStr::from_bytes(target);
                self.make(&place, || rustix::fs::symlinkat(target, place.parent, place.name))?;
                metadata::set_owner_at(place.parent, place.name, entry.uid, entry.gid)?;
                finish_at(&place, entry)
            }
            // overlayfs would take it for a whiteout, which has no power in this form.
            TarKind::CharDevice(0, 0) => Ok(()),
            TarKind::CharDevice(major, minor) => {
                self.node(&place, entry, FileType::CharacterDevice, (*major, *minor))
            }
            TarKind::BlockDevice(major, minor) => {
                self.node(&place, entry, FileType::BlockDevice, (*major, *minor))
            }
            TarKind::Fifo => self.node(&place, entry, FileType::Fifo, (0, 0)),
        }
    }

    fn folder(&mut self, place: &Place<'_>, entry: &TarEntry) -> Result<(), Failure> {
        let there = Metadata::at(place.parent, place.name)?;
        if !there.is_some_and(|there| there.is_directory()) {
            self.make_folder(place)?;
        }
        self.end_folder(place.components.join(&b'/'), entry, false)
    }

    /// Makes a folder in place of anything that is not one. In place of a whiteout, it hides what
    /// lower layers have there.
    fn make_folder(&mut self, place: &Place<'_>) -> Result<(), Failure> {
        let hides = match Metadata::at(place.parent, place.name)? {
            Some(there) => there.is_whiteout(),
            None => false,
        };
        let mode = Mode::from_raw_mode(0o700);
        self.make(place, || rustix::fs::mkdirat(place.parent, place.name, mode))?;
        if hides {
            metadata::mark_opaque(open_folder(place.parent, place.name)?)?;
        }
        Ok(())
    }

    fn end_folder(
        &mut self,
        path: Vec<u8>,
        entry: &TarEntry,
        implied: bool,
    ) -> Result<(), Failure> {
        let end = FolderEnd {
            mode: entry.mode,
            uid: entry.uid,
            gid: entry.gid,
            mtime: timestamp(entry),
            xattrs: xattrs(entry)?,
            implied,
        };
        self.folders.insert(path, end);
        Ok(())
    }

    fn file<R: Read>(
        &mut self,
        place: &Place<'_>,
        entry: &TarEntry,
        size: u64,
        reader: &mut TarReader<R>,
    ) -> Result<(), Failure> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let file = self.make(place, || {
            rustix::fs::openat(place.parent, place.name, flags, Mode::from_raw_mode(0o600))
        })?;
        let mut file = std::fs::File::from(file);
        let mut hasher = Hasher::new();
        let mut ends_in_hole = false;
        loop {
            match reader.read_piece(&mut self.buffer)? {
                FilePiece::Data(length) => {
                    file.write_all(&self.buffer[..length])?;
                    hasher.update(&self.buffer[..length]);
                    ends_in_hole = false;
                }
                FilePiece::Hole(length) => {
                    file.seek(SeekFrom::Current(length.cast_signed()))?;
                    hash_zeros(&mut hasher, length);
                    ends_in_hole = true;
                }
                FilePiece::End => break,
            }
        }
        if ends_in_hole {
            file.set_len(size)?;
        }
        metadata::set_owner_and_mode(&file, entry.uid, entry.gid, entry.mode)?;
        metadata::set_xattrs_at(place.parent, place.name, &xattrs(entry)?)?;
        metadata::set_modified(&file, timestamp(entry))?;
        self.draft.know_inode(Metadata::of(&file)?.inode, hasher.digest());
        Ok(())
    }

    fn hard_link(&mut self, place: &Place<'_>, target: &[u8]) -> Result<(), Failure> {
        const MISSING: Failure = Failure::Why("is a hard link to what the layer does not have");
        let components = components(target)?;
        let Some((name, parents)) = components.split_last() else { return Err(MISSING) };
        let name = OsStr::from_bytes(name);
        let Ok(parent) = open_in_root(&self.root, &parents.join(&b'/')) else {
            return Err(MISSING);
        };
        let target = Metadata::at(&parent, name)?.ok_or(MISSING)?;
        if target.is_directory() {
            return Err(Failure::Why("is a hard link to a folder"));
        }
        if target.is_whiteout() {
            return Err(MISSING);
        }
        let there = Metadata::at(place.parent, place.name)?;
        if there.is_some_and(|there| there.inode == target.inode) {
            return Ok(());
        }
        // A link as target is linked itself, not followed.
        self.make(place, || {
            rustix::fs::linkat(&parent, name, place.parent, place.name, AtFlags::empty())
        })
    }

    fn node(
        &mut self,
        place: &Place<'_>,
        entry: &TarEntry,
        kind: FileType,
        (major, minor): (u32, u32),
    ) -> Result<(), Failure> {
        let device = rustix::fs::makedev(major, minor);
        let mode = Mode::from_raw_mode(0o600);
        match self.make(place, || rustix::fs::mknodat(place.parent, place.name, kind, mode, device))
        {
            Err(Failure::Io(e)) if e.kind() == io::ErrorKind::PermissionDenied => {
                // Without root there are no devices, and no use for them: the sandbox has its own.
                tracing::warn!(name = ?place.name, "left out a device of a layer");
                return Ok(());
            }
            done => done?,
        }
        metadata::set_owner_at(place.parent, place.name, entry.uid, entry.gid)?;
        metadata::set_mode_at(place.parent, place.name, entry.mode)?;
        finish_at(place, entry)
    }

    fn whiteout(&mut self, parents: &[&[u8]], name: &[u8], hidden: &[u8]) -> Result<(), Failure> {
        if matches!(hidden, b"" | b"." | b"..") {
            return Err(Failure::Why("is a whiteout of nothing"));
        }
        let parent = self.parent(parents)?;
        if name == whiteout::OPAQUE {
            return Ok(metadata::mark_opaque(&*parent)?);
        }
        let hidden = OsStr::from_bytes(hidden);
        match Metadata::at(&*parent, hidden)? {
            None => Ok(whiteout::make_whiteout_at(parent_fd(&parent), hidden)?),
            // This layer's own: what is below is hidden, and it stays.
            Some(there) if there.is_directory() => {
                Ok(metadata::mark_opaque(open_folder(parent_fd(&parent), hidden)?)?)
            }
            Some(_) => Ok(()),
        }
    }

    /// Makes something at `place` with `call`, in place of what is there.
    fn make<T>(
        &mut self,
        place: &Place<'_>,
        call: impl Fn() -> rustix::io::Result<T>,
    ) -> Result<T, Failure> {
        match call() {
            Err(Errno::EXIST) => {}
            done => return Ok(done?),
        }
        // What was found by way of what is removed now may be elsewhere.
        self.last = None;
        let there = Metadata::at(place.parent, place.name)?;
        if there.is_some_and(|there| there.is_directory()) {
            let descriptor = place.parent.as_raw_fd();
            let path = Path::new("/proc/self/fd").join(descriptor.to_string()).join(place.name);
            remove_tree(&path)?;
            let own = place.components.join(&b'/');
            let below = [&own[..], b"/"].concat();
            self.folders.retain(|path, _| *path != own && !path.starts_with(&below));
        } else {
            rustix::fs::unlinkat(place.parent, place.name, AtFlags::empty())?;
        }
        Ok(call()?)
    }

    /// The folder that `components` lead to, which is made when it is missing.
    fn parent(&mut self, components: &[&[u8]]) -> Result<Rc<OwnedFd>, Failure> {
        if components.is_empty() {
            return Ok(Rc::clone(&self.root));
        }
        let path = components.join(&b'/');
        if let Some((known, folder)) = &self.last
            && *known == path
        {
            return Ok(Rc::clone(folder));
        }
        let folder = match open_in_root(&self.root, &path) {
            Ok(folder) => Rc::new(folder),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => self.make_parents(components)?,
            Err(e) => return Err(e.into()),
        };
        self.last = Some((path, Rc::clone(&folder)));
        Ok(folder)
    }

    /// Makes the folders that are missing on the way; what is there and is no folder, nor leads to
    /// one, is replaced.
    fn make_parents(&mut self, components: &[&[u8]]) -> Result<Rc<OwnedFd>, Failure> {
        let mut parent = Rc::clone(&self.root);
        for length in 1..=components.len() {
            let path = components[..length].join(&b'/');
            let folder = match open_in_root(&self.root, &path) {
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {
                    let name = OsStr::from_bytes(components[length - 1]);
                    let components = &components[..length];
                    self.make_folder(&Place { parent: &parent, name, components })?;
                    self.end_folder(path, &IMPLIED, true)?;
                    open_folder(parent_fd(&parent), name)?
                }
                opened => opened?,
            };
            parent = Rc::new(folder);
        }
        Ok(parent)
    }

    /// Gives the folders what they should have, the innermost first.
    fn finish(mut self) -> Result<Vec<PathBuf>, (Vec<u8>, Failure)> {
        let mut implied = Vec::new();
        while let Some((path, end)) = self.folders.pop_last() {
            self.finish_folder(&path, &end).map_err(|failure| (path.clone(), failure))?;
            if end.implied {
                implied.push(PathBuf::from(OsStr::from_bytes(&path)));
            }
        }
        implied.reverse();
        Ok(implied)
    }

    fn finish_folder(&self, path: &[u8], end: &FolderEnd) -> Result<(), Failure> {
        let folder = match open_in_root_unfollowed(&self.root, path) {
            // It was replaced by something else.
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(()),
            folder => folder?,
        };
        metadata::set_xattrs_at(&folder, OsStr::new(""), &end.xattrs)?;
        metadata::set_owner_and_mode(&folder, end.uid, end.gid, end.mode)?;
        metadata::set_modified(&folder, end.mtime)?;
        Ok(())
    }
}

const IMPLIED: TarEntry = TarEntry {
    path: Vec::new(),
    kind: TarKind::Folder,
    mode: 0o755,
    uid: 0,
    gid: 0,
    mtime: (0, 0),
    xattrs: Vec::new(),
};

fn timestamp(entry: &TarEntry) -> Timestamp {
    Timestamp { seconds: entry.mtime.0, nanoseconds: entry.mtime.1 }
}

/// The attributes of an entry that are the file's own: marks of overlayfs in a layer have no power.
fn xattrs(entry: &TarEntry) -> Result<Xattrs, Failure> {
    let own = entry.xattrs.iter().filter(|(name, _)| !is_mark(name));
    own.map(|(name, value)| {
        let name = std::ffi::CString::new(name.clone())
            .map_err(|_| Failure::Why("has an attribute whose name has a zero byte"))?;
        Ok((name, value.clone()))
    })
    .collect()
}

fn finish_at(place: &Place<'_>, entry: &TarEntry) -> Result<(), Failure> {
    metadata::set_xattrs_at(place.parent, place.name, &xattrs(entry)?)?;
    Ok(metadata::set_modified_at(place.parent, place.name, timestamp(entry))?)
}

fn hash_zeros(hasher: &mut Hasher, mut length: u64) {
    const ZEROS: [u8; 16 << 10] = [0; 16 << 10];
    while length > 0 {
        let piece = usize::try_from(length).unwrap_or(usize::MAX).min(ZEROS.len());
        hasher.update(&ZEROS[..piece]);
        length -= piece as u64;
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    use proptest::prelude::*;

    use super::*;
    use crate::layer::entries::{Kind, entries};
    use crate::layer::pack::{PackOptions, pack};
    use crate::state::StateFolder;

    /// An entry of a tar: what Go would write for it, hostile or not.
    fn add(tar: &mut Vec<u8>, kind: u8, path: &str, link: &str, data: &str) {
        let mut header = tar::Header::new_ustar();
        header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
        header.as_old_mut().linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_mode(if kind == b'5' { 0o750 } else { 0o640 });
        header.set_uid(rustix::process::geteuid().as_raw().into());
        header.set_gid(rustix::process::getegid().as_raw().into());
        header.set_mtime(1000);
        header.set_size(data.len() as u64);
        header.as_mut_bytes()[156] = kind;
        header.set_cksum();
        tar.extend_from_slice(header.as_bytes());
        tar.extend_from_slice(data.as_bytes());
        tar.resize(tar.len().next_multiple_of(512), 0);
    }

    /// `d/` is a folder, `a=text` a file, `l->t` a link, `h=>t` a hard link.
    fn tar_of(entries: &[&str]) -> Vec<u8> {
        let mut tar = Vec::new();
        for entry in entries {
            if let Some((path, target)) = entry.split_once("=>") {
                add(&mut tar, b'1', path, target, "");
            } else if let Some((path, target)) = entry.split_once("->") {
                add(&mut tar, b'2', path, target, "");
            } else if let Some((path, data)) = entry.split_once('=') {
                add(&mut tar, b'0', path, "", data);
            } else if entry.ends_with('/') {
                add(&mut tar, b'5', entry, "", "");
            } else {
                add(&mut tar, b'0', entry, "", "");
            }
        }
        tar.resize(tar.len() + 1024, 0);
        tar
    }

    /// A state folder inside a folder whose other files nothing may touch.
    struct Surroundings {
        top: tempfile::TempDir,
        state: StateFolder,
    }

    impl Surroundings {
        fn new() -> Self {
            let top = tempfile::tempdir().unwrap();
            let state = StateFolder::open(top.path().join("state")).unwrap();
            let canary = top.path().join("canary");
            fs_err::create_dir(&canary).unwrap();
            fs_err::write(canary.join("file"), "untouched").unwrap();
            fs_err::set_permissions(&canary, std::fs::Permissions::from_mode(0o711)).unwrap();
            Self { top, state }
        }

        /// Everything about the canary that unpacking could change.
        fn canary(&self) -> String {
            let about = |path: &Path| {
                let m = fs_err::symlink_metadata(path).unwrap();
                format!("{:o} {} {} {} {}", m.mode(), m.uid(), m.mtime(), m.ctime_nsec(), m.nlink())
            };
            let folder = self.top.path().join("canary");
            let content = fs_err::read_to_string(folder.join("file")).unwrap();
            let names = fs_err::read_dir(&folder).unwrap().count();
            format!("{} {} {content} {names}", about(&folder), about(&folder.join("file")))
        }

        fn apply(&self, tar: &[u8]) -> Result<(Draft, Applied), ApplyError> {
            let draft = self.state.snapshots().draft().unwrap();
            let applied = apply(tar, &draft, &Limits::default())?;
            Ok((draft, applied))
        }
    }

    /// The tree as `path kind`, one a line.
    fn tree(draft: &Draft) -> Vec<String> {
        let show = |entry: super::super::entries::Entry| {
            let path = entry.path.display().to_string();
            match entry.kind {
                Kind::Folder { opaque: false } => format!("{path}/"),
                Kind::Folder { opaque: true } => format!("{path}/ opaque"),
                Kind::File { .. } => {
                    let file = draft.folder().join(&entry.path);
                    format!("{path}={}", fs_err::read_to_string(file).unwrap())
                }
                Kind::HardLink(first) => format!("{path}=>{}", first.display()),
                Kind::Link(target) => format!("{path}->{}", String::from_utf8(target).unwrap()),
                Kind::Whiteout => format!("{path} gone"),
                other => format!("{path} {other:?}"),
            }
        };
        entries(&draft.folder()).unwrap().into_iter().map(show).collect()
    }

    #[test]
    fn nothing_leaves_the_layer() {
        let surroundings = Surroundings::new();
        let outside = surroundings.top.path().join("canary").display().to_string();
        let file = format!("{outside}/file");
        let before = surroundings.canary();
        let check = |entries: &[&str], expected: &[&str]| {
            let (draft, _) = surroundings.apply(&tar_of(entries)).unwrap();
            let found = tree(&draft);
            let expected: Vec<String> =
                expected.iter().map(|line| line.replace("OUT", &outside)).collect();
            assert_eq!(found, expected, "{entries:?}");
            assert_eq!(surroundings.canary(), before, "{entries:?}");
        };
        let refuse = |entries: &[&str], message: &str| {
            let error = surroundings.apply(&tar_of(entries)).unwrap_err();
            let error = format!("{error:#} {:?}", std::error::Error::source(&error));
            assert!(error.contains(message), "{entries:?}: {error}");
            assert_eq!(surroundings.canary(), before, "{entries:?}");
        };
        let link = format!("l->{outside}");
        let up = "l->../../../../../../canary";
        check(&["../../x=1", "/y=2", "a/../../z=3", "./w=4"], &["w=4", "x=1", "y=2", "z=3"]);
        // A link that leads out leads to a folder of that name inside.
        check(&["d/", "l->/d", "l/x=1"], &["d/", "d/x=1", "l->/d"]);
        check(&["d/", "l->../../d", "l/x=1"], &["d/", "d/x=1", "l->../../d"]);
        check(&["d/", "m->l", "l->d", "m/x=1"], &["d/", "d/x=1", "l->d", "m->l"]);
        // One that leads to nothing is replaced when something is to be in it.
        check(&[&link, "l/file=x"], &["l/", "l/file=x"]);
        check(&[up, "l/file=x"], &["l/", "l/file=x"]);
        check(&["l->l", "l/x=1"], &["l/", "l/x=1"]);
        // A link itself is replaced, not followed.
        check(&[&format!("l->{file}"), "l=mine"], &["l=mine"]);
        check(&[&link, "l/"], &["l/"]);
        check(&["d/", "d/a=1", "d->OUT".replace("OUT", &outside).as_str()], &["d->OUT"]);
        check(&["a=1", "a/b=2"], &["a/", "a/b=2"]);
        check(&["a/", "a/b=1", "a=2"], &["a=2"]);
        // Hard links.
        check(&["a=1", "h=>a"], &["a=1", "h=>a"]);
        check(&["a=1", "h=>/a"], &["a=1", "h=>a"]);
        check(&["a=1", "h=>../../a"], &["a=1", "h=>a"]);
        check(&["a=1", "a=>a"], &["a=1"]);
        check(&["l->a", "h=>l"], &["h->a", "l=>h"]);
        refuse(&[&format!("h=>{file}")], "does not have");
        refuse(&["l->../../../canary", "h=>l/file"], "does not have");
        refuse(&[&link, "h=>l/file"], "does not have");
        refuse(&["h=>missing"], "does not have");
        refuse(&["d/", "h=>d"], "hard link to a folder");
        refuse(&[".wh.a", "h=>a"], "does not have");
        refuse(&["h=>/"], "does not have");
        // Names.
        refuse(&["/=1"], "is the root");
        refuse(&["..=1"], "is the root");
        let entry = format!("{}=1", "n".repeat(90));
        check(&[&entry], &[&entry]);
    }

    #[test]
    fn whiteouts_stay_inside_and_hide_only_what_is_below() {
        let surroundings = Surroundings::new();
        let before = surroundings.canary();
        let check = |entries: &[&str], expected: &[&str]| {
            let (draft, _) = surroundings.apply(&tar_of(entries)).unwrap();
            assert_eq!(tree(&draft), expected, "{entries:?}");
            assert_eq!(surroundings.canary(), before);
        };
        check(&[".wh.a"], &["a gone"]);
        check(&["../.wh.a", "/d/.wh.b"], &["a gone", "d/", "d/b gone"]);
        check(&["a=1", ".wh.a"], &["a=1"]);
        check(&[".wh.a", "a=1"], &["a=1"]);
        check(&["d/", "d/a=1", ".wh.d"], &["d/ opaque", "d/a=1"]);
        check(&[".wh.d", "d/", "d/a=1"], &["d/ opaque", "d/a=1"]);
        check(&[".wh.d", "d/a=1"], &["d/ opaque", "d/a=1"]);
        check(&["d/", "d/a=1", "d/.wh..wh..opq", "d/b=2"], &["d/ opaque", "d/a=1", "d/b=2"]);
        check(&["d/.wh..wh..opq", "d/"], &["d/ opaque"]);
        check(&["l->/canary", ".wh.l"], &["l->/canary"]);
        check(&[".wh..wh.plnk/1.2=x", ".wh..wh.aufs"], &[]);
        for wrong in [".wh.", ".wh..", ".wh...", ".wh.d/x=1", "d/.wh../x=1"] {
            assert!(surroundings.apply(&tar_of(&[wrong])).is_err(), "{wrong}");
        }
        let (draft, _) = surroundings.apply(&tar_of(&[".wh..wh..opq", "a=1"])).unwrap();
        assert!(whiteout::is_opaque(&draft.folder()).unwrap());
    }

    #[test]
    fn marks_of_overlayfs_in_a_layer_have_no_power() {
        let surroundings = Surroundings::new();
        let record = |name: &str| {
            let text = format!(" SCHILY.xattr.{name}=y\n");
            format!("{}{text}", text.len() + 2)
        };
        let text = record("trusted.overlay.opaque") + &record("user.overlay.opaque");
        let mut tar = Vec::new();
        add(&mut tar, b'x', "pax", "", &text);
        tar.extend_from_slice(&tar_of(&["d/", "w=1"]));
        let (draft, _) = surroundings.apply(&tar).unwrap();
        assert_eq!(tree(&draft), ["d/", "w=1"]);
        let mut tar = Vec::new();
        add(&mut tar, b'3', "w", "", "");
        tar.resize(tar.len() + 1024, 0);
        let (draft, _) = surroundings.apply(&tar).unwrap();
        assert_eq!(tree(&draft), [""; 0], "a device 0:0 is no whiteout");
    }

    #[test]
    fn folders_get_their_modes_and_times_at_the_end_and_only_if_they_are_still_folders() {
        let surroundings = Surroundings::new();
        let entries = ["r/", "r/a=1", "s/", "t/", "s->t", "p/q/x=1"];
        let (draft, applied) = surroundings.apply(&tar_of(&entries)).unwrap();
        let about = |path: &str| {
            let metadata = fs_err::symlink_metadata(draft.folder().join(path)).unwrap();
            (metadata.mode() & 0o7777, metadata.mtime())
        };
        assert_eq!(about("r"), (0o750, 1000));
        assert_eq!(about("t"), (0o750, 1000));
        assert_eq!(about("r/a"), (0o640, 1000));
        assert_eq!(about("p"), (0o755, 0));
        assert_eq!(applied.implied, [PathBuf::from("p"), PathBuf::from("p/q")]);
    }

    #[test]
    fn limits_hold() {
        let surroundings = Surroundings::new();
        let tar = tar_of(&["a=1", "b=2", "c=3"]);
        let with = |limits: Limits| {
            let draft = surroundings.state.snapshots().draft().unwrap();
            apply(&tar[..], &draft, &limits)
        };
        let length = tar.len() as u64;
        let limits = Limits::default()
            .with(Limit::LayerSize, length)
            .with(Limit::LayerFiles, 3)
            .with(Limit::PathDepth, 1);
        assert!(with(limits.clone()).is_ok());
        for (limit, value) in
            [(Limit::LayerSize, length - 1), (Limit::LayerFiles, 2), (Limit::PathDepth, 0)]
        {
            let error = with(limits.clone().with(limit, value)).unwrap_err();
            assert!(matches!(&error, ApplyError::Limit(found) if found.limit == limit), "{error}");
        }
    }

    #[test]
    fn a_deep_tree_takes_linear_time() {
        let surroundings = Surroundings::new();
        let mut tar = Vec::new();
        let deep = "d/".repeat(1500);
        let record = format!(" path={deep}f\n");
        add(&mut tar, b'x', "pax", "", &format!("{}{record}", record.len() + 4));
        add(&mut tar, b'0', "f", "", "deep");
        let (_, applied) = surroundings.apply(&tar).unwrap();
        assert_eq!(applied.implied.len(), 1500);
    }

    /// What a layer may hold at a path.
    #[derive(Clone, Debug)]
    enum Node {
        Folder(u32, bool),
        File(Vec<u8>, u32, Option<Vec<u8>>),
        Link(String),
        HardLink(prop::sample::Index),
        Whiteout,
        Fifo,
    }

    fn node() -> impl Strategy<Value = Node> {
        let bytes = || prop::collection::vec(any::<u8>(), 0..700);
        prop_oneof![
            3 => (0..0o7777_u32, any::<bool>()).prop_map(|(mode, opaque)| {
                // Whoever is not root must be able to look into it.
                Node::Folder(mode | 0o700, opaque)
            }),
            4 => (bytes(), 0..0o7777_u32, prop::option::of(bytes()))
                .prop_map(|(data, mode, xattr)| Node::File(data, mode | 0o400, xattr)),
            1 => "[a-z/.é]{1,200}".prop_map(Node::Link),
            1 => any::<prop::sample::Index>().prop_map(Node::HardLink),
            1 => Just(Node::Whiteout),
            1 => Just(Node::Fifo),
        ]
    }

    /// Any name but those that mean something else.
    fn name() -> impl Strategy<Value = String> {
        prop_oneof!["[a-c]", "[a-zé \n=.-]{1,40}", "[a-z]{120,180}"]
            .prop_filter("a name", |name| name != "." && name != ".." && !name.starts_with(".wh."))
    }

    fn fill(folder: &Path, nodes: &[(Vec<prop::sample::Index>, String, Node)]) {
        let mut folders = vec![folder.to_owned()];
        let mut files: Vec<PathBuf> = Vec::new();
        let mut modes = Vec::new();
        for (parents, name, node) in nodes {
            let parent =
                parents.first().map_or(folder, |index| index.get(&folders).as_path()).to_owned();
            let path = parent.join(name);
            if path.as_os_str().len() > 2000 || path.symlink_metadata().is_ok() {
                continue;
            }
            match node {
                Node::Folder(mode, opaque) => {
                    fs_err::create_dir(&path).unwrap();
                    if *opaque {
                        whiteout::set_opaque(&path).unwrap();
                    }
                    modes.push((path.clone(), *mode));
                    folders.push(path);
                }
                Node::File(data, mode, xattr) => {
                    fs_err::write(&path, data).unwrap();
                    if let Some(value) = xattr {
                        let flags = rustix::fs::XattrFlags::empty();
                        rustix::fs::lsetxattr(&path, "user.note", value, flags).unwrap();
                    }
                    let mode = std::fs::Permissions::from_mode(*mode);
                    fs_err::set_permissions(&path, mode).unwrap();
                    files.push(path);
                }
                Node::Link(target) => fs_err::os::unix::fs::symlink(target, &path).unwrap(),
                Node::HardLink(index) if !files.is_empty() => {
                    fs_err::hard_link(index.get(&files), &path).unwrap();
                }
                Node::HardLink(_) => {}
                Node::Whiteout => whiteout::make_whiteout(&path).unwrap(),
                Node::Fifo => rustix::fs::mknodat(
                    rustix::fs::CWD,
                    &path,
                    FileType::Fifo,
                    Mode::from_raw_mode(0o600),
                    0,
                )
                .unwrap(),
            }
        }
        for (path, mode) in modes {
            fs_err::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn a_layer_survives_being_packed_and_unpacked(
            nodes in prop::collection::vec(
                (prop::collection::vec(any::<prop::sample::Index>(), 0..2), name(), node()),
                0..40,
            ),
        ) {
            let surroundings = Surroundings::new();
            let folder = surroundings.top.path().join("layer");
            fs_err::create_dir(&folder).unwrap();
            fill(&folder, &nodes);
            let mut tar = Vec::new();
            let (diff_id, size) = pack(&folder, &PackOptions::default(), &mut tar).unwrap();
            let (draft, applied) = surroundings.apply(&tar).unwrap();
            prop_assert_eq!((applied.diff_id, applied.size), (diff_id, size));
            prop_assert_eq!(applied.implied, Vec::<PathBuf>::new());
            let all = |folder: &Path| {
                let entries = entries(folder).unwrap().into_iter();
                entries.map(|mut entry| {
                    entry.inode = 0;
                    entry.changed = (0, 0);
                    // A tar has whole seconds, and says nothing of a whiteout's.
                    let whole = if entry.kind == Kind::Whiteout { 0 } else { entry.mtime.0 };
                    entry.mtime = (whole, 0);
                    let file = folder.join(&entry.path);
                    let data = matches!(entry.kind, Kind::File { .. })
                        .then(|| fs_err::read(file).unwrap());
                    if entry.kind == Kind::Whiteout {
                        entry.mode = 0;
                    }
                    format!("{entry:?} {data:?}")
                }).collect::<Vec<_>>()
            };
            prop_assert_eq!(all(&draft.folder()), all(&folder));
            let mut again = Vec::new();
            pack(&draft.folder(), &PackOptions::default(), &mut again).unwrap();
            prop_assert_eq!(again, tar);
        }
    }
}
