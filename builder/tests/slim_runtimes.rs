//! `--slim` on runtimes whose files find each other by themselves: Debian's Ruby, Perl and PHP; what
//! a program loads only when it is asked to is there although no probe asked. And what is said of
//! files besides their bytes: capabilities, attributes, links, holes, owners, times.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::Command;

use crate::base::debian;
use crate::needs::{Need, lacking};
use crate::rbuild::{Rbuild, context, run, scratch};

const DOCKERFILE: &str = r#"
FROM debian:bookworm AS tools
RUN apt-get update && apt-get install -y --no-install-recommends \
    libcap2-bin ruby ruby-i18n perl libjson-perl php-cli && rm -rf /var/lib/apt/lists/*

FROM tools AS ruby
COPY <<"FILE" /app/main.rb
require "json"
late = %w[set yaml zlib digest socket openssl erb i18n]
late.each { |name| require name } if ARGV[0] == "late"
puts JSON.generate(ok: true, late: ARGV[0] == "late" ? YAML.dump(late.size) : nil)
FILE
CMD ["ruby", "/app/main.rb"]

FROM tools AS perl
COPY <<"FILE" /app/main.pl
use strict;
my @late = qw(JSON POSIX Encode::JP Digest::SHA Time::HiRes IO::Socket Storable);
if (($ARGV[0] // "") eq "late") { for (@late) { eval "require $_; 1" or die $@ } }
print "ok ", scalar(keys %INC) > 10 ? "late" : "", "\n";
FILE
CMD ["perl", "/app/main.pl"]

FROM tools AS php
COPY <<"FILE" /app/main.php
<?php
$late = ($argv[1] ?? "") == "late";
echo json_encode(["ok" => true, "late" => $late ? [iconv("UTF-8", "ISO-8859-1", "a"),
  extension_loaded("phar"), ctype_alpha("a"), date("Y", 0)] : null]), "\n";
FILE
CMD ["php", "/app/main.php"]

FROM tools AS files
RUN mkdir /app && cp /usr/bin/sort /app/sort && setcap cap_net_bind_service=ep /app/sort \
 && ln /app/sort /app/again && truncate -s 8M /app/hole && echo end >> /app/hole \
 && chown 12:34 /app/hole && touch -d 2001-02-03 /app/hole \
 && setcap cap_net_raw=ep /usr/bin/env
CMD ["/app/sort", "/etc/hostname-"]
"#;

fn lacks() -> bool {
    lacking(&[Need::Root, Need::Network, Need::Program("mmdebstrap")])
}

/// What a program says that is run in `tree`.
fn said(tree: &Path, command: &[&str]) -> String {
    let output = Command::new("chroot").arg(tree).args(command).output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    format!("{}{}", String::from_utf8_lossy(&text), output.status)
}

/// The attribute that holds the capabilities of a program, in hexadecimal.
fn capabilities(path: &Path) -> String {
    let mut value = [0; 64];
    let length = rustix::fs::lgetxattr(path, "security.capability", &mut value).unwrap();
    let digits: Vec<String> = value[..length].iter().map(|byte| format!("{byte:02x}")).collect();
    format!("0x{}", digits.concat())
}

#[test]
fn runtimes_are_whole_and_files_stay_what_they_are() {
    if lacks() {
        return;
    }
    let rbuild = Rbuild::new();
    let folder = context(&[("Dockerfile", DOCKERFILE)]);
    let tree = |target: &str, mode: &str| {
        let out = scratch();
        let build = rbuild.build(&folder).base("debian:bookworm", debian());
        let build = build.args(["--target", target, mode]).output("type=local", out.path());
        build.succeeds().assert_stderr_has(&["shells"]);
        out
    };
    for (target, command) in [
        ("ruby", ["ruby", "/app/main.rb", "late"]),
        ("perl", ["perl", "/app/main.pl", "late"]),
        ("php", ["php", "/app/main.php", "late"]),
    ] {
        let full = scratch();
        let build = rbuild.build(&folder).base("debian:bookworm", debian());
        build.args(["--target", target]).output("type=local", full.path()).succeeds();
        let expected = said(full.path(), &command);
        assert!(expected.contains("ok") && expected.contains("exit status: 0"), "{expected}");
        // `auto` runs the program as it is: what comes late was not seen.
        for mode in ["--slim=closure", "--slim=auto"] {
            let slim = tree(target, mode);
            assert_eq!(said(slim.path(), &command), expected, "{target} {mode}");
            assert!(!slim.path().join("usr/bin/dash").exists(), "{target} {mode}");
        }
    }

    let slim = scratch();
    let build = rbuild.build(&folder).base("debian:bookworm", debian());
    let build = build.args(["--target", "files", "--slim=closure", "--slim-keep=/usr/bin/env"]);
    build.output("type=tar", &slim.path().join("files.tar")).succeeds();
    let out = slim.path().join("out");
    fs_err::create_dir(&out).unwrap();
    let archive = slim.path().join("files.tar");
    let (archive, target) = (archive.to_str().unwrap(), out.to_str().unwrap());
    run("tar", &["-xpSf", archive, "-C", target, "--xattrs", "--xattrs-include=*"]);
    let of = |path: &str| fs_err::symlink_metadata(out.join(path)).unwrap();
    // cap_net_bind_service and cap_net_raw, permitted and effective.
    for (path, value) in [
        ("app/sort", "0x0100000200040000000000000000000000000000"),
        ("usr/bin/env", "0x0100000200200000000000000000000000000000"),
    ] {
        assert_eq!(capabilities(&out.join(path)), value, "{path}");
    }
    assert_eq!(of("app/sort").ino(), of("app/again").ino());
    let hole = of("app/hole");
    assert_eq!((hole.uid(), hole.gid(), hole.len()), (12, 34, (8 << 20) + 4));
    assert_eq!(hole.mtime(), 981_158_400);
}
