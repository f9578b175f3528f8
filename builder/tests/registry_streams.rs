//! Layers on the move: unpacked while they are downloaded, pushed while they are compressed, and
//! what becomes of them when that breaks.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rbuild::image_source::{Images, ResolveMode};
use rbuild::image_transfer::{self, StoredBlobs};
use rbuild::registry::RegistrySettings;
use rbuild::registry::push::{BlobSource, Naming};
use rbuild_cache::digest::Digest;
use rbuild_cache::layer::LayerError;
use rbuild_cache::snapshot::Snapshot;
use rbuild_solver::image_source::{ImageSource as _, UnpackError};
use tokio::sync::mpsc;

use crate::faulty_registry::{Asked, FaultyRegistry, Reply, status};
use crate::figure::figure;
use crate::rbuild::{Rbuild, context};
use crate::registry_client::{Side, noise, task};

/// A tar with a small file, then a large one.
fn tar(seed: u64) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (name, bytes) in [("first", noise(seed, 10)), ("second", noise(seed, 2_000_000))] {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        // Owners that anybody can give.
        header.set_uid(rustix::process::geteuid().as_raw().into());
        header.set_gid(rustix::process::getegid().as_raw().into());
        tar.append_data(&mut header, name, &bytes[..]).unwrap();
    }
    tar.into_inner().unwrap()
}

fn side() -> Side {
    let patience = Duration::from_secs(3);
    Side::with(RegistrySettings { patience, range: 1 << 20, ..RegistrySettings::default() })
}

/// The snapshots of all layers of `name`.
async fn unpacked(images: &Images, name: &str) -> Result<Vec<Snapshot>, UnpackError> {
    let platform = "linux/amd64".parse().unwrap();
    let image = images.resolve(name, &platform, ResolveMode::Pull, &task()).await?;
    let task = task();
    let unpacking = image.layers.iter().map(|layer| images.unpack(&image.location, layer, &task));
    futures::future::try_join_all(unpacking).await
}

fn is_of_a_layer(asked: &Asked, layer: &[u8]) -> bool {
    asked.is_blob() && asked.path.ends_with(&Digest::of(layer).to_string())
}

/// Files called `name` somewhere below `folder`.
fn found(folder: &Path, name: &str) -> Vec<PathBuf> {
    let Ok(entries) = fs_err::read_dir(folder) else { return Vec::new() };
    let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
    paths
        .flat_map(|path| {
            if path.file_name() == Some(name.as_ref()) {
                vec![path]
            } else if path.is_dir() {
                found(&path, name)
            } else {
                Vec::new()
            }
        })
        .collect()
}

async fn soon(what: &str, is_so: impl Fn() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < Duration::from_secs(20), "{what} does not come about");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_is_unpacked_while_it_arrives() {
    let (switch, layer) = (Arc::new(AtomicBool::new(false)), tar(1));
    let (held, held_layer) = (Arc::clone(&switch), layer.clone());
    let registry = FaultyRegistry::start(move |asked| {
        is_of_a_layer(asked, &held_layer).then(|| Reply::Held(1_500_000, Arc::clone(&held)))
    });
    registry.put("app:v1", std::slice::from_ref(&layer));
    let side = Side::with(RegistrySettings { range: 1 << 30, ..RegistrySettings::default() });
    let state = side.folder.path().join("state");
    let (images, name) = (side.images.clone(), registry.image("app:v1"));
    let pulling = tokio::spawn(async move { unpacked(&images, &name).await });
    soon("a file of the first half", || !found(&state.join("tmp"), "first").is_empty()).await;
    assert!(side.images.state().snapshots().list().unwrap().is_empty(), "not before it is whole");
    switch.store(true, Ordering::SeqCst);
    let snapshots = pulling.await.unwrap().unwrap();
    let folder = side.images.state().snapshots().folder(&snapshots[0].id);
    assert!(fs_err::read(folder.join("second")).unwrap() == noise(1, 2_000_000));
    assert_eq!(registry.requests_a_blob(), 1);
    assert!(side.stored().iter().all(|(name, digest)| name == digest), "its blob is kept");
}

#[tokio::test(flavor = "multi_thread")]
async fn passing_faults_leave_the_right_snapshot() {
    let layers = [tar(2), tar(3)];
    let first = |reply: Reply| {
        move |asked: &Asked| (asked.is_blob() && asked.nth == 0).then(|| reply.clone())
    };
    for (what, reply) in [
        ("reset", Reply::Reset),
        ("cut", Reply::CutAfter(1_200_000)),
        ("flipped", Reply::Flipped),
        ("503", status(503)),
    ] {
        let registry = FaultyRegistry::start(first(reply));
        registry.put("app:v1", &layers);
        let side = side();
        let snapshots = unpacked(&side.images, &registry.image("app:v1")).await.unwrap();
        for (snapshot, seed) in snapshots.iter().zip([2, 3]) {
            let folder = side.images.state().snapshots().folder(&snapshot.id);
            let second = fs_err::read(folder.join("second")).unwrap();
            assert!(second == noise(seed, 2_000_000), "{what}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_what_the_image_says_leaves_no_snapshot() {
    let layers = [tar(4), tar(5)];
    let check = |registry: FaultyRegistry| async move {
        let side = side();
        let error = unpacked(&side.images, &registry.image("app:v1")).await.unwrap_err();
        assert!(side.images.state().snapshots().list().unwrap().len() < 2);
        assert!(side.stored().iter().all(|(name, digest)| name == digest));
        error
    };
    let flipping = layers.clone();
    let registry = FaultyRegistry::start(move |asked| {
        is_of_a_layer(asked, &flipping[1]).then_some(Reply::Flipped)
    });
    registry.put("app:v1", &layers);
    let error = check(registry).await;
    assert!(error.to_string().contains("is damaged"), "{error}");

    // Right blobs, but not those of which the config speaks.
    let registry = FaultyRegistry::start(|_| None);
    registry.put_lying("app:v1", &layers, |manifest| manifest.layers.swap(0, 1));
    let error = check(registry).await;
    assert!(matches!(error, UnpackError::Layer(LayerError::DiffId { .. })), "{error}");
}

/// A layer of which the first half is written, and which is being pushed.
struct HalfMade {
    side: Side,
    writer: rbuild_cache::store::BlobWriter,
    bytes: Vec<u8>,
    pushing: tokio::task::JoinHandle<()>,
}

fn half_made(registry: &FaultyRegistry, length: usize) -> HalfMade {
    use std::io::Write as _;
    let (side, bytes) = (side(), noise(6, length));
    let mut writer = side.images.state().blobs().writer().unwrap();
    let (sender, growing) = mpsc::unbounded_channel();
    sender.send(writer.growing().unwrap()).unwrap();
    let (images, name) = (side.images.clone(), registry.image("app:v1").parse().unwrap());
    let pushing = tokio::spawn(async move {
        images.registry().pusher().push_growing(&name, growing, &task()).await;
    });
    writer.write_all(&bytes[..length / 2]).unwrap();
    HalfMade { side, writer, bytes, pushing }
}

impl HalfMade {
    /// Writes the rest, waits for the push, and pushes an image of that layer.
    async fn finish(mut self, registry: &FaultyRegistry) -> rbuild::registry::push::Pushed {
        use std::io::Write as _;
        self.writer.write_all(&self.bytes[self.bytes.len() / 2..]).unwrap();
        self.writer.commit(None).unwrap();
        self.pushing.await.unwrap();
        let name = registry.image("app:v1");
        let root = self.side.make(&name, std::slice::from_ref(&self.bytes));
        let content = image_transfer::content(&self.side.images, &root).unwrap();
        let blobs = StoredBlobs::new(self.side.images.clone(), std::collections::HashMap::new());
        let source: Arc<dyn BlobSource> = Arc::new(blobs);
        let pusher = self.side.images.registry().pusher();
        let image = name.parse().unwrap();
        let outcome = pusher.push(&image, Naming::Tag, &content, &source, &task()).await.unwrap();
        assert!(registry.blob(&Digest::of(&self.bytes).to_string()) == self.bytes);
        outcome
    }
}

fn count(registry: &FaultyRegistry, method: &str, part: &str) -> usize {
    let asked = registry.asked();
    asked.iter().filter(|asked| asked.method == method && asked.path.contains(part)).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_is_pushed_while_it_is_made() {
    let registry = FaultyRegistry::start(|_| None);
    let layer = half_made(&registry, 6_000_000);
    soon("the upload", || count(&registry, "PATCH", "/uploads/") == 1).await;
    let pushed = layer.finish(&registry).await;
    assert_eq!((pushed.sent, pushed.existing), (2, 0));
    assert_eq!(count(&registry, "PATCH", "/uploads/"), 1, "it is sent once");
    assert_eq!(count(&registry, "POST", "/uploads/"), 2, "one for the layer, one for the config");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_takes_no_stream_gets_the_blob_afterwards() {
    for reply in [status(405), status(500), Reply::Reset, Reply::TakesOnly(1_000_000)] {
        let registry =
            FaultyRegistry::start(move |asked| (asked.method == "PATCH").then(|| reply.clone()));
        let pushed = half_made(&registry, 6_000_000).finish(&registry).await;
        assert_eq!((pushed.sent, pushed.existing), (2, 0));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_registry_turns_out_to_have_is_not_sent_to_its_end() {
    let (switch, length) = (Arc::new(AtomicBool::new(false)), 30_000_000);
    let held = Arc::clone(&switch);
    let registry = FaultyRegistry::start(move |asked| {
        while asked.method == "PATCH" && !held.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(5));
        }
        None
    });
    registry.put("app:before", &[noise(6, length)]);
    let pushed = half_made(&registry, length).finish(&registry).await;
    switch.store(true, Ordering::SeqCst);
    assert_eq!((pushed.sent, pushed.existing), (0, 2), "the config is the same, too");
    assert_eq!(count(&registry, "DELETE", "/uploads/"), 1, "the upload is given up");
}

#[test]
fn a_failed_push_keeps_the_image_and_is_finished_later() {
    let (rbuild, broken) = (Rbuild::new(), Arc::new(AtomicBool::new(true)));
    let switch = Arc::clone(&broken);
    let registry = FaultyRegistry::start(move |asked| {
        let refuses = asked.method == "PUT" && asked.path.contains("/manifests/");
        (refuses && switch.load(Ordering::SeqCst)).then(|| status(403))
    });
    let context = context(&[("Dockerfile", "FROM scratch\nCOPY file /\n"), ("file", "text")]);
    let name = registry.image("team/app:v1");
    let build = || rbuild.command().args(["build", "--push", "-t", &name]).arg(context.path());
    let failed = build().exits(1);
    failed.assert_stderr_has(&[&registry.host, "its tag is as it was", "rbuild push", &name]);
    assert_eq!(registry.tag("team/app:v1"), None);

    broken.store(false, Ordering::SeqCst);
    let sent = count(&registry, "PUT", "/uploads/");
    rbuild.command().args(["push", &name]).succeeds();
    assert!(registry.tag("team/app:v1").is_some());
    assert_eq!(count(&registry, "PUT", "/uploads/"), sent, "the blobs were there already");

    // Nothing changed: neither a build nor a push sends any blob.
    for again in [build(), rbuild.command().args(["push", &name])] {
        let asked = registry.asked().len();
        again.succeeds();
        let requests = registry.asked().len() - asked;
        figure(&format!("a push of an unchanged image takes {requests} requests, 0 blobs"));
        assert!(requests <= 3, "{:?}", &registry.asked()[asked..]);
        assert_eq!(count(&registry, "PUT", "/uploads/"), sent);
    }
    // Under another name, in the same repository: its blobs are there, and nothing is compressed.
    let other = registry.image("team/app:v2");
    rbuild.command().args(["tag", &name, &other]).succeeds();
    rbuild.command().args(["push", &other]).succeeds();
    assert_eq!(count(&registry, "PUT", "/uploads/"), sent);
    assert_eq!(registry.tag("team/app:v2"), registry.tag("team/app:v1"));
}
