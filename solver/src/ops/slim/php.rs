//! PHP: an interpreter of the distribution is kept with its extensions and its settings, which say
//! which of them are loaded, with PEAR, and with the folder for sessions.

use super::closure::Closure;
use super::files::FileId;
use super::partition::Origin;
use super::reason::Why;

/// Where a distribution has what belongs to PHP: `php`, `php8`, `php82` in these.
const PARENTS: &[&str] = &["/etc", "/usr/lib", "/usr/share", "/var/lib"];

/// Keeps what belongs to the interpreter `id`, if it is one of the distribution.
pub(super) fn follow(closure: &mut Closure<'_>, id: FileId) {
    let files = closure.files;
    let is_distribution = matches!(closure.partition.origin(id), Origin::Distribution(_));
    if !is_distribution
        || !files.is_file(id)
        || !is_interpreter(files.name(id))
        || !closure.is_first("php")
    {
        return;
    }
    let why = Why::Runtime("PHP".into());
    for parent in PARENTS {
        let Some(parent) = files.resolve(parent.as_ref()).file else { continue };
        for folder in files.get(parent).children.clone() {
            if is_versioned(files.name(folder)) && files.is_directory(folder) {
                closure.keep_folder(&files.path(folder), &why, Some(id));
            }
        }
    }
}

/// `php`, `php8.2`, `php-fpm8.2`, `php-cgi`, `libphp8.2.so`.
fn is_interpreter(name: &str) -> bool {
    let name = name.strip_prefix("lib").unwrap_or(name);
    let name = name.split(".so").next().unwrap_or(name);
    let kinds = ["php-fpm", "php-cgi", "php"];
    kinds.iter().any(|kind| name.strip_prefix(kind).is_some_and(is_version))
}

/// `php`, `php82`: not `phpmyadmin`.
fn is_versioned(name: &str) -> bool {
    name.strip_prefix("php").is_some_and(is_version)
}

fn is_version(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_interpreters() {
        let check =
            |name: &str, expected: bool| assert_eq!(is_interpreter(name), expected, "{name}");
        check("php", true);
        check("php8.2", true);
        check("php-fpm8.2", true);
        check("libphp8.2.so", true);
        check("php82", true);
        check("phpize", false);
        check("php-config8.2", false);
        check("libphobos.so", false);
    }
}
