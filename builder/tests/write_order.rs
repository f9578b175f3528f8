//! P36: the order in which rbuild writes survives a power loss: what a name promises is on the disk
//! before the name is, and the record of a result comes last.

use std::collections::{HashMap, HashSet};

use crate::figure::figure;
use crate::needs::{self, Need, lacking};
use crate::rbuild::Rbuild;
use crate::soak::Work;

/// The system calls of a run, in the order in which they ended.
struct Trace(Vec<String>);

impl Trace {
    fn parse(text: &str) -> Self {
        // `PID call(…) = …`; a call that another thread interrupts is in two lines.
        let mut unfinished: HashMap<&str, &str> = HashMap::new();
        let mut calls = Vec::new();
        for line in text.lines() {
            let (pid, call) = line.split_once(' ').unwrap();
            let call = call.trim_start();
            if let Some(begin) = call.strip_suffix(" <unfinished ...>") {
                unfinished.insert(pid, begin);
            } else if let Some((_, end)) = call.split_once(" resumed>") {
                calls.push(format!("{}{end}", unfinished.remove(pid).unwrap_or_default()));
            } else {
                calls.push(call.to_owned());
            }
        }
        Self(calls)
    }

    fn position(&self, what: impl Fn(&str) -> bool) -> Option<usize> {
        self.0.iter().position(|call| what(call))
    }
}

/// The path of a descriptor as `strace -y` shows it: `fsync(7</root/file>)`.
fn path_of(call: &str) -> &str {
    call.split_once('<').and_then(|(_, rest)| rest.split_once('>')).map_or("", |(path, _)| path)
}

/// What a rename gives its name to.
fn renamed_to(call: &str) -> Option<&str> {
    (call.starts_with("rename") && call.contains(" = 0")).then(|| {
        let texts: Vec<&str> = call.split('"').collect();
        texts[3]
    })
}

#[test]
fn names_come_after_what_they_name() {
    if lacking(&needs::STEPS) || lacking(&[Need::Program("strace")]) {
        return;
    }
    let (work, rbuild) = (Work::new(), Rbuild::new());
    let log = rbuild.home.path().join("strace.log");
    let calls = "trace=fsync,fdatasync,rename,renameat,renameat2,pwrite64";
    let traced = work.build(&rbuild, 0).args(["-t", "sample:v1"]);
    traced
        .under(&[
            "strace",
            "-f",
            "-qq",
            "-y",
            "-s",
            "4096",
            "-e",
            calls,
            "-o",
            log.to_str().unwrap(),
        ])
        .succeeds();
    let trace = Trace::parse(&fs_err::read_to_string(log).unwrap());
    let root = rbuild.root.display().to_string();

    let named = trace
        .position(|call| renamed_to(call).is_some_and(|to| to == format!("{root}/index.json")))
        .expect("the image got its name");
    let synced: HashSet<&str> = trace.0[..named]
        .iter()
        .filter(|call| call.starts_with("fsync") || call.starts_with("fdatasync"))
        .map(|call| path_of(call))
        .collect();
    let mut wrong = Vec::new();
    let mut blobs = 0;
    for call in &trace.0[..named] {
        let Some(to) = renamed_to(call) else { continue };
        if to.starts_with(&format!("{root}/blobs/")) {
            blobs += 1;
            if !synced.contains(to) {
                wrong.push(format!("{to} is not on the disk before the image's name"));
            }
        }
    }
    assert!(blobs >= 4, "layers, config and manifest: {blobs}");
    let folder = format!("{root}/blobs/sha256");
    if !synced.contains(folder.as_str()) {
        wrong.push("the names of blobs are not on the disk".into());
    }
    let index_itself = trace.0[named].split('"').nth(1).unwrap();
    if !synced.contains(index_itself) {
        wrong.push("index.json got its name before its bytes were on the disk".into());
    }
    let after = |path: &str| {
        let sync = |call: &String| call.starts_with("fsync") && path_of(call) == path;
        trace.0[named..].iter().any(sync)
    };
    if !after(&root) {
        wrong.push("the name of index.json is not on the disk when rbuild ends".into());
    }

    // A record is written after the tree that it names has its place.
    let mut records = 0;
    for (position, call) in trace.0.iter().enumerate() {
        let Some(to) = renamed_to(call) else { continue };
        let Some(id) = to.strip_prefix(&format!("{root}/snapshots/")) else { continue };
        if id.contains('/') || !id.starts_with("step-") {
            continue;
        }
        let wrote = |call: &String| {
            call.starts_with("pwrite64") && path_of(call).contains("index.db") && call.contains(id)
        };
        if trace.0[..position].iter().any(wrote) {
            wrong.push(format!("{id} has a record before it has its place"));
        }
        records += usize::from(trace.0[position..].iter().any(wrote));
    }
    assert!(records >= 4, "a record for each step: {records}");
    figure(&format!("P36 wrong {} of {} names", wrong.len(), blobs + records + 2));
    assert_eq!(wrong, Vec::<String>::new());
}

#[test]
fn a_lost_database_costs_work_and_nothing_else() {
    if lacking(&needs::STEPS) {
        return;
    }
    let (work, rbuild) = (Work::new(), Rbuild::new());
    let expected = work.files(&rbuild, 0);
    work.build(&rbuild, 0).args(["-t", "sample:v1"]).succeeds();
    let image = rbuild.command().args(["images", "-q"]).succeeds().stdout;
    let index = rbuild.root.join("index.db");
    let lose: [&dyn Fn(); 4] = [
        &|| {
            fs_err::remove_file(&index).unwrap();
            let _ = fs_err::remove_file(rbuild.root.join("index.db-wal"));
            let _ = fs_err::remove_file(rbuild.root.join("index.db-shm"));
        },
        &|| fs_err::remove_file(&index).unwrap(),
        &|| fs_err::remove_file(rbuild.root.join("index.db-wal")).unwrap(),
        &|| fs_err::write(&index, vec![0xA5; 100_000]).unwrap(),
    ];
    for lose in lose {
        lose();
        assert_eq!(work.files(&rbuild, 0), expected);
        assert_eq!(rbuild.command().args(["images", "-q"]).succeeds().stdout, image);
        rbuild.command().args(["cache", "verify"]).succeeds();
        assert!(work.build(&rbuild, 0).succeeds().step("COPY data /data").cached);
    }
}
