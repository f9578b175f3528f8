//! Paths of an image, as text: always with slashes, never looked up.
//!
//! Follows Go's `path` package and BuildKit's `util/system/path.go`, so that a destination reads
//! the same in both. Links are the solver's to follow.

pub(crate) use rbuild_cache::pattern::clean;

/// `path` below `parent`, clean. (Go: `path.Join`.)
pub(crate) fn join(parent: &str, path: &str) -> String {
    match (parent, path) {
        ("", "") => String::new(),
        ("", path) => clean(path),
        (parent, "") => clean(parent),
        (parent, path) => clean(&format!("{parent}/{path}")),
    }
}

/// The last part of a path: `.` for an empty one, `/` for the root. (Go: `path.Base`.)
pub(crate) fn base(path: &str) -> &str {
    if path.is_empty() {
        return ".";
    }
    let trimmed = path.trim_end_matches('/');
    if trimmed.is_empty() {
        return "/";
    }
    trimmed.rsplit('/').next().unwrap_or(trimmed)
}

/// What `path` means to somebody in the folder `current`: left as it is when it is absolute,
/// otherwise below `current`; `current` when it is empty. (BuildKit: `NormalizePath`.)
pub(crate) fn absolute(current: &str, path: &str) -> String {
    let current = if current.starts_with('/') { current.to_owned() } else { join("/", current) };
    match path {
        "" => current,
        path if path.starts_with('/') => path.to_owned(),
        path => join(&current, path),
    }
}

/// A Windows path with slashes and without a drive's letter.
pub(crate) fn from_windows(path: &str) -> String {
    let rest = path.split_once(':').map_or(path, |(_, rest)| rest);
    rest.replace('\\', "/")
}

/// The destination of a copy for somebody in the folder `current`: clean, but a slash or `/.` at
/// the end, which says that it is a folder, stays.
pub(crate) fn destination(current: &str, path: &str) -> String {
    let path = if matches!(path, "" | ".") { "./" } else { path };
    let mut out = clean(&absolute(current, path));
    if path.ends_with('/') && !out.ends_with('/') {
        out.push('/');
    } else if path.ends_with("/.") {
        if out != "/" {
            out.push('/');
        }
        out.push('.');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cleans() {
        let check = |path: &str, expected: &str| assert_eq!(clean(path), expected, "{path:?}");
        check("", ".");
        check("/", "/");
        check("a/./b//c/", "a/b/c");
        check("/../a/../../b", "/b");
        check("../a/../..", "../..");
        check("a/..", ".");
    }

    #[test]
    fn joins_and_takes_apart() {
        assert_eq!(join("/a", "../b/"), "/b");
        assert_eq!(join("", ""), "");
        assert_eq!((base("/a/b/"), base(""), base("//"), base("x")), ("b", ".", "/", "x"));
    }

    #[test]
    fn an_absolute_folder_is_taken_as_written() {
        let check = |current: &str, path: &str, expected: &str| {
            assert_eq!(absolute(current, path), expected, "{current:?} {path:?}");
        };
        check("/w", "/z/../y/./w/", "/z/../y/./w/");
        check("/w", "../y/./z/", "/y/z");
        check("", "a", "/a");
        check("w", "a", "/w/a");
        check("/w/", "", "/w/");
    }

    #[test]
    fn windows_paths_get_slashes() {
        assert_eq!(from_windows("C:\\a\\b"), "/a/b");
        assert_eq!(from_windows("a/b"), "a/b");
    }

    #[test]
    fn destinations_keep_what_says_folder() {
        let check = |path: &str, expected: &str| {
            assert_eq!(destination("/w", path), expected, "{path:?}");
        };
        check(".", "/w/");
        check("", "/w/");
        check("./", "/w/");
        check("a/", "/w/a/");
        check("a/.", "/w/a/.");
        check("/a/../b", "/b");
        check("/", "/");
        check("/.", "/.");
        check("..", "/");
    }
}
