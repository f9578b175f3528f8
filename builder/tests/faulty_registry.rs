//! A registry in the process that can be told to fail: each request first goes to a function that
//! may answer in its place. It keeps what is pushed, checks it, and writes down what was asked.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rbuild_cache::digest::Digest;
use rbuild_cache::oci::{Descriptor, Manifest, MediaType};
use serde_json::json;

/// A request as it came.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    pub(crate) method: String,
    /// With the query.
    pub(crate) path: String,
    /// Names in lower case.
    pub(crate) headers: BTreeMap<String, String>,
    /// How many requests of this method for this path came before.
    pub(crate) nth: usize,
}

impl Asked {
    /// Whether this asks for the bytes of a blob.
    pub(crate) fn is_blob(&self) -> bool {
        self.method == "GET" && self.path.contains("/blobs/sha256:")
    }
}

/// What is answered.
#[derive(Clone, Debug)]
pub(crate) enum Reply {
    /// An answer.
    Answer { status: u16, headers: Vec<(String, String)>, body: Vec<u8> },
    /// The same as without a fault, but the connection ends after so many bytes of the body.
    CutAfter(usize),
    /// The same as without a fault, with one bit of the body flipped.
    Flipped,
    /// The connection ends without an answer.
    Reset,
    /// Nothing comes, for longer than anybody waits.
    Silence,
    /// The same as without a fault, but after so many bytes of the body nothing comes until the
    /// switch is on.
    Held(usize, Arc<AtomicBool>),
    /// The connection ends after so many bytes of the request's body; an upload keeps those.
    TakesOnly(usize),
}

/// An answer without a body.
pub(crate) fn status(status: u16) -> Reply {
    Reply::Answer { status, headers: Vec::new(), body: Vec::new() }
}

/// What a registry answers to a manifest that names what it does not see.
pub(crate) fn blob_unknown() -> Reply {
    let (status, headers, body) = unknown_blob();
    Reply::Answer { status, headers, body }
}

fn unknown_blob() -> (u16, Vec<(String, String)>, Vec<u8>) {
    let error = json!({"code": "MANIFEST_BLOB_UNKNOWN", "message": "blob unknown to registry"});
    (400, Vec::new(), json!({ "errors": [error] }).to_string().into_bytes())
}

/// An answer with one header and no body.
pub(crate) fn with_header(status: u16, name: &str, value: &str) -> Reply {
    let headers = vec![(name.to_owned(), value.to_owned())];
    Reply::Answer { status, headers, body: Vec::new() }
}

type Fault = dyn Fn(&Asked) -> Option<Reply> + Send + Sync;

/// A running registry; its threads end with the program.
#[derive(Clone)]
pub(crate) struct FaultyRegistry {
    /// `127.0.0.1:PORT`
    pub(crate) host: String,
    shared: Arc<Shared>,
}

struct Shared {
    fault: Box<Fault>,
    contents: Mutex<Contents>,
    asked: Mutex<Vec<Asked>>,
    /// The bodies of requests that were answered in its place.
    taken: Mutex<Vec<(String, Vec<u8>)>>,
    host: String,
}

#[derive(Default)]
struct Contents {
    blobs: BTreeMap<String, Vec<u8>>,
    /// By `name/reference`.
    manifests: BTreeMap<String, (String, Vec<u8>)>,
    uploads: u64,
    /// What came of uploads that are not complete, by path.
    sessions: BTreeMap<String, Vec<u8>>,
}

impl FaultyRegistry {
    /// Starts one; `fault` may answer instead of it.
    pub(crate) fn start(fault: impl Fn(&Asked) -> Option<Reply> + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let host = listener.local_addr().unwrap().to_string();
        let shared = Arc::new(Shared {
            fault: Box::new(fault),
            contents: Mutex::default(),
            asked: Mutex::default(),
            taken: Mutex::default(),
            host: host.clone(),
        });
        let serving = Arc::clone(&shared);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (stream, shared) = (stream.unwrap(), Arc::clone(&serving));
                // A client that goes away is one of the things that are tested.
                std::thread::spawn(move || drop(shared.serve(stream)));
            }
        });
        Self { host, shared }
    }

    /// Puts an image with these layers under `name`, which has a tag. Returns its manifest.
    pub(crate) fn put(&self, name: &str, layers: &[Vec<u8>]) -> Descriptor {
        self.put_lying(name, layers, |_| {})
    }

    /// The same, but with a manifest that `lie` changes.
    pub(crate) fn put_lying(
        &self,
        name: &str,
        layers: &[Vec<u8>],
        lie: impl FnOnce(&mut Manifest),
    ) -> Descriptor {
        let mut contents = self.shared.contents.lock().unwrap();
        let mut put = |media_type: MediaType, bytes: &[u8]| {
            let descriptor = Descriptor::of(media_type, bytes);
            contents.blobs.insert(descriptor.digest.to_string(), bytes.to_vec());
            descriptor
        };
        let layers: Vec<_> = layers.iter().map(|l| put(MediaType::OciLayer, l)).collect();
        let diff_ids: Vec<_> = layers.iter().map(|l| l.digest).collect();
        let config = json!({
            "os": "linux", "architecture": "amd64",
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        });
        let config = put(MediaType::OciConfig, config.to_string().as_bytes());
        let mut manifest = Manifest {
            schema_version: 2,
            media_type: None,
            config,
            layers,
            annotations: BTreeMap::new(),
        };
        lie(&mut manifest);
        let manifest = serde_json::to_string(&manifest).unwrap();
        let descriptor = Descriptor::of(MediaType::OciManifest, manifest.as_bytes());
        let (repository, tag) = name.rsplit_once(':').unwrap();
        let entry = (MediaType::OciManifest.to_string(), manifest.into_bytes());
        let by_digest = format!("{repository}/{}", descriptor.digest);
        contents.manifests.insert(format!("{repository}/{tag}"), entry.clone());
        contents.manifests.insert(by_digest, entry);
        descriptor
    }

    /// Puts a blob as it is.
    pub(crate) fn put_blob(&self, bytes: &[u8]) {
        let digest = Digest::of(bytes).to_string();
        self.shared.contents.lock().unwrap().blobs.insert(digest, bytes.to_vec());
    }

    /// Puts a manifest or an index as it is, under the tag that `name` has and under its digest.
    pub(crate) fn put_document(&self, name: &str, media_type: &str, bytes: &[u8]) {
        let (repository, tag) = name.rsplit_once(':').unwrap();
        let entry = (media_type.to_owned(), bytes.to_vec());
        let mut contents = self.shared.contents.lock().unwrap();
        for reference in [tag, &Digest::of(bytes).to_string()] {
            contents.manifests.insert(format!("{repository}/{reference}"), entry.clone());
        }
    }

    /// Takes a blob away.
    pub(crate) fn lose(&self, digest: &Digest) {
        self.shared.contents.lock().unwrap().blobs.remove(&digest.to_string()).unwrap();
    }

    /// The bytes of a blob.
    pub(crate) fn blob(&self, digest: &str) -> Vec<u8> {
        self.shared.contents.lock().unwrap().blobs[digest].clone()
    }

    /// The name of an image in it.
    pub(crate) fn image(&self, name: &str) -> String {
        format!("{}/{name}", self.host)
    }

    /// What was asked so far.
    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.shared.asked.lock().unwrap().clone()
    }

    /// The bodies of the requests for `path` that were answered in its place.
    pub(crate) fn taken(&self, path: &str) -> Vec<Vec<u8>> {
        let taken = self.shared.taken.lock().unwrap();
        let meant = taken.iter().filter(|(asked, _)| asked == path);
        meant.map(|(_, body)| body.clone()).collect()
    }

    /// How often the bytes of blobs were asked for.
    pub(crate) fn blob_requests(&self) -> usize {
        self.asked().iter().filter(|asked| asked.is_blob()).count()
    }

    /// How often the bytes of that blob were asked for of which it was most often.
    pub(crate) fn requests_a_blob(&self) -> usize {
        let asked = self.asked();
        let blobs = asked.iter().filter(|asked| asked.is_blob());
        blobs
            .map(|blob| asked.iter().filter(|a| a.is_blob() && a.path == blob.path).count())
            .max()
            .unwrap_or(0)
    }

    /// The text of a manifest or an index in the repository of `name`.
    pub(crate) fn document(&self, name: &str, digest: &Digest) -> String {
        let (repository, _) = name.rsplit_once(':').unwrap();
        let contents = self.shared.contents.lock().unwrap();
        String::from_utf8(contents.manifests[&format!("{repository}/{digest}")].1.clone()).unwrap()
    }

    /// The digest that a tag has here.
    pub(crate) fn tag(&self, name: &str) -> Option<Digest> {
        let (repository, tag) = name.rsplit_once(':').unwrap();
        let contents = self.shared.contents.lock().unwrap();
        contents.manifests.get(&format!("{repository}/{tag}")).map(|(_, m)| Digest::of(m))
    }
}

impl Shared {
    fn serve(&self, mut stream: TcpStream) -> std::io::Result<()> {
        let mut reader = BufReader::new(stream.try_clone()?);
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let mut words = line.split_whitespace();
        let (Some(method), Some(path)) = (words.next(), words.next()) else { return Ok(()) };
        let mut headers = BTreeMap::new();
        loop {
            let mut header = String::new();
            reader.read_line(&mut header)?;
            let Some((name, value)) = header.trim_end().split_once(':') else { break };
            headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
        }
        let asked = {
            let mut all = self.asked.lock().unwrap();
            let same = |a: &&Asked| a.method == method && a.path == path;
            let nth = all.iter().filter(same).count();
            let asked = Asked { method: method.into(), path: path.into(), headers, nth };
            all.push(asked.clone());
            asked
        };
        let fault = (self.fault)(&asked);
        if let Some(Reply::Reset) = fault {
            return Ok(());
        }
        if let Some(Reply::TakesOnly(most)) = fault {
            let mut body = vec![0; most];
            reader.read_exact(&mut body)?;
            let path = path.split('?').next().unwrap();
            let mut contents = self.contents.lock().unwrap();
            contents.sessions.entry(path.to_owned()).or_default().extend(body);
            return Ok(());
        }
        let body = read_body(&mut reader, &asked)?;
        let right = || self.answer(&asked, &body);
        let mut held = None;
        let (status, headers, body, cut) = match fault {
            None => {
                let (status, headers, body) = right();
                (status, headers, body, None)
            }
            Some(Reply::Answer { status, headers, body: answer }) => {
                self.taken.lock().unwrap().push((asked.path.clone(), body));
                (status, headers, answer, None)
            }
            Some(Reply::CutAfter(length)) => {
                let (status, headers, body) = right();
                (status, headers, body, Some(length))
            }
            Some(Reply::Flipped) => {
                let (status, headers, mut body) = right();
                if let Some(byte) = body.last_mut() {
                    *byte ^= 1;
                }
                (status, headers, body, None)
            }
            Some(Reply::Silence) => {
                std::thread::sleep(Duration::from_mins(2));
                return Ok(());
            }
            Some(Reply::Held(length, ref switch)) => {
                held = Some((length, Arc::clone(switch)));
                let (status, headers, body) = right();
                (status, headers, body, None)
            }
            Some(Reply::Reset | Reply::TakesOnly(_)) => unreachable!("they were handled above"),
        };
        write!(stream, "HTTP/1.1 {status} X\r\nconnection: close\r\n")?;
        let framed = ["content-length", "transfer-encoding"];
        if !headers.iter().any(|(name, _)| framed.contains(&&**name)) {
            write!(stream, "content-length: {}\r\n", body.len())?;
        }
        for (name, value) in headers {
            write!(stream, "{name}: {value}\r\n")?;
        }
        stream.write_all(b"\r\n")?;
        if let Some((length, switch)) = held {
            stream.write_all(&body[..length])?;
            stream.flush()?;
            while !switch.load(Ordering::SeqCst) {
                std::thread::sleep(Duration::from_millis(5));
            }
            stream.write_all(&body[length..])?;
        } else if asked.method != "HEAD" {
            stream.write_all(&body[..cut.unwrap_or(body.len()).min(body.len())])?;
        }
        stream.flush()
    }

    /// The answer of a registry without faults.
    fn answer(&self, asked: &Asked, body: &[u8]) -> (u16, Vec<(String, String)>, Vec<u8>) {
        let mut contents = self.contents.lock().unwrap();
        let header = |name: &str, value: String| (name.to_owned(), value);
        let none = |status: u16| (status, Vec::new(), Vec::new());
        let (path, query) = asked.path.split_once('?').unwrap_or((&asked.path, ""));
        let Some(path) = path.strip_prefix("/v2/") else { return none(404) };
        if path.is_empty() {
            return none(200);
        }
        if let Some((repository, reference)) = path.split_once("/manifests/") {
            let key = format!("{repository}/{reference}");
            if asked.method == "PUT" {
                if !contents.has_all(body) {
                    return unknown_blob();
                }
                let version = contents.manifests.get(&key).map(|(_, bytes)| etag(bytes));
                let wanted = asked.headers.get("if-match");
                let unwanted = asked.headers.contains_key("if-none-match") && version.is_some();
                if unwanted || wanted.is_some_and(|wanted| version.as_ref() != Some(wanted)) {
                    return none(412);
                }
                let entry = (asked.headers["content-type"].clone(), body.to_vec());
                contents
                    .manifests
                    .insert(format!("{repository}/{}", Digest::of(body)), entry.clone());
                contents.manifests.insert(key, entry);
                return none(201);
            }
            let Some((media_type, manifest)) = contents.manifests.get(&key) else {
                return none(404);
            };
            let headers = vec![
                header("content-type", media_type.clone()),
                header("docker-content-digest", Digest::of(manifest).to_string()),
                header("etag", etag(manifest)),
            ];
            return (200, headers, manifest.clone());
        }
        let Some((repository, reference)) = path.split_once("/blobs/") else { return none(404) };
        match (asked.method.as_str(), reference) {
            ("POST", "uploads/") => {
                contents.uploads += 1;
                let number = contents.uploads;
                // Relative, absolute, and with a query of its own.
                let location = match number % 3 {
                    0 => format!("/v2/{repository}/blobs/uploads/{number}"),
                    1 => format!("http://{}/v2/{repository}/blobs/uploads/{number}", self.host),
                    _ => format!("/v2/{repository}/blobs/uploads/{number}?state=a%2Fb"),
                };
                (202, vec![header("location", location)], Vec::new())
            }
            (method, reference) if reference.starts_with("uploads/") => {
                if query.contains("state=") && !query.contains("a%2Fb") {
                    return none(400);
                }
                let place = format!("/v2/{path}");
                let mut whole = contents.sessions.remove(&place).unwrap_or_default();
                let range = asked.headers.get("content-range");
                let from = range.map(|range| range.split('-').next().unwrap().parse().unwrap());
                if from.is_some_and(|from: usize| from != whole.len()) {
                    return none(416);
                }
                whole.extend(body);
                if method == "PUT" {
                    let digest = url::form_urlencoded::parse(query.as_bytes())
                        .find(|(name, _)| name == "digest")
                        .map(|(_, digest)| digest.into_owned());
                    let right = Digest::of(&whole).to_string();
                    if digest.as_ref() != Some(&right) {
                        return none(400);
                    }
                    contents.blobs.insert(right, whole);
                    return none(201);
                }
                let location =
                    if query.is_empty() { place.clone() } else { format!("{place}?{query}") };
                let last = whole.len().saturating_sub(1);
                let headers =
                    vec![header("location", location), header("range", format!("0-{last}"))];
                contents.sessions.insert(place, whole);
                match method {
                    "PATCH" => (202, headers, Vec::new()),
                    "GET" => (204, headers, Vec::new()),
                    _ => none(204),
                }
            }
            (_, digest) => {
                let Some(blob) = contents.blobs.get(digest) else { return none(404) };
                let whole = (200, Vec::new(), blob.clone());
                let Some(range) = asked.headers.get("range") else { return whole };
                let (from, to) = range.strip_prefix("bytes=").unwrap().split_once('-').unwrap();
                let from: usize = from.parse().unwrap();
                let to = to.parse().map_or(blob.len(), |to: usize| blob.len().min(to + 1));
                let value = format!("bytes {from}-{}/{}", to - 1, blob.len());
                (206, vec![header("content-range", value)], blob[from..to].to_vec())
            }
        }
    }
}

/// The name of a version of a manifest.
fn etag(manifest: &[u8]) -> String {
    format!("\"{}\"", Digest::of(manifest))
}

/// The body of a request, of known length or in chunks.
fn read_body(reader: &mut impl BufRead, asked: &Asked) -> std::io::Result<Vec<u8>> {
    let mut body = Vec::new();
    if !asked.headers.contains_key("transfer-encoding") {
        let length = asked.headers.get("content-length").map_or(0, |v| v.parse().unwrap());
        body.resize(length, 0);
        reader.read_exact(&mut body)?;
        return Ok(body);
    }
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let length = usize::from_str_radix(line.trim(), 16)
            .map_err(|_| std::io::Error::from(std::io::ErrorKind::UnexpectedEof))?;
        let start = body.len();
        body.resize(start + length, 0);
        reader.read_exact(&mut body[start..])?;
        reader.read_line(&mut line)?;
        if length == 0 {
            return Ok(body);
        }
    }
}

impl Contents {
    /// Whether everything that a manifest or an index names is here.
    fn has_all(&self, manifest: &[u8]) -> bool {
        let manifest: serde_json::Value = serde_json::from_slice(manifest).unwrap();
        let list = |name: &str| manifest[name].as_array().cloned().unwrap_or_default();
        let has_manifest = |entry: &serde_json::Value| {
            let digest = entry["digest"].as_str().unwrap();
            self.manifests.keys().any(|name| name.ends_with(digest))
        };
        let mut blobs = list("layers");
        blobs.extend(manifest.get("config").cloned());
        blobs.iter().all(|blob| self.blobs.contains_key(blob["digest"].as_str().unwrap()))
            && list("manifests").iter().all(has_manifest)
    }
}
