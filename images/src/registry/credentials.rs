//! Credentials: every form in which a client may send them, and which host may see them.

use std::fmt;

use base64::Engine as _;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};

use crate::error::{Error, Result, quoted, shown};

/// Real configurations hold base64 with and without padding.
const LENIENT: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true),
);

/// Text that no log, error or Debug print shows.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Secret(String);

impl Secret {
    /// Hides a text.
    pub fn new(text: impl Into<String>) -> Secret {
        Secret(text.into())
    }

    /// The text itself, for the one place that puts it on the wire.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_empty() { "none" } else { "hidden" })
    }
}

/// The `AuthConfig` of the CRI, field by field; docker's `config.json` has the same ones.
#[derive(Debug, Clone, Default)]
pub struct AuthConfig {
    /// The user, for basic authentication.
    pub username: String,
    /// The user's password.
    pub password: Secret,
    /// `user:password` in base64.
    pub auth: Secret,
    /// The registry that the rest is for; empty means the registry of the image.
    pub server_address: String,
    /// A refresh token, exchanged for a token of the registry.
    pub identity_token: Secret,
    /// A token of the registry, sent as it is.
    pub registry_token: Secret,
}

/// What proves who is asking.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Credential {
    Anonymous,
    Basic { username: String, password: Secret },
    IdentityToken(Secret),
    RegistryToken(Secret),
}

impl Credential {
    /// For a message: what kind was sent, without it.
    pub(crate) fn describe(&self) -> String {
        match self {
            Credential::Anonymous => "no credentials".to_owned(),
            Credential::Basic { username, .. } => {
                format!("the password of user {}", quoted(username, 60))
            }
            Credential::IdentityToken(_) => "an identity token".to_owned(),
            Credential::RegistryToken(_) => "a registry token".to_owned(),
        }
    }
}

/// A credential with the registry that it is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credentials {
    credential: Credential,
    /// `host[:port]`; nothing means the registry of the image.
    server: Option<String>,
}

impl Credentials {
    /// None at all.
    pub fn anonymous() -> Credentials {
        Credentials { credential: Credential::Anonymous, server: None }
    }

    /// A user and a password for the registry of the image.
    pub fn basic(username: impl Into<String>, password: impl Into<String>) -> Credentials {
        let password = Secret::new(password);
        Credentials {
            credential: Credential::Basic { username: username.into(), password },
            server: None,
        }
    }

    /// Takes the strongest form that a request fills in: a registry token, an identity
    /// token, user and password, then `auth`. All empty means anonymous.
    ///
    /// # Errors
    /// [`Error::Invalid`] for an `auth` that is not `user:password` in base64, or a `server_address` that names no host.
    pub fn new(auth: &AuthConfig) -> Result<Credentials> {
        let server = match auth.server_address.trim() {
            "" => None,
            address => Some(server_of(address).ok_or_else(|| {
                Error::invalid(
                    format!("auth.server_address {}", quoted(address, 100)),
                    "must be a host name with an optional port, scheme and path",
                )
            })?),
        };
        let credential = if !auth.registry_token.is_empty() {
            Credential::RegistryToken(auth.registry_token.clone())
        } else if !auth.identity_token.is_empty() {
            Credential::IdentityToken(auth.identity_token.clone())
        } else if !auth.username.is_empty() || !auth.password.is_empty() {
            user(&auth.username, auth.password.expose())
        } else if !auth.auth.is_empty() {
            decode(&auth.auth)?
        } else {
            Credential::Anonymous
        };
        Ok(Credentials { credential, server })
    }

    /// The credential, if a host may see it: the host that `server_address` names, else
    /// the registry of the image itself. A mirror sees nothing unless it is named.
    pub(crate) fn for_host(&self, host: &str, is_upstream: bool, registry: &str) -> &Credential {
        let sees = match &self.server {
            Some(server) => {
                server_of(host).as_deref() == Some(server)
                    // An upstream that hosts.toml moved elsewhere is still the registry of the image.
                    || (is_upstream && server_of(registry).as_deref() == Some(server))
            }
            None => is_upstream,
        };
        if sees { &self.credential } else { &Credential::Anonymous }
    }

    /// For a message: the kind, and whom it is for.
    pub fn describe(&self) -> String {
        match &self.server {
            Some(server) => format!("{} for {}", self.credential.describe(), shown(server, 100)),
            None => self.credential.describe(),
        }
    }
}

/// Docker writes `<token>` for the user where the password is an identity token.
fn user(username: &str, password: &str) -> Credential {
    let password = Secret::new(password);
    match username {
        "<token>" => Credential::IdentityToken(password),
        _ => Credential::Basic { username: username.to_owned(), password },
    }
}

fn decode(auth: &Secret) -> Result<Credential> {
    let invalid = || Error::invalid("auth", "must be base64 of user:password");
    let text: String = auth.expose().split_whitespace().collect();
    let bytes = LENIENT.decode(text).map_err(|_| invalid())?;
    let text = String::from_utf8(bytes).map_err(|_| invalid())?;
    let (username, password) = text.split_once(':').ok_or_else(invalid)?;
    // Docker's own padding: a client once filled the buffer up with zeros, and readers still cut them.
    Ok(user(username, password.trim_end_matches('\0')))
}

/// The host of any of the spellings that clients use: `r.io`, `r.io:443`, `https://r.io/v1/`.
/// The names of Docker Hub are one.
pub(crate) fn server_of(text: &str) -> Option<String> {
    let (scheme, rest) = match text.split_once("://") {
        Some((scheme, rest)) => (scheme.to_ascii_lowercase(), rest),
        None => (String::new(), text),
    };
    let host = rest.split(['/', '?', '#']).next()?.to_ascii_lowercase();
    let port = if scheme == "http" { ":80" } else { ":443" };
    let host = host.strip_suffix(port).unwrap_or(&host);
    if host.is_empty() || host.contains(|c: char| c.is_control() || c.is_whitespace() || c == '@') {
        return None;
    }
    Some(match host {
        "index.docker.io" | "registry-1.docker.io" => "docker.io".to_owned(),
        host => host.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn base64(text: &str) -> String {
        base64::engine::general_purpose::STANDARD.encode(text)
    }

    /// Expects what would go to the registry r.io, or the text of the error.
    #[track_caller]
    fn check(auth: AuthConfig, expected: &str) {
        let found = match Credentials::new(&auth) {
            Ok(credentials) => match credentials.for_host("r.io", true, "r.io") {
                Credential::Anonymous => "anonymous".to_owned(),
                Credential::Basic { username, password } => {
                    format!("basic {username} {}", password.expose())
                }
                Credential::IdentityToken(token) => format!("identity {}", token.expose()),
                Credential::RegistryToken(token) => format!("token {}", token.expose()),
            },
            Err(error) => error.to_string(),
        };
        assert_eq!(found, expected);
    }

    fn auth(text: &str) -> AuthConfig {
        AuthConfig { auth: Secret::new(text), ..AuthConfig::default() }
    }

    #[test]
    fn every_form_of_the_cri_is_understood() {
        let user = AuthConfig {
            username: "u".to_owned(),
            password: Secret::new("p:q"),
            ..AuthConfig::default()
        };
        check(AuthConfig::default(), "anonymous");
        check(user.clone(), "basic u p:q");
        check(
            AuthConfig { identity_token: Secret::new("refresh"), ..user.clone() },
            "identity refresh",
        );
        check(AuthConfig { registry_token: Secret::new("bearer"), ..user.clone() }, "token bearer");
        check(AuthConfig { username: "<token>".to_owned(), ..user }, "identity p:q");
        check(auth(&base64("u:p:q")), "basic u p:q");
        check(auth(&base64("u:p\0\0\0")), "basic u p");
        check(auth(&format!(" {}\n", base64("u:p"))), "basic u p");
        check(auth(base64("us:p").trim_end_matches('=')), "basic us p");
        check(auth(&base64("<token>:t")), "identity t");
        check(auth(&base64("u:")), "basic u ");
    }

    #[test]
    fn a_bad_auth_is_named_and_not_shown() {
        check(auth("§"), "auth: must be base64 of user:password");
        check(auth(&base64("no colon")), "auth: must be base64 of user:password");
    }

    #[track_caller]
    fn check_host(server_address: &str, host: &str, is_upstream: bool, registry: &str, sees: bool) {
        let credentials = Credentials::new(&AuthConfig {
            username: "u".to_owned(),
            server_address: server_address.to_owned(),
            ..AuthConfig::default()
        })
        .unwrap();
        let found = credentials.for_host(host, is_upstream, registry);
        assert_eq!(*found != Credential::Anonymous, sees);
    }

    #[test]
    fn only_the_right_host_sees_a_credential() {
        check_host("", "r.io", true, "r.io", true);
        check_host("", "mirror.io", false, "r.io", false);
        check_host("r.io", "r.io", true, "r.io", true);
        check_host("https://R.io/v2/", "r.io:443", true, "r.io", true);
        check_host("r.io", "r.io:5000", true, "r.io:5000", false);
        check_host("other.io", "r.io", true, "r.io", false);
        check_host("mirror.io", "mirror.io", false, "r.io", true);
        check_host("mirror.io", "r.io", true, "r.io", false);
        check_host("r.io", "moved.io", true, "r.io", true);
        for hub in ["docker.io", "index.docker.io", "https://index.docker.io/v1/"] {
            check_host(hub, "registry-1.docker.io", true, "docker.io", true);
            check_host(hub, "r.io", true, "r.io", false);
        }
    }

    #[test]
    fn a_server_address_must_name_a_host() {
        for address in ["https://", "/x", "a b", "user@r.io"] {
            let auth = AuthConfig { server_address: address.to_owned(), ..AuthConfig::default() };
            assert!(Credentials::new(&auth).is_err(), "{address}");
        }
    }

    #[test]
    fn no_debug_print_shows_a_secret() {
        let auth = AuthConfig {
            username: "u".to_owned(),
            password: Secret::new("hunter2"),
            auth: Secret::new("hunter2"),
            identity_token: Secret::new("hunter2"),
            registry_token: Secret::new("hunter2"),
            ..AuthConfig::default()
        };
        let credentials = Credentials::new(&auth).unwrap();
        let printed = format!("{auth:?} {credentials:?} {}", credentials.describe());
        assert!(!printed.contains("hunter2"), "{printed}");
        assert!(printed.contains("hidden"));
    }
}
