//! Bytes and trees, named by digest: everything rbuild keeps on disk.
//!
//! One folder holds it all, and any number of processes use it at once:
//!
//! ```text
//! oci-layout             written last when the folder is made: without it, making is finished first
//! index.json             the images by name (`layout`), an OCI index
//! blobs/sha256/<hex>     blobs (`store`); each is what its name says, checked whenever it is read
//! snapshots/<id>/        one layer's tree each (`snapshot`), never changed once it is there
//!   fs/                  the tree in overlayfs form: whiteouts are devices 0:0, opaque folders
//!                        carry an attribute (`layer::whiteout`)
//!   meta                 digest of the tree, its size, what its files look like, and in which boot it
//!                        was written; its own time is that of the last use
//!   reads                which paths the step read, for who asks why it ran again: of COPY, and of RUN
//!                        where a context is mounted
//!   files                which of its files later COPYs can link (`snapshot::Note`); only COPY has it
//!   linked               empty: files of the tree have names in other snapshots (`snapshot`, `sharing.rs`)
//! index.db               what steps came to, under which keys (`index`); may be deleted
//! overlay                under which circumstances overlayfs could be mounted here (the sandbox's)
//! context/<name>         what the files of a context hashed to (`checksum::file_memo`)
//! mounts/<name>/         cache mounts of steps
//! stubs/                 empty files and folders that steps mount over (the solver's)
//! locks/<name>           files that processes lock, empty (`lock`)
//! tmp/<session>/         one folder for each running process (`session`), locked by it:
//!   held                 the blobs and snapshots it uses, which nobody may remove meanwhile
//!   <n>/                 what it is writing
//! ```
//!
//! **Commits.** Everything is written below `tmp/` and renamed to its place, so whoever is killed
//! leaves a whole entry or none; what lies in `tmp/` under a lock that nobody holds any more is
//! removed by the next process.
//!
//! **Power loss.** A rename can outlive the bytes it names. Blobs are therefore checked against
//! their digest at each use, and a snapshot that was written in an earlier boot of the machine is
//! compared with its digest once, before its first use in this boot; what does not agree is
//! dropped and made anew. So is one whose files do not look any more as they did (path, inode, length,
//! time of writing), which every process asks before it reads them. So no step waits for the disk: a chain of sixty small steps would
//! otherwise spend most of its time in `fsync`. Only what the user was promised is waited for:
//! before `index.json` names an image, the blobs that were written are synced, then the new
//! `index.json`, then the rename. `index.db` is SQLite's business (`synchronous=NORMAL`: after a
//! power loss it is consistent and may lack the last records).
//!
//! **Removing.** Records first, then snapshots, then blobs: nothing that remains points at what is
//! gone, and a record whose snapshot is missing counts as absent (`prune`). `usage` tells what there
//! is, `verify` compares all of it with its digests. What is damaged goes whoever holds it, if it is
//! still what was looked at (`sighting`); its record stays, and tells why it is made again.

pub mod checksum;
pub mod digest;
pub mod index;
pub mod layer;
pub mod layout;
pub mod limits;
pub mod lock;
pub mod metadata;
pub mod oci;
pub mod ownership;
mod page_cache;
pub mod pattern;
pub mod prune;
pub mod remove;
pub mod session;
pub mod sighting;
pub mod snapshot;
pub mod state;
pub mod store;
pub mod usage;
pub mod verify;
pub mod view;
