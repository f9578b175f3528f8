//! The mounts of a step, and that nothing of them is left.

use std::io::{Read, Write};
use std::os::unix::net::UnixListener;

use rbuild_solver::sandbox::{ExitStatus, RootFs, SandboxMount, SandboxMountSource};

use crate::Test;
use crate::fixture::{Fixture, has_users, mount};
use crate::isolation::probe;

pub(crate) const TESTS: &[Test] = &[
    ("secrets_are_files_in_memory", secrets_are_files_in_memory),
    ("binds_are_confined_to_their_source", binds_are_confined_to_their_source),
    ("overlays_show_layers_and_throw_writes_away", overlays_show_layers),
    ("mounts_may_be_inside_of_mounts", mounts_may_be_inside_of_mounts),
    ("sockets_are_forwarded", sockets_are_forwarded),
    ("read_only_mounts_are", read_only_mounts_are),
    ("nothing_may_be_mounted_into_proc", nothing_may_be_mounted_into_proc),
    ("a_folder_can_be_the_root", a_folder_can_be_the_root),
    ("hostile_mount_points_do_no_harm", hostile_mount_points_do_no_harm),
    ("many_layers_are_mounted", many_layers_are_mounted),
];

fn secret(mode: u32, uid: u32, gid: u32) -> SandboxMountSource {
    SandboxMountSource::File { data: b"s3cr3t".to_vec(), mode, uid, gid }
}

fn secrets_are_files_in_memory() {
    let fixture = Fixture::new();
    let script = "cat /run/secrets/id; stat -c ' %a %u %g' /run/secrets/id; stat -c '%a %u %g' /x/y; echo x > /run/secrets/id || touch /run/secrets/id || rm /run/secrets/id";
    let mut process = fixture.shell(script);
    let owner = if has_users() { (5, 6) } else { (0, 0) };
    process.mounts = vec![
        mount("/run/secrets/id", secret(0o400, 0, 0)),
        mount("/x/y", secret(0o444, owner.0, owner.1)),
    ];
    let outcome = fixture.run(process);
    assert_eq!(outcome.stdout, format!("s3cr3t 400 0 0\n444 {} {}\n", owner.0, owner.1));
    assert_eq!(outcome.status, ExitStatus::Code(1));
    assert_eq!(outcome.layer(), ["dev", "proc", "sys"]);
    let found = std::process::Command::new("grep")
        .args(["-rl", "s3cr3t"])
        .arg(fixture.folder.path())
        .output()
        .unwrap();
    assert_eq!(String::from_utf8(found.stdout).unwrap(), "");
}

fn binds_are_confined_to_their_source() {
    let fixture = Fixture::new();
    let source = fixture.folder.path().join("source");
    fs_err::create_dir_all(source.join("folder")).unwrap();
    fs_err::write(source.join("folder/file"), "inside").unwrap();
    std::os::unix::fs::symlink("/etc/passwd", source.join("absolute")).unwrap();
    std::os::unix::fs::symlink("../../../../../../etc/passwd", source.join("up")).unwrap();
    std::os::unix::fs::symlink("folder/file", source.join("fine")).unwrap();
    let bind =
        |path: &str| SandboxMountSource::Bind { root: source.clone(), path: path.to_owned() };
    for path in ["absolute", "up", "../../etc/passwd", "missing"] {
        let mut process = fixture.shell("cat /mnt");
        process.mounts = vec![mount("/mnt", bind(path))];
        let error = fixture.try_run(process).unwrap_err();
        assert!(error.message.contains("is not in its source"), "{path}: {error}");
    }
    for path in ["fine", "folder/file", "/folder/../fine"] {
        let mut process = fixture.shell("cat /mnt");
        process.mounts = vec![mount("/mnt", bind(path))];
        let outcome = fixture.run(process);
        assert_eq!(outcome.layer(), ["dev", "proc", "sys"]);
        assert_eq!(outcome.success(), "inside");
    }
}

fn overlays_show_layers() {
    let fixture = Fixture::new();
    let folder = |name: &str| {
        let path = fixture.folder.path().join(name);
        fs_err::create_dir_all(path.join("d")).unwrap();
        path
    };
    let (below, above, upper, work) = (folder("below"), folder("above"), folder("u"), folder("w"));
    fs_err::remove_dir(work.join("d")).unwrap();
    fs_err::remove_dir(upper.join("d")).unwrap();
    fs_err::write(below.join("d/a"), "below").unwrap();
    fs_err::write(below.join("d/b"), "below").unwrap();
    fs_err::write(above.join("d/b"), "above").unwrap();
    let lower = vec![below.clone(), above.clone()];
    let overlay = |path: &str, upper| SandboxMountSource::Overlay {
        lower: lower.clone(),
        path: path.to_owned(),
        upper,
    };
    let mut process = fixture
        .shell("cat /all/d/a /all/d/b /one/a; echo x > /all/d/c; echo y > /one/c; cat /all/d/c");
    process.mounts = vec![
        mount("/all", overlay("", Some((upper.clone(), work.clone())))),
        SandboxMount { target: "/one".to_owned(), source: overlay("/d", None), read_only: true },
    ];
    let outcome = fixture.run(process);
    assert_eq!(outcome.stdout, "belowabovebelowx\n", "{}", outcome.stderr);
    assert!(outcome.stderr.contains("Read-only file system"));
    assert!(
        upper.join("d/c").exists() && !below.join("d/c").exists() && !above.join("d/c").exists()
    );
}

fn mounts_may_be_inside_of_mounts() {
    let fixture = Fixture::new();
    let cache = fixture.folder.path().join("cache");
    fs_err::create_dir(&cache).unwrap();
    let mut process = fixture.shell("cat /cache/deep/secret; echo kept > /cache/kept");
    process.mounts = vec![
        mount("/cache", SandboxMountSource::Bind { root: cache.clone(), path: String::new() }),
        mount("/cache/deep/secret", secret(0o400, 0, 0)),
    ];
    process.cwd = "/cache/cwd".into();
    assert_eq!(fixture.run(process).success(), "s3cr3t");
    let mut left: Vec<_> =
        fs_err::read_dir(&cache).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, ["cwd", "kept"]);
}

fn sockets_are_forwarded() {
    let fixture = Fixture::new();
    let path = fixture.folder.path().join("agent");
    let listener = UnixListener::bind(&path).unwrap();
    rustix::fs::chmod(&path, rustix::fs::Mode::from_raw_mode(0o600)).unwrap();
    let agent = std::thread::spawn(move || {
        for _ in 0..2 {
            let (mut stream, _) = listener.accept().unwrap();
            let mut question = [0; 4];
            stream.read_exact(&mut question).unwrap();
            stream.write_all(&question).unwrap();
        }
    });
    for uid in if has_users() { [0, 1000] } else { [0, 0] } {
        let mut process = probe(&fixture, crate::probe::SOCKET);
        process.user.uid = uid;
        let source = SandboxMountSource::Socket { path: path.clone(), mode: 0o600, uid, gid: uid };
        process.mounts.push(mount("/run/agent", source));
        let outcome = fixture.run(process);
        assert_eq!(outcome.layer(), ["dev", "proc", "sys"]);
        assert_eq!(outcome.success(), format!("600 {uid} ping"));
    }
    agent.join().unwrap();
}

fn read_only_mounts_are() {
    let fixture = Fixture::new();
    let source = fixture.folder.path().join("source");
    fs_err::create_dir(&source).unwrap();
    let mut process = fixture.shell("touch /a/x; touch /b/x; touch /etc/hosts; echo x > /etc/resolv.conf; df -k /b | tail -1 | awk '{print $2}'");
    process.mounts = vec![
        mount("/a", SandboxMountSource::Bind { root: source.clone(), path: String::new() }),
        mount("/b", SandboxMountSource::Tmpfs { size: Some(1 << 20), mode: 0o755 }),
    ];
    process.mounts.iter_mut().for_each(|mount| mount.read_only = true);
    let outcome = fixture.run(process);
    assert_eq!(outcome.stderr.matches("Read-only file system").count(), 4, "{}", outcome.stderr);
    assert_eq!(outcome.stdout, "1024\n");
    assert_eq!(fs_err::read_dir(&source).unwrap().count(), 0);
}

fn nothing_may_be_mounted_into_proc() {
    let fixture = Fixture::new();
    for target in ["/proc/self", "/proc/sys/kernel", "/tmp/../proc/1"] {
        let mut process = fixture.shell("true");
        process.mounts = vec![mount(target, SandboxMountSource::Tmpfs { size: None, mode: 0o755 })];
        let error = fixture.try_run(process).unwrap_err();
        assert!(error.message.contains("it is inside of /proc"), "{error}");
    }
}

/// As where there is no overlayfs: mount points that the image lacks are made and removed.
fn a_folder_can_be_the_root() {
    let fixture = Fixture::new();
    let root = fixture.layer();
    let etc = fs_err::metadata(root.join("etc")).unwrap();
    let mut process = fixture.shell("cat /etc/hosts /x/y/z > /out");
    process.root = RootFs::Folder(root.clone());
    process.mounts = vec![mount("/x/y/z", secret(0o400, 0, 0))];
    fixture.run(process).success();
    assert_eq!(
        fs_err::read_to_string(root.join("out")).unwrap(),
        "127.0.0.1\tlocalhost buildkitsandbox\ns3cr3t"
    );
    assert!(!root.join("etc/hosts").exists() && !root.join("x").exists());
    let after = fs_err::metadata(root.join("etc")).unwrap();
    assert_eq!(etc.modified().unwrap(), after.modified().unwrap());
}

fn hostile_mount_points_do_no_harm() {
    let fixture = Fixture::new();
    let etc = fixture.layer().join("etc");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        etc.join("hosts"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::from_raw_mode(0o644),
        0,
    )
    .unwrap();
    std::os::unix::fs::symlink("resolv.conf", etc.join("resolv.conf")).unwrap();
    let error = fixture.try_run(fixture.shell("true")).unwrap_err();
    assert!(error.message.contains("/etc/resolv.conf"), "{error}");
    fs_err::remove_file(etc.join("resolv.conf")).unwrap();
    // Somebody else's step renames the folder that a mount point was made in.
    let cache = fixture.folder.path().join("cache");
    fs_err::create_dir_all(cache.join("a")).unwrap();
    let mut process = fixture.shell("cat /etc/hosts; mv /cache/a /cache/b 2>&1; ls /cache");
    process.mounts = vec![
        mount("/cache", SandboxMountSource::Bind { root: cache.clone(), path: String::new() }),
        mount("/cache/a/secret", secret(0o400, 0, 0)),
        mount("/other", SandboxMountSource::Bind { root: cache.clone(), path: String::new() }),
    ];
    process.args[2] += "; mv /other/a /other/b; mkdir /other/a; echo mine > /other/a/secret";
    fixture.run(process);
    let content = fs_err::read_to_string(cache.join("a/secret")).unwrap();
    assert_eq!(content, "mine\n");
    assert!(!cache.join("b/secret").exists());
}

fn many_layers_are_mounted() {
    let fixture = Fixture::new();
    let mut process = fixture.shell("ls / | grep -c layer; cat /last");
    if let RootFs::Overlay { lower, .. } = &mut process.root {
        let long = "x".repeat(120);
        for number in 0..200 {
            let layer = fixture.folder.path().join(&long).join(&long).join(number.to_string());
            fs_err::create_dir_all(&layer).unwrap();
            fs_err::write(layer.join(format!("layer{number}")), "").unwrap();
            fs_err::write(layer.join("last"), number.to_string()).unwrap();
            lower.push(layer);
        }
    }
    assert_eq!(fixture.run(process).success(), "200\n199");
}
