//! Proving to a registry who asks: nothing, a password, or a token of its token service
//! (distribution's `docs/spec/auth/{token,oauth}.md`).
//!
//! A host is challenged once and a token fetched once per set of scopes, however many ask at the
//! same time. Tokens are renewed shortly before they end, and when the host says that they ended.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http_auth::ChallengeRef;
use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderValue, WWW_AUTHENTICATE};
use reqwest::{Method, Request, Response};
use serde::Deserialize;
use tokio::sync::OnceCell;
use tokio::time::Instant;
use url::Url;

use super::clients::{self, Clients, SILENCE, Sent};
use super::credentials::{Credential, Credentials};
use super::error::Cause;
use super::hosts::{self, Endpoint, Hosts};
use super::proxy;
use super::retry::{Patience, retry_after};
use super::transport;

/// How long an answer of a token service may be, in bytes.
const LONGEST_ANSWER: u64 = 1 << 20;

/// What a request wants to do with a repository.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Scope {
    /// The repository's name at the host.
    pub repository: String,
    /// Whether writing is wanted too.
    pub push: bool,
}

impl Scope {
    /// Reading from `repository`.
    pub fn pull(repository: &str) -> Self {
        Self { repository: repository.to_owned(), push: false }
    }

    /// Reading from and writing to `repository`.
    pub fn push(repository: &str) -> Self {
        Self { repository: repository.to_owned(), push: true }
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let actions = if self.push { "pull,push" } else { "pull" };
        write!(f, "repository:{}:{actions}", self.repository)
    }
}

/// Knows how each host wants to be asked, and what to show it.
#[derive(Debug)]
pub struct Authenticator {
    credentials: Credentials,
    patience: Duration,
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    /// What a host asked for.
    challenges: HashMap<String, Challenge>,
    /// By host and repository: helpers are not run twice.
    credentials: HashMap<(String, String), Arc<OnceCell<Option<Credential>>>>,
    tokens: HashMap<TokenKey, Arc<OnceCell<Token>>>,
}

/// For which host and for what a token is.
type TokenKey = (String, Vec<Scope>);

#[derive(Clone, Debug)]
enum Challenge {
    Basic,
    Bearer { realm: Url, service: Option<String>, scopes: BTreeSet<String> },
}

#[derive(Clone)]
struct Token {
    header: HeaderValue,
    until: Instant,
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Token").field("until", &self.until).finish_non_exhaustive()
    }
}

#[derive(Deserialize)]
struct TokenAnswer {
    token: Option<String>,
    access_token: Option<String>,
    expires_in: Option<u64>,
    refresh_token: Option<String>,
}

impl Authenticator {
    /// Knows nothing yet but where credentials are.
    pub fn new(credentials: Credentials, patience: Duration) -> Self {
        Self { credentials, patience, known: Mutex::default() }
    }

    /// Takes `credential` for everything at `host`, whatever the files say (`login`).
    pub fn preset(&self, host: &str, credential: Credential) {
        let cell = Arc::new(OnceCell::new_with(Some(Some(credential))));
        self.known().credentials.insert((host.to_owned(), String::new()), cell);
    }

    /// The `Authorization` header for a request; none as long as the host did not ask for one.
    pub async fn authorization(
        &self,
        clients: &Clients,
        hosts: &Hosts,
        endpoint: &Endpoint,
        scopes: &[Scope],
    ) -> Result<Option<HeaderValue>, Cause> {
        let Some(challenge) = self.known().challenges.get(&endpoint.host).cloned() else {
            return Ok(None);
        };
        let repository = scopes.first().map_or("", |scope| &scope.repository);
        match challenge {
            Challenge::Basic => match self.credential(&endpoint.host, repository).await? {
                Some(Credential::Password { username, password }) => {
                    Ok(Some(basic(&username, &password)))
                }
                Some(Credential::IdentityToken(_)) | None => Ok(None),
            },
            Challenge::Bearer { realm, service, scopes: mut wanted } => {
                wanted.extend(scopes.iter().map(Scope::to_string));
                let wanted: Vec<String> = without_the_lesser(&wanted);
                let cell = self.token_cell(&endpoint.host, scopes);
                let token = cell
                    .get_or_try_init(|| async {
                        let credential = self.credential(&endpoint.host, repository).await?;
                        let request =
                            TokenRequest { realm: &realm, service: service.as_deref(), wanted };
                        let (token, _) =
                            self.fetch_token(clients, hosts, request, credential).await?;
                        Ok::<_, Cause>(token)
                    })
                    .await?;
                Ok(Some(token.header.clone()))
            }
        }
    }

    /// Learns from an answer 401 what the host wants. `shown` is the header that it refused.
    ///
    /// # Errors
    /// When there is nothing else to show it.
    pub async fn learn(
        &self,
        endpoint: &Endpoint,
        scopes: &[Scope],
        headers: &HeaderMap,
        shown: Option<&HeaderValue>,
    ) -> Result<(), Cause> {
        let challenge = challenge_in(headers).ok_or_else(|| {
            Cause::Protocol("it answers 401 and does not say how to log in".to_owned())
        })?;
        let host = &endpoint.host;
        if let Challenge::Basic = challenge {
            let repository = scopes.first().map_or("", |scope| &scope.repository);
            let credential = self.credential(host, repository).await?;
            let usable = matches!(credential, Some(Credential::Password { .. }));
            if shown.is_some() || !usable {
                let detail = "it asks for a user name and a password".to_owned();
                return Err(Cause::Denied { detail, offered: offered(credential.as_ref()) });
            }
        }
        let mut known = self.known();
        if let Some(shown) = shown {
            let key = (host.clone(), scopes.to_vec());
            let refused = known.tokens.get(&key).and_then(|cell| cell.get());
            if refused.is_some_and(|token| token.header == shown) {
                known.tokens.remove(&key);
            }
        }
        known.challenges.insert(host.clone(), challenge);
        Ok(())
    }

    /// What the user shows to `host`, for messages: never the secret itself.
    pub async fn offered(&self, host: &str, scopes: &[Scope]) -> String {
        let repository = scopes.first().map_or("", |scope| &scope.repository);
        offered(self.credential(host, repository).await.ok().flatten().as_ref())
    }

    /// Logs in at the token service that `host` named with `credential`: its identity token, if it
    /// gives one.
    pub async fn identity_token(
        &self,
        clients: &Clients,
        hosts: &Hosts,
        host: &str,
        credential: &Credential,
    ) -> Result<Option<String>, Cause> {
        let challenge = self.known().challenges.get(host).cloned();
        let Some(Challenge::Bearer { realm, service, scopes }) = challenge else {
            return Ok(None);
        };
        let request = TokenRequest {
            realm: &realm,
            service: service.as_deref(),
            wanted: scopes.into_iter().collect(),
        };
        let (_, refresh) =
            self.fetch_token(clients, hosts, request, Some(credential.clone())).await?;
        Ok(refresh)
    }

    fn known(&self) -> std::sync::MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn credential(&self, host: &str, repository: &str) -> Result<Option<Credential>, Cause> {
        let cell = {
            let mut known = self.known();
            let preset = known.credentials.get(&(host.to_owned(), String::new())).cloned();
            preset.unwrap_or_else(|| {
                let key = (host.to_owned(), repository.to_owned());
                Arc::clone(known.credentials.entry(key).or_default())
            })
        };
        let found = cell.get_or_try_init(|| self.credentials.find(host, repository)).await?;
        Ok(found.clone())
    }

    /// The cell of the token for `scopes`; a new one when the old token is about to end.
    fn token_cell(&self, host: &str, scopes: &[Scope]) -> Arc<OnceCell<Token>> {
        let mut known = self.known();
        let cell = known.tokens.entry((host.to_owned(), scopes.to_vec())).or_default();
        if cell.get().is_some_and(|token| token.until <= Instant::now()) {
            *cell = Arc::default();
        }
        Arc::clone(cell)
    }

    async fn fetch_token(
        &self,
        clients: &Clients,
        configured: &Hosts,
        request: TokenRequest<'_>,
        credential: Option<Credential>,
    ) -> Result<(Token, Option<String>), Cause> {
        let refused = |detail: String| Cause::Token { realm: request.shown(), detail };
        let host = transport::host_of(request.realm)
            .ok_or_else(|| refused("its address has no host".to_owned()))?;
        let secure =
            request.realm.scheme() == "https" || proxy::is_loopback(hosts::host_name(&host));
        if credential.is_some() && !secure {
            return Err(refused("it wants the password without TLS".to_owned()));
        }
        let scheme = transport::scheme_for(request.realm, &host, configured);
        let client = clients.client(&host, scheme, configured.own(&host))?;
        let mut patience = Patience::new(self.patience / 2);
        loop {
            let begun = Instant::now();
            let silence = SILENCE.min(patience.left());
            let sent = Sent::default();
            let outcome =
                clients::exchange(&client, request.build(credential.as_ref()), silence, &sent)
                    .await;
            patience.spend(begun.elapsed());
            let (again, asked, unreachable) = match outcome {
                Ok(response) if !transport::is_passing(response.status()) => {
                    return read_token(response, &request, credential.as_ref()).await;
                }
                Ok(response) => {
                    let status = format!("it answers {}", response.status());
                    (refused(status), retry_after(response.headers()), false)
                }
                Err(cause) if cause.is_transient() => {
                    let unreachable = matches!(cause, Cause::Unreachable(_));
                    (refused(cause.to_string()), None, unreachable)
                }
                Err(cause) => return Err(refused(cause.to_string())),
            };
            if !patience.pause(asked, unreachable).await {
                return Err(again);
            }
        }
    }
}

/// What a token service is asked.
struct TokenRequest<'a> {
    realm: &'a Url,
    service: Option<&'a str>,
    wanted: Vec<String>,
}

impl TokenRequest<'_> {
    /// With a refresh token, OAuth's form; otherwise the older GET, which every service knows.
    fn build(&self, credential: Option<&Credential>) -> Request {
        if let Some(Credential::IdentityToken(refresh)) = credential {
            let mut form = url::form_urlencoded::Serializer::new(String::new());
            form.append_pair("grant_type", "refresh_token").append_pair("client_id", "rbuild");
            form.append_pair("refresh_token", refresh);
            form.extend_pairs(self.service.map(|service| ("service", service)));
            form.append_pair("scope", &self.wanted.join(" "));
            let mut request = Request::new(Method::POST, self.realm.clone());
            let kind = HeaderValue::from_static("application/x-www-form-urlencoded");
            request.headers_mut().insert(reqwest::header::CONTENT_TYPE, kind);
            *request.body_mut() = Some(form.finish().into());
            return request;
        }
        let mut url = self.realm.clone();
        {
            let mut query = url.query_pairs_mut();
            query.extend_pairs(self.service.map(|service| ("service", service)));
            query.extend_pairs(self.wanted.iter().map(|scope| ("scope", scope)));
            if let Some(Credential::Password { username, .. }) = credential {
                query.append_pair("account", username).append_pair("client_id", "rbuild");
                query.append_pair("offline_token", "true");
            }
        }
        let mut request = Request::new(Method::GET, url);
        if let Some(Credential::Password { username, password }) = credential {
            request.headers_mut().insert(AUTHORIZATION, basic(username, password));
        }
        request
    }

    fn shown(&self) -> String {
        self.realm.to_string()
    }
}

async fn read_token(
    response: Response,
    request: &TokenRequest<'_>,
    credential: Option<&Credential>,
) -> Result<(Token, Option<String>), Cause> {
    let refused = |detail: String| Cause::Token { realm: request.shown(), detail };
    let status = response.status();
    if !status.is_success() {
        let said = transport::said(response).await;
        let offered = offered(credential);
        return Err(refused(format!("it answers {status}{said}; {offered}")));
    }
    let body = transport::read_body(response, LONGEST_ANSWER, SILENCE).await?;
    let answer: TokenAnswer = serde_json::from_slice(&body)
        .map_err(|e| refused(format!("its answer is no token: line {}", e.line())))?;
    let token = answer
        .token
        .or(answer.access_token)
        .filter(|token| !token.is_empty())
        .ok_or_else(|| refused("its answer holds no token".to_owned()))?;
    let mut header = HeaderValue::try_from(format!("Bearer {token}"))
        .map_err(|_| refused("its token cannot stand in a header".to_owned()))?;
    header.set_sensitive(true);
    // "For compatibility with older clients, a token should never be returned with less than 60
    // seconds to live": what is absent is 60.
    let lives = Duration::from_secs(answer.expires_in.unwrap_or(60).min(86_400));
    let margin = (lives / 4).min(Duration::from_secs(10));
    Ok((
        Token { header, until: Instant::now() + lives.saturating_sub(margin) },
        answer.refresh_token,
    ))
}

/// The strongest challenge that we can meet: a token rather than a password.
fn challenge_in(headers: &HeaderMap) -> Option<Challenge> {
    let values: Vec<&str> =
        headers.get_all(WWW_AUTHENTICATE).iter().filter_map(|value| value.to_str().ok()).collect();
    let parsed: Vec<ChallengeRef<'_>> = values
        .iter()
        .filter_map(|value| http_auth::parse_challenges(value).ok())
        .flatten()
        .collect();
    let bearer = parsed.iter().filter(|c| c.scheme.eq_ignore_ascii_case("bearer")).find_map(|c| {
        let parameter = |name: &str| {
            let found = c.params.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
            found.map(|(_, value)| value.to_unescaped())
        };
        let realm = Url::parse(&parameter("realm")?).ok()?;
        let realm = matches!(realm.scheme(), "http" | "https").then_some(realm)?;
        let scopes = parameter("scope").unwrap_or_default();
        let scopes = scopes.split_ascii_whitespace().map(str::to_owned).collect();
        Some(Challenge::Bearer { realm, service: parameter("service"), scopes })
    });
    let basic = || parsed.iter().any(|c| c.scheme.eq_ignore_ascii_case("basic"));
    bearer.or_else(|| basic().then_some(Challenge::Basic))
}

/// Leaves out `…:pull` where `…:pull,push` is wanted too.
fn without_the_lesser(scopes: &BTreeSet<String>) -> Vec<String> {
    let has_greater = |scope: &String| {
        scope.strip_suffix(":pull").is_some_and(|s| scopes.contains(&format!("{s}:pull,push")))
    };
    scopes.iter().filter(|scope| !has_greater(scope)).cloned().collect()
}

fn basic(username: &str, password: &str) -> HeaderValue {
    let mut header =
        HeaderValue::try_from(http_auth::basic::encode_credentials(username, password))
            .expect("base64 can stand in a header");
    header.set_sensitive(true);
    header
}

fn offered(credential: Option<&Credential>) -> String {
    match credential {
        None => "no credentials for it were found".to_owned(),
        Some(credential) => format!("rbuild showed {credential:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn challenge(values: &[&str]) -> Option<Challenge> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(WWW_AUTHENTICATE, value.parse().unwrap());
        }
        challenge_in(&headers)
    }

    #[test]
    fn reads_challenges() {
        let hub = "Bearer realm=\"https://auth.example/token\",service=\"registry.example\",\
                   scope=\"repository:a/b:pull,push repository:c:pull\"";
        let Some(Challenge::Bearer { realm, service, scopes }) = challenge(&[hub]) else {
            panic!("no bearer challenge");
        };
        assert_eq!(realm.as_str(), "https://auth.example/token");
        assert_eq!(service.as_deref(), Some("registry.example"));
        let scopes: Vec<_> = scopes.iter().map(String::as_str).collect();
        assert_eq!(scopes, ["repository:a/b:pull,push", "repository:c:pull"]);

        assert!(matches!(challenge(&["Basic realm=\"x\""]), Some(Challenge::Basic)));
        assert!(matches!(challenge(&["Basic realm=\"x\"", hub]), Some(Challenge::Bearer { .. })));
        assert!(challenge(&["Negotiate"]).is_none());
        assert!(challenge(&["Bearer realm=\"file:///etc/passwd\""]).is_none());
        assert!(challenge(&[]).is_none());
    }

    #[test]
    fn asks_for_the_greater_scope_only() {
        let scopes = [Scope::pull("a"), Scope::push("a"), Scope::pull("b")];
        let wanted = without_the_lesser(&scopes.iter().map(Scope::to_string).collect());
        assert_eq!(wanted, ["repository:a:pull,push", "repository:b:pull"]);
    }
}
