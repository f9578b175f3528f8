//! `--cache-to` and `--cache-from`: a machine that never built runs what changed and nothing else,
//! and a cache that is broken costs time only.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::faulty_registry::{FaultyRegistry, Reply, status};
use crate::needs::{self, lacking};
use crate::rbuild::{Outcome, Rbuild, Run, context, json as read_json, scratch, write};
use crate::registry::{self, PASSWORD, TestRegistry, USER};

/// Two stages: what the second copies is all that it sees of the first.
const TWO_STAGES: &str = "\
FROM busybox AS build
WORKDIR /src
COPY --chown=daemon source .
RUN wc -c < source > /lines && mkdir /deep && mkfifo /deep/fifo && echo made > /out
FROM busybox
COPY --from=build /out /out
RUN cp /out /copy && mkdir /new && echo x > /new/x
CMD [\"cat\", \"/copy\"]
";

const STEPS: [&str; 5] = [
    "WORKDIR /src",
    "COPY --chown=daemon source .",
    "RUN wc -c < source > /lines && mkdir /deep && mkfifo /deep/fifo && echo made > /out",
    "COPY --from=build /out /out",
    "RUN cp /out /copy && mkdir /new && echo x > /new/x",
];

fn two_stages() -> TempDir {
    context(&[("Dockerfile", TWO_STAGES), ("source", "one\n")])
}

#[track_caller]
fn check_cached(outcome: &Outcome, expected: [bool; 5]) {
    let cached = STEPS.map(|step| outcome.step(step).cached);
    assert_eq!(cached, expected, "{outcome}");
}

/// A build that also says which image came of it.
fn build(rbuild: &Rbuild, context: &TempDir) -> Run {
    rbuild.build(context).arg("--iidfile").arg(rbuild.home.path().join("iid"))
}

fn image_id(rbuild: &Rbuild) -> String {
    fs_err::read_to_string(rbuild.home.path().join("iid")).unwrap()
}

/// The snapshots that a state folder holds.
fn snapshots(rbuild: &Rbuild) -> usize {
    fs_err::read_dir(rbuild.root.join("snapshots")).unwrap().count()
}

/// A local cache of `two_stages`, and the id of the image that came of it.
fn local_cache(context: &TempDir) -> (TempDir, String) {
    let (first, cache) = (Rbuild::new(), scratch());
    build(&first, context).args(["--cache-to", &to(cache.path())]).succeeds();
    let id = image_id(&first);
    (cache, id)
}

fn to(folder: &Path) -> String {
    format!("type=local,dest={}", folder.display())
}

fn from(folder: &Path) -> String {
    format!("type=local,src={}", folder.display())
}

#[test]
fn a_fresh_machine_runs_nothing_and_makes_the_same_image() {
    if lacking(&needs::STEPS) || lacking(&registry::NEEDED) {
        return;
    }
    let (registry, context) = (TestRegistry::open(), two_stages());
    let cache = registry.image("caches/app:main");
    let (first, fresh) = (Rbuild::new(), Rbuild::new());
    let image = registry.image("app:1");
    let cache_to = format!("type=registry,ref={cache}");
    let outcome =
        build(&first, &context).args(["--cache-to", &cache_to, "-t", &image, "--push"]).succeeds();
    check_cached(&outcome, [false; 5]);
    let again = registry.image("again:1");
    let outcome =
        build(&fresh, &context).args(["--cache-from", &cache, "-t", &again, "--push"]).succeeds();
    check_cached(&outcome, [true; 5]);
    assert_eq!(image_id(&fresh), image_id(&first));
    assert_eq!(registry.inspect("again:1")["Layers"], registry.inspect("app:1")["Layers"]);
    // The chain was only passed on: no layer was fetched, neither the steps' nor the base's.
    assert_eq!(snapshots(&fresh), 0);
    let edited = Rbuild::new();
    write(context.path().join("source"), "one and two\n");
    let outcome = build(&edited, &context).args(["--cache-from", &cache]).succeeds();
    // `/out` comes out as before, so what copies it is found.
    check_cached(&outcome, [true, false, false, true, true]);
}

#[test]
fn what_was_fetched_and_read_is_known_from_then_on() {
    if lacking(&needs::STEPS) {
        return;
    }
    let context = two_stages();
    let (cache, _) = local_cache(&context);
    let fresh = Rbuild::new();
    let out = scratch();
    let run = build(&fresh, &context).args(["--cache-from", &from(cache.path())]);
    check_cached(&run.output("type=local", out.path()).succeeds(), [true; 5]);
    assert_eq!(fs_err::read_to_string(out.path().join("copy")).unwrap(), "made\n");
    // Without the cache: the layers of the target were read, those of the other stage were not.
    let outcome = build(&fresh, &context).succeeds();
    let cached = [STEPS[3], STEPS[4]].map(|step| outcome.step(step).cached);
    assert_eq!(cached, [true, true], "{outcome}");
}

#[test]
fn a_registry_that_asks_for_a_password() {
    if lacking(&needs::STEPS) || lacking(&registry::NEEDED) {
        return;
    }
    let (registry, context) = (TestRegistry::with_password(), two_stages());
    let cache = registry.image("cache:1");
    let (first, fresh, stranger) = (Rbuild::new(), Rbuild::new(), Rbuild::new());
    for rbuild in [&first, &fresh] {
        rbuild
            .command()
            .args(["login", "-u", USER, "--password-stdin", &registry.host])
            .stdin(PASSWORD)
            .succeeds();
    }
    let zstd = format!("type=registry,ref={cache},compression=zstd,image-manifest=false");
    build(&first, &context).args(["--cache-to", &zstd]).succeeds();
    let outcome = build(&fresh, &context).args(["--cache-from", &cache]).succeeds();
    check_cached(&outcome, [true; 5]);
    // The image is compressed as images are, whatever the cache is.
    assert_eq!(image_id(&fresh), image_id(&first));
    let outcome =
        build(&stranger, &context).args(["--cache-from", &cache, "--cache-to", &cache]).succeeds();
    check_cached(&outcome, [false; 5]);
    outcome.assert_stderr_has(&["the cache cannot be used", "the cache is not exported", "denied"]);
    let strict = format!("type=registry,ref={cache},ignore-error=false");
    build(&stranger, &context).args(["--cache-to", &strict]).exits(1);
}

#[test]
fn a_registry_that_is_down() {
    if lacking(&needs::STEPS) {
        return;
    }
    let (rbuild, context) = (Rbuild::new(), two_stages());
    let down = "127.0.0.1:9/cache:1";
    let outcome =
        build(&rbuild, &context).args(["--cache-from", down, "--cache-to", down]).succeeds();
    check_cached(&outcome, [false; 5]);
    outcome.assert_stderr_has(&["the cache cannot be used", "the cache is not exported"]);
    // What is known here asks nobody.
    let outcome = build(&rbuild, &context).args(["--cache-from", down]).succeeds();
    check_cached(&outcome, [true; 5]);
    assert!(!outcome.stderr.contains("importing cache"), "{outcome}");
}

#[test]
fn records_travel_in_the_image() {
    if lacking(&needs::STEPS) || lacking(&registry::NEEDED) {
        return;
    }
    let (registry, context) = (TestRegistry::open(), two_stages());
    for (number, asking) in
        [["--cache-to", "type=inline"], ["--build-arg", "BUILDKIT_INLINE_CACHE=1"]]
            .iter()
            .enumerate()
    {
        let image = registry.image(&format!("app:{number}"));
        let (first, fresh) = (Rbuild::new(), Rbuild::new());
        build(&first, &context).args(asking).args(["-t", &image, "--push"]).succeeds();
        let run = build(&fresh, &context).args(asking).args(["--cache-from", &image]);
        let outcome = run.args(["-t", &image, "--push"]).succeeds();
        // The first stage is not in the image; what it makes is what the image's layers came from.
        let [.., copy, run] = STEPS.map(|step| outcome.step(step).cached);
        assert!(copy && run, "{outcome}");
        assert_eq!(image_id(&fresh), image_id(&first));
    }
    let plain = registry.image("plain:1");
    build(&Rbuild::new(), &context).args(["-t", &plain, "--push"]).succeeds();
    let outcome = build(&Rbuild::new(), &context).args(["--cache-from", &plain]).succeeds();
    outcome.assert_stderr_has(&["an image without records"]);
    let outcome =
        build(&Rbuild::new(), &context).args(["--cache-from", &registry.image("none")]).succeeds();
    outcome.assert_stderr_has(&["there is no cache yet"]);
}

#[test]
fn every_platform_has_its_records() {
    if lacking(&registry::NEEDED) {
        return;
    }
    let registry = TestRegistry::open();
    let context = context(&[
        ("Dockerfile", "FROM scratch\nARG TARGETARCH\nCOPY source /$TARGETARCH\n"),
        ("source", "one\n"),
    ]);
    let image = registry.image("both:1");
    let build = |flags: &[&str]| {
        let both = ["--platform", "linux/amd64,linux/arm64"];
        Rbuild::new().build(&context).args(both).args(flags).succeeds()
    };
    build(&["--cache-to", "type=inline", "-t", &image, "--push"]);
    let outcome = build(&["--cache-from", &image]);
    let copies = outcome.steps().into_iter().filter(|step| step.name.contains("COPY source"));
    let cached: Vec<bool> = copies.map(|step| step.cached).collect();
    assert_eq!(cached, [true, true], "{outcome}");
}

/// What tars do not simply hold: whiteouts, folders that replace folders, hard links, pipes.
#[tokio::test(flavor = "multi_thread")]
async fn all_kinds_of_layers_travel() {
    if lacking(&needs::STEPS) {
        return;
    }
    let server = FaultyRegistry::start(|_| {
        Some(Reply::Answer { status: 200, headers: Vec::new(), body: b"hello".to_vec() })
    });
    let checksum = rbuild_cache::digest::Digest::of("hello");
    let dockerfile = format!(
        "FROM busybox\n\
         ADD --checksum={checksum} http://{}/file /added/\n\
         COPY --link source /linked/here/\n\
         COPY <<EOF /written\nheredoc\nEOF\n\
         RUN echo x > /gone && mkdir -p /old/below && echo y > /old/below/file && ln -s gone /link\n\
         RUN rm /gone && rm -r /old && mkdir /old && echo z > /old/new && ln /written /again\n\
         RUN chmod 4755 /written && mknod /pipe p && ls -l /old > /seen\n",
        server.host
    );
    let context = context(&[("Dockerfile", &dockerfile), ("source", "one\n")]);
    let (cache, _) = local_cache(&context);
    let (fresh, out) = (Rbuild::new(), scratch());
    // A last step that is not known has to read all the others.
    write(context.path().join("Dockerfile"), &format!("{dockerfile}RUN cat /link || true\n"));
    let outcome = fresh
        .build(&context)
        .args(["--cache-from", &from(cache.path())])
        .output("type=local", out.path())
        .succeeds();
    assert!(!outcome.stderr.contains("WARN"), "{outcome}");
    let ran: Vec<String> = outcome
        .steps()
        .into_iter()
        .filter(|step| step.name.contains("/8]") && !step.cached)
        .map(|step| step.name)
        .collect();
    assert_eq!(ran.len(), 1, "{outcome}");
    assert!(ran[0].ends_with("RUN cat /link || true"), "{outcome}");
    assert!(!out.path().join("old/below").exists() && !out.path().join("gone").exists());
    assert!(out.path().join("old/new").exists() && out.path().join("again").exists());
    assert_eq!(fs_err::read_to_string(out.path().join("added/file")).unwrap(), "hello");
}

#[test]
fn only_what_the_image_consists_of() {
    if lacking(&needs::STEPS) {
        return;
    }
    let (context, cache) = (two_stages(), scratch());
    let min = format!("{},mode=min", to(cache.path()));
    build(&Rbuild::new(), &context).args(["--cache-to", &min]).succeeds();
    assert_eq!(records(cache.path())["records"].as_array().unwrap().len(), 2);
    build(&Rbuild::new(), &context).args(["--cache-to", &to(cache.path())]).succeeds();
    assert_eq!(records(cache.path())["records"].as_array().unwrap().len(), 5);
}

#[test]
fn a_folder_holds_what_its_index_names() {
    if lacking(&needs::STEPS) {
        return;
    }
    let (rbuild, cache, context) = (Rbuild::new(), scratch(), two_stages());
    let blobs = || fs_err::read_dir(cache.path().join("blobs/sha256")).unwrap().count();
    build(&rbuild, &context).args(["--cache-to", &to(cache.path())]).succeeds();
    let one = blobs();
    assert_eq!(one, 7, "five layers, records, a manifest");
    // The records that are replaced go, and so do the layers that only they named.
    write(context.path().join("source"), "something else\n");
    build(&rbuild, &context).args(["--cache-to", &to(cache.path())]).succeeds();
    assert_eq!(blobs(), one);
    // What another tag names stays, as does everything with `keep`.
    write(context.path().join("source"), "and something else\n");
    let other = format!("{},tag=other", to(cache.path()));
    build(&rbuild, &context).args(["--cache-to", &other]).succeeds();
    assert!(blobs() > one);
    let outcome =
        build(&Rbuild::new(), &context).args(["--cache-from", &from(cache.path())]).succeeds();
    check_cached(&outcome, [true, false, false, true, true]);
    let other = format!("{},tag=other", from(cache.path()));
    let outcome = build(&Rbuild::new(), &context).args(["--cache-from", &other]).succeeds();
    check_cached(&outcome, [true; 5]);
    let kept = blobs();
    write(context.path().join("source"), "once more\n");
    let keep = format!("{},keep", to(cache.path()));
    build(&rbuild, &context).args(["--cache-to", &keep]).succeeds();
    assert!(blobs() > kept);
}

#[test]
fn a_folder_that_was_damaged_heals_when_it_is_written_again() {
    if lacking(&needs::STEPS) {
        return;
    }
    let (rbuild, cache, context) = (Rbuild::new(), scratch(), two_stages());
    let write_cache = || build(&rbuild, &context).args(["--cache-to", &to(cache.path())]);
    write_cache().succeeds();
    let contents = || {
        let entries = fs_err::read_dir(cache.path().join("blobs/sha256")).unwrap();
        let read = |path: PathBuf| (path.clone(), fs_err::read(path).unwrap());
        entries.map(|entry| read(entry.unwrap().path())).collect::<BTreeMap<_, _>>()
    };
    let before = contents();
    // As long as before: only their digests tell.
    each_layer(cache.path(), |path| {
        let mut bytes = fs_err::read(path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs_err::write(path, bytes).unwrap();
    });
    assert_ne!(contents(), before);
    write_cache().succeeds();
    assert!(contents() == before);
}

#[test]
fn two_builds_write_one_folder() {
    if lacking(&needs::STEPS) {
        return;
    }
    let (cache, contexts) = (scratch(), [two_stages(), two_stages()]);
    write(contexts[1].path().join("source"), "another\n");
    for _ in 0..3 {
        let machines = [Rbuild::new(), Rbuild::new()];
        let running: Vec<_> = (0..2)
            .map(|n| {
                let cache_to = format!("{},tag=t{n}", to(cache.path()));
                build(&machines[n], &contexts[n]).args(["--cache-to", &cache_to]).start()
            })
            .collect();
        for child in running {
            let outcome = Outcome::of(child);
            assert!(outcome.status.success(), "{outcome}");
            assert!(!outcome.stderr.contains("WARN"), "{outcome}");
        }
    }
    for (n, context) in contexts.iter().enumerate() {
        let tag = format!("{},tag=t{n}", from(cache.path()));
        let outcome = build(&Rbuild::new(), context).args(["--cache-from", &tag]).succeeds();
        check_cached(&outcome, [true; 5]);
    }
}

/// The path of a blob in a layout.
fn blob(folder: &Path, descriptor: &Value) -> PathBuf {
    let digest = descriptor["digest"].as_str().unwrap();
    folder.join("blobs/sha256").join(digest.strip_prefix("sha256:").unwrap())
}

fn manifest(folder: &Path) -> Value {
    read_json(blob(folder, &read_json(folder.join("index.json"))["manifests"][0]))
}

/// The records of a local cache.
fn records(folder: &Path) -> Value {
    read_json(blob(folder, &manifest(folder)["config"]))
}

/// Puts a document into a layout; returns `descriptor` with its digest and size.
fn put(folder: &Path, descriptor: &Value, bytes: &[u8]) -> Value {
    let digest = rbuild_cache::digest::Digest::of(bytes);
    let mut descriptor = descriptor.clone();
    descriptor["digest"] = json!(digest.to_string());
    descriptor["size"] = json!(bytes.len());
    fs_err::write(blob(folder, &descriptor), bytes).unwrap();
    descriptor
}

/// Replaces the records of a local cache, as somebody would who can write to it.
fn forge(folder: &Path, config: &[u8], change: impl FnOnce(&mut Value)) {
    let mut manifest = manifest(folder);
    manifest["config"] = put(folder, &manifest["config"], config);
    change(&mut manifest);
    let mut index = read_json(folder.join("index.json"));
    let root = put(folder, &index["manifests"][0], manifest.to_string().as_bytes());
    index["manifests"][0] = root;
    fs_err::write(folder.join("index.json"), index.to_string()).unwrap();
}

/// What is done to a cache, and what the build then says.
type Damage = (&'static str, fn(&Path), &'static [&'static str]);

fn each_layer(folder: &Path, change: fn(&Path)) {
    for layer in manifest(folder)["layers"].as_array().unwrap() {
        change(&blob(folder, layer));
    }
}

fn change_records(folder: &Path, change: fn(&mut Value)) {
    let mut records = records(folder);
    records["records"].as_array_mut().unwrap().iter_mut().for_each(change);
    forge(folder, records.to_string().as_bytes(), |_| {});
}

const DAMAGES: [Damage; 9] = [
    (
        "flipped bits",
        |folder| {
            each_layer(folder, |layer| {
                let mut bytes = fs_err::read(layer).unwrap();
                let middle = bytes.len() / 2;
                bytes[middle] ^= 1;
                fs_err::write(layer, bytes).unwrap();
            });
        },
        &["cannot be used", "is damaged"],
    ),
    (
        "missing layers",
        |folder| each_layer(folder, |layer| fs_err::remove_file(layer).unwrap()),
        &["cannot be used", "is missing"],
    ),
    (
        "wrong trees",
        |folder| {
            change_records(folder, |record| {
                record["content"] = json!(rbuild_cache::digest::Digest::of("x").to_string());
            });
        },
        &["its tree has digest"],
    ),
    (
        "wrong layers",
        |folder| {
            change_records(folder, |record| {
                record["diffId"] = json!(rbuild_cache::digest::Digest::of("x").to_string());
            });
        },
        &["the layer's uncompressed bytes have digest"],
    ),
    (
        "layers that are none",
        |folder| change_records(folder, |record| record["layer"] = json!(99)),
        &["a record is about layer 99"],
    ),
    (
        "truncated records",
        |folder| {
            let records = records(folder).to_string();
            forge(folder, &records.as_bytes()[..records.len() / 2], |_| {});
        },
        &["its records cannot be read"],
    ),
    (
        "another version",
        |folder| {
            let records = records(folder).to_string().replace("\"version\":1", "\"version\":7");
            forge(folder, records.as_bytes(), |_| {});
        },
        &["its records are of version 7"],
    ),
    (
        "a cache of BuildKit's",
        |folder| {
            forge(folder, b"{}", |manifest| {
                manifest["config"]["mediaType"] = json!("application/vnd.buildkit.cacheconfig.v0");
            });
        },
        &["it is a cache of BuildKit's"],
    ),
    (
        "a flipped bit of the manifest",
        |folder| {
            let path = blob(folder, &read_json(folder.join("index.json"))["manifests"][0]);
            let text = fs_err::read_to_string(&path).unwrap();
            fs_err::write(path, text.replacen("schemaVersion", "schemaversion", 1)).unwrap();
        },
        &["the cache cannot be used", "is damaged"],
    ),
];

#[test]
fn a_broken_cache_costs_time_only() {
    if lacking(&needs::STEPS) {
        return;
    }
    let context = two_stages();
    for (what, damage, warnings) in DAMAGES {
        let (cache, _) = local_cache(&context);
        damage(cache.path());
        for output in ["type=local", "type=oci"] {
            let (rbuild, out) = (Rbuild::new(), scratch());
            let dest = out.path().join("out");
            let outcome = build(&rbuild, &context)
                .args(["--cache-from", &from(cache.path())])
                .output(output, &dest)
                .succeeds();
            assert!(outcome.stderr.contains("WARN"), "{what}: {outcome}");
            if output == "type=local" {
                let text = fs_err::read_to_string(dest.join("copy")).unwrap();
                assert_eq!(text, "made\n", "{what}");
                outcome.assert_stderr_has(warnings);
            }
            assert_eq!(rbuild.leftovers(), Vec::<PathBuf>::new(), "{what}");
        }
    }
}

#[test]
fn secrets_and_build_arguments_are_in_no_record() {
    if lacking(&needs::STEPS) {
        return;
    }
    let context = context(&[(
        "Dockerfile",
        "FROM busybox AS build\nARG TOKEN\nRUN --mount=type=secret,id=s cat /run/secrets/s > /dev/null\n\
         RUN echo \"$TOKEN\" | wc -c > /length\nFROM busybox\nCOPY --from=build /length /\n",
    )]);
    write(context.path().join("secret"), "hush-hush");
    let cache = scratch();
    build(&Rbuild::new(), &context)
        .args(["--build-arg", "TOKEN=classified", "--cache-to", &to(cache.path())])
        .arg("--secret")
        .arg(format!("id=s,src={}", context.path().join("secret").display()))
        .succeeds();
    let records = records(cache.path()).to_string();
    assert!(records.contains("keys"), "{records}");
    assert!(!records.contains("hush-hush"), "{records}");
    assert!(!records.contains("classified"), "{records}");
}

/// `ADD http://…` without a checksum: the server is asked whether the file is still the one that the
/// other machine got, and sends it only to the first.
#[test]
fn a_fresh_machine_asks_whether_a_file_is_unchanged() {
    if lacking(&needs::STEPS) {
        return;
    }
    let sent = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&sent);
    let server = FaultyRegistry::start(move |asked| {
        if asked.headers.get("if-none-match").is_some_and(|etag| etag == "\"one\"") {
            return Some(status(304));
        }
        counted.fetch_add(1, Ordering::Relaxed);
        let headers = vec![("etag".to_owned(), "\"one\"".to_owned())];
        Some(Reply::Answer { status: 200, headers, body: b"hello\n".to_vec() })
    });
    let text =
        format!("FROM busybox\nADD http://{}/file /file\nRUN cat /file > /read\n", server.host);
    let context = context(&[("Dockerfile", &text)]);
    let cache = scratch();
    let first = Rbuild::new();
    build(&first, &context).args(["--cache-to", &to(cache.path())]).succeeds();
    assert_eq!(sent.load(Ordering::Relaxed), 1);
    let second = Rbuild::new();
    let again = scratch();
    let shared = ["--cache-from", &from(cache.path()), "--cache-to", &to(again.path())];
    let outcome = build(&second, &context).args(shared).succeeds();
    assert_eq!(sent.load(Ordering::Relaxed), 1, "{outcome}");
    assert!(outcome.step("RUN cat /file > /read").cached, "{outcome}");
    assert_eq!(image_id(&first), image_id(&second));
    // What was only passed on is passed on whole.
    let third = Rbuild::new();
    build(&third, &context).args(["--cache-from", &from(again.path())]).succeeds();
    assert_eq!(sent.load(Ordering::Relaxed), 1);
    assert_eq!(image_id(&first), image_id(&third));
}
