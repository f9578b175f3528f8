//! `--slim` on a tree like Alpine's: musl's loader, busybox, a database of apk's, and a program that
//! is linked with a library of a package.

use std::path::Path;

use crate::base::debian;
use crate::needs::{Need, lacking};
use crate::rbuild::{Rbuild, context, run, scratch};

/// Debian has musl and its compiler; the tree is laid out as Alpine's packages have it.
const DOCKERFILE: &str = r#"
FROM debian:bookworm AS build
RUN apt-get update && apt-get install -y --no-install-recommends musl-tools busybox-static gcc libc6-dev
WORKDIR /src
COPY greet.c late.c main.c ./
RUN mkdir -p /alpine/lib/apk/db /alpine/usr/lib/greet /alpine/bin /alpine/sbin /alpine/etc/apk /alpine/app \
      /alpine/usr/share/man /alpine/tmp \
 && musl-gcc -shared -fPIC -o /alpine/usr/lib/libgreet.so.1 -Wl,-soname,libgreet.so.1 greet.c \
 && musl-gcc -shared -fPIC -o /alpine/usr/lib/liblate.so.1 -Wl,-soname,liblate.so.1 late.c \
 && musl-gcc -shared -fPIC -o /alpine/usr/lib/libunused.so.1 greet.c \
 && musl-gcc -o /alpine/app/main main.c /alpine/usr/lib/libgreet.so.1 -Wl,--dynamic-linker=/lib/ld-musl-x86_64.so.1 \
 && cp -L /lib/ld-musl-x86_64.so.1 /alpine/lib/ld-musl-x86_64.so.1 \
 && ln -s ld-musl-x86_64.so.1 /alpine/lib/libc.musl-x86_64.so.1 \
 && cp /bin/busybox /alpine/bin/busybox && ln -s /bin/busybox /alpine/bin/sh \
 && echo manual > /alpine/usr/share/man/greet.1 && echo 3.18.4 > /alpine/etc/alpine-release
COPY installed /alpine/lib/apk/db/installed

FROM scratch
COPY --from=build /alpine /
ENV PATH=/bin:/app
CMD ["main"]
"#;

const MAIN: &str = r#"
#include <dlfcn.h>
#include <stdio.h>
const char *greet(void);
int main(int count, char **arguments) {
    puts(greet());
    if (count > 1) {
        void *late = dlopen("liblate.so.1", RTLD_NOW);
        if (!late) { puts(dlerror()); return 1; }
        puts(((const char *(*)(void))dlsym(late, "late"))());
    }
    return 0;
}
"#;

const INSTALLED: &str = "\
C:Q1musl\nP:musl\nV:1.2.4-r2\nA:x86_64\nL:MIT\nF:lib\nR:ld-musl-x86_64.so.1\na:0:0:755\nZ:Q1x\n\
R:libc.musl-x86_64.so.1\na:0:0:777\nZ:Q1y\n\n\
C:Q1busy\nP:busybox\nV:1.36.1-r2\nA:x86_64\nF:bin\nR:busybox\na:0:0:755\nZ:Q1b\nR:sh\na:0:0:777\nZ:Q1c\n\n\
C:Q1greet\nP:greet\nV:1-r0\nA:x86_64\nF:usr/lib\nR:libgreet.so.1\na:0:0:755\nZ:Q1g\nR:libunused.so.1\n\
a:0:0:755\nZ:Q1u\nF:usr/share/man\nR:greet.1\nZ:Q1m\n\n\
C:Q1late\nP:late\nV:1-r0\nA:x86_64\nF:usr/lib\nR:liblate.so.1\na:0:0:755\nZ:Q1l\n\n\
C:Q1rel\nP:alpine-release\nV:3.18.4-r0\nA:x86_64\nF:etc\nR:alpine-release\nZ:Q1r\n\n";

#[test]
fn a_musl_tree_keeps_its_loader_its_libraries_and_their_packages() {
    let needs = [Need::Root, Need::Network, Need::Program("mmdebstrap"), Need::Program("chroot")];
    if lacking(&needs) || !cfg!(target_arch = "x86_64") {
        return;
    }
    let rbuild = Rbuild::new();
    let folder = context(&[
        ("Dockerfile", DOCKERFILE),
        ("greet.c", "const char *greet(void) { return \"hello\"; }\n"),
        ("late.c", "const char *late(void) { return \"later\"; }\n"),
        ("main.c", MAIN),
        ("installed", INSTALLED),
    ]);
    for mode in ["--slim=closure", "--slim=auto"] {
        let out = scratch();
        let build = rbuild.build(&folder).base("debian:bookworm", debian()).arg(mode);
        let outcome = build.output("type=local", out.path()).succeeds();
        let tree = out.path();
        for (path, expected) in [
            ("app/main", true),
            ("lib/ld-musl-x86_64.so.1", true),
            ("usr/lib/libgreet.so.1", true),
            ("usr/lib/liblate.so.1", true),
            ("etc/alpine-release", true),
            ("usr/lib/libunused.so.1", false),
            ("bin/busybox", false),
            ("bin/sh", false),
            ("usr/share/man/greet.1", false),
        ] {
            let is_there = tree.join(path).symlink_metadata().is_ok();
            assert_eq!(is_there, expected, "{mode} {path}\n{outcome}");
        }
        assert_eq!(run("chroot", &[path(tree), "/app/main", "late"]), "hello\nlater\n");
        let database = fs_err::read_to_string(tree.join("lib/apk/db/installed")).unwrap();
        let packages: Vec<&str> =
            database.lines().filter_map(|line| line.strip_prefix("P:")).collect();
        assert_eq!(packages, ["musl", "greet", "late", "alpine-release"], "{mode}");
        assert!(!database.contains("libunused"), "{database}");
    }
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}
