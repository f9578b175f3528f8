//! P1, P2, P7: images that were made to do harm, by the ways that lead into the local store: archives
//! for `load`, registries for `pull`, layouts for `FROM`.

use std::os::unix::fs::symlink;
use std::path::Path;

use rbuild_cache::digest::Digest;
use serde_json::{Value, json};

use crate::faulty_registry::FaultyRegistry;
use crate::figure::figure;
use crate::hostile_tar::{HostileImage, blob_path, describe, header, tar, write_index};
use crate::promise::{Cost, is_refusal, measured, tell};
use crate::rbuild::{Outcome, Rbuild, context, scratch};

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";

/// An archive that is being put together.
#[derive(Clone, Default)]
struct Archive(Vec<u8>);

impl Archive {
    fn entry(mut self, kind: u8, path: &str, link: &str, bytes: &[u8]) -> Self {
        self.0.extend(header(kind, path, link, bytes, 0o644));
        self
    }

    fn file(self, path: &str, bytes: impl AsRef<[u8]>) -> Self {
        self.entry(b'0', path, "", bytes.as_ref())
    }

    fn blob(self, bytes: impl AsRef<[u8]>) -> Self {
        let path = format!("blobs/sha256/{}", Digest::of(bytes.as_ref()).hex());
        self.file(&path, bytes)
    }

    /// With an index that names `root`.
    fn index(self, mut root: Value) -> Self {
        root["annotations"] = json!({"io.containerd.image.name": "example.org/hostile:v1"});
        self.file("index.json", json!({"schemaVersion": 2, "manifests": [root]}).to_string())
    }

    fn end(mut self) -> Vec<u8> {
        self.0.extend(tar(&[]));
        self.0
    }
}

fn descriptor(media_type: &str, bytes: impl AsRef<[u8]>) -> Value {
    let bytes = bytes.as_ref();
    json!({"mediaType": media_type, "digest": Digest::of(bytes), "size": bytes.len()})
}

/// The config, manifest and layer of an image with nothing wrong about it.
fn image() -> [Vec<u8>; 3] {
    let layer = tar(&["a=1"]);
    let config = json!({
        "architecture": "amd64", "os": "linux", "config": {},
        "rootfs": {"type": "layers", "diff_ids": [Digest::of(&layer)]},
    });
    let config = config.to_string().into_bytes();
    let manifest = json!({
        "schemaVersion": 2, "mediaType": MANIFEST, "config": descriptor(CONFIG, &config),
        "layers": [descriptor("application/vnd.oci.image.layer.v1.tar", &layer)],
    });
    [config, manifest.to_string().into_bytes(), layer]
}

fn load(rbuild: &Rbuild, archive: &[u8]) -> (Outcome, Cost) {
    let path = rbuild.home.path().join("hostile.tar");
    fs_err::write(&path, archive).unwrap();
    measured(rbuild.command().args(["load", "-i"]).arg(&path))
}

fn images(rbuild: &Rbuild) -> String {
    rbuild.command().args(["images", "-q"]).succeeds().stdout
}

#[test]
fn archives_that_lie_are_refused() {
    let [config, manifest, layer] = image();
    let root = descriptor(MANIFEST, &manifest);
    let whole = || Archive::default().blob(&config).blob(&manifest).blob(&layer);
    let name_of = |bytes: &[u8]| format!("blobs/sha256/{}", Digest::of(bytes).hex());
    let without_layer = || Archive::default().blob(&config).blob(&manifest);
    let docker = |config: &str, layer: &str| {
        let list = json!([{"Config": config, "RepoTags": ["a:b"], "Layers": [layer]}]);
        whole().file("manifest.json", list.to_string()).end()
    };
    let changed = |pointer: &str, value: Value| {
        let mut other: Value = serde_json::from_slice(&manifest).unwrap();
        *other.pointer_mut(pointer).unwrap() = value;
        let other = other.to_string();
        whole().blob(&other).index(descriptor(MANIFEST, &other)).end()
    };
    let root_with = |field: &str, value: Value| {
        let mut root = root.clone();
        root[field] = value;
        whole().index(root).end()
    };
    let zeros = {
        use std::io::{Read as _, Write as _};
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(&crate::hostile_tar::block(b'0', b"index.json", b"", 1 << 30, 0o644))
            .unwrap();
        std::io::copy(&mut std::io::repeat(b' ').take((1 << 30) + 1024), &mut gzip).unwrap();
        gzip.finish().unwrap()
    };
    let variants: Vec<(&str, Vec<u8>)> = vec![
        ("a blob that is a link out", {
            let link = without_layer().entry(b'2', &name_of(&layer), "/etc/passwd", b"");
            link.index(root.clone()).end()
        }),
        ("a blob that is a hard link out", {
            let link = without_layer().entry(b'1', &name_of(&layer), "../../etc/passwd", b"");
            link.index(root.clone()).end()
        }),
        ("a blob that is a pipe", {
            without_layer().entry(b'6', &name_of(&layer), "", b"").index(root.clone()).end()
        }),
        ("a blob that is a folder", {
            without_layer().entry(b'5', &name_of(&layer), "", b"").index(root.clone()).end()
        }),
        ("links in a circle", {
            let circle = without_layer().entry(b'2', &name_of(&layer), "x", b"");
            circle.entry(b'2', "blobs/sha256/x", "x", b"").index(root.clone()).end()
        }),
        ("an index that is a link", whole().entry(b'2', "index.json", "/etc/hosts", b"").end()),
        ("a blob under another name", {
            without_layer().file(&name_of(&layer), b"x").index(root.clone()).end()
        }),
        ("paths out of the archive", whole().file("../../../../tmp/rbuild-escaped", b"x").end()),
        ("a config outside", docker("/etc/passwd", &name_of(&layer))),
        ("a layer outside", docker(&name_of(&config), "../../../../etc/passwd")),
        ("a layer that is the config", docker(&name_of(&config), &name_of(&config))),
        ("a size that is too small", root_with("size", json!(3))),
        ("a size without end", root_with("size", json!(u64::MAX))),
        ("a negative size", root_with("size", json!(-1))),
        ("a digest that is a path", root_with("digest", json!("sha256:../../etc/passwd"))),
        ("a digest of another kind", {
            root_with("digest", json!(format!("sha512:{}", "a".repeat(128))))
        }),
        ("an index that is a manifest", root_with("mediaType", json!(INDEX))),
        ("no image at all", root_with("mediaType", json!("text/plain"))),
        ("layers that are not there", changed("/layers/0/digest", json!(Digest::of("x")))),
        ("a layer of another size", changed("/layers/0/size", json!(7))),
        ("more diff ids than layers", changed("/layers", json!([]))),
        ("a config that is no config", changed("/config", descriptor(CONFIG, &layer))),
        ("an image in itself", changed("/config", descriptor(INDEX, &manifest))),
        ("an index of 1 GB", zeros),
        ("a million brackets", {
            let deep = format!("{}{}", "[".repeat(1 << 20), "]".repeat(1 << 20));
            whole().file("index.json", deep).end()
        }),
    ];
    let (mut refused, mut worst) = (0, Cost::default());
    let count = variants.len();
    for (what, archive) in variants {
        let rbuild = Rbuild::new();
        let (outcome, cost) = load(&rbuild, &archive);
        worst = worst.max(cost);
        // A config of a type that nobody knows is an artifact's, which is kept as it is.
        let is_artifact = what == "an image in itself" && outcome.status.success();
        if is_artifact || (is_refusal(&outcome) && images(&rbuild).is_empty()) {
            refused += 1;
        } else {
            figure(&format!("{what}: {outcome}"));
        }
    }
    assert!(!Path::new("/tmp/rbuild-escaped").exists());
    let (megabytes, seconds) = (worst.memory >> 20, worst.time.as_secs_f32());
    tell(1, &format!("archives refused {refused} / {count}, {megabytes} MB, {seconds:.1} s"));
    assert_eq!(refused, count);
    assert!(megabytes < 1024, "{megabytes} MB");
}

#[test]
fn what_an_archive_calls_itself_does_not_steer_the_terminal() {
    let [config, manifest, layer] = image();
    let whole = Archive::default().blob(&config).blob(&manifest).blob(&layer);
    let mut root = descriptor(MANIFEST, &manifest);
    for key in ["io.containerd.image.name", "org.opencontainers.image.ref.name"] {
        root["annotations"] = json!({key: "evil\u{1b}[2J\u{1b}]0;x\u{7}:v1"});
        let index = json!({"schemaVersion": 2, "manifests": [root]}).to_string();
        let rbuild = Rbuild::new();
        let (outcome, _) = load(&rbuild, &whole.clone().file("index.json", index).end());
        assert!(is_refusal(&outcome), "{outcome}");
        let said = format!("{}{}", outcome.stdout, outcome.stderr);
        assert!(!said.contains(['\u{1b}', '\u{7}']), "{said:?}");
    }
}

/// Indexes in one another, each of which names the next one `width` times; the innermost names
/// `innermost`. From the inside out.
fn maze(depth: usize, width: usize, innermost: &Value) -> Vec<Vec<u8>> {
    let (mut indexes, mut child) = (Vec::new(), innermost.clone());
    for _ in 0..depth {
        let list = vec![child; width];
        let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": list});
        let bytes = index.to_string().into_bytes();
        child = descriptor(INDEX, &bytes);
        indexes.push(bytes);
    }
    indexes
}

#[test]
fn what_is_named_a_thousand_times_is_looked_at_once() {
    // 3000 to the power of 4 ways lead to the one image.
    let [config, manifest, layer] = image();
    let mut entry = descriptor(MANIFEST, &manifest);
    entry["platform"] = json!({"os": "linux", "architecture": "amd64"});
    let indexes = maze(4, 3000, &entry);
    let root = indexes.last().unwrap();

    let mut archive = Archive::default().blob(&config).blob(&manifest).blob(&layer);
    for index in &indexes {
        archive = archive.blob(index);
    }
    let rbuild = Rbuild::new();
    let (loaded, cost) = load(&rbuild, &archive.index(descriptor(INDEX, root)).end());
    assert!(loaded.status.success(), "{loaded}");
    let mut worst = cost;

    let registry = FaultyRegistry::start(|_| None);
    for blob in [&config, &layer] {
        registry.put_blob(blob);
    }
    registry.put_document("maze:one", MANIFEST, &manifest);
    for index in &indexes {
        registry.put_document("maze:all", INDEX, index);
    }
    let name = registry.image("maze:all");
    let puller = Rbuild::new();
    for (flags, rbuild) in [(&["pull", "-q", "--all-platforms"][..], &puller), (&["push"], &puller)]
    {
        let (outcome, cost) = measured(rbuild.command().args(flags).arg(&name));
        assert!(outcome.status.success(), "{outcome}");
        worst = worst.max(cost);
    }
    let asked = registry.asked().len();
    let (megabytes, seconds) = (worst.memory >> 20, worst.time.as_secs_f32());
    tell(7, &format!("a maze of indexes: {megabytes} MB, {seconds:.1} s, {asked} requests"));
    assert!(megabytes < 1024 && asked < 30, "{megabytes} MB, {asked} requests");
}

#[test]
fn an_index_that_lies_about_its_manifests_is_not_pulled() {
    let [config, manifest, layer] = image();
    let registry = FaultyRegistry::start(|_| None);
    for blob in [&config, &layer] {
        registry.put_blob(blob);
    }
    registry.put_document("app:one", MANIFEST, &manifest);
    let mut entry = descriptor(MANIFEST, &manifest);
    entry["size"] = json!(manifest.len() + 1);
    let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [entry]});
    registry.put_document("app:all", INDEX, index.to_string().as_bytes());
    let rbuild = Rbuild::new();
    for flags in [&["pull", "--all-platforms"][..], &["pull"]] {
        let run = rbuild.command().args(flags).arg(registry.image("app:all"));
        let refused = run.exits(1);
        refused.assert_stderr_has(&["bytes instead of"]);
        assert_eq!(images(&rbuild), "");
    }
}

/// What is done to a layout.
type Trap<'a> = &'a dyn Fn(&Path);

#[test]
fn layouts_that_are_traps_are_refused() {
    let folder = context(&[("Dockerfile", "FROM hostile\n")]);
    let fifo = |path: &Path| {
        let _ = fs_err::remove_file(path);
        let kind = rustix::fs::FileType::Fifo;
        rustix::fs::mknodat(rustix::fs::CWD, path, kind, 0o600.into(), 0).unwrap();
    };
    let link = |target: &str, path: &Path| {
        let _ = fs_err::remove_file(path);
        symlink(target, path).unwrap();
    };
    let traps: [(&str, Trap<'_>); 9] = [
        ("an index that is a pipe", &|layout| fifo(&layout.join("index.json"))),
        ("a marker that is a pipe", &|layout| fifo(&layout.join("oci-layout"))),
        ("an index without end", &|layout| link("/dev/zero", &layout.join("index.json"))),
        ("a marker without end", &|layout| link("/dev/zero", &layout.join("oci-layout"))),
        ("an index that is a device", &|layout| link("/dev/tty", &layout.join("index.json"))),
        ("an index in a circle", &|layout| link("index.json", &layout.join("index.json"))),
        ("blobs in a circle", &|layout| {
            fs_err::remove_dir_all(layout.join("blobs")).unwrap();
            link("blobs", &layout.join("blobs"));
        }),
        ("an index of 1 GB", &|layout| {
            let index = fs_err::OpenOptions::new().write(true).open(layout.join("index.json"));
            index.unwrap().set_len(1 << 30).unwrap();
        }),
        ("an image in a maze", &|layout| {
            let bytes = fs_err::read(layout.join("index.json")).unwrap();
            let index: Value = serde_json::from_slice(&bytes).unwrap();
            let mut inner = index["manifests"][0].clone();
            for _ in 0..6 {
                let list = vec![inner; 2000];
                let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": list});
                inner = describe(layout, INDEX, index.to_string().as_bytes());
            }
            write_index(layout, &[inner]);
        }),
    ];
    let (mut refused, mut worst) = (0, Cost::default());
    for (what, trap) in traps {
        let (layout, rbuild) = (scratch(), Rbuild::new());
        let digests = HostileImage::new(vec![tar(&["a=1"])]).write(layout.path());
        assert!(blob_path(layout.path(), &digests[0]).exists());
        trap(layout.path());
        let run = rbuild.command().args(["build"]).base("hostile", layout.path());
        let (outcome, cost) = measured(run.args(["-o", "type=cacheonly"]).arg(folder.path()));
        worst = worst.max(cost);
        if is_refusal(&outcome) {
            refused += 1;
        } else {
            figure(&format!("{what}: {outcome}"));
        }
    }
    let (megabytes, seconds) = (worst.memory >> 20, worst.time.as_secs_f32());
    tell(1, &format!("layouts refused {refused} / 9, {megabytes} MB, {seconds:.1} s"));
    assert_eq!(refused, 9);
    assert!(megabytes < 1024 && seconds < 60.0);
}
