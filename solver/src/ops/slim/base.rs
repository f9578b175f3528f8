//! What an image has besides what its program is seen to need: users, name services, certificates,
//! time zones, and the folders that every program expects. What distroless images call `static`.

use std::path::Path;

use rbuild_cache::metadata::Timestamp;
use rbuild_cache::view::ViewError;

use super::certificates;
use super::closure::Closure;
use super::files::{FileId, Files};
use super::layers::{Made, MadeKind};
use super::reason::Why;
use crate::graph::SlimBase;

/// Files that are kept if they are there.
const FILES: &[&str] = &[
    "/etc/alpine-release",
    "/etc/debian_version",
    "/etc/group",
    "/etc/host.conf",
    "/etc/localtime",
    "/etc/mime.types",
    "/etc/nsswitch.conf",
    "/etc/os-release",
    "/etc/passwd",
    "/etc/protocols",
    "/etc/services",
    "/etc/timezone",
];

/// Folders that are kept, empty or not: path and mode of those that are missing.
const FOLDERS: &[(&str, u32)] = &[
    ("dev", 0o755),
    ("etc", 0o755),
    ("home", 0o755),
    ("proc", 0o555),
    ("root", 0o700),
    ("run", 0o755),
    ("sys", 0o555),
    ("tmp", 0o1777),
    ("var", 0o755),
    ("var/tmp", 0o1777),
];

/// The user without rights of distroless images.
pub(super) const NONROOT: u32 = 65532;

/// Keeps what `--slim-base` says.
pub(super) fn keep(closure: &mut Closure<'_>) {
    for id in closure.files.get(FileId::ROOT).children.clone() {
        let is_merged = ["bin", "lib", "lib32", "lib64", "libx32", "sbin"];
        if closure.files.get(id).target.is_some() && is_merged.contains(&closure.files.name(id)) {
            closure.keep(id, Why::Base, None);
        }
    }
    if closure.op.base != SlimBase::None {
        for path in certificates::BUNDLES {
            closure.keep_path(Path::new(path), Why::Base, None);
        }
    }
    if closure.op.base == SlimBase::Full {
        for path in FILES {
            closure.keep_path(Path::new(path), Why::Base, None);
        }
        // Clocks that count leap seconds, and a second copy of all others.
        closure.keep_folder_where(Path::new("/usr/share/zoneinfo"), &Why::Base, None, |path| {
            !["/right", "/posix"].iter().any(|part| path.contains(part))
        });
        for (folder, _) in FOLDERS {
            closure.keep_path(&Path::new("/").join(folder), Why::Base, None);
        }
        for link in ["/var/run", "/var/lock"] {
            if let Some(id) = closure.files.lookup(Path::new(link)).file {
                closure.keep(id, Why::Base, None);
            }
        }
    }
}

/// What the base has and the tree has not, or not so.
pub(super) fn made(files: &Files, base: SlimBase) -> Result<Vec<Made>, ViewError> {
    if base != SlimBase::Full {
        return Ok(Vec::new());
    }
    let mut made = Vec::new();
    for (path, mode) in FOLDERS {
        if files.resolve(Path::new(path)).file.is_none() {
            made.push(Made::folder(path, *mode, 0));
        }
    }
    if files.resolve(Path::new("/home/nonroot")).file.is_none() {
        made.push(Made::folder("home/nonroot", 0o700, NONROOT));
    }
    let users = "root:x:0:0:root:/root:/sbin/nologin\n\
                 nobody:x:65534:65534:nobody:/nonexistent:/sbin/nologin\n";
    let groups = "root:x:0:\nnobody:x:65534:\ntty:x:5:\nstaff:x:50:\n";
    let nonroot = [
        ("etc/passwd", users, "nonroot:x:65532:65532:nonroot:/home/nonroot:/sbin/nologin\n"),
        ("etc/group", groups, "nonroot:x:65532:\n"),
    ];
    for (path, otherwise, line) in nonroot {
        let id = files.lookup(Path::new(path)).file;
        let text = match id {
            Some(_) => files.read_text(path)?.unwrap_or_default(),
            None => otherwise.to_owned(),
        };
        if is_known(&text) {
            continue;
        }
        let end = if text.is_empty() || text.ends_with('\n') { "" } else { "\n" };
        let metadata = id.map(|id| *files.get(id).entry.metadata());
        made.push(Made {
            path: path.into(),
            kind: MadeKind::File(format!("{text}{end}{line}").into_bytes()),
            mode: metadata.map_or(0o644, |metadata| metadata.mode),
            uid: 0,
            gid: 0,
            time: metadata.map_or(Timestamp::default(), |metadata| metadata.modified),
        });
    }
    Ok(made)
}

/// Whether the user or group is in the file already.
fn is_known(text: &str) -> bool {
    text.lines().any(|line| {
        let mut fields = line.split(':');
        fields.next() == Some("nonroot") || fields.nth(1) == Some("65532")
    })
}

#[cfg(test)]
mod tests {
    use super::super::files::tests::TestTree;
    use super::*;

    #[test]
    fn the_user_without_rights_is_added_once() {
        let check = |passwd: &str, expected: Option<&str>| {
            let tree = TestTree::new(&[("etc/passwd", passwd), ("etc/group", "nonroot:x:1:\n")]);
            let made = made(&tree.files(), SlimBase::Full).unwrap();
            let file = made.iter().find(|made| made.path == Path::new("etc/passwd"));
            let text = file.map(|file| match &file.kind {
                MadeKind::File(bytes) => String::from_utf8(bytes.clone()).unwrap(),
                MadeKind::Folder => unreachable!(),
            });
            assert_eq!(text.as_deref(), expected);
        };
        let line = "nonroot:x:65532:65532:nonroot:/home/nonroot:/sbin/nologin\n";
        check("root:x:0:0::/:/bin/sh", Some(&format!("root:x:0:0::/:/bin/sh\n{line}")));
        check(line, None);
        check("app:x:65532:1::/:/bin/sh\n", None);
    }

    #[test]
    fn without_a_base_nothing_is_made() {
        let files = TestTree::new(&[("a", "")]).files();
        assert!(made(&files, SlimBase::None).unwrap().is_empty());
        assert!(made(&files, SlimBase::Full).unwrap().len() > 10);
    }
}
