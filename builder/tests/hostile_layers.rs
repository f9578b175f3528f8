//! P1 to P8: images that were made to do harm. Each is refused with one message, or builds with all
//! of its effects inside of its own root.

use std::fmt::Write as _;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use rbuild_cache::digest::Digest;
use serde_json::{Value, json};

use crate::figure::figure;
use crate::hostile_tar::{self as hostile, HostileImage, blob_path, describe, record, tar};
use crate::promise::{Cost, is_refusal, measured, tell};
use crate::rbuild::{Rbuild, Run, context, scratch};

/// A build of `FROM hostile` out of the layout in `layout`, which writes its files to `out`.
fn build(rbuild: &Rbuild, layout: &Path, out: &Path) -> Run {
    let folder = rbuild.home.path().join("context");
    fs_err::create_dir_all(&folder).unwrap();
    fs_err::write(folder.join("Dockerfile"), "FROM hostile\n").unwrap();
    rbuild
        .command()
        .args(["build", "--progress", "plain", "--platform", "linux/amd64"])
        .base("hostile", layout)
        .output("type=local", out)
        .arg(folder)
}

/// Files that nobody but this test may touch, beside a state folder.
struct Canary {
    top: tempfile::TempDir,
    before: String,
}

impl Canary {
    fn new() -> Self {
        let top = scratch();
        let folder = top.path().join("canary");
        fs_err::create_dir_all(folder.join("folder")).unwrap();
        fs_err::write(folder.join("file"), "canary").unwrap();
        fs_err::write(folder.join("folder/x"), "canary").unwrap();
        let mut canary = Self { top, before: String::new() };
        canary.before = canary.look();
        canary
    }

    fn path(&self) -> PathBuf {
        self.top.path().join("canary")
    }

    /// Everything about them: content, mode, times, links.
    fn look(&self) -> String {
        let mut seen = String::new();
        for path in ["", "file", "folder", "folder/x"] {
            let path = self.path().join(path);
            let about = fs_err::symlink_metadata(&path).unwrap();
            let text = if about.is_file() {
                fs_err::read_to_string(&path).unwrap()
            } else {
                String::new()
            };
            writeln!(
                seen,
                "{} {:o} {} {} {} {text}",
                path.display(),
                about.mode(),
                about.mtime(),
                about.nlink(),
                about.uid()
            )
            .unwrap();
        }
        let count = |path: PathBuf| fs_err::read_dir(path).unwrap().count();
        writeln!(seen, "{} {}", count(self.path()), count(self.path().join("folder"))).unwrap();
        seen
    }
}

/// What is below `root`, in the form of [`hostile::tar`]'s entries, sorted.
fn tree(root: &Path) -> Vec<String> {
    fn list(root: &Path, folder: &Path, found: &mut Vec<String>) {
        for entry in fs_err::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.strip_prefix(root).unwrap().to_string_lossy().into_owned();
            let about = fs_err::symlink_metadata(&path).unwrap();
            if about.is_symlink() {
                found.push(format!("{name}->{}", fs_err::read_link(&path).unwrap().display()));
            } else if about.is_dir() {
                found.push(format!("{name}/"));
                list(root, &path, found);
            } else if about.is_file() {
                let text = fs_err::read(&path).unwrap();
                let text = String::from_utf8_lossy(&text[..text.len().min(20)]).into_owned();
                found.push(format!("{name}={text}"));
            } else {
                found.push(format!("{name}|"));
            }
        }
    }
    let mut found = Vec::new();
    list(root, root, &mut found);
    found.sort();
    found
}

/// What must come of a variant.
enum Expected {
    /// One message, and nothing built.
    Refused,
    /// Exactly these files.
    Tree(&'static [&'static str]),
    /// Either; only that nothing leaves the root counts.
    Either,
}

use Expected::{Either, Refused, Tree};

/// Builds every variant. `OUT` in an entry stands for the canary's folder. Returns how many
/// touched the canary, how many did not come out as expected, and how many there are.
fn check(variants: &[(&[&[&str]], Expected)]) -> (usize, usize, usize) {
    let (mut escapes, mut wrong) = (0, 0);
    for (layers, expected) in variants {
        let canary = Canary::new();
        let outside = canary.path().display().to_string();
        let layers: Vec<Vec<u8>> = layers
            .iter()
            .map(|entries| {
                let entries: Vec<String> =
                    entries.iter().map(|entry| entry.replace("OUT", &outside)).collect();
                tar(&entries.iter().map(String::as_str).collect::<Vec<_>>())
            })
            .collect();
        let shown = String::from_utf8_lossy(&layers[0][..100]).into_owned();
        let rbuild = Rbuild::at(&canary.top.path().join("state"));
        let (layout, out) = (canary.top.path().join("layout"), canary.top.path().join("out"));
        HostileImage::new(layers).write(&layout);
        let (outcome, _) = measured(build(&rbuild, &layout, &out));
        escapes += usize::from(canary.look() != canary.before);
        let right = match expected {
            Refused => is_refusal(&outcome),
            Tree(expected) => {
                outcome.status.success() && {
                    let expected: Vec<_> =
                        expected.iter().map(|line| line.replace("OUT", &outside)).collect();
                    tree(&out) == expected
                }
            }
            Either => outcome.status.success() || is_refusal(&outcome),
        };
        if !right {
            let found = if out.exists() { tree(&out) } else { Vec::new() };
            figure(&format!("variant {shown}: {found:?}\n{outcome}"));
        }
        wrong += usize::from(!right);
    }
    (escapes, wrong, variants.len())
}

const UP: &str = "../../../../../../../../../..";

#[test]
fn p3_unpacking_never_leaves_the_root() {
    let variants: &[(&[&[&str]], Expected)] = &[
        (&[&["../x=1"]], Tree(&["x=1"])),
        (&[&["../../../../../../x=1"]], Tree(&["x=1"])),
        (&[&["a/../../x=1"]], Tree(&["x=1"])),
        (&[&["/x=1"]], Tree(&["x=1"])),
        (&[&["//x=1"]], Tree(&["x=1"])),
        (&[&["./x=1"]], Tree(&["x=1"])),
        (&[&["./"]], Tree(&[])),
        (&[&["@777:.="]], Refused),
        (&[&["..=1"]], Refused),
        (&[&["/=1"]], Refused),
        // Symbolic links: in the same layer, in an earlier one, in a chain, back out again.
        (&[&["l->OUT", "l/file=1"]], Tree(&["l/", "l/file=1"])),
        (&[&["l->OUT"], &["l/file=1"]], Tree(&["l/", "l/file=1"])),
        (&[&["l->../../../../../../../../../..OUT", "l/file=1"]], Either),
        (&[&["l->.."], &["l/canary/file=1"]], Either),
        (&[&["a->b", "b->OUT", "a/file=1"]], Either),
        (&[&["a->b", "b->OUT"], &["a/file=1"]], Either),
        (&[&["a->OUT", "b->a/folder", "b/x=1"]], Either),
        (&[&["d/", "d/l->..", "d/l/x=1"]], Tree(&["d/", "d/l->..", "x=1"])),
        (&[&["d/", "d/l->../../../..", "d/l/x=1"]], Tree(&["d/", "d/l->../../../..", "x=1"])),
        (&[&["d/", "l->/d", "l/../x=1"]], Either),
        (&[&["l->l", "l/x=1"]], Either),
        (&[&["l->/proc/self/cwd", "l/x=1"]], Either),
        (&[&["l->/proc/self/root", "lOUT/file=1", "lOUT/new=1"]], Either),
        (&[&["l->/dev/fd/3", "l/x=1"]], Either),
        (&[&["l->OUT/file", "l=1"]], Tree(&["l=1"])),
        (&[&["l->OUT/file"], &["l=1"]], Tree(&["l=1"])),
        (&[&["l->OUT"], &["@700:l/"]], Tree(&["l/"])),
        (&[&["l->OUT", ".wh.l"]], Either),
        (&[&["l->OUT"], &["l/.wh.file"]], Either),
        (&[&["l->OUT"], &["l/.wh..wh..opq"]], Either),
        // Hard links: absolute, upwards, through a link, to a link.
        (&[&["h=>OUT/file"]], Refused),
        (&[&["h=>../../../../../../../../../../OUT/file"]], Refused),
        (&[&["l->OUT", "h=>l/file"]], Refused),
        (&[&["l->OUT"], &["h=>l/file"]], Refused),
        (&[&["l->OUT/file", "h=>l"]], Tree(&["h->OUT/file", "l->OUT/file"])),
        (&[&["l->OUT/file", "h=>l"], &["h=1"]], Tree(&["h=1", "l->OUT/file"])),
        (&[&["l->OUT/file", "h=>l", "@777:h=1"]], Tree(&["h=1", "l->OUT/file"])),
        (&[&["d/", "h=>d"]], Refused),
        (&[&["a=1", "h=>a", "h=2"]], Either),
        // Something else where a folder was, or is to be.
        (&[&["p|", "p/x=1"]], Either),
        (&[&["n%", "n/x=1"]], Either),
        (&[&["d/", "d/x=1", "d->OUT"], &["d/x=2"]], Either),
        (&[&["d/", "d/x=1"], &["d->OUT"], &["d/file=2"]], Either),
        // A folder's mode and time at the end: it may be a link by then.
        (&[&["@0:d/", "d->OUT"]], Tree(&["d->OUT"])),
        (&[&["@777:d/", "d/x=1", "d->OUT/folder"]], Tree(&["d->OUT/folder"])),
    ];
    let (mut escapes, wrong, mut count) = check(variants);
    // Names that are only in PAX or GNU headers.
    let canary = Canary::new();
    let outside = canary.path().display().to_string();
    let long = |kind: u8, text: &str| {
        let mut bytes = hostile::block(kind, b"././@LongLink", b"", text.len() as u64 + 1, 0o644);
        bytes.extend_from_slice(text.as_bytes());
        bytes.push(0);
        bytes.resize(bytes.len().next_multiple_of(512), 0);
        bytes
    };
    let end = vec![0; 1024];
    let escape = format!("{UP}{outside}/new");
    let pax = |name: &str, value: &str| hostile::pax(&record(name, value));
    let tars = [
        [pax("path", &escape), hostile::entry("x=1"), end.clone()].concat(),
        [pax("path", &format!("{outside}/new")), hostile::entry("x=1"), end.clone()].concat(),
        [long(b'L', &escape), hostile::entry("x=1"), end.clone()].concat(),
        [pax("linkpath", &format!("{outside}/file")), hostile::entry("h=>x"), end.clone()].concat(),
        [long(b'K', &outside), hostile::entry("l->x"), hostile::entry("l/file=1"), end.clone()]
            .concat(),
        [pax("path", "a\0b"), hostile::entry("x=1"), end.clone()].concat(),
        [pax("path", ""), hostile::entry("x=1"), end].concat(),
    ];
    for (number, tar) in tars.into_iter().enumerate() {
        let rbuild = Rbuild::at(&canary.top.path().join(format!("state{number}")));
        let layout = canary.top.path().join(format!("layout{number}"));
        HostileImage::new(vec![tar]).write(&layout);
        let out = canary.top.path().join(format!("out{number}"));
        let (outcome, _) = measured(build(&rbuild, &layout, &out));
        assert!(outcome.status.success() || is_refusal(&outcome), "{number}: {outcome}");
        escapes += usize::from(canary.look() != canary.before);
        count += 1;
    }
    tell(3, &format!("escapes {escapes} / {count} hostile tars"));
    assert_eq!((escapes, wrong), (0, 0));
}

#[test]
fn p4_links_are_replaced_and_not_followed() {
    let variants: &[(&[&[&str]], Expected)] = &[
        (&[&["l->OUT/file", "l=1"]], Tree(&["l=1"])),
        (&[&["l->OUT/file"], &["l=1"]], Tree(&["l=1"])),
        (&[&["l->OUT", "@700:l/"]], Tree(&["l/"])),
        (&[&["l->OUT"], &["@700:l/"]], Tree(&["l/"])),
        (&[&["l->OUT"], &["@700:l/", "l/x=1"]], Tree(&["l/", "l/x=1"])),
        (&[&["d/", "l->d"], &["l/"]], Tree(&["d/", "l/"])),
        (&[&["l->OUT/file", "h=>l", "h=1"]], Tree(&["h=1", "l->OUT/file"])),
        (&[&["a=1", "h=>a", "h->OUT/file"]], Tree(&["a=1", "h->OUT/file"])),
        (&[&["a=1", "l->a"], &["l->OUT/file"]], Tree(&["a=1", "l->OUT/file"])),
        (&[&["l->OUT/file"], &["l|"]], Tree(&["l|"])),
        (&[&["l->OUT/file", "a=1", "l=>a"]], Tree(&["a=1", "l=1"])),
        (&[&["d/", "d/x=1"], &["d=1"]], Tree(&["d=1"])),
        (&[&["d=1"], &["d/", "d/x=1"]], Tree(&["d/", "d/x=1"])),
    ];
    let (escapes, wrong, count) = check(variants);
    tell(4, &format!("links followed {} / {count} variants", escapes + wrong));
    assert_eq!((escapes, wrong), (0, 0));
}

#[test]
fn p5_whiteouts_hide_what_is_below_and_nothing_else() {
    const BELOW: &[&str] = &["a=1", "d/", "d/x=1", "d/y=1"];
    let variants: &[(&[&[&str]], Expected)] = &[
        (&[BELOW, &[".wh.a"]], Tree(&["d/", "d/x=1", "d/y=1"])),
        (&[BELOW, &["d/.wh.x"]], Tree(&["a=1", "d/", "d/y=1"])),
        (&[BELOW, &[".wh.d"]], Tree(&["a=1"])),
        (&[BELOW, &[".wh.d", "d/", "d/z=1"]], Tree(&["a=1", "d/", "d/z=1"])),
        (&[BELOW, &["d/", "d/z=1", ".wh.d"]], Tree(&["a=1", "d/", "d/z=1"])),
        (&[BELOW, &["d/.wh..wh..opq", "d/z=1"]], Tree(&["a=1", "d/", "d/z=1"])),
        (&[BELOW, &["d/z=1", "d/.wh..wh..opq"]], Tree(&["a=1", "d/", "d/z=1"])),
        (&[BELOW, &[".wh..wh..opq", "b=1"]], Tree(&["b=1"])),
        (&[BELOW, &["b=1", ".wh..wh..opq"]], Tree(&["b=1"])),
        (&[BELOW, &["../.wh.a"]], Tree(&["d/", "d/x=1", "d/y=1"])),
        (&[BELOW, &["d/../.wh.a"]], Tree(&["d/", "d/x=1", "d/y=1"])),
        (&[BELOW, &[".wh.missing"]], Tree(BELOW)),
        (&[BELOW, &[".wh."]], Refused),
        (&[BELOW, &[".wh.."]], Refused),
        (&[BELOW, &[".wh..."]], Refused),
        (&[BELOW, &["d/.wh.."]], Refused),
        (&[BELOW, &["l->d"], &["l/.wh.x"]], Either),
        (&[&["l->OUT"], &["l/.wh.file"]], Either),
        (&[&["l->OUT"], &[".wh.l"]], Tree(&[])),
        (&[BELOW, &["@0:a%"]], Either),
    ];
    let (escapes, wrong, count) = check(variants);
    tell(5, &format!("right trees {} / {count} variants", count - wrong));
    assert_eq!((escapes, wrong), (0, 0));
}

#[test]
fn p1_every_blob_is_checked_before_it_is_used() {
    type Change<'a> = &'a dyn Fn(&Path, &Digest);
    let flip: Change = &|layout, digest| {
        let path = blob_path(layout, digest);
        let mut bytes = fs_err::read(&path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs_err::write(path, bytes).unwrap();
    };
    let truncate: Change = &|layout, digest| {
        let path = blob_path(layout, digest);
        let bytes = fs_err::read(&path).unwrap();
        fs_err::write(path, &bytes[..bytes.len() - 1]).unwrap();
    };
    let lengthen: Change = &|layout, digest| {
        let path = blob_path(layout, digest);
        let mut bytes = fs_err::read(&path).unwrap();
        bytes.push(b' ');
        fs_err::write(path, bytes).unwrap();
    };
    let remove: Change = &|layout, digest| fs_err::remove_file(blob_path(layout, digest)).unwrap();
    let link: Change = &|layout, digest| {
        fs_err::remove_file(blob_path(layout, digest)).unwrap();
        symlink("/etc/passwd", blob_path(layout, digest)).unwrap();
    };
    let fifo: Change = &|layout, digest| {
        fs_err::remove_file(blob_path(layout, digest)).unwrap();
        let made = Command::new("mkfifo").arg(blob_path(layout, digest)).status().unwrap();
        assert!(made.success());
    };
    let folder: Change = &|layout, digest| {
        fs_err::remove_file(blob_path(layout, digest)).unwrap();
        fs_err::create_dir(blob_path(layout, digest)).unwrap();
    };
    let image = || HostileImage::new(vec![tar(&["a=1", "d/", "d/x=1"])]);
    let (mut refused, mut count) = (0, 0);
    let mut refuse = |what: String, layout: &Path| {
        let rbuild = Rbuild::new();
        let (outcome, _) = measured(build(&rbuild, layout, &rbuild.home.path().join("out")));
        count += 1;
        if is_refusal(&outcome) {
            refused += 1;
        } else {
            figure(&format!("{what}: {outcome}"));
        }
    };
    let changes = [flip, truncate, lengthen, remove, link, fifo, folder];
    for (number, change) in changes.into_iter().enumerate() {
        for blob in 0..3 {
            let layout = scratch();
            let digests = image().write(layout.path());
            change(layout.path(), &digests[blob]);
            refuse(format!("change {number} of blob {blob}"), layout.path());
        }
    }
    // Descriptors that lie, and digests that are none.
    for (pointer, value) in [
        ("/size", json!(1)),
        ("/size", json!(-1)),
        ("/size", json!(1_u64 << 60)),
        ("/digest", json!("sha256:../../../../etc/passwd")),
        ("/digest", json!("sha256:")),
        ("/digest", json!(format!("sha256:{}", "A".repeat(64)))),
        ("/digest", json!(format!("sha256:{}", "a".repeat(63)))),
        ("/digest", json!(format!("../sha256:{}", "a".repeat(64)))),
        ("/digest", json!(format!("md5:{}", "a".repeat(32)))),
        ("/digest", json!(7)),
    ] {
        for part in ["/manifests/0", "/config", "/layers/0"] {
            let layout = scratch();
            let digests = image().write(layout.path());
            if part.starts_with("/manifests") {
                let path = layout.path().join("index.json");
                let mut index: Value =
                    serde_json::from_slice(&fs_err::read(&path).unwrap()).unwrap();
                *index.pointer_mut(&format!("{part}{pointer}")).unwrap() = value.clone();
                fs_err::write(path, index.to_string()).unwrap();
            } else {
                let bytes = fs_err::read(blob_path(layout.path(), &digests[0])).unwrap();
                let mut manifest: Value = serde_json::from_slice(&bytes).unwrap();
                *manifest.pointer_mut(&format!("{part}{pointer}")).unwrap() = value.clone();
                let kind = "application/vnd.oci.image.manifest.v1+json";
                let manifest = describe(layout.path(), kind, manifest.to_string().as_bytes());
                hostile::write_index(layout.path(), &[manifest]);
            }
            refuse(format!("{part}{pointer} {value}"), layout.path());
        }
    }
    tell(1, &format!("damaged images refused {refused} / {count}"));
    assert_eq!(refused, count);
}

#[test]
fn p2_layers_are_what_the_config_says() {
    let one = tar(&["a=1"]);
    let two = tar(&["b=2"]);
    let id = |bytes: &[u8]| json!(Digest::of(bytes).to_string());
    let more = [one.clone(), b"after the end".to_vec()].concat();
    let half = [one.clone(), vec![0; 512]].concat();
    let cases: Vec<(Vec<Vec<u8>>, Vec<Value>)> = vec![
        (vec![one.clone()], vec![id(&two)]),
        (vec![one.clone(), two.clone()], vec![id(&two), id(&one)]),
        (vec![one.clone(), two.clone()], vec![id(&one)]),
        (vec![one.clone()], vec![id(&one), id(&two)]),
        (vec![one.clone()], vec![]),
        // Only the tar up to its end is what the config says.
        (vec![more.clone()], vec![id(&one)]),
        (vec![half], vec![id(&one)]),
        (vec![one.clone()], vec![id(&more)]),
        (vec![one.clone()], vec![json!("sha256:no")]),
        (vec![one.clone()], vec![json!(5)]),
    ];
    let (mut refused, count) = (0, cases.len());
    for (layers, ids) in cases {
        let mut image = HostileImage::new(layers);
        image.config["rootfs"]["diff_ids"] = Value::Array(ids.clone());
        let (layout, rbuild) = (scratch(), Rbuild::new());
        image.write(layout.path());
        let (outcome, _) = measured(build(&rbuild, layout.path(), &rbuild.home.path().join("out")));
        if is_refusal(&outcome) {
            refused += 1;
        } else {
            figure(&format!("{ids:?}: {outcome}"));
        }
    }
    // What follows the end is part of the layer, and changes nothing in it.
    let (layout, rbuild) = (scratch(), Rbuild::new());
    HostileImage::new(vec![more]).write(layout.path());
    let out = rbuild.home.path().join("out");
    build(&rbuild, layout.path(), &out).succeeds();
    assert_eq!(tree(&out), ["a=1"]);
    tell(2, &format!("wrong layers refused {refused} / {count}"));
    assert_eq!(refused, count);
}

/// The bytes of `length` zeros, compressed.
fn bomb(length: u64) -> Vec<u8> {
    use std::io::{Read as _, Write as _};
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&hostile::block(b'0', b"zeros", b"", length, 0o644)).unwrap();
    std::io::copy(&mut std::io::repeat(0).take(length + 1024), &mut gzip).unwrap();
    gzip.finish().unwrap()
}

#[test]
fn p7_bombs_cost_little() {
    let mut worst = Cost::default();
    let mut count = 0;
    let mut run = |what: &str, layout: &Path, flags: &[&str], refused: bool| {
        let rbuild = Rbuild::new();
        let run = build(&rbuild, layout, &rbuild.home.path().join("out")).args(flags);
        let (outcome, cost) = measured(run);
        let (megabytes, seconds) = (cost.memory >> 20, cost.time.as_secs_f32());
        figure(&format!("{what}: {megabytes} MB, {seconds:.1} s, {}", outcome.status));
        if refused {
            assert!(is_refusal(&outcome), "{what}: {outcome}");
        } else {
            assert!(outcome.status.success(), "{what}: {outcome}");
        }
        assert!(megabytes < 1024, "{what}: {megabytes} MB");
        worst = worst.max(cost);
        count += 1;
        outcome
    };
    let gzip = |layout: &Path, bytes: &[u8], diff_id: Digest| {
        let layer = describe(layout, "application/vnd.oci.image.layer.v1.tar+gzip", bytes);
        let mut image = HostileImage::new(Vec::new());
        image.config["rootfs"]["diff_ids"] = json!([diff_id.to_string()]);
        let config = serde_json::to_vec(&image.config).unwrap();
        let config = describe(layout, "application/vnd.oci.image.config.v1+json", &config);
        let manifest = json!({
            "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": config, "layers": [layer],
        });
        let kind = "application/vnd.oci.image.manifest.v1+json";
        let manifest = describe(layout, kind, manifest.to_string().as_bytes());
        hostile::write_index(layout, &[manifest]);
    };

    let layout = scratch();
    gzip(layout.path(), &bomb(2 << 30), Digest::of(b"never reached"));
    let outcome = run("gzip of 2 GB", layout.path(), &["--limit", "layer-size=64m"], true);
    outcome.assert_stderr_has(&["more than 67108864 bytes: `--limit layer-size=N`"]);

    let image = |layers: Vec<Vec<u8>>| {
        let layout = scratch();
        HostileImage::new(layers).write(layout.path());
        layout
    };
    let files: Vec<String> = (0..60_000).map(|n| format!("f{n}=x")).collect();
    let names: Vec<&str> = files.iter().map(String::as_str).collect();
    let layout = image(vec![tar(&names)]);
    run("60,000 files", layout.path(), &[], false);
    let outcome = run("60,000 files", layout.path(), &["--limit", "layer-files=5000"], true);
    outcome.assert_stderr_has(&["more than 5000 files: `--limit layer-files=N`"]);

    let deep = format!("{}x=1", "d/".repeat(1000));
    let layout = image(vec![tar(&[&deep])]);
    let outcome = run("1000 folders", layout.path(), &["--limit", "path-depth=500"], true);
    outcome.assert_stderr_has(&["more than 500 folders in one another: `--limit path-depth=N`"]);
    run("1000 folders", layout.path(), &[], false);

    let huge = hostile::pax(&record("comment", &"x".repeat(100 << 20)));
    let layout = image(vec![[huge, tar(&["x=1"])].concat()]);
    run("a header of 100 MB", layout.path(), &[], true);
    let claims = hostile::block(b'x', b"pax", b"", 1 << 33, 0o644);
    let layout = image(vec![[claims, tar(&["x=1"])].concat()]);
    run("a header that claims 8 GB", layout.path(), &[], true);

    let layers: Vec<Vec<u8>> = (0..10_000).map(|n| tar(&[&format!("f{n}=x")])).collect();
    let layout = image(layers);
    let outcome = run("10,000 layers", layout.path(), &[], true);
    outcome.assert_stderr_has(&["more than 4096 layers: `--limit layers=N`"]);

    let mut padded = HostileImage::new(vec![tar(&["a=1"])]);
    padded.manifest["annotations"] = json!({ "x": "y".repeat(20 << 20) });
    let layout = scratch();
    padded.write(layout.path());
    run("a manifest of 20 MB", layout.path(), &[], true);
    let mut padded = HostileImage::new(vec![tar(&["a=1"])]);
    padded.config["history"] = json!([{ "comment": "y".repeat(20 << 20) }]);
    let layout = scratch();
    padded.write(layout.path());
    let outcome = run("a config of 20 MB", layout.path(), &[], true);
    outcome.assert_stderr_has(&["more than 8388608 bytes: `--limit document-size=N`"]);

    // Indexes: wide and deep.
    let wide = |count: usize| {
        let layout = scratch();
        let kind = "application/vnd.oci.image.manifest.v1+json";
        let one = json!({
            "mediaType": kind, "size": 7, "digest": format!("sha256:{}", "a".repeat(64)),
            "platform": { "os": "linux", "architecture": "s390x" },
        });
        hostile::write_index(layout.path(), &vec![one; count]);
        layout
    };
    run("an index of 30,000", wide(30_000).path(), &[], true);
    run("an index of 100,000", wide(100_000).path(), &[], true);
    let layout = scratch();
    let kind = "application/vnd.oci.image.index.v1+json";
    let mut inner = json!({
        "mediaType": kind, "size": 7, "digest": format!("sha256:{}", "a".repeat(64)),
    });
    for _ in 0..3000 {
        let index = json!({ "schemaVersion": 2, "mediaType": kind, "manifests": [inner] });
        inner = describe(layout.path(), kind, index.to_string().as_bytes());
    }
    hostile::write_index(layout.path(), &[inner]);
    run("3000 indexes in one another", layout.path(), &[], true);
    let nested = format!("{}{}", "[".repeat(1 << 20), "]".repeat(1 << 20));
    let layout = scratch();
    let manifest =
        describe(layout.path(), "application/vnd.oci.image.manifest.v1+json", nested.as_bytes());
    hostile::write_index(layout.path(), &[manifest]);
    run("a million brackets", layout.path(), &[], true);

    let (megabytes, seconds) = (worst.memory >> 20, worst.time.as_secs_f32());
    tell(7, &format!("most memory {megabytes} MB, longest {seconds:.1} s / {count} bombs"));
}

const COPY: &str = "FROM scratch\nCOPY . /\n";
const ADD: &str = "FROM scratch\nADD x.tar /\n";

#[test]
fn limits_hold_for_contexts_and_archives() {
    let context =
        context(&[("Dockerfile", "FROM scratch\nCOPY . /\n"), ("a/b/c", "1"), ("d", "22")]);
    let archive = tar(&["a=1", "d/", "d/x=333"]);
    let refused = |flags: &[&str], dockerfile: &str, text: &str| {
        fs_err::write(context.path().join("x.tar"), &archive).unwrap();
        fs_err::write(context.path().join("Dockerfile"), dockerfile).unwrap();
        let rbuild = Rbuild::new();
        let run = rbuild.build(&context).args(flags).args(["-o", "type=cacheonly"]);
        run.exits(1).assert_stderr_has(&[text, "Dockerfile:2"]);
    };
    refused(&["--limit", "context-files=3"], COPY, "more than 3 files: `--limit context-files=N`");
    refused(
        &["--limit", "context-size=100"],
        COPY,
        "more than 100 bytes: `--limit context-size=N`",
    );
    refused(&["--limit", "path-depth=2"], COPY, "more than 2 folders in one another");
    refused(&["--limit", "archive-files=2"], ADD, "more than 2 files: `--limit archive-files=N`");
    refused(&["--limit", "archive-size=1k"], ADD, "more than 1024 bytes: `--limit archive-size=N`");
    refused(&["--limit", "path-depth=1"], ADD, "more than 1 folders in one another");
}
