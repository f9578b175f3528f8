//! Layers of the image are packed while later steps run, if an image is asked for.

use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::needs::{self, lacking};
use crate::rbuild::{Outcome, Rbuild, Run, context, scratch};

/// Two steps, the second of which ends with the test only.
fn dockerfile() -> tempfile::TempDir {
    context(&[(
        "Dockerfile",
        "FROM busybox AS other\nRUN head -c 3000000 /dev/urandom > /unused\n\
         FROM busybox\nCOPY --from=other /unused /used\nRUN echo asleep; sleep 600\n",
    )])
}

/// Blobs in the state folder that are larger than the base image's.
fn large_blobs(rbuild: &Rbuild) -> usize {
    let Ok(blobs) = fs_err::read_dir(rbuild.root.join("blobs/sha256")) else { return 0 };
    blobs.filter(|blob| blob.as_ref().unwrap().metadata().unwrap().len() > 2_000_000).count()
}

/// Interrupts the build as soon as `is_time`, or after some seconds.
fn interrupt_when(run: Run, is_time: impl Fn() -> bool) -> Outcome {
    let child = run.on_terminal().start();
    let start = Instant::now();
    while !is_time() && start.elapsed() < Duration::from_secs(20) {
        std::thread::sleep(Duration::from_millis(10));
    }
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    Outcome::of(child)
}

#[test]
fn a_layer_is_packed_before_the_last_step_is_done() {
    if lacking(&needs::STEPS) {
        return;
    }
    let (rbuild, context, out) = (Rbuild::new(), dockerfile(), scratch());
    let run = rbuild.build(&context).output("type=oci", &out.path().join("image.tar"));
    let outcome = interrupt_when(run, || large_blobs(&rbuild) > 0);
    assert_eq!(outcome.status.code(), Some(130), "{outcome}");
    assert_eq!(large_blobs(&rbuild), 1, "the image's layer, and not the other stage's\n{outcome}");
    assert!(rbuild.leftovers().is_empty(), "{:?}", rbuild.leftovers());
}

#[test]
fn nothing_is_packed_that_nobody_asked_for() {
    if lacking(&needs::STEPS) {
        return;
    }
    let (rbuild, context) = (Rbuild::new(), dockerfile());
    let start = Instant::now();
    let run = rbuild.build(&context).args(["-o", "type=cacheonly"]);
    let outcome = interrupt_when(run, || start.elapsed() > Duration::from_secs(2));
    assert_eq!(outcome.status.code(), Some(130), "{outcome}");
    assert_eq!(large_blobs(&rbuild), 0, "{outcome}");
}
