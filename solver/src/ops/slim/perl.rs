//! Perl: an interpreter of the distribution is kept with its whole library.

use std::path::Path;

use super::closure::Closure;
use super::files::FileId;
use super::partition::Origin;
use super::reason::Why;

/// Keeps the library when `id` is an interpreter of the distribution.
pub(super) fn follow(closure: &mut Closure<'_>, id: FileId) {
    let name = closure.files.name(id);
    let is_interpreter = name == "perl"
        || name.strip_prefix("perl5.").is_some_and(|v| v.starts_with(|c: char| c.is_ascii_digit()));
    let is_distribution = matches!(closure.partition.origin(id), Origin::Distribution(_));
    if !is_interpreter
        || !is_distribution
        || !closure.files.is_file(id)
        || !closure.is_first("perl")
    {
        return;
    }
    let why = Why::Runtime("Perl".into());
    for parent in ["/usr/share", "/usr/lib", "/etc"] {
        keep_named(closure, Path::new(parent), &why, id);
    }
    let folders = closure.libraries().folders().folders.clone();
    for folder in folders {
        keep_named(closure, Path::new(&folder), &why, id);
    }
}

/// Keeps the folders `perl`, `perl5`, `perl-base` and `perl/5.36` of `parent`.
fn keep_named(closure: &mut Closure<'_>, parent: &Path, why: &Why, id: FileId) {
    for name in ["perl", "perl5", "perl-base"] {
        closure.keep_folder(&parent.join(name), why, Some(id));
    }
}
