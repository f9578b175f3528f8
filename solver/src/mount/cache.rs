//! Cache mounts: folders that outlive builds, shared between steps, builds and processes as their
//! `sharing` says. Their content is in no layer and no key.
//!
//! Below `mounts/<hash of the id>/` there is one numbered folder for each step that once needed one
//! of its own; number 0 is the one that `shared` and `locked` use. Who uses a folder holds its
//! lock.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use rbuild_cache::digest::Digest;
use rbuild_cache::lock::LockGuard;
use rbuild_cache::metadata;
use rbuild_cache::usage::mount_lock;
use rbuild_cache::view::View;

use crate::error::Cause;
use crate::graph::{CacheSharing, CopyAction, CopySource, FileAction, FileOp, MountSource};
use crate::mount::sources::Sources;
use crate::ops::{Work, Worker, blocking, file};
use crate::sandbox::SandboxMountSource;

impl Worker {
    /// The folder of the cache mount `source`, and the lock that keeps it.
    pub(super) async fn cache_mount(
        &self,
        work: &Work<'_>,
        source: &MountSource,
        sources: &Sources,
    ) -> Result<(SandboxMountSource, LockGuard), Cause> {
        let MountSource::Cache { id, sharing, from, path, mode, uid, gid } = source else {
            unreachable!("only cache mounts come here")
        };
        let initial = from.map(|input| sources.tree(input, path));
        let mut identity = id.clone();
        if let Some(tree) = initial {
            identity.push_str(&tree.digest().to_string());
            identity.push_str(path);
        }
        let name = Digest::of(&identity).hex();
        let (number, lock) = self.keep(&name, *sharing).await?;
        let folder = self
            .surroundings
            .state
            .folder("mounts")
            .map_err(Cause::state)?
            .join(&name)
            .join(number.to_string());
        if !folder.join("fs").exists() {
            let view = match initial {
                Some(tree) => Some(self.view(tree, &work.task).await?),
                None => None,
            };
            let (folder, path, state) =
                (folder.clone(), path.clone(), self.surroundings.state.clone());
            let (id, mode, uid, gid) = (id.clone(), *mode, *uid, *gid);
            blocking(move || {
                let fresh = Fresh { folder: &folder, id: &id, mode, uid, gid };
                fresh.make(view.as_ref().map(|view| (view, path.as_str())), &state)
            })
            .await?;
        }
        // When it was last used is what it is pruned by.
        if let Ok(opened) = fs_err::File::open(&folder) {
            // Where it cannot be noted, the mount is taken for older than it is, no more.
            let _ = metadata::touch(opened.file());
        }
        let root = folder.join("fs");
        Ok((SandboxMountSource::Bind { root, path: String::new() }, lock))
    }

    /// Waits for a folder that `sharing` allows: its number and its lock.
    async fn keep(&self, name: &str, sharing: CacheSharing) -> Result<(usize, LockGuard), Cause> {
        let locks = self.surroundings.state.locks();
        let lock_name = |number: usize| mount_lock(name, number);
        match sharing {
            CacheSharing::Private => {
                for number in 0.. {
                    if let Some(lock) =
                        locks.try_exclusive(&lock_name(number)).map_err(Cause::state)?
                    {
                        return Ok((number, lock));
                    }
                }
                unreachable!("one of all numbers is free")
            }
            CacheSharing::Shared | CacheSharing::Locked => loop {
                let taken = if sharing == CacheSharing::Shared {
                    locks.try_shared(&lock_name(0))
                } else {
                    locks.try_exclusive(&lock_name(0))
                };
                if let Some(lock) = taken.map_err(Cause::state)? {
                    return Ok((0, lock));
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            },
        }
    }
}

/// A cache folder that does not exist yet.
struct Fresh<'a> {
    folder: &'a Path,
    id: &'a str,
    mode: u32,
    uid: u32,
    gid: u32,
}

impl Fresh<'_> {
    /// Makes it aside and renames it, so that it is there whole or not at all.
    fn make(
        &self,
        initial: Option<(&View, &str)>,
        state: &rbuild_cache::state::StateFolder,
    ) -> Result<(), Cause> {
        fs_err::create_dir_all(self.folder).map_err(Cause::state)?;
        fs_err::write(self.folder.join("id"), self.id).map_err(Cause::state)?;
        let aside = state.temporary().map_err(Cause::state)?;
        let fs = aside.path().join("fs");
        fs_err::create_dir(&fs).map_err(Cause::state)?;
        if let Some((view, path)) = initial {
            let op = FileOp { actions: vec![FileAction::Copy(whole(path))] };
            let sources = [file::SourceTree::tree(view.clone())];
            file::plan(&op, None, &sources, state)?.execute(&fs)?;
        } else {
            let folder = fs_err::File::open(&fs).map_err(Cause::state)?;
            if rustix::process::geteuid().is_root() {
                metadata::set_owner_and_mode(folder.file(), self.uid, self.gid, self.mode)
                    .map_err(Cause::state)?;
            } else {
                let permissions = std::fs::Permissions::from_mode(self.mode);
                fs_err::set_permissions(&fs, permissions).map_err(Cause::state)?;
            }
        }
        match fs_err::rename(&fs, self.folder.join("fs")) {
            // Another step that shares the folder was faster.
            Err(_) if self.folder.join("fs").exists() => Ok(()),
            other => other.map_err(Cause::state),
        }
    }
}

/// Copies what is in the folder at `path`, not the folder itself, to the root.
pub(crate) fn whole(path: &str) -> CopyAction {
    let mut literal = String::with_capacity(path.len());
    for c in path.chars() {
        if matches!(c, '*' | '?' | '[' | '\\') {
            literal.push('\\');
        }
        literal.push(c);
    }
    let action = CopyAction::new(CopySource::Input(1), vec![literal], "/");
    // Of a source with wildcards the content is copied.
    CopyAction { wildcards: true, ..action }
}
