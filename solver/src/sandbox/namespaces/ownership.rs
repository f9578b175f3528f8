//! A step with one id: owners are remembered instead of set, and users pretended.
//!
//! Where rbuild has no range of ids, the kernel refuses every other owner and every other user than
//! root. So the step's filter hands the calls about them to rbuild: `chown`, `stat`, `setuid`,
//! `getuid`, and those that make files ([`Call`]). One process per step, the *keeper*, answers
//! them. It writes the owner that a file should have beside the file (`rbuild_cache::ownership`),
//! where layers find it, and keeps who each process believes to be. The step cannot reach it, and
//! it does nothing that the step could not do itself but answer: a step that changes a name or its
//! memory while a question is open can make it remember a wrong owner, of its own files.
//!
//! Who a process believes to be must follow it through `fork` and `exec`, which nobody is told of.
//! The kernel has a number per thread that it copies so: the timer slack, in nanoseconds. Each
//! identity has a place in a list, and its threads a slack of [`SLACK`] and that place.
//!
//! What is not pretended: that a user may *not* do something. Every process of the step is root to
//! the kernel, whoever it believes to be.

mod asker;
mod credentials;
mod files;
mod identities;
#[allow(unsafe_code, reason = "rustix has neither questions of filters nor memory of others")]
pub(super) mod listener;

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rbuild_cache::ownership::Links;
use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use self::asker::Name;
use self::credentials::{Change, Identity, Kind};
use self::files::{Form, New};
use self::identities::Identities;
use self::listener::{Answer, Listener, Question};
use super::message::{Failure, OrFail};
use super::syscalls;
use super::watch::Paths;
use crate::sandbox::Credentials;
use crate::sandbox::seccomp::{CREATING, Call, CallTable};

pub(super) use self::listener::install_filter;
pub(super) use rbuild_cache::ownership::Ownership;

/// The timer slack of the identity that a step starts with: the default of Linux.
pub(super) const SLACK: u64 = 50_000;
/// The most supplementary groups of a process (`NGROUPS_MAX`).
const MOST_GROUPS: u32 = 65_536;

/// What a keeper needs, got before its step starts, so that a machine without it is found out then.
#[derive(Debug)]
pub(super) struct Keeper {
    /// A `/proc` of the pid namespace in which questions come in.
    proc: OwnedFd,
    first: Identity,
    /// Where it is written down which paths the step asks for, if anybody wants to know.
    paths: Option<Paths>,
}

impl Keeper {
    /// Makes ready to answer for a step that starts as `user`, and to write the paths that it asks for
    /// into `watch`. `proc` is of the pid namespace of the caller.
    pub(super) fn prepare(
        proc: OwnedFd,
        user: &Credentials,
        watch: Option<&Path>,
    ) -> Result<Self, Failure> {
        let paths = watch.map(Paths::prepare).transpose()?;
        Ok(Self { proc, first: Identity::of(user), paths })
    }

    /// Starts the process that answers what comes in at `listener`.
    pub(super) fn start(&self, listener: OwnedFd) -> io::Result<OwnedFd> {
        match syscalls::clone_process(rustix::thread::UnshareFlags::empty())? {
            syscalls::Cloned::Parent(keeper) => Ok(keeper),
            syscalls::Cloned::Child => {
                let ended = rustix::process::fchdir(self.proc.as_fd())
                    .map_err(io::Error::from)
                    .and_then(|()| Keeping::new(self, listener).answer_all());
                std::process::exit(i32::from(ended.is_err()))
            }
        }
    }
}

/// Kills a keeper and waits until it holds nothing of the step any more.
pub(super) fn end(keeper: &OwnedFd) -> Result<(), Failure> {
    use rustix::process::{Signal, WaitId, WaitIdOptions, pidfd_send_signal, waitid};
    // It cannot be gone before it is waited for.
    let _ = pidfd_send_signal(keeper, Signal::KILL);
    let id = || WaitId::PidFd(keeper.as_fd());
    rustix::io::retry_on_intr(|| waitid(id(), WaitIdOptions::EXITED))
        .or_fail(|| "cannot wait for the process that remembers owners")?;
    Ok(())
}

/// Gives the calling thread the mark of the first identity, for it and all that it starts.
pub(super) fn mark_first() -> Result<(), Failure> {
    rustix::thread::set_current_timer_slack(std::num::NonZeroU64::new(SLACK))
        .or_fail(|| "cannot mark the step's first process")
}

/// The keeper at work.
struct Keeping<'a> {
    listener: Listener,
    calls: CallTable<Call>,
    paths: Option<&'a Paths>,
    identities: Identities,
    has_root: bool,
    /// Some process may have another root than the step's.
    roots_differ: bool,
}

impl<'a> Keeping<'a> {
    fn new(keeper: &'a Keeper, listener: OwnedFd) -> Self {
        let listener = Listener::new(listener);
        let calls = CallTable::asked();
        let identities = Identities::new(keeper.first.clone());
        let paths = keeper.paths.as_ref();
        Self { listener, calls, paths, identities, has_root: false, roots_differ: false }
    }

    /// Answers until nobody is left to ask.
    fn answer_all(&mut self) -> io::Result<()> {
        loop {
            if let Some(question) = self.listener.receive()? {
                if let Some(paths) = self.paths {
                    paths.note(&question);
                }
                let answer = self.answer(&question);
                self.listener.answer(&question, answer)?;
            }
        }
    }

    fn answer(&mut self, question: &Question) -> Result<Answer, Errno> {
        use Kind::{Group, User};
        let Some(call) = self.calls.get(question.architecture, question.number) else {
            return Ok(Answer::Continue);
        };
        let number = |index| question.number(index);
        let ids = |kind, pick: fn(&credentials::Ids) -> u32| {
            let identity = self.identity(question);
            Ok(Answer::Value(pick(identity.ids(kind))))
        };
        match call {
            Call::Getuid => ids(User, |ids| ids.real),
            Call::Geteuid => ids(User, |ids| ids.effective),
            Call::Getgid => ids(Group, |ids| ids.real),
            Call::Getegid => ids(Group, |ids| ids.effective),
            Call::Getresuid => self.tell_ids(question, User),
            Call::Getresgid => self.tell_ids(question, Group),
            Call::Getgroups => self.tell_groups(question),
            Call::Setuid => self.change(question, &Change::Set(User, number(0))),
            Call::Setgid => self.change(question, &Change::Set(Group, number(0))),
            Call::Setreuid => self.change(question, &Change::SetTwo(User, number(0), number(1))),
            Call::Setregid => self.change(question, &Change::SetTwo(Group, number(0), number(1))),
            Call::Setresuid => self.change(question, &three(User, question)),
            Call::Setresgid => self.change(question, &three(Group, question)),
            Call::Setfsuid => self.change_for_files(question, User),
            Call::Setfsgid => self.change_for_files(question, Group),
            Call::Setgroups => {
                if number(0) > MOST_GROUPS {
                    return Err(Errno::INVAL);
                }
                let groups = question.numbers(1, number(0) as usize)?;
                self.change(question, &Change::Groups(groups))
            }
            Call::Chroot => {
                self.roots_differ = true;
                Ok(Answer::Continue)
            }
            Call::Chown
            | Call::Lchown
            | Call::Fchown
            | Call::Fchownat
            | Call::Stat
            | Call::Lstat
            | Call::Fstat
            | Call::Newfstatat
            | Call::Statx
            | Call::Open
            | Call::Openat
            | Call::Openat2
            | Call::Creat
            | Call::Mkdir
            | Call::Mkdirat
            | Call::Mknod
            | Call::Mknodat
            | Call::Symlink
            | Call::Symlinkat
            | Call::Execve
            | Call::Execveat => {
                if !self.has_root || self.roots_differ {
                    asker::enter_root_of(question)?;
                    self.has_root = true;
                }
                self.answer_about_file(question, call)
            }
        }
    }

    fn answer_about_file(&mut self, question: &Question, call: Call) -> Result<Answer, Errno> {
        use Links::{Followed, Kept};
        let here = libc::AT_FDCWD;
        let name = |folder, index, links| Name::new(folder, &question.text(index)?, links);
        let number = |index| question.number(index);
        let folder = question.descriptor(0);
        let mode = |index| Mode::from_raw_mode(number(index) & 0o7777);
        // These two know no working directory: the kernel says that this is no descriptor.
        if matches!(call, Call::Fchown | Call::Fstat) && folder < 0 {
            return Ok(Answer::Continue);
        }
        let chown = |name: Result<Name, Errno>, index: usize| {
            let owner = [number(index), number(index + 1)];
            let identity = self.identity(question);
            files::change_owner(&self.listener, question, identity, &name?, owner)
        };
        let make = |name: Result<Name, Errno>, new: New| {
            let identity = self.identity(question);
            files::make(&self.listener, question, identity, &name?, &new)
        };
        let open = |name: Result<Name, Errno>, how: How| {
            // Of the others most filters do not ask.
            if how.flags.bits() & CREATING == 0 {
                return Ok(Answer::Continue);
            }
            let identity = self.identity(question);
            let How { flags, mode, resolve } = how;
            files::open(&self.listener, question, identity, &name?, flags, mode, resolve)
        };
        match call {
            Call::Chown => chown(name(here, 0, Followed), 1),
            Call::Lchown => chown(name(here, 0, Kept), 1),
            Call::Fchown => chown(Ok(Name::descriptor(folder)), 1),
            Call::Fchownat => chown(at(question, 1, number(4)), 2),
            Call::Stat => files::status(question, &name(here, 0, Followed)?, Form::Stat, 1),
            Call::Lstat => files::status(question, &name(here, 0, Kept)?, Form::Stat, 1),
            Call::Fstat => files::status(question, &Name::descriptor(folder), Form::Stat, 1),
            Call::Newfstatat => {
                files::status(question, &at(question, 1, number(3))?, Form::Stat, 2)
            }
            Call::Statx => {
                let flags = number(2) & !KNOWN_TO_NAMES;
                let form = Form::Statx { flags, mask: number(3) };
                files::status(question, &at(question, 1, number(2))?, form, 4)
            }
            Call::Open => open(name(here, 0, Followed), How::of(number(1), number(2))),
            Call::Openat => open(name(folder, 1, Followed), How::of(number(2), number(3))),
            Call::Openat2 => {
                let how = How::of_memory(question)?;
                open(name(folder, 1, Followed), how)
            }
            Call::Creat => {
                let flags = OFlags::CREATE | OFlags::WRONLY | OFlags::TRUNC;
                open(name(here, 0, Followed), How::of(flags.bits(), number(1)))
            }
            Call::Mkdir => make(name(here, 0, Kept), New::Folder(mode(1))),
            Call::Mkdirat => make(name(folder, 1, Kept), New::Folder(mode(2))),
            Call::Mknod => match node(number(1)) {
                Some(new) => make(name(here, 0, Kept), new),
                None => Ok(Answer::Continue),
            },
            Call::Mknodat => match node(number(2)) {
                Some(new) => make(name(folder, 1, Kept), new),
                None => Ok(Answer::Continue),
            },
            Call::Symlink => make(name(here, 1, Kept), New::Link(question.text(0)?)),
            Call::Symlinkat => {
                make(name(question.descriptor(1), 2, Kept), New::Link(question.text(0)?))
            }
            Call::Execve => self.execute(question, &name(here, 0, Followed)?),
            Call::Execveat => self.execute(question, &at(question, 1, number(4))?),
            _ => Ok(Answer::Continue),
        }
    }

    /// The place of the identity of who asks.
    fn place(&self, question: &Question) -> usize {
        if self.identities.len() == 1 {
            return 0;
        }
        let slack = fs_err::read_to_string(format!("{}/timerslack_ns", question.thread));
        let slack: Option<u64> = slack.ok().and_then(|slack| slack.trim().parse().ok());
        // A real-time thread has no slack; it is then taken for the first.
        slack
            .and_then(|slack| usize::try_from(slack.checked_sub(SLACK)?).ok())
            .filter(|place| *place < self.identities.len())
            .unwrap_or(0)
    }

    /// Who the process that asks believes to be.
    fn identity(&self, question: &Question) -> &Identity {
        self.identities.get(self.place(question))
    }

    fn change(&mut self, question: &Question, change: &Change) -> Result<Answer, Errno> {
        let old = self.place(question);
        let new = self.identities.get(old).changed(change)?;
        if new == *self.identities.get(old) {
            return Ok(Answer::Value(0));
        }
        let place = self.identities.place_for(&new)?;
        if !self.listener.is_waiting(question) {
            return Ok(Answer::Given);
        }
        let slack = (SLACK + place as u64).to_string();
        fs_err::write(format!("{}/timerslack_ns", question.thread), slack)
            .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
        self.identities.keep(place, new);
        Ok(Answer::Value(0))
    }

    /// `setfsuid` never fails, and returns what was.
    fn change_for_files(&mut self, question: &Question, kind: Kind) -> Result<Answer, Errno> {
        let old = self.identity(question).ids(kind).files;
        self.change(question, &Change::SetFiles(kind, question.number(0)))?;
        Ok(Answer::Value(old))
    }

    fn execute(&mut self, question: &Question, name: &Name) -> Result<Answer, Errno> {
        let (user, group) = files::executed_as(question, name);
        self.change(question, &Change::Execute(user, group))?;
        Ok(Answer::Continue)
    }

    fn tell_ids(&self, question: &Question, kind: Kind) -> Result<Answer, Errno> {
        let ids = self.identity(question).ids(kind);
        for (index, id) in [ids.real, ids.effective, ids.saved].into_iter().enumerate() {
            question.write(index, &id.to_ne_bytes())?;
        }
        Ok(Answer::Value(0))
    }

    fn tell_groups(&self, question: &Question) -> Result<Answer, Errno> {
        let groups = &self.identity(question).others;
        let count = u32::try_from(groups.len()).map_err(|_| Errno::INVAL)?;
        let room = question.descriptor(0);
        if room != 0 {
            if i64::from(room) < i64::from(count) {
                return Err(Errno::INVAL);
            }
            let bytes: Vec<u8> = groups.iter().flat_map(|group| group.to_ne_bytes()).collect();
            question.write(1, &bytes)?;
        }
        Ok(Answer::Value(count))
    }
}

/// How a file is opened.
struct How {
    flags: OFlags,
    mode: Mode,
    resolve: ResolveFlags,
}

impl How {
    fn of(flags: u32, mode: u32) -> Self {
        // The kernel overlooks flags that it does not know here, and refuses them in `openat2`.
        let flags = OFlags::from_bits_truncate(flags);
        Self { flags, mode: Mode::from_raw_mode(mode & 0o7777), resolve: ResolveFlags::empty() }
    }

    /// `struct open_how`
    fn of_memory(question: &Question) -> Result<Self, Errno> {
        let mut bytes = [0; 24];
        question.fill(2, &mut bytes)?;
        let (words, _) = bytes.as_chunks::<8>();
        let word = |index: usize| u64::from_ne_bytes(words[index]);
        let number = |index| u32::try_from(word(index)).map_err(|_| Errno::INVAL);
        let resolve = ResolveFlags::from_bits_retain(word(2));
        Ok(Self { resolve, ..Self::of(number(0)?, number(1)?) })
    }
}

/// Flags that say what a name means, and are dealt with there.
const KNOWN_TO_NAMES: u32 = (libc::AT_SYMLINK_NOFOLLOW | libc::AT_EMPTY_PATH).cast_unsigned();

/// The file that `fstatat` and the like name; a null pointer is an empty name.
fn at(question: &Question, index: usize, flags: u32) -> Result<Name, Errno> {
    let has = |flag: i32| flags & flag.cast_unsigned() != 0;
    let folder = question.descriptor(index - 1);
    let empty = has(libc::AT_EMPTY_PATH);
    if empty && question.word(index) == 0 {
        return Ok(Name::descriptor(folder));
    }
    let path = question.text(index)?;
    if path.is_empty() && empty {
        return Ok(Name::descriptor(folder));
    }
    let links = if has(libc::AT_SYMLINK_NOFOLLOW) { Links::Kept } else { Links::Followed };
    Name::new(folder, &path, links)
}

fn three(kind: Kind, question: &Question) -> Change {
    Change::SetThree(kind, [question.number(0), question.number(1), question.number(2)])
}

/// What `mknod` makes, unless it is a device, which the kernel refuses.
fn node(mode: u32) -> Option<New> {
    let permissions = Mode::from_raw_mode(mode & 0o7777);
    match FileType::from_raw_mode(mode) {
        kind @ (FileType::RegularFile | FileType::Fifo | FileType::Socket) => {
            Some(New::Node(kind, permissions))
        }
        // No type is a regular file.
        FileType::Unknown if mode & !0o7777 == 0 => {
            Some(New::Node(FileType::RegularFile, permissions))
        }
        _ => None,
    }
}
