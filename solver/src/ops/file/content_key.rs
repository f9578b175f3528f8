//! What the content key of a file op is made of: all that it reads, as it is going to be written.

use rayon::prelude::*;
use rbuild_cache::checksum;
use rbuild_cache::digest::{Digest, Hasher};

use super::mode::Chmod;
use super::select::{Content, Item, Selection};
use super::{CopyStep, FileError, Origin, Plan, Step, copy};

/// So many of the paths that are copied make a piece that is hashed by itself.
const HASHED_TOGETHER: usize = 1024;

impl Plan {
    /// The checksum of all that will be written but where the layers below lead it: paths, types,
    /// modes, owners, bytes; not times.
    pub fn checksum(&self) -> Result<Digest, FileError> {
        let mut hasher = Hasher::new();
        hasher.field("rbuild file op 3");
        for (_, step) in &self.steps {
            match step {
                Step::Mkdir { path, mode, parents, owner, time: _ } => {
                    hasher.field("mkdir");
                    hasher.field(path);
                    add_numbers(&mut hasher, &[*mode, u32::from(*parents), owner.0, owner.1]);
                }
                Step::WriteFile { path, mode, owner, data } => {
                    hasher.field("write");
                    hasher.field(path);
                    add_numbers(&mut hasher, &[*mode, owner.0, owner.1]);
                    hasher.field(data);
                }
                Step::Copy(copy) => copy.add(&mut hasher),
                Step::Unpack(archive) => {
                    hasher.field("unpack");
                    hasher.field(&archive.destination);
                    let (uid, gid) = archive.owner.unwrap_or_default();
                    add_numbers(&mut hasher, &[u32::from(archive.owner.is_some()), uid, gid]);
                    hasher.field(archive.digest.as_bytes());
                }
            }
        }
        Ok(hasher.digest())
    }
}

impl CopyStep {
    fn add(&self, hasher: &mut Hasher) {
        hasher.field("copy");
        hasher.field(&self.destination);
        let flags = [u32::from(self.replace_symlinks), u32::from(self.contents)];
        add_numbers(hasher, &flags);
        add_numbers(hasher, &[Chmod::of_parents(self.mode.as_ref())]);
        let (uid, gid) = self.owner.unwrap_or_default();
        add_numbers(hasher, &[uid, gid]);
        match &self.from {
            Origin::Inline { name, data } => {
                hasher.field("inline");
                hasher.field(name);
                hasher.field(data);
            }
            Origin::Selection(selection) => {
                hasher.field(if selection.root().metadata().is_directory() {
                    b""
                } else {
                    selection.name.as_encoded_bytes()
                });
                let items = selection.numbered();
                hasher.field(items.len().to_le_bytes());
                // Pieces of a fixed size, so that it does not matter how many threads there are.
                let piece = |items: &[&Item]| {
                    let mut hasher = Hasher::new();
                    for item in items {
                        self.add_item(&mut hasher, item, self.is_left_out(selection, item));
                    }
                    hasher.digest()
                };
                let pieces: Vec<Digest> = if items.len() <= HASHED_TOGETHER {
                    items.chunks(HASHED_TOGETHER).map(piece).collect()
                } else {
                    items.par_chunks(HASHED_TOGETHER).map(piece).collect()
                };
                for piece in pieces {
                    hasher.update(piece.as_bytes());
                }
            }
        }
    }

    /// Whether `item` is a folder of which nothing but what is in it is copied: the root of a context
    /// above all, whose mode differs between machines that share results.
    pub(super) fn is_left_out(&self, selection: &Selection, item: &Item) -> bool {
        let to_root = selection.name.is_empty() && self.destination == "/";
        (self.contents || to_root)
            && item.path().as_os_str().is_empty()
            && matches!(item.content, Content::Directory)
    }

    fn add_item(&self, hasher: &mut Hasher, item: &Item, is_left_out: bool) {
        if is_left_out {
            hasher.field("content");
            return;
        }
        let metadata = copy::effective(self, item.metadata());
        let (content, target) = match &item.content {
            Content::File(digest) => (Some(*digest), None),
            Content::Symlink(target) => (None, Some(target.as_path())),
            Content::Directory | Content::Parent | Content::Special => (None, None),
        };
        hasher.field([u8::from(matches!(item.content, Content::Parent))]);
        checksum::add_entry(hasher, item.path(), &metadata, content, target);
        hasher.field(item.xattrs.len().to_le_bytes());
        for (name, value) in &item.xattrs {
            hasher.field(name.to_bytes());
            hasher.field(value);
        }
        hasher.field(item.same_as.map_or([0; 8], |first| (first + 1).to_le_bytes()));
    }
}

fn add_numbers(hasher: &mut Hasher, numbers: &[u32]) {
    for number in numbers {
        hasher.field(number.to_le_bytes());
    }
}
