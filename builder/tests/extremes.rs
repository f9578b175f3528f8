//! What is deeper, longer or odder than anything real: it is built, or refused with a reason that can
//! be read, and nothing waits or stays behind.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;
use std::os::unix::net::UnixListener;
use std::time::{Duration, Instant};

use crate::needs::{self, lacking};
use crate::rbuild::{Rbuild, context, write};
use crate::user::{User, Users};

/// A step can make folders by going down one by one whose path nothing can name as a whole.
#[test]
fn folders_deeper_than_paths_are_told_and_removed() {
    if lacking(&needs::STEPS) {
        return;
    }
    let rbuild = Rbuild::new();
    let name = "d".repeat(100);
    let script =
        format!("for i in $(seq 100); do mkdir {name} && cd {name}; done 2> /dev/null; true");
    let text = format!("FROM busybox\nRUN {script}\n");
    let deep = context(&[("Dockerfile", &text)]);
    let outcome = rbuild.build(&deep).exits(1);
    outcome.assert_stderr_has(&["Dockerfile:2", "more) …", "longer than the kernel takes"]);
    assert!(outcome.stderr.len() < 8000, "{} bytes: {outcome}", outcome.stderr.len());
    assert_eq!(rbuild.leftovers(), Vec::<std::path::PathBuf>::new());
    let plain = context(&[("Dockerfile", "FROM busybox\nRUN true\n")]);
    rbuild.build(&plain).succeeds();
    rbuild.command().args(["cache", "verify"]).succeeds();
}

#[test]
fn variables_that_are_too_long_are_named() {
    if lacking(&needs::STEPS) {
        return;
    }
    let rbuild = Rbuild::new();
    let value = "x".repeat(60_000);
    let text = format!("FROM busybox\nENV A={value}\nENV B=$A$A$A\nRUN echo ran\n");
    let long = context(&[("Dockerfile", &text)]);
    let outcome = rbuild.build(&long).exits(1);
    outcome.assert_stderr_has(&["Dockerfile:4", "the variable `B` has 180000 bytes"]);
    let text = "FROM busybox\nARG LONG\nRUN echo ran ${#LONG}\n";
    let argument = |length: usize| format!("LONG={}", "y".repeat(length));
    let build = |length: usize| {
        let context = context(&[("Dockerfile", text)]);
        rbuild.build(&context).args(["--build-arg", &argument(length)]).run()
    };
    build(100_000).assert_stderr_has(&["ran 100000"]);
}

/// Pipes, sockets, names without any rule, and many of them, as every kind of user.
#[test]
fn odd_files_are_copied_whoever_builds() {
    let Some((users, base)) = Users::of_busybox() else { return };
    let context = users.path("context");
    write(
        context.join("Dockerfile"),
        r"
FROM busybox
COPY odd /odd
ADD odd/pipe /added
RUN --mount=type=bind,target=/m \
    list() { find $1 -mindepth 1 -maxdepth 1 -print0; }; count() { list $1 | tr -dc '\0' | wc -c; }; \
    echo copied $(count /odd) mounted $(count /m/odd) many $(count /odd/many); \
    test -p /odd/pipe && test -p /added && test -p /m/odd/pipe && echo pipes; \
    test -f /odd/socket && echo a file; echo names $(list /odd | tr '\n' '+' | tr '\0' '\n' | sort | md5sum)
",
    );
    let odd = context.join("odd");
    fs_err::create_dir(&odd).unwrap();
    let names: [&[u8]; 12] = [
        &[b'a'; 255],
        b"new\nline",
        b"\xff\xfe",
        b"tab\t",
        b"-rf",
        b"\x1b[31m",
        b" ",
        b"\\",
        b"*",
        b"\"'`$(id)",
        b"\r",
        "e\u{301}".as_bytes(),
    ];
    for name in names {
        fs_err::write(odd.join(OsString::from_vec(name.to_vec())), name).unwrap();
    }
    fs_err::create_dir(odd.join("many")).unwrap();
    for number in 0..3000 {
        fs_err::write(odd.join(format!("many/{number}")), "").unwrap();
    }
    crate::rbuild::run("mkfifo", &[odd.join("pipe").to_str().unwrap()]);
    let _listener = UnixListener::bind(odd.join("socket")).unwrap();
    let mut said = Vec::new();
    for user in User::ALL {
        let start = Instant::now();
        let outcome = users.build(user, &context, std::slice::from_ref(&base));
        assert!(start.elapsed() < Duration::from_mins(1), "{user:?}: {:?}", start.elapsed());
        outcome.assert_stderr_has(&["copied 15 mounted 15 many 3000", "pipes", "a file"]);
        // The last is the command's output; the command itself is told, too.
        said.push(outcome.stderr.rsplit_once("names ").unwrap().1[..32].to_owned());
    }
    assert!(said.iter().all(|names| *names == said[0]), "{said:?}");
}
