//! What rbuild pushes others pull and run, and what others push rbuild pulls; images as others make
//! them: with attestations, with foreign layers.

use std::process::Command;

use rbuild_cache::oci::{Descriptor, Index, MediaType};
use serde_json::json;

use crate::faulty_registry::FaultyRegistry;
use crate::needs::{self, Need, lacking};
use crate::podman::{self, Podman};
use crate::rbuild::{Rbuild, context, run, scratch};
use crate::registry::{self, TestRegistry};
use crate::registry_client::{Side, digests, noise};

#[test]
fn what_rbuild_pushes_podman_runs_and_umoci_unpacks() {
    let needs = [&needs::STEPS[..], &registry::NEEDED, &podman::NEEDED, &[Need::Program("umoci")]];
    if lacking(&needs.concat()) {
        return;
    }
    let (registry, rbuild, podman) = (TestRegistry::open(), Rbuild::new(), Podman::new());
    let files = context(&[("Dockerfile", "FROM busybox\nRUN echo hello > /said\n")]);
    for compression in ["gzip", "zstd", "uncompressed"] {
        let name = registry.image(&format!("team/{compression}:v1"));
        let output = format!("type=registry,name={name},compression={compression}");
        rbuild.build(&files).args(["-o", &output]).succeeds();
        podman.run(&["pull", "--quiet", "--tls-verify=false", &name]);
        assert_eq!(podman.run_image(&name, &["cat", "/said"]), "hello\n", "{compression}");
        // umoci reads no zstd.
        if compression != "zstd" {
            let folder = scratch();
            let path = |name: &str| folder.path().join(name).display().to_string();
            let layout = format!("oci:{}:v1", path("layout"));
            let source = format!("docker://{name}");
            run("skopeo", &["copy", "-q", "--src-tls-verify=false", &source, &layout]);
            let image = format!("{}:v1", path("layout"));
            run("umoci", &["raw", "unpack", "--image", &image, &path("tree")]);
            let said = fs_err::read_to_string(folder.path().join("tree/said")).unwrap();
            assert_eq!(said, "hello\n", "{compression}");
        }
    }
}

#[test]
fn what_podman_and_buildah_push_rbuild_pulls() {
    let needs =
        [&needs::STEPS[..], &registry::NEEDED, &podman::NEEDED, &[Need::Program("buildah")]];
    if lacking(&needs.concat()) {
        return;
    }
    let (registry, rbuild, podman) = (TestRegistry::open(), Rbuild::new(), Podman::new());
    registry.put(crate::base::busybox(), "base:v1");
    let base = registry.image("base:v1");
    podman.run(&["pull", "--quiet", "--tls-verify=false", &base]);
    let by_podman = registry.image("by/podman:v1");
    podman.run(&["push", "--quiet", "--tls-verify=false", &base, &by_podman]);

    let storage = scratch();
    let folder = |name: &str| storage.path().join(name).display().to_string();
    let by_buildah = registry.image("by/buildah:v1");
    let buildah = |args: &[&str]| {
        let output = Command::new("buildah")
            .args(["--root", &folder("storage"), "--runroot", &folder("run")])
            .args(["--storage-driver", "vfs"])
            .args(args)
            .output()
            .unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "buildah {args:?}: {stderr}");
    };
    let files = context(&[
        ("Dockerfile", &format!("FROM {base}\nCOPY file /made\nLABEL by=buildah\n")),
        ("file", "by buildah"),
    ]);
    let made = files.path().display().to_string();
    buildah(&["bud", "-q", "--tls-verify=false", "-t", "made", &made]);
    buildah(&["push", "-q", "--tls-verify=false", "made", &format!("docker://{by_buildah}")]);

    for (name, command) in [(&by_podman, "true"), (&by_buildah, "grep buildah /made")] {
        rbuild.command().args(["pull", name]).succeeds();
        let files = context(&[("Dockerfile", &format!("FROM {name}\nRUN {command}\n"))]);
        Rbuild::new().build(&files).succeeds();
    }
}

#[tokio::test]
async fn an_index_with_attestations_is_pulled_and_pushed_whole() {
    let registry = FaultyRegistry::start(|_| None);
    let side = Side::new();
    let image = side.make("image", &[noise(21, 100_000)]);
    let store = side.images.state().blobs();
    let put = |media_type: MediaType, value: &serde_json::Value| {
        let bytes = value.to_string();
        store.put(bytes.as_bytes()).unwrap();
        Descriptor::of(media_type, bytes.as_bytes())
    };
    let config = put(MediaType::OciConfig, &json!({"os": "unknown", "architecture": "unknown"}));
    let statement = put(
        MediaType::from("application/vnd.in-toto+json".to_owned()),
        &json!({"_type": "https://in-toto.io/Statement/v0.1"}),
    );
    let mut attestation = put(
        MediaType::OciManifest,
        &json!({"schemaVersion": 2, "mediaType": MediaType::OciManifest, "config": config,
                "layers": [statement]}),
    );
    attestation.platform = Some("unknown/unknown".parse().unwrap());
    attestation.annotations.extend([
        ("vnd.docker.reference.type".to_owned(), "attestation-manifest".to_owned()),
        ("vnd.docker.reference.digest".to_owned(), image.digest.to_string()),
    ]);
    let platform = Some("linux/amd64".parse().unwrap());
    let index = Index {
        schema_version: 2,
        media_type: Some(MediaType::OciIndex),
        manifests: vec![Descriptor { platform, ..image.clone() }, attestation.clone()],
        annotations: std::collections::BTreeMap::new(),
    };
    let root = put(MediaType::OciIndex, &serde_json::to_value(&index).unwrap());
    let name = registry.image("team/app:v1");
    side.images.state().layout().set(std::slice::from_ref(&name), &root).unwrap();
    side.push(&name).await.unwrap();
    assert_eq!(registry.tag("team/app:v1"), Some(root.digest));
    assert!(!registry.blob(&statement.digest.to_string()).is_empty());

    let there = Side::new();
    let pulled = there.pull(&name).await.unwrap();
    assert_eq!(pulled.digest, image.digest, "the image, not the attestation");
    assert_eq!(there.layers(&pulled), digests(&[noise(21, 100_000)]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_foreign_layer_comes_from_where_it_says_and_is_not_pushed() {
    let layers = [noise(22, 100_000), noise(23, 50_000)];
    let elsewhere = FaultyRegistry::start(|_| None);
    elsewhere.put("other:v1", &layers);
    let registry = FaultyRegistry::start(|_| None);
    registry.put_lying("app:v1", &layers, |manifest| {
        let foreign = &mut manifest.layers[0];
        foreign.media_type =
            MediaType::from("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip".to_owned());
        let host = &elsewhere.host;
        foreign.urls = vec![format!("http://{host}/v2/other/blobs/{}", foreign.digest)];
    });
    let side = Side::new();
    let pulled = side.pull(&registry.image("app:v1")).await.unwrap();
    assert_eq!(side.layers(&pulled), digests(&layers));
    assert_eq!(elsewhere.blob_requests(), 1);

    let target = FaultyRegistry::start(|_| None);
    let name = target.image("app:v1");
    side.images.state().layout().set(std::slice::from_ref(&name), &pulled).unwrap();
    // That registry wants every layer; what counts is that the foreign one is not offered.
    let _ = side.push(&name).await;
    let foreign = digests(&layers)[0].to_string();
    assert!(target.asked().iter().all(|asked| !asked.path.contains(&foreign)));
    assert!(
        target.asked().iter().any(|asked| asked.path.contains(&digests(&layers)[1].to_string()))
    );
}
