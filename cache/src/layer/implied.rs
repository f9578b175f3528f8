//! Folders that a layer's tar has entries in but does not list.
//!
//! What such a folder's owner and mode are, the layers below say; in the layer's own folder it
//! hides them. Layers are unpacked side by side, without those below, so this is mended when a
//! layer's place is known: in a second snapshot of it, of which there is one for each place. Tools
//! that pack layers by themselves leave folders out; BuildKit and Docker list them.

use std::path::{Path, PathBuf};

use super::LayerError;
use super::flatten::copy_layer;
use crate::digest::{DiffId, Hasher};
use crate::metadata::{self, Metadata};
use crate::snapshot::SnapshotId;
use crate::state::StateFolder;
use crate::view::View;

/// Whether [`settle`] leaves the layers `ids` of one tree as they are. Of snapshots that this process
/// looked up before, this asks nobody.
pub fn are_settled(state: &StateFolder, ids: &[SnapshotId]) -> Result<bool, LayerError> {
    // The lowest one hides nothing.
    for id in ids.iter().skip(1) {
        if !state.snapshots().implied(id)?.is_empty() {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The snapshots to use for the layers `ids` of one tree, lowest first and all of them there: the
/// same, but for layers whose folders hide what the layers below say of them.
pub fn settle(state: &StateFolder, ids: &[SnapshotId]) -> Result<Vec<SnapshotId>, LayerError> {
    let mut settled: Vec<SnapshotId> = Vec::with_capacity(ids.len());
    for id in ids {
        let implied = state.snapshots().implied(id)?;
        if implied.is_empty() || settled.is_empty() {
            settled.push(id.clone());
            continue;
        }
        let settled_id = id_on(id, &settled);
        if state.snapshots().get(&settled_id)?.is_none() {
            let lower = View::layers(state.snapshots().lower(&settled)?);
            let draft = state.snapshots().draft()?;
            copy_layer(&state.snapshots().folder(id), &draft.folder())?;
            mend(&draft.folder(), &implied, &lower)?;
            state.snapshots().commit(&settled_id, draft)?;
        }
        settled.push(settled_id);
    }
    Ok(settled)
}

fn id_on(id: &SnapshotId, lower: &[SnapshotId]) -> SnapshotId {
    let mut hasher = Hasher::new();
    hasher.field("rbuild settled layer 1");
    hasher.field(id.as_str());
    for id in lower {
        hasher.field(id.as_str());
    }
    SnapshotId::of_layer(&DiffId(hasher.digest()))
}

/// Gives the folders at `paths` what `lower` says of them.
fn mend(folder: &Path, paths: &[PathBuf], lower: &View) -> Result<(), LayerError> {
    let folder = fs_err::File::open(folder)?;
    // The innermost first: their modes may be such that nothing can be reached through them.
    for path in paths.iter().rev() {
        let Some(below) = lower.lookup(path)?.filter(|below| below.metadata().is_directory())
        else {
            continue;
        };
        let Metadata { uid, gid, mode, modified, .. } = *below.metadata();
        let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::DIRECTORY;
        let here = crate::view::open_beneath(std::os::fd::AsFd::as_fd(&folder), path, flags)?;
        metadata::set_xattrs_at(&here, "".as_ref(), &lower.xattrs(&below)?)?;
        metadata::set_owner_and_mode(&here, uid, gid, mode)?;
        metadata::set_modified(&here, modified)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    use super::*;

    fn layer(state: &StateFolder, fill: impl FnOnce(&Path), implied: &[&str]) -> SnapshotId {
        let draft = state.snapshots().draft().unwrap();
        fill(&draft.folder());
        draft.set_implied(implied.iter().map(PathBuf::from).collect());
        state.snapshots().commit(&SnapshotId::random(), draft).unwrap().id
    }

    #[test]
    fn a_folder_that_is_not_listed_is_as_the_layers_below_say() {
        let top = tempfile::tempdir().unwrap();
        let state = StateFolder::open(top.path()).unwrap();
        let lower = layer(
            &state,
            |folder| {
                fs_err::create_dir(folder.join("tmp")).unwrap();
                let mode = std::fs::Permissions::from_mode(0o1777);
                fs_err::set_permissions(folder.join("tmp"), mode).unwrap();
            },
            &[],
        );
        let upper = layer(
            &state,
            |folder| {
                fs_err::create_dir_all(folder.join("tmp/new")).unwrap();
                fs_err::write(folder.join("tmp/new/file"), "text").unwrap();
            },
            &["tmp", "tmp/new"],
        );
        drop(state);
        let state = StateFolder::open(top.path()).unwrap();
        let mode = |id: &SnapshotId, path: &str| {
            let path = state.snapshots().folder(id).join(path);
            fs_err::symlink_metadata(path).unwrap().mode() & 0o7777
        };
        assert_eq!(
            settle(&state, std::slice::from_ref(&upper)).unwrap(),
            std::slice::from_ref(&upper)
        );
        let settled = settle(&state, &[lower.clone(), upper.clone()]).unwrap();
        assert_eq!(settled[0], lower);
        assert_eq!(mode(&settled[1], "tmp"), 0o1777);
        assert_eq!(mode(&settled[1], "tmp/new"), mode(&upper, "tmp/new"));
        assert_eq!(mode(&upper, "tmp"), 0o755);
        let file = state.snapshots().folder(&settled[1]).join("tmp/new/file");
        assert_eq!(fs_err::read(file).unwrap(), b"text");
        assert_eq!(settle(&state, &[lower, upper]).unwrap(), settled, "it is made once");
        assert_eq!(state.snapshots().list().unwrap().len(), 3);
    }
}
