//! Authorization: the answer to a registry's challenge, and tokens until they expire.
//!
//! A password or refresh token goes to the token service that the registry names only if
//! that is reached as safely as the registry itself (CVE-2026-48978): by TLS unless the
//! registry has none, and at no address near us unless the registry is near us too.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine as _;
use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue};
use http::{Method, StatusCode, Uri};
use serde::Deserialize;

use super::challenge::{self, Challenge};
use super::client::{Answer, Ask, Http};
use super::connect::Lane;
use super::credentials::{Credential, Secret};
use super::failure::{Act, Failure};
use super::mirrors::Host;
use super::url::{self, Origin, Reach, encode};
use crate::digest::Digest;

/// The least time that a token is good for, as the distribution spec has it.
const LEAST_LIFE: Duration = Duration::from_secs(60);
/// The longest time that we believe in a token.
const LONGEST_LIFE: Duration = Duration::from_secs(3600);
/// Tokens that are kept, of all registries and users.
const MOST_TOKENS: usize = 256;

/// Tokens by registry, repository and credential. The credential is part of the key, so
/// that nobody pulls with what another has proved.
#[derive(Default)]
pub(crate) struct Tokens(Mutex<HashMap<Key, Token>>);

#[derive(PartialEq, Eq, Hash, Clone)]
struct Key {
    registry: Origin,
    repository: String,
    credential: Digest,
}

#[derive(Clone)]
struct Token {
    header: HeaderValue,
    until: Instant,
}

impl Tokens {
    fn get(&self, key: &Key) -> Option<HeaderValue> {
        let tokens = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        tokens
            .get(key)
            .filter(|token| token.until > Instant::now())
            .map(|token| token.header.clone())
    }

    fn put(&self, key: Key, token: Token) {
        let mut tokens = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if tokens.len() >= MOST_TOKENS {
            let now = Instant::now();
            tokens.retain(|_, token| token.until > now);
        }
        if tokens.len() >= MOST_TOKENS {
            tokens.clear();
        }
        tokens.insert(key, token);
    }
}

/// One registry host in the course of one pull.
pub(crate) struct Access<'a> {
    pub(crate) http: &'a Http,
    pub(crate) tokens: &'a Tokens,
    pub(crate) host: &'a Host,
    pub(crate) repository: &'a str,
    /// What this host may see.
    pub(crate) credential: &'a Credential,
    pub(crate) state: &'a State,
}

/// What a pull has learnt about a host.
#[derive(Default)]
pub(crate) struct State {
    /// Whether it wants user and password with each request.
    basic: std::sync::atomic::AtomicBool,
    /// Held while a token is fetched, for layers find out all at once that theirs has expired.
    fetching: tokio::sync::Mutex<()>,
}

/// A request below the API of a registry.
pub(crate) struct Get<'a> {
    pub(crate) method: Method,
    pub(crate) uri: &'a Uri,
    pub(crate) headers: HeaderMap,
    pub(crate) lane: Lane,
}

/// Sends a request with what the registry wants to see, and finds out what that is.
pub(crate) async fn send(access: &Access<'_>, get: &Get<'_>) -> Result<Answer, Failure> {
    let mut fresh = false;
    loop {
        let authorization = authorization(access);
        let mut private: HeaderMap = access.host.headers.iter().cloned().collect();
        if let Some(value) = &authorization {
            private.insert(AUTHORIZATION, value.clone());
        }
        let answer = access.http.send(Ask {
            method: get.method.clone(),
            uri: get.uri.clone(),
            headers: get.headers.clone(),
            private,
            body: Bytes::new(),
            tls: &access.host.tls,
            dial_timeout: access.host.dial_timeout,
            lane: get.lane,
            reach: Reach::Any,
        });
        let answer = answer.await?;
        if answer.status() != StatusCode::UNAUTHORIZED || !answer.is_own {
            return Ok(answer);
        }
        match challenge::pick(answer.response.headers()) {
            _ if fixed(access) => return Err(denied(access, answer, "").await),
            Err(schemes) => {
                let more = format!("; it asks for {schemes}, and only Bearer and Basic are known");
                return Err(denied(access, answer, &more).await);
            }
            Ok(Challenge::Basic) => {
                let basic = &access.state.basic;
                let sent = basic.swap(true, std::sync::atomic::Ordering::Relaxed);
                if sent || !matches!(access.credential, Credential::Basic { .. }) {
                    return Err(denied(access, answer, "").await);
                }
            }
            Ok(Challenge::Bearer { realm, service, scope, error }) => {
                if fresh {
                    let more = error.map_or(String::new(), |error| {
                        format!("; the token does not do: {}", crate::error::shown(&error, 100))
                    });
                    return Err(denied(access, answer, &more).await);
                }
                let wanted = Wanted { realm, service, scope };
                renew(access, &wanted, authorization.as_ref(), answer.is_local).await?;
                fresh = true;
            }
        }
    }
}

/// What is known to be wanted before the registry says so.
fn authorization(access: &Access<'_>) -> Option<HeaderValue> {
    if own_authorization(access) {
        return None;
    }
    match access.credential {
        Credential::RegistryToken(token) => bearer(token.expose()),
        Credential::Basic { username, password }
            if access.state.basic.load(std::sync::atomic::Ordering::Relaxed) =>
        {
            Some(basic(username, password))
        }
        Credential::Anonymous | Credential::Basic { .. } | Credential::IdentityToken(_) => {
            access.tokens.get(&key(access))
        }
    }
}

fn own_authorization(access: &Access<'_>) -> bool {
    access.host.headers.iter().any(|(name, _)| name == AUTHORIZATION)
}

/// Whether nothing else than what was sent can be sent.
fn fixed(access: &Access<'_>) -> bool {
    own_authorization(access) || matches!(access.credential, Credential::RegistryToken(_))
}

async fn denied(access: &Access<'_>, answer: Answer, more: &str) -> Failure {
    let sent = if own_authorization(access) {
        "the Authorization header of its hosts.toml".to_owned()
    } else {
        access.credential.describe()
    };
    answer.into_failure(&access.http.limits, &format!("{more}; sent {sent}")).await
}

fn key(access: &Access<'_>) -> Key {
    let parts = match access.credential {
        Credential::Anonymous => ["", "", ""],
        Credential::Basic { username, password } => ["basic", username, password.expose()],
        Credential::IdentityToken(token) => ["identity", "", token.expose()],
        Credential::RegistryToken(token) => ["token", "", token.expose()],
    };
    Key {
        registry: access.host.base.origin.clone(),
        repository: access.repository.to_owned(),
        credential: Digest::of(parts.join("\0").as_bytes()),
    }
}

fn basic(username: &str, password: &Secret) -> HeaderValue {
    let pair = format!("{username}:{}", password.expose());
    let text = format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(pair));
    let mut value = HeaderValue::from_str(&text).expect("base64 is fit for a header");
    value.set_sensitive(true);
    value
}

fn bearer(token: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(&format!("Bearer {token}")).ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// What a challenge asks for.
struct Wanted {
    realm: String,
    service: Option<String>,
    scope: Option<String>,
}

/// Fetches a token, unless another request of the pull has just done so.
async fn renew(
    access: &Access<'_>,
    wanted: &Wanted,
    failed: Option<&HeaderValue>,
    is_local: bool,
) -> Result<(), Failure> {
    // A tokio mutex, for it is held over the request: the others shall wait for its token.
    let _fetching = access.state.fetching.lock().await;
    let key = key(access);
    if access.tokens.get(&key).is_some_and(|token| Some(&token) != failed) {
        return Ok(());
    }
    let token = fetch(access, wanted, is_local).await?;
    access.tokens.put(key, token);
    Ok(())
}

#[derive(Deserialize)]
struct TokenBody {
    token: Option<String>,
    access_token: Option<String>,
    expires_in: Option<f64>,
}

async fn fetch(access: &Access<'_>, wanted: &Wanted, is_local: bool) -> Result<Token, Failure> {
    let (uri, reach) = realm(access, &wanted.realm, is_local)?;
    let scope = wanted.scope.clone();
    let scope = scope.unwrap_or_else(|| format!("repository:{}:pull", access.repository));
    let mut fields = vec![("client_id", "berth")];
    fields.extend(wanted.service.as_deref().map(|service| ("service", service)));
    let mut ask = Ask {
        method: Method::GET,
        uri,
        headers: HeaderMap::new(),
        private: HeaderMap::new(),
        body: Bytes::new(),
        tls: &access.host.tls,
        dial_timeout: access.host.dial_timeout,
        lane: Lane::Shared,
        reach,
    };
    if let Credential::IdentityToken(token) = access.credential {
        fields.push(("grant_type", "refresh_token"));
        fields.extend([("refresh_token", token.expose()), ("scope", &scope)]);
        let form = HeaderValue::from_static("application/x-www-form-urlencoded");
        ask.method = Method::POST;
        ask.headers.insert(CONTENT_TYPE, form);
        ask.body = Bytes::from(encode(&fields));
    } else {
        // Docker's service takes several scopes as several fields.
        fields.extend(scope.split_whitespace().map(|scope| ("scope", scope)));
        if let Credential::Basic { username, password } = access.credential {
            fields.push(("account", username));
            ask.private.insert(AUTHORIZATION, basic(username, password));
        }
        ask.uri = with_query(&ask.uri, &encode(&fields)).ok_or_else(|| {
            let came = "its challenge is too long for a URL";
            Failure::new(Act::Bad, &access.host.base.to_string(), came)
        })?;
    }
    // The certificate and the leave to skip verification are the registry's alone.
    let strangers = access.host.tls.for_others();
    let realm = Origin::of(&ask.uri);
    if realm.is_some_and(|realm| realm.host != access.host.base.origin.host) {
        ask.tls = &strangers;
    }
    let answer = access.http.send(ask).await?;
    if !answer.status().is_success() {
        let more = format!("; sent {}", access.credential.describe());
        let failure = answer.into_failure(&access.http.limits, &more).await;
        // Services say "bad request" to a refresh token that has expired, and "not found" to strangers.
        let is_refusal = matches!(failure.act, Act::Bad | Act::NotFound);
        return Err(if is_refusal { Failure { act: Act::Denied, ..failure } } else { failure });
    }
    let request = answer.request.clone();
    let limits = &access.http.limits;
    let body = answer.document(limits.token_bytes.0, "token_bytes", limits).await?;
    read_token(&body).map_err(|problem| Failure::new(Act::Bad, &request, problem))
}

/// The URL of the token service, if the registry may name it.
fn realm(access: &Access<'_>, text: &str, is_local: bool) -> Result<(Uri, Reach), Failure> {
    let registry = &access.host.base.origin;
    let bad = |problem: &str| {
        let came = format!("its token service {} {problem}", crate::error::quoted(text, 200));
        Failure::new(Act::Bad, &access.host.base.to_string(), came)
    };
    let uri = url::parse(text).ok_or_else(|| bad("is no URL"))?;
    let origin = Origin::of(&uri).ok_or_else(|| bad("is no absolute http or https URL"))?;
    if uri.authority().is_some_and(|authority| authority.as_str().contains('@')) {
        return Err(bad("must not have a user in its URL"));
    }
    if registry.is_tls && !origin.is_tls {
        return Err(bad("must be https, as the registry is"));
    }
    let reach = match (origin.host == registry.host, is_local) {
        (true, _) => Reach::Any,
        (false, true) => Reach::NotLinkLocal,
        (false, false) => Reach::Remote,
    };
    let address = if origin.host == "localhost" {
        Some(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST))
    } else {
        origin.address()
    };
    if let Some(reason) = address.and_then(|address| reach.refuses(address)) {
        return Err(bad(&format!("is at {reason}")));
    }
    Ok((uri, reach))
}

fn read_token(body: &[u8]) -> Result<Token, &'static str> {
    let body: TokenBody =
        serde_json::from_slice(body).map_err(|_| "the answer is no JSON with a token")?;
    let present = |token: Option<String>| token.filter(|token| !token.is_empty());
    let token =
        present(body.token).or(present(body.access_token)).ok_or("the answer holds no token")?;
    let header = bearer(&token).ok_or("the token has characters that no header can hold")?;
    let life = body.expires_in.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    let life = life.unwrap_or(LEAST_LIFE).clamp(LEAST_LIFE, LONGEST_LIFE);
    // Clocks differ and requests take time: a token is given up a little before its end.
    Ok(Token { header, until: Instant::now() + life - (life / 10).min(Duration::from_secs(30)) })
}

/// Adds fields to the query that a realm may already have; nothing if that gets too long.
fn with_query(uri: &Uri, query: &str) -> Option<Uri> {
    let joint = if uri.query().is_some() { '&' } else { '?' };
    url::parse(&format!("{uri}{joint}{query}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::connect::ProxySettings;
    use crate::registry::hosts_file::Capabilities;
    use crate::registry::tls::Material;
    use crate::registry::url::Base;

    /// Expects the reach of the realm, or the text of the refusal.
    #[track_caller]
    fn check_realm(registry: &str, realm_text: &str, is_local: bool, expected: &str) {
        let http = Http::new(crate::Limits::default(), ProxySettings::default().matcher());
        let host = Host {
            base: Base::parse(registry, false).unwrap(),
            capabilities: Capabilities::ALL,
            headers: Vec::new(),
            tls: Material::default(),
            dial_timeout: None,
            is_upstream: true,
        };
        let access = Access {
            http: &http,
            tokens: &Tokens::default(),
            host: &host,
            repository: "a/b",
            credential: &Credential::Anonymous,
            state: &State::default(),
        };
        let found = match realm(&access, realm_text, is_local) {
            Ok((_, reach)) => format!("{reach:?}"),
            Err(failure) => failure.text,
        };
        assert_eq!(found, expected);
    }

    /// F-03.
    #[test]
    fn a_realm_must_be_as_safe_as_its_registry() {
        let registry = "https://r.io";
        let refused = |realm: &str, problem: &str| {
            check_realm(
                registry,
                realm,
                false,
                &format!("https://r.io/v2: its token service {realm:?} {problem}"),
            );
        };
        check_realm(registry, "https://auth.io/token", false, "Remote");
        check_realm(registry, "https://r.io:5001/token", false, "Any");
        refused("http://auth.io/token", "must be https, as the registry is");
        refused("https://169.254.169.254/x", "is at a link-local or metadata address");
        refused("https://[::ffff:169.254.169.254]/x", "is at a link-local or metadata address");
        refused(
            "https://127.0.0.1/x",
            "is at an address of this machine, and the registry is another one",
        );
        refused(
            "https://localhost/x",
            "is at an address of this machine, and the registry is another one",
        );
        refused("https://u:p@auth.io/", "must not have a user in its URL");
        refused("/token", "is no absolute http or https URL");
        refused("file:///etc/passwd", "is no URL");
        check_realm("http://10.0.0.1", "http://10.0.0.2/token", false, "Remote");
        check_realm("http://127.0.0.1:5000", "http://127.0.0.1:5001/token", true, "Any");
        check_realm("http://localhost:5000", "http://127.0.0.1:5001/token", true, "NotLinkLocal");
        check_realm(
            "http://localhost:5000",
            "http://169.254.1.1/",
            true,
            "http://localhost:5000/v2: its token service \"http://169.254.1.1/\" is at a link-local or metadata address",
        );
    }

    #[track_caller]
    fn check_token(body: &str, expected: Result<(&str, u64), &str>) {
        let now = Instant::now();
        let found = read_token(body.as_bytes()).map(|token| {
            assert!(token.header.is_sensitive());
            let header = token.header.to_str().unwrap().to_owned();
            // Rounded, for some of the time has passed already.
            (header, (token.until - now + Duration::from_millis(500)).as_secs())
        });
        assert_eq!(found, expected.map(|(header, life)| (header.to_owned(), life)));
    }

    #[test]
    fn tokens_come_under_two_names_and_with_all_kinds_of_lives() {
        check_token(r#"{"token":"a"}"#, Ok(("Bearer a", 54)));
        check_token(r#"{"access_token":"b","expires_in":300}"#, Ok(("Bearer b", 270)));
        check_token(r#"{"token":"","access_token":"b","expires_in":1}"#, Ok(("Bearer b", 54)));
        check_token(r#"{"token":"a","expires_in":1e300}"#, Ok(("Bearer a", 54)));
        check_token(r#"{"token":"a","expires_in":-5}"#, Ok(("Bearer a", 54)));
        check_token(r#"{"token":"a","expires_in":999999}"#, Ok(("Bearer a", 3570)));
        check_token("{}", Err("the answer holds no token"));
        check_token("<html>", Err("the answer is no JSON with a token"));
        check_token(
            r#"{"token":"a\r\nX: y"}"#,
            Err("the token has characters that no header can hold"),
        );
    }

    #[test]
    fn a_realm_keeps_its_own_query() {
        let check = |uri: &str, query: &str| {
            with_query(&uri.parse().unwrap(), query).map(|uri| uri.to_string())
        };
        assert_eq!(check("https://r/t", "a=b").as_deref(), Some("https://r/t?a=b"));
        assert_eq!(check("https://r/t?x=y", "a=b").as_deref(), Some("https://r/t?x=y&a=b"));
        assert_eq!(check("https://r/t", &"a".repeat(100_000)), None);
    }
}
