//! The base images themselves: the same bytes however often, and wherever, they are made.

use std::process::Command;

use crate::base::{busybox, debian, repository};
use crate::needs::{self, Need, lacking};
use crate::rbuild::{json, scratch};

/// Makes the base once more, under other circumstances; its digest must be that of `layout`.
#[track_caller]
fn check_same(name: &str, layout: &std::path::Path) {
    let out = scratch();
    let make = repository().join("testdata/bases/make");
    let line = format!(
        "umask 077; exec {} --host-certificates --only {name} {}",
        make.display(),
        out.path().display()
    );
    let status = Command::new("sh")
        .args(["-c", &line])
        .envs([("TZ", "Asia/Kathmandu"), ("LC_ALL", "C"), ("PYTHONHASHSEED", "7")])
        .status()
        .unwrap();
    assert!(status.success(), "{status}");
    let digest = |index: serde_json::Value| index["manifests"][0]["digest"].clone();
    let again = digest(json(out.path().join(name).join("index.json")));
    assert_eq!(digest(json(layout.join("index.json"))), again);
}

#[test]
fn busybox_is_the_same_twice() {
    if lacking(&needs::STEPS) {
        return;
    }
    check_same("busybox", busybox());
}

#[test]
fn debian_is_the_same_twice() {
    if lacking(&[Need::Root, Need::Network, Need::Program("mmdebstrap")]) {
        return;
    }
    check_same("debian", debian());
}
