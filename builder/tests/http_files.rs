//! `ADD https://…` by itself: what a server may do to us, and what we spare it.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use rbuild::http::HttpFiles;
use rbuild::registry::{Registry, RegistrySettings};
use rbuild_cache::digest::Digest;
use rbuild_cache::limits::Limits;
use rbuild_solver::http_source::{Fetched, HttpSource as _, Validators};
use rbuild_solver::progress::{Reporter, Silent};

use crate::faulty_registry::{Asked, FaultyRegistry, Reply, status, with_header};
use crate::needs::{Need, lacking};
use crate::promise::{is_refusal, measured, tell};
use crate::rbuild::{Rbuild, context, scratch};
use crate::registry_client::noise;

/// Fetches `url`: what came of it, and the file's bytes.
async fn fetch(
    url: &str,
    known: Option<&Validators>,
) -> Result<(Fetched, Option<Vec<u8>>), String> {
    let settings =
        RegistrySettings { patience: Duration::from_secs(3), ..RegistrySettings::default() };
    let files = HttpFiles::new(Registry::new(settings), Limits::default());
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file");
    let task = Reporter::new(Arc::new(Silent)).start("test");
    let fetched = files.fetch(url, known, &path, &task).await.map_err(|e| e.to_string())?;
    Ok((fetched, fs_err::read(&path).ok()))
}

fn answer(headers: &[(&str, &str)], body: &[u8]) -> Reply {
    let headers = headers.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
    Reply::Answer { status: 200, headers, body: body.to_vec() }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_with_what_the_server_says_of_it() {
    let server = FaultyRegistry::start(|asked| {
        if asked.headers.get("if-none-match").is_some_and(|etag| etag == "\"one\"") {
            return Some(status(304));
        }
        let headers = [
            ("etag", "\"one\""),
            ("last-modified", "Sat, 21 Nov 2026 12:00:00 GMT"),
            ("content-disposition", "attachment; filename=\"named.txt\""),
        ];
        Some(answer(&headers, b"hello"))
    });
    let url = format!("http://{}/file", server.host);
    let (fetched, bytes) = fetch(&url, None).await.unwrap();
    let validators = Validators { etag: Some("\"one\"".into()) };
    let expected = Fetched::Body {
        filename: Some("named.txt".into()),
        modified: Some(1_795_262_400),
        validators: validators.clone(),
        digest: Digest::of("hello"),
        size: 5,
    };
    assert_eq!((fetched, bytes.as_deref()), (expected, Some(&b"hello"[..])));
    assert_eq!(fetch(&url, Some(&validators)).await.unwrap(), (Fetched::NotModified, None));
}

/// As `python3 -m http.server` and others are: they have times, and no tags.
#[test]
fn an_older_file_in_its_place_is_noticed() {
    if lacking(&[Need::Root]) {
        return;
    }
    let rolled_back = Arc::new(AtomicBool::new(false));
    let is_old = Arc::clone(&rolled_back);
    let server = FaultyRegistry::start(move |asked| {
        // No file is newer than what was there.
        Some(match (asked.headers.contains_key("if-modified-since"), is_old.load(Relaxed)) {
            (true, _) => status(304),
            (_, false) => answer(&[("last-modified", "Sat, 21 Nov 2026 12:00:00 GMT")], b"new"),
            (_, true) => answer(&[("last-modified", "Fri, 20 Nov 2026 12:00:00 GMT")], b"old"),
        })
    });
    let (rbuild, dockerfile) =
        (Rbuild::new(), format!("FROM scratch\nADD http://{}/f /\n", server.host));
    let context = context(&[("Dockerfile", &dockerfile)]);
    let build = || {
        let out = scratch();
        rbuild.build(&context).output("type=local", out.path()).succeeds();
        fs_err::read_to_string(out.path().join("f")).unwrap()
    };
    let layers = || fs_err::read_dir(rbuild.root.join("snapshots")).unwrap().count();
    assert_eq!(build(), "new");
    let before = layers();
    assert_eq!(build(), "new");
    assert_eq!(layers(), before, "a file that comes again is kept once");
    rolled_back.store(true, Relaxed);
    assert_eq!(build(), "old");
}

#[tokio::test(flavor = "multi_thread")]
async fn faults_of_a_server() {
    let body = noise(21, 300_000);
    let whole = body.clone();
    let cut = move |asked: &Asked| {
        let from = asked.headers.get("range").map_or(0, |range| {
            range.trim_start_matches("bytes=").trim_end_matches('-').parse().unwrap()
        });
        let end = whole.len().min(from + 100_000);
        let length = (whole.len() - from).to_string();
        let range = format!("bytes {from}-{}/{}", whole.len() - 1, whole.len());
        let mut headers = vec![("etag", "\"x\""), ("content-length", length.as_str())];
        if from > 0 {
            headers.push(("content-range", range.as_str()));
        }
        let Reply::Answer { headers, body, .. } = answer(&headers, &whole[from..end]) else {
            unreachable!("it is an answer")
        };
        Some(Reply::Answer { status: if from > 0 { 206 } else { 200 }, headers, body })
    };
    let server = FaultyRegistry::start(cut);
    let (_, bytes) = fetch(&format!("http://{}/cut", server.host), None).await.unwrap();
    assert_eq!(Digest::of(bytes.unwrap()), Digest::of(&body));
    assert_eq!(server.asked().len(), 3);

    let first =
        |asked: &Asked| Some(if asked.nth == 0 { status(503) } else { answer(&[], b"later") });
    let server = FaultyRegistry::start(first);
    let (_, bytes) = fetch(&format!("http://{}/x", server.host), None).await.unwrap();
    assert_eq!(bytes.unwrap(), b"later");

    let refused = async |reply: Reply, expected: &str| {
        let server = FaultyRegistry::start(move |_| Some(reply.clone()));
        let error = fetch(&format!("http://me:secret@{}/x", server.host), None).await.unwrap_err();
        assert!(error.contains(expected), "{error}");
        assert!(!error.contains("secret"), "{error}");
    };
    refused(status(404), "the file was not found").await;
    refused(status(403), "403 Forbidden").await;
    refused(with_header(302, "location", "file:///etc/passwd"), "is no address").await;
    refused(with_header(302, "location", "/x"), "redirects more than 10 times").await;
    refused(answer(&[("content-length", "99999999999999")], b"x"), "--limit download-size").await;
    refused(Reply::Silence, "no answer within").await;
    assert!(
        fetch("file:///etc/passwd", None).await.unwrap_err().contains("neither http nor https")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_password_of_the_address_stays_with_its_host() {
    let second = FaultyRegistry::start(|asked| {
        assert!(!asked.headers.contains_key("authorization"), "a password was sent on");
        Some(answer(&[], b"there"))
    });
    let location = format!("http://{}/x", second.host);
    let first = FaultyRegistry::start(move |asked| {
        let expected = http_auth::basic::encode_credentials("me", "secret");
        let right = asked.headers.get("authorization") == Some(&expected);
        Some(if right { with_header(302, "location", &location) } else { status(401) })
    });
    let (_, bytes) = fetch(&format!("http://me:secret@{}/", first.host), None).await.unwrap();
    assert_eq!(bytes.unwrap(), b"there");
}

/// A server that is made to hurt, or an address, and what `ADD` must make of it: the message that
/// refuses it, or the names that are in the image.
struct Case {
    what: &'static str,
    /// Follows `ADD`; `URL` is the server's.
    add: &'static str,
    reply: fn(&Asked) -> Reply,
    expected: Result<&'static [&'static str], &'static str>,
}

/// Leads to itself `nth` times, and then has a file.
fn leads_on(asked: &Asked, most: usize) -> Reply {
    let step: usize = asked.path.rsplit('/').next().unwrap().parse().unwrap_or(0);
    if step < most {
        with_header(302, "location", &format!("/{}", step + 1))
    } else {
        answer(&[], b"there")
    }
}

fn evil_tar(_: &Asked) -> Reply {
    let entries = ["../up=1", "l->/etc", "l/through=1", "/etc/absolute=1", "fine=1"];
    answer(&[], &crate::hostile_tar::tar(&entries))
}

const CASES: &[Case] = &[
    Case {
        what: "ten redirects",
        add: "URL/0 /f",
        reply: |asked| leads_on(asked, 10),
        expected: Ok(&["f"]),
    },
    Case {
        what: "eleven redirects",
        add: "URL/0 /f",
        reply: |asked| leads_on(asked, 11),
        expected: Err("redirects more than 10 times"),
    },
    Case {
        what: "a redirect to itself",
        add: "URL/x /f",
        reply: |_| with_header(307, "location", "/x"),
        expected: Err("redirects more than 10 times"),
    },
    Case {
        what: "a redirect to a file",
        add: "URL/x /f",
        reply: |_| with_header(302, "location", "file:///etc/passwd"),
        expected: Err("is no address"),
    },
    Case {
        what: "a redirect to another protocol",
        add: "URL/x /f",
        reply: |_| with_header(302, "location", "ftp://127.0.0.1/x"),
        expected: Err("is no address"),
    },
    Case {
        what: "a file of this machine",
        add: "file:///etc/passwd /f",
        reply: |_| status(404),
        expected: Err("not found"),
    },
    Case {
        what: "a length beyond the limit",
        add: "URL/x /f",
        reply: |_| answer(&[("content-length", "99999999999")], b"x"),
        expected: Err("--limit download-size"),
    },
    Case {
        what: "a body of no length beyond the limit",
        add: "URL/x /f",
        reply: |_| {
            let chunk = format!("40000\r\n{}\r\n", "x".repeat(0x40000)).repeat(8);
            answer(&[("transfer-encoding", "chunked")], format!("{chunk}0\r\n\r\n").as_bytes())
        },
        expected: Err("--limit download-size"),
    },
    Case {
        what: "silence",
        add: "URL/x /f",
        reply: |_| Reply::Silence,
        expected: Err("--limit download-time"),
    },
    Case {
        what: "a server that is always busy",
        add: "URL/x /f",
        reply: |_| with_header(503, "retry-after", "86400"),
        expected: Err("503"),
    },
    Case {
        what: "a server's name for the file that goes up",
        add: "URL/x /to/",
        reply: |_| {
            let name = "attachment; filename=\"../../../evil\"; filename*=UTF-8''..%2F..%2Fevil";
            answer(&[("content-disposition", name)], b"x")
        },
        expected: Ok(&["to", "to/x"]),
    },
    Case {
        what: "an address whose name goes up",
        add: "URL/a/..%2f..%2fevil /to/",
        reply: |_| answer(&[], b"x"),
        expected: Ok(&["to", "to/evil"]),
    },
    Case {
        what: "an address without a name",
        add: "URL/ /to/",
        reply: |_| answer(&[], b"x"),
        expected: Ok(&["to", "to/__unnamed__"]),
    },
    Case {
        what: "other bytes than the checksum says",
        add: "--checksum=sha256:0000000000000000000000000000000000000000000000000000000000000000 URL/x /f",
        reply: |_| answer(&[], b"x"),
        expected: Err("digest mismatch"),
    },
    Case {
        what: "an answer that says that nothing changed",
        add: "URL/x /f",
        reply: |_| status(304),
        expected: Err("304"),
    },
    Case {
        what: "an archive that goes up, kept as it is",
        add: "URL/x.tar /to/",
        reply: evil_tar,
        expected: Ok(&["to", "to/x.tar"]),
    },
    Case {
        what: "an archive that goes up, unpacked",
        add: "--unpack=true URL/x.tar /to/",
        reply: evil_tar,
        expected: Ok(&[
            "to",
            "to/etc",
            "to/etc/absolute",
            "to/etc/through",
            "to/fine",
            "to/l",
            "to/up",
        ]),
    },
];

#[test]
fn p14_servers_of_files_are_bounded() {
    if lacking(&[Need::Root]) {
        return;
    }
    let (mut held, mut slowest) = (0, Duration::ZERO);
    for Case { what, add, reply, expected } in CASES {
        let server = FaultyRegistry::start(move |asked| Some(reply(asked)));
        let (rbuild, out) = (Rbuild::new(), scratch());
        let add = add.replace("URL", &format!("http://{}", server.host));
        let context = context(&[("Dockerfile", &format!("FROM scratch\nADD {add}\n"))]);
        let build = rbuild
            .build(&context)
            .args(["--limit", "download-size=1m", "--limit", "download-time=4"])
            .output("type=local", &out.path().join("files"));
        let (outcome, cost) = measured(build);
        slowest = slowest.max(cost.time);
        // Nothing may be written beside the output.
        let beside = fs_err::read_dir(out.path()).unwrap().count();
        let right = match expected {
            Ok(names) => {
                outcome.status.success()
                    && beside == 1
                    && paths(&out.path().join("files")) == *names
            }
            Err(message) => {
                let line = outcome.stderr.contains("Dockerfile:2");
                is_refusal(&outcome) && line && outcome.stderr.contains(message) && beside == 0
            }
        };
        if right {
            held += 1;
        } else {
            crate::figure::figure(&format!("{what}: {beside} {outcome}"));
        }
    }
    let count = CASES.len();
    tell(14, &format!("servers bounded {held} / {count}, at most {:.1} s", slowest.as_secs_f64()));
    assert_eq!(held, count);
}

/// What is in `folder`, sorted.
fn paths(folder: &std::path::Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut open = vec![folder.to_owned()];
    while let Some(next) = open.pop() {
        for entry in fs_err::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            found.push(path.strip_prefix(folder).unwrap().display().to_string());
            if path.is_dir() && !path.is_symlink() {
                open.push(path);
            }
        }
    }
    found.sort();
    found
}
