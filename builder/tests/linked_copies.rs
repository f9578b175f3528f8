//! Files that the store has already are linked by COPY, and are no hard links in an image.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::needs::{self, lacking};
use crate::rbuild::{Rbuild, context, scratch};

/// The inodes of the files called `name` in the snapshots of the state folder.
fn inodes(root: &Path, name: &str) -> Vec<u64> {
    let mut inodes = Vec::new();
    for snapshot in fs_err::read_dir(root.join("snapshots")).unwrap() {
        let file = snapshot.unwrap().path().join("fs").join(name);
        inodes.extend(fs_err::symlink_metadata(file).ok().map(|metadata| metadata.ino()));
    }
    inodes
}

#[test]
fn copies_from_stages_are_links_and_no_hard_links() {
    if lacking(&needs::STEPS) {
        return;
    }
    let rbuild = Rbuild::new();
    let context = context(&[(
        "Dockerfile",
        "FROM busybox AS made\nRUN head -c 100000 /dev/urandom > /large && cp /large /other\n\
         FROM busybox\n\
         COPY --from=made /large /large\n\
         COPY --from=made --chmod=600 /other /private\n\
         COPY --from=made /large /other /twice/\n\
         RUN stat -c '%h %n' /large /private /twice/* > /links; \
             test $(stat -c %i /large) != $(stat -c %i /twice/large)\n\
         FROM made\n\
         COPY --from=made /large /same-tree\n\
         COPY --from=1 /links /links\n\
         RUN test $(stat -c %i /large) != $(stat -c %i /same-tree)\n",
    )]);
    let out = scratch();
    rbuild.build(&context).output("type=local", out.path()).succeeds();
    let large = inodes(&rbuild.root, "large");
    assert_eq!(large.len(), 2);
    assert_eq!(large[0], large[1], "one file in the store");
    let other = inodes(&rbuild.root, "other");
    assert!(!inodes(&rbuild.root, "private").contains(&other[0]), "another mode, another file");
    let same_tree = inodes(&rbuild.root, "same-tree");
    assert!(!large.contains(&same_tree[0]), "no hard link in one tree");
    let archive = scratch();
    let tar = archive.path().join("a.tar");
    rbuild.build(&context).args(["--target", "1"]).exits(1);
    rbuild.build(&context).output("type=tar", &tar).succeeds();
    let links = tar::Archive::new(fs_err::File::open(tar).unwrap())
        .entries()
        .unwrap()
        .filter(|entry| {
            let header = entry.as_ref().unwrap().header().clone();
            let path = entry.as_ref().unwrap().path().unwrap().into_owned();
            header.entry_type().is_hard_link() && !path.starts_with("bin")
        })
        .count();
    assert_eq!(links, 0);
    rbuild.command().args(["cache", "verify"]).succeeds();
}
