//! P36: power is lost at any moment. A build is killed at a system call, and what it had not brought
//! to the disk by then is lost or torn; the machine comes up anew. The next build is right, and a
//! check of the cache finds nothing.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::path::{Path, PathBuf};

use crate::figure::figure;
use crate::needs::{self, Need, lacking};
use crate::rbuild::{Rbuild, Run, scratch};
use crate::soak::{Chance, Work, each_or_few};

/// The calls before which power is lost, in turn.
const MOMENTS: &str = "rename,renameat,renameat2,linkat,fsync,fdatasync,mkdir,mkdirat,unlink,\
                       unlinkat,pwrite64,ftruncate";

/// Shows another boot of the machine, and executes the rest.
const REBOOTED: &str =
    "mount --bind \"$1\" /proc/sys/kernel/random/boot_id && shift && exec \"$@\"";

fn under_strace(run: Run, log: &Path, options: &[&str]) -> Run {
    let log = log.to_str().unwrap();
    let calls = format!("trace={MOMENTS}");
    let common = ["strace", "-f", "-qq", "-y", "-s", "4096", "-o", log, "-e", &calls];
    run.under(&[&common[..], options].concat())
}

/// What a build has brought to the disk.
#[derive(Default)]
struct Disk {
    /// Files whose bytes are there.
    bytes: HashSet<PathBuf>,
    /// Names that are there.
    names: HashSet<PathBuf>,
}

impl Disk {
    /// As a log of strace has it.
    fn of_log(text: &str) -> Self {
        let mut disk = Self::default();
        // A call that another thread interrupts is in two lines: what counts is its end.
        let mut begun: HashMap<&str, &str> = HashMap::new();
        for line in text.lines() {
            let Some((pid, call)) = line.split_once(' ') else { continue };
            let call = call.trim_start();
            if let Some(begin) = call.strip_suffix(" <unfinished ...>") {
                begun.insert(pid, begin);
                continue;
            }
            let whole = match call.split_once(" resumed>") {
                Some((_, end)) => format!("{}{end}", begun.remove(pid).unwrap_or_default()),
                None => call.to_owned(),
            };
            if whole.ends_with("= 0") {
                disk.take_in(&whole);
            }
        }
        disk
    }

    fn take_in(&mut self, call: &str) {
        if call.starts_with("fsync") || call.starts_with("fdatasync") {
            let Some(path) = call.split_once('<').and_then(|(_, rest)| rest.split_once('>')) else {
                return;
            };
            let path = PathBuf::from(path.0);
            let entries = fs_err::read_dir(&path).into_iter().flatten().flatten();
            // Names that are in the folder in the end were in it then, or came later by a rename,
            // which takes them away again.
            self.names.extend(entries.map(|entry| entry.path()));
            self.bytes.insert(path);
        } else if call.starts_with("rename") {
            let texts: Vec<&str> = call.split('"').collect();
            let (from, to) = (Path::new(texts[1]), Path::new(texts[3]));
            self.names.remove(to);
            let moved: Vec<PathBuf> =
                self.bytes.iter().filter(|path| path.starts_with(from)).cloned().collect();
            for path in moved {
                self.bytes.remove(&path);
                let inside = path.strip_prefix(from).unwrap();
                let now = if inside == Path::new("") { to.to_owned() } else { to.join(inside) };
                self.bytes.insert(now);
            }
        }
    }

    /// Loses or tears what is below `folder` and not on the disk; but for the names of the state
    /// folder's own folders, `kept` deep, which are the first that a journal brings to the disk.
    fn lose_the_rest(&self, folder: &Path, kept: u32, chance: &mut Chance) {
        let paths: BTreeSet<PathBuf> =
            fs_err::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        for path in paths {
            let metadata = fs_err::symlink_metadata(&path).unwrap();
            let is_kept = kept > 1 || kept == 1 && path.ends_with("blobs/sha256");
            if !is_kept && !self.names.contains(&path) && chance.below(6) == 0 {
                let _ = if metadata.is_dir() {
                    fs_err::remove_dir_all(&path)
                } else {
                    fs_err::remove_file(&path)
                };
            } else if metadata.is_dir() {
                self.lose_the_rest(&path, kept.saturating_sub(1), chance);
            } else if metadata.is_file() && !self.bytes.contains(&path) {
                let length = metadata.len();
                let file = fs_err::OpenOptions::new().write(true).open(&path).unwrap();
                match chance.below(3) {
                    // The name was written, the bytes were not.
                    0 => file.set_len(0).unwrap(),
                    // The length was.
                    1 => file.set_len(0).and_then(|()| file.set_len(length)).unwrap(),
                    _ => {}
                }
            }
        }
    }
}

#[test]
fn power_is_lost_at_any_moment() {
    if lacking(&needs::STEPS) || lacking(&[Need::Program("strace"), Need::Program("unshare")]) {
        return;
    }
    let work = Work::small();
    let expected = work.files(&Rbuild::new(), 0);
    let build = |rbuild: &Rbuild| work.build(rbuild, 0).args(["-t", "sample:v1"]);
    let boot = scratch();
    let boot_id = boot.path().join("boot_id");
    fs_err::write(&boot_id, "11111111-2222-4333-8444-555555555555\n").unwrap();
    let after = |run: Run| {
        run.under(&["unshare", "-m", "sh", "-c", REBOOTED, "sh", boot_id.to_str().unwrap()])
    };
    let undisturbed = Rbuild::new();
    let log = undisturbed.home.path().join("strace.log");
    under_strace(build(&undisturbed), &log, &[]).succeeds();
    let most = most_calls_of_a_thread(&fs_err::read_to_string(&log).unwrap());
    let moments = each_or_few(most, 8);
    let (mut wrong, mut killed) = (0, 0);
    for k in &moments {
        let rbuild = Rbuild::new();
        let log = rbuild.home.path().join("strace.log");
        let inject = format!("inject={MOMENTS}:signal=SIGKILL:when={k}");
        let outcome = under_strace(build(&rbuild), &log, &["-e", &inject]).run();
        killed += usize::from(!outcome.status.success());
        if rbuild.root.exists() {
            let disk = Disk::of_log(&fs_err::read_to_string(&log).unwrap());
            let mut chance = Chance::new();
            (0..*k).for_each(|_| _ = chance.below(2));
            disk.lose_the_rest(&rbuild.root, 2, &mut chance);
        }
        let named = fs_err::read_to_string(rbuild.root.join("index.json")).unwrap_or_default();
        // What has a name is whole, or the name was not brought to the disk.
        let kept = named
            .contains("sample:v1")
            .then(|| after(rbuild.command().args(["save", "-o", "/dev/null", "sample:v1"])).run());
        let out = scratch();
        let rebuilt = after(work.build(&rbuild, 0).output("type=local", out.path())).run();
        let verified = after(rbuild.command().args(["cache", "verify"])).run();
        let is_right = rebuilt.status.success()
            && crate::archive::digest_of_tree(out.path()) == expected
            && verified.status.success()
            && kept.as_ref().is_none_or(|kept| kept.status.success());
        if !is_right {
            figure(&format!("at {k}: {rebuilt}\n{verified}\n{kept:?}"));
            wrong += 1;
        }
    }
    figure(&format!(
        "P36 power loss: wrong {wrong} of {} moments of {most} ({killed} killed)",
        moments.len()
    ));
    assert_eq!(wrong, 0);
}

/// strace counts calls by thread and name.
fn most_calls_of_a_thread(log: &str) -> usize {
    let mut counts: HashMap<(&str, &str), usize> = HashMap::new();
    for line in log.lines() {
        let Some((pid, call)) = line.split_once(' ') else { continue };
        if let Some((name, _)) = call.trim_start().split_once('(') {
            *counts.entry((pid, name)).or_default() += 1;
        }
    }
    counts.into_values().max().unwrap()
}
