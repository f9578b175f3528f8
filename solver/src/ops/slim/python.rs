//! Python: an interpreter of the distribution is kept with its whole standard library, since which
//! modules a program imports cannot be told from outside. Left out is what no program runs: tests,
//! the editor, the Tk demos, the 2to3 grammar, the installer of pip.

use std::collections::HashSet;
use std::path::Path;

use rayon::prelude::*;
use rbuild_cache::view::ViewError;

use super::closure::Closure;
use super::files::{FileId, Files};
use super::partition::Origin;
use super::reason::Why;

/// Parts of the standard library that programs do not import.
const LEFT_OUT: &[&str] = &[
    "/test/",
    "/tests/",
    "/idlelib/",
    "/tkinter/",
    "/turtledemo/",
    "/lib2to3/",
    "/ensurepip/",
    "/pydoc_data/",
    "/distutils/command/wininst",
    "/__pycache__/",
];

/// Keeps the standard library when `id` is an interpreter of the distribution.
pub(super) fn follow(closure: &mut Closure<'_>, id: FileId) -> Result<(), ViewError> {
    let is_distribution = matches!(closure.partition.origin(id), Origin::Distribution(_));
    let Some(version) = version(closure.files.name(id)).map(str::to_owned) else { return Ok(()) };
    if !is_distribution || !closure.files.is_file(id) || !closure.is_first("python") {
        return Ok(());
    }
    let is_meant = |name: &str| {
        [format!("libpython{version}-minimal"), format!("libpython{version}-stdlib")]
            .iter()
            .any(|package| package == name)
            // Alpine's packages.
            || name == "python3"
    };
    let files: Vec<FileId> =
        closure.packages.named(is_meant).flat_map(|package| package.files.clone()).collect();
    let why = Why::Runtime("Python".into());
    for file in files {
        let path = closure.files.text(file);
        let is_left_out = LEFT_OUT.iter().any(|part| path.contains(part));
        let is_library =
            path.contains("/python3") && closure.partition.origin(file) != Origin::Junk;
        if is_library && !is_left_out && !path.starts_with("/usr/bin/") {
            closure.keep(file, why.clone(), Some(id));
        }
    }
    // Debian's settings of the interpreter.
    closure.keep_folder(Path::new(&format!("/etc/python{version}")), &why, Some(id));
    if sees_distribution_packages(closure)? {
        keep_packages(closure, id, &why);
    }
    Ok(())
}

/// `3.11` of `python3.11` or `libpython3.11.so.1.0`.
fn version(name: &str) -> Option<&str> {
    let rest = name.strip_prefix("libpython").or_else(|| name.strip_prefix("python"))?;
    let rest = rest.split(".so").next()?;
    let (major, minor) = rest.split_once('.')?;
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    (is_number(major) && is_number(minor)).then_some(rest)
}

/// Whether programs see what the distribution has of Python's packages: not if they all run in
/// virtual environments, which hide it unless they are made otherwise.
fn sees_distribution_packages(closure: &Closure<'_>) -> Result<bool, ViewError> {
    let files = closure.files;
    let mut environments = 0;
    for id in files.ids().filter(|id| files.name(*id) == "pyvenv.cfg") {
        environments += 1;
        let settings = files.read_text(&files.text(id))?.unwrap_or_default();
        let shows =
            settings.lines().filter_map(|line| line.split_once('=')).any(|(name, value)| {
                name.trim() == "include-system-site-packages" && value.trim() == "true"
            });
        if shows {
            return Ok(true);
        }
    }
    Ok(environments == 0)
}

/// Keeps Python's packages of the distribution, but for those that install others.
fn keep_packages(closure: &mut Closure<'_>, id: FileId, why: &Why) {
    for folder in ["/usr/lib/python3/dist-packages", "/usr/lib/python3/site-packages"] {
        closure.keep_folder_where(Path::new(folder), why, Some(id), |path| {
            let inside = path.strip_prefix(folder).unwrap_or_default().trim_start_matches('/');
            let package = inside.split('/').next().unwrap_or_default();
            let package = package.split(['-', '.']).next().unwrap_or_default();
            !["pip", "wheel"].contains(&package) && !inside.contains("__pycache__")
        });
    }
}

/// What installs packages, and what only that needs: found in every virtual environment, and of no
/// use in an image unless something of the application imports it.
const INSTALLERS: &[(&str, &[&str])] = &[
    ("pip", &["pip"]),
    ("wheel", &["wheel"]),
    ("setuptools", &["setuptools", "pkg_resources", "distutils", "_distutils_hack"]),
];

/// The user's files that install Python packages and that nothing else imports.
pub(super) fn unused_installers(
    files: &Files,
    is_users: impl Fn(FileId) -> bool + Sync,
) -> Result<Vec<FileId>, ViewError> {
    let packages: Vec<FileId> = files
        .ids()
        .filter(|id| files.is_directory(*id) && is_users(*id))
        .filter(|id| ["site-packages", "dist-packages"].contains(&files.name(*id)))
        .collect();
    let all: Vec<&str> = INSTALLERS.iter().flat_map(|(_, modules)| *modules).copied().collect();
    let of_installers: Vec<FileId> = packages
        .iter()
        .flat_map(|folder| files.get(*folder).children.clone())
        .filter(|id| all.contains(&module(files.name(*id))))
        .collect();
    if of_installers.is_empty() {
        return Ok(Vec::new());
    }
    let inside: HashSet<FileId> =
        of_installers.iter().flat_map(|folder| files.below(*folder)).collect();
    let scripts: Vec<FileId> = files
        .ids()
        .filter(|id| is_users(*id) && files.is_file(*id) && !inside.contains(id))
        .filter(|id| matches!(files.name(*id).rsplit_once('.'), Some((_, "py" | "pyx"))))
        .collect();
    let imported: HashSet<&str> = scripts
        .par_iter()
        // What is too long to be looked at may import anything.
        .map(|id| Ok(files.read_file(*id)?.map_or(all.clone(), |text| imports_of(&text, &all))))
        .collect::<Result<Vec<_>, ViewError>>()?
        .into_iter()
        .flatten()
        .collect();
    let mut unused = Vec::new();
    for (installer, modules) in INSTALLERS {
        if modules.iter().any(|module| imported.contains(module)) {
            continue;
        }
        for id in &of_installers {
            if modules.contains(&module(files.name(*id))) {
                unused.extend(files.below(*id));
            }
        }
        for folder in &packages {
            unused.extend(programs_of(files, *folder, installer).filter(|id| is_users(*id)));
        }
    }
    unused.retain(|id| is_users(*id));
    Ok(unused)
}

/// `pip` of `pip`, `pip-23.0.dist-info`, `distutils` of `distutils-precedence.pth`.
fn module(name: &str) -> &str {
    let is_about = [".dist-info", ".egg-info", ".pth"].iter().any(|ending| name.ends_with(ending));
    if is_about { name.split('-').next().unwrap_or(name) } else { name }
}

/// `pip`, `pip3`, `pip3.11` in the folder of programs beside the folder of packages.
fn programs_of(
    files: &Files,
    packages: FileId,
    installer: &str,
) -> impl Iterator<Item = FileId> + use<> {
    // ENVIRONMENT/lib/python3.11/site-packages
    let environment = (0..3).fold(packages, |folder, _| files.get(folder).parent);
    let programs = files.child(environment, "bin".as_ref());
    let mut found = Vec::new();
    for id in programs.map(|bin| files.get(bin).children.clone()).unwrap_or_default() {
        let rest = files.name(id).strip_prefix(installer);
        if rest.is_some_and(|rest| rest.bytes().all(|b| b.is_ascii_digit() || b == b'.')) {
            found.push(id);
        }
    }
    found.into_iter()
}

/// Which of `modules` the script imports.
fn imports_of<'a>(script: &[u8], modules: &[&'a str]) -> Vec<&'a str> {
    let text = String::from_utf8_lossy(script);
    let mut found = Vec::new();
    for line in text.lines() {
        let line = line.trim_start();
        let Some(rest) = line.strip_prefix("import ").or_else(|| line.strip_prefix("from ")) else {
            // Modules that are imported by name.
            let is_named =
                |module: &&&str| line.contains("import_module") && line.contains(**module);
            found.extend(modules.iter().filter(is_named));
            continue;
        };
        for name in rest.split(',') {
            let name = name.trim().split(['.', ' ']).next().unwrap_or_default();
            found.extend(modules.iter().filter(|module| **module == name));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::super::files::tests::TestTree;
    use super::*;

    #[test]
    fn installers_are_left_out_unless_they_are_imported() {
        let check = |script: &str, dropped: &[&str]| {
            let tree = TestTree::new(&[
                ("venv/bin/pip3", ""),
                ("venv/bin/serve", ""),
                ("venv/lib/python3.11/site-packages/pip/__init__.py", "import setuptools"),
                ("venv/lib/python3.11/site-packages/pip-23.dist-info/METADATA", ""),
                ("venv/lib/python3.11/site-packages/setuptools/__init__.py", ""),
                ("venv/lib/python3.11/site-packages/distutils-precedence.pth", ""),
                ("app/main.py", script),
            ]);
            let files = tree.files();
            let unused = unused_installers(&files, |_| true).unwrap();
            let unused = unused.into_iter().filter(|id| files.is_file(*id));
            let names: Vec<String> = unused.map(|id| files.name(id).to_owned()).collect();
            assert_eq!(names, dropped, "{script}");
        };
        check(
            "import os\n# import pip",
            &["__init__.py", "METADATA", "pip3", "distutils-precedence.pth", "__init__.py"],
        );
        check("try:\n    import pkg_resources", &["__init__.py", "METADATA", "pip3"]);
        check("from pip._internal import x", &["distutils-precedence.pth", "__init__.py"]);
    }

    #[test]
    fn names_of_interpreters() {
        let check =
            |name: &str, expected: Option<&str>| assert_eq!(version(name), expected, "{name}");
        check("python3.11", Some("3.11"));
        check("libpython3.11.so.1.0", Some("3.11"));
        check("python3", None);
        check("python3.11-config", None);
        check("python3.11m.x", None);
        check("pythonic.1", None);
    }
}
