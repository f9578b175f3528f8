//! Alpine's database: `/lib/apk/db/installed`, a paragraph for each package with its folders (`F:`)
//! and files (`R:`), see apk-tools' `doc/apk-package.5` and the wiki's "Apk spec".

use rbuild_cache::view::ViewError;

use super::{Manager, Package, Packages};
use crate::ops::slim::files::Files;

/// Where the database is.
pub(in crate::ops::slim) const DATABASE: &str = "/lib/apk/db/installed";

/// Reads the database; `None` when there is none.
pub(in crate::ops::slim) fn read(files: &Files) -> Result<Option<Packages>, ViewError> {
    let Some(text) = files.read_text(DATABASE)? else { return Ok(None) };
    let mut packages = Packages { manager: Some(Manager::Apk), ..Packages::default() };
    for stanza in text.split("\n\n").map(str::trim).filter(|stanza| !stanza.is_empty()) {
        let mut package = Package { stanza: stanza.to_owned(), ..Package::default() };
        let mut paths = Vec::new();
        let mut folder = "";
        for (key, value) in stanza.lines().filter_map(|line| line.split_once(':')) {
            match key {
                "P" => value.clone_into(&mut package.name),
                "V" => value.clone_into(&mut package.version),
                "F" => {
                    folder = value;
                    paths.push(format!("/{folder}"));
                }
                "R" => paths.push(format!("/{folder}/{value}")),
                _ => {}
            }
        }
        packages.add(files, package, &paths);
    }
    Ok(Some(packages))
}

/// The paragraph `stanza` with just those of its folders and files that `is_kept` accepts.
pub(in crate::ops::slim) fn pruned(stanza: &str, is_kept: impl Fn(&str) -> bool) -> String {
    let mut lines = Vec::new();
    let mut folder = "";
    // The line of a folder, and what is said about it, is written when a file of it is kept.
    let mut of_folder: Vec<&str> = Vec::new();
    let mut in_file = false;
    let mut keeps_file = false;
    for line in stanza.lines() {
        match line.split_once(':') {
            Some(("F", value)) => {
                folder = value;
                of_folder = vec![line];
                in_file = false;
            }
            Some(("R", value)) => {
                in_file = true;
                keeps_file = is_kept(&format!("/{folder}/{value}"));
                if keeps_file {
                    lines.append(&mut of_folder);
                    lines.push(line);
                }
            }
            Some(("M", _)) => of_folder.push(line),
            Some(("a" | "Z", _)) if in_file => {
                if keeps_file {
                    lines.push(line);
                }
            }
            _ => lines.push(line),
        }
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::super::super::files::tests::TestTree;
    use super::*;

    const STANZA: &str = "C:Q1abc\nP:musl\nV:1.2.4-r2\nL:MIT\nF:lib\nR:ld-musl-x86_64.so.1\na:0:0:755\n\
                          Z:Q1x\nR:libc.musl-x86_64.so.1\nF:usr\nF:usr/share\nM:0:0:1777\nR:doc\nZ:Q1y";

    #[test]
    fn packages_are_read() {
        let tree = TestTree::new(&[
            ("lib/apk/db/installed", &format!("{STANZA}\n\nP:b\nV:1\n\n")),
            ("lib/ld-musl-x86_64.so.1", ""),
        ]);
        let files = tree.files();
        let packages = read(&files).unwrap().unwrap();
        assert_eq!(packages.list.len(), 2);
        assert_eq!(packages.list[0].files.len(), 1);
        assert_eq!(packages.list[1].name, "b");
    }

    #[test]
    fn a_paragraph_keeps_what_is_kept() {
        let pruned = pruned(STANZA, |path| path.ends_with("/ld-musl-x86_64.so.1"));
        assert_eq!(
            pruned,
            "C:Q1abc\nP:musl\nV:1.2.4-r2\nL:MIT\nF:lib\nR:ld-musl-x86_64.so.1\na:0:0:755\nZ:Q1x"
        );
    }
}
