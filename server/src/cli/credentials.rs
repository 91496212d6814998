//! Credentials for registries from the user's docker configuration. The daemon reads no home
//! directory and runs no credential helper, so the client does, and sends what it finds.

use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use images::Reference;
use images::registry::docker_config::{Found, ask_helper, lookup};
use images::registry::{AuthConfig, Secret};
use proto::control::RegistryAuth;

use super::failure::Failure;
use crate::blocking;
use crate::error::{Error, Result, chain};

/// A helper may wait for somebody to unlock a key ring.
const HELPER_DEADLINE: Duration = Duration::from_secs(60);
/// Such a file has an entry for each registry, and some settings.
const MAX_FILE: u64 = 1 << 20;

/// What there is for an image's registry.
#[derive(Debug)]
pub(super) enum Credential {
    None,
    Known(RegistryAuth),
    /// A program has it.
    Helper(Helper),
}

/// The program `docker-credential-NAME`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Helper {
    name: String,
    server: String,
}

/// Looks the image's registry up in the configuration of whoever runs us.
pub(super) fn for_image(image: &str) -> std::result::Result<Credential, Failure> {
    // What is no image is the daemon's to explain.
    let Ok(reference) = image.parse::<Reference>() else { return Ok(Credential::None) };
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    let Some(path) = file(variable("DOCKER_CONFIG"), variable("HOME")) else {
        return Ok(Credential::None);
    };
    in_file(&path, &reference)
        .map_err(|error| Failure::step(format!("read {}", path.display()), &error))
}

/// Where docker keeps it.
fn file(config: Option<std::ffi::OsString>, home: Option<std::ffi::OsString>) -> Option<PathBuf> {
    match (config, home) {
        (Some(config), _) => Some(Path::new(&config).join("config.json")),
        (None, Some(home)) => Some(Path::new(&home).join(".docker/config.json")),
        (None, None) => None,
    }
}

fn in_file(path: &Path, reference: &Reference) -> Result<Credential> {
    use std::io::Read as _;

    use crate::error::Doing as _;
    let mut bytes = Vec::new();
    let read =
        std::fs::File::open(path).and_then(|file| file.take(MAX_FILE).read_to_end(&mut bytes));
    match read {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Credential::None),
        read => read.doing(|| "read the file")?,
    };
    Ok(match lookup(&bytes, reference)? {
        Found::Nothing => Credential::None,
        Found::Auth(auth) => Credential::Known(message(&auth)?),
        Found::Helper { name, server } => Credential::Helper(Helper { name, server }),
    })
}

impl Helper {
    /// Asks the program; nothing where it has nothing.
    pub(super) async fn ask(self) -> std::result::Result<Option<RegistryAuth>, Failure> {
        let name = self.name.clone();
        let asked = blocking::run("ask a credential helper", move || {
            Ok(ask_helper(&self.name, &self.server, HELPER_DEADLINE))
        });
        let found = asked.await.map_err(|error| Failure::new(chain(&error)))?;
        let found = found.map_err(|error| {
            let hint = format!("config.json of docker names the credential helper {name}");
            Failure::new(format!("{hint}; {}", chain(&error)))
        })?;
        let message = found.map(|auth| message(&auth)).transpose();
        message.map_err(|error| Failure::new(chain(&error)))
    }
}

/// As the request has it: user and password apart.
fn message(auth: &AuthConfig) -> Result<RegistryAuth> {
    let secret = |secret: &Secret| secret.expose().to_owned();
    let mut message = RegistryAuth {
        username: auth.username.clone(),
        password: secret(&auth.password),
        identity_token: secret(&auth.identity_token),
        registry_token: secret(&auth.registry_token),
    };
    if message.username.is_empty() && message.password.is_empty() && !auth.auth.is_empty() {
        (message.username, message.password) = user(auth.auth.expose()).ok_or_else(|| {
            Error::invalid(
                format!("auths of {}", auth.server_address),
                "auth must be user:password in base64; log in again",
            )
        })?;
    }
    Ok(message)
}

fn user(encoded: &str) -> Option<(String, String)> {
    // docker pads with zero bytes in old files.
    let decoded = STANDARD_NO_PAD.decode(encoded.trim().trim_end_matches('=')).ok()?;
    let text = String::from_utf8(decoded).ok()?;
    let (user, password) = text.trim_end_matches('\0').split_once(':')?;
    Some((user.to_owned(), password.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_is_where_docker_keeps_it() {
        let check = |config: Option<&str>, home: Option<&str>, expected: Option<&str>| {
            let found = file(config.map(Into::into), home.map(Into::into));
            assert_eq!(found.as_deref(), expected.map(Path::new));
        };
        check(Some("/c"), Some("/h"), Some("/c/config.json"));
        check(None, Some("/h"), Some("/h/.docker/config.json"));
        check(None, None, None);
    }

    #[track_caller]
    fn check(config: &str, image: &str, expected: &str) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config.json");
        std::fs::write(&path, config).unwrap();
        let found = match in_file(&path, &image.parse().unwrap()) {
            Ok(Credential::None) => "none".to_owned(),
            Ok(Credential::Known(auth)) => format!(
                "{} {} {} {}",
                auth.username, auth.password, auth.identity_token, auth.registry_token
            ),
            Ok(Credential::Helper(helper)) => format!("{} for {}", helper.name, helper.server),
            Err(error) => chain(&error),
        };
        assert_eq!(found, expected);
    }

    #[test]
    fn an_entry_becomes_user_and_password() {
        // user:p:w, alone, with padding of zero bytes, and beside a token.
        check(r#"{"auths": {"r.io": {"auth": "dXNlcjpwOnc="}}}"#, "r.io/x", "user p:w  ");
        check(r#"{"auths": {"r.io": {"auth": "dXNlcjpwOncAAA=="}}}"#, "r.io/x", "user p:w  ");
        check(
            r#"{"auths": {"r.io": {"auth": "dXNlcjpw", "identitytoken": "t"}}}"#,
            "r.io/x",
            "user p t ",
        );
        check(r#"{"auths": {"r.io": {"username": "a", "password": "b"}}}"#, "r.io/x", "a b  ");
        check(r#"{"auths": {"r.io": {"auth": "dXNlcjpw"}}}"#, "other.io/x", "none");
    }

    #[test]
    fn a_helper_is_asked_only_when_needed() {
        check(r#"{"credHelpers": {"r.io": "pass"}}"#, "r.io/x", "pass for r.io");
        check(r#"{"credsStore": "desktop"}"#, "nginx", "desktop for https://index.docker.io/v1/");
    }

    #[test]
    fn a_wrong_entry_is_named_and_not_shown() {
        check(
            r#"{"auths": {"r.io": {"auth": "hunter2!"}}}"#,
            "r.io/x",
            "auths of r.io: auth must be user:password in base64; log in again",
        );
    }

    #[test]
    fn no_file_is_no_credential() {
        let missing = Path::new("/nonexistent/config.json");
        assert!(matches!(in_file(missing, &"nginx".parse().unwrap()), Ok(Credential::None)));
    }
}
