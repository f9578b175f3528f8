//! What a step cannot do, see or reach: the promises, looked at from inside.

use rbuild_solver::graph::{NetworkMode, SecurityMode, Ulimit};
use rbuild_solver::sandbox::{ExitStatus, ProcessSpec, SandboxMount, SandboxMountSource};

use crate::Test;
use crate::fixture::{Fixture, has_users, is_real_root, mount};

pub(crate) const TESTS: &[Test] = &[
    ("namespaces_are_its_own", namespaces_are_its_own),
    ("capabilities_are_dockers", capabilities_are_dockers),
    ("dangerous_calls_are_refused", dangerous_calls_are_refused),
    ("dangerous_32_bit_calls_are_refused", dangerous_32_bit_calls_are_refused),
    ("what_is_no_descriptor_is_refused", what_is_no_descriptor_is_refused),
    ("empty_names_name_nothing", empty_names_name_nothing),
    ("proc_and_sys_are_masked", proc_and_sys_are_masked),
    ("device_files_lead_nowhere", device_files_lead_nowhere),
    ("nothing_of_the_caller_leaks", nothing_of_the_caller_leaks),
    ("rbuild_cannot_be_overwritten", rbuild_cannot_be_overwritten),
    ("no_mount_of_the_host_is_left", no_mount_of_the_host_is_left),
    ("links_of_the_image_stay_inside", links_of_the_image_stay_inside),
    ("an_image_cannot_move_proc", an_image_cannot_move_proc),
    ("setuid_programs_work", setuid_programs_work),
    ("limits_hold", limits_hold),
    ("insecure_steps_have_everything", insecure_steps_have_everything),
];

/// This very program, run inside with the host's libraries, as the probe of `what`.
pub(crate) fn probe(fixture: &Fixture, what: &str) -> ProcessSpec {
    let program = std::env::current_exe().unwrap();
    let folder = program.parent().unwrap().to_owned();
    let name = program.file_name().unwrap().to_str().unwrap();
    let mut process = fixture.command(&[&format!("/probe/{name}"), what]);
    process.mounts = libraries();
    let program = SandboxMountSource::Bind { root: folder, path: String::new() };
    process.mounts.push(mount("/probe", program));
    process
}

/// The folders of the host's libraries.
fn libraries() -> Vec<SandboxMount> {
    ["lib", "lib64", "usr/lib"]
        .into_iter()
        .filter(|path| std::path::Path::new("/").join(path).exists())
        .map(|path| {
            let source = SandboxMountSource::Bind { root: "/".into(), path: path.to_owned() };
            mount(&format!("/{path}"), source)
        })
        .collect()
}

fn namespaces_are_its_own() {
    let fixture = Fixture::new();
    let kinds = ["cgroup", "ipc", "mnt", "net", "pid", "uts"];
    let script = kinds.map(|kind| format!("readlink /proc/self/ns/{kind}")).join(";");
    let mut process = fixture.shell(&script);
    process.network = NetworkMode::None;
    let inside = fixture.run(process).success();
    for (kind, inside) in kinds.iter().zip(inside.lines()) {
        let outside = fs_err::read_link(format!("/proc/self/ns/{kind}")).unwrap();
        assert_ne!(outside.to_str().unwrap(), inside);
    }
    println!("P18 checks passed {0} / {0}", kinds.len());
}

fn capabilities_are_dockers() {
    let fixture = Fixture::new();
    let script =
        "grep -E '^(Cap|Seccomp:|NoNewPrivs)' /proc/self/status | tr -d '\\t' | tr '\\n' ' '";
    let sets = |inheritable: &str, permitted: &str, effective: &str| {
        format!(
            "CapInh:{inheritable} CapPrm:{permitted} CapEff:{effective} CapBnd:00000000a80425fb \
             CapAmb:0000000000000000 NoNewPrivs:0 Seccomp:2"
        )
    };
    let (none, all) = ("0000000000000000", "00000000a80425fb");
    assert_eq!(fixture.output(script), sets(none, all, all));
    if !has_users() {
        println!("P19 checks passed 7 / 7, root only");
        return;
    }
    let mut process = fixture.shell(&format!("{script}; id"));
    process.user.uid = 1000;
    process.user.gid = 1001;
    process.user.groups = vec![1002, 1003];
    let groups = "uid=1000 gid=1001 groups=1001,1002,1003";
    let output = fixture.run(process).success();
    assert_eq!(
        output,
        format!("{} {}", sets(none, none, none), groups.replace("groups=1001,", "groups="))
    );
    println!("P19 checks passed 15 / 15, root and another user");
}

fn dangerous_calls_are_refused() {
    let fixture = Fixture::new();
    let output = fixture.run(probe(&fixture, crate::probe::CALLS)).success();
    println!("P20 {output}");
    assert!(!output.contains("not refused"), "{output}");
}

fn dangerous_32_bit_calls_are_refused() {
    let fixture = Fixture::new();
    let outcome = fixture.run(probe(&fixture, crate::probe::CALLS_32));
    // A kernel may have no 32-bit calls at all.
    if outcome.status != ExitStatus::Code(128 + libc::SIGSEGV)
        && outcome.status != ExitStatus::Signal(libc::SIGSEGV)
    {
        let output = outcome.success();
        println!("P20 {output}");
        assert!(!output.contains("not refused"), "{output}");
    }
}

/// Also where rbuild answers calls about owners in the kernel's place.
fn what_is_no_descriptor_is_refused() {
    let fixture = Fixture::new();
    let output = fixture.run(probe(&fixture, crate::probe::DESCRIPTORS)).success();
    assert_eq!(output, "-100: [-1, -1] true\n-1: [-1, -1] true\n1000: [-1, -1] true");
}

/// Not the working directory, as Python's `venv` relies on.
fn empty_names_name_nothing() {
    let fixture = Fixture::new();
    let uid = 5;
    let script = format!(
        "mkdir /d && chown {uid} /d && cd /d
        [ -e '' ] && echo there; [ -d '' ] && echo folder; chown 6 '' 2>&1 && echo given
        mkdir '' 2>&1 && echo made; stat -c %u ."
    );
    let output = fixture.output(&script);
    assert_eq!(output.lines().filter(|line| !line.contains("No such file")).count(), 1, "{output}");
    assert!(output.ends_with(&format!("\n{uid}")), "{output}");
}

/// Some of these come with a kernel, and some do not.
fn proc_and_sys_are_masked() {
    let fixture = Fixture::new();
    let script = "
        cd /proc
        for f in kcore keys timer_list sched_debug interrupts latency_stats timer_stats; do
            test -e $f && echo bytes of $f: $(head -c 1 $f 2>/dev/null | wc -c)
        done
        for d in acpi asound scsi /sys/firmware /sys/devices/virtual/powercap; do
            test -e $d && echo entries of $d: $(ls $d | wc -l)
        done
        for f in sys/kernel/hostname sys/kernel/core_pattern sys/vm/drop_caches sysrq-trigger \
            irq/default_smp_affinity bus/pci/devices fs/xfs/stat /sys/kernel/mm/transparent_hugepage/enabled \
            /sys/kernel/uevent_helper /sys/class/net/lo/mtu; do
            test -e $f && if echo x 2>/dev/null > $f; then echo write to $f: 1; else echo write to $f: 0; fi
        done
        for d in sys irq bus fs /sys /sys/fs/cgroup /sys/kernel /sys/firmware; do
            test -e $d && if touch $d/x 2>/dev/null; then echo file in $d: 1; else echo file in $d: 0; fi
        done
        for m in proc sysfs tmpfs; do if mount -t $m $m /tmp 2>/dev/null; then echo mount of $m: 1; else echo mount of $m: 0; fi; done";
    let output = fixture.output(script);
    let (held, leaks): (Vec<_>, Vec<_>) = output.lines().partition(|line| line.ends_with(": 0"));
    println!("P21 hidden or refused {} / {}", held.len(), output.lines().count());
    assert_eq!(leaks, Vec::<&str>::new());
    // Every kernel has these.
    for line in ["write to sys/kernel/hostname", "file in /sys", "mount of proc"] {
        assert!(output.contains(line), "{line} was not tried: {output}");
    }
}

/// The numbers are those of the disk that this machine runs from, if it has one, and of memory.
fn device_files_lead_nowhere() {
    let fixture = Fixture::new();
    if !is_real_root() {
        let refused = fixture.run(fixture.shell("mknod /d b 8 0"));
        assert_eq!(refused.status, ExitStatus::Code(1));
        return;
    }
    let script = "
        for d in / /dev /dev/shm /tmp /mnt/bind /mnt/tmpfs; do
            mknod $d/block b 254 0 && mknod $d/null c 1 3 2>/dev/null; mknod $d/disk b 8 0
            for f in block disk null; do test $d = /dev -a $f = null || head -c 1 $d/$f 2>&1 | grep -q 'Permission denied' || echo opened $d/$f; done
        done";
    let mut process = fixture.shell(script);
    let folder = fixture.folder.path().join("bound");
    fs_err::create_dir(&folder).unwrap();
    process.mounts = vec![
        mount("/mnt/bind", SandboxMountSource::Bind { root: folder, path: String::new() }),
        mount("/mnt/tmpfs", SandboxMountSource::Tmpfs { size: None, mode: 0o1777 }),
    ];
    let outcome = fixture.run(process);
    assert_eq!(
        (outcome.stdout.as_str(), outcome.status),
        ("", ExitStatus::Code(0)),
        "{}",
        outcome.stderr
    );
}

fn nothing_of_the_caller_leaks() {
    let fixture = Fixture::new();
    // A descriptor that an exec does not close, as a careless parent leaves it.
    let leaked = fs_err::File::open("/etc/passwd").unwrap();
    rustix::io::fcntl_setfd(&leaked, rustix::io::FdFlags::empty()).unwrap();
    let probes = [
        ("descriptors", "ls /proc/self/fd | tr '\\n' ' '", "0 1 2 3 "),
        (
            "descriptors of the first process",
            "(sleep 0.1; ls /proc/1/fd > /tmp/fd) & wait; tr '\\n' ' ' < /tmp/fd",
            "0 1 2 ",
        ),
        ("environment", "tr '\\0' ' ' < /proc/1/environ", "PATH=/bin A=b c "),
        ("program", "readlink /proc/1/exe", "/bin/busybox"),
        ("root", "readlink /proc/1/root", "/"),
        ("folder", "readlink /proc/1/cwd", "/"),
        ("input", "readlink /proc/1/fd/0", "/dev/null"),
        ("terminal", "cat /dev/tty 2>&1 | grep -c 'No such device or address'", "1"),
        ("keys", "cat /proc/keys | wc -l", "0"),
        ("groups", "cut -d: -f3 /proc/self/cgroup | sort -u", "/"),
        ("processes", "test $(ls /proc | grep -c '^[0-9]') -lt 8 && echo few", "few"),
        ("session", "cut -d' ' -f5-7 /proc/1/stat", "1 1 0"),
        ("shared memory", "cat /proc/sysvipc/shm /proc/sysvipc/msg /proc/sysvipc/sem | wc -l", "3"),
    ];
    let script = probes.map(|(_, script, _)| format!("{script}; echo ';'")).join("\n");
    let output = fixture.output(&script);
    let said: Vec<&str> = output.split(';').map(|part| part.trim_matches('\n')).collect();
    assert_eq!(said.len(), probes.len() + 1, "{output}");
    let leaks: Vec<_> = probes
        .iter()
        .zip(&said)
        .filter(|((.., expected), said)| expected.trim_end() != said.trim_end())
        .collect();
    println!("P22 leaks {} / {}", leaks.len(), probes.len());
    assert!(leaks.is_empty(), "{leaks:?}");
    let mut process = fixture.shell("pwd; ls -d etc bin");
    process.cwd = "/proc/self/fd/3/../..".into();
    // Wherever that leads, it is inside, or refused.
    if let Ok(outcome) = fixture.try_run(process) {
        assert!(!outcome.stdout.contains("etc\n") || outcome.stdout.starts_with('/'));
    }
}

fn rbuild_cannot_be_overwritten() {
    let fixture = Fixture::new();
    let program = fixture.layer().join("bin/evil");
    let script = format!("#!/proc/self/exe {}\n", crate::probe::OVERWRITE);
    fs_err::write(&program, script).unwrap();
    rustix::fs::chmod(&program, rustix::fs::Mode::from_raw_mode(0o755)).unwrap();
    // The step's first process executes what it is while it is still rbuild.
    for command in [&["/bin/evil"][..], &["/proc/self/exe", crate::probe::OVERWRITE]] {
        let mut process = fixture.command(command);
        process.mounts = libraries();
        assert_eq!(fixture.run(process).success(), "refused");
    }
}

fn no_mount_of_the_host_is_left() {
    let fixture = Fixture::new();
    let output = fixture
        .output("cut -d' ' -f4,5 /proc/self/mountinfo | sort; ls -d /../../etc; ls /.. | wc -l");
    assert!(output.ends_with("/../../etc\n7"), "{output}");
    let mounts: Vec<_> = output.lines().filter_map(|line| line.split_once(' ')).collect();
    assert_eq!(mounts[0], ("/", "/"));
    for (source, target) in &mounts[1..] {
        let from_host = !["/", "/null"].contains(source);
        // A user in the host's network cannot mount a `/sys` of its own.
        let mut folders = vec!["/dev/", "/etc/", "/proc/"];
        folders.extend((!is_real_root()).then_some("/sys/"));
        let expected = folders.iter().any(|folder| target.starts_with(folder));
        assert!(!from_host || expected, "{source} {target}");
        assert_ne!(*target, "/", "something lies over the root");
    }
    assert!(mounts.len() < 40, "{output}");
}

fn links_of_the_image_stay_inside() {
    let fixture = Fixture::new();
    let outside = fixture.folder.path().join("outside");
    fs_err::create_dir(&outside).unwrap();
    let etc = fixture.layer().join("etc");
    std::os::unix::fs::symlink("../../../../../etc/nosuch", etc.join("hosts")).unwrap();
    std::os::unix::fs::symlink(outside.join("resolv"), etc.join("resolv.conf")).unwrap();
    std::os::unix::fs::symlink(&outside, fixture.layer().join("link")).unwrap();
    let mut process = fixture.shell("cat /etc/hosts /etc/resolv.conf /link/secret; pwd");
    process.cwd = "/link/cwd".into();
    let secret = SandboxMountSource::File { data: b"s".to_vec(), mode: 0o400, uid: 0, gid: 0 };
    process.mounts.push(mount("/link/secret", secret));
    let outcome = fixture.run(process);
    assert_eq!(fs_err::read_dir(&outside).unwrap().count(), 0);
    assert!(!std::path::Path::new("/etc/nosuch").exists());
    let layer = outcome.layer();

    assert_eq!(
        outcome.success(),
        format!(
            "127.0.0.1\tlocalhost buildkitsandbox\nnameserver 192.0.2.1\ns{}/cwd",
            outside.display()
        )
    );
    assert!(
        !layer.iter().any(|path| path.contains("resolv")
            || path.contains("nosuch")
            || path.ends_with("secret")),
        "{layer:?}"
    );
}

fn an_image_cannot_move_proc() {
    for name in ["proc", "sys"] {
        let fixture = Fixture::new();
        std::os::unix::fs::symlink("tmp", fixture.layer().join(name)).unwrap();
        let error = fixture.try_run(fixture.shell("true")).unwrap_err();
        assert_eq!(error.message, format!("`/{name}` of the image is not a directory"));
    }
    // Devices may be anywhere: they are mounted one by one.
    let fixture = Fixture::new();
    std::os::unix::fs::symlink("tmp", fixture.layer().join("dev")).unwrap();
    assert_eq!(fixture.output("echo x > /dev/null; ls /tmp/null"), "/tmp/null");
}

fn setuid_programs_work() {
    let fixture = Fixture::new();
    if !has_users() {
        return;
    }
    let program = fixture.layer().join("root/probe");
    fs_err::copy(std::env::current_exe().unwrap(), &program).unwrap();
    rustix::fs::chmod(&program, rustix::fs::Mode::from_raw_mode(0o4755)).unwrap();
    let mut process = fixture.command(&["/root/probe", crate::probe::USER]);
    process.mounts = libraries();
    process.user.gid = 1000;
    process.user.uid = 1000;
    assert_eq!(fixture.run(process).success(), "1000 becomes 0");
}

fn limits_hold() {
    let fixture = Fixture::new();
    let mut process = fixture
        .shell("ulimit -n; ulimit -Hn; ulimit -c; df -k /dev/shm | tail -1 | awk '{print $2}'");
    process.ulimits = vec![
        Ulimit { name: "nofile".to_owned(), soft: 100, hard: 200 },
        Ulimit { name: "core".to_owned(), soft: 0, hard: -1 },
    ];
    process.shm_size = 1 << 20;
    assert_eq!(fixture.run(process).success(), "100\n200\n0\n1024");
    let mut process = fixture.shell("true");
    process.ulimits = vec![Ulimit { name: "nosuch".to_owned(), soft: 1, hard: 1 }];
    assert_eq!(fixture.try_run(process).unwrap_err().message, "there is no limit named `nosuch`");
}

fn insecure_steps_have_everything() {
    let fixture = Fixture::new();
    let script = "grep -E '^(CapEff|CapAmb|Seccomp:)' /proc/self/status | cut -f2; mount -t tmpfs x /tmp && echo mounted; hostname x && hostname";
    let mut process = fixture.shell(script);
    process.security = SecurityMode::Insecure;
    let own = fs_err::read_to_string("/proc/self/status").unwrap();
    let own = own.lines().find_map(|line| line.strip_prefix("CapPrm:\t")).unwrap().to_owned();
    // A filter that refuses nothing asks rbuild about owners, where there is but one id.
    let filter = if has_users() { "0" } else { "2" };
    assert_eq!(fixture.run(process).success(), format!("{own}\n{own}\n{filter}\nmounted\nx"));
}
