//! Lists of what is said of an image, at registries that have no interface for such: several may
//! write one at the same time, and nobody's entry may get lost.

use std::collections::BTreeSet;
use std::process::Child;
use std::sync::{Arc, Mutex, OnceLock};

use serde_json::Value;

use crate::faulty_registry::{Asked, FaultyRegistry, Reply, status};
use crate::needs::{Need, lacking};
use crate::rbuild::{Outcome, Rbuild, Run, context};
use crate::registry::TestRegistry;
use crate::soak::rounds;

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// Pushes the same image with a statement of its own.
fn push(rbuild: &Rbuild, folder: &tempfile::TempDir, name: &str, statement: &str) -> Run {
    let run = rbuild.command().args(["build", "-t", name, "--provenance=mode=max"]);
    run.args(["-o", "type=registry,attestations=referrer", "--build-arg"])
        .arg(format!("STATEMENT={statement}"))
        .env("SOURCE_DATE_EPOCH", "0")
        .arg(folder.path())
}

fn sample() -> tempfile::TempDir {
    context(&[("Dockerfile", "FROM scratch\nLABEL a=b\n")])
}

#[test]
fn entries_of_pushes_at_the_same_time_are_all_in_the_list() {
    if lacking(&[Need::Program("docker-registry"), Need::Program("skopeo")]) {
        return;
    }
    let (registry, folder) = (TestRegistry::open(), sample());
    let skopeo = |args: &[&str], name: &str| -> Value {
        let image = format!("docker://{name}");
        let raw = ["inspect", "--tls-verify=false"];
        let said = crate::rbuild::run("skopeo", &[&raw[..], args, &[&image]].concat());
        serde_json::from_str(&said).unwrap()
    };
    // Two on one machine, and one on another: with a state folder of its own.
    let (here, there) = (Rbuild::new(), Rbuild::new());
    let rounds = rounds(4);
    for round in 0..rounds {
        let name = registry.image(&format!("app{round}:v1"));
        let start = |rbuild: &Rbuild, who: &str| push(rbuild, &folder, &name, who).start();
        let running = [start(&here, "one"), start(&here, "two"), start(&there, "three")];
        let failed: Vec<Outcome> = running
            .into_iter()
            .map(|child: Child| Outcome::of(child))
            .filter(|outcome| !outcome.status.success())
            .collect();
        assert!(failed.is_empty(), "{failed:?}");
        let digest = skopeo(&[], &name)["Digest"].as_str().unwrap().replace(':', "-");
        let list = skopeo(&["--raw"], &registry.image(&format!("app{round}:{digest}")));
        let entries: BTreeSet<String> = (list["manifests"].as_array().unwrap().iter())
            .map(|entry| entry["digest"].as_str().unwrap().to_owned())
            .collect();
        assert_eq!(entries.len(), 3, "round {round}: {list}");
    }
}

/// A registry, and pushes there in whose midst `between` happens: before the answer to the first
/// putting of the list.
struct Shared {
    registry: FaultyRegistry,
    name: String,
    list: String,
    before: String,
}

impl Shared {
    /// A registry with an image of which somebody else said something.
    fn new(
        between: impl Fn(&Shared, &Asked) -> Option<Reply> + Send + Sync + 'static,
    ) -> Arc<Self> {
        let known: Arc<OnceLock<Arc<Shared>>> = Arc::default();
        let shared = Arc::clone(&known);
        let registry = FaultyRegistry::start(move |asked| {
            let is_list = asked.path.contains("/manifests/sha256-");
            let shared = shared.get().filter(|_| is_list)?;
            between(shared, asked)
        });
        let name = registry.image("app:v1");
        // Who pushes without saying anything learns the image's digest.
        let folder = sample();
        let run = Rbuild::new();
        let run = run.command().args(["build", "--push", "-t", &name]).arg(folder.path());
        run.env("SOURCE_DATE_EPOCH", "0").succeeds();
        let digest = registry.tag("app:v1").unwrap();
        let list = format!("app:sha256-{}", digest.hex());
        for text in ["somebody's", "another's"] {
            registry.put_document("app:other", MANIFEST, text.as_bytes());
        }
        let before = list_of(&[&entry("somebody's")]);
        registry.put_document(&list, INDEX, before.as_bytes());
        let made = Arc::new(Self { registry, name, list, before });
        assert!(known.set(Arc::clone(&made)).is_ok());
        made
    }

    /// Somebody else replaces the list with what it was at first, and `other`.
    fn replace(&self, other: &str) {
        let both = list_of(&[&entry("somebody's"), &entry(other)]);
        self.registry.put_document(&self.list, INDEX, both.as_bytes());
    }

    /// Pushes, and gives the list as it is then.
    fn push(&self) -> String {
        let folder = sample();
        push(&Rbuild::new(), &folder, &self.name, "ours").succeeds();
        let digest = self.registry.tag(&self.list).unwrap();
        self.registry.document(&self.list, &digest)
    }

    /// What the lists were put with that were sent: the condition's header.
    fn conditions(&self) -> Vec<Option<&'static str>> {
        let asked = self.registry.asked();
        let is_put = |asked: &&Asked| asked.method == "PUT" && asked.path.contains("/sha256-");
        let has = |asked: &Asked| {
            ["if-match", "if-none-match"].into_iter().find(|name| asked.headers.contains_key(*name))
        };
        asked.iter().filter(is_put).map(has).collect()
    }
}

fn entry(text: &str) -> String {
    let digest = rbuild_cache::digest::Digest::of(text);
    // With a number that few programs write.
    format!(r#"{{ "size":7, "x": 1.50, "mediaType":"{MANIFEST}", "digest":"{digest}" }}"#)
}

fn list_of(entries: &[&str]) -> String {
    format!(r#"{{"schemaVersion":2,"mediaType":"{INDEX}","manifests":[{}]}}"#, entries.join(" , "))
}

fn count(list: &str) -> usize {
    let list: Value = serde_json::from_str(list).unwrap();
    list["manifests"].as_array().unwrap().len()
}

#[test]
fn a_registry_that_knows_versions_replaces_only_what_was_read() {
    let shared = Shared::new(|shared, asked| {
        if asked.method == "PUT" && asked.nth == 0 {
            shared.replace("another's");
        }
        None
    });
    let list = shared.push();
    assert_eq!(count(&list), 3, "{list}");
    for theirs in ["somebody's", "another's"] {
        assert!(list.contains(&entry(theirs)), "its bytes stayed what they were: {list}");
    }
    assert_eq!(shared.conditions(), [Some("if-match"), Some("if-match")]);
}

#[test]
fn an_entry_that_somebody_overwrote_is_put_again() {
    // This registry takes whatever comes, and the second one to write had read before the first.
    let shared = Shared::new(|shared, asked| {
        let is_first = asked.method == "PUT" && asked.nth == 0;
        is_first.then(|| {
            shared.replace("another's");
            status(201)
        })
    });
    let list = shared.push();
    assert_eq!(count(&list), 3, "{list}");
}

/// Who has read a list before, and is slow, replaces it when the entry was found there already.
#[test]
fn an_entry_that_somebody_overwrote_while_the_rest_was_pushed_is_put_again() {
    let shared = Shared::new(|shared, asked| {
        let is_of_other = asked.method == "GET" && asked.path.contains("/other/");
        if is_of_other && asked.nth == 0 {
            std::thread::sleep(std::time::Duration::from_millis(600));
            shared.replace("another's");
        }
        None
    });
    let folder = sample();
    let other = shared.registry.image("other:v1");
    push(&Rbuild::new(), &folder, &shared.name, "ours").args(["-t", &other]).succeeds();
    let list = |list: &str| {
        let digest = shared.registry.tag(list).unwrap();
        shared.registry.document(list, &digest)
    };
    assert_eq!(count(&list(&shared.list)), 3, "{}", list(&shared.list));
    assert_eq!(count(&list(&shared.list.replace("app:", "other:"))), 1);
}

#[test]
fn a_condition_that_can_never_be_met_is_left_out() {
    // Something between compresses answers, and gives versions names that the registry never heard.
    let shared = Shared::new(|_, asked| {
        let refused = asked.method == "PUT" && asked.headers.contains_key("if-match");
        refused.then(|| status(412))
    });
    let list = shared.push();
    assert_eq!(count(&list), 2, "{list}");
    assert_eq!(shared.conditions(), [Some("if-match"), None]);
}

#[test]
fn a_list_that_is_overwritten_each_time_is_given_up_and_says_so() {
    let puts = Arc::new(Mutex::new(0));
    let counted = Arc::clone(&puts);
    let shared = Shared::new(move |_, asked| {
        (asked.method == "PUT").then(|| {
            *counted.lock().unwrap() += 1;
            status(201)
        })
    });
    let folder = sample();
    let failed = push(&Rbuild::new(), &folder, &shared.name, "ours").exits(1);
    failed.assert_stderr_has(&["at the same time", &shared.list, &shared.registry.host]);
    failed.assert_stderr_has(&["the image was pushed; building it again"]);
    assert_eq!(*puts.lock().unwrap(), 6);
    let digest = shared.registry.tag(&shared.list).unwrap();
    assert_eq!(shared.registry.document(&shared.list, &digest), shared.before);
}
