//! What names mean to a process that asks: its root, its working directory, its descriptors.
//!
//! Who answers has for working directory a `/proc` of its own, which knows the step's processes by
//! the numbers that questions have, and the step's root as its own root. So the kernel resolves
//! names as it would for the step's process, and nothing outside of that root can be named.

use std::ffi::{CStr, OsStr};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rbuild_cache::metadata::FileType;
use rbuild_cache::ownership::{self, Links, Owner};
use rustix::fs::{AtFlags, CWD, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::listener::Question;

/// A file as a call names it.
#[derive(Clone, Debug)]
pub(super) struct Name {
    /// What relative paths start from: a descriptor of the process, or `AT_FDCWD`.
    pub(super) folder: i32,
    /// Empty for the descriptor itself.
    pub(super) path: PathBuf,
    pub(super) links: Links,
}

impl Name {
    /// # Errors
    /// An empty path names nothing: what the descriptor itself is, is [`Name::descriptor`].
    pub(super) fn new(folder: i32, path: &CStr, links: Links) -> Result<Self, Errno> {
        if path.is_empty() {
            return Err(Errno::NOENT);
        }
        Ok(Self { folder, path: PathBuf::from(OsStr::from_bytes(path.to_bytes())), links })
    }

    /// An open file.
    pub(super) fn descriptor(descriptor: i32) -> Self {
        Self { folder: descriptor, path: PathBuf::new(), links: Links::Followed }
    }

    /// The folder it is in, and its name there; `None` for what is no name, such as `..`.
    pub(super) fn split(&self) -> Option<(Self, &OsStr)> {
        let bytes = self.path.as_os_str().as_bytes();
        let end = bytes.iter().rposition(|byte| *byte != b'/')? + 1;
        let start =
            bytes[..end].iter().rposition(|byte| *byte == b'/').map_or(0, |slash| slash + 1);
        let name = OsStr::from_bytes(&bytes[start..end]);
        if name == "." || name == ".." {
            return None;
        }
        let parent = if start == 0 { OsStr::new(".") } else { OsStr::from_bytes(&bytes[..start]) };
        let parent = Self { folder: self.folder, path: parent.into(), links: Links::Followed };
        Some((parent, name))
    }

    /// The descriptor of the process that a path such as `/dev/stdout` means: links in `/proc` are
    /// others for who answers.
    fn means_descriptor(&self) -> Option<i32> {
        if self.links == Links::Kept {
            return None;
        }
        let path = self.path.to_str()?;
        match path {
            "/dev/stdin" => return Some(0),
            "/dev/stdout" => return Some(1),
            "/dev/stderr" => return Some(2),
            _ => {}
        }
        ["/dev/fd/", "/proc/self/fd/", "/proc/thread-self/fd/"]
            .iter()
            .find_map(|folder| path.strip_prefix(folder)?.parse().ok())
    }

    /// The name as one path, for who answers.
    fn joined(&self, question: &Question) -> PathBuf {
        if let Some(descriptor) = self.means_descriptor() {
            return start(question, descriptor);
        }
        if self.path.is_absolute() {
            return self.path.clone();
        }
        // Joining nothing would add a slash.
        let start = start(question, self.folder);
        if self.path.as_os_str().is_empty() { start } else { start.join(&self.path) }
    }

    /// Whether anything but 0:0 is remembered of the file: the look that nearly every `stat` ends
    /// with, at a system call or two.
    pub(super) fn has_note(&self, question: &Question) -> bool {
        let path = self.joined(question);
        let by_descriptor = self.path.as_os_str().is_empty() || self.means_descriptor().is_some();
        let links = if by_descriptor { Links::Followed } else { self.links };
        ownership::is_remembered(&*path, links)
    }

    /// The status of the file, as the kernel has it.
    pub(super) fn status(&self, question: &Question) -> Result<rustix::fs::Stat, Errno> {
        rustix::fs::stat(&*self.joined(question))
    }

    /// Whether a folder on the way is not there, to who asks as to who answers: what leads through
    /// `/proc` can be there for one of them.
    pub(super) fn is_nowhere(&self, question: &Question) -> bool {
        let mut path = &*self.joined(question);
        while let (Some(parent), Some(name)) = (path.parent(), path.file_name()) {
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            match rustix::fs::open(parent, flags, Mode::empty()) {
                Ok(folder) => {
                    let is_proc = rustix::fs::fstatfs(&folder)
                        .is_ok_and(|about| about.f_type == libc::PROC_SUPER_MAGIC);
                    let found = rustix::fs::statat(&folder, name, AtFlags::SYMLINK_NOFOLLOW);
                    return !is_proc && found.err() == Some(Errno::NOENT);
                }
                Err(Errno::NOENT) => path = parent,
                Err(_) => return false,
            }
        }
        false
    }

    /// Opens the file without reading it.
    pub(super) fn open(&self, question: &Question) -> Result<OwnedFd, Errno> {
        let mut flags = OFlags::PATH;
        if self.links == Links::Kept {
            flags |= OFlags::NOFOLLOW;
        }
        self.open_with(question, flags, Mode::empty(), ResolveFlags::empty())
    }

    /// Opens the file as the process would.
    pub(super) fn open_with(
        &self,
        question: &Question,
        flags: OFlags,
        mode: Mode,
        resolve: ResolveFlags,
    ) -> Result<OwnedFd, Errno> {
        let flags = flags | OFlags::CLOEXEC;
        if self.path.as_os_str().is_empty() || self.means_descriptor().is_some() {
            // The one magic link that is meant to be followed.
            return rustix::fs::open(self.joined(question), OFlags::PATH | OFlags::CLOEXEC, mode);
        }
        let resolve = resolve | ResolveFlags::NO_MAGICLINKS;
        if self.path.is_absolute() && !resolve.contains(ResolveFlags::BENEATH) {
            return rustix::fs::openat2(CWD, &self.path, flags, mode, resolve);
        }
        let folder = OFlags::PATH | OFlags::CLOEXEC;
        let folder = rustix::fs::open(start(question, self.folder), folder, Mode::empty())?;
        rustix::fs::openat2(folder, &self.path, flags, mode, resolve)
    }
}

/// What relative paths start from.
fn start(question: &Question, folder: i32) -> PathBuf {
    let thread = question.thread;
    if folder == libc::AT_FDCWD {
        format!("{thread}/cwd").into()
    } else {
        format!("{thread}/fd/{folder}").into()
    }
}

/// Makes the process's root the root of who answers.
pub(super) fn enter_root_of(question: &Question) -> Result<(), Errno> {
    rustix::process::chroot(format!("{}/root", question.thread))
}

/// The mode that a new file loses.
pub(super) fn umask_of(question: &Question) -> Mode {
    let status = fs_err::read_to_string(Path::new(&question.thread.to_string()).join("status"));
    let status = status.unwrap_or_default();
    let umask = status.lines().find_map(|line| line.strip_prefix("Umask:"));
    let umask = umask.and_then(|umask| u32::from_str_radix(umask.trim(), 8).ok());
    Mode::from_raw_mode(umask.unwrap_or(0o022))
}

/// The path of an open file of who answers.
pub(super) fn path_of(file: impl AsFd) -> PathBuf {
    format!("self/fd/{}", file.as_fd().as_raw_fd()).into()
}

/// The owner that is remembered of an open file, and what it is.
pub(super) fn recall(file: impl AsFd) -> Result<(Owner, rustix::fs::Stat), Errno> {
    let status = rustix::fs::fstat(&file)?;
    let file_type = FileType::of_mode(status.st_mode);
    let owner =
        ownership::recall(&*path_of(file), Links::Followed, file_type).map_err(|e| errno(&e))?;
    Ok((owner, status))
}

/// Remembers the owner of an open file. Where nothing can be remembered (a memory file system
/// before Linux 6.6), the file keeps the owner it has.
pub(super) fn remember(file: impl AsFd, owner: Owner) -> Result<(), Errno> {
    let file_type = FileType::of_mode(rustix::fs::fstat(&file)?.st_mode);
    match ownership::remember(&*path_of(file), Links::Followed, file_type, owner) {
        Err(error) if errno(&error) == Errno::OPNOTSUPP => Ok(()),
        result => result.map_err(|error| errno(&error)),
    }
}

fn errno(error: &io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(Errno::IO)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(path: &str) -> Name {
        Name { folder: libc::AT_FDCWD, path: path.into(), links: Links::Followed }
    }

    #[test]
    fn paths_have_a_parent_and_a_name() {
        let check = |path: &str, expected: Option<(&str, &str)>| {
            let name = name(path);
            let split = name.split().map(|(parent, name)| (parent.path, name.to_owned()));
            let expected = expected.map(|(parent, name)| (parent.into(), name.into()));
            assert_eq!(split, expected, "{path}");
        };
        check("a", Some((".", "a")));
        check("a/", Some((".", "a")));
        check("/a", Some(("/", "a")));
        check("/a//b//", Some(("/a//", "b")));
        check("../a", Some(("../", "a")));
        for none in ["", "/", "//", ".", "..", "a/..", "a/./"] {
            check(none, None);
        }
    }

    #[test]
    fn names_of_descriptors_are_known() {
        let check = |path: &str, expected| assert_eq!(name(path).means_descriptor(), expected);
        check("/dev/stdout", Some(1));
        check("/dev/fd/7", Some(7));
        check("/proc/self/fd/7", Some(7));
        check("/proc/self/fd/7/a", None);
        check("/proc/self/maps", None);
        check("/dev/null", None);
        let link = Name { links: Links::Kept, ..name("/dev/stdout") };
        assert_eq!(link.means_descriptor(), None);
    }
}
