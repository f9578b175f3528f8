//! The user's credentials: docker's `config.json` with its helpers, podman's `auth.json`.
//!
//! What stands in `auths` is decoded by `docker_credential`. Helpers are run here, since they can
//! hang: they get a time limit. No credential is printed or kept anywhere else.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use docker_credential::{CredentialRetrievalError, DockerCredential, get_credential_from_reader};
use serde::{Deserialize, Serialize};
use tokio::io::AsyncWriteExt as _;

use super::settings::RegistrySettings;

/// What the user proves to be with.
#[derive(Clone, PartialEq, Eq)]
pub enum Credential {
    /// A user's name and password.
    Password {
        /// The name.
        username: String,
        /// The password.
        password: String,
    },
    /// A refresh token, which only the token service takes.
    IdentityToken(String),
}

impl std::fmt::Debug for Credential {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Password { username, .. } => write!(f, "the password of `{username}`"),
            Self::IdentityToken(_) => f.write_str("an identity token"),
        }
    }
}

/// Says why the user's credentials cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    /// The file could not be read or written.
    #[error(transparent)]
    File(#[from] std::io::Error),
    /// The file is not what docker writes.
    #[error("`{path}` cannot be understood: {reason}")]
    Syntax {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The helper did not do what it should.
    #[error("credential helper `docker-credential-{helper}`: {reason}")]
    Helper {
        /// Its name in the file.
        helper: String,
        /// What is wrong.
        reason: String,
    },
    /// There is no folder to keep them in.
    #[error("there is no home folder to keep credentials in")]
    NoHome,
}

/// What of `config.json` and `auth.json` is read here; docker takes `null` for any of it.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ConfigFile {
    auths: Option<BTreeMap<String, serde_json::Value>>,
    creds_store: Option<String>,
    cred_helpers: Option<BTreeMap<String, String>>,
}

impl ConfigFile {
    fn entry(&self, key: &str) -> Option<&serde_json::Value> {
        self.auths.as_ref()?.get(key)
    }

    fn helper(&self, key: &str) -> Option<&String> {
        self.cred_helpers.as_ref()?.get(key)
    }
}

/// What helpers print and read (docker-credential-helpers, `credentials/credentials.go`).
#[derive(Deserialize, Serialize)]
#[serde(rename_all = "PascalCase")]
struct HelperAnswer {
    #[serde(rename = "ServerURL", default)]
    server: String,
    username: String,
    secret: String,
}

/// Looks credentials up, and keeps them.
#[derive(Clone, Debug)]
pub struct Credentials {
    docker: Option<PathBuf>,
    others: Vec<PathBuf>,
    helper_folder: Option<PathBuf>,
    helper_patience: Duration,
}

impl Credentials {
    /// Looks where `settings` says. Nothing is read yet.
    pub fn new(settings: &RegistrySettings) -> Self {
        Self {
            docker: settings.docker_config.as_ref().map(|folder| folder.join("config.json")),
            others: settings.auth_files.clone(),
            helper_folder: settings.helper_folder.clone(),
            helper_patience: settings.helper_patience,
        }
    }

    /// The credential for `repository` at `host`, from the first file that has one.
    pub async fn find(
        &self,
        host: &str,
        repository: &str,
    ) -> Result<Option<Credential>, CredentialsError> {
        for path in self.docker.iter().chain(&self.others) {
            let Some(file) = read(path)? else { continue };
            if let Some(credential) = self.find_in(path, &file, host, repository).await? {
                return Ok(Some(credential));
            }
        }
        Ok(None)
    }

    async fn find_in(
        &self,
        path: &Path,
        file: &ConfigFile,
        host: &str,
        repository: &str,
    ) -> Result<Option<Credential>, CredentialsError> {
        for key in keys(host, "") {
            if let Some(helper) = file.helper(&key) {
                return self.ask_helper(helper, &key).await;
            }
        }
        for key in keys(host, repository) {
            if let Some(credential) = decode(path, file, &key)? {
                return Ok(Some(credential));
            }
        }
        let Some(store) = file.creds_store.as_deref().filter(|store| !store.is_empty()) else {
            return Ok(None);
        };
        for key in keys(host, "").into_iter().take(2) {
            if let Some(credential) = self.ask_helper(store, &key).await? {
                return Ok(Some(credential));
            }
        }
        Ok(None)
    }

    /// Keeps `credential` for `host`, as `docker login` does: with the helper that is set for it,
    /// otherwise in `config.json`. Returns where.
    pub async fn store(
        &self,
        host: &str,
        credential: &Credential,
    ) -> Result<String, CredentialsError> {
        let path = self.docker.as_ref().ok_or(CredentialsError::NoHome)?;
        let key = keys(host, "").swap_remove(0);
        let file = read(path)?.unwrap_or_default();
        if let Some(helper) = helper_for(&file, host) {
            let (username, secret) = match credential {
                Credential::Password { username, password } => (username.clone(), password.clone()),
                Credential::IdentityToken(token) => ("<token>".to_owned(), token.clone()),
            };
            let answer = HelperAnswer { server: key, username, secret };
            let input = serde_json::to_vec(&answer).map_err(std::io::Error::other)?;
            self.run_helper(&helper, "store", &input).await?;
            return Ok(format!("docker-credential-{helper}"));
        }
        edit(path, |auths| {
            let entry = match credential {
                Credential::Password { username, password } => serde_json::json!({
                    "auth": encode(&format!("{username}:{password}")),
                }),
                Credential::IdentityToken(token) => serde_json::json!({
                    "auth": encode("<token>:"),
                    "identitytoken": token,
                }),
            };
            auths.insert(key, entry);
        })?;
        Ok(path.display().to_string())
    }

    /// Forgets the credentials for `host`. `false` when there were none.
    pub async fn erase(&self, host: &str) -> Result<bool, CredentialsError> {
        let path = self.docker.as_ref().ok_or(CredentialsError::NoHome)?;
        let Some(file) = read(path)? else { return Ok(false) };
        let known = keys(host, "").iter().any(|key| file.entry(key).is_some());
        let mut erased = known;
        if let Some(helper) = helper_for(&file, host) {
            let key = keys(host, "").swap_remove(0);
            if self.ask_helper(&helper, &key).await?.is_some() {
                self.run_helper(&helper, "erase", key.as_bytes()).await?;
                erased = true;
            }
        }
        if known {
            edit(path, |auths| {
                for key in keys(host, "") {
                    auths.remove(&key);
                }
            })?;
        }
        Ok(erased)
    }

    async fn ask_helper(
        &self,
        helper: &str,
        server: &str,
    ) -> Result<Option<Credential>, CredentialsError> {
        let output = match self.run_helper(helper, "get", server.as_bytes()).await {
            Err(CredentialsError::Helper { reason, .. })
                if reason.contains("credentials not found") =>
            {
                return Ok(None);
            }
            other => other?,
        };
        let answer: HelperAnswer =
            serde_json::from_slice(&output).map_err(|e| CredentialsError::Helper {
                helper: helper.to_owned(),
                reason: format!("its answer is not the JSON it should be (line {})", e.line()),
            })?;
        Ok(Some(match answer.username.as_str() {
            "<token>" => Credential::IdentityToken(answer.secret),
            _ => Credential::Password { username: answer.username, password: answer.secret },
        }))
    }

    /// Runs `docker-credential-HELPER VERB` with `input` on its standard input.
    async fn run_helper(
        &self,
        helper: &str,
        verb: &str,
        input: &[u8],
    ) -> Result<Vec<u8>, CredentialsError> {
        let failed =
            |reason: String| CredentialsError::Helper { helper: helper.to_owned(), reason };
        if helper.contains('/') {
            return Err(failed("its name must not contain `/`".into()));
        }
        let name = format!("docker-credential-{helper}");
        let program = self.helper_folder.as_ref().map_or_else(|| (&name).into(), |f| f.join(&name));
        let mut child = tokio::process::Command::new(program)
            .arg(verb)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(|e| failed(format!("cannot be run: {e}")))?;
        let mut stdin = child.stdin.take().expect("stdin is a pipe");
        let talk = async {
            // A helper that does not read its input closes the pipe; its answer tells the rest.
            let _ = stdin.write_all(input).await;
            drop(stdin);
            child.wait_with_output().await
        };
        let output = tokio::time::timeout(self.helper_patience, talk)
            .await
            .map_err(|_| failed(format!("no answer within {} s", self.helper_patience.as_secs())))?
            .map_err(|e| failed(e.to_string()))?;
        if output.status.success() {
            return Ok(output.stdout);
        }
        let said = [output.stdout, output.stderr].concat();
        Err(failed(String::from_utf8_lossy(&said).trim().chars().take(300).collect()))
    }
}

fn helper_for(file: &ConfigFile, host: &str) -> Option<String> {
    let own = keys(host, "").into_iter().find_map(|key| file.helper(&key).cloned());
    own.or_else(|| file.creds_store.clone()).filter(|helper| !helper.is_empty())
}

/// Under which names the credentials of a host are kept, the one to write under first. Docker
/// keeps those of Docker Hub under the address of its first protocol; podman keeps some under a
/// repository or a namespace.
fn keys(host: &str, repository: &str) -> Vec<String> {
    let hub = matches!(host, "docker.io" | "index.docker.io" | "registry-1.docker.io");
    let mut keys = Vec::new();
    let name = if hub { "docker.io" } else { host };
    let mut path = repository;
    while !path.is_empty() {
        keys.push(format!("{name}/{path}"));
        path = path.rsplit_once('/').map_or("", |(parent, _)| parent);
    }
    if hub {
        keys.extend(
            ["https://index.docker.io/v1/", "docker.io", "index.docker.io"].map(Into::into),
        );
        keys.extend(["registry-1.docker.io", "https://registry-1.docker.io"].map(Into::into));
    } else {
        keys.extend([host.to_owned(), format!("https://{host}"), format!("https://{host}/")]);
        keys.extend(["v1/", "v2/", "v1", "v2"].map(|path| format!("https://{host}/{path}")));
        keys.push(format!("http://{host}"));
    }
    keys
}

/// The credential under `key` in `auths`, if it has one.
fn decode(
    path: &Path,
    file: &ConfigFile,
    key: &str,
) -> Result<Option<Credential>, CredentialsError> {
    let Some(entry) = file.entry(key) else { return Ok(None) };
    let only = serde_json::json!({ "auths": { key: entry } }).to_string();
    match get_credential_from_reader(only.as_bytes(), key) {
        Ok(DockerCredential::IdentityToken(token)) if token.is_empty() => Ok(None),
        Ok(DockerCredential::IdentityToken(token)) => Ok(Some(Credential::IdentityToken(token))),
        Ok(DockerCredential::UsernamePassword(username, password)) => {
            Ok(Some(Credential::Password { username, password }))
        }
        Err(CredentialRetrievalError::NoCredentialConfigured) => Ok(None),
        Err(e) => Err(CredentialsError::Syntax {
            path: path.to_owned(),
            reason: format!("the entry of `{key}`: {e}"),
        }),
    }
}

fn read(path: &Path) -> Result<Option<ConfigFile>, CredentialsError> {
    let text = match fs_err::read_to_string(path) {
        Ok(text) => text,
        Err(e) if matches!(e.kind(), std::io::ErrorKind::NotFound) => return Ok(None),
        Err(e) => return Err(e.into()),
    };
    if text.trim().is_empty() {
        return Ok(None);
    }
    serde_json::from_str(&text).map(Some).map_err(|e| syntax(path, &e))
}

/// Changes `auths` in the file at `path` and leaves the rest of it as it is. The file appears whole
/// or not at all, and only its owner can read it.
fn edit(
    path: &Path,
    change: impl FnOnce(&mut serde_json::Map<String, serde_json::Value>),
) -> Result<(), CredentialsError> {
    let mut whole = match fs_err::read_to_string(path) {
        Ok(text) if text.trim().is_empty() => serde_json::json!({}),
        Ok(text) => serde_json::from_str(&text).map_err(|e| syntax(path, &e))?,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => serde_json::json!({}),
        Err(e) => return Err(e.into()),
    };
    let wrong = || CredentialsError::Syntax {
        path: path.to_owned(),
        reason: "it is not an object with an object `auths`".to_owned(),
    };
    let object = whole.as_object_mut().ok_or_else(wrong)?;
    let auths = object.entry("auths").or_insert(serde_json::Value::Null);
    if auths.is_null() {
        *auths = serde_json::json!({});
    }
    change(auths.as_object_mut().ok_or_else(wrong)?);

    // A link (to a dotfiles folder) stays a link, also when nothing is there yet.
    let target = match (fs_err::canonicalize(path), fs_err::read_link(path)) {
        (Ok(target), _) => target,
        (Err(_), Ok(target)) => path.parent().map_or_else(|| target.clone(), |f| f.join(&target)),
        (Err(_), Err(_)) => path.to_owned(),
    };
    let folder = target.parent().ok_or(CredentialsError::NoHome)?;
    fs_err::create_dir_all(folder)?;
    let mut file = tempfile::Builder::new().prefix(".config.json").tempfile_in(folder)?;
    let text = serde_json::to_string_pretty(&whole).expect("a JSON value is JSON");
    std::io::Write::write_all(&mut file, text.as_bytes())?;
    file.as_file().sync_all()?;
    file.persist(&target).map_err(|e| e.error)?;
    Ok(())
}

fn syntax(path: &Path, error: &serde_json::Error) -> CredentialsError {
    CredentialsError::Syntax { path: path.to_owned(), reason: error.to_string() }
}

fn encode(text: &str) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn credentials(text: &str) -> (tempfile::TempDir, Credentials) {
        let folder = tempfile::tempdir().unwrap();
        fs_err::write(folder.path().join("config.json"), text).unwrap();
        let settings = RegistrySettings {
            docker_config: Some(folder.path().to_owned()),
            helper_patience: Duration::from_millis(200),
            ..RegistrySettings::default()
        };
        (folder, Credentials::new(&settings))
    }

    fn password(username: &str, password: &str) -> Credential {
        Credential::Password { username: username.into(), password: password.into() }
    }

    #[tokio::test]
    async fn finds_what_docker_and_podman_wrote() {
        let text = format!(
            r#"{{"auths": {{
                "https://index.docker.io/v1/": {{"auth": "{}"}},
                "a.example": {{"auth": "{}"}},
                "a.example/team": {{"auth": "{}"}},
                "https://b.example/v1/": {{"auth": "{}"}},
                "c.example": {{"auth": "{}", "identitytoken": "refresh"}},
                "d.example": {{}}
            }}}}"#,
            encode("hub:1"),
            encode("a:2:3"),
            encode("team:4"),
            encode("b:5"),
            encode("<token>:"),
        );
        let (_folder, credentials) = credentials(&text);
        let check = async |host: &str, repository: &str, expected: Option<Credential>| {
            assert_eq!(credentials.find(host, repository).await.unwrap(), expected, "{host}");
        };
        check("registry-1.docker.io", "library/debian", Some(password("hub", "1"))).await;
        check("a.example", "other/x", Some(password("a", "2:3"))).await;
        check("a.example", "team/x", Some(password("team", "4"))).await;
        check("a.example:5000", "team/x", None).await;
        check("b.example", "x", Some(password("b", "5"))).await;
        check("c.example", "x", Some(Credential::IdentityToken("refresh".into()))).await;
        check("d.example", "x", None).await;
    }

    #[tokio::test]
    async fn keeps_and_forgets_without_touching_the_rest() {
        let (folder, credentials) = credentials(r#"{"psFormat": "x", "auths": {"z": {}}}"#);
        credentials.store("a:5000", &password("me", "secret")).await.unwrap();
        let stored = credentials.find("a:5000", "any").await.unwrap();
        assert_eq!(stored, Some(password("me", "secret")));
        let path = folder.path().join("config.json");
        let mode = std::os::unix::fs::PermissionsExt::mode(
            &fs_err::metadata(&path).unwrap().permissions(),
        );
        assert_eq!(mode & 0o777, 0o600);
        assert!(credentials.erase("a:5000").await.unwrap());
        assert!(!credentials.erase("a:5000").await.unwrap());
        let text = fs_err::read_to_string(&path).unwrap();
        let json: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(json, serde_json::json!({"psFormat": "x", "auths": {"z": {}}}));
    }

    #[tokio::test]
    async fn a_link_stays_a_link() {
        let (folder, credentials) = credentials("");
        let path = folder.path().join("config.json");
        fs_err::remove_file(&path).unwrap();
        fs_err::os::unix::fs::symlink("dotfiles/docker.json", &path).unwrap();
        for host in ["a", "b"] {
            credentials.store(host, &password("me", "secret")).await.unwrap();
            assert!(fs_err::symlink_metadata(&path).unwrap().is_symlink(), "{host}");
            assert!(credentials.find(host, "x").await.unwrap().is_some());
        }
    }

    #[tokio::test]
    async fn null_is_nothing() {
        let text = r#"{"auths": null, "credHelpers": null, "credsStore": null}"#;
        let (_folder, credentials) = credentials(text);
        assert_eq!(credentials.find("a", "x").await.unwrap(), None);
        assert!(!credentials.erase("a").await.unwrap());
        credentials.store("a", &password("me", "secret")).await.unwrap();
        assert_eq!(credentials.find("a", "x").await.unwrap(), Some(password("me", "secret")));
    }

    #[tokio::test]
    async fn a_missing_helper_is_named() {
        let (_folder, credentials) = credentials(r#"{"credHelpers": {"a": "rbuild-none"}}"#);
        let error = credentials.find("a", "x").await.unwrap_err().to_string();
        assert!(error.contains("`docker-credential-rbuild-none`: cannot be run"), "{error}");
        assert_eq!(credentials.find("b", "x").await.unwrap(), None);
    }

    #[test]
    fn credentials_do_not_print_themselves() {
        let shown = format!(
            "{:?}",
            [password("me", "secret"), Credential::IdentityToken("secret".into()),]
        );
        assert!(!shown.contains("secret"), "{shown}");
    }
}
