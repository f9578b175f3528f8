//! Java: a runtime is kept as a whole, since its parts find each other by paths that stand nowhere
//! (`java.home`), but of its programs just the one that runs. Its settings and its store of
//! certificates are links to `/etc`.

use std::path::{Path, PathBuf};

use super::closure::Closure;
use super::files::FileId;
use super::reason::Why;

/// Keeps the runtime when `id` is its program `java`, or its `libjvm.so`.
pub(super) fn follow(closure: &mut Closure<'_>, id: FileId) {
    let Some(home) = home(closure, id) else { return };
    if closure.partition.is_users(id) || !closure.is_first("java") {
        return;
    }
    let why = Why::Runtime("Java".into());
    let bin = home.join("bin");
    let (bin, programs) = (bin.to_string_lossy().into_owned(), "/jre/bin/");
    closure.keep_folder_where(&home, &why, Some(id), |path| {
        let is_program =
            path.strip_prefix(&*bin).is_some_and(|rest| rest.len() > 1) || path.contains(programs);
        let is_for_builders = [
            "/include/",
            "/man/",
            "/jmods/",
            "/src.zip",
            "/demo/",
            "/sample/",
            "/lib/ct.sym",
            "/docs",
            "/legal/",
        ]
        .iter()
        .any(|part| path.contains(part));
        !is_for_builders && (!is_program || path.ends_with("/bin/java"))
    });
    let files = closure.files;
    if let Some(etc) = files.resolve(Path::new("/etc")).file {
        for child in files.get(etc).children.clone() {
            let name = files.name(child);
            if name.starts_with("java-") && name.ends_with("-openjdk") {
                let path = files.path(child);
                closure.keep_folder(&path, &why, Some(id));
            }
        }
    }
    closure.keep_folder(Path::new("/etc/ssl/certs/java"), &why, Some(id));
}

/// The folder of the runtime: of `HOME/bin/java`, `HOME/lib/server/libjvm.so`.
fn home(closure: &Closure<'_>, id: FileId) -> Option<PathBuf> {
    let path = closure.files.path(id);
    let home = if path.ends_with("bin/java") {
        path.parent()?.parent()?
    } else if path.ends_with("lib/server/libjvm.so") {
        path.parent()?.parent()?.parent()?
    } else {
        return None;
    };
    let library = home.join("lib/libjava.so");
    closure.files.resolve(&library).file.map(|_| home.to_owned())
}
