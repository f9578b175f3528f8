//! File ops: what COPY, ADD, WORKDIR and heredocs write.

use std::path::Path;

use rbuild_cache::digest::Digest;
use rbuild_cache::state::StateFolder;
use rbuild_cache::view::View;

use crate::graph::FileOp;
use crate::tree::Folder;

/// Who a command runs as.
pub mod owner {
    use rbuild_cache::view::View;

    use super::FileError;
    use crate::sandbox::Credentials;

    /// A user of an image.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub struct Account {
        /// User, group and supplementary groups.
        pub credentials: Credentials,
        /// The home folder.
        pub home: String,
    }

    /// The account called `user[:group]` in the tree `view`.
    pub fn account(_view: &View, user: &str) -> Result<Account, FileError> {
        match user {
            "0" | "root" => {
                Ok(Account { credentials: Credentials::default(), home: "/root".into() })
            }
            _ => Err(FileError::NotYet("users other than root")),
        }
    }
}

/// Why files could not be written.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// Not there yet.
    #[error("{0} are not there yet")]
    NotYet(&'static str),
}

/// What a file op reads.
#[derive(Clone, Debug)]
pub struct SourceTree(View);

impl SourceTree {
    /// A tree of the state folder.
    pub fn tree(view: View) -> Self {
        Self(view)
    }

    /// A folder of the caller.
    pub fn context(_folder: &Folder) -> Result<Self, FileError> {
        Err(FileError::NotYet("contexts"))
    }
}

/// What a file op is going to write.
#[derive(Debug)]
pub struct Plan;

impl Plan {
    /// The checksum of all it reads, without times.
    pub fn checksum(&self) -> Result<Digest, FileError> {
        Err(FileError::NotYet("file ops"))
    }

    /// Writes it into the layer folder `folder`.
    pub fn execute(self, _folder: &Path) -> Result<(), FileError> {
        Err(FileError::NotYet("file ops"))
    }
}

/// Looks at what `op` reads.
pub fn plan(
    _op: &FileOp,
    _base: &View,
    _sources: &[SourceTree],
    _state: &StateFolder,
) -> Result<Plan, FileError> {
    Err(FileError::NotYet("file ops"))
}

/// Plans to import all that is at `path` of `source` as a tree of its own.
pub fn import(_source: &SourceTree, _path: &str, _state: &StateFolder) -> Result<Plan, FileError> {
    Err(FileError::NotYet("imports"))
}

/// The checksum of all that is at `path` of `source`, without times.
pub fn checksum(
    _source: &SourceTree,
    _path: &str,
    _state: &StateFolder,
) -> Result<Digest, FileError> {
    Err(FileError::NotYet("checksums"))
}
