//! `ADD https://…` by itself: what a server may do to us, and what we spare it.

use std::sync::Arc;
use std::time::Duration;

use rbuild::http::HttpFiles;
use rbuild::registry::{Registry, RegistrySettings};
use rbuild_cache::digest::Digest;
use rbuild_cache::limits::Limits;
use rbuild_solver::http_source::{Fetched, HttpSource as _, Validators};
use rbuild_solver::progress::{Reporter, Silent};

use crate::faulty_registry::{Asked, FaultyRegistry, Reply, status, with_header};
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
    let validators = Validators {
        etag: Some("\"one\"".into()),
        last_modified: Some("Sat, 21 Nov 2026 12:00:00 GMT".into()),
    };
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
