//! PAM: its settings and modules, whose names stand in the settings.

use std::path::Path;

use super::closure::Closure;
use super::files::FileId;
use super::reason::Why;

/// Keeps what `program` authenticates with.
pub(super) fn keep(closure: &mut Closure<'_>, program: FileId) {
    if !closure.is_first("authentication") {
        return;
    }
    let from = Some(program);
    closure.keep_path(Path::new("/etc/pam.conf"), Why::Authentication, from);
    for folder in ["/etc/pam.d", "/etc/security"] {
        closure.keep_folder(Path::new(folder), &Why::Authentication, from);
    }
    for file in ["/etc/login.defs", "/etc/environment", "/etc/shells"] {
        closure.keep_path(Path::new(file), Why::Authentication, from);
    }
    let folders = closure.libraries().folders().folders.clone();
    for folder in folders {
        let modules = format!("{folder}/security");
        closure.keep_folder(Path::new(&modules), &Why::Authentication, from);
    }
}
