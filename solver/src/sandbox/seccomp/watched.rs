//! The system calls that look for a file by its path, for who wants to know which paths a process
//! asks for (`namespaces/watch.rs`). The kernel executes them as ever.

use super::table::{self, Numbers};

/// A call that looks for a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Watched {
    /// Which argument is the folder that a relative path starts from; the working directory when
    /// there is none.
    pub folder: Option<usize>,
    /// Which argument is the path.
    pub path: usize,
    /// Whether the file is opened or executed, not just looked at.
    pub opens: bool,
}

const fn plain(opens: bool) -> Watched {
    Watched { folder: None, path: 0, opens }
}

const fn in_folder(opens: bool) -> Watched {
    Watched { folder: Some(0), path: 1, opens }
}

#[rustfmt::skip]
const WATCHED: &[(&str, Watched)] = &[
    ("access", plain(false)),
    ("execve", plain(true)),
    ("execveat", in_folder(true)),
    ("faccessat", in_folder(false)),
    ("faccessat2", in_folder(false)),
    ("lstat", plain(false)),
    ("newfstatat", in_folder(false)),
    ("open", plain(true)),
    ("openat", in_folder(true)),
    ("openat2", in_folder(true)),
    ("readlink", plain(false)),
    ("readlinkat", in_folder(false)),
    ("stat", plain(false)),
    ("statx", in_folder(false)),
];

/// The calls with their numbers.
pub(super) fn watched(numbers: Numbers) -> impl Iterator<Item = (u32, Watched)> {
    WATCHED.iter().filter_map(move |(name, call)| Some((table::number_of(name, numbers)?, *call)))
}
