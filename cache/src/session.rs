//! A process's presence in the state folder: where it writes aside, and what it holds.
//!
//! A session is a folder below `tmp/` that its process keeps locked. When the process dies, however
//! it dies, the kernel drops the lock, and the next process removes the folder.

use std::collections::HashSet;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use fs_err::File;
use rustix::fs::{FlockOperation, flock};

use crate::lock::retry_interrupted;
use crate::metadata::Metadata;
use crate::remove::{remove_any, remove_tree};
use crate::sighting::Sighting;
use crate::state::is_special;

/// This process's folder below `tmp/`; dropped, it is gone.
#[derive(Debug)]
pub struct Session {
    folder: PathBuf,
    /// Keeps the lock on `folder`.
    _lock: File,
    /// `tmp/` itself: whoever begins to hold something shares its lock for that moment, whoever
    /// removes entries has it alone.
    door: File,
    /// When it began, in seconds since 1970 by the file system's clock.
    begun: i64,
    held: Mutex<Held>,
    next: AtomicU64,
}

#[derive(Debug)]
struct Held {
    file: File,
    names: HashSet<String>,
}

impl Held {
    fn add(&mut self, name: &str) -> io::Result<()> {
        if !self.names.contains(name) {
            self.file.write_all(format!("{name}\n").as_bytes())?;
            self.names.insert(name.to_owned());
        }
        Ok(())
    }
}

impl Session {
    /// Starts a session below `tmp`.
    pub fn start(tmp: &Path) -> io::Result<Arc<Self>> {
        // Without this lock, somebody who cleans up could see the folder before it is locked.
        let door = File::open(tmp)?;
        retry_interrupted(|| flock(&door, FlockOperation::LockExclusive))?;
        let folder = tmp.join(random_name());
        fs_err::create_dir(&folder)?;
        let lock = File::open(&folder)?;
        flock(&lock, FlockOperation::LockExclusive)?;
        let file = File::options().create_new(true).append(true).open(folder.join("held"))?;
        let begun = Metadata::of(file.file())?.modified.seconds;
        let held = Mutex::new(Held { file, names: HashSet::new() });
        flock(&door, FlockOperation::Unlock)?;
        Ok(Arc::new(Self { folder, _lock: lock, door, begun, held, next: AtomicU64::new(0) }))
    }

    /// A new empty folder.
    pub fn temporary(self: &Arc<Self>) -> io::Result<Temporary> {
        let path = self.unused_path();
        fs_err::create_dir(&path)?;
        Ok(Temporary { path: Some(path), session: Arc::clone(self) })
    }

    /// Its folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// A path in the session's folder that nothing is at.
    pub fn unused_path(&self) -> PathBuf {
        self.folder.join(self.next.fetch_add(1, Ordering::Relaxed).to_string())
    }

    /// When this session began, in seconds since 1970 by the clock that the files have their times
    /// from.
    pub fn begun(&self) -> i64 {
        self.begun
    }

    /// Whether this session wrote anything.
    pub fn wrote(&self) -> bool {
        self.next.load(Ordering::Relaxed) > 0
    }

    /// Keeps everybody from removing the entry called `name` as long as this session lasts.
    ///
    /// The caller looks *afterwards* whether the entry is there: what was removed before the name
    /// was written down is gone by then, and what is there then stays ([`Session::alone`]).
    pub fn hold(&self, name: &str) -> io::Result<()> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if held.names.contains(name) {
            return Ok(());
        }
        self.at_the_door(|| held.add(name))
    }

    /// Like [`Session::hold`]; does `work`, which puts the entry in its place, while nobody removes
    /// anything.
    pub fn hold_with<T>(&self, name: &str, work: impl FnOnce() -> T) -> io::Result<T> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        self.at_the_door(|| held.add(name).map(|()| work()))
    }

    /// Does `work` while nobody is [`alone`](Session::alone). One thread at a time: they share the lock.
    fn at_the_door<T>(&self, work: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        retry_interrupted(|| flock(&self.door, FlockOperation::LockShared))?;
        let done = work();
        flock(&self.door, FlockOperation::Unlock)?;
        done
    }

    /// Removes the damaged entry at `path`, whoever holds it. `seen` is what was found to be damaged:
    /// what somebody else has put there since stays. Returns whether anything was removed.
    pub fn take_away(&self, path: &Path, seen: &Sighting) -> io::Result<bool> {
        let aside = self.unused_path();
        let is_taken = self.alone(|_| {
            let is_there = seen.is_at(path)?;
            if is_there {
                fs_err::rename(path, &aside)?;
            }
            Ok::<_, io::Error>(is_there)
        })?;
        if is_taken {
            remove_any(&aside)?;
        }
        Ok(is_taken)
    }

    /// Does `work` while nobody can begin to hold anything, with all names that are held by then.
    /// Others wait meanwhile: it should move things aside and leave removing them for later.
    pub fn alone<T, E: From<io::Error>>(
        &self,
        work: impl FnOnce(&HashSet<String>) -> Result<T, E>,
    ) -> Result<T, E> {
        let tmp = self.folder.parent().unwrap_or(&self.folder);
        // Not `self.door`: a second lock on the same opened folder would replace the first.
        let door = File::open(tmp)?;
        retry_interrupted(|| flock(&door, FlockOperation::LockExclusive))?;
        let held = held_names(tmp)?;
        work(&held)
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // What cannot be removed now is removed by the next process.
        let _ = remove_tree(&self.folder);
    }
}

/// A folder of this session's own; dropped, it is removed with all it contains.
#[derive(Debug)]
pub struct Temporary {
    /// Absent once it was moved elsewhere.
    path: Option<PathBuf>,
    session: Arc<Session>,
}

impl Temporary {
    /// Where it is.
    ///
    /// # Panics
    /// Never: only [`Temporary::rename`] takes the path, and it takes `self` as well.
    pub fn path(&self) -> &Path {
        self.path.as_deref().expect("only `rename` takes the path, and it takes `self` as well")
    }

    /// The session it belongs to.
    pub fn session(&self) -> &Arc<Session> {
        &self.session
    }

    /// Moves it to `destination`, where it stays.
    pub fn rename(mut self, destination: &Path) -> Result<(), (io::Error, Self)> {
        match fs_err::rename(self.path(), destination) {
            Ok(()) => {
                self.path = None;
                Ok(())
            }
            Err(e) => Err((e, self)),
        }
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if let Some(path) = &self.path {
            // What cannot be removed now goes with the session, or with the next process.
            let _ = remove_tree(path);
        }
    }
}

/// Removes what processes that are gone left below `tmp`.
pub fn remove_dead_sessions(tmp: &Path) -> io::Result<()> {
    let mut dead = Vec::new();
    let mut folders = fs_err::read_dir(tmp)?.peekable();
    if folders.peek().is_none() {
        return Ok(());
    }
    let door = File::open(tmp)?;
    retry_interrupted(|| flock(&door, FlockOperation::LockExclusive))?;
    for folder in folders {
        let path = folder?.path();
        // Neither is made here, and opening them would wait, or lead elsewhere.
        if fs_err::symlink_metadata(&path)
            .is_ok_and(|about| about.is_symlink() || is_special(&about))
        {
            remove_any(&path)?;
            continue;
        }
        match File::open(&path) {
            // Its lock is kept until it is removed, so that nobody else removes it meanwhile.
            Ok(lock) if try_lock(&lock)? => dead.push((path, lock)),
            Ok(_alive) => {}
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(e),
        }
    }
    drop(door);
    // One that ended by itself after it was opened here is gone already.
    dead.iter().try_for_each(|(path, _lock)| remove_any(path))
}

/// All names that running sessions hold.
pub fn held_names(tmp: &Path) -> io::Result<HashSet<String>> {
    let mut names = HashSet::new();
    for folder in fs_err::read_dir(tmp)? {
        match fs_err::read_to_string(folder?.path().join("held")) {
            Ok(text) => names.extend(text.lines().map(str::to_owned)),
            Err(e)
                if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(names)
}

fn try_lock(file: &File) -> io::Result<bool> {
    match flock(file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(true),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(false),
        Err(e) => Err(e.into()),
    }
}

/// 32 random hex digits.
pub(crate) fn random_name() -> String {
    let mut bytes = [0; 16];
    let mut filled = 0;
    while filled < bytes.len() {
        let flags = rustix::rand::GetRandomFlags::empty();
        match rustix::rand::getrandom(&mut bytes[filled..], flags) {
            Ok(n) => filled += n,
            Err(rustix::io::Errno::INTR) => {}
            Err(e) => panic!("the kernel gives no random bytes: {e}"),
        }
    }
    hex::encode(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_dead_process_left_is_removed_and_the_living_are_spared() {
        let tmp = tempfile::tempdir().unwrap();
        let alive = Session::start(tmp.path()).unwrap();
        let temporary = alive.temporary().unwrap();
        fs_err::create_dir_all(tmp.path().join("dead/0/fs")).unwrap();
        let outside = tempfile::tempdir().unwrap();
        fs_err::write(outside.path().join("file"), "").unwrap();
        fs_err::os::unix::fs::symlink(outside.path(), tmp.path().join("link")).unwrap();
        let (pipe, mode) = (rustix::fs::FileType::Fifo, rustix::fs::Mode::RWXU);
        rustix::fs::mknodat(rustix::fs::CWD, tmp.path().join("pipe"), pipe, mode, 0).unwrap();
        remove_dead_sessions(tmp.path()).unwrap();
        assert!(temporary.path().is_dir());
        for gone in ["dead", "link", "pipe"] {
            assert!(fs_err::symlink_metadata(tmp.path().join(gone)).is_err(), "{gone}");
        }
        assert!(outside.path().join("file").exists());
        let path = temporary.path().to_owned();
        drop(alive);
        assert!(path.is_dir(), "a temporary folder keeps its session");
        drop(temporary);
        assert_eq!(fs_err::read_dir(tmp.path()).unwrap().count(), 0);
    }

    #[test]
    fn what_is_held_is_seen_by_others_until_the_session_ends() {
        let tmp = tempfile::tempdir().unwrap();
        let session = Session::start(tmp.path()).unwrap();
        session.hold("step-1").unwrap();
        session.hold("step-1").unwrap();
        assert_eq!(held_names(tmp.path()).unwrap(), ["step-1".to_owned()].into());
        drop(session);
        assert!(held_names(tmp.path()).unwrap().is_empty());
    }
}
