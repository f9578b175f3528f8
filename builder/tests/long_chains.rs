//! A stage of more steps than the kernel mounts layers.

use crate::needs::{self, lacking};
use crate::rbuild::{Rbuild, context, scratch};

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
