//! Answers about files: whose they are, and whose new ones become.

use std::os::fd::AsFd;

use rbuild_cache::ownership::Owner;
use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::asker::{self, Name};
use super::credentials::Identity;
use super::listener::{self, Answer, Listener, Question};

const SETUID: u32 = 0o4000;
const SETGID: u32 = 0o2000;
const GROUP_EXECUTE: u32 = 0o0010;
/// "As it is", where an id is expected.
const UNCHANGED: u32 = u32::MAX;

/// `chown` and its kin. The file is touched as the real call would: copied up, setuid and setgid
/// taken away, its change noted by the kernel.
pub(super) fn change_owner(
    listener: &Listener,
    question: &Question,
    identity: &Identity,
    name: &Name,
    [uid, gid]: [u32; 2],
) -> Result<Answer, Errno> {
    // Whatever is wrong with the name, the kernel says it best.
    let Ok(file) = name.open(question) else { return Ok(Answer::Continue) };
    let (old, _) = asker::recall(&file)?;
    let new = |id, old| if id == UNCHANGED { old } else { id };
    let owner = Owner { uid: new(uid, old.uid), gid: new(gid, old.gid) };
    let own = old.uid == identity.users.files && owner.uid == old.uid;
    let allowed = identity.is_root_to_files()
        || (own && (owner.gid == old.gid || identity.is_in_group(owner.gid)));
    if !allowed {
        return Err(Errno::PERM);
    }
    if !listener.is_waiting(question) {
        return Ok(Answer::Given);
    }
    let (user, group) = (rustix::fs::Uid::ROOT, rustix::fs::Gid::ROOT);
    let user = (uid != UNCHANGED).then_some(user);
    let group = (gid != UNCHANGED).then_some(group);
    rustix::fs::chownat(&file, "", user, group, AtFlags::EMPTY_PATH)?;
    asker::remember(&file, owner)?;
    Ok(Answer::Value(0))
}

/// How a file's status is asked for.
#[derive(Clone, Copy, Debug)]
pub(super) enum Form {
    Stat,
    Statx { flags: u32, mask: u32 },
}

/// `stat` and its kin: the kernel answers unless another owner than 0:0 is remembered. The answer
/// goes to where the argument `buffer` points to.
pub(super) fn status(
    question: &Question,
    name: &Name,
    form: Form,
    buffer: usize,
) -> Result<Answer, Errno> {
    if !name.has_note(question) {
        return Ok(Answer::Continue);
    }
    let Ok(file) = name.open(question) else { return Ok(Answer::Continue) };
    let (owner, _) = asker::recall(&file)?;
    let (mut bytes, [uid, gid]) = match form {
        Form::Stat => listener::stat(&file)?,
        Form::Statx { flags, mask } => listener::statx(&file, flags, mask)?,
    };
    bytes[uid..uid + 4].copy_from_slice(&owner.uid.to_ne_bytes());
    bytes[gid..gid + 4].copy_from_slice(&owner.gid.to_ne_bytes());
    question.write(buffer, &bytes)?;
    Ok(Answer::Value(0))
}

/// What is made.
#[derive(Clone, Debug)]
pub(super) enum New {
    Folder(Mode),
    /// A pipe, socket or empty file.
    Node(FileType, Mode),
    Link(std::ffi::CString),
}

/// `mkdir` and its kin.
pub(super) fn make(
    listener: &Listener,
    question: &Question,
    identity: &Identity,
    name: &Name,
    new: &New,
) -> Result<Answer, Errno> {
    let Some((parent, last)) = name.split() else { return Ok(Answer::Continue) };
    let Some(owner) = owner_of_new(question, identity, &parent)? else {
        return Ok(Answer::Continue);
    };
    let Ok(folder) = parent.open(question) else { return Ok(Answer::Continue) };
    if !listener.is_waiting(question) {
        return Ok(Answer::Given);
    }
    let umask = asker::umask_of(question);
    match new {
        New::Folder(mode) => rustix::fs::mkdirat(&folder, last, *mode - umask)?,
        New::Node(kind, mode) => rustix::fs::mknodat(&folder, last, *kind, *mode - umask, 0)?,
        New::Link(target) => rustix::fs::symlinkat(&**target, &folder, last)?,
    }
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let made = rustix::fs::openat(&folder, last, flags, Mode::empty())?;
    asker::remember(&made, owner)?;
    Ok(Answer::Value(0))
}

/// `open` with flags that may make a file.
pub(super) fn open(
    listener: &Listener,
    question: &Question,
    identity: &Identity,
    name: &Name,
    flags: OFlags,
    mode: Mode,
    resolve: ResolveFlags,
) -> Result<Answer, Errno> {
    let nameless = flags.contains(OFlags::TMPFILE);
    let parent = if nameless { Some(name.clone()) } else { name.split().map(|(parent, _)| parent) };
    let Some(parent) = parent else { return Ok(Answer::Continue) };
    let Some(owner) = owner_of_new(question, identity, &parent)? else {
        return Ok(Answer::Continue);
    };
    // What is there already is opened as ever.
    if !nameless && !is_missing(question, name, flags) {
        return Ok(Answer::Continue);
    }
    if !listener.is_waiting(question) {
        return Ok(Answer::Given);
    }
    let mode = mode & Mode::from_raw_mode(0o7777);
    let mode = mode - asker::umask_of(question);
    // Who answers must not wait for the other end of a pipe that is there by now. What it cannot
    // open, the kernel can or refuses: `/dev/stdout`, found by a link, is a file of who asks.
    let patient = !flags.contains(OFlags::NONBLOCK);
    let opened = name.open_with(question, flags | OFlags::NONBLOCK, mode, resolve);
    let Ok(file) = opened else { return Ok(Answer::Continue) };
    if patient {
        let flags = rustix::fs::fcntl_getfl(&file)?;
        rustix::fs::fcntl_setfl(&file, flags - OFlags::NONBLOCK)?;
    }
    asker::remember(&file, owner)?;
    listener.answer_with_file(question, file.as_fd(), flags.contains(OFlags::CLOEXEC))
}

fn is_missing(question: &Question, name: &Name, flags: OFlags) -> bool {
    let links = if flags.intersects(OFlags::EXCL | OFlags::NOFOLLOW) {
        rbuild_cache::ownership::Links::Kept
    } else {
        name.links
    };
    let name = Name { links, ..name.clone() };
    matches!(name.open(question), Err(Errno::NOENT))
}

/// Whose a file becomes that is made in `folder`; `None` when it is 0:0, as the kernel makes it.
///
/// # Errors
/// When the folder is missing. The kernel would say the same, but later: by then another thread can
/// have made the folder, and the file would be root's.
fn owner_of_new(
    question: &Question,
    identity: &Identity,
    folder: &Name,
) -> Result<Option<Owner>, Errno> {
    let mut owner = Owner { uid: identity.users.files, gid: identity.groups.files };
    let status = match folder.status(question) {
        Ok(status) => status,
        Err(Errno::NOENT) if owner != Owner::default() && folder.is_nowhere(question) => {
            return Err(Errno::NOENT);
        }
        Err(_) => return Ok(None),
    };
    if status.st_mode & SETGID != 0 {
        let Ok(folder) = folder.open(question) else { return Ok(None) };
        let Ok((of_folder, _)) = asker::recall(&folder) else { return Ok(None) };
        owner.gid = of_folder.gid;
    }
    Ok((owner != Owner::default()).then_some(owner))
}

/// The user and group that executing the program brings, when it is setuid or setgid.
pub(super) fn executed_as(question: &Question, name: &Name) -> (Option<u32>, Option<u32>) {
    let found = name.open(question).and_then(|file| asker::recall(&file));
    let Ok((owner, status)) = found else { return (None, None) };
    if FileType::from_raw_mode(status.st_mode) != FileType::RegularFile {
        return (None, None);
    }
    let has = |bits| status.st_mode & bits == bits;
    (has(SETUID).then_some(owner.uid), has(SETGID | GROUP_EXECUTE).then_some(owner.gid))
}
