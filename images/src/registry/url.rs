//! URLs: where a host's API is, where a redirect leads, and which places are off limits.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use http::Uri;

use crate::error::quoted;

/// Longest URL that is taken from a file or an answer; signed ones have some 2,000 bytes.
const MOST_BYTES: usize = 8192;

/// Reads a URL of a file or an answer.
pub(crate) fn parse(text: &str) -> Option<Uri> {
    if text.len() > MOST_BYTES { None } else { text.parse().ok() }
}

/// Fields as a query or form has them, every byte escaped that could mean something.
pub(crate) fn encode(fields: &[(&str, &str)]) -> String {
    let mut text = String::new();
    for (name, value) in fields {
        if !text.is_empty() {
            text.push('&');
        }
        text.push_str(name);
        text.push('=');
        for byte in value.bytes() {
            match byte {
                b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' => text.push(char::from(byte)),
                b'-' | b'.' | b'_' | b'~' | b':' | b'/' => text.push(char::from(byte)),
                _ => text.push_str(&format!("%{byte:02X}")),
            }
        }
    }
    text
}

/// Scheme, host and port: what a credential is bound to.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Origin {
    pub(crate) is_tls: bool,
    /// Lower case; an IPv6 address without its brackets.
    pub(crate) host: String,
    pub(crate) port: u16,
}

impl Origin {
    /// The origin of an absolute http or https URL.
    pub(crate) fn of(uri: &Uri) -> Option<Origin> {
        let is_tls = match uri.scheme_str()? {
            "https" => true,
            "http" => false,
            _ => return None,
        };
        let port = uri.port_u16().unwrap_or(if is_tls { 443 } else { 80 });
        let host = uri.host()?.trim_matches(['[', ']']).to_ascii_lowercase();
        Some(Origin { is_tls, host, port })
    }

    /// The address, where the host is one.
    pub(crate) fn address(&self) -> Option<IpAddr> {
        self.host.parse().ok().map(unmapped)
    }

    /// Whether the host is this machine by name: 127.0.0.0/8, ::1 or localhost.
    pub(crate) fn is_loopback(&self) -> bool {
        self.host == "localhost"
            || self.host.ends_with(".localhost")
            || self.address().is_some_and(|address| address.is_loopback())
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.is_tls { "https" } else { "http" };
        let host =
            if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        match (self.is_tls, self.port) {
            (true, 443) | (false, 80) => write!(f, "{scheme}://{host}"),
            (_, port) => write!(f, "{scheme}://{host}:{port}"),
        }
    }
}

/// Where the API of a host begins: its origin and a path such as `/v2`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Base {
    pub(crate) origin: Origin,
    pub(crate) path: String,
}

impl Base {
    /// Reads the URL of a host as hosts.toml has it: https where no scheme is written, and
    /// `/v2` at the end of the path unless that is `override_path`.
    pub(crate) fn parse(text: &str, override_path: bool) -> Result<Base, String> {
        let url = if text.contains("://") { text.to_owned() } else { format!("https://{text}") };
        let problem =
            || format!("{} must be http://HOST[:PORT][/PATH] or https://...", quoted(text, 200));
        let uri = parse(&url).ok_or_else(problem)?;
        let authority = uri.authority().ok_or_else(problem)?;
        if authority.as_str().contains('@') {
            return Err("must not hold a user or password; use the header table".to_owned());
        }
        let origin = Origin::of(&uri).filter(|origin| !origin.host.is_empty());
        let origin = origin.ok_or_else(problem)?;
        let path = uri.path().trim_end_matches('/');
        if path.split('/').any(|part| part == "..") || uri.query().is_some() {
            return Err(problem());
        }
        let path = match path.ends_with("/v2") || override_path {
            true => path.to_owned(),
            false => format!("{path}/v2"),
        };
        Ok(Base { origin, path })
    }

    /// The host that an image names: docker.io is elsewhere, and this machine speaks plain HTTP.
    pub(crate) fn of_registry(registry: &str) -> Base {
        let host = if registry == "docker.io" { "registry-1.docker.io" } else { registry };
        let uri: Uri =
            format!("https://{host}/").parse().expect("a parsed reference names a valid host");
        let mut origin = Origin::of(&uri).expect("the URL is absolute");
        if origin.is_loopback() && !registry.ends_with(":443") {
            origin.is_tls = false;
            origin.port = uri.port_u16().unwrap_or(80);
        }
        Base { origin, path: "/v2".to_owned() }
    }

    /// The URL of something below the base.
    pub(crate) fn join(&self, path: &str) -> Uri {
        format!("{self}/{path}")
            .parse()
            .expect("names of repositories, tags and digests are short and need no escapes")
    }
}

impl fmt::Display for Base {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.origin, self.path)
    }
}

/// Where a `Location` header leads, seen from the URL that was asked.
pub(crate) fn follow(from: &Uri, location: &[u8]) -> Result<Uri, String> {
    let text = escape(location);
    let text = text.split('#').next().unwrap_or_default();
    let scheme = from.scheme_str().unwrap_or("https");
    let authority = from.authority().map_or("", |authority| authority.as_str());
    let absolute = if text.contains("://") && !text.starts_with(['/', '?']) {
        text.to_owned()
    } else if text.starts_with("//") {
        format!("{scheme}:{text}")
    } else if text.starts_with('/') {
        format!("{scheme}://{authority}{text}")
    } else if text.starts_with('?') {
        format!("{scheme}://{authority}{}{text}", from.path())
    } else {
        let directory = from.path().rsplit_once('/').map_or("", |(directory, _)| directory);
        format!("{scheme}://{authority}{directory}/{text}")
    };
    let problem = || format!("leads to {}, which is no URL", quoted(text, 200));
    let uri = parse(&absolute).ok_or_else(problem)?;
    let plain = uri.authority().is_some_and(|authority| !authority.as_str().contains('@'));
    match Origin::of(&uri) {
        Some(origin) if plain && !origin.host.is_empty() => Ok(uri),
        _ => Err(problem()),
    }
}

/// Servers send spaces and other bytes that a URL must not have.
fn escape(location: &[u8]) -> String {
    let mut text = String::new();
    for &byte in location {
        match byte {
            b'!' | b'#'..=b';' | b'=' | b'?'..=b'[' | b']' | b'_' | b'a'..=b'z' | b'~' => {
                text.push(char::from(byte));
            }
            _ => text.push_str(&format!("%{byte:02X}")),
        }
    }
    text
}

/// A URL for messages: signed URLs carry secrets in their query.
pub(crate) fn without_query(uri: &Uri) -> String {
    let origin = Origin::of(uri).map_or(String::new(), |origin| origin.to_string());
    crate::error::shown(&format!("{origin}{}", uri.path()), 300)
}

/// Which addresses a host may have that only a registry's answer has named.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Reach {
    /// All: the image's name or a hosts.toml names the host.
    Any,
    /// Not the link's own and the clouds' metadata addresses.
    NotLinkLocal,
    /// And not this machine either: the registry is another one.
    Remote,
}

impl Reach {
    /// Why an address is refused, or nothing.
    pub(crate) fn refuses(self, address: IpAddr) -> Option<&'static str> {
        let address = unmapped(address);
        match self {
            Reach::Any => None,
            _ if is_link_local(address) => Some("a link-local or metadata address"),
            Reach::Remote if address.is_loopback() || address.is_unspecified() => {
                Some("an address of this machine, and the registry is another one")
            }
            Reach::NotLinkLocal | Reach::Remote => None,
        }
    }
}

/// Addresses of the link, and those that clouds serve credentials of the node from.
fn is_link_local(address: IpAddr) -> bool {
    const METADATA_V4: [Ipv4Addr; 3] = [
        Ipv4Addr::new(100, 100, 100, 200),
        Ipv4Addr::new(168, 63, 129, 16),
        Ipv4Addr::new(192, 0, 0, 192),
    ];
    const METADATA_V6: [Ipv6Addr; 2] = [
        Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254),
        Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254),
    ];
    match address {
        IpAddr::V4(v4) => v4.is_link_local() || METADATA_V4.contains(&v4),
        IpAddr::V6(v6) => v6.is_unicast_link_local() || METADATA_V6.contains(&v6),
    }
}

/// An IPv4 address in IPv6's clothes is still that address, also behind NAT64.
fn unmapped(address: IpAddr) -> IpAddr {
    let IpAddr::V6(v6) = address else { return address };
    if let Some(v4) = v6.to_ipv4_mapped() {
        return IpAddr::V4(v4);
    }
    match v6.segments() {
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] => {
            IpAddr::V4(Ipv4Addr::from(u32::from(high) << 16 | u32::from(low)))
        }
        _ => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check_registry(registry: &str, expected: &str) {
        assert_eq!(Base::of_registry(registry).to_string(), expected);
    }

    #[test]
    fn a_registry_is_asked_by_tls_unless_it_is_this_machine() {
        check_registry("docker.io", "https://registry-1.docker.io/v2");
        check_registry("r.io", "https://r.io/v2");
        check_registry("r.io:5000", "https://r.io:5000/v2");
        check_registry("10.0.0.1:80", "https://10.0.0.1:80/v2");
        check_registry("localhost", "http://localhost/v2");
        check_registry("localhost:5000", "http://localhost:5000/v2");
        check_registry("127.1.2.3:5000", "http://127.1.2.3:5000/v2");
        check_registry("[::1]:5000", "http://[::1]:5000/v2");
        check_registry("localhost:443", "https://localhost/v2");
        check_registry("localhost.example.com", "https://localhost.example.com/v2");
    }

    #[track_caller]
    fn check_follow(location: &str, expected: &str) {
        let from = "https://r.io:5000/v2/a/blobs/x?ns=y".parse().unwrap();
        let found = follow(&from, location.as_bytes()).map(|uri| uri.to_string());
        assert_eq!(found.unwrap_or_else(|error| error), expected);
    }

    #[test]
    fn a_location_is_read_from_where_it_was_found() {
        check_follow("https://cdn/x?sig=a%2Fb", "https://cdn/x?sig=a%2Fb");
        check_follow("//cdn/x", "https://cdn/x");
        check_follow("/x", "https://r.io:5000/x");
        check_follow("y?z", "https://r.io:5000/v2/a/blobs/y?z");
        check_follow("?z=http://q", "https://r.io:5000/v2/a/blobs/x?z=http://q");
        check_follow("http://cdn/a b|c#frag", "http://cdn/a%20b%7Cc");
        check_follow("ftp://cdn/x", "leads to \"ftp://cdn/x\", which is no URL");
        check_follow("https://u:p@cdn/x", "leads to \"https://u:p@cdn/x\", which is no URL");
        check_follow("https://", "leads to \"https://\", which is no URL");
    }

    #[track_caller]
    fn check_reach(address: &str, any: bool, near: bool, remote: bool) {
        let address = address.parse().unwrap();
        let allows = |reach: Reach| reach.refuses(address).is_none();
        assert_eq!(
            (allows(Reach::Any), allows(Reach::NotLinkLocal), allows(Reach::Remote)),
            (any, near, remote)
        );
    }

    #[test]
    fn addresses_near_us_are_off_limits_for_strangers() {
        check_reach("1.2.3.4", true, true, true);
        check_reach("10.0.0.1", true, true, true);
        check_reach("127.0.0.1", true, true, false);
        check_reach("::1", true, true, false);
        check_reach("0.0.0.0", true, true, false);
        for address in [
            "169.254.169.254",
            "::ffff:169.254.169.254",
            "64:ff9b::a9fe:a9fe",
            "fe80::1",
            "fd00:ec2::254",
            "100.100.100.200",
            "168.63.129.16",
        ] {
            check_reach(address, true, false, false);
        }
    }

    #[test]
    fn fields_are_escaped() {
        assert_eq!(
            encode(&[("scope", "repository:a/b:pull"), ("account", "a&b=c d+é[")]),
            "scope=repository:a/b:pull&account=a%26b%3Dc%20d%2B%C3%A9%5B"
        );
    }

    #[test]
    fn a_message_shows_no_query() {
        let uri = "https://cdn:444/x?sig=hunter2".parse().unwrap();
        assert_eq!(without_query(&uri), "https://cdn:444/x");
    }
}
