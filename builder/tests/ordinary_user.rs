//! Building as somebody who is not root, in a home of their own.

use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;

use crate::archive::tar_files;
use crate::base::busybox;
use crate::needs::{self, Need, lacking};
use crate::rbuild::{run, write};

#[test]
fn an_ordinary_user_builds() {
    if lacking(&[&needs::STEPS[..], &[Need::Program("setpriv")]].concat()) {
        return;
    }
    // The target folder may be out of another user's reach.
    let folder = tempfile::tempdir().unwrap();
    let everyone = std::fs::Permissions::from_mode(0o777);
    fs_err::set_permissions(folder.path(), everyone).unwrap();
    let program = folder.path().join("rbuild");
    fs_err::copy(env!("CARGO_BIN_EXE_rbuild"), &program).unwrap();
    let base = folder.path().join("base");
    run("cp", &["-r", busybox().to_str().unwrap(), base.to_str().unwrap()]);
    let context = folder.path().join("context");
    write(context.join("Dockerfile"), "FROM busybox\nRUN id -u > /who && touch /x && rm /bin/vi\n");
    let tar = folder.path().join("out.tar");
    let output = Command::new("setpriv")
        .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
        .arg(&program)
        .args(["build", "--progress", "plain"])
        .arg(format!("--build-context=busybox=oci-layout://{}", base.display()))
        .arg(format!("--output=type=tar,dest={}", tar.display()))
        .arg(&context)
        .env("RBUILD_ROOT", folder.path().join("root"))
        .env("HOME", folder.path())
        .output()
        .unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    if Command::new("setpriv")
        .args(["--reuid=65534", "--regid=65534", "--clear-groups", "unshare", "-U", "true"])
        .status()
        .is_ok_and(|status| status.success())
    {
        assert_eq!(output.status.code(), Some(0), "{stderr}");
        let files = tar_files(fs_err::File::open(&tar).unwrap());
        assert_eq!(files["who"], b"0\n");
        assert!(files.contains_key("x") && !files.contains_key("bin/vi"));
    } else {
        // Some machines forbid user namespaces: then the error says what is missing.
        assert_eq!(output.status.code(), Some(3), "{stderr}");
        assert!(stderr.contains("user namespace"), "{stderr}");
    }
}
