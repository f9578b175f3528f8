//! The registry client by itself, against real registries: what it pushes `oci-client` pulls and
//! back, over each kind of access.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;

use oci_client::client::{ClientConfig, ClientProtocol, Config, ImageLayer};
use oci_client::secrets::RegistryAuth;
use rbuild::image_source::{Images, ResolveMode};
use rbuild::image_transfer;
use rbuild::registry::proxy::Proxies;
use rbuild::registry::push::{BlobSource, Naming, PushContent, Pushed};
use rbuild::registry::{Registry, RegistrySettings};
use rbuild_cache::digest::Digest;
use rbuild_cache::oci::{Descriptor, MediaType, Platform};
use rbuild_cache::state::StateFolder;
use rbuild_solver::image_source::ImageSourceError;
use rbuild_solver::progress::{Reporter, Silent, Task};
use tempfile::TempDir;

use crate::faulty_registry::{FaultyRegistry, status};
use crate::needs::{Need, lacking};
use crate::rbuild::run;
use crate::registry::{PASSWORD, TestRegistry, USER};

fn lacks() -> bool {
    lacking(&[Need::Program("docker-registry"), Need::Program("setpriv"), Need::Program("openssl")])
}

pub(crate) fn task() -> Task {
    Reporter::new(Arc::new(Silent)).start("test")
}

fn amd64() -> Platform {
    "linux/amd64".parse().unwrap()
}

/// A state folder and the images that it and the registries hold.
pub(crate) struct Side {
    pub(crate) images: Images,
    pub(crate) folder: Arc<TempDir>,
}

impl Side {
    pub(crate) fn new() -> Self {
        Self::with(RegistrySettings::default())
    }

    pub(crate) fn with(settings: RegistrySettings) -> Self {
        let folder = Arc::new(tempfile::tempdir().unwrap());
        let state = StateFolder::open(folder.path().join("state")).unwrap();
        let settings = RegistrySettings {
            docker_config: settings.docker_config.or_else(|| Some(folder.path().join("docker"))),
            range: if settings.range == RegistrySettings::default().range {
                64 << 10
            } else {
                settings.range
            },
            ..settings
        };
        Self { images: Images::new(Registry::new(settings), state), folder }
    }

    /// Makes a local image called `name` with a layer for each of `layers`.
    pub(crate) fn make(&self, name: &str, layers: &[Vec<u8>]) -> Descriptor {
        let store = self.images.state().blobs();
        let put = |media_type: MediaType, bytes: &[u8]| {
            store.put(bytes).unwrap();
            Descriptor::of(media_type, bytes)
        };
        let layers: Vec<_> = layers.iter().map(|l| put(MediaType::OciLayer, l)).collect();
        let diff_ids: Vec<_> = layers.iter().map(|l| l.digest).collect();
        let config = serde_json::json!({
            "os": "linux", "architecture": "amd64",
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        });
        let config = put(MediaType::OciConfig, config.to_string().as_bytes());
        let manifest = serde_json::json!({
            "schemaVersion": 2, "mediaType": MediaType::OciManifest,
            "config": config, "layers": layers,
        });
        let manifest = put(MediaType::OciManifest, manifest.to_string().as_bytes());
        let name = name.parse::<rbuild_cache::oci::ImageRef>().unwrap().to_string();
        self.images.state().layout().set(&[name], &manifest).unwrap();
        manifest
    }

    pub(crate) async fn push(&self, name: &str) -> Result<Pushed, ImageSourceError> {
        image_transfer::push(&self.images, name, None, &task()).await.map(|(pushed, _)| pushed)
    }

    pub(crate) async fn pull(&self, name: &str) -> Result<Descriptor, ImageSourceError> {
        image_transfer::pull(&self.images, name, Some(&amd64()), &task()).await?;
        let name = name.parse::<rbuild_cache::oci::ImageRef>().unwrap().to_string();
        Ok(self.images.state().layout().get(&name).unwrap().unwrap())
    }

    /// The digests of the layers' bytes.
    pub(crate) fn layers(&self, manifest: &Descriptor) -> Vec<Digest> {
        let content = image_transfer::content(&self.images, manifest).unwrap();
        let read = |blob: &Descriptor| fs_err::read(self.images.state().blobs().path(&blob.digest));
        content.blobs[1..].iter().map(|blob| Digest::of(read(blob).unwrap())).collect()
    }

    /// Each stored blob's name and the digest that its bytes have.
    pub(crate) fn stored(&self) -> Vec<(Digest, Digest)> {
        let store = self.images.state().blobs();
        let digest = |name: &Digest| Digest::of(fs_err::read(store.path(name)).unwrap());
        store.list().unwrap().iter().map(|(name, _)| (*name, digest(name))).collect()
    }

    /// Writes a login for `host` as docker does.
    pub(crate) fn write_login(&self, host: &str) {
        let folder = self.folder.path().join("docker");
        fs_err::create_dir_all(&folder).unwrap();
        let login = base64::Engine::encode(&base64::prelude::BASE64_STANDARD, "me:secret");
        let config = serde_json::json!({"auths": {host: {"auth": login}}});
        fs_err::write(folder.join("config.json"), config.to_string()).unwrap();
    }

    pub(crate) async fn log_in(&self, host: &str) {
        self.images.registry().login(host, USER, PASSWORD).await.unwrap();
    }

    /// A new client for the same state folder and user.
    pub(crate) fn again(&self) -> Self {
        let docker_config = Some(self.folder.path().join("docker"));
        let settings = RegistrySettings { docker_config, ..RegistrySettings::default() };
        let images = Images::new(Registry::new(settings), self.images.state().clone());
        Self { images, folder: Arc::clone(&self.folder) }
    }
}

/// Bytes that are nowhere the same.
pub(crate) fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    std::iter::repeat_with(&mut next).flatten().take(length).collect()
}

fn layers() -> Vec<Vec<u8>> {
    vec![noise(1, 300_001), noise(2, 10), Vec::new(), noise(3, 128 << 10)]
}

pub(crate) fn digests(layers: &[Vec<u8>]) -> Vec<Digest> {
    layers.iter().map(Digest::of).collect()
}

#[tokio::test]
async fn what_is_pushed_is_pulled() {
    if lacks() {
        return;
    }
    let registry = TestRegistry::open();
    let name = registry.image("team/app:v1");
    let (here, there) = (Side::new(), Side::new());
    let made = here.make(&name, &layers());
    let pushed = here.push(&name).await.unwrap();
    assert_eq!((pushed.sent, pushed.mounted, pushed.existing), (5, 0, 0));
    let again = here.push(&name).await.unwrap();
    assert_eq!((again.sent, again.mounted, again.existing), (0, 0, 5));

    let pulled = there.pull(&name).await.unwrap();
    assert_eq!(pulled.digest, made.digest);
    assert_eq!(there.layers(&pulled), digests(&layers()));

    // Other repositories of the same registry get the layers without their travelling, from who
    // pulled them as well as from who pushed them.
    for (side, repository) in [(&there, "other/app:v1"), (&here, "third/app:v1")] {
        let other = registry.image(repository);
        side.images.state().layout().set(std::slice::from_ref(&other), &pulled).unwrap();
        let mounted = side.push(&other).await.unwrap();
        assert_eq!((mounted.sent, mounted.mounted, mounted.existing), (0, 5, 0), "{repository}");
    }
    let other = registry.image("other/app:v1");
    assert_eq!(Side::new().pull(&other).await.unwrap().digest, made.digest);
}

#[tokio::test]
async fn oci_client_reads_what_we_write_and_back() {
    if lacks() {
        return;
    }
    let registry = TestRegistry::open();
    let config = ClientConfig { protocol: ClientProtocol::Http, ..ClientConfig::default() };
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = oci_client::Client::try_from(config).unwrap();
    let side = Side::new();

    let name = registry.image("ours:v1");
    side.make(&name, &layers());
    side.push(&name).await.unwrap();
    let media_types = vec![MediaType::OciLayer.as_str()];
    let theirs =
        client.pull(&name.parse().unwrap(), &RegistryAuth::Anonymous, media_types).await.unwrap();
    let mut read: Vec<_> = theirs.layers.iter().map(|layer| Digest::of(&layer.data)).collect();
    let mut written = digests(&layers());
    read.sort();
    written.sort();
    assert_eq!(read, written);

    let name = registry.image("theirs:v1");
    let layer = noise(7, 200_000);
    let diff_id = Digest::of(&layer).to_string();
    let config = serde_json::json!({
        "os": "linux", "architecture": "amd64",
        "rootfs": {"type": "layers", "diff_ids": [diff_id]},
    });
    let config = Config::oci_v1(config.to_string().into_bytes(), None);
    let image_layer = ImageLayer::oci_v1(layer.clone(), None);
    client
        .push(&name.parse().unwrap(), &[image_layer], config, &RegistryAuth::Anonymous, None)
        .await
        .unwrap();
    let pulled = side.pull(&name).await.unwrap();
    assert_eq!(side.layers(&pulled), digests(&[layer]));
}

#[tokio::test]
async fn a_password_is_kept_by_login_and_forgotten_by_logout() {
    if lacks() {
        return;
    }
    let registry = TestRegistry::with_password();
    let name = registry.image("private/app:v1");
    let side = Side::new();
    side.make(&name, &layers());
    let error = side.push(&name).await.unwrap_err();
    assert!(error.message.contains(&registry.host), "{}", error.message);
    assert!(error.message.contains("no credentials for it were found"), "{}", error.message);
    assert!(error.hint.unwrap().contains("rbuild login"));

    let wrong = side.images.registry().login(&registry.host, USER, "wrong").await.unwrap_err();
    assert!(wrong.to_string().contains("the password of `builder`"), "{wrong}");
    let side = side.again();
    assert!(side.push(&name).await.is_err(), "a wrong password is not kept");

    let side = side.again();
    side.log_in(&registry.host).await;
    let side = side.again();
    assert_eq!(side.push(&name).await.unwrap().sent, 5);
    assert!(side.images.registry().logout(&registry.host).await.unwrap());
    assert!(side.again().pull(&name).await.is_err());
}

#[tokio::test]
async fn tokens_are_asked_for_both_scopes_of_a_mount() {
    if lacks() {
        return;
    }
    let registry = TestRegistry::with_tokens();
    let (first, second) = (registry.image("one/app:v1"), registry.image("two/app:v1"));
    let side = Side::new();
    side.log_in(&registry.host).await;
    let side = side.again();
    side.make(&first, &layers());
    assert_eq!(side.push(&first).await.unwrap().sent, 5);

    let other = Side::new();
    other.log_in(&registry.host).await;
    let other = other.again();
    let asked = registry.token_requests().len();
    let pulled = other.pull(&first).await.unwrap();
    assert_eq!(registry.token_requests().len() - asked, 1, "{:?}", registry.token_requests());
    other.images.state().layout().set(std::slice::from_ref(&second), &pulled).unwrap();
    let pushed = other.push(&second).await.unwrap();
    assert_eq!((pushed.sent, pushed.mounted), (0, 5));
    let asked = &registry.token_requests()[asked + 1..];
    assert_eq!(asked.len(), 2, "one for the repository, one for both: {asked:?}");
    assert!(asked[1].contains("one%2Fapp%3Apull") && asked[1].contains("two%2Fapp%3Apull%2Cpush"));
}

#[tokio::test]
async fn credentials_come_from_helpers_and_podman_too() {
    if lacks() {
        return;
    }
    let registry = TestRegistry::with_password();
    let name = registry.image("private/app:v1");
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);

    // podman's file.
    let login =
        base64::Engine::encode(&base64::prelude::BASE64_STANDARD, format!("{USER}:{PASSWORD}"));
    let auth =
        serde_json::json!({"auths": {format!("{}/private", registry.host): {"auth": login}}});
    fs_err::write(path("auth.json"), auth.to_string()).unwrap();
    let auth_files = vec![path("auth.json")];
    let side = Side::with(RegistrySettings { auth_files, ..RegistrySettings::default() });
    side.make(&name, &layers());
    side.push(&name).await.unwrap();

    // docker's helpers: one that answers, one that hangs.
    let helper = |script: &str| {
        let file = path("docker-credential-rbuild-test");
        fs_err::write(&file, format!("#!/bin/sh\n{script}\n")).unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs_err::set_permissions(&file, mode).unwrap();
        let config = serde_json::json!({"credHelpers": {&registry.host: "rbuild-test"}});
        fs_err::write(path("config.json"), config.to_string()).unwrap();
        Side::with(RegistrySettings {
            docker_config: Some(folder.path().to_owned()),
            helper_folder: Some(folder.path().to_owned()),
            helper_patience: std::time::Duration::from_millis(300),
            ..RegistrySettings::default()
        })
    };
    let answer = serde_json::json!({"ServerURL": "", "Username": USER, "Secret": PASSWORD});
    helper(&format!("[ $1 = get ] && cat > /dev/null && echo '{answer}'"))
        .pull(&name)
        .await
        .unwrap();
    let none = helper("echo 'credentials not found in native keychain'; exit 1");
    assert!(none.pull(&name).await.unwrap_err().message.contains("no credentials for it"));
    let hangs = helper("exec sleep 60").pull(&name).await.unwrap_err();
    assert!(hangs.message.contains("`docker-credential-rbuild-test`: no answer within"), "{hangs}");
}

#[tokio::test]
async fn what_skopeo_writes_is_read_and_back() {
    if lacks() || lacking(&[Need::Program("skopeo")]) {
        return;
    }
    let registry = TestRegistry::open();
    let side = Side::new();
    let folder = tempfile::tempdir().unwrap();
    let name = registry.image("first:v1");
    // A real tar, since skopeo looks into layers when it compresses them anew.
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(100_000);
    header.set_mode(0o644);
    tar.append_data(&mut header, "file", &noise(5, 100_000)[..]).unwrap();
    let made = side.make(&name, &[tar.into_inner().unwrap()]);
    side.push(&name).await.unwrap();
    let copy = |options: &[&str], to: &str| {
        let (from, to) = (format!("docker://{name}"), format!("docker://{}", registry.image(to)));
        let fixed = ["copy", "-q", "--src-tls-verify=false", "--dest-tls-verify=false"];
        run("skopeo", &[&fixed[..], options, &[&from, &to]].concat());
    };
    copy(&["--preserve-digests"], "same:v1");
    assert_eq!(side.again().pull(&registry.image("same:v1")).await.unwrap().digest, made.digest);
    for (to, media_type, options) in [
        ("docker:v1", MediaType::DockerManifest, vec!["--format", "v2s2"]),
        ("gzip:v1", MediaType::OciManifest, vec!["--dest-compress-format", "gzip"]),
        ("zstd:v1", MediaType::OciManifest, vec!["--dest-compress-format", "zstd"]),
    ] {
        copy(&options, to);
        let there = Side::new();
        let pulled = there.pull(&registry.image(to)).await.unwrap();
        assert_eq!(pulled.media_type, media_type, "{to}");
        // And on to another name, byte for byte.
        let again = registry.image(&format!("again/{to}"));
        there.images.state().layout().set(std::slice::from_ref(&again), &pulled).unwrap();
        there.push(&again).await.unwrap();
        let layout = format!("oci:{}:x", folder.path().join(to).display());
        run(
            "skopeo",
            &["copy", "-q", "--src-tls-verify=false", &format!("docker://{again}"), &layout],
        );
    }
}

#[tokio::test]
async fn a_proxy_is_used_where_it_is_meant() {
    let server = FaultyRegistry::start(|asked| {
        // A request to a proxy names the whole address.
        (!asked.path.starts_with("http://registry.invalid/")).then(|| status(500))
    });
    let proxies = Proxies { http: Some(server.host.clone()), ..Proxies::default() };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("registries.toml");
    fs_err::write(&path, "[registry.\"registry.invalid\"]\nhttp = true\n").unwrap();
    let settings =
        RegistrySettings { proxies, registries: vec![path], ..RegistrySettings::default() };
    let error = Side::with(settings).pull("registry.invalid/app:v1").await.unwrap_err();
    assert!(error.message.contains("was not found"), "{}", error.message);
    assert!(server.asked().iter().all(|a| a.path.starts_with("http://registry.invalid/v2/app/")));
    assert!(!server.asked().is_empty());
}

#[tokio::test]
async fn certificates_come_from_certs_d_or_registries_toml() {
    if lacks() {
        return;
    }
    let registry = TestRegistry::with_tls();
    let name = registry.image("app:v1");
    let refused = Side::new().pull(&name).await.unwrap_err();
    assert!(refused.message.contains("certificate"), "{}", refused.message);
    assert!(refused.hint.unwrap().contains("certs.d"));

    let folder = tempfile::tempdir().unwrap();
    let host = folder.path().join(&registry.host);
    fs_err::create_dir(&host).unwrap();
    fs_err::copy(registry.certificate(), host.join("ca.crt")).unwrap();
    let certificates = vec![folder.path().to_owned()];
    let side = Side::with(RegistrySettings { certificates, ..RegistrySettings::default() });
    side.make(&name, &layers());
    side.push(&name).await.unwrap();

    let write = |text: String| {
        let path = folder.path().join("registries.toml");
        fs_err::write(&path, text).unwrap();
        RegistrySettings { registries: vec![path], ..RegistrySettings::default() }
    };
    let (host, ca) = (&registry.host, registry.certificate());
    let with_ca = write(format!("[registry.\"{host}\"]\nca = [\"{}\"]\n", ca.display()));
    Side::with(with_ca).pull(&name).await.unwrap();
    let insecure = write(format!("[registry.\"{host}\"]\ninsecure = true\n"));
    Side::with(insecure).pull(&name).await.unwrap();
}

#[tokio::test]
async fn a_certificate_of_ours_is_shown() {
    if lacks() {
        return;
    }
    let registry = TestRegistry::with_client_certificates();
    let name = registry.image("app:v1");
    let folder = tempfile::tempdir().unwrap();
    let host = folder.path().join(&registry.host);
    fs_err::create_dir(&host).unwrap();
    fs_err::copy(registry.certificate(), host.join("ca.crt")).unwrap();
    let side = || {
        let certificates = vec![folder.path().to_owned()];
        Side::with(RegistrySettings { certificates, ..RegistrySettings::default() })
    };
    let error = side().pull(&name).await.unwrap_err();
    assert!(error.message.contains(&registry.host), "{}", error.message);

    fs_err::copy(registry.certificate(), host.join("me.cert")).unwrap();
    fs_err::copy(registry.key(), host.join("me.key")).unwrap();
    let side = side();
    side.make(&name, &layers());
    side.push(&name).await.unwrap();
    side.pull(&name).await.unwrap();
}

/// Settings whose every file would be noticed if it were read.
#[tokio::test]
async fn nothing_is_read_before_a_registry_is_needed() {
    let folder = tempfile::tempdir().unwrap();
    let broken = folder.path().join("broken");
    fs_err::write(&broken, "[[[").unwrap();
    let settings = || RegistrySettings {
        registries: vec![broken.clone()],
        auth_files: vec![broken.clone()],
        ..RegistrySettings::default()
    };
    let side = Side::with(settings());
    let made = side.make("local:v1", &layers());
    let found = side.images.resolve("local:v1", &amd64(), ResolveMode::PreferLocal, &task()).await;
    assert_eq!(found.unwrap().digest, made.digest);
    let error = side.pull("absent:v1").await.unwrap_err();
    assert!(error.message.contains("is not a list of registries"), "{}", error.message);
}

#[tokio::test]
async fn a_mirror_is_asked_first_and_its_faults_are_passed_over() {
    if lacks() {
        return;
    }
    let (registry, mirror) = (TestRegistry::open(), TestRegistry::open());
    let settings = |folder: &Path| {
        let path = folder.join("registries.toml");
        let text = format!(
            "[registry.\"{}\"]\nmirrors = [\"http://127.0.0.1:1\", \"http://{}/cached\"]\n",
            registry.host, mirror.host
        );
        fs_err::write(&path, text).unwrap();
        RegistrySettings { registries: vec![path], ..RegistrySettings::default() }
    };
    let folder = tempfile::tempdir().unwrap();
    let (both, only_registry) = (registry.image("a:v1"), registry.image("b:v1"));
    let side = Side::new();
    let made = side.make(&both, &layers());
    side.push(&both).await.unwrap();
    side.make(&only_registry, &layers()[..1]);
    side.push(&only_registry).await.unwrap();
    let in_mirror = mirror.image("cached/a:v1");
    let mirrored = side.make(&in_mirror, &layers()[..2]);
    side.push(&in_mirror).await.unwrap();

    let pulled = Side::with(settings(folder.path())).pull(&both).await.unwrap();
    assert_eq!(pulled.digest, mirrored.digest);
    assert_ne!(pulled.digest, made.digest);
    let pulled = Side::with(settings(folder.path())).pull(&only_registry).await.unwrap();
    assert_eq!(side.again().pull(&only_registry).await.unwrap().digest, pulled.digest);

    let absent = Side::with(settings(folder.path())).pull(&registry.image("c:v1")).await;
    let message = absent.unwrap_err().message;
    for part in ["c:v1", "was not found", &registry.host, "mirror `127.0.0.1:1`", &mirror.host] {
        assert!(message.contains(part), "{part}: {message}");
    }
}

#[tokio::test]
async fn a_name_is_local_first_and_known_without_network() {
    if lacks() {
        return;
    }
    let registry = TestRegistry::open();
    let name = registry.image("app:v1");
    let here = Side::new();
    let old = here.make(&name, &layers()[..1]);
    here.push(&name).await.unwrap();
    let new = here.make(&name, &layers());

    let resolve = async |side: &Side, mode| {
        side.images.resolve(&name, &amd64(), mode, &task()).await.map(|image| image.digest)
    };
    assert_eq!(resolve(&here, ResolveMode::PreferLocal).await.unwrap(), new.digest);
    assert_eq!(resolve(&here, ResolveMode::Pull).await.unwrap(), old.digest);

    let there = Side::new();
    assert_eq!(resolve(&there, ResolveMode::PreferLocal).await.unwrap(), old.digest);
    drop(registry);
    assert_eq!(resolve(&there.again(), ResolveMode::PreferLocal).await.unwrap(), old.digest);
    assert!(resolve(&there.again(), ResolveMode::Pull).await.is_err());
    assert!(resolve(&Side::new(), ResolveMode::PreferLocal).await.is_err());
}

#[tokio::test]
async fn an_index_is_pushed_whole_and_an_image_of_it_is_chosen() {
    if lacks() {
        return;
    }
    let registry = TestRegistry::open();
    let name = registry.image("multi:v1");
    let side = Side::new();
    let amd = side.make("amd", &layers()[..1]);
    let arm = side.make("arm", &layers()[1..2]);
    let entry = |image: &Descriptor, platform: &str| Descriptor {
        platform: Some(platform.parse().unwrap()),
        ..image.clone()
    };
    let index = rbuild_cache::oci::Index {
        schema_version: 2,
        media_type: Some(MediaType::OciIndex),
        manifests: vec![entry(&arm, "linux/arm64"), entry(&amd, "linux/amd64")],
        annotations: BTreeMap::new(),
    };
    let index = serde_json::to_vec(&index).unwrap();
    side.images.state().blobs().put(&index).unwrap();
    let root = Descriptor::of(MediaType::OciIndex, &index);
    side.images.state().layout().set(std::slice::from_ref(&name), &root).unwrap();
    side.push(&name).await.unwrap();

    let there = Side::new();
    let resolved = there.images.resolve(&name, &amd64(), ResolveMode::Pull, &task()).await.unwrap();
    assert_eq!((resolved.digest, resolved.manifest), (root.digest, amd.digest));
    let riscv = "linux/riscv64".parse().unwrap();
    let error = there.images.resolve(&name, &riscv, ResolveMode::Pull, &task()).await.unwrap_err();
    assert!(
        error
            .message
            .ends_with("no image for `linux/riscv64` in it, only for `linux/arm64`, `linux/amd64`"),
        "{}",
        error.message
    );
}

#[tokio::test]
async fn by_digest_alone_no_tag_is_made() {
    if lacks() {
        return;
    }
    let registry = TestRegistry::open();
    let side = Side::new();
    let made = side.make("x", &layers());
    let content: PushContent = image_transfer::content(&side.images, &made).unwrap();
    let source: Arc<dyn BlobSource> =
        Arc::new(image_transfer::StoredBlobs::new(side.images.clone(), HashMap::new()));
    let image = registry.image("untagged").parse().unwrap();
    let pusher = side.images.registry().pusher();
    pusher.push(&image, Naming::Digest, &content, &source, &task()).await.unwrap();
    let by_digest = format!("{}@{}", registry.image("untagged"), made.digest);
    assert_eq!(Side::new().pull(&by_digest).await.unwrap().digest, made.digest);
    let error = Side::new().pull(&registry.image("untagged")).await.unwrap_err();
    assert!(error.message.contains("untagged:latest was not found"), "{}", error.message);
}
