//! What scanners read: the packages of which files are kept, and just those.
//!
//! A whole database would name packages that are gone, none at all would hide those that are there.
//! For dpkg it is written as distroless images have it: a paragraph for each package in
//! `/var/lib/dpkg/status.d`, and beside it the digests of the files that are kept.

use std::collections::BTreeMap;

use rbuild_cache::metadata::Timestamp;

use super::files::{FileId, Files};
use super::layers::{Made, MadeKind};
use super::package::{Manager, Package, Packages, apk, field};

/// The database of what is kept of `packages`.
pub(super) fn made(
    files: &Files,
    packages: &Packages,
    is_kept: impl Fn(FileId) -> bool,
) -> Vec<Made> {
    let mut kept: BTreeMap<&str, (&Package, Vec<FileId>)> = BTreeMap::new();
    for package in &packages.list {
        let of_package: Vec<FileId> =
            package.files.iter().copied().filter(|id| is_kept(*id)).collect();
        if !of_package.is_empty() {
            kept.insert(&package.name, (package, of_package));
        }
    }
    match packages.manager {
        None => Vec::new(),
        Some(Manager::Dpkg) => kept
            .values()
            .flat_map(|(package, of_package)| status_d(files, package, of_package))
            .collect(),
        Some(Manager::Apk) => vec![installed(files, packages, &kept, &is_kept)],
    }
}

fn status_d(files: &Files, package: &Package, kept: &[FileId]) -> [Made; 2] {
    let time = newest(files, kept);
    let made = |name: String, text: String| Made {
        path: format!("var/lib/dpkg/status.d/{name}").into(),
        kind: MadeKind::File(text.into_bytes()),
        mode: 0o644,
        uid: 0,
        gid: 0,
        time,
    };
    // A package that is there for two architectures has a paragraph for each.
    let architecture = field(&package.stanza, "Architecture").unwrap_or_default();
    let is_foreign = package.stanza.contains("\nMulti-Arch: same") && architecture == "i386";
    let name =
        if is_foreign { format!("{}:{architecture}", package.name) } else { package.name.clone() };
    let is_listed = |path: &str| {
        let found = files.lookup(std::path::Path::new(path)).file;
        found.is_some_and(|id| kept.contains(&id))
    };
    let sums = package.md5sums.iter().filter(|(_, path)| is_listed(path));
    let sums: Vec<String> = sums.map(|(sum, path)| format!("{sum}  {path}\n")).collect();
    [
        made(name.clone(), format!("{}\n", package.stanza)),
        made(format!("{name}.md5sums"), sums.concat()),
    ]
}

fn installed(
    files: &Files,
    packages: &Packages,
    kept: &BTreeMap<&str, (&Package, Vec<FileId>)>,
    is_kept: &impl Fn(FileId) -> bool,
) -> Made {
    let is_listed = |path: &str| files.lookup(std::path::Path::new(path)).file.is_some_and(is_kept);
    let stanzas = packages.list.iter().filter(|package| kept.contains_key(&*package.name));
    let stanzas: Vec<String> =
        stanzas.map(|package| apk::pruned(&package.stanza, is_listed) + "\n\n").collect();
    let all: Vec<FileId> = kept.values().flat_map(|(_, files)| files).copied().collect();
    Made {
        path: apk::DATABASE.trim_start_matches('/').into(),
        kind: MadeKind::File(stanzas.concat().into_bytes()),
        mode: 0o644,
        uid: 0,
        gid: 0,
        time: newest(files, &all),
    }
}

fn newest(files: &Files, kept: &[FileId]) -> Timestamp {
    let times = kept.iter().map(|id| files.get(*id).entry.metadata().modified);
    times.max().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::files::tests::TestTree;
    use super::*;

    #[test]
    fn just_the_packages_with_files_are_named() {
        let paragraph =
            |name: &str| format!("Package: {name}\nStatus: install ok installed\nVersion: 1");
        let status = format!("{}\n\n{}\n", paragraph("one"), paragraph("two"));
        let tree = TestTree::new(&[
            ("bin/a", ""),
            ("bin/b", ""),
            ("bin/c", ""),
            ("var/lib/dpkg/status", &status),
            ("var/lib/dpkg/info/one.list", "/bin/a\n/bin/b\n"),
            (
                "var/lib/dpkg/info/one.md5sums",
                "d41d8cd98f00b204e9800998ecf8427e  bin/a\nd41d8cd98f00b204e9800998ecf8427e  bin/b\n",
            ),
            ("var/lib/dpkg/info/two.list", "/bin/c\n"),
        ]);
        let files = tree.files();
        let packages = Packages::read(&files).unwrap();
        let a = files.lookup(Path::new("/bin/a")).file.unwrap();
        let made = made(&files, &packages, |id| id == a);
        let shown: Vec<(String, String)> = made
            .into_iter()
            .map(|made| match made.kind {
                MadeKind::File(bytes) => {
                    (made.path.display().to_string(), String::from_utf8(bytes).unwrap())
                }
                MadeKind::Folder => unreachable!(),
            })
            .collect();
        let folder = "var/lib/dpkg/status.d";
        assert_eq!(
            shown,
            [
                (format!("{folder}/one"), format!("{}\n", paragraph("one"))),
                (
                    format!("{folder}/one.md5sums"),
                    "d41d8cd98f00b204e9800998ecf8427e  bin/a\n".to_owned()
                ),
            ]
        );
    }
}
