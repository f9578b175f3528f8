//! P6 and P8: that rbuild reads tars as others do, and that what is in them comes out again.

use std::path::Path;
use std::process::Command;

use rbuild_cache::digest::Digest;
use rbuild_cache::layer::tar_reader::{FilePiece, TarKind, TarReader};
use serde_json::{Value, json};

use crate::base::repository;
use crate::figure::figure;
use crate::hostile_tar::HostileImage;
use crate::needs::{Need, lacking};
use crate::promise::tell;
use crate::rbuild::{Rbuild, context, run, scratch};
use crate::soak::rounds;

/// How rbuild reads `bytes`, in the form of `testdata/tars.py`, and the bytes of all files in a
/// row; nothing where it refuses.
fn read(bytes: &[u8]) -> Option<(Value, Vec<u8>)> {
    let mut reader = TarReader::new(bytes);
    let (mut entries, mut all) = (Vec::new(), Vec::new());
    let mut buffer = vec![0; 64 * 1024];
    while let Some(entry) = reader.next_entry().ok()? {
        let mut data = Vec::new();
        let (kind, link) = match &entry.kind {
            TarKind::File { .. } => {
                loop {
                    match reader.read_piece(&mut buffer).ok()? {
                        FilePiece::End => break,
                        FilePiece::Data(length) => data.extend_from_slice(&buffer[..length]),
                        FilePiece::Hole(length) => {
                            data.resize(data.len() + usize::try_from(length).unwrap(), 0);
                        }
                    }
                }
                ("0", Vec::new())
            }
            TarKind::Folder => ("5", Vec::new()),
            TarKind::Link(target) => ("2", target.clone()),
            TarKind::HardLink(target) => ("1", target.clone()),
            _ => ("6", Vec::new()),
        };
        all.extend_from_slice(&data);
        let end = entry.path.iter().rposition(|byte| *byte != b'/').map_or(0, |last| last + 1);
        entries.push(json!([
            hex::encode(&entry.path[..end]),
            kind,
            hex::encode(link),
            entry.mode & 0o7777,
            entry.uid,
            entry.gid,
            entry.mtime.0,
            Digest::of(&data).hex(),
        ]));
    }
    Some((Value::Array(entries), all))
}

/// Whether GNU tar finds the same names and the same bytes; nothing where it refuses.
fn as_gnu_tar(tar: &Path, entries: &Value, files: &[u8]) -> Option<bool> {
    let gnu = |flags: &[&str]| {
        let run = Command::new("tar").env("LC_ALL", "C").args(flags).arg("-f").arg(tar).output();
        let output = run.unwrap();
        output.status.success().then_some(output.stdout)
    };
    let names = gnu(&["-tP", "--quoting-style=escape"])?;
    let bytes = gnu(&["-xOP"])?;
    let shown = |entry: &Value| -> String {
        let path = hex::decode(entry[0].as_str().unwrap()).unwrap();
        let byte = |byte: &u8| match byte {
            b'\\' => "\\\\".to_owned(),
            b'\t' => "\\t".to_owned(),
            b' '..=b'~' => char::from(*byte).to_string(),
            other => format!("\\{other:03o}"),
        };
        path.iter().map(byte).collect()
    };
    let ours: Vec<String> = entries.as_array().unwrap().iter().map(shown).collect();
    let theirs = String::from_utf8_lossy(&names).into_owned();
    let theirs: Vec<&str> = theirs.lines().map(|line| line.trim_end_matches('/')).collect();
    Some(ours == theirs && bytes == files)
}

#[test]
fn p6_tars_are_read_as_others_read_them() {
    if lacking(&[Need::Program("python3"), Need::Program("tar")]) {
        return;
    }
    let (folder, count) = (scratch(), rounds(300));
    let path = folder.path().to_str().unwrap();
    let script = repository().join("testdata/tars.py");
    let said = run(script.to_str().unwrap(), &[path, &count.to_string(), "7"]);
    let (mut differences, mut otherwise, mut stricter) = (0, 0, 0);
    let (mut laxer, mut accepted) = (0, 0);
    for (number, line) in said.lines().enumerate() {
        let python: Value = serde_json::from_str(line).unwrap();
        let file = folder.path().join(format!("{number}.tar"));
        let bytes = fs_err::read(&file).unwrap();
        match (read(&bytes), python.as_array()) {
            (Some((ours, files)), Some(_)) => {
                accepted += 1;
                // Where a flipped byte lets the others disagree, rbuild goes with one of them.
                let alone = ours != python;
                let gnu = as_gnu_tar(&file, &ours, &files);
                otherwise += usize::from(alone);
                if alone && gnu != Some(true) || gnu == Some(false) && ours != python {
                    differences += 1;
                    figure(&format!("{number}: {ours}\npython {python}\nas GNU tar: {gnu:?}"));
                }
            }
            (None, Some(entries)) if !entries.is_empty() => stricter += 1,
            (Some(_), None) => {
                laxer += 1;
                figure(&format!("{number}: only Python refuses it"));
            }
            (None, _) => {}
        }
    }
    tell(
        6,
        &format!(
            "differences {differences} / {count} archives \
             ({accepted} read by both, of these {otherwise} as GNU tar and not as Python; \
             {stricter} refused by rbuild alone, {laxer} by Python alone)"
        ),
    );
    assert_eq!(differences, 0);
    assert!(accepted * 2 > count, "most archives are right ones");
}

/// A tree with everything that a layer can hold, as an image, through a build, and out again.
#[test]
fn p8_everything_about_files_survives() {
    if lacking(&[Need::Root, Need::Program("python3"), Need::Program("tar")]) {
        return;
    }
    let tree = scratch();
    let script = r#"
cd "$1" && mkdir d sticky && printf x > d/plain && printf '%5000s' > large
cp d/plain setuid; chmod 4755 setuid; cp d/plain setgid; chmod 2755 setgid; chmod 1777 sticky
chown 5:6 d/plain; chown 70000:80000 large; chown -h 7:8 d; ln -s /etc/passwd link
ln -s "$(printf '%0200d' 1)" long; chown -h 9:9 long; ln d/plain hard; mkfifo fifo
printf y > "$(printf 'odd\nname')"; printf z > "$(printf 'byte\377')"; printf q > "sp ace'\"\\"
setfattr -n user.note -v kept d/plain 2>/dev/null; chmod 0 large; mkdir -m 700 empty
touch -h -d '1999-12-31 23:59:58.123456789 UTC' link; touch -d '2033-05-18 03:33:20 UTC' d/plain
touch -d '1970-01-01 00:00:01 UTC' setuid empty d
"#;
    run("sh", &["-c", script, "sh", tree.path().to_str().unwrap()]);
    let place = scratch();
    let made = place.path().join("made.tar");
    let root = tree.path().to_str().unwrap();
    run(
        "tar",
        &[
            "--format=pax",
            "--xattrs",
            "--numeric-owner",
            "-C",
            root,
            "-cf",
            made.to_str().unwrap(),
            ".",
        ],
    );
    let layout = place.path().join("layout");
    HostileImage::new(vec![fs_err::read(&made).unwrap()]).write(&layout);
    let (rbuild, out) = (Rbuild::new(), place.path().join("out.tar"));
    let context = context(&[("Dockerfile", "FROM hostile\nCOPY Dockerfile /added\n")]);
    rbuild
        .build(&context)
        .base("hostile", &layout)
        .args(["--platform", "linux/amd64"])
        .output("type=tar", &out)
        .succeeds();
    let entries = |path: &Path| {
        let (entries, _) = read(&fs_err::read(path).unwrap()).unwrap();
        let mut entries: Vec<Vec<Value>> =
            entries.as_array().unwrap().iter().map(|e| e.as_array().unwrap().clone()).collect();
        for entry in &mut entries {
            let name = entry[0].as_str().unwrap();
            entry[0] = json!(name.strip_prefix("2e2f").unwrap_or(name));
            let link = entry[2].as_str().unwrap();
            entry[2] = json!(link.strip_prefix("2e2f").unwrap_or(link));
        }
        entries.retain(|entry| {
            !["", "2e", &hex::encode("added")].contains(&entry[0].as_str().unwrap())
        });
        // Which of two names of a file is the file and which the link is anybody's choice.
        let names = [hex::encode("hard"), hex::encode("d/plain")];
        entries.retain(|entry| !names.contains(&entry[0].as_str().unwrap().to_owned()));
        entries.sort_by_key(|entry| entry[0].to_string());
        entries
    };
    let (before, after) = (entries(&made), entries(&out));
    let differing = before.iter().filter(|entry| !after.contains(entry)).count()
        + after.iter().filter(|entry| !before.contains(entry)).count();
    // The two names are one file still, with its owner and its bytes.
    let unpacked = place.path().join("unpacked");
    fs_err::create_dir(&unpacked).unwrap();
    run(
        "tar",
        &["--numeric-owner", "-C", unpacked.to_str().unwrap(), "-xf", out.to_str().unwrap()],
    );
    let about = run("stat", &["-c", "%u %g %h %Y", unpacked.join("hard").to_str().unwrap()]);
    assert_eq!(about, "5 6 2 2000000000\n");
    tell(8, &format!("differing entries {differing} / {}", before.len() + 2));
    assert_eq!(before, after);
}
