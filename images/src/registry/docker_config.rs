//! Docker's `config.json`: which credential it holds for an image.
//!
//! The command line reads the user's file and sends what it finds with the request; the
//! daemon reads no home directory and runs no credential helper.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde::Deserialize;

use super::credentials::{AuthConfig, Secret, server_of};
use crate::error::{Doing as _, Error, Result, quoted, shown};
use crate::limits::Limits;
use crate::reference::Reference;

/// What the file says about an image.
#[derive(Debug)]
pub enum Found {
    /// Nothing.
    Nothing,
    /// A credential; put it into the request.
    Auth(AuthConfig),
    /// The program `docker-credential-NAME` has it: see [`ask_helper`].
    Helper {
        /// The `NAME` in its file name.
        name: String,
        /// What to ask it for.
        server: String,
    },
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct File {
    #[serde(default)]
    auths: Option<BTreeMap<String, Entry>>,
    #[serde(default)]
    cred_helpers: Option<BTreeMap<String, String>>,
    #[serde(default)]
    creds_store: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Entry {
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
    identitytoken: Option<String>,
    registrytoken: Option<String>,
}

impl Entry {
    fn into_auth(self, server: String) -> AuthConfig {
        let secret = |text: Option<String>| Secret::new(text.unwrap_or_default());
        AuthConfig {
            username: self.username.unwrap_or_default(),
            password: secret(self.password),
            auth: secret(self.auth),
            server_address: server,
            identity_token: secret(self.identitytoken),
            registry_token: secret(self.registrytoken),
        }
    }

    fn is_empty(&self) -> bool {
        let empty = |text: &Option<String>| text.as_ref().is_none_or(String::is_empty);
        empty(&self.auth)
            && empty(&self.username)
            && empty(&self.identitytoken)
            && empty(&self.registrytoken)
    }
}

/// Looks an image up in the bytes of a `config.json`.
///
/// A helper for the very registry comes first, then an entry of `auths` in any of the
/// spellings that tools write (`r.io`, `https://r.io/v2/`, podman's `r.io/team`, the
/// longest path first), then the store for all.
///
/// # Errors
/// [`Error::Invalid`] for a file that is no such file; its text is not shown, for it holds secrets.
pub fn lookup(bytes: &[u8], reference: &Reference) -> Result<Found> {
    if bytes.len() as u64 > Limits::default().hosts_file_bytes.0 {
        return Err(Limits::default().passed("docker config.json", "hosts_file_bytes"));
    }
    let file: File = serde_json::from_slice(bytes).map_err(|error| {
        let place = format!("line {}, column {}", error.line(), error.column());
        Error::invalid("docker config.json", format!("is not as docker writes it, at {place}"))
    })?;
    let registry = reference.registry();
    let helper = |name: String| -> Result<Found> {
        let word = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        if name.is_empty() || !name.chars().all(word) {
            let problem = format!("the credential helper {} is no name", quoted(&name, 60));
            return Err(Error::invalid("docker config.json", problem));
        }
        let server = match registry {
            "docker.io" => "https://index.docker.io/v1/".to_owned(),
            registry => registry.to_owned(),
        };
        Ok(Found::Helper { name, server })
    };
    let same = |key: &str| server_of(key) == server_of(registry);
    let mut helpers = file.cred_helpers.unwrap_or_default().into_iter();
    if let Some((_, name)) = helpers.find(|(key, _)| same(key)) {
        return helper(name);
    }
    let entries = file.auths.unwrap_or_default().into_iter();
    let best = entries
        .filter(|(key, entry)| !entry.is_empty() && same(key))
        .filter_map(|(key, entry)| covers(&key, reference).map(|length| (length, entry)))
        .max_by_key(|(length, _)| *length);
    if let Some((_, entry)) = best {
        return Ok(Found::Auth(entry.into_auth(registry.to_owned())));
    }
    match file.creds_store.filter(|name| !name.is_empty()) {
        Some(name) => helper(name),
        None => Ok(Found::Nothing),
    }
}

/// How much of the repository a key names, where it covers it at all. Docker's `/v1/` and `/v2/` name none.
fn covers(key: &str, reference: &Reference) -> Option<usize> {
    let (has_scheme, rest) = match key.split_once("://") {
        Some((_, rest)) => (true, rest),
        None => (false, key),
    };
    let path = rest.split_once('/').map_or("", |(_, path)| path).trim_matches('/');
    if path.is_empty() || path == "v1" || path == "v2" || has_scheme {
        return Some(0);
    }
    let rest = reference.repository().strip_prefix(path)?;
    (rest.is_empty() || rest.starts_with('/')).then_some(path.len())
}

/// Runs `docker-credential-NAME get` and reads its answer. Blocks; for the command line only.
///
/// # Errors
/// [`Error::Io`] when the program cannot be run, [`Error::Invalid`] for an answer that is
/// none, [`Error::Unavailable`] when it does not end within the deadline.
pub fn ask_helper(name: &str, server: &str, deadline: Duration) -> Result<Option<AuthConfig>> {
    let program = format!("docker-credential-{name}");
    let what = || format!("{program} get {}", shown(server, 100));
    let mut child = Command::new(&program)
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .doing(what)?;
    let mut stdin = child.stdin.take().expect("stdin was asked for");
    let stdout = child.stdout.take().expect("stdout was asked for");
    let cap = Limits::default().token_bytes.0;
    let question = server.to_owned();
    let (sender, answer) = std::sync::mpsc::channel();
    // A thread of its own, so that a helper which waits for a key press ends with the deadline.
    std::thread::spawn(move || {
        let mut text = Vec::new();
        let read = stdin
            .write_all(question.as_bytes())
            .and_then(|()| stdin.flush())
            .map(|()| drop(stdin))
            .and_then(|()| stdout.take(cap).read_to_end(&mut text));
        // The other end is gone when the deadline has passed; then nobody wants the answer.
        drop(sender.send(read.map(|_| text)));
    });
    let end = Instant::now() + deadline;
    let answer = answer.recv_timeout(deadline);
    let mut status = child.try_wait().doing(what)?;
    while answer.is_ok() && status.is_none() && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(1));
        status = child.try_wait().doing(what)?;
    }
    let (Ok(answer), Some(status)) = (answer, status) else {
        child.kill().doing(what)?;
        child.wait().doing(what)?;
        return Err(Error::Unavailable {
            what: what(),
            problem: format!("did not end within {} s", deadline.as_secs()),
            source: None,
        });
    };
    read_answer(&answer.doing(what)?, status.success(), server, &what())
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    username: String,
    secret: String,
}

fn read_answer(
    bytes: &[u8],
    success: bool,
    server: &str,
    what: &str,
) -> Result<Option<AuthConfig>> {
    if !success {
        let text = String::from_utf8_lossy(bytes);
        let said = quoted(text.trim(), 200);
        // The wording is fixed in docker-credential-helpers, which has no code for it.
        if said.contains("credentials not found") {
            return Ok(None);
        }
        return Err(Error::invalid(what, format!("failed: {said}")));
    }
    let answer: Answer = serde_json::from_slice(bytes)
        .map_err(|_| Error::invalid(what, "did not answer with Username and Secret"))?;
    Ok(Some(AuthConfig {
        username: answer.username,
        password: Secret::new(answer.secret),
        server_address: server.to_owned(),
        ..AuthConfig::default()
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = r#"{
        "auths": {
            "https://index.docker.io/v1/": {"auth": "aHViOnA="},
            "quay.io": {"auth": "cXVheTpw"},
            "quay.io/team": {"auth": "dGVhbTpw"},
            "http://10.0.0.1:5000/v2/": {"username": "u", "password": "p"},
            "az.io": {"auth": "MDA6", "identitytoken": "refresh"},
            "empty.io": {}
        },
        "credHelpers": {"gcr.io": "gcloud", "bad.io": "../x"},
        "credsStore": "desktop",
        "HttpHeaders": {"a": "b"}
    }"#;

    #[track_caller]
    fn check(file: &str, image: &str, expected: &str) {
        let found = match lookup(file.as_bytes(), &image.parse().unwrap()) {
            Ok(Found::Nothing) => "nothing".to_owned(),
            Ok(Found::Auth(auth)) => {
                format!(
                    "{} {}{}{} for {}",
                    auth.auth.expose(),
                    auth.username,
                    auth.password.expose(),
                    auth.identity_token.expose(),
                    auth.server_address
                )
            }
            Ok(Found::Helper { name, server }) => format!("{name} {server}"),
            Err(error) => error.to_string(),
        };
        assert_eq!(found, expected);
    }

    #[test]
    fn an_image_finds_its_entry_in_every_spelling() {
        check(FILE, "nginx", "aHViOnA=  for docker.io");
        check(FILE, "quay.io/other/x", "cXVheTpw  for quay.io");
        check(FILE, "quay.io/team/x", "dGVhbTpw  for quay.io");
        check(FILE, "quay.io/teams/x", "cXVheTpw  for quay.io");
        check(FILE, "10.0.0.1:5000/x", " up for 10.0.0.1:5000");
        check(FILE, "az.io/x", "MDA6 refresh for az.io");
    }

    #[test]
    fn helpers_are_named_where_they_are_asked() {
        check(FILE, "gcr.io/x", "gcloud gcr.io");
        check(FILE, "empty.io/x", "desktop empty.io");
        check(r#"{"credsStore": "pass"}"#, "nginx", "pass https://index.docker.io/v1/");
        check(FILE, "bad.io/x", "docker config.json: the credential helper \"../x\" is no name");
    }

    #[test]
    fn a_file_without_the_registry_gives_nothing() {
        check("{}", "nginx", "nothing");
        check(r#"{"auths": null, "credHelpers": null, "credsStore": ""}"#, "nginx", "nothing");
        check(r#"{"auths": {"r.io": {"auth": "x"}}}"#, "r.io:5000/x", "nothing");
    }

    #[test]
    fn a_broken_file_is_not_shown() {
        check(
            r#"{"auths": {"r.io": {"auth": ["hunter2"]}}}"#,
            "r.io/x",
            "docker config.json: is not as docker writes it, at line 1, column 28",
        );
        check(
            &" ".repeat(300 << 10),
            "r.io/x",
            "docker config.json is over the limit of 256 KiB (limits.hosts_file_bytes)",
        );
    }

    #[track_caller]
    fn check_answer(text: &str, success: bool, expected: &str) {
        let found = match read_answer(text.as_bytes(), success, "r.io", "x get r.io") {
            Ok(Some(auth)) => format!("{} {}", auth.username, auth.password.expose()),
            Ok(None) => "nothing".to_owned(),
            Err(error) => error.to_string(),
        };
        assert_eq!(found, expected);
    }

    #[test]
    fn the_answer_of_a_helper_is_read() {
        check_answer(r#"{"ServerURL":"r.io","Username":"u","Secret":"s"}"#, true, "u s");
        check_answer("credentials not found in native keychain", false, "nothing");
        check_answer("locked\u{1b}[2J", false, r#"x get r.io: failed: "locked\u{1b}[2J""#);
        check_answer("hunter2", true, "x get r.io: did not answer with Username and Secret");
    }

    #[test]
    fn a_helper_that_does_not_exist_is_named() {
        let error = ask_helper("none-such", "r.io", Duration::from_secs(5)).unwrap_err();
        assert_eq!(error.to_string(), "docker-credential-none-such get r.io");
    }
}
