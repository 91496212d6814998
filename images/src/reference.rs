//! Names of images: `[registry/]repository[:tag][@digest]`, with docker's shorthand.
//!
//! The grammar is that of the distribution spec: a first component with a dot, a
//! colon or the word localhost is a registry; else the registry is docker.io, and a
//! repository of one component there lives below `library/`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::error::{Error, Result};

/// Longest reference that is taken: the spec allows 255 bytes for the repository; 128 for the tag, 71 for a digest.
const MAX_LENGTH: usize = 512;

/// A name of an image, in full: `docker.io/library/nginx:latest`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Reference {
    registry: String,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

impl Reference {
    /// Host and port of the registry: `docker.io`, `127.0.0.1:5000`.
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// The repository below the registry: `library/nginx`.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The tag; `latest` where neither a tag nor a digest was written. Nothing where only a digest was.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest, where one was written. Then it decides and the tag is for show.
    pub fn digest(&self) -> Option<Digest> {
        self.digest
    }

    /// `registry/repository`, without tag and digest.
    pub fn name(&self) -> String {
        format!("{}/{}", self.registry, self.repository)
    }

    /// The same repository with a digest only: what a repo digest looks like.
    pub fn with_digest(&self, digest: Digest) -> Reference {
        Reference { tag: None, digest: Some(digest), ..self.clone() }
    }
}

impl FromStr for Reference {
    type Err = Error;

    fn from_str(text: &str) -> Result<Reference> {
        let invalid = |problem: &str| {
            let shown: String = text.chars().take(100).collect();
            Error::invalid(format!("image reference {shown:?}"), problem)
        };
        if text.is_empty() {
            return Err(invalid("must not be empty"));
        }
        if text.len() > MAX_LENGTH {
            return Err(invalid("must be at most 512 bytes"));
        }
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => {
                let wrong = |_| invalid("the digest must be sha256: and 64 lower-case hex digits");
                (rest, Some(digest.parse::<Digest>().map_err(wrong)?))
            }
            None => (text, None),
        };
        // A colon after the last slash starts a tag; one before it belongs to the registry's port.
        let (name, tag) = match rest.rsplit_once(':') {
            Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
            _ => (rest, None),
        };
        if tag.is_some_and(|tag| !is_tag(tag)) {
            return Err(invalid(
                "the tag must be 1 to 128 of letters, digits, _ . - and not begin with . or -",
            ));
        }
        let (registry, repository) = split_registry(name);
        if !is_registry(registry) {
            return Err(invalid(
                "the registry must be a host name or address, with an optional port",
            ));
        }
        if repository.is_empty()
            || repository.len() > 255
            || !repository.split('/').all(is_component)
        {
            return Err(invalid(
                "the repository must be lower-case letters and digits, in parts separated by / and inside by . _ __ or -",
            ));
        }
        let official = registry == "docker.io" && !repository.contains('/');
        Ok(Reference {
            registry: registry.to_owned(),
            repository: if official {
                format!("library/{repository}")
            } else {
                repository.to_owned()
            },
            tag: tag.map(str::to_owned).or_else(|| digest.is_none().then(|| "latest".to_owned())),
            digest,
        })
    }
}

fn split_registry(name: &str) -> (&str, &str) {
    match name.split_once('/') {
        Some(("index.docker.io", rest)) => ("docker.io", rest),
        Some((first, rest)) if first.contains(['.', ':']) || first == "localhost" => (first, rest),
        _ => ("docker.io", name),
    }
}

/// `host[:port]`, `1.2.3.4[:port]` or `[v6]:port`, as the reference grammar has it.
fn is_registry(text: &str) -> bool {
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => match rest.split_once(']') {
            Some((address, port)) => {
                let v6 = address.parse::<std::net::Ipv6Addr>().is_ok();
                return v6 && (port.is_empty() || port.strip_prefix(':').is_some_and(is_port));
            }
            None => return false,
        },
        None => match text.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        },
    };
    let label = |label: &str| {
        let inner = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
        !label.is_empty()
            && label.bytes().all(inner)
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    host.split('.').all(label) && port.is_none_or(is_port)
}

fn is_port(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_digit())
        && text.parse::<u16>().is_ok_and(|port| port != 0)
}

fn is_tag(tag: &str) -> bool {
    let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    (1..=128).contains(&tag.len())
        && tag.bytes().next().is_some_and(word)
        && tag.bytes().all(|byte| word(byte) || byte == b'.' || byte == b'-')
}

/// `[a-z0-9]+` parts joined by one dot, one or two underscores, or any number of hyphens.
fn is_component(component: &str) -> bool {
    let part = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let ends = |byte: Option<u8>| byte.is_some_and(part);
    let separators_hold =
        component.split(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit()).all(|separator| {
            matches!(separator, "" | "." | "_" | "__") || separator.bytes().all(|byte| byte == b'-')
        });
    ends(component.bytes().next()) && ends(component.bytes().last()) && separators_hold
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

impl TryFrom<String> for Reference {
    type Error = Error;

    fn try_from(text: String) -> Result<Reference> {
        text.parse()
    }
}

impl From<Reference> for String {
    fn from(reference: Reference) -> String {
        reference.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(input: &str, expected: &str) {
        assert_eq!(
            input
                .parse::<Reference>()
                .map(|reference| reference.to_string())
                .unwrap_or_else(|error| error.to_string()),
            expected
        );
    }

    const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn shorthand_becomes_the_full_name() {
        check("nginx", "docker.io/library/nginx:latest");
        check("nginx:1.2", "docker.io/library/nginx:1.2");
        check("a/b", "docker.io/a/b:latest");
        check("docker.io/nginx", "docker.io/library/nginx:latest");
        check("index.docker.io/a/b", "docker.io/a/b:latest");
        check("localhost/x", "localhost/x:latest");
        check("127.0.0.1:5000/x/y:T.a-g_1", "127.0.0.1:5000/x/y:T.a-g_1");
        check("[::1]:5000/x", "[::1]:5000/x:latest");
        check("registry.k8s.io/a_b/c__d/e--f.g", "registry.k8s.io/a_b/c__d/e--f.g:latest");
    }

    #[test]
    fn a_digest_needs_no_tag() {
        check(&format!("nginx@{DIGEST}"), &format!("docker.io/library/nginx@{DIGEST}"));
        check(&format!("r.io/x:1@{DIGEST}"), &format!("r.io/x:1@{DIGEST}"));
    }

    #[test]
    fn what_is_no_name_is_refused() {
        for text in [
            "",
            " ",
            "a b",
            "A/b",
            "a//b",
            "a/",
            "/a",
            "a:",
            "a:.x",
            "a:b:c",
            "a@",
            "a@sha256:12",
            "../x",
            "a/../b",
            "a._b",
            "-a",
            "a-",
            "r.io:99999/x",
            "r.io:0/x",
            "r..io/x",
            "[::g]:5/x",
            "[::1/x",
            "http://r.io/x",
            "a\0b",
            "ä",
        ] {
            assert!(text.parse::<Reference>().is_err(), "{text:?}");
        }
        let long = "a".repeat(600);
        assert!(long.parse::<Reference>().is_err());
    }
}
