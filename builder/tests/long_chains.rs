//! A stage of more steps than the kernel mounts layers.

use std::fmt::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::figure::figure;
use crate::needs::{self, lacking};
use crate::rbuild::{Rbuild, context, scratch, write};

/// How many steps; 500 layers are the most that overlayfs mounts. More with `RBUILD_CHAIN`.
fn steps() -> usize {
    std::env::var("RBUILD_CHAIN").ok().and_then(|text| text.parse().ok()).unwrap_or(150)
}

#[test]
fn the_last_step_sees_what_all_the_others_made() {
    if lacking(&needs::STEPS) {
        return;
    }
    let steps = steps();
    let lines: Vec<String> = (0..steps)
        .map(|n| match n {
            20 => "RUN rm /many/3 && rm -r /folder && mkdir /folder && touch /folder/new\n".into(),
            _ => format!("RUN mkdir -p /many /folder/{n} && echo {n} > /many/{n}\n"),
        })
        .collect();
    let dockerfile = format!(
        "FROM busybox AS long\n{}RUN ls /many | wc -l > /count && ls -d /folder/* > /folders\n\
         FROM scratch\nCOPY --from=long /count /folders /\n",
        lines.concat()
    );
    let context = context(&[("Dockerfile", &dockerfile)]);
    let (rbuild, out) = (Rbuild::new(), scratch());
    let outcome = rbuild.build(&context).output("type=local", out.path()).succeeds();
    let read = |name: &str| fs_err::read_to_string(out.path().join(name)).unwrap();
    assert_eq!(read("count").trim(), (steps - 2).to_string(), "{outcome}");
    let folders = read("folders");
    assert!(folders.contains("/folder/new\n") && !folders.contains("/folder/19\n"), "{folders}");
    assert!(folders.contains("/folder/21\n"), "{folders}");
    let again = rbuild.build(&context).args(["--target", "long"]).succeeds();
    assert!(again.steps().iter().filter(|step| step.cached).count() > steps, "{again}");
}

#[test]
fn a_stage_of_520_steps() {
    if lacking(&needs::STEPS) {
        return;
    }
    let rbuild = Rbuild::new();
    let mut text = "FROM busybox\n".to_owned();
    // Few of them run, which takes longer: each removes what all before it made.
    for n in 0..520 {
        if n % 26 == 25 {
            writeln!(text, "RUN rm -rf /ran-* /lower/copied-* && echo {n} > /ran-{n}").unwrap();
        } else {
            writeln!(text, "COPY file /lower/copied-{n}").unwrap();
        }
    }
    text.push_str("COPY file /lower/last\n");
    let context = context(&[("Dockerfile", &text), ("file", "text\n")]);
    let out = scratch();
    let begun = Instant::now();
    rbuild.build(&context).output("type=local", out.path()).succeeds();
    let cold = begun.elapsed();
    let names = |folder: &Path| {
        let mut names: Vec<String> = fs_err::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    };
    assert_eq!(names(&out.path().join("lower")), ["last"]);
    let ran: Vec<String> =
        names(out.path()).into_iter().filter(|name| name.starts_with("ran-")).collect();
    assert_eq!(ran, ["ran-519"]);
    // One more step sees all that the others left, mounted.
    write(context.path().join("Dockerfile"), &format!("{text}RUN ls /lower / > /seen\n"));
    let begun = Instant::now();
    let again = rbuild.build(&context).output("type=local", out.path()).succeeds();
    assert!(!again.step("RUN ls /lower / > /seen").cached);
    assert_eq!(again.steps().iter().filter(|step| step.cached).count(), 521, "{again}");
    let seen = fs_err::read_to_string(out.path().join("seen")).unwrap();
    assert!(seen.contains("last\n") && !seen.contains("copied-"), "{seen}");
    assert!(seen.contains("ran-519\n") && !seen.contains("ran-493\n"), "{seen}");
    figure(&format!("520 steps: cold {cold:.1?}, one more {:.1?}", begun.elapsed()));
    assert!(begun.elapsed() < Duration::from_mins(1));
    rbuild.command().args(["cache", "verify"]).succeeds();
}
