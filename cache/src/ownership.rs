//! Owners that are remembered instead of set.
//!
//! A user without ranges in `/etc/subuid` has one id to give to files. The owner that a file should
//! have is then written beside it, and read back as if it were the real one: so layers, digests
//! and images are those that root would make. No owner but 0:0, that is what is not written down.
//!
//! What is written stays with the file, whatever is renamed or linked, is copied up by overlayfs
//! with it, and goes when it goes:
//!
//! - Regular files and folders have `user.rbuild.owner`, as text: `1000:50`.
//! - The kernel allows no `user.*` attribute on links, pipes, sockets and devices. It does allow
//!   `security.capability`, which means nothing there since they cannot be executed; its masks of
//!   capabilities hold owner, group and a word that nobody's capabilities are.

use std::io;
use std::sync::OnceLock;

use rustix::fs::XattrFlags;
use rustix::io::Errno;
use rustix::path::Arg;

use crate::layer::whiteout;
use crate::metadata::FileType;

/// Where the owner of a regular file or a folder is remembered.
const NOTE: &str = "user.rbuild.owner";
/// Where that of everything else is.
const CAPABILITY: &str = "security.capability";
/// `VFS_CAP_REVISION_2` (linux/capability.h).
const REVISION_2: u32 = 0x0200_0000;
/// Tells our attribute from capabilities: bits of capabilities 32 to 63, most of which there are
/// none for.
const OURS: [u32; 2] = [0x7262_7569, 0x6c64_6f77];

/// Who a file belongs to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Owner {
    /// The user.
    pub uid: u32,
    /// The user's group.
    pub gid: u32,
}

/// What this process does about owners.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ownership {
    /// It sets them.
    Set,
    /// It has one id, and remembers them.
    Remembered,
}

impl Ownership {
    /// What this process does about owners; it must not enter a user namespace afterwards.
    pub fn of_this_process() -> Self {
        static OWNERSHIP: OnceLock<Ownership> = OnceLock::new();
        *OWNERSHIP.get_or_init(|| {
            let map = |file: &str| fs_err::read_to_string(file).unwrap_or_default();
            Self::of_maps(&map("/proc/self/uid_map"), &map("/proc/self/gid_map"))
        })
    }

    /// With these maps of ids (`user_namespaces(7)`).
    fn of_maps(users: &str, groups: &str) -> Self {
        let is_single = |map: &str| map.split_ascii_whitespace().skip(1).nth(1) == Some("1");
        let lines = |map: &str| map.lines().count();
        let single = |map: &str| lines(map) == 1 && is_single(map);
        if single(users) || single(groups) { Self::Remembered } else { Self::Set }
    }
}

/// Whether a path's last component is followed when it is a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Links {
    /// The link itself is meant.
    Kept,
    /// What it leads to is meant, as with `/proc/self/fd/N`.
    Followed,
}

/// The owner that is remembered of the file at `path`, of this type; 0:0 when nothing is.
pub fn recall<P: Arg + Copy>(path: P, links: Links, file_type: FileType) -> io::Result<Owner> {
    let mut value = [0; 64];
    let name = attribute(file_type);
    let length = match links {
        Links::Kept => rustix::fs::lgetxattr(path, name, &mut value[..]),
        Links::Followed => rustix::fs::getxattr(path, name, &mut value[..]),
    };
    match length {
        Ok(length) => Ok(decode(file_type, &value[..length]).unwrap_or_default()),
        // Too long for ours.
        Err(Errno::NODATA | Errno::OPNOTSUPP | Errno::RANGE) => Ok(Owner::default()),
        Err(error) => Err(error.into()),
    }
}

/// Whether an owner other than 0:0 may be remembered of the file at `path`, whatever it is and
/// whether or not it is there: asks for no more than is needed to say no.
pub fn is_remembered<P: Arg + Copy>(path: P, links: Links) -> bool {
    let has = |name| {
        let nothing: &mut [u8] = &mut [];
        match links {
            Links::Kept => rustix::fs::lgetxattr(path, name, nothing),
            Links::Followed => rustix::fs::getxattr(path, name, nothing),
        }
        .is_ok()
    };
    has(NOTE) || has(CAPABILITY)
}

/// Remembers the owner of the file at `path`, of this type.
///
/// # Errors
/// `OPNOTSUPP` where the file system keeps no such attributes.
pub fn remember<P: Arg + Copy>(
    path: P,
    links: Links,
    file_type: FileType,
    owner: Owner,
) -> io::Result<()> {
    let name = attribute(file_type);
    if owner == Owner::default() {
        if recall(path, links, file_type)? == owner {
            return Ok(());
        }
        let removed = match links {
            Links::Kept => rustix::fs::lremovexattr(path, name),
            Links::Followed => rustix::fs::removexattr(path, name),
        };
        return match removed {
            Ok(()) | Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(()),
            Err(error) => Err(error.into()),
        };
    }
    let value = encode(file_type, owner);
    let flags = XattrFlags::empty();
    Ok(match links {
        Links::Kept => rustix::fs::lsetxattr(path, name, &value, flags),
        Links::Followed => rustix::fs::setxattr(path, name, &value, flags),
    }?)
}

/// Whether an extended attribute is an owner that was remembered: not part of the tree.
pub fn is_note(name: &[u8], value: &[u8]) -> bool {
    is_note_name(name) || (name == CAPABILITY.as_bytes() && owner_of_capability(value).is_some())
}

/// The same of files and folders, where the name says it; also of whiteouts.
pub(crate) fn is_note_name(name: &[u8]) -> bool {
    name == NOTE.as_bytes() || name == whiteout::SUBSTITUTE.as_bytes()
}

/// The owner that the attributes of a file of this type remember; 0:0 when none does.
pub(crate) fn among<'a>(
    xattrs: impl IntoIterator<Item = (&'a [u8], &'a [u8])>,
    file_type: FileType,
) -> Owner {
    let name = attribute(file_type).as_bytes();
    let mut values = xattrs.into_iter().filter(|(other, _)| *other == name);
    values.next().and_then(|(_, value)| decode(file_type, value)).unwrap_or_default()
}

fn attribute(file_type: FileType) -> &'static str {
    match file_type {
        FileType::File | FileType::Directory => NOTE,
        FileType::Symlink
        | FileType::Fifo
        | FileType::Socket
        | FileType::CharDevice
        | FileType::BlockDevice => CAPABILITY,
    }
}

fn encode(file_type: FileType, Owner { uid, gid }: Owner) -> Vec<u8> {
    if attribute(file_type) == NOTE {
        return format!("{uid}:{gid}").into_bytes();
    }
    [REVISION_2, uid, gid, OURS[0], OURS[1]].into_iter().flat_map(u32::to_le_bytes).collect()
}

fn decode(file_type: FileType, value: &[u8]) -> Option<Owner> {
    if attribute(file_type) != NOTE {
        return owner_of_capability(value);
    }
    let (uid, gid) = std::str::from_utf8(value).ok()?.split_once(':')?;
    Some(Owner { uid: uid.parse().ok()?, gid: gid.parse().ok()? })
}

fn owner_of_capability(value: &[u8]) -> Option<Owner> {
    let (words, rest) = value.as_chunks::<4>();
    let words: Vec<u32> = words.iter().map(|word| u32::from_le_bytes(*word)).collect();
    // The kernel adds whose capabilities they are where that is not obvious (revision 3).
    match words[..] {
        [_, uid, gid, first, second] | [_, uid, gid, first, second, _]
            if [first, second] == OURS && rest.is_empty() =>
        {
            Some(Owner { uid, gid })
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_id_is_no_range() {
        let check = |users: &str, groups: &str, expected| {
            assert_eq!(Ownership::of_maps(users, groups), expected, "{users:?} {groups:?}");
        };
        let (all, ranges) = ("0 0 4294967295\n", "0 1000 1\n1 100000 65536\n");
        let single = "         0       1000          1\n";
        check(all, all, Ownership::Set);
        check(ranges, ranges, Ownership::Set);
        check(single, single, Ownership::Remembered);
        check(ranges, single, Ownership::Remembered);
        check("", "", Ownership::Set);
    }

    #[test]
    fn owners_are_written_so_that_they_can_be_read() {
        let owner = Owner { uid: 1000, gid: u32::MAX - 1 };
        for file_type in [FileType::File, FileType::Directory, FileType::Symlink, FileType::Fifo] {
            let value = encode(file_type, owner);
            assert_eq!(decode(file_type, &value), Some(owner));
            assert!(is_note(attribute(file_type).as_bytes(), &value));
            assert_eq!(decode(file_type, &value[1..]).filter(|other| *other == owner), None);
        }
        assert_eq!(encode(FileType::File, Owner { uid: 7, gid: 8 }), b"7:8");
        for garbage in [&b""[..], b"7", b"7:", b":8", b"-1:8", b"7:8:9", b"\xff:1"] {
            assert_eq!(decode(FileType::File, garbage), None);
        }
        // cap_net_bind_service=ep, as setcap writes it.
        let real = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        assert!(!is_note(b"security.capability", &real));
    }

    #[test]
    fn what_is_remembered_stays_with_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        fs_err::write(path("file"), "").unwrap();
        fs_err::create_dir(path("folder")).unwrap();
        let mut made = vec![("file", FileType::File), ("folder", FileType::Directory)];
        if rustix::process::geteuid().is_root() {
            // Others need a user namespace.
            std::os::unix::fs::symlink("nowhere", path("link")).unwrap();
            made.push(("link", FileType::Symlink));
        }
        let owner = Owner { uid: 1000, gid: 50 };
        for (name, file_type) in made {
            let (old, new) = (path(name), path(&format!("{name}.new")));
            assert_eq!(recall(&old, Links::Kept, file_type).unwrap(), Owner::default());
            remember(&old, Links::Kept, file_type, owner).unwrap();
            fs_err::rename(&old, &new).unwrap();
            assert_eq!(recall(&new, Links::Kept, file_type).unwrap(), owner);
            remember(&new, Links::Kept, file_type, Owner::default()).unwrap();
            assert_eq!(recall(&new, Links::Kept, file_type).unwrap(), Owner::default());
        }
    }
}
