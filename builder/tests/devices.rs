//! `RUN --device`: steps get the devices that this machine's CDI files describe, with leave.

use serde_json::json;

use crate::needs::{self, lacking};
use crate::rbuild::{Outcome, Rbuild, context, scratch, write};

/// An `rbuild` for which `vendor.com/demo=zero` is `/dev/zero`, at `/dev/demo/zero`.
fn rbuild(annotations: &serde_json::Value) -> Rbuild {
    let rbuild = Rbuild::new();
    let home = rbuild.home.path();
    let spec = json!({
        "cdiVersion": "0.6.0",
        "kind": "vendor.com/demo",
        "annotations": annotations,
        "devices": [
            {"name": "hooked", "containerEdits": {"hooks": [{"hookName": "createContainer", "path": "/x"}]}},
            {"name": "zero", "containerEdits": {
                "env": ["DEMO=from the device", "OWN=replaced"],
                "additionalGids": [4321],
                "deviceNodes": [{"path": "/dev/demo/zero", "hostPath": "/dev/zero"}],
                "mounts": [{
                    "hostPath": home.join("driver"),
                    "containerPath": "/opt/driver",
                    "options": ["ro", "nosuid", "nodev", "noexec", "rbind", "rprivate"],
                }],
            }},
        ],
    });
    write(home.join("driver/version"), "7\n");
    write(home.join("cdi/demo.json"), &spec.to_string());
    let folder = home.join("cdi");
    let config = format!("[cdi]\nspec-dirs = [\"{}\"]\n", folder.display());
    write(home.join(".config/rbuild/config.toml"), &config);
    rbuild
}

/// Builds `FROM busybox`, `run`; gives how that ended, and what the step wrote to `/said`.
fn build(rbuild: &Rbuild, run: &str, flags: &[&str]) -> (Outcome, String) {
    let out = scratch();
    let context = context(&[("Dockerfile", &format!("FROM busybox\nENV OWN=image\n{run}\n"))]);
    let build = rbuild.build(&context).args(flags).output("type=local", out.path());
    let outcome = build.run();
    (outcome, fs_err::read_to_string(out.path().join("said")).unwrap_or_default())
}

const USE: &str = "RUN --device=vendor.com/demo=zero,required \
    (head -c3 /dev/demo/zero | wc -c; echo $DEMO, $OWN; id -G; cat /opt/driver/version; \
    ! touch /opt/driver/x 2>/dev/null && grep ' /opt/driver ' /proc/self/mounts | grep -o ro,nosuid,nodev,noexec; \
    ls -d /dev/demo) > /said";

const SAID: &str = "3\nfrom the device, replaced\n0 4321\n7\nro,nosuid,nodev,noexec\n/dev/demo\n";

#[test]
fn a_step_gets_what_its_device_brings_along() {
    if lacking(&needs::STEPS) {
        return;
    }
    let rbuild = rbuild(&json!({}));
    let allow = ["--allow", "device=vendor.com/demo=zero"];
    let (outcome, said) = build(&rbuild, USE, &allow);
    assert_eq!(outcome.status.code(), Some(0), "{outcome}");
    assert_eq!(said, SAID);
    // The same device by its kind, under another name, with leave for all: the same step.
    let hooked = "RUN --device=mine echo > /said";
    let alias = ["--allow", "device=vendor.com/demo=hooked,alias=mine"];
    let (outcome, _) = build(&rbuild, hooked, &alias);
    assert_eq!(outcome.status.code(), Some(1), "{outcome}");
    outcome.assert_stderr_has(&["vendor.com/demo=hooked", "hooks", "Dockerfile:3"]);
    let mine = USE.replace("vendor.com/demo=zero", "mine");
    let alias = ["--allow", "device=vendor.com/demo=zero,alias=mine"];
    let (outcome, said) = build(&rbuild, &mine, &alias);
    assert_eq!((outcome.status.code(), said.as_str()), (Some(0), SAID), "{outcome}");
    outcome.assert_stderr_has(&["CACHED"]);
    // A step without the device has nothing of it.
    let without = "RUN ls -d /dev/demo /opt/driver > /said 2> /dev/null || echo $OWN >> /said";
    let (_, said) = build(&rbuild, without, &["--allow", "device"]);
    assert_eq!(said, "image\n");
}

#[test]
fn a_device_needs_leave_unless_it_says_otherwise() {
    if lacking(&needs::STEPS) {
        return;
    }
    let reserved = rbuild(&json!({"org.mobyproject.buildkit.device.class": "demo"}));
    for flags in [&[][..], &["--allow", "device=vendor.com/demo=hooked"]] {
        let (outcome, said) = build(&reserved, USE, flags);
        assert_eq!((outcome.status.code(), said.as_str()), (Some(1), ""), "{outcome}");
        let allow = "--allow device=vendor.com/demo=zero";
        outcome.assert_stderr_has(&[
            "`--device=vendor.com/demo=zero` is not allowed",
            allow,
            "Dockerfile:3",
        ]);
    }
    let free = rbuild(&json!({"org.mobyproject.buildkit.device.autoallow": "true"}));
    let (outcome, said) = build(&free, USE, &[]);
    assert_eq!((outcome.status.code(), said.as_str()), (Some(0), SAID), "{outcome}");
}

#[test]
fn a_device_that_is_not_there_is_missed_or_done_without() {
    if lacking(&needs::STEPS) {
        return;
    }
    let rbuild = rbuild(&json!({}));
    let optional =
        "RUN --device=vendor.com/none ls -d /dev/demo > /said 2>&1 || echo without > /said";
    let (outcome, said) = build(&rbuild, optional, &[]);
    assert_eq!((outcome.status.code(), said.as_str()), (Some(0), "without\n"), "{outcome}");
    outcome.assert_stderr_has(&["there is no device `vendor.com/none`", "runs without"]);
    let required = optional.replace("none", "none,required");
    let (outcome, _) = build(&rbuild, &required, &["--allow", "device"]);
    assert_eq!(outcome.status.code(), Some(1), "{outcome}");
    outcome.assert_stderr_has(&[
        "required device `vendor.com/none` is not registered",
        "Dockerfile:3",
    ]);
}
