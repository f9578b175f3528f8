//! `save` and `load`: archives from and for others, every kind both ways.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::Path;

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::archive::tar_files;
use crate::needs::{self, Need, lacking};
use crate::podman::{self, Podman};
use crate::rbuild::{Rbuild, context, run, scratch};

/// An image with a layer, an empty layer, and a command to run.
const DOCKERFILE: &str = "\
FROM busybox
COPY file /file
RUN true
CMD [\"cat\", \"/file\"]
";

fn sample() -> tempfile::TempDir {
    context(&[("Dockerfile", DOCKERFILE), ("file", "text\n")])
}

/// A state folder with the image `sample:v1`, written as `output` says.
fn built(output: &str) -> Rbuild {
    let (rbuild, sample) = (Rbuild::new(), sample());
    rbuild.build(&sample).args(["-t", "sample:v1", "-o", output]).succeeds();
    rbuild
}

impl Rbuild {
    /// A field of an image, as a template gives it.
    fn field(&self, image: &str, template: &str) -> String {
        let run = self.command().args(["inspect", "-f", template, image]);
        run.succeeds().stdout.trim().to_owned()
    }
}

#[test]
fn several_images_are_saved_and_loaded_with_their_names() {
    let (rbuild, out) = (Rbuild::new(), scratch());
    for name in ["one", "two"] {
        let dockerfile = format!("FROM scratch\nLABEL name={name}\n");
        let context = context(&[("Dockerfile", &dockerfile)]);
        let tags = ["-t".to_owned(), format!("{name}:v1"), "-t".to_owned(), format!("me/{name}")];
        rbuild.command().arg("build").args(tags).arg(context.path()).succeeds();
    }
    let tar = out.path().join("all.tar");
    let saved = rbuild.command().args(["save", "-o"]).arg(&tar);
    saved.args(["one:v1", "me/one", "two:v1"]).succeeds();
    let other = Rbuild::new();
    let loaded = other.command().args(["load", "-i"]).arg(&tar).succeeds();
    let mut lines: Vec<&str> = loaded.stdout.lines().collect();
    lines.sort_unstable();
    let expected = ["Loaded image: me/one:latest", "Loaded image: one:v1", "Loaded image: two:v1"];
    assert_eq!(lines, expected);
    for name in ["one:v1", "two:v1"] {
        assert_eq!(other.field(name, "{{.Digest}}"), rbuild.field(name, "{{.Digest}}"));
    }
    // What is loaded is saved as the same bytes.
    let again = out.path().join("again.tar");
    let saved = other.command().args(["save", "-o"]).arg(&again);
    saved.args(["one:v1", "me/one", "two:v1"]).succeeds();
    assert!(fs_err::read(&tar).unwrap() == fs_err::read(&again).unwrap());
}

#[test]
fn every_kind_of_archive_goes_through_skopeo_and_back() {
    if lacking(&[&needs::STEPS[..], &[Need::Program("skopeo")]].concat()) {
        return;
    }
    for output in [
        "type=image",
        "type=image,compression=zstd,force-compression=true",
        "type=image,compression=uncompressed",
        "type=image,oci-mediatypes=false",
    ] {
        let (rbuild, out) = (built(output), scratch());
        let tar = out.path().join("saved.tar");
        rbuild.command().args(["save", "-o"]).arg(&tar).arg("sample:v1").succeeds();
        let (id, digest) =
            (rbuild.field("sample:v1", "{{.Id}}"), rbuild.field("sample:v1", "{{.Digest}}"));
        for (from, to) in [
            ("oci-archive", "oci-archive"),
            ("oci-archive", "docker-archive"),
            ("docker-archive", "docker-archive"),
            ("docker-archive", "oci-archive"),
        ] {
            // Docker's media types have no zstd, and skopeo does not turn it into another.
            if output.contains("zstd") && from != to && to == "docker-archive" {
                continue;
            }
            // In an OCI layout skopeo finds images of the OCI's types alone.
            if output.contains("oci-mediatypes") && from == "oci-archive" {
                continue;
            }
            let copy = out.path().join(format!("{from}-{to}.tar"));
            let source = match from {
                "oci-archive" => format!("{from}:{}:v1", tar.display()),
                _ => format!("{from}:{}", tar.display()),
            };
            let copied = format!("{to}:{}:example.org/copy:v2", copy.display());
            run("skopeo", &["copy", "-q", &source, &copied]);
            let other = Rbuild::new();
            let loaded = other.command().args(["load", "-i"]).arg(&copy).succeeds();
            assert_eq!(
                loaded.stdout, "Loaded image: example.org/copy:v2\n",
                "{output} {from} {to}"
            );
            let oci = from == "oci-archive" && !output.contains("oci-mediatypes");
            // From Docker's to the OCI's, skopeo writes configs anew.
            if oci || to == "docker-archive" {
                assert_eq!(
                    other.field("example.org/copy:v2", "{{.Id}}"),
                    id,
                    "{output} {from} {to}"
                );
            }
            // What is not compressed skopeo compresses.
            let kept = oci && to == "oci-archive" && !output.contains("uncompressed");
            if kept {
                assert_eq!(other.field("example.org/copy:v2", "{{.Digest}}"), digest, "{output}");
            }
            // It can be built on: its layers unpack to what its config says.
            let on_top =
                context(&[("Dockerfile", "FROM example.org/copy:v2\nRUN grep -q text /file\n")]);
            other.command().arg("build").arg(on_top.path()).succeeds();
        }
    }
}

#[test]
fn an_index_stays_one_and_a_platform_can_be_taken_of_it() {
    let (rbuild, out) = (Rbuild::new(), scratch());
    let context =
        context(&[("Dockerfile", "FROM scratch\nARG TARGETARCH\nLABEL arch=$TARGETARCH\n")]);
    let build = rbuild.command().args(["build", "--platform", "linux/amd64,linux/arm64"]);
    build.args(["-t", "multi:v1"]).arg(context.path()).succeeds();
    let tar = out.path().join("multi.tar");
    rbuild.command().args(["save", "-o"]).arg(&tar).arg("multi:v1").succeeds();
    let other = Rbuild::new();
    other.command().args(["load", "-q", "-i"]).arg(&tar).succeeds();
    assert_eq!(other.field("multi:v1", "{{.Digest}}").lines().count(), 2, "two platforms");
    assert_eq!(other.field("multi:v1", "{{.Digest}}"), rbuild.field("multi:v1", "{{.Digest}}"));
    let arm = Rbuild::new();
    let load = arm.command().args(["load", "--platform", "linux/arm64", "-i"]);
    load.arg(&tar).succeeds();
    assert_eq!(arm.field("multi:v1", "{{.Architecture}}"), "arm64");
    let one = out.path().join("one.tar");
    let save = rbuild.command().args(["save", "--platform", "linux/arm64", "-o"]);
    save.arg(&one).arg("multi:v1").succeeds();
    let arm = Rbuild::new();
    arm.command().args(["load", "-i"]).arg(&one).succeeds();
    assert_eq!(arm.field("multi:v1", "{{.Architecture}}"), "arm64");
    let missing = rbuild.command().args(["save", "--platform", "linux/s390x", "-o"]);
    missing
        .arg(&one)
        .arg("multi:v1")
        .exits(1)
        .assert_stderr_has(&["s390x", "linux/amd64, linux/arm64"]);
    let missing = arm.command().args(["load", "--platform", "linux/s390x", "-i"]);
    missing.arg(&tar).exits(1).assert_stderr_has(&["s390x"]);
}

#[test]
fn podman_loads_what_is_saved_and_its_archives_are_loaded() {
    if lacking(&[&needs::STEPS[..], &podman::NEEDED].concat()) {
        return;
    }
    let (rbuild, out, podman) = (built("type=image"), scratch(), Podman::new());
    let tar = out.path().join("saved.tar");
    rbuild.command().args(["save", "-o"]).arg(&tar).arg("sample:v1").succeeds();
    let loaded = podman.run(&["load", "--quiet", "--input", tar.to_str().unwrap()]);
    let name = loaded.trim().rsplit(' ').next().unwrap().to_owned();
    assert_eq!(podman.run_image(&name, &[]), "text\n");
    for format in ["docker-archive", "oci-archive"] {
        let tar = out.path().join(format);
        let file = tar.to_str().unwrap();
        podman.run(&["save", "--quiet", "--format", format, "--output", file, &name]);
        let other = Rbuild::new();
        other.command().args(["load", "-i"]).arg(&tar).succeeds();
        assert_eq!(other.field(&name, "{{.Id}}"), rbuild.field("sample:v1", "{{.Id}}"), "{format}");
    }
}

/// Files of a tar.
type Files = BTreeMap<String, Vec<u8>>;

/// A tar of files.
fn tar(path: &Path, files: &[(&str, &[u8])]) {
    let mut tar = tar::Builder::new(fs_err::File::create(path).unwrap());
    for (name, bytes) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, name, *bytes).unwrap();
    }
    tar.into_inner().unwrap().flush().unwrap();
}

fn hex(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

fn descriptor(media_type: &str, bytes: &[u8]) -> Value {
    json!({"mediaType": media_type, "digest": format!("sha256:{}", hex(bytes)), "size": bytes.len()})
}

#[test]
fn a_foreign_layer_stays_where_it_is() {
    let out = scratch();
    let layer = b"somewhere else".to_vec();
    let config = json!({
        "architecture": "amd64", "os": "linux", "config": {},
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{}", hex(b"x"))]},
    });
    // Blanks and a field that nobody knows: they are kept.
    let config = format!("{config:#}\n").into_bytes();
    let mut foreign =
        descriptor("application/vnd.oci.image.layer.nondistributable.v1.tar+gzip", &layer);
    foreign["urls"] = json!(["https://example.invalid/layer"]);
    let manifest = json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": descriptor("application/vnd.oci.image.config.v1+json", &config),
        "layers": [foreign], "x-unknown": {"kept": true},
    });
    let manifest = format!("{manifest:#}").into_bytes();
    let mut named = descriptor("application/vnd.oci.image.manifest.v1+json", &manifest);
    named["annotations"] = json!({"io.containerd.image.name": "example.org/foreign:v1"});
    let index = json!({"schemaVersion": 2, "manifests": [named]}).to_string();
    let path = out.path().join("foreign.tar");
    let (config_name, manifest_name) =
        (format!("blobs/sha256/{}", hex(&config)), format!("blobs/sha256/{}", hex(&manifest)));
    tar(
        &path,
        &[
            (&config_name, &config),
            (&manifest_name, &manifest),
            ("index.json", index.as_bytes()),
            ("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#),
        ],
    );
    let rbuild = Rbuild::new();
    rbuild.command().args(["load", "-i"]).arg(&path).succeeds();
    let saved = out.path().join("saved.tar");
    rbuild.command().args(["save", "-o"]).arg(&saved).arg("example.org/foreign:v1").succeeds();
    let files = tar_files(fs_err::File::open(&saved).unwrap());
    assert_eq!(files[&manifest_name], manifest, "byte for byte");
    assert_eq!(files[&config_name], config, "byte for byte");
    assert!(!files.contains_key(&format!("blobs/sha256/{}", hex(&layer))));
    let list: Value = serde_json::from_slice(&files["manifest.json"]).unwrap();
    let source = &list[0]["LayerSources"][format!("sha256:{}", hex(b"x"))];
    assert_eq!(source["urls"][0], "https://example.invalid/layer");
}

#[test]
fn wrong_archives_are_refused_and_leave_no_name() {
    let (rbuild, out) = (Rbuild::new(), scratch());
    let context = context(&[("Dockerfile", "FROM scratch\nCOPY file /\n"), ("file", "text\n")]);
    rbuild.command().args(["build", "-t", "sample:v1"]).arg(context.path()).succeeds();
    let good = out.path().join("good.tar");
    rbuild.command().args(["save", "-o"]).arg(&good).arg("sample:v1").succeeds();
    let whole: Files = tar_files(fs_err::File::open(&good).unwrap());
    let manifest = rbuild.field("sample:v1", "{{.Digest}}");
    let layer = rbuild.field("sample:v1", "{{(index .Layers 0).digest}}");
    let blob = |digest: &str| format!("blobs/sha256/{}", digest.strip_prefix("sha256:").unwrap());
    let bytes = fs_err::read(&good).unwrap();

    let bad = out.path().join("bad.tar");
    let check = |expected: &[&str]| {
        let other = Rbuild::new();
        let outcome = other.command().args(["load", "-i"]).arg(&bad).exits(1);
        outcome.assert_stderr_has(&[&["cannot load `", "bad.tar`"], expected].concat());
        assert_eq!(other.command().args(["images", "-q"]).succeeds().stdout, "");
    };
    let with = |change: &dyn Fn(&mut Files)| {
        let mut files = whole.clone();
        change(&mut files);
        let files: Vec<(&str, &[u8])> = files
            .iter()
            .filter(|(name, _)| !name.ends_with('/'))
            .map(|(name, bytes)| (name.as_str(), bytes.as_slice()))
            .collect();
        tar(&bad, &files);
    };
    for part in [1, 3, 5, 7] {
        fs_err::write(&bad, &bytes[..bytes.len() / 10 * part + 77]).unwrap();
        let other = Rbuild::new();
        other.command().args(["load", "-i"]).arg(&bad).exits(1);
        assert_eq!(other.command().args(["images", "-q"]).succeeds().stdout, "");
    }
    fs_err::write(&bad, &bytes[..2000]).unwrap();
    check(&["the archive is cut short", "save it again"]);
    fs_err::write(&bad, "not an archive, but long enough to be a block of one\n".repeat(20))
        .unwrap();
    check(&["not an archive of images"]);
    for (short, said) in [("", "but empty"), ("hello\n", "but too short for a tar")] {
        fs_err::write(&bad, short).unwrap();
        check(&["not an archive of images", said, "docker save"]);
    }
    tar(&bad, &[("etc/passwd", b"root")]);
    check(&["neither `index.json` nor `manifest.json`", "docker import"]);
    with(&|files| drop(files.remove(&blob(&layer))));
    check(&[&layer, "is named in it, but is not in it"]);
    with(&|files| drop(files.remove(&blob(&manifest))));
    check(&[&manifest, "is named in it, but is not in it"]);
    with(&|files| files.get_mut(&blob(&layer)).unwrap()[20] ^= 1);
    check(&[&layer, "is damaged"]);
    with(&|files| drop(files.insert("index.json".into(), b"{".to_vec())));
    check(&["`index.json` in it cannot be read"]);
    // As an archive of Docker's older form, whose config names another layer.
    with(&|files| {
        files.remove("index.json");
        files.remove("oci-layout");
        let list: Value = serde_json::from_slice(&files["manifest.json"]).unwrap();
        let config = list[0]["Config"].as_str().unwrap().to_owned();
        let wrong = String::from_utf8(files.remove(&config).unwrap()).unwrap();
        let mut wrong: Value = serde_json::from_str(&wrong).unwrap();
        wrong["rootfs"]["diff_ids"][0] = format!("sha256:{}", hex(b"other")).into();
        files.insert("config.json".into(), wrong.to_string().into_bytes());
        let list =
            json!([{"Config": "config.json", "RepoTags": ["a:b"], "Layers": list[0]["Layers"]}]);
        files.insert("manifest.json".into(), list.to_string().into_bytes());
    });
    check(&["but the image's config says", &hex(b"other")]);

    let absent = rbuild.command().args(["load", "-i", "/no/such/file"]).exits(3);
    absent.assert_stderr_has(&["/no/such/file"]);
    let output = rbuild.command().args(["save", "-o", "/no/such/folder/a.tar", "sample:v1"]);
    output.exits(3).assert_stderr_has(&["cannot write `/no/such/folder/a.tar`"]);
    let unknown = rbuild.command().args(["save", "-o"]).arg(&bad).arg("unknown:v9").exits(1);
    unknown.assert_stderr_has(&["there is no image `unknown:v9`", "rbuild images"]);
}

#[test]
fn an_image_without_a_name_needs_one() {
    let (rbuild, out) = (Rbuild::new(), scratch());
    let context = context(&[("Dockerfile", "FROM scratch\nLABEL a=b\n")]);
    let tar = out.path().join("nameless.tar");
    rbuild.build(&context).output("type=oci", &tar).succeeds();
    let refused = rbuild.command().args(["load", "-i"]).arg(&tar).exits(1);
    refused.assert_stderr_has(&["has no name", "give it one with `-t NAME`"]);
    rbuild.command().args(["load", "-t", "given:v1", "-i"]).arg(&tar).succeeds();
    assert_eq!(rbuild.field("given:v1", "{{.Os}}"), "linux");
}
