//! Users, groups, hosts and services: the modules that `/etc/nsswitch.conf` names, and the files
//! that they read. musl reads the files itself.

use std::path::Path;

use rbuild_cache::view::ViewError;

use super::closure::Closure;
use super::elf::Elf;
use super::files::FileId;
use super::reason::Why;

/// The settings.
pub(super) const SETTINGS: &str = "/etc/nsswitch.conf";

/// Files that are read by whoever looks a name up.
const FILES: &[&str] = &["/etc/group", "/etc/host.conf", "/etc/gai.conf", SETTINGS, "/etc/passwd"];

/// Keeps what `program` looks names up with.
pub(super) fn keep(closure: &mut Closure<'_>, program: FileId, elf: &Elf) -> Result<(), ViewError> {
    if !closure.is_first("name service") {
        return Ok(());
    }
    for path in FILES {
        closure.keep_path(Path::new(path), Why::NameService, Some(program));
    }
    let settings = closure.files.read_text(SETTINGS)?.unwrap_or_default();
    let mut modules = modules(&settings);
    modules.extend(["files".to_owned(), "dns".to_owned()]);
    modules.sort();
    modules.dedup();
    for module in modules {
        let name = format!("libnss_{module}.so.2");
        closure.keep_library(program, elf, &name, &Why::NameService)?;
    }
    Ok(())
}

/// The modules that `settings` name.
fn modules(settings: &str) -> Vec<String> {
    let mut modules = Vec::new();
    for line in settings.lines() {
        let line = line.split('#').next().unwrap_or_default();
        let Some((_, services)) = line.split_once(':') else { continue };
        let mut in_brackets = false;
        for word in services.split_whitespace() {
            in_brackets |= word.starts_with('[');
            if !in_brackets {
                modules.push(word.to_owned());
            }
            in_brackets &= !word.ends_with(']');
        }
    }
    modules
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_of_settings() {
        let settings =
            "# x\npasswd: files systemd\nhosts: files [NOTFOUND=return !UNAVAIL=x] dns # y\n";
        assert_eq!(modules(settings), ["files", "systemd", "files", "dns"]);
    }
}
