//! The epoch of a build whose `SOURCE_DATE_EPOCH` names where it comes from.
//!
//! A commit's time is its committer's. A file's time is what its server says; where it says nothing, that of the newest file in it, if
//! it is a tar. Follows `resolveSourceDateEpochFromState` in BuildKit's `dockerfile2llb/epoch.go`.

use std::io::Read;

use rbuild_cache::layer::compress::decompress;
use rbuild_cache::layer::tar_reader::{TarKind, TarReader};
use rbuild_cache::state::StateFolder;
use rbuild_cache::view::{View, ViewError};
use rbuild_solver::graph::{GitOp, HttpOp};
use rbuild_solver::http_source::{Fetched, HttpSource, HttpSourceError};
use rbuild_solver::progress::Task;

/// Says why the time of a file could not be found out.
#[derive(Debug, thiserror::Error)]
pub enum EpochError {
    /// The file could not be fetched.
    #[error(transparent)]
    Http(#[from] HttpSourceError),
    /// The state folder failed.
    #[error("cannot keep `{url}` for a look at its time")]
    State {
        /// The file's address.
        url: String,
        /// What lies behind.
        #[source]
        source: std::io::Error,
    },
    /// The file is not the one that `--checksum` names.
    #[error("`{url}` is {found}, not {expected}")]
    Checksum {
        /// The file's address.
        url: String,
        /// What it should be.
        expected: rbuild_cache::digest::Digest,
        /// What it is.
        found: rbuild_cache::digest::Digest,
    },
}

/// What is checked out to see when the commit of `op` was made: all of it and nothing besides, every
/// file with the commit's time.
pub fn commit(op: GitOp) -> GitOp {
    GitOp { subdir: None, keep_git_dir: false, submodules: false, commit_times: true, ..op }
}

/// When the commit was made that `view` shows, in seconds; nothing for one without files.
///
/// # Errors
/// When the state folder cannot be read.
pub fn of_commit(view: &View) -> Result<Option<i64>, ViewError> {
    let files = view.children(&view.root()?)?;
    Ok(files.first().map(|file| file.metadata().modified.seconds))
}

/// When the file of `op` was last changed, in seconds; nothing where neither its server nor its
/// bytes say.
pub async fn of_file(
    op: &HttpOp,
    http: &dyn HttpSource,
    state: &StateFolder,
    task: &Task,
) -> Result<Option<i64>, EpochError> {
    let failed = |source| EpochError::State { url: op.url.clone(), source };
    let folder = state.temporary().map_err(failed)?;
    let file = folder.path().join("file");
    let fetched = http.fetch(&op.url, None, &file, task).await?;
    let Fetched::Body { modified, digest, .. } = fetched else { return Ok(None) };
    if let Some(expected) = op.checksum.filter(|expected| *expected != digest) {
        return Err(EpochError::Checksum { url: op.url.clone(), expected, found: digest });
    }
    if modified.is_some() {
        return Ok(modified);
    }
    let opened = fs_err::File::open(&file).map_err(failed)?;
    let newest = tokio::task::spawn_blocking(move || newest_in_tar(opened));
    Ok(newest.await.ok().flatten())
}

/// The time of the newest regular file in a tar, compressed or not; nothing for what is no tar.
fn newest_in_tar(file: impl Read + Send + 'static) -> Option<i64> {
    let mut tar = TarReader::new(decompress(file).ok()?);
    let mut newest = None;
    while let Some(entry) = tar.next_entry().ok()? {
        if matches!(entry.kind, TarKind::File { .. }) {
            newest = newest.max(Some(entry.mtime.0));
        }
    }
    newest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_no_tar_has_no_time() {
        assert_eq!(newest_in_tar(&b"hello"[..]), None);
        assert_eq!(newest_in_tar(&b""[..]), None);
    }
}
