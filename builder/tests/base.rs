//! Base images: busybox for the many small tests, Debian for the examples; both made by
//! `testdata/bases/make`, which keeps what it made.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// The repository's top folder.
pub(crate) fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

/// The layout of a busybox image, a layer of one megabyte.
pub(crate) fn busybox() -> &'static Path {
    static LAYOUT: OnceLock<PathBuf> = OnceLock::new();
    LAYOUT.get_or_init(|| make("busybox"))
}

/// The layout of a minimal Debian. It trusts what this machine trusts, so that `pip` works
/// behind a proxy that signs what it forwards.
pub(crate) fn debian() -> &'static Path {
    static LAYOUT: OnceLock<PathBuf> = OnceLock::new();
    LAYOUT.get_or_init(|| make("debian"))
}

fn make(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("bases");
    let status = Command::new(repository().join("testdata/bases/make"))
        .args(["--host-certificates", "--only", name])
        .arg(&folder)
        .status()
        .unwrap();
    assert!(status.success(), "testdata/bases/make --only {name}: {status}");
    folder.join(name)
}
