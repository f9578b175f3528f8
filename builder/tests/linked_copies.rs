//! Files that the store has already are linked by COPY; neither images nor steps tell.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use tempfile::TempDir;

use crate::figure::figure;
use crate::needs::{self, lacking};
use crate::rbuild::{Rbuild, context, scratch, write};

/// The inodes of the files called `name` in the snapshots of the state folder.
pub(crate) fn inodes(root: &Path, name: &str) -> Vec<u64> {
    let mut inodes = Vec::new();
    for snapshot in fs_err::read_dir(root.join("snapshots")).unwrap() {
        let file = snapshot.unwrap().path().join("fs").join(name);
        inodes.extend(fs_err::symlink_metadata(file).ok().map(|metadata| metadata.ino()));
    }
    inodes
}

/// A context that is copied as it is: of fewer files, COPY does not look for those that the store has.
fn many_files() -> TempDir {
    let context = context(&[("Dockerfile", "FROM scratch\nCOPY data /data\n")]);
    for n in 0..60 {
        write(context.path().join(format!("data/{n}")), &format!("{n}\n"));
    }
    context
}

#[test]
fn copies_from_stages_are_links_and_no_hard_links() {
    if lacking(&needs::STEPS) {
        return;
    }
    let rbuild = Rbuild::new();
    let context = context(&[(
        "Dockerfile",
        "FROM busybox AS made\nRUN head -c 2000000 /dev/urandom > /large && cp /large /other\n\
         FROM busybox AS last\n\
         COPY --from=made /large /large\n\
         COPY --from=made --chmod=600 /other /private\n\
         COPY --from=made /large /other /twice/\n\
         COPY --from=made /large /once/\n\
         COPY --from=made /large /once/again\n",
    )]);
    let out = scratch();
    rbuild.build(&context).output("type=local", out.path()).succeeds();
    let large = inodes(&rbuild.root, "large");
    assert_eq!(large.len(), 2);
    assert_eq!(large[0], large[1], "one file in the store");
    assert_eq!(inodes(&rbuild.root, "once/large"), large[..1]);
    assert_eq!(inodes(&rbuild.root, "once/again"), large[..1], "a link in each layer");
    let other = inodes(&rbuild.root, "other");
    assert!(!inodes(&rbuild.root, "private").contains(&other[0]), "another mode, another file");
    let archive = scratch();
    let tar = archive.path().join("a.tar");
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

/// What another Dockerfile copied elsewhere is linked, and what differs in anything is not.
#[test]
fn files_that_the_store_holds_are_linked_wherever_they_are_copied() {
    if lacking(&needs::STEPS) {
        return;
    }
    let rbuild = Rbuild::new();
    let context = many_files();
    rbuild.build(&context).succeeds();
    let first = inodes(&rbuild.root, "data/7");
    write(
        context.path().join("Dockerfile"),
        "FROM busybox\nCOPY data /elsewhere/\nFROM scratch\nCOPY --from=0 / /\n\
         COPY --chmod=600 data /private\nCOPY --chown=5 data /given\n",
    );
    write(context.path().join("data/8"), "changed\n");
    rbuild.build(&context).succeeds();
    assert_eq!(inodes(&rbuild.root, "elsewhere/7"), [first[0], first[0]]);
    assert_ne!(inodes(&rbuild.root, "elsewhere/8"), inodes(&rbuild.root, "data/8"));
    assert_ne!(inodes(&rbuild.root, "private/7"), first);
    assert_ne!(inodes(&rbuild.root, "given/7"), first);
    rbuild.command().args(["cache", "verify"]).succeeds();
}

/// A file that has as many names as its file system allows (65,000 on ext4, 65,535 on btrfs in
/// one folder) gets no more: it is copied.
#[test]
fn a_file_with_all_the_names_it_can_have_is_copied() {
    const FEW: u32 = 200_000;
    if lacking(&needs::STEPS) {
        return;
    }
    let rbuild = Rbuild::new();
    let context = many_files();
    rbuild.build(&context).succeeds();
    let (inode, names) = (inodes(&rbuild.root, "data/7")[0], rbuild.root.join("names"));
    fs_err::create_dir(&names).unwrap();
    let snapshots = fs_err::read_dir(rbuild.root.join("snapshots")).unwrap();
    let mut files = snapshots.map(|snapshot| snapshot.unwrap().path().join("fs/data/7"));
    let file = files.find(|file| file.is_file()).unwrap();
    let full = (0..FEW).find_map(|n| std::fs::hard_link(&file, names.join(n.to_string())).err());
    let Some(full) = full else {
        figure(&format!("this file system lets a file have more than {FEW} names"));
        return;
    };
    assert_eq!(full.raw_os_error(), Some(rustix::io::Errno::MLINK.raw_os_error()), "{full}");
    write(context.path().join("Dockerfile"), "FROM scratch\nCOPY data /elsewhere\n");
    let out = scratch();
    rbuild.build(&context).output("type=local", out.path()).succeeds();
    assert_eq!(fs_err::read_to_string(out.path().join("elsewhere/7")).unwrap(), "7\n");
    assert_ne!(inodes(&rbuild.root, "elsewhere/7"), [inode]);
    assert_eq!(inodes(&rbuild.root, "elsewhere/8"), inodes(&rbuild.root, "data/8"));
}

/// Programs look at how many names a file has: gzip, for one, refuses to compress one with two. Whatever
/// the store holds, a step sees what it would see in an empty one.
#[test]
fn steps_see_no_links_of_the_store() {
    if lacking(&needs::STEPS) {
        return;
    }
    let rbuild = Rbuild::new();
    let context = many_files();
    let build = |dockerfile: &str| {
        write(context.path().join("Dockerfile"), dockerfile);
        rbuild.build(&context)
    };
    let one_name = "RUN test \"$(find /data /made ! -type d ! -links 1)\" = ''\n";
    let made = "FROM busybox AS made\n\
                RUN mkdir /made && head -c 2000000 /dev/urandom > /made/large\n";
    // No step sees the copies: they share their files from the second time on.
    let copied =
        format!("{made}FROM busybox AS copied\nCOPY data /data\nCOPY --from=made /made /made\n");
    build(&copied).succeeds();
    write(context.path().join("data/3"), "changed\n");
    build(&copied).succeeds();
    assert!(inodes(&rbuild.root, "data/7").windows(2).all(|two| two[0] == two[1]));
    // Now a step does: of the copies, and of what they were linked from.
    let seen = format!("{copied}{one_name}RUN echo more >> /data/7 && echo more >> /made/large\n");
    build(&seen).succeeds();
    build(&format!("{made}COPY data /data\n{one_name}")).succeeds();
    build(&format!(
        "{copied}FROM busybox\nRUN --mount=from=copied,source=/data,target=/data \
         --mount=from=made,source=/made,target=/made {}",
        one_name.trim_start_matches("RUN ")
    ))
    .succeeds();
    // What a step wrote changed nothing elsewhere.
    rbuild.command().args(["cache", "verify"]).succeeds();
    let out = scratch();
    build(&copied).output("type=local", out.path()).succeeds();
    assert_eq!(fs_err::read_to_string(out.path().join("data/7")).unwrap(), "7\n");
}
