//! Whether overlayfs can be mounted on what a folder is on.
//!
//! A disk can lack what overlayfs needs of it (NFS does), the kernel can lack overlayfs, and a
//! container's root file system, being one itself, cannot take another one's changes. Only trying
//! tells.

use std::os::fd::AsFd;
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

/// Returns why overlayfs cannot be used in the state folder `folder`, which is made when missing;
/// `None` when it can be, and when steps cannot run for other reasons, which they will tell.
///
/// Must be called before the process has a second thread, and after [`super::become_root`].
///
/// # Errors
/// When nothing can be made in `folder`, or it is somebody else's.
pub fn overlay_obstacle(folder: &Path) -> Result<Option<SandboxError>, StateError> {
    claim(folder)?;
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
    Ok(tried.err().map(SandboxError::from))
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
        let _ = overlay_obstacle(folder.path()).unwrap();
        assert_eq!(names(folder.path()), before);
        assert_eq!(names(&folder.path().join("tmp")), names(&folder.path().join("locks")));
    }
}
