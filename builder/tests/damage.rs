//! P34: a damaged file of the cache is noticed: what it belongs to is made again, or refused; never
//! used. Each file of a small store in turn, in a store of its own each time.

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::archive::{OciArchive, digest_of_tree};
use crate::figure::figure;
use crate::needs::{self, lacking};
use crate::rbuild::{Rbuild, context, scratch};
use crate::soak::{Chance, Work, each_or_few};

/// How a file is damaged.
#[derive(Clone, Copy, Debug)]
enum Damage {
    Flip,
    Truncate,
    Zero,
}

const DAMAGES: [Damage; 3] = [Damage::Flip, Damage::Truncate, Damage::Zero];

/// A store in which everything is known, with an image that has a name.
fn store(work: &Work) -> Rbuild {
    let rbuild = Rbuild::new();
    work.build(&rbuild, 0).args(["-t", "sample:v1"]).succeeds();
    rbuild
}

/// The files of a store with something in them, but for what users' steps keep in cache mounts:
/// sorted by what they are, whatever snapshots are called.
fn files(rbuild: &Rbuild) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for folder in ["blobs", "snapshots", "context"] {
        add_files(&rbuild.root.join(folder), &mut found);
    }
    found.extend(
        ["index.db", "index.db-wal", "index.json", "oci-layout"].map(|name| rbuild.root.join(name)),
    );
    found.retain(|path| path.metadata().is_ok_and(|metadata| metadata.len() > 0));
    found.sort_by_key(|path| kind(&rbuild.root, path));
    found
}

fn add_files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs_err::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        let metadata = entry.metadata().unwrap();
        if metadata.is_dir() {
            add_files(&entry.path(), found);
        } else if metadata.is_file() {
            found.push(entry.path());
        }
    }
}

/// What a file is, in every store: with a tree's digest in place of its snapshot's name.
fn kind(root: &Path, path: &Path) -> String {
    let relative = path.strip_prefix(root).unwrap().display().to_string();
    let Some((id, inside)) =
        relative.strip_prefix("snapshots/").and_then(|inside| inside.split_once('/'))
    else {
        return relative;
    };
    let meta = fs_err::read_to_string(root.join("snapshots").join(id).join("meta")).unwrap();
    let meta: serde_json::Value = serde_json::from_str(meta.split_once('\n').unwrap().1).unwrap();
    format!("snapshots/{}/{inside}", meta["content"].as_str().unwrap())
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

/// What came of a damaged file.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    /// Everything that was asked for came out right.
    Mended,
    /// Something was refused.
    Refused,
    /// Something came out wrong, or nothing helps any more.
    Wrong(String),
}

/// Damages the file at `position` of a new store, and uses all of it.
fn check(work: &Work, expected: &str, position: usize, how: Damage) -> Outcome {
    let rbuild = store(work);
    let all = files(&rbuild);
    let Some(path) = all.get(position) else { return Outcome::Mended };
    let what = kind(&rbuild.root, path);
    let mut chance = Chance::new();
    (0..position).for_each(|_| _ = chance.below(2));
    damage(path, how, &mut chance);
    let mut outcome = Outcome::Mended;
    // The last step runs anew, over all that the others made.
    let out = scratch();
    let built = work.build(&rbuild, 1).output("type=local", out.path()).run();
    if !built.status.success() {
        outcome = Outcome::Refused;
    } else if digest_of_tree(out.path()) != expected {
        return Outcome::Wrong(format!("{how:?} of {what} was built with"));
    }
    let archive = out.path().with_extension("tar");
    let saved = rbuild.command().args(["save", "-o"]).arg(&archive).arg("sample:v1").run();
    if saved.status.success() {
        // Compares every blob with its digest.
        OciArchive::open(&archive);
        fs_err::remove_file(archive).unwrap();
    } else {
        outcome = Outcome::Refused;
    }
    // Whatever it was: this mends it.
    rbuild.command().args(["cache", "verify", "--repair"]).run();
    if !work.build(&rbuild, 0).args(["-t", "sample:v1"]).run().status.success() {
        // Of the image's names, and of what kind of folder this is, there is no second copy.
        for name in ["index.json", "oci-layout"] {
            let _ = fs_err::remove_file(rbuild.root.join(name));
        }
        let again = work.build(&rbuild, 0).args(["-t", "sample:v1"]).run();
        if !again.status.success() {
            return Outcome::Wrong(format!("{how:?} of {what} stays: {again}"));
        }
    }
    let verified = rbuild.command().args(["cache", "verify"]).run();
    if !verified.status.success() || work.files(&rbuild, 0) != expected {
        return Outcome::Wrong(format!("{how:?} of {what} is not mended: {verified}"));
    }
    outcome
}

#[test]
fn a_damaged_layer_is_not_exported_and_then_made_anew() {
    let (rbuild, out) = (Rbuild::new(), scratch());
    let context = context(&[("Dockerfile", "FROM scratch\nCOPY file /\n"), ("file", "text\n")]);
    let build = || rbuild.command().args(["build", "-t", "sample:v1"]).arg(context.path());
    build().succeeds();
    let layer = fs_err::read_dir(rbuild.root.join("blobs/sha256")).unwrap();
    let layer = layer.map(|entry| entry.unwrap().path());
    let layer = layer.filter(|path| fs_err::read(path).unwrap().starts_with(&[0x1f, 0x8b]));
    damage(&layer.last().unwrap(), Damage::Flip, &mut Chance::new());
    let tar = out.path().join("image.tar");
    let failed = build().output("type=oci", &tar).exits(3);
    failed.assert_stderr_has(&["is damaged", "`rbuild cache verify --repair` mends the store"]);
    assert!(!tar.exists());
    build().output("type=oci", &tar).succeeds();
    OciArchive::open(&tar);
}

#[test]
fn each_damaged_file_is_noticed() {
    if lacking(&needs::STEPS) {
        return;
    }
    let work = Work::small();
    let expected = work.files(&Rbuild::new(), 0);
    let count = files(&store(&work)).len();
    // Many rounds damage each file in all ways; few what is spread over all files.
    let all = each_or_few(count * DAMAGES.len(), 16);
    let (next, silent, refused) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while let Some(number) = all.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let (position, turn) = ((number - 1) % count, (number - 1) / count);
                    let how = DAMAGES[turn % DAMAGES.len()];
                    match check(&work, &expected, position, how) {
                        Outcome::Mended => {}
                        Outcome::Refused => _ = refused.fetch_add(1, Ordering::Relaxed),
                        Outcome::Wrong(why) => {
                            figure(&why);
                            silent.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                }
            });
        }
    });
    let (silent, refused) = (silent.into_inner(), refused.into_inner());
    figure(&format!(
        "P34 silent {silent} of {} damages of {count} files ({refused} refused)",
        all.len()
    ));
    assert_eq!(silent, 0);
}
