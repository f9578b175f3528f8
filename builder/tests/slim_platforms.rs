//! `--slim` on an image for another architecture: Debian's packages for 64-bit ARM, of which nothing
//! can be run here.

use crate::base::debian;
use crate::needs::{Need, lacking};
use crate::rbuild::{Rbuild, context, scratch};

/// What dpkg would have made of the packages, without their scripts.
const DOCKERFILE: &str = r#"
FROM --platform=linux/amd64 debian:bookworm AS fetch
RUN dpkg --add-architecture arm64 && apt-get update && mkdir -p /arm/var/lib/dpkg/info /debs
WORKDIR /debs
RUN apt-get download libc6:arm64 libgcc-s1:arm64 libacl1:arm64 libattr1:arm64 libselinux1:arm64 \
      libpcre2-8-0:arm64 libgmp10:arm64 coreutils:arm64 dash:arm64 base-files:arm64 base-passwd:arm64
COPY unpack.sh /
RUN sh /unpack.sh

FROM scratch
COPY --from=fetch /arm /
ENV PATH=/usr/bin:/bin
CMD ["sort", "/etc/os-release"]
"#;

const UNPACK: &str = r#"
set -e
for deb in /debs/*.deb; do
  dpkg-deb -x "$deb" /arm
  name=$(dpkg-deb -f "$deb" Package)
  info=/arm/var/lib/dpkg/info/$name
  [ "$(dpkg-deb -f "$deb" Multi-Arch)" != same ] || info=$info:arm64
  dpkg-deb --fsys-tarfile "$deb" | tar t | sed 's,^\.,,; s,/$,,' > "$info.list"
  dpkg-deb -I "$deb" md5sums > "$info.md5sums"
  { dpkg-deb -f "$deb" | sed '1a Status: install ok installed'; echo; } >> /arm/var/lib/dpkg/status
done
"#;

#[test]
fn an_image_for_another_architecture_is_slimmed_without_running_it() {
    let needs = [Need::Root, Need::Network, Need::Program("mmdebstrap")];
    if lacking(&needs) || !cfg!(target_arch = "x86_64") {
        return;
    }
    let (rbuild, out) = (Rbuild::new(), scratch());
    let folder = context(&[("Dockerfile", DOCKERFILE), ("unpack.sh", UNPACK)]);
    let build = |mode: &str| {
        let build = rbuild.build(&folder).base("debian:bookworm", debian());
        build.args(["--platform", "linux/arm64", mode])
    };
    let tree = out.path().join("tree");
    build("--slim=closure").output("type=local", &tree).succeeds();
    for (path, expected) in [
        ("usr/bin/sort", true),
        ("lib/ld-linux-aarch64.so.1", true),
        ("lib/aarch64-linux-gnu/libc.so.6", true),
        ("usr/share/doc/coreutils/copyright", true),
        ("var/lib/dpkg/status.d/coreutils", true),
        ("var/lib/dpkg/status.d/libc6", true),
        ("var/lib/dpkg/status.d/libselinux1", false),
        ("var/lib/dpkg/status", false),
        ("bin/dash", false),
        ("usr/bin/md5sum", false),
    ] {
        assert_eq!(tree.join(path).symlink_metadata().is_ok(), expected, "{path}");
    }
    let auto = build("--slim=auto").succeeds();
    auto.assert_stderr_has(&["can be run here", "its answers were not compared"]);
    let traced = build("--slim=trace").arg("--slim-probe=true").exits(1);
    traced.assert_stderr_has(&["cannot be run here"]);
}
