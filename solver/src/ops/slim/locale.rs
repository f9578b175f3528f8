//! Locales: what `setlocale` reads for the languages that the environment names, and for `C.UTF-8`.

use std::path::Path;

use super::closure::Closure;
use super::files::FileId;
use super::reason::Why;

/// Where compiled locales are.
const FOLDER: &str = "/usr/lib/locale";

/// Keeps the locales of the environment for `program`.
pub(super) fn keep(closure: &mut Closure<'_>, program: FileId) {
    if !closure.is_first("locale") {
        return;
    }
    let from = Some(program);
    for name in ["C.utf8", "C.UTF-8"] {
        closure.keep_folder(Path::new(&format!("{FOLDER}/{name}")), &Why::Locale, from);
    }
    for name in languages(&closure.op.env) {
        let variants = [name.clone(), name.replace("UTF-8", "utf8"), name.replace("utf8", "UTF-8")];
        let has_own = variants.iter().any(|name| {
            let path = format!("{FOLDER}/{name}");
            let is_there = closure.files.resolve(Path::new(&path)).file.is_some();
            closure.keep_folder(Path::new(&path), &Why::Locale, from);
            is_there
        });
        if !has_own {
            let archive = format!("{FOLDER}/locale-archive");
            closure.keep_path(Path::new(&archive), Why::Locale, from);
        }
    }
}

/// The locales that `env` names, but for those that every C library has in itself.
pub(super) fn languages(env: &[String]) -> Vec<String> {
    let values = env.iter().filter_map(|line| line.split_once('='));
    let named = values.filter(|(name, _)| *name == "LANG" || name.starts_with("LC_"));
    let mut languages: Vec<String> = named
        .map(|(_, value)| value.to_owned())
        .filter(|value| {
            !value.is_empty() && value != "POSIX" && value.split('.').next() != Some("C")
        })
        .collect();
    languages.sort();
    languages.dedup();
    languages
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn languages_of_the_environment() {
        let check = |env: &[&str], expected: &[&str]| {
            let env: Vec<String> = env.iter().map(|line| (*line).to_owned()).collect();
            assert_eq!(languages(&env), expected);
        };
        check(&["LANG=C.UTF-8", "LC_ALL=", "PATH=/bin"], &[]);
        check(&["LANG=de_DE.UTF-8", "LC_ALL=de_DE.UTF-8"], &["de_DE.UTF-8"]);
        check(&["LC_TIME=fr_FR"], &["fr_FR"]);
    }
}
