//! containerd's `hosts.toml`: text to the hosts that it lists, in the order of the file.

use std::path::{Path, PathBuf};
use std::time::Duration;

use http::{HeaderName, HeaderValue};
use serde::Deserialize;

use super::url::Base;
use crate::error::{Error, Result, quoted, shown};
use crate::limits::Limits;

/// What a host may be asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Capabilities {
    /// Content by digest.
    pub(crate) pull: bool,
    /// Which digest a tag has: this host's word is taken for it.
    pub(crate) resolve: bool,
}

impl Capabilities {
    pub(crate) const ALL: Capabilities = Capabilities { pull: true, resolve: true };
}

/// Where certificates and keys of a host lie.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct TlsPaths {
    /// Files of authorities that are trusted besides the system's.
    pub(crate) ca: Vec<PathBuf>,
    /// Files of client certificates; the key is in the same file where there is no second.
    pub(crate) client: Vec<(PathBuf, Option<PathBuf>)>,
    /// Whether any certificate will do.
    pub(crate) skip_verify: bool,
}

/// One host of the file, or the file's own top level, which describes the upstream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    /// Where the API is; nothing at the top level of a file without `server`.
    pub(crate) base: Option<Base>,
    pub(crate) capabilities: Capabilities,
    pub(crate) headers: Vec<(HeaderName, HeaderValue)>,
    pub(crate) tls: TlsPaths,
    pub(crate) dial_timeout: Option<Duration>,
}

impl Entry {
    /// An upstream about which no file says anything.
    pub(crate) fn plain() -> Entry {
        Entry {
            base: None,
            capabilities: Capabilities::ALL,
            headers: Vec::new(),
            tls: TlsPaths::default(),
            dial_timeout: None,
        }
    }
}

/// The whole file.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct HostsFile {
    /// Asked first, in this order.
    pub(crate) mirrors: Vec<Entry>,
    /// Asked last.
    pub(crate) upstream: Entry,
    /// Keys that nobody here knows; a newer containerd may.
    pub(crate) unknown: Vec<String>,
}

#[derive(Deserialize)]
struct RawFile {
    server: Option<String>,
    #[serde(default)]
    host: toml::Table,
    #[serde(flatten)]
    top: RawHost,
}

#[derive(Deserialize)]
struct RawHost {
    #[serde(default)]
    capabilities: Vec<String>,
    ca: Option<OneOrMany<String>>,
    client: Option<OneOrMany<OneOrMany<String>>>,
    skip_verify: Option<bool>,
    #[serde(default)]
    header: toml::Table,
    #[serde(default)]
    override_path: bool,
    dial_timeout: Option<String>,
    #[serde(flatten)]
    unknown: toml::Table,
}

/// Either form of a value; containerd's documentation shows both.
#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany<T> {
    One(T),
    Many(Vec<T>),
}

impl<T> OneOrMany<T> {
    fn into_vec(self) -> Vec<T> {
        match self {
            OneOrMany::One(one) => vec![one],
            OneOrMany::Many(many) => many,
        }
    }
}

/// Reads the text of the file at `path`; relative paths in it start at the file's directory.
///
/// # Errors
/// [`Error::Invalid`] that names the file and the key. A broken file is never passed over:
/// pulling past the mirror that it was meant to set up is worse than a message.
pub(crate) fn parse(text: &str, path: &Path, limits: &Limits) -> Result<HostsFile> {
    let what = || path.display().to_string();
    let raw: RawFile =
        toml::from_str(text).map_err(|error| Error::invalid(what(), toml_problem(&error, text)))?;
    if raw.host.len() as u64 > limits.hosts {
        return Err(limits.passed(what(), "hosts"));
    }
    let dir = path.parent().unwrap_or(Path::new("/"));
    let mut unknown: Vec<String> = raw.top.unknown.keys().map(|key| shown(key, 60)).collect();
    let mut mirrors = Vec::new();
    for (url, table) in raw.host {
        let key = format!("host.{}", quoted(&url, 200));
        let host: RawHost = table.try_into().map_err(|error: toml::de::Error| {
            Error::invalid(what(), format!("{key}: {}", shown(error.message(), 200)))
        })?;
        unknown.extend(host.unknown.keys().map(|name| format!("{key}.{}", shown(name, 60))));
        mirrors.push(entry(host, Some(&url), dir, &|problem| {
            Error::invalid(what(), format!("{key}: {problem}"))
        })?);
    }
    let server = raw.server.filter(|server| !server.is_empty());
    let mut upstream = entry(raw.top, server.as_deref(), dir, &|problem| {
        Error::invalid(what(), problem.to_owned())
    })?;
    if upstream.base.is_none() {
        // As containerd has it: without `server` the registry itself is asked, for everything.
        upstream.capabilities = Capabilities::ALL;
    }
    Ok(HostsFile { mirrors, upstream, unknown })
}

fn toml_problem(error: &toml::de::Error, text: &str) -> String {
    let line = error
        .span()
        .and_then(|span| text.get(..span.start))
        .map_or(1, |before| before.matches('\n').count() + 1);
    format!("line {line}: {}", shown(error.message(), 200))
}

fn entry(
    raw: RawHost,
    url: Option<&str>,
    dir: &Path,
    invalid: &dyn Fn(&str) -> Error,
) -> Result<Entry> {
    let base = url
        .map(|url| Base::parse(url, raw.override_path).map_err(|problem| invalid(&problem)))
        .transpose()?;
    let pair = |files: OneOrMany<String>| match files.into_vec().as_slice() {
        [both] => Ok((dir.join(both), None)),
        [cert, key] => Ok((dir.join(cert), Some(dir.join(key)))),
        _ => Err(invalid("client: must be a file or a pair of certificate and key")),
    };
    let client = match raw.client {
        None => Vec::new(),
        // A list of names is a list of files that hold both parts, not a pair.
        Some(OneOrMany::One(OneOrMany::Many(files))) => {
            files.iter().map(|file| (dir.join(file), None)).collect()
        }
        Some(client) => client.into_vec().into_iter().map(pair).collect::<Result<_>>()?,
    };
    let dial_timeout = raw.dial_timeout.filter(|text| !text.is_empty());
    let dial_timeout = dial_timeout.map(|text| {
        duration(&text)
            .ok_or_else(|| invalid("dial_timeout: must be a time such as \"5s\" or \"1m30s\""))
    });
    Ok(Entry {
        base,
        capabilities: capabilities(&raw.capabilities, invalid)?,
        headers: headers(raw.header, invalid)?,
        tls: TlsPaths {
            ca: raw
                .ca
                .map(OneOrMany::into_vec)
                .unwrap_or_default()
                .iter()
                .map(|file| dir.join(file))
                .collect(),
            client,
            skip_verify: raw.skip_verify.unwrap_or(false),
        },
        dial_timeout: dial_timeout.transpose()?,
    })
}

fn capabilities(words: &[String], invalid: &dyn Fn(&str) -> Error) -> Result<Capabilities> {
    if words.is_empty() {
        return Ok(Capabilities::ALL);
    }
    let mut capabilities = Capabilities { pull: false, resolve: false };
    for word in words {
        match word.to_ascii_lowercase().as_str() {
            "pull" => capabilities.pull = true,
            "resolve" => capabilities.resolve = true,
            "push" | "referrers" => {}
            other => {
                return Err(invalid(&format!(
                    "capabilities: {} is unknown; there are pull, resolve, push and referrers",
                    quoted(other, 60)
                )));
            }
        }
    }
    Ok(capabilities)
}

fn headers(
    table: toml::Table,
    invalid: &dyn Fn(&str) -> Error,
) -> Result<Vec<(HeaderName, HeaderValue)>> {
    let mut headers = Vec::new();
    for (name, value) in table {
        let bad = |problem: &str| invalid(&format!("header.{}: {problem}", shown(&name, 60)));
        let header =
            HeaderName::from_bytes(name.as_bytes()).map_err(|_| bad("is no name of a header"))?;
        let values: OneOrMany<String> =
            value.try_into().map_err(|_| bad("must be a text or a list of texts"))?;
        for text in values.into_vec() {
            let mut value =
                HeaderValue::from_str(&text).map_err(|_| bad("must hold no control characters"))?;
            // It may be a password; Debug prints leave it out.
            value.set_sensitive(true);
            headers.push((header.clone(), value));
        }
    }
    Ok(headers)
}

/// Go's notation of a time: numbers with units, added up.
fn duration(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..digits].parse().ok()?;
        let unit_end = rest[digits..]
            .find(|c: char| c.is_ascii_digit())
            .map_or(rest.len(), |length| digits + length);
        let unit = match &rest[digits..unit_end] {
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            "us" | "µs" => 1e-6,
            "ns" => 1e-9,
            _ => return None,
        };
        total = total.checked_add(Duration::try_from_secs_f64(number * unit).ok()?)?;
        rest = &rest[unit_end..];
    }
    (total > Duration::ZERO).then_some(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(entry: &Entry) -> String {
        let mut line = entry.base.as_ref().map_or("registry".to_owned(), ToString::to_string);
        for (word, has) in [
            ("pull", entry.capabilities.pull),
            ("resolve", entry.capabilities.resolve),
            ("skip_verify", entry.tls.skip_verify),
        ] {
            if has {
                line = format!("{line} {word}");
            }
        }
        for path in &entry.tls.ca {
            line = format!("{line} ca={}", path.display());
        }
        for (cert, key) in &entry.tls.client {
            let key = key.as_ref().map_or(String::new(), |key| format!("+{}", key.display()));
            line = format!("{line} client={}{key}", cert.display());
        }
        for (name, value) in &entry.headers {
            line = format!("{line} {name}={}", value.to_str().unwrap());
        }
        entry.dial_timeout.map_or(line.clone(), |time| format!("{line} dial={time:?}"))
    }

    #[track_caller]
    fn check(text: &str, expected: &str) {
        let path = Path::new("/d/r.io/hosts.toml");
        let found = match parse(text, path, &Limits::default()) {
            Ok(file) => {
                let lines = file.mirrors.iter().chain([&file.upstream]).map(line);
                lines
                    .chain(file.unknown.iter().map(|key| format!("unknown {key}")))
                    .collect::<Vec<_>>()
                    .join("\n")
            }
            Err(error) => error.to_string(),
        };
        assert_eq!(found, expected);
    }

    #[test]
    fn hosts_keep_the_order_of_the_file() {
        check(
            r#"
            server = "https://up.io"
            [host."https://z.io"]
              capabilities = ["pull", "resolve"]
            [host."https://z.io".header]
              x-a = ["1", "2"]
            [host."http://a.io:5000/prefix"]
              capabilities = ["pull", "push"]
            [host."m.io/v2/cache"]
              override_path = true
              dial_timeout = "1m1.5s"
            "#,
            "https://z.io/v2 pull resolve x-a=1 x-a=2\n\
             http://a.io:5000/prefix/v2 pull\n\
             https://m.io/v2/cache pull resolve dial=61.5s\n\
             https://up.io/v2 pull resolve",
        );
    }

    #[test]
    fn certificates_come_in_every_form() {
        check(
            "ca = \"ca.pem\"\nclient = \"both.pem\"\nskip_verify = true",
            "registry pull resolve skip_verify ca=/d/r.io/ca.pem client=/d/r.io/both.pem",
        );
        check(
            "ca = [\"/a\", \"b\"]\nclient = [\"one\", \"two\"]",
            "registry pull resolve ca=/a ca=/d/r.io/b client=/d/r.io/one client=/d/r.io/two",
        );
        check(
            "client = [[\"c\", \"/k\"], [\"d\", \"l\"]]",
            "registry pull resolve client=/d/r.io/c+/k client=/d/r.io/d+/d/r.io/l",
        );
    }

    #[test]
    fn an_upstream_without_server_is_the_registry_with_all_it_can() {
        check("", "registry pull resolve");
        check("server = \"\"\ncapabilities = [\"pull\"]", "registry pull resolve");
        check("server = \"up.io/\"\ncapabilities = [\"pull\"]", "https://up.io/v2 pull");
    }

    #[test]
    fn keys_that_nobody_knows_are_listed() {
        check(
            "servr = \"x\"\n[host.\"https://a\"]\nfuture = 1",
            "https://a/v2 pull resolve\nregistry pull resolve\nunknown servr\nunknown host.\"https://a\".future",
        );
    }

    #[test]
    fn a_broken_file_names_the_place() {
        let check =
            |text: &str, problem: &str| check(text, &format!("/d/r.io/hosts.toml: {problem}"));
        check("\n\nserver = x", "line 3: string values must be quoted, expected literal string");
        check(
            "[host.\"https://a\"]\ncapabilities = [\"pul\"]",
            "host.\"https://a\": capabilities: \"pul\" is unknown; there are pull, resolve, push and referrers",
        );
        check(
            "[host.\"https://a\"]\ndial_timeout = \"5\"",
            "host.\"https://a\": dial_timeout: must be a time such as \"5s\" or \"1m30s\"",
        );
        check(
            "client = [[\"a\"], [\"a\", \"b\", \"c\"]]",
            "client: must be a file or a pair of certificate and key",
        );
        check("header = { \"a b\" = \"c\" }", "header.a b: is no name of a header");
        check("header = { a = \"c\\n\" }", "header.a: must hold no control characters");
        check(
            "server = \"ftp://a\"",
            "\"ftp://a\" must be http://HOST[:PORT][/PATH] or https://...",
        );
        check(
            "server = \"https://user:hunter2@a\"",
            "must not hold a user or password; use the header table",
        );
    }
}
