//! What COPY, ADD, WORKDIR and heredocs write, tree by tree.

use std::io;
use std::os::unix::fs::{PermissionsExt, symlink};

use fs_err as fs;
use rbuild_cache::digest::Digest;
use rbuild_cache::metadata::{FileType, Metadata};
use rbuild_cache::view::Entry;

use super::*;
use crate::graph::{Mkdir, WriteFile};
use crate::tree::Folder;

/// Makes a tree: `dir/`, `file=bytes`, `link->target`, `name*other` (the same file), each with
/// a mode after `@`.
fn make(spec: &[&str]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for line in spec {
        let (line, mode) = match line.split_once('@') {
            Some((line, mode)) => (line, Some(u32::from_str_radix(mode, 8).unwrap())),
            None => (*line, None),
        };
        let at = |name: &str| {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            path
        };
        let (name, default) = if let Some((link, target)) = line.split_once("->") {
            symlink(target, at(link)).unwrap();
            continue;
        } else if let Some((file, bytes)) = line.split_once('=') {
            fs::write(at(file), bytes).unwrap();
            (file, 0o644)
        } else if let Some((name, other)) = line.split_once('*') {
            fs::hard_link(at(other), at(name)).unwrap();
            continue;
        } else {
            fs::create_dir_all(at(line)).unwrap();
            (line, 0o755)
        };
        let mode = PermissionsExt::from_mode(mode.unwrap_or(default));
        fs::set_permissions(at(name), mode).unwrap();
    }
    folder
}

/// The tree, one entry each: what it is, its mode and owner where they are not the usual.
pub(super) fn show(view: &View) -> String {
    fn add(view: &View, directory: &Entry, out: &mut Vec<String>) {
        for entry in view.children(directory).unwrap() {
            let path = entry.path().display();
            let Metadata { file_type, mode, uid, gid, .. } = *entry.metadata();
            let (text, usual) = match file_type {
                FileType::Directory => (format!("{path}/"), 0o755),
                FileType::Symlink => {
                    (format!("{path}->{}", view.read_link(&entry).unwrap().display()), mode)
                }
                FileType::File => {
                    let bytes = io::read_to_string(view.open(&entry).unwrap()).unwrap();
                    (format!("{path}={bytes}"), 0o644)
                }
                other => (format!("{path}:{other:?}"), 0o644),
            };
            let mode = if mode == usual { String::new() } else { format!("@{mode:o}") };
            let owner = if (uid, gid) == (0, 0) { String::new() } else { format!("@{uid}:{gid}") };
            out.push(text + &mode + &owner);
            if file_type == FileType::Directory {
                add(view, &entry, out);
            }
        }
    }
    let mut out = Vec::new();
    add(view, &view.root().unwrap(), &mut out);
    out.join(" ")
}

/// Trees to copy from and to, as root: all of this sets owners.
pub(super) struct Place {
    state_folder: tempfile::TempDir,
    state: StateFolder,
    base: Option<tempfile::TempDir>,
    pub(super) context: tempfile::TempDir,
    layer: tempfile::TempDir,
    ignore: Vec<String>,
}

impl Place {
    pub(super) fn new(base: &[&str], context: &[&str]) -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            // What needs a user who may give files away is tested where there is one.
            return None;
        }
        let state_folder = tempfile::tempdir().unwrap();
        let layer = tempfile::tempdir().unwrap();
        fs::set_permissions(layer.path(), PermissionsExt::from_mode(0o755)).unwrap();
        Some(Self {
            state: StateFolder::open(state_folder.path().join("state")).unwrap(),
            state_folder,
            base: (!base.is_empty()).then(|| make(base)),
            context: make(context),
            layer,
            ignore: Vec::new(),
        })
    }

    fn base(&self) -> View {
        View::layers(self.base.iter().map(|base| base.path().to_owned()).collect())
    }

    fn source(&self) -> SourceTree {
        let folder = Folder {
            name: "context".into(),
            root: self.context.path().to_owned(),
            ignore: self.ignore.clone(),
        };
        SourceTree::context(&folder).unwrap()
    }

    fn plan(&self, actions: Vec<FileAction>) -> Result<Plan, FileError> {
        let (op, base) = (FileOp { actions }, self.base());
        plan(&op, Some(&base), &[self.source()], &self.state)?.over(&op, base)
    }

    pub(super) fn run(&self, actions: Vec<FileAction>) -> Result<(), FileError> {
        let plan = self.plan(actions)?;
        for (path, file) in plan.write(self.layer.path(), None)?.files {
            let path = self.layer.path().join(path);
            if fs::symlink_metadata(&path).unwrap().is_file() {
                assert_eq!(Digest::of(fs::read(path).unwrap()), file.digest);
            }
        }
        Ok(())
    }

    pub(super) fn layer(&self) -> View {
        View::layers(vec![self.layer.path().to_owned()])
    }

    fn result(&self) -> View {
        self.base().with_layer(self.layer.path().to_owned())
    }
}

pub(super) fn copy(sources: &[&str], destination: &str) -> CopyAction {
    let sources = sources.iter().map(|&source| source.to_owned()).collect();
    CopyAction { wildcards: true, ..CopyAction::new(CopySource::Input(1), sources, destination) }
}

/// What the new layer holds after `action`, or the error.
fn outcome(base: &[&str], context: &[&str], action: CopyAction) -> Option<String> {
    let place = Place::new(base, context)?;
    Some(match place.run(vec![FileAction::Copy(action)]) {
        Ok(()) => show(&place.layer()),
        Err(error) => error.to_string(),
    })
}

#[track_caller]
fn check(base: &[&str], context: &[&str], action: CopyAction, expected: &str) {
    if let Some(found) = outcome(base, context, action) {
        assert_eq!(found, expected);
    }
}

#[test]
fn names_of_destinations() {
    let context = ["f=1", "d/a=2", "d/e/b=3"];
    check(&[], &context, copy(&["f"], "/x"), "x=1");
    check(&[], &context, copy(&["f"], "/x/"), "x/ x/f=1");
    check(&[], &context, copy(&["f"], "/x/."), "x/ x/f=1");
    check(&[], &context, copy(&["f"], "/p/q/x"), "p/ p/q/ p/q/x=1");
    check(&["x/"], &context, copy(&["f"], "/x"), "x/ x/f=1");
    check(&[], &context, copy(&["d"], "/x"), "x/ x/a=2 x/e/ x/e/b=3");
    check(&["x/"], &context, copy(&["d"], "/x"), "x/ x/a=2 x/e/ x/e/b=3");
    check(&[], &context, copy(&["d/"], "/"), "a=2 e/ e/b=3");
    check(&[], &context, copy(&["."], "/"), "d/ d/a=2 d/e/ d/e/b=3 f=1");
    check(&[], &context, copy(&["f", "d"], "/x/"), "x/ x/a=2 x/e/ x/e/b=3 x/f=1");
    check(&[], &context, copy(&["f", "d/a"], "/x"), "x=2");
    check(&[], &context, copy(&["../../f", "/d/../f"], "/x"), "x=1");
}

#[test]
fn wildcards() {
    let context = ["a1=1", "a2=2", "b=3", "d/a3=4", "e/a4=5", "l->b", "ld->d"];
    check(&[], &context, copy(&["a*"], "/x/"), "x/ x/a1=1 x/a2=2");
    check(&[], &context, copy(&["?"], "/x/"), "x/ x/a3=4 x/a4=5 x/b=3 x/l=3");
    check(&[], &context, copy(&["*/a*"], "/x/"), "x/ x/a3=4 x/a4=5");
    check(&[], &context, copy(&["l*"], "/x/"), "x/ x/a3=4 x/l=3");
    check(&[], &context, copy(&["nothing*"], "/x/"), "");
    check(&[], &context, copy(&["a[1-"], "/x/"), "syntax error in pattern `a[1-`");
    check(&[], &context, copy(&["no/*"], "/x/"), "\"/no\": not found");
    check(&[], &["a*=1"], copy(&["a\\*"], "/x/"), "\"/a\\\\*\": not found");
}

#[test]
fn what_is_there_already() {
    let check = |base: &[&str], context: &[&str], sources: &[&str], to: &str, expected: &str| {
        check(base, context, copy(sources, to), expected);
    };
    check(&["x=old"], &["f=1"], &["f"], "/x", "x=1");
    check(&["x->y", "y=old"], &["f=1"], &["f"], "/x", "y=1");
    check(&["x->no/where"], &["f=1"], &["f"], "/x", "no/ no/where=1");
    check(&["x->../../d", "d/"], &["f=1"], &["f"], "/x/", "d/ d/f=1");
    check(&["x/f->y"], &["f=1"], &["f"], "/x/", "x/ x/f=1");
    check(
        &["d@700", "d/e@2770", "d/e/old=1"],
        &["f=1"],
        &["f"],
        "/d/e/",
        "d/@700 d/e/@2770 d/e/f=1",
    );
    check(&["x=file"], &["f=1"], &["f"], "/x/", "mkdir /x: not a directory");
    check(&["x=file"], &["f=1"], &["f"], "/x/y/z", "mkdir /x: not a directory");
    check(&["x/e=file"], &["d/e/f=1"], &["d"], "/x", "cannot copy to non-directory: /x/e");
    check(&["x/e->d"], &["d/e/f=1"], &["d"], "/x", "cannot copy to non-directory: /x/e");
    check(&["x/e/"], &["d/e=1"], &["d"], "/x", "cannot replace to directory /x/e with file");
    check(&["x/e@700"], &["d/e@2750", "d/e/f=1"], &["d"], "/x", "x/ x/e/@2750 x/e/f=1");
}

#[test]
fn linked_copies_replace_what_is_in_the_destination_not_the_destination() {
    let check = |sources: &[&str], expected: &str| {
        let action = CopyAction { replace_symlinks: true, ..copy(sources, "/x") };
        check(&[], &["f=1", "d/e/a=2", "g/e=3"], action, expected);
    };
    check(&["f", "d"], "cannot copy to non-directory: /x");
    check(&["g", "d"], "x/ x/e/ x/e/a=2");
}

#[test]
fn sources_that_are_not_there() {
    let context = ["f=1", "out->../../../etc/passwd", "loop->loop"];
    check(&[], &context, copy(&["x"], "/"), "\"/x\": not found");
    check(&[], &context, copy(&["./x/../y/"], "/"), "\"/y\": not found");
    check(&[], &context, copy(&["out"], "/"), "\"/out\": not found");
    check(&[], &context, copy(&["f/x"], "/"), "\"/f/x\": not found");
    check(&[], &context, copy(&["loop"], "/"), "too many symbolic links in `/loop`");
}

#[test]
fn links_are_copied_as_links_inside_of_directories_only() {
    let context = ["d/l->../f", "f=1", "dl->d"];
    check(&[], &context, copy(&["d"], "/x"), "x/ x/l->../f");
    check(&[], &context, copy(&["d/l"], "/x"), "x=1");
    check(&[], &context, copy(&["dl"], "/x"), "x/ x/l->../f");
}

#[test]
fn modes_and_owners() {
    let context = ["f=1@4755", "d@1777", "d/a=2@600"];
    let owned = |action: CopyAction| CopyAction {
        owner: Some(Owner { user: Name::Id(5), group: Some(Name::Id(6)) }),
        ..action
    };
    let moded = |text: &str, action: CopyAction| {
        let mode = match u32::from_str_radix(text, 8) {
            Ok(mode) => ModeChange::Octal(mode),
            Err(_) => ModeChange::Symbolic(text.into()),
        };
        CopyAction { mode: Some(mode), ..action }
    };
    check(&[], &context, copy(&["f"], "/x"), "x=1@4755");
    check(&[], &context, copy(&["."], "/x"), "x/ x/d/@1777 x/d/a=2@600 x/f=1@4755");
    check(&[], &context, owned(copy(&["f"], "/p/x")), "p/@5:6 p/x=1@4755@5:6");
    check(&["p/"], &context, owned(copy(&["f"], "/p/x")), "p/ p/x=1@4755@5:6");
    check(&[], &context, moded("700", copy(&["."], "/p")), "p/@700 p/d/@700 p/d/a=2@700 p/f=1@700");
    check(&[], &context, moded("2750", copy(&["f"], "/p/x")), "p/@750 p/x=1@2750");
    check(
        &[],
        &context,
        moded("a=rX", copy(&["."], "/p/q")),
        "p/ p/q/ p/q/d/@1555 p/q/d/a=2@444 p/q/f=1@555",
    );
}

#[test]
fn parents_keep_the_path() {
    let parents = |sources: &[&str], to: &str| CopyAction { parents: true, ..copy(sources, to) };
    let context = ["a.txt=1", "d@700", "d/c.txt=2", "d/e/f.txt=3", "d/e/g=4"];
    check(
        &[],
        &context,
        parents(&["d/e/g", "a.txt"], "/p/"),
        "p/ p/a.txt=1 p/d/@700 p/d/e/ p/d/e/g=4",
    );
    check(&[], &context, parents(&["./d/./e"], "/q/"), "q/ q/e/ q/e/f.txt=3 q/e/g=4");
    check(
        &[],
        &context,
        parents(&["d/**/*.txt"], "/r/"),
        "r/ r/d/@700 r/d/c.txt=2 r/d/e/ r/d/e/f.txt=3",
    );
    check(&[], &context, parents(&["*/e/"], "/s/"), "s/ s/d/@700 s/d/e/ s/d/e/f.txt=3 s/d/e/g=4");
    check(&[], &context, parents(&["d/nothing"], "/s/"), "\"/d/nothing\": not found");
    check(&[], &context, parents(&["no*/x"], "/s/"), "s/");
    let linked = ["d/f=1", "l->d"];
    check(&[], &linked, parents(&["l/f"], "/s/"), "\"/l/f\": not found");
    check(&[], &linked, parents(&["l/./f"], "/s/"), "\"/l/f\": not found");
    check(&[], &linked, parents(&["l"], "/s/"), "s/ s/l->d");
}

#[test]
fn excluded_paths_are_left_out() {
    let exclude = |patterns: &[&str], sources: &[&str]| CopyAction {
        exclude: patterns.iter().map(|&p| p.to_owned()).collect(),
        ..copy(sources, "/x/")
    };
    let context = ["a.txt=1", "d/c.txt=2", "d/e/f.txt=3", "d/e/g=4"];
    check(
        &[],
        &context,
        exclude(&["*.txt"], &["."]),
        "x/ x/d/ x/d/c.txt=2 x/d/e/ x/d/e/f.txt=3 x/d/e/g=4",
    );
    check(&[], &context, exclude(&["**/*.txt"], &["."]), "x/ x/d/ x/d/e/ x/d/e/g=4");
    check(&[], &context, exclude(&["e"], &["d"]), "x/ x/c.txt=2");
    check(&[], &context, exclude(&["e/*"], &["d"]), "x/ x/c.txt=2 x/e/");
    check(&[], &context, exclude(&["d", "!d/e/g"], &["."]), "x/ x/a.txt=1 x/d/ x/d/e/ x/d/e/g=4");
    check(&[], &context, exclude(&["a.txt"], &["a.txt"]), "x/ x/a.txt=1");
}

#[test]
fn attributes_of_users_are_lost_and_those_of_the_kernel_stay() {
    let Some(place) = Place::new(&["d/f=1"], &[]) else { return };
    let file = place.base.as_ref().unwrap().path().join("d/f");
    // Version 2, no capability at all: the shortest that the kernel takes.
    let capability = [1, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let set = |name: &str, value: &[u8]| {
        rustix::fs::setxattr(&file, name, value, rustix::fs::XattrFlags::empty()).unwrap();
    };
    set("user.note", b"1");
    set("security.capability", &capability);
    let within = CopyAction { from: CopySource::Input(0), ..copy(&["d"], "/x") };
    place.run(vec![FileAction::Copy(within)]).unwrap();
    let entry = place.layer().lookup(Path::new("x/f")).unwrap().unwrap();
    let xattrs = place.layer().xattrs(&entry).unwrap();
    assert_eq!(xattrs, [(c"security.capability".to_owned(), capability.to_vec())]);
}

#[test]
fn hard_links_stay_hard_links() {
    let Some(place) = Place::new(&["d/b=old"], &["d/a=1", "d/b*d/a", "d/e/c*d/a"]) else {
        return;
    };
    place.run(vec![FileAction::Copy(copy(&["d"], "/d"))]).unwrap();
    assert_eq!(show(&place.result()), "d/ d/a=1 d/b=1 d/e/ d/e/c=1");
    let inode =
        |path: &str| place.layer().lookup(Path::new(path)).unwrap().unwrap().metadata().inode;
    assert_eq!(inode("d/a"), inode("d/b"));
    assert_eq!(inode("d/a"), inode("d/e/c"));
}

#[test]
fn actions_see_each_others_files() {
    let Some(place) = Place::new(&["l->real"], &["f=1", "d/g=2"]) else { return };
    let owner = Some(Owner { user: Name::Id(7), group: None });
    place
        .run(vec![
            FileAction::Mkdir(Mkdir {
                path: "/l/w".into(),
                mode: 0o755,
                parents: true,
                owner,
                time: None,
            }),
            FileAction::Copy(copy(&["f"], "/l/w")),
            FileAction::WriteFile(WriteFile {
                path: "/real/w/h".into(),
                mode: 0o600,
                owner: None,
                data: b"3".into(),
            }),
            FileAction::Copy(copy(&["d/g"], "/real/w/f")),
        ])
        .unwrap();
    assert_eq!(show(&place.layer()), "real/@7:7 real/w/@7:7 real/w/f=2 real/w/h=3@600");
}

#[test]
fn a_directory_that_exists_makes_an_empty_layer() {
    let Some(place) = Place::new(&["w@700"], &[]) else { return };
    let mkdir = Mkdir { path: "/w".into(), mode: 0o755, parents: true, owner: None, time: None };
    place.run(vec![FileAction::Mkdir(mkdir)]).unwrap();
    assert_eq!(show(&place.layer()), "");
}

#[test]
fn times_stay_to_the_nanosecond_unless_given() {
    let Some(place) = Place::new(&[], &["d/f=1", "d/e/", "d/l->f"]) else { return };
    let old = rbuild_cache::metadata::Timestamp { seconds: 1_000_000_001, nanoseconds: 7 };
    let context = fs::File::open(place.context.path()).unwrap();
    for path in ["d/f", "d/l", "d/e", "d"] {
        rbuild_cache::metadata::set_modified_at(&context, path.as_ref(), old).unwrap();
    }
    place.run(vec![FileAction::Copy(copy(&["d"], "/p/x"))]).unwrap();
    let time =
        |path: &str| place.layer().lookup(Path::new(path)).unwrap().unwrap().metadata().modified;
    for path in ["p/x", "p/x/f", "p/x/e", "p/x/l"] {
        assert_eq!(time(path), old, "{path}");
    }
    assert_ne!(time("p"), old);
}

/// As with overlayfs: only the directory that gets a new name changes.
#[test]
fn directories_on_the_way_keep_their_times() {
    let Some(place) = Place::new(&["a/b/c/"], &["f=1"]) else { return };
    let old = rbuild_cache::metadata::Timestamp { seconds: 1_000_000_001, nanoseconds: 7 };
    let base = fs::File::open(place.base.as_ref().unwrap().path()).unwrap();
    for path in ["a/b/c", "a/b", "a", "."] {
        rbuild_cache::metadata::set_modified_at(&base, path.as_ref(), old).unwrap();
    }
    place.run(vec![FileAction::Copy(copy(&["f"], "/a/b/c/"))]).unwrap();
    let time =
        |path: &str| place.layer().lookup(Path::new(path)).unwrap().unwrap().metadata().modified;
    assert_eq!((time(""), time("a"), time("a/b")), (old, old, old));
    assert_ne!(time("a/b/c"), old);
}

#[test]
fn given_times_are_those_of_everything_that_is_made() {
    let Some(place) = Place::new(&["old/"], &["d/f=1", "d/e/", "d/l->f"]) else { return };
    let times = CopyAction { times: Some(5), ..copy(&["d"], "/old/p/x") };
    place.run(vec![FileAction::Copy(times)]).unwrap();
    for path in ["old/p", "old/p/x", "old/p/x/f", "old/p/x/e", "old/p/x/l"] {
        let entry = place.layer().lookup(Path::new(path)).unwrap().unwrap();
        assert_eq!(entry.metadata().modified.seconds, 5, "{path}");
    }
}

#[test]
fn special_files() {
    let Some(place) = Place::new(&[], &["d/"]) else { return };
    let at = |name: &str| place.context.path().join("d").join(name);
    let _socket = std::os::unix::net::UnixListener::bind(at("socket")).unwrap();
    let node = |name: &str, kind, device| {
        let mode = rustix::fs::Mode::from_raw_mode(0o640);
        rustix::fs::mknodat(rustix::fs::CWD, at(name), kind, mode, device).unwrap();
    };
    node("fifo", rustix::fs::FileType::Fifo, 0);
    node("null", rustix::fs::FileType::CharacterDevice, rustix::fs::makedev(1, 3));
    place.run(vec![FileAction::Copy(copy(&["d"], "/"))]).unwrap();
    assert_eq!(show(&place.layer()), "fifo:Fifo@640 null:CharDevice@640 socket=@755");
    node("gone", rustix::fs::FileType::CharacterDevice, 0);
    let again = Place::new(&[], &[]).unwrap();
    let plan = place.plan(vec![FileAction::Copy(copy(&["d"], "/"))]).unwrap();
    assert!(matches!(plan.execute(again.layer.path()), Err(FileError::Whiteout(_))));
}

#[test]
fn ignored_files_are_not_found() {
    let Some(mut place) = Place::new(&[], &["a.txt=1", "d/b.txt=2", "d/c=3"]) else { return };
    place.ignore = vec!["**/*.txt".into()];
    let error = place.run(vec![FileAction::Copy(copy(&["a.txt"], "/"))]).unwrap_err();
    assert_eq!(error.to_string(), "\"/a.txt\": not found");
    assert!(matches!(error, FileError::Ignored(_)));
    place.run(vec![FileAction::Copy(copy(&["*.txt", "d"], "/x/"))]).unwrap();
    assert_eq!(show(&place.layer()), "x/ x/c=3");
}

#[test]
fn inline_files() {
    let files = [("a".to_owned(), b"1".to_vec()), ("b".to_owned(), b"2".to_vec())];
    let inline = |to: &str| CopyAction {
        from: CopySource::Inline(files.clone().into()),
        ..copy(&["a", "b"], to)
    };
    check(&[], &[], inline("/x/"), "x/ x/a=1 x/b=2");
    check(&["x/"], &[], inline("/x"), "x/ x/a=1 x/b=2");
    check(&[], &[], inline("/x"), "x=2");
}

#[test]
fn link_replaces_links_at_the_destination() {
    let link = |to: &str| CopyAction { replace_symlinks: true, ..copy(&["f"], to) };
    check(&[], &["f=1"], link("/x/y"), "x/ x/y=1");
    check(&["l->d", "d/"], &["f=1"], link("/l/"), "l/ l/f=1");
    check(&["l->d", "d/"], &["f=1"], copy(&["f"], "/l/"), "d/ d/f=1");
}

/// Equal checksums exactly where the copied files would be equal.
#[test]
fn the_checksum_is_of_what_is_read() {
    let sum = |context: &[&str], action: CopyAction| {
        let place = Place::new(&[], context)?;
        Some(place.plan(vec![FileAction::Copy(action)]).unwrap().checksum().unwrap())
    };
    let same = |a: (&[&str], CopyAction), b: (&[&str], CopyAction), expected| {
        assert_eq!(sum(a.0, a.1) == sum(b.0, b.1), expected);
    };
    let Some(_) = sum(&["f=1"], copy(&["f"], "/x")) else { return };
    let d = || copy(&["d"], "/x");
    same((&["d/f=1"], d()), (&["d/f=1", "g=2"], d()), true);
    same((&["d/f=1"], d()), (&["d/f=2"], d()), false);
    same((&["d/f=1"], d()), (&["d/g=1"], d()), false);
    same((&["d/f=1"], d()), (&["d/f=1@600"], d()), false);
    same((&["d/f=1"], d()), (&["e/f=1"], copy(&["e"], "/x")), true);
    same((&["d/f=1"], d()), (&["d/f=1", "d/e/"], d()), false);
    // The folder itself is not copied, unless it is a source that is no path of the user's.
    same((&["d@700", "d/f=1"], d()), (&["d/f=1"], d()), true);
    same((&["d/e@700", "d/e/f=1"], d()), (&["d/e/f=1"], d()), false);
    let itself = || CopyAction { wildcards: false, ..d() };
    same((&["d@700", "d/f=1"], itself()), (&["d/f=1"], itself()), false);
    same((&["f=1"], copy(&["f"], "/x")), (&["g=1"], copy(&["g"], "/x")), false);
    same((&["d/f=1", "d/g=1"], d()), (&["d/f=1", "d/g*d/f"], d()), false);
    let moded = || CopyAction { mode: Some(ModeChange::Octal(0o600)), ..d() };
    same((&["d/f=1"], moded()), (&["d/f=1@600"], moded()), true);
    let excluding = || CopyAction { exclude: vec!["g".into()], ..d() };
    same((&["d/f=1", "d/g=1"], excluding()), (&["d/f=1", "d/g=2"], excluding()), true);
}

#[test]
fn what_changed_since_it_was_hashed_is_not_copied() {
    let Some(place) = Place::new(&[], &["d/f=1"]) else { return };
    let plan = |place: &Place| place.plan(vec![FileAction::Copy(copy(&["d"], "/x"))]).unwrap();
    let changed = plan(&place);
    fs::write(place.context.path().join("d/f"), "2").unwrap();
    let error = changed.execute(place.layer.path()).unwrap_err();
    assert_eq!(error.to_string(), "`/d/f` changed during the build");
    // Other stages, which find a context as the first one did, may copy much later.
    let file = place.context.path().join("d/f");
    let others: [&dyn Fn(); 3] =
        [&|| fs::remove_file(&file).unwrap(), &|| symlink("/etc/passwd", &file).unwrap(), &|| {
            fs::remove_file(&file).unwrap();
            fs::create_dir(&file).unwrap();
        }];
    let found: Vec<Plan> = others.iter().map(|_| plan(&place)).collect();
    for (replace, found) in others.iter().zip(found) {
        replace();
        let layer = Place::new(&[], &[]).unwrap();
        let error = found.execute(layer.layer.path()).unwrap_err();
        assert_eq!(error.to_string(), "`/d/f` changed during the build");
    }
    fs::remove_dir(&file).unwrap();
    fs::write(&file, "2").unwrap();
    let touched = plan(&place);
    let file = fs::File::options().append(true).open(place.context.path().join("d/f")).unwrap();
    rbuild_cache::metadata::set_modified(&file, rbuild_cache::metadata::Timestamp::default())
        .unwrap();
    let layer = Place::new(&[], &[]).unwrap();
    touched.execute(layer.layer.path()).unwrap();
    assert_eq!(show(&layer.layer()), "x/ x/f=2");
}

#[test]
fn imports_keep_the_path() {
    let Some(place) = Place::new(&[], &["d@700", "d/e@750", "d/e/f=1", "l->d/e"]) else {
        return;
    };
    let check = |path: &str, expected: &str| {
        let other = Place::new(&[], &[]).unwrap();
        let plan = import(&place.source(), path, &place.state).unwrap();
        plan.execute(other.layer.path()).unwrap();
        assert_eq!(show(&other.layer()), expected, "{path}");
    };
    check("/", "d/@700 d/e/@750 d/e/f=1 l->d/e");
    check("/d/e", "d/ d/e/@750 d/e/f=1");
    check("l", "l/@750 l/f=1");
    check("/d/e/f", "d/ d/e/ d/e/f=1");
}

#[test]
fn imports_are_what_was_looked_at() {
    let Some(place) = Place::new(&[], &["d/f=1", "[a]=2"]) else { return };
    let all = import(&place.source(), "/", &place.state).unwrap();
    assert_ne!(
        all.checksum().unwrap(),
        import(&place.source(), "/d", &place.state).unwrap().checksum().unwrap()
    );
    // Contexts are checked out to folders of many kinds.
    fs::set_permissions(place.context.path(), PermissionsExt::from_mode(0o711)).unwrap();
    let elsewhere = import(&place.source(), "/", &place.state).unwrap();
    assert_eq!(all.checksum().unwrap(), elsewhere.checksum().unwrap());
    assert_eq!(all.reads(), elsewhere.reads());
    fs::set_permissions(place.context.path().join("d"), PermissionsExt::from_mode(0o711)).unwrap();
    let elsewhere = import(&place.source(), "/", &place.state).unwrap();
    assert_ne!(all.checksum().unwrap(), elsewhere.checksum().unwrap());
    fs::write(place.context.path().join("d/f"), "another").unwrap();
    let error = all.commit(&place.state, &Reads::default(), Sharing::Forbidden).unwrap_err();
    assert_eq!(error.to_string(), "`/d/f` changed during the build");
    let error = import(&place.source(), "/no", &place.state).unwrap_err();
    assert!(matches!(&error, FileError::NotFound(path) if path == "/no"), "{error}");
    let other = Place::new(&[], &[]).unwrap();
    import(&place.source(), "[a]", &place.state).unwrap().execute(other.layer.path()).unwrap();
    assert_eq!(show(&other.layer()), "[a]=2");
}

#[test]
fn what_did_not_change_is_linked_from_the_last_result() {
    let names: Vec<String> = (0..60).map(|number| format!("d/f{number}={number}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let Some(place) = Place::new(&[], &names) else { return };
    fs::hard_link(place.context.path().join("d/f1"), place.context.path().join("d/same")).unwrap();
    let commit = || {
        let plan = place.plan(vec![FileAction::Copy(copy(&["d"], "/x"))]).unwrap();
        let folder = place
            .state
            .snapshots()
            .folder(&plan.commit(&place.state, &Reads::default(), Sharing::Allowed).unwrap().id);
        View::layers(vec![folder])
    };
    let file = |view: &View, name: &str| {
        let path = Path::new("x").join(name);
        *view.lookup(&path).unwrap().unwrap().metadata()
    };
    let first = commit();
    fs::write(place.context.path().join("d/f2"), "changed").unwrap();
    let mode = PermissionsExt::from_mode(0o600);
    fs::set_permissions(place.context.path().join("d/f3"), mode).unwrap();
    let second = commit();
    for name in ["f0", "f4", "f59"] {
        assert_eq!(file(&first, name).inode, file(&second, name).inode, "{name}");
    }
    for name in ["f2", "f3", "f1", "same"] {
        assert_ne!(file(&first, name).inode, file(&second, name).inode, "{name}");
    }
    assert_eq!(file(&second, "f1").inode, file(&second, "same").inode);
    assert_eq!(file(&second, "f3").mode, 0o600);
    assert_eq!(file(&first, "f3").mode, 0o644);
    // What may be written to later has files of its own.
    let plan = place.plan(vec![FileAction::Copy(copy(&["d"], "/x"))]).unwrap();
    plan.execute(place.layer.path()).unwrap();
    assert_ne!(file(&place.layer(), "f0").inode, file(&second, "f0").inode);
}

/// A file of the store that was written to, or written anew, since it was listed.
#[test]
fn only_what_a_layer_was_committed_with_is_linked_from_it() {
    let names: Vec<String> = (0..60).map(|number| format!("d/f{number}={number}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let check = |change: &dyn Fn(&Path), is_linked: bool| {
        let Some(place) = Place::new(&[], &names) else { return };
        let commit = |state: &StateFolder| {
            let plan = place.plan(vec![FileAction::Copy(copy(&["d"], "/x"))]).unwrap();
            let snapshot = plan.commit(state, &Reads::default(), Sharing::Allowed).unwrap();
            state.snapshots().folder(&snapshot.id)
        };
        let first = commit(&place.state);
        let file = first.join("x/f7");
        let linked = fs::File::open(&file).unwrap();
        change(&file);
        fs::write(place.context.path().join("d/f2"), "changed").unwrap();
        // As a later build: this process would trust what it made.
        let later = StateFolder::open(place.state_folder.path().join("state")).unwrap();
        let second = commit(&later);
        let expected: Vec<String> = (0..60)
            .map(|number| if number == 2 { "changed".into() } else { number.to_string() })
            .collect();
        for (number, expected) in expected.iter().enumerate() {
            let bytes = fs::read_to_string(second.join(format!("x/f{number}"))).unwrap();
            assert_eq!(bytes, *expected);
        }
        let inode = |file: &fs::File| Metadata::of(file.file()).unwrap().inode;
        let now = fs::File::open(second.join("x/f7")).unwrap();
        if is_linked {
            assert_eq!(inode(&now), inode(&fs::File::open(&file).unwrap()));
        } else {
            assert_ne!(inode(&now), inode(&linked));
        }
        let id = later.snapshots().list().unwrap();
        assert!(id.iter().all(|id| later.snapshots().get(id).unwrap().is_some()));
    };
    check(&|_| (), true);
    check(&|file| fs::write(file, "X").unwrap(), false);
    check(&|file| fs::write(file, "").unwrap(), false);
    check(&|file| fs::remove_file(file).unwrap(), false);
    check(&|file| fs::set_permissions(file, PermissionsExt::from_mode(0o600)).unwrap(), false);
    // As a program that copies whole stores leaves it.
    let anew = |file: &Path| {
        let before = Metadata::of(fs::File::open(file).unwrap().file()).unwrap();
        let copy = file.with_extension("copy");
        fs::copy(file, &copy).unwrap();
        rbuild_cache::metadata::set_modified(
            fs::File::open(&copy).unwrap().file(),
            before.modified,
        )
        .unwrap();
        fs::rename(&copy, file).unwrap();
    };
    check(&anew, true);
}

/// Folders, files and names of the context that somebody swaps for links to elsewhere all the
/// while: whatever comes of a build, nothing from elsewhere is in it.
#[test]
fn a_racing_swap_of_the_context_leaks_nothing() {
    use std::sync::atomic::{AtomicBool, Ordering};
    let outside = make(&["f=secret", "g=secret"]);
    let Some(place) = Place::new(&[], &["d/e/f=public", "d/e/g=public", "file=public"]) else {
        return;
    };
    symlink(outside.path(), place.context.path().join("d/link")).unwrap();
    symlink(outside.path().join("f"), place.context.path().join("file-link")).unwrap();
    let context = fs::File::open(place.context.path()).unwrap();
    let done = AtomicBool::new(false);
    let (mut copied, mut refused) = (0, 0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let exchange = |a: &str, b: &str| {
                let flags = rustix::fs::RenameFlags::EXCHANGE;
                rustix::fs::renameat_with(&context, a, &context, b, flags).unwrap();
            };
            while !done.load(Ordering::Relaxed) {
                exchange("d/e", "d/link");
                exchange("file", "file-link");
            }
        });
        let sources: [&[&str]; 5] =
            [&["."], &["d/e"], &["d/e/*"], &["d/e/f", "d/e/g"], &["file", "d"]];
        for number in 0..200 {
            let layer = tempfile::tempdir().unwrap();
            let action = CopyAction {
                parents: number % 7 == 0 && sources[number % 5] != ["."],
                ..copy(sources[number % 5], "/x/")
            };
            let result = place
                .plan(vec![FileAction::Copy(action)])
                .and_then(|plan| plan.execute(layer.path()));
            match result {
                Ok(()) => copied += 1,
                Err(_) => refused += 1,
            }
            let shown = show(&View::layers(vec![layer.path().to_owned()]));
            assert!(!shown.contains("secret"), "{shown}");
        }
        done.store(true, Ordering::Relaxed);
    });
    assert!(copied > 0, "{refused} refused");
}
