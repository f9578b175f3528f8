//! `--provenance`: what images say of how they were built.

use serde_json::Value;

use crate::archive::tar_files;
use crate::needs::{self, lacking};
use crate::rbuild::{Rbuild, Run, context, run, scratch};

const SECRET: &str = "correct-horse-battery-staple";

const DOCKERFILE: &str = "\
FROM busybox AS base
ARG COLOUR
RUN --mount=type=secret,id=token test -s /run/secrets/token
RUN --mount=type=secret,id=token,env=TOKEN test -n \"$TOKEN\"
COPY <<page /page
hello
page
COPY file /file
RUN --network=none echo hi > /hi
";

fn sample() -> tempfile::TempDir {
    context(&[("Dockerfile", DOCKERFILE), ("file", "text\n")])
}

fn build(rbuild: &Rbuild, folder: &tempfile::TempDir) -> Run {
    rbuild
        .build(folder)
        .args(["-t", "me/app:1", "--secret", "id=token,env=TOKEN", "--build-arg", "COLOUR=red"])
        .args(["--build-arg", "HTTP_PROXY=http://me:pass@proxy:1", "--label", "a=b"])
        .env("TOKEN", SECRET)
}

/// What `rbuild inspect --provenance` shows of the image.
fn statement(rbuild: &Rbuild) -> Value {
    let shown = rbuild.command().args(["inspect", "--provenance", "me/app:1"]).succeeds();
    let shown: Value = serde_json::from_str(&shown.stdout).unwrap();
    assert_eq!(shown.as_array().unwrap().len(), 1);
    assert_eq!(shown[0]["Platform"], "linux/amd64");
    shown[0]["Statement"].clone()
}

#[test]
fn min_and_max_say_what_buildkit_says() {
    if lacking(&needs::STEPS) {
        return;
    }
    let (rbuild, folder) = (Rbuild::new(), sample());
    build(&rbuild, &folder).arg("--provenance=mode=min").succeeds();
    let min = statement(&rbuild);
    assert_eq!(min["_type"], "https://in-toto.io/Statement/v1");
    assert_eq!(min["predicateType"], "https://slsa.dev/provenance/v1");
    assert_eq!(min["subject"][0]["name"], "pkg:docker/me/app@1?platform=linux%2Famd64");
    let manifest = rbuild.command().args(["inspect", "-f", "{{.Manifest.digest}}", "me/app:1"]);
    let manifest = manifest.succeeds().stdout.trim().to_owned();
    let subject = min["subject"][0]["digest"]["sha256"].as_str().unwrap();
    assert_eq!(format!("sha256:{subject}"), manifest);
    let definition = &min["predicate"]["buildDefinition"];
    let buildkit =
        "https://github.com/moby/buildkit/blob/master/docs/attestations/slsa-definitions.md";
    assert_eq!(definition["buildType"], buildkit);
    let dependency = &definition["resolvedDependencies"][0];
    assert!(dependency["uri"].as_str().unwrap().starts_with("pkg:oci/busybox?digest=sha256:"));
    assert!(dependency["uri"].as_str().unwrap().ends_with("&platform=linux%2Famd64"));
    assert_eq!(dependency["digest"]["sha256"].as_str().unwrap().len(), 64);
    let request = &definition["externalParameters"]["request"];
    assert_eq!(request["frontend"], "dockerfile.v0");
    assert_eq!(request["secrets"], Value::Null);
    assert!(!request.to_string().contains("COLOUR") && !request.to_string().contains("label:"));
    assert_eq!(request["locals"][1]["name"], "dockerfile");
    assert_eq!(definition["internalParameters"]["buildConfig"], Value::Null);
    let metadata = &min["predicate"]["runDetails"]["metadata"];
    assert_eq!(metadata["buildkit_completeness"]["request"], false);
    assert_eq!(metadata["buildkit_completeness"]["resolvedDependencies"], false);
    assert!(metadata["startedOn"].is_string() && metadata["finishedOn"].is_string());

    build(&rbuild, &folder).arg("--provenance=mode=max,builder-id=https://ci.example/1").succeeds();
    let max = statement(&rbuild);
    assert_eq!(max["predicate"]["runDetails"]["builder"]["id"], "https://ci.example/1");
    let definition = &max["predicate"]["buildDefinition"];
    let request = &definition["externalParameters"]["request"];
    assert_eq!(request["args"]["build-arg:COLOUR"], "red");
    assert_eq!(request["args"]["label:a"], "b");
    assert_eq!(request["secrets"][0]["id"], "token");
    let steps =
        definition["internalParameters"]["buildConfig"]["llbDefinition"].as_array().unwrap();
    let exec = steps.iter().find(|step| step["op"]["Op"]["exec"]["network"] == 2).unwrap();
    assert_eq!(exec["op"]["Op"]["exec"]["meta"]["args"][2], "echo hi > /hi");
    assert_eq!(exec["op"]["platform"]["Architecture"], "amd64");
    let source = &max["predicate"]["runDetails"]["metadata"]["buildkit_metadata"]["source"];
    let step = exec["id"].as_str().unwrap();
    assert_eq!(source["locations"][step]["locations"][0]["ranges"][0]["start"]["line"], 9);
    assert_eq!(source["infos"][0]["filename"], "Dockerfile");

    // Neither a secret nor a password is in anything that was written.
    for (name, text) in [("min", min), ("max", max)] {
        let text = text.to_string();
        assert!(!text.contains(SECRET) && !text.contains("me:pass"), "{name}: {text}");
    }
    let tar = scratch();
    let file = tar.path().join("saved.tar");
    rbuild.command().args(["save", "-o"]).arg(&file).arg("me/app:1").succeeds();
    let files = tar_files(fs_err::File::open(&file).unwrap());
    let holds = |text: &str| {
        let (text, bytes) = (text.as_bytes(), files.values());
        bytes.filter(|bytes| bytes.windows(text.len()).any(|part| part == text)).count()
    };
    assert_eq!((holds(SECRET), holds("me:pass")), (0, 0));
    assert!(holds("build-arg:COLOUR") > 0, "what is looked for is found");
}

#[test]
fn it_stands_where_buildkit_keeps_it_or_nowhere() {
    if lacking(&needs::STEPS) {
        return;
    }
    let (rbuild, folder, out) = (Rbuild::new(), sample(), scratch());
    let write = |output: &str, flags: &[&str]| {
        let tar = out.path().join("image.tar");
        build(&rbuild, &folder).args(flags).output(output, &tar).succeeds();
        let files = tar_files(fs_err::File::open(&tar).unwrap());
        let index: Value = serde_json::from_slice(&files["index.json"]).unwrap();
        let read = move |descriptor: &Value| -> Value {
            let digest = descriptor["digest"].as_str().unwrap();
            let name = format!("blobs/sha256/{}", digest.strip_prefix("sha256:").unwrap());
            serde_json::from_slice(&files[&name]).unwrap()
        };
        (index["manifests"].clone(), read)
    };
    let (roots, _) = write("type=oci", &[]);
    assert_eq!(roots[0]["mediaType"], "application/vnd.oci.image.manifest.v1+json");

    let (roots, read) = write("type=oci", &["--provenance=mode=min"]);
    assert_eq!(roots[0]["mediaType"], "application/vnd.oci.image.index.v1+json");
    let index = read(&roots[0]);
    let (image, attestation) = (&index["manifests"][0], &index["manifests"][1]);
    assert_eq!(attestation["annotations"]["vnd.docker.reference.type"], "attestation-manifest");
    assert_eq!(attestation["annotations"]["vnd.docker.reference.digest"], image["digest"]);
    assert_eq!(attestation["platform"]["os"], "unknown");
    let manifest = read(attestation);
    assert_eq!(manifest["artifactType"], "application/vnd.docker.attestation.manifest.v1+json");
    assert_eq!(manifest["subject"]["digest"], image["digest"]);
    assert_eq!(manifest["config"]["data"], "e30=");
    assert_eq!(manifest["layers"][0]["mediaType"], "application/vnd.in-toto+json");

    let (roots, read) = write("type=oci,oci-artifact=false", &["--provenance=mode=min"]);
    let manifest = read(&read(&roots[0])["manifests"][1]);
    assert_eq!((&manifest["artifactType"], &manifest["subject"]), (&Value::Null, &Value::Null));
    assert_eq!(read(&manifest["config"])["os"], "unknown");

    let (roots, read) = write("type=oci,attestations=referrer", &["--provenance=mode=min"]);
    assert_eq!(roots[0]["mediaType"], "application/vnd.oci.image.manifest.v1+json");
    assert_eq!(roots[1]["artifactType"], "application/vnd.docker.attestation.manifest.v1+json");
    assert_eq!(read(&roots[1])["subject"]["digest"], roots[0]["digest"]);

    let (roots, _) = write("type=oci", &["--provenance=mode=min,inline-only=true"]);
    assert_eq!(roots[0]["mediaType"], "application/vnd.oci.image.manifest.v1+json");

    let refused = build(&rbuild, &folder).args(["--provenance", "-o"]);
    let refused = refused.arg("type=image,oci-mediatypes=false").exits(2);
    refused
        .assert_stderr_has(&["`--provenance` and `oci-mediatypes=false` cannot be used together"]);
    build(&rbuild, &folder).succeeds();
    let none = rbuild.command().args(["inspect", "--provenance", "me/app:1"]).exits(1);
    none.assert_stderr_has(&["does not say how it was built", "--provenance=mode=min"]);
}

#[test]
fn files_say_it_too() {
    if lacking(&needs::STEPS) {
        return;
    }
    let (rbuild, out) = (Rbuild::new(), scratch());
    let folder = context(&[("Dockerfile", "FROM scratch\nCOPY file /file\n"), ("file", "text\n")]);
    let build = rbuild.build(&folder).arg("--provenance=mode=max");
    build.output("type=local,attestation-prefix=my-", out.path()).succeeds();
    let statement = crate::rbuild::json(out.path().join("my-provenance.json"));
    assert_eq!(statement["subject"].as_array().unwrap().len(), 1);
    assert_eq!(statement["subject"][0]["name"], "file");
    let digest = run("sha256sum", &[out.path().join("file").to_str().unwrap()]);
    assert_eq!(statement["subject"][0]["digest"]["sha256"], digest.split(' ').next().unwrap());
    let complete = rbuild.build(&folder).arg("--provenance=complete-materials=true").exits(1);
    complete.assert_stderr_has(&["materials are incomplete", "the local source `context`"]);
}

#[test]
fn the_same_build_says_the_same() {
    if lacking(&needs::STEPS) {
        return;
    }
    let folder = sample();
    let digests = [1, 2].map(|_| {
        let rbuild = Rbuild::new();
        let run = build(&rbuild, &folder).arg("--provenance=mode=max");
        run.env("SOURCE_DATE_EPOCH", "1700000000").succeeds();
        rbuild.command().args(["inspect", "-f", "{{.Digest}}", "me/app:1"]).succeeds().stdout
    });
    assert_eq!(digests[0], digests[1]);
}
