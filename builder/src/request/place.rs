//! Where a build writes files, looked at before anything is built: an hour of steps should not end at
//! a folder that is not there.

use std::path::Path;

use super::{Destination, Environment, OutputKind, OutputSpec, UsageError};
use crate::file_place::FilePlace;

/// Refuses `path` if no file can be written there; `flag` names it.
pub(super) fn file(flag: &'static str, path: &Path) -> Result<(), UsageError> {
    let wrong = |reason: String| UsageError::value(flag, path.display().to_string(), reason);
    if path.is_dir() {
        return Err(wrong("it is a folder".into()));
    }
    let folder = FilePlace::folder(path);
    let shown = folder.display();
    match folder.metadata() {
        Ok(there) if there.is_dir() => Ok(()),
        Ok(_) => Err(wrong(format!("`{shown}` is no folder"))),
        Err(error) => Err(wrong(format!("`{shown}`: {error}"))),
    }
}

/// Refuses `output` if it cannot be written where it says.
pub(super) fn output(output: &OutputSpec, environment: &Environment) -> Result<(), UsageError> {
    const FLAG: &str = "--output";
    let is_tar = matches!(output.kind, OutputKind::Tar | OutputKind::Oci);
    match &output.destination {
        Some(Destination::File(path)) => file(FLAG, path),
        Some(Destination::Folder(path)) if path.is_file() => {
            Err(UsageError::value(FLAG, path.display().to_string(), "it is a file"))
        }
        Some(Destination::Stdout) if environment.stdout_is_terminal => Err(of_terminal(output)),
        None if is_tar && environment.stdout_is_terminal => Err(of_terminal(output)),
        Some(Destination::Folder(_) | Destination::Stdout) | None => Ok(()),
    }
}

fn of_terminal(output: &OutputSpec) -> UsageError {
    let reason = "stdout is a terminal: name a file with `dest=FILE`, or pipe it somewhere";
    UsageError::value("--output", format!("type={}", output.kind), reason)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_need_a_folder() {
        let top = tempfile::tempdir().unwrap();
        fs_err::write(top.path().join("file"), "").unwrap();
        let check = |path: &str, expected: &str| {
            let told = match file("--iidfile", &top.path().join(path)) {
                Ok(()) => String::new(),
                Err(error) => error.to_string(),
            };
            assert!(told.ends_with(expected) && told.is_empty() == expected.is_empty(), "{told}");
        };
        check("new", "");
        check("file", "");
        check("", "it is a folder");
        check("no/new", "no`: No such file or directory (os error 2)");
        check("file/new", "file` is no folder");
        assert!(file("--iidfile", Path::new("id")).is_ok());
    }

    #[test]
    fn terminals_get_no_tar() {
        let mut environment = Environment::with_variables(&[]);
        let to = |kind, destination| OutputSpec { destination, ..OutputSpec::new(kind) };
        let outputs = [
            to(OutputKind::Tar, None),
            to(OutputKind::Oci, Some(Destination::Stdout)),
            to(OutputKind::Docker, Some(Destination::Stdout)),
        ];
        assert!(outputs.iter().all(|one| output(one, &environment).is_ok()));
        environment.stdout_is_terminal = true;
        assert!(outputs.iter().all(|one| output(one, &environment).is_err()));
        // Without a file, an engine loads it.
        assert!(output(&to(OutputKind::Docker, None), &environment).is_ok());
    }

    #[test]
    fn folders_are_made_but_not_of_files() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let environment = Environment::with_variables(&[]);
        let check = |path: &Path, expected: bool| {
            let destination = Some(Destination::Folder(path.to_owned()));
            let spec = OutputSpec { destination, ..OutputSpec::new(OutputKind::Local) };
            assert_eq!(output(&spec, &environment).is_ok(), expected);
        };
        check(Path::new("/no/such/folder"), true);
        check(file.path(), false);
    }
}
