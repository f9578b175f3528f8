//! Images for several platforms.

use std::sync::{Arc, Mutex};

use sha2::{Digest as _, Sha256};

use crate::archive::OciArchive;
use crate::faulty_registry::{FaultyRegistry, Reply, status};
use crate::needs::{self, Need, lacking};
use crate::rbuild::{Rbuild, context, json, scratch};
use crate::registry::TestRegistry;

/// An image for arm64 with a program in it that is none.
fn arm_base(rbuild: &Rbuild) {
    let files = [("Dockerfile", "FROM scratch\nCOPY sh /bin/sh\n"), ("sh", "no program\n")];
    let folder = context(&files);
    let build = rbuild.command().args(["build", "--platform", "linux/arm64", "-t", "arm:v1"]);
    build.arg(folder.path()).succeeds();
}

#[test]
fn what_a_foreign_step_lacks_is_named_before_the_first_step_runs() {
    if lacking(&needs::STEPS) {
        return;
    }
    if fs_err::read_dir("/proc/sys/fs/binfmt_misc").is_ok_and(|entries| entries.count() > 2) {
        // This machine may well run such programs.
        return;
    }
    let rbuild = Rbuild::new();
    arm_base(&rbuild);
    let dockerfile = "FROM busybox AS native\nRUN touch /ran\nFROM arm:v1\nCOPY --from=native /ran /\n\
                      RUN make\n";
    let folder = context(&[("Dockerfile", dockerfile)]);
    let outcome = rbuild.build(&folder).args(["--platform", "linux/arm64"]).exits(1);
    outcome.assert_stderr_has(&[
        "cannot run: this machine is `linux/amd64`",
        "programs for `linux/arm64`",
        "Dockerfile:5:1",
        "qemu-user-static",
        "$BUILDPLATFORM",
    ]);
    assert!(!outcome.has_step("RUN touch /ran"), "nothing was run\n{outcome}");
    // Without a step that runs its programs, it is built.
    let folder = context(&[("Dockerfile", "FROM arm:v1\nENV A=b\n")]);
    rbuild.build(&folder).args(["--platform", "linux/arm64"]).succeeds();
}

/// Takes the platforms out of the one index in `layout`, and gives back its new digest.
fn without_platforms(layout: &std::path::Path) -> String {
    let list = layout.join("index.json");
    let mut outer = json(&list);
    let blob = |digest: &str| layout.join("blobs/sha256").join(&digest["sha256:".len()..]);
    let mut index = json(blob(outer["manifests"][0]["digest"].as_str().unwrap()));
    for manifest in index["manifests"].as_array_mut().unwrap() {
        manifest.as_object_mut().unwrap().remove("platform").unwrap();
    }
    let bytes = index.to_string();
    let digest = format!("sha256:{}", hex::encode(Sha256::digest(&bytes)));
    fs_err::write(blob(&digest), &bytes).unwrap();
    outer["manifests"][0]["digest"] = digest.as_str().into();
    outer["manifests"][0]["size"] = bytes.len().into();
    fs_err::write(list, outer.to_string()).unwrap();
    digest
}

#[test]
fn a_layout_is_a_base_by_its_tag_and_by_a_digest_also_without_platforms() {
    let (rbuild, out) = (Rbuild::new(), scratch());
    let layout = out.path().join("layout");
    let dockerfile = "FROM scratch\nARG TARGETARCH\nLABEL arch=$TARGETARCH\nCOPY file /\n";
    let base = context(&[("Dockerfile", dockerfile), ("file", "text\n")]);
    let build = rbuild.build(&base).args(["--platform", "linux/amd64,linux/arm64", "-t", "a:v1"]);
    build.output("type=oci,tar=false", &layout).succeeds();
    let folder = context(&[("Dockerfile", "FROM base\nLABEL more=1\n")]);
    let build = |below: &str, arch: &str| {
        let named = format!("base=oci-layout://{}{below}", layout.display());
        let platform = format!("linux/{arch}");
        rbuild.build(&folder).args(["--build-context", &named, "--platform", &platform])
    };
    let check = |below: &str| {
        for arch in ["amd64", "arm64"] {
            let tar = out.path().join("image.tar");
            build(below, arch).output("type=oci", &tar).succeeds();
            let config = OciArchive::open(&tar).config;
            assert_eq!(config["config"]["Labels"]["arch"], arch, "{below}");
            assert_eq!(config["architecture"], arch, "{below}");
        }
    };
    let digest = json(layout.join("index.json"))["manifests"][0]["digest"].clone();
    for below in [":v1", "", &format!("@{}", digest.as_str().unwrap())] {
        check(below);
    }
    build(":v2", "amd64").exits(1).assert_stderr_has(&["has no image `v2`", "`v1`"]);
    // An index need not say for what its images are: their configs do.
    let digest = without_platforms(&layout);
    for below in [":v1", "", &format!("@{digest}")] {
        check(below);
    }
    let refused = build(":v1", "riscv64").exits(1);
    refused.assert_stderr_has(&["there is no image for `linux/riscv64` in it, only for"]);
}

#[test]
fn an_index_is_pushed_and_pulled_whole_or_for_one_platform() {
    if lacking(&[Need::Program("docker-registry")]) {
        return;
    }
    let (rbuild, registry) = (Rbuild::new(), TestRegistry::open());
    let name = format!("{}/multi:v1", registry.host);
    let dockerfile = "FROM scratch\nARG TARGETARCH\nLABEL arch=$TARGETARCH\nCOPY file /\n";
    let folder = context(&[("Dockerfile", dockerfile), ("file", "text\n")]);
    let build = rbuild.command().args(["build", "--platform", "linux/amd64,linux/arm64"]);
    let build = build.args(["--provenance=mode=min", "-t", &name]).arg(folder.path());
    build.succeeds();
    rbuild.command().args(["push", "-q", &name]).succeeds();
    let digest = |rbuild: &Rbuild| {
        let run = rbuild.command().args(["images", "--format", "{{.Digest}}"]);
        run.succeeds().stdout.trim().to_owned()
    };
    let other = Rbuild::new();
    let pulled = other.command().args(["pull", "-q", "--all-platforms", &name]).succeeds();
    assert_eq!(pulled.stdout.trim(), format!("{name}@{}", digest(&rbuild)));
    assert_eq!(digest(&other), digest(&rbuild));
    let said = other.command().args(["inspect", "--provenance", "-f", "{{.Platform}}", &name]);
    let said = said.run();
    assert!(said.status.success(), "{said}");
    let arch = |rbuild: &Rbuild| {
        let run = rbuild.command().args(["inspect", "-f", "{{.Architecture}}", &name]);
        run.succeeds().stdout
    };
    assert_eq!(arch(&other), "amd64\narm64\n");
    let arm = Rbuild::new();
    arm.command().args(["pull", "-q", "--platform", "linux/arm64", &name]).succeeds();
    assert_eq!(arch(&arm), "arm64\n");
    // One platform of it, pushed under another name, is a plain image there.
    let one = format!("{}/one:v1", registry.host);
    other.command().args(["tag", &name, &one]).succeeds();
    other.command().args(["push", "-q", "--platform", "linux/arm64", &one]).succeeds();
    let plain = Rbuild::new();
    plain.command().args(["pull", "-q", "--all-platforms", &one]).succeeds();
    let run = plain.command().args(["inspect", "-f", "{{.Architecture}}", &one]);
    assert_eq!(run.succeeds().stdout, "arm64\n");
}

#[test]
fn a_referrer_leaves_the_image_as_it_is() {
    if lacking(&[Need::Program("docker-registry"), Need::Program("skopeo")]) {
        return;
    }
    let (rbuild, registry) = (Rbuild::new(), TestRegistry::open());
    let name = format!("{}/app:v1", registry.host);
    let folder = context(&[("Dockerfile", "FROM scratch\nLABEL a=b\n")]);
    let push = |output: &str, flags: &[&str]| {
        let run = rbuild.command().args(["build", "-t", &name, "-o", output]).args(flags);
        run.env("SOURCE_DATE_EPOCH", "0").arg(folder.path()).succeeds();
        let raw = ["inspect", "--raw", "--tls-verify=false"];
        let shown =
            crate::rbuild::run("skopeo", &[&raw[..], &[&format!("docker://{name}")]].concat());
        serde_json::from_str::<serde_json::Value>(&shown).unwrap()
    };
    let plain = push("type=registry", &[]);
    let said = push("type=registry,attestations=referrer", &["--provenance=mode=max"]);
    assert_eq!(plain, said);
    let again = push("type=registry,attestations=referrer", &["--provenance=mode=max"]);
    assert_eq!(plain, again);
    let pulled = rbuild.command().args(["pull", "-q", &name]).succeeds().stdout;
    let hex = pulled.trim().rsplit(':').next().unwrap().to_owned();
    let tag = format!("docker://{}/app:sha256-{hex}", registry.host);
    let index = crate::rbuild::run("skopeo", &["inspect", "--raw", "--tls-verify=false", &tag]);
    let index: serde_json::Value = serde_json::from_str(&index).unwrap();
    let listed = index["manifests"].as_array().unwrap();
    assert_eq!(listed.len(), 1, "{index}");
    let kind = "application/vnd.docker.attestation.manifest.v1+json";
    assert_eq!(listed[0]["artifactType"], kind);
    let run = rbuild.command().args(["build", "-o", "type=image,attestations=referrer"]);
    let refused = run.arg("--provenance").arg(folder.path()).exits(2);
    refused.assert_stderr_has(&["the local store has no referrers"]);
}

#[test]
fn a_list_of_referrers_that_cannot_be_read_is_not_replaced() {
    let (rbuild, fault) = (Rbuild::new(), Arc::new(Mutex::new(None)));
    let current = Arc::clone(&fault);
    let registry = FaultyRegistry::start(move |asked| {
        let is_list = asked.method == "GET" && asked.path.contains("/manifests/sha256-");
        current.lock().unwrap().clone().filter(|_| is_list)
    });
    let name = registry.image("app:v1");
    let folder = context(&[("Dockerfile", "FROM scratch\nLABEL a=b\n")]);
    let push = || {
        let run = rbuild.command().args(["build", "-t", &name, "--provenance=mode=min"]);
        run.args(["-o", "type=registry,attestations=referrer"]).arg(folder.path())
    };
    let lists_sent = || {
        let asked = registry.asked();
        let is_list = |path: &str| path.contains("/manifests/sha256-");
        asked.iter().filter(|asked| asked.method == "PUT" && is_list(&asked.path)).count()
    };
    let kind = ("content-type".to_owned(), "application/vnd.oci.image.index.v1+json".to_owned());
    let torn = Reply::Answer { status: 200, headers: vec![kind], body: b"{\"manifests\":".into() };
    for (reply, said) in [(status(403), "access denied"), (torn, "no list of statements")] {
        *fault.lock().unwrap() = Some(reply);
        push().exits(1).assert_stderr_has(&[said, &registry.host]);
        assert_eq!(lists_sent(), 0);
    }
    *fault.lock().unwrap() = None;
    push().succeeds();
    assert_eq!(lists_sent(), 1);
}

#[test]
fn a_registry_that_lists_referrers_by_itself_needs_no_tag_for_it() {
    let (rbuild, pushed) = (Rbuild::new(), Arc::new(Mutex::new(Vec::new())));
    let known = Arc::clone(&pushed);
    let registry = FaultyRegistry::start(move |asked| {
        let mut known = known.lock().unwrap();
        if let Some(digest) = asked.path.split("/manifests/").nth(1)
            && asked.method == "PUT"
        {
            known.push(digest.to_owned());
        }
        let kind = "application/vnd.oci.image.manifest.v1+json";
        let entry =
            |digest: &String| serde_json::json!({"mediaType": kind, "digest": digest, "size": 7});
        let entries: Vec<_> =
            known.iter().filter(|d| d.starts_with("sha256:")).map(entry).collect();
        let index = serde_json::json!({"schemaVersion": 2, "manifests": entries}).to_string();
        let kind = "application/vnd.oci.image.index.v1+json";
        let headers = vec![("content-type".to_owned(), kind.to_owned())];
        let listed = Reply::Answer { status: 200, headers, body: index.into() };
        asked.path.contains("/referrers/sha256:").then_some(listed)
    });
    let folder = context(&[("Dockerfile", "FROM scratch\nLABEL a=b\n")]);
    let run = rbuild.command().args(["build", "-t", &registry.image("app:v1"), "--provenance"]);
    run.args(["-o", "type=registry,attestations=referrer"]).arg(folder.path()).succeeds();
    let pushed = pushed.lock().unwrap();
    assert_eq!(pushed.len(), 2, "{pushed:?}");
    assert!(pushed.iter().all(|reference| !reference.starts_with("sha256-")), "{pushed:?}");
}
