//! Node: what the interpreter itself needs stands in it as paths. Modules that the distribution
//! installed are found by the names by which the application's own scripts import them.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use rbuild_cache::view::ViewError;

use super::closure::Closure;
use super::files::FileId;
use super::partition::Origin;
use super::reason::Why;

/// Where the distribution puts modules, besides those of the architecture.
const FOLDERS: &[&str] = &["/usr/share/nodejs", "/usr/lib/nodejs", "/usr/lib/node_modules"];

/// Keeps what the application's scripts import when `id` is an interpreter.
pub(super) fn follow(closure: &mut Closure<'_>, id: FileId) -> Result<(), ViewError> {
    let name = closure.files.name(id);
    if !(name == "node" || name == "nodejs" || name.starts_with("libnode.so"))
        || !closure.files.is_file(id)
        || !closure.is_first("node")
    {
        return Ok(());
    }
    let mut folders: Vec<PathBuf> = FOLDERS.iter().map(PathBuf::from).collect();
    let libraries = &closure.libraries().folders().folders;
    folders.extend(libraries.iter().map(|folder| Path::new(folder).join("nodejs")));
    folders.retain(|folder| closure.files.resolve(folder).file.is_some());
    if folders.is_empty() {
        return Ok(());
    }
    let mut open: Vec<String> = imported(closure)?.into_iter().collect();
    let mut seen: BTreeSet<String> = open.iter().cloned().collect();
    while let Some(module) = open.pop() {
        for folder in &folders {
            let place = folder.join(&module);
            let Some(found) = closure.files.resolve(&place).file else { continue };
            closure.keep_folder(&place, &Why::Module(module.clone()), Some(id));
            let manifest = closure.files.child(found, "package.json".as_ref());
            let Some(manifest) = manifest else { continue };
            let text = closure.files.read_file(manifest)?.unwrap_or_default();
            open.extend(dependencies(&text).into_iter().filter(|name| seen.insert(name.clone())));
        }
    }
    Ok(())
}

/// What the application's own scripts, outside of `node_modules`, import by name.
fn imported(closure: &Closure<'_>) -> Result<BTreeSet<String>, ViewError> {
    let files = closure.files;
    let mut modules = BTreeSet::new();
    for id in files.ids() {
        let name = files.name(id);
        let is_script = [".js", ".cjs", ".mjs"].iter().any(|ending| name.ends_with(ending));
        if !is_script || closure.partition.origin(id) != Origin::User || !files.is_file(id) {
            continue;
        }
        if files.path(id).iter().any(|part| part == "node_modules") {
            continue;
        }
        let text = files.read_file(id)?.unwrap_or_default();
        modules.extend(imports(&String::from_utf8_lossy(&text)));
    }
    Ok(modules)
}

/// The packages that `script` imports: `require("x")`, `from "x"`, `import "x"`, `import("x")`.
fn imports(script: &str) -> BTreeSet<String> {
    let mut modules = BTreeSet::new();
    for keyword in ["require", "from", "import"] {
        for (position, _) in script.match_indices(keyword) {
            let rest = script[position + keyword.len()..].trim_start().trim_start_matches('(');
            let rest = rest.trim_start();
            let Some(quote) = rest.chars().next().filter(|c| ['"', '\'', '`'].contains(c)) else {
                continue;
            };
            let Some((name, _)) = rest[1..].split_once(quote) else { continue };
            modules.extend(package(name));
        }
    }
    modules
}

/// The package of the module `name`: `@scope/a/b` is of `@scope/a`.
fn package(name: &str) -> Option<String> {
    let is_name = |c: char| c.is_ascii_alphanumeric() || "@/._-".contains(c);
    if name.is_empty() || name.starts_with(['.', '/']) || !name.chars().all(is_name) {
        return None;
    }
    let parts = if name.starts_with('@') { 2 } else { 1 };
    Some(name.split('/').take(parts).collect::<Vec<_>>().join("/"))
}

fn dependencies(manifest: &[u8]) -> Vec<String> {
    let manifest: serde_json::Value = serde_json::from_slice(manifest).unwrap_or_default();
    let names = ["dependencies", "peerDependencies", "optionalDependencies"];
    let objects = names.iter().filter_map(|name| manifest[*name].as_object());
    objects.flat_map(|object| object.keys()).filter_map(|name| package(name)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn imports_of_scripts() {
        let check = |script: &str, expected: &[&str]| {
            assert_eq!(imports(script).into_iter().collect::<Vec<_>>(), expected, "{script}");
        };
        check("const a = require('express')", &["express"]);
        check("import x from \"@scope/a/b.js\"; import './own.js'", &["@scope/a"]);
        check("await import(`late`); require('./plug/' + x)", &["late"]);
        check("require(name)", &[]);
    }

    #[test]
    fn dependencies_of_a_package() {
        assert_eq!(dependencies(br#"{"dependencies":{"a":"1","@s/b":"2"}}"#), ["a", "@s/b"]);
        assert!(dependencies(b"no").is_empty());
    }
}
