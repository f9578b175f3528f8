//! The Dockerfile language as far as a built image shows it: every instruction, once.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::Path;

use serde_json::json;

use crate::archive::OciArchive;
use crate::needs::{self, lacking};
use crate::rbuild::{Rbuild, context, run, scratch, write};

fn read(path: impl AsRef<Path>) -> String {
    fs_err::read_to_string(path.as_ref()).unwrap()
}

#[test]
fn every_instruction_reaches_the_configuration() {
    if lacking(&needs::STEPS) {
        return;
    }
    let (rbuild, out) = (Rbuild::new(), scratch());
    let tar = out.path().join("image.tar");
    let context = context(&[(
        "Dockerfile",
        r#"ARG VERSION=1.2
FROM busybox AS app
ARG VERSION
MAINTAINER Somebody <somebody@example.org>
LABEL version=$VERSION title="An app"
ENV PORT=80 NAME="a b"
ENV GREETING=${NAME:-nobody} \
    EMPTY=${NONE}
EXPOSE $PORT 53/udp
VOLUME ["/data", "/logs"]
WORKDIR /srv
WORKDIR app
USER 33:33
STOPSIGNAL SIGINT
HEALTHCHECK --interval=5s --retries=2 CMD wget -q localhost || exit 1
SHELL ["/bin/sh", "-ec"]
ONBUILD RUN echo triggered > /triggered
ENTRYPOINT ["/bin/server"]
CMD serve --port $PORT
"#,
    )]);
    rbuild.build(&context).args(["--label", "from=flag"]).output("type=oci", &tar).succeeds();
    let image = OciArchive::open(&tar);
    assert_eq!(image.config["author"], "Somebody <somebody@example.org>");
    let path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    assert_eq!(
        image.config["config"],
        json!({
            "User": "33:33",
            "ExposedPorts": {"53/udp": {}, "80/tcp": {}},
            "Env": [path, "PORT=80", "NAME=a b", "GREETING=a b", "EMPTY="],
            "Entrypoint": ["/bin/server"],
            "Cmd": ["/bin/sh", "-ec", "serve --port $PORT"],
            "Volumes": {"/data": {}, "/logs": {}},
            "WorkingDir": "/srv/app",
            "Labels": {"from": "flag", "title": "An app", "version": "1.2"},
            "StopSignal": "SIGINT",
            "Healthcheck": {
                "Test": ["CMD-SHELL", "wget -q localhost || exit 1"],
                "Interval": 5_000_000_000_u64,
                "Retries": 2,
            },
            "ArgsEscaped": true,
            "OnBuild": ["RUN echo triggered > /triggered"],
            "Shell": ["/bin/sh", "-ec"],
        })
    );
    let history = image.config["history"].as_array().unwrap();
    let empty = history.iter().filter(|entry| entry["empty_layer"] == true).count();
    assert_eq!(history.len() - empty, image.layers(), "{history:#?}");

    // What was left for later happens in the image built on it: the trigger runs as the base's
    // user, who may not write there.
    let on_it = self::context(&[("Dockerfile", "FROM app\nUSER root\n")]);
    rbuild
        .build(&on_it)
        .base("app", image.folder.path())
        .exits(1)
        .assert_stderr_has(&["/triggered"]);
}

#[test]
fn heredocs_make_scripts_and_files() {
    if lacking(&needs::STEPS) {
        return;
    }
    let (rbuild, out) = (Rbuild::new(), scratch());
    let context = context(&[(
        "Dockerfile",
        r#"FROM busybox
ARG WHO=world
RUN <<EOF
echo "hello $WHO" > /one
echo and more >> /one
EOF
RUN <<EOF awk 'END { print NR > "/lines" }'
a
b
EOF
COPY --chmod=750 <<EOF <<"RAW" /files/
for $WHO
EOF
for $WHO
RAW
"#,
    )]);
    rbuild.build(&context).output("type=local", out.path()).succeeds();
    assert_eq!(read(out.path().join("one")), "hello world\nand more\n");
    assert_eq!(read(out.path().join("lines")), "2\n");
    assert_eq!(read(out.path().join("files/EOF")), "for world\n");
    assert_eq!(read(out.path().join("files/RAW")), "for $WHO\n");
    let mode = fs_err::metadata(out.path().join("files/EOF")).unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o750);
}

#[test]
fn copy_keeps_what_it_should() {
    if lacking(&needs::STEPS) {
        return;
    }
    let (rbuild, out) = (Rbuild::new(), scratch());
    let context = context(&[
        (
            "Dockerfile",
            "FROM busybox AS b\nRUN echo app:x:1234:1234::/:/bin/sh >> /etc/passwd\n\
             WORKDIR /w\nCOPY --chown=app *.txt folder ./\n\
             COPY --chown=5:6 --chmod=0600 a.txt secret\nCOPY tool link ./bin/\n\
             FROM scratch\nCOPY --from=b /w /\n",
        ),
        ("a.txt", "a\n"),
        ("b.txt", "b\n"),
        ("c.md", "c\n"),
        ("folder/deep/file", "deep\n"),
        ("tool", "#!/bin/sh\n"),
    ]);
    let tool = context.path().join("tool");
    fs_err::set_permissions(&tool, std::fs::Permissions::from_mode(0o755)).unwrap();
    symlink("a.txt", context.path().join("link")).unwrap();
    let tar = out.path().join("out.tar");
    rbuild.build(&context).output("type=tar", &tar).succeeds();
    let folder = out.path().join("tree");
    fs_err::create_dir(&folder).unwrap();
    run("tar", &["-xpf", tar.to_str().unwrap(), "-C", folder.to_str().unwrap(), "--numeric-owner"]);
    let facts = |name: &str| {
        let metadata = fs_err::symlink_metadata(folder.join(name)).unwrap();
        (metadata.uid(), metadata.gid(), metadata.mode() & 0o7777)
    };
    assert_eq!(read(folder.join("deep/file")), "deep\n");
    assert_eq!((facts("a.txt").0, facts("deep/file").0), (1234, 1234));
    assert_eq!(facts("secret"), (5, 6, 0o600));
    assert_eq!(facts("bin/tool"), (0, 0, 0o755));
    assert!(folder.join("b.txt").exists() && !folder.join("c.md").exists());
    // A link that is named itself is followed.
    assert_eq!(read(folder.join("bin/link")), "a\n");
}

#[test]
fn add_unpacks_archives() {
    if lacking(&needs::STEPS) {
        return;
    }
    let (rbuild, out) = (Rbuild::new(), scratch());
    let context = context(&[
        ("Dockerfile", "FROM scratch\nADD files.tar.gz /unpacked/\nADD notes.gz /kept/\n"),
        ("files/one", "1\n"),
        ("files/two/three", "3\n"),
        ("notes", "no archive\n"),
    ]);
    let folder = context.path().to_str().unwrap();
    run("tar", &["-C", folder, "-czf", &format!("{folder}/files.tar.gz"), "files"]);
    run("gzip", &[&format!("{folder}/notes")]);
    rbuild.build(&context).output("type=local", out.path()).succeeds();
    assert_eq!(read(out.path().join("unpacked/files/two/three")), "3\n");
    assert!(out.path().join("kept/notes.gz").exists());
}

#[test]
fn ignore_files_hold_and_that_of_the_dockerfile_goes_first() {
    if lacking(&needs::STEPS) {
        return;
    }
    let (rbuild, out) = (Rbuild::new(), scratch());
    let context = context(&[
        ("Dockerfile", "FROM scratch\nCOPY . /\n"),
        (".dockerignore", "# comment\n*.log\n**/cache\n!keep.log\nDockerfile*\n"),
        ("other.Dockerfile", "FROM scratch\nCOPY . /\n"),
        ("other.Dockerfile.dockerignore", "*\n!a\n"),
        ("a", ""),
        ("b.log", ""),
        ("keep.log", ""),
        ("deep/cache/x", ""),
        ("deep/y", ""),
    ]);
    let names = |flags: &[&str], folder: &str| {
        let out = out.path().join(folder);
        rbuild.build(&context).args(flags).output("type=local", &out).succeeds();
        run("sh", &["-c", &format!("cd {} && find . -type f | LC_ALL=C sort", out.display())])
    };
    assert_eq!(
        names(&[], "first"),
        "./.dockerignore\n./a\n./deep/y\n./keep.log\n./other.Dockerfile\n\
         ./other.Dockerfile.dockerignore\n"
    );
    let other = context.path().join("other.Dockerfile");
    assert_eq!(names(&["-f", other.to_str().unwrap()], "second"), "./a\n");
}

#[test]
fn named_contexts_are_copied_from() {
    if lacking(&needs::STEPS) {
        return;
    }
    let (rbuild, out) = (Rbuild::new(), scratch());
    let other = context(&[("file", "of another folder\n")]);
    let context = context(&[(
        "Dockerfile",
        "FROM scratch\nCOPY --from=other file /\nCOPY --from=busybox /etc/group /\n",
    )]);
    let build = || {
        let named = format!("other={}", other.path().display());
        let run = rbuild.build(&context).arg("--build-context").arg(named);
        run.output("type=local", out.path()).succeeds();
        read(out.path().join("file"))
    };
    assert_eq!(build(), "of another folder\n");
    assert!(read(out.path().join("group")).starts_with("root:"));
    write(other.path().join("file"), "edited\n");
    assert_eq!(build(), "edited\n");
}
