//! The digest of what a layer contains: two layers have the same one if a step could not tell them
//! apart except by times.

use std::collections::HashMap;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use fs_err::File;
use rayon::prelude::*;

use super::entries::{Entry, Kind, entries, outline};
use crate::digest::{Digest, Hasher, TreeDigest};
use crate::metadata::Metadata;

/// What the bytes that are hashed begin with; changes whenever their meaning does.
const VERSION: &str = "rbuild layer content 2";

/// Bytes below which hashing on one thread is over before a second one has begun.
const WORTH_SHARING: u64 = 512 << 10;

/// Below so many entries, waking a second thread costs more than it does.
const KNOWN_TOGETHER: usize = 2048;

/// What a layer contains.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Content {
    /// The digest of all paths with their types, modes, owners, bytes, targets, device numbers,
    /// extended attributes and hard links; not of times. Sockets do not count: nobody listens on
    /// them any more, and no tar can hold them, so that a layer that was sent has none.
    pub digest: TreeDigest,
    /// The bytes of the files, each counted once however many hard links it has.
    pub size: u64,
    /// The bytes that all of it takes on the disk.
    pub disk: u64,
    /// What its files look like without being read: see [`stamp`].
    pub stamp: Digest,
}

/// What is known of files that therefore need not be read.
#[derive(Clone, Debug, Default)]
pub struct Known {
    /// By path relative to the layer's folder.
    pub paths: HashMap<PathBuf, KnownFile>,
    /// Digests by inode.
    pub inodes: HashMap<u64, Digest>,
}

/// A file that is known.
#[derive(Clone, Copy, Debug)]
pub struct KnownFile {
    /// The digest of its bytes.
    pub digest: Digest,
    /// All else about it, where it was asked last thing of all, and the file has one name in its layer
    /// and no extended attributes: it is not asked again.
    pub metadata: Option<Metadata>,
}

impl Known {
    fn of(&self, entry: &Entry) -> Option<Digest> {
        let by_path = || self.paths.get(&entry.path).map(|file| file.digest);
        self.inodes.get(&entry.inode).copied().or_else(by_path)
    }
}

/// What `folder` contains. The digests of some files may be `known`.
pub fn of_folder(folder: &Path, known: &Known) -> io::Result<Content> {
    of_entries(folder, &entries(folder)?, known)
}

/// Like [`of_folder`] for a folder whose `entries` were listed.
pub fn of_entries(folder: &Path, entries: &[Entry], known: &Known) -> io::Result<Content> {
    let size = entries.iter().map(file_size).sum();
    let digests = || digests(folder, entries, known);
    let (files, stamp) = if entries.len() < KNOWN_TOGETHER {
        (digests(), stamp_of(entries))
    } else {
        rayon::join(digests, || stamp_of(entries))
    };
    let mut hasher = Hasher::new();
    hasher.field(VERSION);
    let counted = |(entry, _): &(&Entry, _)| entry.kind != Kind::Socket;
    for (entry, file) in entries.iter().zip(files?).filter(counted) {
        add(&mut hasher, entry, file);
    }
    let disk = entries.iter().filter(|entry| !is_hard_link(entry)).map(|entry| entry.disk).sum();
    Ok(Content { digest: TreeDigest(hasher.digest()), size, disk, stamp })
}

/// The digests of the bytes of those of `entries` that are files.
fn digests(folder: &Path, entries: &[Entry], known: &Known) -> io::Result<Vec<Option<Digest>>> {
    let known_of = |entry: &Entry| match entry.kind {
        Kind::File { .. } => known.of(entry),
        _ => None,
    };
    let mut digests: Vec<Option<Digest>> = if entries.len() < KNOWN_TOGETHER {
        entries.iter().map(known_of).collect()
    } else {
        entries.par_iter().with_min_len(KNOWN_TOGETHER / 2).map(known_of).collect()
    };
    let unknown = |(entry, digest): &(&Entry, &mut Option<Digest>)| {
        matches!(entry.kind, Kind::File { .. }) && digest.is_none()
    };
    let mut unread: Vec<(&Entry, &mut Option<Digest>)> =
        entries.iter().zip(&mut digests).filter(unknown).collect();
    let read = |(entry, digest): &mut (&Entry, &mut Option<Digest>)| {
        **digest = Some(Digest::of_stream(File::open(folder.join(&entry.path))?)?.0);
        io::Result::Ok(())
    };
    let work: u64 = unread.iter().map(|(entry, _)| file_size(entry) + (4 << 10)).sum();
    if work < WORTH_SHARING {
        unread.iter_mut().try_for_each(read)?;
    } else {
        unread.par_iter_mut().try_for_each(read)?;
    }
    Ok(digests)
}

/// What the files in `folder` look like without being read: paths, inodes, lengths and times of
/// the last writing. Whoever writes to one of them changes it, and linking one elsewhere does not.
pub fn stamp(folder: &Path) -> io::Result<Digest> {
    Ok(stamp_of(&outline(folder)?))
}

fn stamp_of(entries: &[Entry]) -> Digest {
    let mut hasher = Hasher::new();
    for entry in entries {
        hasher.field(entry.path.as_os_str().as_bytes());
        hasher.update(entry.inode.to_le_bytes());
        hasher.update(file_size(entry).to_le_bytes());
        hasher.update(entry.mtime.0.to_le_bytes());
        hasher.update(entry.mtime.1.to_le_bytes());
        hasher.update(entry.mode.to_le_bytes());
        hasher.update(entry.uid.to_le_bytes());
        hasher.update(entry.gid.to_le_bytes());
    }
    hasher.digest()
}

fn is_hard_link(entry: &Entry) -> bool {
    matches!(entry.kind, Kind::HardLink(_))
}

fn file_size(entry: &Entry) -> u64 {
    if let Kind::File { size } = entry.kind { size } else { 0 }
}

fn add(hasher: &mut Hasher, entry: &Entry, file: Option<Digest>) {
    hasher.field(entry.path.as_os_str().as_bytes());
    let mut kind = |kind: u8, what: &[u8]| {
        hasher.update([kind]);
        hasher.field(what);
    };
    match &entry.kind {
        Kind::Whiteout => return kind(b'w', b""),
        Kind::HardLink(first) => return kind(b'h', first.as_os_str().as_bytes()),
        Kind::Folder { opaque } => kind(b'd', &[u8::from(*opaque)]),
        Kind::File { .. } => kind(b'f', file.as_ref().map_or(b"", |digest| digest.as_bytes())),
        Kind::Link(target) => kind(b'l', target),
        Kind::CharDevice(number) => kind(b'c', &number.to_le_bytes()),
        Kind::BlockDevice(number) => kind(b'b', &number.to_le_bytes()),
        Kind::Fifo => kind(b'p', b""),
        Kind::Socket => kind(b's', b""),
    }
    hasher.update(entry.mode.to_le_bytes());
    hasher.update(entry.uid.to_le_bytes());
    hasher.update(entry.gid.to_le_bytes());
    hasher.update((entry.xattrs.len() as u64).to_le_bytes());
    for (name, value) in &entry.xattrs {
        hasher.field(name);
        hasher.field(value);
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn digest(fill: impl FnOnce(&Path)) -> TreeDigest {
        let folder = tempfile::tempdir().unwrap();
        fill(folder.path());
        of_folder(folder.path(), &Known::default()).unwrap().digest
    }

    #[test]
    fn times_and_sockets_do_not_count_and_all_else_does() {
        let write = |folder: &Path| fs_err::write(folder.join("a"), "text").unwrap();
        let plain = digest(write);
        let aged = digest(|folder| {
            write(folder);
            let file = File::options().write(true).open(folder.join("a")).unwrap();
            file.set_modified(std::time::UNIX_EPOCH).unwrap();
        });
        assert_eq!(plain, aged);
        let with_a_socket = digest(|folder| {
            write(folder);
            std::os::unix::net::UnixListener::bind(folder.join("socket")).unwrap();
        });
        assert_eq!(plain, with_a_socket);
        let differ: [&dyn Fn(&Path); 5] = [
            &|folder| fs_err::write(folder.join("a"), "Text").unwrap(),
            &|folder| fs_err::write(folder.join("b"), "text").unwrap(),
            &|folder| {
                write(folder);
                let mode = std::fs::Permissions::from_mode(0o600);
                fs_err::set_permissions(folder.join("a"), mode).unwrap();
            },
            &|folder| {
                write(folder);
                let name = "user.colour";
                let flags = rustix::fs::XattrFlags::empty();
                rustix::fs::lsetxattr(folder.join("a"), name, b"red", flags).unwrap();
            },
            &|folder| {
                write(folder);
                fs_err::create_dir(folder.join("b")).unwrap();
            },
        ];
        for (case, fill) in differ.iter().enumerate() {
            assert_ne!(plain, digest(fill), "case {case}");
        }
    }

    #[test]
    fn the_stamp_tells_of_writing_and_not_of_linking() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("tree/a");
        fs_err::create_dir(folder.path().join("tree")).unwrap();
        fs_err::write(&file, "text").unwrap();
        let stamp = || stamp(&folder.path().join("tree")).unwrap();
        let before = stamp();
        fs_err::hard_link(&file, folder.path().join("elsewhere")).unwrap();
        assert_eq!(stamp(), before);
        std::thread::sleep(std::time::Duration::from_millis(10));
        fs_err::write(&file, "Text").unwrap();
        assert_ne!(stamp(), before);
    }

    #[test]
    fn a_hard_link_is_not_a_second_file() {
        let linked = digest(|folder| {
            fs_err::write(folder.join("a"), "text").unwrap();
            fs_err::hard_link(folder.join("a"), folder.join("b")).unwrap();
        });
        let copied = digest(|folder| {
            fs_err::write(folder.join("a"), "text").unwrap();
            fs_err::write(folder.join("b"), "text").unwrap();
        });
        assert_ne!(linked, copied);
    }

    #[test]
    fn known_digests_spare_reading() {
        let folder = tempfile::tempdir().unwrap();
        fs_err::write(folder.path().join("a"), "text").unwrap();
        let read = of_folder(folder.path(), &Known::default()).unwrap();
        let known = |text: &str| Known {
            paths: HashMap::from([(
                PathBuf::from("a"),
                KnownFile { digest: Digest::of(text), metadata: None },
            )]),
            ..Known::default()
        };
        assert_eq!(of_folder(folder.path(), &known("text")).unwrap(), read);
        assert_eq!(stamp(folder.path()).unwrap(), read.stamp);
        assert_ne!(of_folder(folder.path(), &known("other")).unwrap(), read);
        assert_eq!(read.size, 4);
    }
}
