//! What went wrong at one host, and what several such failures mean for the caller.

use std::error::Error as StdError;
use std::time::Duration;

use http::StatusCode;
use serde::Deserialize;

use crate::error::{Error, shown};

/// What a failure calls for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Act {
    /// The host has no such thing.
    NotFound,
    /// The host wants other credentials.
    Denied,
    /// The host cannot be reached, or not trusted; asking again at once is of no use.
    Unreachable,
    /// The host may answer better later, at the earliest after the pause that it asks for.
    Later(Option<Duration>),
    /// The host answered with what cannot be right.
    Bad,
    /// The host sent more than the limit of that name allows.
    Limit(String),
}

/// One failed request.
#[derive(Debug, Clone)]
pub(crate) struct Failure {
    pub(crate) act: Act,
    /// The request and what came of it: `GET https://r.io/v2/a/manifests/x: 404 Not Found`.
    pub(crate) text: String,
}

impl Failure {
    pub(crate) fn new(act: Act, request: &str, came: impl AsRef<str>) -> Failure {
        Failure { act, text: format!("{request}: {}", came.as_ref()) }
    }

    /// A failure of the connection, with all that its chain of errors says.
    pub(crate) fn of_error(act: Act, request: &str, error: &(dyn StdError + 'static)) -> Failure {
        Failure::new(act, request, chain(error))
    }
}

/// The texts of an error and its sources, each once.
pub(crate) fn chain(error: &(dyn StdError + 'static)) -> String {
    let mut texts: Vec<String> = Vec::new();
    let mut next = Some(error);
    while let Some(error) = next {
        let text = shown(&error.to_string(), 300);
        // Some libraries print their source inside themselves as well.
        if !texts.iter().any(|earlier| earlier.contains(&text)) {
            texts.push(text);
        }
        next = error.source();
    }
    texts.join(": ")
}

/// Makes one error of the failures of all hosts that were asked. The last host decides
/// what it is, for that is the registry itself; the text has them all.
pub(crate) fn combine(what: &str, failures: &[Failure]) -> Error {
    let Some(last) = failures.last() else {
        return Error::Unavailable {
            what: what.to_owned(),
            problem: "no host may be asked for it; see the capabilities in its hosts.toml"
                .to_owned(),
            source: None,
        };
    };
    let texts: Vec<&str> = failures.iter().map(|failure| failure.text.as_str()).collect();
    let problem = match texts.as_slice() {
        [one] => (*one).to_owned(),
        several => format!("asked {} hosts: {}", several.len(), several.join("; ")),
    };
    let what = what.to_owned();
    match &last.act {
        Act::NotFound => Error::NotFound { what: format!("{what} ({problem})") },
        Act::Denied => Error::Denied { what, problem },
        Act::Unreachable | Act::Later(_) => Error::Unavailable { what, problem, source: None },
        Act::Bad => Error::Invalid { what, problem },
        Act::Limit(limit) => {
            Error::Limit { what: format!("{what}: {problem}"), limit: limit.clone() }
        }
    }
}

/// What a status that is no success calls for.
pub(crate) fn act_of(status: StatusCode, after: Option<Duration>) -> Act {
    match status.as_u16() {
        404 | 410 => Act::NotFound,
        401 | 403 | 407 => Act::Denied,
        408 | 425 | 429 | 500..=599 => Act::Later(after),
        _ => Act::Bad,
    }
}

/// The words of a failed answer: its status, and what its body says in one of the forms
/// that registries and token services use.
pub(crate) fn words(status: StatusCode, body: &[u8]) -> String {
    let said = registry_words(body).unwrap_or_else(|| plain_words(body));
    let said = if said.is_empty() { said } else { format!(": {said}") };
    format!("{status}{said}")
}

#[derive(Deserialize)]
struct ErrorBody {
    #[serde(default)]
    errors: Vec<ErrorEntry>,
    // Token services have their own forms: docker's, OAuth's, and what others made up.
    details: Option<String>,
    error: Option<String>,
    error_description: Option<String>,
    message: Option<String>,
}

#[derive(Deserialize)]
struct ErrorEntry {
    code: Option<serde_json::Value>,
    message: Option<String>,
}

fn registry_words(body: &[u8]) -> Option<String> {
    let body: ErrorBody = serde_json::from_slice(body).ok()?;
    let entries = body.errors.into_iter().take(3).map(|entry| {
        let code = entry.code.map(|code| code.as_str().map_or(code.to_string(), str::to_owned));
        let parts = [code, entry.message].into_iter().flatten();
        parts.filter(|part| !part.is_empty()).collect::<Vec<_>>().join(": ")
    });
    let others = [body.error, body.error_description, body.details, body.message];
    let all: Vec<String> = entries.chain(others.into_iter().flatten()).collect();
    Some(shown(&all.join("; "), 500))
}

/// The beginning of a body that is text; pages for people say nothing in their first lines.
fn plain_words(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(&body[..body.len().min(2000)]);
    let text = text.trim();
    if text.starts_with('<') || text.starts_with('{') || text.contains('\u{fffd}') {
        return String::new();
    }
    if text.contains("HTTP request to an HTTPS server")
        || text.contains("HTTP request was sent to HTTPS")
    {
        return format!(
            "{}; it speaks TLS: say so with server = \"https://...\" in its hosts.toml",
            shown(text, 200)
        );
    }
    shown(text, 200)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check_words(status: u16, body: &str, expected: &str) {
        assert_eq!(words(StatusCode::from_u16(status).unwrap(), body.as_bytes()), expected);
    }

    #[test]
    fn the_words_of_a_registry_are_found() {
        check_words(
            404,
            r#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown","detail":{"Tag":"x"}}]}"#,
            "404 Not Found: MANIFEST_UNKNOWN: manifest unknown",
        );
        check_words(
            401,
            r#"{"details":"incorrect username or password"}"#,
            "401 Unauthorized: incorrect username or password",
        );
        check_words(
            400,
            r#"{"error":"invalid_grant","error_description":"token expired"}"#,
            "400 Bad Request: invalid_grant; token expired",
        );
        check_words(403, r#"{"errors":[{"code":7,"message":null}]}"#, "403 Forbidden: 7");
        check_words(500, "", "500 Internal Server Error");
        check_words(502, "<html>long page</html>", "502 Bad Gateway");
        check_words(503, "try later", "503 Service Unavailable: try later");
        check_words(
            400,
            "Client sent an HTTP request to an HTTPS server.\n",
            "400 Bad Request: Client sent an HTTP request to an HTTPS server.; it speaks TLS: say so with server = \"https://...\" in its hosts.toml",
        );
    }

    #[test]
    fn the_words_of_a_registry_cannot_play_tricks() {
        check_words(400, "a\u{1b}[2Jb\nc", "400 Bad Request: a\\u{1b}[2Jb\\nc");
        check_words(400, "{\"message\":\"\\u202egnp\"}", "400 Bad Request: \\u{202e}gnp");
        check_words(400, "\u{1}\u{2}", "400 Bad Request: \\u{1}\\u{2}");
        let long = words(StatusCode::BAD_REQUEST, "x".repeat(1 << 16).as_bytes());
        assert!(long.len() < 300);
        let many = format!(r#"{{"errors":[{}]}}"#, vec![r#"{"code":"A"}"#; 1000].join(","));
        check_words(400, &many, "400 Bad Request: A; A; A");
    }

    fn failure(act: Act, text: &str) -> Failure {
        Failure { act, text: text.to_owned() }
    }

    #[track_caller]
    fn check_combined(failures: &[Failure], expected: &str) {
        assert_eq!(combine("image x", failures).to_string(), expected);
    }

    #[test]
    fn an_error_names_every_host_and_the_last_decides() {
        let mirror = || failure(Act::Unreachable, "GET m: refused");
        check_combined(&[mirror()], "image x: GET m: refused");
        check_combined(
            &[mirror(), failure(Act::NotFound, "GET u: 404")],
            "image x (asked 2 hosts: GET m: refused; GET u: 404) does not exist",
        );
        check_combined(
            &[mirror(), failure(Act::Denied, "GET u: 401")],
            "image x: access denied: asked 2 hosts: GET m: refused; GET u: 401",
        );
        check_combined(
            &[failure(Act::Limit("4 MiB".to_owned()), "GET u: body")],
            "image x: GET u: body is over the limit of 4 MiB",
        );
        check_combined(
            &[],
            "image x: no host may be asked for it; see the capabilities in its hosts.toml",
        );
    }

    #[test]
    fn a_chain_says_everything_once() {
        let inner = std::io::Error::from(std::io::ErrorKind::ConnectionRefused);
        let outer = Error::Io { doing: "connect".to_owned(), source: inner };
        assert_eq!(chain(&outer), "connect: connection refused");
        let twice = std::io::Error::other(Error::invalid("a", "b"));
        assert_eq!(chain(&twice), "a: b");
    }
}
