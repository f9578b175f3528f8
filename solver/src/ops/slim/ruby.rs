//! Ruby: an interpreter of the distribution is kept with its whole standard library and the gems
//! that the distribution installed.

use std::path::Path;

use super::closure::Closure;
use super::files::FileId;
use super::partition::Origin;
use super::reason::Why;

/// Where the library and gems are.
const FOLDERS: &[&str] = &[
    "/usr/lib/ruby",
    "/usr/share/ruby-vendor",
    "/usr/share/rubygems-integration",
    "/var/lib/gems",
];

/// Keeps the standard library when `id` is an interpreter of the distribution.
pub(super) fn follow(closure: &mut Closure<'_>, id: FileId) {
    let name = closure.files.name(id);
    let is_interpreter = name == "ruby"
        || name.starts_with("libruby")
        || name.strip_prefix("ruby").is_some_and(|v| v.starts_with(|c: char| c.is_ascii_digit()));
    let is_distribution = matches!(closure.partition.origin(id), Origin::Distribution(_));
    if !is_interpreter
        || !is_distribution
        || !closure.files.is_file(id)
        || !closure.is_first("ruby")
    {
        return;
    }
    let why = Why::Runtime("Ruby".into());
    for folder in FOLDERS {
        closure.keep_folder(Path::new(folder), &why, Some(id));
    }
    let folders = closure.libraries().folders().folders.clone();
    for folder in folders {
        for inside in ["ruby", "rubygems-integration"] {
            closure.keep_folder(Path::new(&format!("{folder}/{inside}")), &why, Some(id));
        }
    }
}
