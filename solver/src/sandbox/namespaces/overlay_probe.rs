//! Whether overlayfs can be mounted on what a folder is on.
//!
//! A disk can lack what overlayfs needs of it (NFS does), the kernel can lack overlayfs, and a
//! container's root file system, being one itself, cannot take another one's changes. Only trying
//! tells. That takes as long as all else that a build does in which every result is known, so that it
//! could be mounted is written down, with all that the answer depends on.

use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rbuild_cache::layer::whiteout::Marks;
use rbuild_cache::remove::remove_tree;
use rbuild_cache::session::Session;
use rbuild_cache::state::{StateError, claim};
use rustix::mount::MountAttrFlags;
use rustix::process::{WaitId, WaitIdOptions};
use rustix::thread::UnshareFlags;

use super::file_system::Overlay;
use super::message::{Failure, OrFail};
use super::syscalls::{self, Cloned};
use crate::sandbox::SandboxError;

/// The exit code for a failure without an error of the kernel.
const OTHER: i32 = 255;

/// In the state folder: under which circumstances overlayfs could be mounted.
const MEMO: &str = "overlay";

/// Returns why overlayfs cannot be used in the state folder `folder`, which is made when missing;
/// `None` when it can be, and when steps cannot run for other reasons, which they will tell.
///
/// Must be called before the process has a second thread, and after [`super::become_root`].
///
/// # Errors
/// When nothing can be made in `folder`, or it is somebody else's.
pub fn overlay_obstacle(folder: &Path) -> Result<Option<SandboxError>, StateError> {
    claim(folder)?;
    let (memo, circumstances) = (folder.join(MEMO), circumstances(folder));
    if circumstances.is_some() && fs_err::read_to_string(&memo).ok() == circumstances {
        return Ok(None);
    }
    // Who is killed over it leaves nothing that stays.
    let session = Session::start(&folder.join("tmp"))?;
    let place = session.unused_path();
    let [lower, upper, work] = ["lower", "upper", "work"].map(|name| place.join(name));
    for folder in [&lower, &upper, &work] {
        fs_err::create_dir_all(folder)?;
    }
    let overlay = Overlay {
        lower: vec![&lower],
        upper: Some((&upper, &work)),
        user_xattrs: Marks::of_this_process() == Marks::User,
    };
    let tried = try_in_child(&overlay);
    remove_tree(&place)?;
    match (&tried, circumstances) {
        // What cannot be written down is tried again.
        (Ok(()), Some(circumstances)) => {
            let aside = session.unused_path();
            let written = fs_err::write(&aside, circumstances);
            let _ = written.and_then(|()| fs_err::rename(&aside, &memo));
        }
        (Ok(()), None) => {}
        // An earlier answer under circumstances that are told apart by nothing here.
        (Err(_), _) => _ = fs_err::remove_file(&memo),
    }
    Ok(tried.err().map(SandboxError::from))
}

/// All that decides whether mounting in `folder` works and can change while the folder stays what it
/// is: the running kernel, the file system, and what this process may do. `None` where `/proc` does not
/// tell.
fn circumstances(folder: &Path) -> Option<String> {
    let boot = fs_err::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    let namespace = |kind: &str| fs_err::read_link(format!("/proc/self/ns/{kind}")).ok();
    let (user, mount) = (namespace("user")?, namespace("mnt")?);
    let about = fs_err::metadata(folder).ok()?;
    let status = fs_err::read_to_string("/proc/self/status").ok()?;
    let line = |name: &str| status.lines().find(|line| line.starts_with(name));
    let (rights, filters) = (line("CapEff:")?, line("Seccomp_filters:")?);
    let profile = fs_err::read_to_string("/proc/self/attr/current").unwrap_or_default();
    let (user, mount, marks) = (user.display(), mount.display(), Marks::of_this_process());
    let (device, inode) = (about.dev(), about.ino());
    let lines = [
        boot.trim_end().to_owned(),
        format!("{user} {mount} {marks:?} {device} {inode}"),
        format!("{rights} {filters}"),
        profile.trim_end_matches(['\n', '\0']).to_owned(),
    ];
    Some(lines.join("\n"))
}

fn try_in_child(overlay: &Overlay<'_>) -> Result<(), Failure> {
    match syscalls::clone_process(UnshareFlags::empty()).or_fail(|| "cannot start a process")? {
        Cloned::Child => {
            let code = match mount(overlay) {
                Ok(()) => 0,
                Err(failure) => failure.errno.filter(|errno| *errno < OTHER).unwrap_or(OTHER),
            };
            std::process::exit(code)
        }
        Cloned::Parent(child) => {
            let waited = rustix::io::retry_on_intr(|| {
                rustix::process::waitid(WaitId::PidFd(child.as_fd()), WaitIdOptions::EXITED)
            });
            let status = waited.or_fail(|| "cannot wait for a process")?;
            match status.and_then(|status| status.exit_status()) {
                Some(0) => Ok(()),
                Some(errno) if errno != OTHER => Err(overlay.failure(errno)),
                Some(_) | None => Err(Failure::refusal("cannot mount overlayfs")),
            }
        }
    }
}

fn mount(overlay: &Overlay<'_>) -> Result<(), Failure> {
    if syscalls::unshare(UnshareFlags::NEWNS).is_err() {
        // No step can run, and the first that wants to says why.
        return Ok(());
    }
    overlay.mount(MountAttrFlags::empty()).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_left_of_the_probe() {
        let folder = tempfile::tempdir().unwrap();
        claim(folder.path()).unwrap();
        let names = |of: &Path| {
            let names = fs_err::read_dir(of).unwrap().map(|entry| entry.unwrap().file_name());
            names.collect::<std::collections::BTreeSet<_>>()
        };
        let before = names(folder.path());
        // Whatever the machine's answer is.
        let obstacle = overlay_obstacle(folder.path()).unwrap();
        let mut after = names(folder.path());
        let is_noted = after.remove(std::ffi::OsStr::new(MEMO));
        assert_eq!(after, before);
        assert_eq!(names(&folder.path().join("tmp")), names(&folder.path().join("locks")));
        assert!(obstacle.is_none() || !is_noted);
    }

    #[test]
    fn an_answer_holds_under_the_same_circumstances_only() {
        let folder = tempfile::tempdir().unwrap();
        if overlay_obstacle(folder.path()).unwrap().is_some() {
            return;
        }
        let memo = folder.path().join(MEMO);
        let modified = || fs_err::metadata(&memo).unwrap().modified().unwrap();
        let old = std::time::UNIX_EPOCH;
        fs_err::File::open(&memo).unwrap().set_modified(old).unwrap();
        assert!(overlay_obstacle(folder.path()).unwrap().is_none());
        assert_eq!(modified(), old, "it was not tried again");
        for other in ["", "another boot", &circumstances(Path::new("/proc")).unwrap()] {
            fs_err::write(&memo, other).unwrap();
            assert!(overlay_obstacle(folder.path()).unwrap().is_none());
            let now = fs_err::read_to_string(&memo).unwrap();
            assert_eq!(Some(now), circumstances(folder.path()), "it was tried again: {other:?}");
        }
    }
}
