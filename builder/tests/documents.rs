//! Manifests, indexes and configs as others write them: with fields that nobody knows, blanks where
//! they like them and numbers in odd spellings. Wherever they go they stay the same bytes; and what is
//! none is refused, or stays what it is.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use proptest::test_runner::{Config, TestRunner};
use rbuild::{image_archive, image_document, image_transfer};
use rbuild_cache::digest::Digest;
use rbuild_cache::oci::{Descriptor, ImageRef, MediaType};

use crate::faulty_registry::FaultyRegistry;
use crate::hostile_tar::{header, tar as tar_of};
use crate::rbuild::{Rbuild, scratch};
use crate::registry_client::{Side, noise, task};
use crate::soak::rounds;

/// How an object is written.
#[derive(Clone, Debug)]
struct Spelling {
    /// Between any two words.
    blank: &'static str,
    /// The values of fields that nobody knows.
    unknown: Vec<String>,
    /// By how many places the fields are turned.
    turned: usize,
}

impl Spelling {
    fn object(&self, fields: &[(&str, String)]) -> String {
        let known = fields.iter().map(|(name, value)| ((*name).to_owned(), value.clone()));
        let unknown = self.unknown.iter().enumerate();
        let unknown = unknown.map(|(n, value)| (format!("x-\\u0041{n}"), value.clone()));
        let mut all: Vec<(String, String)> = known.chain(unknown).collect();
        let turned = self.turned % all.len().max(1);
        all.rotate_left(turned);
        let blank = self.blank;
        let fields = all
            .iter()
            .map(|(name, value)| format!("{blank}\"{name}\"{blank}:{blank}{value}{blank}"));
        format!("{blank}{{{}}}{blank}", fields.collect::<Vec<_>>().join(","))
    }
}

fn quoted(text: &str) -> String {
    format!("\"{text}\"")
}

/// Any value, as text.
fn value() -> impl Strategy<Value = String> {
    const NUMBERS: &[&str] = &["0", "-0", "1.50", "1e3", "-2E-7", "0.1e+2", "18446744073709551616"];
    const WORDS: &[&str] =
        &["null", "true", "\"\"", "\"\\u0041\\/\"", "\"\\ud83d\\ude00 \u{fc}\\t\""];
    let leaf = prop_oneof![select(NUMBERS), select(WORDS)].prop_map(str::to_owned);
    leaf.prop_recursive(3, 12, 4, |inner| {
        prop_oneof![
            vec(inner.clone(), 0..4).prop_map(|items| format!("[ {}]", items.join(" ,\n"))),
            spelling_with(inner.boxed()).prop_map(|spelling| spelling.object(&[])),
        ]
    })
}

fn spelling_with(value: BoxedStrategy<String>) -> impl Strategy<Value = Spelling> {
    let blank = select(&["", " ", "\n", "\r\n\t", "  "][..]);
    (blank, vec(value, 0..3), 0..5_usize).prop_map(|(blank, unknown, turned)| Spelling {
        blank,
        unknown,
        turned,
    })
}

/// The documents of an image for one platform, and an index that names it.
#[derive(Clone, Debug)]
struct Documents {
    layer: Vec<u8>,
    /// Config, manifest and index.
    texts: [Vec<u8>; 3],
}

/// What is done to a document before the next one names it.
type Change<'a> = &'a dyn Fn(usize, Vec<u8>) -> Vec<u8>;

fn documents(spelling: &[Spelling], change: Change<'_>) -> Documents {
    let layer = noise(3, 100);
    let [first, second, third] = spelling else { panic!("one for each document") };
    let describe =
        |spelling: &Spelling, media_type: &str, bytes: &[u8], more: &[(&str, String)]| {
            let digest = quoted(&Digest::of(bytes).to_string());
            let fields = [
                ("mediaType", quoted(media_type)),
                ("digest", digest),
                ("size", bytes.len().to_string()),
            ];
            spelling.object(&[&fields[..], more].concat())
        };
    let diff_ids = format!("[{}]", quoted(&Digest::of(&layer).to_string()));
    let rootfs = second.object(&[("type", quoted("layers")), ("diff_ids", diff_ids)]);
    let config = first.object(&[
        ("os", quoted("linux")),
        ("architecture", quoted("amd64")),
        ("rootfs", rootfs),
        ("config", third.object(&[])),
    ]);
    let config = change(0, config.into_bytes());
    let layers = describe(first, MediaType::OciLayer.as_str(), &layer, &[]);
    let manifest = second.object(&[
        ("schemaVersion", "2".to_owned()),
        ("mediaType", quoted(MediaType::OciManifest.as_str())),
        ("config", describe(third, MediaType::OciConfig.as_str(), &config, &[])),
        ("layers", format!("[{layers}]")),
    ]);
    let manifest = change(1, manifest.into_bytes());
    let platform = first.object(&[("os", quoted("linux")), ("architecture", quoted("amd64"))]);
    let platform = [("platform", platform)];
    let entry = describe(second, MediaType::OciManifest.as_str(), &manifest, &platform);
    let index = third.object(&[
        ("schemaVersion", "2".to_owned()),
        ("mediaType", quoted(MediaType::OciIndex.as_str())),
        ("manifests", format!("[{entry}]")),
    ]);
    let index = change(2, index.into_bytes());
    Documents { layer, texts: [config, manifest, index] }
}

impl Documents {
    fn digest(&self, number: usize) -> Digest {
        Digest::of(&self.texts[number])
    }

    fn put(&self, registry: &FaultyRegistry) {
        registry.put_blob(&self.layer);
        registry.put_blob(&self.texts[0]);
        let [_, manifest, index] = &self.texts;
        registry.put_document("app:one", MediaType::OciManifest.as_str(), manifest);
        registry.put_document("app:all", MediaType::OciIndex.as_str(), index);
    }

    /// As `save` would write them.
    fn archive(&self) -> Vec<u8> {
        let blob = |bytes: &Vec<u8>| {
            let path = format!("blobs/sha256/{}", Digest::of(bytes).hex());
            header(b'0', &path, "", bytes, 0o644)
        };
        let mut archive: Vec<u8> = self.texts.iter().flat_map(blob).collect();
        archive.extend(blob(&self.layer));
        let root = Descriptor::of(MediaType::OciIndex, &self.texts[2]);
        let mut root = serde_json::to_value(root).unwrap();
        root["annotations"] = serde_json::json!({"io.containerd.image.name": "example.org/app:v1"});
        let index = serde_json::json!({"schemaVersion": 2, "manifests": [root]}).to_string();
        archive.extend(header(b'0', "index.json", "", index.as_bytes(), 0o644));
        archive.extend(tar_of(&[]));
        archive
    }
}

fn spellings() -> impl Strategy<Value = Vec<Spelling>> {
    vec(spelling_with(value().boxed()), 3)
}

/// Runs `check` on so many cases, the same ones each time.
fn for_each<S: Strategy>(cases: usize, cases_of: &S, check: impl Fn(S::Value)) {
    let cases = u32::try_from(cases).unwrap();
    let config = Config { cases, failure_persistence: None, ..Config::default() };
    let random = proptest::test_runner::TestRng::deterministic_rng(config.rng_algorithm);
    let mut runner = TestRunner::new_with_rng(config, random);
    let run = runner.run(cases_of, |case| {
        check(case);
        Ok(())
    });
    run.unwrap();
}

fn named(name: &str) -> String {
    name.parse::<ImageRef>().unwrap().to_string()
}

#[test]
fn they_stay_the_same_bytes_wherever_they_go() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    for_each(rounds(10), &spellings(), |spelling| {
        let image = documents(&spelling, &|_, text| text);
        let registry = FaultyRegistry::start(|_| None);
        image.put(&registry);
        let (one, all) = (registry.image("app:one"), registry.image("app:all"));
        let (copy, side) = (registry.image("copy:v1"), Side::new());
        runtime.block_on(async {
            let pulled = side.pull(&one).await.unwrap();
            assert_eq!(pulled.digest, image.digest(1));
            let found = image_transfer::pull_all(&side.images, &all, &task()).await.unwrap();
            assert_eq!(found, image.digest(2));
        });
        let store = side.images.state().blobs();
        for text in &image.texts {
            assert!(fs_err::read(store.path(&Digest::of(text))).unwrap() == *text);
        }
        let rbuild = Rbuild::at(side.images.state().root());
        rbuild.command().args(["tag", &all, &copy]).succeeds();
        runtime.block_on(side.push(&copy)).unwrap();
        assert_eq!(registry.tag("copy:v1"), Some(image.digest(2)));
        let out = scratch();
        let tar = out.path().join("image.tar");
        rbuild.command().args(["save", &copy, "-o"]).arg(&tar).succeeds();
        let other = Rbuild::new();
        other.command().args(["load", "-i"]).arg(&tar).succeeds();
        let digest = other.command().args(["inspect", "-f", "{{.Digest}}", &named(&copy)]);
        assert_eq!(digest.succeeds().stdout.trim(), image.digest(2).to_string());
        let hex = |text: &Vec<u8>| other.root.join("blobs/sha256").join(Digest::of(text).hex());
        for text in &image.texts {
            assert!(fs_err::read(hex(text)).unwrap() == *text);
        }
    });
}

/// One way to spoil a text.
fn spoilt(text: Vec<u8>, (how, at, byte): (u8, usize, u8)) -> Vec<u8> {
    let mut text = text;
    let at = at % text.len();
    match how {
        0 => text[at] ^= byte.max(1),
        1 => text.truncate(at),
        2 => text.insert(at, byte),
        3 => drop(text.remove(at)),
        4 => text.extend_from_within(at..),
        // A digit, a brace or a quote becomes another.
        _ => {
            let marks = b"{}[]\",:0129-e";
            let mark = marks[usize::from(byte) % marks.len()];
            if let Some(found) = text[at..].iter_mut().find(|byte| marks.contains(byte)) {
                *found = mark;
            }
        }
    }
    text
}

#[test]
fn what_is_spoilt_is_refused_or_stays_what_it_is() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let spoiling = (0..6_u8, any::<usize>(), any::<u8>());
    let cases = (spellings(), 0..3_usize, spoiling);
    for_each(rounds(60), &cases, |(spelling, which, how)| {
        let image = documents(&spelling, &|number, text| {
            if number == which { spoilt(text, how) } else { text }
        });
        let registry = FaultyRegistry::start(|_| None);
        image.put(&registry);
        let side = Side::new();
        let (one, all) = (registry.image("app:one"), registry.image("app:all"));
        runtime.block_on(async {
            if let Ok(pulled) = side.pull(&one).await {
                assert_eq!(pulled.digest, image.digest(1));
            }
            if let Ok(found) = image_transfer::pull_all(&side.images, &all, &task()).await {
                assert_eq!(found, image.digest(2));
            }
        });
        let other = Side::new();
        let archive = std::io::Cursor::new(image.archive());
        if let Ok(images) = image_archive::read(other.images.state(), archive, None) {
            assert_eq!(images[0].root.digest, image.digest(2));
        }
        for side in [&side, &other] {
            assert!(side.stored().iter().all(|(name, digest)| name == digest));
        }
    });
}

#[test]
fn nothing_that_is_read_as_a_document_panics() {
    let anything = prop_oneof![
        vec(any::<u8>(), 0..60),
        value().prop_map(String::into_bytes),
        (spellings(), 0..3_usize, (0..6_u8, any::<usize>(), any::<u8>())).prop_map(
            |(spelling, which, how)| {
                spoilt(documents(&spelling, &|_, text| text).texts[which].clone(), how)
            }
        ),
    ];
    for_each(rounds(2000), &anything, |bytes| {
        for media_type in [MediaType::OciIndex, MediaType::OciManifest, MediaType::DockerList] {
            let _ = image_document::parse(&Descriptor::of(media_type, &bytes), &bytes);
        }
        let _ = image_document::media_type(&bytes);
        let _ = image_document::read_config(&Descriptor::of(MediaType::OciConfig, &bytes), &bytes);
    });
}
