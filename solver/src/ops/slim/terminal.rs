//! Terminals: the descriptions that programs with a screen look up by the name in `TERM`.

use std::path::Path;

use super::closure::Closure;
use super::files::FileId;
use super::reason::Why;

/// Where descriptions are.
const FOLDERS: &[&str] =
    &["/etc/terminfo", "/lib/terminfo", "/usr/share/terminfo", "/usr/lib/terminfo"];

/// The terminals that people sit at.
const TERMINALS: &[&str] =
    &["ansi", "dumb", "linux", "rxvt", "screen", "tmux", "vt100", "vt102", "vt220", "xterm"];

/// Keeps the descriptions for `program`.
pub(super) fn keep(closure: &mut Closure<'_>, program: FileId) {
    if !closure.is_first("terminal") {
        return;
    }
    let own = closure.variable("TERM").unwrap_or_default().to_owned();
    for folder in FOLDERS {
        let Some(folder) = closure.files.resolve(Path::new(folder)).file else { continue };
        for id in closure.files.below(folder) {
            let name = closure.files.name(id);
            let is_known = TERMINALS.iter().any(|known| {
                name.strip_prefix(known)
                    .is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
            });
            if !closure.files.is_directory(id) && (is_known || name == own) {
                let path = closure.files.path(id);
                closure.keep_path(&path, Why::Terminal, Some(program));
            }
        }
    }
}
