//! The first example end to end: a compiler from Debian's packages in one stage, its program
//! alone in the image, through a registry into podman.

use crate::base::{debian, repository};
use crate::needs::{Need, lacking};
use crate::podman::{self, Podman};
use crate::rbuild::{Rbuild, run, scratch, write};
use crate::registry::{self, TestRegistry};

#[test]
fn the_calculator_is_built_pushed_and_run() {
    let needs =
        [&podman::NEEDED[..], &registry::NEEDED, &[Need::Network, Need::Program("mmdebstrap")]];
    if lacking(&needs.concat()) {
        return;
    }
    let (registry, rbuild, scratch) = (TestRegistry::open(), Rbuild::new(), scratch());
    let context = scratch.path().join("calculator");
    let example = repository().join("examples/calculator");
    run("cp", &["-r", example.to_str().unwrap(), context.to_str().unwrap()]);
    let image = registry.image("calculator:v1");
    let build =
        || rbuild.build(&context).base("debian:bookworm", debian()).args(["-t", &image, "--push"]);

    let first = build().succeeds();
    assert!(!first.step("RUN apt-get update && apt-get install -y golang-go").cached, "{first}");
    // Both sizes: what the compiler took, and what the image takes.
    let size = |name: &str| {
        let line = first.stderr.lines().find(|line| line.starts_with(name));
        line.unwrap_or_else(|| panic!("no size of {name}\n{first}")).to_owned()
    };
    let (stage_size, image_size) = (size("stage build"), size("image"));
    assert!(stage_size.contains(" GB in "), "{stage_size}");
    assert!(image_size.contains(" MB in 1 layer"), "{image_size}");

    let inspected = registry.inspect("calculator:v1");
    assert_eq!(inspected["Layers"].as_array().unwrap().len(), 1, "{inspected}");
    let size = inspected["LayersData"][0]["Size"].as_u64().unwrap_or_default();
    assert!(size < 4_000_000, "{size} bytes");

    let podman = Podman::new();
    podman.run(&["pull", "--quiet", "--tls-verify=false", &image]);
    assert_eq!(podman.run_image(&image, &[]), "6 * 7 = 42\n");
    assert_eq!(podman.run_image(&image, &["2 * (3 + 4)"]), "2 * (3 + 4) = 14\n");

    // Nothing changed: nothing runs, the same image is there.
    let second = build().succeeds();
    for step in second.steps().iter().filter(|step| step.name.starts_with("[build")) {
        assert!(step.cached, "{} ran again\n{second}", step.name);
    }
    assert_eq!(registry.inspect("calculator:v1")["Digest"], inspected["Digest"]);

    // An edit of the program leaves the compiler where it is.
    write(context.join("more.go"), "package main\n\nconst Answer = 42\n");
    let third = build().succeeds();
    assert!(third.step("RUN apt-get update && apt-get install -y golang-go").cached, "{third}");
    assert!(!third.step("COPY . .").cached, "{third}");
}
