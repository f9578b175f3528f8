//! The licences of the packages of which files are kept: what one has to hand on with them.

use std::path::{Path, PathBuf};

use rbuild_cache::view::ViewError;

use super::closure::Closure;
use super::files::FileId;
use super::package::PackageId;
use super::partition::Origin;
use super::reason::Why;

/// Where Debian has the texts that several packages refer to.
const COMMON: &str = "/usr/share/common-licenses/";

/// Keeps the licences of all packages of which something is kept.
pub(super) fn keep(closure: &mut Closure<'_>) -> Result<(), ViewError> {
    let mut packages: Vec<(PackageId, FileId)> = Vec::new();
    for id in closure.files.ids().filter(|id| closure.is_kept(*id)) {
        if let Origin::Distribution(package) = closure.partition.origin(id)
            && packages.iter().all(|(known, _)| *known != package)
        {
            packages.push((package, id));
        }
    }
    packages.sort_unstable();
    for (package, file) in packages {
        let name = closure.packages.list[package].name.clone();
        let copyright = PathBuf::from(format!("/usr/share/doc/{name}/copyright"));
        if let Some(id) = closure.keep_path(&copyright, Why::License, Some(file)) {
            let text = closure.files.read_file(id)?.unwrap_or_default();
            for text in common(&String::from_utf8_lossy(&text)) {
                closure.keep_path(Path::new(&text), Why::License, Some(id));
            }
        }
        let folder = PathBuf::from(format!("/usr/share/licenses/{name}"));
        closure.keep_folder(&folder, &Why::License, Some(file));
    }
    Ok(())
}

/// The common texts that `copyright` refers to.
fn common(copyright: &str) -> Vec<String> {
    let mut texts: Vec<String> = copyright
        .split(COMMON)
        .skip(1)
        .map(|rest| {
            let is_of_name = |c: char| c.is_ascii_alphanumeric() || ".-".contains(c);
            let name: String = rest.chars().take_while(|c| is_of_name(*c)).collect();
            format!("{COMMON}{}", name.trim_end_matches('.'))
        })
        .filter(|path| path.len() > COMMON.len())
        .collect();
    texts.sort();
    texts.dedup();
    texts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn common_texts() {
        let text =
            "see `/usr/share/common-licenses/GPL-2'.\nAlso /usr/share/common-licenses/LGPL-2.1.";
        let expected = ["GPL-2", "LGPL-2.1"].map(|name| format!("{COMMON}{name}"));
        assert_eq!(common(text), expected);
    }
}
