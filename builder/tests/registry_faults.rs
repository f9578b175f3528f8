//! Registries and networks that fail (PROMISES: what is passing is borne, what is endless ends, and
//! nothing wrong is ever stored).

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use rbuild::registry::RegistrySettings;
use rbuild::registry::push::Pushed;
use rbuild_cache::digest::Digest;
use rbuild_cache::oci::Descriptor;

use crate::faulty_registry::{Asked, FaultyRegistry, Reply, blob_unknown, status, with_header};
use crate::figure::{Mode, all_right, figure};
use crate::registry_client::{Side, digests, noise};

/// Ranges of 64 KiB: the first layer comes in five, the second as a whole.
fn layers() -> Vec<Vec<u8>> {
    vec![noise(11, 300_001), noise(12, 100_000)]
}

/// The timers of a user's patience, shortened.
fn impatient() -> RegistrySettings {
    RegistrySettings { patience: Duration::from_secs(3), ..RegistrySettings::default() }
}

fn side() -> Side {
    Side::with(impatient())
}

/// Pulls from a registry with this fault; the image must be right in the end.
async fn borne(
    what: &str,
    side: Side,
    fault: impl Fn(&Asked) -> Option<Reply> + Send + Sync + 'static,
) -> Mode {
    let registry = FaultyRegistry::start(fault);
    let put = registry.put("app:v1", &layers());
    let outcome = match side.pull(&registry.image("app:v1")).await {
        Err(e) => Err(e.to_string()),
        Ok(pulled) if pulled.digest != put.digest => Err("another image".to_owned()),
        Ok(pulled) if side.layers(&pulled) != digests(&layers()) => Err("other layers".to_owned()),
        Ok(_) if registry.blob_requests() > 30 => {
            Err(format!("{} requests", registry.blob_requests()))
        }
        Ok(_) => Ok(()),
    };
    Mode::new(what, outcome, registry.requests_a_blob())
}

/// Pulls from a registry with this fault; must end soon, with a message that has `expected`.
async fn refused(
    what: &str,
    expected: &str,
    fault: impl Fn(&Asked) -> Option<Reply> + Send + Sync + 'static,
) -> Mode {
    let registry = FaultyRegistry::start(fault);
    registry.put("app:v1", &layers());
    let (side, begun) = (side(), Instant::now());
    let outcome = match side.pull(&registry.image("app:v1")).await {
        Ok(_) => Err("it was pulled".to_owned()),
        Err(_) if begun.elapsed() > Duration::from_secs(20) => {
            Err(format!("it took {:?}", begun.elapsed()))
        }
        Err(_) if side.stored().iter().any(|(name, digest)| name != digest) => {
            Err("a wrong blob was stored".to_owned())
        }
        Err(error) => {
            let message = error.message;
            let says = |part: &str| message.contains(part);
            let clear = says(&registry.host) && says("app:v1") && says(expected);
            if clear { Ok(()) } else { Err(message) }
        }
    };
    Mode::new(what, outcome, 0)
}

/// The first request of each kind fails so; later ones don't.
fn first(reply: Reply) -> impl Fn(&Asked) -> Option<Reply> {
    move |asked| (asked.nth == 0).then(|| reply.clone())
}

fn first_blob(reply: Reply) -> impl Fn(&Asked) -> Option<Reply> {
    move |asked| (asked.nth == 0 && asked.is_blob()).then(|| reply.clone())
}

#[tokio::test(flavor = "multi_thread")]
async fn passing_faults_of_a_pull_are_borne_and_endless_ones_end() {
    let at = |seconds: u64| {
        let headers = [
            ("date", "Sat, 21 Nov 2026 12:00:00 GMT".to_owned()),
            ("retry-after", format!("Sat, 21 Nov 2026 12:00:0{seconds} GMT")),
        ];
        let headers = headers.map(|(name, value)| (name.to_owned(), value)).to_vec();
        Reply::Answer { status: 429, headers, body: Vec::new() }
    };
    // Each blob in one request, unless something breaks.
    let whole = || Side::with(RegistrySettings { range: 1 << 20, ..impatient() });
    let day = |_: &Asked| Some(with_header(429, "retry-after", "86400"));
    let blobs = |reply: Reply| move |asked: &Asked| asked.is_blob().then(|| reply.clone());
    let flipped_manifests =
        |asked: &Asked| asked.path.contains("/manifests/").then_some(Reply::Flipped);
    let circle = |asked: &Asked| Some(with_header(307, "location", &asked.path));
    let cases: Vec<BoxFuture<'_, Mode>> = vec![
        Box::pin(borne("none", whole(), |_| None)),
        Box::pin(borne("429 without a time", whole(), first(status(429)))),
        Box::pin(borne("429 in seconds", whole(), first(with_header(429, "retry-after", "1")))),
        Box::pin(borne("429 at a date", whole(), first(at(1)))),
        Box::pin(borne("500", whole(), first(status(500)))),
        Box::pin(borne("503", whole(), first(status(503)))),
        Box::pin(borne("reset", whole(), first(Reply::Reset))),
        Box::pin(borne("a stall", whole(), first_blob(Reply::Silence))),
        Box::pin(borne("manifests and blobs are cut", whole(), first(Reply::CutAfter(50)))),
        Box::pin(borne("blobs are cut late", whole(), first_blob(Reply::CutAfter(65_000)))),
        Box::pin(borne("flipped", whole(), first(Reply::Flipped))),
        Box::pin(refused("429", "429", |_| Some(status(429)))),
        Box::pin(refused("a day", "it asks to wait 86400 s", day)),
        Box::pin(refused("500", "500", |_| Some(status(500)))),
        Box::pin(refused("503", "503", |_| Some(status(503)))),
        Box::pin(refused("silence", "no answer within", |_| Some(Reply::Silence))),
        Box::pin(refused("silent blobs", "no answer within", blobs(Reply::Silence))),
        Box::pin(refused("flipped blobs", "is damaged", blobs(Reply::Flipped))),
        Box::pin(refused("flipped manifests", "is damaged", flipped_manifests)),
        Box::pin(refused("no progress", "connection broke", blobs(Reply::CutAfter(0)))),
        Box::pin(refused("404", "was not found", |_| Some(status(404)))),
        Box::pin(refused("a circle", "redirects more than 10 times", circle)),
    ];
    all_right("P26", &futures::future::join_all(cases).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn resuming_trusts_only_the_range_that_was_asked_for() {
    // Every answer is cut after 40,000 bytes: only resuming gets to the end.
    let cut = |asked: &Asked| asked.is_blob().then_some(Reply::CutAfter(40_000));
    let no_ranges = |asked: &Asked| {
        let ranged = asked.is_blob() && asked.headers.contains_key("range");
        ranged.then(|| status(416))
    };
    let wrong_range = |asked: &Asked| {
        let ranged = asked.is_blob() && asked.headers.contains_key("range");
        let headers = vec![("content-range".to_owned(), "bytes 5-9/300001".to_owned())];
        ranged.then(|| Reply::Answer { status: 206, headers, body: b"wrong".to_vec() })
    };
    // Another part of the blob, under the name of the one that was asked for.
    let lying_range = |asked: &Asked| {
        let range = asked.headers.get("range").filter(|_| asked.is_blob() && asked.nth < 2)?;
        let (from, to) = range.strip_prefix("bytes=")?.split_once('-')?;
        let (from, to): (usize, usize) = (from.parse().ok()?, to.parse().ok()?);
        let value = format!("bytes {from}-{to}/300001");
        let headers = vec![("content-range".to_owned(), value)];
        Some(Reply::Answer { status: 206, headers, body: noise(13, to + 1 - from) })
    };
    let itself = Arc::new(Mutex::new(None));
    let ignores = {
        let itself = Arc::clone(&itself);
        move |asked: &Asked| {
            let registry: Option<FaultyRegistry> = itself.lock().unwrap().clone();
            if !asked.is_blob() || !asked.headers.contains_key("range") {
                return None;
            }
            let body = registry?.blob(asked.path.rsplit('/').next().unwrap());
            Some(Reply::Answer { status: 200, headers: Vec::new(), body })
        }
    };
    let registry = FaultyRegistry::start(ignores);
    *itself.lock().unwrap() = Some(registry.clone());
    registry.put("app:v1", &layers());
    let side = side();
    let pulled = side.pull(&registry.image("app:v1")).await.unwrap();
    assert_eq!(side.layers(&pulled), digests(&layers()), "ranges are ignored");

    let modes = vec![
        borne("always cut", self::side(), cut).await,
        borne("no ranges: 416", self::side(), no_ranges).await,
        borne("another range", self::side(), wrong_range).await,
        borne("a range of something else", self::side(), lying_range).await,
        borne("flipped ranges", self::side(), first(Reply::Flipped)).await,
        Mode::new("ranges are ignored", Ok(()), registry.requests_a_blob()),
    ];
    all_right("P27", &modes);
}

#[tokio::test(flavor = "multi_thread")]
async fn questions_that_never_end_are_given_up() {
    let basic = |_: &Asked| Some(with_header(401, "www-authenticate", "Basic realm=\"x\""));
    let tokens = |asked: &Asked| {
        let realm =
            format!("Bearer realm=\"http://{}/token\",service=\"x\"", asked.headers["host"]);
        let body = br#"{"token": "abc"}"#.to_vec();
        if asked.path.starts_with("/token") {
            return Some(Reply::Answer { status: 200, headers: Vec::new(), body });
        }
        Some(with_header(401, "www-authenticate", &realm))
    };
    let no_tokens = |asked: &Asked| {
        let realm = format!("Bearer realm=\"http://{}/token\"", asked.headers["host"]);
        let found = asked.path.starts_with("/token");
        Some(if found { status(403) } else { with_header(401, "www-authenticate", &realm) })
    };
    let cases: Vec<BoxFuture<'_, Mode>> = vec![
        Box::pin(borne("tokens that end during a pull", side(), short_tokens())),
        Box::pin(pushed("tokens that end during a push", short_tokens())),
        Box::pin(refused("401", "no credentials for it were found", basic)),
        Box::pin(refused("401, no word", "does not say how to log in", |_| Some(status(401)))),
        Box::pin(refused("tokens that are never right", "401", tokens)),
        Box::pin(refused("no tokens", "it answers 403", no_tokens)),
    ];
    all_right("P28", &futures::future::join_all(cases).await);
}

/// A slow registry whose tokens end long before they say they do; then it answers 401 again.
fn short_tokens() -> impl Fn(&Asked) -> Option<Reply> + Send + Sync + 'static {
    let current = Mutex::new((0, Instant::now()));
    move |asked: &Asked| {
        std::thread::sleep(Duration::from_millis(30));
        let mut current = current.lock().unwrap();
        let (token, since) = &mut *current;
        if asked.path.starts_with("/token") {
            (*token, *since) = (*token + 1, Instant::now());
            let body = format!(r#"{{"access_token": "t{token}", "expires_in": 300}}"#);
            return Some(Reply::Answer { status: 200, headers: Vec::new(), body: body.into() });
        }
        let right = asked.headers.get("authorization") == Some(&format!("Bearer t{token}"));
        let ended = since.elapsed() > Duration::from_millis(150);
        let realm = format!("Bearer realm=\"http://{}/token\"", asked.headers["host"]);
        (!right || ended).then(|| with_header(401, "www-authenticate", &realm))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sizes_and_digests_of_descriptors_are_held_to() {
    type Lie = fn(&mut Descriptor);
    let lies: [(&str, Lie); 3] = [
        ("longer", |blob| blob.size += 1),
        ("shorter", |blob| blob.size -= 1),
        ("another", |blob| blob.digest = Digest::of("another")),
    ];
    for (what, lie) in lies {
        for position in 0..3 {
            let registry = FaultyRegistry::start(|_| None);
            registry.put_lying("app:v1", &layers(), |manifest| match position {
                0 => lie(&mut manifest.config),
                layer => lie(&mut manifest.layers[layer - 1]),
            });
            let side = side();
            let outcome = side.pull(&registry.image("app:v1")).await;
            assert!(outcome.is_err(), "{what} {position}");
            assert!(side.stored().iter().all(|(name, digest)| name == digest), "{what} {position}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn huge_documents_are_refused_unread() {
    let huge = |asked: &Asked| {
        let headers = vec![
            ("content-type".to_owned(), "application/vnd.oci.image.index.v1+json".to_owned()),
            ("content-length".to_owned(), "9999999999".to_owned()),
        ];
        let body = if asked.method == "GET" { vec![b' '; 10 << 20] } else { Vec::new() };
        asked.path.contains("/manifests/").then_some(Reply::Answer { status: 200, headers, body })
    };
    let mode = refused("a manifest of 10 GB", "the manifest is larger than", huge).await;
    all_right("P7, a manifest of 10 GB:", &[mode]);
}

/// Counts the requests to a second server that carry credentials.
#[tokio::test(flavor = "multi_thread")]
async fn credentials_stay_with_their_host() {
    let leaks = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&leaks);
    let second = FaultyRegistry::start(move |asked| {
        counted
            .fetch_add(usize::from(asked.headers.contains_key("authorization")), Ordering::SeqCst);
        None
    });
    let host = second.host.clone();
    // Sends manifests, blobs and uploads elsewhere, in the ways that there are.
    let first = FaultyRegistry::start(move |asked| {
        if !asked.headers.contains_key("authorization") {
            return Some(with_header(401, "www-authenticate", "Basic realm=\"x\""));
        }
        let location = format!("http://{host}{}", asked.path);
        match asked.method.as_str() {
            "GET" => Some(with_header(307, "location", &location)),
            "POST" => {
                let location = format!("http://{host}/v2/app/blobs/uploads/{}", 3 * asked.nth);
                Some(with_header(202, "location", &location))
            }
            _ => None,
        }
    });
    first.put("app:v1", &layers());
    second.put("app:v1", &layers());
    let side = side();
    side.write_login(&first.host);
    side.pull(&first.image("app:v1")).await.unwrap();
    assert!(second.blob_requests() >= 2, "the blobs came from the second server");
    let name = first.image("app:v2");
    side.make(&name, &[noise(14, 100_000)]);
    // The blobs go to the second server, so that the first misses them in the end.
    side.push(&name).await.unwrap_err();
    assert!(second.asked().iter().any(|asked| asked.method == "PUT"), "uploads went there");
    let (leaks, requests) = (leaks.load(Ordering::SeqCst), second.asked().len());
    figure(&format!("P17 leaks {leaks} in {requests} requests to another host"));
    assert_eq!(leaks, 0);
}

/// Pushes to a registry with this fault, which checks that nothing is missing.
async fn pushed(
    what: &str,
    fault: impl Fn(&Asked) -> Option<Reply> + Send + Sync + 'static,
) -> Mode {
    let registry = FaultyRegistry::start(fault);
    let side = side();
    let name = registry.image("app:v1");
    let made = side.make(&name, &layers());
    let there = Side::new();
    let outcome = async {
        side.push(&name).await.map_err(|e| e.to_string())?;
        if registry.tag("app:v1") != Some(made.digest) {
            return Err("it has another image".to_owned());
        }
        let pulled = there.pull(&name).await.map_err(|e| e.to_string())?;
        let right = there.layers(&pulled) == digests(&layers());
        right.then_some(()).ok_or_else(|| "it has other layers".to_owned())
    };
    Mode::new(what, outcome.await, 0)
}

#[tokio::test(flavor = "multi_thread")]
async fn passing_faults_of_a_push_are_borne_and_endless_ones_end() {
    // The first three uploads that are begun, and the first three that are finished.
    let with = |reply: Reply| {
        let (begun, finished) = (AtomicUsize::new(0), AtomicUsize::new(0));
        move |asked: &Asked| {
            let count = match asked.method.as_str() {
                "POST" => &begun,
                "PUT" => &finished,
                _ => return None,
            };
            (count.fetch_add(1, Ordering::SeqCst) < 3).then(|| reply.clone())
        }
    };
    // Relative, absolute, with a query of its own: the registry gives one address of each kind to
    // three blobs, unless all are of one kind.
    let lost_sessions = |asked: &Asked| {
        (asked.method == "PUT" && asked.path.contains("/uploads/1")).then(|| status(404))
    };
    let breaks = |asked: &Asked| {
        let large = asked.headers.get("content-length").is_some_and(|l| l == "300001");
        (asked.method == "PUT" && large).then_some(Reply::TakesOnly(200_000))
    };
    let cases: Vec<BoxFuture<'_, Mode>> = vec![
        Box::pin(pushed("addresses of all kinds", |_| None)),
        Box::pin(pushed("429", with(with_header(429, "retry-after", "0")))),
        Box::pin(pushed("500", with(status(500)))),
        Box::pin(pushed("503", with(status(503)))),
        Box::pin(pushed("reset", with(Reply::Reset))),
        // The registry took it, but its answer is lost.
        Box::pin(pushed("lost answers", with(Reply::CutAfter(0)))),
        Box::pin(pushed("a lost session", lost_sessions)),
        Box::pin(pushed("uploads break in the middle", breaks)),
        Box::pin(push_ends("500 without end", status(500))),
        Box::pin(push_ends("a day", with_header(429, "retry-after", "86400"))),
        Box::pin(push_ends("reset without end", Reply::Reset)),
        Box::pin(push_ends("silence", Reply::Silence)),
        Box::pin(push_ends("405", status(405))),
    ];
    all_right("P29", &futures::future::join_all(cases).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_that_broke_goes_on_where_it_broke() {
    let registry = FaultyRegistry::start(|asked| {
        let large = asked.headers.get("content-length").is_some_and(|l| l == "300001");
        (asked.method == "PUT" && large).then_some(Reply::TakesOnly(200_000))
    });
    let side = side();
    let name = registry.image("app:v1");
    side.make(&name, &layers()[..1]);
    side.push(&name).await.unwrap();
    let asked = registry.asked();
    let rest = asked.iter().find(|asked| asked.method == "PATCH").unwrap();
    assert_eq!(rest.headers["content-range"], "200000-300000");
    assert_eq!(rest.headers["content-length"], "100001", "only what was missing is sent");
    assert_eq!(asked.iter().filter(|asked| asked.method == "POST").count(), 2, "one a blob");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_push_that_fails_leaves_no_tag_and_is_finished_later() {
    let broken = Arc::new(AtomicUsize::new(1));
    let switch = Arc::clone(&broken);
    let registry = FaultyRegistry::start(move |asked| {
        let large = asked.headers.get("content-length").is_some_and(|l| l == "300001");
        (switch.load(Ordering::SeqCst) == 1 && large).then(|| status(500))
    });
    let side = side();
    let name = registry.image("app:v1");
    let made = side.make(&name, &layers());
    let error = side.push(&name).await.unwrap_err();
    assert!(error.message.contains("its tag is as it was"), "{}", error.message);
    assert_eq!(registry.tag("app:v1"), None);

    broken.store(0, Ordering::SeqCst);
    let pushed = side.push(&name).await.unwrap();
    assert_eq!((pushed.sent, pushed.existing), (1, 2), "only what is missing is sent");
    assert_eq!(registry.tag("app:v1"), Some(made.digest));
}

/// Pushes an image to a registry that may answer in this way when a manifest is put: what came of
/// it, and how often the manifest was put.
async fn push_of_lost(
    fault: impl Fn(&FaultyRegistry, &Asked) -> Option<Reply> + Send + Sync + 'static,
) -> (Result<Pushed, String>, usize) {
    let known: Arc<OnceLock<FaultyRegistry>> = Arc::default();
    let registry = Arc::clone(&known);
    let is_put = |asked: &Asked| asked.method == "PUT" && asked.path.contains("/manifests/");
    let registry = FaultyRegistry::start(move |asked| {
        let registry = registry.get().filter(|_| is_put(asked))?;
        fault(registry, asked)
    });
    known.set(registry.clone()).ok().unwrap();
    let (side, name) = (side(), registry.image("app:v1"));
    let made = side.make(&name, &layers());
    let outcome = side.push(&name).await;
    assert_eq!(registry.tag("app:v1"), outcome.as_ref().ok().map(|_| made.digest));
    let puts = registry.asked().iter().filter(|asked| is_put(asked)).count();
    (outcome.map_err(|error| format!("{} ({})", error.message, error.hint.unwrap())), puts)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_registry_does_not_see_any_more_is_looked_for_and_sent_again() {
    let all = (layers().iter().map(|layer| layer.len() as u64)).sum::<u64>();
    let (config, sent) = {
        let (outcome, puts) = push_of_lost(|_, _| None).await;
        let pushed = outcome.unwrap();
        assert_eq!((pushed.sent, puts), (3, 1));
        (pushed.sent_bytes - all, pushed.sent_bytes)
    };

    // Another client brought the same at the same time: it is all there a moment later.
    let (outcome, puts) = push_of_lost(|_, asked| (asked.nth == 0).then(blob_unknown)).await;
    assert_eq!(outcome, Ok(Pushed { sent: 3, sent_bytes: sent, ..Pushed::default() }));
    assert_eq!(puts, 2);

    // It took blobs away.
    let lost = |registry: &FaultyRegistry, asked: &Asked| {
        if asked.nth < 2 {
            registry.lose(&digests(&layers())[asked.nth]);
        }
        None
    };
    let (outcome, puts) = push_of_lost(lost).await;
    let pushed = Pushed { sent: 5, sent_bytes: 2 * all + config, ..Pushed::default() };
    assert_eq!((outcome, puts), (Ok(pushed), 3), "only what was lost is sent again");

    let (outcome, puts) = push_of_lost(|_, _| Some(blob_unknown())).await;
    let said = outcome.unwrap_err();
    for part in ["blob unknown to registry", "its tag is as it was", "`rbuild push`"] {
        assert!(said.contains(part), "{said}");
    }
    assert_eq!(puts, 4);
}

/// Pushes to a registry that answers so to each upload: that must end soon, without a tag.
async fn push_ends(what: &str, reply: Reply) -> Mode {
    let fault = move |asked: &Asked| (asked.method == "PUT").then(|| reply.clone());
    let registry = FaultyRegistry::start(fault);
    let (side, begun) = (side(), Instant::now());
    let name = registry.image("app:v1");
    side.make(&name, &layers());
    let outcome = match side.push(&name).await {
        Ok(_) => Err("it was pushed".to_owned()),
        Err(_) if begun.elapsed() > Duration::from_secs(20) => {
            Err(format!("it took {:?}", begun.elapsed()))
        }
        Err(_) if registry.tag("app:v1").is_some() => Err("it has a tag".to_owned()),
        Err(error) if !error.message.contains(&registry.host) => Err(error.message),
        Err(_) => Ok(()),
    };
    Mode::new(what, outcome, 0)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_to_be_replaced_is_absent_only_when_the_registry_says_so() {
    let check = async |reply: Option<Reply>, expected: Result<bool, &str>| {
        let registry = FaultyRegistry::start(move |asked| {
            reply.clone().filter(|_| asked.path.contains("/manifests/"))
        });
        registry.put("app:v1", &layers());
        let side = side();
        let name = registry.image("app:v1").parse().unwrap();
        let found = side.images.registry().puller().current(&name).await;
        match (found, expected) {
            (Ok(found), Ok(expected)) => assert_eq!(found.document().is_some(), expected),
            (Err(error), Err(expected)) => assert!(error.to_string().contains(expected), "{error}"),
            other => panic!("{other:?}"),
        }
    };
    check(None, Ok(true)).await;
    check(Some(status(404)), Ok(false)).await;
    check(Some(status(500)), Err("500")).await;
    check(Some(status(403)), Err("access denied")).await;
    check(Some(Reply::Reset), Err("connection")).await;
    check(Some(Reply::Flipped), Err("is damaged")).await;
}
