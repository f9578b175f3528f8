//! Every kind of output, read by the tools that others read images with.

use std::process::Stdio;

use crate::archive::{OciArchive, tar_files};
use crate::git_repository::GitRepository;
use crate::needs::{self, Need, lacking};
use crate::podman::{self, Podman};
use crate::rbuild::{Rbuild, context, json, run, scratch};

const DOCKERFILE: &str = "\
FROM busybox
LABEL purpose=test
ENV GREETING=hello
WORKDIR /work
COPY --chown=33:33 file .
RUN ln -s file link && mkdir -m 1777 shared && rm /bin/vi
USER www-data
ENTRYPOINT [\"/bin/sh\", \"-c\"]
CMD [\"echo $GREETING from $(id -u) in $(pwd); cat link\"]
";

const SAID: &str = "hello from 33 in /work\ntext\n";

fn sample() -> tempfile::TempDir {
    context(&[("Dockerfile", DOCKERFILE), ("file", "text\n")])
}

/// Renaming a file to its place would make an end of `/dev/null`, too.
#[test]
fn a_pipe_is_written_to_and_stays_one() {
    use std::os::unix::fs::FileTypeExt;
    let (rbuild, out) = (Rbuild::new(), scratch());
    let context = context(&[("Dockerfile", "FROM scratch\nCOPY file /\n"), ("file", "text\n")]);
    let pipe = out.path().join("pipe");
    run("mkfifo", &[pipe.to_str().unwrap()]);
    for (output, file) in [("type=tar", "file"), ("type=oci", "oci-layout")] {
        let reader = std::thread::spawn({
            let pipe = pipe.clone();
            move || fs_err::read(pipe).unwrap()
        });
        rbuild.build(&context).output(output, &pipe).succeeds();
        let bytes = reader.join().unwrap();
        let mut archive = tar::Archive::new(&*bytes);
        let mut paths =
            archive.entries().unwrap().map(|entry| entry.unwrap().path().unwrap().into_owned());
        assert!(paths.any(|path| path == std::path::Path::new(file)), "{output}");
        assert!(fs_err::metadata(&pipe).unwrap().file_type().is_fifo(), "{output}");
    }
    let missing = out.path().join("no/file");
    for flag in ["--iidfile", "--metadata-file"] {
        let outcome = rbuild.build(&context).arg(flag).arg(&missing).exits(2);
        outcome.assert_stderr_has(&[flag, "No such file or directory"]);
        assert!(!outcome.stderr.contains("COPY"), "nothing was built in vain: {outcome}");
    }
}

#[test]
fn skopeo_and_umoci_read_an_oci_archive() {
    if lacking(&[&needs::STEPS[..], &[Need::Program("skopeo"), Need::Program("umoci")]].concat()) {
        return;
    }
    let sample = sample();
    let (rbuild, out) = (Rbuild::new(), scratch());
    let tar = out.path().join("image.tar");
    rbuild.build(&sample).args(["-t", "sample:v1"]).output("type=oci", &tar).succeeds();

    let image = OciArchive::open(&tar);
    assert_eq!(image.config["config"]["User"], "www-data");
    assert_eq!(image.config["config"]["WorkingDir"], "/work");
    assert_eq!(image.config["config"]["Labels"]["purpose"], "test");
    assert_eq!(image.layers(), 4, "busybox, WORKDIR, COPY, RUN: {}", image.manifest);
    assert!(image.names_in_last_layer().contains(&"bin/.wh.vi".to_owned()));

    let layout = out.path().join("layout");
    let source = format!("oci-archive:{}", tar.display());
    run("skopeo", &["copy", "-q", &source, &format!("oci:{}:v1", layout.display())]);
    let bundle = out.path().join("bundle");
    let image = format!("{}:v1", layout.display());
    run("umoci", &["unpack", "--image", &image, bundle.to_str().unwrap()]);
    let rootfs = bundle.join("rootfs");
    assert_eq!(fs_err::read_link(rootfs.join("work/link")).unwrap().to_str(), Some("file"));
    assert_eq!(fs_err::read_to_string(rootfs.join("work/link")).unwrap(), "text\n");
    assert!(rootfs.join("bin/sh").exists());
    assert!(!rootfs.join("bin/vi").exists());
}

#[test]
fn podman_loads_and_runs_an_oci_archive() {
    check_podman_runs("type=oci");
}

#[test]
fn podman_loads_and_runs_a_docker_archive() {
    check_podman_runs("type=docker");
}

#[track_caller]
fn check_podman_runs(output: &str) {
    if lacking(&[&needs::STEPS[..], &podman::NEEDED].concat()) {
        return;
    }
    let sample = sample();
    let (rbuild, out, podman) = (Rbuild::new(), scratch(), Podman::new());
    let tar = out.path().join("image.tar");
    rbuild.build(&sample).args(["-t", "sample:v1"]).output(output, &tar).succeeds();
    let loaded = podman.run(&["load", "--quiet", "--input", tar.to_str().unwrap()]);
    assert!(loaded.contains("sample:v1"), "{loaded}");
    assert_eq!(podman.run_image("sample:v1", &[]), SAID);
}

#[test]
fn a_tar_holds_the_file_system() {
    if lacking(&needs::STEPS) {
        return;
    }
    let sample = sample();
    let (rbuild, out) = (Rbuild::new(), scratch());
    let path = out.path().join("fs.tar");
    rbuild.build(&sample).output("type=tar", &path).succeeds();
    let files = tar_files(fs_err::File::open(&path).unwrap());
    assert_eq!(files["work/file"], b"text\n");
    assert!(files.contains_key("work/link"));
    assert!(files.contains_key("bin/sh"));
    assert!(!files.contains_key("bin/vi"), "what a layer deleted is not there");
    assert!(!files.keys().any(|name| name.contains(".wh.")), "a file system has no whiteouts");
}

#[test]
fn a_tar_goes_to_stdout_alone() {
    if lacking(&needs::STEPS) {
        return;
    }
    let sample = sample();
    let rbuild = Rbuild::new();
    let run = rbuild.build(&sample).args(["-o", "type=tar,dest=-"]);
    let output = { run }.command.stdout(Stdio::piped()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(tar_files(&output.stdout[..])["work/file"], b"text\n");
}

/// The ID that `-q` prints elsewhere would be part of the archive.
#[test]
fn a_quiet_archive_on_stdout_is_nothing_but_an_archive() {
    let rbuild = Rbuild::new();
    let context = context(&[("Dockerfile", "FROM scratch\nCOPY file /\n"), ("file", "text\n")]);
    let tar = |flags: &[&str]| rbuild.build(&context).args(flags).succeeds().stdout;
    let quiet = tar(&["-q", "-o", "-"]);
    assert!(quiet.contains("text\n"), "{quiet}");
    assert_eq!(quiet, tar(&["-o", "-"]));
}

#[test]
fn a_folder_gets_the_file_system() {
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
    if lacking(&needs::STEPS) {
        return;
    }
    let sample = sample();
    let (rbuild, out) = (Rbuild::new(), scratch());
    rbuild.build(&sample).output("type=local", out.path()).succeeds();
    let work = out.path().join("work");
    assert_eq!(fs_err::read_to_string(work.join("link")).unwrap(), "text\n");
    assert!(fs_err::symlink_metadata(work.join("link")).unwrap().is_symlink());
    let mode = fs_err::metadata(work.join("shared")).unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o1777);
    assert_eq!(fs_err::metadata(work.join("file")).unwrap().len(), 5);
    assert!(fs_err::metadata(out.path().join("bin/sh")).unwrap().size() > 100_000);
    assert!(!out.path().join("bin/vi").exists());
}

#[test]
fn an_image_stays_in_the_store_under_its_names() {
    if lacking(&[&needs::STEPS[..], &[Need::Program("skopeo")]].concat()) {
        return;
    }
    let sample = sample();
    let (rbuild, out) = (Rbuild::new(), scratch());
    rbuild.build(&sample).args(["-t", "sample:v1", "-t", "example.org/other/sample:v2"]).succeeds();
    let images = rbuild.command().arg("images").succeeds();
    for name in ["sample", "v1", "example.org/other/sample", "v2"] {
        assert!(images.stdout.contains(name), "{images}");
    }

    // The state folder is an OCI layout, which others read.
    let index = json(rbuild.root.join("index.json"));
    let name = index["manifests"][0]["annotations"]["org.opencontainers.image.ref.name"].clone();
    let source = format!("oci:{}:{}", rbuild.root.display(), name.as_str().unwrap());
    run("skopeo", &["copy", "-q", &source, &format!("oci:{}/copy:v1", out.path().display())]);

    // A rebuilt name moves to the new image.
    let other = context(&[("Dockerfile", "FROM scratch\nLABEL a=b\n")]);
    rbuild.build(&other).args(["-t", "sample:v1"]).succeeds();
    let images = rbuild.command().arg("images").succeeds();
    let lines = images.stdout.lines().filter(|line| line.contains("v1")).count();
    assert_eq!(lines, 1, "{images}");
}

#[test]
fn cacheonly_leaves_no_image() {
    if lacking(&needs::STEPS) {
        return;
    }
    let rbuild = Rbuild::new();
    let sample = sample();
    rbuild.build(&sample).args(["-t", "sample:v1", "-o", "type=cacheonly"]).succeeds();
    let images = rbuild.command().arg("images").succeeds();
    assert!(!images.stdout.contains("sample"), "{images}");
    let second = rbuild.build(&sample).succeeds();
    assert!(second.step("COPY --chown=33:33 file .").cached, "{second}");
}

#[test]
fn metadata_and_id_are_written_where_asked() {
    if lacking(&needs::STEPS) {
        return;
    }
    let sample = sample();
    let (rbuild, out) = (Rbuild::new(), scratch());
    let tar = out.path().join("image.tar");
    let metadata = out.path().join("metadata.json");
    let id = out.path().join("id");
    rbuild
        .build(&sample)
        .args(["-t", "sample:v1"])
        .output("type=oci", &tar)
        .arg("--metadata-file")
        .arg(&metadata)
        .arg("--iidfile")
        .arg(&id)
        .succeeds();
    let image = OciArchive::open(&tar);
    let metadata = json(metadata);
    assert_eq!(metadata["containerimage.digest"], image.digest.as_str());
    let config = image.manifest["config"]["digest"].as_str().unwrap();
    assert_eq!(metadata["containerimage.config.digest"], config);
    assert!(metadata["image.name"].as_str().unwrap().ends_with("sample:v1"), "{metadata}");
    assert_eq!(fs_err::read_to_string(id).unwrap().trim(), config);
}

#[test]
fn quiet_prints_the_image_and_nothing_else() {
    if lacking(&needs::STEPS) {
        return;
    }
    let rbuild = Rbuild::new();
    let sample = sample();
    let outcome = rbuild
        .command()
        .args(["build", "-q", "-t", "sample:v1"])
        .base("busybox", crate::base::busybox())
        .arg(sample.path())
        .succeeds();
    assert_eq!(outcome.stderr, "");
    let line = outcome.stdout.strip_suffix('\n').unwrap();
    let hex = line.strip_prefix("sha256:").unwrap_or_else(|| panic!("{outcome}"));
    assert!(hex.len() == 64 && hex.bytes().all(|byte| byte.is_ascii_hexdigit()), "{outcome}");
}

#[test]
fn two_state_folders_give_one_digest() {
    if lacking(&needs::STEPS) {
        return;
    }
    let sample = sample();
    let digests = [1, 2].map(|jobs: u8| {
        let (rbuild, out) = (Rbuild::new(), scratch());
        let tar = out.path().join("image.tar");
        rbuild
            .build(&sample)
            .args(["--jobs", &jobs.to_string()])
            .env("SOURCE_DATE_EPOCH", "1700000000")
            .output("type=oci,rewrite-timestamp=true", &tar)
            .succeeds();
        let image = OciArchive::open(&tar);
        assert_eq!(image.config["created"], "2023-11-14T22:13:20Z");
        image.digest
    });
    assert_eq!(digests[0], digests[1]);
}

#[test]
fn the_epoch_is_that_of_a_commit() {
    if lacking(&[Need::Root, Need::Program("git")]) {
        return;
    }
    let (repository, out) = (GitRepository::serve(), scratch());
    let dockerfile = format!(
        "ARG SOURCE_DATE_EPOCH=source\nFROM scratch AS source\nADD {} /\n\
         FROM scratch\nCOPY f /\n",
        repository.url()
    );
    let context = context(&[("Dockerfile", dockerfile.as_str()), ("f", "1")]);
    let tar = out.path().join("image.tar");
    Rbuild::new().build(&context).output("type=oci", &tar).succeeds();
    assert_eq!(OciArchive::open(&tar).config["created"], "2020-01-02T03:04:05Z");
}

#[test]
fn a_dockerfile_comes_from_stdin() {
    if lacking(&needs::STEPS) {
        return;
    }
    let (rbuild, out) = (Rbuild::new(), scratch());
    let copies = "FROM busybox\nCOPY file /copied\n";
    let folder = context(&[("file", "text\n")]);
    rbuild
        .build(&folder)
        .args(["-f", "-"])
        .output("type=local", out.path())
        .stdin(copies)
        .succeeds();
    assert_eq!(fs_err::read_to_string(out.path().join("copied")).unwrap(), "text\n");

    // Without a context there is nothing to copy, but steps run.
    let alone = "FROM busybox\nRUN echo alone > /said\n";
    rbuild.build("-").output("type=local", out.path()).stdin(alone).succeeds();
    assert_eq!(fs_err::read_to_string(out.path().join("said")).unwrap(), "alone\n");
}
