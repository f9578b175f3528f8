//! Debian's database: `/var/lib/dpkg/status` with `info/*.list` and `*.md5sums`, or the form that
//! distroless images have it in: a file for each package in `status.d`.

use std::collections::BTreeSet;
use std::path::Path;

use rbuild_cache::view::ViewError;

use super::{Manager, Package, Packages, Sum, field};
use crate::ops::slim::files::Files;

/// The folder of the database.
pub(in crate::ops::slim) const FOLDER: &str = "/var/lib/dpkg";

/// Reads the database; `None` when there is none.
pub(in crate::ops::slim) fn read(files: &Files) -> Result<Option<Packages>, ViewError> {
    let mut packages = Packages { manager: Some(Manager::Dpkg), ..Packages::default() };
    let mut is_there = false;
    let mut lists = BTreeSet::new();
    if let Some(status) = files.read_text(&format!("{FOLDER}/status"))? {
        is_there = true;
        for stanza in status.split("\n\n").map(str::trim).filter(|stanza| !stanza.is_empty()) {
            let state = field(stanza, "Status").unwrap_or_default();
            if !state.ends_with(" installed") {
                continue;
            }
            add_installed(files, &mut packages, &mut lists, stanza)?;
        }
    }
    let status_d = files.resolve(Path::new("/var/lib/dpkg/status.d")).file;
    for id in status_d.map(|folder| files.get(folder).children.clone()).unwrap_or_default() {
        let name = files.name(id);
        if name.ends_with(".md5sums") || !files.is_file(id) {
            continue;
        }
        let path = files.text(id);
        let stanza = files.read_text(&path)?.unwrap_or_default();
        is_there = true;
        let sums =
            md5sums(files, &files.read_text(&format!("{path}.md5sums"))?.unwrap_or_default());
        let paths: Vec<String> = sums.iter().map(|(_, path)| format!("/{path}")).collect();
        add(files, &mut packages, stanza.trim(), &paths, sums);
    }
    Ok(is_there.then_some(packages))
}

/// Adds the package of a stanza, with its lists, unless `lists` says that they were read: dpkg has one
/// stanza for each, and a status that repeats one would have them kept any number of times.
fn add_installed(
    files: &Files,
    packages: &mut Packages,
    lists: &mut BTreeSet<String>,
    stanza: &str,
) -> Result<(), ViewError> {
    let name = field(stanza, "Package").unwrap_or_default();
    let architecture = field(stanza, "Architecture").unwrap_or_default();
    let mut info = |kind: &str| -> Result<Option<String>, ViewError> {
        for base in [name.to_owned(), format!("{name}:{architecture}")] {
            let path = format!("{FOLDER}/info/{base}.{kind}");
            if lists.contains(&path) {
                return Ok(None);
            }
            if let Some(text) = files.read_text(&path)? {
                lists.insert(path);
                return Ok(Some(text));
            }
        }
        Ok(None)
    };
    let list = info("list")?.unwrap_or_default();
    let paths: Vec<String> = list.lines().map(str::to_owned).collect();
    let sums = md5sums(files, &info("md5sums")?.unwrap_or_default());
    add(files, packages, stanza, &paths, sums);
    Ok(())
}

fn add(
    files: &Files,
    packages: &mut Packages,
    stanza: &str,
    paths: &[String],
    sums: Vec<(String, String)>,
) {
    let text = |name| field(stanza, name).unwrap_or_default().to_owned();
    let package = Package {
        name: text("Package"),
        version: text("Version"),
        stanza: stanza.to_owned(),
        files: Vec::new(),
        md5sums: sums,
    };
    packages.add(files, package, paths);
    let package = packages.list.len() - 1;
    // Settings are in a list of their own: `path digest`, one a line.
    let settings = field(stanza, "Conffiles").unwrap_or_default().lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        Some((words.next()?.trim_start_matches('/').to_owned(), words.next()?.to_owned()))
    });
    let sums = packages.list[package].md5sums.iter();
    let sums = sums.map(|(sum, path)| (path.clone(), sum.clone())).chain(settings);
    let sums: Vec<(String, String)> = sums.collect();
    for (path, sum) in sums {
        let Some(sum) = hex::<16>(&sum) else { continue };
        let found = files.lookup(Path::new(&path)).file;
        if let Some(id) = found.filter(|id| packages.owners.get(id) == Some(&package)) {
            packages.sums.insert(id, Sum::Md5(sum));
        }
    }
}

/// The digests of files that are in the tree: others say nothing, and may be millions.
fn md5sums(files: &Files, text: &str) -> Vec<(String, String)> {
    let lines = text.lines().filter_map(|line| line.split_once("  "));
    let lines = lines.map(|(sum, path)| (sum, path.trim_start_matches('/')));
    let lines = lines.filter(|(_, path)| files.lookup(Path::new(path)).file.is_some());
    lines.map(|(sum, path)| (sum.to_owned(), path.to_owned())).collect()
}

fn hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    if text.len() != 2 * N {
        return None;
    }
    for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::super::super::files::tests::TestTree;
    use super::*;

    #[test]
    fn packages_and_their_files_are_found_through_merged_usr() {
        let tree = TestTree::new(&[
            ("lib -> usr/lib", ""),
            ("usr/lib/libc.so.6", "c"),
            ("etc/libc.conf", "x"),
            (
                "var/lib/dpkg/status",
                "Package: libc6\nStatus: install ok installed\nArchitecture: amd64\nVersion: 2.36\n\
                 Conffiles:\n /etc/libc.conf 9dd4e461268c8034f5c8564e155c67a6\nDescription: C\n more\n\n\
                 Package: gone\nStatus: deinstall ok config-files\nVersion: 1\n",
            ),
            (
                "var/lib/dpkg/info/libc6:amd64.list",
                "/.\n/lib\n/lib/libc.so.6\n/etc/libc.conf\n/no\n",
            ),
            (
                "var/lib/dpkg/info/libc6:amd64.md5sums",
                "4a8a08f09d37b73795649038408b5f33  lib/libc.so.6\n",
            ),
        ]);
        let files = tree.files();
        let packages = read(&files).unwrap().unwrap();
        assert_eq!(packages.list.len(), 1);
        assert_eq!((&*packages.list[0].name, &*packages.list[0].version), ("libc6", "2.36"));
        let owned: Vec<String> = packages.list[0].files.iter().map(|id| files.text(*id)).collect();
        assert_eq!(owned, ["/usr/lib/libc.so.6", "/etc/libc.conf"]);
        assert_eq!(packages.sums.len(), 2);
    }

    #[test]
    fn gigantic_lists_are_not_read() {
        let large = "x\n".repeat(33 << 20);
        let tree = TestTree::new(&[
            ("a", ""),
            (
                "var/lib/dpkg/status",
                "Package: one\nStatus: install ok installed\n\n\
                 Package: two\nStatus: install ok installed\n",
            ),
            ("var/lib/dpkg/info/one.list", &large),
            ("var/lib/dpkg/info/two.list", "/a\n"),
            ("var/lib/dpkg/info/two.md5sums", "0  a\n0  not/there\n"),
        ]);
        let packages = read(&tree.files()).unwrap().unwrap();
        let files: Vec<usize> = packages.list.iter().map(|package| package.files.len()).collect();
        assert_eq!(files, [0, 1]);
        assert_eq!(packages.list[1].md5sums, [("0".to_owned(), "a".to_owned())]);
    }

    #[test]
    fn lists_of_a_repeated_package_are_read_once() {
        let stanza = "Package: one\nStatus: install ok installed\n\n".repeat(3);
        let tree = TestTree::new(&[
            ("a", ""),
            ("var/lib/dpkg/status", &stanza),
            ("var/lib/dpkg/info/one.list", "/a\n"),
            ("var/lib/dpkg/info/one.md5sums", "0  a\n"),
        ]);
        let packages = read(&tree.files()).unwrap().unwrap();
        let sums: Vec<usize> = packages.list.iter().map(|package| package.md5sums.len()).collect();
        assert_eq!(sums, [1, 0, 0]);
    }

    #[test]
    fn what_distroless_images_say_is_read_too() {
        let tree = TestTree::new(&[
            ("etc/os-release", "x"),
            ("var/lib/dpkg/status.d/base-files", "Package: base-files\nVersion: 12\n"),
            (
                "var/lib/dpkg/status.d/base-files.md5sums",
                "9dd4e461268c8034f5c8564e155c67a6  etc/os-release\n",
            ),
        ]);
        let packages = read(&tree.files()).unwrap().unwrap();
        assert_eq!(packages.list[0].files.len(), 1);
        assert!(read(&TestTree::new(&[("a", "")]).files()).unwrap().is_none());
    }
}
