//! Conversion of character sets: glibc's `iconv_open` loads a module for all but the usual ones.

use std::path::Path;

use super::closure::Closure;
use super::files::FileId;
use super::reason::Why;

/// Libraries that offer conversion, or do it for their own messages only: that they are there does
/// not mean that somebody converts. Together the modules take 8 MB.
const NOT_BY_THEMSELVES: &[&str] =
    &["libc.so", "libc-2", "libidn2.so", "libunistring.so", "libstdc++.so", "libgnutls.so"];

/// Keeps the modules for `program`, which can convert.
pub(super) fn keep(closure: &mut Closure<'_>, program: FileId) {
    let name = closure.files.name(program);
    if NOT_BY_THEMSELVES.iter().any(|library| name.starts_with(library)) {
        return;
    }
    if !closure.is_first("charset") {
        return;
    }
    let folders = closure.libraries().folders().folders.clone();
    for folder in folders {
        let modules = format!("{folder}/gconv");
        closure.keep_folder(Path::new(&modules), &Why::Charset, Some(program));
    }
}
