//! `WWW-Authenticate`: what a registry wants to see before it answers (RFC 9110, 11.6.1).

use http::HeaderMap;
use http::header::WWW_AUTHENTICATE;

use crate::error::shown;

/// The way in that a registry offers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Challenge {
    /// A token from a service (distribution spec, "token authentication").
    Bearer {
        /// The URL of the service.
        realm: String,
        /// The registry's own name, for the service.
        service: Option<String>,
        /// What the token must allow, such as `repository:a/b:pull`.
        scope: Option<String>,
        /// Why the token that was sent did not do.
        error: Option<String>,
    },
    /// User and password to the registry itself.
    Basic,
}

/// One challenge as it stands in the header.
#[derive(Debug, PartialEq, Eq)]
struct Raw {
    scheme: String,
    params: Vec<(String, String)>,
}

/// A registry sends one challenge or two; what goes on without end is cut.
const MOST_PARTS: usize = 64;

/// Picks the challenge to answer: a token where one is offered, else basic.
///
/// # Errors
/// The names of the schemes, when none of them is known.
pub(crate) fn pick(headers: &HeaderMap) -> Result<Challenge, String> {
    let mut challenges = Vec::new();
    for value in headers.get_all(WWW_AUTHENTICATE).iter().take(8) {
        parse(&String::from_utf8_lossy(value.as_bytes()), &mut challenges);
    }
    let bearer = challenges.iter().find_map(|challenge| {
        let get = |name: &str| {
            let found = challenge.params.iter().find(|(key, _)| key == name);
            found.map(|(_, value)| value.clone()).filter(|value| !value.is_empty())
        };
        let realm = get("realm").filter(|_| challenge.scheme == "bearer")?;
        let (service, scope, error) = (get("service"), get("scope"), get("error"));
        Some(Challenge::Bearer { realm, service, scope, error })
    });
    if let Some(bearer) = bearer {
        return Ok(bearer);
    }
    if challenges.iter().any(|challenge| challenge.scheme == "basic") {
        return Ok(Challenge::Basic);
    }
    let schemes: Vec<_> = challenges.iter().map(|challenge| shown(&challenge.scheme, 40)).collect();
    Err(if schemes.is_empty() { "nothing".to_owned() } else { schemes.join(", ") })
}

/// Reads one header, which may hold several challenges; commas separate both them and their parameters.
fn parse(text: &str, challenges: &mut Vec<Raw>) {
    let mut rest = text;
    for _ in 0..MOST_PARTS {
        rest = rest.trim_start_matches([' ', '\t', ',']);
        let end = rest.find(|c: char| " \t,=\"".contains(c)).unwrap_or(rest.len());
        let (word, after) = rest.split_at(end);
        let after = after.trim_start_matches([' ', '\t']);
        if word.is_empty() {
            // A stray quote or equals sign: the rest of the part means nothing.
            match rest.find(',') {
                Some(comma) => rest = &rest[comma..],
                None => return,
            }
            continue;
        }
        match (after.strip_prefix('='), challenges.last_mut()) {
            // The only tokens with an equals sign that are no parameters are the padded
            // ones of other schemes; they end up as parameters that nobody reads.
            (Some(after), Some(challenge)) => {
                let (value, after) = value(after.trim_start_matches([' ', '\t']));
                challenge.params.push((word.to_ascii_lowercase(), value));
                rest = after;
            }
            (Some(after), None) => rest = value(after).1,
            (None, _) => {
                challenges.push(Raw { scheme: word.to_ascii_lowercase(), params: Vec::new() });
                rest = after;
            }
        }
    }
}

/// A quoted text or a token, and what follows it.
fn value(text: &str) -> (String, &str) {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find([',', ' ', '\t']).unwrap_or(text.len());
        return (text[..end].to_owned(), &text[end..]);
    };
    let mut value = String::new();
    let mut chars = quoted.char_indices();
    while let Some((position, c)) = chars.next() {
        match c {
            '"' => return (value, &quoted[position + 1..]),
            '\\' => value.extend(chars.next().map(|(_, escaped)| escaped)),
            c => value.push(c),
        }
    }
    (value, "")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(headers: &[&str], expected: &str) {
        let mut map = HeaderMap::new();
        for header in headers {
            map.append(WWW_AUTHENTICATE, header.parse().unwrap());
        }
        let found = match pick(&map) {
            Ok(Challenge::Bearer { realm, service, scope, error }) => {
                let parts = [Some(realm), service, scope, error];
                parts.map(|part| part.unwrap_or("-".to_owned())).join(" ")
            }
            Ok(Challenge::Basic) => "basic".to_owned(),
            Err(schemes) => format!("unknown: {schemes}"),
        };
        assert_eq!(found, expected);
    }

    #[test]
    fn real_challenges_are_understood() {
        check(
            &[
                r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:a/b:pull""#,
            ],
            "https://auth.docker.io/token registry.docker.io repository:a/b:pull -",
        );
        check(&[r#"Basic realm="Registry""#], "basic");
        check(&["Basic"], "basic");
        check(
            &[
                r#"Bearer realm="https://r/t",error="insufficient_scope",scope="repository:x:pull repository:y:pull""#,
            ],
            "https://r/t - repository:x:pull repository:y:pull insufficient_scope",
        );
    }

    #[test]
    fn spelling_does_not_matter() {
        check(&[r#"bearer REALM = "https://r/t" , Service=s"#], "https://r/t s - -");
        check(&[r#"BEARER realm=https://r/t"#], "https://r/t - - -");
        check(
            &[r#"Bearer realm="https://r/t?a,b=\"c\"",service="""#],
            "https://r/t?a,b=\"c\" - - -",
        );
    }

    #[test]
    fn a_token_is_preferred_wherever_it_stands() {
        check(&[r#"Basic realm="x", Bearer realm="https://r/t""#], "https://r/t - - -");
        check(&[r#"Basic realm="x""#, r#"Bearer realm="https://r/t""#], "https://r/t - - -");
        check(&[r#"Negotiate abc==, Bearer realm="https://r/t""#], "https://r/t - - -");
        check(&[r#"Bearer service="no realm", Basic realm="x""#], "basic");
    }

    #[test]
    fn what_is_no_challenge_is_no_challenge() {
        check(&[], "unknown: nothing");
        check(&["Negotiate"], "unknown: negotiate");
        check(&["Digest realm=\"a\", NTLM"], "unknown: digest, ntlm");
        check(&["=,\"x\",,=="], "unknown: nothing");
        check(&["Bearer realm=\"unclosed"], "unclosed - - -");
        check(&["\"\\"], "unknown: nothing");
        let endless = "Bearer ".repeat(1000);
        let mut challenges = Vec::new();
        parse(&endless, &mut challenges);
        assert_eq!(challenges.len(), MOST_PARTS);
    }
}
