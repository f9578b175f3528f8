//! The same builds as root, as a user with ranges of ids, and as a user with one: the images must
//! be the same.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::archive::OciArchive;
use crate::base::debian;
use crate::needs::{Need, lacking};
use crate::rbuild::{Outcome, write};
use crate::user::{self, User, Users};

/// Builds as every kind of user, side by side.
fn build_as_all(
    users: &Users,
    context: &Path,
    args: impl Fn(User) -> Vec<String>,
) -> Vec<(User, Outcome)> {
    std::thread::scope(|scope| {
        let threads = User::ALL.map(|user| {
            let args = args(user);
            scope.spawn(move || (user, users.build(user, context, &args)))
        });
        threads.map(|thread| thread.join().unwrap()).into()
    })
}

/// Checks that all users make the same image, to the last bit.
#[track_caller]
fn check_same(users: &Users, dockerfile: &str, base: &str) {
    let context = users.path("context");
    write(context.join("Dockerfile"), dockerfile);
    write(context.join("file"), "text\n");
    let args = |user: User| {
        let tar = users.path(&format!("{user:?}.tar"));
        vec![
            base.to_owned(),
            "--build-arg=SOURCE_DATE_EPOCH=1700000000".to_owned(),
            format!("--output=type=oci,rewrite-timestamp=true,dest={}", tar.display()),
        ]
    };
    let outcomes = build_as_all(users, &context, args);
    let digest = |user: User| OciArchive::open(&users.path(&format!("{user:?}.tar"))).digest;
    let root = digest(User::Root);
    for (user, outcome) in &outcomes {
        assert_eq!(digest(*user), root, "as {user:?}: {outcome}");
        let notes = outcome.stderr.matches("owners of files are remembered").count();
        assert_eq!(notes, usize::from(*user == User::Single), "as {user:?}: {outcome}");
    }
}

#[test]
fn owners_are_the_same_whoever_builds() {
    let Some((users, base)) = Users::of_busybox() else { return };
    check_same(
        &users,
        r"
FROM busybox AS base
RUN mkdir -p /t/d && cd /t && touch d/a d/b d/c && ln -s a d/l && mkfifo d/p && ln d/c d/hard && \
    chown -h 12:34 d/l && chown 56:78 d/p d/hard && chown 1:2 d/a && chmod 6755 d/b && \
    tar cpf all.tar d && mkdir out && tar xpf all.tar -C out && rm all.tar && \
    chown 3 d/b && chown 5:50 d && chmod 2775 d && touch d/inherits && mkdir d/deep && \
    cp -a d copy && mv d/l d/moved && rm d/p && mkfifo d/p
RUN chown -R 7:8 /t/out && sed -i s/a/b/ /t/out/d/a && chown 65000 /t/copy
RUN echo 'ann:x:1000:1000::/home/ann:/bin/sh' >> /etc/passwd && \
    mkdir -p /home/ann && chown ann:7 /home/ann && su ann -c 'touch ~/mine && mkdir ~/d && ln -s x ~/l && (umask 077; echo > ~/p)'
COPY --chown=ann:7 file /copied
COPY --chown=12:34 --chmod=4755 file /d/e/f
ADD --chown=9 file /added
USER ann
RUN id > ~/id && stat -c '%u:%g %a %n' /t/d/* >> ~/id && \
    (chown 0 ~/mine || echo refused >> ~/id) && echo > /dev/null && echo to > /dev/stderr && \
    ln -s /dev/stdout ~/log && echo logged > ~/log && cd /dev && echo logged > stdout
USER 4321:77
RUN --mount=type=cache,target=/c,uid=4321,gid=8,mode=0700 --mount=type=tmpfs,target=/m \
    --mount=type=bind,source=file,target=/bound \
    stat -c '%u:%g %a' /c > /tmp/seen && id >> /tmp/seen && touch /c/x /m/x && cp /bound /tmp
FROM base
USER 0
COPY --from=base --chown=2:2 /t/d/a /two
COPY --from=base /home/ann /again
WORKDIR /made
RUN chroot / stat -c %u /t/d/a > /chrooted && chown ann /chrooted
",
        &base,
    );
}

#[test]
fn secrets_have_their_owners_whoever_builds() {
    let Some((users, base)) = Users::of_busybox() else { return };
    let context = users.path("context");
    write(
        context.join("Dockerfile"),
        "FROM busybox\nUSER 5\n\
         RUN --mount=type=secret,id=s,uid=5,gid=6,mode=0400 \\\n\
         stat -c 'owner %u:%g %a' /run/secrets/s && cat /run/secrets/s\n",
    );
    write(users.path("secret"), "hidden");
    let secret = format!("--secret=id=s,src={}", users.path("secret").display());
    let args = |_| vec![base.clone(), secret.clone(), "--output=type=cacheonly".to_owned()];
    for (_, outcome) in build_as_all(&users, &context, args) {
        outcome.assert_stderr_has(&["owner 5:6 400", "hidden"]);
    }
}

/// What a tar says of a path, but for time and size.
fn headers(tar: &Path) -> BTreeMap<String, String> {
    let mut archive = tar::Archive::new(fs_err::File::open(tar).unwrap());
    let entry = |entry: std::io::Result<tar::Entry<'_, fs_err::File>>| {
        let mut entry = entry.unwrap();
        let pax = entry.pax_extensions().unwrap().into_iter().flatten();
        let pax: Vec<String> = pax
            .map(|pair| pair.unwrap())
            .filter(|pair| pair.key_bytes().starts_with(b"SCHILY.xattr."))
            .map(|pair| format!("{} {:?}", pair.key().unwrap(), pair.value_bytes()))
            .collect();
        let header = entry.header();
        let about = format!(
            "{:?} {:o} {}:{} {:?} {pax:?}",
            header.entry_type(),
            header.mode().unwrap(),
            header.uid().unwrap(),
            header.gid().unwrap(),
            entry.link_name().unwrap(),
        );
        (entry.path().unwrap().display().to_string(), about)
    };
    archive.entries().unwrap().map(entry).collect()
}

#[test]
fn packages_install_whoever_builds() {
    let needed = [&user::NEEDED[..], &[Need::Network, Need::Program("mmdebstrap")]].concat();
    if lacking(&needed) {
        return;
    }
    let users = Users::new();
    let base = users.base("debian", debian());
    let context = users.path("context");
    write(
        context.join("Dockerfile"),
        r#"
FROM debian
RUN apt-get update && \
    apt-get install -y --no-install-recommends cron sudo libcap2-bin && \
    rm -rf /var/lib/apt/lists/* /var/log/*
RUN useradd -m -s /bin/bash -G crontab ann && echo 'ann ALL=(ALL) NOPASSWD: ALL' >/etc/sudoers.d/ann
RUN su - ann -c 'touch mine' && install -o ann -g games -m 6711 /bin/true /opt/installed && \
    cp /bin/true /opt/capable && setcap cap_net_bind_service+ep /opt/capable && \
    getcap /opt/capable | grep -q bind && mkdir /opt/t && chown 33:sudo /opt/t && \
    tar -C / -cf /tmp/t.tar home/ann opt usr/bin/sudo usr/bin/crontab && mkdir /unpacked && \
    tar -C /unpacked -xpf /tmp/t.tar && rm /tmp/t.tar
USER ann
RUN test "$(id -un)" = ann && touch ~/a && sudo touch ~/b && test "$(sudo id -u)" = 0 && \
    test "$(stat -c %U ~/a ~/b | tr '\n' ' ')" = 'ann root ' && sudo -u '#7' touch /tmp/seven
"#,
    );
    let tar = |user: User| users.path(&format!("{user:?}.tar"));
    let args =
        |user: User| vec![base.clone(), format!("--output=type=tar,dest={}", tar(user).display())];
    build_as_all(&users, &context, args);
    let root = headers(&tar(User::Root));
    let about = |path: &str| root[path].split(' ').skip(1).take(2).collect::<Vec<_>>().join(" ");
    assert_eq!(about("usr/bin/sudo"), "4755 0:0");
    assert!(about("usr/bin/crontab").starts_with("2755 0:"), "{}", root["usr/bin/crontab"]);
    assert_eq!(about("opt/installed"), "6711 1000:60");
    assert_eq!(about("unpacked/opt/installed"), "6711 1000:60");
    assert_eq!(about("tmp/seven"), "644 7:7");
    assert!(root["opt/capable"].contains("security.capability"), "{}", root["opt/capable"]);
    for user in [User::Ranges, User::Single] {
        let other = headers(&tar(user));
        let differences: Vec<_> = root
            .iter()
            .filter(|(path, about)| other.get(*path) != Some(about))
            .map(|(path, about)| format!("{path}: {about}, as {user:?} {:?}", other.get(path)))
            .collect();
        assert!(differences.is_empty(), "{differences:#?}");
        assert_eq!(other.len(), root.len());
    }
}

/// The package managers of Python and Node, as root and as a user of the image's.
#[test]
fn pip_and_npm_install_whoever_builds() {
    let needed = [&user::NEEDED[..], &[Need::Network, Need::Program("mmdebstrap")]].concat();
    if lacking(&needed) {
        return;
    }
    let users = Users::new();
    let context = users.path("context");
    // npm comes as its authors pack it: Debian's has hundreds of packages.
    write(
        context.join("Dockerfile"),
        r"
FROM debian
RUN apt-get update && \
    apt-get install -y --no-install-recommends ca-certificates python3-venv nodejs && \
    rm -rf /var/lib/apt/lists/* && useradd -m ann
ADD https://registry.npmjs.org/npm/-/npm-10.9.2.tgz /opt/npm.tgz
RUN tar -C /opt -xzf /opt/npm.tgz && rm /opt/npm.tgz
",
    );
    let tools = users.path("tools");
    let output =
        format!("--output=type=oci,tar=false,compression=uncompressed,dest={}", tools.display());
    users.build(User::Root, &context, &[users.base("debian", debian()), output]);
    let base = users.base("tools", &tools);
    let dockerfile = r#"
FROM tools AS made
ARG PIP_INDEX_URL
ENV NODE_EXTRA_CA_CERTS=/etc/ssl/certs/ca-certificates.crt PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1 PIP_NO_COMPILE=1 PYTHONDONTWRITEBYTECODE=1
RUN python3 -m venv /opt/venv && /opt/venv/bin/pip install markupsafe==2.1.5 && \
    /opt/venv/bin/python -c "import markupsafe; assert markupsafe._speedups" && \
    chown -R www-data /opt/venv/bin
RUN cd /opt && node package/bin/npm-cli.js install --no-audit --no-fund -g is-even@1.0.0
USER ann
WORKDIR /home/ann
RUN python3 -m venv --without-pip venv && \
    /opt/venv/bin/pip --python venv/bin/python install six==1.16.0 && venv/bin/python -c "import six" && \
    test "$(stat -c %U:%G venv/lib/python3*/site-packages/six.py)" = ann:ann
RUN node /opt/package/bin/npm-cli.js install --no-audit --no-fund is-odd@3.0.1 && \
    node -e "if (!require('is-odd')(3)) process.exit(1)" && rm -rf .npm
FROM scratch
COPY --from=made /opt/venv /opt/venv
COPY --from=made /usr/lib/node_modules /modules
COPY --from=made /home/ann /home/ann
"#;
    write(context.join("Dockerfile"), dockerfile);
    let index = std::env::var("PIP_INDEX_URL").ok();
    let index = index.map(|index| format!("--build-arg=PIP_INDEX_URL={index}"));
    let tar = |user: User| users.path(&format!("{user:?}.tar"));
    build_as_all(&users, &context, |user| {
        let output = format!("--output=type=tar,dest={}", tar(user).display());
        [base.clone(), output].into_iter().chain(index.clone()).collect()
    });
    let root = headers(&tar(User::Root));
    let owner = |path: &str| root[path].split(' ').nth(2).unwrap().to_owned();
    assert_eq!(owner("opt/venv/bin/pip"), "33:0");
    assert_eq!(owner("modules/is-even/package.json"), "0:0");
    assert_eq!(owner("home/ann/node_modules/is-odd/package.json"), "1000:1000");
    for user in [User::Ranges, User::Single] {
        let other = headers(&tar(user));
        let differing = |(path, about): &(&String, &String)| other.get(*path) != Some(about);
        let differences: Vec<_> = root.iter().filter(differing).collect();
        assert!(differences.is_empty(), "as {user:?}: {differences:#?}");
        assert_eq!(other.len(), root.len());
    }
}

/// Without overlayfs, trees are copied: that is said once, and the files are the same.
#[test]
fn without_overlayfs_trees_are_copied() {
    let Some((users, base)) = Users::of_busybox() else { return };
    let context = users.path("context");
    write(
        context.join("Dockerfile"),
        "FROM busybox\nRUN mkdir /d && chown 5:6 /d && rm /bin/vi && ln -s x /d/l\n\
         RUN touch /d/a && chown 7 /d/a\n\
         RUN --mount=type=bind,from=busybox,target=/m,rw test ! -e /bin/vi && touch /m/x\n",
    );
    for name in ["lower", "upper", "work", "merged"] {
        fs_err::create_dir(users.path(name)).unwrap();
    }
    // overlayfs cannot be written through another one.
    let nested = "cd \"$1\" && mount -t overlay -o lowerdir=lower,upperdir=upper,workdir=work o \
                  merged && mkdir -m 777 -p merged/all && shift && exec \"$@\"";
    let mut trees = Vec::new();
    for user in [User::Root, User::Single] {
        for is_nested in [false, true] {
            let tar = users.path("out.tar");
            let _ = fs_err::remove_file(&tar);
            let rbuild = users.rbuild(user);
            let mut command = Command::new("unshare");
            if is_nested {
                command.args(["--mount", "sh", "-c", nested, "sh"]).arg(users.folder.path());
            } else {
                command.args(["--mount"]);
            }
            command.arg(rbuild.get_program()).args(rbuild.get_args()).env_clear();
            command.envs(rbuild.get_envs().filter_map(|(name, value)| Some((name, value?))));
            if is_nested {
                let root = users.path(&format!("merged/all/{user:?}"));
                command.env("RBUILD_ROOT", root);
            }
            command.args(["build", "--progress", "plain", &base]);
            command.arg(format!("--output=type=tar,dest={}", tar.display())).arg(&context);
            command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
            let outcome = Outcome::of(command.spawn().unwrap());
            assert!(outcome.status.success(), "as {user:?}, nested {is_nested}: {outcome}");
            let notes = outcome.stderr.matches("overlayfs cannot be used in").count();
            assert_eq!(notes, usize::from(is_nested), "{outcome}");
            trees.push(headers(&tar));
        }
    }
    assert!(trees[0]["d/a"].contains(" 7:0 ") && !trees[0].contains_key("bin/vi"));
    for tree in &trees[1..] {
        assert_eq!(*tree, trees[0]);
    }
}

/// What steps made as other users is counted, checked and removed by who built it.
#[test]
fn who_builds_also_keeps_house() {
    let Some((users, base)) = Users::of_busybox() else { return };
    let context = users.path("context");
    write(
        context.join("Dockerfile"),
        "FROM busybox\nRUN mkdir -m 700 /closed /closed/deep && \
         head -c 3000000 /dev/urandom > /closed/deep/file && chmod 400 /closed/deep/file && \
         chown -R 1234:5678 /closed\n",
    );
    for user in User::ALL {
        users.build(user, &context, &[base.clone(), "-t".into(), "sample:v1".into()]);
        let run = |arguments: &[&str]| {
            let mut command = users.rbuild(user);
            command.args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped());
            let outcome = Outcome::of(command.spawn().unwrap());
            assert!(outcome.status.success(), "{arguments:?} as {user:?}: {outcome}");
            outcome.stdout
        };
        let on_disk = || -> u64 {
            let root = users.path(&format!("root-{user:?}"));
            let du = crate::rbuild::run("du", &["-s", "-B1", root.to_str().unwrap()]);
            du.split_whitespace().next().unwrap().parse().unwrap()
        };
        let listed = run(&["du", "--json"]);
        let sizes = listed.lines().map(|line| {
            serde_json::from_str::<serde_json::Value>(line).unwrap()["size"].as_u64().unwrap()
        });
        assert!(sizes.sum::<u64>() > 6_000_000, "the layer and its blob as {user:?}: {listed}");
        run(&["cache", "verify"]);
        let before = on_disk();
        assert!(before > 6_000_000, "as {user:?}");
        run(&["rmi", "sample:v1"]);
        run(&["prune", "--all", "-f"]);
        assert!(on_disk() < 1_000_000, "as {user:?}: {} of {before}", on_disk());
    }
}
