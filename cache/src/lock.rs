//! Locks between processes, by name: empty files in `locks/` that are locked with flock(2).
//!
//! The kernel releases a lock when its holder dies. All calls here block; who must not be blocked
//! asks on a thread of its own.

use std::io;
use std::path::{Path, PathBuf};

use fs_err::File;
use rustix::fs::{FlockOperation, Mode, OFlags, flock, fstat};
use rustix::io::Errno;

use crate::digest::Digest;
use crate::layer::whiteout::at;

/// The locks of one state folder.
#[derive(Clone, Debug)]
pub struct Locks {
    folder: PathBuf,
}

/// A lock that is held; dropped, it is released.
#[derive(Debug)]
pub struct LockGuard {
    _file: File,
}

impl Locks {
    /// The locks in `folder`, which exists.
    pub fn new(folder: PathBuf) -> Self {
        Self { folder }
    }

    /// Waits until nobody else has the lock called `name`, and takes it.
    pub fn exclusive(&self, name: &str) -> io::Result<LockGuard> {
        self.lock(name, FlockOperation::LockExclusive)
    }

    /// Waits until nobody has the lock called `name` exclusively, and takes it together with all
    /// who share it.
    pub fn shared(&self, name: &str) -> io::Result<LockGuard> {
        self.lock(name, FlockOperation::LockShared)
    }

    /// Takes the lock called `name`, or returns `None` when somebody has it.
    pub fn try_exclusive(&self, name: &str) -> io::Result<Option<LockGuard>> {
        self.try_lock(name, FlockOperation::NonBlockingLockExclusive)
    }

    /// Shares the lock called `name`, or returns `None` when somebody has it exclusively.
    pub fn try_shared(&self, name: &str) -> io::Result<Option<LockGuard>> {
        self.try_lock(name, FlockOperation::NonBlockingLockShared)
    }

    /// Removes the files of locks that nobody has.
    pub fn sweep(&self) -> io::Result<()> {
        for entry in fs_err::read_dir(&self.folder)? {
            let path = entry?.path();
            let file = match open(&path, OFlags::RDONLY) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                opened => opened?,
            };
            let locked = flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok();
            // Without a link left, the path is another file's by now, which somebody may have.
            if locked && fstat(&file)?.st_nlink > 0 {
                fs_err::remove_file(&path)?;
            }
        }
        Ok(())
    }

    fn try_lock(&self, name: &str, operation: FlockOperation) -> io::Result<Option<LockGuard>> {
        match self.lock(name, operation) {
            Ok(guard) => Ok(Some(guard)),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(e) => Err(e),
        }
    }

    fn lock(&self, name: &str, operation: FlockOperation) -> io::Result<LockGuard> {
        let path = self.folder.join(file_name(name));
        loop {
            let file = open(&path, OFlags::CREATE | OFlags::APPEND | OFlags::WRONLY)?;
            retry_interrupted(|| flock(&file, operation))?;
            // `sweep` may have removed the file between the opening and the locking.
            if fstat(&file)?.st_nlink > 0 {
                return Ok(LockGuard { _file: file });
            }
        }
    }
}

/// Opens a lock's file. What is no file is refused: a pipe would be waited at, and a link lead
/// elsewhere.
fn open(path: &Path, flags: OFlags) -> io::Result<File> {
    let flags = flags | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = match rustix::fs::open(path, flags, Mode::from_raw_mode(0o666)) {
        Ok(file) => File::from_parts(file.into(), path),
        Err(Errno::LOOP | Errno::NXIO | Errno::ISDIR) => return Err(not_a_file(path)),
        Err(error) => return Err(at(path, error)),
    };
    if file.metadata()?.is_file() { Ok(file) } else { Err(not_a_file(path)) }
}

fn not_a_file(path: &Path) -> io::Error {
    io::Error::other(format!("the lock `{}` is not a plain file", path.display()))
}

/// Short plain names stay readable, others become digests: a name is never a path.
fn file_name(name: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_');
    if !name.is_empty() && name.len() <= 128 && name.bytes().all(plain) {
        name.to_owned()
    } else {
        format!("{}.sha256", Digest::of(name).hex())
    }
}

/// Calls again when a signal came in between.
pub(crate) fn retry_interrupted(
    mut call: impl FnMut() -> rustix::io::Result<()>,
) -> io::Result<()> {
    loop {
        match call() {
            Err(rustix::io::Errno::INTR) => {}
            done => return done.map_err(io::Error::from),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn excludes_and_shares_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let locks = Locks::new(folder.path().to_owned());
        let held = locks.exclusive("a").unwrap();
        assert!(locks.try_exclusive("a").unwrap().is_none());
        assert!(locks.try_exclusive("b").unwrap().is_some());
        drop(held);
        let _one = locks.shared("a").unwrap();
        let _two = locks.shared("a").unwrap();
        assert!(locks.try_exclusive("a").unwrap().is_none());
    }

    #[test]
    fn what_is_no_file_is_no_lock() {
        let folder = tempfile::tempdir().unwrap();
        let locks = Locks::new(folder.path().to_owned());
        let path = |name: &str| folder.path().join(name);
        let pipe = rustix::fs::FileType::Fifo;
        rustix::fs::mknodat(rustix::fs::CWD, path("pipe"), pipe, Mode::RWXU, 0).unwrap();
        fs_err::os::unix::fs::symlink("target", path("link")).unwrap();
        fs_err::create_dir(path("folder")).unwrap();
        for name in ["pipe", "link", "folder"] {
            let error = locks.exclusive(name).unwrap_err().to_string();
            assert!(error.ends_with("is not a plain file"), "{error}");
        }
        assert!(!path("target").exists());
    }

    #[test]
    fn names_are_not_paths() {
        let folder = tempfile::tempdir().unwrap();
        let inner = folder.path().join("locks");
        fs_err::create_dir(&inner).unwrap();
        let locks = Locks::new(inner.clone());
        for name in ["../outside", "", ".", "a/b", &"x".repeat(5000)] {
            locks.exclusive(name).unwrap();
        }
        assert_eq!(fs_err::read_dir(folder.path()).unwrap().count(), 1);
        locks.sweep().unwrap();
        assert_eq!(fs_err::read_dir(inner).unwrap().count(), 0);
    }

    #[test]
    fn a_swept_lock_file_locks_nobody_out_and_nobody_in() {
        let folder = tempfile::tempdir().unwrap();
        let locks = Locks::new(folder.path().to_owned());
        let count = std::sync::atomic::AtomicU32::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..200 {
                        let _guard = locks.exclusive("x").unwrap();
                        let before = count.load(std::sync::atomic::Ordering::SeqCst);
                        std::thread::yield_now();
                        count.store(before + 1, std::sync::atomic::Ordering::SeqCst);
                    }
                });
            }
            scope.spawn(|| {
                for _ in 0..200 {
                    locks.sweep().unwrap();
                }
            });
        });
        assert_eq!(count.into_inner(), 800);
    }
}
