//! A token server as Docker's registries have one (distribution, docs/spec/auth/token.md): gives
//! signed tokens for what is asked, pushing only to those who say the right password.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD};
use serde_json::json;

use crate::rbuild::run;

/// The name the registry and its tokens know this server, and the registry, by.
pub(crate) const ISSUER: &str = "rbuild-tests";

/// What a server gives besides the ordinary token.
#[derive(Clone, Copy)]
pub(crate) struct Tokens {
    /// How many seconds the registry takes a token for. It grants 60 seconds more than a token
    /// says, so that a token for less has ended before it is given.
    pub(crate) lifetime: u64,
    /// Whether who logs in gets a token to ask for others with, instead of the password.
    pub(crate) identity: bool,
}

/// The token to ask for others with.
const IDENTITY: &str = "identity-of-builder";

/// A running server. Its thread ends with the program.
pub(crate) struct TokenServer {
    /// Where tokens are asked for.
    pub(crate) realm: String,
    /// What was asked so far: each request's line.
    pub(crate) asked: Arc<Mutex<Vec<String>>>,
}

impl TokenServer {
    /// Signs with `key.pem` and `certificate.pem` of `folder`, for those who send `credentials`
    /// (`user:password`).
    pub(crate) fn start(folder: &Path, credentials: &str, tokens: Tokens) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let realm = format!("http://{}/token", listener.local_addr().unwrap());
        let asked = Arc::new(Mutex::new(Vec::new()));
        let server = Answering {
            folder: folder.to_owned(),
            authorization: format!("Basic {}", BASE64_STANDARD.encode(credentials)),
            asked: Arc::clone(&asked),
            tokens,
        };
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                server.answer(stream.unwrap());
            }
        });
        Self { realm, asked }
    }
}

struct Answering {
    folder: PathBuf,
    authorization: String,
    asked: Arc<Mutex<Vec<String>>>,
    tokens: Tokens,
}

impl Answering {
    fn answer(&self, mut stream: TcpStream) {
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        let mut lines = reader.by_ref().lines().map_while(Result::ok);
        let Some(mut request) = lines.next() else { return };
        let headers: Vec<String> = lines.take_while(|line| !line.is_empty()).collect();
        let header = |wanted: &str| {
            headers.iter().find_map(|line| {
                let (name, value) = line.split_once(": ")?;
                name.eq_ignore_ascii_case(wanted).then(|| value.to_owned())
            })
        };
        let sent = header("authorization");
        let mut form =
            vec![0; header("content-length").map_or(0, |length| length.parse().unwrap())];
        if reader.read_exact(&mut form).is_err() {
            return;
        }
        let form = String::from_utf8(form).unwrap();
        let (status, body) = if request.starts_with("POST /token ") {
            request = format!("POST /token?{form}");
            if form.contains(&format!("refresh_token={IDENTITY}")) {
                ("200 OK", json!({"access_token": self.token(&request, true)}))
            } else {
                ("401 Unauthorized", json!({}))
            }
        } else if !request.starts_with("GET /token?") {
            ("404 Not Found", json!({}))
        } else if sent.as_ref().is_some_and(|sent| *sent != self.authorization) {
            ("401 Unauthorized", json!({}))
        } else {
            let mut body = json!({"token": self.token(&request, sent.is_some())});
            if sent.is_some() && self.tokens.identity && request.contains("offline_token=true") {
                body["refresh_token"] = IDENTITY.into();
            }
            ("200 OK", body)
        };
        self.asked.lock().unwrap().push(request);
        let body = body.to_string();
        let answer = format!(
            "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\
             Connection: close\r\n\r\n{body}",
            body.len()
        );
        // Who asked may be gone, as when a build is interrupted.
        let _ = stream.write_all(answer.as_bytes());
    }

    /// A token for every `scope=repository:NAME:ACTIONS` of the request.
    fn token(&self, request: &str, known: bool) -> String {
        let address = request.split(' ').nth(1).unwrap();
        let address = url::Url::parse(&format!("http://localhost{address}")).unwrap();
        let access: Vec<_> = address
            .query_pairs()
            .filter(|(name, _)| name == "scope")
            .flat_map(|(_, scopes)| scopes.split(' ').map(str::to_owned).collect::<Vec<_>>())
            .filter_map(|scope| {
                let (name, actions) = scope.strip_prefix("repository:")?.rsplit_once(':')?;
                let actions: Vec<_> =
                    actions.split(',').filter(|action| known || *action == "pull").collect();
                Some(json!({"type": "repository", "name": name, "actions": actions}))
            })
            .collect();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        let certificate = fs_err::read_to_string(self.folder.join("certificate.pem")).unwrap();
        let der: String = certificate.lines().filter(|line| !line.starts_with('-')).collect();
        let head = json!({"typ": "JWT", "alg": "RS256", "x5c": [der]});
        let claims = json!({
            "iss": ISSUER, "sub": "builder", "aud": ISSUER, "jti": format!("{now}"),
            "iat": now - 60, "nbf": now - 60, "exp": now + self.tokens.lifetime - 60,
            "access": access,
        });
        let encode = |bytes: &[u8]| BASE64_URL_SAFE_NO_PAD.encode(bytes);
        let signed = format!(
            "{}.{}",
            encode(head.to_string().as_bytes()),
            encode(claims.to_string().as_bytes())
        );
        let signature = encode(&sign(&self.folder.join("key.pem"), signed.as_bytes()));
        format!("{signed}.{signature}")
    }
}

fn sign(key: &Path, bytes: &[u8]) -> Vec<u8> {
    let mut openssl = Command::new("openssl")
        .args(["dgst", "-sha256", "-sign"])
        .arg(key)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    openssl.stdin.take().unwrap().write_all(bytes).unwrap();
    let output = openssl.wait_with_output().unwrap();
    assert!(output.status.success());
    output.stdout
}

/// Writes `key.pem` and `certificate.pem` for 127.0.0.1 into `folder`.
pub(crate) fn make_certificate(folder: &Path) {
    let key = folder.join("key.pem");
    let certificate = folder.join("certificate.pem");
    let names = "subjectAltName=IP:127.0.0.1";
    let mut args = vec!["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"];
    args.extend(["-subj", "/CN=rbuild tests", "-addext", names]);
    args.extend(["-addext", "basicConstraints=critical,CA:TRUE"]);
    args.extend(["-keyout", key.to_str().unwrap(), "-out", certificate.to_str().unwrap()]);
    run("openssl", &args);
}
