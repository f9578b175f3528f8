//! P15 to P17: what a build is lent reaches the steps it is for, and nothing that stays.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::faulty_registry::{Asked, FaultyRegistry, status, with_header};
use crate::needs::{self, Need, lacking};
use crate::promise::tell;
use crate::rbuild::{Rbuild, context, run, scratch};

/// Every file below `folder`, links not followed.
fn files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs_err::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let about = fs_err::symlink_metadata(&path).unwrap();
        if about.is_dir() {
            files(&path, found);
        } else if about.is_file() {
            found.push(path);
        }
    }
}

/// How many of the files below `folders` hold `word`, as they are or uncompressed, and how many
/// there are.
fn search(folders: &[&Path], word: &str) -> (usize, usize) {
    let mut all = Vec::new();
    for folder in folders {
        files(folder, &mut all);
    }
    let plain = Command::new("grep").args(["-rlF", "-e", word]).args(folders).output().unwrap();
    let plain = String::from_utf8_lossy(&plain.stdout).lines().count();
    let packed = all.iter().filter(|path| {
        let mut head = Vec::new();
        let file = fs_err::File::open(path).unwrap();
        std::io::Read::read_to_end(&mut std::io::Read::take(file, 2), &mut head).unwrap();
        let script = "zcat \"$2\" | grep -qF -e \"$1\"";
        let search = || Command::new("sh").args(["-c", script, "sh", word]).arg(path).status();
        head == [0x1f, 0x8b] && search().unwrap().success()
    });
    (plain + packed.count(), all.len())
}

/// Checks that a build which does let a token into a layer, a name, the log and the metadata is
/// found out in each of them: a search that finds nothing says nothing otherwise.
fn check_that_a_search_finds() {
    let token = "tok-en-that-is-found";
    let (rbuild, out) = (Rbuild::new(), scratch());
    let text = "FROM busybox\nARG TOKEN\nRUN echo $TOKEN > /kept\nLABEL token=$TOKEN\n";
    let context = context(&[("Dockerfile", text)]);
    let build = |output: &str, dest: &Path| {
        let argument = format!("TOKEN={token}");
        rbuild.build(&context).args(["--build-arg", &argument]).output(output, dest).succeeds()
    };
    let found = |folder: &Path| search(&[folder], token).0;
    build("type=local", &out.path().join("local"));
    assert_eq!(found(&out.path().join("local")), 1, "the file itself");
    assert!(found(&rbuild.root) > 0, "the snapshot, or a record");
    // A blob of the layer, compressed; the config with its label and history; provenance, if any.
    let tar = out.path().join("image.tar");
    build("type=oci", &tar);
    let image = out.path().join("image");
    fs_err::create_dir(&image).unwrap();
    run("tar", &["-xf", tar.to_str().unwrap(), "-C", image.to_str().unwrap()]);
    assert!(found(&image) >= 2, "a compressed layer and the config");
}

#[test]
fn p15_secrets_are_in_nothing_that_stays() {
    if lacking(&needs::STEPS) {
        return;
    }
    // Not a single one of these may be found later, so the Dockerfile has them in halves.
    let (file, variable, proxy) = ("tok-en-of-a-file", "tok-en-of-a-variable", "tok-en-of-a-proxy");
    let (rbuild, out, secrets) = (Rbuild::new(), scratch(), scratch());
    fs_err::write(secrets.path().join("file"), file).unwrap();
    check_that_a_search_finds();
    let context = context(&[(
        "Dockerfile",
        "FROM busybox
RUN --mount=type=secret,id=file,target=/deep/er/secret,mode=0440,uid=5,gid=6 \
    stat -c '%a %u %g' /deep/er/secret > /about && wc -c < /deep/er/secret >> /about
RUN --mount=type=secret,id=file wc -c < /run/secrets/file > /default && ! touch /run/secrets/file
RUN --mount=type=secret,id=variable,env=LENT,required=true \
    printf %s \"$LENT\" | wc -c > /count && [ ! -e /run/secrets/variable ]
RUN --mount=type=secret,id=variable,env=LENT,target=/both \
    [ \"$(cat /both)\" = \"$LENT\" ]
RUN --mount=type=secret,id=missing [ ! -e /run/secrets/missing ] && [ -z \"$LENT\" ]
RUN --mount=type=secret,id=file cat /run/secrets/file > /dev/null; env > /dev/null; [ ! -e /deep ]
FROM busybox
RUN [ ! -e /run/secrets ] && [ -z \"$LENT\" ] && [ -z \"$variable\" ]
COPY --from=0 /about /default /count /
",
    )]);
    let tar = out.path().join("image.tar");
    let build = || {
        rbuild
            .build(&context)
            .arg("--secret")
            .arg(format!("id=file,src={}", secrets.path().join("file").display()))
            .args(["--secret", "id=variable,env=OUTSIDE"])
            .args(["--build-arg", &format!("http_proxy=http://me:{proxy}@127.0.0.1:1")])
            .args(["--metadata-file", out.path().join("metadata.json").to_str().unwrap()])
            .env("OUTSIDE", variable)
    };
    let local = out.path().join("local");
    let outcome = build().output("type=local", &local).succeeds();
    assert_eq!(fs_err::read_to_string(local.join("about")).unwrap(), "440 5 6\n16\n");
    assert_eq!(fs_err::read_to_string(local.join("default")).unwrap(), "16\n");
    assert_eq!(fs_err::read_to_string(local.join("count")).unwrap(), "20\n");
    let second = build().output("type=oci", &tar).succeeds();
    run("tar", &["-xf", tar.to_str().unwrap(), "-C", out.path().to_str().unwrap()]);
    fs_err::remove_file(&tar).unwrap();
    let third = build().args(["-t", "kept:1", "--no-cache"]).succeeds();
    let mut hits = 0;
    let mut count = 0;
    for word in [file, variable, proxy] {
        for outcome in [&outcome, &second, &third] {
            let said = [&outcome.stdout, &outcome.stderr].iter().any(|text| text.contains(word));
            hits += usize::from(said);
        }
        let (found, of) = search(&[&rbuild.root, out.path()], word);
        hits += found;
        count += of;
    }
    tell(15, &format!("secrets found {hits} / {count} files"));
    assert_eq!(hits, 0);
    // Another secret changes no key.
    fs_err::write(secrets.path().join("file"), "tok-en-of-a-dile").unwrap();
    let again = build().output("type=local", &local).succeeds();
    assert!(again.steps().iter().filter(|step| step.name.contains("RUN")).all(|step| step.cached));
}

#[test]
fn a_missing_secret_is_refused_with_its_line() {
    if lacking(&needs::STEPS) {
        return;
    }
    let rbuild = Rbuild::new();
    let context = context(&[(
        "Dockerfile",
        "FROM busybox\nRUN --mount=type=secret,id=none,required=true true\n",
    )]);
    rbuild.build(&context).exits(1).assert_stderr_has(&[
        "Dockerfile:2",
        "secret none: not found",
        "`--secret id=none,src=FILE`",
    ]);
}

/// An `ssh-agent` with one key, which ends with the test.
struct Agent {
    process: Child,
    folder: tempfile::TempDir,
}

impl Agent {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("agent");
        let process = Command::new("ssh-agent")
            .args(["-D", "-a"])
            .arg(&socket)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        while !socket.exists() {
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        let key = folder.path().join("key");
        run(
            "ssh-keygen",
            &["-q", "-t", "ed25519", "-N", "", "-C", "of the test", "-f", key.to_str().unwrap()],
        );
        let added = Command::new("ssh-add")
            .arg("-q")
            .arg(&key)
            .env("SSH_AUTH_SOCK", &socket)
            .stderr(Stdio::null())
            .status()
            .unwrap();
        assert!(added.success());
        Self { process, folder }
    }

    /// The public half of its key.
    fn public_key(&self) -> String {
        fs_err::read_to_string(self.folder.path().join("key.pub")).unwrap()
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("agent")
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

#[test]
fn p16_an_agent_is_lent_to_the_step_that_asks_for_it() {
    let programs = ["ssh-agent", "ssh-add", "ssh-keygen"].map(Need::Program);
    if lacking(&[&needs::STEPS[..], &programs].concat()) {
        return;
    }
    let agent = Agent::start();
    let socket = agent.socket().display().to_string();
    let (rbuild, out) = (Rbuild::new(), scratch());
    let script = "FROM busybox
RUN --mount=type=ssh echo $SSH_AUTH_SOCK > /socket && stat -c '%a %u %g' $SSH_AUTH_SOCK >> /socket
RUN --mount=type=ssh,id=other,target=/agent,mode=0666,uid=5,gid=6,required=true \
    [ \"$SSH_AUTH_SOCK\" = /agent ] && stat -c '%a %u %g' /agent >> /socket
RUN [ -z \"$SSH_AUTH_SOCK\" ] && [ ! -e /agent ] && [ ! -e /run/buildkit ]
RUN --mount=type=ssh,id=none [ -z \"$SSH_AUTH_SOCK\" ]
";
    let context = context(&[("Dockerfile", script)]);
    let build = || {
        rbuild
            .build(&context)
            .args(["--ssh", "default", "--ssh", &format!("other={socket}")])
            .env("SSH_AUTH_SOCK", &socket)
    };
    build().output("type=local", out.path()).succeeds();
    let said = fs_err::read_to_string(out.path().join("socket")).unwrap();
    assert_eq!(said, "/run/buildkit/ssh_agent.0\n600 0 0\n666 5 6\n");
    let missing = "FROM busybox\nRUN --mount=type=ssh,id=x,required=true true\n";
    fs_err::write(context.path().join("Dockerfile"), missing).unwrap();
    build().exits(1).assert_stderr_has(&["Dockerfile:2", "ssh agent `x`: not found"]);
    let key = agent.folder.path().join("key");
    let refused = rbuild.build(&context).arg("--ssh").arg(format!("x={}", key.display()));
    refused.exits(2).assert_stderr_has(&["ssh-add"]);
    let (hits, count) = search(&[&rbuild.root, out.path()], "PRIVATE KEY");
    tell(16, &format!("private keys found {hits} / {count} files, 7 cases"));
    assert_eq!(hits, 0);
}

/// Copies a program of this machine, with its libraries, to where it is below `folder`.
fn copy_program(name: &str, folder: &Path) {
    let program = needs::find(name).unwrap();
    let libraries = run("ldd", &[program.to_str().unwrap()]);
    let libraries = libraries.split_whitespace().filter(|word| word.starts_with('/'));
    for path in libraries.map(Path::new).chain([program.as_path()]) {
        let copy = folder.join(path.strip_prefix("/").unwrap());
        fs_err::create_dir_all(copy.parent().unwrap()).unwrap();
        // Links are followed.
        fs_err::copy(path, copy).unwrap();
    }
}

/// OpenSSH's own programs in a step list the agent's key and sign with it, as `git` does to fetch
/// over ssh; what they signed is checked outside. What has no socket can do neither.
#[test]
fn p16_openssh_signs_with_the_agent_of_the_host() {
    let programs = ["ssh-agent", "ssh-add", "ssh-keygen", "ldd"].map(Need::Program);
    if lacking(&[&needs::STEPS[..], &programs].concat()) {
        return;
    }
    let agent = Agent::start();
    let (rbuild, out) = (Rbuild::new(), scratch());
    let dockerfile = "FROM busybox
COPY host /
RUN echo root:x:0:0::/root:/bin/sh > /etc/passwd
COPY key.pub message /
RUN --mount=type=ssh ssh-add -L > /listed && ssh-keygen -q -Y sign -n file -f /key.pub /message
RUN ssh-add -L > /unlent 2>&1; ssh-keygen -Y sign -n file -f /key.pub - < /message > /forged; true
";
    let context = context(&[("Dockerfile", dockerfile), ("message", "what is signed\n")]);
    for program in ["ssh-add", "ssh-keygen"] {
        copy_program(program, &context.path().join("host"));
    }
    fs_err::write(context.path().join("key.pub"), agent.public_key()).unwrap();
    let build = rbuild.build(&context).args(["--ssh", "default"]);
    build.env("SSH_AUTH_SOCK", agent.socket()).output("type=local", out.path()).succeeds();
    let made = |name: &str| fs_err::read(out.path().join(name)).unwrap();
    let listed = String::from_utf8(made("listed")).unwrap();
    let signers = agent.folder.path().join("signers");
    fs_err::write(&signers, format!("test {}", agent.public_key())).unwrap();
    let signature = out.path().join("message.sig");
    let verified = Command::new("ssh-keygen")
        .args(["-Y", "verify", "-I", "test", "-n", "file", "-f", signers.to_str().unwrap()])
        .args(["-s", signature.to_str().unwrap()])
        .stdin(fs_err::File::open(out.path().join("message")).unwrap().into_file())
        .stdout(Stdio::null())
        .status()
        .unwrap();
    // What the key begins with is in every program of OpenSSH: a line from its middle is the key.
    let key = fs_err::read_to_string(agent.folder.path().join("key")).unwrap();
    let secret = key.lines().nth(2).unwrap();
    assert_eq!(search(&[agent.folder.path()], secret).0, 1);
    let (hits, count) = search(&[&rbuild.root, out.path()], secret);
    let listed = listed.lines().filter(|line| agent.public_key().starts_with(*line)).count();
    let signed = usize::from(verified.success());
    tell(16, &format!("keys listed {listed} / 1, signatures that hold {signed} / 1"));
    tell(16, &format!("the private key found {hits} / {count} files"));
    assert_eq!((listed, signed, hits), (1, 1, 0));
    assert!(made("forged").is_empty());
    assert!(!String::from_utf8(made("unlent")).unwrap().contains("ssh-ed25519"));
}

/// A registry that wants a password sends every blob to another port of the machine.
#[test]
fn p17_a_password_goes_to_its_host_only() {
    let elsewhere = FaultyRegistry::start(|_| None);
    elsewhere.put("lib/app:latest", &[crate::hostile_tar::tar(&["a=1"])]);
    let leads = elsewhere.host.clone();
    let registry = FaultyRegistry::start(move |asked| {
        if !asked.headers.contains_key("authorization") {
            return Some(with_header(401, "WWW-Authenticate", "Basic realm=\"test\""));
        }
        if asked.is_blob() {
            let location = format!("http://{leads}{}", asked.path);
            return Some(with_header(307, "Location", &location));
        }
        if asked.path == "/v2/" {
            return Some(status(200));
        }
        None
    });
    registry.put("lib/app:latest", &[crate::hostile_tar::tar(&["a=1"])]);
    let (rbuild, out) = (Rbuild::new(), scratch());
    let (user, password) = ("somebody", "pass-word-of-the-test");
    let login =
        base64::Engine::encode(&base64::prelude::BASE64_STANDARD, format!("{user}:{password}"));
    let docker = rbuild.home.path().join("docker");
    fs_err::create_dir_all(&docker).unwrap();
    let config = serde_json::json!({ "auths": { registry.host.clone(): { "auth": login } } });
    fs_err::write(docker.join("config.json"), config.to_string()).unwrap();
    let context = context(&[("Dockerfile", &format!("FROM {}/lib/app:latest\n", registry.host))]);
    let build = rbuild
        .command()
        .args(["build", "-D", "--progress", "plain", "--platform", "linux/amd64"])
        .env("DOCKER_CONFIG", &docker)
        .output("type=local", &out.path().join("files"))
        .arg(context.path());
    let outcome = build.succeeds();
    assert_eq!(fs_err::read_to_string(out.path().join("files/a")).unwrap(), "1");
    let asked = elsewhere.asked();
    let sent_elsewhere =
        asked.iter().filter(|asked| asked.headers.contains_key("authorization")).count();
    assert!(asked.iter().any(Asked::is_blob));
    let mut kept = 0;
    for word in [password, &login] {
        kept += search(&[&rbuild.root, out.path()], word).0;
        kept += usize::from(outcome.stderr.contains(word) || outcome.stdout.contains(word));
    }
    let count = asked.len();
    tell(
        17,
        &format!(
            "passwords sent elsewhere {sent_elsewhere} / {count} requests, kept or shown {kept}"
        ),
    );
    assert_eq!((sent_elsewhere, kept), (0, 0));
}
