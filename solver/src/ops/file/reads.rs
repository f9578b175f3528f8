//! Which paths a file op reads, for telling later which of them changed.

use std::path::Path;

use rayon::prelude::*;
use rbuild_cache::checksum;
use rbuild_cache::digest::{Digest, Hasher};

use super::select::{self, Content};
use super::{CopyStep, Origin, Plan, Step};
use crate::evidence::Reads;

/// Below so many paths, waking a second thread costs more than it does.
const WORTH_SHARING: usize = 512;

impl Plan {
    /// What is read, path by path.
    pub fn reads(&self) -> Reads {
        let mut paths = Vec::new();
        for (_, step) in &self.steps {
            match step {
                Step::Copy(copy @ CopyStep { from: Origin::Selection(selection), .. }) => {
                    let read =
                        |item| if copy.is_left_out(selection, item) { None } else { read(item) };
                    let items = selection.numbered();
                    if items.len() < WORTH_SHARING {
                        paths.extend(items.into_iter().filter_map(read));
                    } else {
                        paths.par_extend(items.into_par_iter().filter_map(read));
                    }
                }
                Step::Unpack(archive) => {
                    let path = archive.entry.path().as_os_str().as_encoded_bytes().to_vec();
                    paths.push((path, short(archive.digest)));
                }
                Step::Copy(_) | Step::Mkdir { .. } | Step::WriteFile { .. } => {}
            }
        }
        Reads::new(paths)
    }
}

/// A path that is read, and the beginning of the digest of what it is; none for a folder that is only
/// on the way to one.
fn read(item: &select::Item) -> Option<(Vec<u8>, [u8; 8])> {
    let (content, target) = match &item.content {
        Content::File(digest) => (Some(*digest), None),
        Content::Symlink(target) => (None, Some(target.as_path())),
        Content::Directory | Content::Special => (None, None),
        Content::Parent => return None,
    };
    let mut hasher = Hasher::new();
    checksum::add_entry(&mut hasher, Path::new(""), item.metadata(), content, target);
    Some((item.entry.path().as_os_str().as_encoded_bytes().to_vec(), short(hasher.digest())))
}

fn short(digest: Digest) -> [u8; 8] {
    *digest.as_bytes().first_chunk().expect("digests have 32 bytes")
}
