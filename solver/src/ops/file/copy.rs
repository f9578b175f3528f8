//! Copies what was selected to where it belongs, as BuildKit's copier does (tonistiigi/fsutil,
//! copy/copy.go).
//!
//! Directories come first, one after the other; then files, side by side; then names that are the
//! same file; at last what directories are besides their content, innermost first, since writing
//! into a directory changes its time.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use rbuild_cache::digest::Digest;
use rbuild_cache::metadata::{self, FileType, Metadata, Timestamp, Xattrs};
use rbuild_cache::pattern;
use rbuild_cache::view::{Entry, View};
use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;

use super::destination::{Destination, Made, NewDirectory, OpenDirectory};
use super::mode::Chmod;
use super::reuse::{Identity, Links, Wanted};
use super::select::{Content, Item, Selection};
use super::{CopyStep, FileError, Origin};

/// Up to this many bytes a file is copied through memory: quicker than asking the kernel.
const SMALL: u64 = 256 * 1024;

/// So many directories are open at once.
const OPEN_AT_ONCE: usize = 256;

/// What `metadata` becomes by `--chown` and `--chmod`.
pub(super) fn effective(step: &CopyStep, metadata: &Metadata) -> Metadata {
    let (uid, gid) = step.owner.unwrap_or((metadata.uid, metadata.gid));
    let mode = match &step.mode {
        Some(change) if !metadata.is_symlink() => {
            change.apply(metadata.mode, metadata.is_directory())
        }
        Some(_) | None => metadata.mode,
    };
    // A socket means nothing outside the process that listens on it: it becomes an empty file.
    let file_type = match metadata.file_type {
        FileType::Socket => FileType::File,
        other => other,
    };
    Metadata { uid, gid, mode, file_type, ..*metadata }
}

/// Does what `step` says.
pub(super) fn copy(destination: &mut Destination, step: &CopyStep) -> Result<(), FileError> {
    let new = NewDirectory {
        mode: Chmod::of_parents(step.mode.as_ref()),
        owner: step.owner.unwrap_or_default(),
        time: step.times,
    };
    let (parent, is_folder) = parent_of(&step.destination);
    if step.replace_symlinks {
        replace_links(destination, &step.destination, is_folder)?;
    }
    let parent = destination.resolve(Path::new(parent))?;
    let mut new_directories = destination.make_directories(&parent, new)?;
    let mut target = destination.resolve(Path::new(&step.destination))?;
    let there = destination.entry(&target)?;
    let (name, source_is_directory) = match &step.from {
        Origin::Selection(selection) => {
            (selection.name.as_os_str(), selection.root().metadata().is_directory())
        }
        Origin::Inline { name, .. } => (base_name(name), false),
    };
    let into_directory = there.as_ref().is_some_and(|entry| entry.metadata().is_directory());
    let nested =
        if source_is_directory { !step.contents && there.is_some() } else { into_directory };
    if nested && !name.is_empty() {
        target.push(name);
    }
    let whole = source_is_directory && step.contents && there.is_none();
    let folder = if whole { target.as_path() } else { target.parent().unwrap_or(Path::new("")) };
    new_directories.extend(destination.make_directories(folder, new)?);
    match &step.from {
        Origin::Inline { data, .. } => {
            let mode = step.mode.as_ref().map_or(0o644, |change| change.apply(0o644, false));
            let owner = step.owner.unwrap_or_default();
            write_file(destination, &target, mode, owner, step.times, data)?;
        }
        Origin::Selection(selection) => copy_selection(destination, step, selection, &target)?,
    }
    if let Some(time) = step.times {
        for path in new_directories.iter().rev() {
            let failed = |source| FileError::io(path, source);
            let time = Timestamp::from_seconds(time);
            let layer = destination.layer();
            metadata::set_modified_at(layer, path.as_os_str(), time).map_err(failed)?;
        }
    }
    Ok(())
}

/// The folder that has to exist before anything is copied to `destination`, and whether it is
/// `destination` itself, which then ends in a slash or in `/.`.
fn parent_of(destination: &str) -> (&str, bool) {
    match destination.rsplit_once('/') {
        Some((parent, "" | ".")) => (parent, true),
        Some((parent, _)) => (parent, false),
        None => ("", false),
    }
}

fn base_name(path: &str) -> &OsStr {
    Path::new(path).file_name().unwrap_or_default()
}

/// `--link`: a link on the way to the destination gives way to a directory.
fn replace_links(
    destination: &mut Destination,
    path: &str,
    is_folder: bool,
) -> Result<(), FileError> {
    let path = pattern::clean(&format!("/{path}"));
    let components: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    let folders = if is_folder { components.len() } else { components.len().saturating_sub(1) };
    let mut here = PathBuf::new();
    for component in &components[..folders] {
        here.push(component);
        if destination.entry(&here)?.is_some_and(|entry| entry.metadata().is_symlink()) {
            destination.remove(&here)?;
            destination.create(&here)?;
            let layer = destination.layer();
            metadata::set_mode_at(layer, here.as_os_str(), 0o755)
                .map_err(|source| FileError::io(&here, source))?;
        }
    }
    Ok(())
}

/// A directory that was written to: what it is to be in the end.
struct Finished<'a> {
    path: PathBuf,
    item: &'a Item,
    what: Finish,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Finish {
    /// All of it.
    Everything,
    /// Its time only: it was there before.
    Time,
    /// Nothing but what is done already.
    Times,
}

fn copy_selection(
    destination: &mut Destination,
    step: &CopyStep,
    selection: &Selection,
    target: &Path,
) -> Result<(), FileError> {
    let place = |item: &Item| {
        if item.path().as_os_str().is_empty() {
            target.to_owned()
        } else {
            target.join(item.path())
        }
    };
    let mut finished = Vec::new();
    let mut groups = Groups::default();
    let mut links = Vec::new();
    let items = selection.numbered();
    for item in &items {
        match &item.content {
            Content::Directory | Content::Parent => {
                finished.push(make_directory(destination, step, item, place(item))?);
            }
            Content::File(digest) => match item.same_as {
                Some(first) => {
                    let path = place(item);
                    destination.note(path.clone(), *digest);
                    links.push((place(items[first]), path));
                }
                None => groups.add(item),
            },
            Content::Symlink(_) | Content::Special => {
                let path = place(item);
                destination.note_other(&path);
                if item.metadata().file_type == FileType::Socket {
                    destination.note(path, Digest::of(""));
                }
                groups.add(item);
            }
        }
    }
    let name_of = |item: &Item| match item.path().file_name() {
        Some(name) => name.to_owned(),
        None => target.file_name().unwrap_or_default().to_owned(),
    };
    // Directories side by side: in one directory, the kernel lets one thread at a time make a name.
    for groups in groups.all.chunks(OPEN_AT_ONCE) {
        let mut open: Vec<(OpenDirectory, &[&Item])> = Vec::with_capacity(groups.len());
        for items in groups {
            let path = place(items[0]);
            let folder = path.parent().unwrap_or(Path::new(""));
            open.push((destination.open_directory(folder)?, items));
        }
        let place_of_items =
            Place { step, selection, below: destination.below(), links: destination.links() };
        let make =
            |open: &OpenDirectory, item: &Item| place_of_items.make(item, open, &name_of(item));
        let files: Result<Vec<Vec<Option<Made>>>, FileError> = match &open[..] {
            [(open, [item])] => make(open, item).map(|made| vec![vec![made]]),
            open => open
                .par_iter()
                .map(|(open, items)| items.par_iter().map(|item| make(open, item)).collect())
                .collect(),
        };
        destination.note_all(files?.into_iter().flatten().flatten().collect());
    }
    for (first, path) in links {
        let folder = path.parent().unwrap_or(Path::new(""));
        let name = path.file_name().unwrap_or_default();
        let open = destination.open_directory(folder)?;
        open.clear(destination.below(), name)?;
        rustix::fs::linkat(destination.layer(), &first, open.folder(), name, AtFlags::empty())
            .map_err(|error| FileError::io(&path, error.into()))?;
    }
    for directory in finished.iter().rev() {
        finish(destination, step, directory)?;
    }
    Ok(())
}

/// What is no directory, by the directory that it is in.
#[derive(Default)]
struct Groups<'a> {
    all: Vec<Vec<&'a Item>>,
    /// The numbers of those that were left for a directory in them.
    by_folder: HashMap<&'a Path, usize>,
    last: Option<(&'a Path, usize)>,
}

impl<'a> Groups<'a> {
    fn add(&mut self, item: &'a Item) {
        let folder = item.path().parent().unwrap_or(Path::new(""));
        let number = match self.last {
            Some((last, number)) if last.as_os_str() == folder.as_os_str() => number,
            _ => *self.by_folder.entry(folder).or_insert(self.all.len()),
        };
        self.last = Some((folder, number));
        if number == self.all.len() {
            self.all.push(Vec::new());
        }
        self.all[number].push(item);
    }
}

/// Where what is no directory is made.
struct Place<'a> {
    step: &'a CopyStep,
    selection: &'a Selection,
    below: &'a View,
    links: Option<&'a Links>,
}

impl Place<'_> {
    /// Makes `item` as `name` in `open`, whatever is there; returns what there is to know of a file.
    fn make(
        &self,
        item: &Item,
        open: &OpenDirectory,
        name: &OsStr,
    ) -> Result<Option<Made>, FileError> {
        let failed = |source| FileError::io(&open.path().join(name), source);
        if !open.is_new() {
            open.clear(self.below, name)?;
        }
        let metadata = effective(self.step, item.metadata());
        let time = self.step.times.map_or(metadata.modified, Timestamp::from_seconds);
        let identity = identity(item, &metadata, time);
        let create = || {
            let Metadata { mode, uid, gid, size, .. } = metadata;
            let wanted = Wanted { identity, mode, owner: (uid, gid), time, size };
            if let Some(linked) = self.link(item, &wanted, open.folder(), name)? {
                return Ok(Some(linked));
            }
            create(&metadata, time, &self.selection.view, item, open, name)
        };
        let made = match create() {
            // From an earlier source of this layer.
            Err(Problem::Exists) => {
                open.clear(self.below, name)?;
                create()
            }
            made => made,
        };
        let metadata = made.map_err(|problem| match problem {
            Problem::Exists => failed(Errno::EXIST.into()),
            Problem::Io(source) => failed(source),
            Problem::Other(error) => error,
        })?;
        let Content::File(digest) = item.content else { return Ok(None) };
        Ok(Some(Made { path: open.path().join(name), digest, identity, metadata }))
    }

    /// Links `item` as `name` from wherever the store has it; returns what it is then.
    fn link(
        &self,
        item: &Item,
        wanted: &Wanted,
        folder: BorrowedFd<'_>,
        name: &OsStr,
    ) -> Result<Option<Metadata>, Errno> {
        let Some(links) = self.links else { return Ok(None) };
        if item.has_twin || !matches!(item.content, Content::File(_)) {
            return Ok(None);
        }
        let view = &self.selection.view;
        let there = item.metadata();
        let stays = (wanted.mode, wanted.owner, wanted.time)
            == (there.mode, (there.uid, there.gid), there.modified)
            && !item.loses_xattrs;
        if stays && !view.may_change() {
            let linked = links.link_entry(view, &item.entry, folder, name)?;
            if linked.is_some() {
                return Ok(linked);
            }
        }
        links.link(wanted, folder, name)
    }
}

/// What `item` becomes, if it is a file that a later layer may link: one with a single name, and no
/// attributes.
fn identity(item: &Item, metadata: &Metadata, time: Timestamp) -> Option<Identity> {
    let Content::File(digest) = item.content else { return None };
    let is_plain = !item.has_twin && item.xattrs.is_empty();
    is_plain.then(|| Identity::new(digest, metadata, time))
}

/// Makes the directory `path` for `item`, or takes the one that is there.
fn make_directory<'a>(
    destination: &mut Destination,
    step: &CopyStep,
    item: &'a Item,
    path: PathBuf,
) -> Result<Finished<'a>, FileError> {
    let failed = |source| FileError::io(&path, source);
    let root = item.path().as_os_str().is_empty();
    let there = destination.entry(&path)?;
    let created = match there {
        Some(entry) if entry.metadata().is_directory() => {
            destination.copy_up(&path)?;
            false
        }
        // What the sources hold may take the place of a file, the destination itself may not.
        Some(_) if step.replace_symlinks && !root => {
            destination.remove(&path)?;
            destination.create(&path)?;
            true
        }
        Some(_) => return Err(FileError::CopyToNonDirectory(Path::new("/").join(&path))),
        None => {
            destination.create(&path)?;
            true
        }
    };
    let parent = matches!(item.content, Content::Parent);
    if parent {
        let open = destination.open_directory(&path)?;
        let metadata = effective(step, item.metadata());
        // One that was there keeps its owner, and gets the source's mode (`copyDirectoryOnly`).
        if created {
            let Metadata { uid, gid, mode, .. } = metadata;
            metadata::set_owner_and_mode(open.folder(), uid, gid, mode).map_err(failed)?;
            set_xattrs(&open, &item.xattrs).map_err(failed)?;
        } else {
            let mode = item.metadata().mode;
            metadata::set_mode_at(destination.layer(), path.as_os_str(), mode).map_err(failed)?;
        }
    }
    let what = match (root, parent, created) {
        (_, true, _) => Finish::Times,
        (true, false, false) => Finish::Time,
        (_, false, _) => Finish::Everything,
    };
    Ok(Finished { path, item, what })
}

fn finish(
    destination: &mut Destination,
    step: &CopyStep,
    directory: &Finished<'_>,
) -> Result<(), FileError> {
    let path = &directory.path;
    let failed = |source| FileError::io(path, source);
    let open = destination.open_directory(path)?;
    if directory.what == Finish::Everything {
        let Metadata { uid, gid, mode, .. } = effective(step, directory.item.metadata());
        metadata::set_owner_and_mode(open.folder(), uid, gid, mode).map_err(failed)?;
        set_xattrs(&open, &directory.item.xattrs).map_err(failed)?;
    }
    let time = step.times.map(Timestamp::from_seconds);
    let time = match directory.what {
        Finish::Everything | Finish::Time => time.or(Some(directory.item.metadata().modified)),
        Finish::Times => time,
    };
    match time {
        Some(time) => metadata::set_modified(open.folder(), time).map_err(failed),
        None => Ok(()),
    }
}

fn set_xattrs(directory: &OpenDirectory, xattrs: &Xattrs) -> io::Result<()> {
    metadata::set_xattrs_at(directory.folder(), OsStr::new(""), xattrs)
}

/// Why something could not be made.
enum Problem {
    Exists,
    Io(io::Error),
    Other(FileError),
}

impl From<io::Error> for Problem {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::AlreadyExists => Self::Exists,
            _ => Self::Io(error),
        }
    }
}

impl From<Errno> for Problem {
    fn from(error: Errno) -> Self {
        io::Error::from(error).into()
    }
}

impl<E: Into<FileError>> From<Wrapped<E>> for Problem {
    fn from(error: Wrapped<E>) -> Self {
        Self::Other(error.0.into())
    }
}

/// Tells errors that carry their own path from those of the file that is made.
struct Wrapped<E>(E);

/// Makes `entry` of the layers below anew in `open`, with all that it has.
pub(super) fn copy_as_it_is(
    view: &View,
    entry: &Entry,
    open: &OpenDirectory,
) -> Result<(), FileError> {
    let metadata = *entry.metadata();
    let content = match metadata.file_type {
        // Never compared: layers do not change.
        FileType::File => Content::File(Digest::from_bytes([0; 32])),
        FileType::Symlink => Content::Symlink(view.read_link(entry)?),
        FileType::CharDevice | FileType::BlockDevice | FileType::Fifo | FileType::Socket => {
            Content::Special
        }
        FileType::Directory => return Err(FileError::io(entry.path(), Errno::ISDIR.into())),
    };
    let xattrs = view.xattrs(entry)?;
    let item = Item::alone(entry.clone(), content, xattrs);
    let made = create(&metadata, metadata.modified, view, &item, open, entry.name());
    made.map(drop).map_err(|problem| match problem {
        Problem::Exists => FileError::io(entry.path(), Errno::EXIST.into()),
        Problem::Io(source) => FileError::io(entry.path(), source),
        Problem::Other(error) => error,
    })
}

/// Makes one file, link or device called `name`, where nothing is; returns what a file is then.
fn create(
    metadata: &Metadata,
    time: Timestamp,
    view: &View,
    item: &Item,
    open: &OpenDirectory,
    name: &OsStr,
) -> Result<Option<Metadata>, Problem> {
    let Metadata { uid, gid, mode, .. } = *metadata;
    let folder = open.folder();
    match (&item.content, item.metadata().file_type) {
        (Content::Symlink(target), _) => {
            rustix::fs::symlinkat(target, folder, name)?;
            metadata::set_owner_at(folder, name, uid, gid)?;
        }
        (Content::File(digest), _) => {
            let source = view
                .open(&item.entry)
                .map_err(|error| Wrapped(FileError::of_opening(view, &item.entry, error)))?;
            let file = new_file(folder, name)?;
            copy_bytes(&source, &file, item.metadata().size)?;
            if view.may_change() {
                check_unchanged(item, *digest, &source, &file)?;
            }
            metadata::set_owner_and_mode(&file, uid, gid, mode)?;
            metadata::set_xattrs_at(folder, name, &item.xattrs)?;
            metadata::set_modified(&file, time)?;
            return Ok(Some(Metadata::of(&file)?));
        }
        (_, FileType::Socket) => {
            let file = new_file(folder, name)?;
            metadata::set_owner_and_mode(&file, uid, gid, mode)?;
        }
        (_, FileType::Fifo) => make_node(open, name, rustix::fs::FileType::Fifo, metadata)?,
        (_, FileType::CharDevice) if metadata.is_whiteout() => {
            return Err(Problem::Other(FileError::Whiteout(item.entry.absolute_path())));
        }
        (_, FileType::CharDevice) => {
            make_node(open, name, rustix::fs::FileType::CharacterDevice, metadata)?;
        }
        (_, FileType::BlockDevice) => {
            make_node(open, name, rustix::fs::FileType::BlockDevice, metadata)?;
        }
        (
            Content::Directory | Content::Parent | Content::Special,
            FileType::File | FileType::Directory | FileType::Symlink,
        ) => unreachable!("directories are made before, files have content"),
    }
    metadata::set_xattrs_at(folder, name, &item.xattrs)?;
    metadata::set_modified_at(folder, name, time)?;
    Ok(None)
}

pub(super) fn make_node(
    open: &OpenDirectory,
    name: &OsStr,
    kind: rustix::fs::FileType,
    metadata: &Metadata,
) -> io::Result<()> {
    rustix::fs::mknodat(open.folder(), name, kind, Mode::RUSR | Mode::WUSR, metadata.device)?;
    metadata::set_owner_at(open.folder(), name, metadata.uid, metadata.gid)?;
    metadata::set_mode_at(open.folder(), name, metadata.mode)
}

pub(super) fn new_file(folder: impl AsFd, name: &OsStr) -> Result<File, Errno> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(File::from(rustix::fs::openat(folder, name, flags, Mode::RUSR | Mode::WUSR)?))
}

/// Copies all bytes of `source`, of which there are about `size`.
fn copy_bytes(mut source: &File, mut target: &File, size: u64) -> io::Result<()> {
    if size <= SMALL {
        let mut bytes = Vec::with_capacity(usize::try_from(size + 1).unwrap_or_default());
        source.take(SMALL + 1).read_to_end(&mut bytes)?;
        target.write_all(&bytes)?;
        if bytes.len() as u64 <= SMALL {
            return Ok(());
        }
    } else if rustix::fs::ioctl_ficlone(target, source).is_ok() {
        return Ok(());
    }
    // The standard library has the kernel copy where it can, and knows where it cannot.
    io::copy(&mut source, &mut target).map(drop)
}

/// A context may change between being hashed and being copied; what was copied must be what was
/// hashed, since it will be found under that hash.
fn check_unchanged(
    item: &Item,
    digest: Digest,
    source: &File,
    copied: &File,
) -> Result<(), Problem> {
    if Metadata::of(source)?.is_same_version(item.metadata()) {
        return Ok(());
    }
    // Touched, perhaps, and nothing else.
    let mut bytes = copied;
    io::Seek::rewind(&mut bytes)?;
    match Digest::of_stream(bytes)? {
        (found, _) if found == digest => Ok(()),
        _ => Err(Problem::Other(FileError::Changed(item.entry.absolute_path()))),
    }
}

/// Writes a file of given bytes to `path`, whose parent exists.
pub(super) fn write_file(
    destination: &mut Destination,
    path: &Path,
    mode: u32,
    owner: (u32, u32),
    time: Option<i64>,
    data: &[u8],
) -> Result<(), FileError> {
    let failed = |source| FileError::io(path, source);
    let folder = path.parent().unwrap_or(Path::new(""));
    let name = path.file_name().ok_or_else(|| failed(Errno::ISDIR.into()))?;
    match destination.entry(folder)? {
        Some(entry) if entry.metadata().is_directory() => {}
        Some(_) => return Err(failed(Errno::NOTDIR.into())),
        None => return Err(failed(Errno::NOENT.into())),
    }
    let open = destination.open_directory(folder)?;
    open.clear(destination.below(), name)?;
    let mut file = new_file(open.folder(), name).map_err(|error| failed(error.into()))?;
    file.write_all(data).map_err(failed)?;
    metadata::set_owner_and_mode(&file, owner.0, owner.1, mode).map_err(failed)?;
    if let Some(time) = time {
        metadata::set_modified(&file, Timestamp::from_seconds(time)).map_err(failed)?;
    }
    destination.note(path.to_owned(), Digest::of(data));
    Ok(())
}
