//! The second example end to end: packages from `PyPI` in a virtual environment on Debian, and a
//! server that answers.

use std::time::{Duration, Instant};

use crate::base::{debian, repository};
use crate::needs::{Need, lacking};
use crate::podman::{self, Podman};
use crate::rbuild::{Rbuild, scratch};

#[test]
fn the_django_website_is_built_and_answers() {
    let needs = [&podman::NEEDED[..], &[Need::Network, Need::Program("mmdebstrap")]];
    if lacking(&needs.concat()) {
        return;
    }
    let (rbuild, out, podman) = (Rbuild::new(), scratch(), Podman::new());
    let tar = out.path().join("website.tar");
    let mut build = rbuild
        .build(repository().join("examples/django"))
        .base("debian:bookworm", debian())
        .args(["-t", "website:v1"])
        .output("type=docker", &tar);
    // A machine that gets packages from a mirror of PyPI says so here.
    if let Ok(index) = std::env::var("PIP_INDEX_URL") {
        build = build.arg("--build-arg").arg(format!("PIP_INDEX_URL={index}"));
    }
    build.succeeds();

    podman.run(&["load", "--quiet", "--input", tar.to_str().unwrap()]);
    podman.start("website", "website:v1");
    // The container has a network of its own, so that port 8000 is free: ask from its inside.
    let page = ask(&podman, "http://127.0.0.1:8000/");
    assert!(page.contains("Hello from Django") && page.contains("seen 1 time."), "{page}");
    assert_eq!(ask(&podman, "http://127.0.0.1:8000/count.json"), "{\"visits\": 1}\n");
}

/// The text at `address`, as soon as the server answers.
#[track_caller]
fn ask(podman: &Podman, address: &str) -> String {
    let program = format!(
        "import time, urllib.request, urllib.error\n\
         for attempt in range(300):\n\
         \x20   try:\n\
         \x20       print(urllib.request.urlopen('{address}', timeout=10).read().decode())\n\
         \x20       break\n\
         \x20   except urllib.error.URLError:\n\
         \x20       time.sleep(0.1)\n"
    );
    let start = Instant::now();
    let text = podman.run(&["exec", "website", "python", "-c", &program]);
    assert!(
        !text.is_empty(),
        "no answer within {:?}\n{}",
        start.elapsed(),
        podman.run(&["logs", "website"])
    );
    assert!(start.elapsed() < Duration::from_mins(1));
    text
}
