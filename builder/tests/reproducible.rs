//! Two machines make one digest: other disks, cores, masks, clocks and names change nothing.

use std::path::Path;
use std::process::Command;

use crate::archive::OciArchive;
use crate::needs::{self, Need, lacking};
use crate::rbuild::{Rbuild, Run, context, scratch};

const DOCKERFILE: &str = "\
FROM busybox AS one
RUN mkdir -p /out && echo one > /out/one && ln -s one /out/link && chmod 2750 /out
FROM busybox AS two
RUN echo two > /two && touch -d '2001-02-03 04:05:06' /two
FROM busybox
WORKDIR /work
COPY file .
COPY --from=one /out /out
COPY --from=two /two /
RUN for n in 1 2 3 4 5 6 7 8 9; do mkdir -p d$n && echo $n > d$n/f; done; rm /bin/vi
";

/// The same command on another machine: host name, mask and zone.
fn elsewhere(run: &Run, name: &str, mask: &str, zone: &str) -> Run {
    let mut command = Command::new("unshare");
    let script = format!("hostname {name}; umask {mask}; exec \"$@\"");
    command.args(["--uts", "sh", "-c", &script, "sh"]);
    command.arg(run.command.get_program()).args(run.command.get_args());
    command.env_clear();
    let set = run.command.get_envs().filter_map(|(name, value)| Some((name, value?)));
    command.envs(set).env("TZ", zone);
    command.current_dir(run.command.get_current_dir().unwrap());
    Run::of(command)
}

struct Tmpfs<'a>(&'a Path);

impl Drop for Tmpfs<'_> {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(self.0).status();
    }
}

#[test]
fn disks_cores_masks_names_and_zones_change_nothing() {
    let programs = [Need::Program("unshare"), Need::Program("mount")];
    if lacking(&[&needs::STEPS[..], &programs].concat()) {
        return;
    }
    let (folder, memory, out) =
        (context(&[("Dockerfile", DOCKERFILE), ("file", "text\n")]), scratch(), scratch());
    let mount = Command::new("mount").args(["-t", "tmpfs", "tmpfs"]).arg(memory.path()).status();
    assert!(mount.unwrap().success());
    let mounted = Tmpfs(memory.path());
    let in_memory = Rbuild::at(&memory.path().join("root"));
    let on_disk = Rbuild::new();
    let machines = [
        (&on_disk, "one", "022", "UTC", "1"),
        (&in_memory, "two.example.org", "077", "Asia/Tokyo", "2"),
    ];
    let digests = machines.map(|(rbuild, name, mask, zone, threads)| {
        let tar = out.path().join(format!("{name}.tar"));
        let run = rbuild
            .build(&folder)
            .args(["--jobs", threads, "-t", "me/app:1", "--provenance=mode=max"])
            .env("RAYON_NUM_THREADS", threads)
            .env("SOURCE_DATE_EPOCH", "1700000000")
            .output("type=oci", &tar);
        elsewhere(&run, name, mask, zone).succeeds();
        OciArchive::open_root(&tar)
    });
    assert_eq!(digests[0], digests[1]);
    drop(in_memory);
    drop(mounted);
}

#[test]
fn reproduce_says_whether_and_what_is_different_first() {
    if lacking(&needs::STEPS) {
        return;
    }
    let (rbuild, folder) =
        (Rbuild::new(), context(&[("Dockerfile", DOCKERFILE), ("file", "text\n")]));
    let reproduce = |folder: &Path| {
        let run = rbuild.command().arg("reproduce").args(["--progress", "plain"]);
        run.base("busybox", crate::base::busybox()).arg(folder)
    };
    let same = reproduce(folder.path()).env("SOURCE_DATE_EPOCH", "1700000000").succeeds();
    assert!(same.stdout.starts_with("reproducible: sha256:"), "{same}");
    assert!(rbuild.leftovers().is_empty(), "{:?}", rbuild.leftovers());

    let times = reproduce(folder.path()).exits(1);
    times.assert_stderr_has(&["not reproducible: ", "SOURCE_DATE_EPOCH"]);

    let random = "FROM busybox\nRUN echo same > /a\nRUN mkdir /d && echo x > /d/a && cat /proc/sys/kernel/random/uuid > /d/b\n";
    let folder = context(&[("Dockerfile", random)]);
    let other = reproduce(folder.path()).env("SOURCE_DATE_EPOCH", "0").exits(1);
    other.assert_stderr_has(&[
        "not reproducible: layer 3 (`RUN /bin/sh -c mkdir /d",
        "`/d/b`: content is `sha256:",
    ]);
}
