//! P34: a damaged file of the cache is noticed: what it belongs to is made again, or refused; never
//! used.

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::archive::digest_of_tree;
use crate::figure::figure;
use crate::needs::{self, lacking};
use crate::rbuild::{Rbuild, scratch};
use crate::soak::{Chance, Work, rounds};

/// How a file is damaged.
#[derive(Clone, Copy, Debug)]
enum Damage {
    Flip,
    Truncate,
    Zero,
}

/// All files below `folder` with something in them.
fn files(folder: &Path, found: &mut Vec<PathBuf>) {
    let mut entries: Vec<_> = fs_err::read_dir(folder).unwrap().map(Result::unwrap).collect();
    entries.sort_by_key(fs_err::DirEntry::path);
    for entry in entries {
        let metadata = entry.metadata().unwrap();
        if metadata.is_dir() {
            files(&entry.path(), found);
        } else if metadata.is_file() && metadata.len() > 0 {
            found.push(entry.path());
        }
    }
}

fn damage(path: &Path, how: Damage, chance: &mut Chance) {
    let file = fs_err::OpenOptions::new().read(true).write(true).open(path).unwrap();
    let length = file.metadata().unwrap().len();
    let file = file.into_parts().0;
    match how {
        Damage::Flip => {
            let at = chance.below(length);
            let mut byte = [0];
            file.read_exact_at(&mut byte, at).unwrap();
            byte[0] ^= 1 << chance.below(8);
            file.write_all_at(&byte, at).unwrap();
        }
        Damage::Truncate => file.set_len(chance.below(length)).unwrap(),
        Damage::Zero => {
            let zeros = vec![0; usize::try_from(length).unwrap()];
            file.write_all_at(&zeros, 0).unwrap();
        }
    }
}

#[test]
fn damaged_files_are_never_used() {
    if lacking(&needs::STEPS) {
        return;
    }
    let (work, mut chance) = (Work::new(), Chance::new());
    let rbuild = Rbuild::new();
    let expected = work.files(&rbuild, 0);
    work.build(&rbuild, 0).args(["-t", "sample:v1"]).succeeds();
    let (mut silent, mut refused, mut done) = (0, 0, 0);
    let most = rounds(12);
    for round in 0..most {
        let mut all = Vec::new();
        for folder in ["blobs", "snapshots", "context"] {
            files(&rbuild.root.join(folder), &mut all);
        }
        all.extend(["index.db", "index.db-wal", "index.json"].map(|name| rbuild.root.join(name)));
        all.retain(|path| path.exists() && path.metadata().unwrap().len() > 0);
        // Few rounds take what is spread over all files; many take each.
        let path = &all[round * all.len() / most.max(all.len()).min(most).max(1) % all.len()];
        let how = [Damage::Flip, Damage::Truncate, Damage::Zero][round % 3];
        damage(path, how, &mut chance);
        done += 1;
        let out = scratch();
        // The last step runs anew, over all that the others made.
        let outcome = work.build(&rbuild, 1 + round as u64).output("type=local", out.path()).run();
        if !outcome.status.success() {
            refused += 1;
        } else if digest_of_tree(out.path()) != expected {
            silent += 1;
            figure(&format!("{how:?} of {} was not noticed", path.display()));
        }
        // Whatever it was: this mends it.
        rbuild.command().args(["cache", "verify", "--repair"]).run();
        if !work.build(&rbuild, 0).args(["-t", "sample:v1"]).run().status.success() {
            // Of the image's names there is no second copy.
            fs_err::remove_file(rbuild.root.join("index.json")).unwrap();
            work.build(&rbuild, 0).args(["-t", "sample:v1"]).succeeds();
        }
    }
    figure(&format!("P34 silent {silent} of {done} ({refused} refused)"));
    assert_eq!(silent, 0);
}
