//! Python: an interpreter of the distribution is kept with its whole standard library, since which
//! modules a program imports cannot be told from outside. Left out is what no program runs: tests,
//! the editor, the Tk demos, the 2to3 grammar, the installer of pip.

use std::path::Path;

use rbuild_cache::view::ViewError;

use super::closure::Closure;
use super::files::FileId;
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

#[cfg(test)]
mod tests {
    use super::*;

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
