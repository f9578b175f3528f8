//! Archives of images that unpack to more than anybody wants: `load` takes no more than the limits
//! say, and holds none of it in memory.

use std::io::Write as _;
use std::path::Path;
use std::time::Duration;

use rbuild_cache::digest::Digest;
use serde_json::json;

use crate::hostile_tar::{block, header, pax, record, tar};
use crate::promise::measured;
use crate::rbuild::{Rbuild, Run, scratch};

/// What `load` may hold in memory, in bytes, of archives that say they are larger.
const MEMORY: u64 = 200 << 20;

/// A tar of these entries.
fn archive(entries: &[Vec<u8>]) -> Vec<u8> {
    let mut tar = entries.concat();
    tar.resize(tar.len() + 1024, 0);
    tar
}

fn file(path: &str, bytes: &[u8]) -> Vec<u8> {
    header(b'0', path, "", bytes, 0o644)
}

/// An archive of Docker's older form with these layers, as they are.
fn docker_archive(layers: &[(&str, Vec<u8>)], diff_ids: &[String]) -> Vec<u8> {
    let config = json!({
        "os": "linux", "architecture": "amd64",
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    });
    let names: Vec<&str> = layers.iter().map(|(name, _)| *name).collect();
    let list = json!([{"Config": "c.json", "RepoTags": ["a:b"], "Layers": names}]);
    let mut entries: Vec<Vec<u8>> = layers.iter().map(|(name, bytes)| file(name, bytes)).collect();
    entries.push(file("c.json", config.to_string().as_bytes()));
    entries.push(file("manifest.json", list.to_string().as_bytes()));
    archive(&entries)
}

/// `length` zeros, compressed.
fn gzip_of_zeros(length: u64) -> Vec<u8> {
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    std::io::copy(&mut std::io::Read::take(std::io::repeat(0), length), &mut gzip).unwrap();
    gzip.finish().unwrap()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(bytes).unwrap();
    gzip.finish().unwrap()
}

fn load(rbuild: &Rbuild, path: &Path, flags: &[&str]) -> Run {
    rbuild.command().args(["load", "-i"]).arg(path).args(flags)
}

/// Loads `bytes` with `flags`, which must be refused with `text`, and leave nothing behind.
#[track_caller]
fn refused(bytes: &[u8], flags: &[&str], text: &str) {
    let (rbuild, folder) = (Rbuild::new(), scratch());
    let path = folder.path().join("a.tar");
    fs_err::write(&path, bytes).unwrap();
    let (outcome, cost) = measured(load(&rbuild, &path, flags));
    assert_eq!(outcome.status.code(), Some(1), "{outcome}");
    outcome.assert_stderr_has(&["cannot load", text]);
    assert!(outcome.stderr.lines().count() < 8, "{outcome}");
    assert_eq!(rbuild.leftovers(), [] as [std::path::PathBuf; 0]);
    let listed = rbuild.command().args(["images", "-q"]).succeeds();
    assert_eq!(listed.stdout, "");
    assert!(cost.memory < MEMORY, "{} bytes of memory: {outcome}", cost.memory);
}

#[test]
fn bytes_are_limited_however_they_are_packed() {
    let more = "it has more than 67108864 bytes: `--limit archive-size=N`";
    let flags = ["--limit", "archive-size=64m"];
    // Zeros are the end of a tar: what comes behind it is not read where nothing came before, and to
    // the end where something did.
    refused(&gzip_of_zeros(256 << 20), &flags, "not an archive of images, but empty");
    let begun = tar(&["x=1"]);
    refused(&[gzip(&begun), gzip_of_zeros(256 << 20)].concat(), &flags, more);
    let start = block(b'0', b"blobs/sha256/x", b"", 256 << 20, 0o644);
    refused(&[gzip(&start), gzip_of_zeros(256 << 20)].concat(), &flags, more);
    // A hole of 8 GB that takes up 1 KB.
    let sparse = [
        pax(&[
            record("GNU.sparse.major", "1"),
            record("GNU.sparse.minor", "0"),
            record("GNU.sparse.name", "x/layer.tar"),
            record("GNU.sparse.realsize", &(8_u64 << 30).to_string()),
        ]
        .concat()),
        header(
            b'0',
            "x",
            "",
            &[b"1\n8589934591\n1\n".to_vec(), vec![0; 497], vec![1]].concat(),
            0o644,
        ),
    ];
    refused(&archive(&sparse), &flags, more);

    // A layer that is a bomb is as long as it is until somebody wants to know what is in it.
    let bomb = gzip_of_zeros(256 << 20);
    let of_a_layer = "a layer has more than 67108864 bytes: `--limit layer-size=N`";
    let anything = format!("sha256:{}", "a".repeat(64));
    let bombs = docker_archive(&[("x/layer.tar", bomb)], &[anything]);
    refused(&bombs, &["--limit", "layer-size=64m"], of_a_layer);
}

#[test]
fn entries_layers_and_folders_are_counted() {
    let names: Vec<String> = (0..40_000).map(|n| format!("f{n}=x")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let flags = ["--limit", "archive-files=2000"];
    refused(&tar(&names), &flags, "it has more than 2000 files: `--limit archive-files=N`");
    let links: Vec<String> = (0..40_000).map(|n| format!("l{n}->x")).collect();
    let links: Vec<&str> = links.iter().map(String::as_str).collect();
    refused(&tar(&links), &flags, "it has more than 2000 files: `--limit archive-files=N`");
    let deep = format!("{}x=1", "d/".repeat(1000));
    let text = "it has more than 500 folders in one another: `--limit path-depth=N`";
    refused(&tar(&[&deep]), &["--limit", "path-depth=500"], text);

    let layer = tar(&["a=1"]);
    let diff_id = format!("sha256:{}", hex(&layer));
    let layers: Vec<(&str, Vec<u8>)> = vec![("x/layer.tar", layer); 20];
    let many = docker_archive(&layers, &vec![diff_id; 20]);
    let text = "an image has more than 10 layers: `--limit layers=N`";
    refused(&many, &["--limit", "layers=10"], text);
}

#[test]
fn what_can_be_no_part_of_an_image_is_passed_over() {
    let most = ["--limit", "archive-parts=10"];
    let layer = tar(&["a=1"]);
    let diff_id = format!("sha256:{}", hex(&layer));
    let image = docker_archive(&[("x/layer.tar", layer)], &[diff_id]);
    let among = |path: fn(usize) -> String| {
        let mut entries: Vec<Vec<u8>> =
            (0..2000).map(|n| file(&path(n), &n.to_be_bytes())).collect();
        entries.push(image.clone());
        entries.concat()
    };
    let elsewhere: [fn(usize) -> String; 2] =
        [|n| format!("usr/lib/{n}"), |n| format!("{n}{}", "x".repeat(300))];
    for path in elsewhere {
        let (rbuild, folder) = (Rbuild::new(), scratch());
        let archive = folder.path().join("a.tar");
        fs_err::write(&archive, among(path)).unwrap();
        load(&rbuild, &archive, &most).succeeds();
        let blobs = fs_err::read_dir(rbuild.root.join("blobs/sha256")).unwrap().count();
        assert!(blobs < 10, "{blobs}");
    }
    let text = "it has more than 10 files: `--limit archive-parts=N`";
    let parts: [fn(usize) -> String; 3] =
        [|n| format!("{n}.json"), |n| format!("blobs/sha256/{n}"), |n| format!("{n}/json")];
    for path in parts {
        refused(&among(path), &most, text);
    }
    let links: Vec<String> = (0..20).map(|n| format!("l{n}->x")).collect();
    let links: Vec<&str> = links.iter().map(String::as_str).collect();
    refused(&tar(&links), &most, text);
}

/// Each time that a layer is named, it could be unpacked anew.
#[test]
fn a_layer_that_is_named_often_is_unpacked_once() {
    const TIMES: usize = 1000;
    let (size, layer) = (64 << 20, "x/layer.tar.gz");
    let (diff_id, _) = Digest::of_stream(std::io::Read::take(std::io::repeat(0), size)).unwrap();
    let config = json!({
        "os": "linux", "architecture": "amd64",
        "rootfs": {"type": "layers", "diff_ids": vec![diff_id.to_string(); TIMES]},
    });
    let layers = vec![layer; TIMES];
    let list = json!([{"Config": "c.json", "RepoTags": ["a:b"], "Layers": layers}]);
    let bytes = archive(&[
        file(layer, &gzip_of_zeros(size)),
        file("c.json", config.to_string().as_bytes()),
        file("manifest.json", list.to_string().as_bytes()),
    ]);
    let (rbuild, folder) = (Rbuild::new(), scratch());
    let path = folder.path().join("a.tar");
    fs_err::write(&path, bytes).unwrap();
    let (outcome, cost) = measured(load(&rbuild, &path, &[]));
    assert!(outcome.status.success(), "{outcome}");
    assert!(cost.time < Duration::from_mins(1), "{:?}", cost.time);
}

#[test]
fn an_image_that_is_named_often_is_looked_at_once() {
    const TIMES: usize = 5000;
    let config = json!({
        "os": "linux", "architecture": "amd64", "rootfs": {"type": "layers", "diff_ids": []},
    });
    let config = config.to_string();
    let manifest = json!({
        "schemaVersion": 2, "config": descriptor("config", &config), "layers": [],
        "annotations": {"long": "x".repeat(4 << 20)},
    });
    let manifest = manifest.to_string();
    let roots = vec![descriptor("manifest", &manifest); TIMES];
    let index = json!({"schemaVersion": 2, "manifests": roots}).to_string();
    let blob =
        |bytes: &str| file(&format!("blobs/sha256/{}", hex(bytes.as_bytes())), bytes.as_bytes());
    let bytes = archive(&[blob(&config), blob(&manifest), file("index.json", index.as_bytes())]);
    let (rbuild, folder) = (Rbuild::new(), scratch());
    let path = folder.path().join("a.tar");
    fs_err::write(&path, bytes).unwrap();
    let (outcome, cost) = measured(load(&rbuild, &path, &["-t", "a:b"]));
    assert!(outcome.status.success(), "{outcome}");
    assert!(cost.time < Duration::from_mins(1), "{:?}", cost.time);
}

#[test]
fn documents_are_no_longer_than_such_may_be() {
    let text = "more than 8388608 bytes: `--limit document-size=N`";
    let long = json!({"schemaVersion": 2, "x": "y".repeat(20 << 20)}).to_string();
    for name in ["index.json", "manifest.json"] {
        refused(&archive(&[file(name, long.as_bytes())]), &[], &format!("`{name}` has {text}"));
    }
    // A manifest, and a config, of an OCI layout.
    let oci = |manifest: &str, config: &str| {
        let blob = |bytes: &str| {
            file(&format!("blobs/sha256/{}", hex(bytes.as_bytes())), bytes.as_bytes())
        };
        let index = json!({"schemaVersion": 2, "manifests": [descriptor("manifest", manifest)]});
        archive(&[blob(manifest), blob(config), file("index.json", index.to_string().as_bytes())])
    };
    refused(&oci(&long, "{}"), &[], &format!("sha256:{}` has {text}", hex(long.as_bytes())));
    let manifest = json!({
        "schemaVersion": 2, "config": descriptor("config", &long), "layers": [],
    });
    let of_config = format!("sha256:{}` has {text}", hex(long.as_bytes()));
    refused(&oci(&manifest.to_string(), &long), &[], &of_config);
    let list = json!([{"Config": "c.json", "RepoTags": ["a:b"], "Layers": []}]);
    let docker = archive(&[
        file("c.json", long.as_bytes()),
        file("manifest.json", list.to_string().as_bytes()),
    ]);
    refused(&docker, &[], &of_config);
}

#[test]
fn a_layer_that_begins_with_a_hole_is_loaded_whole() {
    let mut layer = vec![0; 1 << 20];
    layer[(1 << 20) - 1] = 0;
    let diff_id = format!("sha256:{}", hex(&layer));
    let config = json!({
        "os": "linux", "architecture": "amd64",
        "rootfs": {"type": "layers", "diff_ids": [diff_id]},
    });
    let list = json!([{"Config": "c.json", "RepoTags": ["a:b"], "Layers": ["x/layer.tar"]}]);
    let sparse = [
        pax(&[
            record("GNU.sparse.major", "1"),
            record("GNU.sparse.minor", "0"),
            record("GNU.sparse.name", "x/layer.tar"),
            record("GNU.sparse.realsize", &(1 << 20).to_string()),
        ]
        .concat()),
        header(
            b'0',
            "x",
            "",
            &[b"1\n1048575\n1\n".to_vec(), vec![0; 500], vec![0]].concat(),
            0o644,
        ),
        file("c.json", config.to_string().as_bytes()),
        file("manifest.json", list.to_string().as_bytes()),
    ];
    let (rbuild, folder) = (Rbuild::new(), scratch());
    let path = folder.path().join("a.tar");
    fs_err::write(&path, archive(&sparse)).unwrap();
    assert_eq!(load(&rbuild, &path, &[]).succeeds().stdout, "Loaded image: a:b\n");
}

fn hex(bytes: &[u8]) -> String {
    Digest::of(bytes).hex()
}

fn descriptor(kind: &str, bytes: &str) -> serde_json::Value {
    json!({
        "mediaType": format!("application/vnd.oci.image.{kind}.v1+json"),
        "digest": format!("sha256:{}", hex(bytes.as_bytes())),
        "size": bytes.len(),
    })
}
